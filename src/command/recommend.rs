//! `candlepower recommend`: measures settings of one model on this machine, and writes the best to the settings file.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use super::{
    duel::duration,
    flags::{Flags, OneModel},
};
use crate::{
    output,
    quality::Source,
    recommend::{self, Floor, Goal, Request},
    runner::Session,
    settings::{FILE, Settings},
};

#[derive(Args)]
pub struct Recommend {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>
    #[arg(long)]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Goal of the settings: latency, throughput or memory
    #[arg(long, default_value = "latency")]
    goal: Goal,
    /// Quality that a dtype must keep against f32: none, kl=NATS (divergence per token) or perplexity=SHARE (rise, in percent)
    #[arg(long, default_value = "kl=0.01")]
    min_quality: Floor,
    /// File on which the quality is measured: a text, or token ids; the default is an embedded text
    #[arg(long)]
    text: Option<PathBuf>,
    /// Time for all measurements, such as 90s, 10m or 2h
    #[arg(long, value_parser = duration, default_value = "10m")]
    budget: Duration,
    /// Replace the settings in a candlepower.toml that exists; its other keys are kept, its comments are not
    #[arg(long)]
    overwrite: bool,
    /// Write no candlepower.toml
    #[arg(long, conflicts_with = "overwrite")]
    no_write: bool,
    /// Print the recommendation as one JSON object
    #[arg(long)]
    json: bool,
}

impl Recommend {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[self.settings.given(), &[("models", self.model.clone())]].concat())?;
        let file = Path::new(FILE);
        if !self.no_write {
            recommend::check(file, self.overwrite)?;
        }
        // A text, a device or a number of threads that is of no use is refused before anything is measured.
        if let Some(file) = &self.text {
            Source::read(file)?;
        }
        drop(Session::new(settings.clone())?);
        let program = env::current_exe().context("the path of this program is unknown")?;
        let logs = tempfile::tempdir().context("a folder for messages could not be made")?;
        let request = Request {
            goal: self.goal,
            floor: self.min_quality,
            text: self.text.as_deref(),
            budget: self.budget,
            given: self.settings.given(),
            program: &program,
            logs: logs.path(),
        };
        let found = recommend::recommend(&settings, &request, |line| output::report(line))?;
        if !self.no_write {
            recommend::write(file, &found)?;
        }
        if self.json {
            output::print_data(&serde_json::to_string(&found)?);
            return Ok(ExitCode::SUCCESS);
        }
        output::print(found.text());
        if !self.no_write {
            output::print_line(format_args!("\nWrote {FILE}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The process of a part of a recommendation.
#[derive(Args)]
pub struct RecommendPart {}

impl RecommendPart {
    pub fn run(self) -> Result<ExitCode> {
        recommend::answer()?;
        Ok(ExitCode::SUCCESS)
    }
}
