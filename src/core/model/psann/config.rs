//! The configuration of a PSANN model: base, sizes and optional parts.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{nearest, one_line},
    kernels::{Decay, Waveform},
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

/// A parameter of the activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SineParameter {
    /// `A`.
    Amplitude,
    /// `f`.
    Frequency,
    /// `d`.
    Decay,
}

/// Least and largest value of a parameter; `None` for no bound.
type Bounds = Option<(Option<f64>, Option<f64>)>;

/// Range of an initial value.
type Range = Option<(f64, f64)>;

/// The activation `A·exp(−d·g(z))·sin(f·z)`: initial values and bounds of its parameters, and its decay function `g`. Names,
/// defaults and meaning are those of psannlm's `SineConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sine {
    /// Initial amplitude `A` of each channel.
    pub amp_init: f64,
    /// Standard deviation of the initial amplitudes, to first order; 0 for equal ones.
    pub amp_init_std: f64,
    /// Initial frequency `f` of each channel.
    pub freq_init: f64,
    /// Standard deviation of the initial frequencies.
    pub freq_init_std: f64,
    /// Initial damping `d` of each channel.
    pub damp_init: f64,
    /// Standard deviation of the initial dampings.
    pub damp_init_std: f64,
    /// False if the parameters keep their initial values.
    pub trainable: bool,
    /// The decay function `g`.
    pub decay_mode: Decay,
    /// The parameters that are trained. Overrides `trainable`.
    pub learnable: Option<Vec<SineParameter>>,
    /// Bounds of the amplitude.
    pub amp_bounds: Bounds,
    /// Bounds of the frequency.
    pub freq_bounds: Bounds,
    /// Bounds of the damping.
    pub damp_bounds: Bounds,
    /// Range from which the initial amplitude of each activation is drawn, by its name. A standard deviation overrides it.
    pub amp_range: Range,
    /// Range of the initial frequency.
    pub freq_range: Range,
    /// Range of the initial damping.
    pub damp_range: Range,
    /// Axis of the channels. Only the last, -1, is supported.
    pub feature_dim: i64,
}

impl Default for Sine {
    fn default() -> Self {
        Self {
            amp_init: 1.0,
            amp_init_std: 0.0,
            freq_init: 1.0,
            freq_init_std: 0.0,
            damp_init: 0.01,
            damp_init_std: 0.0,
            trainable: true,
            decay_mode: Decay::Abs,
            learnable: None,
            amp_bounds: None,
            freq_bounds: None,
            damp_bounds: None,
            amp_range: None,
            freq_range: None,
            damp_range: None,
            feature_dim: -1,
        }
    }
}

/// How the initial values of a parameter are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Initial {
    /// The same for all channels.
    Equal(f64),
    /// Drawn once for all channels from a range.
    Drawn(f64, f64),
    /// Drawn for each channel, with a mean and a standard deviation.
    Spread(f64, f64),
}

