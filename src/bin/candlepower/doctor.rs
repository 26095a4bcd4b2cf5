//! `candlepower doctor`: is this machine fit to measure on?

use std::process::ExitCode;

use anyhow::Result;
use candlepower::{doctor, runner::set_threads};
use clap::Args;

use crate::SettingFlags;

#[derive(Args)]
pub struct Doctor {
    /// Models that are to be measured, to see what they need
    #[arg(long)]
    models: Option<String>,
    #[command(flatten)]
    settings: SettingFlags,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Result<ExitCode> {
        let settings = self.settings.settings(&[("models", &self.models)])?;
        // Before the pool of threads starts, so that bandwidth and matrix rate are those of a benchmark.
        set_threads(settings.threads);
        let findings = doctor::examine(&settings);
        if self.json {
            println!("{}", serde_json::to_string(&findings)?);
        } else {
            print!("{}", doctor::render(&findings));
        }
        Ok(ExitCode::SUCCESS)
    }
}
