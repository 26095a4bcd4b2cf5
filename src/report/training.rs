//! Files in the form of psannlm's own benchmarks: the throughput of each base, and memory with and without gradient
//! checkpointing.

use anyhow::Result;
use serde::Serialize;

use super::{columns, text_table::markdown};
use crate::{
    record::{self, Measures, Record},
    scenario::{CHECKPOINT_MEMORY, PSANN_THROUGHPUT, Phase, TrainingScenario},
};

/// Name and content of each file. Empty if the records contain no such benchmark.
///
/// # Errors
/// When a file cannot be encoded.
pub fn files(records: &[&Record]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    let throughput: Vec<Record> = of(records, PSANN_THROUGHPUT).into_iter().cloned().collect();
    for (phase, file) in [(Phase::Train, "throughput.csv"), (Phase::Forward, "throughput_forward.csv")] {
        let is_in_phase = |record: &&Record| training(record).is_some_and(|m| m.phase == phase.name());
        let rows: Vec<Record> = throughput.iter().filter(is_in_phase).cloned().collect();
        if !rows.is_empty() {
            files.push((file, record::columns::csv(&columns::throughput(), &rows)?));
        }
    }
    if !throughput.is_empty() {
        files.push(("throughput.md", best(&throughput).into_bytes()));
    }
    let memory: Vec<Memory> = of(records, CHECKPOINT_MEMORY).into_iter().filter_map(memory).collect();
    if !memory.is_empty() {
        let mut text = serde_json::to_vec_pretty(&memory)?;
        text.push(b'\n');
        files.push(("memory.json", text));
    }
    Ok(files)
}

/// The measured records of the groups. The files have no column for the engine, so they hold candlepower's own.
fn of<'a>(records: &[&'a Record], groups: &[TrainingScenario]) -> Vec<&'a Record> {
    records
        .iter()
        .copied()
        .filter(|record| groups.iter().any(|group| group.key == record.scenario) && record.measures.is_some())
        .filter(|record| record.subject.peer.is_none())
        .collect()
}

fn training(record: &Record) -> Option<&record::Training> {
    match &record.measures {
        Some(Measures::Training(measures)) => Some(measures),
        _ => None,
    }
}

/// The base of a language model.
fn base(record: &Record) -> String {
    record.subject.architecture_and_sizes().0.to_owned()
}

/// The fastest batch of each base in each phase, as Markdown.
fn best(records: &[Record]) -> String {
    let mut rows = vec![["base", "phase", "variant", "batch_tokens", "tokens_per_s"].map(str::to_owned).to_vec()];
    let mut best: Vec<(String, String, String, usize, f64)> = Vec::new();
    for record in records {
        let Some(measures) = training(record) else { continue };
        let base = base(record);
        let variant = record.subject.variant().to_string();
        let found = (base, measures.phase.clone(), variant, measures.batch_tokens, measures.tokens_per_s);
        match best.iter_mut().find(|known| (&known.0, &known.1, &known.2) == (&found.0, &found.1, &found.2)) {
            Some(known) if known.4 < found.4 => *known = found,
            Some(_) => {}
            None => best.push(found),
        }
    }
    let row = |(base, phase, variant, tokens, rate): (String, String, String, usize, f64)| {
        vec![base, phase, variant, tokens.to_string(), format!("{rate:.0}")]
    };
    rows.extend(best.into_iter().map(row));
    markdown(&rows, 3)
}

/// An entry of `memory.json`, with the names of psannlm's benchmark.
#[derive(Serialize)]
struct Memory {
    base: String,
    d_model: u64,
    n_layers: u64,
    grad_checkpoint: bool,
    amp: String,
    max_memory_mb: Option<f64>,
    /// Time of the median step.
    elapsed_s: f64,
    batch_tokens: usize,
    /// Norm of the gradient in the last step, before clipping.
    gradient_norm: Option<f64>,
    /// Norm of the last update divided by that of the weights.
    update_ratio: Option<f64>,
    /// Always `null`: a training that diverges fails, so it has no measures and no entry here, and its record names the step.
    first_non_finite_step: Option<usize>,
}

/// The entry of a record of the group that measures bytes. The group that measures time has the same figures.
fn memory(record: &Record) -> Option<Memory> {
    let measures = training(record).filter(|measures| !measures.sample_peak_bytes.is_empty())?;
    Some(Memory {
        base: base(record),
        d_model: *record.subject.sizes.get("d_model")?,
        n_layers: *record.subject.sizes.get("n_layers")?,
        grad_checkpoint: measures.checkpointing,
        amp: record.subject.dtype.clone(),
        max_memory_mb: measures.peak_bytes.map(|bytes| bytes as f64 / 1e6),
        elapsed_s: measures.step_p50_ms / 1e3,
        batch_tokens: measures.batch_tokens,
        gradient_norm: measures.stability.as_ref().and_then(|of| of.gradient_norms.last().copied()),
        update_ratio: measures.stability.as_ref().and_then(|of| of.update_ratios.last().copied()),
        first_non_finite_step: None,
    })
}
