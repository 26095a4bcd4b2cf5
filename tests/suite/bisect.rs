//! Tests `candlepower bisect` on commits of the small crate that tests of duels use.

#![cfg(unix)]

use std::{
    fs,
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::duel::{Checkout, ID, kill};

/// Twelve commits after the first: the seventh takes 10 % longer, the sixth does not compile, and the ninth changes Markdown alone.
fn checkout() -> Checkout {
    let checkout = Checkout::new();
    let main = fs::read_to_string(checkout.path().join("src/main.rs")).expect("a source");
    checkout.write("ns", "300000000");
    checkout.commit();
    checkout.git(&["tag", "good"]);
    for number in 1..=12 {
        match number {
            6 => checkout.write("src/main.rs", "fn main() { nonsense }"),
            7 => {
                checkout.write("src/main.rs", &main);
                checkout.write("ns", "330000000");
            }
            9 => checkout.write("README.md", "words"),
            _ => checkout.write("other", &number.to_string()),
        }
        checkout.commit();
    }
    checkout
}

fn bisect(checkout: &Checkout, arguments: &[&str]) -> (Output, String) {
    let output = checkout.command("bisect", arguments).output().expect("the command starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The hashes of the suspects.
fn suspects(bisection: &Value) -> Vec<&str> {
    let suspects = bisection["suspects"].as_array().expect("suspects");
    suspects.iter().map(|commit| commit["hash"].as_str().expect("a hash")).collect()
}

/// A commit that does not compile lies next to the culprit, which therefore stays a suspect.
#[test]
fn a_bisection_that_was_killed_goes_on_and_names_the_commit() {
    let checkout = checkout();
    let arguments = ["good", "HEAD", "--json", "--", "^short/"];
    let mut first = checkout.start(&mut checkout.command("bisect", &arguments));
    // After the first step is kept.
    let out = checkout.path().join("target/candlepower");
    let has_trial = || {
        let entries = fs::read_dir(&out).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut kept = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        kept.any(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("\"measured\"")))
    };
    let started = Instant::now();
    while !has_trial() {
        assert!(started.elapsed() < Duration::from_secs(120), "no step is kept");
        thread::sleep(Duration::from_millis(10));
    }
    kill(&mut first);

    let (output, text) = bisect(&checkout, &arguments);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let found = json(&output);
    let hashes = ["HEAD~6", "HEAD~5"].map(|name| checkout.git(&["rev-parse", name]).trim().to_owned());
    assert_eq!(suspects(&found), hashes, "the commit that does not compile may be the first: {text}");
    assert_eq!((&found["kind"], &found["commits"]), (&"slower".into(), &11.into()));
    assert!(found["kept"].as_u64().is_some_and(|kept| kept >= 1), "{found}");
    let ratio = found["found"]["ratio"].as_f64().expect("a ratio");
    assert!((ratio - 1.1).abs() < 0.01, "{ratio}");
    assert!(text.contains("of them kept") && text.contains("skipped: side B"), "{text}");
    let repeat = found["repeat"].as_str().expect("a command");
    assert!(repeat.starts_with("candlepower duel ") && repeat.ends_with(&format!("-- '^{ID}$'")), "{repeat}");
    checkout.assert_clean();

    // The first end does not compile.
    let (output, text) = bisect(&checkout, &["HEAD~6", "HEAD"]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("error: side A (") && text.contains("does not build"), "{text}");
    let (output, text) = bisect(&checkout, &["HEAD~7", "HEAD~5"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.starts_with("The first commit that is slower is one of these 2"), "{table}");
    let (output, text) = bisect(&checkout, &["HEAD~5", "HEAD"]);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("No difference between "), "{text}");
}

#[test]
fn each_mistake_is_one_line() {
    let checkout = Checkout::new();
    for (arguments, part) in [
        (&["HEAD", "HEAD~1"][..], "GOOD is not an ancestor of BAD"),
        (&["HEAD", "HEAD"], "both are the same commit"),
        (&["HEAD~1", "no-such-branch"], "BAD (no-such-branch): there is no commit"),
        (&["HEAD~1+threads=1", "HEAD"], "differ in more than a commit"),
        (&["candle=.", "candle=."], "name a commit of it, as in candle=PATH@HEAD"),
        (&["HEAD~1+candle=.@HEAD~1", "HEAD+candle=.@HEAD"], "let them differ in one of them"),
        (&["HEAD~1", "HEAD", "--level", "100%"], "--level must be above 0 % and below 100 %"),
        (&["HEAD~1", "HEAD", "--for", "sleepier"], "[possible values: slower, faster, memory, tokens, allocations]"),
        (&["HEAD~1", "HEAD", "--", "^long/"], "no benchmark matches '^long/': the groups are short"),
    ] {
        let (output, text) = bisect(&checkout, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(part), "{arguments:?}: {part} is missing from:\n{text}");
    }
    checkout.write("ns", "1");
    let (_, text) = bisect(&checkout, &["HEAD~1", "."]);
    assert!(text.contains("BAD (.): the working tree has changes") && text.lines().count() == 1, "{text}");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut command = checkout.command("bisect", &["HEAD~1", "HEAD"]);
    let output = command.current_dir(elsewhere.path()).stdin(Stdio::null()).output().expect("an output");
    assert!(String::from_utf8_lossy(&output.stderr).contains("run it in one"));
}
