//! Runs the benchmarks of a target: the body of every bench target, and the only caller of Criterion.
//!
//! There is one path for all runs. `Sets` takes the samples of the benchmarks that the command line selects, in turns where they
//! are compared, and Criterion gets their durations: ten samples of a run, two of `--quick`, one iteration of `--test`. Criterion
//! does the statistics, baselines, changes, plots and pages. It lists, and compares with a loaded baseline, without any sample.
//!
//! Started as a side of a duel, a target serves its benchmarks instead. `program` starts the one that made a baseline so, and measures it
//! in turns with the present one.
//!
//! A benchmark that fails does not affect the others. The failure becomes a record and a line on standard error, the
//! remaining benchmarks run, and the process ends with exit code 1. They also run if a benchmark ends its process: see `guard`.
//! Criterion panics if it cannot print or if its folder is full; a benchmark whose samples were all taken keeps its record then.

mod arguments;
mod baseline;
mod program;
mod sets;

use std::{
    collections::BTreeSet,
    iter::Sum,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend, SamplingMode,
    measurement::{Measurement, WallTime},
};

use self::{
    arguments::{Arguments, Mode},
    baseline::Pending,
    sets::Sets,
};
use crate::{
    error::{abort, caught, explained},
    files,
    measure::{PeakBytes, TokenTime, memory, peak_bytes},
    output,
    record::{self, Guarded, PairedRatio, Record, Status, check_writable},
    report,
    runner::{
        Candidate, Session, Surroundings, guarded, in_one_line,
        plan::{self, Benchmark, Catalogue, Sampled, Section, Target},
        set::Taken,
    },
    scenario::Generation,
    settings::{STRICT, Settings, criterion_home},
    workload::{Iteration, Outcome},
};

/// Runs a bench target of this crate.
pub fn target(name: &str) -> ExitCode {
    let target = match Target::named(name) {
        Ok(target) => target,
        Err(error) => return in_one_line(|| Err(error)),
    };
    target.set_up();
    main(|suite| suite.target(target.name))
}

/// Runs the body of a bench target: reads the settings, runs the benchmarks of `body`, and lists the failures at the
/// end.
///
/// The process starts its program once more, which measures: a benchmark that ends its process does not end the others. So what
/// your `main` does before this call is done twice, and again after each benchmark that ended its process.
///
/// The exit code is 0 if every selected benchmark was measured, 1 if one failed, and 2 if the target could not start.
pub fn main(body: impl FnOnce(&mut Suite)) -> ExitCode {
    in_one_line(|| {
        let arguments = Arguments::read()?;
        if std::env::args().nth(1).as_deref() == Some(crate::duel::SIDE) {
            let mut suite = Suite::new(Session::new(Settings::load(&[])?)?, arguments);
            suite.collected = Some(Vec::new());
            body(&mut suite);
            let benchmarks = Catalogue::of(suite.collected.into_iter().flatten());
            crate::duel::serve(suite.session, benchmarks)?;
            return Ok(ExitCode::SUCCESS);
        }
        let measures = arguments.mode() == Mode::Measure;
        let start = |guarded: Option<Guarded>| -> Result<ExitCode> {
            let goes_on = guarded.as_ref().is_some_and(|guarded| guarded.since.is_some());
            let session = Session::new(Settings::load(&[])?)?.with_guard(guarded)?;
            if measures {
                check_writable(&session.settings().out)?;
            }
            // Criterion says once that it found no gnuplot.
            output::silently(|| drop(Criterion::default()));
            if let Some(name) = arguments.value("baseline").or(arguments.value("load-baseline")) {
                baseline::ensure_exists(&criterion_home(), name)?;
            }
            let pending = match arguments.value("save-baseline") {
                Some(name) if measures && session.settings().strict => Some(if goes_on {
                    Pending::again(criterion_home(), name.to_owned())
                } else {
                    Pending::open(criterion_home(), name.to_owned())?
                }),
                _ => None,
            };
            let mut suite = Suite { pending, ..Suite::new(session, arguments) };
            body(&mut suite);
            Ok(suite.close())
        };
        // A list or a smoke test ends with the first benchmark that ends its process.
        if measures { guarded(start) } else { start(None) }
    })
}

