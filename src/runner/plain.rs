//! Runs workloads in a loop, without Criterion: warm-ups, then one iteration per sample.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Session;
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
pub fn repeat(mut workload: Box<dyn Workload>, warm_ups: usize, trials: usize) -> Result<Outcome> {
    for _ in 0..warm_ups + trials {
        workload.iterate()?;
    }
    Ok(workload.finish(&vec![1; trials]))
}

/// Runs generations as [`repeat`] does. Also returns the token ids of the last generation.
///
/// # Errors
/// Returns an error if a generation fails or the generations differ.
pub fn generate(mut workload: GenerationWorkload, warm_ups: usize, trials: usize) -> Result<(Outcome, Vec<u32>)> {
    for _ in 0..warm_ups + trials {
        workload.iterate()?;
    }
    let tokens = workload.tokens().to_vec();
    let mut outcome = Box::new(workload).finish(&vec![1; trials]);
    outcome.measured = Ok(outcome.measured?);
    Ok((outcome, tokens))
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

/// Runs every combination of a grid in training and in forecasting, and appends a record of each to the session's
/// run. Skips benchmarks that the run already has. A benchmark that fails becomes a record with the reason.
///
/// # Errors
/// Returns an error if the grid is empty, or records cannot be read or written.
pub fn sweep(
    session: &mut Session,
    run: Option<&str>,
    grid: &SeriesGrid,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let combinations = grid.combinations()?;
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
        let outcome = SeriesWorkload::new(combination, phase, grid)
            .and_then(|workload| repeat(Box::new(workload), grid.warmup_steps, grid.steps));
        let mut record = session.record(scenario, subject, outcome.unwrap_or_else(Outcome::failed));
        session.append(&mut record)?;
        progress(Progress { number, total, id: &id, record: Some(&record) });
    }
    Ok(())
}
