//! The tables of the guide that say which engine runs which family.

use anyhow::Result;
use candle_core::DType;
use serde_json::json;

use super::{
    config::ModelConfig,
    decoder,
    family::{FAMILIES, Family},
    gguf, shapes,
    stock::{self, quantised},
};
use crate::scenario;

/// The outcome of a configuration on an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Runs,
    /// It runs, and some prompts or dtypes are marked as deviating from the reference implementation.
    Deviates,
    Refused,
}

impl Outcome {
    fn of(refused: bool, deviates: impl FnOnce() -> bool) -> Self {
        match refused {
            true => Self::Refused,
            false if deviates() => Self::Deviates,
            false => Self::Runs,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Deviates => "deviates",
            Self::Refused => "refused",
        }
    }
}

/// A column of the table.
struct Column {
    title: &'static str,
    outcome: fn(&ModelConfig) -> Outcome,
}

const COLUMNS: [Column; 5] = [
    Column { title: "`stock`", outcome: on_stock },
    Column { title: "`tuned` on a CPU", outcome: |_| Outcome::Runs },
    Column {
        title: "`tuned` elsewhere",
        outcome: |config| Outcome::of(!decoder::runs_elsewhere(config.family.architecture), || false),
    },
    Column { title: "`stock`, GGUF", outcome: on_stock_of_gguf },
    Column {
        title: "`tuned`, GGUF",
        outcome: |config| Outcome::of(!gguf::holds(config.family.architecture), || false),
    },
];

fn on_stock(config: &ModelConfig) -> Outcome {
    let tokens = scenario::longest_generation();
    let deviates = |dtype| stock::deviates(config, dtype, tokens).is_some();
    Outcome::of(stock::refusal(config).is_some(), || [DType::F32, DType::F16, DType::BF16].into_iter().any(deviates))
}

fn on_stock_of_gguf(config: &ModelConfig) -> Outcome {
    let refused = !gguf::holds(config.family.architecture) || quantised::refusal(config).is_some();
    Outcome::of(refused, || quantised::deviates(config, scenario::longest_generation()).is_some())
}

/// The published shapes of a family. For a family without any, a configuration with the defaults of the family.
fn examples(family: &'static Family) -> Result<Vec<ModelConfig>> {
    let published: Vec<_> = shapes::SYNTHETIC.iter().map(|name| shapes::shape(name)).collect::<Result<_>>()?;
    let own: Vec<_> = published.into_iter().filter(|config| config.family == family).collect();
    if !own.is_empty() {
        return Ok(own);
    }
    Ok(vec![ModelConfig::from_json(&json!({
        "architectures": [family.architecture], "hidden_size": 4096, "intermediate_size": 14_336, "vocab_size": 32_000,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    }))?])
}

/// The table in the guide of the families and the engines, in Markdown. A cell has all outcomes of the family's shapes.
///
/// # Errors
/// If a configuration cannot be read.
pub fn families_in_markdown() -> Result<String> {
    let titles = COLUMNS.map(|column| column.title).join(" | ");
    let mut table = format!("| architecture | {titles} |\n|---|{}\n", "---|".repeat(COLUMNS.len()));
    for family in FAMILIES {
        let examples = examples(family)?;
        let cells = COLUMNS.map(|column| {
            let mut outcomes: Vec<_> = examples.iter().map(column.outcome).collect();
            outcomes.sort();
            outcomes.dedup();
            outcomes.into_iter().map(Outcome::word).collect::<Vec<_>>().join(", ")
        });
        table += &format!("| `{}` | {} |\n", family.architecture, cells.join(" | "));
    }
    Ok(table)
}
