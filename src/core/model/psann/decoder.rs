//! The decoder: from tokens to logits.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{
    Encoding, PsannConfig,
    block::Block,
    layers::{self, Linear, Norm, Table},
};
use crate::{
    device::Precision,
    kernels::{fused, inference::Layer},
    model::{Footprint, trainable},
};

/// A decoder whose parts can be run separately, so that checkpointing can keep the values between them and recompute a part. Its
/// matrices are tensors, or, where `T` is `Layer`, on the kernels of inference.
pub struct Decoder<T = Tensor> {
    config: PsannConfig,
    dtype: DType,
    embedding: T,
    blocks: Vec<Block>,
    norm: Norm,
    head: T,
}

impl Decoder {
    /// Builds the model from weights, or from initial values if `weights` makes variables. It computes in `dtype`, also if
    /// that is not the dtype of the weights.
    ///
    /// # Errors
    /// If the sizes contradict each other, or a tensor is missing.
    pub(crate) fn new(config: &PsannConfig, dtype: DType, weights: VarBuilder) -> Result<Self> {
        Self::build(config, (dtype, None), weights, |weight, _| Ok(weight))
    }

    /// The embedding, (vocabulary, width).
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The head, (vocabulary, width).
    pub(crate) fn head(&self) -> &Tensor {
        &self.head
    }

    /// The cost of a model on one sequence of `time` tokens.
    ///
    /// # Errors
    /// If the sizes contradict each other.
    pub fn cost(config: &PsannConfig, time: usize) -> Result<Cost> {
        let mut multiplied = 0;
        let shapes = trainable::shapes(|weights| {
            let model = Self::new(config, DType::F32, weights)?;
            multiplied = model.multiplied_weights();
            Ok(model)
        })?;
        // Each token attends to itself and to those before it.
        let pairs = time as u64 * (time as u64 + 1) / 2;
        let attention = 4 * pairs * (config.d_model * config.n_layers) as u64;
        let parameters = shapes.values().map(|shape| shape.elem_count() as u64).sum();
        let layer = (14 * config.d_model + 4 * config.d_mlp) as u64;
        let scores = (config.n_heads * time) as u64;
        let (layers, vocab_size) = (config.n_layers as u64, config.vocab_size as u64);
        let forward_flops = 2 * (multiplied * time) as u64 + attention;
        Ok(Cost { parameters, forward_flops, width: config.d_model as u64, layer, scores, layers, vocab_size })
    }
}

impl Decoder<Layer> {
    /// Builds the model for inference on a CPU from weights in f32. Its matrices have the form of the precision; norms, biases,
    /// parameters of activations and convolutions are f32, and so are all values between the layers.
    ///
    /// # Errors
    /// As [`Decoder::new`], and if a weight is quantised and not finite.
    pub(crate) fn packed(config: &PsannConfig, precision: Precision, weights: VarBuilder) -> Result<Self> {
        Self::build(config, (DType::F32, Some(precision)), weights, |weight, is_head| {
            let table = layers::layer(&weight, None, precision, is_head);
            table.context(if is_head { "lm_head" } else { "embed" })
        })
    }
}

impl<T: Table> Decoder<T> {
    /// `table` makes the embedding and, if its second argument is true, the head of a matrix (vocabulary, width).
    fn build(
        config: &PsannConfig,
        (dtype, precision): (DType, Option<Precision>),
        weights: VarBuilder,
        table: impl Fn(Tensor, bool) -> Result<T>,
    ) -> Result<Self> {
        config.check()?;
        let shape @ (vocab_size, width) = (config.vocab_size, config.d_model);
        let bound = (6.0 / (vocab_size + width) as f64).sqrt();
        let block = |number| Block::new(config, number, weights.pp("blocks").pp(number), precision);
        let weight = |name: &str, init| weights.get_with_hints(shape, name, init);
        Ok(Self {
            config: config.clone(),
            dtype,
            embedding: table(weight("embed.weight", Init::Randn { mean: 0.0, stdev: 0.02 })?, false)?,
            blocks: (0..config.n_layers).map(block).collect::<Result<_>>()?,
            norm: Norm::new(config.base, width, weights.pp("ln_f"))?,
            head: table(weight("lm_head.weight", Init::Uniform { lo: -bound, up: bound })?, true)?,
        })
    }

