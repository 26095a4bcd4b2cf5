//! The trait that a model implements to be measured.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::decoder::ExpertLoad;

/// The tokens that one sequence contributes to a step of several sequences.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The number of the sequence.
    pub sequence: usize,
    /// Tokens to append; at least one.
    pub tokens: &'a [u32],
    /// Number of tokens in the sequence before this step.
    pub position: usize,
}

/// Rows of logits, each computed when it is taken.
pub type LogitRows<'a> = Box<dyn Iterator<Item = Result<Vec<f32>>> + 'a>;

/// An autoregressive language model with a cache.
///
/// The first six methods are required. They suffice for every generation scenario; the others refine the record and have
/// defaults.
pub trait CausalLm {
    /// Appends `tokens` to the sequence and returns the logits that follow the last of them: f32 of shape `(vocab_size)`, on
    /// [`device`](Self::device).
    ///
    /// `position` is the number of tokens in the cache before this call: 0 for a prompt, and the position of the new token in
    /// a decode step. Scenarios pass the prompt in one call and then one token per call.
    ///
    /// `tokens` may also hold several tokens at a position above 0, as when a prompt is split into chunks. Each of them must
    /// attend to all earlier tokens and to no later one, so that the logits are the same, except for rounding, as those of one
    /// call with all tokens. An implementation that cannot compute this returns an error.
    ///
    /// The result may still be in flight on an asynchronous device; the caller synchronises before it reads a clock.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, the sequence is too long, or the device fails.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor>;

    /// Clears every sequence. The next call of [`forward`](Self::forward) has position 0. Not timed.
    ///
    /// # Errors
    /// If the device fails.
    fn reset(&mut self) -> Result<()>;

    /// Clears the sequence, and returns the logits that follow each of `tokens` from the index `from` on, in order: rows of
    /// `vocab_size` values. Rows are computed when they are taken, because those of a long sequence may not fit in memory.
    ///
    /// The default calls [`forward`](Self::forward) with the tokens up to `from`, and then with one token for each row.
    /// Override it where one pass over all tokens is faster.
    ///
    /// # Errors
    /// As [`forward`](Self::forward). A row that cannot be computed is an error too.
    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        Ok(Box::new((from..tokens.len()).map(move |index| {
            let position = if index == from { 0 } else { index };
            Ok(self.forward(&tokens[position..=index], position)?.to_vec1()?)
        })))
    }

    /// The largest number of sequences that the model holds at once. They have the numbers from 0 up; [`forward`](Self::forward)
    /// appends to number 0. The default is 1.
    fn max_sequences(&self) -> usize {
        1
    }

    /// Appends to several sequences in one step. Returns the logits that follow the last token of each part, in the order of
    /// `parts`: f32 of shape `(vocab_size)`. A sequence occurs in at most one part.
    ///
    /// The default calls [`forward`](Self::forward) for each part, so it holds one sequence.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if a sequence is not below [`max_sequences`](Self::max_sequences). After an error, the
    /// sequences of all parts must be released.
    fn forward_batch(&mut self, parts: &[Part]) -> Result<Vec<Tensor>> {
        let forward = |part: &Part| {
            ensure_first(part.sequence)?;
            self.forward(part.tokens, part.position)
        };
        parts.iter().map(forward).collect()
    }

    /// Forgets a sequence, so that its number and its memory can be used again. Not timed. The default resets the model.
    ///
    /// # Errors
    /// If the number is not below [`max_sequences`](Self::max_sequences), or the device fails.
    fn release(&mut self, sequence: usize) -> Result<()> {
        ensure_first(sequence)?;
        self.reset()
    }

    /// Lets the empty sequence `to` begin with the first tokens of the sequence `from`, without computing them again. Returns the
    /// number of tokens that it now holds: at most `tokens`, and fewer where the model shares whole pages of its cache. The
    /// default shares nothing.
    ///
    /// # Errors
    /// If a number is not below [`max_sequences`](Self::max_sequences), `to` is not empty, or `from` has fewer tokens.
    fn share_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        let _ = (from, to, tokens);
        Ok(0)
    }

    /// The size of the model and the cost of a step.
    fn footprint(&self) -> Footprint;

    /// Number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// The longest sequence in tokens: prompt and generated tokens together.
    fn max_position_embeddings(&self) -> usize;

    /// The device that holds the weights and the logits. Memory, bandwidth and matrix throughput are measured on it.
    fn device(&self) -> &Device;

    /// Bytes of the key-value cache with `tokens` in the sequence. The default grows in proportion to `tokens`; override it
    /// for sliding windows and preallocated caches.
    fn cache_bytes(&self, tokens: usize) -> CacheBytes {
        let bytes = self.footprint().cache_bytes_per_token * tokens as u64;
        CacheBytes { used: bytes, allocated: bytes }
    }

    /// Bytes of weights that a decode step of so many sequences reads. The default is that of one sequence,
    /// [`Footprint::step_weight_bytes`], because a step can read each weight once for all of them. Override it for a mixture
    /// of experts, where sequences choose different experts.
    fn step_weight_bytes(&self, sequences: usize) -> u64 {
        let _ = sequences;
        self.footprint().step_weight_bytes
    }

    /// Floating-point operations of a prompt of `tokens`. The default counts the products with the weights, and those of the
    /// head only for the last position. It leaves out attention's quadratic term.
    fn prefill_flops(&self, tokens: usize) -> u64 {
        let Footprint { flops_per_token, head_flops, .. } = self.footprint();
        (flops_per_token - head_flops) * tokens as u64 + head_flops
    }

    /// Memory that a prompt of `tokens` takes beside weights, cache and what grows in proportion to it: that of attention scores of
    /// all pairs of tokens. A prompt that does not fit is refused. The default is 0.
    fn score_bytes(&self, tokens: usize) -> u64 {
        let _ = tokens;
        0
    }

    /// Memory that a prompt of `tokens` takes beside weights and cache: activations and attention scores. `None` if it is not known.
    fn prompt_bytes(&self, tokens: usize) -> Option<u64> {
        let _ = tokens;
        None
    }

    /// The memory of the weights, in the order in which a decode step reads them. MBU divides by the bandwidth of reading it and doing
    /// nothing else, because the speed of memory depends on where it lies and how much of it the caches hold. The default is
    /// `None`: MBU then divides by the bandwidth of a buffer that is larger than the caches.
    fn weights(&self) -> Option<Vec<&[u64]>> {
        None
    }

    /// The implementation of attention, and the dtype of keys and values in its cache. `None` if they are not known.
    fn attention(&self) -> Option<(&'static str, DType)> {
        None
    }

    /// Tokens that each expert computed since the last reset, in a mixture of experts.
    fn expert_load(&self) -> Option<&ExpertLoad> {
        None
    }

    /// Bytes that each rank has passed to sums over the ranks since the last reset, where the layers are sharded over ranks.
    fn reduced_bytes(&self) -> Option<u64> {
        None
    }

    /// The skew with which tokens are routed to experts, if it is set instead of computed by the routers.
    fn planted_skew(&self) -> Option<f64> {
        None
    }

    /// Why the output of a generation of these lengths differs from the reference implementation's, if that is known. The
    /// generation still runs; the record and every table show the reason.
    fn deviates(&self, prompt_tokens: usize, new_tokens: usize) -> Option<String> {
        let _ = (prompt_tokens, new_tokens);
        None
    }
}

