//! Backbones for multivariate series, which the architecture sweep trains and runs. All have the same head.
//!
//! A backbone is one file that implements `SequenceBackbone`, and one row of the table in `registry`. `layers` holds the
//! layers that they share, `data` the series.

pub mod data;
mod hybrid_transformer;
mod layers;
mod omni_mixture;
mod registry;
mod state_space;

#[cfg(test)]
mod golden;

pub(crate) use layers::Dropout;
pub use registry::Architecture;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use layers::{LayerCost, LayerNorm, Linear, Masks};

use super::trainable;
use crate::kernels::{Buffers, Graph, Mask, Network, fused};

/// Tensors that pass from one block to the next. The first is the representation of each step, (batch, time, dim); a
/// backbone may have others beside it.
pub(crate) type Streams = Vec<Tensor>;

/// A network from a window of a series to a representation of each of its steps. It is given in stages, so that training
/// can keep only the streams between them and compute each stage again in the backward pass.
pub(crate) trait SequenceBackbone {
    /// Streams that enter the first block, from a series (batch, time, features).
    ///
    /// # Errors
    /// When the device fails. So with the other stages.
    fn embed(&self, series: &Tensor, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams>;

    /// Streams after a block, from those before it.
    fn block(&self, number: usize, streams: &Streams, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams>;

    /// The norm of the representation (batch, time, dim), which is the first stream after the last block.
    fn norm(&self) -> &LayerNorm;

    /// Cost of a forward pass, as the sum over the layers.
    fn cost(&self, batch: usize, time: usize) -> LayerCost;
}

/// Sizes of a backbone. Each architecture uses those that apply to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Features of each step of the series.
    pub features: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of layers.
    pub depth: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward network over `dim`. `omni_mixture` doubles it.
    pub ff_mult: usize,
    /// Width of the state of the mixers.
    pub state_dim: usize,
    /// Taps of the mixers' causal convolution.
    pub state_kernel: usize,
    /// Taps of the dilated convolution. Odd, so that the output has the length of the input.
    pub conv_kernel: usize,
    /// Dilations of successive blocks, repeated.
    pub dilations: Vec<usize>,
    /// Steps of the fine stream for each step of the coarse one.
    pub coarse_factor: usize,
    /// Every `cross_every`-th block attends to the coarse stream.
    pub cross_every: usize,
    /// Length of the longest series.
    pub max_seq_len: usize,
}

impl Sizes {
    /// # Errors
    /// One line that names the sizes that do not go together.
    pub fn check(&self, architecture: Architecture) -> Result<()> {
        for (name, size) in [
            ("features", self.features),
            ("dim", self.dim),
            ("depth", self.depth),
            ("heads", self.heads),
            ("ff_mult", self.ff_mult),
            ("state_dim", self.state_dim),
            ("state_kernel", self.state_kernel),
            ("conv_kernel", self.conv_kernel),
            ("dilations", self.dilations.iter().copied().min().unwrap_or(0)),
            ("coarse_factor", self.coarse_factor),
            ("cross_every", self.cross_every),
            ("max_seq_len", self.max_seq_len),
        ] {
            ensure!(size > 0, "{architecture}: {name} is 0");
        }
        let Self { dim, heads, conv_kernel, .. } = *self;
        ensure!(!conv_kernel.is_multiple_of(2), "{architecture}: conv_kernel={conv_kernel} is even; use an odd number");
        if architecture.attends() {
            ensure!(dim.is_multiple_of(heads), "{architecture}: {heads} heads do not divide dim={dim}");
        }
        if architecture.rotates() {
            let head_dim = dim / heads;
            ensure!(
                head_dim.is_multiple_of(2),
                "{architecture}: RoPE needs an even head width; dim / heads = {head_dim}"
            );
        }
        Ok(())
    }
}

/// A backbone with the head that all share: last step → LayerNorm → linear → GELU → linear → (horizon, outputs).
pub struct Forecaster {
    backbone: Box<dyn SequenceBackbone>,
    norm: LayerNorm,
    hidden: Linear,
    out: Linear,
    horizon: usize,
    outputs: usize,
    depth: usize,
    max_seq_len: usize,
    dtype: DType,
    /// Memory that one step leaves to the next.
    buffers: Arc<Buffers>,
}

impl Forecaster {
    /// Builds the network from weights, or from their initial values if `weights` makes variables. It computes in `dtype`;
    /// the weights may have another dtype.
    ///
    /// # Errors
    /// When the sizes do not go together, or a tensor is missing.
    pub(crate) fn new(
        architecture: Architecture,
        sizes: &Sizes,
        horizon: usize,
        outputs: usize,
        dtype: DType,
        weights: VarBuilder,
    ) -> Result<Self> {
        ensure!(horizon > 0, "horizon is 0: at least one step must be forecast");
        ensure!(outputs > 0, "outputs is 0: at least one feature must be forecast");
        let head = weights.pp("head");
        Ok(Self {
            backbone: architecture.build(sizes, weights.pp("backbone"))?,
            norm: LayerNorm::new(sizes.dim, head.pp("norm"))?,
            hidden: Linear::new(sizes.dim, sizes.dim, head.pp("hidden"))?,
            out: Linear::new(sizes.dim, horizon * outputs, head.pp("out"))?,
            horizon,
            outputs,
            depth: sizes.depth,
            max_seq_len: sizes.max_seq_len,
            dtype,
            buffers: Arc::default(),
        })
    }

