//! Reads the weights of a decoder, or the part of a rank, and packs them one tensor at a time. Tensors of safetensors files in the
//! model's dtype are packed where they are mapped, without a copy.
//!
//! A rank holds outputs of the projections of queries, keys and values and of the first half of each feed-forward. Of the output
//! projection and of the second half, it holds the inputs that these outputs are. So its addends to both sums need nothing of the
//! other ranks.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Shape, Storage, WithDType};
use candle_nn::VarBuilder;
use half::{bf16, f16};

use super::{
    CpuDecoder,
    feed_forward::{Expert, FeedForward, Router, Shared},
    rank::{Layer, Memory, Rank},
    sequences::Sequences,
    team::{Reduce, Team},
};
use crate::{
    kernels::inference::{
        Activation, Attention, Element, F8E4M3, Linear, Machine, Operand, Packed, RowNorm, Source, Weights,
    },
    model::{
        causal_lm::CausalLm,
        config::{ExpertLayout, Experts, ModelConfig, RopeScaling},
        decoder::{
            rope,
            routing::{ExpertLoad, LastSteps, Planted},
        },
        family::{ExpertFamily, QkNorm},
        parallel::Parallel,
        tensors::{Matrices, Tensors},
    },
};

/// Builds a decoder in the dtype of the weights, which must have been checked, with its cache in the same dtype or in FP8. `planted` is
/// the skew and the seed of routes that are drawn instead of computed.
///
/// # Errors
/// If the engine does not run this configuration, it cannot be divided among the ranks, or a tensor is missing.
pub fn load(
    config: ModelConfig,
    tensors: Tensors,
    layout: ExpertLayout,
    planted: Option<(f64, u64)>,
    parallel: Parallel,
) -> Result<Box<dyn CausalLm>> {
    let of_process = || rayon::current_num_threads().min(candle_core::utils::get_num_threads());
    let machine = Machine::with_threads(parallel.threads.unwrap_or_else(of_process));
    let load = match tensors.weights.dtype() {
        DType::F32 => in_dtype::<f32>,
        DType::BF16 => in_dtype::<bf16>,
        DType::F16 => in_dtype::<f16>,
        other => bail!("engine tuned has no kernels for {} on a CPU", other.as_str()),
    };
    load(config, tensors, layout, planted, machine, parallel.ranks)
}

/// Builds a decoder whose activations are `E`.
fn in_dtype<E: Element + WithDType>(
    config: ModelConfig,
    tensors: Tensors,
    layout: ExpertLayout,
    planted: Option<(f64, u64)>,
    machine: Machine,
    ranks: usize,
) -> Result<Box<dyn CausalLm>> {
    Ok(match tensors.cache_dtype {
        DType::F8E4M3 => Box::new(CpuDecoder::<E, F8E4M3>::load(config, tensors, layout, planted, machine, ranks)?),
        _ => Box::new(CpuDecoder::<E>::load(config, tensors, layout, planted, machine, ranks)?),
    })
}

/// Why the engine does not run this configuration on CPUs.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    if activation(config).is_none() {
        return Some(format!("it has no hidden_act={}", config.hidden_act));
    }
    let ropes = [Some(&config.rope), config.local_rope.as_ref()].into_iter().flatten();
    let unknown = ropes.map(|rope| &rope.scaling).find(|scaling| matches!(scaling, RopeScaling::Other(_)))?;
    Some(format!("it has no RoPE scaling of type {}", unknown.name()))
}

fn activation(config: &ModelConfig) -> Option<Activation> {
    if let Some((alpha, limit)) = config.swiglu {
        return Some(Activation::ClampedSilu { alpha: alpha as f32, limit: limit as f32 });
    }
    match config.hidden_act.as_str() {
        "silu" => Some(Activation::Silu),
        "gelu" => Some(Activation::Gelu),
        "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        _ => None,
    }
}

/// One of `parts` parts of the same size; the sizes differ by one where `parts` does not divide a length.
#[derive(Clone, Copy)]
struct Share {
    part: usize,
    parts: usize,
}

