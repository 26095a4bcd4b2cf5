//! Runs workloads in a loop, without Criterion: warm-ups, then one iteration per sample.

use std::{
    collections::BTreeSet,
    fmt,
    io::ErrorKind,
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{
    Candidate, Session, Surroundings,
    plan::{self, Benchmark},
    set::{self, Taken},
    turns::Pace,
};
use crate::{
    error::caught,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    progress,
    record::{self, BenchmarkId, Measures, Record, Status},
    scenario::{Generation, Phase, SWEEP},
    workload::{
        GenerationWorkload, Outcome, Workload,
        series::{SeriesGrid, SeriesWorkload, series_subject},
    },
};

/// Runs `warm_ups` generations of one sequence that are not measured, then `trials` generations, each a sample. Also returns the
/// token ids of the last generation.
///
/// # Errors
/// Returns an error if a generation fails or the generations differ.
pub fn generate(
    session: &Session,
    mut workload: GenerationWorkload,
    dtype: &str,
    warm_ups: usize,
    trials: usize,
) -> Result<(Outcome, Surroundings, Vec<u32>)> {
    let around = iterate(session, ("generating", dtype), &mut workload, warm_ups, trials, |_| {})?;
    let tokens = workload.tokens().concat();
    let mut outcome = Box::new(workload).finish(&vec![1; trials], &around.limits);
    outcome.measured = Ok(outcome.measured?);
    Ok((outcome, around, tokens))
}

/// Runs a scenario on several candidates in turns, one generation of each in a round, after `warm_ups` of each; at least one is not
/// measured. A candidate that fails becomes a record with the reason. The records are not kept.
///
/// # Errors
/// Returns an error if the candidates do not fit in memory at once.
pub fn side_by_side(
    session: &Session,
    scenario: &Generation,
    candidates: Vec<Candidate>,
    warm_ups: usize,
    rounds: usize,
) -> Result<Vec<Record>> {
    let (_, benchmarks) = plan::benchmarks_of(session, std::slice::from_ref(scenario), candidates, &[1]);
    let set: Vec<usize> = (0..benchmarks.len()).collect();
    let taken = set::measure(&set, &benchmarks, pace(warm_ups.max(1), rounds), session)?;
    Ok(set.into_iter().zip(taken).map(|(place, taken)| record(session, benchmarks[place].as_ref(), taken)).collect())
}

/// So many iterations, each a sample.
fn pace(warm_ups: usize, rounds: usize) -> Pace {
    Pace { warm_ups, iterations: Some(rounds), samples: rounds, ..Pace::new(Duration::ZERO, Duration::ZERO) }
}

/// The record of a benchmark that was measured, which is not kept.
fn record(session: &Session, benchmark: &dyn Benchmark, taken: Result<Taken>) -> Record {
    let (outcome, around, ratios) = match taken {
        Ok(Taken { outcome, around, ratios, .. }) => (outcome, Some(around), ratios),
        Err(error) => (Outcome::failed(error), None, Vec::new()),
    };
    // Loading the model has told its size.
    Record { ratios, ..session.record(benchmark.scenario(), benchmark.subject(), outcome, around) }
}

/// Runs the longest of some scenarios for which `rounds` generations of every candidate fit into `time`, in turns. The first one is
/// the shortest, and is run in any case: it tells how fast the candidates are. Candidates that do not fit in memory at once are
/// measured one after the other. Each generation has a `batch` of sequences. The records are not kept.
#[cfg(feature = "cli")]
pub fn longest_within(
    session: &Session,
    scenarios: &[Generation],
    (candidates, batch): (Vec<Candidate>, usize),
    rounds: usize,
    time: Duration,
) -> Result<Vec<Record>> {
    let (pool, benchmarks) = plan::benchmarks_of(session, scenarios, candidates, &[batch]);
    // The benchmarks of each scenario, in its order.
    let mut left = 0..benchmarks.len();
    let sets: Vec<Vec<usize>> =
        scenarios.iter().map(|scenario| left.by_ref().take(pool.borrow().that_run(scenario).len()).collect()).collect();
    let shortest = sets.first().filter(|set| !set.is_empty()).context("the model is too short for any generation")?;
    let mut rates = Vec::new();
    for place in shortest {
        let taken = set::measure(&[*place], &benchmarks, pace(1, 1), session)?.remove(0);
        if let Ok(Measures::Generation(measures)) = taken.and_then(|taken| Ok(taken.outcome.measured?.measures)) {
            rates.push((measures.prefill_tokens_per_s, measures.decode_tokens_per_s.unwrap_or(f64::INFINITY)));
        }
    }
    let fits = |scenario: &Generation| {
        let (prompt, new) = (scenario.prompt_tokens as f64, scenario.new_tokens as f64);
        let round_s: f64 = rates.iter().map(|(prefill, decode)| prompt / prefill + new / decode).sum();
        // One round more warms up.
        round_s * (rounds + 1) as f64 <= time.as_secs_f64()
    };
    // The length of a model of the Hub is known only now that it is loaded.
    let all_run = |scenario: &Generation| pool.borrow().that_run(scenario).len() == shortest.len();
    let chosen = scenarios.iter().zip(&sets).rfind(|(scenario, _)| fits(scenario) && all_run(scenario));
    let set = chosen.map_or(shortest, |(_, set)| set);
    let taken = match set::measure(set, &benchmarks, pace(1, rounds), session) {
        Ok(taken) => taken,
        // Alone, each says itself what is wrong with it.
        Err(_) => {
            let alone = |place: &usize| set::measure(&[*place], &benchmarks, pace(1, rounds), session);
            set.iter().map(alone).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()
        }
    };
    Ok(set.iter().zip(taken).map(|(place, taken)| record(session, benchmarks[*place].as_ref(), taken)).collect())
}

/// Iterates under a name that a terminal shows, and calls `after` after each trial. The sum of both counts may exceed `usize`, so the loops are separate.
fn iterate<W: Workload + ?Sized>(
    session: &Session,
    (name, dtype): (&str, &str),
    workload: &mut W,
    warm_ups: usize,
    trials: usize,
    mut after: impl FnMut(&mut W),
) -> Result<Surroundings> {
    let line = progress::live(name);
    line.step("warming up");
    for _ in 0..warm_ups {
        workload.iterate()?;
    }
    let observation = session.observe(workload.helpers())?;
    let (mut windows, began) = (Vec::new(), Instant::now());
    for done in 0..trials {
        line.part("trial", (done, trials), began);
        let (taken, window) = observation.sample(|| workload.iterate());
        taken?;
        windows.push(window);
        after(workload);
    }
    Ok(observation.end().of(&windows, dtype))
}

/// A part of a sweep or a list. The parts of all machines together are the whole, and no two overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1 to `count`.
    index: usize,
    count: usize,
}

