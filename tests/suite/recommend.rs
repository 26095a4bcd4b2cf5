//! `candlepower recommend`: what it measures, prints and writes, and its errors.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn recommend(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command
        .current_dir(folder)
        .args(["recommend", "--model", "llama-mini"])
        .args(arguments)
        .output()
        .expect("an output")
}

fn refused(output: &Output, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.lines().count() == 1, "{part}: {error}");
    assert!(error.starts_with("error: ") && error.contains(part), "{part} is missing from: {error}");
}

/// The engine is varied, and everything else is given.
#[test]
fn an_engine_is_measured_chosen_and_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixed = ["--dtype", "f32", "--threads", "1", "--budget", "5m"];
    let output = recommend(folder.path(), &[&fixed[..], &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let comparisons = found["comparisons"].as_array().expect("comparisons");
    assert_eq!(comparisons.len(), 1, "{found}");
    let ratio = &comparisons[0]["ratio"];
    assert!(ratio["pairs"].as_u64() >= Some(6), "{found}");
    let (low, middle, high) = (ratio["low"].as_f64(), ratio["ratio"].as_f64(), ratio["high"].as_f64());
    assert!(low <= middle && middle <= high, "{found}");
    let engine = found["choices"].as_array().expect("choices").iter().find(|choice| choice["setting"] == "engine");
    let engine = engine.expect("a choice");
    let expected = if comparisons[0]["verdict"] == "better" { "tuned" } else { "stock" };
    assert_eq!(engine["value"], expected, "{found}");
    assert!(engine["reason"].as_str().expect("a reason").contains("runner-up"), "{found}");

    let file = folder.path().join("candlepower.toml");
    let written: toml::Table = fs::read_to_string(&file).expect("written").parse().expect("TOML");
    assert_eq!(written["engine"].as_str(), Some(expected));
    assert_eq!((written["dtype"].as_str(), written["threads"].as_integer()), (Some("f32"), Some(1)));
    let kept = fs::read(&file).expect("read");
    refused(&recommend(folder.path(), &fixed), "candlepower.toml exists: --overwrite replaces");
    assert_eq!(fs::read(&file).expect("read"), kept);
}

#[test]
fn wrong_requests_are_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, part) in [
        (&["--goal", "speed"][..], "unknown goal 'speed'"),
        (&["--min-quality", "kl"], "expected none, kl=NATS"),
        (&["--budget", "5"], "expected a time"),
        (&["--text", "missing.txt"], "missing.txt"),
        (&["--engine", "peer:transformers"], "a peer has settings of its own"),
        (&["--engine", "tuned", "--dtype", "f32", "--threads", "1"], "nothing to vary"),
    ] {
        refused(&recommend(folder.path(), arguments), part);
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0, "{part}: nothing is written");
    }
}

/// A short budget ends early, and says what it lacked.
#[test]
fn a_budget_that_is_too_short_measures_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = recommend(folder.path(), &["--dtype", "f32", "--threads", "1", "--budget", "1s", "--no-write"]);
    let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(output.status.success() && text.contains("give more time"), "{text}");
    assert!(text.contains("engine = stock: no alternative was measured beside it"), "{text}");
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
}
