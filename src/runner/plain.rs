//! Runs workloads in a loop, without Criterion: warm-ups, then one iteration per sample.

use std::{collections::BTreeSet, str::FromStr};

use anyhow::{Result, bail};

use super::{Session, Surroundings, caught};
use crate::{
    record::{self, BenchmarkId, Record},
    scenario::{Phase, SWEEP},
    workload::{
        GenerationWorkload, Outcome, Workload,
        series::{SeriesGrid, SeriesWorkload, series_subject},
    },
};

/// Runs `warm_ups` iterations that are not measured, then `trials` iterations, each a sample.
///
/// # Errors
/// See [`Workload::iterate`].
pub fn repeat(
    session: &Session,
    mut workload: Box<dyn Workload>,
    warm_ups: usize,
    trials: usize,
) -> Result<(Outcome, Surroundings)> {
    let around = iterate(session, workload.as_mut(), warm_ups, trials)?;
    Ok((workload.finish(&vec![1; trials], &around.limits), around))
}

/// Runs generations as [`repeat`] does. Also returns the token ids of the last generation.
///
/// # Errors
/// Returns an error if a generation fails or the generations differ.
pub fn generate(
    session: &Session,
    mut workload: GenerationWorkload,
    warm_ups: usize,
    trials: usize,
) -> Result<(Outcome, Surroundings, Vec<u32>)> {
    let around = iterate(session, &mut workload, warm_ups, trials)?;
    let tokens = workload.tokens().to_vec();
    let mut outcome = Box::new(workload).finish(&vec![1; trials], &around.limits);
    outcome.measured = Ok(outcome.measured?);
    Ok((outcome, around, tokens))
}

/// The sum of both counts may exceed `usize`, so the loops are separate.
fn iterate(session: &Session, workload: &mut dyn Workload, warm_ups: usize, trials: usize) -> Result<Surroundings> {
    for _ in 0..warm_ups {
        workload.iterate()?;
    }
    let mut observation = session.observe()?;
    let mut windows = Vec::new();
    for _ in 0..trials {
        let (taken, window) = observation.sample(|| workload.iterate());
        taken?;
        windows.push(window);
    }
    Ok(observation.end().of(&windows))
}

/// A part of a sweep. The parts of all machines together are the whole sweep, and no two overlap.
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

/// Progress of a sweep, after one of its benchmarks.
pub struct Progress<'a> {
    /// Number of the benchmark, from 1, and the total.
    pub number: usize,
    /// Total number of benchmarks.
    pub total: usize,
    /// Id of the benchmark.
    pub id: &'a BenchmarkId,
    /// `None` if the run already has the benchmark.
    pub record: Option<&'a Record>,
}

/// Runs every combination of a shard of a grid in training and in forecasting, and appends a record of each to the
/// session's run. Skips benchmarks that the run already has. A benchmark that fails becomes a record with the reason.
///
/// # Errors
/// Returns an error if the grid is empty, or records cannot be read or written.
pub fn sweep(
    session: &mut Session,
    run: Option<&str>,
    grid: &SeriesGrid,
    shard: Shard,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let combinations = grid.combinations()?.into_iter().enumerate();
    let combinations: Vec<_> = combinations.filter(|(number, _)| shard.has(*number)).map(|(_, one)| one).collect();
    let path = session.join(run)?;
    let done: BTreeSet<String> = match path.is_file() {
        true => record::read(&path)?.records.into_iter().map(|record| record.id).collect(),
        false => BTreeSet::new(),
    };
    let phases = [Phase::Train, Phase::Forward];
    let all = combinations.iter().flat_map(|combination| phases.map(|phase| (combination, phase)));
    let total = phases.len() * combinations.len();
    for (number, (combination, phase)) in (1..).zip(all) {
        let scenario = SWEEP.key(phase);
        let subject = series_subject(combination, grid);
        let id = BenchmarkId::new(scenario, &subject);
        if done.contains(&id.to_string()) {
            progress(Progress { number, total, id: &id, record: None });
            continue;
        }
        let ran = caught(|| {
            session.prepare()?;
            let workload = SeriesWorkload::new(combination, phase, grid)?;
            repeat(session, Box::new(workload), grid.warmup_steps, grid.steps)
        });
        let (outcome, around) = match ran {
            Ok((outcome, around)) => (outcome, Some(around)),
            Err(error) => (Outcome::failed(error), None),
        };
        let mut record = session.record(scenario, subject, outcome, around);
        session.append(&mut record)?;
        progress(Progress { number, total, id: &id, record: Some(&record) });
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