    /// Parameters and cost of the network on a window. Takes no memory for the weights.
    ///
    /// # Errors
    /// When the sizes do not go together.
    pub fn cost(architecture: Architecture, sizes: &Sizes, window: &data::Window) -> Result<Cost> {
        let data::Window { batch, time, horizon, outputs } = *window;
        let mut network = None;
        let shapes = trainable::shapes(|weights| {
            network = Some(Self::new(architecture, sizes, horizon, outputs, DType::F32, weights)?);
            Ok(())
        })?;
        let network = network.context("no network was built")?;
        let backbone = network.backbone.cost(batch, time);
        let head = network.hidden.cost(batch) + network.out.cost(batch);
        Ok(Cost {
            parameters: shapes.values().map(|shape| shape.elem_count() as u64).sum(),
            forward_flops: (backbone + head).flops,
            kept: backbone.kept,
            largest: backbone.largest,
            between: (sizes.depth * batch * time * sizes.dim) as u64,
        })
    }

    /// From (batch, time, features) to (batch, horizon, outputs) in f32.
    ///
    /// # Errors
    /// When the series is longer than there are positions.
    pub(crate) fn forward(&self, series: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let mut streams = vec![series.clone()];
        for stage in 0..self.stages() {
            streams = self.stage(stage, &streams, dropout)?;
        }
        Ok(streams.remove(0))
    }

    /// Stages of [`Self::forward`]: the embedding, the blocks, the head.
    pub(crate) fn stages(&self) -> usize {
        self.depth + 2
    }

    /// One stage. The first takes the series; the last gives the forecast.
    ///
    /// # Errors
    /// When the series is longer than there are positions.
    pub(crate) fn stage(&self, number: usize, streams: &Streams, dropout: Dropout) -> Result<Streams> {
        let masks = dropout.stage(number);
        if number == 0 {
            let (series, most) = (&streams[0], self.max_seq_len);
            let time = series.dim(1)?;
            ensure!(time > 0 && time <= most, "a series of {time} steps: the backbone takes 1 to max_seq_len={most}");
            return self.backbone.embed(&series.to_dtype(self.dtype)?, &masks, &self.buffers);
        }
        if number <= self.depth {
            return self.backbone.block(number - 1, streams, &masks, &self.buffers);
        }
        let forecast = fused(self, &[&streams[0]], &self.buffers)?.to_dtype(DType::F32)?;
        Ok(vec![forecast.reshape(((), self.horizon, self.outputs))?])
    }
}

/// The head, from the stream after the last block.
impl Network for Forecaster {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let last = graph.last(&inputs[0])?;
        let last = self.backbone.norm().forward(graph, &last)?;
        let normed = self.norm.forward(graph, &last)?;
        let hidden = self.hidden.forward(graph, &normed)?;
        let hidden = graph.gelu(&hidden, Mask::NONE)?;
        self.out.forward(graph, &hidden)
    }
}

/// Cost of a backbone and its head on a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of weights, head included.
    pub parameters: u64,
    /// Floating-point operations of a forward pass in products with weights and of attention. Element-wise operations are
    /// not counted.
    pub forward_flops: u64,
    /// Numbers that all layers keep for the backward pass, and the most in one layer.
    kept: u64,
    largest: u64,
    /// Numbers of the streams between the blocks.
    between: u64,
}

impl Cost {
    /// Lower bound on the memory of training steps: weights, gradients and two moments in f32, and activations in `dtype`.
    /// With checkpointing, the activations are the streams between the blocks and those of one layer.
    pub fn training_bytes(&self, dtype: DType, checkpointing: bool) -> u64 {
        let activations = if checkpointing { self.between + self.largest } else { self.kept };
        4 * self.parameters * DType::F32.size_in_bytes() as u64 + activations * dtype.size_in_bytes() as u64
    }

