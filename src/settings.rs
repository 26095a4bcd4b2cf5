//! The only reader of the environment and of `candlepower.toml`. Both hold the same keys, written `models` in the file
//! and `CANDLEPOWER_MODELS` in the environment, which wins; the command's `--models` wins over both. Everything is
//! validated once, here, into typed values, and every bad value is named at once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::DType;

use crate::{
    device::DeviceChoice,
    error::nearest,
    model::{Engine, MINI, ModelSpec},
    record::Setting,
    scenario::Tier,
};

/// The settings file, looked for in the folder that the program is started in.
pub const FILE: &str = "candlepower.toml";

const PREFIX: &str = "CANDLEPOWER_";

/// Where a value of the command line is from.
const FLAG: &str = "command line";

/// Variables with the prefix that are not settings: the folder of the golden tests, and the run that records join.
const NOT_SETTINGS: [&str; 2] = ["FIXTURES", "RUN"];

/// A key, what it sets, and what it is when nobody says.
pub struct Key {
    pub name: &'static str,
    pub about: &'static str,
    pub default: &'static str,
}

/// Every setting.
#[rustfmt::skip]
pub const KEYS: [Key; 9] = [
    Key { name: "models",  about: "models to measure, separated by commas",              default: "llama-mini,qwen3-mini,gemma3-mini" },
    Key { name: "device",  about: "cpu, cuda:N or metal",                                default: "cpu" },
    Key { name: "dtype",   about: "f32, f16 or bf16",                                    default: "f32 on cpu, bf16 elsewhere" },
    Key { name: "engine",  about: "implementation that runs the models: stock or tuned",          default: "stock" },
    Key { name: "tier",    about: "how many scenarios: quick, standard or full",         default: "full on mini models, quick on others" },
    Key { name: "seed",    about: "seed of weights, prompts and sampling",               default: "42" },
    Key { name: "skew",    about: "how unevenly moe_top_k uses its experts: 0 even, 1 Zipf's law", default: "0" },
    Key { name: "out",     about: "folder that records go into",                         default: "target/candlepower" },
    Key { name: "threads", about: "processor threads, for Candle and for what is seeded", default: "one a physical core" },
];

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    pub models: Vec<ModelSpec>,
    pub device: DeviceChoice,
    pub dtype: DType,
    pub engine: Engine,
    /// `None` leaves it to the model: [`Settings::tier_for`].
    pub tier: Option<Tier>,
    pub seed: u64,
    /// How unevenly the mixtures of `moe_top_k` use their experts.
    pub skew: f64,
    pub out: PathBuf,
    pub threads: Option<usize>,
    /// Key → value as written and where it was written.
    pub sources: BTreeMap<String, Setting>,
}

