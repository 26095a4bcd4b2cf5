//! Scores of a text or a task: several subjects in one pass, their records, and the exit codes of the commands that make them.

use std::{cell::Cell, collections::BTreeMap, process::ExitCode, rc::Rc, time::Duration};

use anyhow::{Error, Result, ensure};
use indicatif::ProgressBar;

use crate::{
    error::caught,
    model, output, progress,
    quality::{self, Entry, Report, Sliding, Source, Unscored, Window},
    record::{self, BenchmarkId, Measures, Record, Status},
    runner::{Candidate, Session},
    workload::{Measured, Outcome, Timed},
};

/// The scores of several subjects on one text.
pub struct Scores {
    /// `None` if no subject has a score.
    pub report: Option<Report>,
    /// Records of all subjects, those that failed included. The run has them.
    pub records: Vec<Record>,
    /// Why no subject has a score. Nothing is recorded then.
    pub errors: Vec<Error>,
}

/// First part of the ids of the scores of a text.
pub fn scenario(source: &Source, sliding: Sliding) -> String {
    format!("perplexity_{}_w{}_s{}", source.slug(), sliding.length(), sliding.stride())
}

/// Scores a text with candidates, and with a reference, in one pass. A candidate that fails leaves the others, which start again.
///
/// # Errors
/// When the text does not fit the candidates, or records cannot be written.
pub fn score(
    session: &mut Session,
    (source, sliding): (&Source, Sliding),
    candidates: Vec<Candidate>,
    of_reference: Option<Vec<Candidate>>,
) -> Result<Scores> {
    let scenario = scenario(source, sliding);
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
    let loaded = load(candidates);
    let none = |failures: Vec<(record::Subject, Error)>, records| {
        Ok(Scores { report: None, records, errors: failures.into_iter().map(|(_, error)| error).collect() })
    };
    let Some(((_, first), others)) = loaded.split_first() else { return none(failures, records) };
    let reference = of_reference.and_then(|candidates| load(candidates).pop());
    let tokens = source.tokens(first)?;
    // A reference gets the tokens of the first subject: the same weights may come with another tokenizer.
    for (_, subject) in others {
        ensure!(
            source.tokens(subject)? == tokens,
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
            return none(failures, records);
        }
        let begin = |id: &str| session.note(&scenario, &known[id].0);
        let progress = |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        match quality::score(source, &tokens, sliding, &mut entries, reference.as_mut(), begin, progress) {
            Ok(report) => break report,
            Err(error) => {
                let Some(Unscored { id }) = error.downcast_ref::<Unscored>() else { return Err(error) };
                entries.retain(|entry| entry.id != *id);
                reference = reference.filter(|entry| entry.id != *id);
                failures.push((known[id].0.clone(), error));
                known.values().for_each(|(_, spent)| spent.set(Duration::ZERO));
            }
        }
    };
    bar.finish_and_clear();

    for (about, error) in failures {
        records.push(failed(session, &scenario, about, error)?);
    }
    let computed: usize = sliding.over(tokens.ids.len()).iter().map(Window::inputs).sum();
    for scored in report.subjects.iter().chain(&report.reference) {
        // A subject that is also the reference has a record with its divergence, perhaps of an earlier pass.
        if session.has_kept(&scored.id) {
            continue;
        }
        let (about, spent) = &known[&scored.id];
        let (mut measures, unmeasured) = report.measures(scored);
        measures.scored_tokens_per_s = Some(computed as f64 / spent.get().as_secs_f64());
        let (measures, deviates) = (Measures::Quality(measures), scored.deviates.clone());
        let mut record = record(session, &scenario, about.clone(), measures, unmeasured, deviates);
        session.append(&mut record)?;
        records.push(record);
    }
    Ok(Scores { report: Some(report), records, errors: Vec::new() })
}

/// The record of a score, which does not depend on the speed of the machine.
pub fn record(
    session: &Session,
    scenario: &str,
    about: record::Subject,
    measures: Measures,
    mut unmeasured: BTreeMap<String, String>,
    deviates: Option<String>,
) -> Record {
    for field in ["limits", "conditions"] {
        unmeasured.insert(field.into(), "a score does not depend on the speed of the machine".into());
    }
    let outcome = Outcome { measured: Ok(Measured { measures, unmeasured }), deviates };
    session.record(scenario, about, outcome, None)
}

/// Keeps the record of a score that failed, and prints the reason.
pub fn failed(session: &mut Session, scenario: &str, about: record::Subject, error: Error) -> Result<Record> {
    let mut record = session.record(scenario, about, Outcome::failed(error), None);
    session.append(&mut record)?;
    output::report(format_args!("error: {}: {}", record.id, record.reason.as_deref().unwrap_or_default()));
    Ok(record)
}

/// Ends a command that has scored nothing: its error is that of the first score. Without one, each score ended an earlier
/// process of the guard, which has said so.
pub fn none_scored(errors: impl IntoIterator<Item = Error>) -> Result<ExitCode> {
    errors.into_iter().next().map_or(Ok(ExitCode::FAILURE), Err)
}

/// The exit code of a command with these records.
pub fn exit_code(records: &[Record]) -> ExitCode {
    let has_failed = records.iter().any(|record| record.status == Status::Failed);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
