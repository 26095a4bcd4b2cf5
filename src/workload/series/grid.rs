//! The grid of a sweep: lists of architectures and sizes, of which every combination is measured.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, ensure};
use candle_core::DType;

use crate::{
    config::{Layers, above_0, config, unknown},
    device::DeviceChoice,
    model::series::{Architecture, Sizes, data::Window},
    settings::Settings,
    train::step::forecast::Task,
};

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
        /// Architectures, separated by commas: hybrid_transformer, omni_mixture, state_space
        pub architectures: Vec<Architecture> = Architecture::ALL.to_vec(),

        /// Widths of the model, separated by commas
        pub model_dims: Vec<usize> = vec![256],

        /// Numbers of layers, separated by commas
        pub depths: Vec<usize> = vec![6],

        /// Numbers of steps to forecast, separated by commas
        pub horizons: Vec<usize> = vec![5],

        /// Numbers of steps of the series that the model sees, separated by commas
        #[alias = "window"]
        pub windows: Vec<usize> = vec![128],

        /// Number of windows in a batch
        pub batch: usize = 8,

        /// Number of features of the series
        pub features: usize = 16,

        /// Number of features to forecast
        pub outputs: usize = 3,

        /// Number of attention heads
        #[default = "the architecture's own"]
        pub heads: Option<usize> = None,

        /// Device to run on: cpu, cuda:N or metal
        #[alias = "accelerator"]
        pub device: DeviceChoice = DeviceChoice::Cpu,

        /// Dtype of the computation: f32 or bf16
        #[serde(with = "crate::device::training_dtype")]
        pub dtype: DType = DType::F32,

        /// Number of steps before the measured ones
        pub warmup_steps: usize = 2,

        /// Number of measured steps
        pub steps: usize = 20,

        /// Learning rate
        #[serde(deserialize_with = "above_0")]
        pub learning_rate: f64 = 1e-3,

        /// Seed of the weights and the series
        pub seed: u64 = 42,
    }
}

/// One combination of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Architecture and sizes: the second part of its benchmark ids.
    pub name: String,
    /// The training that the combination runs.
    pub task: Task,
}

impl Combination {
    /// The sizes by name, for records.
    pub fn sizes(&self) -> BTreeMap<String, u64> {
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
        named.into_iter().map(|(name, size)| (name.to_owned(), size as u64)).collect()
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

    /// The same grid with the device, dtype and seed of the settings.
    pub fn with_settings(self, settings: &Settings) -> Self {
        Self { device: settings.device, dtype: settings.dtype, seed: settings.seed, ..self }
    }

    /// Every combination, in the order of the lists: architectures outermost, horizons innermost.
    ///
    /// # Errors
    /// When nothing would be measured. A combination of incompatible sizes fails when it runs.
    pub fn combinations(&self) -> Result<Vec<Combination>> {
        for (key, count) in [
            ("architectures", self.architectures.len()),
            ("model_dims", self.model_dims.len()),
            ("depths", self.depths.len()),
            ("horizons", self.horizons.len()),
            ("windows", self.windows.len()),
            ("steps", self.steps),
        ] {
            ensure!(count > 0, "{key}: at least one is needed");
        }
        ensure!(!self.horizons.contains(&0), "horizons: 0 steps can't be forecast");
        let mut all = Vec::new();
        for &architecture in &self.architectures {
            for &time in &self.windows {
                for &dim in &self.model_dims {
                    for &depth in &self.depths {
                        for &horizon in &self.horizons {
                            let combination = self.combination(architecture, time, dim, depth, horizon);
                            if !all.contains(&combination) {
                                all.push(combination);
                            }
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    fn combination(
        &self,
        architecture: Architecture,
        time: usize,
        dim: usize,
        depth: usize,
        horizon: usize,
    ) -> Combination {
        let own = architecture.sizes(self.features);
        let sizes =
            Sizes { dim, depth, heads: self.heads.unwrap_or(own.heads), positions: own.positions.max(time), ..own };
        let window = Window { batch: self.batch, time, horizon, outputs: self.outputs };
        let mut name = format!("{architecture}-d{dim}-l{depth}-h{horizon}-b{}-w{time}", self.batch);
        if self.heads.is_some() && architecture.attends() {
            name = format!("{name}-{}heads", sizes.heads);
        }
        Combination {
            name,
            task: Task { architecture, sizes, window, learning_rate: self.learning_rate, seed: self.seed },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn accelerator_is_another_name_of_device() {
        let read = |text| Layers::new(&SeriesGrid::default()).yaml("a.yaml", text).resolve().expect("a grid").device;
        assert_eq!(read("accelerator: cuda:1"), DeviceChoice::Cuda(1));
        assert_eq!(read("device: cuda:1"), DeviceChoice::Cuda(1));
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
