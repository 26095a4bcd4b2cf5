//! Runs workloads under Criterion: the body of every bench target. It prepares a workload when its first iteration is
//! due, gives Criterion the durations, and keeps a record. Nothing else calls Criterion's `iter_custom`.
//!
//! A benchmark that fails does not affect the others. The failure becomes a record and a line on standard error, the
//! remaining benchmarks run, and the process ends with exit code 1. Criterion panics if it cannot print or if its folder is
//! full; a benchmark whose samples were all taken keeps its record then.

mod generation;
mod steps;

#[cfg(feature = "cli")]
pub(super) use generation::workload as generation_workload;
#[cfg(feature = "cli")]
pub(super) use steps::tier as training_tier;

use std::{iter::Sum, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend,
    measurement::{Measurement, WallTime},
};

use super::{Session, in_one_line};
use crate::{
    error::{abort, caught, explained},
    files,
    measure::{PeakBytes, memory, peak_bytes},
    output,
    record::{self, Record, check_writable},
    report,
    settings::{Settings, criterion_home},
    workload::{Iteration, Outcome, Workload},
};

/// Runs the body of a bench target: reads the settings, runs the benchmarks of `body`, and lists the failures at the
/// end.
///
/// The exit code is 0 if every selected benchmark was measured, 1 if one failed, and 2 if the target could not start.
pub fn main(body: impl FnOnce(&mut Suite)) -> ExitCode {
    in_one_line(|| {
        let session = Session::new(Settings::load(&[])?)?;
        for (option, least, most) in [("--sample-size", 10, 100_000), ("--nresamples", 1, 10_000_000)] {
            if let Some(text) = argument(option) {
                let fits = text.parse::<usize>().is_ok_and(|number| (least..=most).contains(&number));
                ensure!(fits, "{option} {text}: expected a whole number from {least} to {most}");
            }
        }
        if measures() {
            check_writable(&session.settings().out)?;
        }
        // Criterion says once that it found no gnuplot, and panics if nobody can read that.
        if let Err(error) = caught(|| Ok(drop(Criterion::default()))) {
            output::redirect(&format!("{error:#}"));
        }
        let mut suite = Suite {
            session,
            measures: measures(),
            records: Vec::new(),
            ran: 0,
            failed: Vec::new(),
            problems: Vec::new(),
        };
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
    /// What else went wrong, with Criterion's reports.
    problems: Vec<String>,
}

/// Criterion's command line. Criterion itself refuses arguments that are not UTF-8.
fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())
}

/// Returns whether Criterion's command line contains a flag.
fn given(flag: &str) -> bool {
    arguments().any(|arg| arg.split('=').next() == Some(flag))
}

/// Returns whether Criterion's command line asks for measurements, not for a list, a smoke test or a profile.
fn measures() -> bool {
    given("--bench") && !["--list", "--test", "--profile-time"].into_iter().any(given)
}

/// Returns the value of an option on Criterion's command line, `--option value` or `--option=value`.
fn argument(option: &str) -> Option<String> {
    let mut arguments = arguments().skip_while(|argument| argument.split('=').next() != Some(option));
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
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        entry: Entry,
        mut prepare: impl FnMut() -> Result<Box<dyn Workload>>,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Option<Ended> {
        let Entry { scenario, subject } = entry;
        let mut workload: Option<Box<dyn Workload>> = None;
        let mut samples: Vec<usize> = Vec::new();
        // True while Criterion calls the workload.
        let mut is_inside = false;
        let mut ran = Ok(());
        // Standard output and standard error may each be closed once. If that stopped Criterion before its samples were
        // complete, it takes them again.
        for _ in 0..3 {
            ran = caught(|| {
                group.bench_function(BenchmarkId::new(&subject.model, subject.variant()), |bencher| {
                    is_inside = true;
                    let workload = match &mut workload {
                        Some(workload) => workload,
                        none => none.insert(prepare().unwrap_or_else(|error| abort(error))),
                    };
                    bencher.iter_custom(|iterations| {
                        samples.push(iterations as usize);
                        let once = |_| workload.iterate().unwrap_or_else(|error| abort(error));
                        (0..iterations).map(once).map(|iteration| value(iteration, samples.len())).sum()
                    });
                    is_inside = false;
                });
                Ok(())
            });
            if !ran.as_ref().is_err_and(|error| output::redirect(&format!("{error:#}"))) {
                break;
            }
            if are_complete(&samples) {
                ran = Ok(());
                break;
            }
        }
        let outcome = match (ran, workload) {
            (Ok(()), None) => return None,
            (Ok(()), Some(workload)) => workload.finish(measured_samples(&samples)),
            (Err(error), Some(workload)) if !is_inside && are_complete(&samples) => {
                self.fail_report(&format!("{scenario}/{}", subject.model), &error);
                workload.finish(measured_samples(&samples))
            }
            (Err(error), _) => Outcome::failed(error),
        };
        Some(Ended { scenario: scenario.to_owned(), subject, outcome })
    }

    /// Runs a part of Criterion that prints or writes the reports of benchmarks that have been kept.
    fn conclude(&mut self, part: &str, conclude: impl FnOnce()) {
        let concluded = caught(|| {
            conclude();
            Ok(())
        });
        if let Err(error) = concluded
            && !output::redirect(&format!("{error:#}"))
        {
            self.fail_report(part, &error);
        }
    }

    /// Reports that Criterion failed after its samples were taken.
    fn fail_report(&mut self, part: &str, error: &anyhow::Error) {
        let home = criterion_home();
        let reason = match files::check_room(&home) {
            Err(reason) => format!("{}: {reason}; free space there, or set CRITERION_HOME", home.display()),
            Ok(()) => explained(&format!("{error:#}")),
        };
        let problem = format!("{part}: Criterion's report was not written, the record was kept: {reason}");
        output::report(format_args!("\nerror: {problem}"));
        self.problems.push(problem);
    }

    /// Reports a failure that has no record.
    fn fail(&mut self, error: &anyhow::Error) {
        self.ran += 1;
        self.failed(explained(&format!("{error:#}")));
    }

    fn failed(&mut self, text: String) {
        output::report(format_args!("\nerror: {text}"));
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
                output::print_line(table.markdown());
            }
            if let Some(path) = self.session.records_path() {
                output::print_line(format_args!("Records: {}", path.display()));
            }
        }
        if !self.failed.is_empty() {
            output::report(format_args!("error: {} of {} benchmarks failed", self.failed.len(), self.ran));
        }
        for problem in self.failed.iter().chain(&self.problems) {
            output::report(format_args!("  {problem}"));
        }
        if self.failed.is_empty() && self.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    &calls[calls.len().saturating_sub(sample_size())..]
}

fn sample_size() -> usize {
    if given("--quick") {
        return 2;
    }
    argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(SAMPLES)
}

/// Returns whether the calls end with all samples. Criterion doubles the iterations from call to call while it warms up, and
/// samples have equally many.
fn are_complete(calls: &[usize]) -> bool {
    let samples = measured_samples(calls);
    let is_flat = given("--quick") || samples.windows(2).all(|pair| pair[0] == pair[1]);
    samples.len() == sample_size() && is_flat
}
