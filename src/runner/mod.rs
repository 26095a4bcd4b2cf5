//! Finds the benchmarks of a target, runs them and keeps their records.
//!
//! `plan` says which benchmarks exist, as a row for each bench target. `candidate` is a model before it is loaded, and `pool` loads
//! it. `set` measures benchmarks that are compared together, and `turns` takes their samples alternately; `observe` reads the
//! machine's limits and load around samples. `plain` runs the same workloads in a loop, for the command. All use `session`, which holds the state that all records of a
//! process share. `guard` keeps a benchmark or training that ends its process from ending the others. `peers` holds the processes
//! of peers whose iterations are steps. `reproduce` gives the command line that repeats a measurement. `sandbox` makes marked
//! records without measuring.

mod candidate;
mod guard;
mod observe;
mod peers;
mod plain;
pub(crate) mod plan;
mod pool;
#[cfg(feature = "cli")]
mod reproduce;
pub mod sandbox;
mod session;
pub(crate) mod set;
pub(crate) mod turns;

pub use candidate::Candidate;
#[cfg(feature = "cli")]
pub(crate) use guard::signal;
pub(crate) use guard::{end_with_guard, guarded};
pub(crate) use observe::{Observation, Surroundings};
#[cfg(feature = "cli")]
pub(crate) use plain::longest_within;
pub(crate) use plain::{Progress, Shard, State, generate, side_by_side, sweep};
#[cfg(feature = "cli")]
pub(crate) use plan::Listing;
pub(crate) use plan::{Benchmark, Catalogue};
#[cfg(any(feature = "cli", test))]
pub(crate) use plan::{TARGETS, Target};
#[cfg(feature = "cli")]
pub(crate) use reproduce::own_command;
#[cfg(feature = "cli")]
pub use reproduce::reproduction;
pub(crate) use session::{Session, set_threads, set_up_training};

use std::{panic, process::ExitCode};

use anyhow::Result;

use crate::{
    error::{self, caught, explained},
    output,
};

/// Runs a program and reports an error or a panic in one line, with exit code 2. Output that was lost because a disk is full
/// is an error too; a pipe whose reader has closed it is not.
///
/// With `RUST_BACKTRACE` set, a panic also prints its location and its backtrace.
pub fn in_one_line(program: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    report_panics_on_request();
    let code = caught(program).unwrap_or_else(|error| {
        let error = explained(&format!("{error:#}"));
        let is_lost = output::redirect(&error);
        if is_lost && output::failure().is_none() && error.contains("stdout") {
            return ExitCode::SUCCESS;
        }
        output::report(format_args!("error: {error}"));
        ExitCode::from(2)
    });
    match output::failure() {
        Some(error) => {
            output::report(format_args!("error: output was lost: {error}"));
            ExitCode::from(2)
        }
        None => code,
    }
}

/// Installs a panic hook that keeps the location and prints nothing, because [`caught`] turns panics into errors. Where
/// `RUST_BACKTRACE` asks for a backtrace, the default hook prints it too.
fn report_panics_on_request() {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        error::keep_location(panic);
        if wanted && !panic.payload_as_str().is_some_and(output::is_lost) {
            default(panic);
        }
    }));
}
