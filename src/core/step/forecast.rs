//! Training of a backbone for series, on windows of a seeded series: mean squared error, AdamW, clipping and a cosine
//! schedule.
//!
//! The loss is the mean squared error alone. The source of the sweep also adds terms for the Sharpe ratio and the drawdown of
//! a trading rule; they are omitted here, because the synthetic series is not a market.
//!
//! Weights, gradients and moments are f32; the network computes in the dtype of the task, which may be bf16.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::{VarBuilder, loss::mse};
use tracing::trace_span;

use super::{
    Diverged, STEP,
    optimizer::{AdamW, Options},
};
use crate::model::{
    series::{
        Architecture, Dropout, Forecaster, Sizes, Streams,
        data::{Series, Window},
    },
    trainable::Variables,
};

/// Steps of the series in which the windows of training start.
const TRAINING_STARTS: usize = 8192;

/// Steps of the series in which the held-out windows start. None of these windows overlaps one of training.
const HELD_OUT_STARTS: usize = 2048;

/// A network and how it is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Architecture of the backbone.
    pub architecture: Architecture,
    /// Sizes of the backbone.
    pub sizes: Sizes,
    /// Sizes of a batch.
    pub window: Window,
    /// How the network is trained.
    pub training: TrainingOptions,
    /// Seed of the weights, of the series and of dropout.
    pub seed: u64,
}

/// How a network for series is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingOptions {
    /// The optimizer. Its schedule is constant, so that its learning rate is that at the start.
    pub optimizer: Options,
    /// Half a period of the cosine schedule, in steps: the learning rate falls to 0 and, as PyTorch's `CosineAnnealingLR`,
    /// rises again afterwards. `None` keeps it constant.
    pub cosine_steps: Option<usize>,
    /// Batches whose gradients one step averages.
    pub accumulate: usize,
    /// Keeps only the streams between blocks and computes each block again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Probability that training sets an activation to 0.
    pub dropout: f64,
    /// Windows start at multiples of so many steps of the series.
    pub stride: usize,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            optimizer: Options {
                learning_rate: 1e-3,
                beta2: 0.999,
                clip_norm: f64::INFINITY,
                warmup_steps: 0,
                ..Options::default()
            },
            cosine_steps: None,
            accumulate: 1,
            gradient_checkpointing: false,
            dropout: 0.0,
            stride: 1,
        }
    }
}

impl TrainingOptions {
    /// The learning rate of a step, counted from 0.
    fn rate(&self, step: usize) -> f64 {
        let learning_rate = self.optimizer.learning_rate;
        let Some(steps) = self.cosine_steps else { return learning_rate };
        learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos())
    }

    fn check(&self) -> Result<()> {
        ensure!(self.accumulate > 0, "accumulate is 0: a step needs at least one batch");
        ensure!(self.stride > 0, "stride is 0: windows must start at different steps");
        ensure!(self.cosine_steps != Some(0), "cosine_steps is 0: leave it out for a constant learning rate");
        ensure!(self.optimizer.clip_norm > 0.0, "clip_norm must be above 0: leave it out for no clipping");
        ensure!((0.0..1.0).contains(&self.dropout), "dropout={} is not at least 0 and below 1", self.dropout);
        Ok(())
    }
}

impl Task {
    /// Batches of one pass over the windows of training, the last of which may be a part.
    pub fn training_batches(&self) -> usize {
        self.batches(TRAINING_STARTS)
    }

    /// Batches of one pass over the windows that training does not see.
    pub fn held_out_batches(&self) -> usize {
        self.batches(HELD_OUT_STARTS)
    }

    /// A batch or a stride of 0 is refused elsewhere.
    fn batches(&self, starts: usize) -> usize {
        starts.div_ceil(self.training.stride.max(1)).div_ceil(self.window.batch.max(1))
    }

