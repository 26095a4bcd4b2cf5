//! The models that are measured, and the trait that they implement.
//!
//! `causal_lm` is the trait. `spec` parses what a user names, `config` reads `config.json`, `hub` and `checkpoint` find
//! the files, `synthetic` makes seeded weights. `stock` wraps candle-transformers' models and `decoder` is the engine
//! `tuned`. `psann` holds language models that are trained, `series` networks for multivariate series, and `trainable`
//! their weights. Nothing here reads a clock.

mod causal_lm;
pub mod checkpoint;
pub mod config;
pub mod decoder;
#[cfg(test)]
pub(crate) mod golden;
pub mod hub;
pub mod psann;
pub mod series;
mod spec;
pub mod stock;
pub mod synthetic;
pub mod trainable;

pub use causal_lm::{CacheBytes, CausalLm, Footprint};
pub use spec::{MINI, ModelSpec, SYNTHETIC};

use std::fmt;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use checkpoint::Checkpoint;
use config::{ExpertLayout, ModelConfig};
use decoder::Decoder;
use hub::Hub;
use stock::Stock;

use crate::{device::DeviceChoice, scenario::FeedForward};

/// `config.json` of the models that have seeded weights: those of [`MINI`] are ours, those of [`SYNTHETIC`] have the
/// sizes of the published models.
#[rustfmt::skip]
const SHAPES: [(&str, &str); 6] = [
    ("llama-mini",   include_str!("shapes/llama-mini.json")),
    ("qwen3-mini",   include_str!("shapes/qwen3-mini.json")),
    ("gemma3-mini",  include_str!("shapes/gemma3-mini.json")),
    ("llama-3.2-1b", include_str!("shapes/llama-3.2-1b.json")),
    ("qwen3-1.7b",   include_str!("shapes/qwen3-1.7b.json")),
    ("gemma3-1b",    include_str!("shapes/gemma3-1b.json")),
];

/// The longest sequence that the generation scenarios make, for which memory must suffice.
const LONGEST_SEQUENCE: usize = 1536;

/// Loads a model. `seed` is that of seeded weights.
///
/// # Errors
/// One line that says what is wrong with the files, why the engine refuses the model, or, as a [`DoesNotFit`], how much
/// memory is missing.
pub fn load(spec: &ModelSpec, engine: Engine, dtype: DType, device: DeviceChoice, seed: u64) -> Result<Subject> {
    let device = device.open()?;
    match spec {
        ModelSpec::Mini(name) | ModelSpec::Synthetic(name) => {
            let config = shape(name)?;
            admit(&config, engine, dtype, &device)?;
            let eos_token_ids = config.eos_token_ids.clone();
            let weights = synthetic::weights(&config, seed, dtype, &device);
            let model = build(config, engine, weights, ExpertLayout::Single)?;
            Ok(Subject { model, source: spec.to_string(), tokenizer: None, eos_token_ids })
        }
        ModelSpec::Hub { repo, revision } => open(Hub::from_env().fetch(repo, revision)?, engine, dtype, &device),
        ModelSpec::Path(folder) => open(Checkpoint::open(folder, spec.to_string())?, engine, dtype, &device),
    }
}

/// Builds the model of a checkpoint, whose files are checked first.
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
    let model = build(config, engine, checkpoint.weights(dtype, device)?, layout)?;
    Ok(Subject { model, source: checkpoint.source, tokenizer, eos_token_ids })
}

fn build(
    config: ModelConfig,
    engine: Engine,
    weights: VarBuilder<'static>,
    layout: ExpertLayout,
) -> Result<Box<dyn CausalLm>> {
    Ok(match engine {
        Engine::Stock => Box::new(Stock::new(config, weights)?),
        Engine::Tuned => Box::new(Decoder::new(config, weights, layout)?),
    })
}

/// The decoder that `moe_top_k` compares, with this feed-forward and seeded weights. `skew` says how unevenly a mixture
/// uses its experts.
///
/// # Errors
/// When the experts don't go together, or memory is missing, as a [`DoesNotFit`].
pub fn expert_grid(feed_forward: FeedForward, skew: f64, dtype: DType, device: &Device, seed: u64) -> Result<Subject> {
    let config = decoder::shape::config(feed_forward)?;
    admit(&config, Engine::Tuned, dtype, device)?;
    let weights = synthetic::weights(&config, seed, dtype, device);
    let mut model = Decoder::new(config, weights, ExpertLayout::Stacked)?;
    if let FeedForward::Mixture { skew: own, .. } = feed_forward {
        model.plant(own.unwrap_or(skew), seed)?;
    }
    let source = format!("synthetic:{}", feed_forward.name(skew));
    Ok(Subject { model: Box::new(model), source, tokenizer: None, eos_token_ids: Vec::new() })
}

/// The configuration of a model that has seeded weights.
pub fn shape(name: &str) -> Result<ModelConfig> {
    let (_, text) = SHAPES.iter().find(|(shape, _)| *shape == name).with_context(|| format!("no shape {name}"))?;
    ModelConfig::from_json(&serde_json::from_str(text)?)
}

/// A model that takes more memory than there is.
#[derive(Debug)]
pub struct DoesNotFit {
    needed_bytes: u64,
    weight_bytes: u64,
    available_bytes: u64,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        write!(
            f,
            "it does not fit: {:.1} GB are needed ({:.1} GB of weights), {:.1} GB of memory are available; take a smaller model or a 16-bit dtype",
            gb(self.needed_bytes),
            gb(self.weight_bytes),
            gb(self.available_bytes)
        )
    }
}

impl std::error::Error for DoesNotFit {}

/// Refuses, before anything is loaded, what the engine computes wrongly and what does not fit in memory.
fn admit(config: &ModelConfig, engine: Engine, dtype: DType, device: &Device) -> Result<()> {
    let (refusal, extra_bytes) = match engine {
        Engine::Stock => (stock::refusal(config), stock::extra_bytes(config, dtype, LONGEST_SEQUENCE)),
        Engine::Tuned => (decoder::refusal(config), decoder::cache_bytes(config, dtype, LONGEST_SEQUENCE).allocated),
    };
    if let Some(reason) = refusal {
        bail!("engine {engine} refuses this model: {reason}");
    }
    let weight_bytes = config.parameters() * dtype.size_in_bytes() as u64;
    let needed_bytes = weight_bytes + extra_bytes;
    if let Some(available_bytes) = crate::measure::memory::available_bytes(device)
        && needed_bytes > available_bytes
    {
        return Err(DoesNotFit { needed_bytes, weight_bytes, available_bytes }.into());
    }
    Ok(())
}

/// A model that is ready to run.
pub struct Subject {
    pub model: Box<dyn CausalLm>,
    /// The full specification, with the commit that a Hub revision resolved to.
    pub source: String,
    pub tokenizer: Option<Tokenizer>,
    /// Ids that end a sequence, where those are obeyed.
    pub eos_token_ids: Vec<u32>,
}

/// Which implementation runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// candle-transformers as published.
    Stock,
    /// Our own decoder on Candle: mixtures of experts, and the dense decoders of the same structure.
    Tuned,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "stock",
            Self::Tuned => "tuned",
        })
    }
}
