//! `state_space`: a gated causal convolution in a state of its own width and a feed-forward network in each block. The cost
//! grows linearly with the sequence.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes, Streams,
    layers::{Depthwise, Embedding, FeedForward, LayerCost, LayerNorm, Linear, Masked, Masks},
};
use crate::kernels::{Buffers, Graph, Network, Padding, fused};

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
        })
    };
    let positions = (sizes.max_seq_len, POSITION_DEVIATION);
    Ok(Box::new(StateSpace {
        embedding: Embedding::new(sizes.features, dim, positions, weights.pp("embedding"))?,
        blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
        norm: LayerNorm::new(dim, weights.pp("norm"))?,
    }))
}

impl Network for Masked<'_, Block> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let (&Self(block, masks), x) = (self, &inputs[0]);
        let normed = block.mixer_norm.forward(graph, x)?;
        let both = block.mixer_in.forward(graph, &normed)?;
        let mixed = graph.gated_convolution(&both, block.mixer_conv.taps())?;
        let mixed = block.mixer_out.forward(graph, &mixed)?;
        let x = graph.add(x, &mixed, masks.draw())?;
        let normed = block.feed_forward_norm.forward(graph, &x)?;
        let fed = block.feed_forward.forward(graph, &normed, masks)?;
        graph.add(&x, &fed, masks.draw())
    }
}

impl SequenceBackbone for StateSpace {
    fn embed(&self, series: &Tensor, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams> {
        Ok(vec![fused(&Masked(&self.embedding, masks), &[series], buffers)?])
    }

    fn block(&self, number: usize, streams: &Streams, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams> {
        Ok(vec![fused(&Masked(&self.blocks[number], masks), &[&streams[0]], buffers)?])
    }

    fn norm(&self) -> &LayerNorm {
        &self.norm
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
