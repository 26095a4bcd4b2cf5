//! A model that another process loads: its configuration and its tokenizer, without its weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use candle_core::{DType, Device, quantized::GgmlDType};
use tokenizers::Tokenizer;

use super::{
    Footprint, ModelSpec,
    checkpoint::Checkpoint,
    config::ModelConfig,
    decoder, found,
    gguf::{self, Gguf},
    gguf_file, shapes, text_of_gguf,
};
use crate::{
    device::Precision,
    measure::memory::{self, DoesNotFit},
    scenario,
};

/// Main memory of a framework without a model, in its process.
pub const FRAMEWORK_BYTES: u64 = 500_000_000;

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
    Shape(String),
    /// A folder in the layout of the Hub.
    Folder(PathBuf),
    /// A GGUF file, its tensors, and the dtype of activations.
    Gguf(PathBuf, Arc<Gguf>, DType),
}

impl External {
    /// Reads the configuration and the tokenizer. Fetches a model of the Hub.
    ///
    /// # Errors
    /// If the files are wrong.
    pub fn of(spec: &ModelSpec) -> Result<Self> {
        if let Some(json) = shapes::seeded(spec) {
            let json = json?;
            let (config, source) = (ModelConfig::from_json(&json)?, spec.to_string());
            return Ok(Self { config, origin: Origin::Shape(json.to_string()), source, tokenizer: None });
        }
        if spec.is_gguf() {
            let (file, source) = gguf_file(spec)?;
            let opened = gguf::open(&file).with_context(|| source.clone())?;
            let (tokenizer, _) = text_of_gguf(&file, &opened, |_| ()).with_context(|| source.clone())?;
            let gguf::Model { config, weights, tensors, .. } = opened;
            let file = std::path::absolute(file).with_context(|| source.clone())?;
            return Ok(Self { config, origin: Origin::Gguf(file, tensors, weights.dtype()), source, tokenizer });
        }
        let checkpoint = found(spec)?;
        let config = checkpoint.model_config()?;
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

    /// The configuration of the checkpoint.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The text of its `config.json`, if its weights are drawn from a seed.
    pub fn shape(&self) -> Option<&str> {
        match &self.origin {
            Origin::Shape(text) => Some(text),
            Origin::Folder(_) | Origin::Gguf(..) => None,
        }
    }

    /// The folder or the GGUF file of a model with trained weights, as text.
    ///
    /// # Errors
    /// If it has none, or its name is not UTF-8.
    pub fn path(&self) -> Result<String> {
        let (Origin::Folder(path) | Origin::Gguf(path, ..)) = &self.origin else {
            anyhow::bail!("{} has no files", self.source)
        };
        let text = path.to_str().map(str::to_owned);
        text.with_context(|| format!("{} is not UTF-8, and a peer needs its name", path.display()))
    }

    /// Returns whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.origin, Origin::Gguf(..))
    }

    /// Bytes of the tensors in a GGUF file, by the name of their format. Empty for other models.
    pub fn formats(&self) -> BTreeMap<String, u64> {
        match &self.origin {
            Origin::Gguf(_, file, _) => file.formats(),
            Origin::Shape(_) | Origin::Folder(_) => BTreeMap::new(),
        }
    }

    /// The dtype of activations and of the cache: that of a precision, or of a GGUF file.
    pub fn dtype(&self, precision: Precision) -> DType {
        match self.origin {
            Origin::Gguf(.., dtype) => dtype,
            Origin::Shape(_) | Origin::Folder(_) => precision.dtype(),
        }
    }

