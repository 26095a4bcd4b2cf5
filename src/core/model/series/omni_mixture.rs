//! `omni_mixture`: attention, a feed-forward network, a state mixer and a dilated convolution in each block. Some blocks also
//! attend to a coarse stream, which is pooled from the fine one.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes, Streams,
    layers::{
        Attention, Convolution, Depthwise, Embedding, FeedForward, LayerCost, LayerNorm, Linear, Masked, Masks,
        learned_positions,
    },
};
use crate::kernels::{Buffers, Graph, Mask, Network, Padding, fused};

pub struct OmniMixture {
    embedding: Embedding,
    coarse: Coarse,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// The last block that attends to the coarse stream.
    last_cross: Option<usize>,
}

/// `x = LN(x + MHA(x))`, `x += FF(LN(x))` with an inner width of `2 · ff_mult · dim`, `x = LN(x + mixer(x))`,
/// `x = LN(x + conv(x))`, and in some blocks `x = LN(x + MHA(x, c, c))`.
struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
    mixer: Mixer,
    mixer_norm: LayerNorm,
    convolution: Convolution,
    convolution_norm: LayerNorm,
    cross: Option<(Attention, LayerNorm)>,
}

/// `W_o · conv(u·sigmoid(v))` with `[u, v] = W_i x`. The convolution is causal and depthwise. Dropout follows.
struct Mixer {
    into: Linear,
    conv: Depthwise,
    out: Linear,
}

impl Mixer {
    fn forward<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        let both = self.into.forward(graph, x)?;
        let opened = graph.gate(&both)?;
        let mixed = graph.depthwise(&opened, self.conv.taps())?;
        self.out.forward(graph, &mixed)
    }

    fn cost(&self, rows: usize) -> LayerCost {
        self.into.cost(rows) + self.conv.cost(rows) + self.out.cost(rows)
    }
}

/// `linear(LN(pool(x) + positions))`: one step for each `factor` steps of the stream. Dropout follows.
struct Coarse {
    factor: usize,
    positions: Tensor,
    norm: LayerNorm,
    linear: Linear,
}

impl Network for Masked<'_, Coarse> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let Self(coarse, masks) = *self;
        let pooled = graph.pool(&inputs[0], coarse.factor)?;
        let placed = graph.add_positions(&pooled, &coarse.positions, Mask::NONE)?;
        let normed = coarse.norm.forward(graph, &placed)?;
        let out = coarse.linear.forward(graph, &normed)?;
        graph.drop(&out, masks.draw())
    }
}

/// Builds the backbone.
///
/// # Errors
/// When a tensor is missing or has another shape.
pub fn build(sizes: &Sizes, weights: VarBuilder) -> Result<Box<dyn SequenceBackbone>> {
    let Sizes { dim, heads, state_dim, state_kernel, .. } = *sizes;
    let block = |number: usize| {
        let weights = weights.pp("blocks").pp(number);
        let dilation = sizes.dilations[number % sizes.dilations.len()];
        let crosses = (number + 1).is_multiple_of(sizes.cross_every);
        let cross = || {
            let attention = Attention::new(dim, heads, weights.pp("cross"))?;
            anyhow::Ok((attention, LayerNorm::new(dim, weights.pp("cross_norm"))?))
        };
        Ok(Block {
            attention: Attention::new(dim, heads, weights.pp("attention"))?,
            attention_norm: LayerNorm::new(dim, weights.pp("attention_norm"))?,
            feed_forward_norm: LayerNorm::new(dim, weights.pp("feed_forward_norm"))?,
            feed_forward: FeedForward::new(dim, 2 * sizes.ff_mult * dim, weights.pp("feed_forward"))?,
            mixer: Mixer {
                into: Linear::new(dim, 2 * state_dim, weights.pp("mixer_in"))?,
                conv: Depthwise::new(state_dim, state_kernel, 1, Padding::Causal, weights.pp("mixer_conv"))?,
                out: Linear::new(state_dim, dim, weights.pp("mixer_out"))?,
            },
            mixer_norm: LayerNorm::new(dim, weights.pp("mixer_norm"))?,
            convolution: Convolution::new(dim, sizes.conv_kernel, dilation, weights.pp("convolution"))?,
            convolution_norm: LayerNorm::new(dim, weights.pp("convolution_norm"))?,
            cross: crosses.then(cross).transpose()?,
        })
    };
    let coarse = weights.pp("coarse");
    let coarse_positions = sizes.max_seq_len / sizes.coarse_factor + 2;
    let blocks: Vec<Block> = (0..sizes.depth).map(block).collect::<Result<_>>()?;
    Ok(Box::new(OmniMixture {
        embedding: Embedding::new(sizes.features, dim, (sizes.max_seq_len, 0.0), weights.pp("embedding"))?,
        coarse: Coarse {
            factor: sizes.coarse_factor,
            positions: learned_positions(coarse_positions, dim, 0.0, &coarse)?,
            norm: LayerNorm::new(dim, coarse.pp("norm"))?,
            linear: Linear::new(dim, dim, coarse.pp("linear"))?,
        },
        last_cross: blocks.iter().rposition(|block| block.cross.is_some()),
        blocks,
        norm: LayerNorm::new(dim, weights.pp("norm"))?,
    }))
}

