//! A GGUF file: the metadata of a model, and its tensors in the formats of ggml.
//!
//! `header` reads the header of the file, and `format` has the types of its tensors. The metadata becomes a `config.json`, so that one reader checks the
//! configurations of all models. Tensors are found by the names of transformers, and matrices stay in the format of the file.
//! `metadata` reads its keys, `tokenizer` makes a tokenizer of them, `parts` finds the files of a model that is in several, and
//! `file_type` names its quantisation.

mod file_type;
mod format;
mod header;
mod metadata;
mod parts;
mod tokenizer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Shape, Tensor, quantized::gguf_file::Value};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use serde_json::{Map, json};
use tokenizers::Tokenizer;

#[cfg(feature = "hub")]
pub(super) use self::parts::{names as names_of_parts, stem};
pub(super) use self::{file_type::quantisation_of_name, format::TensorFormat};
use self::{
    header::{Header, TensorInfo},
    metadata::Metadata,
};
use super::{
    ChatTemplate,
    config::{ExpertLayout, ModelConfig, RopeScaling, unsupported},
    family::SlidingLayers,
    limits::MOST_WEIGHTS,
};
use crate::{
    error::listed,
    kernels::inference::{Machine, Quantised},
};

/// An architecture of GGUF files.
struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// The architecture of `config.json`.
    config: &'static str,
    /// True if the halves of each head of queries and keys lie in turns, because llama.cpp turns neighbouring elements of these.
    is_interleaved: bool,
    /// The norm before the feed-forward.
    feed_forward_norm: &'static str,
    /// True if the weights of the chosen experts are not scaled to a sum of 1.
    has_raw_weights: bool,
    /// Layers of the one model whose scores are divided by the square root of the width over the heads, as llama.cpp does.
    layers_of_27b: Option<u64>,
}

const fn architecture(name: &'static str, config: &'static str) -> Architecture {
    Architecture {
        name,
        config,
        is_interleaved: false,
        feed_forward_norm: "ffn_norm",
        has_raw_weights: false,
        layers_of_27b: None,
    }
}

const fn interleaved(name: &'static str, config: &'static str) -> Architecture {
    Architecture { is_interleaved: true, ..architecture(name, config) }
}

/// The architectures that are read. Of rows with the same name, a file without experts is of the first.
const ARCHITECTURES: &[Architecture] = &[
    interleaved(LLAMA, "LlamaForCausalLM"),
    interleaved(LLAMA, "MistralForCausalLM"),
    interleaved(LLAMA, MIXTRAL),
    architecture("qwen2", "Qwen2ForCausalLM"),
    architecture("qwen3", "Qwen3ForCausalLM"),
    architecture("qwen3moe", "Qwen3MoeForCausalLM"),
    Architecture { has_raw_weights: true, ..architecture("qwen2moe", "Qwen2MoeForCausalLM") },
    Architecture { feed_forward_norm: "post_attention_norm", ..architecture(GPT_OSS, "GptOssForCausalLM") },
    Architecture { layers_of_27b: Some(46), ..architecture("gemma2", "Gemma2ForCausalLM") },
    Architecture { layers_of_27b: Some(62), ..architecture("gemma3", "Gemma3ForCausalLM") },
    architecture("phi3", "Phi3ForCausalLM"),
    interleaved(GRANITE, "GraniteForCausalLM"),
    interleaved("smollm3", "SmolLM3ForCausalLM"),
    architecture("olmo2", "Olmo2ForCausalLM"),
    architecture("glm4", "Glm4ForCausalLM"),
];

const LLAMA: &str = "llama";
const GRANITE: &str = "granite";
const GPT_OSS: &str = "gpt-oss";
const MIXTRAL: &str = "MixtralForCausalLM";

