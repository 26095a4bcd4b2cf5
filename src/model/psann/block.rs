//! One layer: attention and a feed-forward, each after a norm and added to what went in, and what a base adds to that. Linear
//! layers multiply in the precision of what comes in, whatever that of their weights; norms and sines compute in f32.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{Base, Encoding, PsannConfig, Sine, spectral::Spectral, wave::Wave};
use crate::kernels::{self, Attention, Decay, Positions};

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
    /// What the feed-forward is scaled by.
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

    /// From (batch, time, width) to the same.
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
            // The branch takes what was scaled; being linear, it may as well be scaled after it.
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

/// A linear layer, started as Xavier and Glorot do.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(from: usize, to: usize, has_bias: bool, weights: VarBuilder) -> Result<Self> {
        let bound = (6.0 / (from + to) as f64).sqrt();
        let weight = weights.get_with_hints((to, from), "weight", Init::Uniform { lo: -bound, up: bound })?;
        let bias = has_bias.then(|| weights.get_with_hints(to, "bias", Init::Const(0.0))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// From (batch, time, inputs) to (batch, time, outputs).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }
}

/// RMSNorm, or the plain transformer's LayerNorm.
pub enum Norm {
    Rms(Tensor),
    Layer(Tensor, Tensor),
}

impl Norm {
    pub fn new(base: Base, width: usize, weights: VarBuilder) -> Result<Self> {
        Ok(match base {
            Base::Transformer => Self::Layer(
                weights.get_with_hints(width, "weight", Init::Const(1.0))?,
                weights.get_with_hints(width, "bias", Init::Const(0.0))?,
            ),
            _ => Self::Rms(weights.get_with_hints(width, "scale", Init::Const(1.0))?),
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms(scale) => kernels::rms_norm(x, scale, 1e-6),
            Self::Layer(weight, bias) => kernels::layer_norm(x, weight, bias, 1e-5),
        }
    }
}

/// What is done to each number between two linear layers.
pub enum Activation {
    Gelu,
    Sine { amplitude: Tensor, frequency: Tensor, damping: Tensor, decay: Decay },
}

impl Activation {
    pub fn sine(width: usize, sine: &Sine, weights: VarBuilder) -> Result<Self> {
        // What softplus makes the initial value of.
        let raw = |value: f64| Init::Const(value + (-(-value).exp_m1()).ln());
        Ok(Self::Sine {
            amplitude: weights.get_with_hints(width, "_A", raw(sine.amp_init))?,
            frequency: weights.get_with_hints(width, "_f", raw(sine.freq_init))?,
            damping: weights.get_with_hints(width, "_d", raw(sine.damp_init))?,
            decay: sine.decay_mode,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => kernels::gelu(x),
            Self::Sine { amplitude, frequency, damping, decay } => {
                let raw = Tensor::stack(&[amplitude, frequency, damping], 0)?;
                kernels::sine(x, &raw, *decay)
            }
        }
    }
}
