//! The decoder on CPUs: every family of the table, on the kernels of [`inference`](crate::kernels::inference).
//!
//! [`CpuDecoder::hidden`] is the forward pass. It appends tokens to one sequence or to several, whose tokens are rows that
//! follow each other. Linear layers, norms and feed-forwards do not distinguish the sequences, so a step of several reads the
//! weights once. Only rotary positions, the cache and attention depend on the sequence of a row.
//!
//! The residual stream is f32, and what is multiplied has the dtype `E` of the weights. The threads meet five times per layer:
//! for queries, keys and values; for attention; for its output; for the first half of the feed-forward; for the second half.
//!
//! - `load` reads and packs the weights.
//! - `sequences` holds the sequences and their pages.
//! - `feed_forward` computes one expert or a mixture.

mod feed_forward;
mod load;
mod sequences;
#[cfg(test)]
mod tests;

pub use load::{load, refusal};

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::routing::{ExpertLoad, Planted};
use crate::{
    kernels::inference::{
        Angles, Attention, Element, Heads, Linear, Machine, Product, Region, RowNorm, Rows, Span, Then, Weights,
        add_norm, embed, norm, products, soft_cap,
    },
    model::{
        causal_lm::{CacheBytes, CausalLm, Footprint, LogitRows, Part},
        config::ModelConfig,
    },
};
use feed_forward::{Expert, FeedForward};
use sequences::{MAX_SEQUENCES, Sequences, allocated_bytes};

/// Bytes of the caches of all layers with `tokens` in the sequence.
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

/// A decoder with its sequences.
pub struct CpuDecoder<E> {
    config: ModelConfig,
    dtype: DType,
    machine: Machine,
    /// `None` if the embedding is also the head.
    embedding: Option<Weights<E>>,
    embedding_scale: f32,
    layers: Vec<Layer<E>>,
    norm: RowNorm,
    head: Linear<E>,
    /// Frequencies and scale of the rotary positions of global and of local layers.
    ropes: [(Vec<f32>, f32); 2],
    memory: Memory<E>,
    sequences: Sequences<E>,
    load: ExpertLoad,
    planted: Option<Planted>,
}

struct Layer<E> {
    before_attention: RowNorm,
    q: Linear<E>,
    k: Linear<E>,
    v: Linear<E>,
    o: Linear<E>,
    qk_norms: Option<(RowNorm, RowNorm)>,
    attention: Attention,
    /// Index of its RoPE.
    rope: usize,
    after_attention: Option<RowNorm>,
    before_feed_forward: RowNorm,
    feed_forward: FeedForward<E>,
    after_feed_forward: Option<RowNorm>,
}

/// Results between operations, kept from layer to layer. Vectors grow to the longest pass.
#[derive(Default)]
struct Memory<E> {
    /// Inputs of a block, after its norm.
    x: Vec<E>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    heads: Vec<E>,
    /// Output of a block that has a norm after it.
    out: Vec<f32>,
    feed_forward: feed_forward::Memory<E>,
}

/// The first `len` elements, of any value.
fn room<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