impl Share {
    fn of(self, len: usize) -> Range<usize> {
        self.part * len / self.parts..(self.part + 1) * len / self.parts
    }
}

/// The part of a matrix that a rank holds.
#[derive(Clone, Copy)]
enum Cut {
    Outputs(Share),
    Inputs(Share),
}

impl Cut {
    /// The outputs and the inputs.
    fn ranges(self, (outputs, inputs): (usize, usize)) -> (Range<usize>, Range<usize>) {
        match self {
            Self::Outputs(share) => (share.of(outputs), 0..inputs),
            Self::Inputs(share) => (0..outputs, share.of(inputs)),
        }
    }

    /// The outputs whose bias the rank adds. Of ranks that share the inputs, the first adds all.
    fn biased(self, outputs: usize) -> Option<Range<usize>> {
        match self {
            Self::Outputs(share) => Some(share.of(outputs)),
            Self::Inputs(Share { part: 0, .. }) => Some(0..outputs),
            Self::Inputs(_) => None,
        }
    }
}

/// The sizes of the part of each rank: of the heads and of the inner widths. Key-value heads that are fewer than the ranks are
/// held by several.
///
/// # Errors
/// If a size cannot be divided among the ranks.
fn part_of(config: &ModelConfig, ranks: usize) -> Result<ModelConfig> {
    let divided = |name: &str, size: usize| {
        let is_whole = size.is_multiple_of(ranks);
        ensure!(is_whole, "{name}={size} cannot be divided among {ranks} ranks: choose another tensor_parallel");
        Ok(size / ranks)
    };
    let mut part = config.clone();
    ensure!(
        ranks == 1 || config.family.qk_norm != QkNorm::Whole,
        "norms of all heads together are not divided among ranks: leave out tensor_parallel"
    );
    part.num_attention_heads = divided("num_attention_heads", config.num_attention_heads)?;
    let kv_heads = config.num_key_value_heads;
    part.num_key_value_heads = match ranks.is_multiple_of(kv_heads) {
        true => 1,
        false => divided("num_key_value_heads", kv_heads)?,
    };
    if (0..config.num_hidden_layers).any(|layer| config.experts_of(layer).is_none()) {
        part.intermediate_size = divided("intermediate_size", config.intermediate_size)?;
    }
    if let Some(experts) = &mut part.experts {
        experts.intermediate_size = divided("the inner width of an expert", experts.intermediate_size)?;
        if let Some(inner) = &mut experts.shared_intermediate_size {
            *inner = divided("shared_expert_intermediate_size", *inner)?;
        }
    }
    Ok(part)
}

/// Reads weights and packs or quantises them, one tensor at a time.
struct Loader<'a> {
    /// The sizes of the tensors.
    config: &'a ModelConfig,
    /// The sizes of the part of the rank.
    part: &'a ModelConfig,
    /// The part of the rank.
    share: Share,
    machine: &'a Machine,
    tensors: &'a Tensors,
}

