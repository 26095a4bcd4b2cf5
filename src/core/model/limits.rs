//! Bounds on sizes, checked before anything is allocated by them: those in `config.json` here, those of trainings and of the
//! sweep by [`check_sizes`] where their keys are. A file from elsewhere, or a slip of the finger, may hold any number; within
//! these bounds no size and no product of sizes overflows, and a list with an entry for each layer or expert fits in memory.
//! [`DoesNotFit`](crate::measure::memory::DoesNotFit) is the error for weights that do not fit.

use anyhow::{Result, ensure};
use serde_json::Value;

/// Keys of one size each, with the largest value. Every published model is far below.
const LARGEST: [(&[&str], u64); 8] = [
    (&["num_hidden_layers"], 1 << 14),
    (&["hidden_size", "head_dim", "moe_intermediate_size"], 1 << 20),
    (&["intermediate_size", "shared_expert_intermediate_size"], 1 << 24),
    (&["vocab_size"], 1 << 26),
    (&["num_attention_heads", "num_key_value_heads"], 1 << 16),
    (&["num_experts", "num_local_experts", "num_experts_per_tok"], 1 << 16),
    (&["max_position_embeddings", "original_max_position_embeddings"], 1 << 32),
    (&["sliding_window", "sliding_window_pattern", "max_window_layers", "decoder_sparse_step"], 1 << 32),
];

/// Products of keys that are allocated as one list or tensor, or summed over all layers, with the largest value. A key that
/// the file leaves out counts as 1: its default is small.
const PRODUCTS: [(&[&str], u64); 8] = [
    // Names of tensors.
    (&["num_hidden_layers", "num_experts"], 1 << 20),
    (&["num_hidden_layers", "num_local_experts"], 1 << 20),
    // Weights of one kind in all layers.
    (&["vocab_size", "hidden_size"], MOST_WEIGHTS),
    (&["num_hidden_layers", "num_attention_heads", "head_dim", "hidden_size"], MOST_WEIGHTS),
    (&["num_hidden_layers", "num_key_value_heads", "head_dim", "hidden_size"], MOST_WEIGHTS),
    (&["num_hidden_layers", "num_local_experts", "intermediate_size", "hidden_size"], MOST_WEIGHTS),
    (&["num_hidden_layers", "num_experts", "moe_intermediate_size", "hidden_size"], MOST_WEIGHTS),
    // The tables of RoPE and the cache of all layers, in elements.
    (&["num_hidden_layers", "num_key_value_heads", "head_dim", "max_position_embeddings"], MOST_WEIGHTS),
];

/// A thousand times the largest published models. Sums of a few such counts, in bytes, fit into 64 bits.
pub const MOST_WEIGHTS: u64 = 1 << 50;

/// Most products of numbers in one pass over a batch: days of the fastest machine. A few passes of each kind fit into 64 bits.
pub const MOST_PRODUCTS: u64 = 1 << 58;

/// Checks the sizes in a parsed `config.json`. Keys of the wrong type are left to the reader of each key.
///
/// # Errors
/// One line that names the key or the product, its value and the limit.
pub fn check(json: &Value) -> Result<()> {
    check_sizes("config.json: ", &LARGEST, &PRODUCTS, |key| json.get(key).and_then(Value::as_u64))
}

/// Checks sizes by name against the largest value of each key and of products of keys. A key without a size counts as 1.
/// Within the limits, no product of sizes overflows before the check of memory is reached.
///
/// # Errors
/// One line that begins with `owner` and names the key or the product, its value and the limit.
pub fn check_sizes(
    owner: &str,
    largest: &[(&[&str], u64)],
    products: &[(&[&str], u64)],
    size: impl Fn(&str) -> Option<u64>,
) -> Result<()> {
    for (keys, largest) in largest {
        for key in *keys {
            let value = size(key).unwrap_or(0);
            ensure!(value <= *largest, "{owner}{key} is {value}; at most {largest} is supported");
        }
    }
    for (keys, largest) in products {
        let product = keys.iter().filter_map(|key| size(key)).fold(1_u128, |all, one| all.saturating_mul(one.into()));
        ensure!(
            product <= u128::from(*largest),
            "{owner}{} is {product}; at most {largest} is supported",
            keys.join(" * ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_that_no_model_has_are_refused_by_their_key() {
        for (sizes, part) in [
            (json!({"num_hidden_layers": 1_000_000_000_000_u64}), "num_hidden_layers is 1000000000000"),
            (json!({"num_hidden_layers": 1_u64 << 62}), "num_hidden_layers is"),
            (json!({"vocab_size": u64::MAX}), "vocab_size is 18446744073709551615"),
            (json!({"hidden_size": 1_u64 << 40}), "hidden_size is"),
            (json!({"intermediate_size": 100_000_000_000_u64}), "intermediate_size is"),
            (json!({"num_attention_heads": 1_u64 << 63}), "num_attention_heads is"),
            (json!({"num_key_value_heads": 1_u64 << 63}), "num_key_value_heads is"),
            (json!({"head_dim": 1_u64 << 63}), "head_dim is"),
            (json!({"num_experts": 1_u64 << 30}), "num_experts is"),
            (json!({"num_experts_per_tok": 1_u64 << 30}), "num_experts_per_tok is"),
            (json!({"max_position_embeddings": 1_u64 << 60}), "max_position_embeddings is"),
            (json!({"sliding_window": u64::MAX}), "sliding_window is"),
            (json!({"sliding_window_pattern": u64::MAX}), "sliding_window_pattern is"),
            (
                json!({"num_hidden_layers": 1 << 14, "num_local_experts": 1 << 16}),
                "num_hidden_layers * num_local_experts is",
            ),
            (
                json!({"num_hidden_layers": 1 << 10, "intermediate_size": 1 << 24, "hidden_size": 1 << 20}),
                "intermediate_size * hidden_size is",
            ),
            (
                json!({"num_key_value_heads": 1 << 16, "head_dim": 1 << 20, "max_position_embeddings": 1_u64 << 32}),
                "max_position_embeddings is",
            ),
        ] {
            let error = check(&sizes).expect_err(part).to_string();
            assert!(error.contains(part) && error.starts_with("config.json: "), "{error}");
        }
    }

    #[test]
    fn published_sizes_pass() {
        // Llama 3.1 405B, DeepSeek-V3 and Llama 4 Scout.
        for sizes in [
            json!({"num_hidden_layers": 126, "hidden_size": 16_384, "intermediate_size": 53_248, "vocab_size": 128_256, "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131_072}),
            json!({"num_hidden_layers": 61, "hidden_size": 7168, "num_experts": 256, "moe_intermediate_size": 2048, "num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 192, "max_position_embeddings": 163_840}),
            json!({"num_hidden_layers": 48, "hidden_size": 5120, "num_local_experts": 16, "intermediate_size": 8192, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 10_485_760}),
        ] {
            check(&sizes).expect("a published model");
        }
    }
}
