//! Steps of language models: one training step or one forward pass with loss per iteration.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use super::{Iteration, Measured, Outcome, Workload, drop_warm_up};
use crate::{
    device::{DeviceChoice, TRAINING_DTYPES, parse_dtype},
    measure::{
        LimitsOverTime,
        memory::{self, Peak},
        statistics,
    },
    model::psann::{Cost, Decoder, PsannConfig},
    output,
    record::{self, Measures, Stability},
    scenario::{self, Phase, Quantity, Trained},
    settings::Settings,
    step::{
        Diverged,
        gradients::Sequences,
        language::{Language, Plan},
        optimizer::Options,
    },
};

/// The configuration of an entry.
///
/// # Errors
/// Returns an error if the base is unknown.
pub(super) fn config(entry: &Trained) -> Result<PsannConfig> {
    let scenario::Shape { base, d_model, n_layers, n_heads, d_mlp, vocab_size } = entry.shape;
    Ok(PsannConfig { base: base.parse()?, d_model, n_layers, n_heads, d_mlp, vocab_size, ..PsannConfig::default() })
}

/// The cost of one sequence of an entry.
///
/// # Errors
/// Returns an error if the sizes are inconsistent.
pub(super) fn cost(entry: &Trained) -> Result<Cost> {
    Decoder::cost(&config(entry)?, entry.batch.tokens_per_row)
}

/// Floating-point operations of a step.
fn flops(entry: &Trained, phase: Phase, cost: &Cost) -> u64 {
    let passes = if phase == Phase::Train { 3 } else { 1 };
    passes * cost.forward_flops * entry.batch.rows as u64
}

/// The measures that follow from the times of steps, of which `samples` holds the number in each sample. The other fields are
/// empty.
///
/// # Errors
/// Returns an error if no step was measured.
pub(super) fn timed(
    entry: &Trained,
    phase: Phase,
    cost: &Cost,
    times: &[Duration],
    samples: &[usize],
    limits: &LimitsOverTime,
) -> Result<record::Training> {
    let steps = statistics::summarise(times, samples).context("no step was measured")?;
    let flops = flops(entry, phase, cost) as f64;
    Ok(record::Training {
        phase: phase.name().into(),
        batch_tokens: entry.batch_tokens(),
        tokens_per_row: entry.batch.tokens_per_row,
        micro_batches: 1,
        checkpointing: entry.checkpointing,
        steps: times.len(),
        samples: samples.len(),
        sample_ms: steps.sample_ms,
        sample_peak_bytes: Vec::new(),
        step_p50_ms: steps.p50_ms,
        step_p95_ms: steps.p95_ms,
        step_p99_ms: steps.p99_ms,
        tokens_per_s: 1e3 * entry.batch_tokens() as f64 / steps.p50_ms,
        peak_bytes: None,
        allocated_bytes: None,
        reserved_bytes: None,
        mfu: Some(flops / (steps.p50_ms / 1e3) / limits.medians.matrix_flops_per_s),
        stability: None,
    })
}

/// Describes an entry for records.
///
/// # Errors
/// Returns an error if the sizes are inconsistent.
pub fn language_subject(entry: &Trained, settings: &Settings) -> Result<record::Subject> {
    let (config, parameters) = (config(entry)?, cost(entry)?.parameters);
    let sizes = [
        ("batch", entry.batch.rows),
        ("batch_tokens", entry.batch_tokens()),
        ("d_mlp", config.d_mlp),
        ("d_model", config.d_model),
        ("n_heads", config.n_heads),
        ("n_layers", config.n_layers),
        ("tokens_per_row", entry.batch.tokens_per_row),
        ("vocab_size", config.vocab_size),
    ];
    Ok(record::Subject {
        model: entry.name(),
        engine: "tuned".into(),
        dtype: entry.dtype.unwrap_or(settings.first_dtype().dtype().as_str()).into(),
        device: settings.device.to_string(),
        source: format!("synthetic:{}", config.base),
        synthetic_weights: true,
        parameters: Some(parameters),
        // The trained weights are f32 in every compute precision.
        weight_bytes: Some(4 * parameters),
        formats: BTreeMap::new(),
        sizes: sizes.into_iter().map(|(name, size)| (name.to_owned(), size as u64)).collect(),
        peer: None,
    })
}

