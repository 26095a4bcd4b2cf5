//! `candlepower bisect`: the commit that changed a benchmark, by a sequence of duels.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;

use super::{compare::percent, duel::duration};
use crate::{
    duel::{
        Filter, Rules, Side,
        bisect::{self, Request},
    },
    output,
    report::bisect::Kind,
    settings::Settings,
};

/// Find the commit since which a benchmark is slower or faster, takes other memory or generates other tokens
///
/// Both sides are those of `candlepower duel`, and differ in one commit: of candlepower, or of a checkout of Candle by
/// candle=PATH@REVISION. The same command continues a bisection that was interrupted. Exits with code 0 if it found the commit, 1 if
/// commits that cannot be measured hide it, and 3 if nothing differs.
///
/// Examples: `candlepower bisect v0.1.0 main -- '^short/llama-mini/tuned'`,
/// `candlepower bisect candle=../candle@0.11.0 candle=../candle@main -- '^medium/llama-mini/stock'`
#[derive(Args)]
pub struct Bisect {
    /// The earlier side, an ancestor of the later one
    good: Side,
    /// The later side
    bad: Side,
    /// The change to look for, if the sides differ in more than one way
    #[arg(long = "for", value_enum)]
    kind: Option<Kind>,
    /// How narrow the first duel makes its intervals: to at most this share below and above their middle
    #[arg(long, value_parser = percent, default_value = "2%")]
    resolve: f64,
    /// Time for measuring in a duel, such as 90s, 10m or 2h; up to four times as long for a commit that is not told apart
    #[arg(long, value_parser = duration, default_value = "10m")]
    budget: Duration,
    /// Probability with which any step may misjudge its commit
    #[arg(long, value_parser = percent, default_value = "5%")]
    level: f64,
    /// Forget what earlier runs of this bisection measured
    #[arg(long)]
    restart: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Part of the ids to measure, such as '^medium/'; ^ and $ stand for start and end, | separates alternatives
    #[arg(last = true)]
    filter: Option<Filter>,
}

/// The exit code if both ends do not differ, as that of `compare` if no time is left to compare.
const NO_DIFFERENCE: u8 = 3;

impl Bisect {
    pub fn run(self) -> Result<ExitCode> {
        ensure!(self.level > 0.0 && self.level < 1.0, "--level must be above 0 % and below 100 %");
        ensure!(self.resolve > 0.0, "--resolve must be above 0 %");
        let settings = Settings::load(&[])?;
        let rules = Rules { filter: self.filter, resolve: self.resolve, level: self.level, budget: self.budget };
        let request = Request { sides: [self.good, self.bad], kind: self.kind, rules, restart: self.restart };
        let bisection = bisect::run(&request, &settings)?;
        match self.json {
            true => output::print_data(&serde_json::to_string(&bisection)?),
            false => output::print(bisection.text()),
        }
        Ok(match bisection.suspects.len() {
            0 => ExitCode::from(NO_DIFFERENCE),
            1 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}
