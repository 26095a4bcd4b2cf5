//! Builds a crate outside of this package from the `Cargo.toml` and the snippet in the README alone, and runs its model in
//! every scenario with `cargo bench`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const README: &str = include_str!("../README.md");

/// The code block that follows `<!-- own {file} -->` in the README.
fn block(file: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("<!-- own {file} -->")).expect("the marker");
    let (_, rest) = rest.split_once("```").expect("the start of a code block");
    let (_, code) = rest.split_once('\n').expect("the line after the language");
    code.split_once("```").expect("the end of the code block").0
}

/// The target folder of the running test, so that compiled dependencies are reused.
fn target() -> PathBuf {
    let program = env::current_exe().expect("the path of this test");
    program.ancestors().nth(3).expect("<target>/<profile>/deps/<test>").to_owned()
}

/// The dev profile of this package, so that compiled dependencies are reused.
fn profile(package: &Path) -> String {
    let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("the manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let dev = manifest["profile"]["dev"].clone();
    let profile: toml::Table = [("dev".to_owned(), dev)].into_iter().collect();
    toml::to_string(&toml::Table::from_iter([("profile".to_owned(), profile.into())])).expect("TOML")
}

#[test]
fn the_documented_crate_runs_its_own_model() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The folder is outside of the package, and its path is fixed so that a second run compiles nothing.
    let crate_folder = env::temp_dir().join(format!("candlepower-own-crate-{}", checkout()));
    // The features that this test was built with, so that compiled dependencies are reused.
    let features: Vec<_> = [("hub", cfg!(feature = "hub")), ("cli", cfg!(feature = "cli"))]
        .into_iter()
        .filter_map(|(name, is_on)| is_on.then_some(name))
        .collect();
    let dependency = format!("path = {package:?}, features = {features:?}");
    // The documented folder is beside the crate. With its own path, the package is not compiled again.
    let with_path = block("Cargo.toml").replace("path = \"../candlepower\"", &dependency);
    assert!(with_path.contains(&dependency), "the documented Cargo.toml depends on the folder of candlepower");
    let manifest = format!("{with_path}\n{}", profile(package));
    for (file, text) in
        [("Cargo.toml", manifest.as_str()), ("benches/my_model.rs", block("benches/my_model.rs")), ("src/lib.rs", "")]
    {
        let path = crate_folder.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        if fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
            continue;
        }
        fs::write(path, text).expect("a file");
    }
    // Uses the locked versions of this package. Cargo removes the packages that the crate does not need.
    fs::copy(package.join("Cargo.lock"), crate_folder.join("Cargo.lock")).expect("Cargo.lock");
    let out = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO"))
        // Nothing is measured.
        .args(["bench", "--profile", "dev", "--offline", "--bench", "my_model", "--", "--test"])
        .current_dir(&crate_folder)
        .env("CARGO_TARGET_DIR", target())
        .env("CANDLEPOWER_OUT", out.path())
        .output()
        .expect("cargo");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    for scenario in candlepower::GENERATION {
        let line = format!("Testing {}/bag-of-words/own-f32-cpu\nSuccess", scenario.key);
        assert!(stdout.contains(&line), "{line}:\n{stdout}{stderr}");
    }
}

/// A name for the folder that differs between checkouts.
fn checkout() -> String {
    env!("CARGO_MANIFEST_DIR").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
