//! Runs workloads under Criterion: the body of every bench target. It prepares a workload when its first iteration is
//! due, gives Criterion the durations, and keeps a record. Nothing else calls Criterion's `iter_custom`.
//!
//! A benchmark that fails does not affect the others. The failure becomes a record and a line on standard error, the
//! remaining benchmarks run, and the process ends with exit code 1. They also run if a benchmark ends its process: see `guard`.
//! Criterion panics if it cannot print or if its folder is full; a benchmark whose samples were all taken keeps its record then.

mod baseline;
mod checkpoint;
mod models;
mod paired;
mod perplexity;
mod steps;

#[cfg(feature = "cli")]
pub(super) use steps::tier as training_tier;

use std::{collections::BTreeSet, iter::Sum, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend, measurement::Measurement};

use self::{baseline::Pending, paired::Turns};
use super::{
    Session, Surroundings, guarded, in_one_line,
    set::{Entry, Taken},
    turns::Plan,
};
use crate::{
    error::{abort, caught, explained},
    files,
    measure::{PeakBytes, conditions::Window, memory, peak_bytes},
    output,
    peer::PeerName,
    record::{self, Guarded, PairedRatio, Record, Status, check_writable},
    report,
    settings::{EVEN_IF_DISTURBED, Settings, criterion_home},
    workload::{Iteration, Outcome},
};

/// Runs the body of a bench target: reads the settings, runs the benchmarks of `body`, and lists the failures at the
/// end.
///
/// The exit code is 0 if every selected benchmark was measured, 1 if one failed, and 2 if the target could not start.
pub fn main(body: impl FnOnce(&mut Suite)) -> ExitCode {
    let start = |guarded: Option<Guarded>| -> Result<ExitCode> {
        let goes_on = guarded.as_ref().is_some_and(|guarded| guarded.since.is_some());
        let session = Session::new(Settings::load(&[])?)?.with_guard(guarded)?;
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
        if let Err(error) = caught(|| Ok(Criterion::default())) {
            output::redirect(&format!("{error:#}"));
        }
        let pending = match argument("--save-baseline").or_else(|| argument("-s")) {
            Some(name) if measures() && !session.settings().even_if_disturbed => Some(if goes_on {
                Pending::again(criterion_home(), name)
            } else {
                Pending::open(criterion_home(), name)?
            }),
            _ => None,
        };
        let mut suite = Suite {
            session,
            measures: measures(),
            pending,
            records: Vec::new(),
            ran: 0,
            excluded: BTreeSet::new(),
            failed: Vec::new(),
            problems: Vec::new(),
        };
        body(&mut suite);
        Ok(suite.close())
    };
    // A list or a smoke test ends with the first benchmark that ends its process.
    in_one_line(|| if measures() { guarded(start) } else { start(None) })
}

/// The benchmarks of one process.
pub struct Suite {
    session: Session,
    measures: bool,
    /// The baseline that the run makes, unless it is disturbed.
    pending: Option<Pending>,
    records: Vec<Record>,
    ran: usize,
    /// Groups and engines whose exclusion was reported, with the reason.
    excluded: BTreeSet<(String, String, String)>,
    /// The failures: id and reason.
    failed: Vec<String>,
    /// Failures of Criterion's reports, whose records were kept.
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

    /// Runs one benchmark. `value` is the measurement of an iteration, given the number of its sample. Returns `None` if the
    /// filter excludes the benchmark or it is only listed.
    fn entry<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        entries: &[Entry],
        place: usize,
        turns: &mut Turns,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Option<Ended> {
        let entry = &entries[place];
        if let Some(record) = self.session.done_before(&entry.id()) {
            let record = record.clone();
            self.recall(record);
            return None;
        }
        let taken = turns.take(place, entries, &self.session);
        turns.pace(group, taken.is_some());
        let ran = match taken {
            Some(taken) => Some(self.replay(group, entry, taken, value)),
            None => self.measured(group, entry, value),
        };
        let unpaired = turns.why_alone(place).map(str::to_owned);
        let (scenario, subject) = (entry.scenario.to_owned(), entry.subject.clone());
        ran.map(|ran| Ended { scenario, subject, ran, unpaired })
    }

