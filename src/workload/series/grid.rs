//! What is swept: lists of architectures and sizes, every combination of which is measured.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use serde_json::Value;

use crate::{
    device::DeviceChoice,
    error::nearest,
    keys::{list, text, whole, words, yaml},
    model::series::{Architecture, Sizes, data::Window},
    settings::Settings,
    train::step::forecast::Task,
};

/// Configurations by name.
pub const PRESETS: [(&str, &str); 5] = [
    ("smoke", include_str!("presets/smoke.yaml")),
    ("baseline-cpu", include_str!("presets/baseline-cpu.yaml")),
    ("hybrid-gpu", include_str!("presets/hybrid-gpu.yaml")),
    ("omni-gpu", include_str!("presets/omni-gpu.yaml")),
    ("growth", include_str!("presets/growth.yaml")),
];

/// A sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesGrid {
    pub architectures: Vec<Architecture>,
    pub model_dims: Vec<usize>,
    pub depths: Vec<usize>,
    /// Steps that are forecast.
    pub horizons: Vec<usize>,
    /// Steps of the series that are seen.
    pub windows: Vec<usize>,
    pub batch: usize,
    pub features: usize,
    /// Features that are forecast.
    pub outputs: usize,
    /// `None` leaves it to the architecture.
    pub heads: Option<usize>,
    pub accelerator: DeviceChoice,
    pub dtype: DType,
    /// Steps before those that count, and those.
    pub warmup_steps: usize,
    pub steps: usize,
    pub learning_rate: f64,
    pub seed: u64,
}

impl Default for SeriesGrid {
    fn default() -> Self {
        Self {
            architectures: Architecture::ALL.to_vec(),
            model_dims: vec![256],
            depths: vec![6],
            horizons: vec![5],
            windows: vec![128],
            batch: 8,
            features: 16,
            outputs: 3,
            heads: None,
            accelerator: DeviceChoice::Cpu,
            dtype: DType::F32,
            warmup_steps: 2,
            steps: 20,
            learning_rate: 1e-3,
            seed: 42,
        }
    }
}

/// One combination of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Second part of its benchmarks' ids: architecture and sizes.
    pub name: String,
    pub task: Task,
}

impl Combination {
    /// Sizes by name, for records.
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

/// Where keys and values come from, named when one is wrong.
pub enum Source<'a> {
    Preset(&'a str),
    File(&'a Path),
    /// A key as its flag, and the value: a number, a word, or several with commas between them.
    Flags(&'a [(&'static str, String)]),
}

impl SeriesGrid {
    /// The keys, as in YAML and, with dashes, as flags.
    pub const KEYS: [&'static str; 15] = [
        "architectures",
        "model_dims",
        "depths",
        "horizons",
        "windows",
        "batch",
        "features",
        "outputs",
        "heads",
        "accelerator",
        "dtype",
        "warmup_steps",
        "steps",
        "learning_rate",
        "seed",
    ];

