//! Steps of networks for series: one training step or one forecast per iteration. `grid` holds the combinations of the
//! architecture sweep, `nested` reads the configuration files of its source.

mod grid;
mod nested;

pub(crate) use grid::{Combination, PRESETS};
pub use grid::{SeriesGrid, preset};
pub(crate) use nested::Translated;
pub use nested::translate;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::DType;

use super::{Iteration, Measured, Outcome, Workload, drop_warm_up};
use crate::{
    measure::{
        LimitsOverTime,
        memory::{self, Peak},
        statistics,
    },
    model::series::{Cost, Forecaster, data::Window},
    record::{Measures, Subject, Sweep},
    scenario::Phase,
    step::forecast::{Batches, Forecasting, SeriesTraining, Task},
};

enum Steps {
    Train(Box<SeriesTraining>),
    Forward(Box<Forecasting>),
}

/// Steps of one combination in one phase.
pub(crate) struct SeriesWorkload {
    phase: Phase,
    steps_of: Steps,
    batches: Batches,
    held_out_batches: usize,
    task: Task,
    batches_per_step: usize,
    cost: Cost,
    steps: Vec<Duration>,
    losses: Vec<f64>,
    peak: Peak,
}

impl SeriesWorkload {
    /// Builds the backbone and runs one step that is not measured.
    ///
    /// # Errors
    /// Returns an error if the sizes are inconsistent, memory is insufficient, or the step fails.
    pub(crate) fn new(combination: &Combination, phase: Phase, grid: &SeriesGrid) -> Result<Self> {
        let (task, device) = (&combination.task, grid.device.open()?);
        let cost = cost(task)?;
        memory::ensure_fits("one batch", needed_bytes(task, &cost, phase, grid.dtype), &device)?;
        let batches_per_step = batches_per_step(task, phase);
        let bytes_beside = memory::current_bytes(&device);
        let batches = Batches::new(task, &device)?;
        let steps_of = match phase {
            Phase::Train => Steps::Train(Box::new(SeriesTraining::new(task, grid.dtype, &device)?)),
            Phase::Forward => Steps::Forward(Box::new(Forecasting::new(task, grid.dtype, &device)?)),
        };
        let mut work = Self {
            phase,
            steps_of,
            batches,
            held_out_batches: combination.held_out_batches,
            task: task.clone(),
            batches_per_step,
            cost,
            steps: Vec::new(),
            losses: Vec::new(),
            peak: Peak::new(&device, bytes_beside),
        };
        work.iterate()?;
        work.steps.clear();
        work.losses.clear();
        Ok(work)
    }

    /// The loss of the last step, where something is trained.
    pub(crate) fn last_loss(&self) -> Option<f64> {
        self.losses.last().copied()
    }

    fn measures(&self, samples: &[usize], limits: &LimitsOverTime) -> Result<Measured> {
        let timed = timed(&self.task, self.phase, &self.cost, &self.steps, samples, limits)?;
        let held_out_loss = match &self.steps_of {
            Steps::Train(training) => {
                let batches = (0..self.held_out_batches).map(|number| self.batches.held_out(number));
                Some(training.evaluate(&batches.collect::<Result<Vec<_>>>()?)?)
            }
            Steps::Forward(_) => None,
        };
        let mut unmeasured = BTreeMap::new();
        if let Err(reason) = self.peak.most() {
            unmeasured.insert("peak_bytes".into(), reason.into());
        }
        if self.losses.is_empty() {
            let reason = "nothing is trained";
            unmeasured.extend(["first_loss", "last_loss", "held_out_loss"].map(|field| (field.into(), reason.into())));
        }
        let measures = Sweep {
            peak_bytes: self.peak.most().ok(),
            first_loss: self.losses.first().copied(),
            last_loss: self.last_loss(),
            held_out_loss,
            ..timed
        };
        Ok(Measured { measures: Measures::Sweep(measures), unmeasured })
    }
}

