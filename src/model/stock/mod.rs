//! Engine `stock`: candle-transformers' Llama, Qwen3 and Gemma3 as published, untouched, behind the trait.
//!
//! Where the published module computes something else than the reference implementation, it may be neither hidden nor
//! timed as if it were right. A configuration that it always computes wrongly is refused by [`refusal`]; where only
//! some lengths or precisions are affected, [`CausalLm::deviates`] says so and the run goes on. Tests pin each fault
//! down, so that a Candle release that mends one is noticed.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, llama, qwen3};

use super::{
    causal_lm::{CacheBytes, CausalLm, Footprint},
    config::{ExpertLayout, Family, ModelConfig, RopeScaling},
};

/// A published model and what is known of it.
pub struct Stock {
    config: ModelConfig,
    dtype: DType,
    device: Device,
    footprint: Footprint,
    model: Published,
}

enum Published {
    Llama {
        model: llama::Llama,
        /// The cache before the first token. It holds the RoPE tables, so that a reset need not compute them again.
        pristine: Box<llama::Cache>,
        cache: Box<llama::Cache>,
    },
    Qwen3(Box<qwen3::ModelForCausalLM>),
    Gemma3(Box<gemma3::Model>),
}

impl Stock {
    /// Builds the model from its weights, which must have been checked: the published modules panic on some that are
    /// missing.
    ///
    /// # Errors
    /// When the published module would compute this configuration wrongly, or can't be built.
    pub fn new(config: ModelConfig, weights: VarBuilder<'static>) -> Result<Self> {
        if let Some(reason) = refusal(&config) {
            bail!("engine stock refuses this model: {reason}");
        }
        Self::new_unchecked(config, weights)
    }

    /// The same without the refusal: for the tests that pin the faults down.
    pub(crate) fn new_unchecked(config: ModelConfig, weights: VarBuilder<'static>) -> Result<Self> {
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let flash_attn = cfg!(feature = "flash-attn") && device.is_cuda();
        let model = match config.family {
            Family::Llama => {
                let published = llama_config(&config, flash_attn);
                let pristine = Box::new(llama::Cache::new(true, dtype, &published, &device)?);
                let model = llama::Llama::load(weights, &published)?;
                Published::Llama { model, cache: pristine.clone(), pristine }
            }
            Family::Qwen3 => {
                Published::Qwen3(Box::new(qwen3::ModelForCausalLM::new(&qwen3_config(&config)?, weights)?))
            }
            Family::Gemma3 => {
                Published::Gemma3(Box::new(gemma3::Model::new(flash_attn, &gemma3_config(&config)?, weights)?))
            }
            Family::Qwen3Moe | Family::Mixtral => bail!("{MIXTURES}"),
        };
        let footprint = footprint(&config, dtype);
        Ok(Self { config, dtype, device, footprint, model })
    }
}

impl CausalLm for Stock {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let input = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        let logits = match &mut self.model {
            Published::Llama { model, cache, .. } => model.forward(&input, position, cache)?,
            Published::Qwen3(model) => model.forward(&input, position)?,
            Published::Gemma3(model) => {
                ensure!(
                    position == 0 || tokens.len() == 1,
                    "gemma3 as published masks several tokens after the first wrongly: feed them one at a time"
                );
                model.forward(&input, position)?
            }
        };
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?)
    }

    fn reset(&mut self) -> Result<()> {
        match &mut self.model {
            Published::Llama { pristine, cache, .. } => cache.clone_from(pristine),
            Published::Qwen3(model) => model.clear_kv_cache(),
            Published::Gemma3(model) => model.clear_kv_cache(),
        }
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        self.footprint
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
        let config = &self.config;
        let head = (config.vocab_size * config.hidden_size) as u64;
        let body = self.footprint.flops_per_token / 2 - head;
        let seen_by_all: usize = config
            .sliding_layers
            .iter()
            .map(|sliding| match config.sliding_window.filter(|window| *sliding && *window < tokens) {
                None => tokens * (tokens + 1) / 2,
                Some(window) => window * (window + 1) / 2 + (tokens - window) * window,
            })
            .sum();
        // Scores and weighted values: two products of head_dim for each query head and each position it sees. The
        // head is applied to the last position only.
        let attention = 4 * (seen_by_all * config.num_attention_heads * config.head_dim) as u64;
        2 * body * tokens as u64 + 2 * head + attention
    }

    fn deviates(&self, prompt_tokens: usize, _: usize) -> Option<String> {
        if self.config.family != Family::Gemma3 {
            return None;
        }
        let mut reasons = Vec::new();
        if let Some(window) = self.config.sliding_window.filter(|window| prompt_tokens > *window) {
            reasons.push(format!(
                "a prompt past the sliding window of {window}: the published mask lets one position too many through"
            ));
        }
        if self.dtype != DType::F32 {
            reasons.push(format!("RoPE's angles are computed in {}, not in f32", self.dtype.as_str()));
        }
        (!reasons.is_empty()).then(|| format!("candle-transformers' gemma3: {}", reasons.join("; ")))
    }
}

