//! A configuration key is one field: its documentation is the help text of the flag and the row in `src/guide/keys.md`.

use std::{fmt::Write, fs, path::Path, process::Command};

use candlepower::{
    settings::{PREFIX, Settings},
    train::TrainConfig,
    workload::series::SeriesGrid,
};
use candlepower_core::config::{Config, Layers};

/// Where a configuration is used: the title of its table, the command that has its flags, and whether its keys are
/// environment variables.
struct Use {
    title: &'static str,
    command: &'static str,
    is_environment: bool,
}

const SETTINGS: Use = Use { title: "Settings", command: "bench", is_environment: true };
const TRAINING: Use = Use { title: "Training", command: "train", is_environment: false };
const SWEEP: Use = Use { title: "Sweep", command: "sweep", is_environment: false };

fn table<C: Config>(of: &Use) -> String {
    let source = match of.is_environment {
        true => "`candlepower.toml`, the environment, or flags of `candlepower bench`".to_owned(),
        false => format!("the YAML file of `candlepower {0} --config`, or flags of `candlepower {0}`", of.command),
    };
    let mut text = format!("# {}\n\nFrom {source}.\n\n", of.title);
    let columns: &[&str] = if of.is_environment {
        &["key", "variable", "flag", "description", "default"]
    } else {
        &["key", "flag", "description", "default"]
    };
    writeln!(text, "| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len())).expect("text");
    for (key, default, _) in Layers::new(&C::default()).sources() {
        let aliases: String = key.aliases.iter().map(|alias| format!(" (also `{alias}`)")).collect();
        write!(text, "| `{}`{aliases} |", key.name).expect("text");
        if of.is_environment {
            write!(text, " `{PREFIX}{}` |", key.name.to_uppercase()).expect("text");
        }
        writeln!(text, " `--{}` | {} | {default} |", key.name.replace('_', "-"), key.about).expect("text");
    }
    text
}

#[test]
fn the_tables_list_every_field() {
    let tables = [table::<Settings>(&SETTINGS), table::<TrainConfig>(&TRAINING), table::<SeriesGrid>(&SWEEP)];
    let now = format!("<!-- Written by UPDATE_KEYS=1 cargo test --test suite keys:: -->\n\n{}", tables.join("\n"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide/keys.md");
    if std::env::var_os("UPDATE_KEYS").is_some() {
        fs::write(&file, &now).expect("written");
    }
    let kept = fs::read_to_string(&file).expect("a file");
    assert!(kept == now, "{} is out of date: run UPDATE_KEYS=1 cargo test --test suite keys::", file.display());
}

/// Every key is documented, has a flag with that documentation, and is read from a file under its name.
fn check<C: Config>(of: &Use) {
    let output = Command::new(env!("CARGO_BIN_EXE_candlepower")).args([of.command, "--help"]).output().expect("help");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = words(&String::from_utf8_lossy(&output.stdout));
    for key in C::KEYS {
        assert!(!key.about.is_empty(), "{} has no documentation", key.name);
        let flag = format!("--{} <{}> {}", key.name.replace('_', "-"), key.name, words(key.about));
        assert!(help.contains(&flag), "{flag} is missing from:\n{help}");
        let layers = Layers::new(&C::default()).yaml("a.yaml", &format!("{}: {{}}", key.name));
        let message = layers.resolve().map(|_| ()).expect_err("a table is not a value").to_string();
        assert!(message.starts_with(&format!("{} in a.yaml: ", key.name)), "{message}");
    }
}

#[test]
fn every_field_is_a_flag_with_its_documentation() {
    check::<Settings>(&SETTINGS);
    check::<TrainConfig>(&TRAINING);
    check::<SeriesGrid>(&SWEEP);
}

#[test]
fn every_setting_is_an_environment_variable() {
    for key in Settings::KEYS {
        let variable = format!("{PREFIX}{}", key.name.to_uppercase());
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with(PREFIX)) {
            command.env_remove(name);
        }
        // No setting accepts an empty text.
        let output = command.arg("list").env(&variable, "").current_dir(&folder).output().expect("an output");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.starts_with(&format!("error: {variable}='': ")), "{error}");
    }
}
