//! The grid of a sweep: lists of architectures and sizes, of which every combination is measured.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use anyhow::{Result, anyhow, bail, ensure};
use candle_core::DType;

use crate::{
    config::{Layers, above_0, at_least_0, config, serde_as_text, share, share_or_count, unknown},
    device::DeviceChoice,
    model::{
        limits::{MOST_PRODUCTS, MOST_WEIGHTS, check_sizes},
        series::{Architecture, Forecaster, Sizes, data::Window},
    },
    settings::Settings,
    step::{
        forecast::{Task, TrainingOptions},
        optimizer::Options,
    },
};

/// Measured steps, unless configured.
const STEPS: usize = 20;

/// Batches of the held-out loss, unless configured.
const HELD_OUT_BATCHES: usize = 4;

/// Grids by name, in YAML.
pub const PRESETS: [(&str, &str); 5] = [
    ("smoke", include_str!("presets/smoke.yaml")),
    ("baseline-cpu", include_str!("presets/baseline-cpu.yaml")),
    ("hybrid-gpu", include_str!("presets/hybrid-gpu.yaml")),
    ("omni-gpu", include_str!("presets/omni-gpu.yaml")),
    ("growth", include_str!("presets/growth.yaml")),
];

config! {
    /// A sweep.
    #[derive(Clone, Debug, PartialEq)]
    pub struct SeriesGrid {
        /// Architectures, separated by commas; `candlepower list` shows their names
        #[default = "all"]
        pub architectures: Vec<Architecture> = Architecture::all().collect(),

        /// Widths of the model, separated by commas
        pub model_dims: Vec<usize> = vec![256],

        /// Numbers of layers, separated by commas
        pub depths: Vec<usize> = vec![6],

        /// Numbers of steps to forecast, separated by commas
        pub horizons: Vec<usize> = vec![5],

        /// Numbers of steps of the series that the model sees, separated by commas
        #[alias = "window"]
        pub windows: Vec<usize> = vec![128],

        /// Lists of dilations to compare, separated by vertical bars
        #[default = "one list: the key dilations"]
        pub dilation_schedules: DilationSchedules = DilationSchedules::default(),

        /// Number of windows in a batch
        #[alias = "batch_size"]
        pub batch: usize = 8,

        /// Number of features of the series
        pub features: usize = 16,

        /// Number of features to forecast
        pub outputs: usize = 3,

        /// Windows start at multiples of so many steps of the series
        pub stride: usize = 1,

        /// Number of attention heads
        #[default = "the architecture's own, or 8 where that does not divide the width"]
        pub heads: Option<usize> = None,

        /// Inner width of the feed-forward network, as a multiple of the model's
        #[default = "the architecture's own"]
        pub ff_mult: Option<usize> = None,

        /// Width of the state of a state mixer
        #[default = "the architecture's own"]
        pub state_dim: Option<usize> = None,

        /// Taps of the causal convolution of a state mixer
        #[default = "the architecture's own"]
        pub state_kernel: Option<usize> = None,

        /// Taps of the dilated convolution
        #[default = "the architecture's own"]
        pub conv_kernel: Option<usize> = None,

        /// Dilations of successive layers, repeated, separated by commas
        #[default = "the architecture's own"]
        pub dilations: Vec<usize> = Vec::new(),

        /// Steps of the fine stream for each step of the coarse one
        #[default = "the architecture's own"]
        pub coarse_factor: Option<usize> = None,

        /// Layers from one attention to the coarse stream to the next
        #[default = "the architecture's own"]
        pub cross_every: Option<usize> = None,

        /// Number of learned positions: longer windows are refused
        #[default = "the architecture's own"]
        pub max_seq_len: Option<usize> = None,

        /// Device to run on: cpu, cuda:N (or gpu, the first) or metal (or mps)
        #[alias = "accelerator"]
        pub device: DeviceChoice = DeviceChoice::Cpu,

        /// Dtype of the computation: f32 or bf16. Weights and moments of a training are f32
        #[serde(with = "crate::device::training_dtype")]
        pub dtype: DType = DType::F32,

        /// Number of steps before the measured ones
        pub warmup_steps: usize = 2,

        /// Number of measured steps. If max_epochs is given too, the smaller number of steps counts
        #[default = "those of max_epochs, or 20"]
        pub steps: Option<usize> = None,

        /// Number of measured passes over the windows of training
        #[default = "as steps"]
        pub max_epochs: Option<usize> = None,

        /// Batches of a pass over the windows of training: a share up to 1, or a number above 1
        #[default = "all"]
        #[serde(deserialize_with = "share_or_count")]
        pub limit_train_batches: Option<f64> = None,

        /// Batches of the held-out loss: a share up to 1, or a number above 1
        #[default = "4 batches"]
        #[serde(deserialize_with = "share_or_count")]
        pub limit_val_batches: Option<f64> = None,

        /// Steps from one line of progress to the next
        #[default = "one line for each benchmark"]
        pub log_every_n_steps: Option<usize> = None,

        /// Number of devices that train one combination: 1 or auto. Use --shard for several
        pub devices: OneDevice = OneDevice,

        /// Learning rate
        #[serde(deserialize_with = "above_0")]
        pub learning_rate: f64 = 1e-3,

        /// Half a period of a cosine schedule of the learning rate, in steps
        #[default = "constant learning rate"]
        pub cosine_steps: Option<usize> = None,

        /// Weight decay of AdamW
        #[serde(deserialize_with = "at_least_0")]
        pub weight_decay: f64 = 0.01,

        /// Decay of the mean of the gradients in AdamW
        #[serde(deserialize_with = "share")]
        pub beta1: f64 = 0.9,

        /// Decay of the mean of the squared gradients in AdamW
        #[serde(deserialize_with = "share")]
        pub beta2: f64 = 0.999,

        /// Norm to which larger gradients are scaled down
        #[default = "no clipping"]
        pub clip_norm: Option<f64> = None,

        /// Number of batches whose gradients one step averages
        pub accumulate: usize = 1,

        /// True if only the inputs of the layers are kept for the backward pass: true or false
        pub gradient_checkpointing: bool = false,

        /// Probability that training sets an activation to 0
        #[serde(deserialize_with = "at_least_0")]
        pub dropout: f64 = 0.0,

        /// Seed of the weights and the series
        pub seed: u64 = 42,
    }
}