    pub(crate) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// From token ids (batch, time), u32, to (batch, time, width).
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, time) = ids.dims2()?;
        let width = self.config.d_model;
        let x = self.embedding.rows(&ids.flatten_all()?, self.dtype)?.reshape((batch, time, width))?;
        if self.config.positional_encoding != Encoding::Sinusoidal {
            return Ok(x);
        }
        let places = Tensor::from_vec(sinusoids(time, width), (time, width), x.device())?;
        Ok(x.broadcast_add(&places.to_dtype(self.dtype)?)?)
    }

    /// One layer: from (batch, time, width) to the same shape.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn layer(&self, number: usize, x: &Tensor) -> Result<Tensor> {
        self.blocks[number].forward(x)
    }

    /// The final norm, whose output the head takes: (batch, time, width).
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        fused(&self.norm, &[x], &Arc::default())
    }

    /// From token ids (batch, time) to the input of the head (batch · time, width).
    pub(super) fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let (batch, time, width) = x.dims3()?;
        Ok(self.finish(&x)?.reshape((batch * time, width))?)
    }

    /// From rows of [`Self::hidden`] to logits (rows, vocabulary), f32.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }

    /// From token ids (batch, time) to logits (batch, time, vocabulary), f32.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or the device fails.
    pub(crate) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, time) = ids.dims2()?;
        Ok(self.logits(&self.hidden(ids)?)?.reshape((batch, time, self.config.vocab_size))?)
    }

    /// The largest change of a logit when a later token changes: 0 in a causal model. Found by running the model twice on ids
    /// that depend on the position.
    ///
    /// # Errors
    /// If the device fails.
    pub fn leak(&self, time: usize) -> Result<f32> {
        ensure!(time > 1 && self.config.vocab_size > 1, "a single token has no later token");
        let vocab_size = self.config.vocab_size as u32;
        let ids = |last: u32| -> Vec<u32> {
            (0..time as u32).map(|step| if step + 1 == time as u32 { last } else { step * 7 % vocab_size }).collect()
        };
        let logits = |ids: Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::from_vec(ids, (1, time), self.embedding.device())?;
            Ok(self.forward(&ids)?.narrow(1, 0, time - 1)?)
        };
        let moved = (logits(ids(0))? - logits(ids(vocab_size - 1))?)?.abs()?.flatten_all()?.max(0)?;
        Ok(moved.to_scalar()?)
    }

    fn linear_layers(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linear_layers)
    }

    /// Number of weights that multiply each token.
    fn multiplied_weights(&self) -> usize {
        let head = self.config.vocab_size * self.config.d_model;
        self.linear_layers().map(Linear::weights).sum::<usize>() + head
    }

    /// The size of the model whose weights are f32 where they are not in matrices, and the cost of a token. There is no cache.
    pub(super) fn footprint(&self) -> Result<Footprint> {
        let table = (self.config.vocab_size * self.config.d_model) as u64;
        let multiplied = self.multiplied_weights() as u64;
        let parameters = Decoder::cost(&self.config, 1)?.parameters;
        let others = parameters - table - multiplied;
        let of_layers: u64 = self.linear_layers().map(Linear::bytes).sum();
        let step_weight_bytes = Precision::F32.bytes(others) + of_layers + self.head.bytes();
        Ok(Footprint {
            parameters,
            weight_bytes: step_weight_bytes + self.embedding.bytes(),
            step_weight_bytes,
            cache_bytes_per_token: 0,
            flops_per_token: 2 * multiplied,
            head_flops: 2 * table,
        })
    }
}

/// The cost of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of weights, embedding and head included.
    pub parameters: u64,
    /// Floating-point operations of a forward pass over one sequence: products with weights, and attention. A training step
    /// has three times as many.
    pub forward_flops: u64,
    width: u64,
    /// Activations of a layer for one token.
    layer: u64,
    /// Attention scores of a layer for one token.
    scores: u64,
    layers: u64,
    vocab_size: u64,
}