/// Keys of the metadata, below the name of the architecture, and those of `config.json`.
const KEYS: &[(&str, &str)] = &[
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.scale", ATTENTION_MULTIPLIER),
    ("attention.sliding_window", SLIDING_WINDOW),
    ("attention.sliding_window_pattern", SLIDING_PATTERN),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("embedding_scale", "embedding_multiplier"),
    ("expert_count", "num_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("expert_used_count", "num_experts_per_tok"),
    ("feed_forward_length", "intermediate_size"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("logit_scale", "logits_scaling"),
    ("residual_scale", "residual_multiplier"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
];

const ATTENTION_MULTIPLIER: &str = "attention_multiplier";
const SLIDING_WINDOW: &str = "sliding_window";

/// Keys of `config.json` whose value in files is 0 where there is no such thing.
const NONE_IF_ZERO: &[&str] = &[
    ATTENTION_MULTIPLIER,
    SLIDING_WINDOW,
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "residual_multiplier",
];

/// Parts of a layer as transformers names them, and their names in GGUF files.
const PARTS: &[(&str, &str)] = &[
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("input_layernorm", "attn_norm"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.router", "ffn_gate_inp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.up_proj", "ffn_up"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.q_proj", "attn_q"),
    (SINKS, "attn_sinks"),
    ("self_attn.v_proj", "attn_v"),
    ("post_attention_layernorm", "post_attention_norm"),
];

/// The part of a layer whose name in checkpoints has no end.
const SINKS: &str = "self_attn.sinks";

/// Tensors of a layer that hold several parts, in the order of their rows.
const JOINED: &[(&str, &[&str])] =
    &[("attn_qkv", &["attn_q", "attn_k", "attn_v"]), ("ffn_up", &["ffn_gate", "ffn_up"])];

/// The key that some files state as a flag for each layer.
const SLIDING_PATTERN: &str = "sliding_window_pattern";

/// The base of RoPE's frequencies where a file states none, for all architectures.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
/// Numbers that the frequencies of RoPE are divided by.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Those of LongRoPE, for sequences up to the original positions, and for longer ones.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
const ALL_FACTORS: [&str; 3] = [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS];

/// A model in a file.
pub struct Model {
    pub config: ModelConfig,
    /// Positions that the metadata states; the configuration has fewer where LongRoPE's factors change on the way.
    pub positions: usize,
    /// Every tensor by the name that transformers gives it, without quantisation, in the dtype of activations.
    pub weights: VarBuilder<'static>,
    /// The same tensors in the formats of the file.
    pub tensors: Arc<Gguf>,
    /// Bytes of the file, or of all its parts.
    pub bytes: u64,
    /// Says that ids do not have the file type that the metadata states, and why.
    pub note: Option<String>,
    metadata: Metadata,
}

/// The tensors of a file.
pub struct Gguf {
    /// The parts of the file.
    files: Vec<Mutex<File>>,
    /// By the names of transformers.
    places: HashMap<String, Place>,
}

/// A tensor in a file.
struct Stored {
    format: TensorFormat,
    shape: Vec<usize>,
    /// The part of the file that holds it.
    part: usize,
    /// Position of its first byte.
    start: u64,
}

/// Where a tensor of a model is.
struct Place {
    format: TensorFormat,
    /// The part of the file that holds it.
    part: usize,
    /// Position of its first byte.
    start: u64,
    rows: usize,
    /// Elements of a row, in whole blocks.
    width: usize,
    /// Rows of each head whose halves lie in turns, so that pairs of RoPE are side by side; 0 if they lie one after the other.
    interleaved: usize,
    /// Is subtracted from each element: 1 where a family's norms are stored with it, and transformers stores them without.
    offset: f32,
}

/// A file whose headers were read: its metadata, its tensors, its parts, and their bytes.
struct Opened {
    metadata: Metadata,
    stored: BTreeMap<String, Stored>,
    files: Vec<Mutex<File>>,
    bytes: u64,
}

/// One file of them.
struct Part {
    metadata: Metadata,
    stored: BTreeMap<String, Stored>,
    file: File,
    bytes: u64,
}

/// Opens a file, and checks its header and its tensors.
///
/// # Errors
/// One line if it cannot be read, is cut short, or has an architecture or a format that is not supported.
pub fn open(path: &Path) -> Result<Model> {
    let Opened { metadata, stored, files, bytes } = opened(path)?;
    let mut config = config(&metadata, &stored)?;
    let positions = config.max_position_embeddings;
    let places = places(&config, &stored, &metadata)?;
    let tensors = Arc::new(Gguf { files, places });
    if let Some(factors) = tensors.factors(ROPE_FACTORS)? {
        config.rope.scaling = RopeScaling::Factors(factors);
    }
    if let Some(short_factor) = tensors.factors(SHORT_FACTORS)? {
        let scaling = format!("{}.rope.scaling", architecture_of(&metadata)?.name);
        let original = metadata.whole(&format!("{scaling}.original_context_length"))?;
        let original = original.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
        let original_max_position_embeddings = original.unwrap_or(positions);
        let attention_factor = metadata.number(&format!("{scaling}.attn_factor"))?.unwrap_or(1.0);
        config.max_position_embeddings = positions.min(original_max_position_embeddings);
        config.rope.scaling =
            RopeScaling::LongRope { short_factor, original_max_position_embeddings, attention_factor };
    }
    let dtype = match main_format(stored.values()) {
        Some(TensorFormat::F16) => DType::F16,
        Some(TensorFormat::BF16) => DType::BF16,
        _ => DType::F32,
    };
    let (_, note) = file_type::of(&metadata, &stored)?;
    let weights = VarBuilder::from_backend(Box::new(Backend(tensors.clone())), dtype, Device::Cpu);
    Ok(Model { config, positions, weights, tensors, bytes, note, metadata })
}

impl Model {
    /// The tokenizer of the metadata.
    ///
    /// # Errors
    /// One line that says why there is none.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer::tokenizer(&self.metadata, self.config.vocab_size)
    }
}

/// The file type of a file, in ids.
///
/// # Errors
/// As [`open`].
pub fn file_type(path: &Path) -> Result<String> {
    let Opened { metadata, stored, .. } = opened(path)?;
    Ok(file_type::of(&metadata, &stored)?.0)
}

/// The chat template of a file and its special tokens. Its text is empty if there is none.
///
/// # Errors
/// As [`open`].
pub fn chat_template(path: &Path) -> Result<ChatTemplate> {
    let metadata = opened(path)?.metadata;
    let mut special_tokens = BTreeMap::new();
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ] {
        let token = tokenizer::special_token(&metadata, key)?;
        special_tokens.extend(token.map(|token| (name.to_owned(), token.to_owned())));
    }
    let token = |name: &str| special_tokens.get(name).cloned().unwrap_or_default();
    Ok(ChatTemplate {
        source: metadata.text("tokenizer.chat_template")?.unwrap_or_default().to_owned(),
        bos_token: token("bos_token"),
        eos_token: token("eos_token"),
        special_tokens,
    })
}

/// Returns whether files can hold models of an architecture of `config.json`.
pub fn holds(architecture: &str) -> bool {
    ARCHITECTURES.iter().any(|row| row.config == architecture)
}

/// The files of a model: the file, or all its parts.
///
/// # Errors
/// If it cannot be read, or a part is missing.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    parts::of(path, &part(path, 0)?.metadata)
}