    fn model(&self, dtype: DType, weights: VarBuilder) -> Result<Forecaster> {
        let Window { horizon, outputs, .. } = self.window;
        Forecaster::new(self.architecture, &self.sizes, horizon, outputs, dtype, weights)
    }
}

/// Windows (batch, time, features) and their continuations (batch, horizon, outputs), f32.
pub type Batch = (Tensor, Tensor);

/// Batches of the task's series.
pub struct Batches {
    series: Series,
    window: Window,
    stride: usize,
    device: Device,
    number: usize,
}

impl Batches {
    /// # Errors
    /// Returns an error if the window is empty, or has more features than the series.
    pub fn new(task: &Task, device: &Device) -> Result<Self> {
        let (Window { time, horizon, outputs, batch }, features) = (task.window, task.sizes.features);
        ensure!(batch > 0, "batch is 0: at least one window is needed");
        ensure!(time > 0, "window is 0: at least one step must be seen");
        ensure!(horizon > 0, "horizon is 0: at least one step must be forecast");
        ensure!(outputs <= features, "outputs={outputs} are more than the {features} features of the series");
        task.training.check()?;
        let steps = TRAINING_STARTS + HELD_OUT_STARTS + 2 * (time + horizon);
        let series = Series::new(steps, features, task.seed);
        Ok(Self { series, window: task.window, stride: task.training.stride, device: device.clone(), number: 0 })
    }

    /// The next batch of training.
    ///
    /// # Errors
    /// Returns an error if the device has no room.
    pub fn cut(&mut self) -> Result<Batch> {
        self.number += 1;
        self.series.batch(self.number - 1, &self.window, &(0..TRAINING_STARTS), self.stride, &self.device)
    }

    /// A batch from the part of the series that training does not see.
    ///
    /// # Errors
    /// Returns an error if the device has no room.
    pub fn held_out(&self, number: usize) -> Result<Batch> {
        let start = TRAINING_STARTS + self.window.time + self.window.horizon;
        self.series.batch(number, &self.window, &(start..start + HELD_OUT_STARTS), self.stride, &self.device)
    }
}

/// A network in training.
pub struct SeriesTraining {
    model: Forecaster,
    variables: Vec<Var>,
    optimizer: AdamW,
    options: TrainingOptions,
    seed: u64,
    device: Device,
}

impl SeriesTraining {
    /// # Errors
    /// Returns an error if the sizes or options do not go together, or the device has no room.
    pub fn new(task: &Task, dtype: DType, device: &Device) -> Result<Self> {
        let variables = Variables::new(task.seed);
        let model = task.model(dtype, variables.builder(DType::F32, device))?;
        Self::of(task, model, variables.all(), device)
    }

    fn of(task: &Task, model: Forecaster, variables: Vec<Var>, device: &Device) -> Result<Self> {
        let options = task.training.clone();
        options.check()?;
        let optimizer = AdamW::new(variables.clone(), options.optimizer)?;
        Ok(Self { model, variables, optimizer, options, seed: task.seed, device: device.clone() })
    }

    /// One step on the mean loss of some batches of the same shape. Returns that loss before the step, once the device has
    /// finished.
    ///
    /// # Errors
    /// Returns [`Diverged`] if the loss or the gradient is not finite, and another error if the device fails.
    pub fn step(&mut self, batches: &[Batch]) -> Result<f64> {
        let _step = trace_span!(STEP).entered();
        let step = self.optimizer.steps();
        let mut gradients = vec![None; self.variables.len()];
        let mut loss = 0.0;
        for (number, batch) in batches.iter().enumerate() {
            let seed = self.seed.wrapping_add((step * batches.len() + number) as u64);
            let dropout = Dropout { rate: self.options.dropout, seed };
            loss += self.add_gradients(batch, 1.0 / batches.len() as f64, dropout, &mut gradients)?;
        }
        let diverged = |what: &str, value: f64| {
            let number = step + 1;
            Diverged::new(number, format!("the {what} became {value} at step {number}: training diverged"))
        };
        ensure!(loss.is_finite(), diverged("loss", loss));
        // A weight may have no part in the loss, as the coarse stream of a network that no block attends to.
        let of_variable = |(gradient, variable): (Option<Tensor>, &Var)| match gradient {
            Some(gradient) => gradient.contiguous(),
            None => variable.zeros_like(),
        };
        let gradients = gradients.into_iter().zip(&self.variables).map(of_variable);
        let gradients = gradients.collect::<candle_core::Result<Vec<_>>>()?;
        self.optimizer.options.learning_rate = self.options.rate(step);
        let norm = self.optimizer.step(&gradients)?.gradient_norm;
        self.device.synchronize()?;
        ensure!(norm.is_finite(), diverged("norm of the gradient", norm));
        Ok(loss)
    }

