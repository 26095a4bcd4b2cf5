//! Runs workloads under Criterion: the body of every bench target. It prepares a workload when its first iteration is
//! due, gives Criterion the durations, and keeps a record. Nothing else calls Criterion's `iter_custom`.
//!
//! A benchmark that fails does not affect the others. The failure becomes a record and a line on standard error, the
//! remaining benchmarks run, and the process ends with exit code 1.

mod generation;
mod steps;

use std::{iter::Sum, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend,
    measurement::{Measurement, WallTime},
};

use super::{Session, abort, caught, in_one_line};
use crate::{
    error::explained,
    measure::{PeakBytes, memory, peak_bytes},
    record::{self, Record, check_writable},
    report,
    settings::Settings,
    workload::{Iteration, Outcome, Workload},
};

/// Runs the body of a bench target: reads the settings, runs the benchmarks of `body`, and lists the failures at the
/// end.
///
/// The exit code is 0 if every selected benchmark was measured, 1 if one failed, and 2 if the target could not start.
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

/// The benchmarks of one process.
pub struct Suite {
    session: Session,
    measures: bool,
    records: Vec<Record>,
    ran: usize,
    /// The failures: id and reason.
    failed: Vec<String>,
}

/// Returns whether Criterion's command line contains a flag.
fn given(flag: &str) -> bool {
    std::env::args().any(|arg| arg.split('=').next() == Some(flag))
}

/// Returns whether Criterion's command line asks for measurements, not for a list, a smoke test or a profile.
fn measures() -> bool {
    given("--bench") && !["--list", "--test", "--profile-time"].into_iter().any(given)
}

/// Returns the value of an option on Criterion's command line, `--option value` or `--option=value`.
fn argument(option: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument.split('=').next() != Some(option));
    let found = arguments.next()?;
    found.split_once('=').map(|(_, value)| value.to_owned()).or_else(|| arguments.next())
}

impl Suite {
    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        self.session.settings()
    }

    /// Runs one benchmark. `prepare` makes the workload before the first iteration. `value` is the measurement of an
    /// iteration, given the number of its sample. Returns `None` if the filter excludes the benchmark or it is only
    /// listed.
    fn entry<M: Measurement<Value: Sum>>(
        &self,
        group: &mut BenchmarkGroup<'_, M>,
        entry: Entry,
        mut prepare: impl FnMut() -> Result<Box<dyn Workload>>,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Option<Ended> {
        let Entry { scenario, subject } = entry;
        let mut workload: Option<Box<dyn Workload>> = None;
        let mut samples: Vec<usize> = Vec::new();
        let run = caught(|| {
            group.bench_function(BenchmarkId::new(&subject.model, subject.variant()), |bencher| {
                let workload = match &mut workload {
                    Some(workload) => workload,
                    none => none.insert(prepare().unwrap_or_else(|error| abort(error))),
                };
                bencher.iter_custom(|iterations| {
                    samples.push(iterations as usize);
                    let once = |_| workload.iterate().unwrap_or_else(|error| abort(error));
                    (0..iterations).map(once).map(|iteration| value(iteration, samples.len())).sum()
                });
            });
            Ok(())
        });
        let outcome = match (run, workload) {
            (Ok(()), None) => return None,
            (Ok(()), Some(workload)) => workload.finish(measured_samples(&samples)),
            (Err(error), _) => Outcome::failed(error),
        };
        Some(Ended { scenario: scenario.to_owned(), subject, outcome })
    }

    /// Reports a failure that has no record.
    fn fail(&mut self, error: &anyhow::Error) {
        self.ran += 1;
        self.failed(explained(&format!("{error:#}")));
    }

    fn failed(&mut self, text: String) {
        eprintln!("\nerror: {text}");
        self.failed.push(text);
    }

    /// Keeps the record of a benchmark, and reports a failure. Releases unused memory of the device's pool, so that
    /// every benchmark starts in the same state.
    fn keep(&mut self, ended: Ended) {
        memory::release(self.session.device());
        let mut record = self.session.record(&ended.scenario, ended.subject, ended.outcome);
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
                println!("{}", table.terminal());
            }
            if let Some(path) = self.session.records_path() {
                println!("Records: {}\n", path.display());
            }
            print!("{}", report::summary::Summary::new(self.records.iter()).closing_lines(&self.settings().out));
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

/// Criterion for iterations of a second or more: one untimed iteration, then ten samples of one. `--sample-size` and
/// similar options override this, which settings of a group would not allow.
fn long_iterations<M: Measurement>(measurement: M) -> Criterion<M> {
    criterion(measurement, NOISE_THRESHOLD, Duration::from_millis(1), Duration::from_millis(1))
}

/// Criterion for training steps: a second of steps in ten samples, after a short warm-up.
fn steps() -> Criterion {
    criterion(WallTime, NOISE_THRESHOLD, Duration::from_millis(200), Duration::from_secs(1))
}

/// Criterion for steps of half a second or more: one warm-up step, then one step per sample, or more short steps.
fn long_steps<M: Measurement>(measurement: M, noise_threshold: f64) -> Criterion<M> {
    criterion(measurement, noise_threshold, Duration::from_millis(1), Duration::from_millis(500))
}

/// Criterion for samples in bytes, with a noise threshold that reports a change of one percent.
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

/// The number of samples that Criterion takes.
const SAMPLES: usize = 10;

/// Criterion reports a smaller change as noise. The guide's chapter on methodology gives the reason.
const NOISE_THRESHOLD: f64 = 0.03;

/// A benchmark to run.
struct Entry<'a> {
    scenario: &'a str,
    subject: record::Subject,
}

/// A benchmark that ran.
struct Ended {
    scenario: String,
    subject: record::Subject,
    outcome: Outcome,
}

/// The calls that Criterion measured, out of all calls of a benchmark's closure with their iterations.
///
/// Criterion warms up with calls of its own, as many as fit the warm-up time, before it takes the samples. With `--quick`
/// it measures call after call and uses the last two.
fn measured_samples(calls: &[usize]) -> &[usize] {
    let size = if given("--quick") {
        2
    } else {
        argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(SAMPLES)
    };
    &calls[calls.len().saturating_sub(size)..]
}