/// Reads the header of a file, or of all its parts. The metadata is that of the first part.
fn opened(path: &Path) -> Result<Opened> {
    let named = part(path, 0)?;
    let paths = parts::of(path, &named.metadata)?;
    if paths.len() == 1 {
        let Part { metadata, stored, file, bytes } = named;
        return Ok(Opened { metadata, stored, files: vec![Mutex::new(file)], bytes });
    }
    let mut all: Option<Opened> = None;
    for (number, path) in paths.iter().enumerate() {
        let name = || path.file_name().unwrap_or_default().display().to_string();
        let Part { metadata, stored, file, bytes } = part(path, number).with_context(name)?;
        parts::check(&metadata, number).with_context(name)?;
        let files = Vec::new();
        let all = all.get_or_insert_with(|| Opened { metadata, stored: BTreeMap::new(), files, bytes: 0 });
        if let Some(twice) = stored.keys().find(|tensor| all.stored.contains_key(*tensor)) {
            bail!("{}: {twice} is in another part too", name());
        }
        all.stored.extend(stored);
        all.files.push(Mutex::new(file));
        all.bytes += bytes;
    }
    all.context("it has no parts")
}

/// The header of one file.
fn part(path: &Path, number: usize) -> Result<Part> {
    ensure!(path.is_file(), "there is no such file");
    let mut file = File::open(path).context("it cannot be opened")?;
    let bytes = file.metadata()?.len();
    let header = header::read(&file, bytes)?;
    let metadata = header.metadata(&mut file)?;
    let stored = stored(header, number, bytes)?;
    Ok(Part { metadata, stored, file, bytes })
}

