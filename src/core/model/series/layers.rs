//! Layers that the backbones share. Each maps (batch, time, width) to (batch, time, width) and counts its own cost.
//!
//! Weights may have another dtype than the activations: a layer computes in the dtype of its input.

use std::{cell::Cell, iter::Sum, ops::Add};

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::kernels::{self, Graph, Mask, Network, Padding, Positions, Taps};

/// The epsilon of PyTorch's `LayerNorm`.
const EPS: f64 = 1e-5;

/// Cost of one forward pass of a layer. The cost of a network is the sum over its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerCost {
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
pub(crate) struct Dropout {
    /// Probability that a number becomes 0.
    pub rate: f64,
    /// Seed of the masks.
    pub seed: u64,
}

impl Dropout {
    /// No dropout.
    pub(crate) const OFF: Self = Self { rate: 0.0, seed: 0 };

    /// The masks of one stage of the network.
    pub(crate) fn stage(self, number: usize) -> Masks {
        let seed = self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Masks { rate: self.rate, seed: Cell::new(seed) }
    }
}

/// A layer with the masks of its stage.
pub(crate) struct Masked<'a, L>(pub &'a L, pub &'a Masks);

/// Successive dropout masks.
pub(crate) struct Masks {
    rate: f64,
    seed: Cell<u64>,
}

impl Masks {
    /// The next mask.
    pub(crate) fn draw(&self) -> Mask {
        if self.rate == 0.0 {
            return Mask::NONE;
        }
        self.seed.set(self.seed.get().wrapping_add(1));
        Mask::new(self.rate, self.seed.get())
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

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        graph.linear(x, &self.weight, self.bias.as_ref())
    }

    pub fn cost(&self, rows: usize) -> LayerCost {
        LayerCost::new(2 * rows * self.weight.elem_count(), 0)
    }
}

fn uniform(inputs: usize) -> Init {
    let bound = 1.0 / (inputs as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(crate) fn new(width: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: weights.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: weights.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }

    pub(crate) fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        graph.layer_norm(x, &self.weight, &self.bias, EPS)
    }

    /// The norm of `x + branch`, with dropout of the branch.
    pub(crate) fn add<G: Graph>(&self, graph: &mut G, x: &G::Value, branch: &G::Value, mask: Mask) -> Result<G::Value> {
        graph.add_norm(x, branch, mask, &self.weight, &self.bias, EPS)
    }
}

/// Multi-head attention without a mask: every step attends to every step.
struct Heads {
    count: usize,
}

impl Heads {
    fn attention(&self, positions: Positions, masks: &Masks) -> kernels::Attention {
        kernels::Attention { heads: self.count, positions, is_causal: false, mask: masks.draw() }
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
    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value, over: &G::Value, masks: &Masks) -> Result<G::Value> {
        let query = self.query.forward(graph, x)?;
        let (key, value) = (self.key.forward(graph, over)?, self.value.forward(graph, over)?);
        let mixed = graph.attention(&query, &key, &value, self.heads.attention(Positions::None, masks))?;
        self.out.forward(graph, &mixed)
    }

    pub fn cost(&self, batch: usize, time: usize, over: usize) -> LayerCost {
        let of_over = self.key.cost(batch * over) + self.value.cost(batch * over);
        let of_x = self.query.cost(batch * time) + self.out.cost(batch * time);
        of_over + of_x + self.heads.cost(batch, time, over, self.width)
    }
}

/// Self-attention with one linear layer without bias for queries, keys and values, and RoPE with its angles in halves.
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

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value, masks: &Masks) -> Result<G::Value> {
        let all = self.qkv.forward(graph, x)?;
        let mixed = graph.joined_attention(&all, self.heads.attention(Positions::Halves, masks))?;
        self.out.forward(graph, &mixed)
    }

    pub fn cost(&self, batch: usize, time: usize) -> LayerCost {
        let rows = batch * time;
        self.qkv.cost(rows) + self.out.cost(rows) + self.heads.cost(batch, time, time, self.width)
    }
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

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value, masks: &Masks) -> Result<G::Value> {
        let inner = self.up.forward(graph, x)?;
        let inner = graph.gelu(&inner, masks.draw())?;
        self.down.forward(graph, &inner)
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

    /// The weights and sizes of the convolution.
    pub fn taps(&self) -> Taps<'_> {
        Taps { weight: &self.weight, bias: &self.bias, dilation: self.dilation, padding: self.padding }
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

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value, masks: &Masks) -> Result<G::Value> {
        let mixed = graph.depthwise(x, self.depthwise.taps())?;
        let mixed = graph.gelu(&mixed, masks.draw())?;
        self.pointwise.forward(graph, &mixed)
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

    pub fn cost(&self, rows: usize) -> LayerCost {
        self.linear.cost(rows)
    }
}

impl Network for Masked<'_, Embedding> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let Self(embedding, masks) = *self;
        let x = embedding.linear.forward(graph, &inputs[0])?;
        graph.add_positions(&x, &embedding.positions, masks.draw())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masks_of_a_stage_repeat_and_differ() {
        let dropout = Dropout { rate: 0.25, seed: 7 };
        let draw = |stage| {
            let masks = dropout.stage(stage);
            (masks.draw(), masks.draw())
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).0, draw(1).1);
        assert_ne!(draw(1).0, draw(2).0);
        assert!(Dropout::OFF.stage(1).draw().is_none());
    }
}
