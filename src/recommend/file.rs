//! Writes the settings file.

use std::{io, path::Path};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use super::Recommendation;
use crate::{
    config::Config,
    files::{SETTINGS_MAX_BYTES, check_target, read_text_limited},
    record::write_whole,
    settings::{FILE, Settings},
};

/// Checks, before anything is measured, that the file can be written.
///
/// # Errors
/// Returns an error if the file exists and must not be replaced, or its folder cannot be written to.
pub fn check(path: &Path, may_replace: bool) -> Result<()> {
    let name = path.display();
    ensure!(
        may_replace || !path.exists(),
        "{name} exists: --overwrite replaces the settings in it that are recommended, and --no-write writes nothing"
    );
    check_target(path).with_context(|| format!("{name} cannot be written"))
}

/// Writes the chosen settings to the file. The other keys and tables of a file that exists are kept, its comments are not.
///
/// # Errors
/// Returns an error if the file cannot be read or written.
pub fn write(path: &Path, recommendation: &Recommendation) -> Result<()> {
    let old = match read_text_limited(path, SETTINGS_MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    let Ok(mut table) = old.parse::<Table>() else { bail!("{} is not TOML any more", path.display()) };
    table.insert("models".into(), Value::Array(vec![recommendation.model.clone().into()]));
    for choice in &recommendation.choices {
        // The number of sequences is an option of the server, not a setting.
        if Settings::KEYS.iter().any(|key| key.name == choice.setting) {
            let number = choice.value.parse::<i64>().map(Value::Integer);
            table.insert(choice.setting.clone(), number.unwrap_or_else(|_| choice.value.clone().into()));
        }
    }
    let head = format!("# {FILE}, written by `candlepower recommend --goal {}`\n", recommendation.goal.name());
    write_whole(path, format!("{head}{}", toml::to_string(&table)?).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::recommend::{Choice, Goal};

    fn recommendation(choices: &[(&str, &str)]) -> Recommendation {
        let choice = |(setting, value): &(&str, &str)| Choice {
            setting: (*setting).into(),
            value: (*value).into(),
            reason: String::new(),
        };
        Recommendation {
            model: "llama-mini".into(),
            goal: Goal::Latency,
            scenario: "short".into(),
            floor: String::new(),
            choices: choices.iter().map(choice).collect(),
            comparisons: Vec::new(),
            doubts: Vec::new(),
            seconds: 1.0,
        }
    }

    #[test]
    fn the_settings_are_replaced_and_other_keys_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        check(&path, false).expect("there is none");
        let choices = [("engine", "tuned"), ("dtype", "bf16"), ("threads", "2"), ("max_sequences", "8")];
        write(&path, &recommendation(&choices)).expect("written");
        let table = || fs::read_to_string(&path).expect("a file").parse::<Table>().expect("TOML");
        let expected: Table =
            "models = ['llama-mini']\nengine = 'tuned'\ndtype = 'bf16'\nthreads = 2".parse().expect("TOML");
        assert_eq!(table(), expected);

        let error = check(&path, false).expect_err("it exists").to_string();
        assert!(error.contains("--overwrite") && error.lines().count() == 1, "{error}");
        check(&path, true).expect("it may be replaced");
        fs::write(&path, "seed = 7\ndtype = 'f32'\n[peers.mine]\ncommand = 'mine'\n").expect("written");
        write(&path, &recommendation(&choices[..2])).expect("written");
        let now = table();
        assert_eq!((now["seed"].as_integer(), now["dtype"].as_str()), (Some(7), Some("bf16")));
        assert_eq!(now["peers"]["mine"]["command"].as_str(), Some("mine"));
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1, "nothing is left behind");
    }
}