/// The tensors by their names, each of which lies in the file.
fn stored(header: Header, part: usize, file_bytes: u64) -> Result<BTreeMap<String, Stored>> {
    let mut stored = BTreeMap::new();
    for TensorInfo { name, format, shape, offset } in header.tensors {
        let elements = shape.iter().try_fold(1u64, |all, size| all.checked_mul(*size as u64));
        let elements = elements.filter(|elements| *elements <= MOST_WEIGHTS);
        let elements = elements.with_context(|| format!("{name} has more elements than any model"))?;
        let width = shape.last().copied().unwrap_or(0);
        ensure!(
            width.is_multiple_of(format.block_size()),
            "{name} has rows of {width} elements, which are not whole blocks of {}",
            format.block_size()
        );
        let bytes = elements / format.block_size() as u64 * format.type_size() as u64;
        let start = header.data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        ensure!(
            end.is_some_and(|end| end <= file_bytes),
            "{name} ends beyond the {file_bytes} bytes of the file: it is cut short"
        );
        let tensor = Stored { format, shape, part, start: start.unwrap_or(0) };
        if stored.insert(name, tensor).is_some() {
            bail!("two of its tensors have the same name");
        }
    }
    Ok(stored)
}

/// The format of most weights.
fn main_format<'a>(stored: impl IntoIterator<Item = &'a Stored>) -> Option<TensorFormat> {
    let mut counts: Vec<(TensorFormat, usize)> = Vec::new();
    for Stored { format, shape, .. } in stored {
        let elements: usize = shape.iter().product();
        match counts.iter_mut().find(|(other, _)| other == format) {
            Some((_, count)) => *count += elements,
            None => counts.push((*format, elements)),
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(format, _)| format)
}

/// The row of the architecture that the metadata names.
fn architecture_of(metadata: &Metadata) -> Result<&'static Architecture> {
    let named = metadata.text("general.architecture")?.context("its metadata has no general.architecture")?;
    ARCHITECTURES.iter().find(|row| row.name == named).with_context(|| {
        let mut names: Vec<_> = ARCHITECTURES.iter().map(|row| (row.name, row.name)).collect();
        names.dedup();
        format!("its {}", unsupported(named, names))
    })
}

