//! The weights from which a decoder is built, and the form in which it holds them.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{DType, Device, WithDType, quantized::GgmlDType};
use candle_nn::VarBuilder;

use super::{checkpoint::Checkpoint, gguf::Gguf, stored::Stored};
use crate::{
    device::Precision,
    kernels::inference::{Element, Machine, Quantised, elements},
};

/// The weights of a model.
pub struct Tensors {
    /// Every tensor, by the name that transformers gives it, in the dtype of activations.
    pub weights: VarBuilder<'static>,
    /// The files that hold the tensors, if they are safetensors files: a tensor of the right dtype is read where it lies.
    pub files: Option<Stored>,
    /// The form in which engine `tuned` holds matrices on CPUs.
    pub matrices: Matrices,
    /// The dtype of keys and values in the cache of engine `tuned` on CPUs: that of activations, or FP8 (E4M3).
    pub cache_dtype: DType,
}

/// The form of the matrices of linear layers. Routers of mixtures, norms and biases are not quantised.
#[derive(Clone)]
pub enum Matrices {
    /// In the dtype of activations.
    Plain,
    /// Quantised while they are loaded.
    Quantised(Formats),
    /// As a file holds them.
    File(Arc<Gguf>),
}

/// The formats of quantised matrices.
#[derive(Clone, Copy)]
pub struct Formats {
    /// That of the head, and of an embedding that is also the head. Its errors are those of the logits, without a layer between.
    pub head: Format,
    /// That of all other matrices.
    pub others: Format,
}

/// The format of a quantised matrix.
#[derive(Clone, Copy)]
pub enum Format {
    /// Blocks of whole numbers with scales.
    Blocks(GgmlDType),
    /// FP8 (E4M3) with a scale for each output.
    F8E4M3,
}

impl Formats {
    /// The formats of a precision; `None` if it does not quantise.
    pub fn of(precision: Precision) -> Option<Self> {
        let (head, others) = match precision.blocks() {
            Some(others) => (Format::Blocks(GgmlDType::Q8_0), Format::Blocks(others)),
            None => (Format::F8E4M3, Format::F8E4M3),
        };
        precision.is_quantised().then_some(Self { head, others })
    }
}

impl Format {
    /// Quantises a matrix: (outputs, inputs) in row-major order.
    ///
    /// # Errors
    /// If a weight is not finite.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn quantise<E: Element>(self, machine: &Machine, shape: (usize, usize), values: &[E]) -> Result<Quantised> {
        let quantised = match self {
            Self::Blocks(blocks) => Quantised::new(machine, blocks, shape, values),
            Self::F8E4M3 => Quantised::fp8(machine, shape, values),
        };
        quantised.context("a weight is not finite")
    }
}

impl Tensors {
    /// Weights and a cache that are held in a precision.
    pub fn new(weights: VarBuilder<'static>, precision: Precision) -> Self {
        let cache_dtype = precision.cache_dtype_of(weights.dtype());
        let matrices = Formats::of(precision).map_or(Matrices::Plain, Matrices::Quantised);
        Self { weights, files: None, matrices, cache_dtype }
    }

    /// The weights of a checkpoint, which are converted to the dtype of a precision unless they have it.
    ///
    /// # Errors
    /// If a file cannot be mapped.
    pub fn of_checkpoint(checkpoint: &Checkpoint, precision: Precision, device: &Device) -> Result<Self> {
        let weights = checkpoint.weights(precision.dtype(), device)?;
        Ok(Self { files: Some(checkpoint.stored()?), ..Self::new(weights, precision) })
    }

    /// Weights in the formats of a GGUF file, with a cache that is held in a precision.
    pub fn of_gguf(weights: VarBuilder<'static>, file: Arc<Gguf>, precision: Precision) -> Self {
        let cache_dtype = precision.cache_dtype_of(weights.dtype());
        Self { weights, files: None, matrices: Matrices::File(file), cache_dtype }
    }

    /// The elements of a tensor of this shape in its file. `None` if no file holds them in this dtype and aligned.
    pub fn in_file<E: Element + WithDType>(&self, name: &str, shape: &[usize]) -> Option<&[E]> {
        let (dtype, bytes) = self.files.as_ref()?.bytes(name, shape)?;
        elements(bytes).filter(|_| dtype == E::DTYPE)
    }
}

impl From<VarBuilder<'static>> for Tensors {
    fn from(weights: VarBuilder<'static>) -> Self {
        let cache_dtype = weights.dtype();
        Self { weights, files: None, matrices: Matrices::Plain, cache_dtype }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::model::golden::fixtures;

    #[test]
    fn a_tensor_is_read_where_it_lies_if_its_dtype_is_that_of_the_model() {
        const NORM: &str = "model.norm.weight";
        let fixture = fixtures("generation").remove(0);
        let tensors = Tensors::of_checkpoint(&fixture.checkpoint, Precision::F32, &Device::Cpu).expect("mapped");
        let norm = tensors.weights.get(fixture.config.hidden_size, NORM).and_then(|norm| norm.to_vec1::<f32>());
        let shape = [fixture.config.hidden_size];
        assert_eq!(tensors.in_file(NORM, &shape), Some(&norm.expect("a norm")[..]));
        assert_eq!((tensors.in_file::<f32>("missing", &shape), tensors.in_file::<bf16>(NORM, &shape)), (None, None));
        assert_eq!(tensors.in_file::<f32>(NORM, &[shape[0] + 1]), None);
    }
}
