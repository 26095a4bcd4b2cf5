//! The weights from which a decoder is built, and the form in which it holds them.

use std::sync::Arc;

use candle_core::{DType, quantized::GgmlDType};
use candle_nn::VarBuilder;

use super::gguf::Gguf;
use crate::device::Precision;

/// The weights of a model.
pub struct Tensors {
    /// Every tensor, by the name that transformers gives it, in the dtype of activations.
    pub weights: VarBuilder<'static>,
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

impl Tensors {
    /// Weights and a cache that are held in a precision.
    pub fn new(weights: VarBuilder<'static>, precision: Precision) -> Self {
        let matrices = match precision.blocks() {
            Some(others) => {
                Matrices::Quantised(Formats { head: Format::Blocks(GgmlDType::Q8_0), others: Format::Blocks(others) })
            }
            None if precision.is_quantised() => {
                Matrices::Quantised(Formats { head: Format::F8E4M3, others: Format::F8E4M3 })
            }
            None => Matrices::Plain,
        };
        let cache_dtype = precision.cache_dtype_of(weights.dtype());
        Self { weights, matrices, cache_dtype }
    }
}

impl From<VarBuilder<'static>> for Tensors {
    fn from(weights: VarBuilder<'static>) -> Self {
        let cache_dtype = weights.dtype();
        Self { weights, matrices: Matrices::Plain, cache_dtype }
    }
}
