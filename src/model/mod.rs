//! The models that are measured, and the trait that they implement.
//!
//! - `causal_lm` is the trait. `spec` parses the name of a model.
//! - `family` is the table of model families, `config` reads `config.json`, and `cost` derives bytes and FLOPs from it.
//! - `hub` and `checkpoint` find files. `shapes` and `synthetic` make models with seeded weights.
//! - `stock` (candle-transformers) and `decoder` (engine `tuned`) run models.
//! - `psann` and `series` are models that are trained, with the variables of `trainable`.
//!
//! Nothing here reads a clock.

mod causal_lm;
pub mod checkpoint;
pub(crate) mod config;
mod cost;
pub(crate) mod decoder;
pub(crate) mod family;
#[cfg(test)]
pub(crate) mod golden;
#[cfg(feature = "hub")]
pub mod hub;
pub(crate) mod limits;
pub mod psann;
pub mod series;
mod shapes;
mod spec;
pub(crate) mod stock;
pub(crate) mod synthetic;
pub mod trainable;

pub use causal_lm::{CacheBytes, CausalLm, Footprint, Part};
pub use decoder::ExpertLoad;
pub use shapes::{MINI, SYNTHETIC, shape};
pub use spec::ModelSpec;

use std::{fmt, path::PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use checkpoint::Checkpoint;
use config::{ExpertLayout, ModelConfig};
use stock::Stock;

use crate::{
    device::DeviceChoice,
    measure::memory,
    scenario::{self, FeedForward},
};

/// Loads a model. `seed` applies to models with seeded weights.
///
/// # Errors
/// If the files are wrong, the engine refuses the model, or memory is missing ([`memory::DoesNotFit`]).
pub fn load(spec: &ModelSpec, engine: Engine, dtype: DType, device: DeviceChoice, seed: u64) -> Result<Subject> {
    let device = device.open()?;
    match spec {
        ModelSpec::Mini(name) | ModelSpec::Synthetic(name) => {
            let config = shape(name)?;
            admit(&config, engine, dtype, &device)?;
            let eos_token_ids = config.eos_token_ids.clone();
            let weights = synthetic::weights(&config, seed, dtype, &device);
            let model = (engine.row().build)(config, weights, ExpertLayout::Single)?;
            Ok(Subject { model, source: spec.to_string(), tokenizer: None, eos_token_ids })
        }
        ModelSpec::Hub { .. } | ModelSpec::Path(_) => open(checkpoint(spec)?, engine, dtype, &device),
    }
}

/// The files of a model. Downloads those of a model of the Hub that are not in its cache.
fn checkpoint(spec: &ModelSpec) -> Result<Checkpoint> {
    match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) => bail!("{spec} has no files: its weights are seeded"),
        #[cfg(feature = "hub")]
        ModelSpec::Hub { repo, revision } => hub::Hub::from_env().fetch(repo, revision),
        #[cfg(not(feature = "hub"))]
        ModelSpec::Hub { .. } => {
            bail!("{spec} can't be downloaded: this program was built without the feature `hub` of candlepower")
        }
        ModelSpec::Path(folder) => Checkpoint::open(folder, spec.to_string()),
    }
}

/// The files of the weights of a model, and a specification that finds them without asking the Hub.
///
/// # Errors
/// If the model has no files, or they cannot be found or downloaded.
pub fn files(spec: &ModelSpec) -> Result<(ModelSpec, Vec<PathBuf>)> {
    let weights = checkpoint(spec)?.weights;
    let folder = weights.first().and_then(|file| file.parent()).with_context(|| format!("{spec} has no files"))?;
    Ok((ModelSpec::Path(folder.to_owned()), weights))
}

/// The tokenizer of a model; `None` if its files have none.
///
/// # Errors
/// If the model has no files, or the tokenizer cannot be read.
pub fn tokenizer(spec: &ModelSpec) -> Result<Option<Tokenizer>> {
    let files = checkpoint(spec)?;
    files.tokenizer(ModelConfig::from_json(&files.config)?.vocab_size)
}

/// Checks the files of a checkpoint and builds its model.
///
/// # Errors
/// As [`load`].
pub fn open(checkpoint: Checkpoint, engine: Engine, dtype: DType, device: &Device) -> Result<Subject> {
    let config = ModelConfig::from_json(&checkpoint.config).with_context(|| checkpoint.source.clone())?;
    admit(&config, engine, dtype, device).with_context(|| checkpoint.source.clone())?;
    let layout = checkpoint.expert_layout()?;
    checkpoint.check(&config.tensors(layout))?;
    let tokenizer = checkpoint.tokenizer(config.vocab_size)?;
    let eos_token_ids = config.eos_token_ids.clone();
    let model = (engine.row().build)(config, checkpoint.weights(dtype, device)?, layout)?;
    Ok(Subject { model, source: checkpoint.source, tokenizer, eos_token_ids })
}

