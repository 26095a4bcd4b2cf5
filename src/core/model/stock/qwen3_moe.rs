//! candle-transformers' `qwen3_moe`.

use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3_moe;

use super::{Module, Published, activation, never_deviates, qwen3, rope_scaling, shared_rope_tables};
use crate::model::config::ModelConfig;

pub(super) const MODULE: Module = Module {
    architecture: "Qwen3MoeForCausalLM",
    refusal,
    deviates: never_deviates,
    load,
    rope_table_bytes: shared_rope_tables,
    ..qwen3::MODULE
};

impl Published for qwen3_moe::ModelForCausalLM {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        Ok(Self::forward(self, tokens, position)?)
    }

    fn reset(&mut self) {
        self.clear_kv_cache();
    }
}

fn load(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Box<dyn Published>> {
    Ok(Box::new(qwen3_moe::ModelForCausalLM::new(&published(config)?, weights)?))
}

fn refusal(config: &ModelConfig) -> Option<String> {
    if config.sliding_layers.contains(&true) {
        return Some("candle-transformers' qwen3_moe has no sliding layers".into());
    }
    if sparse_step(config).is_none() {
        return Some("candle-transformers' qwen3_moe ignores mlp_only_layers".into());
    }
    let scaling = rope_scaling(config)?;
    Some(format!("candle-transformers' qwen3_moe ignores RoPE scaling of type {scaling}"))
}

/// The interval of mixtures; `None` if they are not at regular intervals.
pub(super) fn sparse_step(config: &ModelConfig) -> Option<usize> {
    let layers = &config.experts.as_ref()?.layers;
    let step = layers.iter().position(|is_mixture| *is_mixture)? + 1;
    let is_regular = |(layer, is_mixture): (usize, &bool)| *is_mixture == (layer + 1).is_multiple_of(step);
    layers.iter().enumerate().all(is_regular).then_some(step)
}

fn published(config: &ModelConfig) -> Result<qwen3_moe::Config> {
    let experts = config.experts.as_ref().context("config.json: it has no experts")?;
    Ok(qwen3_moe::Config {
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
        decoder_sparse_step: sparse_step(config).unwrap_or(1),
        moe_intermediate_size: experts.intermediate_size,
        num_experts_per_tok: experts.num_experts_per_tok,
        num_experts: experts.num_experts,
        norm_topk_prob: experts.norm_topk_prob,
    })
}
