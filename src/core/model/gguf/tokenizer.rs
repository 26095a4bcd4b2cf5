//! The tokenizer that the metadata of a GGUF file describes.
//!
//! The rules are those of llama.cpp's `llama-vocab.cpp`, in the form that the `tokenizer.json` of the same models has.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer, models::bpe::BPE};

use super::metadata::{self, Metadata};
use crate::error::{listed, one_line};

/// Longest token. The time to find the merges of a token grows with the square of its length.
const LONGEST_TOKEN: usize = 1024;

/// The types of tokens, as llama.cpp numbers them.
const NORMAL: i128 = 1;
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// The space of SentencePiece.
const SPACE: &str = "\u{2581}";

/// How byte-level tokenizers of one kind split a text before they merge: each expression splits the pieces of those before it.
struct Splits {
    /// The names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    expressions: &'static [&'static str],
    /// Words of the vocabulary are tokens without merges.
    ignore_merges: bool,
    /// Whether a text begins with the token that begins a sequence, where the file does not say.
    adds_bos: bool,
    /// The form of Unicode that the text is brought to.
    normalizer: Option<&'static str>,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const fn splits(names: &'static [&'static str], expressions: &'static [&'static str]) -> Splits {
    Splits { names, expressions, ignore_merges: false, adds_bos: false, normalizer: None }
}

/// The pre-tokenizers of the models' `tokenizer.json`, by the names that llama.cpp gives them.
const SPLITS: &[Splits] = &[
    // Files without a name, and those of a converter that did not know the model.
    splits(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    splits(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "granite-docling",
        ],
        &[GPT2],
    ),
    splits(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    splits(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Splits {
        ignore_merges: true,
        adds_bos: true,
        ..splits(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], &[LLAMA3])
    },
    splits(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    Splits { ignore_merges: true, ..splits(&["glm4", "glm5"], &[LLAMA3]) },
    Splits {
        normalizer: Some("NFC"),
        ..splits(&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "kormo"], &[QWEN2])
    },
    Splits { normalizer: Some("NFC"), ..splits(&["qwen35"], &[QWEN35]) },
    splits(&["hunyuan", "solar-open", "grok-2"], &[QWEN2]),
    Splits { ignore_merges: true, adds_bos: true, ..splits(&["tekken"], &[TEKKEN]) },
    splits(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT4O]),
    splits(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]),
    splits(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
];

/// The vocabulary of a file.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    types: Vec<i128>,
    ids: HashMap<&'a str, u32>,
}

/// The tokenizer of a model with a vocabulary of this size.
///
/// # Errors
/// One line that says why the metadata describes none, or one that is not supported.
pub fn tokenizer(metadata: &Metadata, vocab_size: usize) -> Result<Tokenizer> {
    let kind = metadata.text("tokenizer.ggml.model")?.context("it has no tokenizer.ggml.model")?;
    let tokens = Tokens::of(metadata, vocab_size)?;
    let tokenizer = match kind {
        "gpt2" => byte_level(metadata, &tokens),
        "llama" => sentencepiece(metadata, &tokens),
        other => bail!("its tokenizer {other} is not supported; the supported ones are gpt2 and llama"),
    };
    let mut tokenizer = tokenizer?;
    // llama.cpp knows by the name that these models' tokens take the spaces after them, except some.
    let name = metadata.text("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = ["phi-3", "phi3"].iter().any(|part| name.contains(part));
    let takes_spaces = |text: &str| is_phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
    // Texts may contain all of these. Answers show those that the user defined.
    let of_types = |types: &[i128], is_special: bool| {
        let mut added = Vec::new();
        for (text, kind) in tokens.texts.iter().zip(&tokens.types) {
            if types.contains(kind) {
                added.push(AddedToken::from(*text, is_special).normalized(false).rstrip(takes_spaces(text)));
            }
        }
        added
    };
    let added = tokenizer
        .add_special_tokens(of_types(&[CONTROL, UNKNOWN], true))
        .and_then(|_| tokenizer.add_tokens(of_types(&[USER_DEFINED], false)));
    added.map_err(|error| anyhow!("its special tokens: {}", one_line(&error)))?;
    Ok(tokenizer)
}

/// The text of the token that a key names; `None` if there is no such key, or it names no token, as -1 does.
pub fn special_token<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a str>> {
    let texts = metadata.list("tokenizer.ggml.tokens", "texts", metadata::text)?.unwrap_or_default();
    let id = metadata.whole(key)?.and_then(|id| usize::try_from(id).ok());
    Ok(id.and_then(|id| texts.get(id).copied()))
}

impl<'a> Tokens<'a> {
    fn of(metadata: &'a Metadata, vocab_size: usize) -> Result<Self> {
        let texts = metadata.list("tokenizer.ggml.tokens", "texts", metadata::text)?;
        let texts = texts.context("it has no tokenizer.ggml.tokens")?;
        let count = texts.len();
        ensure!(count <= vocab_size, "its tokenizer has {count} tokens, the model has {vocab_size}");
        let types = metadata.list("tokenizer.ggml.token_type", "whole numbers", metadata::whole)?;
        let types = types.unwrap_or_else(|| vec![NORMAL; count]);
        ensure!(types.len() >= count, "tokenizer.ggml.token_type has {} types of {count} tokens", types.len());
        let mut ids = HashMap::with_capacity(count);
        for (text, id) in texts.iter().copied().zip(0..) {
            ensure!(text.len() <= LONGEST_TOKEN, "token {id} of its tokenizer has {} bytes", text.len());
            if let Some(other) = ids.insert(text, id) {
                bail!("tokens {other} and {id} of its tokenizer are the same text");
            }
        }
        Ok(Self { texts, types, ids })
    }

    /// The tokens that begin and end a text, as a post-processor of `tokenizer.json`; `None` if there are none.
    fn around_texts(&self, metadata: &Metadata, adds_bos: bool, ids: Option<(i128, i128)>) -> Result<Value> {
        let token = |adds: Option<bool>, default: bool, key: &str, id: Option<i128>| -> Result<Option<u32>> {
            let id = metadata.whole(key)?.or(id).and_then(|id| u32::try_from(id).ok());
            Ok(id.filter(|id| adds.unwrap_or(default) && (*id as usize) < self.texts.len()))
        };
        let bos = metadata.flag("tokenizer.ggml.add_bos_token")?;
        let bos = token(bos, adds_bos, "tokenizer.ggml.bos_token_id", ids.map(|(bos, _)| bos))?;
        let eos = metadata.flag("tokenizer.ggml.add_eos_token")?;
        let eos = token(eos, false, "tokenizer.ggml.eos_token_id", ids.map(|(_, eos)| eos))?;
        if bos.or(eos).is_none() {
            return Ok(Value::Null);
        }
        let special = |id: u32| json!({"SpecialToken": {"id": self.texts[id as usize], "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let with = |texts: Vec<Value>| -> Vec<Value> {
            bos.map(special).into_iter().chain(texts).chain(eos.map(special)).collect()
        };
        let about = |id: u32| {
            let text = self.texts[id as usize];
            (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}))
        };
        let tokens: serde_json::Map<_, _> = bos.into_iter().chain(eos).map(about).collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": with(vec![text("A")]),
            "pair": with(vec![text("A"), text("B")]),
            "special_tokens": tokens,
        }))
    }

    fn vocabulary(&self) -> impl Iterator<Item = (String, u32)> {
        self.ids.iter().map(|(text, id)| ((*text).to_owned(), *id))
    }
}

