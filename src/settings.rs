//! The settings: the keys of `candlepower.toml`, of the variables that start with `CANDLEPOWER_`, and of the command's
//! flags. Flags override the environment, which overrides the file. No other module reads these variables.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, de::Error as _};

pub(crate) use crate::kernels::inference::Instructions;
use crate::{
    config::{Layers, config, from_0_to_10, serde_as_text, unknown},
    device::{DeviceChoice, Precision, TRAINING_DTYPES, parse_dtype},
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    model::{Engine, MINI, ModelSpec, Parallel, psann::Base},
    peer::{self, Launch, PeerName},
    record::{GUARDED, Setting},
    scenario::{SWEEP_PRESETS, Tier, TrainingGrid},
    text,
};

/// The settings file, in the working directory.
pub(crate) const FILE: &str = "candlepower.toml";

/// The start of the name of every environment variable that sets a key.
pub const PREFIX: &str = "CANDLEPOWER_";

/// The environment variable of a setting with this key.
pub(crate) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

/// Names the run that records are appended to. It starts with [`PREFIX`], but is not a setting.
pub(crate) const RUN: &str = "CANDLEPOWER_RUN";

/// Keeps a disturbed run from becoming a baseline. It starts with [`PREFIX`], but is not a setting: it is meant for one run.
pub const STRICT: &str = "CANDLEPOWER_STRICT";

/// Names the folder of the golden tests' files. It starts with [`PREFIX`], but is not a setting.
const FIXTURES: &str = "CANDLEPOWER_FIXTURES";

/// The keys that choose the sizes of the grids of mixtures, of trainings and of the sweep.
pub(crate) const GRID: [&str; 10] =
    ["experts", "top_k", "hidden_size", "bases", "seq", "batch", "batch_tokens", "precision", "steps", "preset"];

