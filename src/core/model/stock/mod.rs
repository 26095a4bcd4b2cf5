//! Engine `stock`: the models of candle-transformers as published, behind the trait [`CausalLm`].
//!
//! Some published modules compute something different from the reference implementation. A configuration that a module
//! always computes wrongly is refused ([`refusal`]). Where only some lengths or precisions are affected, the model runs and
//! [`CausalLm::deviates`] gives the reason. Tests pin each fault, so that they fail when a Candle release repairs it.
//!
//! Each published module has a file with its row, except those that need no more than a row of `from_json`. To add one, add its file or
//! its row there, and its row to [`MODULES`]. `quantised` runs GGUF files.

mod from_json;
mod gemma3;
mod llama;
mod mixtral;
pub(super) mod quantised;
mod qwen3;
mod qwen3_moe;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};

use super::{
    causal_lm::{CacheBytes, CausalLm, Footprint},
    config::{ModelConfig, RopeScaling},
};

/// The published modules, which are also the list of the families that the engine runs.
const MODULES: &[Module] = &[
    llama::MODULE,
    from_json::QWEN2,
    qwen3::MODULE,
    from_json::MISTRAL,
    from_json::OLMO2,
    from_json::SMOLLM3,
    from_json::GEMMA2,
    gemma3::MODULE,
    from_json::PHI3,
    from_json::GLM4,
    from_json::GRANITE,
    from_json::HELIUM,
    qwen3_moe::MODULE,
    from_json::QWEN2_MOE,
    mixtral::MODULE,
];

/// One module of candle-transformers.
struct Module {
    /// The architecture that it computes.
    architecture: &'static str,
    /// Why it would compute a configuration wrongly.
    refusal: fn(&ModelConfig) -> Option<String>,
    /// Why its output differs from the reference implementation's, for weights in a dtype and the numbers of tokens of a
    /// prompt and after it.
    deviates: fn(&ModelConfig, DType, (usize, usize)) -> Option<String>,
    load: fn(&ModelConfig, VarBuilder<'static>) -> Result<Box<dyn Published>>,
    /// Bytes of its RoPE tables, which cover every position.
    rope_table_bytes: fn(&ModelConfig, DType) -> u64,
    /// Bytes that a prompt takes at once for each pair of tokens and each head: all copies of the scores. 0 for attention that
    /// does not hold them.
    bytes_per_score: fn(DType, &Device) -> usize,
    /// True if the caches of full layers have room for `max_position_embeddings` from the start.
    preallocates_cache: bool,
}

impl Module {
    fn of(config: &ModelConfig) -> Option<&'static Self> {
        MODULES.iter().find(|module| module.architecture == config.family.architecture)
    }
}

/// A loaded model of candle-transformers.
trait Published: Send {
    /// Logits after the last of `tokens`, of shape (1, tokens).
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor>;

    fn reset(&mut self);
}

/// A published model, with its configuration.
pub struct Stock {
    config: ModelConfig,
    module: &'static Module,
    dtype: DType,
    device: Device,
    model: Box<dyn Published>,
    is_in_context: bool,
}

impl Stock {
    /// Runs each pass in the thread pool that Candle keeps for the device.
    pub fn in_context(self) -> Self {
        Self { is_in_context: true, ..self }
    }

    /// Builds the model from its weights. They must have been checked, because published modules panic on some missing
    /// tensors.
    ///
    /// # Errors
    /// If the published module would compute this configuration wrongly, or cannot be built.
    pub fn new(config: ModelConfig, weights: VarBuilder<'static>) -> Result<Self> {
        if let Some(reason) = refusal(&config) {
            bail!("engine stock refuses this model: {reason}");
        }
        Self::new_unchecked(config, weights)
    }

    /// As [`Self::new`] without the refusal, for the tests that pin faults.
    pub(crate) fn new_unchecked(config: ModelConfig, weights: VarBuilder<'static>) -> Result<Self> {
        let module = Module::of(&config).context("candle-transformers' module is not wrapped")?;
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let model = (module.load)(&config, weights)?;
        Ok(Self { config, module, dtype, device, model, is_in_context: false })
    }
}