impl<E: Element> CpuDecoder<E> {
    /// Appends the tokens of `parts`. Returns the residual stream after the last layer for all of them: (tokens, hidden).
    pub(super) fn hidden(&mut self, parts: &[Part]) -> Result<Vec<f32>> {
        parts.iter().try_for_each(|part| self.check(part))?;
        let Self { config, machine, embedding, head, layers, ropes, memory, sequences, load, planted, .. } = self;
        let mut spans = sequences.begin(parts)?;
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let mut h = vec![0.0; tokens.len() * config.hidden_size];
        embed(machine, embedding.as_ref().unwrap_or(head.weights()), &tokens, self.embedding_scale, &mut h);
        let angles = ropes
            .each_ref()
            .map(|(frequencies, scale)| Angles::new(frequencies, *scale, spans.iter().flat_map(Span::positions)));
        let planted_positions: Vec<Range<usize>> = parts.iter().map(Planted::positions).collect();
        for (number, layer) in layers.iter().enumerate() {
            let cache = sequences.region(number);
            layer.attend(machine, &mut h, (&mut spans, cache), &angles[layer.rope], memory);
            let planted = planted.as_ref().map(|planted| (planted, planted_positions.as_slice()));
            layer.feed_forward(machine, &mut h, memory, planted, load);
        }
        sequences.end(parts, spans);
        Ok(h)
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

    /// Logits of rows of the residual stream: (rows, vocabulary).
    pub(super) fn logits(&mut self, h: &[f32]) -> Vec<f32> {
        let (hidden, rows) = (self.config.hidden_size, h.len() / self.config.hidden_size);
        let stride = Rows::<E>::stride_of(hidden);
        let x = room(&mut self.memory.x, rows * stride);
        norm(&self.machine, h, &self.norm, x);
        let mut logits = vec![0.0; rows * self.config.vocab_size];
        let x = Rows::new(x, rows, stride);
        products(&self.machine, vec![Product { x, layer: &self.head, out: &mut logits, then: Then::Store }]);
        if let Some(cap) = self.config.final_logit_softcapping {
            soft_cap::<E>(&self.machine, &mut logits, cap as f32);
        }
        logits
    }
}

#[cfg(test)]
impl CpuDecoder<f32> {
    /// The routes of a layer for the inputs of its feed-forward, and its output; `None` if it is dense.
    pub(super) fn mixture(&mut self, layer: usize, x: &[f32]) -> Option<(super::routing::Routes, Vec<f32>)> {
        let Self { machine, memory: Memory { feed_forward: memory, .. }, .. } = self;
        let feed_forward = &self.layers[layer].feed_forward;
        let x = Rows::new(x, x.len() / self.config.hidden_size, self.config.hidden_size);
        let routes = feed_forward.router.as_ref()?.route(machine, x, None, memory);
        let mut sum = vec![0.0; x.count() * x.stride()];
        feed_forward.mix(machine, &routes, x, memory, &mut sum);
        Some((routes, sum))
    }
}

impl<E: Element> Layer<E> {
    /// Adds attention to the residual stream: that of each token over its sequence.
    fn attend(
        &self,
        machine: &Machine,
        h: &mut [f32],
        (spans, cache): (&mut [Span<E>], Region),
        angles: &Angles,
        memory: &mut Memory<E>,
    ) {
        let Self { q, k, v, o, .. } = self;
        let Memory { x, heads, out, q: q_out, k: k_out, v: v_out, .. } = memory;
        let stride = Rows::<E>::stride_of(q.weights().inputs());
        let count = h.len() / q.weights().inputs();
        let x = room(x, count * stride);
        norm(machine, h, &self.before_attention, x);
        let x = Rows::new(x, count, stride);
        let [queries, keys, values] =
            [(q_out, q), (k_out, k), (v_out, v)].map(|(out, layer)| room(out, count * layer.weights().outputs()));
        products(
            machine,
            vec![
                Product { x, layer: q, out: queries, then: Then::Store },
                Product { x, layer: k, out: keys, then: Then::Store },
                Product { x, layer: v, out: values, then: Then::Store },
            ],
        );
        let (q_norm, k_norm) = self.qk_norms.as_ref().map(|(q, k)| (q, k)).unzip();
        cache.append(machine, spans, Heads { values: keys, norm: k_norm }, values, angles);
        let stride = Rows::<E>::stride_of(o.weights().inputs());
        let heads = room(heads, count * stride);
        let queries = Heads { values: queries, norm: q_norm };
        self.attention.apply(machine, (spans, cache), queries, angles, heads);
        let x = Rows::new(heads, count, stride);
        add_block::<E>(machine, self.after_attention.as_ref(), h, out, |sum| {
            products(machine, vec![Product { x, layer: o, out: sum, then: Then::Add }]);
        });
    }