/// Name, initial value, standard deviation, bounds and range of a parameter.
type Parameter = (&'static str, f64, f64, Bounds, Range);

impl Sine {
    fn parameters(&self) -> [Parameter; 3] {
        [
            ("amp", self.amp_init, self.amp_init_std, self.amp_bounds, self.amp_range),
            ("freq", self.freq_init, self.freq_init_std, self.freq_bounds, self.freq_range),
            ("damp", self.damp_init, self.damp_init_std, self.damp_bounds, self.damp_range),
        ]
    }

    /// Initial values of amplitude, frequency and damping.
    pub(super) fn initial(&self) -> [Initial; 3] {
        self.parameters().map(|(_, mean, deviation, _, range)| match range {
            _ if deviation > 0.0 => Initial::Spread(mean, deviation),
            Some((one, other)) => Initial::Drawn(one.min(other), one.max(other)),
            None => Initial::Equal(mean),
        })
    }

    /// The form of the activation.
    pub(super) fn form(&self) -> Waveform {
        let mut form = Waveform::from(self.decay_mode);
        for (to, (_, _, _, bounds, _)) in form.bounds.iter_mut().zip(self.parameters()) {
            let (low, high) = bounds.unwrap_or_default();
            *to = (low.map_or(to.0, |low| low as f32), high.map_or(to.1, |high| high as f32));
        }
        form
    }

    /// Returns whether a parameter is trained.
    fn trains(&self, parameter: SineParameter) -> bool {
        self.learnable.as_ref().map_or(self.trainable, |learnable| learnable.contains(&parameter))
    }

    /// # Errors
    /// If a value is out of its range.
    fn check(&self, base: Base) -> Result<()> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        for (name, initial, deviation, bounds, range) in self.parameters() {
            ensure!(positive(initial), "{base}: sine {name}_init={initial}: it must be greater than 0");
            ensure!(deviation.is_finite(), "{base}: sine {name}_init_std={deviation}: it must be a number");
            if let Some((one, other)) = range {
                ensure!(
                    positive(one) && positive(other),
                    "{base}: sine {name}_range=[{one}, {other}]: both must be greater than 0"
                );
            }
            if let (Some(low), Some(high)) = bounds.unwrap_or_default() {
                ensure!(low <= high, "{base}: sine {name}_bounds=[{low}, {high}]: the first must not be the larger");
            }
            let (low, high) = bounds.unwrap_or_default();
            ensure!(
                [low, high].into_iter().flatten().all(f64::is_finite),
                "{base}: sine {name}_bounds: a bound must be a number or null"
            );
        }
        ensure!(self.feature_dim == -1, "{base}: sine feature_dim={}: only -1 is supported", self.feature_dim);
        Ok(())
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
    pub fn size(&self, key: &str) -> Option<usize> {
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
        ensure!(
            self.gate_strength >= 0.0 && self.gate_strength.is_finite() && self.gate_init.is_finite(),
            "{base}: gate_strength={}, gate_init={}: they must be numbers, and the first at least 0",
            self.gate_strength,
            self.gate_init
        );
        self.sine.check(base)
    }

    /// The model of a `config.json`; `None` if that has no `base`, as those of other kinds of models.
    ///
    /// # Errors
    /// As [`Self::check`], and if a key or a value is unknown.
    pub(crate) fn from_json(json: &Value) -> Result<Option<Self>> {
        if json.get("base").is_none() {
            return Ok(None);
        }
        let config = Self::deserialize(json).map_err(|error| anyhow!("config.json: {}", one_line(&error)))?;
        config.check().context("config.json")?;
        Ok(Some(config))
    }

    /// Returns whether no logit depends on a later token.
    pub(crate) fn is_causal(&self) -> bool {
        match self.base {
            Base::Respsann | Base::Transformer => true,
            Base::Sgrpsann => false,
            Base::Waveresnet => !self.wave_interleave,
        }
    }

    /// Returns whether the weight of this name is trained. Parameters of the activation may keep their initial values.
    pub fn trains(&self, name: &str) -> bool {
        let of = [("._A", SineParameter::Amplitude), ("._f", SineParameter::Frequency), ("._d", SineParameter::Decay)];
        of.into_iter().all(|(end, parameter)| !name.ends_with(end) || self.sine.trains(parameter))
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
        assert!(error(|c| c.sine.amp_bounds = Some((Some(2.0), Some(1.0)))).contains("amp_bounds=[2, 1]"));
        assert!(error(|c| c.sine.damp_range = Some((0.0, 1.0))).contains("damp_range=[0, 1]"));
        assert!(error(|c| c.sine.feature_dim = 1).contains("feature_dim=1"));
        assert!(error(|c| c.gate_strength = -1.0).contains("gate_strength=-1"));
        let config =
            PsannConfig { positional_encoding: Encoding::Alibi, d_model: 12, n_heads: 4, ..PsannConfig::default() };
        config.check().expect("ALiBi turns nothing");
    }

    #[test]
    fn a_config_json_is_read_if_it_names_a_base() {
        let config = PsannConfig { base: Base::Transformer, n_layers: 3, ..PsannConfig::default() };
        let json = serde_json::to_value(&config).expect("JSON");
        assert_eq!(PsannConfig::from_json(&json).expect("a configuration"), Some(config));
        let other = serde_json::json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64});
        assert_eq!(PsannConfig::from_json(&other).expect("another kind"), None);
        for (json, part) in [
            (serde_json::json!({"base": "llama"}), "unknown variant `llama`"),
            (serde_json::json!({"base": "respsann", "d_modle": 64}), "unknown field `d_modle`"),
            (serde_json::json!({"base": "respsann", "d_model": "wide"}), "invalid type"),
            (serde_json::json!({"base": "respsann", "n_heads": 7}), "n_heads=7 do not divide"),
        ] {
            let error = format!("{:#}", PsannConfig::from_json(&json).expect_err(part));
            assert!(error.starts_with("config.json: ") && error.contains(part), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn psannlms_keys_of_the_activation_are_read() {
        let text = r#"{"sine": {"amp_bounds": [0.5, null], "freq_range": [2.0, 1.0], "damp_init_std": 0.1,
            "learnable": ["amplitude", "decay"], "feature_dim": -1}}"#;
        let config: PsannConfig = serde_json::from_str(text).expect("a configuration");
        config.check().expect("psannlm accepts it");
        let trained = ["_A", "_f", "_d"].map(|name| config.trains(&format!("blocks.0.mlp.act.{name}")));
        assert_eq!((trained, config.trains("head.weight")), ([true, false, true], true));
        let initial = [Initial::Equal(1.0), Initial::Drawn(1.0, 2.0), Initial::Spread(0.01, 0.1)];
        assert_eq!(config.sine.initial(), initial);
        let unbounded = (f32::NEG_INFINITY, f32::INFINITY);
        assert_eq!(config.sine.form().bounds, [(0.5, f32::INFINITY), unbounded, unbounded]);
        let frozen = PsannConfig { sine: Sine { trainable: false, ..Sine::default() }, ..PsannConfig::default() };
        assert!(!frozen.trains("blocks.0.mlp.act._A") && frozen.trains("blocks.0.mlp.fc1.weight"));
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
