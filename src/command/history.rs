//! `candlepower history`: a benchmark over the kept reports.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::compare::percent;
use crate::{
    names::PathName,
    output,
    record::write_whole,
    report::history::{histories, overview, page},
};

#[derive(Args)]
pub struct History {
    /// Id of a benchmark, or a part of it [default: all benchmarks]
    #[arg(default_value = "", hide_default_value = true)]
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
    /// Write history.html into the folder of each machine: a page with a row for each matching benchmark
    #[arg(long)]
    html: bool,
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
            super::note(&problem);
        }
        if let Some(file) = &self.svg {
            let ids: Vec<_> =
                histories.iter().map(|history| format!("{} on {}", history.id, history.machine)).collect();
            ensure!(ids.len() == 1, "'{}' matches {} benchmarks: {}", self.benchmark, ids.len(), ids.join(", "));
            write_whole(file, histories[0].plot().as_bytes())?;
        }
        if self.html {
            let machines: BTreeSet<&str> = histories.iter().map(|history| history.machine.as_str()).collect();
            for machine in machines {
                let own: Vec<_> = histories.iter().filter(|history| history.machine == machine).collect();
                let name: PathName = machine.parse().context("the machine's name")?;
                let file = self.from.join(&name).join("history.html");
                write_whole(&file, page(machine, &own).as_bytes())?;
                super::note(&format!("wrote {}", file.display()));
            }
        }
        match self.format {
            Format::Json => output::print_data(&serde_json::to_string(&histories)?),
            Format::Text => match histories.as_slice() {
                [history] => output::print(history.text()),
                several => output::print(overview(several)),
            },
        }
        Ok(ExitCode::SUCCESS)
    }
}
