//! The steps of one combination, and what was seen of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::DType;

use super::{Combination, Config};
use crate::{
    measure::{
        self,
        conditions::Watch,
        memory::{self, Peak},
        steps,
    },
    record::{Limits, Measures, Subject, Sweep},
    subject::temporal::{Cost, Forecaster},
    suite::{Measured, Seen},
    train::forecast::{Batches, Forecasting, Task, Training},
};

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward, backward, update.
    Train,
    /// Forward.
    Infer,
}

enum Steps {
    Train(Box<Training>),
    Infer(Box<Forecasting>),
}

/// One combination in one phase, with the times of its steps.
pub struct Work {
    phase: Phase,
    steps_of: Steps,
    batches: Batches,
    windows: usize,
    cost: Cost,
    limits: Limits,
    watch: Watch,
    steps: Vec<Duration>,
    losses: Vec<f64>,
    peak: Peak,
}

impl Work {
    /// Builds the backbone and takes one step, which is not measured.
    ///
    /// # Errors
    /// When the sizes don't go together, memory is missing, or the step fails.
    pub fn new(combination: &Combination, phase: Phase, config: &Config) -> Result<Self> {
        let (task, device) = (&combination.task, config.accelerator.open()?);
        let limits = measure::limits(&device)?;
        let cost = cost(task)?;
        let needed_bytes = cost.least_bytes(phase == Phase::Train, config.dtype);
        let available_bytes = memory::available_bytes(&device).unwrap_or(u64::MAX);
        ensure!(
            needed_bytes <= available_bytes,
            "it does not fit: at least {:.1} GB are needed, {:.1} GB of memory are available",
            needed_bytes as f64 / 1e9,
            available_bytes as f64 / 1e9
        );
        let peak = Peak::new(&device, memory::current_bytes(&device));
        let batches = Batches::new(task, config.dtype, &device)?;
        let steps_of = match phase {
            Phase::Train => Steps::Train(Box::new(Training::new(task, config.dtype, &device)?)),
            Phase::Infer => Steps::Infer(Box::new(Forecasting::new(task, config.dtype, &device)?)),
        };
        let mut work = Self {
            phase,
            steps_of,
            batches,
            windows: task.window.batch,
            cost,
            limits,
            watch: Watch::start(config.accelerator),
            steps: Vec::new(),
            losses: Vec::new(),
            peak,
        };
        work.step()?;
        work.steps.clear();
        work.losses.clear();
        Ok(work)
    }

    /// One step; returns its time. Cutting the batch out of the series is not timed.
    ///
    /// # Errors
    /// When training diverged, a forecast is not finite, or the device fails.
    pub fn step(&mut self) -> Result<Duration> {
        self.peak.begin();
        let batch = self.batches.cut()?;
        let started = Instant::now();
        let time = match &mut self.steps_of {
            Steps::Train(training) => {
                let loss = training.step(&batch)?;
                self.losses.push(loss);
                started.elapsed()
            }
            Steps::Infer(forecasting) => {
                let forecast = forecasting.step(&batch.0)?;
                let time = started.elapsed();
                let values = forecast.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                ensure!(values.iter().all(|value| value.is_finite()), "a forecast holds values that are not finite");
                time
            }
        };
        self.peak.end();
        self.steps.push(time);
        Ok(time)
    }

    /// What was seen. `samples` says how many steps each sample has, of the last steps; those before warmed up.
    pub fn end(mut self, samples: &[usize]) -> Seen {
        let counted: usize = samples.iter().sum();
        self.steps.drain(..self.steps.len().saturating_sub(counted));
        self.losses.drain(..self.losses.len().saturating_sub(counted));
        let measured = self.measures(samples);
        Seen { measured, deviates: None, limits: Some(self.limits), conditions: Some(self.watch.end()) }
    }

    fn measures(&self, samples: &[usize]) -> Result<Measured> {
        let steps = steps::summarise(&self.steps, samples).context("no step was measured")?;
        let step_p50_ms = steps.p50_ms;
        let passes = if self.phase == Phase::Train { 3 } else { 1 };
        let mut unmeasured = BTreeMap::new();
        if let Err(reason) = self.peak.most() {
            unmeasured.insert("peak_bytes".into(), reason.into());
        }
        if self.losses.is_empty() {
            let reason = "nothing is trained";
            unmeasured.extend(["first_loss", "last_loss"].map(|field| (field.into(), reason.into())));
        }
        let measures = Sweep {
            steps: self.steps.len(),
            samples: samples.len(),
            sample_ms: steps.sample_ms,
            step_p50_ms,
            step_p95_ms: steps.p95_ms,
            step_p99_ms: steps.p99_ms,
            windows_per_s: 1e3 * self.windows as f64 / step_p50_ms,
            peak_bytes: self.peak.most().ok(),
            mfu: Some((passes * self.cost.forward_flops) as f64 / (step_p50_ms / 1e3) / self.limits.matrix_flops_per_s),
            first_loss: self.losses.first().copied(),
            last_loss: self.losses.last().copied(),
        };
        Ok(Measured { measures: Measures::Sweep(measures), unmeasured })
    }
}

/// Who is measured, for records.
pub fn subject(combination: &Combination, config: &Config) -> Subject {
    let parameters = cost(&combination.task).ok().map(|cost| cost.parameters);
    Subject {
        model: combination.name.clone(),
        engine: "tuned".into(),
        dtype: config.dtype.as_str().into(),
        device: config.accelerator.to_string(),
        source: format!("synthetic:{}", combination.name),
        synthetic_weights: true,
        parameters,
        weight_bytes: parameters.map(|count| count * config.dtype.size_in_bytes() as u64),
        sizes: combination.sizes(),
    }
}

fn cost(task: &Task) -> Result<Cost> {
    Forecaster::cost(task.architecture, &task.sizes, &task.window)
}
