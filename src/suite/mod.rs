//! Where scenarios, subjects and Criterion meet: the body of every bench target. It loads a subject when its first
//! benchmark really runs, checks what it puts out, hands Criterion the durations, and leaves a record. The only place
//! that calls `iter_custom`.
//!
//! A benchmark that fails costs the others nothing: the failure becomes a record and a line on standard error, the rest
//! goes on, and the process ends with exit code 1.

mod candidate;
mod generation;
pub mod sandbox;
mod session;
mod stepped;
mod sweep;
mod training;

pub use candidate::Candidate;
pub use generation::Work;
pub use session::{Measured, Seen, Session, let_waiting_threads_sleep, set_threads};

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use criterion::{
    Criterion, PlottingBackend,
    measurement::{Measurement, WallTime},
};

use crate::{
    measure::{PeakBytes, memory, peak_bytes},
    record::{Record, check_writable},
    report,
    settings::Settings,
    subject::{explained, one_line},
};

/// Runs the body of a bench target: settings are read, `body` runs the benchmarks, and what failed is said again at the
/// end.
///
/// The exit code is 0 when every benchmark that was asked for was measured, 1 when one failed, and 2 when nothing could
/// start.
pub fn main(body: impl FnOnce(&mut Suite)) -> ExitCode {
    in_one_line(|| {
        let session = Session::new(Settings::load(&[])?)?;
        if let Some(size) = argument("--sample-size") {
            let enough = size.parse::<usize>().is_ok_and(|size| size >= 10);
            ensure!(enough, "--sample-size {size}: Criterion needs a whole number of at least 10");
        }
        if measures() {
            check_writable(&session.settings().out)?;
        }
        let mut suite = Suite { session, measures: measures(), records: Vec::new(), ran: 0, failed: Vec::new() };
        body(&mut suite);
        Ok(suite.close())
    })
}

/// Runs a program, and tells an error or a panic in one line, with exit code 2.
pub fn in_one_line(program: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    // A panic in a model or in Criterion is caught and told like an error, so the default message and its backtrace
    // would only be in the way.
    panic::set_hook(Box::new(|_| {}));
    let ended = panic::catch_unwind(AssertUnwindSafe(program));
    let error = match ended {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => explained(&format!("{error:#}")),
        Err(panicked) => message(panicked.as_ref()),
    };
    // Whoever read what is put out has had enough, as `head` does: no fault, and nobody to tell.
    if error.starts_with("failed printing to stdout: Broken pipe") {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error}");
    ExitCode::from(2)
}

/// The benchmarks of one process.
pub struct Suite {
    session: Session,
    measures: bool,
    records: Vec<Record>,
    ran: usize,
    /// What failed, and why.
    failed: Vec<String>,
}

/// Whether Criterion's command line asks for durations that are kept: not a list, a smoke test or a profile.
fn measures() -> bool {
    let given = |flag: &str| std::env::args().any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")));
    given("--bench") && !["--list", "--test", "--profile-time"].into_iter().any(given)
}

/// The value of an option on Criterion's command line, `--option value` or `--option=value`.
fn argument(option: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument.split('=').next() != Some(option));
    let found = arguments.next()?;
    found.split_once('=').map(|(_, value)| value.to_owned()).or_else(|| arguments.next())
}

impl Suite {
    pub fn settings(&self) -> &Settings {
        self.session.settings()
    }

    /// Runs one Criterion benchmark in isolation: `bench` may give up by [`abort`], and a panic of its own is caught.
    fn isolated(bench: impl FnOnce()) -> Result<()> {
        panic::catch_unwind(AssertUnwindSafe(bench)).map_err(|payload| match payload.downcast::<Aborted>() {
            Ok(aborted) => aborted.0,
            Err(payload) => anyhow!("{}", message(payload.as_ref())),
        })
    }

    /// Says why something could not be measured that has no record.
    fn fail(&mut self, error: &anyhow::Error) {
        self.ran += 1;
        self.failed(explained(&format!("{error:#}")));
    }

    fn failed(&mut self, text: String) {
        eprintln!("\nerror: {text}");
        self.failed.push(text);
    }

    /// Keeps a record, and says so when its benchmark failed. The next one finds the device's memory as this one did.
    fn keep(&mut self, mut record: Record) {
        memory::release(self.session.device());
        self.ran += 1;
        if let Some(reason) = &record.reason {
            self.failed(format!("{}: {reason}", record.id));
        }
        if self.measures {
            if let Err(error) = self.session.append(&mut record) {
                self.failed(format!("{}: {error:#}", record.id));
            }
            self.records.push(record);
        }
    }

    fn close(self) -> ExitCode {
        if !self.records.is_empty() {
            for table in report::table::tables(self.records.iter()) {
                println!("{}", table.markdown());
            }
            if let Some(path) = self.session.records_path() {
                println!("Records: {}", path.display());
            }
        }
        if self.failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {} of {} benchmarks failed", self.failed.len(), self.ran);
        for failed in self.failed {
            eprintln!("  {failed}");
        }
        ExitCode::FAILURE
    }
}

/// Criterion for work of a second and more: one untimed iteration, then ten samples of one. `--sample-size` and its like
/// override it, which settings made on a group would not allow.
fn long_iterations<M: Measurement>(measurement: M) -> Criterion<M> {
    criterion(measurement, NOISE_THRESHOLD, Duration::from_millis(1), Duration::from_millis(1))
}

/// Criterion for steps of a training: a second of them in ten samples, after a short warm-up.
fn steps() -> Criterion {
    criterion(WallTime, NOISE_THRESHOLD, Duration::from_millis(200), Duration::from_secs(1))
}

/// Criterion for steps of half a second and more: one warm-up, then one step a sample, or more of a short one.
fn long_steps<M: Measurement>(measurement: M, noise_threshold: f64) -> Criterion<M> {
    criterion(measurement, noise_threshold, Duration::from_millis(1), Duration::from_millis(500))
}

/// Criterion for steps whose memory is measured, with a noise threshold that lets a percent through.
pub fn bytes() -> Criterion<PeakBytes> {
    long_steps(PeakBytes, peak_bytes::NOISE_THRESHOLD)
}

fn criterion<M: Measurement>(
    measurement: M,
    noise_threshold: f64,
    warm_up: Duration,
    measuring: Duration,
) -> Criterion<M> {
    Criterion::default()
        .with_measurement(measurement)
        .sample_size(SAMPLES)
        .warm_up_time(warm_up)
        .measurement_time(measuring)
        .nresamples(10_000)
        .noise_threshold(noise_threshold)
        .plotting_backend(PlottingBackend::Plotters)
        .configure_from_args()
}

/// Samples that Criterion is asked for.
const SAMPLES: usize = 10;

/// Changes below this share are called noise. The methodology says how it was found.
const NOISE_THRESHOLD: f64 = 0.03;

/// An error that leaves a benchmark's closure, which Criterion gives no other way out of.
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
