//! The models that are measured, and the trait that they implement.
//!
//! - `causal_lm` is the trait. `spec` parses the name of a model.
//! - `family` is the table of model families, `keys` that of the keys of `config.json`, which `config` reads, and `cost` derives bytes
//!   and FLOPs from it.
//! - `hub`, `checkpoint` and `gguf` find files, `stored` finds tensors in them, and `chat` the template of conversations among them. `shapes` and `synthetic`
//!   make models with seeded weights. `tensors` is what decoders are built from. `external` describes a model to another
//!   process.
//! - `stock` (candle-transformers) and `decoder` (engine `tuned`) run models. `parallel` says how many threads and ranks a model
//!   has.
//! - `psann` and `series` are models that are trained, with the variables of `trainable`.
//!
//! Nothing here reads a clock.

mod causal_lm;
mod chat;
pub mod checkpoint;
pub(crate) mod config;
mod cost;
pub(crate) mod decoder;
mod external;
pub(crate) mod family;
mod gguf;
#[cfg(test)]
pub(crate) mod golden;
#[cfg(feature = "hub")]
pub mod hub;
mod keys;
pub mod limits;
mod matrix;
mod parallel;
pub mod psann;
#[cfg(test)]
mod real;
pub mod series;
mod shapes;
mod spec;
pub(crate) mod stock;
mod stored;
pub(crate) mod synthetic;
mod tensors;
pub(crate) mod trainable;

pub use causal_lm::{CacheBytes, CausalLm, Footprint, LogitRows, Part};
pub use chat::{ChatTemplate, chat_template};
pub use decoder::ExpertLoad;
pub use external::{External, FRAMEWORK_BYTES};
pub use keys::config_keys_in_markdown;
pub use matrix::families_in_markdown;
pub use parallel::{Parallel, apart};
pub use shapes::{MINI, SYNTHETIC, shape, shapes_in_markdown};
pub use spec::ModelSpec;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use checkpoint::Checkpoint;
use config::{ExpertLayout, ModelConfig};
use psann::{Decoder, PsannConfig, PsannLm};
use stock::{Stock, quantised::Quantised};
use tensors::Tensors;

use crate::{
    device::{DeviceChoice, Precision},
    error::listed,
    measure::memory,
    output,
    scenario::{self, ExpertDecoder, FeedForward},
};

/// Loads a model. `seed` applies to models with seeded weights.
///
/// # Errors
/// If the files are wrong, the engine refuses the model, or memory is missing ([`memory::DoesNotFit`]).
pub fn load(
    spec: &ModelSpec,
    engine: Engine,
    precision: Precision,
    device: DeviceChoice,
    seed: u64,
) -> Result<Subject> {
    load_parallel(spec, engine, precision, device, seed, Parallel::default())
}

/// As [`load`], with threads of the model's own, or sharded over ranks. Only engine `tuned` on a CPU can be.
///
/// # Errors
/// As [`load`], and if the engine or the device does not divide its work so.
pub fn load_parallel(
    spec: &ModelSpec,
    engine: Engine,
    precision: Precision,
    device: DeviceChoice,
    seed: u64,
    parallel: Parallel,
) -> Result<Subject> {
    let device = device.open()?;
    ensure!(
        parallel == Parallel::default() || (engine == Engine::Tuned && device.is_cpu()),
        "engine {engine} on this device has neither ranks nor threads of its own; engine {} on a CPU has",
        Engine::Tuned
    );
    match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) | ModelSpec::Seeded(_) => {
            let config = seeded_config(spec).context("it has seeded weights")?.with_context(|| spec.to_string())?;
            admit(&config, engine, precision, &device)?;
            let eos_token_ids = config.eos_token_ids.clone();
            let weights = synthetic::weights(&config, seed, precision.dtype(), &device);
            let model = (engine.row().build)(config, Tensors::new(weights, precision), ExpertLayout::Single, parallel)?;
            Ok(Subject {
                model,
                source: spec.to_string(),
                tokenizer: None,
                without_tokenizer: None,
                eos_token_ids,
                formats: BTreeMap::new(),
            })
        }
        ModelSpec::Hub { .. } | ModelSpec::Path(_) if spec.is_gguf() => {
            let (file, source) = gguf_file(spec)?;
            let name = source.clone();
            open_gguf(&file, source, engine, precision, &device, parallel).with_context(|| name)
        }
        ModelSpec::Hub { .. } | ModelSpec::Path(_) => open_parallel(found(spec)?, engine, precision, &device, parallel),
    }
}

