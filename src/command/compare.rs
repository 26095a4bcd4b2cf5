//! `candlepower compare`: changes between two runs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use super::flags::Format;
use crate::{
    output,
    record::write_whole,
    report::compare::{Side, Strictness, compare},
    settings::{Settings, criterion_home},
    text,
};

/// Compare two runs, files of records, or Criterion baselines
#[derive(Args)]
pub struct Compare {
    /// The earlier side: a file of records, a folder with one, a run's name, or a baseline
    a: String,
    /// The later side; `new` is Criterion's last run
    b: String,
    /// Exit with code 1 if a benchmark is significantly slower by more than this, such as 5%
    #[arg(long, value_parser = percent)]
    fail_above: Option<f64>,
    /// Exit with code 1 if the peak memory of a benchmark rose by this or more, such as 1%
    #[arg(long, value_parser = percent)]
    fail_memory_above: Option<f64>,
    /// Exit with code 1 if the negative log-likelihood of a text or task rose significantly by more than this, such as 0.5%
    #[arg(long, value_parser = percent)]
    fail_quality_above: Option<f64>,
    /// Ignore differences up to this share
    #[arg(long, value_parser = percent, default_value = "3%")]
    noise: f64,
    /// Significance level over all benchmarks
    #[arg(long, value_parser = percent, default_value = "5%")]
    level: f64,
    /// Show unchanged benchmarks too
    #[arg(long)]
    all: bool,
    /// Write a plot of the changes and their intervals to this file; with --all, of every benchmark
    #[arg(long)]
    svg: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Compare {
    pub fn run(self) -> Result<ExitCode> {
        ensure!(self.level > 0.0 && self.level < 1.0, "--level must be above 0 % and below 100 %");
        let settings = Settings::load(&[])?;
        let criterion_home = criterion_home();
        let find = |name: &str| Side::find(name, &settings.out, &criterion_home);
        let strictness = Strictness { noise: self.noise, level: self.level };
        let comparison = compare(&find(&self.a)?, &find(&self.b)?, strictness)?;
        if let Some(file) = &self.svg {
            write_whole(file, comparison.forest_plot(self.all).as_bytes())?;
        }
        match self.format {
            Format::Text => output::print(comparison.text(self.all)),
            Format::Markdown => output::print(comparison.markdown(self.all)),
            Format::Json => output::print_data(&comparison.json()?),
            Format::Github => output::print(comparison.github()),
        }
        let slower = self.fail_above.map_or(Vec::new(), |share| comparison.regressions(share));
        for row in &slower {
            let percent = (row.ratio - 1.0) * 100.0;
            output::report(format_args!("regression: {} is {percent:.1} % slower", text::line(&row.id)));
        }
        let larger = self.fail_memory_above.map_or(Vec::new(), |share| comparison.memory_regressions(share));
        for row in &larger {
            let rise = row.memory_ratio.map_or(0.0, |ratio| (ratio - 1.0) * 100.0);
            let id = text::line(&row.id);
            output::report(format_args!("regression: {id} takes {rise:.1} % more memory at its peak"));
        }
        let worse = self.fail_quality_above.map_or(Vec::new(), |share| comparison.quality_regressions(share));
        for row in &worse {
            let rise = (row.ratio - 1.0) * 100.0;
            output::report(format_args!("regression: the NLL of {} is {rise:.2} % higher", text::line(&row.id)));
        }
        Ok(match slower.is_empty() && larger.is_empty() && worse.is_empty() {
            false => ExitCode::FAILURE,
            true if comparison.is_void() => ExitCode::from(NOT_COMPARABLE),
            true => ExitCode::SUCCESS,
        })
    }
}

/// The exit code if the doubts of the sides leave no time to compare.
const NOT_COMPARABLE: u8 = 3;

/// A share: `5%` or `0.05`.
pub fn percent(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map(|number| number / 100.0),
        None => text.parse::<f64>(),
    };
    share.ok().filter(|share| share.is_finite() && *share >= 0.0).ok_or_else(|| "expected a share, such as 5%".into())
}
