//! Tells a run that measured the server from one that measured the generator.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    exchange::{Oddity, Outcome},
    statistics::requests_needed,
    tally::Tally,
};

/// When a run is INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Shortest run, from the first schedule to the last end.
    pub min_duration_s: f64,
    /// Largest 99th percentile of the lateness of sends, and of the delay of the threads that stamp events.
    pub max_lateness_p99_ms: f64,
    /// Longest time for which the generator may have stood still.
    pub max_pause_ms: f64,
    /// Percentile that the run must have requests for, from 0 to 1.
    pub percentile: f64,
    /// Confidence of the statement about that percentile.
    pub confidence: f64,
    /// Largest share of requests that failed, and of answers whose times are unknown because they came at once. The percentiles
    /// are those of the others.
    pub max_failed_share: f64,
}

impl Limits {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When one is out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        // A percentile of nearly all requests needs nearly all requests there are.
        let shares = [("percentile", self.percentile, 1e-3..=0.99999), ("confidence", self.confidence, 1e-3..=0.99999)];
        let failed = [("share of failures", self.max_failed_share, 0.0..=1.0)];
        for (name, share, range) in shares.into_iter().chain(failed) {
            let (low, high) = (range.start() * 100.0, range.end() * 100.0);
            ensure!(range.contains(&share), "the {name} is {} %: use {low} to {high}", share * 100.0);
        }
        let times = [
            ("shortest run", self.min_duration_s),
            ("largest lateness", self.max_lateness_p99_ms),
            ("longest pause", self.max_pause_ms),
        ];
        for (name, time) in times {
            ensure!((0.0..=1e9).contains(&time), "the {name} is {time}: use 0 to 1e9");
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_duration_s: 60.0,
            max_lateness_p99_ms: 10.0,
            max_pause_ms: 100.0,
            percentile: 0.99,
            confidence: 0.99,
            max_failed_share: 0.01,
        }
    }
}

/// The verdict on a run. It is about the measurement, not about the server's speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// True if the figures may be used.
    pub valid: bool,
    /// Why not, as sentences.
    pub reasons: Vec<String>,
}

