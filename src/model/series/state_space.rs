//! `state_space`: a gated causal convolution in a state of its own width, and a feed-forward, in each block. Nothing in it
//! grows faster than the sequence.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Linear, Module, VarBuilder};

use super::{
    SequenceBackbone, Sizes,
    layers::{Depthwise, Embedding, FeedForward, LayerNorm, linear},
};
use crate::kernels::{self, Padding};

pub struct StateSpace {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// `x += W_o(sigmoid(g)·tanh(conv(s)))` with `[g, s] = W_i LN(x)`, then `x += FF(LN(x))`.
struct Block {
    mixer_norm: LayerNorm,
    mixer_in: Linear,
    mixer_conv: Depthwise,
    mixer_out: Linear,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
    state: usize,
}

impl StateSpace {
    pub fn new(sizes: &Sizes, weights: VarBuilder) -> Result<Self> {
        let Sizes { dim, state, mixer_kernel, .. } = *sizes;
        let block = |number: usize| {
            let weights = weights.pp("blocks").pp(number);
            Ok(Block {
                mixer_norm: LayerNorm::new(dim, weights.pp("mixer_norm"))?,
                mixer_in: linear(dim, 2 * state, weights.pp("mixer_in"))?,
                mixer_conv: Depthwise::new(state, mixer_kernel, 1, Padding::Causal, weights.pp("mixer_conv"))?,
                mixer_out: linear(state, dim, weights.pp("mixer_out"))?,
                feed_forward_norm: LayerNorm::new(dim, weights.pp("feed_forward_norm"))?,
                feed_forward: FeedForward::new(dim, sizes.expansion * dim, weights.pp("feed_forward"))?,
                state,
            })
        };
        Ok(Self {
            embedding: Embedding::new(sizes.features, dim, None, weights.pp("embedding"))?,
            blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, weights.pp("norm"))?,
        })
    }
}

impl Block {
    fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.mixer_in.forward(&self.mixer_norm.forward(x)?)?;
        let gate = both.narrow(2, 0, self.state)?;
        let state = both.narrow(2, self.state, self.state)?;
        let state = self.mixer_conv.forward(&state)?.tanh()?;
        Ok(self.mixer_out.forward(&kernels::gate(&state, &gate)?)?)
    }
}

impl SequenceBackbone for StateSpace {
    fn forward(&self, series: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.forward(series)?;
        for block in &self.blocks {
            x = (&x + block.mix(&x)?)?;
            x = (&x + block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?)?)?;
        }
        self.norm.forward(&x)
    }
}
