//! What is trained, on what and how long.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use serde_json::{Value, json};

use crate::{
    device::DeviceChoice,
    error::nearest,
    keys::{list, text, whole, words, yaml},
    model::psann::{self, Base},
    train::step::optimizer::Options,
};

/// A training, or several that differ in base and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Each is trained with each seed.
    pub bases: Vec<Base>,
    pub seeds: Vec<u64>,
    /// Sizes of the model; base and vocabulary come from elsewhere.
    pub model: psann::PsannConfig,
    /// The tokenizer's, at most.
    pub vocab_size: usize,
    pub corpus: PathBuf,
    pub validation_share: f64,
    pub sequence_length: usize,
    pub batch_tokens: usize,
    /// Tokens that are computed at a time; a batch of more is computed in parts.
    pub micro_batch_tokens: usize,
    pub epochs: usize,
    /// Steps, whatever the epochs.
    pub steps: Option<usize>,
    pub optimizer: Options,
    pub dtype: DType,
    pub checkpointing: bool,
    pub device: DeviceChoice,
    /// Steps between one validation and the next.
    pub validate_every: usize,
    /// Steps between one time that the state is kept and the next.
    pub save_every: usize,
    /// Weights to begin with, by psannlm's names.
    pub weights: Option<PathBuf>,
}

impl Default for TrainConfig {
    /// psannlm's corpus benchmark, in a size that two cores train in minutes.
    fn default() -> Self {
        Self {
            bases: vec![Base::Waveresnet],
            seeds: vec![1337],
            model: psann::PsannConfig {
                d_model: 256,
                n_layers: 4,
                n_heads: 4,
                d_mlp: 1024,
                ..psann::PsannConfig::default()
            },
            vocab_size: 1024,
            corpus: PathBuf::from("fixtures/corpus/moby-dick.txt"),
            validation_share: 0.02,
            sequence_length: 128,
            batch_tokens: 1024,
            micro_batch_tokens: 65_536,
            epochs: 3,
            steps: None,
            optimizer: Options { learning_rate: 1e-3, warmup_steps: 100, ..Options::default() },
            dtype: DType::F32,
            checkpointing: false,
            device: DeviceChoice::Cpu,
            validate_every: 100,
            save_every: 50,
            weights: None,
        }
    }
}

