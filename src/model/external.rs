//! A model that another process loads: its configuration and its tokenizer, without its weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use tokenizers::Tokenizer;

use super::{ModelSpec, checkpoint::Checkpoint, config::ModelConfig, decoder, found, shapes};
use crate::{
    measure::memory::{self, DoesNotFit},
    scenario,
};

/// Main memory of a framework without a model, in its process.
const FRAMEWORK_BYTES: u64 = 500_000_000;

/// A model that another process loads.
pub struct External {
    config: ModelConfig,
    origin: Origin,
    source: String,
    tokenizer: Option<Tokenizer>,
}

/// Where the other process finds the model.
enum Origin {
    /// The text of `config.json`, for weights drawn from a seed.
    Shape(&'static str),
    /// A folder in the layout of the Hub.
    Folder(PathBuf),
}

impl External {
    /// Reads the configuration and the tokenizer. Fetches a model of the Hub.
    ///
    /// # Errors
    /// If the files are wrong.
    pub fn of(spec: &ModelSpec) -> Result<Self> {
        if let ModelSpec::Mini(name) | ModelSpec::Synthetic(name) = spec {
            let text = shapes::text(name)?;
            let config = super::shape(name)?;
            return Ok(Self { config, origin: Origin::Shape(text), source: spec.to_string(), tokenizer: None });
        }
        let checkpoint = found(spec)?;
        let config = ModelConfig::from_json(&checkpoint.config).with_context(|| checkpoint.source.clone())?;
        let tokenizer = checkpoint.tokenizer(config.vocab_size)?;
        let Checkpoint { weights, source, .. } = checkpoint;
        let folder = weights.first().and_then(|file| file.parent()).unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
        Ok(Self { config, origin: Origin::Folder(folder), source, tokenizer })
    }

    /// The full specification, with the commit that a Hub revision resolved to.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The tokenizer; `None` for models without one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The text of its `config.json`, if its weights are drawn from a seed.
    pub fn shape(&self) -> Option<&'static str> {
        match self.origin {
            Origin::Shape(text) => Some(text),
            Origin::Folder(_) => None,
        }
    }

    /// The folder of a model with trained weights, as text.
    ///
    /// # Errors
    /// If it has none, or its name is not UTF-8.
    pub fn folder(&self) -> Result<String> {
        let Origin::Folder(folder) = &self.origin else { anyhow::bail!("{} has no folder", self.source) };
        let text = folder.to_str().map(str::to_owned);
        text.with_context(|| format!("{} is not UTF-8, and a peer needs its name", folder.display()))
    }

    /// Bytes of the cache that a step after `tokens` reads.
    pub(crate) fn used_cache_bytes(&self, dtype: DType, tokens: usize) -> u64 {
        decoder::cache_bytes(&self.config, dtype, tokens, &Device::Cpu).used
    }

    /// Memory that the other process needs on a device: the weights, the cache of the longest scenario, and its framework.
    pub fn needed_bytes(&self, dtype: DType, device: &Device) -> u64 {
        let framework = if device.is_cpu() { FRAMEWORK_BYTES } else { 0 };
        let cache = self.used_cache_bytes(dtype, scenario::longest_generation());
        self.config.footprint(dtype).weight_bytes + cache + framework
    }

    /// Checks that the model fits in memory.
    ///
    /// # Errors
    /// If it does not.
    pub fn ensure_fits(&self, dtype: DType, device: &Device) -> Result<(), DoesNotFit> {
        let weight_bytes = self.config.footprint(dtype).weight_bytes;
        let work = format!("weights of {:.1} GB, the cache and a peer", weight_bytes as f64 / 1e9);
        memory::ensure_fits(&work, self.needed_bytes(dtype, device), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_has_a_text_and_a_checkpoint_a_folder() {
        let shape = External::of(&ModelSpec::Mini("llama-mini")).expect("a shape");
        assert!(shape.shape().is_some_and(|text| text.contains("\"vocab_size\": 16384")) && shape.folder().is_err());
        assert!(shape.tokenizer().is_none());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/generation/llama-gqa-tied");
        let checkpoint = External::of(&ModelSpec::Path(folder.clone())).expect("a checkpoint");
        assert_eq!(Path::new(&checkpoint.folder().expect("a folder")), folder);
        assert!(checkpoint.shape().is_none() && checkpoint.tokenizer().is_some());
        assert!(checkpoint.needed_bytes(DType::F32, &Device::Cpu) > FRAMEWORK_BYTES);
        assert!(External::of(&ModelSpec::Path("none".into())).is_err());
    }
}