    /// Lets Criterion take the samples of one benchmark. The workload is prepared before the first iteration.
    fn measured<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        entry: &Entry,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Option<Ran> {
        let mut running = None;
        let mut samples: Vec<usize> = Vec::new();
        let mut windows: Vec<Window> = Vec::new();
        // True while Criterion calls the workload.
        let mut is_inside = false;
        let session = &self.session;
        let ran = printed(|| {
            let ran = caught(|| {
                group.bench_function(entry.criterion_id(), |bencher| {
                    is_inside = true;
                    let start = || -> Result<_> {
                        session.note(entry.scenario, &entry.subject);
                        session.prepare()?;
                        let workload = (entry.prepare)()?;
                        let observation = session.observe(workload.helpers())?;
                        Ok((workload, observation))
                    };
                    let (workload, observation) = match &mut running {
                        Some(running) => running,
                        none => none.insert(start().unwrap_or_else(|error| abort(error))),
                    };
                    bencher.iter_custom(|iterations| {
                        samples.push(iterations as usize);
                        let number = samples.len();
                        let (sum, window) = observation.sample(|| {
                            let taken = workload.repeat(iterations as usize).unwrap_or_else(|error| abort(error));
                            taken.into_iter().map(|iteration| value(iteration, number)).sum::<M::Value>()
                        });
                        windows.push(window);
                        sum
                    });
                    is_inside = false;
                });
                Ok(())
            });
            (ran, are_complete(&samples))
        });
        let (workload, observation) = match (ran, running) {
            (Ok(()), None) => return None,
            (Ok(()), Some(running)) => running,
            (Err(error), Some(running)) if !is_inside && are_complete(&samples) => {
                self.fail_report(&format!("{}/{}", entry.scenario, entry.subject.model), &error);
                running
            }
            (Err(error), _) => return Some(Ran::failed(error)),
        };
        let samples = measured_samples(&samples);
        let around = observation.end().of(&windows[windows.len() - samples.len()..]);
        let outcome = workload.finish(samples, &around.limits);
        Some(Ran { outcome, around: Some(around), ratios: Vec::new() })
    }

    /// Gives Criterion the stored durations of a benchmark that was measured in turns.
    fn replay<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        entry: &Entry,
        taken: Result<Taken>,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Ran {
        let Taken { samples, outcome, around, ratios } = match taken {
            Ok(taken) => taken,
            Err(error) => return Ran::failed(error),
        };
        let run = printed(|| {
            let mut calls = 0_usize;
            let run = caught(|| {
                group.bench_function(entry.criterion_id(), |bencher| {
                    bencher.iter_custom(|iterations| {
                        // The first call is the warm-up.
                        if calls == 0 {
                            paired::pass_warm_up();
                        }
                        let sample = samples[calls.saturating_sub(1) % samples.len()];
                        calls += 1;
                        (0..iterations).map(|_| value(sample, calls)).sum()
                    });
                });
                Ok(())
            });
            (run, calls > samples.len())
        });
        if let Err(error) = run {
            self.fail_report(&format!("{}/{}", entry.scenario, entry.subject.model), &error);
        }
        Ran { outcome, around: Some(around), ratios }
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
        let Ran { outcome, around, ratios } = ended.ran;
        let mut record = self.session.record(&ended.scenario, ended.subject, outcome, around);
        record.ratios = ratios;
        record.unmeasured.extend(ended.unpaired.map(|reason| ("ratios".to_owned(), reason)));
        self.ran += 1;
        match (&record.reason, record.status) {
            (Some(reason), Status::Excluded) => {
                let key = (record.scenario.clone(), record.subject.engine.clone(), reason.clone());
                if self.excluded.insert(key) {
                    output::report(format_args!("\n{}: excluded: {reason}", record.id));
                }
            }
            (Some(reason), _) => self.failed(format!("{}: {reason}", record.id)),
            (None, _) => {}
        }
        if self.measures {
            if let Err(error) = self.session.append(&mut record) {
                self.failed(format!("{}: {error:#}", record.id));
            }
            self.records.push(record);
        }
    }

    /// Counts a record that an earlier process of the guard kept and reported.
    fn recall(&mut self, record: Record) {
        self.ran += 1;
        if let (Some(reason), Status::Failed) = (&record.reason, record.status) {
            self.failed.push(format!("{}: {reason}", record.id));
        }
        self.records.push(record);
    }

    /// Criterion with our defaults. A named baseline is saved under its pending name.
    fn criterion<M: Measurement>(&self, measurement: M, noise_threshold: f64) -> Criterion<M> {
        let criterion = criterion(measurement, noise_threshold);
        match &self.pending {
            Some(pending) => criterion.save_baseline(pending.pending_name()),
            None => criterion,
        }
    }

