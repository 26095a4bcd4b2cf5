//! `candlepower doctor`: checks of the machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::flags::Flags;
use crate::{doctor, output, runner::set_threads, settings::Settings};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    settings: Flags<Settings>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.settings.given())?;
        // Set before the thread pool starts, so that the limits are those of a benchmark.
        set_threads(settings.most_threads())?;
        let findings = doctor::examine(&settings);
        if self.json {
            output::print_data(&serde_json::to_string(&findings)?);
        } else {
            output::print(doctor::render(&findings));
        }
        Ok(ExitCode::SUCCESS)
    }
}
