//! The trait that a model implements to be measured.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::decoder::ExpertLoad;

/// An autoregressive language model with a cache of what it has seen, for a batch of one sequence.
///
/// Five methods are enough to run every generation scenario. The others refine what is reported and have defaults.
pub trait CausalLm {
    /// Appends `tokens` to the sequence and returns the logits that follow the last of them.
    ///
    /// `position` is how many tokens the cache already holds, so 0 for a prompt. The result is f32 of shape
    /// `(vocab_size)`, on [`device`](Self::device). Work may still be in flight on an asynchronous device; the caller
    /// synchronises before it reads a clock.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor>;

    /// Forgets the sequence. Not timed.
    fn reset(&mut self) -> Result<()>;

    /// What the model weighs.
    fn footprint(&self) -> Footprint;

    fn vocab_size(&self) -> usize;

    /// The longest sequence, prompt and generated tokens together.
    fn max_position_embeddings(&self) -> usize;

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    /// Bytes of key-value cache that a step reads, and that are allocated, with `tokens` in the sequence. The default
    /// grows with the sequence; sliding windows and preallocated caches say otherwise.
    fn cache_bytes(&self, tokens: usize) -> CacheBytes {
        let bytes = self.footprint().cache_bytes_per_token * tokens as u64;
        CacheBytes { used: bytes, allocated: bytes }
    }

    /// Floating-point operations of a prompt of `tokens`. The default counts the matrix products with the weights and
    /// leaves out attention's quadratic term.
    fn prefill_flops(&self, tokens: usize) -> u64 {
        self.footprint().flops_per_token * tokens as u64
    }

    /// Tokens that each expert was given since the last reset, where there are experts.
    fn expert_load(&self) -> Option<&ExpertLoad> {
        None
    }

    /// How unevenly tokens are sent to experts, where that is set and not the routers' choice.
    fn planted_skew(&self) -> Option<f64> {
        None
    }

    /// Why the output of such a generation differs from the reference implementation's, where that is known. It still
    /// runs, and the reason stands in the record and in every table.
    fn deviates(&self, prompt_tokens: usize, new_tokens: usize) -> Option<String> {
        let _ = (prompt_tokens, new_tokens);
        None
    }
}

/// What a model weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Trainable numbers; a head tied to the embedding counts once.
    pub parameters: u64,
    /// Bytes that the weights take up in memory.
    pub weight_bytes: u64,
    /// Bytes of weights that one decode step reads: all but the embedding rows that are not looked up.
    pub step_weight_bytes: u64,
    /// Bytes of keys and values that one token adds to the cache, over all layers.
    pub cache_bytes_per_token: u64,
    /// Floating-point operations of one token's matrix products with the weights: twice the weights multiplied.
    pub flops_per_token: u64,
}

impl Footprint {
    /// Of a model whose every weight is read and multiplied once for each token, as in a decoder with a tied head.
    pub fn dense(parameters: usize, dtype: DType, cache_bytes_per_token: usize) -> Self {
        let bytes = (parameters * dtype.size_in_bytes()) as u64;
        Self {
            parameters: parameters as u64,
            weight_bytes: bytes,
            step_weight_bytes: bytes,
            cache_bytes_per_token: cache_bytes_per_token as u64,
            flops_per_token: 2 * parameters as u64,
        }
    }
}

/// Key-value cache in bytes. `used` is what a decode step reads; `allocated` is what the implementation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheBytes {
    pub used: u64,
    pub allocated: u64,
}