/// Largest value of each key.
const LARGEST: [(&[&str], u64); 7] = [
    (&["model_dims"], 1 << 20),
    (&["depths"], 1 << 12),
    (&["windows", "horizons", "max_seq_len", "batch"], 1 << 24),
    (&["features", "outputs", "heads", "ff_mult", "state_dim", "accumulate"], 1 << 16),
    (&["state_kernel", "conv_kernel", "dilations", "dilation_schedules", "coarse_factor", "cross_every"], 1 << 16),
    (&["stride", "warmup_steps", "steps", "max_epochs", "cosine_steps"], 1 << 32),
    // The number of combinations of all lists.
    (&["combinations"], 1 << 16),
];

/// Largest numbers of weights of one kind, of products in one pass, and of values in a batch.
const PRODUCTS: [(&[&str], u64); 8] = [
    (&["depths", "model_dims", "model_dims", "ff_mult"], MOST_WEIGHTS),
    (&["depths", "model_dims", "model_dims", "conv_kernel"], MOST_WEIGHTS),
    (&["depths", "state_dim", "state_dim", "state_kernel"], MOST_WEIGHTS),
    (&["model_dims", "horizons", "outputs"], MOST_WEIGHTS),
    (&["depths", "model_dims", "model_dims", "ff_mult", "batch", "windows"], MOST_PRODUCTS),
    (&["depths", "model_dims", "windows", "windows", "batch"], MOST_PRODUCTS),
    (&["batch", "windows", "features"], 1 << 40),
    (&["batch", "horizons", "features"], 1 << 40),
];

/// Lists of dilations, written as "1,2,4|1,3,9".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DilationSchedules(Vec<Vec<usize>>);

impl fmt::Display for DilationSchedules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |list: &Vec<usize>| list.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        f.write_str(&self.0.iter().map(list).collect::<Vec<_>>().join("|"))
    }
}

