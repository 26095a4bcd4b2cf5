//! `candlepower report`: a run as tables, data files, plots and a page.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use chrono::Utc;
use clap::Args;

use crate::{
    error::nearest,
    output, progress,
    record::{self, RECORDS, Record},
    report::{self, Trained},
    runner,
    settings::{Settings, criterion_home},
    why::{self, Beside},
};

#[derive(Args)]
pub struct Report {
    /// Names of runs, their folders, files of records, such as those of shards, folders of trainings and shoot-outs, or files of `why --json`
    /// [default: the last run]
    runs: Vec<String>,
    /// Folder of reports; the report goes into a folder named after the machine
    #[arg(long, default_value = "target-reports")]
    to: PathBuf,
    /// Also pack the folder into a zip file beside it
    #[arg(long)]
    zip: bool,
    /// Write the report even if the run was disturbed
    #[arg(long)]
    even_if_disturbed: bool,
    /// Print the command that repeats the benchmark with this id, and write no report
    #[arg(long, value_name = "ID", conflicts_with_all = ["zip", "even_if_disturbed"])]
    reproduce: Option<String>,
}

impl Report {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[])?;
        let (mut files, mut trained, mut explained) = (Vec::new(), Vec::new(), Vec::new());
        for run in &self.runs {
            if Path::new(run).extension().is_some_and(|extension| extension == "json") {
                explained.push(Beside::read(Path::new(run))?);
                continue;
            }
            match Trained::read(Path::new(run))? {
                Some(found) => trained.push(found),
                None => files.push(records(Some(run), &settings.out)?),
            }
        }
        if files.is_empty() && trained.is_empty() {
            files.push(records(None, &settings.out)?);
        }
        if let Some(id) = &self.reproduce {
            output::print_line(runner::reproduction(&record_of(id, &files)?)?);
            return Ok(ExitCode::SUCCESS);
        }
        let criterion_home = criterion_home();
        let live = progress::live("report");
        live.step("reads the records");
        let mut joined = report::joined::join_all(&files, &criterion_home)?;
        if !explained.is_empty() {
            joined.sections.push(why::section(&explained));
        }
        let disturbance = report::disturbance(joined.rows.iter().map(|row| &row.record));
        if let Some(reason) = disturbance.filter(|_| !self.even_if_disturbed) {
            bail!(
                "the run was disturbed, so no report of it is kept: {reason}; --even-if-disturbed writes it nevertheless"
            );
        }
        live.step(format_args!("writes {} benchmarks", joined.rows.len()));
        let folder = report::write(&joined, &trained, &self.to, Utc::now())?;
        drop(live);
        for problem in &joined.problems {
            super::note(problem);
        }
        output::print_line(folder.display());
        // A kept report must not link to a file that is not kept.
        let criterion = criterion_home.join("report").join("index.html");
        if criterion.is_file() {
            super::note(&format!("Criterion's own report is {}", criterion.display()));
        }
        if self.zip {
            output::print_line(report::zip(&folder)?.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The last record of a benchmark.
fn record_of(id: &str, files: &[PathBuf]) -> Result<Record> {
    let mut ids = Vec::new();
    for file in files.iter().rev() {
        for record in record::latest(file)?.records {
            if record.id == id {
                return Ok(record);
            }
            ids.push(record.id);
        }
    }
    match nearest(id, &ids.iter().map(String::as_str).collect::<Vec<_>>()) {
        Some(near) => bail!("there is no record of '{id}': did you mean {near}?"),
        None => bail!("there is no record of '{id}'"),
    }
}

/// Finds the file of records: a file, a folder with one, a run's name, or the last run.
pub fn records(run: Option<&str>, out: &Path) -> Result<PathBuf> {
    let Some(run) = run else { return last_run(out) };
    let path = Path::new(run);
    [path.to_owned(), path.join(RECORDS), path.join("results.jsonl"), out.join(run).join(RECORDS)]
        .into_iter()
        .find(|file| file.is_file())
        .with_context(|| format!("{run} is neither a file of records, nor a training, nor a run in {}", out.display()))
}

/// The file of records that was modified last.
fn last_run(out: &Path) -> Result<PathBuf> {
    let runs = fs::read_dir(out).into_iter().flatten().flatten().map(|run| run.path().join(RECORDS));
    runs.filter_map(|records| Some((fs::metadata(&records).ok()?.modified().ok()?, records)))
        .max()
        .map(|(_, records)| records)
        .with_context(|| format!("there is no run in {}: run cargo bench first", out.display()))
}