impl Shard {
    /// The whole sweep.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Returns whether the combination of this number, from 0, belongs to the shard. Combinations are sorted by size, so
    /// that the shards take about as long as one another.
    fn has(self, number: usize) -> bool {
        number % self.count == self.index - 1
    }

    /// The items of a list that belong to the shard.
    pub fn of<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().enumerate().filter(|(number, _)| self.has(*number)).map(|(_, item)| item).collect()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => bail!("shard '{text}': expected I/N with I from 1 to N, such as 1/4"),
        }
    }
}

/// File in the run's folder that holds the keys of the grid that are not part of ids.
const GRID: &str = "sweep.json";

/// Writes the keys of a grid that are not part of ids to a file. The ids of another grid would name other measurements.
///
/// # Errors
/// When the file holds other values, or is missing although the run has records of a sweep.
fn keep_grid(file: &Path, grid: &SeriesGrid, has_sweep: bool) -> Result<()> {
    let ours = grid.beside_ids()?;
    let text = match read_text_limited(file, SETTINGS_MAX_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound && !has_sweep => {
            let mut text = serde_json::to_vec_pretty(&ours)?;
            text.push(b'\n');
            return record::write_whole(file, &text);
        }
        read => {
            read.with_context(|| format!("{}: the grid of the run is unknown: choose another --run", file.display()))?
        }
    };
    let theirs: Map<String, Value> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let differs = |key: &&String| ours.get(*key) != theirs.get(*key);
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).filter(differs).collect();
    let shown = |values: &Map<String, Value>, key: &str| values.get(key).map_or("none".into(), Value::to_string);
    let differences = keys.iter().map(|key| format!("{key} is {} and was {}", shown(&ours, key), shown(&theirs, key)));
    let differences = differences.collect::<Vec<_>>().join(", ");
    ensure!(
        differences.is_empty(),
        "{}: the run was begun with another grid: {differences}; choose another --run",
        file.display()
    );
    Ok(())
}