impl FromStr for DilationSchedules {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|dilation| *dilation > 0);
        let list = |list: &str| list.split(',').map(number).collect::<Option<Vec<_>>>();
        let lists = text.split('|').map(list).collect::<Option<_>>();
        lists.map(Self).ok_or_else(|| anyhow!("expected lists of whole numbers above 0, such as 1,2,4|1,3,9"))
    }
}

serde_as_text!(DilationSchedules);

/// The number of devices that train one combination, which is 1. `auto` is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OneDevice;

impl fmt::Display for OneDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1")
    }
}

impl FromStr for OneDevice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "1" | "auto" => Ok(Self),
            _ => Err(anyhow!("expected 1 or auto: name the device with --device, and use --shard for several")),
        }
    }
}

serde_as_text!(OneDevice);

/// One combination of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Architecture and sizes: the second part of its benchmark ids.
    pub name: String,
    /// The training that the combination runs.
    pub task: Task,
    /// Number of measured steps.
    pub steps: usize,
    /// Number of batches of the held-out loss.
    pub held_out_batches: usize,
}

impl Combination {
    /// The sizes by name, for records.
    pub(crate) fn sizes(&self) -> BTreeMap<String, u64> {
        let Task { sizes, window, architecture, .. } = &self.task;
        let mut named = vec![
            ("batch", window.batch),
            ("depth", sizes.depth),
            ("dim", sizes.dim),
            ("features", sizes.features),
            ("horizon", window.horizon),
            ("outputs", window.outputs),
            ("window", window.time),
        ];
        if architecture.attends() {
            named.push(("heads", sizes.heads));
        }
        let mut named: BTreeMap<_, _> = named.into_iter().map(|(name, size)| (name.to_owned(), size as u64)).collect();
        if architecture.dilates() {
            let dilations = sizes.dilations.iter().enumerate();
            named.extend(dilations.map(|(number, size)| (format!("dilation_{:02}", number + 1), *size as u64)));
        }
        named
    }
}

/// The YAML text of a preset.
///
/// # Errors
/// When there is no preset of this name.
pub fn preset(name: &str) -> Result<&'static str> {
    let found = PRESETS.iter().find(|(preset, _)| *preset == name);
    let (_, text) = found.ok_or_else(|| anyhow!("{}", unknown("preset", name, &PRESETS.map(|(preset, _)| preset))))?;
    Ok(text)
}

impl SeriesGrid {
    /// The grid of a preset.
    ///
    /// # Errors
    /// When there is no preset of this name.
    pub fn preset(name: &str) -> Result<Self> {
        Layers::new(&Self::default()).yaml(name, preset(name)?).resolve()
    }

    /// The grid of the preset that the settings name, with their device, dtype and seed.
    ///
    /// # Errors
    /// When there is no preset of this name.
    pub(crate) fn of_settings(settings: &Settings) -> Result<Self> {
        Ok(Self::preset(&settings.preset)?.with_settings(settings))
    }

    /// The same grid with the device, dtype and seed of the settings: f32 where the settings quantise weights.
    fn with_settings(self, settings: &Settings) -> Self {
        Self { device: settings.device, dtype: settings.first_dtype().dtype(), seed: settings.seed, ..self }
    }

    /// Every combination, those of the fewest operations first. Combinations of incompatible sizes come last: each fails when
    /// it runs.
    ///
    /// # Errors
    /// When nothing would be measured.
    pub fn combinations(&self) -> Result<Vec<Combination>> {
        for (key, count) in [
            ("architectures", self.architectures.len()),
            ("model_dims", self.model_dims.len()),
            ("depths", self.depths.len()),
            ("horizons", self.horizons.len()),
            ("windows", self.windows.len()),
            ("steps", self.steps.unwrap_or(1)),
            ("max_epochs", self.max_epochs.unwrap_or(1)),
            ("log_every_n_steps", self.log_every_n_steps.unwrap_or(1)),
        ] {
            ensure!(count > 0, "{key}: at least one is needed");
        }
        ensure!(!self.horizons.contains(&0), "horizons: 0 steps can't be forecast");
        self.check_sizes()?;
        let mut all: Vec<Combination> = Vec::new();
        for &architecture in &self.architectures {
            for dilations in self.schedules(architecture) {
                for &time in &self.windows {
                    for &dim in &self.model_dims {
                        for &depth in &self.depths {
                            for &horizon in &self.horizons {
                                let sizes = self.sizes(architecture, dim, depth, &dilations);
                                all.push(self.combination(architecture, sizes, time, horizon));
                            }
                        }
                    }
                }
            }
        }
        all.sort_by_cached_key(|Combination { task, .. }| {
            let cost = Forecaster::cost(task.architecture, &task.sizes, &task.window);
            cost.map_or(u64::MAX, |cost| cost.forward_flops)
        });
        let mut names = BTreeSet::new();
        all.retain(|combination| names.insert(combination.name.clone()));
        Ok(all)
    }

