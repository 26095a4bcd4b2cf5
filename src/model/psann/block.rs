//! One layer: attention and a feed-forward, each with a norm before it and a residual connection, and the branches of the
//! bases.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{
    Base, Encoding, PsannConfig,
    layers::{Activation, Linear, Norm},
    spectral::Spectral,
    wave::Wave,
};
use crate::kernels::{self, Attention, Positions};

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
    pub fn new(config: &PsannConfig, number: usize, weights: VarBuilder) -> Result<Self> {
        let PsannConfig { base, d_model: width, d_mlp: inner, .. } = *config;
        let plain = base == Base::Transformer;
        let (up, down) = if plain { ("mlp.0", "mlp.2") } else { ("mlp.fc1", "mlp.fc2") };
        let attn = weights.pp("attn");
        let projection = |name: &str| Linear::new(width, width, false, attn.pp(name));
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
            attention: Attention { heads: config.n_heads, positions },
            feed_forward_norm: Norm::new(base, width, weights.pp("norm2"))?,
            up: Linear::new(width, inner, true, weights.pp(up))?,
            activation: match plain {
                true => Activation::Gelu,
                false => Activation::sine(inner, &config.sine, weights.pp("mlp.act"))?,
            },
            down: Linear::new(inner, width, true, weights.pp(down))?,
            alpha: (!plain).then(|| weights.get_with_hints(1, "alpha", Init::Const(1.0))).transpose()?,
            spectral: (base == Base::Sgrpsann).then(|| Spectral::new(config, weights.pp("spectral"))).transpose()?,
            wave: waves.then(|| Wave::new(config, number, weights.pp("wave"))).transpose()?,
        })
    }

    /// Number of weights that multiply each token.
    pub fn multiplied_weights(&self) -> usize {
        let Self { query, key, value, out, up, down, wave, .. } = self;
        let linear: usize = [query, key, value, out, up, down].into_iter().map(Linear::weights).sum();
        linear + wave.as_ref().map_or(0, Wave::multiplied_weights)
    }

    /// From (batch, time, width) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let (query, key) = (self.query.forward(&normed)?, self.key.forward(&normed)?);
        let heads = self.attention.forward(&query, &key, &self.value.forward(&normed)?)?;
        let x = (x + self.out.forward(&heads)?)?;
        let normed = self.feed_forward_norm.forward(&x)?;
        let fed = self.down.forward(&self.activation.forward(&self.up.forward(&normed)?)?)?;
        let x = match (&self.alpha, &self.spectral) {
            (None, _) => (x + fed)?,
            (Some(alpha), None) => kernels::add_scaled(&x, &fed, alpha)?,
            // The branch takes the scaled output. It is linear, so scaling after it is equivalent.
            (Some(alpha), Some(spectral)) => {
                kernels::add_scaled(&kernels::add_scaled(&x, &fed, alpha)?, &spectral.forward(&fed)?, alpha)?
            }
        };
        match &self.wave {
            Some(wave) => wave.forward(&x),
            None => Ok(x),
        }
    }
}
