//! One layer: attention and a feed-forward, each with a norm before it and a residual connection, and the branches of the
//! bases.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{
    Base, Encoding, PsannConfig,
    layers::{Activation, Linear, Norm},
    spectral::Spectral,
    wave::Wave,
};
use crate::{
    device::Precision,
    kernels::{Attention, Graph, Mask, Network, Positions, fused},
};

pub struct Block {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attention: Attention,
    feed_forward_norm: Norm,
    up: Linear,
    activation: Activation,
    down: Linear,
    /// Factor of the feed-forward.
    alpha: Option<Tensor>,
    spectral: Option<Spectral>,
    wave: Option<Wave>,
}

impl Block {
    /// Layer `number`, with its matrices as tensors, or for the kernels of inference if a precision is given.
    pub fn new(config: &PsannConfig, number: usize, weights: VarBuilder, precision: Option<Precision>) -> Result<Self> {
        let PsannConfig { base, d_model: width, d_mlp: inner, .. } = *config;
        let plain = base == Base::Transformer;
        let (up, down) = if plain { ("mlp.0", "mlp.2") } else { ("mlp.fc1", "mlp.fc2") };
        let attn = weights.pp("attn");
        let projection = |name: &str| Linear::new((width, width), false, attn.pp(name), precision);
        let positions = match config.positional_encoding {
            Encoding::Rope => Positions::Rope,
            Encoding::Alibi => Positions::Alibi,
            Encoding::Sinusoidal => Positions::None,
        };
        let waves = base == Base::Waveresnet && config.wave_interleave;
        Ok(Self {
            attention_norm: Norm::new(base, width, weights.pp("norm1"))?,
            query: projection("q_proj")?,
            key: projection("k_proj")?,
            value: projection("v_proj")?,
            out: projection("o_proj")?,
            attention: Attention { heads: config.n_heads, positions, is_causal: true, mask: Mask::NONE },
            feed_forward_norm: Norm::new(base, width, weights.pp("norm2"))?,
            up: Linear::new((width, inner), true, weights.pp(up), precision)?,
            activation: match plain {
                true => Activation::Gelu,
                false => Activation::sine(inner, &config.sine, weights.pp("mlp.act"))?,
            },
            down: Linear::new((inner, width), true, weights.pp(down), precision)?,
            alpha: (!plain).then(|| weights.get_with_hints(1, "alpha", Init::Const(1.0))).transpose()?,
            spectral: (base == Base::Sgrpsann).then(|| Spectral::new(config, weights.pp("spectral"))).transpose()?,
            wave: waves.then(|| Wave::new(config, number, weights.pp("wave"), precision)).transpose()?,
        })
    }

    /// The layers whose weights multiply each token.
    pub fn linear_layers(&self) -> impl Iterator<Item = &Linear> {
        let Self { query, key, value, out, up, down, wave, .. } = self;
        [query, key, value, out, up, down].into_iter().chain(wave.as_ref().map(Wave::linear))
    }

    /// From (batch, time, width) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let buffers = Arc::default();
        let Some(spectral) = &self.spectral else { return fused(self, &[x], &buffers) };
        let x = fused(&Attended(self), &[x], &buffers)?;
        let fed = fused(&Fed(self), &[&x], &buffers)?;
        // The branch takes the scaled output. It is linear, so scaling after it is equivalent.
        fused(&Summed(self), &[&x, &fed, &spectral.forward(&fed)?], &buffers)
    }

    fn attended<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        let normed = self.attention_norm.forward(graph, x)?;
        let (query, key) = (self.query.forward(graph, &normed)?, self.key.forward(graph, &normed)?);
        let value = self.value.forward(graph, &normed)?;
        let heads = graph.attention(&query, &key, &value, self.attention)?;
        let out = self.out.forward(graph, &heads)?;
        graph.add(x, &out, Mask::NONE)
    }

    fn fed<G: Graph>(&self, graph: &mut G, x: &G::Value) -> Result<G::Value> {
        let normed = self.feed_forward_norm.forward(graph, x)?;
        let inner = self.up.forward(graph, &normed)?;
        let inner = self.activation.forward(graph, &inner)?;
        self.down.forward(graph, &inner)
    }

    /// The sum of the stream and its branches.
    fn summed<G: Graph>(&self, graph: &mut G, x: &G::Value, branches: &[G::Value]) -> Result<G::Value> {
        let mut x = x.clone();
        for branch in branches {
            x = match &self.alpha {
                None => graph.add(&x, branch, Mask::NONE)?,
                Some(alpha) => graph.add_scaled(&x, branch, alpha)?,
            };
        }
        Ok(x)
    }
}

/// The block without a spectral branch.
impl Network for Block {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        let x = self.attended(graph, &inputs[0])?;
        let fed = self.fed(graph, &x)?;
        let x = self.summed(graph, &x, &[fed])?;
        match &self.wave {
            Some(wave) => wave.forward(graph, &x),
            None => Ok(x),
        }
    }
}

struct Attended<'a>(&'a Block);

impl Network for Attended<'_> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        self.0.attended(graph, &inputs[0])
    }
}

struct Fed<'a>(&'a Block);

impl Network for Fed<'_> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        self.0.fed(graph, &inputs[0])
    }
}

/// The inputs are the stream and its branches.
struct Summed<'a>(&'a Block);

impl Network for Summed<'_> {
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value> {
        self.0.summed(graph, &inputs[0], &inputs[1..])
    }
}
