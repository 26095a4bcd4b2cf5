//! The decoder: embedding, layers of attention and feed-forward, head.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, ops::rms_norm};

use super::{
    attention::{Angles, Attention, capacity, causal_mask},
    feed_forward::Gated,
    mixture::Mixture,
    routing::{ExpertLoad, Planted},
};
use crate::{
    kernels::is_plain,
    model::{
        causal_lm::{CacheBytes, CausalLm, Footprint},
        config::{ExpertLayout, Family, ModelConfig, RopeScaling},
    },
};

pub struct Decoder {
    config: ModelConfig,
    dtype: DType,
    device: Device,
    footprint: Footprint,
    /// (vocabulary, hidden)
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// (vocabulary, hidden); the embedding, if it is tied.
    head: Tensor,
    load: ExpertLoad,
    planted: Option<Planted>,
}

struct Layer {
    input_norm: Tensor,
    attention: Attention,
    post_attention_norm: Tensor,
    feed_forward: FeedForward,
}

enum FeedForward {
    Dense(Gated),
    Mixture(Mixture),
}

impl Decoder {
    /// Builds the model from its weights, which must have been checked.
    ///
    /// # Errors
    /// When the engine does not run this configuration, or a tensor is missing.
    pub fn new(config: ModelConfig, weights: VarBuilder, layout: ExpertLayout) -> Result<Self> {
        if let Some(reason) = refusal(&config) {
            anyhow::bail!("engine tuned refuses this model: {reason}");
        }
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = config;
        let model = weights.pp("model");
        let embedding = model.get((vocab_size, hidden), "embed_tokens.weight")?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.get((vocab_size, hidden), "lm_head.weight")?,
        };
        let mut mixtures = 0;
        let mut layer = |number: usize| -> Result<Layer> {
            let weights = model.pp("layers").pp(number);
            let feed_forward = match config.experts_of(number) {
                Some(experts) => {
                    mixtures += 1;
                    FeedForward::Mixture(Mixture::load(experts, config.family, hidden, mixtures - 1, &weights, layout)?)
                }
                None => {
                    let gate = weights.get((inner, hidden), "mlp.gate_proj.weight")?;
                    let up = weights.get((inner, hidden), "mlp.up_proj.weight")?;
                    let down = weights.get((hidden, inner), "mlp.down_proj.weight")?;
                    FeedForward::Dense(Gated::new(Tensor::cat(&[gate, up], 0)?, down))
                }
            };
            Ok(Layer {
                input_norm: weights.get(hidden, "input_layernorm.weight")?,
                attention: Attention::load(&config, weights.pp("self_attn"))?,
                post_attention_norm: weights.get(hidden, "post_attention_layernorm.weight")?,
                feed_forward,
            })
        };
        let layers = (0..config.num_hidden_layers).map(&mut layer).collect::<Result<_>>()?;
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        Ok(Self {
            load: config.experts.as_ref().map_or_else(ExpertLoad::default, |experts| {
                ExpertLoad::new(mixtures, experts.num_experts, experts.num_experts_per_tok)
            }),
            footprint: footprint(&config, dtype),
            norm: model.get(hidden, "norm.weight")?,
            config,
            dtype,
            device,
            embedding,
            layers,
            head,
            planted: None,
        })
    }

    /// Sends tokens to experts by a seeded draw instead of by what the routers say: see [`Planted`].
    ///
    /// # Errors
    /// When no layer is a mixture.
    pub fn plant(&mut self, skew: f64, seed: u64) -> Result<()> {
        let layers = &self.load.layers;
        let first = layers.first().context("routes can't be planted: no layer is a mixture of experts")?;
        self.planted = Some(Planted::new(skew, seed, layers.len(), first.len()));
        Ok(())
    }

    /// What the last layer puts out for `tokens` behind `position` others, (tokens, hidden).
    pub(super) fn hidden(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let count = tokens.len();
        let longest = self.config.max_position_embeddings;
        ensure!(count > 0, "a forward pass needs a token");
        ensure!(position + count <= longest, "{} tokens: the model takes up to {longest}", position + count);
        let mut h = self.embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)?;
        let angles = Angles::new(&self.config, position, count, self.dtype, &self.device)?;
        // A token alone sees all that came before it.
        let mask = if is_plain(&h) || count == 1 {
            None
        } else {
            Some(causal_mask(position, count, self.dtype, &self.device)?)
        };
        let eps = self.config.rms_norm_eps as f32;
        for layer in &mut self.layers {
            let x = rms_norm(&h, &layer.input_norm, eps)?;
            // A sum of its own, which the feed-forward may add to in place.
            h = (h + layer.attention.forward(&x, position, &angles, mask.as_ref())?)?;
            let x = rms_norm(&h, &layer.post_attention_norm, eps)?;
            h = match &layer.feed_forward {
                FeedForward::Dense(dense) => dense.add_all_to(h, &x)?,
                FeedForward::Mixture(mixture) => {
                    mixture.add_to(h, &x, position, self.planted.as_ref(), &mut self.load)?
                }
            };
        }
        Ok(h)
    }

    /// Logits of hidden states (tokens, hidden), in f32.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let x = rms_norm(hidden, &self.norm, self.config.rms_norm_eps as f32)?;
        Ok(x.matmul(&self.head.t()?)?.to_dtype(DType::F32)?)
    }

    #[cfg(test)]
    pub(super) fn mixture(&self, layer: usize) -> Option<&Mixture> {
        match &self.layers[layer].feed_forward {
            FeedForward::Mixture(mixture) => Some(mixture),
            FeedForward::Dense(_) => None,
        }
    }
}

