//! `candlepower report`: a run as tables, data files, plots and a page.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use candlepower::{
    record::RECORDS,
    report,
    settings::{Settings, criterion_home},
};
use chrono::Utc;
use clap::Args;

#[derive(Args)]
pub struct Report {
    /// Name of a run, its folder, or a file of records [default: the last run]
    run: Option<String>,
    /// Folder of reports; the report goes into a folder named after the machine
    #[arg(long, default_value = "target-reports")]
    to: PathBuf,
    /// Also pack the folder into a zip file beside it
    #[arg(long)]
    zip: bool,
    /// Write the report even if the run was disturbed
    #[arg(long)]
    even_if_disturbed: bool,
}

impl Report {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[])?;
        let records = records(self.run.as_deref(), &settings.out)?;
        let criterion_home = criterion_home();
        let joined = report::joined::join(&records, &criterion_home)?;
        let disturbance = report::disturbance(joined.rows.iter().map(|row| &row.record));
        if let Some(reason) = disturbance.filter(|_| !self.even_if_disturbed) {
            bail!(
                "the run was disturbed, so no report of it is kept: {reason}; --even-if-disturbed writes it nevertheless"
            );
        }
        let folder = report::write(&joined, &self.to, &criterion_home, Utc::now())?;
        for problem in &joined.problems {
            crate::note(problem);
        }
        println!("{}", folder.display());
        if self.zip {
            println!("{}", report::zip(&folder)?.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Finds the file of records: a file, a folder with one, a run's name, or the last run.
pub fn records(run: Option<&str>, out: &Path) -> Result<PathBuf> {
    let Some(run) = run else { return last_run(out) };
    let path = Path::new(run);
    [path.to_owned(), path.join(RECORDS), path.join("results.jsonl"), out.join(run).join(RECORDS)]
        .into_iter()
        .find(|file| file.is_file())
        .with_context(|| format!("{run} is neither a file of records nor a run in {}", out.display()))
}

/// The file of records that was modified last.
fn last_run(out: &Path) -> Result<PathBuf> {
    let runs = fs::read_dir(out).into_iter().flatten().flatten().map(|run| run.path().join(RECORDS));
    runs.filter_map(|records| Some((fs::metadata(&records).ok()?.modified().ok()?, records)))
        .max()
        .map(|(_, records)| records)
        .with_context(|| format!("there is no run in {}: run cargo bench first", out.display()))
}