/// Steps of one model on one batch size.
pub struct LanguageWorkload {
    language: Language,
    entry: Trained,
    phase: Phase,
    quantity: Quantity,
    vocab_size: u32,
    random: ChaCha8Rng,
    device: Device,
    cost: Cost,
    allocated_bytes: u64,
    peak: Peak,
    times: Vec<Duration>,
    peaks: Vec<u64>,
    stability: Stability,
    micro_batches: usize,
}

impl LanguageWorkload {
    /// Builds the model and runs one step that is not measured.
    ///
    /// # Errors
    /// Returns an error if the sizes are inconsistent, memory is insufficient, or the step fails.
    pub fn new(
        entry: &Trained,
        phase: Phase,
        quantity: Quantity,
        dtype: &str,
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Self> {
        let (config, opened) = (config(entry)?, device.open()?);
        let dtype = parse_dtype(dtype, &TRAINING_DTYPES)
            .with_context(|| format!("language models cannot be trained in {dtype}: set CANDLEPOWER_DTYPE"))?;
        let cost = cost(entry)?;
        let micro_rows = rows_that_fit(entry, phase, &cost, dtype, &opened)?;
        if micro_rows < entry.batch.rows {
            let (name, rows) = (entry.name(), entry.batch.rows);
            output::report(format_args!(
                "{name}: {rows} sequences do not fit in memory; computing {micro_rows} at a time"
            ));
        }
        let bytes_beside = memory::current_bytes(&opened);
        let plan = Plan { dtype, checkpointing: entry.checkpointing, micro_rows };
        let language = Language::new(&config, Options::default(), plan, seed, &opened)?;
        let mut work = Self {
            language,
            entry: *entry,
            phase,
            quantity,
            vocab_size: config.vocab_size as u32,
            random: ChaCha8Rng::seed_from_u64(seed),
            peak: Peak::new(&opened, bytes_beside),
            device: opened,
            cost,
            allocated_bytes: 0,
            times: Vec::new(),
            peaks: Vec::new(),
            stability: Stability::default(),
            micro_batches: entry.batch.rows.div_ceil(micro_rows),
        };
        work.iterate()?;
        (work.times, work.peaks, work.stability) = (Vec::new(), Vec::new(), Stability::default());
        work.allocated_bytes = memory::current_bytes(&work.device).saturating_sub(bytes_beside);
        Ok(work)
    }

    fn measures(&self, samples: &[usize], limits: &LimitsOverTime) -> Result<Measured> {
        let timed = timed(&self.entry, self.phase, &self.cost, &self.times, samples, limits)?;
        let mut unmeasured = BTreeMap::new();
        let mut note = |field: &str, reason: &str| unmeasured.insert(field.to_owned(), reason.to_owned());
        let uncounted = self.peak.most().err();
        if let Some(reason) = uncounted {
            ensure!(self.quantity == Quantity::Time, "peak_bytes: {reason}");
            note("peak_bytes", reason);
            note("allocated_bytes", reason);
        }
        let reserved_bytes = memory::reserved_bytes(&self.device);
        if let Err(error) = &reserved_bytes {
            note("reserved_bytes", &format!("{error:#}"));
        }
        if self.phase == Phase::Forward {
            note("stability", "nothing is trained");
        }
        let in_time = self.quantity == Quantity::Time;
        let mut rest = self.peaks.as_slice();
        let of_sample = |&count: &usize| {
            let (sample, after) = rest.split_at(count.min(rest.len()));
            rest = after;
            sample.iter().sum::<u64>() / sample.len().max(1) as u64
        };
        let sample_peak_bytes = if in_time { Vec::new() } else { samples.iter().map(of_sample).collect() };
        let measures = record::Training {
            micro_batches: self.micro_batches,
            sample_ms: if in_time { timed.sample_ms } else { Vec::new() },
            sample_peak_bytes,
            peak_bytes: self.peaks.iter().max().copied().filter(|_| uncounted.is_none()),
            allocated_bytes: Some(self.allocated_bytes).filter(|_| uncounted.is_none()),
            reserved_bytes: reserved_bytes.ok(),
            stability: (self.phase == Phase::Train).then(|| self.stability.clone()),
            ..timed
        };
        Ok(Measured { measures: Measures::Training(measures), unmeasured })
    }
}

impl Workload for LanguageWorkload {
    /// Runs one step on random tokens. Drawing the tokens is not timed.
    fn iterate(&mut self) -> Result<Iteration> {
        let scenario::Batch { rows, tokens_per_row, .. } = self.entry.batch;
        let ids = (0..rows * (tokens_per_row + 1)).map(|_| self.random.next_u32() % self.vocab_size).collect();
        let batch = Sequences::new(ids, tokens_per_row + 1)?;
        self.peak.begin();
        let started = Instant::now();
        let time = match self.phase {
            Phase::Train => {
                let step = self.language.step(&batch)?;
                let time = started.elapsed();
                let number = self.language.steps() + 1;
                let (loss, norm) = (step.loss, step.gradient_norm);
                let told =
                    || format!("it diverged: at step {number} the loss was {loss} and the gradient's norm {norm}");
                ensure!(step.is_finite(), Diverged::new(number, told()));
                self.stability.losses.push(step.loss);
                self.stability.gradient_norms.push(step.gradient_norm);
                self.stability.update_ratios.push(step.update_ratio);
                time
            }
            Phase::Forward => {
                let pass = self.language.evaluate(&batch)?;
                let time = started.elapsed();
                ensure!(pass.loss_sum.is_finite(), "the loss is {}", pass.loss_sum);
                time
            }
        };
        let peak_bytes = self.peak.end();
        drop(batch);
        self.peak.settle();
        self.times.push(time);
        self.peaks.push(peak_bytes);
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.times.pop();
        self.peaks.pop();
        let Stability { losses, gradient_norms, update_ratios } = &mut self.stability;
        for signal in [losses, gradient_norms, update_ratios] {
            signal.pop();
        }
    }

