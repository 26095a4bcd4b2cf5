//! The table of models with seeded weights. Each row has a `config.json` in `shapes/`.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    checkpoint::{CONFIG, read_json},
    config::ModelConfig,
    spec::ModelSpec,
};

/// A model with seeded weights.
struct Shape {
    name: &'static str,
    /// The published model that has these sizes; `None` if they are our own, and the model is embedded and small.
    published: Option<Published>,
    /// The text of its `config.json`.
    config: &'static str,
}

/// A published model.
struct Published {
    /// Its name on the Hugging Face Hub.
    name: &'static str,
    /// Its number of weights, as published. Those of `gemma3-4b` and `ministral-3-3b` leave the vision tower out.
    weights: u64,
}

const fn mini(name: &'static str, config: &'static str) -> Shape {
    Shape { name, published: None, config }
}

const fn row(name: &'static str, of: &'static str, weights: u64, config: &'static str) -> Shape {
    Shape { name, published: Some(Published { name: of, weights }), config }
}

// The sizes, factors of RoPE, soft caps and multipliers were compared with those that other programs state for the same models:
// LitGPT's config.py, ExecuTorch's examples/models, and tests of loaders that hold a copy of a config.json.
#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    mini("llama-mini", include_str!("shapes/llama-mini.json")),
    mini("qwen3-mini", include_str!("shapes/qwen3-mini.json")),
    mini("gemma3-mini", include_str!("shapes/gemma3-mini.json")),
    row("llama-3.2-1b",    "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, include_str!("shapes/llama-3.2-1b.json")),
    row("qwen3-1.7b",      "Qwen/Qwen3-1.7B",                  1_720_574_976, include_str!("shapes/qwen3-1.7b.json")),
    row("gemma3-1b",       "google/gemma-3-1b-it",               999_885_952, include_str!("shapes/gemma3-1b.json")),
    row("llama-3.1-8b",    "meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, include_str!("shapes/llama-3.1-8b.json")),
    row("qwen2.5-1.5b",    "Qwen/Qwen2.5-1.5B",                1_543_714_304, include_str!("shapes/qwen2.5-1.5b.json")),
    row("qwen3-0.6b",      "Qwen/Qwen3-0.6B",                    596_049_920, include_str!("shapes/qwen3-0.6b.json")),
    row("qwen3-4b",        "Qwen/Qwen3-4B",                    4_022_468_096, include_str!("shapes/qwen3-4b.json")),
    row("qwen3-8b",        "Qwen/Qwen3-8B",                    8_190_735_360, include_str!("shapes/qwen3-8b.json")),
    row("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3",        7_248_023_552, include_str!("shapes/mistral-7b-v0.3.json")),
    row("ministral-8b",    "mistralai/Ministral-8B-Instruct-2410", 8_019_808_256, include_str!("shapes/ministral-8b.json")),
    row("ministral-3-3b",  "mistralai/Ministral-3-3B-Base-2512", 3_429_006_336, include_str!("shapes/ministral-3-3b.json")),
    row("granite-3.3-2b",  "ibm-granite/granite-3.3-2b-base",  2_533_539_840, include_str!("shapes/granite-3.3-2b.json")),
    row("olmo2-1b",        "allenai/OLMo-2-0425-1B",           1_484_916_736, include_str!("shapes/olmo2-1b.json")),
    row("smollm3-3b",      "HuggingFaceTB/SmolLM3-3B",         3_075_098_624, include_str!("shapes/smollm3-3b.json")),
    row("gemma2-2b",       "google/gemma-2-2b",                2_614_341_888, include_str!("shapes/gemma2-2b.json")),
    row("gemma3-270m",     "google/gemma-3-270m-it",             268_098_176, include_str!("shapes/gemma3-270m.json")),
    row("gemma3-4b",       "google/gemma-3-4b-it",             3_880_263_168, include_str!("shapes/gemma3-4b.json")),
    row("phi-4-mini",      "microsoft/Phi-4-mini-instruct",    3_836_021_760, include_str!("shapes/phi-4-mini.json")),
    row("glm-4-9b-0414",   "zai-org/GLM-4-9B-0414",            9_400_279_040, include_str!("shapes/glm-4-9b-0414.json")),
    row("helium-1-2b",     "kyutai/helium-1-preview-2b",       2_172_643_840, include_str!("shapes/helium-1-2b.json")),
    row("gpt-oss-20b",     "openai/gpt-oss-20b",              20_914_757_184, include_str!("shapes/gpt-oss-20b.json")),
    row("qwen1.5-moe-a2.7b", "Qwen/Qwen1.5-MoE-A2.7B",        14_315_784_192, include_str!("shapes/qwen1.5-moe-a2.7b.json")),
];

/// Names of the embedded models.
pub const MINI: [&str; count(false)] = names(false);

/// Names of the published sizes that have seeded weights.
pub const SYNTHETIC: [&str; count(true)] = names(true);

const fn count(published: bool) -> usize {
    let (mut row, mut count) = (0, 0);
    while row < SHAPES.len() {
        count += (SHAPES[row].published.is_some() == published) as usize;
        row += 1;
    }
    count
}

const fn names<const COUNT: usize>(published: bool) -> [&'static str; COUNT] {
    let mut names = [""; COUNT];
    let (mut row, mut place) = (0, 0);
    while row < SHAPES.len() {
        if SHAPES[row].published.is_some() == published {
            names[place] = SHAPES[row].name;
            place += 1;
        }
        row += 1;
    }
    names
}

/// The configuration of a model with seeded weights.
///
/// # Errors
/// If no row has this name.
pub fn shape(name: &str) -> Result<ModelConfig> {
    ModelConfig::from_json(&serde_json::from_str(text(name)?)?)
}

/// The text of its `config.json`.
///
/// # Errors
/// If no row has this name.
pub fn text(name: &str) -> Result<&'static str> {
    let row = SHAPES.iter().find(|row| row.name == name).with_context(|| format!("unknown shape '{name}'"))?;
    Ok(row.config)
}