/// Checks the number of a sequence in a model that holds one.
fn ensure_first(sequence: usize) -> Result<()> {
    ensure!(sequence == 0, "this model holds one sequence, and sequence {sequence} was named");
    Ok(())
}

/// The size of a model and the cost of one token.
///
/// # Examples
///
/// A Llama with an untied head in bf16: vocabulary 128, width 64, two layers with four query heads and two key-value heads of
/// length 16, and feed-forwards of width 256.
///
/// ```
/// use candle_core::DType;
/// # use candlepower_core::model::Footprint;
///
/// let (vocabulary, width, layers, heads, kv_heads, head_dim, inner) = (128, 64, 2, 4, 2, 16, 256);
/// let head = vocabulary * width;
/// let attention = width * heads * head_dim + 2 * width * kv_heads * head_dim + heads * head_dim * width;
/// let feed_forward = 3 * width * inner;
/// let norms = 2 * width;
/// // A decode step reads all weights except the embedding, of which it reads one row. So the embedding is left out here and
/// // added afterwards.
/// let read = layers * (attention + feed_forward + norms) + width + head;
/// // Keys and values, two bytes each.
/// let cache_bytes_per_token = layers * 2 * kv_heads * head_dim * 2;
///
/// let footprint = Footprint::dense(read, head, DType::BF16, cache_bytes_per_token);
/// assert_eq!(footprint.step_weight_bytes, 2 * read as u64);
/// assert_eq!(footprint.head_flops, 2 * 128 * 64);
/// assert_eq!(footprint.cache_bytes_per_token, 256);
///
/// let embedding = (vocabulary * width) as u64;
/// let footprint = Footprint {
///     parameters: footprint.parameters + embedding,
///     weight_bytes: footprint.weight_bytes + 2 * embedding,
///     ..footprint
/// };
/// assert_eq!(footprint.parameters, 139_584);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Number of parameters. A head that is tied to the embedding counts once.
    pub parameters: u64,
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
    /// Bytes of weights that one decode step reads: all except embedding rows that are not looked up and idle experts.
    pub step_weight_bytes: u64,
    /// Bytes of keys and values that one token adds to the cache, over all layers.
    pub cache_bytes_per_token: u64,
    /// Floating-point operations of the products of one token with the weights, head included: two per multiplied weight.
    pub flops_per_token: u64,
    /// The part of `flops_per_token` that computes logits from the last hidden state. A prompt needs it once.
    pub head_flops: u64,
}