    /// Checks the largest value of each key, so that the size of no combination overflows.
    fn check_sizes(&self) -> Result<()> {
        let most = |list: &[usize]| list.iter().copied().max().unwrap_or(0);
        let largest_dilation = self.dilation_schedules.0.iter().map(|list| most(list)).max().unwrap_or(0);
        let size = |key: &str| {
            Some(match key {
                "model_dims" => most(&self.model_dims),
                "depths" => most(&self.depths),
                "horizons" => most(&self.horizons),
                "windows" => most(&self.windows),
                "dilations" => most(&self.dilations),
                "dilation_schedules" => largest_dilation,
                "batch" => self.batch,
                "features" => self.features,
                "outputs" => self.outputs,
                "stride" => self.stride,
                "heads" => self.heads?,
                "ff_mult" => self.ff_mult?,
                "state_dim" => self.state_dim?,
                "state_kernel" => self.state_kernel?,
                "conv_kernel" => self.conv_kernel?,
                "coarse_factor" => self.coarse_factor?,
                "cross_every" => self.cross_every?,
                "max_seq_len" => self.max_seq_len?,
                "warmup_steps" => self.warmup_steps,
                "steps" => self.steps?,
                "max_epochs" => self.max_epochs?,
                "cosine_steps" => self.cosine_steps?,
                "accumulate" => self.accumulate,
                "combinations" => [
                    self.architectures.len(),
                    self.model_dims.len(),
                    self.depths.len(),
                    self.horizons.len(),
                    self.windows.len(),
                    self.dilation_schedules.0.len().max(1),
                ]
                .into_iter()
                .fold(1, usize::saturating_mul),
                _ => return None,
            } as u64)
        };
        check_sizes("", &LARGEST, &PRODUCTS, size)
    }

    /// The keys that are not part of the ids of benchmarks, and that choose neither combinations nor what is printed. Two grids that differ in one of
    /// them measure different things under the same ids.
    ///
    /// # Errors
    /// When the grid cannot be serialized.
    pub(crate) fn beside_ids(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        const LEFT_OUT: [&str; 11] = [
            "architectures",
            "model_dims",
            "depths",
            "horizons",
            "windows",
            "dilation_schedules",
            "batch",
            "heads",
            "device",
            "dtype",
            "log_every_n_steps",
        ];
        let serde_json::Value::Object(mut keys) = serde_json::to_value(self)? else { bail!("a grid is not a table") };
        keys.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
        Ok(keys)
    }

    /// The lists of dilations to combine with an architecture.
    fn schedules(&self, architecture: Architecture) -> Vec<Vec<usize>> {
        if !architecture.dilates() || self.dilation_schedules.0.is_empty() {
            return vec![self.dilations.clone()];
        }
        self.dilation_schedules.0.clone()
    }

    /// Sizes of a backbone. An empty list of dilations leaves them to the architecture.
    fn sizes(&self, architecture: Architecture, dim: usize, depth: usize, dilations: &[usize]) -> Sizes {
        let own = architecture.sizes(self.features);
        Sizes {
            dim,
            depth,
            heads: self.heads.unwrap_or(architecture.heads(dim)),
            ff_mult: self.ff_mult.unwrap_or(own.ff_mult),
            state_dim: self.state_dim.unwrap_or(own.state_dim),
            state_kernel: self.state_kernel.unwrap_or(own.state_kernel),
            conv_kernel: self.conv_kernel.unwrap_or(own.conv_kernel),
            dilations: if dilations.is_empty() { own.dilations } else { dilations.to_vec() },
            coarse_factor: self.coarse_factor.unwrap_or(own.coarse_factor),
            cross_every: self.cross_every.unwrap_or(own.cross_every),
            max_seq_len: self.max_seq_len.unwrap_or(own.max_seq_len),
            ..own
        }
    }

