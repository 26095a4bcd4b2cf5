//! `omni_mixture`: attention, a feed-forward network, a state mixer and a dilated convolution in each block. Some blocks also
//! attend to a coarse stream, which is pooled from the fine one.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    SequenceBackbone, Sizes, Streams,
    layers::{
        Attention, Convolution, Depthwise, Embedding, FeedForward, LayerCost, LayerNorm, Linear, Masks, add_positions,
        learned_positions,
    },
};
use crate::kernels::{self, Padding};

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
    state_dim: usize,
}

impl Mixer {
    fn forward(&self, x: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        let both = self.into.forward(x)?;
        let (value, gate) = (both.narrow(2, 0, self.state_dim)?, both.narrow(2, self.state_dim, self.state_dim)?);
        masks.apply(&self.out.forward(&self.conv.forward(&kernels::gate(&value, &gate)?)?)?)
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

impl Coarse {
    fn forward(&self, x: &Tensor, masks: &mut Masks) -> Result<Tensor> {
        let placed = add_positions(&pool(x, self.factor)?, &self.positions)?;
        masks.apply(&self.linear.forward(&self.norm.forward(&placed)?)?)
    }
}

/// Means of `factor` steps each. The last mean is over the steps that are left.
fn pool(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, time, width) = x.dims3()?;
    let whole = time / factor;
    let mut parts = Vec::new();
    if whole > 0 {
        parts.push(x.narrow(1, 0, whole * factor)?.contiguous()?.reshape((batch, whole, factor, width))?.mean(2)?);
    }
    if whole * factor < time {
        parts.push(x.narrow(1, whole * factor, time - whole * factor)?.mean_keepdim(1)?);
    }
    Ok(Tensor::cat(&parts, 1)?)
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
                state_dim,
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

impl SequenceBackbone for OmniMixture {
    /// The fine stream, then the coarse one.
    fn embed(&self, series: &Tensor, masks: &mut Masks) -> Result<Streams> {
        let x = self.embedding.forward(series, masks)?;
        let coarse = self.coarse.forward(&x, masks)?;
        Ok(vec![x, coarse])
    }

    fn block(&self, number: usize, streams: &Streams, masks: &mut Masks) -> Result<Streams> {
        let (block, x, coarse) = (&self.blocks[number], &streams[0], &streams[1]);
        let x = block.attention_norm.forward(&(x + block.attention.forward(x, x, masks)?)?)?;
        let x = (&x + block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?, masks)?)?;
        let x = block.mixer_norm.forward(&(&x + block.mixer.forward(&x, masks)?)?)?;
        let x = block.convolution_norm.forward(&(&x + block.convolution.forward(&x, masks)?)?)?;
        let Some((cross, norm)) = &block.cross else { return Ok(vec![x, coarse.clone()]) };
        let x = norm.forward(&(&x + cross.forward(&x, coarse, masks)?)?)?;
        // No block attends to the coarse stream after the last crossing, so it is not rebuilt.
        let coarse = match Some(number) == self.last_cross {
            true => coarse.clone(),
            false => self.coarse.forward(&x, masks)?,
        };
        Ok(vec![x, coarse])
    }

    fn finish(&self, streams: &Streams) -> Result<Tensor> {
        self.norm.forward(&streams[0])
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
