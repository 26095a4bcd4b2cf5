//! A checkpoint folder in the layout of the Hub: `config.json`, `model.safetensors` or an index with its shards, and optionally
//! `generation_config.json`, `tokenizer.json` and `tokenizer_config.json`. Wrong files are reported here, before a model is built
//! from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, safetensors::MmapedSafetensors};
use candle_nn::{VarBuilder, var_builder::SimpleBackend as _};
use safetensors::Dtype;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::{
    config::{ExpertLayout, ModelConfig, STACKED_GATE_UP},
    stored::{EMBEDDING, HEAD, MXFP4, Place, Stored, shapes_in_mxfp4},
};
use crate::{
    error::{listed, one_line},
    files::{read_limited, read_text_limited},
    kernels::system,
    output,
};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
/// Name of the file of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The settings of the tokenizer, which may contain added tokens and the chat template.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Name of the file of the weights, if there is one.
pub const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Largest `config.json` or index. Indices of models with thousands of experts have a few MB.
pub(crate) const JSON_MAX_BYTES: u64 = 64 << 20;

/// Largest `tokenizer.json`. Those of vocabularies of 262,144 tokens have 33 MB.
pub(crate) const TOKENIZER_MAX_BYTES: u64 = 512 << 20;

/// The files of a checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The parsed `config.json`, with the end tokens of `generation_config.json`.
    pub config: Value,
    /// One or more safetensors files.
    pub weights: Vec<PathBuf>,
    /// Path of `tokenizer.json`, if the folder has it.
    pub tokenizer: Option<PathBuf>,
    /// Path of `tokenizer_config.json`, if the folder has it.
    pub tokenizer_config: Option<PathBuf>,
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
        let existing = |name: &str| Some(folder.join(name)).filter(|file| file.exists());
        let config = read_config(&folder.join(CONFIG), existing(GENERATION_CONFIG).as_deref())?;
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
        let (tokenizer, tokenizer_config) = (existing(TOKENIZER), existing(TOKENIZER_CONFIG));
        Ok(Self { config, weights, tokenizer, tokenizer_config, source })
    }

    /// The configuration of the model. As in transformers, a head that is stored and differs from the embedding is not tied.
    ///
    /// # Errors
    /// If the configuration is not supported, or the header of a file cannot be read.
    pub(crate) fn model_config(&self) -> Result<ModelConfig> {
        let mut config = ModelConfig::from_json(&self.config).with_context(|| self.source.clone())?;
        if config.tie_word_embeddings && self.has_own_head()? {
            config.tie_word_embeddings = false;
        }
        Ok(config)
    }

    /// Returns whether the files hold a head that differs from the embedding.
    fn has_own_head(&self) -> Result<bool> {
        let stored = self.stored()?;
        let (Some(embedding), Some(head)) = (stored.exact(EMBEDDING), stored.exact(HEAD)) else { return Ok(false) };
        let (embedding, head) = (embedding.view, head.view);
        if embedding.shape() != head.shape() || embedding.dtype() == head.dtype() {
            return Ok(embedding.shape() != head.shape() || embedding.data() != head.data());
        }
        let numbers = |name| -> Result<Vec<f32>> {
            let tensor = stored.get_unchecked(name, DType::F32, &Device::Cpu)?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        Ok(numbers(EMBEDDING)? != numbers(HEAD)?)
    }

    /// Checks names, shapes and types of the tensors that a model needs, from the headers of the files. Tensors that it does not
    /// need are named in a note.
    ///
    /// # Errors
    /// If tensors are missing, or have the wrong shape or type.
    pub(crate) fn check(&self, needed: &[(String, Vec<usize>)]) -> Result<()> {
        let stored = self.stored()?;
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        let mut left: BTreeSet<&str> = stored.names().collect();
        // A head that no file needs is tied, and old files hold buffers of RoPE frequencies, which are computed.
        left.retain(|name| *name != HEAD && !name.ends_with("rotary_emb.inv_freq"));
        // Rows that the model needs of joined tensors.
        let mut joined: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (name, shape) in needed {
            if let Some(places) = stored.in_mxfp4(name) {
                let expected = shapes_in_mxfp4(shape);
                for (number, Place { name: in_file, view, .. }) in places.into_iter().enumerate() {
                    left.remove(in_file);
                    let dtype = view.dtype();
                    ensure!(dtype == Dtype::U8, "{}: {in_file} is {dtype:?}; MXFP4 must be U8", self.source);
                    let expected = expected.as_ref().map(|shapes| &shapes[number][..]);
                    if expected != Some(view.shape()) {
                        let found = view.shape();
                        wrong.push(format!("{in_file} is {found:?} where config.json makes the tensor {shape:?}"));
                    }
                }
                continue;
            }
            let Some(Place { name: in_file, view, rows }) = stored.place(name, shape[0]) else {
                missing.push(name.clone());
                continue;
            };
            left.remove(in_file);
            let (found, dtype) = (view.shape(), view.dtype());
            let is_float = DType::try_from(dtype).is_ok_and(|dtype| dtype.is_float() && dtype != DType::F8E4M3);
            ensure!(is_float, "{}: {in_file} is {dtype:?}; weights must be f32, f16 or bf16", self.source);
            match rows {
                Some(_) if found.len() == shape.len() && found[1..] == shape[1..] => {
                    joined.entry(in_file).or_insert((0, found[0])).0 += shape[0];
                }
                None if found == shape => {}
                _ => wrong.push(format!("{in_file} is {found:?} where config.json makes it {shape:?}")),
            }
        }
        let lacks_embedding = needed.iter().any(|(name, _)| name == HEAD) && stored.exact(EMBEDDING).is_none();
        if lacks_embedding && needed.iter().any(|(name, _)| name == EMBEDDING) {
            missing.push(EMBEDDING.to_owned());
        }
        for (in_file, (rows, found)) in joined.into_iter().filter(|(_, (rows, found))| rows != found) {
            wrong.push(format!("{in_file} has {found} rows where config.json makes them {rows}"));
        }
        ensure!(missing.is_empty(), "{}: missing {}", self.source, listed(&missing));
        ensure!(wrong.is_empty(), "{}: {}", self.source, listed(&wrong));
        if !left.is_empty() {
            let left: Vec<_> = left.into_iter().map(str::to_owned).collect();
            output::report(format_args!("note: {}: the model does not need {}", self.source, listed(&left)));
        }
        Ok(())
    }

    /// How the weights of experts are stored. `ExpertLayout::Single` if there are no experts.
    ///
    /// # Errors
    /// If the header of a file cannot be read.
    pub(crate) fn expert_layout(&self) -> Result<ExpertLayout> {
        let in_mxfp4 = format!("{STACKED_GATE_UP}{}", MXFP4[0]);
        let is_stacked = |name: &str| name.ends_with(STACKED_GATE_UP) || name.ends_with(&in_mxfp4);
        let is_stacked = self.stored()?.names().any(is_stacked);
        Ok(if is_stacked { ExpertLayout::Stacked } else { ExpertLayout::Single })
    }

    /// The tensors of the files, by the names of the model.
    ///
    /// # Errors
    /// If a file cannot be mapped.
    pub(crate) fn stored(&self) -> Result<Stored> {
        Stored::open(&self.weights)
    }

    /// The memory-mapped weights. Each tensor is converted to `dtype` when the model requests it.
    ///
    /// # Errors
    /// If a file cannot be mapped.
    pub(crate) fn weights(&self, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
        Ok(VarBuilder::from_backend(Box::new(self.stored()?), dtype, device.clone()))
    }

    /// The tokenizer, if the folder has one.
    ///
    /// # Errors
    /// If it cannot be read, or its vocabulary is larger than the model's. Added tokens may have larger ids: the tokenizer of
    /// gemma-3-1b has one for images, for which the text model has no embedding and which text never produces.
    pub(crate) fn tokenizer(&self, vocab_size: usize) -> Result<Option<Tokenizer>> {
        let settings = self.tokenizer_config.as_deref();
        self.tokenizer.as_deref().map(|file| tokenizer(file, settings, vocab_size)).transpose()
    }
}

