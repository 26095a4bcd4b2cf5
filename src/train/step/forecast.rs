//! Training of a backbone for series: mean squared error and AdamW, on windows of a seeded series.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, loss::mse};

use crate::model::{
    series::{
        Architecture, Forecaster, Sizes,
        data::{Series, Window},
    },
    trainable::Variables,
};

/// Steps of the series in addition to one window.
const SERIES_STEPS: usize = 8192;

/// The task: the sizes, and the data of the training.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Architecture of the backbone.
    pub architecture: Architecture,
    /// Sizes of the backbone.
    pub sizes: Sizes,
    /// Sizes of a batch.
    pub window: Window,
    /// Learning rate of AdamW.
    pub learning_rate: f64,
    /// Seed of the weights and of the series.
    pub seed: u64,
}

impl Task {
    fn model(&self, weights: VarBuilder) -> Result<Forecaster> {
        Forecaster::new(self.architecture, &self.sizes, self.window.horizon, self.window.outputs, weights)
    }
}

/// Windows of the task's series, and the values that follow each.
pub struct Batches {
    series: Series,
    window: Window,
    dtype: DType,
    device: Device,
    number: usize,
}

impl Batches {
    /// # Errors
    /// Returns an error if the window is empty or longer than the series.
    pub fn new(task: &Task, dtype: DType, device: &Device) -> Result<Self> {
        let (Window { time, horizon, outputs, batch }, features) = (task.window, task.sizes.features);
        ensure!(batch > 0, "batch is 0: it must be at least one window");
        ensure!(time > 0, "window is 0: it must be at least one step");
        ensure!(horizon > 0, "horizon is 0: it must be at least one step");
        ensure!(outputs <= features, "outputs={outputs} is more than the {features} features of the series");
        let series = Series::new(SERIES_STEPS + time + horizon, features, task.seed);
        Ok(Self { series, window: task.window, dtype, device: device.clone(), number: 0 })
    }

    /// Returns the next batch: windows (batch, time, features) and the following values (batch, horizon, outputs).
    ///
    /// # Errors
    /// Returns an error if the memory of the device is insufficient.
    pub fn cut(&mut self) -> Result<(Tensor, Tensor)> {
        self.number += 1;
        self.series.batch(self.number - 1, &self.window, self.dtype, &self.device)
    }
}

/// A backbone in training.
pub struct SeriesTraining {
    model: Forecaster,
    optimizer: AdamW,
    device: Device,
    steps: usize,
}

impl SeriesTraining {
    /// # Errors
    /// Returns an error if the sizes are inconsistent, or memory is insufficient.
    pub fn new(task: &Task, dtype: DType, device: &Device) -> Result<Self> {
        let variables = Variables::new(task.seed);
        let model = task.model(variables.builder(dtype, device))?;
        let parameters = ParamsAdamW { lr: task.learning_rate, ..ParamsAdamW::default() };
        Ok(Self { model, optimizer: AdamW::new(variables.all(), parameters)?, device: device.clone(), steps: 0 })
    }

    /// Runs one step on a batch and waits for the device. Returns the loss before the update.
    ///
    /// # Errors
    /// Returns an error if the loss is not finite, or the device fails.
    pub fn step(&mut self, (series, after): &(Tensor, Tensor)) -> Result<f64> {
        let loss = mse(&self.model.forward(series)?, after)?;
        self.optimizer.backward_step(&loss)?;
        let loss = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        self.device.synchronize()?;
        self.steps += 1;
        ensure!(loss.is_finite(), "training diverged: the loss became {loss} at step {}", self.steps);
        Ok(loss)
    }
}

/// A backbone that forecasts. It stores nothing for gradients.
pub struct Forecasting {
    model: Forecaster,
    device: Device,
}

impl Forecasting {
    /// # Errors
    /// Returns an error if the sizes are inconsistent, or memory is insufficient.
    pub fn new(task: &Task, dtype: DType, device: &Device) -> Result<Self> {
        let model = task.model(Variables::new(task.seed).frozen(dtype, device))?;
        Ok(Self { model, device: device.clone() })
    }

    /// Returns a forecast (batch, horizon, outputs) of windows (batch, time, features) and waits for the device.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn step(&self, series: &Tensor) -> Result<Tensor> {
        let forecast = self.model.forward(series)?;
        self.device.synchronize()?;
        Ok(forecast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(architecture: Architecture) -> Task {
        Task {
            architecture,
            sizes: Sizes { dim: 16, depth: 1, heads: 2, state: 8, positions: 32, ..architecture.sizes(4) },
            window: Window { batch: 8, time: 24, horizon: 3, outputs: 2 },
            learning_rate: 3e-3,
            seed: 42,
        }
    }

    #[test]
    fn every_backbone_learns_the_series_and_the_same_from_the_same_seed() {
        for architecture in Architecture::ALL {
            let losses = || -> Vec<f64> {
                let task = task(architecture);
                let mut batches = Batches::new(&task, DType::F32, &Device::Cpu).expect("batches");
                let mut training = SeriesTraining::new(&task, DType::F32, &Device::Cpu).expect("a training");
                (0..60).map(|_| training.step(&batches.cut().expect("a batch")).expect("a step")).collect()
            };
            let first = losses();
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
            assert!(mean(&first[50..]) < 0.7 * mean(&first[..5]), "{architecture}: {first:?}");
            for (a, b) in first.iter().zip(losses()) {
                assert!((a - b).abs() < 1e-4 * a, "{architecture}: {a} and then {b}");
            }
        }
    }

    #[test]
    fn a_forecast_is_that_of_the_model_in_training_and_keeps_no_graph() {
        let task = task(Architecture::OmniMixture);
        let (series, _) = Batches::new(&task, DType::F32, &Device::Cpu).and_then(|mut b| b.cut()).expect("a batch");
        let training = SeriesTraining::new(&task, DType::F32, &Device::Cpu).expect("a training");
        let forecast =
            Forecasting::new(&task, DType::F32, &Device::Cpu).and_then(|f| f.step(&series)).expect("a forecast");
        let trained = training.model.forward(&series).expect("a forecast");
        let values = |tensor: &Tensor| tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("numbers");
        assert_eq!(values(&forecast), values(&trained));
        assert!(trained.track_op() && !forecast.track_op());
    }

    #[test]
    fn a_diverging_step_is_an_error() {
        let task = Task { learning_rate: 1e30, ..task(Architecture::StateSpace) };
        let mut batches = Batches::new(&task, DType::F32, &Device::Cpu).expect("batches");
        let mut training = SeriesTraining::new(&task, DType::F32, &Device::Cpu).expect("a training");
        let error = (0..10).find_map(|_| training.step(&batches.cut().expect("a batch")).err());
        assert!(error.expect("an error").to_string().contains("diverged"));
    }

    #[test]
    fn impossible_windows_are_refused() {
        for (edit, part) in [
            ((|window: &mut Window| window.horizon = 0) as fn(&mut Window), "horizon is 0"),
            (|window| window.batch = 0, "batch is 0"),
            (|window| window.time = 0, "window is 0"),
            (|window| window.outputs = 9, "outputs=9 is more than the 4 features"),
        ] {
            let mut task = task(Architecture::StateSpace);
            edit(&mut task.window);
            let error = Batches::new(&task, DType::F32, &Device::Cpu).err().expect("an error").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