/// The configuration that the metadata describes.
fn config(metadata: &Metadata, stored: &BTreeMap<String, Stored>) -> Result<ModelConfig> {
    let row = architecture_of(metadata)?;
    let named = row.name;
    let of = |key: &str| metadata.of_all_layers(&format!("{named}.{key}"));
    let mut json = Map::new();
    for (key, name) in KEYS.iter().copied() {
        // A flag for each layer says which ones slide.
        let (key, flags) = (format!("{named}.{key}"), metadata.flags(&format!("{named}.{key}")));
        if let (SLIDING_PATTERN, Some(slides)) = (name, flags) {
            let kind = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
            json.insert("layer_types".into(), slides.into_iter().map(kind).collect());
        } else if let Some(value) = metadata.of_all_layers(&key)? {
            let is_none = NONE_IF_ZERO.contains(&name) && value.as_f64() == Some(0.0);
            json.insert(name.into(), if is_none { serde_json::Value::Null } else { value });
        }
    }
    let integer = |json: &Map<String, serde_json::Value>, key: &str| json.get(key).and_then(serde_json::Value::as_u64);
    let is_mixtral = named == LLAMA && integer(&json, "num_experts").is_some_and(|experts| experts > 0);
    json.insert("architectures".into(), json!([if is_mixtral { MIXTRAL } else { row.config }]));
    if let (None, Some(width), Some(heads)) =
        (json.get("head_dim"), integer(&json, "hidden_size"), integer(&json, "num_attention_heads"))
    {
        json.insert("head_dim".into(), json!(width.checked_div(heads)));
    }
    let head_dim = json.get("head_dim").and_then(serde_json::Value::as_f64);
    let turned = of("rope.dimension_count")?.and_then(|turned| turned.as_f64()).or(head_dim);
    if let (Some(turned), Some(head_dim)) = (turned, head_dim) {
        // The half keeps a whole number from being rounded down.
        json.insert("partial_rotary_factor".into(), json!((turned + 0.5) / head_dim));
        if json.get(ATTENTION_MULTIPLIER).is_none_or(serde_json::Value::is_null) {
            json.insert(ATTENTION_MULTIPLIER.into(), json!(head_dim.sqrt().recip()));
        }
    }
    let embedding = stored.get(EMBEDDING).with_context(|| format!("it has no tensor {EMBEDDING}"))?;
    json.insert("vocab_size".into(), json!(embedding.shape[0]));
    json.insert("tie_word_embeddings".into(), json!(!stored.contains_key(HEAD)));
    json.insert("norm_topk_prob".into(), json!(!row.has_raw_weights));
    if row.layers_of_27b.is_some() {
        let size = match integer(&json, "num_hidden_layers") == row.layers_of_27b {
            true => integer(&json, "hidden_size").zip(integer(&json, "num_attention_heads")),
            false => integer(&json, "head_dim").zip(Some(1)),
        };
        if let Some(size) = size.and_then(|(size, parts)| size.checked_div(parts)) {
            json.insert("query_pre_attn_scalar".into(), json!(size));
        }
    }
    json.entry("rope_theta").or_insert(json!(DEFAULT_ROPE_BASE));
    let scaling = rope_scaling(metadata, named, stored.contains_key(SHORT_FACTORS))?;
    json.insert("rope_scaling".into(), scaling.unwrap_or_else(|| json!({"rope_type": "default"})));
    json.insert("eos_token_id".into(), json!(end_tokens(metadata, embedding.shape[0])?));
    let window = json.get(SLIDING_WINDOW).filter(|window| !window.is_null()).cloned();
    let mut config = ModelConfig::from_json(&json.into()).context("its metadata, as a config.json")?;
    ensure!(
        turned.is_none_or(|turned| turned == config.rotary_dim as f64),
        "{named}.rope.dimension_count is {}: RoPE on a part of each head is not supported",
        turned.unwrap_or_default()
    );
    // llama.cpp ignores the key in files of Llama. Those of OLMo 3 have the architecture of OLMo 2.
    if let Some(window) = window.filter(|_| named != LLAMA && config.family.sliding_layers == SlidingLayers::None) {
        bail!("{named}.attention.sliding_window is {window}: a sliding window is not supported in this architecture");
    }
    // llama.cpp's switch of all RoPE in this architecture.
    if named == GRANITE && metadata.flag("granite.rope.scaling.finetuned")? == Some(false) {
        config.rope_layers.fill(false);
    }
    config.qkv_bias = ["attn_q", "attn_qkv"].iter().any(|part| stored.contains_key(&format!("blk.0.{part}.bias")));
    config.o_bias = stored.contains_key("blk.0.attn_output.bias");
    config.mlp_bias = stored.contains_key("blk.0.ffn_gate.bias");
    Ok(config)
}

