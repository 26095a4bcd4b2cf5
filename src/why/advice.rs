//! What other settings would change, measured in turns with those in force.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::Explanation;
use crate::{
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

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", text::line(&self.variant))?;
        let fastest = self.advice.first().and_then(|advice| Some((&advice.change, advice.ratio?)));
        if let Some((change, ratio)) = fastest.filter(|(_, ratio)| ratio.verdict() == Verdict::Better) {
            let line = format!("{change} makes it {:.2} × as fast, as measured below.", 1.0 / ratio.ratio);
            writeln!(f, "{}", wrapped(&line, width()).join("\n"))?;
        }
        write!(f, "{}", self.explanation)?;
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