/// The configuration of a model with seeded weights; `None` for a model with files of its own.
pub fn seeded_config(spec: &ModelSpec) -> Option<Result<ModelConfig>> {
    Some(shapes::seeded(spec)?.and_then(|json| ModelConfig::from_json(&json)))
}

/// The files of a model. Downloads those of a model of the Hub that are not in its cache.
fn found(spec: &ModelSpec) -> Result<Checkpoint> {
    match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) | ModelSpec::Seeded(_) => {
            bail!("{spec} has no files: its weights are seeded")
        }
        #[cfg(feature = "hub")]
        ModelSpec::Hub { repo, revision, .. } => hub::Hub::from_env().fetch(repo, revision),
        #[cfg(not(feature = "hub"))]
        ModelSpec::Hub { .. } => bail!("{}", without_hub(spec)),
        ModelSpec::Path(folder) => Checkpoint::open(folder, spec.to_string()),
    }
}

/// The GGUF file of a model, and its source. Downloads a file of the Hub that is not in its cache.
fn gguf_file(spec: &ModelSpec) -> Result<(PathBuf, String)> {
    match spec {
        ModelSpec::Path(file) => Ok((file.clone(), spec.to_string())),
        #[cfg(feature = "hub")]
        ModelSpec::Hub { repo, revision, gguf: Some(wanted) } => {
            hub::Hub::from_env().fetch_gguf(repo, revision, wanted)
        }
        #[cfg(not(feature = "hub"))]
        ModelSpec::Hub { .. } => bail!("{}", without_hub(spec)),
        _ => bail!("{spec} is not a GGUF file"),
    }
}

#[cfg(not(feature = "hub"))]
fn without_hub(spec: &ModelSpec) -> String {
    format!("{spec} can't be downloaded: this program was built without the feature `hub` of candlepower")
}

/// The name of the form of a model's weights and cache in ids: that of the settings, or the file type of a GGUF file and the form of
/// the cache in the settings. A file that cannot be read has the name of the settings; loading it says why. A file of the Hub has
/// the quantisation by which it is named.
pub fn dtype_of(spec: &ModelSpec, precision: Precision) -> String {
    let of_file = match spec {
        ModelSpec::Path(file) if spec.is_gguf() => gguf::file_type(file).ok(),
        ModelSpec::Hub { gguf: Some(name), .. } if name.ends_with(".gguf") => gguf::quantisation_of_name(name),
        // A dash divides the parts of an id.
        ModelSpec::Hub { gguf: Some(name), .. } => Some(name.to_lowercase().replace('-', "_")),
        _ => None,
    };
    of_file.map_or_else(|| precision.to_string(), |name| name + precision.cache_suffix())
}

/// The files of the weights of a model, and a specification that finds them without asking the Hub.
///
/// # Errors
/// If the model has no files, or they cannot be found or downloaded.
pub fn files(spec: &ModelSpec) -> Result<(ModelSpec, Vec<PathBuf>)> {
    if spec.is_gguf() {
        let (file, _) = gguf_file(spec)?;
        let files = gguf::files(&file).with_context(|| spec.to_string())?;
        return Ok((ModelSpec::Path(file), files));
    }
    let weights = found(spec)?.weights;
    let folder = weights.first().and_then(|file| file.parent()).with_context(|| format!("{spec} has no files"))?;
    Ok((ModelSpec::Path(folder.to_owned()), weights))
}

/// The tokenizer of a model; `None` if its files have none.
///
/// # Errors
/// If the model has no files, or the tokenizer cannot be read.
pub fn tokenizer(spec: &ModelSpec) -> Result<Option<Tokenizer>> {
    if spec.is_gguf() {
        let (file, source) = gguf_file(spec)?;
        let model = gguf::open(&file).with_context(|| source.clone())?;
        return tokenizer_of_gguf(&file, &model, |note| report_note(&source, note))
            .map(Some)
            .with_context(|| source.clone());
    }
    let files = found(spec)?;
    let vocab_size = match PsannConfig::from_json(&files.config)? {
        Some(config) => config.vocab_size,
        None => ModelConfig::from_json(&files.config)?.vocab_size,
    };
    files.tokenizer(vocab_size)
}

