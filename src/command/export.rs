//! `candlepower export`: a run for other tools.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::report::records;
use crate::{
    error::one_line,
    output,
    record::{self, write_whole},
    report::export::{Format, export},
    settings::Settings,
};

#[derive(Args)]
pub struct Export {
    /// Name of a run, its folder, or a file of records [default: the last run]
    run: Option<String>,
    #[arg(long, value_enum)]
    format: Format,
    /// File, device or FIFO to write; - is standard output
    #[arg(long)]
    to: Option<PathBuf>,
}

impl Export {
    pub fn run(self) -> Result<ExitCode> {
        ensure!(
            self.format != Format::Sqlite || self.to.is_some(),
            "--format sqlite: name the file of the database with --to"
        );
        let settings = Settings::load(&[])?;
        let read = record::latest(&records(self.run.as_deref(), &settings.out)?)?;
        for problem in &read.problems {
            super::note(problem);
        }
        let text = export(&read.records.iter().collect::<Vec<_>>(), self.format)?;
        match &self.to {
            Some(file) if self.format == Format::Sqlite => to_sqlite(file, &text)?,
            Some(file) => write_whole(file, text.as_bytes())?,
            None => output::print_data(&text),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Lets the shell of SQLite run a text. The text is one transaction, so a database that exists gets all records or none. SQLite as a
/// library would add a minute to each build.
fn to_sqlite(file: &Path, sql: &str) -> Result<()> {
    let file = std::path::absolute(file).with_context(|| file.display().to_string())?;
    let shown = file.display();
    let mut shell = Command::new("sqlite3");
    shell.args(["-batch", "-bail"]).arg(&file).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut shell = match shell.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the shell of SQLite, sqlite3, was not found: install it, or load what --format sql writes")
        }
        started => started.context("sqlite3 could not be started")?,
    };
    let written = shell.stdin.take().context("sqlite3 takes no input")?.write_all(sql.as_bytes());
    let ended = shell.wait_with_output().context("sqlite3")?;
    ensure!(
        ended.status.success(),
        "sqlite3 did not write {shown}: {}",
        one_line(&String::from_utf8_lossy(&ended.stderr))
    );
    written.with_context(|| format!("sqlite3 did not read the records for {shown}"))
}
