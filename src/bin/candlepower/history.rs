//! `candlepower history`: what a benchmark was in the reports that are kept.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use candlepower::{record::write_whole, report::history::histories};
use clap::{Args, ValueEnum};

use crate::compare::percent;

#[derive(Args)]
pub struct History {
    /// A benchmark's id, or a part of it
    benchmark: String,
    /// Folder of the reports, a folder a machine
    #[arg(long, default_value = "target-reports")]
    from: PathBuf,
    /// Which figure, such as tokens_per_s, ttft, itl_p50, step_p50 or peak_memory; the headline where none is named
    #[arg(long)]
    metric: Option<String>,
    /// Moves up to this share are none
    #[arg(long, value_parser = percent, default_value = "3%")]
    noise: f64,
    /// Draw it, as an SVG; the part of the id must name one benchmark
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
            eprintln!("note: {problem}");
        }
        if let Some(file) = &self.svg {
            let ids: Vec<_> =
                histories.iter().map(|history| format!("{} on {}", history.id, history.machine)).collect();
            ensure!(ids.len() == 1, "'{}' names {} benchmarks: {}", self.benchmark, ids.len(), ids.join(", "));
            write_whole(file, histories[0].plot()?.svg.as_bytes())?;
        }
        match self.format {
            Format::Json => println!("{}", serde_json::to_string(&histories)?),
            Format::Text => histories.iter().for_each(|history| println!("{}", history.text())),
        }
        Ok(ExitCode::SUCCESS)
    }
}
