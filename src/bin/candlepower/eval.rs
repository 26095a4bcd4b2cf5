//! `candlepower eval`: tasks scored by log-likelihood.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use candlepower::{
    output,
    quality::{self, Evaluation, Questions, Task},
    record::{self, BenchmarkId, Measures, Record},
    report::table,
    runner::Session,
    settings::Settings,
};
use clap::Args;
use indicatif::ProgressBar;

use crate::{
    flags::{Flags, OneModel},
    subjects,
};

#[derive(Args)]
pub struct Eval {
    /// synthetic:<shape>, hub:<owner>/<name>[@revision] or path:<folder>; the model must have a tokenizer
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
        let settings = Settings::load(&[self.settings.given(), &[("models", self.model.clone())]].concat())?;
        let read = |task: &Task| Ok((*task, task.read(&self.data, self.limit)?));
        let tasks: Vec<(Task, Questions)> = self.tasks.iter().map(read).collect::<Result<_>>()?;
        let mut session = Session::new(settings.clone())?;
        record::check_writable(&settings.out)?;
        let mut loaded = subjects::load(&settings)?;
        let [(about, subject)] = loaded.as_mut_slice() else {
            let given = |key: &str| &settings.sources[key].value;
            bail!("--model={} --engine={} --dtype={}: name one of each", self.model, given("engine"), given("dtype"))
        };

        let mut evaluation = Evaluation { source: subject.source.clone(), tasks: Vec::new() };
        let mut records: Vec<Record> = Vec::new();
        for (task, questions) in &tasks {
            let scenario = format!("eval_{task}-{}_n{}", &questions.sha256[..8], questions.questions.len());
            let id = BenchmarkId::new(&scenario, about).to_string();
            // Drawn on standard error, and only if that is a terminal.
            let bar = ProgressBar::new(questions.questions.len() as u64);
            let result = quality::evaluate(&id, *task, questions, subject, |done| bar.set_position(done as u64))?;
            bar.finish_and_clear();
            let measures = Measures::Evaluation(result.measures());
            let deviates = result.deviates.clone();
            let mut record = subjects::record(&session, &scenario, about.clone(), measures, BTreeMap::new(), deviates);
            session.append(&mut record)?;
            records.push(record);
            evaluation.tasks.push(result);
        }
        if self.json {
            output::print_data(&serde_json::to_string(&evaluation)?);
            return Ok(ExitCode::SUCCESS);
        }
        for table in table::tables(records.iter()) {
            output::print(table.terminal());
        }
        Ok(ExitCode::SUCCESS)
    }
}