    /// Saves the baseline of the run, or refuses it.
    fn conclude_baseline(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        match report::disturbance(&self.records) {
            None => pending.keep(),
            Some(reason) => {
                pending.discard()?;
                bail!(
                    "baseline {} was not saved, because the run was disturbed: {reason}; {EVEN_IF_DISTURBED}=1 or \
                     `candlepower bench --even-if-disturbed` saves it nevertheless",
                    pending.name()
                )
            }
        }
    }

    fn close(mut self) -> ExitCode {
        if let Err(error) = self.conclude_baseline() {
            self.failed(format!("{error:#}"));
        }
        if !self.records.is_empty() {
            for table in report::table::tables(self.records.iter()) {
                output::print_line(table.terminal());
            }
            if let Some(path) = self.session.records_path() {
                output::print_line(format_args!("Records: {}\n", path.display()));
            }
            output::print(report::summary::Summary::new(self.records.iter()).closing_lines(&self.settings().out));
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

/// The pace of generations: one untimed iteration, then ten samples of one, or of several if they take less than a fifth of a
/// second. `--sample-size` and similar options override this.
fn generations() -> Plan {
    paired::plan(Duration::from_millis(1), Duration::from_secs(2))
}

/// The pace of loads: one untimed iteration, then samples of one. Their latencies are shorter than an iteration, so time
/// does not decide the number of iterations.
#[cfg(feature = "serve")]
fn single_iterations() -> Plan {
    paired::plan(Duration::from_millis(1), Duration::from_millis(1))
}

/// The pace of training steps: a second of steps in ten samples, after a short warm-up.
fn steps() -> Plan {
    paired::plan(Duration::from_millis(200), Duration::from_secs(1))
}

/// The pace of steps of half a second or more: one warm-up step, then one step per sample, or more short steps.
fn long_steps() -> Plan {
    paired::plan(Duration::from_millis(1), Duration::from_millis(500))
}

/// The pace of steps beside those of a peer: in blocks.
fn beside_peers(plan: Plan, peers: &[PeerName]) -> Plan {
    if peers.is_empty() { plan } else { Plan { block: BLOCK, ..plan } }
}

/// Least steps in a row where a peer takes part.
const BLOCK: usize = 5;

/// Criterion for samples in bytes, with a noise threshold that reports a change of one percent.
pub fn bytes() -> Criterion<PeakBytes> {
    criterion(PeakBytes, peak_bytes::NOISE_THRESHOLD)
}

/// Criterion with our defaults. The groups set their pace, which differs between benchmarks.
fn criterion<M: Measurement>(measurement: M, noise_threshold: f64) -> Criterion<M> {
    let Plan { warm_up, measuring, .. } = long_steps();
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

/// Runs a part of Criterion that measures. `run` also returns whether all samples were taken. Standard output and standard
/// error may each be closed once. If that stopped Criterion before its samples were complete, it takes them again.
fn printed(mut run: impl FnMut() -> (Result<()>, bool)) -> Result<()> {
    let mut ran = Ok(());
    for _ in 0..3 {
        let is_complete;
        (ran, is_complete) = run();
        if !ran.as_ref().is_err_and(|error| output::redirect(&format!("{error:#}"))) {
            break;
        }
        if is_complete {
            return Ok(());
        }
    }
    ran
}

/// The number of samples that Criterion takes.
const SAMPLES: usize = 10;

/// Criterion reports a smaller change as noise. The guide's chapter on methodology gives the reason.
const NOISE_THRESHOLD: f64 = 0.03;

impl Entry<'_> {
    fn criterion_id(&self) -> BenchmarkId {
        BenchmarkId::new(&self.subject.model, self.subject.variant())
    }
}

/// The result of a benchmark.
struct Ran {
    outcome: Outcome,
    around: Option<Surroundings>,
    ratios: Vec<PairedRatio>,
}

impl Ran {
    fn failed(error: anyhow::Error) -> Self {
        Self { outcome: Outcome::failed(error), around: None, ratios: Vec::new() }
    }
}

/// A benchmark that ran.
struct Ended {
    scenario: String,
    subject: record::Subject,
    ran: Ran,
    /// Why it was measured alone, although it is compared with others.
    unpaired: Option<String>,
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
