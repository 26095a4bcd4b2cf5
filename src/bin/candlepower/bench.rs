//! `candlepower bench`: flags for those who would rather not set variables.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
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
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Without it the first target with a benchmark that fails would be the last.
        cargo.args(["bench", "--benches", "--no-fail-fast"]);
        if let Some(features) = &self.features {
            cargo.args(["--features", features]);
        }
        cargo.arg("--").args(&self.filter).args(&self.criterion);
        for (key, value) in self.settings.given(&more) {
            cargo.env(format!("CANDLEPOWER_{}", key.to_uppercase()), value);
        }
        let status = cargo.status().context("cargo could not be started: is it installed?")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