impl Workload for SeriesWorkload {
    /// Runs one step. Cutting the batches from the series is not timed.
    ///
    /// # Errors
    /// Returns an error if training diverged, a forecast is not finite, or the device fails.
    fn iterate(&mut self) -> Result<Iteration> {
        self.peak.begin();
        let batches = (0..self.batches_per_step).map(|_| self.batches.cut()).collect::<Result<Vec<_>>>()?;
        let started = Instant::now();
        let time = match &mut self.steps_of {
            Steps::Train(training) => {
                let loss = training.step(&batches)?;
                self.losses.push(loss);
                started.elapsed()
            }
            Steps::Forward(forecasting) => {
                let forecast = forecasting.step(&batches[0].0)?;
                let time = started.elapsed();
                let values = forecast.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                ensure!(values.iter().all(|value| value.is_finite()), "a forecast contains values that are not finite");
                time
            }
        };
        let peak_bytes = self.peak.end();
        drop(batches);
        self.peak.settle();
        self.steps.push(time);
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.steps.pop();
        self.losses.pop();
    }

    fn flops(&self) -> Option<u64> {
        Some(flops(&self.task, self.phase, &self.cost))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.steps, samples);
        drop_warm_up(&mut self.losses, samples);
        Outcome { measured: self.measures(samples, limits), deviates: None }
    }
}

/// Batches of a step.
fn batches_per_step(task: &Task, phase: Phase) -> usize {
    if phase == Phase::Train { task.training.accumulate } else { 1 }
}

/// Floating-point operations of a step.
fn flops(task: &Task, phase: Phase, cost: &Cost) -> u64 {
    let passes = if phase == Phase::Train { 3 * batches_per_step(task, phase) as u64 } else { 1 };
    passes * cost.forward_flops
}

/// The measures that follow from the times of steps, of which `samples` holds the number in each sample. The other fields are
/// empty.
///
/// # Errors
/// Returns an error if no step was measured.
pub(super) fn timed(
    task: &Task,
    phase: Phase,
    cost: &Cost,
    times: &[Duration],
    samples: &[usize],
    limits: &LimitsOverTime,
) -> Result<Sweep> {
    let steps = statistics::summarise(times, samples).context("no step was measured")?;
    let batches = batches_per_step(task, phase);
    Ok(Sweep {
        steps: times.len(),
        samples: samples.len(),
        sample_ms: steps.sample_ms,
        step_p50_ms: steps.p50_ms,
        step_p95_ms: steps.p95_ms,
        step_p99_ms: steps.p99_ms,
        windows_per_s: 1e3 * (task.window.batch * batches) as f64 / steps.p50_ms,
        peak_bytes: None,
        mfu: Some(flops(task, phase, cost) as f64 / (steps.p50_ms / 1e3) / limits.medians.matrix_flops_per_s),
        first_loss: None,
        last_loss: None,
        held_out_loss: None,
    })
}

/// Memory of the steps of a network, with its batches and the series that they are cut from.
pub(super) fn needed_bytes(task: &Task, cost: &Cost, phase: Phase, dtype: DType) -> u64 {
    let of_steps = match phase {
        Phase::Train => cost.training_bytes(dtype, task.training.gradient_checkpointing),
        Phase::Forward => cost.forecast_bytes(dtype),
    };
    of_steps + series_bytes(task)
}

/// Memory of a batch and of the series that it is cut from, of which a copy of a batch is made.
fn series_bytes(task: &Task) -> u64 {
    let Window { batch, time, horizon, outputs } = task.window;
    let features = task.sizes.features as u64;
    let (batch, steps) = (batch as u64, (time + horizon) as u64);
    let values = 2 * steps * features + 2 * batch * (time as u64 * features + (horizon * outputs) as u64);
    values * DType::F32.size_in_bytes() as u64
}

/// Describes a combination for records.
pub fn series_subject(combination: &Combination, grid: &SeriesGrid) -> Subject {
    let parameters = cost(&combination.task).ok().map(|cost| cost.parameters);
    Subject {
        model: combination.name.clone(),
        engine: "tuned".into(),
        dtype: grid.dtype.as_str().into(),
        device: grid.device.to_string(),
        source: format!("synthetic:{}", combination.name),
        synthetic_weights: true,
        parameters,
        weight_bytes: parameters.map(|count| count * grid.dtype.size_in_bytes() as u64),
        formats: BTreeMap::new(),
        sizes: combination.sizes(),
        peer: None,
    }
}

/// The cost of a forward pass.
///
/// # Errors
/// Returns an error if the sizes are inconsistent.
pub(super) fn cost(task: &Task) -> Result<Cost> {
    Forecaster::cost(task.architecture, &task.sizes, &task.window)
}
