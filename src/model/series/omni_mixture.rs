//! `omni_mixture`: attention, feed-forward, a state mixer and a dilated convolution in each block, and beside the stream a
//! coarse one that every second block attends to.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Linear, Module, VarBuilder};

use super::{
    SequenceBackbone, Sizes,
    layers::{Attention, Convolution, Depthwise, Embedding, FeedForward, LayerNorm, learned_positions, linear},
};
use crate::kernels::{self, Padding};

pub struct OmniMixture {
    embedding: Embedding,
    coarse: Coarse,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// `x = LN(x + MHA(x))`, `x += FF(LN(x))` with an inner width of twice the expansion, `x = LN(x + mixer(x))`,
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

/// `W_o · conv(u·sigmoid(v))` with `[u, v] = W_i x`, the convolution causal and depthwise.
struct Mixer {
    into: Linear,
    conv: Depthwise,
    out: Linear,
    state: usize,
}

impl Mixer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.into.forward(x)?;
        let gated = kernels::gate(&both.narrow(2, 0, self.state)?, &both.narrow(2, self.state, self.state)?)?;
        Ok(self.out.forward(&self.conv.forward(&gated)?)?)
    }
}

/// `linear(LN(pool(x) + positions))`, a step for each `every` steps of the stream. The last is the mean of what is left.
struct Coarse {
    every: usize,
    positions: Tensor,
    norm: LayerNorm,
    linear: Linear,
}

impl Coarse {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = pool(x, self.every)?;
        let placed = pooled.broadcast_add(&self.positions.narrow(0, 0, pooled.dim(1)?)?)?;
        Ok(self.linear.forward(&self.norm.forward(&placed)?)?)
    }
}

/// Means of `every` steps, the last of as many as are left.
fn pool(x: &Tensor, every: usize) -> Result<Tensor> {
    let (batch, time, width) = x.dims3()?;
    let whole = time / every;
    let mut parts = Vec::new();
    if whole > 0 {
        parts.push(x.narrow(1, 0, whole * every)?.contiguous()?.reshape((batch, whole, every, width))?.mean(2)?);
    }
    if whole * every < time {
        parts.push(x.narrow(1, whole * every, time - whole * every)?.mean_keepdim(1)?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}

impl OmniMixture {
    pub fn new(sizes: &Sizes, weights: VarBuilder) -> Result<Self> {
        let Sizes { dim, heads, state, .. } = *sizes;
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
                feed_forward: FeedForward::new(dim, 2 * sizes.expansion * dim, weights.pp("feed_forward"))?,
                mixer: Mixer {
                    into: linear(dim, 2 * state, weights.pp("mixer_in"))?,
                    conv: Depthwise::new(state, sizes.mixer_kernel, 1, Padding::Causal, weights.pp("mixer_conv"))?,
                    out: linear(state, dim, weights.pp("mixer_out"))?,
                    state,
                },
                mixer_norm: LayerNorm::new(dim, weights.pp("mixer_norm"))?,
                convolution: Convolution::new(dim, sizes.conv_kernel, dilation, weights.pp("convolution"))?,
                convolution_norm: LayerNorm::new(dim, weights.pp("convolution_norm"))?,
                cross: crosses.then(cross).transpose()?,
            })
        };
        let coarse = weights.pp("coarse");
        Ok(Self {
            embedding: Embedding::new(sizes.features, dim, Some(sizes.positions), weights.pp("embedding"))?,
            coarse: Coarse {
                every: sizes.coarse,
                positions: learned_positions(sizes.positions.div_ceil(sizes.coarse), dim, &coarse)?,
                norm: LayerNorm::new(dim, coarse.pp("norm"))?,
                linear: linear(dim, dim, coarse.pp("linear"))?,
            },
            blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, weights.pp("norm"))?,
        })
    }
}

impl SequenceBackbone for OmniMixture {
    fn forward(&self, series: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.forward(series)?;
        let mut coarse = self.coarse.forward(&x)?;
        let last = self.blocks.iter().rposition(|block| block.cross.is_some());
        for (number, block) in self.blocks.iter().enumerate() {
            x = block.attention_norm.forward(&(&x + block.attention.forward(&x, &x)?)?)?;
            x = (&x + block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?)?)?;
            x = block.mixer_norm.forward(&(&x + block.mixer.forward(&x)?)?)?;
            x = block.convolution_norm.forward(&(&x + block.convolution.forward(&x)?)?)?;
            if let Some((cross, norm)) = &block.cross {
                x = norm.forward(&(&x + cross.forward(&x, &coarse)?)?)?;
                // After the last nobody looks at it.
                if Some(number) != last {
                    coarse = self.coarse.forward(&x)?;
                }
            }
        }
        self.norm.forward(&x)
    }
}
