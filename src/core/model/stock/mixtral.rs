//! candle-transformers' `mixtral`.

use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::mixtral;
use serde_json::json;

use super::{Module, Published, angles_in, rope_scaling, rope_table, uses_flash_attn};
use crate::model::config::ModelConfig;

pub(super) const MODULE: Module = Module {
    architecture: "MixtralForCausalLM",
    refusal,
    deviates: |_, dtype, _| angles_in(dtype).map(|reason| format!("candle-transformers' mixtral: {reason}")),
    load,
    // Each half of a head has its own copy.
    rope_table_bytes: |config, dtype| 2 * rope_table(config) * dtype.size_in_bytes() as u64,
    // The scores before and after the mask, and the probabilities.
    bytes_per_score: |dtype, device| if uses_flash_attn(device) { 0 } else { 3 * dtype.size_in_bytes() },
    preallocates_cache: false,
};

struct Mixtral {
    model: mixtral::Model,
    /// The model before the first token, because nothing clears its cache. It shares the weights.
    pristine: mixtral::Model,
}

impl Published for Mixtral {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        Ok(self.model.forward(tokens, position)?)
    }

    fn reset(&mut self) {
        self.model.clone_from(&self.pristine);
    }
}

fn load(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Box<dyn Published>> {
    let experts = config.experts.as_ref().context("config.json: it has no experts")?;
    // Its fields are private.
    let published = serde_json::from_value(json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": experts.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "sliding_window": config.sliding_window.unwrap_or(config.max_position_embeddings),
        "num_experts_per_tok": experts.num_experts_per_tok,
        "num_local_experts": experts.num_experts,
        "use_flash_attn": uses_flash_attn(weights.device()),
    }))
    .with_context(|| format!("config.json: candle-transformers has no hidden_act={}", config.hidden_act))?;
    let pristine = mixtral::Model::new(&published, weights)?;
    Ok(Box::new(Mixtral { model: pristine.clone(), pristine }))
}

fn refusal(config: &ModelConfig) -> Option<String> {
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        return Some(format!(
            "candle-transformers' mixtral requires head_dim to be hidden_size / num_attention_heads, not {}",
            config.head_dim
        ));
    }
    if config.tie_word_embeddings {
        return Some("candle-transformers' mixtral has no tied head".into());
    }
    if config.sliding_layers.contains(&true) {
        return Some("candle-transformers' mixtral has a sliding window that is one token too wide".into());
    }
    let scaling = rope_scaling(config)?;
    Some(format!("candle-transformers' mixtral ignores RoPE scaling of type {scaling}"))
}
