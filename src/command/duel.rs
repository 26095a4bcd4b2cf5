//! `candlepower duel`: two versions of the program, measured in turns.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;

use super::{compare::percent, flags::Format};
use crate::{
    duel::{self, Filter, Rules, Side, Until},
    output,
    runner::{Catalogue, Session, Target},
    settings::Settings,
};

/// Build two versions, measure them in turns, and tell whether B is faster or slower than A
///
/// A side is parts joined by +: at most one revision of git, or . for the working tree (the default), and any of
/// candle=PATH (a checkout of Candle in place of the published crates), candle=PATH@REVISION (a commit of it), candle=0.11.0 (a
/// published version), bench=NAME (a bench target of a crate with a model of its own), features=LIST (Cargo features), and settings,
/// such as threads=1 or CANDLEPOWER_THREADS=1.
///
/// Examples: `candlepower duel main .`, `candlepower duel . candle=../candle -- '^medium/'`,
/// `candlepower duel . features=mkl`, `candlepower duel threads=1 threads=2`
#[derive(Args)]
pub struct Duel {
    /// The earlier side
    a: Side,
    /// The later side
    b: Side,
    #[command(flatten)]
    rules: RuleFlags,
    /// Exit with code 1 if a benchmark is slower by more than this, such as 5%
    #[arg(long, value_parser = percent)]
    fail_above: Option<f64>,
    /// Exit with code 1 if the peak memory of a benchmark rose by this or more, such as 1%
    #[arg(long, value_parser = percent)]
    fail_memory_above: Option<f64>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The rules of duels as flags.
#[derive(Args)]
pub struct RuleFlags {
    /// Stop a benchmark when the interval of the ratio reaches at most this share below and above its middle
    #[arg(long, value_parser = percent, default_value = "2%")]
    resolve: f64,
    /// Time for measuring in a duel, such as 90s, 10m or 2h; building is not counted
    #[arg(long, value_parser = duration, default_value = "10m")]
    budget: Duration,
    /// Probability with which equal programs may be found to differ, or a step of a bisection to be wrong
    #[arg(long, value_parser = percent, default_value = "5%")]
    level: f64,
    /// Part of the ids to measure, such as '^medium/'; ^ and $ stand for start and end, | separates alternatives
    #[arg(last = true)]
    filter: Option<Filter>,
}

impl RuleFlags {
    /// Checks the numbers.
    pub fn rules(self) -> Result<Rules> {
        let Self { filter, resolve, level, budget } = self;
        ensure!(level > 0.0 && level < 1.0, "--level must be above 0 % and below 100 %");
        ensure!(resolve > 0.0, "--resolve must be above 0 %");
        Ok(Rules { filter, resolve, until: Until::Resolved, level, budget })
    }
}

impl Duel {
    pub fn run(self) -> Result<ExitCode> {
        let rules = self.rules.rules()?;
        let settings = Settings::load(&[])?;
        let duel = duel::run([&self.a, &self.b], &rules, &settings.out, |line| output::report(line))?;
        match self.format {
            Format::Text | Format::Markdown => output::print(duel.text()),
            Format::Json => output::print_data(&duel.json()?),
            Format::Github => output::print(duel.github()),
        }
        let slower = self.fail_above.map_or(Vec::new(), |share| duel.regressions(share));
        for (name, ratio) in &slower {
            output::report(format_args!("regression: {name} is {:.1} % slower", (ratio - 1.0) * 100.0));
        }
        let larger = self.fail_memory_above.map_or(Vec::new(), |share| duel.memory_regressions(share));
        for row in &larger {
            let rise = row.memory_ratio.map_or(0.0, |ratio| (ratio - 1.0) * 100.0);
            output::report(format_args!("regression: {} takes {rise:.1} % more memory at its peak", row.id));
        }
        for failed in &duel.failed {
            output::report(format_args!("error: {failed}"));
        }
        let is_good = slower.is_empty() && larger.is_empty() && duel.failed.is_empty();
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The process of a side of a duel, for the duel to talk to.
#[derive(Args)]
pub struct DuelSide {
    /// Bench target whose benchmarks it will run
    target: Option<String>,
}

impl DuelSide {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(target) = &self.target {
            Target::named(target)?.set_up();
        }
        let session = Session::new(Settings::load(&[])?)?;
        let catalogue = Catalogue::new(&session);
        duel::serve(session, catalogue)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs a command, and kills it when standard input closes.
#[derive(Args)]
pub struct DuelGuard {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

impl DuelGuard {
    pub fn run(self) -> Result<ExitCode> {
        duel::guard(&self.command)
    }
}

/// The longest time of a flag. The clock has no room for the sum of the present and a time that is much longer.
const LONGEST: Duration = Duration::from_secs(1000 * 3600);

/// A time: a number with s, m or h.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let found = units.into_iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    let is_time = |time: &Duration| !time.is_zero() && *time <= LONGEST;
    found.filter(is_time).ok_or_else(|| "expected a time of at most 1000h, such as 90s, 10m or 2h".into())
}
