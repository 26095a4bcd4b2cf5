//! The configuration of a training run or shoot-out.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;

use crate::{
    config::{above_0, at_least_0, config, share},
    device::DeviceChoice,
    model::{
        limits::{MOST_PRODUCTS, check_sizes},
        psann::{self, Base, Encoding, Sine},
    },
    step::optimizer::Options,
};

config! {
    /// A training run, or several that differ in base and seed. The default is psannlm's corpus benchmark in a size that
    /// two cores train in minutes.
    #[derive(Clone, Debug, PartialEq)]
    pub struct TrainConfig {
        /// Bases to train, each with each seed: respsann, sgrpsann, waveresnet, transformer
        #[alias = "base"]
        pub bases: Vec<Base> = vec![Base::Waveresnet],

        /// Seeds to train each base with
        #[alias = "seed"]
        pub seeds: Vec<u64> = vec![1337],

        /// Width of the model
        pub d_model: usize = 256,

        /// Number of layers
        pub n_layers: usize = 4,

        /// Number of attention heads
        pub n_heads: usize = 4,

        /// Inner width of the feed-forward
        pub d_mlp: usize = 1024,

        /// Position encoding: rope, alibi or sinusoidal
        pub positional_encoding: Encoding = Encoding::Rope,

        /// Activation of the psann bases: keys of psannlm's SineConfig, such as {amp_init: 1.0, trainable: false}
        #[default = "those of psannlm"]
        pub sine: Sine = Sine::default(),

        /// Number of tokens that the spectral branch of sgrpsann sees
        pub k_fft: usize = 64,

        /// Initial value of the gates of that branch, before the sigmoid
        pub gate_init: f64 = 0.0,

        /// Factor of the output of that branch; 0 switches it off
        pub gate_strength: f64 = 1.0,

        /// True if waveresnet has its temporal block
        pub wave_interleave: bool = false,

        /// Kernel size of the temporal block of waveresnet; must be odd
        pub wave_kernel_size: usize = 3,

        /// Growth of the dilation of the temporal block: layer n is dilated by this to the power of n
        pub wave_dilation_growth: usize = 1,

        /// Largest vocabulary of the tokenizer
        pub vocab_size: usize = 1024,

        /// Text file to train on
        pub corpus: PathBuf = PathBuf::from("fixtures/corpus/moby-dick.txt"),

        /// Share of the corpus that is held out for validation, between 0 and 1
        #[serde(deserialize_with = "share")]
        pub validation_share: f64 = 0.02,

        /// Number of tokens in a sequence
        pub sequence_length: usize = 128,

        /// Number of tokens in a batch
        pub batch_tokens: usize = 1024,

        /// Number of tokens computed at a time; a larger batch is computed in parts
        pub micro_batch_tokens: usize = 65_536,

        /// Number of passes over the corpus
        pub epochs: usize = 3,

        /// Number of optimizer steps; overrides epochs
        #[default = "epochs decide"]
        pub steps: Option<usize> = None,

        /// Peak learning rate
        #[serde(deserialize_with = "above_0")]
        pub learning_rate: f64 = 1e-3,

        /// Number of steps over which the learning rate rises to its peak
        pub warmup_steps: usize = 100,

        /// Weight decay of AdamW
        #[serde(deserialize_with = "at_least_0")]
        pub weight_decay: f64 = 0.01,

        /// Gradient norm above which gradients are scaled down to it
        #[serde(deserialize_with = "above_0")]
        pub clip_norm: f64 = 1.0,

        /// Dtype of the computation: f32 or bf16
        #[serde(with = "crate::device::training_dtype")]
        pub dtype: DType = DType::F32,

        /// True if activations are computed again in the backward pass, which saves memory
        pub checkpointing: bool = false,

        /// Device to train on: cpu, cuda:N or metal
        pub device: DeviceChoice = DeviceChoice::Cpu,

        /// Number of steps between two validations
        pub validate_every: usize = 100,

        /// Number of steps between two checkpoints
        pub save_every: usize = 50,

        /// safetensors file of the initial weights, with psannlm's tensor names
        #[default = "seeded weights"]
        pub weights: Option<PathBuf> = None,
    }
}

/// Largest value of each size. Those of the model are limited by the model.
const LARGEST: [(&[&str], u64); 3] =
    [(&["sequence_length"], 1 << 24), (&["batch_tokens"], 1 << 32), (&["epochs", "steps", "warmup_steps"], 1 << 32)];