/// The benchmarks of one process.
pub struct Suite {
    session: Session,
    arguments: Arguments,
    /// The baseline that the run makes only if it is not disturbed.
    pending: Option<Pending>,
    records: Vec<Record>,
    ran: usize,
    /// Groups and engines whose exclusion was reported, with the reason.
    excluded: BTreeSet<(String, String, String)>,
    /// The failures: id and reason.
    failed: Vec<String>,
    /// Failures of Criterion's reports, whose records were kept.
    problems: Vec<String>,
    started: Instant,
    /// The sections of a side of a duel, which runs them on request.
    collected: Option<Vec<Section>>,
}

impl Suite {
    fn new(session: Session, arguments: Arguments) -> Self {
        Self {
            session,
            arguments,
            pending: None,
            records: Vec::new(),
            ran: 0,
            excluded: BTreeSet::new(),
            failed: Vec::new(),
            problems: Vec::new(),
            started: Instant::now(),
            collected: None,
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        self.session.settings()
    }

    /// Runs the benchmarks of a bench target of this crate.
    pub fn target(&mut self, name: &str) {
        match Target::named(name) {
            Ok(target) => target.sections(&self.session).into_iter().for_each(|section| self.run(section)),
            Err(error) => self.fail(&error),
        }
    }

    /// Runs generations on every candidate whose tier includes them, with each batch of the settings.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        self.run(plan::generations(&self.session, scenarios, candidates));
    }

    /// Runs the loads on every candidate whose tier includes them.
    #[cfg(feature = "serve")]
    pub fn serving(&mut self, scenarios: &[crate::scenario::ServingLoad], candidates: Vec<Candidate>) {
        self.run(plan::loads(&self.session, scenarios, candidates));
    }

    /// Runs the benchmarks of a section: a Criterion group for each scenario.
    fn run(&mut self, section: Section) {
        if let Some(collected) = &mut self.collected {
            return collected.push(section);
        }
        match section.quantity {
            Sampled::TokenTime => self.sampled(&section, TokenTime, NOISE_THRESHOLD, |sample, _| sample.time),
            Sampled::WallTime => self.sampled(&section, WallTime, NOISE_THRESHOLD, |sample, _| sample.time),
            Sampled::PeakBytes => self.sampled(&section, PeakBytes, peak_bytes::NOISE_THRESHOLD, |sample, number| {
                peak_bytes::apart(sample.peak_bytes, number)
            }),
        }
        for error in &section.failures {
            self.fail(error);
        }
    }