/// The inputs are the fine stream and, if the block attends to it, the coarse one.
impl Network for Masked<'_, Block> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let (&Self(block, masks), x) = (self, &inputs[0]);
        let mixed = block.attention.forward(graph, x, x, masks)?;
        let x = block.attention_norm.add(graph, x, &mixed, Mask::NONE)?;
        let normed = block.feed_forward_norm.forward(graph, &x)?;
        let fed = block.feed_forward.forward(graph, &normed, masks)?;
        let x = graph.add(&x, &fed, Mask::NONE)?;
        let mixed = block.mixer.forward(graph, &x)?;
        let x = block.mixer_norm.add(graph, &x, &mixed, masks.draw())?;
        let mixed = block.convolution.forward(graph, &x, masks)?;
        let x = block.convolution_norm.add(graph, &x, &mixed, Mask::NONE)?;
        let (Some((cross, norm)), Some(coarse)) = (&block.cross, inputs.get(1)) else { return Ok(x) };
        let mixed = cross.forward(graph, &x, coarse, masks)?;
        norm.add(graph, &x, &mixed, Mask::NONE)
    }
}

impl SequenceBackbone for OmniMixture {
    /// The fine stream, then the coarse one.
    fn embed(&self, series: &Tensor, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams> {
        let x = fused(&Masked(&self.embedding, masks), &[series], buffers)?;
        let coarse = fused(&Masked(&self.coarse, masks), &[&x], buffers)?;
        Ok(vec![x, coarse])
    }

    fn block(&self, number: usize, streams: &Streams, masks: &Masks, buffers: &Arc<Buffers>) -> Result<Streams> {
        let (block, coarse) = (&self.blocks[number], &streams[1]);
        let inputs = [&streams[0], coarse];
        let x = fused(&Masked(block, masks), &inputs[..if block.cross.is_some() { 2 } else { 1 }], buffers)?;
        // No block attends to the coarse stream after the last crossing, so it is not rebuilt.
        let coarse = match block.cross.is_some() && Some(number) != self.last_cross {
            true => fused(&Masked(&self.coarse, masks), &[&x], buffers)?,
            false => coarse.clone(),
        };
        Ok(vec![x, coarse])
    }

    fn norm(&self) -> &LayerNorm {
        &self.norm
    }

    fn cost(&self, batch: usize, time: usize) -> LayerCost {
        let (rows, coarse_time) = (batch * time, time.div_ceil(self.coarse.factor));
        let rebuilt = self.coarse.linear.cost(batch * coarse_time);
        let block = |(number, block): (usize, &Block)| {
            let own = block.attention.cost(batch, time, time)
                + block.feed_forward.cost(rows)
                + block.mixer.cost(rows)
                + block.convolution.cost(rows);
            match &block.cross {
                Some((cross, _)) if Some(number) == self.last_cross => own + cross.cost(batch, time, coarse_time),
                Some((cross, _)) => own + cross.cost(batch, time, coarse_time) + rebuilt,
                None => own,
            }
        };
        self.embedding.cost(rows) + rebuilt + self.blocks.iter().enumerate().map(block).sum()
    }
}
