//! The optional temporal block of `waveresnet`, after the feed-forward: RMSNorm, a dilated depthwise convolution over time, the
//! sine and a linear layer, with a residual connection. The convolution sees later steps, so a model with it is not causal.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{
    Base, PsannConfig,
    layers::{Activation, Linear, Norm},
};
use crate::{
    device::Precision,
    kernels::{Graph, Mask, Padding, Taps},
};

pub struct Wave {
    norm: Norm,
    /// (channels, 1, taps)
    taps: Tensor,
    no_bias: Tensor,
    dilation: usize,
    activation: Activation,
    out: Linear,
}

impl Wave {
    pub fn new(config: &PsannConfig, number: usize, weights: VarBuilder, precision: Option<Precision>) -> Result<Self> {
        let (width, taps) = (config.d_model, config.wave_kernel_size);
        let bound = 1.0 / (taps as f64).sqrt();
        let growth = config.wave_dilation_growth.saturating_pow(u32::try_from(number)?);
        Ok(Self {
            norm: Norm::new(Base::Waveresnet, width, weights.pp("norm"))?,
            taps: weights.get_with_hints((width, 1, taps), "dw.weight", Init::Uniform { lo: -bound, up: bound })?,
            no_bias: Tensor::zeros(width, weights.dtype(), weights.device())?,
            dilation: growth,
            activation: Activation::sine(width, &config.sine, weights.pp("act"))?,
            out: Linear::new((width, width), true, weights.pp("proj"), precision)?,
        })
    }

    /// The linear layer. The convolution is not a matrix product.
    pub fn linear(&self) -> &Linear {
        &self.out
    }

    /// From (batch, time, channels) to the same shape.
    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        let normed = self.norm.forward(graph, x)?;
        let taps = Taps { weight: &self.taps, bias: &self.no_bias, dilation: self.dilation, padding: Padding::Same };
        let mixed = graph.depthwise(&normed, taps)?;
        let mixed = self.activation.forward(graph, &mixed)?;
        let mixed = self.out.forward(graph, &mixed)?;
        graph.add(x, &mixed, Mask::NONE)
    }
}
