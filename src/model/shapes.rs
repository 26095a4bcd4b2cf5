//! The table of models with seeded weights. Each row has a `config.json` in `shapes/`.

use anyhow::{Context, Result};

use super::config::ModelConfig;

/// A model with seeded weights.
struct Shape {
    name: &'static str,
    kind: Kind,
    /// The text of its `config.json`.
    config: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Embedded and small, with sizes of our own.
    Mini,
    /// The sizes of a published model.
    Published,
}

const fn row(name: &'static str, kind: Kind, config: &'static str) -> Shape {
    Shape { name, kind, config }
}

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    row("llama-mini",      Kind::Mini,      include_str!("shapes/llama-mini.json")),
    row("qwen3-mini",      Kind::Mini,      include_str!("shapes/qwen3-mini.json")),
    row("gemma3-mini",     Kind::Mini,      include_str!("shapes/gemma3-mini.json")),
    row("llama-3.2-1b",    Kind::Published, include_str!("shapes/llama-3.2-1b.json")),
    row("qwen3-1.7b",      Kind::Published, include_str!("shapes/qwen3-1.7b.json")),
    row("gemma3-1b",       Kind::Published, include_str!("shapes/gemma3-1b.json")),
    row("llama-3.1-8b",    Kind::Published, include_str!("shapes/llama-3.1-8b.json")),
    row("qwen2.5-1.5b",    Kind::Published, include_str!("shapes/qwen2.5-1.5b.json")),
    row("qwen3-0.6b",      Kind::Published, include_str!("shapes/qwen3-0.6b.json")),
    row("qwen3-4b",        Kind::Published, include_str!("shapes/qwen3-4b.json")),
    row("qwen3-8b",        Kind::Published, include_str!("shapes/qwen3-8b.json")),
    row("mistral-7b-v0.3", Kind::Published, include_str!("shapes/mistral-7b-v0.3.json")),
    row("granite-3.3-2b",  Kind::Published, include_str!("shapes/granite-3.3-2b.json")),
    row("olmo2-1b",        Kind::Published, include_str!("shapes/olmo2-1b.json")),
    row("smollm3-3b",      Kind::Published, include_str!("shapes/smollm3-3b.json")),
    row("gemma2-2b",       Kind::Published, include_str!("shapes/gemma2-2b.json")),
    row("gemma3-270m",     Kind::Published, include_str!("shapes/gemma3-270m.json")),
    row("gemma3-4b",       Kind::Published, include_str!("shapes/gemma3-4b.json")),
    row("phi-4-mini",      Kind::Published, include_str!("shapes/phi-4-mini.json")),
    row("glm-4-9b-0414",   Kind::Published, include_str!("shapes/glm-4-9b-0414.json")),
];

/// Names of the embedded models.
pub const MINI: [&str; count(Kind::Mini)] = names(Kind::Mini);

/// Names of the published sizes that have seeded weights.
pub const SYNTHETIC: [&str; count(Kind::Published)] = names(Kind::Published);

const fn count(kind: Kind) -> usize {
    let (mut row, mut count) = (0, 0);
    while row < SHAPES.len() {
        count += (SHAPES[row].kind as u8 == kind as u8) as usize;
        row += 1;
    }
    count
}

const fn names<const COUNT: usize>(kind: Kind) -> [&'static str; COUNT] {
    let mut names = [""; COUNT];
    let (mut row, mut place) = (0, 0);
    while row < SHAPES.len() {
        if SHAPES[row].kind as u8 == kind as u8 {
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

/// The table of models with seeded weights in the guide, in Markdown.
///
/// # Errors
/// If a configuration cannot be read.
pub fn shapes_in_markdown() -> Result<String> {
    let mut table = "| model | architecture | weights |\n|---|---|---:|\n".to_owned();
    for Shape { name, kind, .. } in SHAPES {
        let config = shape(name)?;
        let prefix = match kind {
            Kind::Mini => "",
            Kind::Published => "synthetic:",
        };
        let (architecture, millions) = (config.family.architecture, config.parameters() as f64 / 1e6);
        table += &format!("| `{prefix}{name}` | `{architecture}` | {millions:.0} million |\n");
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_kind_and_a_readable_configuration() {
        assert_eq!(MINI.len() + SYNTHETIC.len(), SHAPES.len());
        for name in MINI.iter().chain(&SYNTHETIC) {
            shape(name).expect(name);
        }
    }
}
