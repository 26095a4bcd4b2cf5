//! The configuration of a PSANN model: base, sizes and optional parts.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    error::nearest,
    kernels::Decay,
    model::limits::{MOST_WEIGHTS, check_sizes},
};

/// A language model of psannlm's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// Attention, and a feed-forward whose activation is a damped sine.
    Respsann,
    /// Respsann with a spectral branch, which sees later tokens.
    Sgrpsann,
    /// Respsann with an optional temporal block, which sees later tokens.
    Waveresnet,
    /// LayerNorm and GELU instead of RMSNorm and the sine.
    Transformer,
}

impl Base {
    /// Every base.
    pub const ALL: [Self; 4] = [Self::Respsann, Self::Sgrpsann, Self::Waveresnet, Self::Transformer];

    /// Name in settings and benchmark ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Respsann => "respsann",
            Self::Sgrpsann => "sgrpsann",
            Self::Waveresnet => "waveresnet",
            Self::Transformer => "transformer",
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Base {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(found) = Self::ALL.into_iter().find(|base| base.name() == text) {
            return Ok(found);
        }
        let names = Self::ALL.map(Self::name);
        match nearest(text, &names) {
            Some(near) => bail!("unknown base '{text}': did you mean {near}?"),
            None => bail!("unknown base '{text}': the bases are {}", names.join(", ")),
        }
    }
}

/// The positional encoding of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Rotary position embedding of queries and keys (RoPE).
    Rope,
    /// Attention with linear biases (ALiBi): a penalty on each score, proportional to the distance.
    Alibi,
    /// Sines and cosines of the position, added to the embedding.
    Sinusoidal,
}

impl FromStr for Encoding {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "rope" => Self::Rope,
            "alibi" => Self::Alibi,
            "sinusoidal" => Self::Sinusoidal,
            _ => match nearest(text, &["rope", "alibi", "sinusoidal"]) {
                Some(near) => bail!("unknown encoding '{text}': did you mean {near}?"),
                None => bail!("unknown encoding '{text}': rope, alibi or sinusoidal"),
            },
        })
    }
}

/// Initial values of the activation `A·exp(−d·g(z))·sin(f·z)`, and its decay function `g`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sine {
    /// Initial amplitude `A` of each channel.
    pub amp_init: f64,
    /// Initial frequency `f` of each channel.
    pub freq_init: f64,
    /// Initial damping `d` of each channel.
    pub damp_init: f64,
    /// The decay function `g`.
    pub decay_mode: Decay,
}

impl Default for Sine {
    fn default() -> Self {
        Self { amp_init: 1.0, freq_init: 1.0, damp_init: 0.01, decay_mode: Decay::Abs }
    }
}

/// A model. Names and defaults are those of psannlm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PsannConfig {
    /// The architecture.
    pub base: Base,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of attention heads. It divides `d_model`.
    pub n_heads: usize,
    /// Inner width of the feed-forward.
    pub d_mlp: usize,
    /// Positional encoding of tokens.
    pub positional_encoding: Encoding,
    /// Initial values of the activation. `transformer` ignores them.
    pub sine: Sine,
    /// Number of steps that the spectral branch of `sgrpsann` sees.
    pub k_fft: usize,
    /// Initial value of the spectral branch's gates, before the sigmoid.
    pub gate_init: f64,
    /// Factor of the spectral branch's output.
    pub gate_strength: f64,
    /// True if `waveresnet` has its temporal block.
    pub wave_interleave: bool,
    /// Taps of the convolution in the temporal block.
    pub wave_kernel_size: usize,
    /// The dilation of the convolution of layer n is this value to the power of n.
    pub wave_dilation_growth: usize,
}

impl Default for PsannConfig {
    fn default() -> Self {
        Self {
            base: Base::Respsann,
            vocab_size: 32_000,
            d_model: 512,
            n_layers: 8,
            n_heads: 8,
            d_mlp: 2048,
            positional_encoding: Encoding::Rope,
            sine: Sine::default(),
            k_fft: 64,
            gate_init: 0.0,
            gate_strength: 1.0,
            wave_interleave: false,
            wave_kernel_size: 3,
            wave_dilation_growth: 1,
        }
    }
}

/// Largest value of each size.
const LARGEST: [(&[&str], u64); 6] = [
    (&["vocab_size", "d_mlp"], 1 << 24),
    (&["d_model"], 1 << 20),
    (&["n_layers"], 1 << 14),
    (&["n_heads"], 1 << 16),
    (&["k_fft"], 1 << 20),
    (&["wave_kernel_size", "wave_dilation_growth"], 1 << 16),
];