    fn combination(&self, architecture: Architecture, sizes: Sizes, time: usize, horizon: usize) -> Combination {
        let Sizes { dim, depth, heads, .. } = sizes;
        let mut name = format!("{architecture}-d{dim}-l{depth}-h{horizon}-b{}-w{time}", self.batch);
        if self.heads.is_some() && architecture.attends() {
            name = format!("{name}-{heads}heads");
        }
        if architecture.dilates() && !self.dilation_schedules.0.is_empty() {
            let dilations: Vec<_> = sizes.dilations.iter().map(usize::to_string).collect();
            name = format!("{name}-x{}", dilations.join("."));
        }
        let usual = TrainingOptions::default();
        let training = TrainingOptions {
            optimizer: Options {
                learning_rate: self.learning_rate,
                weight_decay: self.weight_decay,
                beta1: self.beta1,
                beta2: self.beta2,
                clip_norm: self.clip_norm.unwrap_or(f64::INFINITY),
                ..usual.optimizer
            },
            cosine_steps: self.cosine_steps,
            accumulate: self.accumulate,
            gradient_checkpointing: self.gradient_checkpointing,
            dropout: self.dropout,
            stride: self.stride,
        };
        let window = Window { batch: self.batch, time, horizon, outputs: self.outputs };
        let task = Task { architecture, sizes, window, training, seed: self.seed };
        let (steps, held_out_batches) = (self.measured_steps(&task), self.held_out_batches(&task));
        Combination { name, task, steps, held_out_batches }
    }

    fn measured_steps(&self, task: &Task) -> usize {
        let steps_per_epoch =
            limited(task.training_batches(), self.limit_train_batches).div_ceil(self.accumulate.max(1));
        let of_epochs = self.max_epochs.map(|epochs| epochs.saturating_mul(steps_per_epoch));
        match (self.steps, of_epochs) {
            (Some(steps), Some(of_epochs)) => steps.min(of_epochs),
            (steps, of_epochs) => steps.or(of_epochs).unwrap_or(STEPS),
        }
    }

    fn held_out_batches(&self, task: &Task) -> usize {
        match self.limit_val_batches {
            Some(limit) => limited(task.held_out_batches(), Some(limit)),
            None => HELD_OUT_BATCHES,
        }
    }
}

