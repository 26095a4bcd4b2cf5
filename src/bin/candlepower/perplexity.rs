//! `candlepower perplexity`: the likelihood of a file under one or several models.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candlepower::{
    device::Precision,
    output,
    quality::{self, Entry, Sliding, Source, Window},
    record::{self, BenchmarkId, Measures, Record},
    report::{
        table,
        text_table::{TERMINAL_WIDTH, wrapped},
    },
    runner::Session,
    settings::Settings,
    workload::Timed,
};
use clap::Args;
use indicatif::ProgressBar;

use crate::{
    flags::{Flags, OneModel},
    subjects,
};

#[derive(Args)]
pub struct Perplexity {
    /// A text, or token ids separated by white space or commas
    tokens: PathBuf,
    /// llama-mini, synthetic:<shape>, hub:<owner>/<name>[@revision] or path:<folder>; several are separated by commas
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
    /// Variant of the first model whose predictions are the reference, such as tuned-f32, tuned or f32
    #[arg(long)]
    reference: Option<String>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Perplexity {
    pub fn run(self) -> Result<ExitCode> {
        let sliding = Sliding::new(self.seq_len, self.stride)?;
        let given = [self.settings.given(), &[("models", self.model.clone())]].concat();
        let settings = Settings::load(&given)?;
        let reference = self.reference.as_deref().map(|variant| {
            let model = &settings.models[0];
            let (engine, dtype) = settings.variants_for(model)[0].clone();
            let first = [("models", model.to_string()), ("engine", engine.to_string()), ("dtype", dtype.to_string())];
            let of_reference = Settings::load(&[given.as_slice(), &first, &parts(variant)].concat());
            of_reference.with_context(|| format!("--reference={variant}"))
        });
        let reference = reference.transpose()?;
        let source = Source::read(&self.tokens)?;
        let mut session = Session::new(settings.clone())?;
        record::check_writable(&settings.out)?;

        let mut loaded = subjects::load(&settings)?;
        let count = loaded.len();
        if let Some(settings) = &reference {
            loaded.extend(subjects::load(settings)?);
        }
        let ids = source.ids(&loaded[0].1)?;
        for (_, subject) in &loaded[1..] {
            ensure!(
                source.ids(subject)? == ids,
                "{} and {} split the text into different tokens, so their figures per token do not compare",
                subject.source,
                loaded[0].1.source
            );
        }
        let scenario = format!("perplexity_{}_w{}_s{}", source.slug(), self.seq_len, self.stride);
        let (abouts, mut entries): (Vec<_>, Vec<_>) = loaded
            .into_iter()
            .map(|(about, subject)| {
                let id = BenchmarkId::new(&scenario, &about).to_string();
                let (model, spent) = Timed::new(subject.model);
                ((about, spent), Entry { id, model: Box::new(model) })
            })
            .unzip();
        let (entries, reference) = entries.split_at_mut(count);
        // Drawn on standard error, and only if that is a terminal.
        let bar = ProgressBar::new(0);
        let report = quality::score(&source, &ids, sliding, entries, reference.first_mut(), |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();

        let computed: usize = sliding.over(ids.len()).iter().map(Window::inputs).sum();
        let mut records: Vec<Record> = Vec::new();
        for ((about, spent), scored) in abouts.into_iter().zip(report.subjects.iter().chain(&report.reference)) {
            // A subject that is also the reference has a record with its divergence.
            if records.iter().any(|record| record.id == scored.id) {
                continue;
            }
            let (mut measures, unmeasured) = report.measures(scored);
            measures.scored_tokens_per_s = Some(computed as f64 / spent.get().as_secs_f64());
            let measures = Measures::Quality(measures);
            let deviates = scored.deviates.clone();
            let mut record = subjects::record(&session, &scenario, about, measures, unmeasured, deviates);
            session.append(&mut record)?;
            records.push(record);
        }
        if self.json {
            output::print_data(&serde_json::to_string(&report)?);
            return Ok(ExitCode::SUCCESS);
        }
        for table in table::tables(records.iter()) {
            output::print(table.terminal());
        }
        for difference in &report.comparisons {
            output::print_line(format_args!("\n{}", wrapped(&difference.text(), TERMINAL_WIDTH).join("\n")));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Splits a variant such as `tuned-f32`, `tuned` or `f32` into settings.
fn parts(variant: &str) -> Vec<(&'static str, String)> {
    let is_dtype = |text: &str| text.parse::<Precision>().is_ok();
    match variant.rsplit_once('-') {
        _ if is_dtype(variant) => vec![("dtype", variant.to_owned())],
        Some((engine, dtype)) => vec![("engine", engine.to_owned()), ("dtype", dtype.to_owned())],
        None => vec![("engine", variant.to_owned())],
    }
}
