//! What other settings would change, measured in turns with those in force.

use std::{fmt, path::Path};

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Explanation;
use crate::{
    files,
    recommend::{Ratio, Verdict},
    report::text_table::{width, wrapped},
    text,
};

/// An explanation, and what would make the generation faster.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Advised {
    /// Model, engine, dtype and device.
    pub variant: String,
    /// Where the time goes.
    pub explanation: Explanation,
    /// Other settings, the fastest first.
    pub advice: Vec<Advice>,
    /// The explanation that stands beside it; `null` without `--against`.
    pub against: Option<Beside>,
}

/// Another explanation, of another engine or of an earlier run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Beside {
    /// An engine, or a file.
    pub name: String,
    /// Where the time goes there.
    pub explanation: Explanation,
}

/// Another way to run the model.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Advice {
    /// A flag or a variable.
    pub change: String,
    /// Time of a short generation with the change over that without; `null` if it was not measured.
    pub ratio: Option<Ratio>,
    /// Why it was not measured; `null` if it was.
    pub reason: Option<String>,
}

/// Longest file of an explanation, and the most passes, parts and characters of a name that count. Others may have made the file.
const MOST_BYTES: u64 = 16 << 20;
const MOST_PASSES: usize = 8;
const MOST_PARTS: usize = 200;
const LONGEST_NAME: usize = 60;

impl Beside {
    /// Reads a file that `candlepower why --json` wrote. Its name is the variant.
    ///
    /// # Errors
    /// If the file is missing, longer than 16 MiB, or another one.
    pub fn read(file: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Earlier {
            variant: String,
            explanation: Explanation,
        }
        let told = || format!("{}: no file that `candlepower why --json` wrote", text::line(&file.to_string_lossy()));
        let read = files::read_text_limited(file, MOST_BYTES).with_context(told)?;
        let Earlier { variant, mut explanation } = serde_json::from_str(&read).with_context(told)?;
        let short = |name: &str| text::short(name, LONGEST_NAME);
        explanation.phases.truncate(MOST_PASSES);
        for phase in &mut explanation.phases {
            phase.name = short(&phase.name);
            phase.parts.truncate(MOST_PARTS);
            phase.parts.iter_mut().for_each(|part| part.name = short(&part.name));
        }
        Ok(Self { name: short(&variant), explanation })
    }
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", text::line(&self.variant))?;
        let fastest = self.advice.first().and_then(|advice| Some((&advice.change, advice.ratio?)));
        if let Some((change, ratio)) = fastest.filter(|(_, ratio)| ratio.verdict() == Verdict::Better) {
            let line = format!("{change} makes it {:.2} × as fast, as measured below.", 1.0 / ratio.ratio);
            writeln!(f, "{}", wrapped(&line, width()).join("\n"))?;
        }
        write!(f, "{}", self.explanation)?;
        if let Some(Beside { name, explanation }) = &self.against {
            write!(f, "{}", self.explanation.beside(explanation, &text::line(name)))?;
        }
        if !self.advice.is_empty() {
            writeln!(f, "\nTime of a short generation with another setting, over that with this one, in turns:")?;
        }
        let longest =
            self.advice.iter().map(|advice| advice.change.chars().count()).max().unwrap_or(0).min(width() / 3);
        for Advice { change, ratio, reason } in &self.advice {
            let result = match (ratio, reason) {
                (Some(ratio), _) => {
                    let verdict = match ratio.verdict() {
                        Verdict::Better => "faster",
                        Verdict::Worse => "slower",
                        _ => "no difference",
                    };
                    format!("{} {verdict}", ratio.text())
                }
                (None, reason) => format!("not measured: {}", text::line(reason.as_deref().unwrap_or_default())),
            };
            let mut lines = wrapped(&format!("{change:<longest$}  {result}"), width()).into_iter();
            writeln!(f, "  {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}
