//! `candlepower bisect`: the commit that changed a benchmark, by a sequence of duels.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::duel::RuleFlags;
use crate::{
    duel::{
        Side,
        bisect::{self, Request},
    },
    output,
    report::bisect::Kind,
    settings::Settings,
};

/// Find the commit since which a benchmark differs in time, memory, tokens or allocations
///
/// Both sides are those of `candlepower duel`, and differ in one commit: of candlepower, of a crate with a model of its own, or of a
/// checkout of Candle by candle=PATH@REVISION. The same command continues a bisection that was interrupted. Exits with code 0 if it
/// found the commit, 1 if commits that cannot be measured hide it, and 3 if nothing differs.
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
    #[command(flatten)]
    rules: RuleFlags,
    /// Forget what earlier runs of this bisection measured
    #[arg(long)]
    restart: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// The exit code if both ends do not differ, as that of `compare` if no time is left to compare.
const NO_DIFFERENCE: u8 = 3;

impl Bisect {
    pub fn run(self) -> Result<ExitCode> {
        let rules = self.rules.rules()?;
        let settings = Settings::load(&[])?;
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
