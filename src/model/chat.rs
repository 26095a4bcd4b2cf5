//! The chat template of a checkpoint: how a conversation is written as a prompt.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    ModelSpec,
    checkpoint::{JSON_MAX_BYTES, TOKENIZER_CONFIG, read_json},
};
use crate::files::read_text_limited;

/// The template in a file of its own, as newer checkpoints have it.
pub(crate) const TEMPLATE: &str = "chat_template.jinja";

/// A template in Jinja, and the special tokens that it may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplate {
    /// Text of the template.
    pub source: String,
    /// The token that begins a sequence; empty if there is none.
    pub bos_token: String,
    /// The token that ends a sequence; empty if there is none.
    pub eos_token: String,
}

/// The chat template of a model; `None` if it has none. `spec` is the source of a loaded model, whose files are there.
///
/// # Errors
/// If a file cannot be read, or is not JSON.
pub fn chat_template(spec: &ModelSpec) -> Result<Option<ChatTemplate>> {
    match spec {
        ModelSpec::Mini(_) | ModelSpec::Synthetic(_) => Ok(None),
        #[cfg(feature = "hub")]
        ModelSpec::Hub { repo, revision } => {
            let files = super::hub::Hub::from_env().fetch_optional(repo, revision, &[TEMPLATE, TOKENIZER_CONFIG])?;
            let [template, config] = [TEMPLATE, TOKENIZER_CONFIG]
                .map(|name| files.iter().find(|path| path.file_name().is_some_and(|own| own == name)).cloned());
            read(template, config)
        }
        #[cfg(not(feature = "hub"))]
        ModelSpec::Hub { .. } => Ok(None),
        ModelSpec::Path(folder) => {
            let existing = |name: &str| Some(folder.join(name)).filter(|file| file.exists());
            read(existing(TEMPLATE), existing(TOKENIZER_CONFIG))
        }
    }
}

/// Reads the template from its own file, which takes precedence, or from the settings of the tokenizer.
fn read(template: Option<PathBuf>, config: Option<PathBuf>) -> Result<Option<ChatTemplate>> {
    let config = config.as_deref().map(read_json).transpose()?.unwrap_or_default();
    let source = match template {
        Some(file) => Some(read_text(&file)?),
        None => inside(&config["chat_template"]),
    };
    // A token is a text or an object with the text.
    let token = |name: &str| {
        let token = &config[name];
        token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default().to_owned()
    };
    let with_tokens = |source| ChatTemplate { source, bos_token: token("bos_token"), eos_token: token("eos_token") };
    Ok(source.map(with_tokens))
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
            let expected = ChatTemplate { source: "a".into(), bos_token: "<s>".into(), eos_token: "</s>".into() };
            assert_eq!(found(), Some(expected));
        }
        fs::write(folder.path().join(TEMPLATE), "own file").expect("written");
        assert_eq!(found().expect("a template").source, "own file");
        fs::write(folder.path().join(TOKENIZER_CONFIG), "{").expect("written");
        assert!(chat_template(&spec).is_err());
    }
}