/// Largest numbers of products in one pass over a batch.
const PRODUCTS: [(&[&str], u64); 4] = [
    (&["n_layers", "d_model", "d_mlp", "batch_tokens"], MOST_PRODUCTS),
    (&["n_layers", "d_model", "d_model", "batch_tokens"], MOST_PRODUCTS),
    (&["n_layers", "d_model", "sequence_length", "batch_tokens"], MOST_PRODUCTS),
    (&["vocab_size", "d_model", "batch_tokens"], MOST_PRODUCTS),
];

impl TrainConfig {
    /// The defaults of a shoot-out: every base, for 300 steps, as in psannlm's own.
    pub(crate) fn shootout() -> Self {
        Self { bases: Base::ALL.to_vec(), steps: Some(300), save_every: 1000, ..Self::default() }
    }

    /// # Errors
    /// Lists the values that contradict each other, one per line.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        for (key, count) in [
            ("bases", self.bases.len()),
            ("seeds", self.seeds.len()),
            ("sequence_length", self.sequence_length),
            ("epochs", self.epochs),
            ("steps", self.steps.unwrap_or(1)),
            ("validate_every", self.validate_every),
            ("save_every", self.save_every),
        ] {
            if count == 0 {
                problems.push(format!("{key}: at least one is needed"));
            }
        }
        for (key, tokens) in [("batch_tokens", self.batch_tokens), ("micro_batch_tokens", self.micro_batch_tokens)] {
            let length = self.sequence_length;
            if tokens < length {
                problems.push(format!("{key}={tokens} is less than one sequence of sequence_length={length}"));
            }
        }
        let size = |key: &str| match key {
            "sequence_length" => Some(self.sequence_length),
            "batch_tokens" => Some(self.batch_tokens),
            "epochs" => Some(self.epochs),
            "steps" => self.steps,
            "warmup_steps" => Some(self.warmup_steps),
            "n_layers" => Some(self.n_layers),
            "d_model" => Some(self.d_model),
            "d_mlp" => Some(self.d_mlp),
            "vocab_size" => Some(self.vocab_size),
            _ => None,
        };
        let size = |key: &str| size(key).map(|size| size as u64);
        problems.extend(check_sizes("", &LARGEST, &[], size).err().map(|error| error.to_string()));
        // All bases share the sizes, so the first base that refuses them suffices.
        let refused = self.bases.iter().find_map(|base| self.model(*base, self.vocab_size).check().err());
        problems.extend(refused.map(|error| error.to_string()));
        if problems.is_empty() {
            check_sizes("", &[], &PRODUCTS, size)?;
        }
        ensure!(problems.is_empty(), problems.join("\n"));
        Ok(())
    }

    /// The model of a base on a vocabulary.
    pub(crate) fn model(&self, base: Base, vocab_size: usize) -> psann::PsannConfig {
        psann::PsannConfig {
            base,
            vocab_size,
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            d_mlp: self.d_mlp,
            positional_encoding: self.positional_encoding,
            sine: self.sine.clone(),
            k_fft: self.k_fft,
            gate_init: self.gate_init,
            gate_strength: self.gate_strength,
            wave_interleave: self.wave_interleave,
            wave_kernel_size: self.wave_kernel_size,
            wave_dilation_growth: self.wave_dilation_growth,
        }
    }

    /// The optimizer, whose learning rate falls to 0 after `steps`.
    pub(crate) fn optimizer(&self, steps: usize) -> Options {
        Options {
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm,
            decay_steps: Some(steps),
            ..Options::default()
        }
    }

    /// The same configuration with one base and one seed.
    pub(crate) fn only(&self, base: Base, seed: u64) -> Self {
        Self { bases: vec![base], seeds: vec![seed], ..self.clone() }
    }

    /// Number of sequences in a batch.
    pub(crate) fn rows(&self) -> usize {
        self.batch_tokens / self.sequence_length
    }

    /// Every key that has a value, sorted by name, as YAML that [`Layers`](crate::config::Layers) reads. A training
    /// resumes only with the same text.
    ///
    /// # Errors
    /// When the configuration cannot be serialized.
    pub fn to_yaml(&self) -> Result<String> {
        let serde_json::Value::Object(mut keys) = serde_json::to_value(self)? else { bail!("it is not a table") };
        keys.retain(|_, value| !value.is_null());
        serde_saphyr::to_string(&keys).context("the configuration cannot be serialized")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn set(given: &[&str]) -> Result<TrainConfig> {
        let given: Vec<String> = given.iter().map(|given| (*given).to_owned()).collect();
        Layers::new(&TrainConfig::default()).set(&given).resolve()
    }

    #[test]
    fn a_configuration_survives_writing_and_reading() {
        let config =
            set(&["bases=respsann,sgrpsann", "steps=7", "dtype=bf16", "checkpointing=true", "weights=a.safetensors"]);
        let config = config.expect("a configuration");
        assert_eq!((config.bases.len(), config.steps, config.dtype), (2, Some(7), DType::BF16));
        let text = config.to_yaml().expect("YAML");
        assert_eq!(Layers::new(&TrainConfig::default()).yaml("a", &text).resolve().expect("read"), config);
        assert!(!TrainConfig::default().to_yaml().expect("YAML").contains("steps: null"));
        TrainConfig::default().check().expect("the default");
        TrainConfig::shootout().check().expect("the default");
    }

    #[test]
    fn psannlms_activation_is_a_table() {
        let yaml = "sine:\n  amp_bounds: [0.5, null]\n  learnable: [amplitude]\n  freq_init: 2\ngate_strength: 0\n";
        let read = |yaml: &str| Layers::new(&TrainConfig::default()).yaml("a", yaml).resolve();
        let config = read(yaml).expect("a configuration");
        let model = config.model(Base::Sgrpsann, 64);
        assert_eq!((model.gate_strength, model.sine.amp_bounds), (0.0, Some((Some(0.5), None))));
        assert_eq!((model.sine.freq_init, model.sine.damp_init), (2.0, 0.01));
        config.check().expect("psannlm accepts it");
        assert_eq!(read(&config.to_yaml().expect("YAML")).expect("read"), config);
        assert_eq!(set(&["sine={freq_init: 2}"]).expect("a configuration").sine.freq_init, 2.0);
    }

    #[test]
    fn later_layers_override_earlier_ones() {
        let config = Layers::new(&TrainConfig::shootout())
            .yaml("a.yaml", "steps: 5\nepochs: 2\nd_model: 64\nbase: transformer")
            .set(&["steps=6".into(), "epochs=4".into()])
            .flags(&[("steps", "7".into())])
            .resolve()
            .expect("a configuration");
        assert_eq!((config.d_model, config.epochs, config.steps, config.save_every), (64, 4, Some(7), 1000));
        assert_eq!(config.bases, [Base::Transformer]);
    }

    #[test]
    fn bad_values_are_reported_with_the_nearest_name() {
        let error = |given: &str| format!("{:#}", set(&[given]).and_then(|c| c.check()).expect_err(given));
        for (given, part) in [
            ("bases=waveresnt", "--set bases='waveresnt': unknown name 'waveresnt': did you mean waveresnet?"),
            ("learning_rat=1", "unknown setting --set learning_rat: did you mean --set learning_rate?"),
            ("learning_rate=0", "expected a number above 0"),
            ("validation_share=1", "expected a number between 0 and 1"),
            ("sine={amp_inti: 2}", "--set sine: unknown key 'amp_inti': did you mean amp_init?"),
            ("sine={amp_init: -1}", "amp_init=-1: it must be greater than 0"),
            ("sine=2", "--set sine='2': expected a table of keys and values"),
            ("gate_strength=-1", "gate_strength=-1"),
            ("steps", "'steps': write KEY=VALUE"),
            ("n_heads=3", "n_heads=3 do not divide d_model=256"),
            ("sequence_length=18446744073709551615", "sequence_length is 18446744073709551615; at most"),
            ("batch_tokens=9000000000000000000", "batch_tokens is 9000000000000000000; at most"),
            ("epochs=18446744073709551615", "epochs is 18446744073709551615; at most"),
            ("steps=18446744073709551615", "steps is 18446744073709551615; at most"),
            ("n_layers=1000000000000", "n_layers is 1000000000000; at most"),
            ("d_mlp=100000000000", "d_mlp is 100000000000; at most"),
            ("d_model=4611686018427387904", "d_model is 4611686018427387904; at most"),
            ("vocab_size=18446744073709551615", "vocab_size is 18446744073709551615; at most"),
            ("k_fft=18446744073709551615", "k_fft is 18446744073709551615; at most"),
            ("wave_kernel_size=18446744073709551615", "wave_kernel_size is 18446744073709551615; at most"),
            ("batch_tokens=100", "less than one sequence of sequence_length=128"),
            ("epochs=0", "epochs: at least one"),
            ("dtype=f8", "unknown dtype 'f8'"),
            ("dtype=f16", "unknown dtype 'f16'"),
            ("device=tpu", "unknown device 'tpu'"),
            ("checkpointing=maybe", "expected true or false"),
        ] {
            assert!(error(given).contains(part), "{}", error(given));
        }
        let odd = set(&["n_heads=128", "d_model=384"]).and_then(|c| c.check()).expect_err("odd heads");
        assert!(format!("{odd:#}").contains("can't turn in pairs"));
        let all = set(&["epochs=0", "steps=0"]).and_then(|c| c.check()).expect_err("two problems").to_string();
        assert_eq!(all.lines().count(), 2, "{all}");
    }
}
