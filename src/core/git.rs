//! Runs git, for commits in records and for the sides of duels.
//!
//! A repository may belong to somebody else. Its hooks, its file monitor and its checker of signatures are programs that it
//! would start, so they are off. The filters of its configuration run when git writes files, because a repository with Git LFS
//! needs them: a clone does not bring them along, and a deadline ends git if one of them hangs.

use std::{
    io::{self, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Settings that keep git from starting programs of the repository and from asking questions.
const QUIET: [&str; 8] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.askPass=",
    "-c",
    "log.showSignature=false",
];

/// Longest time of a command. A worktree of a large repository takes seconds.
const DEADLINE: Duration = Duration::from_secs(300);

/// Time between two looks at a running command.
const INTERVAL: Duration = Duration::from_millis(2);

/// Runs git in a checkout and returns its output.
///
/// # Errors
/// The first line of git's message, if git fails.
pub fn git(repository: &Path, arguments: &[&str]) -> Result<String> {
    git_with(repository, arguments, &[])
}

/// As [`git`], with environment variables.
///
/// # Errors
/// See [`git`].
pub fn git_with(repository: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    git_within(DEADLINE, repository, arguments, environment)
}

fn git_within(
    deadline: Duration,
    repository: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(repository).args(QUIET).args(arguments).stdin(Stdio::null());
    // A hook of git sets these for its own repository.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    command.env("GIT_TERMINAL_PROMPT", "0").envs(environment.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("git could not be started: is it installed?")?;
    let output = thread_of(child.stdout.take());
    let error = thread_of(child.stderr.take());
    let Some(status) = wait(&mut child, deadline)? else {
        bail!("git {}: it did not end within {} s", arguments[0], deadline.as_secs_f64());
    };
    let [output, error] = [output, error].map(|thread| thread.join().unwrap_or_default());
    let error = String::from_utf8_lossy(&error);
    let line = error.lines().find(|line| !line.is_empty()).unwrap_or("it failed");
    let line = line.trim_start_matches("fatal: ").trim_start_matches("error: ");
    ensure!(status.success(), "git {}: {line}", arguments[0]);
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// Reads a stream on a thread of its own, because git waits for a reader when a pipe is full.
fn thread_of(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut read = Vec::new();
        let _ = stream.map(|mut stream| stream.read_to_end(&mut read));
        read
    })
}

/// Waits until a process ends. Kills one that takes too long and returns `None`.
fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(INTERVAL);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Every way in which git starts a program of the repository, in commands that duels and records use.
    #[test]
    fn programs_of_the_repository_do_not_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        git(path, &["init", "--quiet"]).expect("a repository");
        let program = path.join("program");
        let ran = path.join("ran");
        fs::write(&program, format!("#!/bin/sh\ntouch '{}'\n", ran.display())).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        for hook in ["post-checkout", "post-index-change", "pre-commit", "post-commit", "reference-transaction"] {
            fs::create_dir_all(path.join(".git/hooks")).expect("made");
            fs::copy(&program, path.join(".git/hooks").join(hook)).expect("copied");
        }
        git(path, &["config", "core.fsmonitor", program.to_str().expect("UTF-8")]).expect("set");
        git(path, &["add", "program"]).expect("added");
        git(path, &[&author[..], &["commit", "--quiet", "-m", "one"]].concat()).expect("a commit");
        git(path, &["status", "--porcelain"]).expect("a state");
        let other = tempfile::tempdir().expect("a folder");
        let other = other.path().join("tree");
        git(path, &["worktree", "add", "--quiet", "--detach", other.to_str().expect("UTF-8"), "HEAD"]).expect("added");
        assert!(!ran.exists());
        // Without the settings, they would.
        assert!(
            Command::new("git").current_dir(path).args(["status"]).output().is_ok_and(|output| output.status.success())
        );
        assert!(ran.exists(), "the test is in vain");
    }
    /// A filter hangs, as one that waits for a server does.
    #[test]
    fn a_command_that_hangs_ends_in_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        git(path, &["init", "--quiet"]).expect("a repository");
        git(path, &["config", "filter.slow.clean", "sleep 20"]).expect("set");
        fs::write(path.join(".gitattributes"), "* filter=slow\n").expect("written");
        let started = Instant::now();
        let error = git_within(Duration::from_millis(200), path, &["add", "--all"], &[]).expect_err("it hangs");
        assert_eq!(error.to_string(), "git add: it did not end within 0.2 s");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