    /// Takes over what a source says; what it leaves out stays.
    ///
    /// # Errors
    /// One line that names the source, the key, and what was probably meant.
    pub fn apply(mut self, source: Source) -> Result<Self> {
        let (name, values) = match source {
            Source::Preset(preset) => {
                let names = PRESETS.map(|(name, _)| name);
                let found = PRESETS.iter().find(|(name, _)| *name == preset);
                let (_, text) = found.with_context(|| match nearest(preset, &names) {
                    Some(near) => format!("unknown preset '{preset}': did you mean {near}?"),
                    None => format!("unknown preset '{preset}': the presets are {}", names.join(", ")),
                })?;
                (preset.to_owned(), yaml(text).with_context(|| preset.to_owned())?)
            }
            Source::File(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).with_context(|| format!("{name} can't be read"))?;
                let values = yaml(&text).with_context(|| name.clone())?;
                (name, values)
            }
            Source::Flags(flags) => (
                String::from("command line"),
                flags.iter().map(|(key, text)| (key.replace('-', "_"), words(text))).collect(),
            ),
        };
        for (key, value) in values {
            self.set(&key, &value).with_context(|| format!("{name}: {key}"))?;
        }
        Ok(self)
    }

    /// The same where and how precisely, and from which seed, the settings say.
    pub fn with_settings(self, settings: &Settings) -> Self {
        Self { accelerator: settings.device, dtype: settings.dtype, seed: settings.seed, ..self }
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        match key {
            "architectures" => self.architectures = list(value, |item| text(item)?.parse())?,
            "model_dims" => self.model_dims = list(value, whole)?,
            "depths" => self.depths = list(value, whole)?,
            "horizons" => self.horizons = list(value, whole)?,
            "windows" | "window" => self.windows = list(value, whole)?,
            "batch" => self.batch = whole(value)?,
            "features" => self.features = whole(value)?,
            "outputs" => self.outputs = whole(value)?,
            "heads" => self.heads = Some(whole(value)?),
            "accelerator" => self.accelerator = text(value)?.parse()?,
            "dtype" => {
                self.dtype = match text(value)? {
                    "f32" => DType::F32,
                    "bf16" => DType::BF16,
                    other => bail!("'{other}' can't be trained in: f32 or bf16"),
                }
            }
            "warmup_steps" => self.warmup_steps = whole(value)?,
            "steps" => self.steps = whole(value)?,
            "learning_rate" => {
                let rate = value.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
                self.learning_rate = rate.with_context(|| format!("{value} is no number above 0"))?;
            }
            "seed" => self.seed = value.as_u64().with_context(|| format!("{value} is no whole number"))?,
            _ => match nearest(key, &Self::KEYS) {
                Some(near) => bail!("there is no such key: did you mean {near}?"),
                None => bail!("there is no such key: the keys are {}", Self::KEYS.join(", ")),
            },
        }
        Ok(())
    }

    /// Every combination, the small ones first.
    ///
    /// # Errors
    /// When nothing would be measured. Sizes that don't go together are found when they are tried.
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

    fn message(result: Result<SeriesGrid>) -> String {
        format!("{:#}", result.expect_err("an error"))
    }

    #[test]
    fn presets_can_be_read_and_make_combinations() {
        for (name, _) in PRESETS {
            let config = SeriesGrid::default().apply(Source::Preset(name)).expect(name);
            let all = config.combinations().expect(name);
            for combination in &all {
                combination.task.sizes.check(combination.task.architecture).expect(&combination.name);
            }
            let names: std::collections::BTreeSet<_> = all.iter().map(|combination| &combination.name).collect();
            assert_eq!(names.len(), all.len(), "{name}");
        }
    }

    #[test]
    fn flags_win_over_the_preset() {
        let flags = [("model-dims", "64,128".to_owned()), ("architectures", "state_space".to_owned())];
        let config = SeriesGrid::default().apply(Source::Preset("smoke")).and_then(|c| c.apply(Source::Flags(&flags)));
        let config = config.expect("a configuration");
        assert_eq!((config.model_dims.as_slice(), config.batch), (&[64, 128][..], 8));
        let names: Vec<_> = config.combinations().expect("some").into_iter().map(|c| c.name).collect();
        assert_eq!(names[0], "state_space-d64-l2-h5-b8-w64");
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_meant() {
        let flag = |key, value: &str| SeriesGrid::default().apply(Source::Flags(&[(key, value.to_owned())]));
        assert!(message(flag("architectures", "state-space")).contains("did you mean state_space?"));
        assert!(message(flag("depths", "two")).contains("command line: depths: \"two\" is no whole number"));
        assert!(message(flag("accelerator", "cuda:x")).contains("cuda:x"));
        assert!(message(flag("learning-rate", "0")).contains("no number above 0"));
        assert!(message(flag("dtype", "f8")).contains("f32 or bf16"));
        let preset = SeriesGrid::default().apply(Source::Preset("smok"));
        assert!(message(preset).contains("unknown preset 'smok': did you mean smoke?"));
        let zero = flag("horizons", "0").expect("read").combinations().expect_err("no horizon").to_string();
        assert!(zero.contains("0 steps can't be forecast"), "{zero}");
        let none = flag("steps", "0").expect("read").combinations().expect_err("no step").to_string();
        assert!(none.contains("steps: at least one"), "{none}");
    }

    #[test]
    fn a_file_is_named_with_its_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sweep.yaml");
        for (text, part) in [
            ("model_dim: [64]", "sweep.yaml: model_dim: there is no such key: did you mean model_dims?"),
            ("depths: [1.5]", "sweep.yaml: depths: 1.5 is no whole number"),
            ("depths: [1", "sweep.yaml: it can't be read as YAML"),
            ("- 1", "sweep.yaml: it can't be read as YAML"),
        ] {
            std::fs::write(&file, text).expect("written");
            let error = message(SeriesGrid::default().apply(Source::File(&file)));
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert!(message(SeriesGrid::default().apply(Source::File(&file))).contains("can't be read"));
    }
}
