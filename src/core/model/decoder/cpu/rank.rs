//! The forward pass of one rank: of the whole decoder, or of the part of each layer that the rank holds.
//!
//! A rank has some of the heads of attention, some of the inner columns of each feed-forward, and the rows of some tokens of the
//! embedding and the head. Norms and routers are whole. Three results are sums over the ranks: the embedding, the output of
//! attention, and the output of the feed-forward. After each of them, all ranks hold the same residual stream.

use std::{mem, ops::Range};

use anyhow::Result;
use tracing::trace_span;

use super::{
    feed_forward::{self, Expert, FeedForward},
    sequences::Sequences,
    spans::{product_span, seen},
    team::Reduce,
};
use crate::{
    kernels::inference::{
        Angles, Attention, Element, Heads, Linear, Machine, Operand, Product, Region, RowNorm, Rows, Span, Then,
        Weights, add_norm, embed, norm, norm_in_place, products, round_rows, soft_cap,
    },
    model::{
        causal_lm::Part,
        config::ModelConfig,
        decoder::routing::{ExpertLoad, LastSteps, Planted, Step},
    },
};

/// The threads of a rank, and its part in sums; `None` if it is the only one.
type On<'a> = (&'a Machine, Option<&'a Reduce>);

/// The weights and the sequences of a rank, with keys and values in `C`.
pub(super) struct Rank<E, C = E> {
    /// The sizes of its part.
    pub config: ModelConfig,
    pub machine: Machine,
    pub reduce: Option<Reduce>,
    /// The tokens whose rows of the embedding and the head it holds.
    pub vocabulary: Range<usize>,
    /// `None` if the embedding is also the head.
    pub embedding: Option<Weights<E>>,
    pub embedding_scale: f32,
    /// Logits are divided by it.
    pub logits_scaling: f32,
    pub layers: Vec<Layer<E>>,
    pub norm: RowNorm,
    pub head: Linear<E>,
    /// Frequencies and scale of the rotary positions of global layers, of local ones, and of those without.
    pub ropes: [(Vec<f32>, f32); 3],
    pub memory: Memory<E>,
    pub sequences: Sequences<C>,
    /// Those of the step that has begun.
    pub spans: Vec<Span<C>>,
    pub load: ExpertLoad,
    pub last_steps: LastSteps,
    pub planted: Option<Planted>,
}

pub(super) struct Layer<E> {
    pub before_attention: Option<RowNorm>,
    pub q: Linear<E>,
    pub k: Linear<E>,
    pub v: Linear<E>,
    pub o: Linear<E>,
    pub qk_norms: Option<(RowNorm, RowNorm)>,
    /// True if these norms are those of all heads together, not of each.
    pub has_whole_norms: bool,
    pub attention: Attention,
    /// Index of its RoPE.
    pub rope: usize,
    pub after_attention: Option<RowNorm>,
    pub before_feed_forward: Option<RowNorm>,
    pub feed_forward: FeedForward<E>,
    pub after_feed_forward: Option<RowNorm>,
    /// Factor of the output of each block.
    pub residual_scale: f32,
}

/// Results between operations, kept from layer to layer. Vectors grow to the longest pass.
#[derive(Default)]
pub(super) struct Memory<E> {
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
pub(super) fn room<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

impl<E: Element, C: Operand> Rank<E, C> {
    /// Makes room for the tokens of `parts`.
    ///
    /// # Errors
    /// As [`Sequences::begin`].
    pub fn begin(&mut self, parts: &[Part]) -> Result<()> {
        self.spans = self.sequences.begin(parts)?;
        Ok(())
    }

    /// The forward pass: appends the tokens of `parts`, which have begun. Returns the residual stream after the last layer for
    /// all of them: (tokens, hidden).
    pub fn pass(&mut self, parts: &[Part]) -> Vec<f32> {
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let mut h = self.embed(&tokens);
        let Self {
            config, machine, reduce, layers, ropes, memory, sequences, spans, load, last_steps, planted, ..
        } = self;
        last_steps.begin(load);
        let on = (&*machine, reduce.as_ref());
        let mut spans = mem::take(spans);
        let positions = || spans.iter().flat_map(Span::positions);
        let factors: Vec<f32> = (config.query_scaling.iter())
            .flat_map(|scaling| positions().map(|at| E::round(scaling.factor(at))))
            .collect();
        let angles = ropes.each_ref().map(|(frequencies, scale)| {
            Angles::new(frequencies, *scale, positions()).with_query_factors(factors.clone())
        });
        let planted_positions: Vec<Range<usize>> = parts.iter().map(Planted::positions).collect();
        for (number, layer) in layers.iter().enumerate() {
            let cache = sequences.region(number);
            layer.attend(on, &mut h, (&mut spans, cache), &angles[layer.rope], memory);
            let planted = planted.as_ref().map(|planted| (planted, planted_positions.as_slice()));
            layer.feed_forward(on, &mut h, memory, planted, load);
        }
        // Prompts use nearly all experts.
        if tokens.len() == parts.len() {
            last_steps.end(load);
        }
        sequences.end(parts, spans);
        h
    }

