//! `candlepower bench`: runs `cargo bench` with the settings from flags.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    flags::Flags,
    process::{self, Ended, Signals},
};
use crate::{
    runner::{TARGETS, Target},
    settings::{STRICT, Settings, variable},
};

#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    settings: Flags<Settings>,
    /// Cargo features, such as cuda
    #[arg(long)]
    features: Option<String>,
    /// Measure one benchmark after the other, also those that are compared
    #[arg(long, conflicts_with = "pairing")]
    no_pairing: bool,
    /// Save a baseline only if the run was not disturbed
    #[arg(long)]
    strict: bool,
    /// Regular expression; benchmarks whose id does not match are skipped, such as '^medium/'
    filter: Option<String>,
    /// Criterion's own options, such as --save-baseline main
    #[arg(last = true)]
    criterion: Vec<String>,
}

impl Bench {
    pub fn run(self) -> Result<ExitCode> {
        // `cargo bench` reads the settings again. Reading them here reports bad values before anything is compiled.
        Settings::load(self.settings.given())?;
        if let Some(filter) = &self.filter {
            let listed = self.cargo().arg("--list").stderr(Stdio::inherit()).output().context(NO_CARGO)?;
            ensure!(listed.status.success(), "cargo could not list the benchmarks: see the messages above");
            ensure!(
                String::from_utf8_lossy(&listed.stdout).contains(": benchmark"),
                "no benchmark matches '{filter}': the groups are {}; without a filter, all run",
                TARGETS.iter().flat_map(Target::keys).collect::<Vec<_>>().join(", ")
            );
        }
        let signals = Signals::catch()?;
        let ended = process::run(self.cargo().args(&self.criterion), None, &signals).context(NO_CARGO)?;
        Ok(match ended {
            Ended::Exited(status) if status.success() => ExitCode::SUCCESS,
            Ended::Exited(_) | Ended::OutOfTime => ExitCode::FAILURE,
            Ended::Signal(signal) => process::exit_code(signal),
        })
    }

    /// `cargo bench` with the settings and the filter.
    fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Without `--no-fail-fast`, a failed benchmark stops the targets after its own.
        cargo.args(["bench", "--benches", "--no-fail-fast"]);
        if let Some(features) = &self.features {
            cargo.args(["--features", features]);
        }
        cargo.arg("--").args(&self.filter);
        for (key, value) in self.settings.given() {
            cargo.env(variable(key), value);
        }
        if self.no_pairing {
            cargo.env(variable("pairing"), "false");
        }
        if self.strict {
            cargo.env(STRICT, "1");
        }
        cargo
    }
}

const NO_CARGO: &str = "cargo could not be started: is it installed?";
