//! Runs at several rates: a sweep, and the highest rate that meets the objectives.

use std::fmt::Write;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::report::{Proof, Report};

/// Result of a run at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Arrivals per second.
    pub rate: f64,
    /// True if the run may be used.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Its verdict on the objectives; `null` without objectives.
    pub objective: Option<Proof>,
    /// Requests that met the objectives, per second.
    pub goodput_per_s: Option<f64>,
    /// Requests that succeeded, per second.
    pub requests_per_s: f64,
    /// Tokens of answers, per second.
    pub output_tokens_per_s: f64,
    /// Percentiles of the time to first token, from the schedule.
    pub ttft_p50_ms: Option<f64>,
    /// The 99th.
    pub ttft_p99_ms: Option<f64>,
    /// Median time per output token.
    pub tpot_p50_ms: Option<f64>,
    /// The 99th percentile.
    pub tpot_p99_ms: Option<f64>,
    /// 99th percentile of the time to the end, from the schedule.
    pub e2e_p99_ms: Option<f64>,
}

impl Step {
    /// The step of a run.
    pub(crate) fn of(rate: f64, report: &Report) -> Self {
        let all = &report.summary.all;
        Self {
            rate,
            valid: report.verdict.valid,
            reasons: report.verdict.reasons.clone(),
            objective: all.goodput.map(|goodput| goodput.objective),
            goodput_per_s: all.goodput.map(|goodput| goodput.requests_per_s),
            requests_per_s: all.requests_per_s,
            output_tokens_per_s: all.output_tokens_per_s,
            ttft_p50_ms: all.ttft.at(0.5),
            ttft_p99_ms: all.ttft.at(0.99),
            tpot_p50_ms: all.tpot.at(0.5),
            tpot_p99_ms: all.tpot.at(0.99),
            e2e_p99_ms: all.e2e.at(0.99),
        }
    }
}

/// Runs at several rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// The steps in the order in which they ran.
    pub steps: Vec<Step>,
    /// The highest rate of a valid run that met the objectives; `null` if none did.
    pub highest_rate_met: Option<f64>,
    /// The lowest rate above it that did not, or that showed nothing.
    pub lowest_rate_not_met: Option<f64>,
}

impl Search {
    fn of(steps: Vec<Step>) -> Self {
        let met = |step: &&Step| step.valid && step.objective == Some(Proof::Met);
        let highest = steps
            .iter()
            .filter(met)
            .map(|step| step.rate)
            .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
        let above = steps
            .iter()
            .filter(|step| !met(step) && step.objective.is_some() && highest.is_none_or(|rate| step.rate > rate));
        let lowest = above.map(|step| step.rate).fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.min(b))));
        Self { steps, highest_rate_met: highest, lowest_rate_not_met: lowest }
    }
}

impl Search {
    /// The steps as a table for a terminal, by rate.
    pub(crate) fn text(&self) -> String {
        let mut steps: Vec<&Step> = self.steps.iter().collect();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let cell = |value: Option<f64>| value.map_or_else(|| "n/a".into(), |value| format!("{value:.2}"));
        let header = ["rate/s", "requests/s", "goodput/s", "TTFT P50", "TTFT P99", "TPOT P99", "E2E P99"];
        let mut out = header.map(|name| format!("{name:>12}")).concat() + "  objective\n";
        for step in steps {
            let cells = [
                Some(step.rate),
                Some(step.requests_per_s),
                step.goodput_per_s,
                step.ttft_p50_ms,
                step.ttft_p99_ms,
                step.tpot_p99_ms,
                step.e2e_p99_ms,
            ];
            out += &cells.map(|value| format!("{:>12}", cell(value))).concat();
            let objective = step.objective.map_or_else(|| "none".into(), |proof| format!("{proof:?}").to_lowercase());
            let _ = writeln!(out, "  {objective}{}", if step.valid { "" } else { ", INVALID" });
            step.reasons.iter().for_each(|reason| {
                let _ = writeln!(out, "{:>14}{reason}", "- ");
            });
        }
        let _ = match (self.highest_rate_met, self.lowest_rate_not_met) {
            (Some(met), Some(above)) => {
                writeln!(out, "highest rate that meets the objectives: {met:.2}/s (not: {above:.2}/s)")
            }
            (Some(met), None) => writeln!(out, "every rate meets the objectives, up to {met:.2}/s"),
            (None, Some(above)) => writeln!(out, "no rate meets the objectives, from {above:.2}/s"),
            (None, None) => Ok(()),
        };
        out
    }
}

/// Runs at each rate.
///
/// # Errors
/// When a run can't start.
pub(crate) fn sweep(rates: &[f64], mut run: impl FnMut(f64) -> Result<Report>) -> Result<Search> {
    let steps = rates.iter().map(|rate| Ok(Step::of(*rate, &run(*rate)?))).collect::<Result<_>>()?;
    Ok(Search::of(steps))
}

/// Finds the highest rate between `low` and `high` that meets the objectives, by bisection, until the rates on both sides
/// of it differ by less than the share `precision`.
///
/// # Errors
/// When the rates are not in order, there are no objectives, or a run can't start.
pub fn bisect(low: f64, high: f64, precision: f64, mut run: impl FnMut(f64) -> Result<Report>) -> Result<Search> {
    ensure!(low > 0.0 && low < high && high.is_finite(), "the search needs two rates, the lower first: {low}..{high}");
    ensure!(precision > 0.0 && precision < 1.0, "the precision is {precision}: use a share above 0 and below 1");
    let mut steps = Vec::new();
    let mut meets = |rate: f64| -> Result<bool> {
        let step = Step::of(rate, &run(rate)?);
        ensure!(step.objective.is_some(), "a search needs an objective, such as --goodput ttft:500");
        let met = step.valid && step.objective == Some(Proof::Met);
        steps.push(step);
        Ok(met)
    };
    let (mut met, mut missed) = (low, high);
    if meets(low)? && !meets(high)? {
        while missed / met > 1.0 + precision {
            // Rates are compared by their quotient.
            let middle = (met * missed).sqrt();
            if meets(middle)? { met = middle } else { missed = middle }
        }
    }
    Ok(Search::of(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate: f64, objective: Proof) -> Step {
        Step {
            rate,
            valid: true,
            reasons: Vec::new(),
            objective: Some(objective),
            goodput_per_s: Some(rate),
            requests_per_s: rate,
            output_tokens_per_s: rate,
            ttft_p50_ms: None,
            ttft_p99_ms: None,
            tpot_p50_ms: None,
            tpot_p99_ms: None,
            e2e_p99_ms: None,
        }
    }

    #[test]
    fn the_knee_is_between_the_last_that_met_and_the_first_that_did_not() {
        let steps = vec![
            step(1.0, Proof::Met),
            step(16.0, Proof::Missed),
            step(4.0, Proof::Met),
            step(8.0, Proof::Insufficient),
        ];
        let search = Search::of(steps);
        assert_eq!((search.highest_rate_met, search.lowest_rate_not_met), (Some(4.0), Some(8.0)));
        let none = Search::of(vec![Step { valid: false, ..step(1.0, Proof::Met) }]);
        assert_eq!((none.highest_rate_met, none.lowest_rate_not_met), (None, Some(1.0)));
    }
}