/// The `config.json` of a model with seeded weights; `None` for a model with files of its own.
pub(crate) fn seeded(spec: &ModelSpec) -> Option<Result<Value>> {
    match spec {
        ModelSpec::Mini(name) | ModelSpec::Synthetic(name) => {
            Some(text(name).and_then(|text| Ok(serde_json::from_str(text)?)))
        }
        ModelSpec::Seeded(path) if path.is_dir() => Some(read_json(&path.join(CONFIG))),
        ModelSpec::Seeded(path) => Some(read_json(path)),
        ModelSpec::Hub { .. } | ModelSpec::Path(_) => None,
    }
}

/// The table of models with seeded weights in the guide, in Markdown.
///
/// # Errors
/// If a configuration cannot be read.
pub fn shapes_in_markdown() -> Result<String> {
    let mut table = "| model | sizes of | architecture | weights |\n|---|---|---|---:|\n".to_owned();
    for Shape { name, published, .. } in SHAPES {
        let config = shape(name)?;
        let (prefix, of, weights) = match published {
            None => ("", "our own".to_owned(), config.parameters()),
            Some(Published { name, weights }) => ("synthetic:", format!("`{name}`"), *weights),
        };
        let (architecture, millions) = (config.family.architecture, weights as f64 / 1e6);
        table += &format!("| `{prefix}{name}` | {of} | `{architecture}` | {millions:.0} million |\n");
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tempfile::TempDir;

    use super::*;
    use crate::model::seeded_config;

    #[test]
    fn every_row_has_a_kind_and_a_readable_configuration() {
        assert_eq!(MINI.len() + SYNTHETIC.len(), SHAPES.len());
        for name in MINI.iter().chain(&SYNTHETIC) {
            shape(name).expect(name);
        }
    }

    #[test]
    fn a_file_or_its_folder_gives_the_shape() {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join(CONFIG);
        let config = |path: &Path| seeded_config(&ModelSpec::Seeded(path.into())).expect("it has seeded weights");
        let missing = format!("{:#}", config(&file).expect_err("no file"));
        assert!(missing.contains(CONFIG) && missing.contains("could not be read"), "{missing}");
        for name in MINI.iter().chain(&SYNTHETIC) {
            fs::write(&file, text(name).expect(name)).expect("written");
            for path in [file.as_path(), folder.path()] {
                assert_eq!(config(path).expect(name), shape(name).expect(name));
            }
        }
    }

    /// A size that is wrong changes the number of weights.
    #[test]
    fn published_shapes_have_the_published_number_of_weights() {
        for Shape { name, published, .. } in SHAPES {
            let Some(Published { weights, .. }) = published else { continue };
            assert_eq!(shape(name).expect(name).parameters(), *weights, "{name}");
        }
    }
}
