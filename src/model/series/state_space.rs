//! `state_space`: a gated causal convolution in a state of its own width and a feed-forward network in each block. The cost
//! grows linearly with the sequence.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes, Streams,
    layers::{Depthwise, Embedding, FeedForward, LayerCost, LayerNorm, Linear, Masks},
};
use crate::kernels::{self, Padding};

/// Standard deviation of the initial positions.
const POSITION_DEVIATION: f64 = 0.02;

pub struct StateSpace {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// `x += W_o(sigmoid(g)·tanh(conv(s)))` with `[g, s] = W_i LN(x)`, then `x += FF(LN(x))`. Dropout follows both branches.
struct Block {
    mixer_norm: LayerNorm,
    mixer_in: Linear,
    mixer_conv: Depthwise,
    mixer_out: Linear,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
    state_dim: usize,
}

/// Builds the backbone.
///
/// # Errors
/// When a tensor is missing or has another shape.
pub fn build(sizes: &Sizes, weights: VarBuilder) -> Result<Box<dyn SequenceBackbone>> {
    let Sizes { dim, state_dim, state_kernel, .. } = *sizes;
    let block = |number: usize| {
        let weights = weights.pp("blocks").pp(number);
        Ok(Block {
            mixer_norm: LayerNorm::new(dim, weights.pp("mixer_norm"))?,
            mixer_in: Linear::new(dim, 2 * state_dim, weights.pp("mixer_in"))?,
            mixer_conv: Depthwise::new(state_dim, state_kernel, 1, Padding::Causal, weights.pp("mixer_conv"))?,
            mixer_out: Linear::new(state_dim, dim, weights.pp("mixer_out"))?,
            feed_forward_norm: LayerNorm::new(dim, weights.pp("feed_forward_norm"))?,
            feed_forward: FeedForward::new(dim, sizes.ff_mult * dim, weights.pp("feed_forward"))?,
            state_dim,
        })
    };
    let positions = (sizes.max_seq_len, POSITION_DEVIATION);
    Ok(Box::new(StateSpace {
        embedding: Embedding::new(sizes.features, dim, positions, weights.pp("embedding"))?,
        blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
        norm: LayerNorm::new(dim, weights.pp("norm"))?,
    }))
}

impl Block {
    fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.mixer_in.forward(&self.mixer_norm.forward(x)?)?;
        let gate = both.narrow(2, 0, self.state_dim)?;
        let state = both.narrow(2, self.state_dim, self.state_dim)?;
        let state = self.mixer_conv.forward(&state)?.tanh()?;
        self.mixer_out.forward(&kernels::gate(&state, &gate)?)
    }
}

impl SequenceBackbone for StateSpace {
    fn embed(&self, series: &Tensor, masks: &mut Masks) -> Result<Streams> {
        Ok(vec![self.embedding.forward(series, masks)?])
    }

    fn block(&self, number: usize, streams: &Streams, masks: &mut Masks) -> Result<Streams> {
        let (block, x) = (&self.blocks[number], &streams[0]);
        let x = (x + masks.apply(&block.mix(x)?)?)?;
        let forward = block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?, masks)?;
        Ok(vec![(x + masks.apply(&forward)?)?])
    }

    fn finish(&self, streams: &Streams) -> Result<Tensor> {
        self.norm.forward(&streams[0])
    }

    fn cost(&self, batch: usize, time: usize) -> LayerCost {
        let rows = batch * time;
        let block = |block: &Block| {
            let mixer = block.mixer_in.cost(rows) + block.mixer_conv.cost(rows) + block.mixer_out.cost(rows);
            mixer + block.feed_forward.cost(rows)
        };
        self.embedding.cost(rows) + self.blocks.iter().map(block).sum()
    }
}