/// Where keys and values come from, named when one is wrong.
pub enum Source<'a> {
    File(&'a Path),
    /// `key=value`, several values with commas between them.
    CommandLine(&'a [String]),
}

impl TrainConfig {
    const KEYS: [&'static str; 31] = [
        "base",
        "bases",
        "seed",
        "seeds",
        "d_model",
        "n_layers",
        "n_heads",
        "d_mlp",
        "positional_encoding",
        "k_fft",
        "wave_interleave",
        "wave_kernel_size",
        "wave_dilation_growth",
        "vocab_size",
        "corpus",
        "validation_share",
        "sequence_length",
        "batch_tokens",
        "micro_batch_tokens",
        "epochs",
        "steps",
        "learning_rate",
        "warmup_steps",
        "weight_decay",
        "clip_norm",
        "dtype",
        "checkpointing",
        "device",
        "validate_every",
        "save_every",
        "weights",
    ];

    /// What a shoot-out trains where nothing else is said: every base, for the steps of psannlm's own.
    pub fn shootout() -> Self {
        Self { bases: Base::ALL.to_vec(), batch_tokens: 1024, steps: Some(300), save_every: 1000, ..Self::default() }
    }

    /// Takes over what a source says; what it leaves out stays.
    ///
    /// # Errors
    /// One line that names the source, the key, and what was probably meant.
    pub fn apply(mut self, source: Source) -> Result<Self> {
        let (name, values) = match source {
            Source::File(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).with_context(|| format!("{name} can't be read"))?;
                let values = yaml(&text).with_context(|| name.clone())?;
                (name, values)
            }
            Source::CommandLine(given) => {
                let pair = |given: &String| {
                    let (key, value) = given.split_once('=').with_context(|| format!("'{given}' is not KEY=VALUE"))?;
                    Ok((key.trim().to_owned(), words(value)))
                };
                ("command line".into(), given.iter().map(pair).collect::<Result<_>>()?)
            }
        };
        for (key, value) in values {
            self.set(&key, &value).with_context(|| format!("{name}: {key}"))?;
        }
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        match key {
            "base" | "bases" => self.bases = list(value, |item| text(item)?.parse())?,
            "seed" | "seeds" => {
                self.seeds = list(value, |item| item.as_u64().with_context(|| format!("{item} is no whole number")))?;
            }
            "d_model" => self.model.d_model = whole(value)?,
            "n_layers" => self.model.n_layers = whole(value)?,
            "n_heads" => self.model.n_heads = whole(value)?,
            "d_mlp" => self.model.d_mlp = whole(value)?,
            "positional_encoding" => self.model.positional_encoding = text(value)?.parse()?,
            "k_fft" => self.model.k_fft = whole(value)?,
            "wave_interleave" => self.model.wave_interleave = flag(value)?,
            "wave_kernel_size" => self.model.wave_kernel_size = whole(value)?,
            "wave_dilation_growth" => self.model.wave_dilation_growth = whole(value)?,
            "vocab_size" => self.vocab_size = whole(value)?,
            "corpus" => self.corpus = text(value)?.into(),
            "validation_share" => self.validation_share = share(value)?,
            "sequence_length" => self.sequence_length = whole(value)?,
            "batch_tokens" => self.batch_tokens = whole(value)?,
            "micro_batch_tokens" => self.micro_batch_tokens = whole(value)?,
            "epochs" => self.epochs = whole(value)?,
            "steps" => self.steps = Some(whole(value)?),
            "learning_rate" => self.optimizer.learning_rate = above_0(value)?,
            "warmup_steps" => self.optimizer.warmup_steps = whole(value)?,
            "weight_decay" => self.optimizer.weight_decay = at_least_0(value)?,
            "clip_norm" => self.optimizer.clip_norm = above_0(value)?,
            "dtype" => {
                self.dtype = match text(value)? {
                    "f32" => DType::F32,
                    "bf16" => DType::BF16,
                    other => bail!("'{other}' can't be trained in: f32 or bf16"),
                }
            }
            "checkpointing" => self.checkpointing = flag(value)?,
            "device" => self.device = text(value)?.parse()?,
            "validate_every" => self.validate_every = whole(value)?,
            "save_every" => self.save_every = whole(value)?,
            "weights" => self.weights = Some(text(value)?.into()),
            _ => match nearest(key, &Self::KEYS) {
                Some(near) => bail!("there is no such key: did you mean {near}?"),
                None => bail!("there is no such key: the keys are {}", Self::KEYS.join(", ")),
            },
        }
        Ok(())
    }

    /// # Errors
    /// One line that names what does not go together.
    pub fn check(&self) -> Result<()> {
        for (key, count) in [
            ("bases", self.bases.len()),
            ("seeds", self.seeds.len()),
            ("sequence_length", self.sequence_length),
            ("epochs", self.epochs),
            ("steps", self.steps.unwrap_or(1)),
            ("validate_every", self.validate_every),
            ("save_every", self.save_every),
        ] {
            ensure!(count > 0, "{key}: at least one is needed");
        }
        for (key, tokens) in [("batch_tokens", self.batch_tokens), ("micro_batch_tokens", self.micro_batch_tokens)] {
            let length = self.sequence_length;
            ensure!(tokens >= length, "{key}={tokens} is less than one sequence of sequence_length={length}");
        }
        for base in &self.bases {
            self.model(*base, self.vocab_size).check()?;
        }
        Ok(())
    }

    /// The model of a base on a vocabulary.
    pub fn model(&self, base: Base, vocab_size: usize) -> psann::PsannConfig {
        psann::PsannConfig { base, vocab_size, ..self.model.clone() }
    }

    /// The same with one base and one seed.
    pub fn only(&self, base: Base, seed: u64) -> Self {
        Self { bases: vec![base], seeds: vec![seed], ..self.clone() }
    }

    /// Sequences of a batch.
    pub fn rows(&self) -> usize {
        self.batch_tokens / self.sequence_length
    }

    /// Every key with its value, as a file that [`Self::apply`] reads.
    ///
    /// # Errors
    /// When it can't be put together.
    pub fn to_yaml(&self) -> Result<String> {
        let psann::PsannConfig { d_model, n_layers, n_heads, d_mlp, k_fft, .. } = self.model;
        let mut all = json!({
            "bases": self.bases,
            "seeds": self.seeds,
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "d_mlp": d_mlp,
            "positional_encoding": self.model.positional_encoding,
            "k_fft": k_fft,
            "wave_interleave": self.model.wave_interleave,
            "wave_kernel_size": self.model.wave_kernel_size,
            "wave_dilation_growth": self.model.wave_dilation_growth,
            "vocab_size": self.vocab_size,
            "corpus": self.corpus,
            "validation_share": self.validation_share,
            "sequence_length": self.sequence_length,
            "batch_tokens": self.batch_tokens,
            "micro_batch_tokens": self.micro_batch_tokens,
            "epochs": self.epochs,
            "learning_rate": self.optimizer.learning_rate,
            "warmup_steps": self.optimizer.warmup_steps,
            "weight_decay": self.optimizer.weight_decay,
            "clip_norm": self.optimizer.clip_norm,
            "dtype": self.dtype.as_str(),
            "checkpointing": self.checkpointing,
            "device": self.device.to_string(),
            "validate_every": self.validate_every,
            "save_every": self.save_every,
        });
        if let Some(keys) = all.as_object_mut() {
            keys.extend(self.steps.map(|steps| ("steps".to_owned(), steps.into())));
            keys.extend(self.weights.as_ref().map(|path| ("weights".to_owned(), json!(path))));
        }
        serde_saphyr::to_string(&all).context("the configuration could not be written")
    }
}

