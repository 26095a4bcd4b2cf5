//! The linear layer, the norms and the activations of all bases, and the tables of tokens. Linear layers multiply in the dtype of
//! their input, which may differ from that of their weights; norms and sines compute in f32.
//!
//! Matrices are tensors, which can be trained, or in the form that a precision has on the kernels of inference. All other weights
//! are tensors.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use sha2::{Digest, Sha256};

use super::{Base, Sine, config::Initial};
use crate::{
    device::Precision,
    kernels::{
        Graph, Mask, Network, Waveform,
        inference::{self, Element, Layer, Machine, Packed, Source},
        with_slices,
    },
    model::tensors::Formats,
};

/// A linear layer with the initial values of Glorot and Bengio 2010.
pub enum Linear {
    /// As tensors.
    Tensors { weight: Tensor, bias: Option<Tensor> },
    /// On the kernels of inference.
    Layer(Layer),
}

impl Linear {
    /// A layer for the kernels of inference if a precision is given.
    pub fn new(
        (from, to): (usize, usize),
        has_bias: bool,
        weights: VarBuilder,
        precision: Option<Precision>,
    ) -> Result<Self> {
        let bound = (6.0 / (from + to) as f64).sqrt();
        let weight = weights.get_with_hints((to, from), "weight", Init::Uniform { lo: -bound, up: bound })?;
        let bias = has_bias.then(|| weights.get_with_hints(to, "bias", Init::Const(0.0))).transpose()?;
        let Some(precision) = precision else { return Ok(Self::Tensors { weight, bias }) };
        let layer = layer(&weight, bias.as_ref(), precision, false);
        Ok(Self::Layer(layer.with_context(|| weights.prefix())?))
    }

    /// Number of weights without biases.
    pub fn weights(&self) -> usize {
        match self {
            Self::Tensors { weight, .. } => weight.elem_count(),
            Self::Layer(layer) => layer.outputs() * layer.inputs(),
        }
    }

    /// Bytes of the weights without biases.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Tensors { weight, .. } => bytes(weight),
            Self::Layer(layer) => layer.bytes(),
        }
    }

    /// From (batch, time, inputs) to (batch, time, outputs).
    pub fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        match self {
            Self::Tensors { weight, bias } => graph.linear(x, weight, bias.as_ref()),
            Self::Layer(layer) => graph.infer(x, layer),
        }
    }
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// A matrix (outputs, inputs) in f32 on a CPU, in the form that a precision has on the kernels of inference.
///
/// # Errors
/// If a weight is quantised and not finite.
pub fn layer(weight: &Tensor, bias: Option<&Tensor>, precision: Precision, is_head: bool) -> Result<Layer> {
    fn plain<E: Element>(shape: (usize, usize), values: &[f32], bias: Option<Vec<f32>>) -> inference::Linear<E> {
        let (outputs, inputs) = shape;
        let values: Vec<E> = values.iter().map(|value| E::from_f32(*value)).collect();
        let source = Source::row_major(&values, inputs);
        inference::Linear::new(Packed::new(Machine::shared(), outputs, inputs, source), bias)
    }
    let shape = weight.dims2()?;
    let bias: Option<Vec<f32>> = bias.map(Tensor::to_vec1).transpose()?;
    with_slices([weight], |[values]| -> Result<Layer> {
        let Some(formats) = Formats::of(precision) else {
            return Ok(match precision.dtype() {
                DType::BF16 => Layer::BF16(plain(shape, values, bias)),
                DType::F16 => Layer::F16(plain(shape, values, bias)),
                _ => Layer::F32(plain(shape, values, bias)),
            });
        };
        let format = if is_head { formats.head } else { formats.others };
        Ok(Layer::F32(inference::Linear::new(format.quantise(Machine::shared(), shape, values)?, bias)))
    })?
}

/// The embedding or the head: a matrix (vocabulary, width).
pub trait Table {
    /// The device that holds it.
    fn device(&self) -> &Device;

    /// Bytes of the weights.
    fn bytes(&self) -> u64;

    /// The rows of tokens: from ids (tokens), u32, to (tokens, width).
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor>;

    /// The products with all rows: from (tokens, width) to (tokens, vocabulary), f32.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}

impl Table for Tensor {
    fn device(&self) -> &Device {
        Tensor::device(self)
    }

    fn bytes(&self) -> u64 {
        bytes(self)
    }

    fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let rows = self.index_select(ids, 0).context("a token is not in the vocabulary")?;
        Ok(rows.to_dtype(dtype)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.matmul(&self.to_dtype(hidden.dtype())?.t()?)?.to_dtype(DType::F32)?)
    }
}

impl Table for Layer {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn bytes(&self) -> u64 {
        Layer::bytes(self)
    }

    fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let ids: Vec<u32> = ids.to_vec1()?;
        ensure!(ids.iter().all(|id| (*id as usize) < self.outputs()), "a token is not in the vocabulary");
        let mut rows = vec![0.0; ids.len() * self.inputs()];
        Layer::rows(self, Machine::shared(), &ids, &mut rows);
        Ok(Tensor::from_vec(rows, (ids.len(), self.inputs()), &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let tokens = hidden.dim(0)?;
        let mut logits = vec![0.0; tokens * self.outputs()];
        with_slices([hidden], |[hidden]| self.apply(Machine::shared(), hidden, &mut logits))?;
        Ok(Tensor::from_vec(logits, (tokens, self.outputs()), &Device::Cpu)?)
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
