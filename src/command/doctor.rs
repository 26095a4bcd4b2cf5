//! `candlepower doctor`: checks of the machine.

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{duel::duration, flags::Flags};
use crate::{
    doctor::{self, Finding, Level},
    measure::statistics::median,
    model::Engine,
    output, progress,
    recommend::{self, Contest, Ended, Goal, Ratio},
    runner::set_threads,
    settings::Settings,
};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    settings: Flags<Settings>,
    /// Also measure this program against itself, to tell which changes this machine can show in which time
    #[arg(long)]
    duel: bool,
    /// Time for --duel, such as 2m
    #[arg(long, value_parser = duration, default_value = "10m", requires = "duel")]
    budget: Duration,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// Most contests of a program with itself.
const CONTESTS: usize = 20;

/// Most time of one of them, its loading included.
const CONTEST: Duration = Duration::from_secs(30);

impl Doctor {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.settings.given())?;
        // Set before the thread pool starts, so that the limits are those of a benchmark.
        set_threads(settings.most_threads())?;
        let mut findings = doctor::examine(&settings);
        if self.duel {
            findings.push(self.with_itself(&settings)?);
        }
        if self.json {
            output::print_data(&serde_json::to_string(&findings)?);
        } else {
            output::print(doctor::render(&findings));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Measures copies of this program in turns, on the first model of the settings.
    fn with_itself(&self, settings: &Settings) -> Result<Finding> {
        let program = env::current_exe().context("the path of this program is unknown")?;
        let logs = tempfile::tempdir().context("a folder for messages could not be made")?;
        let spec = settings.models.first().context("there is no model")?;
        let values = recommend::values(settings, self.settings.given(), spec, (Engine::Tuned, settings.first_dtype()));
        let contest = Contest { goal: Goal::Latency, program: &program, logs: logs.path(), variables: &[] };
        let (started, mut ratios, mut seconds): (_, Vec<Ratio>, Vec<f64>) = (Instant::now(), Vec::new(), Vec::new());
        let line = progress::live(format_args!("{spec} against itself"));
        while ratios.len() < CONTESTS && started.elapsed() < self.budget {
            line.step(format_args!("contest {}", ratios.len() + 1));
            let (began, left) = (Instant::now(), self.budget.saturating_sub(started.elapsed()));
            match contest.measure([&values, &values], left.min(CONTEST), &mut Vec::new())? {
                Ended::Measured(ratio) => {
                    ratios.push(ratio);
                    seconds.push(began.elapsed().as_secs_f64());
                }
                Ended::OutOfTime(_) if !ratios.is_empty() => break,
                Ended::OutOfTime(reason) | Ended::HolderFailed(reason) | Ended::ChallengerFailed(reason) => {
                    bail!("--duel: {reason}")
                }
            }
        }
        let differ = ratios.iter().filter(|ratio| ratio.low > 1.0 || ratio.high < 1.0).count();
        // The interval of a changed program lies off 1 if the change is larger than this.
        let half_widths: Vec<f64> = ratios.iter().map(|ratio| (ratio.high - ratio.low) / 2.0 * 100.0).collect();
        let farthest = ratios.iter().map(|ratio| (ratio.ratio - 1.0).abs() * 100.0).fold(0.0, f64::max);
        let level = ratios.first().map_or(0.95, |ratio| ratio.level) * 100.0;
        Ok(Finding {
            topic: "duel",
            level: Level::Note,
            text: format!(
                "{spec} against itself, {} contests of {:.0} s: the {level:.0} % interval is ± {:.1} % in the median, the ratio is off by at most \
                 {farthest:.1} %, and {differ} intervals do not hold 1. A change above {:.1} % shows in one such contest",
                ratios.len(),
                median(seconds),
                median(half_widths.clone()),
                2.0 * median(half_widths)
            ),
        })
    }
}