/// Checks the files of a checkpoint and builds its model.
///
/// # Errors
/// As [`load`].
pub fn open(checkpoint: Checkpoint, engine: Engine, precision: Precision, device: &Device) -> Result<Subject> {
    open_parallel(checkpoint, engine, precision, device, Parallel::default())
}

fn open_parallel(
    checkpoint: Checkpoint,
    engine: Engine,
    precision: Precision,
    device: &Device,
    parallel: Parallel,
) -> Result<Subject> {
    if let Some(config) = PsannConfig::from_json(&checkpoint.config).with_context(|| checkpoint.source.clone())? {
        admit_psann(&config, engine, precision, device, parallel).with_context(|| checkpoint.source.clone())?;
        return open_psann(checkpoint, &config, precision);
    }
    let config = checkpoint.model_config()?;
    if !config.tie_word_embeddings && checkpoint.config["tie_word_embeddings"] == true {
        let source = &checkpoint.source;
        output::report(format_args!(
            "note: {source}: the head differs from the embedding, so it is not tied as config.json says"
        ));
    }
    let unknown = keys::unknown(&checkpoint.config);
    if !unknown.is_empty() {
        let source = &checkpoint.source;
        output::report(format_args!(
            "note: {source}: config.json has unknown keys, which are ignored: {}",
            listed(&unknown)
        ));
    }
    admit(&config, engine, precision, device).with_context(|| checkpoint.source.clone())?;
    let layout = checkpoint.expert_layout()?;
    checkpoint.check(&config.tensors(layout))?;
    let tokenizer = checkpoint.tokenizer(config.vocab_size)?;
    let eos_token_ids = config.eos_token_ids.clone();
    let tensors = Tensors::of_checkpoint(&checkpoint, precision, device)?;
    let model = (engine.row().build)(config, tensors, layout, parallel)?;
    let without_tokenizer = without_tokenizer_file(&tokenizer);
    Ok(Subject {
        model,
        source: checkpoint.source,
        tokenizer,
        without_tokenizer,
        eos_token_ids,
        formats: BTreeMap::new(),
    })
}

/// Refuses PSANN models that see later tokens or do not fit in memory, and settings that no PSANN model takes.
fn admit_psann(
    config: &PsannConfig,
    engine: Engine,
    precision: Precision,
    device: &Device,
    parallel: Parallel,
) -> Result<()> {
    ensure!(engine == Engine::Tuned, "engine {engine} runs no PSANN models; engine {} runs them", Engine::Tuned);
    ensure!(device.is_cpu(), "PSANN models run on a CPU only");
    let cache = precision.cache_suffix();
    ensure!(cache.is_empty(), "PSANN models have no cache: leave out {cache} in dtype={precision}");
    ensure!(
        parallel == Parallel::default(),
        "PSANN models have neither ranks nor threads of their own: leave out tensor_parallel"
    );
    ensure!(config.is_causal(), "this {} sees later tokens, so it is no language model", config.base);
    let bytes = precision.bytes(Decoder::cost(config, 1)?.parameters);
    Ok(memory::ensure_fits(&format!("weights of {:.1} GB", bytes as f64 / 1e9), bytes, device)?)
}

/// Checks the files of a PSANN model, such as those of `candlepower train`, and builds it.
fn open_psann(checkpoint: Checkpoint, config: &PsannConfig, precision: Precision) -> Result<Subject> {
    let shapes = trainable::shapes(|weights| Decoder::new(config, DType::F32, weights))?;
    let needed: Vec<_> = shapes.into_iter().map(|(name, shape)| (name, shape.into_dims())).collect();
    checkpoint.check(&needed)?;
    let tokenizer = checkpoint.tokenizer(config.vocab_size)?;
    let weights = checkpoint.weights(DType::F32, &Device::Cpu)?;
    let model = PsannLm::packed(config, precision, weights).with_context(|| checkpoint.source.clone())?;
    let (model, source) = (Box::new(model), checkpoint.source);
    let without_tokenizer = without_tokenizer_file(&tokenizer);
    Ok(Subject { model, source, tokenizer, without_tokenizer, eos_token_ids: Vec::new(), formats: BTreeMap::new() })
}

/// Why a checkpoint without a tokenizer has none.
fn without_tokenizer_file(tokenizer: &Option<Tokenizer>) -> Option<String> {
    tokenizer.is_none().then(|| format!("its folder has no {}", checkpoint::TOKENIZER))
}