/// Byte-level BPE, with the merges of the file.
fn byte_level(metadata: &Metadata, tokens: &Tokens) -> Result<Tokenizer> {
    let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some(row) = SPLITS.iter().find(|row| row.names.contains(&name)) else {
        let known: Vec<_> = SPLITS.iter().flat_map(|row| row.names).map(|name| (*name).to_owned()).collect();
        bail!("its pre-tokenizer {name} is not supported; {} are", listed(&known))
    };
    let merges = metadata.list("tokenizer.ggml.merges", "texts", metadata::text)?;
    let merges = merges.context("it has no tokenizer.ggml.merges")?.into_iter().map(|merge| {
        // A token may begin with a space.
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let at = at.with_context(|| format!("tokenizer.ggml.merges has '{merge}', which is not two tokens"))?;
        Ok((merge[..at].to_owned(), merge[at + 1..].to_owned()))
    });
    let bpe = BPE::builder()
        .vocab_and_merges(
            tokens.vocabulary().collect::<tokenizers::models::bpe::Vocab>(),
            merges.collect::<Result<_>>()?,
        )
        .ignore_merges(row.ignore_merges);
    let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let steps: Vec<_> = row.expressions.iter().map(split).chain([bytes.clone()]).collect();
    assembled(
        bpe,
        json!({
            "normalizer": row.normalizer.map(|form| json!({"type": form})),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": tokens.around_texts(metadata, row.adds_bos, None)?,
            "decoder": bytes,
        }),
    )
}