impl Cost {
    /// A lower bound of the memory for `tokens` at a time, in f32: weights, activations and the logits of one chunk; for
    /// training also gradients, two moments and a temporary gradient of the head. `keeps_scores` is true where attention is
    /// composed of several operations, which keep scores, biased scores and shares.
    pub fn least_bytes(&self, tokens: usize, trains: bool, checkpointing: bool, keeps_scores: bool) -> u64 {
        let tokens = tokens as u64;
        let layer = self.layer + if keeps_scores { 3 * self.scores } else { 0 };
        let logits = tokens.min(512) * self.vocab_size;
        let numbers = match (trains, checkpointing) {
            (false, _) => self.parameters + tokens * (layer + self.width),
            (true, false) => 4 * self.parameters + tokens * self.layers * layer,
            (true, true) => 4 * self.parameters + tokens * (self.layers * self.width + 2 * layer),
        };
        4 * (numbers + logits + if trains { self.vocab_size * self.width } else { 0 })
    }
}

/// Vaswani et al. 2017: sines in the even places, cosines in the odd ones.
fn sinusoids(time: usize, width: usize) -> Vec<f32> {
    let rate = |place: usize| (-(10_000f32.ln()) * (place / 2 * 2) as f32 / width as f32).exp();
    let at = move |step: usize| {
        (0..width).map(move |place| {
            let angle = step as f32 * rate(place);
            if place % 2 == 0 { angle.sin() } else { angle.cos() }
        })
    };
    (0..time).flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::{psann::Base, trainable::Variables};

    fn small(base: Base) -> PsannConfig {
        PsannConfig {
            base,
            vocab_size: 40,
            d_model: 16,
            n_layers: 2,
            n_heads: 2,
            d_mlp: 24,
            k_fft: 8,
            ..PsannConfig::default()
        }
    }

    #[test]
    fn only_documented_bases_see_later_tokens() {
        for encoding in [Encoding::Rope, Encoding::Alibi, Encoding::Sinusoidal] {
            for (config, causal) in [
                (small(Base::Respsann), true),
                (small(Base::Transformer), true),
                (small(Base::Waveresnet), true),
                (PsannConfig { wave_interleave: true, ..small(Base::Waveresnet) }, false),
                (small(Base::Sgrpsann), false),
            ] {
                let config = PsannConfig { positional_encoding: encoding, ..config };
                assert_eq!(config.is_causal(), causal);
                let weights = Variables::new(1).frozen(DType::F32, &Device::Cpu);
                let leak = Decoder::new(&config, DType::F32, weights).and_then(|model| model.leak(20)).expect("a leak");
                assert_eq!(leak == 0.0, causal, "{}: logits move by {leak}", config.base);
            }
        }
    }

    #[test]
    fn cost_equals_a_manual_calculation() {
        let config = small(Base::Respsann);
        let cost = Decoder::cost(&config, 10).expect("a cost");
        let matrices = 2 * (4 * 16 * 16 + 2 * 16 * 24) + 40 * 16;
        let vectors = 2 * (2 * 16 + 24 + 16 + 3 * 24 + 1) + 16;
        assert_eq!(cost.parameters, (matrices + 40 * 16 + vectors) as u64);
        assert_eq!(cost.forward_flops, (2 * 10 * matrices + 4 * 55 * 16 * 2) as u64);
        // Of 2 heads, 10 tokens see 10 each, in 2 layers.
        let scores = cost.least_bytes(10, true, false, true) - cost.least_bytes(10, true, false, false);
        assert_eq!(scores, 4 * 3 * 2 * 10 * 10 * 2);
    }

    #[test]
    fn bf16_is_close_to_f32() {
        for base in Base::ALL {
            let ids = Tensor::new(&[[1u32, 5, 39, 0, 7, 7, 2, 11, 30]], &Device::Cpu).expect("ids");
            let logits = |dtype| {
                let weights = Variables::new(1).frozen(DType::F32, &Device::Cpu);
                Decoder::new(&small(base), dtype, weights).and_then(|model| model.forward(&ids)).expect("logits")
            };
            let far = (logits(DType::F32) - logits(DType::BF16))
                .and_then(|x| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
            let far = far.expect("a number");
            assert!(far > 0.0 && far < 0.1, "{base}: {far}");
        }
    }
}