/// Reads a `tokenizer.json`, and the `tokenizer_config.json` beside it, for a model with a vocabulary of this size. See
/// [`Checkpoint::tokenizer`].
pub(super) fn tokenizer(file: &Path, settings: Option<&Path>, vocab_size: usize) -> Result<Tokenizer> {
    let (mut tokenizer, _) = read_tokenizer(file)?;
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
    if let Some(settings) = settings {
        let tokens = added_tokens(&read_json(settings)?).with_context(|| settings.display().to_string())?;
        tokenizer
            .add_tokens(tokens.added)
            .map_err(|error| anyhow::anyhow!("{}: {}", settings.display(), one_line(&error)))?;
        tokenizer.set_encode_special_tokens(tokens.are_special_split);
    }
    Ok(tokenizer)
}

/// Reads a `tokenizer.json`, and returns its content too.
///
/// # Errors
/// If it is not a tokenizer, or one that would make a text of a few kilobytes fill the memory.
pub(crate) fn read_tokenizer(file: &Path) -> Result<(Tokenizer, String)> {
    /// The part that may be hostile although the library accepts it.
    #[derive(serde::Deserialize)]
    struct Normalizer {
        #[serde(default)]
        normalizer: Value,
    }
    let content = read_text_limited(file, TOKENIZER_MAX_BYTES)
        .with_context(|| format!("{} could not be read", file.display()))?;
    let not_one =
        |error: &dyn std::fmt::Display| anyhow::anyhow!("{}: not a tokenizer: {}", file.display(), one_line(error));
    let Normalizer { normalizer } = serde_json::from_str(&content).map_err(|error| not_one(&error))?;
    let growth = growth(&normalizer);
    ensure!(
        growth <= GROWTH_MAX,
        "{}: normalizer makes a text up to {growth:.0} times as long; at most {GROWTH_MAX} is supported",
        file.display()
    );
    // `from_str` is compiled in its own crate. The generic `from_bytes` made a tenth of this crate's code.
    let tokenizer = Tokenizer::from_str(&content).map_err(|error| not_one(&error))?;
    Ok((tokenizer, content))
}

