//! The configurations that `moe_top_k` compares: one small decoder with a dense feed-forward or a mixture.

use anyhow::Result;
use serde_json::json;

use crate::{
    model::config::ModelConfig,
    scenario::{ExpertDecoder, FeedForward},
};

/// Length of a head. The queries are about as wide as the decoder.
const HEAD_DIM: usize = 64;

/// The configuration of a decoder.
///
/// # Errors
/// If there are no experts, or a token has none or more than there are.
pub fn config(decoder: ExpertDecoder) -> Result<ModelConfig> {
    let hidden_size = decoder.hidden_size;
    match decoder.feed_forward {
        FeedForward::Mixture { num_experts, top_k, .. } => mixture(num_experts, top_k, hidden_size),
        FeedForward::Dense { experts } => dense_twin(experts, hidden_size),
    }
}

/// A decoder of four layers, each a mixture of `num_experts` of which `top_k` compute a token. Each expert is as wide as the
/// decoder.
///
/// # Errors
/// If there are no experts, or `top_k` is 0 or more than there are.
pub(super) fn mixture(num_experts: usize, top_k: usize, hidden_size: usize) -> Result<ModelConfig> {
    configuration("Qwen3MoeForCausalLM", hidden_size, (num_experts, top_k), hidden_size)
}

/// The same decoder with a dense feed-forward as wide as `experts` experts together. With `top_k` experts it is the twin of
/// equal active parameters; with all experts it is the twin of equal total parameters.
///
/// # Errors
/// If `experts` is 0.
fn dense_twin(experts: usize, hidden_size: usize) -> Result<ModelConfig> {
    configuration("Qwen3ForCausalLM", hidden_size, (1, 1), experts * hidden_size)
}

fn configuration(
    architecture: &str,
    hidden_size: usize,
    (num_experts, top_k): (usize, usize),
    width: usize,
) -> Result<ModelConfig> {
    let heads = (hidden_size / HEAD_DIM).max(1);
    // Two query heads share keys and values, where their number allows it.
    let kv_heads = if heads.is_multiple_of(2) { heads / 2 } else { heads };
    ModelConfig::from_json(&json!({
        "architectures": [architecture],
        "hidden_size": hidden_size,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
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
        for hidden_size in [512, 96, 1] {
            let config = mixture(16, 2, hidden_size).expect("a mixture");
            assert_eq!(feed_forward(&config), feed_forward(&dense_twin(16, hidden_size).expect("a twin")));
            assert_eq!(feed_forward(&config) / 8, feed_forward(&dense_twin(2, hidden_size).expect("a twin")));
        }
    }

    #[test]
    fn the_usual_width_has_eight_heads() {
        let config = mixture(16, 2, 512).expect("a mixture");
        assert_eq!((config.hidden_size, config.num_attention_heads, config.num_key_value_heads), (512, 8, 4));
        let config = mixture(16, 2, 200).expect("a mixture");
        assert_eq!((config.hidden_size, config.num_attention_heads, config.num_key_value_heads), (200, 3, 3));
    }

    #[test]
    fn impossible_mixtures_are_refused() {
        for (experts, top_k, part) in
            [(4, 5, "exceeds the number of experts, 4"), (0, 1, "num_experts is 0"), (4, 0, "is 0")]
        {
            let error = mixture(experts, top_k, 512).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(dense_twin(0, 512).is_err());
    }
}
