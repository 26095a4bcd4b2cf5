//! Layers that the backbones share. Each maps (batch, time, width) to (batch, time, width) and counts its own cost.
//!
//! Weights may have another dtype than the activations: a layer computes in the dtype of its input.

use std::{iter::Sum, ops::Add};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use rayon::prelude::*;

use crate::kernels::{self, Padding};

/// The epsilon of PyTorch's `LayerNorm`.
const EPS: f64 = 1e-5;

/// Base of the angles of RoPE.
const ROPE_THETA: f64 = 10_000.0;

/// Cost of one forward pass of a layer. The cost of a network is the sum over its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerCost {
    /// Floating-point operations in products with weights and of attention. Element-wise operations are not counted.
    pub flops: u64,
    /// Numbers that a training step must keep at least for the backward pass.
    pub kept: u64,
    /// The largest `kept` of one layer: a forward pass without gradients holds this many at least.
    pub largest: u64,
}

impl LayerCost {
    fn new(flops: usize, kept: usize) -> Self {
        Self { flops: flops as u64, kept: kept as u64, largest: kept as u64 }
    }
}

impl Add for LayerCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let largest = self.largest.max(other.largest);
        Self { flops: self.flops + other.flops, kept: self.kept + other.kept, largest }
    }
}

impl Sum for LayerCost {
    fn sum<I: Iterator<Item = Self>>(layers: I) -> Self {
        layers.fold(Self::default(), Self::add)
    }
}

/// Dropout of one training step. The masks depend only on the seed, so that a checkpointed block that is computed again
/// draws the same ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a number becomes 0.
    pub rate: f64,
    /// Seed of the masks.
    pub seed: u64,
}

impl Dropout {
    /// No dropout.
    pub const OFF: Self = Self { rate: 0.0, seed: 0 };

    /// The masks of one stage of the network.
    pub fn stage(self, number: usize) -> Masks {
        Masks { rate: self.rate, seed: self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }
}

/// Successive dropout masks.
pub struct Masks {
    rate: f64,
    seed: u64,
}

impl Masks {
    /// Sets numbers of `x` to 0 with the probability of the rate and scales the others by `1 / (1 - rate)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&mut self, x: &Tensor) -> Result<Tensor> {
        if self.rate == 0.0 {
            return Ok(x.clone());
        }
        self.seed = self.seed.wrapping_add(1);
        let scale = 1.0 / (1.0 - self.rate);
        let mask = match x.device() {
            Device::Cpu => {
                const CHUNK: usize = 1 << 16;
                let least = (self.rate * 2f64.powi(32)) as u32;
                let mut mask = vec![0f32; x.elem_count()];
                mask.par_chunks_mut(CHUNK).enumerate().for_each(|(number, mask)| {
                    let mut random = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add((number as u64) << 32));
                    mask.iter_mut().for_each(|x| *x = if random.next_u32() < least { 0.0 } else { scale as f32 });
                });
                Tensor::from_vec(mask, x.shape(), x.device())?
            }
            device => {
                device.set_seed(self.seed)?;
                let kept = Tensor::rand(0f32, 1f32, x.shape(), device)?.ge(self.rate)?;
                (kept.to_dtype(DType::F32)? * scale)?
            }
        };
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }
}

/// A linear layer.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With a bias. The initial values are PyTorch's: uniform within one over the root of the number of inputs.
    pub fn new(from: usize, to: usize, weights: VarBuilder) -> Result<Self> {
        let bias = weights.get_with_hints(to, "bias", uniform(from))?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(from, to, weights)? })
    }

    pub fn without_bias(from: usize, to: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self { weight: weights.get_with_hints((to, from), "weight", uniform(from))?, bias: None })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        LayerCost::new(2 * rows * self.weight.elem_count(), 0)
    }
}

fn uniform(inputs: usize) -> Init {
    let bound = 1.0 / (inputs as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub fn new(width: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: weights.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: weights.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight, &self.bias, EPS)
    }
}

/// Multi-head attention without a mask: every step attends to every step.
struct Heads {
    count: usize,
}

impl Heads {
    /// From (batch, time, width) to (batch, heads, time, width / heads).
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        Ok(x.reshape((batch, time, self.count, width / self.count))?.transpose(1, 2)?.contiguous()?)
    }

    /// Attention of split queries over split keys and values, as (batch, time, width).
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        let (batch, heads, time, dim) = query.dims4()?;
        // Scaling the queries is cheaper than scaling the scores.
        let scores = (query * (1.0 / (dim as f64).sqrt()))?.matmul(&key.transpose(2, 3)?)?;
        let mixed = masks.apply(&kernels::softmax(&scores)?)?.matmul(value)?;
        Ok(mixed.transpose(1, 2)?.contiguous()?.reshape((batch, time, heads * dim))?)
    }

    /// Cost of scores and of weighted values. The scores are kept before and after softmax.
    fn cost(&self, batch: usize, time: usize, over: usize, width: usize) -> LayerCost {
        let pairs = batch * time * over;
        LayerCost::new(4 * pairs * width, 2 * pairs * self.count)
    }
}

