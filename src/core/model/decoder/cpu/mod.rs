//! The decoder on CPUs: every family of the table, on the kernels of [`inference`](crate::kernels::inference).
//!
//! The forward pass is that of a rank: [`Rank::pass`]. It appends tokens to one sequence or to several, whose tokens are rows
//! that follow each other. Linear layers, norms and feed-forwards do not distinguish the sequences, so a step of several reads the
//! weights once. Only rotary positions, the cache and attention depend on the sequence of a row. A decoder has one rank, or
//! several that share the work of each layer (tensor parallelism).
//!
//! The residual stream is f32, and what is multiplied has the dtype `E` of the weights. The threads meet five times per layer:
//! for queries, keys and values; for attention; for its output; for the first half of the feed-forward; for the second half.
//!
//! - `load` reads and packs the weights, or the part of a rank.
//! - `sequences` holds the sequences and their pages.
//! - `rank` is the forward pass, and `feed_forward` computes one expert or a mixture.
//! - `team` runs several ranks at the same time, and sums over them.

mod feed_forward;
mod load;
mod rank;
mod sequences;
mod spans;
mod team;
#[cfg(test)]
mod tests;

pub use load::{load, refusal};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::routing::{ExpertLoad, Step};
use crate::{
    kernels::inference::{Element, Operand, Weights},
    model::{
        causal_lm::{CacheBytes, CausalLm, Footprint, LogitRows, Part},
        config::ModelConfig,
    },
};
use feed_forward::{Expert, FeedForward};
use rank::{Layer, Rank};
use sequences::{MAX_SEQUENCES, allocated_bytes};
use team::Team;

/// Bytes of the caches of all layers with `tokens` in the sequence, with keys and values in `dtype`.
pub fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let layer = |sliding: &bool| match config.sliding_window.filter(|_| *sliding) {
        Some(window) => window.min(tokens),
        None => tokens,
    };
    let seen: usize = config.sliding_layers.iter().map(layer).sum();
    let used = config.cache_row_bytes(dtype) * seen as u64;
    CacheBytes { used, allocated: allocated_bytes(config, dtype, tokens) }
}

/// Rows of logits that one product computes. The product reads the head once, and its result takes 64 MiB where the vocabulary
/// has 262,144 tokens.
const LOGIT_ROWS: usize = 64;

/// A decoder with its sequences. Activations are `E`, and keys and values are `C`.
pub struct CpuDecoder<E, C = E> {
    config: ModelConfig,
    dtype: DType,
    /// That of keys and values.
    cache_dtype: DType,
    /// One, or several that share each layer.
    ranks: Vec<Rank<E, C>>,
    /// The threads of several ranks.
    team: Option<Team>,
}

impl<E: Element, C: Operand> CpuDecoder<E, C> {
    /// Appends the tokens of `parts`. Returns the residual stream after the last layer for all of them: (tokens, hidden).
    pub(super) fn hidden(&mut self, parts: &[Part]) -> Result<Vec<f32>> {
        parts.iter().try_for_each(|part| self.check(part))?;
        // All ranks have room before one starts, because those that started would wait for the others.
        self.ranks.iter_mut().try_for_each(|rank| rank.begin(parts))?;
        Ok(self.each(|rank| rank.pass(parts)).swap_remove(0))
    }

    /// Calls `task` with every rank, with several at the same time.
    fn each<T: Send>(&mut self, task: impl Fn(&mut Rank<E, C>) -> T + Sync) -> Vec<T> {
        match &self.team {
            Some(team) => team.each(&mut self.ranks, task),
            None => self.ranks.iter_mut().map(task).collect(),
        }
    }

    /// Checks the tokens of a part and the length of its sequence.
    fn check(&self, part: &Part) -> Result<()> {
        let ModelConfig { max_position_embeddings: longest, vocab_size, .. } = self.config;
        let end = part.position.saturating_add(part.tokens.len());
        ensure!(!part.tokens.is_empty(), "a forward pass needs at least one token");
        ensure!(end <= longest, "{end} tokens exceed max_position_embeddings={longest}");
        let unknown = part.tokens.iter().find(|token| **token as usize >= vocab_size);
        ensure!(unknown.is_none(), "token {} is not below vocab_size={vocab_size}", unknown.unwrap_or(&0));
        Ok(())
    }