/// What holds when nobody says anything.
impl Default for Settings {
    fn default() -> Self {
        Self {
            models: MINI.map(ModelSpec::Mini).to_vec(),
            device: DeviceChoice::Cpu,
            dtype: DeviceChoice::Cpu.default_dtype(),
            engine: Engine::Stock,
            tier: None,
            seed: 42,
            skew: 0.0,
            out: Path::new("target").join("candlepower"),
            threads: None,
            sources: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Reads the file, if there is one, the environment, and `flags`: keys and values of a command line.
    ///
    /// # Errors
    /// Lists every unknown key and every value that can't be used, a line each.
    pub fn load(flags: &[(&str, String)]) -> Result<Self> {
        let file = match fs::read_to_string(FILE) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context(format!("{FILE} could not be read")),
        };
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        let environment = std::env::vars_os().map(|(key, value)| (lossy(key), lossy(value)));
        Self::resolve(flags, environment, file.as_deref(), &target)
    }

    /// The same from given values, for tests: the environment, the text of the file, Cargo's target folder.
    fn resolve(
        flags: &[(&str, String)],
        environment: impl Iterator<Item = (String, String)>,
        file: Option<&str>,
        target: &Path,
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let mut sources: BTreeMap<String, Setting> = KEYS
            .iter()
            .map(|key| (key.name.into(), Setting { value: key.default.into(), from: "default".into() }))
            .collect();
        if let Some(text) = file {
            from_file(text, &mut sources, &mut problems);
        }
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let name = name.to_lowercase();
            if let Some(setting) = sources.get_mut(&name) {
                *setting = Setting { value, from: "environment".into() };
            } else if !NOT_SETTINGS.contains(&name.to_uppercase().as_str()) {
                problems.push(unknown(&variable, &name, |near| format!("{PREFIX}{}", near.to_uppercase())));
            }
        }

        for (key, value) in flags {
            sources.insert((*key).into(), Setting { value: value.clone(), from: FLAG.into() });
        }
        let defaults = Self::default();
        let given = |key: &str| sources.get(key).filter(|setting| setting.from != "default");
        let mut parse = Parse { given: &given, problems };
        let device = parse.or("device", defaults.device, |text| text.parse());
        let settings = Self {
            models: parse.or("models", defaults.models, models),
            dtype: parse.or("dtype", device.default_dtype(), dtype),
            engine: parse.or("engine", defaults.engine, choice),
            tier: parse.or("tier", defaults.tier, |text| choice(text).map(Some)),
            seed: parse.or("seed", defaults.seed, |text| text.parse().context("not a whole number from 0 to 2^64 - 1")),
            skew: parse.or("skew", defaults.skew, |text| match text.parse() {
                Ok(skew @ 0.0..=10.0) => Ok(skew),
                _ => bail!("not a number from 0 to 10"),
            }),
            out: parse.or("out", target.join("candlepower"), |text| match text {
                "" => bail!("a folder is needed"),
                _ => Ok(text.into()),
            }),
            threads: parse.or("threads", defaults.threads, |text| match text.parse() {
                Ok(threads @ 1..=4096) => Ok(Some(threads)),
                _ => bail!("not a whole number from 1 to 4096"),
            }),
            device,
            sources: BTreeMap::new(),
        };
        let problems = parse.problems;
        if !problems.is_empty() {
            bail!("settings: {}", problems.join("\nsettings: "));
        }
        // A default is said as what it came to.
        for (key, value) in [
            ("dtype", settings.dtype.as_str().to_owned()),
            ("out", settings.out.display().to_string()),
            ("threads", settings.threads.unwrap_or_else(candle_core::utils::get_num_threads).to_string()),
        ] {
            if let Some(setting) = sources.get_mut(key).filter(|setting| setting.from == "default") {
                setting.value = value;
            }
        }
        Ok(Self { sources, ..settings })
    }

    /// The tier for a model: as set, or everything on the small embedded models and the two quick ones on the others.
    pub fn tier_for(&self, model: &ModelSpec) -> Tier {
        self.tier.unwrap_or(if model.is_mini() { Tier::Full } else { Tier::Quick })
    }
}

struct Parse<'a, G> {
    given: &'a G,
    problems: Vec<String>,
}

impl<'a, G: Fn(&str) -> Option<&'a Setting>> Parse<'a, G> {
    /// The value of a key, or `default` where it is not given or can't be used; the latter is noted as a problem.
    fn or<T>(&mut self, key: &str, default: T, parse: impl Fn(&str) -> Result<T>) -> T {
        let Some(setting) = (self.given)(key) else { return default };
        parse(setting.value.trim()).unwrap_or_else(|error| {
            let name = match setting.from.as_str() {
                "environment" => format!("{PREFIX}{}", key.to_uppercase()),
                FLAG => format!("--{key}"),
                file => format!("{key} in {file}"),
            };
            self.problems.push(format!("{name}='{}': {error:#}", setting.value));
            default
        })
    }
}

fn from_file(text: &str, sources: &mut BTreeMap<String, Setting>, problems: &mut Vec<String>) {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let error: toml::de::Error = error;
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            problems.push(format!("{FILE} line {line}: {}", error.message().replace('\n', " ")));
            return;
        }
    };
    for (key, value) in table {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Array(items) if items.iter().all(toml::Value::is_str) => {
                items.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => {
                problems.push(format!("{key} in {FILE}: a {} can't be used here", other.type_str()));
                continue;
            }
        };
        match sources.get_mut(&key) {
            Some(setting) => *setting = Setting { value, from: FILE.into() },
            None => problems.push(unknown(&format!("{key} in {FILE}"), &key, str::to_owned)),
        }
    }
}

