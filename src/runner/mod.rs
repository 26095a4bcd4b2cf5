//! Runs workloads and keeps their records.
//!
//! `criterion` runs the groups of a bench target and is the only caller of Criterion. `plain` runs the same workloads in
//! a loop, for the command. Both use `session`, which holds the state that all records of a process share, and `pool`,
//! which loads models. `turns` takes the samples of benchmarks that are compared alternately. `observe` reads the machine's limits
//! and load around samples. `sandbox` makes marked records without measuring.

mod criterion;
mod observe;
mod plain;
mod pool;
pub mod sandbox;
mod session;
mod turns;

pub use criterion::{Suite, bytes, main};
pub use observe::Surroundings;
pub use plain::{Progress, Shard, generate, repeat, sweep};
pub use pool::Candidate;
pub use session::{Session, let_waiting_threads_sleep, set_threads};

use std::{
    any::Any,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use anyhow::{Result, anyhow};

use crate::{
    error::{explained, one_line},
    text,
};

/// Runs a program and reports an error or a panic in one line, with exit code 2.
///
/// With `RUST_BACKTRACE` set, a panic also prints its location and its backtrace.
pub fn in_one_line(program: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    report_panics_on_request();
    let error = match caught(program) {
        Ok(code) => return code,
        Err(error) => explained(&format!("{error:#}")),
    };
    // The reader of the output has closed it, as `head` does. This is not a failure.
    if error.starts_with("failed printing to stdout: Broken pipe") {
        return ExitCode::SUCCESS;
    }
    // Standard error may be closed, which `eprintln!` answers with a panic.
    let _ = writeln!(io::stderr(), "error: {}", text::lines(&error));
    ExitCode::from(2)
}

/// Installs a panic hook that keeps the location and prints nothing, because [`caught`] turns panics into errors. Where
/// `RUST_BACKTRACE` asks for a backtrace, the default hook prints it too.
fn report_panics_on_request() {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        LOCATION.with_borrow_mut(|location| *location = panic.location().map(ToString::to_string));
        let is_closed_output = panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to"));
        if wanted && !is_closed_output {
            default(panic);
        }
    }));
}

thread_local! {
    /// Where the last panic of this thread happened.
    static LOCATION: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Runs `body` and turns a panic into an error that names the panic's location.
fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        Err(match payload.downcast::<Aborted>() {
            Ok(aborted) => aborted.0,
            Err(payload) => {
                let message = message(payload.as_ref());
                match LOCATION.take() {
                    Some(location) if !message.starts_with("failed printing to") => {
                        anyhow!("{message} (a panic at {location}; RUST_BACKTRACE=1 shows the backtrace)")
                    }
                    _ => anyhow!("{message}"),
                }
            }
        })
    })
}

/// An error that leaves a benchmark's closure. Criterion offers no other way out.
struct Aborted(anyhow::Error);

/// Gives up on the benchmark that is running.
fn abort(error: anyhow::Error) -> ! {
    panic::resume_unwind(Box::new(Aborted(error)))
}

fn message(panicked: &(dyn Any + Send)) -> String {
    let text = panicked
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panicked.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked without a message");
    one_line(&text)
}