/// Attention of one sequence over another with four linear layers with biases, as PyTorch's `MultiheadAttention`.
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: Heads,
    width: usize,
}

impl Attention {
    pub fn new(width: usize, heads: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            query: Linear::new(width, width, weights.pp("query"))?,
            key: Linear::new(width, width, weights.pp("key"))?,
            value: Linear::new(width, width, weights.pp("value"))?,
            out: Linear::new(width, width, weights.pp("out"))?,
            heads: Heads { count: heads },
            width,
        })
    }

    /// From `x` (batch, time, width) and `over` (batch, other time, width) to (batch, time, width).
    pub fn forward(&self, x: &Tensor, over: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        let query = self.heads.split(&self.query.forward(x)?)?;
        let key = self.heads.split(&self.key.forward(over)?)?;
        let value = self.heads.split(&self.value.forward(over)?)?;
        self.out.forward(&self.heads.attend(&query, &key, &value, masks)?)
    }

    pub fn cost(&self, batch: usize, time: usize, over: usize) -> LayerCost {
        let of_over = self.key.cost(batch * over) + self.value.cost(batch * over);
        let of_x = self.query.cost(batch * time) + self.out.cost(batch * time);
        of_over + of_x + self.heads.cost(batch, time, over, self.width)
    }
}

/// Self-attention with one linear layer without bias for queries, keys and values, and RoPE.
///
/// RoPE lays out its cosines and sines in halves, `cat(f, f)`, but turns interleaved pairs (2i, 2i+1). The two numbers of a
/// pair are therefore turned by different angles, and the result is not a pure rotation. The architecture is defined so.
pub struct RotaryAttention {
    qkv: Linear,
    out: Linear,
    heads: Heads,
    width: usize,
}

impl RotaryAttention {
    /// `width / heads` must be even.
    pub fn new(width: usize, heads: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            qkv: Linear::without_bias(width, 3 * width, weights.pp("qkv"))?,
            out: Linear::new(width, width, weights.pp("out"))?,
            heads: Heads { count: heads },
            width,
        })
    }

    pub fn forward(&self, x: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        let all = self.qkv.forward(x)?;
        let part = |number: usize| self.heads.split(&all.narrow(2, number * self.width, self.width)?.contiguous()?);
        let (cos, sin) = self.angles(x)?;
        let query = rotate(&part(0)?, &cos, &sin)?;
        let key = rotate(&part(1)?, &cos, &sin)?;
        self.out.forward(&self.heads.attend(&query, &key, &part(2)?, masks)?)
    }

    /// Cosines and sines (time, width / heads) in the dtype of `x`.
    fn angles(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (time, dim) = (x.dim(1)?, self.width / self.heads.count);
        let angle = |place: usize| {
            let (step, number) = (place / dim, place % dim % (dim / 2));
            (step as f64 * ROPE_THETA.powf(-2.0 * number as f64 / dim as f64)) as f32
        };
        let angles = Tensor::from_iter((0..time * dim).map(angle), &Device::Cpu)?.reshape((time, dim))?;
        let on_device = |values: Tensor| values.to_dtype(x.dtype())?.to_device(x.device());
        Ok((on_device(angles.cos()?)?, on_device(angles.sin()?)?))
    }

    pub fn cost(&self, batch: usize, time: usize) -> LayerCost {
        let rows = batch * time;
        self.qkv.cost(rows) + self.out.cost(rows) + self.heads.cost(batch, time, time, self.width)
    }
}

/// `x·cos + turned(x)·sin`, where `turned` maps each pair (a, b) of the last dimension to (-b, a).
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, heads, time, dim) = x.dims4()?;
    let pairs = x.reshape((batch, heads, time, dim / 2, 2))?;
    let turned = Tensor::cat(&[pairs.narrow(4, 1, 1)?.neg()?, pairs.narrow(4, 0, 1)?], 4)?.reshape(x.shape())?;
    Ok((x.broadcast_mul(cos)? + turned.broadcast_mul(sin)?)?)
}

/// `W₂ · GELU(W₁ · x)`, with dropout after the GELU.
pub struct FeedForward {
    up: Linear,
    down: Linear,
    inner: usize,
}

impl FeedForward {
    pub fn new(width: usize, inner: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            up: Linear::new(width, inner, weights.pp("up"))?,
            down: Linear::new(inner, width, weights.pp("down"))?,
            inner,
        })
    }

    pub fn forward(&self, x: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        self.down.forward(&masks.apply(&kernels::gelu(&self.up.forward(x)?)?)?)
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        self.up.cost(rows) + self.down.cost(rows) + LayerCost::new(0, rows * self.inner)
    }
}

