//! A checkpoint folder in the layout of the Hub: `config.json`, `model.safetensors` or an index with its shards, and optionally
//! `tokenizer.json`. Wrong files are reported here, before a model is built from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::config::{ExpertLayout, STACKED_GATE_UP};
use crate::{
    error::{listed, one_line},
    files::{read_limited, read_text_limited},
    kernels::system,
};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Largest `config.json` or index. Indices of models with thousands of experts have a few MB.
pub(crate) const JSON_MAX_BYTES: u64 = 64 << 20;

/// Largest `tokenizer.json`. Those of vocabularies of 262,144 tokens have 33 MB.
pub(crate) const TOKENIZER_MAX_BYTES: u64 = 512 << 20;

/// The files of a checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The parsed `config.json`.
    pub config: Value,
    /// One or more safetensors files.
    pub weights: Vec<PathBuf>,
    /// Path of `tokenizer.json`, if the folder has it.
    pub tokenizer: Option<PathBuf>,
    /// Origin of the files, for records.
    pub source: String,
}

impl Checkpoint {
    /// Finds the files of a checkpoint in a folder.
    ///
    /// # Errors
    /// If the folder, the configuration or a weight file is missing or cannot be read.
    pub(crate) fn open(folder: &Path, source: String) -> Result<Self> {
        ensure!(folder.is_dir(), "{} is not a folder", folder.display());
        let config = read_json(&folder.join(CONFIG))?;
        let single = folder.join(WEIGHTS);
        let weights = if single.is_file() {
            vec![single]
        } else if folder.join(INDEX).is_file() {
            let shards = shards(&read_json(&folder.join(INDEX))?)?;
            shards.into_iter().map(|shard| folder.join(shard)).collect()
        } else {
            bail!("{}: {WEIGHTS} and {INDEX} are both missing; weights must be safetensors", folder.display())
        };
        if let Some(missing) = weights.iter().find(|file| !file.is_file()) {
            bail!("{} is missing, though {INDEX} names it", missing.display());
        }
        let tokenizer = Some(folder.join(TOKENIZER)).filter(|file| file.exists());
        Ok(Self { config, weights, tokenizer, source })
    }

    /// Checks names and shapes of the tensors that a model needs, from the headers of the files.
    ///
    /// # Errors
    /// If tensors are missing, have the wrong shape, or have no place in the model.
    pub(crate) fn check(&self, needed: &[(String, Vec<usize>)]) -> Result<()> {
        let found = self.shapes()?;
        let missing: Vec<_> =
            needed.iter().filter(|(name, _)| !found.contains_key(name)).map(|(name, _)| name.clone()).collect();
        ensure!(missing.is_empty(), "{}: missing {}", self.source, listed(&missing));
        let misshapen: Vec<_> = needed
            .iter()
            .filter(|(name, shape)| found[name] != *shape)
            .map(|(name, shape)| format!("{name} is {:?} where config.json makes it {shape:?}", found[name]))
            .collect();
        ensure!(misshapen.is_empty(), "{}: {}", self.source, listed(&misshapen));
        let needed: BTreeSet<_> = needed.iter().map(|(name, _)| name).collect();
        // Files may also hold a tied head, and old files hold buffers of RoPE frequencies; both are computed.
        let left_out: Vec<_> = found
            .into_keys()
            .filter(|name| !needed.contains(name) && name != "lm_head.weight" && !name.ends_with("rotary_emb.inv_freq"))
            .collect();
        ensure!(left_out.is_empty(), "{}: config.json has no place for {}", self.source, listed(&left_out));
        Ok(())
    }

    /// How the weights of experts are stored. `ExpertLayout::Single` if there are no experts.
    ///
    /// # Errors
    /// If the header of a file cannot be read.
    pub(crate) fn expert_layout(&self) -> Result<ExpertLayout> {
        let is_stacked = self.shapes()?.keys().any(|name| name.ends_with(STACKED_GATE_UP));
        Ok(if is_stacked { ExpertLayout::Stacked } else { ExpertLayout::Single })
    }

    fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut shapes = BTreeMap::new();
        for file in &self.weights {
            for (name, tensor) in map(&[file])?.tensors() {
                let dtype = tensor.dtype();
                let is_float = matches!(
                    dtype,
                    safetensors::Dtype::F64
                        | safetensors::Dtype::F32
                        | safetensors::Dtype::F16
                        | safetensors::Dtype::BF16
                );
                ensure!(is_float, "{}: {name} is {dtype:?}; weights must be f32, f16 or bf16", file.display());
                if shapes.insert(name.clone(), tensor.shape().to_vec()).is_some() {
                    bail!("{}: {name} is in another file too", file.display());
                }
            }
        }
        Ok(shapes)
    }

    /// The memory-mapped weights. Each tensor is converted to `dtype` when the model requests it.
    ///
    /// # Errors
    /// If a file cannot be mapped.
    pub(crate) fn weights(&self, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
        Ok(VarBuilder::from_backend(Box::new(map(&self.weights)?), dtype, device.clone()))
    }

    /// The tokenizer, if the folder has one.
    ///
    /// # Errors
    /// If it cannot be read, or its vocabulary is larger than the model's. Added tokens may have larger ids: the tokenizer of
    /// gemma-3-1b has one for images, for which the text model has no embedding and which text never produces.
    pub(crate) fn tokenizer(&self, vocab_size: usize) -> Result<Option<Tokenizer>> {
        self.tokenizer.as_deref().map(|file| tokenizer(file, vocab_size)).transpose()
    }
}

/// Reads a `tokenizer.json` for a model with a vocabulary of this size. See [`Checkpoint::tokenizer`].
pub(super) fn tokenizer(file: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let content = read_text_limited(file, TOKENIZER_MAX_BYTES)
        .with_context(|| format!("{} could not be read", file.display()))?;
    // `from_str` is compiled in its own crate. The generic `from_bytes` made a tenth of this crate's code.
    let mut tokenizer = Tokenizer::from_str(&content)
        .map_err(|error| anyhow::anyhow!("{}: not a tokenizer: {}", file.display(), one_line(&error)))?;
    // Some files keep the truncation and padding of training, which do not apply to prompts.
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| anyhow::anyhow!("{}: not a tokenizer: {}", file.display(), one_line(&error)))?;
    let largest = tokenizer.get_vocab(false).into_values().max().unwrap_or(0) as usize;
    ensure!(
        largest < vocab_size,
        "{}: it produces token ids up to {largest}, the model has {vocab_size}: they do not belong together",
        file.display()
    );
    Ok(tokenizer)
}

/// The distinct files that an index names.
pub(crate) fn shards(index: &Value) -> Result<Vec<String>> {
    let map = index["weight_map"].as_object().with_context(|| format!("{INDEX} has no weight_map"))?;
    let mut files = BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().unwrap_or_default();
        // An index is untrusted: it must not name files outside its folder.
        let is_plain = name.ends_with(".safetensors") && Path::new(name).file_name().is_some_and(|own| own == name);
        ensure!(is_plain, "{INDEX} names {file}, which is no safetensors file beside it");
        files.insert(name.to_owned());
    }
    ensure!(!files.is_empty(), "{INDEX} names no file");
    Ok(files.into_iter().collect())
}

pub(crate) fn read_json(file: &Path) -> Result<Value> {
    let text = read_limited(file, JSON_MAX_BYTES).with_context(|| format!("{} could not be read", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))
}