impl CausalLm for Stock {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        forward(self.model.as_mut(), tokens, position, &self.device, self.is_in_context)
    }

    fn reset(&mut self) -> Result<()> {
        self.model.reset();
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        self.config.footprint(self.dtype)
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn cache_bytes(&self, tokens: usize) -> CacheBytes {
        cache_bytes(&self.config, self.dtype, tokens)
    }

    fn prefill_flops(&self, tokens: usize) -> u64 {
        self.config.prefill_flops(tokens)
    }

    fn score_bytes(&self, tokens: usize) -> u64 {
        let scores = self.config.num_attention_heads as u64 * (tokens as u64).saturating_pow(2);
        scores.saturating_mul((self.module.bytes_per_score)(self.dtype, &self.device) as u64)
    }

    fn attention(&self) -> Option<(&'static str, DType)> {
        Some((if uses_flash_attn(&self.device) { "flash-attn" } else { "candle" }, self.dtype))
    }

    fn deviates(&self, prompt_tokens: usize, new_tokens: usize) -> Option<String> {
        (self.module.deviates)(&self.config, self.dtype, (prompt_tokens, new_tokens))
    }
}

/// The logits of a pass, with or without Candle's thread pool for the device.
fn forward(
    model: &mut dyn Published,
    tokens: &[u32],
    position: usize,
    device: &Device,
    is_in_context: bool,
) -> Result<Tensor> {
    let tokens = Tensor::new(tokens, device)?.unsqueeze(0)?;
    let mut pass = || Ok(model.forward(&tokens, position)?.flatten_all()?.to_dtype(DType::F32)?);
    if is_in_context { device.with_context(pass) } else { pass() }
}

/// Why the engine does not run this configuration: no module is published for it, or the module computes it wrongly.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    match Module::of(config) {
        Some(module) => (module.refusal)(config),
        None => Some(format!("it does not run {}", config.family.architecture)),
    }
}

/// Why the output differs from the reference implementation's, for weights in a dtype and a prompt of this length.
pub fn deviates(config: &ModelConfig, dtype: DType, tokens: usize) -> Option<String> {
    Module::of(config).and_then(|module| (module.deviates)(config, dtype, (tokens, 0)))
}

/// Bytes that the model needs in addition to weights and activations: RoPE tables for every position, and the cache of
/// `tokens`.
pub fn extra_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> u64 {
    let tables = Module::of(config).map_or(0, |module| (module.rope_table_bytes)(config, dtype));
    tables + cache_bytes(config, dtype, tokens).allocated
}

fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let rows = |of_layer: &dyn Fn(Option<usize>) -> usize| -> u64 {
        let window = |sliding: &bool| config.sliding_window.filter(|_| *sliding);
        let rows: u64 = config.sliding_layers.iter().map(|sliding| of_layer(window(sliding)) as u64).sum();
        config.cache_row_bytes(dtype) * rows
    };
    let used = rows(&|window| window.map_or(tokens, |window| window.min(tokens)));
    let allocated = match Module::of(config) {
        Some(module) if module.preallocates_cache => rows(&|window| window.unwrap_or(config.max_position_embeddings)),
        _ => used,
    };
    CacheBytes { used, allocated }
}

/// Number of entries of one RoPE table, cosines and sines together.
fn rope_table(config: &ModelConfig) -> u64 {
    (config.max_position_embeddings * config.head_dim) as u64
}

/// Name of the RoPE scaling of the full layers, if there is one.
fn rope_scaling(config: &ModelConfig) -> Option<&str> {
    Some(&config.rope.scaling).filter(|scaling| **scaling != RopeScaling::None).map(RopeScaling::name)
}

fn never_deviates(_: &ModelConfig, _: DType, _: (usize, usize)) -> Option<String> {
    None
}

/// Says that RoPE's angles are computed in a dtype, unless that is f32.
fn angles_in(dtype: DType) -> Option<String> {
    (dtype != DType::F32).then(|| format!("RoPE's angles are computed in {}, not in f32", dtype.as_str()))
}

/// RoPE tables that are computed in f32 once for all layers.
fn shared_rope_tables(config: &ModelConfig, _: DType) -> u64 {
    4 * rope_table(config)
}

fn uses_flash_attn(device: &Device) -> bool {
    cfg!(feature = "flash-attn") && device.is_cuda()
}

fn activation(name: &str) -> Result<Activation> {
    serde_json::from_value(name.into()).ok().with_context(|| format!("config.json: hidden_act={name} is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::FAMILIES;

    #[test]
    fn every_module_computes_a_family_of_the_table() {
        for module in MODULES {
            assert!(FAMILIES.iter().any(|row| row.architecture == module.architecture), "{}", module.architecture);
        }
    }
}
