//! Parts that the backbones share. All take and give (batch, time, width).

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, Linear, Module, VarBuilder};

use crate::kernels::{self, Padding};

/// What PyTorch adds to variances.
const EPS: f64 = 1e-5;

/// A linear layer with a bias, started as PyTorch starts it: uniform up to one over the root of its inputs.
pub fn linear(from: usize, to: usize, weights: VarBuilder) -> Result<Linear> {
    let init = uniform(from);
    Ok(Linear::new(
        weights.get_with_hints((to, from), "weight", init)?,
        Some(weights.get_with_hints(to, "bias", init)?),
    ))
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

/// Multi-head attention of one sequence over another, or itself. Every step sees every step.
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    pub fn new(width: usize, heads: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            query: linear(width, width, weights.pp("query"))?,
            key: linear(width, width, weights.pp("key"))?,
            value: linear(width, width, weights.pp("value"))?,
            out: linear(width, width, weights.pp("out"))?,
            heads,
        })
    }

    pub fn forward(&self, x: &Tensor, over: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let split = |x: Tensor| -> candle_core::Result<Tensor> {
            x.reshape((batch, (), self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()
        };
        let query = split(self.query.forward(x)?)?;
        let (key, value) = (split(self.key.forward(over)?)?, split(self.value.forward(over)?)?);
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        // Scaling the queries is cheaper than scaling the scores.
        let scores = (query * scale)?.matmul(&key.transpose(2, 3)?)?;
        let heads = kernels::softmax(&scores)?.matmul(&value)?;
        Ok(self.out.forward(&heads.transpose(1, 2)?.contiguous()?.reshape((batch, time, width))?)?)
    }
}

/// `W₂ · GELU(W₁ · x)`.
pub struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    pub fn new(width: usize, inner: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self { up: linear(width, inner, weights.pp("up"))?, down: linear(inner, width, weights.pp("down"))? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.down.forward(&kernels::gelu(&self.up.forward(x)?)?)?)
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
        kernels::depthwise(x, &self.weight, &self.bias, self.dilation, self.padding)
    }
}

/// Depthwise over time, GELU, then a linear layer over the channels.
pub struct Convolution {
    depthwise: Depthwise,
    pointwise: Linear,
}

impl Convolution {
    pub fn new(width: usize, taps: usize, dilation: usize, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            depthwise: Depthwise::new(width, taps, dilation, Padding::Same, weights.pp("depthwise"))?,
            pointwise: linear(width, width, weights.pp("pointwise"))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.pointwise.forward(&kernels::gelu(&self.depthwise.forward(x)?)?)?)
    }
}

/// A linear layer over the features, with a learned vector for each position if there are any.
pub struct Embedding {
    linear: Linear,
    positions: Option<Tensor>,
}

impl Embedding {
    pub fn new(features: usize, width: usize, positions: Option<usize>, weights: VarBuilder) -> Result<Self> {
        Ok(Self {
            linear: linear(features, width, weights.pp("linear"))?,
            positions: positions.map(|count| learned_positions(count, width, &weights)).transpose()?,
        })
    }

    pub fn forward(&self, series: &Tensor) -> Result<Tensor> {
        let x = self.linear.forward(series)?;
        Ok(match &self.positions {
            None => x,
            Some(positions) => x.broadcast_add(&positions.narrow(0, 0, x.dim(1)?)?)?,
        })
    }
}

/// (count, width), started from a normal distribution.
pub fn learned_positions(count: usize, width: usize, weights: &VarBuilder) -> Result<Tensor> {
    Ok(weights.get_with_hints((count, width), "positions", Init::Randn { mean: 0.0, stdev: 0.02 })?)
}