    /// Adds the gradients of `weight` times the loss of a batch. Returns the weighted loss.
    fn add_gradients(
        &self,
        (series, after): &Batch,
        weight: f64,
        dropout: Dropout,
        gradients: &mut [Option<Tensor>],
    ) -> Result<f64> {
        if !self.options.gradient_checkpointing {
            let forecast = trace_span!("forward").in_scope(|| self.model.forward(series, dropout))?;
            let loss = (mse(&forecast, after)? * weight)?;
            self.add(&backward(&loss)?, gradients)?;
            return Ok(f64::from(loss.to_scalar::<f32>()?));
        }
        // The input of each stage, as variables at which the backward pass ends.
        let mut inputs: Vec<Vec<Var>> = Vec::new();
        let mut streams: Streams = vec![series.clone()];
        for stage in 0..self.model.stages() {
            let kept: Vec<Var> = streams.iter().map(|x| Var::from_tensor(&x.detach())).collect::<Result<_, _>>()?;
            streams = kept.iter().map(|input| input.as_tensor().clone()).collect();
            inputs.push(kept);
            if stage + 1 < self.model.stages() {
                streams = trace_span!("forward").in_scope(|| self.model.stage(stage, &streams, dropout))?;
            }
        }
        let last = self.model.stages() - 1;
        let forecast = trace_span!("forward").in_scope(|| self.model.stage(last, &streams, dropout))?.remove(0);
        let loss = (mse(&forecast, after)? * weight)?;
        drop((streams, forecast));
        let mut found = backward(&loss)?;
        self.add(&found, gradients)?;
        for stage in (0..last).rev() {
            let after = inputs.pop().context("a stage has no input")?;
            let of_after: Vec<_> = after.iter().map(|input| found.remove(input)).collect();
            let before = inputs.last().context("a stage has no input")?;
            let streams = before.iter().map(|input| input.as_tensor().clone()).collect();
            let outputs = trace_span!("recompute").in_scope(|| self.model.stage(stage, &streams, dropout))?;
            // A scalar whose gradient with respect to the outputs is the one that is known.
            let mut scalar: Option<Tensor> = None;
            for (output, gradient) in outputs.iter().zip(of_after) {
                let Some(gradient) = gradient else { continue };
                let part = (output * gradient.detach())?.to_dtype(DType::F32)?.sum_all()?;
                scalar = Some(match scalar {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
            found = backward(&scalar.context("a stage has no part in the loss")?)?;
            self.add(&found, gradients)?;
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn add(&self, found: &GradStore, gradients: &mut [Option<Tensor>]) -> Result<()> {
        for (variable, sum) in self.variables.iter().zip(gradients) {
            let Some(gradient) = found.get(variable) else { continue };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        Ok(())
    }

    /// The mean loss of some batches, without dropout.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let mut sum = 0.0;
        for (series, after) in batches {
            // Detached between the stages, so that nothing is kept for a backward pass.
            let mut streams: Streams = vec![series.clone()];
            for stage in 0..self.model.stages() {
                streams = self.model.stage(stage, &streams, Dropout::OFF)?.iter().map(Tensor::detach).collect();
            }
            sum += f64::from(mse(&streams[0], after)?.to_scalar::<f32>()?);
        }
        Ok(sum / batches.len() as f64)
    }
}

fn backward(loss: &Tensor) -> Result<GradStore> {
    Ok(trace_span!("backward").in_scope(|| loss.backward())?)
}

/// Elements of the widest layer's output that a CPU computes at a time, so that they stay in its caches.
const CACHED: usize = 1 << 20;

/// Rows of a product that are enough to pack its weights for them.
const ENOUGH: usize = 1024;

/// A network that forecasts. It keeps nothing for a backward pass.
pub struct Forecasting {
    model: Forecaster,
    device: Device,
    /// Windows that are forecast at a time; `None` forecasts all.
    at_a_time: Option<usize>,
}

impl Forecasting {
    /// # Errors
    /// Returns an error if the sizes do not go together, or the device has no room.
    pub fn new(task: &Task, dtype: DType, device: &Device) -> Result<Self> {
        let model = task.model(dtype, Variables::new(task.seed).frozen(dtype, device))?;
        let (time, width) = (task.window.time.max(1), task.sizes.ff_mult * task.sizes.dim);
        let at_a_time = (CACHED / width.max(1)).max(ENOUGH).div_ceil(time);
        Ok(Self { model, device: device.clone(), at_a_time: device.is_cpu().then_some(at_a_time) })
    }

    /// A forecast (batch, horizon, outputs) of windows (batch, time, features), once the device has finished.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn step(&self, series: &Tensor) -> Result<Tensor> {
        let _step = trace_span!(STEP).entered();
        let _forward = trace_span!("forward").entered();
        let windows = series.dim(0)?;
        let at_a_time = self.at_a_time.unwrap_or(windows);
        let part =
            |first: usize| self.model.forward(&series.narrow(0, first, at_a_time.min(windows - first))?, Dropout::OFF);
        let forecast = match windows <= at_a_time {
            true => self.model.forward(series, Dropout::OFF)?,
            false => Tensor::cat(&(0..windows).step_by(at_a_time).map(part).collect::<Result<Vec<_>>>()?, 0)?,
        };
        self.device.synchronize()?;
        Ok(forecast)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;
    use crate::model::golden::{device, numbers};

    fn task(architecture: Architecture) -> Task {
        let mut training = TrainingOptions::default();
        training.optimizer.learning_rate = 3e-3;
        Task {
            architecture,
            sizes: Sizes { dim: 16, depth: 2, heads: 2, state_dim: 8, max_seq_len: 32, ..architecture.sizes(4) },
            window: Window { batch: 8, time: 24, horizon: 3, outputs: 2 },
            training,
            seed: 42,
        }
    }

    fn start(task: &Task) -> (Batches, SeriesTraining) {
        let batches = Batches::new(task, &Device::Cpu).expect("batches");
        (batches, SeriesTraining::new(task, DType::F32, &Device::Cpu).expect("a training"))
    }

    #[test]
    fn windows_are_forecast_alone_as_together() {
        for architecture in Architecture::all() {
            let task = task(architecture);
            let series = Batches::new(&task, &Device::Cpu).and_then(|mut batches| batches.cut()).expect("a batch").0;
            let mut model = Forecasting::new(&task, DType::F32, &Device::Cpu).expect("a model");
            let mut forecast = |at_a_time| {
                model.at_a_time = at_a_time;
                numbers(&model.step(&series).expect("a forecast"))
            };
            let together = forecast(None);
            for at_a_time in [1, 3, 8, 9] {
                let apart = forecast(Some(at_a_time));
                assert_eq!(apart.len(), together.len());
                assert!(apart.iter().zip(&together).all(|(a, b)| (a - b).abs() < 1e-5), "{architecture}, {at_a_time}");
            }
        }
    }

    #[derive(Deserialize)]
    struct Config {
        architecture: Architecture,
        sizes: Sizes,
        horizon: usize,
        outputs: usize,
        optimizer: Optimizer,
    }

    #[derive(Deserialize)]
    struct Optimizer {
        learning_rate: f64,
        weight_decay: f64,
        beta1: f64,
        beta2: f64,
        clip_norm: f64,
        cosine_steps: usize,
    }

    /// Ten steps with clipping and the cosine schedule, past its end, against PyTorch's.
    #[test]
    fn training_steps_equal_the_reference() {
        for folder in crate::model::golden::folders("temporal") {
            let what = folder.display().to_string();
            let config: Config =
                serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("read")).expect("config.json");
            let tensors = |file: &str| candle_core::safetensors::load(folder.join(file), &device()).expect(file);
            let (weights, golden): (HashMap<_, _>, HashMap<_, _>) =
                (tensors("model.safetensors"), tensors("golden.safetensors"));
            let (batch, time, _) = golden["series"].dims3().expect("a series");
            for gradient_checkpointing in [false, true] {
                let Optimizer { learning_rate, weight_decay, beta1, beta2, clip_norm, cosine_steps } = config.optimizer;
                let usual = TrainingOptions::default();
                let optimizer = Options { learning_rate, weight_decay, beta1, beta2, clip_norm, ..usual.optimizer };
                let training =
                    TrainingOptions { optimizer, cosine_steps: Some(cosine_steps), gradient_checkpointing, ..usual };
                let Config { architecture, horizon, outputs, .. } = config;
                let window = Window { batch, time, horizon, outputs };
                let task = Task { architecture, sizes: config.sizes.clone(), window, training, seed: 0 };
                let variables = Variables::new(0);
                let model = task.model(DType::F32, variables.builder(DType::F32, &device())).expect("a model");
                variables.assign(&weights).expect("the fixture's names");
                let mut training = SeriesTraining::of(&task, model, variables.all(), &device()).expect("a training");
                let batch = [(golden["series"].clone(), golden["target"].clone())];
                let expected = numbers(&golden["losses"]);
                for (step, expected) in expected.iter().map(|loss| f64::from(*loss)).enumerate() {
                    let loss = match step < 10 {
                        true => training.step(&batch).expect("a step"),
                        false => training.evaluate(&batch).expect("a loss"),
                    };
                    assert!((loss - expected).abs() < 1e-3, "{what}: after {step} steps {loss}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn every_backbone_learns_the_series_and_the_same_from_the_same_seed() {
        for architecture in Architecture::all() {
            let losses = || -> (Vec<f64>, [f64; 2]) {
                let (mut batches, mut training) = start(&task(architecture));
                let held_out: Vec<Batch> = (0..4).map(|number| batches.held_out(number).expect("a batch")).collect();
                let before = training.evaluate(&held_out).expect("a loss");
                let step = |_| training.step(&[batches.cut().expect("a batch")]).expect("a step");
                let losses = (0..60).map(step).collect();
                (losses, [before, training.evaluate(&held_out).expect("a loss")])
            };
            let (first, [before, after]) = losses();
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
            assert!(mean(&first[50..]) < 0.7 * mean(&first[..5]), "{architecture}: {first:?}");
            assert!(after < 0.8 * before, "{architecture}: held-out loss {before}, then {after}");
            for (a, b) in first.iter().zip(losses().0) {
                assert!((a - b).abs() < 1e-4 * a, "{architecture}: {a} and then {b}");
            }
        }
    }

    fn gradients(task: &Task, parts: usize) -> Vec<f32> {
        let (mut batches, training) = start(task);
        let (series, after) = batches.cut().expect("a batch");
        let mut sums = vec![None; training.variables.len()];
        let rows = series.dim(0).expect("rows") / parts;
        for part in 0..parts {
            let of = |x: &Tensor| x.narrow(0, part * rows, rows).expect("rows");
            let dropout = Dropout { rate: task.training.dropout, seed: 5 };
            let batch = (of(&series), of(&after));
            training.add_gradients(&batch, 1.0 / parts as f64, dropout, &mut sums).expect("gradients");
        }
        sums.iter().flat_map(|sum| numbers(sum.as_ref().expect("a gradient"))).collect()
    }

    fn assert_same(found: &[f32], expected: &[f32], what: &str) {
        let most = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert_eq!(found.len(), expected.len(), "{what}");
        let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(most > 0.0 && far < 1e-5 * most.max(1.0), "{what}: {far} apart, the largest is {most}");
    }

    #[test]
    fn accumulated_batches_have_the_gradients_of_one_batch() {
        for architecture in Architecture::all() {
            let task = task(architecture);
            assert_same(&gradients(&task, 4), &gradients(&task, 1), architecture.name());
        }
    }

    #[test]
    fn checkpointing_gives_the_same_gradients_with_dropout_too() {
        for architecture in Architecture::all() {
            for dropout in [0.0, 0.3] {
                let mut task = task(architecture);
                task.training.dropout = dropout;
                let expected = gradients(&task, 1);
                task.training.gradient_checkpointing = true;
                assert_same(&gradients(&task, 1), &expected, architecture.name());
            }
        }
    }

    #[test]
    fn bf16_computes_over_f32_weights() {
        for architecture in Architecture::all() {
            let task = task(architecture);
            let (mut batches, mut wide) = start(&task);
            let mut narrow = SeriesTraining::new(&task, DType::BF16, &Device::Cpu).expect("a training");
            let batch = [batches.cut().expect("a batch")];
            for _ in 0..5 {
                let (wide, narrow) = (wide.step(&batch).expect("a step"), narrow.step(&batch).expect("a step"));
                assert!(wide != narrow && (wide - narrow).abs() < 0.05 * wide, "{architecture}: {narrow} for {wide}");
            }
            assert!(narrow.variables.iter().all(|variable| variable.dtype() == DType::F32));
        }
    }

    #[test]
    fn a_forecast_equals_that_of_the_network_in_training_and_keeps_no_graph() {
        let task = task("omni_mixture".parse().expect("a name"));
        let (mut batches, training) = start(&task);
        let (series, _) = batches.cut().expect("a batch");
        let forecast =
            Forecasting::new(&task, DType::F32, &Device::Cpu).and_then(|f| f.step(&series)).expect("a forecast");
        let trained = training.model.forward(&series, Dropout::OFF).expect("a forecast");
        assert_eq!(numbers(&forecast), numbers(&trained));
        assert!(trained.track_op() && !forecast.track_op());
    }

    #[test]
    fn a_diverging_step_is_an_error() {
        let mut task = task("state_space".parse().expect("a name"));
        task.training.optimizer.learning_rate = 1e30;
        let (mut batches, mut training) = start(&task);
        let error = (0..10).find_map(|_| training.step(&[batches.cut().expect("a batch")]).err());
        assert!(error.expect("an error").to_string().contains("diverged"));
    }

    #[test]
    fn impossible_tasks_are_refused() {
        for (edit, part) in [
            ((|task: &mut Task| task.window.horizon = 0) as fn(&mut Task), "horizon is 0"),
            (|task| task.window.batch = 0, "batch is 0"),
            (|task| task.window.time = 0, "window is 0"),
            (|task| task.window.outputs = 9, "outputs=9 are more than the 4 features"),
            (|task| task.training.accumulate = 0, "accumulate is 0"),
            (|task| task.training.stride = 0, "stride is 0"),
            (|task| task.training.cosine_steps = Some(0), "cosine_steps is 0"),
            (|task| task.training.optimizer.clip_norm = 0.0, "clip_norm must be above 0"),
            (|task| task.training.dropout = 1.0, "dropout=1"),
        ] {
            let mut task = task("state_space".parse().expect("a name"));
            edit(&mut task);
            let error = Batches::new(&task, &Device::Cpu).err().expect("an error").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