    /// The footprint in a precision, or in the formats of a GGUF file. Quantised weights are those of engine `tuned`: the head,
    /// and an embedding that is also the head, have `q8_0`.
    pub fn footprint(&self, precision: Precision) -> Footprint {
        let (dtype, config) = (self.dtype(precision), &self.config);
        match (&self.origin, precision.blocks()) {
            (Origin::Gguf(_, file, _), _) => config.footprint_of(dtype, |name, _| file.tensor_bytes(name)),
            (_, None) => config.footprint(dtype),
            (_, Some(blocks)) => config.footprint_of(dtype, |name, shape| {
                let (rows, width) = (shape[..shape.len() - 1].iter().product::<usize>(), shape[shape.len() - 1]);
                let is_head = name == "lm_head.weight" || name == "model.embed_tokens.weight";
                let is_matrix = shape.len() > 1 && !name.ends_with("gate.weight");
                let format = if is_head { GgmlDType::Q8_0 } else { blocks };
                let row_bytes = match is_matrix {
                    true => width.div_ceil(format.block_size()) * format.type_size(),
                    false => width * DType::F32.size_in_bytes(),
                };
                (rows * row_bytes) as u64
            }),
        }
    }

    /// Bytes of the cache that a step after `tokens` reads.
    pub fn used_cache_bytes(&self, dtype: DType, tokens: usize) -> u64 {
        decoder::cache_bytes(&self.config, dtype, tokens, &Device::Cpu).used
    }

    /// Memory that the other process needs on a device: the weights, the cache of the longest scenario, and its framework.
    pub fn needed_bytes(&self, precision: Precision, device: &Device) -> u64 {
        let framework = if device.is_cpu() { FRAMEWORK_BYTES } else { 0 };
        let cache = self.used_cache_bytes(self.dtype(precision), scenario::longest_generation());
        self.footprint(precision).weight_bytes + cache + framework
    }

    /// Checks that the model fits in memory.
    ///
    /// # Errors
    /// If it does not.
    pub fn ensure_fits(&self, precision: Precision, device: &Device) -> Result<(), DoesNotFit> {
        let weight_bytes = self.footprint(precision).weight_bytes;
        let work = format!("weights of {:.1} GB, the cache and a peer", weight_bytes as f64 / 1e9);
        memory::ensure_fits(&work, self.needed_bytes(precision, device), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceChoice, model::Engine};

    #[test]
    fn a_shape_has_a_text_and_a_checkpoint_a_folder() {
        let shape = External::of(&ModelSpec::Mini("llama-mini")).expect("a shape");
        assert!(shape.shape().is_some_and(|text| text.contains("\"vocab_size\":16384")) && shape.path().is_err());
        assert!(shape.tokenizer().is_none());
        let folder =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("fixtures/generation/llama-gqa-tied");
        let checkpoint = External::of(&ModelSpec::Path(folder.clone())).expect("a checkpoint");
        assert_eq!(Path::new(&checkpoint.path().expect("a folder")), folder);
        assert!(checkpoint.shape().is_none() && checkpoint.tokenizer().is_some());
        assert!(checkpoint.needed_bytes(Precision::F32, &Device::Cpu) > FRAMEWORK_BYTES);
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("fixtures/gguf/llama-mqa-llama3.gguf");
        let gguf = External::of(&ModelSpec::Path(file.clone())).expect("a file");
        assert!(gguf.is_gguf() && Path::new(&gguf.path().expect("a file")) == file && gguf.shape().is_none());
        // The file holds f32, which is not the precision of the settings.
        assert_eq!(gguf.footprint(Precision::Q4K), gguf.config.footprint(DType::F32));
        assert!(External::of(&ModelSpec::Path("none".into())).is_err());
    }

    /// Engine `tuned` and a peer read the same bytes for a token, but for the tiles of q4k, which hold the scales of 256 weights in
    /// 4 bytes more than GGML's 144.
    #[test]
    fn quantised_weights_have_the_footprint_of_the_engine() {
        for precision in [Precision::BF16, Precision::Q8_0, Precision::Q4K] {
            let spec = ModelSpec::Mini("llama-mini");
            let subject = crate::model::load(&spec, Engine::Tuned, precision, DeviceChoice::Cpu, 1).expect("a model");
            let shape = External::of(&spec).expect("a shape");
            let (engine, peer) = (subject.model.footprint(), shape.footprint(precision));
            let (engine, peer) = (engine.step_weight_bytes, peer.step_weight_bytes);
            let most = if precision == Precision::Q4K { peer * 148 / 144 } else { peer };
            assert!(peer <= engine && engine <= most, "{precision}: {engine}, {peer}");
        }
    }
}