    /// The linear layers with the experts of a step, or with all, in the order in which a step uses them.
    pub fn linears<'a>(&'a self, step: Option<&'a Step>) -> impl Iterator<Item = &'a Linear<E>> {
        self.layers.iter().flat_map(move |layer| layer.linears(step)).chain([&self.head])
    }

    /// Bytes that a pass takes for each token in addition to the weights and the cache.
    pub fn token_bytes(&self) -> usize {
        let ModelConfig { hidden_size: hidden, head_dim, .. } = self.config;
        let elements = |width: usize| Rows::<E>::stride_of(width) * size_of::<E>();
        let numbers = |width: usize| width * size_of::<f32>();
        let is_sharded = self.reduce.is_some();
        let of_layer = |layer: &Layer<E>| {
            let Layer { q, k, v, o, after_attention, feed_forward, after_feed_forward, .. } = layer;
            let [queries, keys, values] = [q, k, v].map(|linear| linear.weights().outputs());
            let has_norm = after_attention.is_some() || after_feed_forward.is_some();
            let has_out = is_sharded || has_norm || layer.residual_scale != 1.0;
            // `Memory`, and the widest inputs in another form, which are released after each operation.
            elements(hidden)
                + numbers(queries + keys + values)
                + elements(queries)
                + if has_out { numbers(hidden) } else { 0 }
                + feed_forward.token_bytes(hidden)
                + [q, o]
                    .map(|linear| linear.weights().input_bytes(&self.machine))
                    .into_iter()
                    .max()
                    .unwrap_or(0)
                    .max(feed_forward.input_bytes(&self.machine))
        };
        // The tokens, the residual stream, and sines and cosines of both rotary positions.
        let of_stream = size_of::<u32>() + numbers(hidden) + 2 * numbers(head_dim);
        // The rank's addends of two sums.
        let of_sums = if is_sharded { 2 * numbers(hidden) } else { 0 };
        of_stream + of_sums + self.layers.iter().map(of_layer).max().unwrap_or(0)
    }

    /// The embeddings of tokens: (tokens, hidden). A rank has zeros for those of the others until they are summed.
    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let Self { machine, vocabulary, reduce, .. } = self;
        let width = self.config.hidden_size;
        let mut h = vec![0.0; tokens.len() * width];
        let is_own = |token: &u32| vocabulary.contains(&(*token as usize));
        let row = |token: &u32| if is_own(token) { *token - vocabulary.start as u32 } else { 0 };
        let rows: Vec<u32> = tokens.iter().map(row).collect();
        let table = self.embedding.as_ref().unwrap_or(self.head.weights());
        let bytes = || table.bytes() / table.outputs() as u64 * rows.len() as u64;
        trace_span!("embedding", bytes = bytes())
            .in_scope(|| embed(machine, table, &rows, self.embedding_scale, &mut h));
        if let Some(reduce) = reduce {
            let others = h.chunks_exact_mut(width).zip(tokens).filter(|(_, token)| !is_own(token));
            others.for_each(|(row, _)| row.fill(0.0));
            reduce.sum::<E>(&mut h);
        }
        h
    }

    /// Logits of the tokens of its vocabulary for rows of the residual stream: (rows, vocabulary).
    pub fn logits(&mut self, h: &[f32]) -> Vec<f32> {
        let (hidden, rows) = (self.config.hidden_size, h.len() / self.config.hidden_size);
        let stride = Rows::<E>::stride_of(hidden);
        let x = room(&mut self.memory.x, rows * stride);
        trace_span!("norms").in_scope(|| norm(&self.machine, h, &self.norm, x));
        let _head = product_span!("head", &self.machine, || [(&self.head, rows)].into_iter()).entered();
        let mut logits = vec![0.0; rows * self.vocabulary.len()];
        let x = Rows::new(x, rows, stride);
        products(&self.machine, vec![Product { x, layer: &self.head, out: &mut logits, then: Then::Store }]);
        if self.logits_scaling != 1.0 {
            logits.iter_mut().for_each(|logit| *logit = E::round(*logit / self.logits_scaling));
        }
        if let Some(cap) = self.config.final_logit_softcapping {
            soft_cap::<E>(&self.machine, &mut logits, cap as f32);
        }
        logits
    }
}