/// What is said of the families that the engine leaves to the other.
const MIXTURES: &str = "mixtures of experts run on engine tuned";

/// Why the published module would compute this configuration wrongly.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    let full_rope = |allow_llama3: bool| match &config.rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Llama3 { .. } if allow_llama3 => None,
        RopeScaling::Llama3 { .. } => Some("llama3".to_owned()),
        RopeScaling::Other(name) => Some(name.clone()),
    };
    let is_sliding = config.sliding_layers.contains(&true);
    let heads_split_hidden = config.head_dim * config.num_attention_heads == config.hidden_size;
    let act = &config.hidden_act;
    match config.family {
        Family::Qwen3Moe | Family::Mixtral => Some(MIXTURES.into()),
        Family::Llama => {
            if config.attention_bias || config.mlp_bias {
                return Some("candle-transformers' llama leaves out the biases of attention_bias and mlp_bias".into());
            }
            if !heads_split_hidden {
                return Some(format!(
                    "candle-transformers' llama takes head_dim to be hidden_size / num_attention_heads, not {}",
                    config.head_dim
                ));
            }
            if is_sliding {
                return Some("candle-transformers' llama has no sliding layers".into());
            }
            if act != "silu" {
                return Some(format!("candle-transformers' llama computes silu whatever hidden_act={act} says"));
            }
            full_rope(true).map(|name| format!("candle-transformers' llama has no RoPE scaling of type {name}"))
        }
        Family::Qwen3 => {
            if is_sliding {
                return Some("candle-transformers' qwen3 has no sliding layers".into());
            }
            full_rope(false).map(|name| format!("candle-transformers' qwen3 leaves out RoPE scaling of type {name}"))
        }
        Family::Gemma3 => {
            if config.query_pre_attn_scalar != config.head_dim as f64 {
                return Some(format!(
                    "candle-transformers' gemma3 divides by the root of head_dim={}, not of query_pre_attn_scalar={}",
                    config.head_dim, config.query_pre_attn_scalar
                ));
            }
            if config.num_key_value_heads > 1 {
                return Some("candle-transformers' gemma3 fails with more than one key-value head".into());
            }
            if !config.tie_word_embeddings {
                return Some("candle-transformers' gemma3 takes the embedding for the head, which is not tied".into());
            }
            if pattern(config).is_none() {
                return Some(
                    "candle-transformers' gemma3 has a full layer every so many, not these layer_types".into(),
                );
            }
            if config.attn_logit_softcapping.is_some() {
                return Some(
                    "candle-transformers' gemma3 caps attention's logits, which the reference does not".into(),
                );
            }
            let local = config.local_rope.as_ref().is_some_and(|rope| rope.scaling != RopeScaling::None);
            full_rope(false)
                .or(local.then(|| "of the sliding layers".to_owned()))
                .map(|name| format!("candle-transformers' gemma3 leaves out RoPE scaling {name}"))
        }
    }
}

/// Every how many layers one is full; `None` when they are not spread so.
fn pattern(config: &ModelConfig) -> Option<usize> {
    let layers = &config.sliding_layers;
    let pattern = layers.iter().position(|sliding| !sliding).map_or(layers.len() + 1, |first_full| first_full + 1);
    layers.iter().enumerate().all(|(layer, sliding)| *sliding == ((layer + 1) % pattern != 0)).then_some(pattern)
}

