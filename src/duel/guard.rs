//! Commands that end with the duel. Cargo and the compilers that it starts would survive a duel that is killed, and compete
//! with the next one. A guard process stands between: it runs the command, and kills it when its own input closes.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{self, Command, ExitCode, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context, Result};

/// Name of the hidden subcommand of `candlepower` that calls [`guard`].
const SUBCOMMAND: &str = "duel-guard";

/// Returns a guard of `command`, without a working directory or output yet. `program` is the `candlepower` program.
pub fn guarded(program: &Path, command: impl Into<OsString>) -> Command {
    let mut guard = Command::new(program);
    guard.arg(SUBCOMMAND).arg(command.into()).stdin(Stdio::piped());
    // A group of its own: the guard kills the whole group, with every process that the command started.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut guard, 0);
    guard
}

/// Runs a guard and waits for it.
///
/// # Errors
/// When it cannot be started.
pub fn wait(mut guard: Command) -> io::Result<ExitStatus> {
    let mut guard = guard.spawn()?;
    // `wait` would close the input, which kills the command.
    let _open = guard.stdin.take();
    guard.wait()
}

/// The guard itself: runs the command and ends with its exit code.
///
/// # Errors
/// When the command cannot be started.
pub fn guard(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command to run")?;
    thread::spawn(|| {
        // Returns when the duel has ended and its end of the pipe is closed.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        #[cfg(unix)]
        let _ = Command::new("sh").args(["-c", &format!("kill -s KILL -- -{}", process::id())]).status();
        process::exit(1);
    });
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("{} could not be started: is it installed?", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