/// The most by which a normalizer may lengthen a text. Those of published tokenizers replace a space by a character of three bytes.
const GROWTH_MAX: f64 = 256.0;

/// The most by which the replacements of a normalizer lengthen a text.
fn growth(normalizer: &Value) -> f64 {
    let parts = normalizer["normalizers"].as_array().into_iter().flatten().map(growth).product::<f64>();
    let length = |value: &Value| value.as_str().map_or(0, str::len) as f64;
    // A regular expression may match single letters.
    let matched = length(&normalizer["pattern"]["String"]).max(1.0);
    parts * (length(&normalizer["content"]) / matched).max(1.0)
}

/// What `tokenizer_config.json` adds to a tokenizer.
struct Added {
    /// Those that `tokenizer.json` has already are left out when they are added.
    added: Vec<AddedToken>,
    /// True if special tokens in a text are plain text.
    are_special_split: bool,
}

/// Reads the tokens of `tokenizer_config.json`, in the order in which transformers gives them ids: those with an id, the named
/// ones, and the others.
fn added_tokens(settings: &Value) -> Result<Added> {
    let token = |value: &Value| -> Result<AddedToken> {
        let token = match value.as_str() {
            Some(text) => Ok(AddedToken::from(text, true)),
            None => serde_json::from_value(value.clone()),
        };
        token.with_context(|| format!("{value} is no added token"))
    };
    let mut by_id: Vec<(u32, &Value)> = Vec::new();
    for (id, token) in settings["added_tokens_decoder"].as_object().into_iter().flatten() {
        by_id.push((id.parse().with_context(|| format!("added_tokens_decoder has no id '{id}'"))?, token));
    }
    by_id.sort_by_key(|(id, _)| *id);
    let named = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let named = named.iter().map(|name| &settings[*name]).filter(|value| !value.is_null());
    let extra = ["extra_special_tokens", "additional_special_tokens"].map(|key| &settings[key]);
    let extra: Vec<&Value> = match extra.into_iter().find(|value| !value.is_null()) {
        Some(Value::Array(tokens)) => tokens.iter().collect(),
        Some(Value::Object(tokens)) => tokens.values().collect(),
        Some(other) => bail!("extra_special_tokens is {other}, not a list of tokens"),
        None => Vec::new(),
    };
    let all = by_id.into_iter().map(|(_, token)| token).chain(named).chain(extra);
    Ok(Added {
        added: all.map(token).collect::<Result<_>>()?,
        are_special_split: settings["split_special_tokens"].as_bool().unwrap_or(false),
    })
}