/// Bytes of memory that the model takes up besides its weights and activations: RoPE tables for every position, and
/// the cache of `tokens`.
pub fn extra_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> u64 {
    let table = (config.max_position_embeddings * config.head_dim) as u64;
    let tables = match config.family {
        // In f32 while they are made.
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe | Family::Mixtral => table * 4,
        // One for each layer.
        Family::Gemma3 => table * (config.num_hidden_layers * dtype.size_in_bytes()) as u64,
    };
    tables + cache_bytes(config, dtype, tokens).allocated
}

fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let row = (2 * config.num_key_value_heads * config.head_dim * dtype.size_in_bytes()) as u64;
    let rows = |of_layer: &dyn Fn(Option<usize>) -> usize| -> u64 {
        let window = |sliding: &bool| config.sliding_window.filter(|_| *sliding);
        row * config.sliding_layers.iter().map(|sliding| of_layer(window(sliding)) as u64).sum::<u64>()
    };
    let used = rows(&|window| window.map_or(tokens, |window| window.min(tokens)));
    let allocated = match config.family {
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe | Family::Mixtral => used,
        Family::Gemma3 => rows(&|window| window.unwrap_or(config.max_position_embeddings)),
    };
    CacheBytes { used, allocated }
}

fn footprint(config: &ModelConfig, dtype: DType) -> Footprint {
    let size = dtype.size_in_bytes() as u64;
    let parameters = config.parameters();
    let embedding = (config.vocab_size * config.hidden_size) as u64;
    // A tied embedding is the head, which every step reads whole; another is only looked up.
    let read = if config.tie_word_embeddings { parameters } else { parameters - embedding };
    let multiplied: u64 = config
        .tensors(ExpertLayout::Single)
        .iter()
        .filter(|(name, shape)| shape.len() == 2 && (config.tie_word_embeddings || !name.contains("embed_tokens")))
        .map(|(_, shape)| shape.iter().product::<usize>() as u64)
        .sum();
    Footprint {
        parameters,
        weight_bytes: parameters * size,
        step_weight_bytes: read * size,
        cache_bytes_per_token: (2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64
            * size,
        flops_per_token: 2 * multiplied,
    }
}

fn llama_config(config: &ModelConfig, use_flash_attn: bool) -> llama::Config {
    let rope_scaling = match config.rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            Some(llama::Llama3RopeConfig {
                factor: factor as f32,
                low_freq_factor: low_freq_factor as f32,
                high_freq_factor: high_freq_factor as f32,
                original_max_position_embeddings,
                rope_type: llama::Llama3RopeType::Llama3,
            })
        }
        RopeScaling::None | RopeScaling::Other(_) => None,
    };
    llama::Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        use_flash_attn,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    }
}

fn qwen3_config(config: &ModelConfig) -> Result<qwen3::Config> {
    Ok(qwen3::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        head_dim: config.head_dim,
        attention_bias: config.attention_bias,
        num_key_value_heads: config.num_key_value_heads,
        max_position_embeddings: config.max_position_embeddings,
        sliding_window: None,
        max_window_layers: config.num_hidden_layers,
        tie_word_embeddings: config.tie_word_embeddings,
        rope_theta: config.rope.theta,
        rms_norm_eps: config.rms_norm_eps,
        use_sliding_window: false,
        hidden_act: activation(&config.hidden_act)?,
    })
}

fn gemma3_config(config: &ModelConfig) -> Result<gemma3::Config> {
    Ok(gemma3::Config {
        attention_bias: config.attention_bias,
        head_dim: config.head_dim,
        hidden_activation: activation(&config.hidden_act)?,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_attention_heads: config.num_attention_heads,
        num_hidden_layers: config.num_hidden_layers,
        num_key_value_heads: config.num_key_value_heads,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope.theta,
        rope_local_base_freq: config.local_rope.as_ref().map_or(config.rope.theta, |rope| rope.theta),
        vocab_size: config.vocab_size,
        final_logit_softcapping: config.final_logit_softcapping,
        attn_logit_softcapping: config.attn_logit_softcapping,
        query_pre_attn_scalar: config.query_pre_attn_scalar as usize,
        sliding_window: config.sliding_window.context("gemma3 needs a sliding_window")?,
        sliding_window_pattern: pattern(config).unwrap_or(1),
        max_position_embeddings: config.max_position_embeddings,
    })
}

fn activation(name: &str) -> Result<Activation> {
    serde_json::from_value(name.into()).ok().with_context(|| format!("config.json: hidden_act={name} is not supported"))
}