impl Loader<'_> {
    /// Calls `with` with the elements of a tensor.
    fn read<E: Element + WithDType, T>(
        &self,
        weights: &VarBuilder,
        shape: impl Into<Shape>,
        name: &str,
        with: impl FnOnce(&[E]) -> T,
    ) -> Result<T> {
        let shape = shape.into();
        let path = weights.pp(name).prefix();
        if let Some(values) = self.tensors.in_file(&path, shape.dims()) {
            return Ok(with(values));
        }
        let tensor = weights.get(shape, name)?.contiguous()?;
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

    /// The part of a matrix, in the form that matrices have.
    fn matrix<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        shape: (usize, usize),
        cut: Cut,
        is_head: bool,
    ) -> Result<Weights<E>> {
        // A file is not sharded.
        if let Matrices::File(file) = &self.tensors.matrices
            && let Some(quantised) =
                file.matrix(self.machine, &format!("{}.weight", weights.prefix()), shape, |row| row)?
        {
            return Ok(quantised.into());
        }
        self.read(weights, shape, "weight", |values| {
            self.held(Source::row_major(values, shape.1), shape, cut, is_head)
        })?
        .with_context(|| weights.prefix())
    }

    /// The part of a matrix in memory, in the form that matrices have.
    fn held<E: Element>(
        &self,
        Source { values, output_stride, input_stride }: Source<E>,
        shape: (usize, usize),
        cut: Cut,
        is_head: bool,
    ) -> Result<Weights<E>> {
        let (outputs, inputs) = cut.ranges(shape);
        let part = (outputs.len(), inputs.len());
        let Matrices::Quantised(formats) = self.tensors.matrices else {
            let values = &values[outputs.start * output_stride + inputs.start * input_stride..];
            let source = Source { values, output_stride, input_stride };
            return Ok(Packed::new(self.machine, part.0, part.1, source).into());
        };
        let format = if is_head { formats.head } else { formats.others };
        let rows: Vec<E>;
        let values = match (part, output_stride, input_stride) == (shape, shape.1, 1) {
            true => &values[..part.0 * part.1],
            false => {
                let row =
                    |output| inputs.clone().map(move |input| values[output * output_stride + input * input_stride]);
                rows = outputs.flat_map(row).collect();
                &rows
            }
        };
        Ok(format.quantise(self.machine, part, values)?.into())
    }

    /// The part of a linear layer.
    fn linear<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        shape: (usize, usize),
        cut: Cut,
        has_bias: bool,
    ) -> Result<Linear<E>> {
        let own = cut.biased(shape.0).filter(|_| has_bias);
        let bias =
            own.map(|own| Ok::<_, anyhow::Error>(values(weights, shape.0, "bias")?[own].to_vec())).transpose()?;
        Ok(Linear::new(self.matrix(weights, shape, cut, false)?, bias))
    }

    /// As [`Self::linear`] for queries or keys of a family whose pairs of RoPE are neighbours. Their elements are put in the order
    /// of halves, which changes no score, because queries and keys have the same.
    fn unpaired<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        shape @ (outputs, inputs): (usize, usize),
        cut: Cut,
        has_bias: bool,
        (head_dim, rotary_dim): (usize, usize),
    ) -> Result<Linear<E>> {
        let source = |output: usize| {
            let (head, element) = (output / head_dim * head_dim, output % head_dim);
            let half = rotary_dim / 2;
            head + if element < rotary_dim { element % half * 2 + element / half } else { element }
        };
        let quantised = match &self.tensors.matrices {
            Matrices::File(file) => {
                file.matrix(self.machine, &format!("{}.weight", weights.prefix()), shape, source)?.map(Weights::from)
            }
            _ => None,
        };
        let weight = match quantised {
            Some(weight) => weight,
            None => {
                let rows = |values: &[E]| {
                    (0..outputs).flat_map(|row| &values[source(row) * inputs..][..inputs]).copied().collect()
                };
                let rows: Vec<E> = self.read(weights, shape, "weight", rows)?;
                self.held(Source::row_major(&rows, inputs), shape, cut, false).with_context(|| weights.prefix())?
            }
        };
        let bias = has_bias.then(|| values(weights, outputs, "bias")).transpose()?;
        let bias = bias.map(|bias| cut.ranges(shape).0.map(|output| bias[source(output)]).collect());
        Ok(Linear::new(weight, bias))
    }

    /// A norm as long as `width`, with the offset of the family.
    fn norm(&self, weights: &VarBuilder, width: usize) -> Result<RowNorm> {
        let offset = self.config.family.norm_offset as f32;
        let weight = values(weights, width, "weight")?.iter().map(|weight| weight + offset).collect();
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
        let linear = |name: &str, shape, cut, has_bias| self.linear(&attention.pp(name), shape, cut, has_bias);
        let pairs = family.has_rope_in_pairs.then_some((head_dim, self.config.rotary_dim));
        let turned = |name: &str, shape, cut, has_bias| match pairs {
            Some(pairs) => self.unpaired(&attention.pp(name), shape, cut, has_bias, pairs),
            None => linear(name, shape, cut, has_bias),
        };
        let (outputs, inputs) = (Cut::Outputs(self.share), Cut::Inputs(self.share));
        // Several ranks hold a head that is not divided.
        let Share { part, parts } = self.share;
        let kv_parts = parts.min(kv_heads);
        let kv_outputs = Cut::Outputs(Share { part: part * kv_parts / parts, parts: kv_parts });
        let norm = |name: &str| self.norm(&weights.pp(name), hidden);
        let head_norm = |name: &str, width| self.norm(&attention.pp(name), width);
        let is_sliding = self.config.sliding_layers[number];
        let norms = &family.layer_norms;
        Ok(Layer {
            before_attention: norms.before_attention.map(norm).transpose()?,
            q: turned("q_proj", (heads * head_dim, hidden), outputs, qkv_bias)?,
            k: turned("k_proj", (kv_heads * head_dim, hidden), kv_outputs, qkv_bias)?,
            v: linear("v_proj", (kv_heads * head_dim, hidden), kv_outputs, qkv_bias)?,
            o: linear("o_proj", (hidden, heads * head_dim), inputs, o_bias)?,
            qk_norms: match self.config.qk_norm_widths() {
                Some((q, k)) => Some((head_norm("q_norm", q)?, head_norm("k_norm", k)?)),
                None => None,
            },
            has_whole_norms: family.qk_norm == QkNorm::Whole,
            attention: Attention {
                heads: self.part.num_attention_heads,
                scale: self.config.attention_scale() as f32,
                soft_cap: self.config.score_cap().map(|cap| cap as f32),
                window: self.config.sliding_window.filter(|_| is_sliding),
                sinks: match family.has_sinks {
                    true => values(&attention, heads, "sinks")?[self.share.of(heads)].to_vec(),
                    false => Vec::new(),
                },
            },
            rope: if self.config.rope_layers[number] { usize::from(is_sliding) } else { 2 },
            after_attention: norms.after_attention.map(norm).transpose()?,
            before_feed_forward: norms.before_feed_forward.map(norm).transpose()?,
            feed_forward,
            after_feed_forward: norms.after_feed_forward.map(norm).transpose()?,
            residual_scale: self.config.multipliers.residual as f32,
        })
    }

    fn dense<E: Element + WithDType>(&self, weights: &VarBuilder, activation: Activation) -> Result<FeedForward<E>> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, mlp_bias, .. } = *self.config;
        let linear = |name: &str, shape, cut| self.linear(&weights.pp("mlp").pp(name), shape, cut, mlp_bias);
        let expert = Expert {
            gate: linear("gate_proj", (inner, hidden), Cut::Outputs(self.share))?,
            up: linear("up_proj", (inner, hidden), Cut::Outputs(self.share))?,
            down: linear("down_proj", (hidden, inner), Cut::Inputs(self.share))?,
        };
        Ok(FeedForward { router: None, experts: vec![expert], shared: None, activation })
    }

    /// The linear layers of all experts of a tensor, which holds `joined` of each expert. Those of the first expert come first.
    fn stacked<E: Element + WithDType>(
        &self,
        block: &VarBuilder,
        (name, joined): (&str, usize),
        (count, outputs, inputs): (usize, usize, usize),
        cut: Cut,
        family: &ExpertFamily,
    ) -> Result<Vec<Linear<E>>> {
        let all = joined * outputs;
        // The distances of joined layers and of their outputs.
        let (layer, output) = if family.is_transposed { (1, joined) } else { (outputs, 1) };
        let (shape, of_output, of_input) = match family.is_transposed {
            true => ((count, inputs, all), 1, all),
            false => ((count, all, inputs), inputs, 1),
        };
        let places = || (0..count * joined).map(|place| (place / joined, place % joined * layer));
        let held = |values: &[E]| -> Result<Vec<_>> {
            let weights = places().map(|(expert, first)| {
                let values = &values[expert * all * inputs + first * of_output..];
                let source = Source { values, output_stride: output * of_output, input_stride: of_input };
                self.held(source, (outputs, inputs), cut, false)
            });
            weights.collect()
        };
        let weights = self.read(block, shape, name, held)??;
        let own = cut.biased(outputs).filter(|_| family.has_biases);
        let biases = own.map(|own| {
            let values = values(block, (count, all), &format!("{name}_bias"))?;
            let of = |(expert, first)| own.clone().map(|row| values[expert * all + first + row * output]).collect();
            Ok::<Vec<Vec<f32>>, anyhow::Error>(places().map(of).collect())
        });
        let mut biases = biases.transpose()?.into_iter().flatten();
        Ok(weights.into_iter().map(|weights| Linear::new(weights, biases.next())).collect())
    }

    fn mixture<E: Element + WithDType>(
        &self,
        weights: &VarBuilder,
        (config, family): (&Experts, &ExpertFamily),
        number: usize,
        layout: ExpertLayout,
        activation: Activation,
    ) -> Result<FeedForward<E>> {
        let (hidden, inner, count) = (self.config.hidden_size, config.intermediate_size, config.num_experts);
        let (outputs, inputs) = (Cut::Outputs(self.share), Cut::Inputs(self.share));
        let ExpertFamily { names, has_biases, .. } = family;
        let (block, experts) = match layout {
            ExpertLayout::Stacked => {
                let block = weights.pp("mlp");
                let halves =
                    self.stacked(&block, ("experts.gate_up_proj", 2), (count, inner, hidden), outputs, family)?;
                let downs = self.stacked(&block, ("experts.down_proj", 1), (count, hidden, inner), inputs, family)?;
                let mut halves = halves.into_iter();
                let experts =
                    downs.into_iter().map(|down| Some(Expert { gate: halves.next()?, up: halves.next()?, down }));
                (block, experts.collect::<Option<_>>().context("experts are missing")?)
            }
            ExpertLayout::Single => {
                let block = weights.pp(names.block);
                let expert = |expert: usize| {
                    let weights = block.pp("experts").pp(expert);
                    let linear = |name: &str, shape, cut| self.linear(&weights.pp(name), shape, cut, *has_biases);
                    Ok(Expert {
                        gate: linear(names.gate, (inner, hidden), outputs)?,
                        up: linear(names.up, (inner, hidden), outputs)?,
                        down: linear(names.down, (hidden, inner), inputs)?,
                    })
                };
                let experts = (0..count).map(expert).collect::<Result<_>>()?;
                (block, experts)
            }
        };
        let router = block.pp(names.router);
        let bias = has_biases.then(|| values(&router, count, "bias")).transpose()?;
        let router = Router {
            linear: Linear::new(self.packed(&router, (count, hidden), "weight")?, bias),
            top_k: config.num_experts_per_tok,
            normalise: config.norm_topk_prob,
            number,
        };
        let shared = |inner: usize| {
            let linear = |name: &str, shape, cut| self.linear(&block.pp("shared_expert").pp(name), shape, cut, false);
            Ok::<_, anyhow::Error>(Shared {
                gate: Linear::new(self.packed(&block.pp("shared_expert_gate"), (1, hidden), "weight")?, None),
                expert: Expert {
                    gate: linear(names.gate, (inner, hidden), outputs)?,
                    up: linear(names.up, (inner, hidden), outputs)?,
                    down: linear(names.down, (hidden, inner), inputs)?,
                },
            })
        };
        let shared = config.shared_intermediate_size.map(shared).transpose()?;
        Ok(FeedForward { router: Some(router), experts, shared, activation })
    }
}