    /// As [`Self::run`]. `value` is the measurement of an iteration, given the number of its sample.
    fn sampled<M: Measurement<Value: Sum> + 'static>(
        &mut self,
        section: &Section,
        measurement: M,
        noise_threshold: f64,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) {
        if self.arguments.mode() == Mode::Measure {
            section.notes.iter().for_each(output::report);
        }
        let mut sets = Sets::new(section, &self.arguments, &self.session);
        let mut criterion = self.criterion(measurement, noise_threshold);
        let mut place = 0;
        for of_group in section.benchmarks.chunk_by(|a, b| a.scenario() == b.scenario()) {
            let key = of_group[0].scenario();
            let mut group = criterion.benchmark_group(key);
            group.sampling_mode(SamplingMode::Flat);
            for benchmark in of_group {
                if let Some(throughput) = benchmark.throughput() {
                    group.throughput(throughput);
                }
                if benchmark.is_possible() {
                    self.benchmark(&mut group, &**benchmark, place, &mut sets, &value);
                }
                benchmark.release();
                place += 1;
            }
            self.conclude(key, || group.finish());
        }
    }

    /// Runs one benchmark, if the command line selects it, and keeps its record.
    fn benchmark<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        benchmark: &dyn Benchmark,
        place: usize,
        sets: &mut Sets,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) {
        if let Some(record) = self.session.done_before(&benchmark.id().to_string()) {
            let record = record.clone();
            return self.recall(record);
        }
        let ran = match sets.take(place, &self.session) {
            Some(Ok(taken)) => self.replay(group, benchmark, taken, value),
            Some(Err(error)) => Ran { outcome: Outcome::failed(error), around: None, ratios: Vec::new() },
            None => return self.pass(group, benchmark, value),
        };
        self.keep(benchmark, ran, sets.why_alone(place));
    }

    /// Gives Criterion the durations of a benchmark.
    fn replay<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        benchmark: &dyn Benchmark,
        taken: Taken,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) -> Ran {
        let Taken { samples, outcome, around, ratios } = taken;
        group.warm_up_time(NO_WARM_UP).measurement_time(NO_MEASURING);
        let run = self.printed(|| {
            let mut calls = 0_usize;
            let run = caught(|| {
                group.bench_function(criterion_id(benchmark), |bencher| {
                    bencher.iter_custom(|iterations| {
                        // The first call is the warm-up.
                        if calls == 0 {
                            pass_warm_up();
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
            self.fail_report(&benchmark.id().to_string(), &error);
        }
        Ran { outcome, around: Some(around), ratios }
    }

    /// Lets Criterion pass over a benchmark: it lists it, compares stored samples, or, while the user profiles, runs it.
    fn pass<M: Measurement<Value: Sum>>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        benchmark: &dyn Benchmark,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) {
        let mut workload = None;
        let ran = caught(|| {
            group.bench_function(criterion_id(benchmark), |bencher| {
                bencher.iter_custom(|iterations| {
                    let workload =
                        workload.get_or_insert_with(|| benchmark.prepare().unwrap_or_else(|error| abort(error)));
                    let iterations = workload.repeat(iterations as usize).unwrap_or_else(|error| abort(error));
                    iterations.into_iter().map(|iteration| value(iteration, 0)).sum()
                });
            });
            Ok(())
        });
        if let Err(error) = ran {
            self.fail(&error.context(benchmark.id().to_string()));
        }
    }

    /// Runs a part of Criterion that reads samples. Its lines describe how it reads them, and its verdict takes two processes for two
    /// programs, so only `--verbose` shows them. `run` also returns whether all samples were taken. Standard output and standard error may each be
    /// closed once. If that stopped Criterion before it had all samples, it reads them again.
    fn printed(&self, mut run: impl FnMut() -> (Result<()>, bool)) -> Result<()> {
        if !self.arguments.given("verbose") && self.arguments.mode() == Mode::Measure {
            return output::silently(run).0;
        }
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

    /// Runs a part of Criterion that prints or writes the reports of benchmarks that have been kept.
    fn conclude(&mut self, part: &str, conclude: impl FnOnce()) {
        let mut conclude = Some(conclude);
        let concluded = self.printed(|| {
            let concluded = caught(|| {
                conclude.take().into_iter().for_each(|conclude| conclude());
                Ok(())
            });
            (concluded, true)
        });
        if let Err(error) = concluded {
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
    /// every benchmark starts in the same state. `unpaired` says why the benchmark was measured alone, although it is compared with
    /// others.
    fn keep(&mut self, benchmark: &dyn Benchmark, ran: Ran, unpaired: Option<&str>) {
        memory::release(self.session.device());
        let Ran { outcome, around, ratios } = ran;
        // Loading the subject has told its size.
        let mut record = self.session.record(benchmark.scenario(), benchmark.subject(), outcome, around);
        record.ratios = ratios;
        record.unmeasured.extend(unpaired.map(|reason| ("ratios".to_owned(), reason.to_owned())));
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
        if self.arguments.mode() == Mode::Measure {
            if let Some(metric) = record.measures.as_ref().and_then(|measures| measures.metrics().into_iter().next()) {
                let value = report::table::quantity(metric.value, metric.unit);
                output::print_line(format_args!("{}  {value} {}", record.id, metric.unit.name()));
            }
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

    /// Criterion with our defaults. A baseline that the run may not keep is saved under its pending name, and a benchmark that the
    /// baseline lacks is not compared.
    fn criterion<M: Measurement>(&self, measurement: M, noise_threshold: f64) -> Criterion<M> {
        let criterion = criterion(measurement, noise_threshold);
        match (&self.pending, self.arguments.value("baseline")) {
            (Some(pending), _) => criterion.save_baseline(pending.pending_name()),
            (None, Some(name)) => criterion.retain_baseline(name.to_owned(), false),
            (None, None) => criterion,
        }
    }

    /// Puts the records into the baseline of the run, and says that it has doubts. Under [`STRICT`], saves it only without any.
    fn conclude_baseline(&mut self) -> Result<()> {
        let pending = self.pending.take();
        let Some(name) = self.arguments.value("save-baseline").filter(|_| !self.records.is_empty()) else {
            return Ok(());
        };
        match (report::disturbance(&self.records), pending) {
            (None, None) => {}
            (None, Some(pending)) => pending.keep()?,
            (Some(reason), None) => output::report(format_args!("baseline {name} was saved with doubts: {reason}")),
            (Some(reason), Some(pending)) => {
                pending.discard()?;
                bail!("baseline {name} was not saved: {reason}; without {STRICT}, it is saved with the doubts");
            }
        }
        record::keep_records(&criterion_home(), name, &self.records)?;
        program::keep(&criterion_home(), name)
    }

    /// The comparison with a baseline: in turns with its program where that is possible, and of the two runs for what is left.
    fn compared(&self, name: &str) -> Result<String> {
        let out = &self.settings().out;
        let comparison = baseline::compared(&criterion_home(), name, &self.records, out)?;
        if self.session.settings().pairing && !self.arguments.given("quick") {
            let runs = (self.records.as_slice(), &comparison);
            match program::in_turns(&criterion_home(), name, runs, out, self.started.elapsed()) {
                Ok(Some(program::Measured { duel, left_out: 0 })) => return Ok(duel.text()),
                Ok(Some(program::Measured { duel, .. })) => {
                    let text = comparison.text(false);
                    let count = duel.rows.len();
                    return Ok(format!(
                        "{text}\nThe {count} that differed most, in turns with the program of {name}:\n\n{}",
                        duel.text()
                    ));
                }
                Ok(None) => {}
                Err(error) => output::report(format_args!(
                    "the program of baseline {name} could not be measured in turns with this one: {error:#}"
                )),
            }
        }
        Ok(comparison.text(false))
    }

    fn close(mut self) -> ExitCode {
        self.conclude("all groups", || criterion(WallTime, NOISE_THRESHOLD).final_summary());
        if let Err(error) = self.conclude_baseline() {
            self.failed(format!("{error:#}"));
        }
        if !self.records.is_empty() {
            for table in report::table::tables(self.records.iter()) {
                output::print_line(format_args!("\n{}", table.terminal()));
            }
            if let Some(path) = self.session.records_path() {
                output::print_line(format_args!("Records: {}\n", path.display()));
            }
            let baseline = self.arguments.value("baseline");
            let out = baseline.is_none().then_some(&*self.settings().out);
            output::print(report::summary::Summary::new(self.records.iter()).closing_lines(out));
            if let Some(name) = baseline {
                match self.compared(name) {
                    Ok(text) => output::print(format_args!("\n{text}")),
                    Err(error) => self.problems.push(format!("the baseline {name} was not compared: {error:#}")),
                }
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

/// Criterion for samples in bytes, with a noise threshold that reports a change of one percent.
pub fn bytes() -> Criterion<PeakBytes> {
    criterion(PeakBytes, peak_bytes::NOISE_THRESHOLD)
}

/// Criterion with our defaults.
fn criterion<M: Measurement>(measurement: M, noise_threshold: f64) -> Criterion<M> {
    Criterion::default()
        .with_measurement(measurement)
        .sample_size(SAMPLES)
        .warm_up_time(NO_WARM_UP)
        .measurement_time(NO_MEASURING)
        .nresamples(10_000)
        .noise_threshold(noise_threshold)
        .plotting_backend(PlottingBackend::Plotters)
        .configure_from_args()
}

/// The number of samples that Criterion takes.
const SAMPLES: usize = 10;

/// Criterion reports a smaller change as noise. The guide's chapter on methodology gives the reason.
const NOISE_THRESHOLD: f64 = 0.03;

/// Time that Criterion spends on its warm-up: one call.
const NO_WARM_UP: Duration = Duration::from_micros(1);

/// Time of measuring. Criterion asks for some hundred iterations for each sample then, and gets the duration of the sample for each.
/// It would warn if it could ask for one only.
const NO_MEASURING: Duration = Duration::from_millis(1);

/// Stands for a warm-up: waits until Criterion sees that its time has passed.
fn pass_warm_up() {
    let started = Instant::now();
    while started.elapsed() <= NO_WARM_UP {
        std::hint::spin_loop();
    }
}

fn criterion_id(benchmark: &dyn Benchmark) -> BenchmarkId {
    let subject = benchmark.subject();
    BenchmarkId::new(&subject.model, subject.variant())
}

/// The result of a benchmark.
struct Ran {
    outcome: Outcome,
    around: Option<Surroundings>,
    ratios: Vec<PairedRatio>,
}