#[cfg(test)]
impl Rank<f32> {
    /// The routes of a layer for the inputs of its feed-forward, and its output; `None` if it is dense.
    pub fn mixture(&mut self, layer: usize, x: &[f32]) -> Option<(crate::model::decoder::routing::Routes, Vec<f32>)> {
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
    fn linears(&self, step: Option<&Step>) -> impl Iterator<Item = &Linear<E>> {
        let Self { q, k, v, o, feed_forward, .. } = self;
        let experts: Vec<_> = match (&feed_forward.router, step) {
            (Some(router), Some(step)) => feed_forward.chosen_experts(&step[router.number]).collect(),
            _ => feed_forward.all_experts().collect(),
        };
        [q, k, v, o].into_iter().chain(experts.into_iter().flat_map(Expert::linears))
    }

    /// Adds attention to the residual stream: that of each token over its sequence.
    fn attend<C: Operand>(
        &self,
        on @ (machine, _): On,
        h: &mut [f32],
        (spans, cache): (&mut [Span<C>], Region),
        angles: &Angles,
        memory: &mut Memory<E>,
    ) {
        let Self { q, k, v, o, .. } = self;
        let Memory { x, heads, out, q: q_out, k: k_out, v: v_out, .. } = memory;
        let stride = Rows::<E>::stride_of(q.weights().inputs());
        let count = h.len() / q.weights().inputs();
        let x = room(x, count * stride);
        input(machine, h, self.before_attention.as_ref(), x, q.weights().inputs());
        let x = Rows::new(x, count, stride);
        let [queries, keys, values] =
            [(q_out, q), (k_out, k), (v_out, v)].map(|(out, layer)| room(out, count * layer.weights().outputs()));
        product_span!("q/k/v", machine, || [q, k, v].into_iter().map(|linear| (linear, count))).in_scope(|| {
            products(
                machine,
                vec![
                    Product { x, layer: q, out: queries, then: Then::Store },
                    Product { x, layer: k, out: keys, then: Then::Store },
                    Product { x, layer: v, out: values, then: Then::Store },
                ],
            );
        });
        let (mut q_norm, mut k_norm) = self.qk_norms.as_ref().map(|(q, k)| (q, k)).unzip();
        // Norms of all heads together come before the heads are divided.
        for (norm, rows) in [(&mut q_norm, &mut *queries), (&mut k_norm, &mut *keys)] {
            if let Some(whole) = norm.take_if(|_| self.has_whole_norms) {
                trace_span!("norms").in_scope(|| norm_in_place::<E>(machine, rows, whole));
            }
        }
        trace_span!("RoPE, cache").in_scope(|| {
            cache.append(machine, spans, Heads { values: keys, norm: k_norm }, values, angles);
        });
        let stride = Rows::<E>::stride_of(o.weights().inputs());
        let heads = room(heads, count * stride);
        let queries = Heads { values: queries, norm: q_norm };
        let row_bytes = (k.weights().outputs() + v.weights().outputs()) * size_of::<C>();
        let (read, pairs) = (|| seen(spans, self.attention.window).0, || seen(spans, self.attention.window).1);
        trace_span!(
            "attention",
            bytes = (read() * row_bytes) as u64,
            flops = (4 * pairs() * q.weights().outputs()) as u64
        )
        .in_scope(|| self.attention.apply(machine, (&*spans, cache), queries, angles, heads));
        let x = Rows::new(heads, count, stride);
        add_block::<E>(on, self.after_attention.as_ref(), self.residual_scale, h, out, |sum| {
            product_span!("o", machine, || [(o, count)].into_iter())
                .in_scope(|| products(machine, vec![Product { x, layer: o, out: sum, then: Then::Add }]));
        });
    }

    /// Adds the feed-forward to the residual stream.
    fn feed_forward(
        &self,
        on @ (machine, _): On,
        h: &mut [f32],
        memory: &mut Memory<E>,
        planted: Option<(&Planted, &[Range<usize>])>,
        load: &mut ExpertLoad,
    ) {
        let Memory { x, out, feed_forward: memory, .. } = memory;
        let hidden = self.q.weights().inputs();
        let (count, stride) = (h.len() / hidden, Rows::<E>::stride_of(hidden));
        let x = room(x, count * stride);
        input(machine, h, self.before_feed_forward.as_ref(), x, hidden);
        let x = Rows::new(x, count, stride);
        add_block::<E>(on, self.after_feed_forward.as_ref(), self.residual_scale, h, out, |sum| {
            self.feed_forward.add_to(machine, x, planted, load, memory, sum);
        });
    }
}

/// Writes the inputs of a block: the norm of the residual stream, or the stream itself.
fn input<E: Element>(machine: &Machine, h: &[f32], weights: Option<&RowNorm>, x: &mut [E], width: usize) {
    let _norms = trace_span!("norms").entered();
    match weights {
        Some(weights) => norm(machine, h, weights, x),
        None => round_rows(machine, h, width, x),
    }
}

/// Adds the output of a block to the residual stream: the sum of the addends of the ranks, with the norm and the factor that some
/// families apply to it.
fn add_block<E: Element>(
    (machine, reduce): On,
    norm: Option<&RowNorm>,
    scale: f32,
    h: &mut [f32],
    out: &mut Vec<f32>,
    add_to: impl FnOnce(&mut [f32]),
) {
    if norm.is_none() && reduce.is_none() && scale == 1.0 {
        return add_to(h);
    }
    let out = room(out, h.len());
    out.fill(0.0);
    add_to(out);
    if let Some(reduce) = reduce {
        reduce.sum::<E>(out);
    }
    let _norms = trace_span!("norms").entered();
    match norm {
        Some(norm) => add_norm::<E>(machine, out, norm, h),
        None if scale == 1.0 => h.iter_mut().zip(&*out).for_each(|(sum, value)| *sum = E::round(*sum + value)),
        None => h.iter_mut().zip(&*out).for_each(|(sum, value)| *sum = E::round(*sum + E::round(scale * value))),
    }
}
