//! The decoder on CPUs: every family of the table, on the kernels of [`inference`](crate::kernels::inference).
//!
//! [`CpuDecoder::hidden`] is the forward pass. The residual stream is f32, and what is multiplied has the dtype `E` of the
//! weights. The threads meet five times per layer: for queries, keys and values; for attention; for its output; for the first
//! half of the feed-forward; for the second half.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Storage, Tensor, WithDType};
use candle_nn::VarBuilder;
use half::{bf16, f16};

use super::{
    rope,
    routing::{ExpertLoad, Planted, Routes},
};
use crate::{
    kernels::inference::{
        Activation, Angles, Attention, Cache, Element, Gate, Heads, Linear, Machine, Packed, Product, Quantised,
        RowNorm, Rows, Source, Then, Weights, add_norm, combine, embed, gated, norm, products, soft_cap,
    },
    model::{
        causal_lm::{CacheBytes, CausalLm, Footprint},
        config::{ExpertLayout, Experts, ModelConfig, RopeScaling},
        family::ExpertNames,
        tensors::{Matrices, Tensors},
    },
};

/// Builds a decoder in the dtype of the weights, which must have been checked. `planted` is the skew and the seed of routes
/// that are drawn instead of computed.
///
/// # Errors
/// If the engine does not run this configuration, or a tensor is missing.
pub fn load(
    config: ModelConfig,
    tensors: Tensors,
    layout: ExpertLayout,
    planted: Option<(f64, u64)>,
) -> Result<Box<dyn CausalLm>> {
    let threads = rayon::current_num_threads().min(candle_core::utils::get_num_threads());
    let machine = Machine::with_threads(threads);
    Ok(match tensors.weights.dtype() {
        DType::F32 => Box::new(CpuDecoder::<f32>::load(config, tensors, layout, planted, machine)?),
        DType::BF16 => Box::new(CpuDecoder::<bf16>::load(config, tensors, layout, planted, machine)?),
        DType::F16 => Box::new(CpuDecoder::<f16>::load(config, tensors, layout, planted, machine)?),
        other => bail!("engine tuned has no kernels for {} on a CPU", other.as_str()),
    })
}

/// Why the engine does not run this configuration on CPUs.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    if activation(&config.hidden_act).is_none() {
        return Some(format!("it has no hidden_act={}", config.hidden_act));
    }
    let ropes = [Some(&config.rope), config.local_rope.as_ref()].into_iter().flatten();
    let unknown = ropes.map(|rope| &rope.scaling).find(|scaling| matches!(scaling, RopeScaling::Other(_)))?;
    Some(format!("it has no RoPE scaling of type {}", unknown.name()))
}

fn activation(name: &str) -> Option<Activation> {
    match name {
        "silu" => Some(Activation::Silu),
        "gelu" => Some(Activation::Gelu),
        "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        _ => None,
    }
}

/// Bytes of the caches of all layers with `tokens` in the sequence.
pub fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> CacheBytes {
    let layer = |sliding: &bool| match config.sliding_window.filter(|_| *sliding) {
        Some(window) => window.min(tokens),
        None => tokens,
    };
    let seen: usize = config.sliding_layers.iter().map(layer).sum();
    let elements = Cache::<f32>::allocated(config.num_key_value_heads, config.head_dim, tokens);
    CacheBytes {
        used: config.cache_row_bytes(dtype) * seen as u64,
        allocated: (elements * dtype.size_in_bytes() * config.num_hidden_layers) as u64,
    }
}

/// A decoder with its cache.
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
    cache: Cache<E>,
    /// Index of its RoPE.
    rope: usize,
    after_attention: Option<RowNorm>,
    before_feed_forward: RowNorm,
    feed_forward: FeedForward<E>,
    after_feed_forward: Option<RowNorm>,
}

/// A dense feed-forward is that of one expert, without a router.
struct FeedForward<E> {
    router: Option<Router<E>>,
    experts: Vec<Expert<E>>,
    activation: Activation,
}

struct Router<E> {
    linear: Linear<E>,
    top_k: usize,
    normalise: bool,
    /// Index among the layers that are mixtures.
    number: usize,
}

