//! `candlepower perplexity`: the likelihood of a file under one or several models.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use super::{
    flags::{Flags, OneModel},
    scores::{self, Scores},
};
use crate::{
    device::Precision,
    output,
    quality::{Sliding, Source},
    record::{self, Guarded},
    report::{
        table,
        text_table::{width, wrapped},
    },
    runner::{self, Candidate, Session},
    settings::Settings,
};

#[derive(Args)]
pub struct Perplexity {
    /// A text, or token ids separated by white space or commas
    tokens: PathBuf,
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>; several are
    /// separated by commas
    #[arg(long)]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Tokens of a window
    #[arg(long, default_value_t = 1024)]
    seq_len: usize,
    /// Tokens by which the window moves
    #[arg(long, default_value_t = 256)]
    stride: usize,
    #[command(flatten)]
    reference: Reference,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// The reference of divergences.
#[derive(Args)]
pub struct Reference {
    /// Variant of the first model whose predictions are the reference, such as tuned-f32, tuned or f32
    #[arg(long)]
    reference: Option<String>,
    /// Model of the reference, if it is another one than the first, such as the same weights in f32
    #[arg(long, value_name = "MODEL", requires = "reference")]
    reference_model: Option<String>,
}

impl Reference {
    /// The settings `given`, with the model and the variant of the reference; `None` without one.
    pub fn settings(&self, given: &[(&'static str, String)]) -> Result<Option<Settings>> {
        let Some(variant) = &self.reference else { return Ok(None) };
        let settings = Settings::load(given)?;
        let first = &settings.models[0];
        let (engine, dtype) = settings.variants_for(first)[0].clone();
        let model = self.reference_model.clone().unwrap_or_else(|| first.to_string());
        let first = [("models", model), ("engine", engine.to_string()), ("dtype", dtype.to_string())];
        let of_reference = Settings::load(&[given, &first, &parts(variant)].concat());
        Ok(Some(of_reference.with_context(|| format!("--reference={variant}"))?))
    }
}

impl Perplexity {
    pub fn run(self) -> Result<ExitCode> {
        // A model that ends its process leaves the others, which another process scores.
        runner::guarded(|guarded| self.measure(guarded))
    }

    fn measure(&self, guarded: Option<Guarded>) -> Result<ExitCode> {
        let sliding = Sliding::new(self.seq_len, self.stride)?;
        let given = [self.settings.given(), &[("models", self.model.clone())]].concat();
        let settings = Settings::load(&given)?;
        let reference = self.reference.settings(&given)?;
        let source = Source::read(&self.tokens)?;
        let mut session = Session::new(settings.clone())?.with_guard(guarded)?;
        record::check_writable(&settings.out)?;

        let of_reference = reference.as_ref().map(Candidate::scored);
        let scored = scores::score(&mut session, (&source, sliding), Candidate::scored(&settings), of_reference)?;
        let Scores { report: Some(report), records, .. } = scored else { return scores::none_scored(scored.errors) };
        if self.json {
            output::print_data(&serde_json::to_string(&report)?);
        } else {
            for table in table::tables(records.iter()) {
                output::print(table.terminal());
            }
            for difference in &report.comparisons {
                output::print_line(format_args!("\n{}", wrapped(&difference.text(), width()).join("\n")));
            }
        }
        Ok(scores::exit_code(&records))
    }
}

/// Splits a variant such as `tuned-f32`, `tuned` or `f32` into settings.
pub fn parts(variant: &str) -> Vec<(&'static str, String)> {
    let is_dtype = |text: &str| text.parse::<Precision>().is_ok();
    match variant.rsplit_once('-') {
        _ if is_dtype(variant) => vec![("dtype", variant.to_owned())],
        Some((engine, dtype)) => vec![("engine", engine.to_owned()), ("dtype", dtype.to_owned())],
        None => vec![("engine", variant.to_owned())],
    }
}
