//! Runs git, for commits in records and for the sides of duels.
//!
//! A repository may belong to somebody else. Its hooks and its file monitor are programs that it would start, so they are off.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Settings that keep git from starting programs of the repository and from asking questions.
const QUIET: [&str; 6] = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.askPass="];

/// Runs git in a checkout and returns its output.
///
/// # Errors
/// The first line of git's message, if git fails.
pub(crate) fn git(repository: &Path, arguments: &[&str]) -> Result<String> {
    git_with(repository, arguments, &[])
}

/// As [`git`], with environment variables.
///
/// # Errors
/// See [`git`].
pub(crate) fn git_with(repository: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(repository).args(QUIET).args(arguments).stdin(Stdio::null());
    // A hook of git sets these for its own repository.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    command.env("GIT_TERMINAL_PROMPT", "0").envs(environment.iter().copied());
    let output = command.output().context("git could not be started: is it installed?")?;
    let error = String::from_utf8_lossy(&output.stderr);
    let line = error.lines().find(|line| !line.is_empty()).unwrap_or("it failed");
    let line = line.trim_start_matches("fatal: ").trim_start_matches("error: ");
    ensure!(output.status.success(), "git {}: {line}", arguments[0]);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
}