struct Expert<E> {
    gate: Linear<E>,
    up: Linear<E>,
    down: Linear<E>,
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
    inner: Vec<E>,
    /// Output of a block that has a norm after it.
    out: Vec<f32>,
    mixture: MixtureMemory<E>,
}

#[derive(Default)]
struct MixtureMemory<E> {
    logits: Vec<f32>,
    /// Inputs of the experts, sorted by expert, and their outputs.
    sorted: Vec<E>,
    parts: Vec<f32>,
}

/// The first `len` elements, of any value.
fn room<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

impl<E: Element> CpuDecoder<E> {
    /// The residual stream after the last layer for `tokens` at `position` and after: (tokens, hidden).
    pub(super) fn hidden(&mut self, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        let Self { config, machine, embedding, head, layers, ropes, memory, load, planted, .. } = self;
        let (count, longest) = (tokens.len(), config.max_position_embeddings);
        ensure!(count > 0, "a forward pass needs at least one token");
        ensure!(position + count <= longest, "{} tokens exceed max_position_embeddings={longest}", position + count);
        let unknown = tokens.iter().find(|token| **token as usize >= config.vocab_size);
        ensure!(unknown.is_none(), "token {} is not below vocab_size={}", unknown.unwrap_or(&0), config.vocab_size);

        let mut h = vec![0.0; count * config.hidden_size];
        embed(machine, embedding.as_ref().unwrap_or(head.weights()), tokens, self.embedding_scale, &mut h);
        let angles = ropes.each_ref().map(|(frequencies, scale)| Angles::new(frequencies, *scale, position, count));
        for layer in layers {
            layer.attend(machine, &mut h, &angles[layer.rope], position, memory);
            layer.feed_forward(machine, &mut h, position, memory, planted.as_ref(), load);
        }
        Ok(h)
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
    pub(super) fn mixture(&mut self, layer: usize, x: &[f32]) -> Option<(Routes, Vec<f32>)> {
        let Self { machine, memory, .. } = self;
        let FeedForward { router, experts, activation } = &self.layers[layer].feed_forward;
        let x = Rows::new(x, x.len() / self.config.hidden_size, self.config.hidden_size);
        let routes = router.as_ref()?.route(machine, x, 0, None, &mut memory.mixture.logits);
        let mut sum = vec![0.0; x.count() * x.stride()];
        mix(machine, *activation, experts, &routes, x, &mut memory.inner, &mut memory.mixture, &mut sum);
        Some((routes, sum))
    }
}

impl<E: Element> Layer<E> {
    /// Adds attention over the tokens from `position` on, and those before them, to the residual stream.
    fn attend(&mut self, machine: &Machine, h: &mut [f32], angles: &Angles, position: usize, memory: &mut Memory<E>) {
        let Self { q, k, v, o, .. } = self;
        let Memory { x, heads, out, q: q_out, k: k_out, v: v_out, .. } = memory;
        let stride = Rows::<E>::stride_of(q.weights().inputs());
        let count = h.len() / q.weights().inputs();
        let x = room(x, count * stride);
        norm(machine, h, &self.before_attention, x);
        let x = Rows::new(x, count, stride);
        let [queries, keys, values] =
            [(q_out, &*q), (k_out, k), (v_out, v)].map(|(out, layer)| room(out, count * layer.weights().outputs()));
        products(
            machine,
            vec![
                Product { x, layer: q, out: queries, then: Then::Store },
                Product { x, layer: k, out: keys, then: Then::Store },
                Product { x, layer: v, out: values, then: Then::Store },
            ],
        );
        let (q_norm, k_norm) = self.qk_norms.as_ref().map(|(q, k)| (q, k)).unzip();
        self.cache.append(machine, Heads { values: keys, norm: k_norm }, values, angles, position);
        let stride = Rows::<E>::stride_of(o.weights().inputs());
        let heads = room(heads, count * stride);
        let queries = Heads { values: queries, norm: q_norm };
        self.attention.apply(machine, queries, angles, &self.cache, position, heads);
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
        position: usize,
        memory: &mut Memory<E>,
        planted: Option<&Planted>,
        load: &mut ExpertLoad,
    ) {
        let Memory { x, inner, out, mixture, .. } = memory;
        let hidden = self.before_feed_forward.weight.len();
        let (count, stride) = (h.len() / hidden, Rows::<E>::stride_of(hidden));
        let x = room(x, count * stride);
        norm(machine, h, &self.before_feed_forward, x);
        let x = Rows::new(x, count, stride);
        let FeedForward { router, experts, activation } = &self.feed_forward;
        add_block::<E>(machine, self.after_feed_forward.as_ref(), h, out, |sum| match router {
            None => run_experts(machine, *activation, vec![(&experts[0], x)], inner, sum, Then::Add),
            Some(router) => {
                let routes = router.route(machine, x, position, planted, &mut mixture.logits);
                load.count(router.number, &routes);
                mix(machine, *activation, experts, &routes, x, inner, mixture, sum);
            }
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

/// Computes experts, each with its own inputs. Their outputs follow each other in `out`.
fn run_experts<E: Element>(
    machine: &Machine,
    activation: Activation,
    inputs: Vec<(&Expert<E>, Rows<E>)>,
    inner: &mut Vec<E>,
    mut out: &mut [f32],
    then: Then,
) {
    let stride = |expert: &Expert<E>| Rows::<E>::stride_of(expert.gate.weights().outputs());
    let mut room = room(inner, inputs.iter().map(|(expert, x)| x.count() * stride(expert)).sum());
    let (mut gates, mut parts) = (Vec::new(), Vec::new());
    for (expert, x) in &inputs {
        let (own, rest) = room.split_at_mut(x.count() * stride(expert));
        gates.push((*expert, *x, own));
        room = rest;
        let (own, rest) = out.split_at_mut(x.count() * expert.down.weights().outputs());
        parts.push(own);
        out = rest;
    }
    let first = gates.iter_mut().map(|(expert, x, out)| Gate { x: *x, gate: &expert.gate, up: &expert.up, out });
    gated(machine, activation, first.collect());
    let second = gates.iter().zip(parts).map(|((expert, x, inner), out)| Product {
        x: Rows::new(inner, x.count(), stride(expert)),
        layer: &expert.down,
        out,
        then,
    });
    products(machine, second.collect());
}

/// Adds a mixture of experts. Tokens are sorted by expert, so that each expert's weights are read once.
#[expect(clippy::too_many_arguments, reason = "the parts of one layer and its memory")]
fn mix<E: Element>(
    machine: &Machine,
    activation: Activation,
    experts: &[Expert<E>],
    routes: &Routes,
    x: Rows<E>,
    inner: &mut Vec<E>,
    memory: &mut MixtureMemory<E>,
    sum: &mut [f32],
) {
    // The place of each token's input among the sorted ones, as the chosen experts are listed: by token.
    let mut ends = vec![0; experts.len()];
    routes.experts.iter().for_each(|expert| ends[*expert as usize] += 1);
    let counts = ends.clone();
    (1..ends.len()).for_each(|expert| ends[expert] += ends[expert - 1]);
    let mut next: Vec<usize> = ends.iter().zip(&counts).map(|(end, count)| end - count).collect();
    let hidden = sum.len() / x.count();
    let sorted = room(&mut memory.sorted, routes.experts.len() * x.stride());
    let mut places = Vec::with_capacity(routes.experts.len());
    for (at, expert) in routes.experts.iter().enumerate() {
        let place = &mut next[*expert as usize];
        sorted[*place * x.stride()..][..x.stride()].copy_from_slice(x.row(at / routes.top_k));
        places.push(*place as u32);
        *place += 1;
    }
    let busy = (experts.iter().zip(counts.iter().zip(&ends))).filter(|(_, (count, _))| **count > 0);
    let inputs = busy
        .map(|(expert, (count, end))| (expert, Rows::new(&sorted[(end - count) * x.stride()..], *count, x.stride())));
    let parts = room(&mut memory.parts, routes.experts.len() * hidden);
    run_experts(machine, activation, inputs.collect(), inner, parts, Then::Store);
    combine::<E>(machine, parts, (&places, &routes.weights), hidden, sum);
}

impl<E: Element> Router<E> {
    /// Chooses the experts of each row of `x`, the first of which is at `position`.
    fn route(
        &self,
        machine: &Machine,
        x: Rows<E>,
        position: usize,
        planted: Option<&Planted>,
        logits: &mut Vec<f32>,
    ) -> Routes {
        let experts = self.linear.weights().outputs();
        let logits = room(logits, x.count() * experts);
        products(machine, vec![Product { x, layer: &self.linear, out: logits, then: Then::Store }]);
        match planted {
            None => Routes::choose(logits, experts, self.top_k, self.normalise),
            Some(planted) => {
                let logits = planted.logits(self.number, position, x.count());
                Routes::choose(&logits, experts, self.top_k, self.normalise)
            }
        }
    }
}

/// Reads weights and packs or quantises them, one tensor at a time.
struct Loader<'a> {
    config: &'a ModelConfig,
    machine: &'a Machine,
    matrices: &'a Matrices,
}

impl Loader<'_> {
    /// Calls `with` with the elements of a tensor.
    fn read<E: WithDType, T>(
        &self,
        weights: &VarBuilder,
        shape: impl Into<candle_core::Shape>,
        name: &str,
        with: impl FnOnce(&[E]) -> T,
    ) -> Result<T> {
        let tensor = weights.get(shape.into(), name)?.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("{name} is not in the CPU's memory") };
        Ok(with(&E::cpu_storage_as_slice(storage)?[layout.start_offset()..]))
    }

    /// A matrix that is never quantised.
    fn packed<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        (outputs, inputs): (usize, usize),
        name: &str,
    ) -> Result<Packed<E>> {
        let pack = |values: &[E]| Packed::new(self.machine, outputs, inputs, Source::row_major(values, inputs));
        self.read(weights, (outputs, inputs), name, pack)
    }