impl CausalLm for Decoder {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let hidden = self.hidden(tokens, position)?;
        let last = hidden.narrow(0, tokens.len() - 1, 1)?.contiguous()?;
        Ok(self.logits(&last)?.squeeze(0)?)
    }

    fn reset(&mut self) -> Result<()> {
        // Positions before those of a forward pass are all that is read of the caches, so they need no clearing.
        self.load.clear();
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
        let head = (self.config.vocab_size * self.config.hidden_size) as u64;
        let body = self.footprint.flops_per_token - 2 * head;
        // Scores and weighted values: two products of head_dim for each query head and each position that it sees.
        let width = self.config.num_attention_heads * self.config.head_dim * self.config.num_hidden_layers;
        let attention = 4 * (width * tokens * (tokens + 1) / 2) as u64;
        // The head is applied to the last position only.
        body * tokens as u64 + 2 * head + attention
    }

    fn planted_skew(&self) -> Option<f64> {
        self.planted.as_ref().map(|planted| planted.skew)
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        Some(&self.load).filter(|load| !load.layers.is_empty())
    }
}

/// Why the engine does not run this configuration.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    if config.family == Family::Gemma3 {
        return Some("it has Llama's and Qwen3's structure, not Gemma3's".into());
    }
    if config.sliding_layers.contains(&true) {
        return Some("it has no sliding layers".into());
    }
    if config.hidden_act != "silu" {
        return Some(format!("it has no hidden_act={}", config.hidden_act));
    }
    if config.mlp_bias {
        return Some("its feed-forward has no biases".into());
    }
    match &config.rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Llama3 { .. } => Some("it has no RoPE scaling of type llama3".into()),
        RopeScaling::Other(name) => Some(format!("it has no RoPE scaling of type {name}")),
    }
}

/// Bytes of the caches with `tokens` in the sequence.
pub fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let row =
        (2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * dtype.size_in_bytes()) as u64;
    CacheBytes { used: row * tokens as u64, allocated: row * capacity(tokens) as u64 }
}

/// A step reads and multiplies the weights of the chosen experts only.
fn footprint(config: &ModelConfig, dtype: DType) -> Footprint {
    let size = dtype.size_in_bytes() as u64;
    let parameters = config.parameters();
    let (hidden, vocabulary) = (config.hidden_size as u64, config.vocab_size as u64);
    let idle: u64 = (0..config.num_hidden_layers)
        .filter_map(|layer| config.experts_of(layer))
        .map(|experts| {
            let idle = (experts.num_experts - experts.num_experts_per_tok) as u64;
            idle * 3 * hidden * experts.intermediate_size as u64
        })
        .sum();
    // A tied embedding is the head, which every step reads whole; another is only looked up.
    let looked_up = if config.tie_word_embeddings { 0 } else { vocabulary * hidden };
    let read = parameters - idle - looked_up;
    let vectors: u64 = config
        .tensors(ExpertLayout::Stacked)
        .iter()
        .filter(|(_, shape)| shape.len() == 1)
        .map(|(_, shape)| shape[0] as u64)
        .sum();
    Footprint {
        parameters,
        weight_bytes: parameters * size,
        step_weight_bytes: read * size,
        cache_bytes_per_token: cache_bytes(config, dtype, 1).used,
        flops_per_token: 2 * (read - vectors),
    }
}
