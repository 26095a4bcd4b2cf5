//! The settings: the keys of `candlepower.toml`, of the variables that start with `CANDLEPOWER_`, and of the command's
//! flags. Flags override the environment, which overrides the file. No other module reads these variables.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use candle_core::DType;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    config::{Layers, config, from_0_to_10},
    device::DeviceChoice,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    model::{Engine, MINI, ModelSpec},
    record::Setting,
    scenario::Tier,
};

/// The settings file, in the working directory.
pub const FILE: &str = "candlepower.toml";

/// The start of the name of every environment variable that sets a key.
pub const PREFIX: &str = "CANDLEPOWER_";

/// Names the run that records are appended to. It starts with [`PREFIX`], but is not a setting.
const RUN: &str = "CANDLEPOWER_RUN";

/// Lets a disturbed run become a reference. It starts with [`PREFIX`], but is not a setting: it is meant for one run.
pub const EVEN_IF_DISTURBED: &str = "CANDLEPOWER_EVEN_IF_DISTURBED";

/// Names the folder of the golden tests' files. It starts with [`PREFIX`], but is not a setting.
const FIXTURES: &str = "CANDLEPOWER_FIXTURES";

config! {
    /// The settings.
    #[derive(Clone, Debug)]
    pub struct Settings {
        /// Models to measure, separated by commas
        #[serde(deserialize_with = "models")]
        pub models: Vec<ModelSpec> = MINI.map(ModelSpec::Mini).to_vec(),

        /// Device to run on: cpu, cuda:N or metal
        pub device: DeviceChoice = DeviceChoice::Cpu,

        /// Dtype of the models: f32, f16 or bf16
        #[default = "f32 on cpu, bf16 elsewhere"]
        #[serde(with = "crate::device::model_dtype")]
        pub dtype: DType = DeviceChoice::Cpu.default_dtype(),

        /// Implementations that run the models, separated by commas: stock (candle-transformers as published) or tuned (the
        /// decoder of this crate)
        #[serde(deserialize_with = "engines")]
        pub engine: Vec<Engine> = vec![Engine::Stock],

        /// Number of scenarios: quick, standard or full
        #[default = "full on mini models, quick on others"]
        pub tier: Option<Tier> = None,

        /// Seed of weights, prompts and sampling
        pub seed: u64 = 42,

        /// Imbalance of expert use in moe_top_k, from 0 to 10: 0 is uniform, 1 follows Zipf's law
        #[default = "0"]
        #[serde(deserialize_with = "from_0_to_10")]
        pub skew: f64 = 0.0,

        /// Measure benchmarks that are compared in turns: true or false
        pub pairing: bool = true,

        /// Folder of the records
        #[default = "target/candlepower"]
        #[serde(deserialize_with = "folder")]
        pub out: PathBuf = Path::new("target").join("candlepower"),

        /// Number of CPU threads
        #[default = "one per physical core"]
        #[serde(deserialize_with = "threads")]
        pub threads: Option<usize> = None,
    }
    and {
        /// The run that records are appended to; `None` starts a new one.
        pub run: Option<String>,
        /// True if a disturbed run may become a reference.
        pub even_if_disturbed: bool,
        /// For each key, its value as written and the name of its source.
        pub sources: BTreeMap<String, Setting>,
    }
}