    /// Appends the tokens of `parts`. Returns the logits that follow the last token of each: (parts, vocabulary).
    fn step(&mut self, parts: &[Part]) -> Result<Tensor> {
        let (h, hidden) = (self.hidden(parts)?, self.config.hidden_size);
        let mut last = Vec::with_capacity(parts.len() * hidden);
        let mut end = 0;
        for part in parts {
            end += part.tokens.len() * hidden;
            last.extend_from_slice(&h[end - hidden..end]);
        }
        Ok(Tensor::from_vec(self.logits(&last), (parts.len(), self.config.vocab_size), &Device::Cpu)?)
    }

    /// Logits of rows of the residual stream: (rows, vocabulary). Each rank computes those of its tokens.
    pub(super) fn logits(&mut self, h: &[f32]) -> Vec<f32> {
        let mut parts = self.each(|rank| rank.logits(h));
        if parts.len() == 1 {
            return parts.swap_remove(0);
        }
        let rows = h.len() / self.config.hidden_size;
        let mut logits = Vec::with_capacity(rows * self.config.vocab_size);
        for row in 0..rows {
            for (rank, part) in self.ranks.iter().zip(&parts) {
                let width = rank.vocabulary.len();
                logits.extend_from_slice(&part[row * width..][..width]);
            }
        }
        logits
    }

    /// Ranks that hold the same key-value heads, because there are fewer heads than ranks.
    fn kv_copies(&self) -> usize {
        self.ranks.iter().map(|rank| rank.config.num_key_value_heads).sum::<usize>() / self.config.num_key_value_heads
    }
}

#[cfg(test)]
impl CpuDecoder<f32> {
    /// The routes of a layer for the inputs of its feed-forward, and its output; `None` if it is dense.
    pub(super) fn mixture(&mut self, layer: usize, x: &[f32]) -> Option<(super::routing::Routes, Vec<f32>)> {
        self.ranks[0].mixture(layer, x)
    }
}