/// Checks a GGUF file and builds its model. Its weights have the formats of the file, and the precision is that of its cache. A
/// tokenizer that is not supported leaves token ids as prompts.
fn open_gguf(
    file: &Path,
    source: String,
    engine: Engine,
    precision: Precision,
    device: &Device,
    parallel: Parallel,
) -> Result<Subject> {
    ensure!(device.is_cpu(), "GGUF files run on a CPU only");
    let opened = gguf::open(file)?;
    if let Some(note) = &opened.note {
        report_note(&source, note);
    }
    let (tokenizer, without_tokenizer) = text_of_gguf(file, &opened, |note| report_note(&source, note))?;
    let eos_token_ids = opened.config.eos_token_ids.clone();
    let formats = opened.tensors.formats();
    let model = (engine.row().build_gguf)(file, opened, precision, parallel)?;
    Ok(Subject { model, source, tokenizer, without_tokenizer, eos_token_ids, formats })
}

/// The tokenizer of a GGUF file, or why it has none. A wrong `tokenizer.json` is an error: the user put it there.
fn text_of_gguf(
    file: &Path,
    model: &gguf::Model,
    note: impl FnOnce(&str),
) -> Result<(Option<Tokenizer>, Option<String>)> {
    match tokenizer_of_gguf(file, model, note) {
        Ok(tokenizer) => Ok((Some(tokenizer), None)),
        Err(error) if tokenizer_beside(file).is_some() => Err(error),
        Err(error) => {
            let put = format!("a {} beside the file would be used", checkpoint::TOKENIZER);
            Ok((None, Some(format!("{error:#}; {put}"))))
        }
    }
}

/// The tokenizer of a GGUF file: a `tokenizer.json` beside it, which is noted, or that of its metadata.
fn tokenizer_of_gguf(file: &Path, model: &gguf::Model, note: impl FnOnce(&str)) -> Result<Tokenizer> {
    match tokenizer_beside(file) {
        Some(beside) => {
            note(&format!("the tokenizer is {}, which is beside the file", beside.display()));
            let settings = Some(file.with_file_name(checkpoint::TOKENIZER_CONFIG)).filter(|file| file.exists());
            checkpoint::tokenizer(&beside, settings.as_deref(), model.config.vocab_size)
        }
        None => model.tokenizer(),
    }
}

fn tokenizer_beside(file: &Path) -> Option<PathBuf> {
    Some(file.with_file_name(checkpoint::TOKENIZER)).filter(|beside| beside.exists())
}

/// The tokenizer of a GGUF file or of a `tokenizer.json` alone, for a program that has no model, and its content as JSON.
///
/// # Errors
/// If the file cannot be read, or has no tokenizer that is supported.
pub fn tokenizer_in_file(file: &Path) -> Result<(Tokenizer, String)> {
    if !ModelSpec::Path(file.into()).is_gguf() {
        return checkpoint::read_tokenizer(file);
    }
    let tokenizer = tokenizer_of_gguf(file, &gguf::open(file)?, |_| ())?;
    let content = tokenizer.to_string(false).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    Ok((tokenizer, content))
}

fn report_note(source: &str, note: &str) {
    output::report(format_args!("note: {source}: {note}"));
}

/// A decoder of the comparison `moe_top_k`, with seeded weights. `skew` sets how unevenly a mixture uses its experts where its
/// feed-forward does not.
///
/// # Errors
/// If the numbers of experts contradict each other, or memory is missing ([`memory::DoesNotFit`]).
pub fn expert_grid(
    decoder: ExpertDecoder,
    skew: f64,
    precision: Precision,
    device: &Device,
    seed: u64,
) -> Result<Subject> {
    let config = decoder::shape::config(decoder)?;
    admit(&config, Engine::Tuned, precision, device)?;
    let weights = Tensors::new(synthetic::weights(&config, seed, precision.dtype(), device), precision);
    let planted = match decoder.feed_forward {
        FeedForward::Mixture { skew: own, .. } => Some((own.unwrap_or(skew), seed)),
        FeedForward::Dense { .. } => None,
    };
    let model = decoder::load(config, weights, ExpertLayout::Stacked, planted, Parallel::default())?;
    let source = format!("synthetic:{}", decoder.name(skew));
    Ok(Subject {
        model,
        source,
        tokenizer: None,
        without_tokenizer: None,
        eos_token_ids: Vec::new(),
        formats: BTreeMap::new(),
    })
}