/// BPE of SentencePiece. It joins the two pieces whose whole has the highest score.
fn sentencepiece(metadata: &Metadata, tokens: &Tokens) -> Result<Tokenizer> {
    let scores = metadata.list("tokenizer.ggml.scores", "finite numbers", metadata::number)?;
    let scores = scores.context("it has no tokenizer.ggml.scores")?;
    let (found, count) = (scores.len(), tokens.texts.len());
    ensure!(found >= count, "tokenizer.ggml.scores has {found} scores of {count} tokens");
    let mut pieces: Vec<usize> = (0..count).filter(|id| tokens.types[*id] == NORMAL).collect();
    pieces.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let is_piece = |text: &str| tokens.ids.contains_key(text);
    let mut merges = Vec::new();
    for piece in pieces.into_iter().map(|id| tokens.texts[id]) {
        let ways = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut ways: Vec<_> = ways.filter(|(left, right)| is_piece(left) && is_piece(right)).collect();
        ways.sort_by_key(|(left, _)| Reverse(left.len()));
        merges.extend(ways.into_iter().map(|(left, right)| (left.to_owned(), right.to_owned())));
    }
    let mut bpe = BPE::builder()
        .vocab_and_merges(tokens.vocabulary().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .byte_fallback(true)
        .fuse_unk(true);
    let unknown = metadata.whole("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    if let Some(unknown) = usize::try_from(unknown).ok().and_then(|id| tokens.texts.get(id)) {
        bpe = bpe.unk_token((*unknown).to_owned());
    }
    let begins_with_space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prepend = begins_with_space.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let strip = begins_with_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    assembled(
        bpe,
        json!({
            "normalizer": {
                "type": "Sequence",
                "normalizers": prepend.into_iter().chain([spaces]).collect::<Vec<_>>(),
            },
            "post_processor": tokens.around_texts(metadata, true, Some((1, 2)))?,
            "decoder": {"type": "Sequence", "decoders": decoders.into_iter().chain(strip).collect::<Vec<_>>()},
        }),
    )
}

/// A tokenizer of a model, and the other parts of a `tokenizer.json`.
fn assembled(bpe: tokenizers::models::bpe::BpeBuilder, mut parts: Value) -> Result<Tokenizer> {
    let bpe = bpe.build().map_err(|error| anyhow!("its merges: {}", one_line(&error)))?;
    parts["version"] = json!("1.0");
    parts["model"] = json!({"type": "BPE", "vocab": {}, "merges": []});
    // The large vocabulary is given directly, and not by way of JSON.
    let tokenizer: Result<Tokenizer, _> = parts.to_string().parse();
    let mut tokenizer = tokenizer.map_err(|error| anyhow!("its tokenizer: {}", one_line(&error)))?;
    tokenizer.with_model(bpe);
    Ok(tokenizer)
}
