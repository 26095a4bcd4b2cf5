//! The settings: the keys of `candlepower.toml`, of the variables that start with `CANDLEPOWER_`, and of the command's
//! flags. Flags override the environment, which overrides the file. No other module reads these variables.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, de::Error as _};

pub use crate::kernels::inference::Instructions;
use crate::{
    config::{Layers, config, from_0_to_10},
    device::{DeviceChoice, Precision},
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

        /// Dtype of the models: f32, f16, bf16, or on a CPU with engine tuned q8_0 or q4k (quantised weights)
        #[default = "f32 on cpu, bf16 elsewhere"]
        pub dtype: Precision = DeviceChoice::Cpu.default_dtype(),

        /// Implementations that run the models, separated by commas: stock (candle-transformers as published) and tuned
        /// (the decoder of this crate)
        #[default = "stock,tuned on embedded models, stock on others, tuned with quantised weights"]
        #[serde(deserialize_with = "engines")]
        pub engine: Vec<Engine> = Engine::ALL.to_vec(),

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

        /// Instruction set of the CPU kernels of engine tuned: portable, avx2, avx512 or avx512bf16
        #[default = "the fastest that the machine has"]
        pub instructions: Option<Instructions> = None,
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
        let (environment, unreadable) = variables(env::vars_os());
        let settings = Self::resolve(flags, environment.into_iter(), file.as_deref(), &cargo_target());
        match settings {
            Ok(settings) if unreadable.is_empty() => Ok(settings),
            Ok(_) => bail!(unreadable.join("\n")),
            Err(error) => bail!([vec![format!("{error:#}")], unreadable].concat().join("\n")),
        }
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
            ("dtype", settings.dtype.to_string()),
            ("out", settings.out.display().to_string()),
            ("threads", settings.threads.unwrap_or_else(candle_core::utils::get_num_threads).to_string()),
        ] {
            if let Some(setting) = sources.get_mut(key).filter(|setting| setting.from == "default") {
                setting.value = value;
            }
        }
        Ok(Self { run, even_if_disturbed, sources, ..settings })
    }

    /// The engines for a model: as set, or by default all for the embedded models and `stock` for the others. Only `tuned` runs
    /// quantised weights.
    pub fn engines_for(&self, model: &ModelSpec) -> Vec<Engine> {
        let is_default = self.sources.get("engine").is_none_or(|setting| setting.from == "default");
        match is_default {
            false => self.engine.clone(),
            true if self.dtype.blocks().is_some() || model.is_gguf() => vec![Engine::Tuned],
            true if model.is_mini() => self.engine.clone(),
            true => vec![Engine::Stock],
        }
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

/// The variables of this crate, and a line for each whose value is not UTF-8. Replacing such bytes would name another folder
/// or model.
fn variables(all: impl Iterator<Item = (OsString, OsString)>) -> (Vec<(String, String)>, Vec<String>) {
    let mut variables = Vec::new();
    let mut unreadable = Vec::new();
    for (key, value) in all {
        let key = key.to_string_lossy().into_owned();
        match value.into_string() {
            _ if !key.starts_with(PREFIX) => {}
            Ok(value) => variables.push((key, value)),
            Err(value) => unreadable.push(format!("{key}='{}': it is not UTF-8", value.to_string_lossy())),
        }
    }
    (variables, unreadable)
}

/// Cargo's target folder for a checkout, absolute.
#[cfg(feature = "cli")]
pub(crate) fn cargo_target_of(checkout: &Path) -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => std::path::absolute(&target).unwrap_or_else(|_| target.into()),
        None => checkout.join("target"),
    }
}

fn models<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ModelSpec>, D::Error> {
    distinct(deserializer, "at least one model is needed")
}

fn engines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Engine>, D::Error> {
    distinct(deserializer, "at least one engine is needed")
}

/// Reads at least one item. Repetitions are removed.
fn distinct<'de, T, D>(deserializer: D, none: &str) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de> + PartialEq,
    D: Deserializer<'de>,
{
    let mut items = Vec::new();
    for item in Vec::deserialize(deserializer)? {
        if !items.contains(&item) {
            items.push(item);
        }
    }
    if items.is_empty() { Err(D::Error::custom(none)) } else { Ok(items) }
}

fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let folder = PathBuf::deserialize(deserializer)?;
    match folder.as_os_str().is_empty() {
        true => Err(D::Error::custom("a folder is needed")),
        false => Ok(folder),
    }
}

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let most = most_threads();
    match Option::deserialize(deserializer) {
        Ok(None) => Ok(None),
        Ok(Some(threads)) if (1..=most).contains(&threads) => Ok(Some(threads)),
        _ => Err(D::Error::custom(format!("expected a whole number from 1 to {most}"))),
    }
}

/// The largest number of threads: eight for each core, and at least 64. More threads than cores wait for one another, and
/// with thousands a matrix product takes minutes.
pub fn most_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (8 * cores).max(64)
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
        assert_eq!((settings.device, settings.dtype), (DeviceChoice::Cpu, Precision::F32));
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
    fn embedded_models_run_on_every_engine_unless_one_is_given() {
        let (mini, large) = (ModelSpec::Mini("llama-mini"), ModelSpec::Synthetic("qwen3-1.7b"));
        let settings = resolve(&[], None).expect("defaults");
        assert_eq!(settings.engines_for(&mini), Engine::ALL);
        assert_eq!(settings.engines_for(&large), [Engine::Stock]);
        let settings = resolve(&[("CANDLEPOWER_ENGINE", "tuned, stock,tuned")], None).expect("engines");
        assert_eq!(settings.engines_for(&large), [Engine::Tuned, Engine::Stock]);
        assert_eq!(settings.engines_for(&mini), settings.engines_for(&large));
        assert!(resolve(&[("CANDLEPOWER_ENGINE", "")], None).is_err());

        for precision in Precision::ALL {
            let settings = resolve(&[("CANDLEPOWER_DTYPE", precision.to_string().as_str())], None).expect("a dtype");
            assert_eq!(settings.dtype, precision);
        }
        let settings = resolve(&[("CANDLEPOWER_DTYPE", "q4k")], None).expect("quantised weights");
        assert_eq!(
            (settings.engines_for(&mini), settings.engines_for(&large)),
            (vec![Engine::Tuned], vec![Engine::Tuned])
        );
        let file = ModelSpec::Path("model.gguf".into());
        assert_eq!(resolve(&[], None).expect("defaults").engines_for(&file), [Engine::Tuned]);
    }

    #[test]
    fn the_dtype_follows_the_device_unless_given() {
        let cuda = [("CANDLEPOWER_DEVICE", "cuda:1")];
        assert_eq!(resolve(&cuda, None).expect("cuda").dtype, Precision::BF16);
        assert_eq!(resolve(&cuda, Some("dtype = 'f16'")).expect("cuda").dtype, Precision::F16);
    }

    #[test]
    fn every_bad_value_is_reported_at_once_with_its_source() {
        let environment = [
            ("CANDLEPOWER_MODELS", "llama-mini,nonsense"),
            ("CANDLEPOWER_DEVICE", "tpu"),
            ("CANDLEPOWER_SKEW", "-1"),
            ("CANDLEPOWER_THREADS", "4096000"),
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
            "CANDLEPOWER_THREADS='4096000': expected a whole number from 1 to ",
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
    #[cfg(unix)]
    fn values_that_are_not_utf8_are_refused_by_their_key() {
        use std::os::unix::ffi::OsStringExt;
        let pair = |key: &str, value: &[u8]| (OsString::from(key), OsString::from_vec(value.to_vec()));
        let all = [pair("CANDLEPOWER_OUT", b"a\xff"), pair("CANDLEPOWER_SEED", b"7"), pair("OTHER", b"\xff")];
        let (variables, unreadable) = variables(all.into_iter());
        assert_eq!(variables, [("CANDLEPOWER_SEED".to_owned(), "7".to_owned())]);
        assert_eq!(unreadable, ["CANDLEPOWER_OUT='a\u{fffd}': it is not UTF-8"]);
    }

    #[test]
    fn a_file_that_is_not_toml_is_reported_in_one_line() {
        let message = resolve(&[], Some("seed = 1\nmodels = [")).expect_err("not toml").to_string();
        assert!(message.starts_with("candlepower.toml line 2: "), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}