    fn flops(&self) -> Option<u64> {
        Some(flops(&self.entry, self.phase, &self.cost))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.times, samples);
        drop_warm_up(&mut self.peaks, samples);
        let Stability { losses, gradient_norms, update_ratios } = &mut self.stability;
        for signal in [losses, gradient_norms, update_ratios] {
            drop_warm_up(signal, samples);
        }
        Outcome { measured: self.measures(samples, limits), deviates: None }
    }
}

/// Memory that an entry needs with its whole batch at once.
///
/// # Errors
/// Returns an error if the sizes are inconsistent or the dtype is not one of training.
pub fn language_bytes(entry: &Trained, phase: Phase, dtype: &str, device: DeviceChoice) -> Result<u64> {
    let is_cpu = device == DeviceChoice::Cpu;
    Ok(needed_bytes(entry, phase, &cost(entry)?, parse_dtype(dtype, &TRAINING_DTYPES)?, is_cpu, entry.batch.rows))
}

/// Returns how many sequences of a batch fit in the available memory at a time.
fn rows_that_fit(entry: &Trained, phase: Phase, cost: &Cost, dtype: DType, device: &Device) -> Result<usize> {
    let check = |rows: usize| {
        let needed_bytes = needed_bytes(entry, phase, cost, dtype, device.is_cpu(), rows);
        memory::ensure_fits("one sequence", needed_bytes, device)
    };
    let mut halves = std::iter::successors(Some(entry.batch.rows), |rows| (*rows > 1).then(|| rows.div_ceil(2)));
    match halves.find(|rows| check(*rows).is_ok()) {
        Some(rows) => Ok(rows),
        None => Ok(check(1).map(|()| 1)?),
    }
}

/// Memory of steps with `rows` sequences at a time.
fn needed_bytes(entry: &Trained, phase: Phase, cost: &Cost, dtype: DType, is_cpu: bool, rows: usize) -> u64 {
    let keeps_scores = !(is_cpu && dtype == DType::F32);
    let tokens = entry.batch.tokens_per_row * rows;
    let least_bytes = cost.least_bytes(tokens, phase == Phase::Train, entry.checkpointing, keeps_scores);
    // One ninth more, for memory that `least_bytes` does not count.
    least_bytes + least_bytes / 9
}
