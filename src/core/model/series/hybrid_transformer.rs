//! `hybrid_transformer`: attention with RoPE, a feed-forward network and a dilated convolution in each block.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes, Streams,
    layers::{Convolution, Embedding, FeedForward, LayerCost, LayerNorm, Masked, Masks, RotaryAttention},
};
use crate::kernels::{Buffers, Graph, Mask, Network, fused};

pub struct HybridTransformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// `x = LN(x + attention(x))`, `x += FF(LN(x))`, `x = LN(x + conv(x))`.
struct Block {
    attention: RotaryAttention,
    attention_norm: LayerNorm,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
    convolution: Convolution,
    convolution_norm: LayerNorm,
}

/// Builds the backbone.
///
/// # Errors
/// When a tensor is missing or has another shape.
pub fn build(sizes: &Sizes, weights: VarBuilder) -> Result<Box<dyn SequenceBackbone>> {
    let dim = sizes.dim;
    let block = |number: usize| {
        let weights = weights.pp("blocks").pp(number);
        let dilation = sizes.dilations[number % sizes.dilations.len()];
        Ok(Block {
            attention: RotaryAttention::new(dim, sizes.heads, weights.pp("attention"))?,
            attention_norm: LayerNorm::new(dim, weights.pp("attention_norm"))?,
            feed_forward_norm: LayerNorm::new(dim, weights.pp("feed_forward_norm"))?,
            feed_forward: FeedForward::new(dim, sizes.ff_mult * dim, weights.pp("feed_forward"))?,
            convolution: Convolution::new(dim, sizes.conv_kernel, dilation, weights.pp("convolution"))?,
            convolution_norm: LayerNorm::new(dim, weights.pp("convolution_norm"))?,
        })
    };
    Ok(Box::new(HybridTransformer {
        embedding: Embedding::new(sizes.features, dim, (sizes.max_seq_len, 0.0), weights.pp("embedding"))?,
        blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
        norm: LayerNorm::new(dim, weights.pp("norm"))?,
    }))
}

impl Network for Masked<'_, Block> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let (&Self(block, masks), x) = (self, &inputs[0]);
        let mixed = block.attention.forward(graph, x, masks)?;
        let x = block.attention_norm.add(graph, x, &mixed, Mask::NONE)?;
        let normed = block.feed_forward_norm.forward(graph, &x)?;
        let fed = block.feed_forward.forward(graph, &normed, masks)?;
        let x = graph.add(&x, &fed, Mask::NONE)?;
        let mixed = block.convolution.forward(graph, &x, masks)?;
        block.convolution_norm.add(graph, &x, &mixed, Mask::NONE)
    }
}

impl SequenceBackbone for HybridTransformer {
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
            block.attention.cost(batch, time) + block.feed_forward.cost(rows) + block.convolution.cost(rows)
        };
        self.embedding.cost(rows) + self.blocks.iter().map(block).sum()
    }
}
