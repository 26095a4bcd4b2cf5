//! `candlepower export`: a run for other tools.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use candlepower::{
    output,
    record::{self, write_whole},
    report::export::{Format, export},
    settings::Settings,
};
use clap::Args;

use crate::report::records;

#[derive(Args)]
pub struct Export {
    /// Name of a run, its folder, or a file of records [default: the last run]
    run: Option<String>,
    #[arg(long, value_enum)]
    format: Format,
    /// File to write instead of standard output
    #[arg(long)]
    to: Option<PathBuf>,
}

impl Export {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[])?;
        let read = record::latest(&records(self.run.as_deref(), &settings.out)?)?;
        for problem in &read.problems {
            crate::note(problem);
        }
        let text = export(&read.records.iter().collect::<Vec<_>>(), self.format)?;
        match &self.to {
            Some(file) => write_whole(file, text.as_bytes())?,
            None => output::print_data(&text),
        }
        Ok(ExitCode::SUCCESS)
    }
}
