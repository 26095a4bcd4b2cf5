//! `candlepower perplexity`: the likelihood of a file under one or several models.

use std::{cell::Cell, collections::BTreeMap, path::PathBuf, process::ExitCode, rc::Rc, time::Duration};

use anyhow::{Context, Error, Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::{
    flags::{Flags, OneModel},
    subjects,
};
use crate::{
    device::Precision,
    error::caught,
    model, output, progress,
    quality::{self, Entry, Sliding, Source, Unscored, Window},
    record::{self, BenchmarkId, Guarded, Measures, Record},
    report::{
        table,
        text_table::{width, wrapped},
    },
    runner::{self, Candidate, Session},
    settings::Settings,
    workload::Timed,
};

#[derive(Args)]
pub struct Perplexity {
    /// A text, or token ids separated by white space or commas
    tokens: PathBuf,
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape>; several are
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
    /// Variant of the first model whose predictions are the reference, such as tuned-f32, tuned or f32
    #[arg(long)]
    reference: Option<String>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
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
        let reference = self.reference.as_deref().map(|variant| {
            let model = &settings.models[0];
            let (engine, dtype) = settings.variants_for(model)[0].clone();
            let first = [("models", model.to_string()), ("engine", engine.to_string()), ("dtype", dtype.to_string())];
            let of_reference = Settings::load(&[given.as_slice(), &first, &parts(variant)].concat());
            of_reference.with_context(|| format!("--reference={variant}"))
        });
        let reference = reference.transpose()?;
        let source = Source::read(&self.tokens)?;
        let mut session = Session::new(settings.clone())?.with_guard(guarded)?;
        record::check_writable(&settings.out)?;

        let scenario = format!("perplexity_{}_w{}_s{}", source.slug(), self.seq_len, self.stride);
        let mut records: Vec<Record> = Vec::new();
        // A model that fails has a record once another one has a score.
        let mut failures: Vec<(record::Subject, Error)> = Vec::new();
        let mut load = |candidates: Vec<Candidate>| {
            let mut loaded = Vec::new();
            for mut candidate in candidates {
                let about = candidate.about.clone();
                // The reference may be a subject that has failed.
                let is_same = |(failed, _): &(record::Subject, Error)| *failed == about;
                let id = BenchmarkId::new(&scenario, &about).to_string();
                if failures.iter().any(is_same) || records.iter().any(|record| record.id == id) {
                    continue;
                }
                if let Some(record) = session.done_before(&id) {
                    records.push(record.clone());
                    continue;
                }
                session.note(&scenario, &about);
                match caught(|| candidate.load_model()) {
                    Ok(subject) => loaded.push((candidate.about, subject)),
                    Err(error) => failures.push((about, error)),
                }
            }
            loaded
        };
        let of_reference = reference.as_ref().map(Candidate::scored).transpose()?;
        let loaded = load(Candidate::scored(&settings)?);
        let Some(((_, first), others)) = loaded.split_first() else {
            return subjects::none_scored(failures.into_iter().map(|(_, error)| error));
        };
        let reference = of_reference.and_then(|candidates| load(candidates).pop());
        let ids = source.ids(first)?;
        for (_, subject) in others.iter().chain(&reference) {
            ensure!(
                source.ids(subject)? == ids,
                "{} and {} split the text into different tokens, so their figures per token do not compare",
                subject.source,
                first.source
            );
        }
        let mut known: BTreeMap<String, (record::Subject, Rc<Cell<Duration>>)> = BTreeMap::new();
        let mut entry = |(about, subject): (record::Subject, model::Subject)| {
            let id = BenchmarkId::new(&scenario, &about).to_string();
            let (model, spent) = Timed::new(subject.model);
            // A subject that is also the reference keeps its own time.
            known.entry(id.clone()).or_insert((about, spent));
            Entry { id, model: Box::new(model) }
        };
        let mut entries: Vec<Entry> = loaded.into_iter().map(&mut entry).collect();
        let mut reference = reference.map(entry);
        // Drawn on standard error, and only if that is a terminal.
        let bar = progress::shown(ProgressBar::new(0));
        let report = loop {
            if entries.is_empty() {
                return subjects::none_scored(failures.into_iter().map(|(_, error)| error));
            }
            let begin = |id: &str| session.note(&scenario, &known[id].0);
            let progress = |done: usize, all: usize| {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            };
            match quality::score(&source, &ids, sliding, &mut entries, reference.as_mut(), begin, progress) {
                Ok(report) => break report,
                Err(error) => {
                    let Some(Unscored { id }) = error.downcast_ref::<Unscored>() else { return Err(error) };
                    entries.retain(|entry| entry.id != *id);
                    reference = reference.filter(|entry| entry.id != *id);
                    failures.push((known[id].0.clone(), error));
                    // The others start again.
                    known.values().for_each(|(_, spent)| spent.set(Duration::ZERO));
                }
            }
        };
        bar.finish_and_clear();

        for (about, error) in failures {
            records.push(subjects::failed(&mut session, &scenario, about, error)?);
        }
        let computed: usize = sliding.over(ids.len()).iter().map(Window::inputs).sum();
        for scored in report.subjects.iter().chain(&report.reference) {
            // A subject that is also the reference has a record with its divergence.
            if records.iter().any(|record| record.id == scored.id) {
                continue;
            }
            let (about, spent) = &known[&scored.id];
            let (mut measures, unmeasured) = report.measures(scored);
            measures.scored_tokens_per_s = Some(computed as f64 / spent.get().as_secs_f64());
            let measures = Measures::Quality(measures);
            let deviates = scored.deviates.clone();
            let mut record = subjects::record(&session, &scenario, about.clone(), measures, unmeasured, deviates);
            session.append(&mut record)?;
            records.push(record);
        }
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
        Ok(subjects::exit_code(&records))
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
