//! The linear layer, the norms and the activations of all bases. Linear layers multiply in the dtype of their input, which
//! may differ from that of their weights; norms and sines compute in f32.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{Base, Sine};
use crate::kernels::{Decay, Graph, Mask, Network};

/// A linear layer with the initial values of Glorot and Bengio 2010.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(from: usize, to: usize, has_bias: bool, weights: VarBuilder) -> Result<Self> {
        let bound = (6.0 / (from + to) as f64).sqrt();
        let weight = weights.get_with_hints((to, from), "weight", Init::Uniform { lo: -bound, up: bound })?;
        let bias = has_bias.then(|| weights.get_with_hints(to, "bias", Init::Const(0.0))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Number of weights without biases.
    pub fn weights(&self) -> usize {
        self.weight.elem_count()
    }

    /// From (batch, time, inputs) to (batch, time, outputs).
    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        graph.linear(x, &self.weight, self.bias.as_ref())
    }
}

/// RMSNorm, or the LayerNorm of the plain transformer.
pub enum Norm {
    Rms(Tensor),
    Layer(Tensor, Tensor),
}

impl Norm {
    pub fn new(base: Base, width: usize, weights: VarBuilder) -> Result<Self> {
        Ok(match base {
            Base::Transformer => Self::Layer(
                weights.get_with_hints(width, "weight", Init::Const(1.0))?,
                weights.get_with_hints(width, "bias", Init::Const(0.0))?,
            ),
            _ => Self::Rms(weights.get_with_hints(width, "scale", Init::Const(1.0))?),
        })
    }

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        match self {
            Self::Rms(scale) => graph.rms_norm(x, scale, 1e-6),
            Self::Layer(weight, bias) => graph.layer_norm(x, weight, bias, 1e-5),
        }
    }
}

impl Network for Norm {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        Self::forward(self, graph, &inputs[0])
    }
}

/// The activation between two linear layers.
pub enum Activation {
    Gelu,
    Sine { amplitude: Tensor, frequency: Tensor, damping: Tensor, decay: Decay },
}

impl Activation {
    pub fn sine(width: usize, sine: &Sine, weights: VarBuilder) -> Result<Self> {
        // The inverse of softplus.
        let raw = |value: f64| Init::Const(value + (-(-value).exp_m1()).ln());
        Ok(Self::Sine {
            amplitude: weights.get_with_hints(width, "_A", raw(sine.amp_init))?,
            frequency: weights.get_with_hints(width, "_f", raw(sine.freq_init))?,
            damping: weights.get_with_hints(width, "_d", raw(sine.damp_init))?,
            decay: sine.decay_mode,
        })
    }

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        match self {
            Self::Gelu => graph.gelu(x, Mask::NONE),
            Self::Sine { amplitude, frequency, damping, decay } => {
                graph.sine(x, [amplitude, frequency, damping], *decay)
            }
        }
    }
}