/// The scaling of RoPE, with the defaults of llama.cpp: the type is linear, and a factor of 0 is none. `None` too where the file has
/// the factors of LongRoPE.
fn rope_scaling(metadata: &Metadata, named: &str, is_long: bool) -> Result<Option<serde_json::Value>> {
    let key = |key: &str| format!("{named}.rope.{key}");
    let number = |name: &str| metadata.number(&key(name));
    let kind = key("scaling.type");
    let kind = metadata.text(&kind)?.unwrap_or("linear");
    let factor = match number("scaling.factor")? {
        Some(factor) => factor,
        None => number("scale_linear")?.unwrap_or(0.0),
    };
    ensure!(factor >= 0.0, "{} is {factor}, and must be at least 0", key("scaling.factor"));
    let attention_factor = number("scaling.attn_factor")?.unwrap_or(1.0);
    ensure!(attention_factor > 0.0, "{} is {attention_factor}, and must be above 0", key("scaling.attn_factor"));
    if is_long {
        let is_alone = ["linear", "none", "longrope"].contains(&kind) && [0.0, 1.0].contains(&factor);
        ensure!(is_alone, "{} is {factor}, which is not supported beside {SHORT_FACTORS}", key("scaling.factor"));
        return Ok(None);
    }
    // YaRN by a factor of 1 scales the cosines and sines only.
    let (kind, factor) = match (kind, factor) {
        ("none", _) | (_, 0.0) if attention_factor == 1.0 => return Ok(None),
        ("none", _) | (_, 0.0) => ("yarn", 1.0),
        scaled => scaled,
    };
    ensure!(
        attention_factor == 1.0 || kind == "yarn",
        "{} is {attention_factor}, which is not supported for scaling of type {kind}",
        key("scaling.attn_factor")
    );
    ensure!(
        number("scaling.yarn_ext_factor")?.is_none_or(|factor| factor == 1.0),
        "{} is not 1, which is not supported",
        key("scaling.yarn_ext_factor")
    );
    let mut scaling = json!({"rope_type": kind, "factor": factor});
    if kind == "yarn" {
        let context = metadata.of_all_layers(&key("scaling.original_context_length"))?;
        let context =
            context.map_or_else(|| metadata.of_all_layers(&format!("{named}.context_length")), |c| Ok(Some(c)));
        scaling["original_max_position_embeddings"] = json!(context?);
        // llama.cpp rounds the bounds for this architecture too, but the model does not.
        scaling["truncate"] = json!(named != GPT_OSS);
        scaling["attention_factor"] = json!(attention_factor * (1.0 + 0.1 * factor.ln().max(0.0)));
        for beta in ["beta_fast", "beta_slow"] {
            scaling[beta] = json!(number(&format!("scaling.yarn_{beta}"))?);
        }
    }
    Ok(Some(scaling))
}

/// The tokens that end an answer: of a text, a turn and a message. Numbers that are no tokens, such as -1, say that there is none.
fn end_tokens(metadata: &Metadata, vocab_size: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"] {
        let key = format!("tokenizer.ggml.{key}");
        match metadata.0.get(&key) {
            Some(Value::Array(_)) => {
                ids.extend(metadata.list(&key, "whole numbers", metadata::whole)?.unwrap_or_default())
            }
            _ => ids.extend(metadata.whole(&key)?),
        }
    }
    let ids: BTreeSet<u32> = ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
    Ok(ids.into_iter().filter(|id| (*id as usize) < vocab_size).collect())
}

/// The place of each tensor of a model, after a check that the file has these tensors and no others.
fn places(
    config: &ModelConfig,
    stored: &BTreeMap<String, Stored>,
    metadata: &Metadata,
) -> Result<HashMap<String, Place>> {
    let is_interleaved = architecture_of(metadata)?.is_interleaved;
    let (mut places, mut missing, mut wrong) = (HashMap::new(), Vec::new(), Vec::new());
    let mut left: BTreeSet<&str> =
        stored.keys().map(String::as_str).filter(|name| !ALL_FACTORS.contains(name)).collect();
    let tensors: Vec<_> = config
        .tensors(ExpertLayout::Single)
        .into_iter()
        .map(|(name, shape)| (names_in_file(config, &name), name, shape))
        .collect();
    let rows_of: HashMap<&str, usize> =
        tensors.iter().map(|((single, _), _, shape)| (single.as_str(), shape[0])).collect();
    for ((single, stacked), name, shape) in &tensors {
        // Norms and biases are columns, so that a bias has the rows of its matrix.
        let (rows, width) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let has_rows = |whole: &str, rows: usize| stored.get(whole).is_some_and(|found| found.shape[0] == rows);
        // The tensor of the file, its shape, and the first row of this one in it.
        let (in_file, expected, first) = match (stacked, joined(single, &rows_of)) {
            (Some((stacked, expert)), _) if stored.contains_key(stacked) => {
                let experts = config.experts.as_ref().map_or(0, |experts| experts.num_experts);
                (stacked.clone(), [&[experts], &shape[..]].concat(), expert * rows)
            }
            (_, Some((whole, first, all))) if has_rows(&whole, all) => (whole, [&[all], &shape[1..]].concat(), first),
            _ => (single.clone(), shape.clone(), 0),
        };
        let Some(found) = stored.get(&in_file) else {
            missing.push(in_file);
            continue;
        };
        // A matrix of one row may be a vector.
        if found.shape != expected && (rows, &found.shape[..]) != (1, &shape[1..]) {
            wrong.push(format!("{in_file} is {:?} where the metadata makes it {expected:?}", found.shape));
            continue;
        }
        left.remove(in_file.as_str());
        ensure!(
            width.is_multiple_of(found.format.block_size()),
            "{in_file} is {}; norms and biases must be f32, f16 or bf16",
            found.format
        );
        let row_bytes = width / found.format.block_size() * found.format.type_size();
        let is_turned = ["self_attn.q_proj", "self_attn.k_proj"].iter().any(|part| name.contains(part));
        let place = Place {
            format: found.format,
            part: found.part,
            start: found.start + (first * row_bytes) as u64,
            rows,
            width,
            interleaved: if is_interleaved && is_turned { config.head_dim } else { 0 },
            offset: if in_file.ends_with("norm.weight") { config.family.norm_offset as f32 } else { 0.0 },
        };
        places.insert(name.clone(), place);
    }
    for name in ALL_FACTORS {
        let Some(Stored { format, shape, part, start }) = stored.get(name) else { continue };
        let rows = config.rotary_dim / 2;
        ensure!(
            format.block_size() == 1 && *shape == [rows],
            "{name} is {shape:?} of {format}, not a number for each pair of a head"
        );
        let place = Place { format: *format, part: *part, start: *start, rows, width: 1, interleaved: 0, offset: 0.0 };
        places.insert(name.into(), place);
    }
    ensure!(missing.is_empty(), "missing {}", listed(&missing));
    ensure!(wrong.is_empty(), "{}", listed(&wrong));
    let left: Vec<String> = left.into_iter().map(str::to_owned).collect();
    ensure!(left.is_empty(), "its architecture has no place for {}", listed(&left));
    Ok(places)
}

