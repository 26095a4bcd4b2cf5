//! candle-transformers' `qwen3`.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3;

use super::{Module, Published, activation, never_deviates, rope_scaling, shared_rope_tables};
use crate::model::config::ModelConfig;

pub(super) const MODULE: Module = Module {
    architecture: "Qwen3ForCausalLM",
    refusal,
    deviates: never_deviates,
    load,
    rope_table_bytes: shared_rope_tables,
    // Candle's flash attention for CPUs needs none. Elsewhere, the scores and the probabilities.
    bytes_per_score: |dtype, device| if device.is_cpu() { 0 } else { 2 * dtype.size_in_bytes() },
    preallocates_cache: false,
};

impl Published for qwen3::ModelForCausalLM {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        Ok(Self::forward(self, tokens, position)?)
    }

    fn reset(&mut self) {
        self.clear_kv_cache();
    }
}

fn load(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Box<dyn Published>> {
    Ok(Box::new(qwen3::ModelForCausalLM::new(&published(config)?, weights)?))
}

fn refusal(config: &ModelConfig) -> Option<String> {
    if config.sliding_layers.contains(&true) {
        return Some("candle-transformers' qwen3 has no sliding layers".into());
    }
    let scaling = rope_scaling(config)?;
    Some(format!("candle-transformers' qwen3 ignores RoPE scaling of type {scaling}"))
}

fn published(config: &ModelConfig) -> Result<qwen3::Config> {
    Ok(qwen3::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        head_dim: config.head_dim,
        attention_bias: config.qkv_bias,
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