/// A share up to 1 of some batches, or a number above 1, and at least one batch.
fn limited(batches: usize, limit: Option<f64>) -> usize {
    match limit {
        None => batches,
        Some(share) if share <= 1.0 => (share * batches as f64) as usize,
        Some(count) => batches.min(count as usize),
    }
    .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::SWEEP_PRESETS;

    fn flag(key: &str, value: &str) -> Result<SeriesGrid> {
        Layers::new(&SeriesGrid::default()).flags(&[(key, value.to_owned())]).resolve()
    }

    fn message<T>(result: Result<T>) -> String {
        format!("{:#}", result.map(|_| ()).expect_err("an error"))
    }

    #[test]
    fn presets_can_be_read_and_make_combinations() {
        for (name, _) in PRESETS {
            let config = SeriesGrid::preset(name).expect(name);
            let all = config.combinations().expect(name);
            for combination in &all {
                combination.task.sizes.check(combination.task.architecture).expect(&combination.name);
            }
            let names: std::collections::BTreeSet<_> = all.iter().map(|combination| &combination.name).collect();
            assert_eq!(names.len(), all.len(), "{name}");
        }
        assert!(message(SeriesGrid::preset("smok")).contains("unknown preset 'smok': did you mean smoke?"));
    }

    #[test]
    fn flags_override_the_preset() {
        let flags = [("model_dims", "64,128".to_owned()), ("architectures", "state_space".to_owned())];
        let layers = Layers::new(&SeriesGrid::default()).yaml("smoke", preset("smoke").expect("a preset"));
        let config: SeriesGrid = layers.flags(&flags).resolve().expect("a configuration");
        assert_eq!((config.model_dims.as_slice(), config.batch), (&[64, 128][..], 8));
        let names: Vec<_> = config.combinations().expect("some").into_iter().map(|c| c.name).collect();
        assert_eq!(names[0], "state_space-d64-l2-h5-b8-w64");
        assert_eq!(names.len(), 4);
    }

    /// The values that the source of the sweep publishes.
    #[test]
    fn published_presets_make_the_published_models() {
        let millions = |name: &str| -> Vec<String> {
            let all = SeriesGrid::preset(name).and_then(|grid| grid.combinations()).expect(name);
            let cost = |task: &Task| Forecaster::cost(task.architecture, &task.sizes, &task.window).expect("a cost");
            all.iter().map(|combination| format!("{:.3}", cost(&combination.task).parameters as f64 / 1e6)).collect()
        };
        assert!(millions("omni-gpu").iter().zip(["80.56", "106.34", "175.46", "232.21"]).all(|(a, b)| round(a) == b));
        assert!(millions("hybrid-gpu").iter().zip(["16.37", "20.22", "28.71", "35.54"]).all(|(a, b)| round(a) == b));
        assert_eq!(millions("baseline-cpu"), ["4.107"]);
        let heads = |combination: &Combination| (combination.task.sizes.dim, combination.task.sizes.heads);
        let omni = SeriesGrid::preset("omni-gpu").and_then(|grid| grid.combinations()).expect("combinations");
        assert_eq!(omni.iter().map(heads).collect::<Vec<_>>(), [(512, 8), (512, 8), (768, 12), (768, 12)]);
    }

    fn round(millions: &str) -> String {
        format!("{:.2}", millions.parse::<f64>().expect("a number"))
    }

    /// Training starts in 8192 steps of the series and is held out in 2048.
    #[test]
    fn epochs_and_limits_count_as_in_the_source() {
        let counts = |flags: &[(&str, &str)]| {
            let flags: Vec<_> = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
            let all = Layers::new(&SeriesGrid::default()).flags(&flags).resolve().and_then(|grid| grid.combinations());
            let first = all.expect("combinations").remove(0);
            (first.steps, first.held_out_batches)
        };
        let sizes = [("batch", "48"), ("stride", "4")];
        assert_eq!(counts(&sizes), (20, 4));
        assert_eq!(counts(&[&sizes[..], &[("max_epochs", "2")]].concat()), (2 * 43, 4));
        let limits = [&sizes[..], &[("limit_train_batches", "0.4"), ("limit_val_batches", "0.4")]].concat();
        assert_eq!(counts(&[&limits[..], &[("max_epochs", "8")]].concat()), (8 * 17, 4));
        assert_eq!(counts(&[&limits[..], &[("max_epochs", "8"), ("accumulate", "2")]].concat()), (8 * 9, 4));
        assert_eq!(counts(&[&limits[..], &[("max_epochs", "8"), ("steps", "3")]].concat()), (3, 4));
        let numbers = [&sizes[..], &[("limit_train_batches", "5"), ("limit_val_batches", "1000")]].concat();
        assert_eq!(counts(&[&numbers[..], &[("max_epochs", "3")]].concat()), (15, 11));
        assert_eq!(counts(&[("max_epochs", "1"), ("limit_train_batches", "0.0001")]).0, 1, "at least one batch");
        for (key, value, part) in [
            ("limit_train_batches", "2.5", "expected a share up to 1, or a whole number above 1"),
            ("limit_val_batches", "0", "expected a share"),
            ("devices", "2", "expected 1 or auto: name the device with --device"),
        ] {
            assert!(message(flag(key, value)).contains(part), "{}", message(flag(key, value)));
        }
        assert!(flag("devices", "auto").is_ok());
        assert!(message(flag("max_epochs", "0").expect("read").combinations()).contains("max_epochs: at least one"));
    }

    #[test]
    fn dilation_schedules_are_an_axis_of_architectures_that_dilate() {
        let flags = [("dilation_schedules", "1,2,4|1,3,9".to_owned()), ("model_dims", "32".to_owned())];
        let grid: SeriesGrid = Layers::new(&SeriesGrid::default()).flags(&flags).resolve().expect("a grid");
        let names: Vec<_> = grid.combinations().expect("some").into_iter().map(|c| c.name).collect();
        let count: usize = Architecture::all().map(|architecture| 1 + usize::from(architecture.dilates())).sum();
        assert_eq!(names.len(), count);
        assert!(names.iter().any(|name| name == "hybrid_transformer-d32-l6-h5-b8-w128-x1.3.9"), "{names:?}");
        assert!(names.iter().any(|name| name == "state_space-d32-l6-h5-b8-w128"), "{names:?}");
        assert_eq!(grid.dilation_schedules.to_string(), "1,2,4|1,3,9");
        assert!(message(flag("dilation_schedules", "1,0")).contains("such as 1,2,4|1,3,9"));
    }

    #[test]
    fn gpu_and_mps_are_accelerators() {
        assert_eq!(flag("device", "gpu").expect("a grid").device, DeviceChoice::Cuda(0));
        assert_eq!(flag("device", "mps").expect("a grid").device, DeviceChoice::Metal);
    }

    #[test]
    fn accelerator_is_another_name_of_device() {
        let read = |text| Layers::new(&SeriesGrid::default()).yaml("a.yaml", text).resolve().expect("a grid").device;
        assert_eq!(read("accelerator: cuda:1"), DeviceChoice::Cuda(1));
        assert_eq!(read("device: cuda:1"), DeviceChoice::Cuda(1));
    }

    #[test]
    fn the_settings_know_the_presets() {
        assert_eq!(PRESETS.map(|(name, _)| name), SWEEP_PRESETS);
        let settings = Settings { preset: "baseline-cpu".into(), seed: 7, ..Settings::default() };
        let grid = SeriesGrid::of_settings(&settings).expect("a preset");
        assert_eq!((grid.model_dims, grid.seed), (vec![256], 7));
    }

    #[test]
    fn bad_values_are_reported_with_the_nearest_name() {
        for (key, value, part) in [
            ("architectures", "state-space", "did you mean state_space?"),
            ("depths", "two", "--depths='two': expected a whole number"),
            ("device", "cuda:x", "cuda:x"),
            ("learning_rate", "0", "--learning-rate='0': expected a number above 0"),
            ("dtype", "f8", "unknown dtype 'f8'"),
        ] {
            assert!(message(flag(key, value)).contains(part), "{}", message(flag(key, value)));
        }
        let zero = message(flag("horizons", "0").expect("read").combinations());
        assert!(zero.contains("0 steps can't be forecast"), "{zero}");
        for key in ["model_dims", "depths", "horizons", "windows", "batch", "features", "outputs", "heads", "ff_mult"] {
            let refused = message(flag(key, "4611686018427387904").expect("read").combinations());
            assert!(refused.starts_with(&format!("{key} is 4611686018427387904; at most ")), "{refused}");
        }
        for key in ["state_dim", "state_kernel", "conv_kernel", "dilations", "max_seq_len", "steps", "accumulate"] {
            let refused = message(flag(key, "18446744073709551615").expect("read").combinations());
            assert!(refused.starts_with(&format!("{key} is 18446744073709551615; at most ")), "{refused}");
        }
        let list = (1..=1 << 16).map(|depth| depth.to_string()).collect::<Vec<_>>().join(",");
        let count = format!("combinations is {}", Architecture::all().count() << 16);
        assert!(message(flag("windows", &list).expect("read").combinations()).starts_with(&count));
        let none = message(flag("steps", "0").expect("read").combinations());
        assert!(none.contains("steps: at least one"), "{none}");
    }

    #[test]
    fn an_error_in_a_file_names_the_file_and_the_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sweep.yaml");
        let read = || Layers::new(&SeriesGrid::default()).yaml_file(&file).resolve();
        for (text, part) in [
            ("model_dim: [64]", "sweep.yaml: did you mean model_dims?"),
            ("depths: [1.5]", "sweep.yaml='1.5': expected a whole number"),
            ("depths: [1", "sweep.yaml cannot be read as YAML"),
            ("- 1", "sweep.yaml cannot be read as YAML"),
        ] {
            std::fs::write(&file, text).expect("written");
            let error = message(read());
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert!(message(read()).contains("cannot be read"));
    }
}