/// Progress of a sweep, after one of its benchmarks, or after some steps of it.
pub struct Progress<'a> {
    /// Number of the benchmark, from 1, and the total.
    pub number: usize,
    /// Total number of benchmarks.
    pub total: usize,
    /// Id of the benchmark.
    pub id: &'a BenchmarkId,
    /// How far the benchmark is.
    pub state: State<'a>,
}

/// State of a benchmark.
pub enum State<'a> {
    /// The run already had it.
    DoneBefore,
    /// After a measured step.
    Step {
        /// Number of the step, from 1.
        step: usize,
        /// Number of all measured steps.
        steps: usize,
        /// Loss before the step, where something is trained.
        loss: Option<f64>,
    },
    /// It has ended.
    Done(&'a Record),
}

/// Runs every combination of a shard of a grid in training and in forecasting, and appends a record of each to the
/// session's run. Skips benchmarks that the run has already measured, and tries those again that failed under an earlier guard.
/// A benchmark that fails becomes a record with the reason.
///
/// # Errors
/// Returns an error if the grid is empty, the run was begun with another grid, or records cannot be read or written.
pub fn sweep(
    session: &mut Session,
    run: Option<&str>,
    grid: &SeriesGrid,
    shard: Shard,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let combinations = shard.of(grid.combinations()?);
    let path = session.join(run)?;
    let records = if path.is_file() { record::latest(&path)?.records } else { Vec::new() };
    let has_sweep = records.iter().any(|record| SWEEP.contains(&record.scenario));
    keep_grid(&path.with_file_name(GRID), grid, has_sweep)?;
    let is_done = |record: &Record| record.status == Status::Measured;
    let done: BTreeSet<String> = records.into_iter().filter(is_done).map(|record| record.id).collect();
    let phases = [Phase::Train, Phase::Forward];
    let all = combinations.iter().flat_map(|combination| phases.map(|phase| (combination, phase)));
    let total = phases.len() * combinations.len();
    for (number, (combination, phase)) in (1..).zip(all) {
        let scenario = SWEEP.key(phase);
        let subject = series_subject(combination, grid);
        let id = BenchmarkId::new(scenario, &subject);
        let name = id.to_string();
        if done.contains(&name) || session.done_before(&name).is_some() {
            progress(Progress { number, total, id: &id, state: State::DoneBefore });
            continue;
        }
        session.note(scenario, &subject);
        let ran = caught(|| {
            session.prepare()?;
            let mut workload = Box::new(SeriesWorkload::new(combination, phase, grid)?);
            let steps = combination.steps;
            let mut step = 0;
            let names = (name.as_str(), subject.dtype.as_str());
            let around = iterate(session, names, workload.as_mut(), grid.warmup_steps, steps, |workload| {
                step += 1;
                if grid.log_every_n_steps.is_some_and(|every| step % every == 0) {
                    let loss = workload.last_loss();
                    progress(Progress { number, total, id: &id, state: State::Step { step, steps, loss } });
                }
            })?;
            Ok((workload.finish(&vec![1; steps], &around.limits), around))
        });
        let (outcome, around) = match ran {
            Ok((outcome, around)) => (outcome, Some(around)),
            Err(error) => (Outcome::failed(error), None),
        };
        let mut record = session.record(scenario, subject, outcome, around);
        session.append(&mut record)?;
        progress(Progress { number, total, id: &id, state: State::Done(&record) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_split_a_sweep_without_overlap() {
        let shards = ["1/3", "2/3", "3/3"].map(|text| text.parse::<Shard>().expect(text));
        for number in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.has(number)).count(), 1);
            assert!(Shard::WHOLE.has(number));
        }
        for text in ["0/3", "4/3", "1/0", "1", "a/b"] {
            assert!(text.parse::<Shard>().expect_err(text).to_string().contains("expected I/N"));
        }
    }
}