/// The values of a small tensor.
fn values(weights: &VarBuilder, shape: impl Into<Shape>, name: &str) -> Result<Vec<f32>> {
    Ok(weights.get(shape.into(), name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl<E: Element + WithDType, C: Operand> CpuDecoder<E, C> {
    /// Builds the model for a number of ranks, which divide the threads of a machine. See [`load`].
    pub fn load(
        config: ModelConfig,
        tensors: impl Into<Tensors>,
        layout: ExpertLayout,
        planted: Option<(f64, u64)>,
        machine: Machine,
        ranks: usize,
    ) -> Result<Self> {
        let tensors = tensors.into();
        if let Some(reason) = refusal(&config) {
            bail!("engine tuned refuses this model: {reason}");
        }
        let part = part_of(&config, ranks)?;
        let is_file = matches!(tensors.matrices, Matrices::File(_));
        ensure!(
            ranks == 1 || !is_file,
            "the blocks of a GGUF file are not divided among ranks: leave out tensor_parallel"
        );
        let (team, reduces) = match ranks {
            1 => (None, vec![None]),
            _ => {
                let (team, reduces) = Team::new(ranks)?;
                (Some(team), reduces.into_iter().map(Some).collect())
            }
        };
        let machines = machine.split(ranks);
        let rank = |(number, (reduce, machine)): (usize, (Option<Reduce>, Machine))| {
            let share = Share { part: number, parts: ranks };
            let loader = Loader { config: &config, part: &part, share, machine: &machine, tensors: &tensors };
            let mut rank: Rank<E, C> = loader.rank(&tensors.weights, layout, planted)?;
            rank.reduce = reduce;
            Ok(rank)
        };
        let ranks = reduces.into_iter().zip(machines).enumerate().map(rank).collect::<Result<_>>()?;
        let (dtype, cache_dtype) = (tensors.weights.dtype(), tensors.cache_dtype);
        Ok(Self { config, dtype, cache_dtype, ranks, team })
    }
}

impl Loader<'_> {
    /// Everything that a rank holds.
    fn rank<E: Element + WithDType, C: Operand>(
        &self,
        weights: &VarBuilder,
        layout: ExpertLayout,
        planted: Option<(f64, u64)>,
    ) -> Result<Rank<E, C>> {
        let config = self.config;
        let activation = activation(config).context("an unknown activation")?;
        let model = weights.pp("model");
        // The largest tensors come first: one that is converted is in memory twice until it is packed, and the others are not yet.
        let table = (config.vocab_size, config.hidden_size);
        let (cut, is_head) = (Cut::Outputs(self.share), config.tie_word_embeddings);
        let embedding = self.matrix(&model.pp("embed_tokens"), table, cut, is_head)?;
        let (embedding, head) = match is_head {
            true => (None, embedding),
            false => (Some(embedding), self.matrix(&weights.pp("lm_head"), table, cut, true)?),
        };
        let mut mixtures = 0;
        let mut layer = |number: usize| {
            let weights = model.pp("layers").pp(number);
            let feed_forward = match config.experts_of(number).zip(config.family.experts.as_ref()) {
                None => self.dense(&weights, activation)?,
                Some((experts, family)) => {
                    mixtures += 1;
                    self.mixture(&weights, (experts, family), mixtures - 1, layout, activation)?
                }
            };
            self.layer(&weights, number, feed_forward)
        };
        let layers = (0..config.num_hidden_layers).map(&mut layer).collect::<Result<_>>()?;
        let load = config.experts.as_ref().map_or_else(ExpertLoad::default, |experts| {
            ExpertLoad::new(mixtures, experts.num_experts, experts.num_experts_per_tok)
        });
        let planted = planted.map(|(skew, seed)| Planted::for_load(&load, skew, seed)).transpose()?;
        let frequencies = |rope| rope::frequencies(rope, config.rotary_dim);
        let global = frequencies(&config.rope);
        let local = config.local_rope.as_ref().map_or(global.clone(), frequencies);
        // transformers holds the scale in the dtype of the weights.
        let embedding_scale = match config.family.scales_embedding {
            true => E::round((config.hidden_size as f32).sqrt()),
            false => config.multipliers.embedding as f32,
        };
        Ok(Rank {
            norm: self.norm(&model.pp("norm"), config.hidden_size)?,
            vocabulary: self.share.of(config.vocab_size),
            embedding,
            embedding_scale,
            layers,
            head: Linear::new(head, None),
            logits_scaling: config.multipliers.logits as f32,
            ropes: [global, local, (Vec::new(), 1.0)],
            memory: Memory::default(),
            sequences: Sequences::new(self.part),
            spans: Vec::new(),
            load,
            last_steps: LastSteps::default(),
            planted,
            config: self.part.clone(),
            machine: self.machine.clone(),
            reduce: None,
        })
    }
}