/// Reads `config.json`. If there is a `generation_config.json`, its end tokens count, as they do for `generate` of transformers,
/// also where it has none.
///
/// # Errors
/// If a file cannot be read or is not JSON.
pub(crate) fn read_config(config: &Path, generation: Option<&Path>) -> Result<Value> {
    let mut config = read_json(config)?;
    if let (Some(generation), Some(keys)) = (generation, config.as_object_mut()) {
        keys.insert("eos_token_id".into(), read_json(generation)?["eos_token_id"].take());
    }
    Ok(config)
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
        checkpoint.check(&needed(&[("a", &[2, 3])])).expect("a note names the other");
        for (tensors, part) in [
            (needed(&[("a", &[2, 3]), ("b", &[4]), ("c", &[1])]), "missing c"),
            (needed(&[("a", &[3, 2]), ("b", &[4])]), "a is [2, 3] where config.json makes it [3, 2]"),
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
        twice.check(&needed(&[("a", &[2, 3])])).expect("the last file counts, as in transformers");
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

    /// What transformers reads in files that differ from those that it writes.
    #[test]
    fn files_of_other_writers_are_read() {
        let values = |shape: &[usize], first: f32| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|number| first + number as f32).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).expect("values")
        };
        let write = |tensors: Vec<(&str, Tensor)>| {
            let folder = folder();
            let tensors: HashMap<_, _> = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
            candle_core::safetensors::save(&tensors, folder.path().join(WEIGHTS)).expect("saved");
            let checkpoint = open(folder.path()).expect("opens");
            (folder, checkpoint)
        };
        let norm = "model.norm.weight";
        // Without the prefix of the base model or with two, beside tensors of any type that no model needs.
        for name in ["norm.weight", norm, "model.model.norm.weight"] {
            let mask = Tensor::zeros(4, DType::U8, &Device::Cpu).expect("a mask");
            let (_folder, checkpoint) = write(vec![(name, values(&[2], 7.0)), ("model.mask", mask)]);
            checkpoint.check(&needed(&[(norm, &[2])])).expect(name);
            let weights = checkpoint.weights(DType::F32, &Device::Cpu).expect("mapped");
            assert_eq!(weights.get(2, norm).and_then(|t| t.to_vec1::<f32>()).expect("values"), [7.0, 8.0], "{name}");
            let error = checkpoint.check(&needed(&[("model.mask", &[4])])).expect_err("a type").to_string();
            assert!(error.contains("model.mask is U8; weights must be"), "{error}");
        }
        // A head that is stored though config.json ties it: the same, others, and one without an embedding.
        for (embedding, head, is_own) in [(Some(1.0), 1.0, false), (Some(1.0), 2.0, true), (None, 2.0, false)] {
            let embedding = embedding.map(|first| (EMBEDDING, values(&[3, 2], first)));
            let (_folder, checkpoint) = write(embedding.into_iter().chain([(HEAD, values(&[3, 2], head))]).collect());
            assert_eq!(checkpoint.has_own_head().expect("headers"), is_own);
            let tied = checkpoint.check(&needed(&[(EMBEDDING, &[3, 2])]));
            assert!(tied.is_ok(), "{tied:?}");
        }
        let (_folder, checkpoint) = write(vec![(HEAD, values(&[3, 2], 1.0))]);
        let error =
            checkpoint.check(&needed(&[(EMBEDDING, &[3, 2]), (HEAD, &[3, 2])])).expect_err("untied").to_string();
        assert!(error.contains("missing model.embed_tokens.weight"), "{error}");
        // Joined projections: four queries, and two keys and values.
        let joined = "model.layers.0.self_attn.qkv_proj.weight";
        let (_folder, checkpoint) = write(vec![(joined, values(&[8, 1], 0.0))]);
        let parts = |rows: [usize; 3]| -> Vec<(String, Vec<usize>)> {
            let part = |(name, rows): (&str, usize)| (joined.replace("qkv", name), vec![rows, 1]);
            ["q", "k", "v"].into_iter().zip(rows).map(part).collect()
        };
        checkpoint.check(&parts([4, 2, 2])).expect("all rows");
        let weights = checkpoint.weights(DType::F32, &Device::Cpu).expect("mapped");
        for ((name, shape), first) in parts([4, 2, 2]).into_iter().zip([0.0, 4.0, 6.0]) {
            let found = weights.get(shape.clone(), &name).expect(&name);
            let expected = values(&shape, first);
            assert_eq!(found.to_vec2::<f32>().expect("values"), expected.to_vec2::<f32>().expect("values"), "{name}");
        }
        let error = checkpoint.check(&parts([4, 1, 1])).expect_err("other rows").to_string();
        assert!(error.contains("qkv_proj.weight has 8 rows where config.json makes them 6"), "{error}");
    }

    /// A byte holds two numbers of four bits, and a block of 32 has an exponent.
    #[test]
    fn tensors_in_mxfp4_are_read() {
        let folder = folder();
        let write = |scales: Tensor| {
            let bytes = [[0x21u8; 16], [0xa7; 16]].concat();
            let blocks = Tensor::from_vec(bytes, (1, 2, 1, 16), &Device::Cpu).expect("blocks");
            let tensors = HashMap::from([("w_blocks".to_owned(), blocks), ("w_scales".to_owned(), scales)]);
            candle_core::safetensors::save(&tensors, folder.path().join(WEIGHTS)).expect("saved");
            open(folder.path()).expect("opens")
        };
        let error = write(tensor(&[1, 2, 1])).check(&needed(&[("w", &[1, 32, 2])])).expect_err("a type").to_string();
        assert!(error.contains("w_scales is F32; MXFP4 must be U8"), "{error}");
        let checkpoint = write(Tensor::new(&[[[128u8], [126]]], &Device::Cpu).expect("exponents"));
        for shape in [[1, 64, 2], [1, 33, 2], [2, 32, 2]] {
            let error = checkpoint.check(&needed(&[("w", &shape)])).expect_err("a shape").to_string();
            assert!(error.contains(&format!("where config.json makes the tensor {shape:?}")), "{error}");
        }
        checkpoint.check(&needed(&[("w", &[1, 32, 2])])).expect("both parts");
        let weights = checkpoint.weights(DType::F32, &Device::Cpu).expect("mapped");
        let found = weights.get((1, 32, 2), "w").and_then(|w| w.flatten_all()?.to_vec1::<f32>()).expect("values");
        assert_eq!(found, [1.0, 3.0, 2.0, -0.5].repeat(16));
    }

    #[test]
    fn generation_config_says_what_ends_an_answer() {
        let folder = folder();
        fs::write(folder.path().join(CONFIG), json!({"eos_token_id": 7}).to_string()).expect("written");
        let eos = || open(folder.path()).expect("opens").config["eos_token_id"].clone();
        assert_eq!(eos(), 7);
        for (generation, expected) in [
            (json!({"eos_token_id": [7, 9]}), json!([7, 9])),
            (json!({"eos_token_id": 9}), json!(9)),
            (json!({}), Value::Null),
        ] {
            fs::write(folder.path().join(GENERATION_CONFIG), generation.to_string()).expect("written");
            assert_eq!(eos(), expected);
        }
    }

    #[test]
    fn tokens_of_the_settings_are_added_to_the_tokenizer() {
        let folder = folder();
        let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"});
        let tokenizer = json!({"version": "1.0", "model": model});
        fs::write(folder.path().join(TOKENIZER), tokenizer.to_string()).expect("written");
        let flags = json!({"content": "<think>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false});
        for (settings, expected) in [
            (json!({}), None),
            (json!({"added_tokens_decoder": {"3": flags}}), Some(3)),
            (json!({"extra_special_tokens": ["<think>"]}), Some(3)),
            (json!({"extra_special_tokens": {"think": "<think>"}}), Some(3)),
            (json!({"additional_special_tokens": ["<think>"]}), Some(3)),
            (json!({"eos_token": "<think>"}), Some(3)),
            (json!({"eos_token": "b", "added_tokens_decoder": {"4": flags}}), Some(3)),
        ] {
            fs::write(folder.path().join(TOKENIZER_CONFIG), settings.to_string()).expect("written");
            let tokenizer = open(folder.path()).and_then(|checkpoint| checkpoint.tokenizer(3)).expect("a tokenizer");
            assert_eq!(tokenizer.expect("a file").token_to_id("<think>"), expected, "{settings}");
        }
        for (settings, part) in [
            (json!({"added_tokens_decoder": {"x": flags}}), "no id 'x'"),
            (json!({"extra_special_tokens": 3}), "not a list"),
            (json!({"extra_special_tokens": [3]}), "3 is no added token"),
        ] {
            fs::write(folder.path().join(TOKENIZER_CONFIG), settings.to_string()).expect("written");
            let error = open(folder.path()).and_then(|checkpoint| checkpoint.tokenizer(3)).expect_err(part);
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
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

    #[test]
    fn a_normalizer_that_multiplies_a_text_is_found() {
        let of = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let letters = of(json!({"String": "."}), &".".repeat(64));
        for (normalizer, expected) in [
            (Value::Null, 1.0),
            (of(json!({"String": " "}), "▁"), 3.0),
            (of(json!({"Regex": "x*"}), "abcd"), 4.0),
            (json!({"type": "Sequence", "normalizers": [letters, {"type": "NFC"}, letters]}), 4096.0),
        ] {
            assert_eq!(growth(&normalizer), expected, "{normalizer}");
        }
    }

    /// Every command reads a tokenizer here, so a hostile one is refused in all.
    #[test]
    fn a_tokenizer_that_multiplies_a_text_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tokenizer.json");
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/generation/llama-gqa-tied/tokenizer.json");
        let mut content: Value = serde_json::from_slice(&fs::read(fixture).expect("read")).expect("JSON");
        let replace = json!({"type": "Replace", "pattern": {"String": "."}, "content": ".".repeat(64)});
        content["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace; 5]});
        fs::write(&file, content.to_string()).expect("written");
        let error = tokenizer(&file, None, 1 << 20).expect_err("refused").to_string();
        assert!(error.contains("normalizer makes a text up to 1073741824 times as long"), "{error}");
    }
}