config! {
    /// The settings.
    #[derive(Clone, Debug)]
    #[non_exhaustive]
    pub struct Settings {
        /// Models to measure, separated by commas
        #[serde(deserialize_with = "models")]
        pub models: Vec<ModelSpec> = MINI.map(ModelSpec::Mini).to_vec(),

        /// Device to run on: cpu, cuda:N or metal
        pub device: DeviceChoice = DeviceChoice::Cpu,

        /// Dtypes of the models, separated by commas: f32, f16, bf16, or on a CPU with engine tuned q8_0, q4k or f8e4m3
        /// (quantised weights), each also with _kv8 at its end (keys and values in FP8)
        #[default = "f32 on cpu, bf16 elsewhere"]
        #[serde(deserialize_with = "dtypes")]
        pub dtype: Vec<Precision> = vec![DeviceChoice::Cpu.default_dtype()],

        /// Implementations that run the models, separated by commas: stock (candle-transformers as published),
        /// stock-context (the same in the thread pool that Candle keeps), tuned (the decoder of this crate) and peer:NAME (another
        /// system)
        #[default = "stock,tuned on embedded models, stock on others, tuned with quantised weights or an FP8 cache"]
        #[serde(deserialize_with = "engines")]
        pub engine: Vec<EngineChoice> = Engine::DEFAULT.map(EngineChoice::Own).to_vec(),

        /// Number of scenarios: quick, standard or full
        #[default = "quick"]
        pub tier: Option<Tier> = None,

        /// Seed of weights, prompts and sampling
        pub seed: u64 = 42,

        /// Imbalance of expert use in moe_top_k, from 0 to 10: 0 is uniform, 1 follows Zipf's law
        #[default = "0"]
        #[serde(deserialize_with = "from_0_to_10")]
        pub skew: f64 = 0.0,

        /// Numbers of experts in moe_top_k, separated by commas
        #[default = "those of the tier"]
        #[serde(deserialize_with = "sizes")]
        pub experts: Vec<usize> = Vec::new(),

        /// Numbers of experts that compute a token in moe_top_k, separated by commas
        #[default = "those of the tier"]
        #[serde(deserialize_with = "sizes")]
        pub top_k: Vec<usize> = Vec::new(),

        /// Hidden sizes of the decoders in moe_top_k, separated by commas
        #[alias = "hidden"]
        #[default = "512"]
        #[serde(deserialize_with = "sizes")]
        pub hidden_size: Vec<usize> = Vec::new(),

        /// Bases of the groups psann_throughput, separated by commas
        #[default = "all"]
        #[serde(deserialize_with = "bases")]
        pub bases: Vec<Base> = Vec::new(),

        /// Lengths of sequences in the groups of trainings, separated by commas
        #[default = "those of the tier"]
        #[serde(deserialize_with = "sizes")]
        pub seq: Vec<usize> = Vec::new(),

        /// Numbers of sequences in a batch, separated by commas, in the groups of generation and of trainings
        #[default = "1 in generation, those of the tier in trainings"]
        #[serde(deserialize_with = "sizes")]
        pub batch: Vec<usize> = Vec::new(),

        /// Numbers of tokens in a batch in the groups of trainings, separated by commas; instead of batch
        #[default = "those of the tier"]
        #[serde(deserialize_with = "sizes")]
        pub batch_tokens: Vec<usize> = Vec::new(),

        /// Dtypes of the groups training_sweep, separated by commas: f32 or bf16
        #[default = "dtype if it is set, otherwise f32,bf16"]
        #[serde(deserialize_with = "precisions")]
        pub precision: Vec<&'static str> = Vec::new(),

        /// Measured steps of each benchmark of time in the groups of trainings, rounded up to a multiple of the samples
        #[default = "as many as fit half a second, at least one for each sample"]
        #[serde(deserialize_with = "size")]
        pub steps: Option<usize> = None,
        /// Preset of the groups architecture_sweep: smoke, baseline-cpu, hybrid-gpu, omni-gpu or growth
        #[serde(deserialize_with = "preset")]
        pub preset: String = SWEEP_PRESETS[0].to_owned(),

        /// Measure benchmarks that are compared in turns: true or false
        pub pairing: bool = true,

        /// Folder of the records
        #[default = "target/candlepower"]
        #[serde(deserialize_with = "folder")]
        pub out: PathBuf = Path::new("target").join("candlepower"),

        /// Number of CPU threads; several, separated by commas, for the group threads_scaling: other benchmarks have the most
        #[default = "one per physical core"]
        #[serde(deserialize_with = "threads")]
        pub threads: Vec<usize> = Vec::new(),

        /// Ranks among which the layers of engine tuned are sharded on a CPU; several, separated by commas, for the group
        /// tensor_parallel: other benchmarks are then not sharded
        #[default = "1; 1,2,4 in the group"]
        #[serde(deserialize_with = "ranks")]
        pub tensor_parallel: Vec<usize> = Vec::new(),

        /// Instruction set of the CPU kernels of engine tuned and of trainings: portable, avx2, avx512 or avx512bf16
        #[default = "the fastest that the machine has"]
        pub instructions: Option<Instructions> = None,
    }
    and {
        /// The run that records are appended to; `None` starts a new one.
        pub run: Option<String>,
        /// True if a disturbed run must not become a baseline.
        pub strict: bool,
        /// How each peer is started that the engines name or the file has an entry for.
        pub peers: BTreeMap<PeerName, Launch>,
        /// For each key, its value as written and the name of its source.
        pub sources: BTreeMap<String, Setting>,
    }
}

/// An implementation that runs models: an engine of this crate, or a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// An engine of this crate.
    Own(Engine),
    /// Another system, in a process of its own.
    Peer(PeerName),
}

impl EngineChoice {
    /// The name in ids and records.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Own(engine) => engine.to_string(),
            Self::Peer(name) => name.to_string(),
        }
    }

    /// The engine, if it is of this crate.
    pub fn own(&self) -> Option<Engine> {
        match self {
            Self::Own(engine) => Some(*engine),
            Self::Peer(_) => None,
        }
    }

    /// The name of a peer.
    pub(crate) fn peer(&self) -> Option<&PeerName> {
        match self {
            Self::Own(_) => None,
            Self::Peer(name) => Some(name),
        }
    }
}

/// The start of the name of a peer in settings.
const PEER: &str = "peer:";

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(engine) => engine.fmt(f),
            Self::Peer(name) => write!(f, "{PEER}{name}"),
        }
    }
}