/// The tensor that joins a part of a layer with others, the first row of the part in it, and the number of its rows.
fn joined(name: &str, rows_of: &HashMap<&str, usize>) -> Option<(String, usize, usize)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let (whole, parts) = JOINED.iter().find(|(_, parts)| parts.contains(&part))?;
    let own = parts.iter().position(|other| *other == part)?;
    let rows = |part: &&str| rows_of.get(&*format!("blk.{layer}.{part}.{kind}")).copied();
    let rows: Vec<usize> = parts.iter().map(rows).collect::<Option<_>>()?;
    Some((format!("blk.{layer}.{whole}.{kind}"), rows[..own].iter().sum(), rows.iter().sum()))
}

/// The name of a tensor in files, and for an expert's matrix the name of the tensor that holds it in files that stack experts, with
/// the number of the expert.
fn names_in_file(config: &ModelConfig, name: &str) -> (String, Option<(String, usize)>) {
    match name {
        "model.embed_tokens.weight" => return (EMBEDDING.into(), None),
        "model.norm.weight" => return ("output_norm.weight".into(), None),
        "lm_head.weight" => return (HEAD.into(), None),
        _ => {}
    }
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let parts = parts.and_then(|(layer, rest)| match rest {
        SINKS => Some((layer, (rest, "weight"))),
        _ => Some((layer, rest.rsplit_once('.')?)),
    });
    let Some((layer, (part, kind))) = parts else {
        return (name.into(), None);
    };
    if let Some(names) = config.family.experts.as_ref().map(|family| &family.names) {
        let inside = part.strip_prefix(names.block).and_then(|rest| rest.strip_prefix(".experts."));
        if let Some((Ok(expert), matrix)) = inside.and_then(|rest| rest.split_once('.')).map(|(e, m)| (e.parse(), m)) {
            let matrices = [(names.gate, "ffn_gate"), (names.up, "ffn_up"), (names.down, "ffn_down")];
            let own = matrices.into_iter().find(|(other, _)| *other == matrix).map_or(matrix, |(_, own)| own);
            let stacked = (format!("blk.{layer}.{own}_exps.{kind}"), expert);
            return (format!("blk.{layer}.{own}.{expert}.{kind}"), Some(stacked));
        }
    }
    let own = match PARTS.iter().find(|(other, _)| *other == part) {
        _ if config.family.layer_norms.before_feed_forward == Some(part) => ARCHITECTURES
            .iter()
            .find(|row| row.config == config.family.architecture)
            .map_or("ffn_norm", |row| row.feed_forward_norm),
        Some((_, own)) => own,
        None => part,
    };
    (format!("blk.{layer}.{own}.{kind}"), None)
}