/// Memory that a model needs: its weights, and the cache of the longest scenario. `None` for a checkpoint, whose sizes are
/// known when it is opened.
pub fn needed_bytes(spec: &ModelSpec, engine: Engine, precision: Precision, device: &Device) -> Option<u64> {
    Some(demand(&seeded_config(spec)?.ok()?, engine, precision, device).1)
}

/// The longest sequence of a model. `None` for a model of the Hub, which is known when it is loaded, and for a checkpoint that
/// cannot be read.
pub fn max_position_embeddings(spec: &ModelSpec) -> Option<usize> {
    let config = match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) | ModelSpec::Seeded(_) => seeded_config(spec)?,
        ModelSpec::Path(file) if spec.is_gguf() => gguf::open(file).map(|model| model.config),
        ModelSpec::Path(_) => found(spec).and_then(|files| ModelConfig::from_json(&files.config)),
        ModelSpec::Hub { .. } => return None,
    };
    Some(config.ok()?.max_position_embeddings)
}

/// [`needed_bytes`] for a decoder of the comparison `moe_top_k`.
pub fn expert_grid_bytes(decoder: ExpertDecoder, precision: Precision, device: &Device) -> Option<u64> {
    Some(demand(&decoder::shape::config(decoder).ok()?, Engine::Tuned, precision, device).1)
}

/// Bytes of the weights, and of the weights and the cache of the longest scenario.
fn demand(config: &ModelConfig, engine: Engine, precision: Precision, device: &Device) -> (u64, u64) {
    let weight_bytes = precision.bytes(config.parameters());
    let all = weight_bytes + extra_bytes(config, engine, precision.cache_dtype_of(precision.dtype()), device);
    // The head is the largest tensor and is loaded first. Before it is quantised, it is in memory as f32.
    let head = (config.vocab_size * config.hidden_size) as u64;
    let while_loading = if precision.is_quantised() { Precision::F32.bytes(head) + precision.bytes(head) } else { 0 };
    (weight_bytes, all.max(while_loading))
}

/// Bytes that a model needs in addition to its weights for the longest scenario, with a cache in `cache_dtype`.
fn extra_bytes(config: &ModelConfig, engine: Engine, cache_dtype: DType, device: &Device) -> u64 {
    (engine.row().extra_bytes)(config, cache_dtype, device, scenario::longest_generation())
}

/// Refuses, before anything is loaded, models that the engine does not run and models that do not fit in memory.
fn admit(config: &ModelConfig, engine: Engine, precision: Precision, device: &Device) -> Result<()> {
    if precision.is_only_tuned() {
        ensure!(engine == Engine::Tuned, "engine {engine} has no dtype {precision}; engine {} has", Engine::Tuned);
        ensure!(device.is_cpu(), "dtype {precision} is for CPUs only: choose f32, f16 or bf16 on this device");
    }
    admit_bytes(config, engine, device, demand(config, engine, precision, device))
}

/// The same for weights, and weights with their cache, of these sizes.
fn admit_bytes(
    config: &ModelConfig,
    engine: Engine,
    device: &Device,
    (weight_bytes, needed_bytes): (u64, u64),
) -> Result<()> {
    let row = engine.row();
    if let Some(reason) = (row.refusal)(config, device) {
        match Engine::DEFAULT.into_iter().find(|other| (other.row().refusal)(config, device).is_none()) {
            Some(other) => bail!("engine {engine} refuses this model: {reason}; engine {other} runs it"),
            None => bail!("engine {engine} refuses this model: {reason}"),
        }
    }
    let work = format!("weights of {:.1} GB and the cache", weight_bytes as f64 / 1e9);
    Ok(memory::ensure_fits(&work, needed_bytes, device)?)
}

/// A model that is ready to run.
pub struct Subject {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// The full specification, with the commit that a Hub revision resolved to.
    pub source: String,
    /// The tokenizer; `None` for models without one, whose prompts are token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Why a model with trained weights has no tokenizer. `None` if it has one, or its weights are seeded.
    pub without_tokenizer: Option<String>,
    /// Ids that end a sequence. Scenarios ignore them.
    pub eos_token_ids: Vec<u32>,
    /// Bytes of the tensors in a GGUF file, by the name of their format. Empty for other models.
    pub formats: BTreeMap<String, u64>,
}

