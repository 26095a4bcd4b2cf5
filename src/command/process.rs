//! Processes that the command starts, and the signals that end both.

use std::{
    io,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::measure::processes::is_in_foreground;

/// How often a process and the signals are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a command that reads a terminal has to end by itself.
const PATIENCE: Duration = Duration::from_millis(500);

/// The terminal that keys come from: standard input, or that of the process.
#[cfg(unix)]
fn terminal() -> Option<std::os::fd::OwnedFd> {
    use std::{fs::File, io::IsTerminal, os::fd::AsFd};
    let input = io::stdin();
    match input.is_terminal() {
        true => input.as_fd().try_clone_to_owned().ok(),
        false => File::open("/dev/tty").ok().map(Into::into),
    }
}

/// Returns whether the other side of a terminal has gone.
#[cfg(unix)]
fn is_closed(terminal: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(terminal, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
}

/// Remembers the last signal that asked the command to end: SIGINT, SIGTERM or SIGHUP.
#[derive(Clone, Default)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Starts to catch them. Until the command ends, it must look at [`Self::received`].
    ///
    /// # Errors
    /// When the system refuses a handler.
    #[cfg(unix)]
    pub fn catch() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let signals = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, signals.0.clone(), signal as usize)?;
        }
        Ok(signals)
    }

    /// Other systems end the processes of a console together.
    #[cfg(not(unix))]
    pub fn catch() -> io::Result<Self> {
        Ok(Self::default())
    }

    /// Watches for the end of the terminal as well, which counts as SIGHUP, as the system counts it. The reader of events that
    /// the live view uses never returns once the terminal has closed. So this ends the process if the command does not end
    /// within [`PATIENCE`] after a signal: first `restore` runs.
    #[cfg(unix)]
    pub fn watch_terminal(&self, restore: fn()) -> io::Result<()> {
        let signals = self.clone();
        let look = move || {
            const SIGHUP: usize = 1;
            let terminal = terminal();
            while signals.received().is_none() {
                if terminal.as_ref().is_none_or(is_closed) {
                    signals.0.store(SIGHUP, Ordering::Relaxed);
                }
                thread::sleep(INTERVAL);
            }
            thread::sleep(PATIENCE);
            restore();
            std::process::exit(128 + i32::from(signals.received().unwrap_or_default()));
        };
        thread::Builder::new().name("terminal".into()).spawn(look).map(drop)
    }

    /// Other systems end the processes of a console.
    #[cfg(not(unix))]
    pub fn watch_terminal(&self, _: fn()) -> io::Result<()> {
        Ok(())
    }

    /// The last signal, once.
    pub fn take(&self) -> Option<u8> {
        u8::try_from(self.0.swap(0, Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }

    /// The last signal.
    pub fn received(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }
}

/// The exit code of a command that a signal ended, as shells give it.
pub fn exit_code(signal: u8) -> ExitCode {
    ExitCode::from(128 + signal)
}

/// How a process ended.
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// It was stopped after its time.
    OutOfTime,
    /// It was stopped because the command received a signal.
    Signal(u8),
}

/// Runs a process without standard input, and with it all that it starts: if its time is over or a signal asks the command
/// to end, all of them are stopped.
///
/// # Errors
/// When the process cannot be started or waited for.
pub fn run(command: &mut Command, budget: Option<Duration>, signals: &Signals) -> io::Result<Ended> {
    command.stdin(Stdio::null());
    // A process group of its own, so that the processes that it starts can be stopped too.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let started = Instant::now();
    let mut child = command.spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended::Exited(status));
        }
        if let Some(signal) = signals.received() {
            stop(&mut child);
            return Ok(Ended::Signal(signal));
        }
        if budget.is_some_and(|budget| started.elapsed() >= budget) {
            stop(&mut child);
            return Ok(Ended::OutOfTime);
        }
        thread::sleep(INTERVAL);
    }
}

/// How often [`accompany`] looks whether its process has ended.
const PRECISION: Duration = Duration::from_millis(2);

/// Waits for a process, calls `look` at intervals from its start on, and passes signals on to it.
///
/// # Errors
/// When the process cannot be waited for.
pub fn accompany(
    child: &mut Child,
    interval: Duration,
    signals: &Signals,
    mut look: impl FnMut(),
) -> io::Result<ExitStatus> {
    let mut due = Instant::now();
    loop {
        if Instant::now() >= due {
            look();
            // A reading that took longer than the interval is not made up for.
            due = (due + interval).max(Instant::now());
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(signal) = signals.take() {
            pass_on(child, signal);
        }
        thread::sleep(PRECISION.min(due.saturating_duration_since(Instant::now())));
    }
}

/// Sends a signal to a process that has not been waited for. A terminal has sent its SIGINT to both.
fn pass_on(child: &Child, signal: u8) {
    const SIGINT: u8 = 2;
    if cfg!(unix) && !(signal == SIGINT && is_in_foreground()) {
        let _ = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
    }
}

/// The exit code of a process, as shells give it.
pub fn exit_code_of(status: ExitStatus) -> ExitCode {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return exit_code(u8::try_from(signal).unwrap_or(u8::MAX - 128));
    }
    let code = status.code().and_then(|code| u8::try_from(code & 0xff).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn stop(child: &mut Child) {
    #[cfg(unix)]
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
    let _ = child.kill();
    let _ = child.wait();
}
