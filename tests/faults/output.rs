//! Output that nobody reads, or that has no room.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    process::Stdio,
    thread,
};

use crate::command::{candlepower, ended, stderr, succeeds};

/// A pipe whose reader is closed, as `head` leaves it.
pub fn closed() -> Stdio {
    io::pipe().expect("a pipe").1.into()
}

/// A device that has no room. `None` where the system has none.
fn full() -> Option<Stdio> {
    OpenOptions::new().write(true).open("/dev/full").ok().map(Stdio::from)
}

/// Commands that print, with a sandbox to print about.
const COMMANDS: [&[&str]; 12] = [
    &["--help"],
    &["--version"],
    &["run", "--help"],
    &["list"],
    &["doctor"],
    &["doctor", "--json"],
    &["compare", "sandbox", "sandbox", "--format", "json"],
    &["compare", "one", "other"],
    &["export", "--format", "openmetrics"],
    &["history", "medium"],
    &["report"],
    &["no-such-command"],
];

fn with_sandbox() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["sandbox"]);
    folder
}

/// Exit codes of all commands with the given streams.
fn codes(folder: &Path, stdout: impl Fn() -> Stdio, stderr: impl Fn() -> Stdio) -> Vec<(Option<i32>, String)> {
    let run = |arguments: &&[&str]| {
        let child = candlepower(folder).args(*arguments).stdout(stdout()).stderr(stderr()).spawn();
        let output = ended(child.expect("it starts"));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    COMMANDS.iter().map(run).collect()
}

/// Exit codes of all commands, in a folder of their own.
fn exit_codes(stdout: fn() -> Stdio, stderr: fn() -> Stdio) -> Vec<Option<i32>> {
    let folder = with_sandbox();
    codes(folder.path(), stdout, stderr).into_iter().map(|(code, _)| code).collect()
}

#[test]
fn a_closed_stream_changes_no_exit_code() {
    let streams: [[fn() -> Stdio; 2]; 4] =
        [[Stdio::null, Stdio::null], [closed, Stdio::null], [Stdio::null, closed], [closed, closed]];
    let [expected, found @ ..] = thread::scope(|scope| {
        let started = streams.map(|[stdout, stderr]| scope.spawn(move || exit_codes(stdout, stderr)));
        started.map(|codes| codes.join().expect("no panic"))
    });
    assert!(expected.contains(&Some(0)) && expected.contains(&Some(2)), "{expected:?}");
    for codes in found {
        assert_eq!(codes, expected);
    }
}

#[test]
fn a_full_disk_is_told_in_one_line() {
    if full().is_none() {
        println!("skipped: this system has no /dev/full");
        return;
    }
    let (of_null, of_full) = thread::scope(|scope| {
        let of_null = scope.spawn(|| codes(with_sandbox().path(), Stdio::null, Stdio::piped));
        let of_full = codes(with_sandbox().path(), || full().expect("opened before"), Stdio::piped);
        (of_null.join().expect("no panic"), of_full)
    });
    for ((arguments, (before, _)), (code, error)) in COMMANDS.iter().zip(of_null).zip(of_full) {
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        if before == Some(0) {
            let last = error.lines().last().unwrap_or_default();
            assert!(last.starts_with("error: output was lost: No space left on device"), "{arguments:?}: {error}");
        }
    }
}

/// The smallest sweep that measures something.
pub const SMALL_SWEEP: &[&str] = &[
    "sweep",
    "--architectures",
    "state_space",
    "--model-dims",
    "8",
    "--depths",
    "1",
    "--windows",
    "16",
    "--horizons",
    "2",
    "--steps",
    "2",
    "--run",
    "r",
];

#[test]
fn a_sweep_goes_on_when_nobody_reads_its_progress() {
    for (stdout, stderr_) in [(closed(), Stdio::null()), (Stdio::null(), closed()), (closed(), closed())] {
        let folder = tempfile::tempdir().expect("a folder");
        let child = candlepower(folder.path()).args(SMALL_SWEEP).stdout(stdout).stderr(stderr_).spawn();
        let output = ended(child.expect("it starts"));
        assert!(output.status.success(), "{}", stderr(&output));
        let records = fs::read_to_string(folder.path().join("target/candlepower/r/records.jsonl")).expect("records");
        assert_eq!(records.lines().count(), 2);
        assert!(folder.path().join("target/candlepower/r/sweep.parquet").is_file());
    }
}