/// A decoder of the comparison `moe_top_k`, with seeded weights. `skew` sets how unevenly a mixture uses its experts where
/// `feed_forward` does not.
///
/// # Errors
/// If the numbers of experts contradict each other, or memory is missing ([`memory::DoesNotFit`]).
pub fn expert_grid(feed_forward: FeedForward, skew: f64, dtype: DType, device: &Device, seed: u64) -> Result<Subject> {
    let config = decoder::shape::config(feed_forward)?;
    admit(&config, Engine::Tuned, dtype, device)?;
    let weights = synthetic::weights(&config, seed, dtype, device);
    let planted = match feed_forward {
        FeedForward::Mixture { skew: own, .. } => Some((own.unwrap_or(skew), seed)),
        FeedForward::Dense { .. } => None,
    };
    let model = decoder::load(config, weights, ExpertLayout::Stacked, planted)?;
    let source = format!("synthetic:{}", feed_forward.name(skew));
    Ok(Subject { model, source, tokenizer: None, eos_token_ids: Vec::new() })
}

/// Memory that a model needs: its weights, and the cache of the longest scenario. `None` for a checkpoint, whose sizes are
/// known when it is opened.
pub fn needed_bytes(spec: &ModelSpec, engine: Engine, dtype: DType, device: &Device) -> Option<u64> {
    match spec {
        ModelSpec::Mini(name) | ModelSpec::Synthetic(name) => Some(demand(&shape(name).ok()?, engine, dtype, device).1),
        ModelSpec::Hub { .. } | ModelSpec::Path(_) => None,
    }
}

/// The longest sequence of a model. `None` for a model of the Hub, which is known when it is loaded, and for a checkpoint that
/// cannot be read.
pub fn max_position_embeddings(spec: &ModelSpec) -> Option<usize> {
    let config = match spec {
        ModelSpec::Mini(name) | ModelSpec::Synthetic(name) => shape(name),
        ModelSpec::Path(_) => checkpoint(spec).and_then(|files| ModelConfig::from_json(&files.config)),
        ModelSpec::Hub { .. } => return None,
    };
    Some(config.ok()?.max_position_embeddings)
}

/// [`needed_bytes`] for a decoder of the comparison `moe_top_k`.
pub fn expert_grid_bytes(feed_forward: FeedForward, dtype: DType, device: &Device) -> Option<u64> {
    Some(demand(&decoder::shape::config(feed_forward).ok()?, Engine::Tuned, dtype, device).1)
}

/// Bytes of the weights, and of the weights and the cache of the longest scenario.
fn demand(config: &ModelConfig, engine: Engine, dtype: DType, device: &Device) -> (u64, u64) {
    let weight_bytes = config.parameters() * dtype.size_in_bytes() as u64;
    (weight_bytes, weight_bytes + (engine.row().extra_bytes)(config, dtype, device, scenario::longest_generation()))
}

/// Refuses, before anything is loaded, models that the engine does not run and models that do not fit in memory.
fn admit(config: &ModelConfig, engine: Engine, dtype: DType, device: &Device) -> Result<()> {
    let row = engine.row();
    if let Some(reason) = (row.refusal)(config, device) {
        match Engine::ALL.into_iter().find(|other| (other.row().refusal)(config, device).is_none()) {
            Some(other) => bail!("engine {engine} refuses this model: {reason}; engine {other} runs it"),
            None => bail!("engine {engine} refuses this model: {reason}"),
        }
    }
    let (weight_bytes, needed_bytes) = demand(config, engine, dtype, device);
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
    /// Ids that end a sequence. Scenarios ignore them.
    pub eos_token_ids: Vec<u32>,
}

/// An implementation that runs models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// candle-transformers as published.
    Stock,
    /// Our own decoder, with its own kernels on CPUs. It also runs mixtures of experts.
    Tuned,
}

/// The properties of an engine.
struct EngineRow {
    name: &'static str,
    /// Why the engine does not run a configuration on a device.
    refusal: fn(&ModelConfig, &Device) -> Option<String>,
    /// Bytes that a model needs in addition to its weights, for a sequence of this many tokens.
    extra_bytes: fn(&ModelConfig, DType, &Device, usize) -> u64,
    build: fn(ModelConfig, VarBuilder<'static>, ExpertLayout) -> Result<Box<dyn CausalLm>>,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 2] = [Self::Stock, Self::Tuned];

    /// The table of engines.
    fn row(self) -> EngineRow {
        match self {
            Self::Stock => EngineRow {
                name: "stock",
                refusal: |config, _| stock::refusal(config),
                extra_bytes: |config, dtype, _, tokens| stock::extra_bytes(config, dtype, tokens),
                build: |config, weights, _| Ok(Box::new(Stock::new(config, weights)?)),
            },
            Self::Tuned => EngineRow {
                name: "tuned",
                refusal: decoder::refusal,
                extra_bytes: |config, dtype, device, tokens| {
                    decoder::cache_bytes(config, dtype, tokens, device).allocated
                },
                build: |config, weights, layout| decoder::load(config, weights, layout, None),
            },
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}
