//! `candlepower history`: a benchmark over the kept reports.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use candlepower::{output, record::write_whole, report::history::histories};
use clap::{Args, ValueEnum};

use crate::compare::percent;

#[derive(Args)]
pub struct History {
    /// Id of a benchmark, or a part of it
    benchmark: String,
    /// Folder of the reports, with one folder per machine
    #[arg(long, default_value = "target-reports")]
    from: PathBuf,
    /// The measure, such as tokens_per_s, ttft, itl_p50, step_p50 or peak_memory [default: the headline]
    #[arg(long)]
    metric: Option<String>,
    /// Ignore changes up to this share
    #[arg(long, value_parser = percent, default_value = "3%")]
    noise: f64,
    /// Write an SVG plot to this file; the part of the id must match one benchmark
    #[arg(long)]
    svg: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl History {
    pub fn run(self) -> Result<ExitCode> {
        let (histories, problems) = histories(&self.from, &self.benchmark, self.metric.as_deref(), self.noise)?;
        for problem in problems {
            crate::note(&problem);
        }
        if let Some(file) = &self.svg {
            let ids: Vec<_> =
                histories.iter().map(|history| format!("{} on {}", history.id, history.machine)).collect();
            ensure!(ids.len() == 1, "'{}' matches {} benchmarks: {}", self.benchmark, ids.len(), ids.join(", "));
            write_whole(file, histories[0].plot()?.svg.as_bytes())?;
        }
        match self.format {
            Format::Json => output::print_data(&serde_json::to_string(&histories)?),
            Format::Text => histories.iter().for_each(|history| output::print_line(history.text())),
        }
        Ok(ExitCode::SUCCESS)
    }
}
