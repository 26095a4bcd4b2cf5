//! `candlepower eval`: tasks scored by log-likelihood.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::Args;
use indicatif::ProgressBar;

use super::{
    flags::{Flags, OneModel},
    scores,
};
use crate::{
    error::caught,
    output, progress,
    quality::{self, Evaluation, Questions, Task},
    record::{self, BenchmarkId, Guarded, Measures, Record, Status},
    report::table,
    runner::{self, Candidate, Session},
    settings::Settings,
};

#[derive(Args)]
pub struct Eval {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>; the model must have a
    /// tokenizer
    #[arg(long)]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Tasks, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "lambada_openai,hellaswag")]
    tasks: Vec<Task>,
    /// Most questions of each task
    #[arg(long, default_value_t = 256)]
    limit: usize,
    /// Folder with a file <task>.jsonl for each task
    #[arg(long)]
    data: PathBuf,
    /// Print the scores of all questions as one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub fn run(self) -> Result<ExitCode> {
        // A task that ends its process leaves the others. Their records tell the next process where to go on.
        runner::guarded(|guarded| self.measure(guarded))
    }

    fn measure(&self, guarded: Option<Guarded>) -> Result<ExitCode> {
        let settings = Settings::load(&[self.settings.given(), &[("models", self.model.clone())]].concat())?;
        let read = |task: &Task| Ok((*task, task.read(&self.data, self.limit)?));
        let tasks: Vec<(Task, Questions)> = self.tasks.iter().map(read).collect::<Result<_>>()?;
        let mut session = Session::new(settings.clone())?.with_guard(guarded)?;
        record::check_writable(&settings.out)?;
        let Ok([mut candidate]) = <[_; 1]>::try_from(Candidate::scored(&settings)) else {
            let given = |key: &str| &settings.sources[key].value;
            bail!("--model={} --engine={} --dtype={}: name one of each", self.model, given("engine"), given("dtype"))
        };
        let mut subject = candidate.load_model()?;
        let about = candidate.about;

        let mut evaluation = Evaluation { source: subject.source.clone(), tasks: Vec::new() };
        let mut records: Vec<Record> = Vec::new();
        // A task that fails has a record once another one has a score.
        let mut failures = Vec::new();
        for (task, questions) in &tasks {
            let scenario = format!("eval_{task}-{}_n{}", &questions.sha256[..8], questions.questions.len());
            let id = BenchmarkId::new(&scenario, &about).to_string();
            let before = session.done_before(&id);
            // Records do not have the scores of the questions, so they are computed again for the JSON object.
            if let Some(record) = before.filter(|record| !self.json || record.status == Status::Failed) {
                records.push(record.clone());
                continue;
            }
            let is_kept = before.is_some();
            session.note(&scenario, &about);
            // Drawn on standard error, and only if that is a terminal.
            let bar = progress::shown(ProgressBar::new(questions.questions.len() as u64));
            let progress = |done: usize| bar.set_position(done as u64);
            let ended = caught(|| quality::evaluate(&id, *task, questions, &mut subject, progress));
            bar.finish_and_clear();
            let result = match ended {
                Ok(result) => result,
                Err(error) => {
                    failures.push((scenario, error));
                    continue;
                }
            };
            let measures = Measures::Evaluation(result.measures());
            let deviates = result.deviates.clone();
            let mut record = scores::record(&session, &scenario, about.clone(), measures, BTreeMap::new(), deviates);
            if !is_kept {
                session.append(&mut record)?;
            }
            records.push(record);
            evaluation.tasks.push(result);
        }
        if records.iter().all(|record| record.status == Status::Failed) {
            return scores::none_scored(failures.into_iter().map(|(_, error)| error));
        }
        for (scenario, error) in failures {
            records.push(scores::failed(&mut session, &scenario, about.clone(), error)?);
        }
        if self.json {
            output::print_data(&serde_json::to_string(&evaluation)?);
        } else {
            for table in table::tables(records.iter()) {
                output::print(table.terminal());
            }
        }
        Ok(scores::exit_code(&records))
    }
}