fn unknown(name: &str, key: &str, spell: impl Fn(&str) -> String) -> String {
    let names = KEYS.map(|key| key.name);
    match nearest(key, &names) {
        Some(near) => format!("unknown setting {name}: did you mean {}?", spell(near)),
        None => format!("unknown setting {name}: the settings are {}", names.join(", ")),
    }
}

fn lossy(text: std::ffi::OsString) -> String {
    text.to_string_lossy().into_owned()
}

/// Model specifications separated by commas.
fn models(text: &str) -> Result<Vec<ModelSpec>> {
    let mut models: Vec<ModelSpec> = Vec::new();
    for model in text.split(',').map(str::trim).filter(|model| !model.is_empty()) {
        let model = model.parse()?;
        if !models.contains(&model) {
            models.push(model);
        }
    }
    if models.is_empty() {
        bail!("at least one model is needed");
    }
    Ok(models)
}

/// A precision that models can run in.
fn dtype(text: &str) -> Result<DType> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => bail!("unknown dtype '{text}': the dtypes are f32, f16 and bf16"),
    }
}

fn choice<T: clap::ValueEnum>(text: &str) -> Result<T> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<_> =
            T::value_variants().iter().filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned())).collect();
        anyhow::anyhow!("it must be one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings> {
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Settings::resolve(&[], environment, file, Path::new("target"))
    }

    #[test]
    fn nothing_given_means_the_mini_models_in_full_on_the_processor() {
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
    fn the_environment_wins_over_the_file() {
        let file = "models = ['llama-mini', 'synthetic:qwen3-1.7b']\nseed = 7\ntier = 'standard'";
        let settings = resolve(&[("CANDLEPOWER_SEED", "8")], Some(file)).expect("good settings");
        assert_eq!(settings.models.len(), 2);
        assert_eq!((settings.seed, settings.tier), (8, Some(Tier::Standard)));
        assert_eq!(settings.sources["seed"].from, "environment");
        assert_eq!(settings.sources["tier"].from, FILE);
    }

    #[test]
    fn the_command_line_wins_over_all() {
        let environment = [("CANDLEPOWER_SEED".to_owned(), "8".to_owned())].into_iter();
        let settings = Settings::resolve(&[("seed", "9".into())], environment, Some("seed = 7"), Path::new("target"));
        let settings = settings.expect("good settings");
        assert_eq!((settings.seed, settings.sources["seed"].from.as_str()), (9, FLAG));
    }

    #[test]
    fn the_dtype_follows_the_device_unless_given() {
        let cuda = [("CANDLEPOWER_DEVICE", "cuda:1")];
        assert_eq!(resolve(&cuda, None).expect("cuda").dtype, DType::BF16);
        assert_eq!(resolve(&cuda, Some("dtype = 'f16'")).expect("cuda").dtype, DType::F16);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let environment = [
            ("CANDLEPOWER_MODELS", "llama-mini,nonsense"),
            ("CANDLEPOWER_DEVICE", "tpu"),
            ("CANDLEPOWER_SEED", "-1"),
            ("CANDLEPOWER_THREADS", "0"),
            ("CANDLEPOWER_MODEL", "llama-mini"),
        ];
        let file = "dtype = 'f8'\ntier = 'everything'\nout = ''\nengine = 3\nspeed = 'fast'\nseed = 1.5";
        let message = resolve(&environment, Some(file)).expect_err("nothing is right").to_string();
        for part in [
            "CANDLEPOWER_MODELS='llama-mini,nonsense': unknown model 'nonsense'",
            "unknown device 'tpu'",
            "CANDLEPOWER_SEED='-1'",
            "CANDLEPOWER_THREADS='0'",
            "did you mean CANDLEPOWER_MODELS?",
            "unknown dtype 'f8'",
            "tier in candlepower.toml='everything': it must be one of quick, standard, full",
            "out in candlepower.toml",
            "engine in candlepower.toml='3'",
            "speed in candlepower.toml",
            "seed in candlepower.toml: a float",
        ] {
            assert!(message.contains(part), "{part} is missing from:\n{message}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_one_line_that_says_where() {
        let message = resolve(&[], Some("seed = 1\nmodels = [")).expect_err("not toml").to_string();
        assert!(message.starts_with("settings: candlepower.toml line 2: "), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}
