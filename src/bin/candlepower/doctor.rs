//! `candlepower doctor`: checks of the machine.

use std::process::ExitCode;

use anyhow::Result;
use candlepower::{doctor, runner::set_threads};
use clap::Args;

use crate::SettingFlags;

#[derive(Args)]
pub struct Doctor {
    /// Models to check the memory and caches for
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
        // Set before the thread pool starts, so that the limits are those of a benchmark.
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
