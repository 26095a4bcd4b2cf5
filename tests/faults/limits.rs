//! A process that the system gives little: memory, threads, room on a disk.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    command::{candlepower, is_refused, limited, output, stderr},
    output::SMALL_SWEEP,
};

/// Every limit ends in a result or in one line, and none in an abort.
#[test]
#[cfg(target_os = "linux")]
fn little_memory_ends_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("corpus.txt"), "The whale swims by the ship.\n".repeat(300)).expect("written");
    let mut refusals = 0;
    for kilobytes in [150_000, 250_000, 400_000] {
        for arguments in [
            &["run", "--model", "synthetic:llama-3.2-1b", "--prompt-tokens", "4", "--max-new-tokens", "2"][..],
            &[
                "train",
                "--corpus",
                "corpus.txt",
                "--sequence-length",
                "16",
                "--d-model",
                "2048",
                "--d-mlp",
                "8192",
                "--vocab-size",
                "300",
            ],
            &["run", "--model", "llama-mini", "--threads", "64"],
        ] {
            let output = output(&mut limited(folder.path(), &format!("ulimit -v {kilobytes}"), arguments));
            let error = is_refused(&output, &format!("{kilobytes} kB: {arguments:?}"));
            let told = ["it does not fit", "could not be started: set CANDLEPOWER_THREADS"];
            assert!(told.iter().any(|part| error.contains(part)), "{kilobytes} kB: {arguments:?}: {error}");
            refusals += 1;
        }
    }
    assert_eq!(refusals, 9);
}

/// The number of threads is limited for users other than root.
#[test]
#[cfg(target_os = "linux")]
fn few_threads_end_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["list", "--threads", "64"];
    let run = ["run", "--threads", "64", "--prompt-tokens", "4", "--max-new-tokens", "2"];
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !is_root {
        let output = output(&mut limited(folder.path(), "prlimit --pid $$ --nproc=20", &run));
        assert!(is_refused(&output, "one process").contains("could not be started: set CANDLEPOWER_THREADS"));
    }
    // Root has no such limit, but may become a user that has.
    if is_root {
        let copied = tempfile::Builder::new().permissions(open()).tempdir().expect("a folder");
        let program = copied.path().join("candlepower");
        fs::copy(env!("CARGO_BIN_EXE_candlepower"), &program).expect("copied");
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            "prlimit --pid $$ --nproc=20 && exec \"$0\" \"$@\"",
        ]);
        command.arg(&program).args(run).current_dir(copied.path()).stdin(Stdio::null()).env("HOME", copied.path());
        match command.output() {
            Ok(found) if found.status.code() == Some(2) => {
                let error = stderr(&found);
                assert!(error.contains("could not be started: set CANDLEPOWER_THREADS"), "{error}");
            }
            Ok(found) => println!("skipped: the user's processes are not limited: {}", stderr(&found)),
            Err(error) => println!("skipped: another user cannot be had: {error}"),
        }
    }
    assert!(output(candlepower(folder.path()).args(arguments)).status.success(), "a list needs no threads");
}

#[cfg(target_os = "linux")]
fn open() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o777)
}

/// Runs the command with a file system of so many kilobytes at `disk`. `None` where the system does not allow one.
pub fn with_small_disk(folder: &Path, kilobytes: u32, arguments: &[&str]) -> Option<Command> {
    let mount = format!("mount -t tmpfs -o size={kilobytes}k tmpfs disk");
    fs::create_dir_all(folder.join("disk")).expect("a folder");
    let mut probe = Command::new("unshare");
    probe.args(["-rm", "sh", "-c", &mount]).current_dir(folder).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        println!("skipped: this system gives no small file system to a test");
        return None;
    }
    let command = candlepower(folder);
    let mut inside = Command::new("unshare");
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(key, value),
            None => inside.env_remove(key),
        };
    }
    inside
        .args(["-rm", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(arguments);
    inside.current_dir(folder).stdin(Stdio::null());
    Some(inside)
}

/// A full disk below the records, a report, a training and an export: one line, and nothing torn.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    fs::write(path.join("corpus.txt"), "The whale swims by the ship.\n".repeat(300)).expect("written");
    assert!(output(candlepower(path).arg("sandbox")).status.success());
    let sweep: Vec<&str> = [SMALL_SWEEP, &["--out", "disk/out"]].concat();
    let train = ["train", "--corpus", "corpus.txt", "--steps", "2", "--vocab-size", "300", "--out", "disk/out"];
    let train = [train.as_slice(), &["--sequence-length", "16"]].concat();
    for (kilobytes, arguments) in [
        (16, &["report", "--to", "disk/reports"][..]),
        (16, &train),
        (64, &train),
        (4, &["export", "--format", "openmetrics", "--to", "disk/file"]),
        (4, &sweep),
    ] {
        let Some(mut command) = with_small_disk(path, kilobytes, arguments) else { return };
        let output = output(&mut command);
        let error = stderr(&output);
        let last = error.lines().last().unwrap_or_default();
        assert!(!output.status.success(), "{arguments:?}: {error}");
        assert!(last.starts_with("error: ") && last.contains("No space left") && last.contains("disk/"), "{error}");
    }
}
