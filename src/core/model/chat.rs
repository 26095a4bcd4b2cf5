//! The chat template of a checkpoint: how a conversation is written as a prompt.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ModelSpec,
    checkpoint::{JSON_MAX_BYTES, TOKENIZER_CONFIG, read_json},
};
use crate::files::read_text_limited;

/// The template in a file of its own, as newer checkpoints have it.
pub(crate) const TEMPLATE: &str = "chat_template.jinja";
/// Special tokens of older checkpoints.
pub(crate) const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// The files with a template and its tokens.
const FILES: [&str; 3] = [TEMPLATE, TOKENIZER_CONFIG, SPECIAL_TOKENS];
/// Names of special tokens.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template in Jinja, and the special tokens that it may write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTemplate {
    /// Text of the template.
    pub source: String,
    /// The token that begins a sequence; empty if there is none.
    pub bos_token: String,
    /// The token that ends a sequence; empty if there is none.
    pub eos_token: String,
    /// All special tokens by name, such as `pad_token`.
    pub special_tokens: BTreeMap<String, String>,
}

/// The chat template of a model; `None` if it has none. `spec` is the source of a loaded model, whose files are there.
///
/// # Errors
/// If a file cannot be read, or is not JSON.
pub fn chat_template(spec: &ModelSpec) -> Result<Option<ChatTemplate>> {
    match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) | ModelSpec::Seeded(_) => Ok(None),
        ModelSpec::Hub { .. } | ModelSpec::Path(_) if spec.is_gguf() => {
            let (file, _) = super::gguf_file(spec)?;
            let beside = FILES.map(|name| Some(file.with_file_name(name)).filter(|file| file.exists()));
            Ok(read(beside)?.or(super::gguf::chat_template(&file)?).if_any())
        }
        #[cfg(feature = "hub")]
        ModelSpec::Hub { repo, revision, .. } => {
            let files = super::hub::Hub::from_env().fetch_optional(repo, revision, &FILES)?;
            let files =
                FILES.map(|name| files.iter().find(|path| path.file_name().is_some_and(|own| own == name)).cloned());
            Ok(read(files)?.if_any())
        }
        #[cfg(not(feature = "hub"))]
        ModelSpec::Hub { .. } => Ok(None),
        ModelSpec::Path(folder) => {
            Ok(read(FILES.map(|name| Some(folder.join(name)).filter(|file| file.exists())))?.if_any())
        }
    }
}

impl ChatTemplate {
    /// With the parts of another where this has none.
    fn or(self, other: Self) -> Self {
        let or = |text: String, other: String| if text.is_empty() { other } else { text };
        Self {
            source: or(self.source, other.source),
            bos_token: or(self.bos_token, other.bos_token),
            eos_token: or(self.eos_token, other.eos_token),
            special_tokens: other.special_tokens.into_iter().chain(self.special_tokens).collect(),
        }
    }

    /// `None` if there is no template, whose special tokens are of no use alone.
    fn if_any(self) -> Option<Self> {
        Some(self).filter(|found| !found.source.is_empty())
    }
}

/// Reads the template from its own file, which takes precedence, or from the settings of the tokenizer. What they lack is
/// empty.
fn read([template, config, tokens]: [Option<PathBuf>; 3]) -> Result<ChatTemplate> {
    let json = |file: Option<PathBuf>| file.as_deref().map(read_json).transpose();
    let (config, tokens): (Value, Value) = (json(config)?.unwrap_or_default(), json(tokens)?.unwrap_or_default());
    let source = match template {
        Some(file) => read_text(&file)?,
        None => inside(&config["chat_template"]).unwrap_or_default(),
    };
    // A token is a text or an object with the text.
    let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
    let mut special_tokens = BTreeMap::new();
    let named = NAMES.iter().map(|name| (*name, text(&config[*name]).or_else(|| text(&tokens[*name]))));
    special_tokens.extend(named.filter_map(|(name, token)| Some((name.to_owned(), token?))));
    let extra = config["extra_special_tokens"].as_object().into_iter().flatten();
    special_tokens.extend(extra.filter_map(|(name, token)| Some((name.clone(), text(token)?))));
    let token = |name: &str| special_tokens.get(name).cloned().unwrap_or_default();
    let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
    Ok(ChatTemplate { source, bos_token, eos_token, special_tokens })
}

fn read_text(file: &Path) -> Result<String> {
    read_text_limited(file, JSON_MAX_BYTES).with_context(|| format!("{} could not be read", file.display()))
}

/// The template of a tokenizer's settings: a text, or a list of named ones of which one is the default.
fn inside(template: &Value) -> Option<String> {
    let default = || template.as_array()?.iter().find(|named| named["name"] == "default")?["template"].as_str();
    template.as_str().or_else(default).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_found_in_its_file_or_in_the_settings() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = ModelSpec::Path(folder.path().into());
        let found = || chat_template(&spec).expect("readable");
        assert_eq!(found(), None);
        let config = |config: Value| fs::write(folder.path().join(TOKENIZER_CONFIG), config.to_string());
        config(json!({"bos_token": "<s>"})).expect("written");
        assert_eq!(found(), None);
        for template in [json!("a"), json!([{"name": "rag", "template": "b"}, {"name": "default", "template": "a"}])] {
            let eos = json!({"content": "</s>", "lstrip": false});
            config(json!({"bos_token": "<s>", "eos_token": eos, "chat_template": template})).expect("written");
            let special_tokens =
                [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
            let expected = ChatTemplate {
                source: "a".into(),
                bos_token: "<s>".into(),
                eos_token: "</s>".into(),
                special_tokens: special_tokens.into(),
            };
            assert_eq!(found(), Some(expected));
        }
        let tokens = json!({"bos_token": "<other>", "pad_token": {"content": "<pad>"}}).to_string();
        fs::write(folder.path().join(SPECIAL_TOKENS), tokens).expect("written");
        let found_tokens = found().expect("a template").special_tokens;
        assert_eq!((found_tokens["bos_token"].as_str(), found_tokens["pad_token"].as_str()), ("<s>", "<pad>"));
        fs::write(folder.path().join(TEMPLATE), "own file").expect("written");
        assert_eq!(found().expect("a template").source, "own file");
        fs::write(folder.path().join(TOKENIZER_CONFIG), "{").expect("written");
        assert!(chat_template(&spec).is_err());
    }
}