impl Verdict {
    /// Judges a run.
    pub(super) fn of(tally: &Tally, limits: &Limits) -> Self {
        let mut reasons = Vec::new();
        let Limits { min_duration_s, max_lateness_p99_ms, max_pause_ms, percentile, confidence, max_failed_share } =
            *limits;
        let all = &tally.all;
        let odd = |oddity: Oddity| tally.oddities.get(&oddity).copied().unwrap_or(0);
        // What became of `count` of `whole`, if they are more than a few.
        let more_than_few = |count: u64, whole: u64, what: &str| {
            let share = count as f64 / whole.max(1) as f64;
            (share > max_failed_share).then(|| {
                format!("{count} of {whole} {what} ({:.1} %, above {} %)", share * 100.0, max_failed_share * 100.0)
            })
        };
        if all.ok == 0 {
            let worst = tally.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::Ok).max_by_key(|(_, n)| **n);
            let why = worst.and_then(|(outcome, _)| tally.failures.get(outcome));
            reasons.push(format!(
                "All {} requests failed{}.",
                all.requests,
                why.map_or_else(String::new, |why| format!("; most often: {why}"))
            ));
        } else {
            let failed = more_than_few(all.requests - all.ok, all.requests, "requests failed");
            reasons.extend(failed.map(|failed| format!("{failed}: the percentiles are those of the others.")));
        }
        let at_once = more_than_few(odd(Oddity::AllAtOnce), all.ok, "answers came all at once");
        reasons.extend(at_once.map(|at_once| {
            format!("{at_once}: their TTFT and TPOT are unknown. Does a proxy buffer (in nginx: proxy_buffering off)?")
        }));
        let impossible = odd(Oddity::ImpossibleUsage);
        if impossible > 0 {
            reasons.push(format!("The server states more tokens than were asked for in {impossible} answers."));
        }
        let late = |name: &str, found: Option<f64>, limit: f64, what: &str| {
            let found = found.filter(|found| *found > limit)?;
            Some(format!("The generator was late: {name} {what} is {found:.1} ms, above {limit} ms."))
        };
        reasons.extend(late(
            "P99 of",
            tally.lateness.percentile_ms(0.99),
            max_lateness_p99_ms,
            "the lateness of sends",
        ));
        reasons.extend(late(
            "P99 of",
            tally.wake_delay.percentile_ms(0.99),
            max_lateness_p99_ms,
            "the delay of its threads",
        ));
        let pause = [tally.lateness.max_ms(), tally.wake_delay.max_ms()].into_iter().flatten().fold(0.0, f64::max);
        if pause > max_pause_ms {
            reasons.push(format!("The generator stood still for {pause:.0} ms, longer than {max_pause_ms} ms."));
        }
        let needed = requests_needed(percentile, confidence, 0);
        if all.ok > 0 && all.ok < needed {
            reasons.push(format!(
                "Insufficient requests: {} succeeded, and P{} at {} % confidence needs {needed}.",
                all.ok,
                percentile * 100.0,
                confidence * 100.0
            ));
        }
        if all.seconds() < min_duration_s {
            reasons.push(format!("The run was too short: {:.1} s, below {min_duration_s} s.", all.seconds()));
        }
        Self { valid: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::exchange::{Exchange, tests::answer};

    fn tally(requests: u64, change: impl Fn(u64, &mut Exchange)) -> Verdict {
        let mut tally = Tally::default();
        for index in 0..requests {
            let due_ns = index * 205_000_000;
            let mut exchange = answer(4, 1, 1_000_000);
            (exchange.index, exchange.due_ns, exchange.sent_ns) = (index, due_ns, Some(due_ns + 50_000));
            exchange.ended_ns = due_ns + 1_000_000;
            exchange.usage_tokens = Some(4);
            exchange.chunks.iter_mut().for_each(|chunk| chunk.at_ns += due_ns);
            change(index, &mut exchange);
            exchange.count_tokens(None);
            tally.add_lateness(&exchange);
            tally.add(&exchange, &[], 0);
        }
        Verdict::of(&tally, &Limits::default())
    }

    #[test]
    fn a_run_is_invalid_for_each_reason() {
        assert_eq!(tally(459, |_, _| {}), Verdict { valid: true, reasons: Vec::new() });
        let late = |index: u64, exchange: &mut Exchange| {
            exchange.sent_ns = exchange.sent_ns.map(|ns| if index.is_multiple_of(50) { ns + 11_000_000 } else { ns });
        };
        let stopped = |index: u64, exchange: &mut Exchange| {
            exchange.sent_ns = exchange.sent_ns.map(|ns| if index == 7 { ns + 500_000_000 } else { ns });
        };
        let failed = |_: u64, exchange: &mut Exchange| {
            (exchange.outcome, exchange.detail) = (Outcome::ServerError, Some("HTTP 500".into()));
        };
        let some_failed = |index: u64, exchange: &mut Exchange| {
            if index < 5 {
                exchange.outcome = Outcome::RateLimited;
            }
        };
        let buffered = |_: u64, exchange: &mut Exchange| {
            let last_ns = exchange.chunks[3].at_ns + 20_000_000;
            exchange.chunks.iter_mut().for_each(|chunk| chunk.at_ns = last_ns);
        };
        let impossible = |index: u64, exchange: &mut Exchange| {
            exchange.usage_tokens = Some(if index == 7 { 900_000 } else { 4 });
        };
        for (verdict, part) in [
            (tally(465, some_failed), "5 of 465 requests failed (1.1 %, above 1 %)"),
            (tally(459, buffered), "459 of 459 answers came all at once (100.0 %"),
            (tally(459, impossible), "more tokens than were asked for in 1 answers"),
            (tally(459, late), "The generator was late: P99"),
            (tally(459, stopped), "stood still for 500 ms"),
            (tally(300, |_, _| {}), "Insufficient requests: 300 succeeded, and P99 at 99 % confidence needs 459."),
            (tally(459, failed), "All 459 requests failed; most often: HTTP 500."),
        ] {
            assert!(!verdict.valid);
            assert_eq!(verdict.reasons.len(), 1, "{:?}", verdict.reasons);
            assert!(verdict.reasons[0].contains(part), "{:?}", verdict.reasons);
        }
        let short = tally(10, |_, _| {});
        assert!(short.reasons.iter().any(|reason| reason.contains("too short: 1.8 s")), "{:?}", short.reasons);
    }
}