impl Place {
    /// Bytes of the tensor.
    fn bytes(&self) -> usize {
        self.rows * self.width / self.format.block_size() * self.format.type_size()
    }
}

impl Gguf {
    /// A matrix in the format of the file, with the rows in the order of `source`; `None` if it is not quantised.
    ///
    /// # Errors
    /// If there is no such matrix, or the file cannot be read.
    pub fn matrix(
        &self,
        machine: &Machine,
        name: &str,
        shape: (usize, usize),
        source: impl Fn(usize) -> usize + Sync,
    ) -> Result<Option<Quantised>> {
        let place = self.place(name)?;
        let TensorFormat::Blocks(format) = place.format else { return Ok(None) };
        ensure!((place.rows, place.width) == shape, "{name} has another shape");
        let bytes = self.bytes(place).with_context(|| name.to_owned())?;
        let quantised = Quantised::from_bytes(machine, format, shape, &bytes, |row| place.row_of(source(row)));
        Ok(Some(quantised.with_context(|| format!("{name} has rows that are not whole blocks"))?))
    }

    /// Bytes of a tensor, by the name of transformers; 0 if there is none.
    pub fn tensor_bytes(&self, name: &str) -> u64 {
        self.places.get(name).map_or(0, |place| place.bytes() as u64)
    }

    /// The format of a tensor, by the name of transformers.
    pub fn format(&self, name: &str) -> Option<TensorFormat> {
        self.places.get(name).map(|place| place.format)
    }

    /// The names of the formats of tensors, with the bytes that the tensors of each have.
    pub fn formats(&self) -> BTreeMap<String, u64> {
        let mut formats = BTreeMap::new();
        for place in self.places.values() {
            *formats.entry(place.format.to_string()).or_insert(0) += place.bytes() as u64;
        }
        formats
    }

    /// The name of a format that Candle lacks, if a tensor has one.
    pub fn unknown_to_candle(&self) -> Option<&'static str> {
        let unknown = self.places.values().map(|place| place.format).filter(|format| format.of_candle().is_none());
        unknown.map(TensorFormat::name).min()
    }

    /// Number of files.
    pub fn parts(&self) -> usize {
        self.files.len()
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).with_context(|| format!("the file has no {name}"))
    }

    /// Reads a tensor. Its bytes were found to lie in the file when it was opened.
    fn bytes(&self, place: &Place) -> Result<Vec<u8>> {
        let mut bytes = vec![0; place.bytes()];
        let mut file = self.files[place.part].lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(place.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .context("it cannot be read")?;
        Ok(bytes)
    }

    /// Numbers that frequencies are divided by, if the file has them.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.places.contains_key(name) {
            return Ok(None);
        }
        let factors = self.values(name)?;
        let is_factor = |factor: &f32| factor.is_finite() && *factor > 0.0;
        ensure!(factors.iter().all(is_factor), "{name} holds a number that is not above 0");
        Ok(Some(factors))
    }

    /// A tensor as f32.
    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let place = self.place(name)?;
        let bytes = self.bytes(place).with_context(|| name.to_owned())?;
        let stored = place.format.values(&bytes, (place.rows, place.width)).with_context(|| name.to_owned())?;
        let rows = (0..place.rows).flat_map(|row| &stored[place.row_of(row) * place.width..][..place.width]);
        Ok(rows.map(|value| value - place.offset).collect())
    }
}

impl Place {
    /// The place of a row in the file.
    fn row_of(&self, row: usize) -> usize {
        match self.interleaved {
            0 => row,
            head_dim => {
                let (head, place, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + place % half * 2 + place / half
            }
        }
    }
}

/// Gives the tensors as f32, by the names of transformers.
struct Backend(Arc<Gguf>);

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let values = self.0.values(name).map_err(|error| candle_core::Error::Msg(format!("{error:#}")))?;
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("{name}: tensors of a GGUF file are read by their shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.places.contains_key(name)
    }
}

#[cfg(test)]
mod tests;