/// A depthwise convolution over time.
pub struct Depthwise {
    weight: Tensor,
    bias: Tensor,
    dilation: usize,
    padding: Padding,
}

impl Depthwise {
    pub fn new(width: usize, taps: usize, dilation: usize, padding: Padding, weights: VarBuilder) -> Result<Self> {
        let init = uniform(taps);
        Ok(Self {
            weight: weights.get_with_hints((width, 1, taps), "weight", init)?,
            bias: weights.get_with_hints(width, "bias", init)?,
            dilation,
            padding,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_dtype(x.dtype())?, self.bias.to_dtype(x.dtype())?);
        kernels::depthwise(x, &weight, &bias, self.dilation, self.padding)
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        LayerCost::new(2 * rows * self.weight.elem_count(), 0)
    }
}

/// A depthwise convolution over time, GELU, dropout, then a linear layer over the channels.
pub struct Convolution {
    depthwise: Depthwise,
    pointwise: Linear,
}

impl Convolution {
    pub fn new(width: usize, taps: usize, dilation: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            depthwise: Depthwise::new(width, taps, dilation, Padding::Same, weights.pp("depthwise"))?,
            pointwise: Linear::new(width, width, weights.pp("pointwise"))?,
        })
    }

    pub fn forward(&self, x: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        self.pointwise.forward(&masks.apply(&kernels::gelu(&self.depthwise.forward(x)?)?)?)
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        self.depthwise.cost(rows) + self.pointwise.cost(rows)
    }
}

/// A linear layer over the features, a learned vector added at each position, then dropout.
pub struct Embedding {
    linear: Linear,
    positions: Tensor,
}

impl Embedding {
    /// `positions` is the number of positions and the standard deviation of their initial values.
    pub fn new(features: usize, width: usize, positions: (usize, f64), weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            linear: Linear::new(features, width, weights.pp("linear"))?,
            positions: learned_positions(positions.0, width, positions.1, &weights)?,
        })
    }

    pub fn forward(&self, series: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        masks.apply(&add_positions(&self.linear.forward(series)?, &self.positions)?)
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        self.linear.cost(rows)
    }
}

/// Learned positions (count, width) with normally distributed initial values.
pub fn learned_positions(count: usize, width: usize, deviation: f64, weights: &VarBuilder) -> Result<Tensor> {
    let init = match deviation == 0.0 {
        true => Init::Const(0.0),
        false => Init::Randn { mean: 0.0, stdev: deviation },
    };
    Ok(weights.get_with_hints((count, width), "positions", init)?)
}

/// Adds to each step of `x` (batch, time, width) the vector of its position.
pub fn add_positions(x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(&positions.narrow(0, 0, x.dim(1)?)?.to_dtype(x.dtype())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_mixes_the_two_layouts() {
        let attention = crate::model::trainable::Variables::new(1).frozen(DType::F32, &Device::Cpu);
        let attention = RotaryAttention::new(8, 2, attention).expect("a layer");
        let x = Tensor::arange(0f32, 24.0, &Device::Cpu).and_then(|x| x.reshape((1, 3, 8))).expect("numbers");
        let (cos, sin) = attention.angles(&x).expect("angles");
        let split = attention.heads.split(&x).expect("heads");
        let found = rotate(&split, &cos, &sin).and_then(|x| Ok(x.flatten_all()?.to_vec1::<f32>()?)).expect("numbers");
        let mut expected = Vec::new();
        for (head, step) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            let x = |number: usize| (8 * step + 4 * head + number) as f64;
            // Angles of the four numbers: halves, so number 1 has the angle of number 3.
            let angle = |number: usize| step as f64 * [1.0, 0.01][number % 2];
            for pair in [0, 2] {
                let (a, b) = (x(pair), x(pair + 1));
                expected.push(a * angle(pair).cos() - b * angle(pair).sin());
                expected.push(b * angle(pair + 1).cos() + a * angle(pair + 1).sin());
            }
        }
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
        }
    }

    #[test]
    fn dropout_keeps_the_mean_and_repeats_a_stage() {
        let ones = Tensor::ones((300, 300), DType::F32, &Device::Cpu).expect("ones");
        let dropout = Dropout { rate: 0.25, seed: 7 };
        let draw = |stage| dropout.stage(stage).apply(&ones).and_then(|x| Ok(x.flatten_all()?.to_vec1::<f32>()?));
        let (first, again, other) = (draw(1).expect("a mask"), draw(1).expect("a mask"), draw(2).expect("a mask"));
        assert_eq!(first, again);
        assert_ne!(first, other);
        assert!(first.iter().all(|x| *x == 0.0 || (*x - 4.0 / 3.0).abs() < 1e-6));
        let zeros = first.iter().filter(|x| **x == 0.0).count() as f64 / first.len() as f64;
        assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
        // Numbers of different chunks are drawn apart.
        assert_ne!(first[..1000], first[1 << 16..(1 << 16) + 1000]);
    }
}