/// Largest numbers of weights of one kind.
const PRODUCTS: [(&[&str], u64); 4] = [
    (&["vocab_size", "d_model"], MOST_WEIGHTS),
    (&["n_layers", "d_model", "d_model"], MOST_WEIGHTS),
    (&["n_layers", "d_model", "d_mlp"], MOST_WEIGHTS),
    (&["n_layers", "d_model", "d_model", "wave_kernel_size"], MOST_WEIGHTS),
];

impl PsannConfig {
    /// A size by the name of its key.
    pub(crate) fn size(&self, key: &str) -> Option<usize> {
        Some(match key {
            "vocab_size" => self.vocab_size,
            "d_model" => self.d_model,
            "n_layers" => self.n_layers,
            "n_heads" => self.n_heads,
            "d_mlp" => self.d_mlp,
            "k_fft" => self.k_fft,
            "wave_kernel_size" => self.wave_kernel_size,
            "wave_dilation_growth" => self.wave_dilation_growth,
            _ => return None,
        })
    }

    /// # Errors
    /// If sizes are 0, larger than any model's, or contradict each other.
    pub fn check(&self) -> Result<()> {
        let base = self.base;
        for (keys, _) in LARGEST {
            for key in keys {
                ensure!(self.size(key) != Some(0), "{base}: {key} is 0");
            }
        }
        check_sizes(&format!("{base}: "), &LARGEST, &PRODUCTS, |key| self.size(key).map(|size| size as u64))?;
        let (width, heads) = (self.d_model, self.n_heads);
        ensure!(width.is_multiple_of(heads), "{base}: n_heads={heads} do not divide d_model={width}");
        ensure!(
            self.positional_encoding != Encoding::Rope || (width / heads).is_multiple_of(2),
            "{base}: heads of {} numbers can't turn in pairs: RoPE needs d_model / n_heads to be even",
            width / heads
        );
        ensure!(
            self.wave_kernel_size % 2 == 1,
            "{base}: wave_kernel_size={}: a convolution of the same length needs an odd one",
            self.wave_kernel_size
        );
        for (name, value) in
            [("amp_init", self.sine.amp_init), ("freq_init", self.sine.freq_init), ("damp_init", self.sine.damp_init)]
        {
            ensure!(value > 0.0 && value.is_finite(), "{base}: sine {name}={value}: it must be greater than 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_named() {
        let error = |edit: fn(&mut PsannConfig)| {
            let mut config = PsannConfig::default();
            edit(&mut config);
            config.check().expect_err("an error").to_string()
        };
        PsannConfig::default().check().expect("the defaults");
        assert!(error(|c| c.n_heads = 7).contains("n_heads=7 do not divide d_model=512"));
        assert!(error(|c| (c.d_model, c.n_heads) = (12, 4)).contains("heads of 3 numbers can't turn in pairs"));
        assert!(error(|c| c.n_layers = 0).contains("n_layers is 0"));
        assert!(error(|c| c.n_layers = 1 << 62).contains("n_layers is 4611686018427387904; at most 16384"));
        assert!(error(|c| c.d_mlp = 100_000_000_000).contains("d_mlp is 100000000000"));
        assert!(error(|c| (c.d_model, c.n_layers) = (1 << 20, 1 << 14)).contains("n_layers * d_model * d_model is"));
        assert!(error(|c| c.wave_kernel_size = 4).contains("needs an odd one"));
        assert!(error(|c| c.sine.freq_init = 0.0).contains("freq_init=0"));
        let config =
            PsannConfig { positional_encoding: Encoding::Alibi, d_model: 12, n_heads: 4, ..PsannConfig::default() };
        config.check().expect("ALiBi turns nothing");
    }

    #[test]
    fn names_are_read_and_near_misses_named() {
        for base in Base::ALL {
            assert_eq!(base.name().parse::<Base>().expect("a name"), base);
        }
        let message = |text: &str| text.parse::<Base>().expect_err(text).to_string();
        assert!(message("resppsann").contains("did you mean respsann?"));
        assert!(message("mamba").contains("respsann, sgrpsann, waveresnet, transformer"));
        assert!("rotary".parse::<Encoding>().expect_err("rotary").to_string().contains("rope, alibi or sinusoidal"));
    }
}