impl FromStr for EngineChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix(PEER) {
            return Ok(Self::Peer(name.parse()?));
        }
        if let Some(engine) = Engine::ALL.into_iter().find(|engine| engine.to_string() == text) {
            return Ok(Self::Own(engine));
        }
        let engines = Engine::ALL.map(Self::Own).into_iter().map(|engine| engine.to_string());
        let names: Vec<String> = engines.chain(peer::adapters().map(|name| format!("{PEER}{name}"))).collect();
        bail!(unknown("name", text, &names.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

serde_as_text!(EngineChoice);

/// The tables `[peers.<name>]` of the settings file, and its other keys.
struct Entries {
    /// The text without the tables.
    rest: String,
    peers: BTreeMap<PeerName, Launch>,
    /// A line for each wrong entry.
    problems: Vec<String>,
}

impl Entries {
    fn of(text: &str) -> Self {
        let mut entries = Self { rest: text.to_owned(), peers: BTreeMap::new(), problems: Vec::new() };
        // The layers report a text that is not TOML.
        let Ok(mut all) = toml::from_str::<toml::Table>(text) else { return entries };
        let Some(tables) = all.remove("peers") else { return entries };
        entries.rest = all.to_string();
        let toml::Value::Table(tables) = tables else {
            entries.problems.push(format!("peers in {FILE}: tables are expected, such as [peers.transformers]"));
            return entries;
        };
        for (given, table) in tables {
            let launch = || -> Result<(PeerName, Launch)> {
                let name: PeerName = given.parse()?;
                let launch = Launch::new(&name, Some(&table.try_into()?))?;
                Ok((name, launch))
            };
            match launch() {
                Ok((name, launch)) => drop(entries.peers.insert(name, launch)),
                Err(error) => {
                    let reason = format!("{error:#}").trim().replace('\n', " ");
                    entries.problems.push(format!("peers.{} in {FILE}: {reason}", text::line(&given)));
                }
            }
        }
        entries
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
        let (mut run, mut strict) = (None, false);
        let mut variables = Vec::new();
        for (variable, value) in environment {
            match variable.strip_prefix(PREFIX) {
                Some(_) if variable == RUN => run = Some(value),
                Some(_) if variable == STRICT => strict = !["", "0", "false"].contains(&value.as_str()),
                Some(key) if ![FIXTURES, GUARDED].contains(&variable.as_str()) => {
                    variables.push((key.to_owned(), value))
                }
                _ => {}
            }
        }
        let mut layers = Layers::new(&Self::default());
        let Entries { rest, mut peers, mut problems } = Entries::of(file.unwrap_or_default());
        if file.is_some() {
            layers = layers.toml(FILE, &rest);
        }
        let layers = layers.environment(PREFIX, variables).flags(flags);
        let mut sources: BTreeMap<_, _> =
            layers.sources().map(|(key, value, from)| (key.name.to_owned(), Setting { value, from })).collect();
        let resolved = layers.resolve();
        // A peer whose entry is wrong would be reported twice.
        let named = resolved.iter().filter(|_| problems.is_empty()).flat_map(|settings| &settings.engine);
        for name in named.filter_map(EngineChoice::peer).collect::<Vec<_>>() {
            match Launch::new(name, None) {
                _ if peers.contains_key(name) => {}
                Ok(launch) => drop(peers.insert(name.clone(), launch)),
                Err(error) => problems.push(format!("engine peer:{name}: {error:#}")),
            }
        }
        let mut settings = match resolved {
            Ok(settings) if problems.is_empty() => settings,
            Ok(_) => bail!(problems.join("\n")),
            Err(error) => bail!([vec![format!("{error:#}")], problems].concat().join("\n")),
        };
        if !settings.batch.is_empty() && !settings.batch_tokens.is_empty() {
            bail!("batch and batch_tokens are both set: a batch has either so many sequences or so many tokens");
        }
        if let (Some(experts), Some(top_k)) = (settings.experts.iter().max(), settings.top_k.iter().min())
            && top_k > experts
        {
            bail!("top_k={top_k} exceeds every number of experts, at most {experts}");
        }
        // These defaults depend on other settings or on the machine. Records hold the value that is used.
        let is_default = |key: &str| sources.get(key).is_some_and(|setting: &Setting| setting.from == "default");
        if is_default("dtype") {
            settings.dtype = vec![settings.device.default_dtype()];
        }
        if is_default("out") {
            settings.out = target.join("candlepower");
        }
        for (key, value) in [
            ("dtype", settings.first_dtype().to_string()),
            ("out", settings.out.display().to_string()),
            ("threads", settings.threads_in_force().to_string()),
        ] {
            if let Some(setting) = sources.get_mut(key).filter(|setting| setting.from == "default") {
                setting.value = value;
            }
        }
        Ok(Self { run, strict, peers, sources, ..settings })
    }

    /// The dtype of what runs in one: the first.
    pub fn first_dtype(&self) -> Precision {
        self.dtype.first().copied().unwrap_or(self.device.default_dtype())
    }

    /// The engines for a model, each in every dtype, without those that lack the dtype. If none has it, they remain, and running
    /// them says why.
    pub fn variants_for(&self, model: &ModelSpec) -> Vec<(EngineChoice, Precision)> {
        that_run(self.all_variants(model))
    }

    /// The engines in the dtypes that [`Self::variants_for`] leaves out for one of the models.
    pub(crate) fn left_out(&self) -> Vec<(EngineChoice, Precision)> {
        let of_model = |model| {
            let run = self.variants_for(model);
            self.all_variants(model).into_iter().filter(move |variant| !run.contains(variant))
        };
        unique(self.models.iter().flat_map(of_model).collect())
    }

    /// The engines for a model, each in every dtype: as set, or by default all for the embedded models, `stock` for the others, and
    /// `tuned` for quantised weights and for a cache in FP8. A GGUF file has dtypes of its own.
    fn all_variants(&self, model: &ModelSpec) -> Vec<(EngineChoice, Precision)> {
        let is_default = self.has_default_engines();
        self.in_dtypes(model, |dtype| match is_default {
            false => self.engine.clone(),
            true if dtype.is_only_tuned() || model.is_gguf() => vec![EngineChoice::Own(Engine::Tuned)],
            true if model.is_mini() => self.engine.clone(),
            true => vec![EngineChoice::Own(Engine::Stock)],
        })
    }

    /// The dtypes of a model: as set. A GGUF file has dtypes of its own, and is run once.
    pub(crate) fn dtypes_for(&self, model: &ModelSpec) -> Vec<Precision> {
        if model.is_gguf() { vec![self.first_dtype()] } else { self.dtype.clone() }
    }

    fn in_dtypes(
        &self,
        model: &ModelSpec,
        engines: impl Fn(Precision) -> Vec<EngineChoice>,
    ) -> Vec<(EngineChoice, Precision)> {
        self.dtypes_for(model)
            .into_iter()
            .flat_map(|dtype| engines(dtype).into_iter().map(move |engine| (engine, dtype)))
            .collect()
    }

    /// The engines for loads on the scheduler of the server, each in every dtype: as set, without peers, or by default `tuned`,
    /// which holds several sequences.
    pub(crate) fn serving_variants(&self, model: &ModelSpec) -> Vec<(EngineChoice, Precision)> {
        match self.has_default_engines() {
            true => that_run(self.in_dtypes(model, |_| vec![EngineChoice::Own(Engine::Tuned)])),
            false => self.variants_for(model).into_iter().filter(|(engine, _)| engine.own().is_some()).collect(),
        }
    }

    /// The peers among the engines.
    pub(crate) fn peer_names(&self) -> Vec<PeerName> {
        self.engine.iter().filter_map(EngineChoice::peer).cloned().collect()
    }

    pub(crate) fn has_default_engines(&self) -> bool {
        self.sources.get("engine").is_none_or(|setting| setting.from == "default")
    }

    /// The sizes of the groups of trainings that the settings name.
    pub(crate) fn training_grid(&self) -> TrainingGrid {
        let is_given = |key: &str| self.sources.get(key).is_some_and(|setting| setting.from != "default");
        let dtypes = match self.precision.as_slice() {
            // Quantised weights are not trained: those runs have the dtype of their activations.
            [] if is_given("dtype") => unique(self.dtype.iter().map(|dtype| dtype.dtype().as_str()).collect()),
            chosen => chosen.to_vec(),
        };
        TrainingGrid {
            bases: self.bases.iter().map(|base| base.name()).collect(),
            tokens_per_row: self.seq.clone(),
            rows: self.batch.clone(),
            batch_tokens: self.batch_tokens.clone(),
            dtypes,
        }
    }

    /// Numbers of sequences in a batch of generations.
    pub(crate) fn generation_batches(&self) -> Vec<usize> {
        if self.batch.is_empty() { vec![1] } else { self.batch.clone() }
    }

    /// The number of threads of the process, if it is set: the largest of several.
    pub(crate) fn most_threads(&self) -> Option<usize> {
        self.threads.iter().copied().max()
    }

    /// The number of threads of the process: as set, or one per physical core.
    pub(crate) fn threads_in_force(&self) -> usize {
        self.most_threads().unwrap_or_else(candle_core::utils::get_num_threads)
    }

    /// The numbers of threads of `threads_scaling`, sorted: those that are set, or without several, 1, 2, 4 and so on up to
    /// those of the process.
    pub(crate) fn thread_counts(&self) -> Vec<usize> {
        let mut counts = self.threads.clone();
        if counts.len() < 2 {
            counts = up_to(self.threads_in_force());
        }
        counts.sort_unstable();
        counts
    }

    /// How a model on an engine is divided: engine `tuned` among the ranks that are set, if that is one number.
    pub(crate) fn parallel(&self, engine: Engine) -> Parallel {
        match (engine, self.tensor_parallel.as_slice()) {
            (Engine::Tuned, &[ranks]) => Parallel { ranks, ..Parallel::default() },
            _ => Parallel::default(),
        }
    }

    /// The name of an engine in ids, with its number of ranks if there are several.
    pub(crate) fn engine_id(&self, engine: &EngineChoice) -> String {
        match engine.own().map(|own| self.parallel(own).ranks) {
            Some(ranks @ 2..) => format!("{}-tp{ranks}", engine.id()),
            _ => engine.id(),
        }
    }

    /// The numbers of ranks of the group `tensor_parallel`, sorted.
    pub(crate) fn rank_counts(&self) -> Vec<usize> {
        let mut counts = if self.tensor_parallel.len() < 2 { vec![1, 2, 4] } else { self.tensor_parallel.clone() };
        counts.sort_unstable();
        counts
    }

    /// The tier of generations and perplexities: as set, or by default quick, so that a default run of all groups takes at most a
    /// quarter of an hour.
    pub(crate) fn generation_tier(&self) -> Tier {
        self.tier.unwrap_or(Tier::Quick)
    }
}

/// Those of the engines that have their dtype, or all if none has it.
fn that_run(mut variants: Vec<(EngineChoice, Precision)>) -> Vec<(EngineChoice, Precision)> {
    if variants.iter().any(has_dtype) {
        variants.retain(has_dtype);
    }
    variants
}

/// Returns whether an engine has a dtype: only `tuned` has quantised weights and a cache in FP8. A peer tells itself.
fn has_dtype((engine, dtype): &(EngineChoice, Precision)) -> bool {
    !dtype.is_only_tuned() || engine.own().is_none_or(|engine| engine == Engine::Tuned)
}

/// The folder of Criterion's baselines and reports.
pub(crate) fn criterion_home() -> PathBuf {
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

fn engines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EngineChoice>, D::Error> {
    distinct(deserializer, "at least one engine is needed")
}

fn dtypes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Precision>, D::Error> {
    distinct(deserializer, "at least one dtype is needed")
}

/// Reads at least one item. Repetitions are removed.
fn distinct<'de, T, D>(deserializer: D, none: &str) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de> + PartialEq,
    D: Deserializer<'de>,
{
    let items = unique(Vec::deserialize(deserializer)?);
    if items.is_empty() { Err(D::Error::custom(none)) } else { Ok(items) }
}

/// Removes repetitions.
fn unique<T: PartialEq>(given: Vec<T>) -> Vec<T> {
    let mut items = Vec::new();
    for item in given {
        if !items.contains(&item) {
            items.push(item);
        }
    }
    items
}

fn bases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Base>, D::Error> {
    Ok(unique(Vec::deserialize(deserializer)?))
}

/// Reads sizes of a benchmark. Their demand is compared with the memory before it is allocated.
fn sizes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    let sizes = unique(Vec::<usize>::deserialize(deserializer)?);
    match sizes.iter().all(|size| (1..=MOST).contains(size)) {
        true => Ok(sizes),
        false => Err(D::Error::custom(format!("expected whole numbers from 1 to {MOST}"))),
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match Option::deserialize(deserializer) {
        Ok(None) => Ok(None),
        Ok(Some(size)) if (1..=MOST).contains(&size) => Ok(Some(size)),
        _ => Err(D::Error::custom(format!("expected a whole number from 1 to {MOST}"))),
    }
}

/// The largest size of a grid.
const MOST: usize = 1 << 24;

fn precisions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'static str>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let named = |name: &String| parse_dtype(name, &TRAINING_DTYPES).map(|dtype| dtype.as_str());
    names.iter().map(named).collect::<Result<_>>().map(unique).map_err(D::Error::custom)
}

fn preset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match SWEEP_PRESETS.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(D::Error::custom(unknown("preset", &name, &SWEEP_PRESETS))),
    }
}

fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let folder = PathBuf::deserialize(deserializer)?;
    match folder.as_os_str().is_empty() {
        true => Err(D::Error::custom("a folder is needed")),
        false => Ok(folder),
    }
}

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    let most = most_threads();
    match Vec::<usize>::deserialize(deserializer) {
        Ok(threads) if threads.iter().all(|threads| (1..=most).contains(threads)) => Ok(unique(threads)),
        _ => Err(D::Error::custom(format!("expected a whole number from 1 to {most}, or several"))),
    }
}

fn ranks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    match Vec::<usize>::deserialize(deserializer) {
        Ok(ranks) if ranks.iter().all(|ranks| (1..=MOST_RANKS).contains(ranks)) => Ok(unique(ranks)),
        _ => Err(D::Error::custom(format!("expected a whole number from 1 to {MOST_RANKS}, or several"))),
    }
}

/// The largest number of ranks, each of which is a thread.
const MOST_RANKS: usize = 64;

/// 1, 2, 4 and so on up to `most`, which is the last.
pub(crate) fn up_to(most: usize) -> Vec<usize> {
    let powers = (0..).map(|power| 1 << power).take_while(|count| *count < most);
    powers.chain([most]).collect()
}

/// The largest number of threads: eight for each core, and at least 64. More threads than cores wait for one another, and
/// with thousands a matrix product takes minutes.
pub(crate) fn most_threads() -> usize {
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
    fn by_default_the_quick_scenarios_run_on_the_mini_models_on_the_cpu() {
        let settings = resolve(&[("PATH", "/bin")], None).expect("defaults");
        assert_eq!(settings.models, MINI.map(ModelSpec::Mini));
        assert_eq!((settings.device, settings.dtype.as_slice()), (DeviceChoice::Cpu, &[Precision::F32][..]));
        assert_eq!((settings.seed, settings.most_threads()), (42, None));
        assert_eq!(settings.out, Path::new("target/candlepower"));
        assert_eq!(settings.generation_tier(), Tier::Quick);
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
    fn every_setting_refuses_a_value_in_one_line() {
        const FREE: [&str; 2] = ["models", "out"];
        for key in <Settings as crate::config::Config>::KEYS {
            for value in ["nan", "-1", "1e300", "18446744073709551616", "q4k,x", "{}", "[1", "a\nb\r\nc", "\u{1b}[2J"] {
                let file = format!("{} = {}", key.name, serde_json::json!(value));
                for given in [resolve(&[(&variable(key.name), value)], None), resolve(&[], Some(&file))] {
                    match given {
                        Ok(_) => assert!(FREE.contains(&key.name) || value != "{}", "{} takes '{value}'", key.name),
                        Err(error) => {
                            let error = format!("{error:#}");
                            assert!(!error.contains(char::is_control), "{}='{value}': {error}", key.name);
                        }
                    }
                }
            }
        }
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
        let [stock, tuned] = Engine::DEFAULT.map(EngineChoice::Own);
        let in_f32 = |engine: &EngineChoice| (engine.clone(), Precision::F32);
        assert_eq!(settings.variants_for(&mini), [in_f32(&stock), in_f32(&tuned)]);
        assert_eq!(settings.variants_for(&large), [in_f32(&stock)]);
        let settings = resolve(&[("CANDLEPOWER_ENGINE", "tuned, stock,tuned")], None).expect("engines");
        assert_eq!(settings.variants_for(&large), [in_f32(&tuned), in_f32(&stock)]);
        assert_eq!(settings.variants_for(&mini), settings.variants_for(&large));
        assert!(resolve(&[("CANDLEPOWER_ENGINE", "")], None).is_err());

        for precision in Precision::ALL.into_iter().flat_map(|precision| [precision, precision.with_fp8_cache()]) {
            let settings = resolve(&[("CANDLEPOWER_DTYPE", precision.to_string().as_str())], None).expect("a dtype");
            assert_eq!(settings.dtype, [precision]);
        }
        let settings = resolve(&[("CANDLEPOWER_DTYPE", "q4k")], None).expect("quantised weights");
        let quantised = vec![(tuned.clone(), Precision::Q4K)];
        assert_eq!((settings.variants_for(&mini), settings.variants_for(&large)), (quantised.clone(), quantised));
        let settings = resolve(&[("CANDLEPOWER_DTYPE", "bf16_kv8")], None).expect("a cache in FP8");
        assert_eq!(settings.variants_for(&mini), [(tuned.clone(), Precision::BF16.with_fp8_cache())]);
        let file = ModelSpec::Path("model.gguf".into());
        assert_eq!(
            resolve(&[], Some("dtype = ['f32', 'bf16']")).expect("dtypes").variants_for(&file),
            [in_f32(&tuned)]
        );
    }

    #[test]
    fn dtypes_stand_side_by_side_without_the_engines_that_lack_them() {
        let (mini, large) = (ModelSpec::Mini("llama-mini"), ModelSpec::Synthetic("qwen3-1.7b"));
        let [stock, tuned] = Engine::DEFAULT.map(EngineChoice::Own);
        let settings = resolve(&[("CANDLEPOWER_DTYPE", "bf16, q8_0,bf16")], None).expect("dtypes");
        assert_eq!(
            (settings.first_dtype(), settings.sources["dtype"].value.as_str()),
            (Precision::BF16, "bf16,q8_0,bf16")
        );
        let of = |engine: &EngineChoice, dtype| (engine.clone(), dtype);
        let [bf16, q8_0] = [Precision::BF16, Precision::Q8_0];
        assert_eq!(settings.variants_for(&mini), [of(&stock, bf16), of(&tuned, bf16), of(&tuned, q8_0)]);
        assert_eq!(settings.variants_for(&large), [of(&stock, bf16), of(&tuned, q8_0)]);
        assert!(settings.left_out().is_empty(), "the default engines follow the dtype");
        let engines = [("CANDLEPOWER_ENGINE", "stock,tuned"), ("CANDLEPOWER_DTYPE", "q8_0,bf16")];
        let settings = resolve(&engines, None).expect("dtypes");
        assert_eq!(settings.variants_for(&large), [of(&tuned, q8_0), of(&stock, bf16), of(&tuned, bf16)]);
        assert_eq!(settings.left_out(), [of(&stock, q8_0)]);
        // Without another engine that has the dtype, the refusal of this one is a failure.
        let settings = resolve(&[("CANDLEPOWER_ENGINE", "stock")], Some("dtype = ['q8_0']")).expect("a dtype");
        assert_eq!((settings.variants_for(&large), settings.left_out()), (vec![of(&stock, q8_0)], Vec::new()));
        assert!(resolve(&[("CANDLEPOWER_DTYPE", ",")], None).is_err());
        assert_eq!(settings.training_grid().dtypes, ["f32"]);
    }

    #[test]
    fn sizes_of_grids_are_whole_numbers() {
        let file = "hidden = [256, 512]\nsteps = 200\nbatch = 4";
        let settings = resolve(&[("CANDLEPOWER_EXPERTS", "64")], Some(file)).expect("good settings");
        assert_eq!((settings.hidden_size.as_slice(), settings.steps), ([256, 512].as_slice(), Some(200)));
        assert_eq!((settings.generation_batches(), settings.training_grid().rows), (vec![4], vec![4]));
        let settings = resolve(&[], None).expect("defaults");
        assert_eq!((settings.generation_batches(), settings.steps), (vec![1], None));
        assert!(settings.training_grid().rows.is_empty());
        for (key, value) in [("STEPS", "0"), ("STEPS", "many"), ("BATCH", "1,0"), ("HIDDEN_SIZE", "-1")] {
            let variable = format!("CANDLEPOWER_{key}");
            let message = resolve(&[(&variable, value)], None).expect_err(value).to_string();
            assert!(message.starts_with(&format!("{variable}='{value}'")), "{message}");
        }
    }

    #[test]
    fn several_numbers_of_threads_are_measured_and_the_process_has_the_most() {
        let settings = resolve(&[("CANDLEPOWER_THREADS", "4,1,2,4")], None).expect("a list");
        assert_eq!((settings.thread_counts(), settings.most_threads()), (vec![1, 2, 4], Some(4)));
        assert_eq!(settings.sources["threads"].value, "4,1,2,4");
        let settings = resolve(&[], Some("threads = 6")).expect("one");
        assert_eq!((settings.thread_counts(), settings.threads_in_force()), (vec![1, 2, 4, 6], 6));
        assert_eq!(resolve(&[], Some("threads = [1, 3]")).expect("a list").thread_counts(), [1, 3]);
        assert_eq!((up_to(1), up_to(8)), (vec![1], vec![1, 2, 4, 8]));
        for threads in ["0", "1,0", "two"] {
            let error = resolve(&[("CANDLEPOWER_THREADS", threads)], None).expect_err(threads).to_string();
            assert!(error.contains("expected a whole number from 1 to") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn one_number_of_ranks_shards_and_several_are_for_the_group() {
        let ranks = |text: &str| resolve(&[("CANDLEPOWER_TENSOR_PARALLEL", text)], None);
        let settings = ranks("2").expect("one");
        let [stock, tuned] = Engine::DEFAULT.map(EngineChoice::Own);
        assert_eq!((settings.engine_id(&stock).as_str(), settings.engine_id(&tuned).as_str()), ("stock", "tuned-tp2"));
        assert_eq!((settings.parallel(Engine::Tuned).ranks, settings.parallel(Engine::Stock).ranks), (2, 1));
        assert_eq!(settings.rank_counts(), [1, 2, 4]);
        let settings = ranks("8,2").expect("several");
        assert_eq!((settings.engine_id(&tuned).as_str(), settings.rank_counts()), ("tuned", vec![2, 8]));
        assert_eq!(ranks("1").expect("one").engine_id(&tuned), "tuned");
        for text in ["0", "65", "two"] {
            let error = ranks(text).expect_err(text).to_string();
            assert!(error.contains("expected a whole number from 1 to 64"), "{error}");
        }
    }

    #[test]
    fn a_peer_is_an_adapter_or_has_an_entry() {
        let file = "seed = 7\n[peers.mine]\ncommand = 'mine --fast'\n[peers.transformers]\ntimeout_s = 5";
        let environment = [("CANDLEPOWER_ENGINE", "tuned,peer:mine,peer:transformers-compiled")];
        let settings = resolve(&environment, Some(file)).expect("good settings");
        let names: Vec<&str> = settings.peers.keys().map(PeerName::as_str).collect();
        assert_eq!((names, settings.seed), (vec!["mine", "transformers", "transformers-compiled"], 7));
        assert_eq!(settings.engine[1].to_string(), "peer:mine");
        assert_eq!((settings.engine[1].id(), settings.engine[0].id()), ("mine".into(), "tuned".into()));
        let timeouts: Vec<u64> = settings.peers.values().map(|launch| launch.timeout.as_secs()).collect();
        assert_eq!(timeouts, [1800, 5, 1800]);
        for (engine, file, parts) in [
            ("peer:other", "", &["engine peer:other: unknown peer 'other': the known ones are transformers"] as &[_]),
            ("peer:stock", "", &["CANDLEPOWER_ENGINE='peer:stock': a peer can't be named 'stock'"]),
            ("peer:../x", "", &["CANDLEPOWER_ENGINE='peer:../x': '../x' can't be the name"]),
            (
                "stock",
                "seed = -1\n[peers.x]",
                &["seed in candlepower.toml='-1'", "peers.x in candlepower.toml: unknown"],
            ),
            ("peer:mine", "[peers.mine]\ncommand = 7", &["peers.mine in candlepower.toml: expected a text or a list"]),
            ("stock", "peers = 3", &["peers in candlepower.toml: tables are expected"]),
            ("stock", "[peers.'a/b']\ncommand = 'x'", &["peers.a/b in candlepower.toml: "]),
            ("stock", "[peers.mine]\nwait = 1", &["peers.mine in candlepower.toml: unknown field `wait`"]),
        ] {
            let message = resolve(&[("CANDLEPOWER_ENGINE", engine)], Some(file)).expect_err(engine).to_string();
            assert_eq!(message.lines().count(), parts.len(), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} is missing from:\n{message}");
        }
    }

    #[test]
    fn the_dtype_follows_the_device_unless_given() {
        let cuda = [("CANDLEPOWER_DEVICE", "cuda:1")];
        assert_eq!(resolve(&cuda, None).expect("cuda").dtype, [Precision::BF16]);
        assert_eq!(resolve(&cuda, Some("dtype = 'f16'")).expect("cuda").dtype, [Precision::F16]);
    }

    #[test]
    fn every_bad_value_is_reported_at_once_with_its_source() {
        let environment = [
            ("CANDLEPOWER_MODELS", "llama-mini,nonsense"),
            ("CANDLEPOWER_DEVICE", "tpu"),
            ("CANDLEPOWER_SKEW", "-1"),
            ("CANDLEPOWER_THREADS", "4096000"),
            ("CANDLEPOWER_MODEL", "llama-mini"),
            ("CANDLEPOWER_PRESET", "baseline"),
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
            "CANDLEPOWER_PRESET='baseline': unknown preset 'baseline'",
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