    /// A matrix in the form that matrices have.
    fn matrix<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        shape: (usize, usize),
        name: &str,
        is_head: bool,
    ) -> Result<Weights<E>> {
        if let Matrices::File(file) = self.matrices
            && let Some(quantised) = file.matrix(self.machine, &format!("{}.{name}", weights.prefix()), shape)?
        {
            return Ok(quantised.into());
        }
        self.read(weights, shape, name, |values| self.held(values, shape, is_head))?.with_context(|| weights.prefix())
    }

    /// Values in the form that matrices have.
    fn held<E: Element>(&self, values: &[E], (outputs, inputs): (usize, usize), is_head: bool) -> Result<Weights<E>> {
        let Matrices::Quantised(formats) = self.matrices else {
            return Ok(Packed::new(self.machine, outputs, inputs, Source::row_major(values, inputs)).into());
        };
        let format = if is_head { formats.head } else { formats.others };
        let quantised = Quantised::new(self.machine, format, (outputs, inputs), values);
        Ok(quantised.context("a weight is not finite")?.into())
    }

    fn linear<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        shape: (usize, usize),
        has_bias: bool,
    ) -> Result<Linear<E>> {
        let bias = has_bias.then(|| vector(weights, shape.0, "bias")).transpose()?;
        Ok(Linear::new(self.matrix(weights, shape, "weight", false)?, bias))
    }

    /// A norm as long as `width`, with the offset of the family.
    fn norm(&self, weights: &VarBuilder, width: usize) -> Result<RowNorm> {
        let offset = self.config.family.norm_offset as f32;
        let weight = vector(weights, width, "weight")?.iter().map(|weight| weight + offset).collect();
        Ok(RowNorm { weight, eps: self.config.rms_norm_eps as f32 })
    }

    fn layer<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        number: usize,
        feed_forward: FeedForward<E>,
    ) -> Result<Layer<E>> {
        let ModelConfig { hidden_size: hidden, head_dim, qkv_bias, o_bias, family, .. } = *self.config;
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let attention = weights.pp("self_attn");
        let linear = |name: &str, shape, has_bias| self.linear(&attention.pp(name), shape, has_bias);
        let norm = |name: &str| self.norm(&weights.pp(name), hidden);
        let head_norm = |name: &str| self.norm(&attention.pp(name), head_dim);
        let is_sliding = self.config.sliding_layers[number];
        Ok(Layer {
            before_attention: norm(family.layer_norms.before_attention)?,
            q: linear("q_proj", (heads * head_dim, hidden), qkv_bias)?,
            k: linear("k_proj", (kv_heads * head_dim, hidden), qkv_bias)?,
            v: linear("v_proj", (kv_heads * head_dim, hidden), qkv_bias)?,
            o: linear("o_proj", (hidden, heads * head_dim), o_bias)?,
            qk_norms: match family.has_qk_norm {
                true => Some((head_norm("q_norm")?, head_norm("k_norm")?)),
                false => None,
            },
            attention: Attention {
                heads,
                scale: self.config.query_pre_attn_scalar.sqrt().recip() as f32,
                window: self.config.sliding_window.filter(|_| is_sliding),
            },
            cache: Cache::new(kv_heads, head_dim),
            rope: usize::from(is_sliding),
            after_attention: family.layer_norms.after_attention.map(norm).transpose()?,
            before_feed_forward: norm(family.layer_norms.before_feed_forward)?,
            feed_forward,
            after_feed_forward: family.layer_norms.after_feed_forward.map(norm).transpose()?,
        })
    }

    fn dense<E: Element + WithDType>(&self, weights: &VarBuilder, activation: Activation) -> Result<FeedForward<E>> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, mlp_bias, .. } = *self.config;
        let linear = |name: &str, shape| self.linear(&weights.pp("mlp").pp(name), shape, mlp_bias);
        let expert = Expert {
            gate: linear("gate_proj", (inner, hidden))?,
            up: linear("up_proj", (inner, hidden))?,
            down: linear("down_proj", (hidden, inner))?,
        };
        Ok(FeedForward { router: None, experts: vec![expert], activation })
    }

    fn mixture<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        (config, names): (&Experts, &ExpertNames),
        number: usize,
        layout: ExpertLayout,
        activation: Activation,
    ) -> Result<FeedForward<E>> {
        let (hidden, inner, count) = (self.config.hidden_size, config.intermediate_size, config.num_experts);
        let held = |values: &[E], shape| Ok(Linear::new(self.held(values, shape, false)?, None));
        let (block, experts) = match layout {
            ExpertLayout::Stacked => {
                let block = weights.pp("mlp");
                // For each expert, gate above up.
                let halves = |values: &[E]| -> Result<Vec<_>> {
                    values.chunks_exact(inner * hidden).map(|half| held(half, (inner, hidden))).collect()
                };
                let halves = self.read(&block, (count, 2 * inner, hidden), "experts.gate_up_proj", halves)??;
                let downs = |values: &[E]| -> Result<Vec<_>> {
                    values.chunks_exact(hidden * inner).map(|down| held(down, (hidden, inner))).collect()
                };
                let downs = self.read(&block, (count, hidden, inner), "experts.down_proj", downs)??;
                let mut halves = halves.into_iter();
                let experts =
                    downs.into_iter().map(|down| Some(Expert { gate: halves.next()?, up: halves.next()?, down }));
                (block, experts.collect::<Option<_>>().context("experts are missing")?)
            }
            ExpertLayout::Single => {
                let block = weights.pp(names.block);
                let expert = |expert: usize| {
                    let weights = block.pp("experts").pp(expert);
                    let linear = |name: &str, shape| self.linear(&weights.pp(name), shape, false);
                    Ok(Expert {
                        gate: linear(names.gate, (inner, hidden))?,
                        up: linear(names.up, (inner, hidden))?,
                        down: linear(names.down, (hidden, inner))?,
                    })
                };
                let experts = (0..count).map(expert).collect::<Result<_>>()?;
                (block, experts)
            }
        };
        let router = Router {
            linear: Linear::new(self.packed(&block.pp("gate"), (count, hidden), "weight")?, None),
            top_k: config.num_experts_per_tok,
            normalise: config.norm_topk_prob,
            number,
        };
        Ok(FeedForward { router: Some(router), experts, activation })
    }
}

