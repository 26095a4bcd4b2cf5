//! Standard output and standard error. Everything that this crate prints goes through here.
//!
//! A reader may close a pipe at any time, as `head` does, and a disk may fill up. `println!` panics then, so the functions
//! here drop the text instead, and `failure` tells at the end of the program that a disk was full. Names from files and
//! servers are printed without escape sequences, as `text::lines` shows them.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
    sync::OnceLock,
};

use crate::{progress, text};

/// Why output was lost at first. A pipe that its reader closed does not count.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

/// Prints a text to standard output, as it is but for control characters.
pub fn print(text: impl Display) {
    write(io::stdout(), &text::lines(&text.to_string()));
}

/// Prints a line to standard output.
pub fn print_line(line: impl Display) {
    print(format_args!("{line}\n"));
}

/// Prints data for another program to standard output, with a line break at its end. Control characters become the escapes of
/// JSON, in which they mean the same; the writers of other formats have escaped them already.
pub fn print_data(data: &str) {
    let end = if data.ends_with('\n') { "" } else { "\n" };
    write(io::stdout(), &format!("{}{end}", text::json(data)));
}

/// Prints a line to standard error: progress, a note or an error.
pub fn report(line: impl Display) {
    write(io::stderr(), &text::lines(&format!("{line}\n")));
}

/// Standard output for a protocol, whose writer ends with the error if the other side has gone.
pub fn protocol() -> impl Write {
    io::stdout().lock()
}

/// The reason that output was lost. A pipe that its reader closed is not a failure.
pub fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

/// The stream must not be locked: the thread that draws the lines of [`progress`] waits for it.
fn write(mut stream: impl Write, text: &str) {
    match progress::suspended(|| stream.write_all(text.as_bytes()).and_then(|()| stream.flush())) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => drop(FAILURE.set(error)),
        _ => {}
    }
}

/// Columns of the terminal that standard output is. `None` if it is none, or its width is not known.
#[cfg(unix)]
pub fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Other systems do not tell.
#[cfg(not(unix))]
pub(crate) fn columns() -> Option<usize> {
    None
}

/// Returns whether a panic says that a stream could not be written to, as the standard library's macros do.
pub fn is_lost(panic: &str) -> bool {
    panic.starts_with(LOST)
}

/// How the standard library's macros begin the message of their panics.
const LOST: &str = "failed printing to ";

/// Redirects the stream that a panic of the standard library's macros names to the null device, so that a dependency that
/// uses them can go on. Returns whether it did.
pub fn redirect(panic: &str) -> bool {
    let Some(stream) = panic.strip_prefix(LOST) else { return false };
    let is_stdout = stream.starts_with("stdout");
    // Writing again tells the cause as an error.
    if is_stdout {
        write(io::stdout(), "\n")
    } else {
        write(io::stderr(), "\n")
    }
    let Ok(null) = std::fs::OpenOptions::new().write(true).open(NULL) else { return false };
    silence(is_stdout, &null)
}

#[cfg(unix)]
const NULL: &str = "/dev/null";
#[cfg(not(unix))]
const NULL: &str = "NUL";

/// Runs a part of a dependency that prints, without what it prints. Whoever runs meanwhile on other threads is silent too.
pub fn silently<T>(run: impl FnOnce() -> T) -> T {
    /// The streams as they were, which come back also after a panic.
    #[cfg(unix)]
    struct Silence([Option<std::os::fd::OwnedFd>; 2]);
    #[cfg(unix)]
    impl Drop for Silence {
        fn drop(&mut self) {
            let _ = io::stdout().flush();
            let [stdout, stderr] = &self.0;
            stdout.as_ref().map(rustix::stdio::dup2_stdout);
            stderr.as_ref().map(rustix::stdio::dup2_stderr);
        }
    }
    #[cfg(unix)]
    let _silence = {
        use std::os::fd::AsFd;
        let _ = io::stdout().flush();
        let streams = [io::stdout().as_fd().try_clone_to_owned().ok(), io::stderr().as_fd().try_clone_to_owned().ok()];
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open(NULL) {
            silence(true, &null);
            silence(false, &null);
        }
        Silence(streams)
    };
    run()
}

#[cfg(unix)]
fn silence(is_stdout: bool, null: &std::fs::File) -> bool {
    match is_stdout {
        true => rustix::stdio::dup2_stdout(null).is_ok(),
        false => rustix::stdio::dup2_stderr(null).is_ok(),
    }
}

/// Other systems have no duplicates of descriptors.
#[cfg(not(unix))]
fn silence(_: bool, _: &std::fs::File) -> bool {
    false
}