/// Maps files and reads their headers, which detects truncated and corrupt files.
pub(crate) fn map(files: &[impl AsRef<Path>]) -> Result<MmapedSafetensors> {
    for file in files {
        let file = file.as_ref();
        fs::File::open(file).with_context(|| format!("{} could not be read", file.display()))?;
    }
    system::map(files).map_err(|error| {
        let names: Vec<_> = files.iter().map(|file| file.as_ref().display().to_string()).collect();
        anyhow::anyhow!("{} is truncated or corrupt: {}; fetch it again", listed(&names), one_line(&error))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Tensor;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn tensor(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
    }

    fn save(file: &Path, tensors: &[(&str, &[usize])]) {
        let tensors: HashMap<_, _> = tensors.iter().map(|(name, shape)| (name.to_string(), tensor(shape))).collect();
        candle_core::safetensors::save(&tensors, file).expect("saved");
    }

    fn folder() -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(CONFIG), "{}").expect("written");
        save(&folder.path().join(WEIGHTS), &[("a", &[2, 3]), ("b", &[4])]);
        folder
    }

    fn open(folder: &Path) -> Result<Checkpoint> {
        Checkpoint::open(folder, "path:test".into())
    }

    fn needed(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn names_and_shapes_are_checked_before_a_model_sees_them() {
        let folder = folder();
        let checkpoint = open(folder.path()).expect("opens");
        checkpoint.check(&needed(&[("a", &[2, 3]), ("b", &[4])])).expect("all there");
        for (tensors, part) in [
            (needed(&[("a", &[2, 3]), ("b", &[4]), ("c", &[1])]), "missing c"),
            (needed(&[("a", &[3, 2]), ("b", &[4])]), "a is [2, 3] where config.json makes it [3, 2]"),
            (needed(&[("a", &[2, 3])]), "no place for b"),
        ] {
            let error = checkpoint.check(&tensors).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn truncated_and_corrupt_files_are_told_apart_from_good_ones() {
        let folder = folder();
        let file = folder.path().join(WEIGHTS);
        let good = fs::read(&file).expect("read");
        for bad in [&good[..good.len() - 1], &good[..20], &good[..4], b"", &[0xff; 64]] {
            fs::write(&file, bad).expect("written");
            let error = open(folder.path()).expect("opens").check(&[]).expect_err("bad file").to_string();
            assert!(error.contains("truncated or corrupt"), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let folder = folder();
        fs::remove_file(folder.path().join(WEIGHTS)).expect("removed");
        save(&folder.path().join("one.safetensors"), &[("a", &[2, 3])]);
        save(&folder.path().join("two.safetensors"), &[("b", &[4])]);
        let index = |map: Value| {
            fs::write(folder.path().join(INDEX), json!({"weight_map": map}).to_string()).expect("written");
            open(folder.path())
        };
        let both = index(json!({"a": "one.safetensors", "b": "two.safetensors"})).expect("opens");
        both.check(&needed(&[("a", &[2, 3]), ("b", &[4])])).expect("all there");
        let weights = both.weights(DType::BF16, &Device::Cpu).expect("mapped");
        assert_eq!(weights.get((2, 3), "a").expect("a").dtype(), DType::BF16);

        for (map, part) in [
            (json!({"a": "three.safetensors"}), "is missing, though"),
            (json!({"a": "../one.safetensors"}), "no safetensors file beside it"),
            (json!({}), "names no file"),
            (Value::Null, "no weight_map"),
        ] {
            let error = index(map).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        save(&folder.path().join("two.safetensors"), &[("a", &[2, 3])]);
        let twice = index(json!({"a": "one.safetensors", "b": "two.safetensors"})).expect("opens");
        assert!(twice.check(&[]).expect_err("twice").to_string().contains("in another file too"));
    }

    #[test]
    fn a_tokenizer_belongs_to_a_model_that_has_its_vocabulary() {
        let folder = folder();
        let added = json!({"id": 3, "content": "<image>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"});
        let tokenizer = json!({"version": "1.0", "added_tokens": [added], "model": model});
        fs::write(folder.path().join(TOKENIZER), tokenizer.to_string()).expect("written");
        let checkpoint = open(folder.path()).expect("opens");
        // gemma-3-1b's has one token beyond the model's vocabulary too.
        assert!(checkpoint.tokenizer(3).expect("belongs").is_some());
        let error = checkpoint.tokenizer(2).expect_err("too many").to_string();
        assert!(error.contains("up to 2, the model has 2"), "{error}");
        fs::write(folder.path().join(TOKENIZER), "{}").expect("written");
        assert!(checkpoint.tokenizer(3).expect_err("none").to_string().contains("not a tokenizer"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let folder = folder();
        assert!(open(Path::new("no/such/folder")).expect_err("no folder").to_string().contains("is not a folder"));
        fs::write(folder.path().join(CONFIG), "{\n oops").expect("written");
        let error = format!("{:#}", open(folder.path()).expect_err("no JSON"));
        assert!(error.contains("config.json is not JSON") && error.contains("line 2"), "{error}");
        fs::remove_file(folder.path().join(CONFIG)).expect("removed");
        assert!(format!("{:#}", open(folder.path()).expect_err("no config")).contains("config.json could not be read"));
    }
}
