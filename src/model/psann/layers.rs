//! The linear layer, the norms and the activations of all bases. Linear layers multiply in the dtype of their input, whatever
//! that of their weights; norms and sines compute in f32.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use sha2::{Digest, Sha256};

use super::{Base, Sine, config::Initial};
use crate::kernels::{Graph, Mask, Network, Waveform};

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
    Sine { amplitude: Tensor, frequency: Tensor, damping: Tensor, form: Waveform },
}

impl Activation {
    pub fn sine(width: usize, sine: &Sine, weights: VarBuilder) -> Result<Self> {
        let [of_amplitude, of_frequency, of_damping] = sine.initial();
        Ok(Self::Sine {
            amplitude: row(width, "_A", of_amplitude, &weights)?,
            frequency: row(width, "_f", of_frequency, &weights)?,
            damping: row(width, "_d", of_damping, &weights)?,
            form: sine.form(),
        })
    }

    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        match self {
            Self::Gelu => graph.gelu(x, Mask::NONE),
            Self::Sine { amplitude, frequency, damping, form } => graph.sine(x, [amplitude, frequency, damping], *form),
        }
    }
}

/// A parameter of the sine for each channel, before the softplus that makes it positive.
fn row(width: usize, name: &str, initial: Initial, weights: &VarBuilder) -> Result<Tensor> {
    // The inverse of softplus. psann raises smaller values to this one.
    let raw = |value: f64| {
        let value = value.max(f64::from(f32::EPSILON));
        value + (-(-value).exp_m1()).ln()
    };
    let init = match initial {
        Initial::Equal(value) => Init::Const(raw(value)),
        Initial::Drawn(low, high) => {
            let hash = Sha256::digest(format!("{}.{name}", weights.prefix()));
            let unit = f64::from(u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])) / f64::from(u32::MAX);
            Init::Const(raw(low + unit * (high - low)))
        }
        // The derivative of the inverse carries the deviation over.
        Initial::Spread(mean, deviation) => Init::Randn { mean: raw(mean), stdev: deviation / -(-mean).exp_m1() },
    };
    Ok(weights.get_with_hints(width, name, init)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::{golden::numbers, trainable::Variables};

    #[test]
    fn parameters_start_where_the_configuration_says() {
        let weights = Variables::new(3).frozen(DType::F32, &Device::Cpu);
        let values = |prefix: &str, initial| {
            let raw = row(4000, "_f", initial, &weights.pp(prefix)).expect("a row");
            numbers(&raw).into_iter().map(|raw| raw.exp().ln_1p()).collect::<Vec<f32>>()
        };
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let equal = values("a", Initial::Equal(0.3));
        assert!(equal.iter().all(|value| (value - 0.3).abs() < 1e-6));
        let (one, other) = (values("a", Initial::Drawn(1.0, 2.0)), values("b", Initial::Drawn(1.0, 2.0)));
        assert!(one.iter().all(|value| *value == one[0]) && one[0] != other[0], "{} {}", one[0], other[0]);
        assert!((1.0..=2.0).contains(&one[0]) && (1.0..=2.0).contains(&other[0]));
        let spread = values("a", Initial::Spread(1.0, 0.1));
        let (center, deviation) = (mean(&spread), {
            let squares: Vec<f32> = spread.iter().map(|value| (value - mean(&spread)).powi(2)).collect();
            mean(&squares).sqrt()
        });
        assert!((center - 1.0).abs() < 0.01 && (deviation - 0.1).abs() < 0.01, "{center} ± {deviation}");
    }
}