impl Settings {
    /// Reads the settings file if it exists, the environment, and `flags`, the keys and values of a command line.
    ///
    /// # Errors
    /// Lists every unknown key and every bad value with its source, one per line.
    pub fn load(flags: &[(&str, String)]) -> Result<Self> {
        let file = match read_text_limited(Path::new(FILE), SETTINGS_MAX_BYTES) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context(format!("{FILE} cannot be read")),
        };
        let environment = env::vars_os().map(|(key, value)| (lossy(key), lossy(value)));
        Self::resolve(flags, environment, file.as_deref(), &cargo_target())
    }

    /// As [`Self::load`], from the given environment, text of the file, and Cargo's target folder.
    fn resolve(
        flags: &[(&str, String)],
        environment: impl Iterator<Item = (String, String)>,
        file: Option<&str>,
        target: &Path,
    ) -> Result<Self> {
        let (mut run, mut even_if_disturbed) = (None, false);
        let mut variables = Vec::new();
        for (variable, value) in environment {
            match variable.strip_prefix(PREFIX) {
                Some(_) if variable == RUN => run = Some(value),
                Some(_) if variable == EVEN_IF_DISTURBED => {
                    even_if_disturbed = !["", "0", "false"].contains(&value.as_str())
                }
                Some(key) if variable != FIXTURES => variables.push((key.to_owned(), value)),
                _ => {}
            }
        }
        let mut layers = Layers::new(&Self::default());
        if let Some(text) = file {
            layers = layers.toml(FILE, text);
        }
        let layers = layers.environment(PREFIX, variables).flags(flags);
        let mut sources: BTreeMap<_, _> =
            layers.sources().map(|(key, value, from)| (key.name.to_owned(), Setting { value, from })).collect();
        let mut settings = layers.resolve()?;
        // These defaults depend on other settings or on the machine. Records hold the value that is used.
        let is_default = |key: &str| sources.get(key).is_some_and(|setting: &Setting| setting.from == "default");
        if is_default("dtype") {
            settings.dtype = settings.device.default_dtype();
        }
        if is_default("out") {
            settings.out = target.join("candlepower");
        }
        for (key, value) in [
            ("dtype", settings.dtype.as_str().to_owned()),
            ("out", settings.out.display().to_string()),
            ("threads", settings.threads.unwrap_or_else(candle_core::utils::get_num_threads).to_string()),
        ] {
            if let Some(setting) = sources.get_mut(key).filter(|setting| setting.from == "default") {
                setting.value = value;
            }
        }
        Ok(Self { run, even_if_disturbed, sources, ..settings })
    }

    /// The tier for a model: as set, or by default full for the embedded models and quick for the others.
    pub fn tier_for(&self, model: &ModelSpec) -> Tier {
        self.tier.unwrap_or(if model.is_mini() { Tier::Full } else { Tier::Quick })
    }
}

/// The folder of Criterion's baselines and reports.
pub fn criterion_home() -> PathBuf {
    env::var_os("CRITERION_HOME").map_or_else(|| cargo_target().join("criterion"), PathBuf::from)
}

fn cargo_target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from)
}

fn lossy(text: OsString) -> String {
    text.to_string_lossy().into_owned()
}

fn models<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ModelSpec>, D::Error> {
    distinct(deserializer, "at least one model is needed")
}

fn engines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Engine>, D::Error> {
    distinct(deserializer, "at least one engine is needed")
}

/// Reads a list and removes repetitions. An empty list is an error.
fn distinct<'de, T: Deserialize<'de> + PartialEq, D: Deserializer<'de>>(
    deserializer: D,
    empty: &str,
) -> Result<Vec<T>, D::Error> {
    let mut items = Vec::new();
    for item in Vec::deserialize(deserializer)? {
        if !items.contains(&item) {
            items.push(item);
        }
    }
    if items.is_empty() {
        return Err(D::Error::custom(empty));
    }
    Ok(items)
}

fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let folder = PathBuf::deserialize(deserializer)?;
    match folder.as_os_str().is_empty() {
        true => Err(D::Error::custom("a folder is needed")),
        false => Ok(folder),
    }
}

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match Option::deserialize(deserializer) {
        Ok(threads @ (None | Some(1..=4096))) => Ok(threads),
        _ => Err(D::Error::custom("expected a whole number from 1 to 4096")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings> {
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Settings::resolve(&[], environment, file, Path::new("target"))
    }

    #[test]
    fn by_default_all_scenarios_run_on_the_mini_models_on_the_cpu() {
        let settings = resolve(&[("PATH", "/bin")], None).expect("defaults");
        assert_eq!(settings.models, MINI.map(ModelSpec::Mini));
        assert_eq!((settings.device, settings.dtype), (DeviceChoice::Cpu, DType::F32));
        assert_eq!((settings.seed, settings.threads), (42, None));
        assert_eq!(settings.out, Path::new("target/candlepower"));
        assert_eq!(settings.tier_for(&ModelSpec::Mini("llama-mini")), Tier::Full);
        assert_eq!(settings.tier_for(&ModelSpec::Synthetic("qwen3-1.7b")), Tier::Quick);
        assert_eq!(settings.sources["seed"].from, "default");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let file = "models = ['llama-mini', 'synthetic:qwen3-1.7b']\nseed = 7\ntier = 'standard'";
        let settings = resolve(&[("CANDLEPOWER_SEED", "8")], Some(file)).expect("good settings");
        assert_eq!(settings.models.len(), 2);
        assert_eq!((settings.seed, settings.tier), (8, Some(Tier::Standard)));
        assert_eq!(settings.sources["seed"].from, "environment");
        assert_eq!(settings.sources["tier"].from, FILE);
    }

    #[test]
    fn the_command_line_overrides_the_environment() {
        let environment = [("CANDLEPOWER_SEED".to_owned(), "8".to_owned())].into_iter();
        let settings = Settings::resolve(&[("seed", "9".into())], environment, Some("seed = 7"), Path::new("target"));
        let settings = settings.expect("good settings");
        assert_eq!((settings.seed, settings.sources["seed"].from.as_str()), (9, "command line"));
    }

    #[test]
    fn the_dtype_follows_the_device_unless_given() {
        let cuda = [("CANDLEPOWER_DEVICE", "cuda:1")];
        assert_eq!(resolve(&cuda, None).expect("cuda").dtype, DType::BF16);
        assert_eq!(resolve(&cuda, Some("dtype = 'f16'")).expect("cuda").dtype, DType::F16);
    }

    #[test]
    fn every_bad_value_is_reported_at_once_with_its_source() {
        let environment = [
            ("CANDLEPOWER_MODELS", "llama-mini,nonsense"),
            ("CANDLEPOWER_DEVICE", "tpu"),
            ("CANDLEPOWER_SKEW", "-1"),
            ("CANDLEPOWER_THREADS", "0"),
            ("CANDLEPOWER_MODEL", "llama-mini"),
        ];
        let file = "dtype = 'f8'\ntier = 'everything'\nout = ''\nengine = 'tund'\ncolour = 'red'";
        let environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let message = Settings::resolve(&[("seed", "-1".into())], environment, Some(file), Path::new("target"));
        let message = message.expect_err("bad values").to_string();
        for part in [
            "CANDLEPOWER_MODELS='llama-mini,nonsense': unknown model 'nonsense'",
            "CANDLEPOWER_DEVICE='tpu': unknown device 'tpu'",
            "CANDLEPOWER_SKEW='-1'",
            "CANDLEPOWER_THREADS='0'",
            "did you mean CANDLEPOWER_MODELS?",
            "dtype in candlepower.toml='f8': unknown dtype 'f8'",
            "--seed='-1': expected a whole number",
            "tier in candlepower.toml='everything': unknown tier 'everything': expected one of quick, standard, full",
            "out in candlepower.toml",
            "engine in candlepower.toml='tund': unknown name 'tund': did you mean tuned?",
            "unknown setting colour in candlepower.toml: the settings are models, device,",
        ] {
            assert!(message.contains(part), "{part} is missing from:\n{message}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_reported_in_one_line() {
        let message = resolve(&[], Some("seed = 1\nmodels = [")).expect_err("not toml").to_string();
        assert!(message.starts_with("candlepower.toml line 2: "), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}