    /// Adds the feed-forward to the residual stream.
    fn feed_forward(
        &self,
        machine: &Machine,
        h: &mut [f32],
        memory: &mut Memory<E>,
        planted: Option<(&Planted, &[Range<usize>])>,
        load: &mut ExpertLoad,
    ) {
        let Memory { x, out, feed_forward: memory, .. } = memory;
        let hidden = self.before_feed_forward.weight.len();
        let (count, stride) = (h.len() / hidden, Rows::<E>::stride_of(hidden));
        let x = room(x, count * stride);
        norm(machine, h, &self.before_feed_forward, x);
        let x = Rows::new(x, count, stride);
        add_block::<E>(machine, self.after_feed_forward.as_ref(), h, out, |sum| {
            self.feed_forward.add_to(machine, x, planted, load, memory, sum);
        });
    }
}

/// Adds the output of a block to the residual stream, with the norm that some families apply to it.
fn add_block<E: Element>(
    machine: &Machine,
    norm: Option<&RowNorm>,
    h: &mut [f32],
    out: &mut Vec<f32>,
    add_to: impl FnOnce(&mut [f32]),
) {
    let Some(norm) = norm else { return add_to(h) };
    let out = room(out, h.len());
    out.fill(0.0);
    add_to(out);
    add_norm::<E>(machine, out, norm, h);
}

impl<E: Element> CausalLm for CpuDecoder<E> {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        Ok(self.step(&[Part { sequence: 0, tokens, position }])?.squeeze(0)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.sequences.clear();
        self.load.clear();
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
        self.sequences.release(sequence)
    }

    fn share_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        self.sequences.share(from, to, tokens)
    }

    fn footprint(&self) -> Footprint {
        let mut footprint = self.config.footprint(self.dtype);
        // Quantised matrices have other sizes than `config.footprint` counts.
        let less = |weights: &Weights<E>| {
            (weights.outputs() * weights.inputs() * size_of::<E>()) as i64 - weights.bytes() as i64
        };
        let of_embedding = self.embedding.as_ref().map_or(0, less);
        let mut of_step = less(self.head.weights());
        let mut of_idle = 0;
        for Layer { q, k, v, o, feed_forward: FeedForward { router, experts, .. }, .. } in &self.layers {
            of_step += [q, k, v, o].map(|linear| less(linear.weights())).iter().sum::<i64>();
            let expert = |expert: &Expert<E>| {
                [&expert.gate, &expert.up, &expert.down].map(|linear| less(linear.weights())).iter().sum::<i64>()
            };
            let of_experts: i64 = experts.iter().map(expert).sum();
            let used = router.as_ref().map_or(1, |router| router.top_k) as i64;
            let of_used = of_experts * used / experts.len() as i64;
            of_step += of_used;
            of_idle += of_experts - of_used;
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
            let bytes: u64 = experts.iter().map(Expert::weight_bytes).sum();
            (idle - idle.powf(sequences as f64)) * bytes as f64
        };
        self.footprint().step_weight_bytes + self.layers.iter().map(more).sum::<f64>() as u64
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
        cache_bytes(&self.config, self.dtype, tokens)
    }

    fn prefill_flops(&self, tokens: usize) -> u64 {
        self.config.prefill_flops(tokens)
    }

    fn prompt_bytes(&self, tokens: usize) -> Option<u64> {
        let ModelConfig { hidden_size: hidden, head_dim, num_key_value_heads, .. } = self.config;
        let elements = |width: usize| Rows::<E>::stride_of(width) * size_of::<E>();
        let numbers = |width: usize| width * size_of::<f32>();
        let of_layer = |layer: &Layer<E>| {
            let queries = layer.q.weights().outputs();
            let normed_output =
                layer.after_attention.as_ref().or(layer.after_feed_forward.as_ref()).map_or(0, |_| hidden);
            // `Memory`, and the widest inputs in the form of quantised weights, which are released after each operation.
            elements(hidden)
                + numbers(queries + 2 * num_key_value_heads * head_dim)
                + elements(queries)
                + numbers(normed_output)
                + layer.feed_forward.token_bytes(hidden)
                + [&layer.q, &layer.o]
                    .map(|linear| linear.weights().input_bytes())
                    .into_iter()
                    .max()
                    .unwrap_or(0)
                    .max(layer.feed_forward.input_bytes())
        };
        // The tokens, the residual stream, and sines and cosines of both rotary positions.
        let of_stream = size_of::<u32>() + numbers(hidden) + 2 * numbers(head_dim);
        let of_token = of_stream + self.layers.iter().map(of_layer).max().unwrap_or(0);
        Some((of_token * tokens + numbers(self.config.vocab_size)) as u64)
    }

    fn attention(&self) -> Option<(&'static str, DType)> {
        Some(("paged", self.dtype))
    }

    fn planted_skew(&self) -> Option<f64> {
        self.planted.as_ref().map(|planted| planted.skew)
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        Some(&self.load).filter(|load| !load.layers.is_empty())
    }
}