impl Footprint {
    /// The footprint of a model that reads and multiplies all its parameters for each token, such as a dense decoder whose
    /// head is the embedding.
    ///
    /// `head_parameters` of the `parameters` compute the logits: `vocab_size · hidden_size`. `cache_bytes_per_token` is the
    /// size of the keys and values of one token over all layers; 0 if the model has no such cache. Norms and biases count as
    /// multiplied, an error below 0.1 % for models of usual sizes.
    pub fn dense(parameters: usize, head_parameters: usize, dtype: DType, cache_bytes_per_token: usize) -> Self {
        let bytes = (parameters * dtype.size_in_bytes()) as u64;
        Self {
            parameters: parameters as u64,
            weight_bytes: bytes,
            step_weight_bytes: bytes,
            cache_bytes_per_token: cache_bytes_per_token as u64,
            flops_per_token: 2 * parameters as u64,
            head_flops: 2 * head_parameters as u64,
        }
    }
}

/// Size of a key-value cache in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBytes {
    /// Bytes that a decode step reads.
    pub used: u64,
    /// Bytes that the implementation holds.
    pub allocated: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{shape, stock::Stock, synthetic};

    /// A model that implements only the required methods.
    struct Own(Stock);

    impl CausalLm for Own {
        fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
            self.0.forward(tokens, position)
        }
        fn reset(&mut self) -> Result<()> {
            self.0.reset()
        }
        fn footprint(&self) -> Footprint {
            self.0.footprint()
        }
        fn vocab_size(&self) -> usize {
            self.0.vocab_size()
        }
        fn max_position_embeddings(&self) -> usize {
            self.0.max_position_embeddings()
        }
        fn device(&self) -> &Device {
            self.0.device()
        }
    }

    /// The defaults for batches hold one sequence, number 0.
    #[test]
    fn one_sequence_is_a_batch_of_one() {
        let config = shape("llama-mini").expect("a shape");
        let weights = synthetic::weights(&config, 1, DType::F32, &Device::Cpu);
        let mut own = Own(Stock::new(config, weights).expect("a model"));
        let part = |tokens, position| Part { sequence: 0, tokens, position };
        let numbers = |logits: &Tensor| logits.to_vec1::<f32>().expect("logits");
        let expected = [own.forward(&[3, 4], 0), own.forward(&[5], 2)].map(|logits| numbers(&logits.expect("a pass")));
        own.reset().expect("a reset");

        assert_eq!(own.max_sequences(), 1);
        for _ in 0..2 {
            for (part, expected) in [part(&[3, 4], 0), part(&[5], 2)].iter().zip(&expected) {
                let logits = own.forward_batch(&[*part]).expect("a batch");
                assert_eq!(logits.len(), 1);
                assert_eq!(&numbers(&logits[0]), expected);
            }
            assert_eq!(own.share_prefix(0, 0, 3).expect("nothing"), 0);
            own.release(0).expect("the number can be used again");
        }
        for error in [own.forward_batch(&[Part { sequence: 1, ..part(&[3], 0) }]).map(drop), own.release(1)] {
            let error = error.expect_err("there is no such sequence").to_string();
            assert_eq!(error, "this model holds one sequence, and sequence 1 was named");
        }
        assert!(own.forward_batch(&[]).expect("an empty step").is_empty());
    }

    /// The default differs from the built-in count by attention only.
    #[test]
    fn default_prefill_flops_count_the_head_once() {
        let config = shape("llama-mini").expect("a shape");
        let width = config.num_attention_heads * config.head_dim * config.num_hidden_layers;
        let weights = synthetic::weights(&config, 1, DType::F32, &Device::Cpu);
        let own = Own(Stock::new(config, weights).expect("a model"));
        for tokens in [1, 64, 1024] {
            let attention = 4 * (width * tokens * (tokens + 1) / 2) as u64;
            assert_eq!(own.prefill_flops(tokens) + attention, own.0.prefill_flops(tokens), "{tokens} tokens");
        }
        // Counting the head for every token would be off by more than a tenth.
        let footprint = own.footprint();
        assert!(footprint.flops_per_token * 64 > own.prefill_flops(64) * 11 / 10, "{footprint:?}");
    }
}