impl Subject {
    /// The tokenizer, for `text`.
    ///
    /// # Errors
    /// One line that says that there is none, and why.
    pub fn tokenizer_for(&self, text: &str) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().with_context(|| {
            let why = self.without_tokenizer.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{} has no tokenizer for {text}{why}: give token ids", self.source)
        })
    }
}

/// An implementation that runs models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// candle-transformers as published.
    Stock,
    /// The same, each pass in the thread pool that Candle keeps for one device (`Device::with_context`).
    #[serde(rename = "stock-context")]
    StockContext,
    /// Our own decoder, with its own kernels on CPUs. It also runs mixtures of experts.
    Tuned,
}

/// Builds a model of weights that have been checked.
type Build = fn(ModelConfig, Tensors, ExpertLayout, Parallel) -> Result<Box<dyn CausalLm>>;

/// Builds the model of a GGUF file that has been checked, on a CPU.
type BuildGguf = fn(&Path, gguf::Model, Precision, Parallel) -> Result<Box<dyn CausalLm>>;

/// The properties of an engine.
struct EngineRow {
    name: &'static str,
    /// Why the engine does not run a configuration on a device.
    refusal: fn(&ModelConfig, &Device) -> Option<String>,
    /// Bytes that a model with a cache in this dtype needs in addition to its weights, for a sequence of this many tokens.
    extra_bytes: fn(&ModelConfig, DType, &Device, usize) -> u64,
    build: Build,
    build_gguf: BuildGguf,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Stock, Self::StockContext, Self::Tuned];

    /// Those that run where none is named.
    pub const DEFAULT: [Self; 2] = [Self::Stock, Self::Tuned];

    /// The table of engines.
    fn row(self) -> EngineRow {
        match self {
            Self::Stock => EngineRow {
                name: "stock",
                refusal: |config, _| stock::refusal(config),
                extra_bytes: |config, dtype, _, tokens| stock::extra_bytes(config, dtype, tokens),
                build: |config, tensors, layout, _| Ok(Box::new(stock(config, tensors, layout)?)),
                build_gguf: |path, file, precision, _| Ok(Box::new(quantised(path, &file, precision)?)),
            },
            Self::StockContext => EngineRow {
                name: "stock-context",
                build: |config, tensors, layout, _| Ok(Box::new(stock(config, tensors, layout)?.in_context())),
                build_gguf: |path, file, precision, _| Ok(Box::new(quantised(path, &file, precision)?.in_context())),
                ..Self::Stock.row()
            },
            Self::Tuned => EngineRow {
                name: "tuned",
                refusal: decoder::refusal,
                extra_bytes: |config, dtype, device, tokens| {
                    decoder::cache_bytes(config, dtype, tokens, device).allocated
                },
                build: |config, tensors, layout, parallel| decoder::load(config, tensors, layout, None, parallel),
                build_gguf: |_, file, precision, parallel| {
                    let gguf::Model { config, weights, tensors, bytes, .. } = file;
                    let tensors = Tensors::of_gguf(weights, tensors, precision);
                    let cache = extra_bytes(&config, Self::Tuned, tensors.cache_dtype, &Device::Cpu);
                    admit_bytes(&config, Self::Tuned, &Device::Cpu, (bytes, bytes + cache))?;
                    decoder::load(config, tensors, ExpertLayout::Single, None, parallel)
                },
            },
        }
    }
}

/// Builds the model of a checkpoint on engine `stock`.
fn stock(config: ModelConfig, tensors: Tensors, layout: ExpertLayout) -> Result<Stock> {
    ensure!(
        config.experts.is_none() || layout == ExpertLayout::Single,
        "engine stock refuses this model: one tensor holds all experts of a layer; engine tuned runs it"
    );
    Stock::new(config, tensors.weights)
}

/// Builds the model of a GGUF file on engine `stock`.
fn quantised(path: &Path, file: &gguf::Model, precision: Precision) -> Result<Quantised> {
    let cache = precision.cache_suffix();
    ensure!(cache.is_empty(), "engine stock has no cache in FP8: leave out {cache} in dtype={precision}");
    ensure!(
        file.tensors.parts() == 1,
        "engine stock reads a model in one file, and this one has {}: engine tuned reads them",
        file.tensors.parts()
    );
    Quantised::open(path, file)
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}
