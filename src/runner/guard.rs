//! Measurements in a process of their own. A benchmark can end its process: a failed allocation aborts it, and a system
//! without memory kills it. It must not take down the benchmarks after it. So with the trainings of a shoot-out.
//!
//! [`guarded`] starts the program again, and waits for that process, which measures. Before it prepares a benchmark, the
//! process notes the record of its failure. If a signal ends the process, the waiting one appends the noted record to the run,
//! and starts another process for the benchmarks that have no record. Of benchmarks that are measured in turns, the one that
//! was prepared or warmed up last is noted; of models that score a text in one pass, the one that began a window last.
//! Trainings have no records: the next process gets the names of those that ended earlier processes.

use std::{
    collections::BTreeMap,
    env,
    io::{self, Read},
    process::{self, Command, ExitCode, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context, Result};
use chrono::{SecondsFormat, Utc};

use crate::{
    output,
    record::{GUARDED, Guarded, Note, Sink, parent_process},
    settings::RUN,
};

const SIGBUS: i32 = if cfg!(target_os = "linux") { 7 } else { 10 };

/// Signals that end a process because of its own work. Other signals come from users and end the run.
const FAULTS: [(i32, &str); 6] = [
    (4, "SIGILL"),
    (6, "SIGABRT, as after a failed allocation"),
    (SIGBUS, "SIGBUS, as when a mapped file is truncated"),
    (8, "SIGFPE"),
    (9, "SIGKILL, as by a system without memory"),
    (11, "SIGSEGV"),
];

/// Runs `body` in a process of its own, and again for the rest if a benchmark ends that process. `body` gets the facts about
/// its guard. On systems without signals, it runs in this process and gets none.
///
/// # Errors
/// Returns an error if the process cannot be started, or the record of a failure cannot be kept.
pub fn guarded(body: impl FnOnce(Option<Guarded>) -> Result<ExitCode>) -> Result<ExitCode> {
    match Guarded::of_this_process() {
        None if cfg!(unix) => guard(),
        guarded => body(guarded),
    }
}

fn guard() -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("the folder of temporary files can't be written to: set TMPDIR")?;
    let started = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let note = folder.path().join("note.json");
    let mut guarded = Guarded { started_by: parent_process(), note, since: None, ended: BTreeMap::new() };
    let mut run: Option<String> = None;
    loop {
        let status = wait_for(&guarded, run.as_deref()).context("the process that measures did not start")?;
        let Some(signal) = signal(status) else {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        };
        let fault = FAULTS.iter().find(|(number, _)| *number == signal).map(|(_, name)| name);
        let (Some(fault), Some(note)) = (fault, guarded.take()?) else {
            output::report(format_args!("error: the process that measures was ended by signal {signal}"));
            return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)));
        };
        match note {
            Note::Benchmark { out, mut record } => {
                let reason = format!("the process that measured it was ended by {fault}");
                output::report(format_args!("\nerror: {}: {reason}; the other benchmarks go on", record.id));
                let sink = Sink::open(&out, Some(record.run.as_str()).filter(|run| !run.is_empty()))?;
                record.run = sink.run().to_owned();
                record.reason = Some(reason);
                sink.append(&record)?;
                run = Some(record.run);
                guarded.since = Some(started.clone());
            }
            Note::Training(name) => {
                let reason = format!("the process that trained it was ended by {fault}");
                output::report(format_args!("\nerror: {name}: {reason}; the other trainings go on"));
                guarded.ended.insert(name, reason);
            }
        }
    }
}

/// Starts the program again and waits for it. The process appends to `run`, if that is known.
fn wait_for(guarded: &Guarded, run: Option<&str>) -> Result<ExitStatus> {
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).env(GUARDED, serde_json::to_string(guarded)?);
    command.envs(run.map(|run| (RUN, run)));
    // The pipe stays open while this process lives: see `end_with_guard`.
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let open = child.stdin.take();
    let status = child.wait()?;
    drop(open);
    Ok(status)
}

/// The signal that ended a process.
#[cfg(unix)]
pub(crate) fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// Other systems end processes with codes only.
#[cfg(not(unix))]
pub(crate) fn signal(_: ExitStatus) -> Option<i32> {
    None
}

/// Ends this process when its guard ends, which closes its standard input. Call it after [`super::set_threads`].
///
/// # Errors
/// Returns an error if the system starts no thread.
pub fn end_with_guard() -> io::Result<()> {
    let wait = || {
        let _ = io::stdin().read(&mut [0]);
        process::exit(1);
    };
    thread::Builder::new().name("guarded".into()).stack_size(1 << 18).spawn(wait).map(drop)
}