fn vector(weights: &VarBuilder, len: usize, name: &str) -> Result<Vec<f32>> {
    Ok(weights.get(len, name)?.to_dtype(DType::F32)?.to_vec1()?)
}

impl<E: Element + WithDType> CpuDecoder<E> {
    /// Builds the model, with the kernels of a machine. See [`load`].
    pub(super) fn load(
        config: ModelConfig,
        tensors: impl Into<Tensors>,
        layout: ExpertLayout,
        planted: Option<(f64, u64)>,
        machine: Machine,
    ) -> Result<Self> {
        let Tensors { weights, matrices } = tensors.into();
        if let Some(reason) = refusal(&config) {
            bail!("engine tuned refuses this model: {reason}");
        }
        let activation = activation(&config.hidden_act).context("an unknown activation")?;
        let loader = Loader { config: &config, machine: &machine, matrices: &matrices };
        let model = weights.pp("model");
        // The largest tensors come first: while they are packed, they are in memory twice, and the others are not in it yet.
        let table = (config.vocab_size, config.hidden_size);
        let is_head = config.tie_word_embeddings;
        let embedding = loader.matrix(&model.pp("embed_tokens"), table, "weight", is_head)?;
        let (embedding, head) = match is_head {
            true => (None, embedding),
            false => (Some(embedding), loader.matrix(&weights.pp("lm_head"), table, "weight", true)?),
        };
        let mut mixtures = 0;
        let mut layer = |number: usize| {
            let weights = model.pp("layers").pp(number);
            let feed_forward = match config.experts_of(number).zip(config.family.experts.as_ref()) {
                None => loader.dense(&weights, activation)?,
                Some((experts, family)) => {
                    mixtures += 1;
                    loader.mixture(&weights, (experts, &family.names), mixtures - 1, layout, activation)?
                }
            };
            loader.layer(&weights, number, feed_forward)
        };
        let layers = (0..config.num_hidden_layers).map(&mut layer).collect::<Result<_>>()?;
        let load = config.experts.as_ref().map_or_else(ExpertLoad::default, |experts| {
            ExpertLoad::new(mixtures, experts.num_experts, experts.num_experts_per_tok)
        });
        let planted = planted.map(|(skew, seed)| Planted::for_load(&load, skew, seed)).transpose()?;
        let global = rope::frequencies(&config.rope, config.head_dim);
        let local = config.local_rope.as_ref().map_or(global.clone(), |rope| rope::frequencies(rope, config.head_dim));
        // transformers holds the scale in the dtype of the weights.
        let embedding_scale = match config.family.scales_embedding {
            true => E::round((config.hidden_size as f32).sqrt()),
            false => 1.0,
        };
        Ok(Self {
            norm: loader.norm(&model.pp("norm"), config.hidden_size)?,
            dtype: weights.dtype(),
            embedding,
            embedding_scale,
            layers,
            head: Linear::new(head, None),
            ropes: [global, local],
            memory: Memory::default(),
            load,
            planted,
            config,
            machine,
        })
    }
}

impl<E: Element> CausalLm for CpuDecoder<E> {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let hidden = self.hidden(tokens, position)?;
        let last = hidden.len() - self.config.hidden_size;
        Ok(Tensor::from_vec(self.logits(&hidden[last..]), self.config.vocab_size, &Device::Cpu)?)
    }

    fn reset(&mut self) -> Result<()> {
        // A forward pass reads the caches only at positions that were written since the reset, so they are not cleared.
        self.load.clear();
        Ok(())
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

    fn planted_skew(&self) -> Option<f64> {
        self.planted.as_ref().map(|planted| planted.skew)
    }

    fn expert_load(&self) -> Option<&ExpertLoad> {
        Some(&self.load).filter(|load| !load.layers.is_empty())
    }
}
