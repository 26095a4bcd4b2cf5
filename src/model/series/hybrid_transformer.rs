//! `hybrid_transformer`: attention, feed-forward and a dilated convolution in each block.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes,
    layers::{Attention, Convolution, Embedding, FeedForward, LayerNorm},
};

pub struct HybridTransformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// `x = LN(x + MHA(x))`, `x += FF(LN(x))`, `x = LN(x + conv(x))`.
struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
    convolution: Convolution,
    convolution_norm: LayerNorm,
}

impl HybridTransformer {
    pub fn new(sizes: &Sizes, weights: VarBuilder) -> Result<Self> {
        let dim = sizes.dim;
        let block = |number: usize| {
            let weights = weights.pp("blocks").pp(number);
            let dilation = sizes.dilations[number % sizes.dilations.len()];
            Ok(Block {
                attention: Attention::new(dim, sizes.heads, weights.pp("attention"))?,
                attention_norm: LayerNorm::new(dim, weights.pp("attention_norm"))?,
                feed_forward_norm: LayerNorm::new(dim, weights.pp("feed_forward_norm"))?,
                feed_forward: FeedForward::new(dim, sizes.expansion * dim, weights.pp("feed_forward"))?,
                convolution: Convolution::new(dim, sizes.conv_kernel, dilation, weights.pp("convolution"))?,
                convolution_norm: LayerNorm::new(dim, weights.pp("convolution_norm"))?,
            })
        };
        Ok(Self {
            embedding: Embedding::new(sizes.features, dim, Some(sizes.positions), weights.pp("embedding"))?,
            blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, weights.pp("norm"))?,
        })
    }
}

impl SequenceBackbone for HybridTransformer {
    fn forward(&self, series: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.forward(series)?;
        for block in &self.blocks {
            x = block.attention_norm.forward(&(&x + block.attention.forward(&x, &x)?)?)?;
            x = (&x + block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?)?)?;
            x = block.convolution_norm.forward(&(&x + block.convolution.forward(&x)?)?)?;
        }
        self.norm.forward(&x)
    }
}
