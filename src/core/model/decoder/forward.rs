//! The decoder of accelerators, by Candle's operations: embedding, layers of attention and feed-forward, head.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, ops::rms_norm};

use super::{
    attention::{Angles, Attention, capacity, causal_mask},
    feed_forward::Gated,
    mixture::Mixture,
    routing::{ExpertLoad, Planted},
};
use crate::model::{
    causal_lm::{CacheBytes, CausalLm, Footprint},
    config::{ExpertLayout, ModelConfig, RopeScaling},
};

/// Architectures that the engine runs. It has their layers only: a new family is refused until it is listed here.
const FAMILIES: &[&str] = &[
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
];

/// A decoder with its cache.
pub struct Decoder {
    config: ModelConfig,
    dtype: DType,
    device: Device,
    /// (vocabulary, hidden)
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// (vocabulary, hidden). If the head is tied, this is the embedding.
    head: Tensor,
    load: ExpertLoad,
    planted: Option<Planted>,
}

struct Layer {
    attention_norm: Tensor,
    attention: Attention,
    feed_forward_norm: Tensor,
    feed_forward: FeedForward,
}

enum FeedForward {
    Dense(Gated),
    Mixture(Mixture),
}

impl Decoder {
    /// Builds the model from its weights, which must have been checked. `planted` is the skew and the seed of routes that are
    /// drawn instead of computed.
    ///
    /// # Errors
    /// If the engine does not run this configuration, or a tensor is missing.
    pub fn new(
        config: ModelConfig,
        weights: VarBuilder,
        layout: ExpertLayout,
        planted: Option<(f64, u64)>,
    ) -> Result<Self> {
        if let Some(reason) = refusal(&config) {
            bail!("engine tuned refuses this model: {reason}");
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
            let norm = |name: Option<&str>| weights.pp(name.unwrap_or_default()).get(hidden, "weight");
            let mixture = config.experts_of(number).zip(config.family.experts.as_ref());
            let feed_forward = match mixture {
                Some((experts, family)) => {
                    mixtures += 1;
                    FeedForward::Mixture(Mixture::load(experts, &family.names, hidden, mixtures - 1, &weights, layout)?)
                }
                None => {
                    let gate = weights.get((inner, hidden), "mlp.gate_proj.weight")?;
                    let up = weights.get((inner, hidden), "mlp.up_proj.weight")?;
                    let down = weights.get((hidden, inner), "mlp.down_proj.weight")?;
                    FeedForward::Dense(Gated::new(Tensor::cat(&[gate, up], 0)?, down))
                }
            };
            Ok(Layer {
                attention_norm: norm(config.family.layer_norms.before_attention)?,
                attention: Attention::load(&config, weights.pp("self_attn"))?,
                feed_forward_norm: norm(config.family.layer_norms.before_feed_forward)?,
                feed_forward,
            })
        };
        let layers = (0..config.num_hidden_layers).map(&mut layer).collect::<Result<_>>()?;
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let load = config.experts.as_ref().map_or_else(ExpertLoad::default, |experts| {
            ExpertLoad::new(mixtures, experts.num_experts, experts.num_experts_per_tok)
        });
        Ok(Self {
            planted: planted.map(|(skew, seed)| Planted::for_load(&load, skew, seed)).transpose()?,
            load,
            norm: model.get(hidden, "norm.weight")?,
            config,
            dtype,
            device,
            embedding,
            layers,
            head,
        })
    }

    /// Output of the last layer for `tokens` at `position` and after: (tokens, hidden).
    pub(super) fn hidden(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let count = tokens.len();
        let longest = self.config.max_position_embeddings;
        ensure!(count > 0, "a forward pass needs at least one token");
        ensure!(position + count <= longest, "{} tokens exceed max_position_embeddings={longest}", position + count);
        let mut h = self.embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)?;
        let angles = Angles::new(&self.config, position, count, self.dtype, &self.device)?;
        // A single token attends to all tokens before it.
        let mask = match count {
            1 => None,
            _ => Some(causal_mask(position, count, self.dtype, &self.device)?),
        };
        let eps = self.config.rms_norm_eps as f32;
        for layer in &mut self.layers {
            let x = rms_norm(&h, &layer.attention_norm, eps)?;
            h = (h + layer.attention.forward(&x, position, &angles, mask.as_ref())?)?;
            let x = rms_norm(&h, &layer.feed_forward_norm, eps)?;
            h = match &layer.feed_forward {
                FeedForward::Dense(dense) => (h + dense.forward(&x)?)?,
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
        // A forward pass reads the caches only at positions that were written since the reset, so they are not cleared.
        self.load.clear();
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

    fn attention(&self) -> Option<(&'static str, DType)> {
        Some(("candle", self.dtype))
    }

    fn planted_skew(&self) -> Option<f64> {
        self.planted.as_ref().map(|planted| planted.skew)
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        Some(&self.load).filter(|load| !load.layers.is_empty())
    }
}

/// Returns whether the engine has the layers of the architecture on accelerators.
pub fn runs(architecture: &str) -> bool {
    FAMILIES.contains(&architecture)
}

/// Why the engine does not run this configuration on accelerators.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    let architecture = config.family.architecture;
    if !runs(architecture) {
        return Some(format!("it does not run {architecture}"));
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
        RopeScaling::Other(name) => Some(format!("it has no RoPE scaling of type {name}")),
        _ => None,
    }
}

/// Bytes of the caches of all layers with `tokens` in the sequence.
pub fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let row = config.cache_row_bytes(dtype) * config.num_hidden_layers as u64;
    CacheBytes { used: row * tokens as u64, allocated: row * capacity(tokens) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        family::{ExpertFamily, FAMILIES as ROWS, Family, LLAMA, QkNorm},
        shape, synthetic,
    };

    /// The structure of listed families is the one that this file computes.
    #[test]
    fn listed_families_have_the_layers_of_this_decoder() {
        for name in FAMILIES {
            let row = ROWS.iter().find(|row| row.architecture == *name).expect(name);
            assert_eq!(row.layer_norms, LLAMA.layer_norms, "{name}");
            assert_ne!(row.qk_norm, QkNorm::Whole, "{name}");
            assert!(!row.has_multipliers && !row.has_rope_in_pairs && row.soft_caps.is_none(), "{name}");
            assert_eq!((row.partial_rotary_factor, row.no_rope_layer_interval), (None, None), "{name}");
            assert_eq!((row.norm_offset, row.scales_embedding), (0.0, false), "{name}");
            assert!(!row.has_sinks && !row.scales_queries && row.swiglu.is_none(), "{name}");
            let has_more = |experts: &ExpertFamily| experts.shared_expert.is_some() || experts.has_biases;
            assert!(!row.experts.as_ref().is_some_and(has_more), "{name}");
            assert_eq!((row.local_rope_theta, row.query_pre_attn_scalar), (None, None), "{name}");
        }
    }

    /// A family that is in the table but not in the list of the engine does not run with the layers of Llama.
    #[test]
    fn families_that_are_not_listed_are_refused() {
        static NEW: Family = Family { architecture: "NewForCausalLM", ..LLAMA };
        let config = ModelConfig { family: &NEW, ..shape("llama-mini").expect("a shape") };
        assert_eq!(refusal(&config).as_deref(), Some("it does not run NewForCausalLM"));
        let weights = synthetic::weights(&config, 1, DType::F32, &Device::Cpu);
        assert!(Decoder::new(config, weights, ExpertLayout::Single, None).is_err());
    }
}
