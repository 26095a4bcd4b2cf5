//! Every flag of every command with numbers that mean nothing. The help texts say which flags there are.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::command::{all_are_tried, candlepower, output};

/// Commands with arguments that end them soon, for another reason than the flag.
const COMMANDS: &[&[&str]] = &[
    &["run", "--model", "./none.gguf"],
    &["glance", "./none.gguf"],
    &["standings", "--models=./none.gguf"],
    &["why", "--model", "./none.gguf"],
    &["perplexity", "--model", "./none.gguf", "none.txt"],
    &["eval", "--model", "./none.gguf", "--data", "none.jsonl"],
    &["verify", "--model", "./none.gguf"],
    &["recommend", "--model", "./none.gguf", "--no-write"],
    &["serve", "--model", "./none.gguf"],
    &[
        "load",
        "--url",
        "http://127.0.0.1:1",
        "--model",
        "x",
        "--requests",
        "1",
        "--timeout",
        "1",
        "--rate",
        "10",
        "--prompt-tokens",
        "1",
        "--max-new-tokens",
        "1",
    ],
    &["memory", "--", "true"],
    &["power", "--", "true"],
    &["sweep", "--config", "none.yaml"],
    &["train", "--corpus", "none.txt"],
    &["report", "none"],
    &["export", "--format", "openmetrics", "none"],
    &["history", "--from", "none"],
    &["sandbox", "--times", "1"],
    &["compare", "none", "other"],
    &["duel", "HEAD", "HEAD"],
    &["bisect", "HEAD~1", "HEAD"],
    &["list"],
];

const NUMBERS: [&str; 8] =
    ["nan", "-1", "0", "1e300", "1e19s", "4294967296", "18446744073709551615", "18446744073709551616"];

/// Commands that work for long whatever they are given, or take the flags of another one.
const NOT_TRIED: [&str; 6] = ["doctor", "bench", "shootout", "watch", "nightly", "help"];

/// The most that a command may take: debug builds start slowly beside other tests.
const SOON: Duration = Duration::from_secs(20);

/// The flags with a value in a help text.
fn flags(help: &str) -> Vec<String> {
    let flag = |line: &str| {
        let line = line.trim_start();
        let line = line
            .strip_prefix('-')
            .filter(|rest| !rest.starts_with('-'))
            .map_or(line, |rest| &rest[3.min(rest.len())..]);
        let (flag, value) = line.trim_start().split_once(' ')?;
        (flag.starts_with("--") && value.starts_with('<')).then(|| flag.to_owned())
    };
    help.lines().filter_map(flag).collect()
}

/// The arguments of a command with a flag, in place of the value that they have for it.
fn with(arguments: &[&str], flag: &str, number: &str) -> Vec<String> {
    let mut all: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    if let Some(place) = all.iter().position(|argument| argument == flag) {
        all.drain(place..=place + 1);
    }
    // A wrapped command follows `--`.
    let end = all.iter().position(|argument| argument == "--").unwrap_or(all.len());
    all.insert(end, format!("{flag}={number}"));
    all
}

#[test]
fn every_flag_refuses_numbers_that_mean_nothing_in_one_line() {
    let here = tempfile::tempdir().expect("a folder");
    all_are_tried(COMMANDS, &NOT_TRIED);
    let mut trials = Vec::new();
    for arguments in COMMANDS {
        let help = output(candlepower(here.path()).args([arguments[0], "--help"]));
        let found = flags(&String::from_utf8_lossy(&help.stdout));
        assert!(!found.is_empty(), "{arguments:?} has no flags");
        // Settings are read alike in all commands.
        let is_tried = |flag: &&String| {
            let is_setting = ["--device", "--dtype", "--engine", "--threads", "--tensor-parallel", "--instructions"];
            *flag != "--model" && (arguments[0] == "list" || !is_setting.contains(&flag.as_str()))
        };
        for flag in found.iter().filter(is_tried) {
            trials.extend(NUMBERS.map(|number| with(arguments, flag, number)));
        }
    }
    assert!(trials.len() > 600, "{} trials", trials.len());
    let (next, failures) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let work = || {
        while let Some(arguments) = trials.get(next.fetch_add(1, Relaxed)) {
            let folder = tempfile::tempdir().expect("a folder");
            let started = Instant::now();
            // Panics and processes that do not end fail here.
            let output = output(candlepower(folder.path()).args(arguments));
            let error = String::from_utf8_lossy(&output.stderr);
            let lines = error.lines().filter(|line| !line.starts_with("note: ")).count();
            // Several settings may be wrong at once, each in a line.
            let is_one_line = output.status.success() || lines <= 3;
            if output.status.code().is_none() || !is_one_line || started.elapsed() > SOON {
                let took = started.elapsed();
                failures
                    .lock()
                    .expect("no panic")
                    .push(format!("{arguments:?}: {:?}, {took:?}: {error}", output.status));
            }
        }
    };
    thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(work)));
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), trials.len(), failures.join("\n"));
}
