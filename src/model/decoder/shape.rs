//! The configurations that `moe_top_k` compares: one small decoder with a dense feed-forward or a mixture.

use anyhow::Result;
use serde_json::json;

use crate::{model::config::ModelConfig, scenario::FeedForward};

/// Inner width of one expert. A dense twin has this width for each expert that it replaces.
const EXPERT_WIDTH: usize = 512;

/// The decoder with this feed-forward.
///
/// # Errors
/// If there are no experts, or a token has none or more than there are.
pub fn config(feed_forward: FeedForward) -> Result<ModelConfig> {
    match feed_forward {
        FeedForward::Mixture { num_experts, top_k, .. } => mixture(num_experts, top_k),
        FeedForward::Dense { experts } => dense_twin(experts),
    }
}

/// A decoder of four layers, each a mixture of `num_experts` of which `top_k` compute a token.
///
/// # Errors
/// If there are no experts, or `top_k` is 0 or more than there are.
pub(super) fn mixture(num_experts: usize, top_k: usize) -> Result<ModelConfig> {
    configuration("Qwen3MoeForCausalLM", num_experts, top_k, EXPERT_WIDTH)
}

/// The same decoder with a dense feed-forward as wide as `experts` experts together. With `top_k` experts it is the twin of
/// equal active parameters; with all experts it is the twin of equal total parameters.
///
/// # Errors
/// If `experts` is 0.
fn dense_twin(experts: usize) -> Result<ModelConfig> {
    configuration("Qwen3ForCausalLM", 1, 1, experts * EXPERT_WIDTH)
}

fn configuration(architecture: &str, num_experts: usize, top_k: usize, width: usize) -> Result<ModelConfig> {
    ModelConfig::from_json(&json!({
        "architectures": [architecture],
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 8192,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        "tie_word_embeddings": true,
        "intermediate_size": width,
        "moe_intermediate_size": width,
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": true,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ExpertLayout;

    fn feed_forward(config: &ModelConfig) -> usize {
        let tensors = config.tensors(ExpertLayout::Stacked);
        let is_part = |name: &str| name.contains(".mlp.") && !name.contains(".gate.");
        tensors.iter().filter(|(name, _)| is_part(name)).map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn twins_have_as_many_parameters() {
        let config = mixture(16, 2).expect("a mixture");
        assert_eq!(feed_forward(&config), feed_forward(&dense_twin(16).expect("a twin")));
        assert_eq!(feed_forward(&config) / 8, feed_forward(&dense_twin(2).expect("a twin")));
    }

    #[test]
    fn impossible_mixtures_are_refused() {
        for (experts, top_k, part) in
            [(4, 5, "exceeds the number of experts, 4"), (0, 1, "num_experts is 0"), (4, 0, "is 0")]
        {
            let error = mixture(experts, top_k).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(dense_twin(0).is_err());
    }
}