impl<E: Element, C: Operand> CausalLm for CpuDecoder<E, C> {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        Ok(self.step(&[Part { sequence: 0, tokens, position }])?.squeeze(0)?)
    }

    fn reset(&mut self) -> Result<()> {
        for rank in &mut self.ranks {
            rank.sequences.clear();
            rank.load.clear();
        }
        self.team.iter().for_each(Team::clear);
        Ok(())
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        let hidden = self.hidden(&[Part { sequence: 0, tokens, position: 0 }])?;
        let (width, vocabulary, count) = (self.config.hidden_size, self.config.vocab_size, tokens.len());
        let block = move |first: usize| {
            let logits = self.logits(&hidden[first * width..count.min(first + LOGIT_ROWS) * width]);
            logits.chunks_exact(vocabulary).map(|row| Ok(row.to_vec())).collect::<Vec<_>>()
        };
        Ok(Box::new((from..count).step_by(LOGIT_ROWS).flat_map(block)))
    }

    fn max_sequences(&self) -> usize {
        MAX_SEQUENCES
    }

    fn forward_batch(&mut self, parts: &[Part]) -> Result<Vec<Tensor>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.step(parts)?;
        (0..parts.len()).map(|part| Ok(logits.get(part)?)).collect()
    }

    fn release(&mut self, sequence: usize) -> Result<()> {
        self.ranks.iter_mut().try_for_each(|rank| rank.sequences.release(sequence))
    }

    fn share_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        // All ranks share as many pages.
        let shared = self.ranks.iter_mut().map(|rank| rank.sequences.share(from, to, tokens));
        Ok(shared.collect::<Result<Vec<_>>>()?.swap_remove(0))
    }

    fn footprint(&self) -> Footprint {
        let mut footprint = self.config.footprint(self.dtype);
        footprint.cache_bytes_per_token =
            self.config.cache_row_bytes(self.cache_dtype) * self.config.num_hidden_layers as u64;
        // Quantised matrices have other sizes than `config.footprint` counts, and it counts one of several copies.
        let less = |weights: &Weights<E>, copies: usize| {
            (weights.outputs() * weights.inputs() * size_of::<E>() / copies) as i64 - weights.bytes() as i64
        };
        let kv_copies = self.kv_copies();
        let (mut of_embedding, mut of_step, mut of_idle) = (0, 0, 0);
        for rank in &self.ranks {
            of_embedding += rank.embedding.as_ref().map_or(0, |weights| less(weights, 1));
            of_step += less(rank.head.weights(), 1);
            for Layer { q, k, v, o, feed_forward: FeedForward { router, experts, shared, .. }, .. } in &rank.layers {
                of_step += [q, o].map(|linear| less(linear.weights(), 1)).iter().sum::<i64>();
                of_step += [k, v].map(|linear| less(linear.weights(), kv_copies)).iter().sum::<i64>();
                let expert =
                    |expert: &Expert<E>| expert.linears().map(|linear| less(linear.weights(), 1)).iter().sum::<i64>();
                of_step += shared.as_ref().map_or(0, |shared| expert(&shared.expert));
                let of_experts: i64 = experts.iter().map(expert).sum();
                let used = router.as_ref().map_or(1, |router| router.top_k) as i64;
                let of_used = of_experts * used / experts.len() as i64;
                of_step += of_used;
                of_idle += of_experts - of_used;
            }
        }
        footprint.step_weight_bytes = footprint.step_weight_bytes.saturating_add_signed(-of_step);
        footprint.weight_bytes = footprint.weight_bytes.saturating_add_signed(-(of_step + of_idle + of_embedding));
        footprint
    }

    fn step_weight_bytes(&self, sequences: usize) -> u64 {
        // An expert is idle if none of the sequences chooses it. Each chooses `top_k` of the experts evenly.
        let more = |layer: &Layer<E>| {
            let FeedForward { router, experts, .. } = &layer.feed_forward;
            let Some(router) = router else { return 0.0 };
            let idle = 1.0 - router.top_k as f64 / experts.len() as f64;
            let biases = self.config.expert_biases() * experts.len() * size_of::<E>() / self.ranks.len();
            let bytes = experts.iter().map(Expert::weight_bytes).sum::<u64>() + biases as u64;
            (idle - idle.powf(sequences as f64)) * bytes as f64
        };
        self.footprint().step_weight_bytes
            + self.ranks.iter().flat_map(|rank| &rank.layers).map(more).sum::<f64>() as u64
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn cache_bytes(&self, tokens: usize) -> CacheBytes {
        let CacheBytes { used, allocated } = cache_bytes(&self.config, self.cache_dtype, tokens);
        let copies = self.kv_copies() as u64;
        CacheBytes { used: used * copies, allocated: allocated * copies }
    }

    fn prefill_flops(&self, tokens: usize) -> u64 {
        self.config.prefill_flops(tokens)
    }

    fn prompt_bytes(&self, tokens: usize) -> Option<u64> {
        let of_token: usize = self.ranks.iter().map(Rank::token_bytes).sum();
        // Those of several ranks are joined.
        let rows = 1 + usize::from(self.team.is_some());
        Some((of_token * tokens + rows * self.config.vocab_size * size_of::<f32>()) as u64)
    }

    /// Those of the last steps of a mixture, one step after the other, because the caches hold what steps have in common. Before the
    /// first step, those of every expert.
    fn weights(&self) -> Option<Vec<&[u64]>> {
        // Every rank chooses the same experts.
        let mut steps: Vec<Option<&Step>> = self.ranks[0].last_steps.iter().map(Some).collect();
        if steps.is_empty() {
            steps.push(None);
        }
        let linears = steps.into_iter().flat_map(|step| self.ranks.iter().flat_map(move |rank| rank.linears(step)));
        Some(linears.map(|linear| linear.weights().words()).collect())
    }

    fn attention(&self) -> Option<(&'static str, DType)> {
        Some(("paged", self.cache_dtype))
    }

    fn planted_skew(&self) -> Option<f64> {
        self.ranks[0].planted.as_ref().map(|planted| planted.skew)
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        // Every rank chooses the same experts.
        Some(&self.ranks[0].load).filter(|load| !load.layers.is_empty())
    }

    fn reduced_bytes(&self) -> Option<u64> {
        self.team.as_ref().map(Team::reduced_bytes)
    }
}
