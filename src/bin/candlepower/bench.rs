//! `candlepower bench`: flags for those who would rather not set variables.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use candlepower::scenario::GENERATIONS;
use clap::Args;

use crate::SettingFlags;

#[derive(Args)]
pub struct Bench {
    /// Models to measure, separated by commas
    #[arg(long)]
    models: Option<String>,
    /// quick, standard or full
    #[arg(long)]
    tier: Option<String>,
    /// Folder that records go into
    #[arg(long)]
    out: Option<String>,
    #[command(flatten)]
    settings: SettingFlags,
    /// Cargo features, such as cuda
    #[arg(long)]
    features: Option<String>,
    /// Only the benchmarks whose id this regular expression matches, such as '^medium/'
    filter: Option<String>,
    /// Criterion's own options, such as --save-baseline main
    #[arg(last = true)]
    criterion: Vec<String>,
}

impl Bench {
    pub fn run(self) -> Result<ExitCode> {
        let more = [("models", &self.models), ("tier", &self.tier), ("out", &self.out)];
        // Read here too, so that a wrong value is said before anything is compiled.
        self.settings.settings(&more)?;
        if let Some(filter) = &self.filter {
            let listed = self.cargo(&more).arg("--list").stderr(Stdio::inherit()).output().context(NO_CARGO)?;
            ensure!(listed.status.success(), "the benchmarks could not be listed: see above");
            let keys = GENERATIONS.iter().flat_map(|(_, table)| table.iter().map(|scenario| scenario.key));
            let scenarios = keys.collect::<Vec<_>>().join(", ");
            ensure!(
                String::from_utf8_lossy(&listed.stdout).contains(": benchmark"),
                "no benchmark matches '{filter}': the scenarios are {scenarios}; without a filter all run"
            );
        }
        let status = self.cargo(&more).args(&self.criterion).status().context(NO_CARGO)?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// `cargo bench` with the settings and the filter.
    fn cargo(&self, more: &[(&str, &Option<String>)]) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Without it the first target with a benchmark that fails would be the last.
        cargo.args(["bench", "--benches", "--no-fail-fast"]);
        if let Some(features) = &self.features {
            cargo.args(["--features", features]);
        }
        cargo.arg("--").args(&self.filter);
        for (key, value) in self.settings.given(more) {
            cargo.env(format!("CANDLEPOWER_{}", key.to_uppercase()), value);
        }
        cargo
    }
}

const NO_CARGO: &str = "cargo could not be started: is it installed?";