    /// Lower bound on the memory of forecasts: weights and the activations of one layer.
    pub fn forecast_bytes(&self, dtype: DType) -> u64 {
        (self.parameters + self.largest) * dtype.size_in_bytes() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(name: &str) -> Architecture {
        name.parse().expect(name)
    }

    #[test]
    fn cost_equals_a_count_by_hand() {
        let state = architecture("state_space");
        let sizes = Sizes { dim: 4, depth: 1, state_dim: 3, state_kernel: 5, max_seq_len: 32, ..state.sizes(2) };
        let window = data::Window { batch: 2, time: 10, horizon: 5, outputs: 2 };
        let cost = Forecaster::cost(state, &sizes, &window).expect("a cost");
        let embedding = 2 * 4;
        // W_i, the convolution, W_o, feed-forward.
        let block = 4 * 6 + 3 * 5 + 3 * 4 + 2 * 4 * 16;
        let biases = 4 + (6 + 3 + 4 + 16 + 4) + (4 + 10);
        let (norms, head) = (2 * 4 * 4, 4 * 4 + 4 * 10);
        assert_eq!(cost.parameters, embedding + 32 * 4 + block + biases + norms + head);
        assert_eq!(cost.forward_flops, 2 * (20 * (embedding + block) + 2 * head));
        assert_eq!((cost.kept, cost.largest, cost.between), (20 * 16, 20 * 16, 20 * 4));
        let hybrid = architecture("hybrid_transformer");
        let sizes = Sizes { dim: 16, depth: 3, ..hybrid.sizes(2) };
        let (short, long) = (window, data::Window { time: 20, ..window });
        let flops = |window| Forecaster::cost(hybrid, &sizes, window).expect("a cost").forward_flops;
        // 3 layers, 2 series: 4 · 16 operations for each pair of steps. Twice as many steps make four times the pairs.
        let pairs = |time: u64| 3 * 2 * 4 * 16 * time * time;
        assert_eq!(flops(&long) - pairs(20), 2 * (flops(&short) - pairs(10)) - 2 * 2 * (16 * 16 + 16 * 10));
    }

    /// Parameters of the published configurations, in millions to the digits that were published.
    #[test]
    fn parameters_are_those_of_the_published_models() {
        let window = data::Window { batch: 1, time: 8, horizon: 5, outputs: 1 };
        let (hybrid, omni, state) =
            (architecture("hybrid_transformer"), architecture("omni_mixture"), architecture("state_space"));
        let hybrid_sizes = |dim, depth| {
            let dilations = vec![1, 2, 4, 8, 16];
            (hybrid, Sizes { dim, depth, heads: 8, conv_kernel: 5, dilations, max_seq_len: 2048, ..hybrid.sizes(96) })
        };
        let omni_sizes = |dim, depth| (omni, Sizes { dim, depth, heads: omni.heads(dim), ..omni.sizes(128) });
        let state_sizes =
            Sizes { dim: 256, depth: 6, state_dim: 128, state_kernel: 9, max_seq_len: 1024, ..state.sizes(64) };
        for ((architecture, sizes), digits, millions) in [
            (hybrid_sizes(512, 8), 2, "28.71"),
            (hybrid_sizes(512, 10), 2, "35.54"),
            (hybrid_sizes(384, 8), 2, "16.37"),
            (hybrid_sizes(384, 10), 2, "20.22"),
            (omni_sizes(768, 12), 2, "175.46"),
            (omni_sizes(768, 16), 2, "232.21"),
            (omni_sizes(512, 12), 2, "80.56"),
            (omni_sizes(512, 16), 2, "106.34"),
            ((state, state_sizes), 3, "4.107"),
        ] {
            let cost = Forecaster::cost(architecture, &sizes, &window).expect(millions);
            let found = format!("{:.digits$}", cost.parameters as f64 / 1e6);
            assert_eq!(found, millions, "{architecture} {}×{}", sizes.dim, sizes.depth);
        }
    }

    #[test]
    fn sizes_must_go_together() {
        let hybrid = architecture("hybrid_transformer");
        let message = |sizes: Sizes| sizes.check(hybrid).expect_err("an error").to_string();
        let sizes = Sizes { dim: 500, ..hybrid.sizes(8) };
        sizes.check(architecture("state_space")).expect("it has no heads");
        assert!(message(sizes).contains("8 heads do not divide dim=500"));
        assert!(message(Sizes { depth: 0, ..hybrid.sizes(8) }).contains("depth is 0"));
        assert!(message(Sizes { conv_kernel: 4, ..hybrid.sizes(8) }).contains("conv_kernel=4 is even"));
        assert!(message(Sizes { dim: 24, ..hybrid.sizes(8) }).contains("dim / heads = 3"));
    }

    #[test]
    fn longer_series_are_refused() {
        for architecture in Architecture::all() {
            let sizes = Sizes { dim: 16, depth: 2, heads: 2, state_dim: 4, max_seq_len: 12, ..architecture.sizes(3) };
            let weights = trainable::Variables::new(1).frozen(DType::F32, &candle_core::Device::Cpu);
            let network = Forecaster::new(architecture, &sizes, 2, 1, DType::F32, weights).expect("a network");
            let series = |time| Tensor::ones((1, time, 3), DType::F32, &candle_core::Device::Cpu).expect("a series");
            network.forward(&series(12), Dropout::OFF).expect("the longest series");
            let error = network.forward(&series(13), Dropout::OFF).expect_err("too long").to_string();
            assert!(error.contains("13 steps") && error.contains("max_seq_len=12"), "{architecture}: {error}");
        }
    }
}