fn flag(value: &Value) -> Result<bool> {
    let word = value.as_bool().or_else(|| value.as_str()?.parse().ok());
    word.with_context(|| format!("{value} is neither true nor false"))
}

fn number(value: &Value, range: impl Fn(f64) -> bool, what: &str) -> Result<f64> {
    let number = value.as_f64().filter(|number| number.is_finite() && range(*number));
    number.with_context(|| format!("{value} is no number {what}"))
}

fn above_0(value: &Value) -> Result<f64> {
    number(value, |number| number > 0.0, "above 0")
}

fn at_least_0(value: &Value) -> Result<f64> {
    number(value, |number| number >= 0.0, "of at least 0")
}

fn share(value: &Value) -> Result<f64> {
    number(value, |number| number > 0.0 && number < 1.0, "between 0 and 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(given: &[&str]) -> Result<TrainConfig> {
        let given: Vec<String> = given.iter().map(|given| (*given).to_owned()).collect();
        TrainConfig::default().apply(Source::CommandLine(&given))
    }

    #[test]
    fn what_is_written_is_read_and_every_key_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        let config =
            set(&["bases=respsann,sgrpsann", "steps=7", "dtype=bf16", "checkpointing=true", "weights=a.safetensors"]);
        let config = config.expect("a configuration");
        std::fs::write(&file, config.to_yaml().expect("YAML")).expect("written");
        assert_eq!(TrainConfig::default().apply(Source::File(&file)).expect("read"), config);
        for key in TrainConfig::KEYS {
            let error = TrainConfig::default().set(key, &Value::Null).expect_err(key).to_string();
            assert!(!error.contains("no such key"), "{error}");
        }
        TrainConfig::default().check().expect("the default");
        TrainConfig::shootout().check().expect("the default");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_meant() {
        let error = |given: &str| format!("{:#}", set(&[given]).and_then(|c| c.check()).expect_err(given));
        assert!(
            error("bases=waveresnt")
                .contains("command line: bases: unknown base 'waveresnt': did you mean waveresnet?")
        );
        assert!(error("learning_rat=1").contains("did you mean learning_rate?"));
        assert!(error("learning_rate=0").contains("no number above 0"));
        assert!(error("validation_share=1").contains("no number between 0 and 1"));
        assert!(error("steps").contains("'steps' is not KEY=VALUE"));
        assert!(error("n_heads=3").contains("n_heads=3 do not divide d_model=256"));
        assert!(error("batch_tokens=100").contains("less than one sequence of sequence_length=128"));
        assert!(error("epochs=0").contains("epochs: at least one"));
        assert!(error("dtype=f8").contains("f32 or bf16"));
        assert!(error("device=gpu").contains("gpu"));
        assert!(error("checkpointing=maybe").contains("neither true nor false"));
        assert!(
            format!("{:#}", set(&["n_heads=128", "d_model=384"]).and_then(|c| c.check()).expect_err("odd heads"))
                .contains("can't turn in pairs")
        );
    }
}
