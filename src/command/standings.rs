//! `candlepower standings`: the engines and peers that run some models, ranked.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{
    duel::duration,
    flags::{Flags, Models},
    glance::{ROUNDS, lengths},
    perplexity::Reference,
    scores,
};
use crate::{
    device::Precision,
    files,
    model::ModelSpec,
    names::PathName,
    output,
    quality::{Sliding, Source},
    record::{self, BenchmarkId, Guarded, Status},
    report::standings,
    runner::{self, Candidate, Session},
    scenario::PERPLEXITY,
    settings::Settings,
    workload,
};

/// First part of the benchmark ids.
const SCENARIO: &str = "standings";

/// Name of the document in the folder of the run.
const DOCUMENT: &str = "standings.md";

/// Engines and peers that are tried by default. One that does not run a model is left out with the reason.
const ENGINES: &str = "tuned,stock,stock-context,peer:llama.cpp,peer:transformers";

#[derive(Args)]
pub struct Standings {
    #[command(flatten)]
    settings: Flags<Settings, Models>,
    /// Time of all generations together, such as 5m or 2h; loading and scoring are not counted
    #[arg(long, value_parser = duration, default_value = "10m")]
    budget: Duration,
    /// Text for perplexities, instead of an embedded one
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window of the text; windows do not overlap
    #[arg(long, default_value_t = PERPLEXITY[0].window_tokens)]
    seq_len: usize,
    #[command(flatten)]
    reference: Reference,
    /// Continue a run: what it has is not measured again
    #[arg(long, value_name = "RUN")]
    resume: Option<PathName>,
}

/// Status of each record of the run, by id.
type Done = BTreeMap<String, Status>;

/// A model in a dtype, whose engines are measured together.
struct Group<'a> {
    spec: &'a ModelSpec,
    dtype: Precision,
}

impl Standings {
    pub fn run(self) -> Result<ExitCode> {
        // An engine that ends its process leaves the others.
        runner::guarded(|guarded| self.measure(guarded))
    }

    fn measure(&self, guarded: Option<Guarded>) -> Result<ExitCode> {
        let given = self.settings.given();
        let mut settings = Settings::load(given)?;
        if settings.has_default_engines() {
            settings = Settings::load(&[given, &[("engine", ENGINES.to_owned())]].concat())?;
        }
        let sliding = Sliding::new(self.seq_len, self.seq_len)?;
        let reference = self.reference.settings(given)?;
        let source = match &self.text {
            Some(file) => Source::read(file)?,
            None => Source::of_text("embedded", workload::PERPLEXITY_TEXT),
        };
        let command = runner::own_command(std::env::args_os(), &settings);
        let mut session = Session::new(settings.clone())?.with_command(command).with_guard(guarded)?;
        let path = session.join(self.resume.as_ref().map(PathName::as_str).or(settings.run.as_deref()))?;
        let run = path.parent().and_then(|folder| folder.file_name()).unwrap_or_default().to_string_lossy();
        output::report(format_args!("Run {run}. If it is interrupted, --resume {run} continues it."));
        let kept = if path.is_file() { record::latest(&path)?.records } else { Vec::new() };
        let mut done: Done = kept.into_iter().map(|record| (record.id, record.status)).collect();

        let in_dtypes = |spec| settings.dtypes_for(spec).into_iter().map(move |dtype| Group { spec, dtype });
        let groups: Vec<Group> = settings.models.iter().flat_map(in_dtypes).collect();
        let batches = settings.generation_batches();
        let time = self.budget.div_f64((groups.len() * batches.len()) as f64);
        for group in &groups {
            for batch in &batches {
                group.measure(&mut session, &mut done, *batch, time)?;
            }
            group.score(&mut session, &done, (&source, sliding), reference.as_ref())?;
        }

        let read = record::latest(&path)?;
        let all = standings::standings(&read.records, SCENARIO);
        let document: String = all.iter().map(standings::Standing::markdown).collect();
        let file = path.with_file_name(DOCUMENT);
        files::write_whole(&file, document.as_bytes()).with_context(|| file.display().to_string())?;
        for standing in &all {
            output::print_line(format_args!("{}\n", standing.terminal()));
        }
        output::print_line(format_args!("Document: {}", file.display()));
        if !read.records.iter().any(|record| record.scenario == SCENARIO && record.status == Status::Measured) {
            bail!("no engine ran any of the models: see the reasons above");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Group<'_> {
    /// Measures the engines in turns, unless the run has them all. Those that ended an earlier process of the guard are left out.
    fn measure(&self, session: &mut Session, done: &mut Done, batch: usize, time: Duration) -> Result<()> {
        let mut rivals = Candidate::rivals(session.settings(), self.spec, self.dtype);
        if rivals.iter().all(|rival| done.contains_key(&id_in_batch(rival, batch))) {
            return Ok(());
        }
        rivals.retain(|rival| session.done_before(&id_in_batch(rival, batch)).is_none());
        for mut record in runner::longest_within(session, &lengths(SCENARIO), (rivals, batch), ROUNDS, time)? {
            session.append(&mut record)?;
            done.insert(record.id, record.status);
        }
        Ok(())
    }

    /// Scores the text with each engine that ran the model, if its weights are trained, and with the reference.
    fn score(
        &self,
        session: &mut Session,
        done: &Done,
        (source, sliding): (&Source, Sliding),
        reference: Option<&Settings>,
    ) -> Result<()> {
        let scenario = scores::scenario(source, sliding);
        let batches = session.settings().generation_batches();
        for rival in Candidate::rivals(session.settings(), self.spec, self.dtype) {
            let id = BenchmarkId::new(&scenario, &rival.about).to_string();
            let ran = batches.iter().any(|batch| done.get(&id_in_batch(&rival, *batch)) == Some(&Status::Measured));
            if !ran || rival.about.synthetic_weights || done.contains_key(&id) {
                continue;
            }
            // One at a time, because all of them may not fit in memory.
            let scored = scores::score(session, (source, sliding), vec![rival], reference.map(Candidate::scored));
            match scored {
                Ok(scores) => scores.errors.iter().for_each(|error| super::note(&format!("{id}: {error:#}"))),
                Err(error) => super::note(&format!("{id}: {error:#}")),
            }
        }
        Ok(())
    }
}

/// The id of an engine's benchmark.
fn id_in_batch(rival: &Candidate, batch: usize) -> String {
    BenchmarkId::new(SCENARIO, &rival.about.clone().in_batch(batch)).to_string()
}
