//! Objectives of latency, and whether a request meets them.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::exchange::{Exchange, Outcome};

/// A time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timed {
    /// Time to first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// Time to the end of the answer.
    E2e,
}

impl Timed {
    const ALL: [(Self, &'static str); 3] = [(Self::Ttft, "ttft"), (Self::Tpot, "tpot"), (Self::E2e, "e2e")];

    /// The time in an exchange.
    pub(crate) fn of(self, exchange: &Exchange, from_schedule: bool) -> Option<u64> {
        match self {
            Self::Ttft => exchange.ttft_ns(from_schedule),
            Self::Tpot => exchange.tpot_ns(),
            Self::E2e => exchange.e2e_ns(from_schedule),
        }
    }
}

/// A limit of a time. As text: `ttft:500`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// The time that is limited.
    pub timed: Timed,
    /// Largest value that meets the objective.
    pub limit_ms: f64,
}

impl Objective {
    /// Returns whether a request meets every objective. A failed request meets none. A request without a time per token, because
    /// its answer came at once, meets an objective of that time.
    pub(crate) fn all_met(objectives: &[Self], exchange: &Exchange, from_schedule: bool) -> bool {
        exchange.outcome == Outcome::Ok
            && objectives.iter().all(|objective| match objective.timed.of(exchange, from_schedule) {
                Some(ns) => ns as f64 <= objective.limit_ms * 1e6,
                None => objective.timed == Timed::Tpot,
            })
    }
}

impl FromStr for Objective {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(name, limit)| {
            let timed = Timed::ALL.iter().find(|(_, known)| *known == name)?.0;
            Some((timed, limit.parse::<f64>().ok()?))
        });
        let (timed, limit_ms) =
            parts.with_context(|| format!("'{text}' is not an objective such as ttft:500, tpot:50 or e2e:2000"))?;
        ensure!(limit_ms.is_finite() && limit_ms > 0.0, "'{text}': the limit must be above 0 ms");
        Ok(Self { timed, limit_ms })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Timed::ALL.iter().find(|(timed, _)| *timed == self.timed).map_or("", |(_, name)| name);
        write!(f, "{name}:{}", self.limit_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_and_written() {
        for text in ["ttft:500", "tpot:50", "e2e:2000.5"] {
            assert_eq!(text.parse::<Objective>().expect(text).to_string(), text);
        }
        for text in ["ttft", "ttft:", "ttft:-1", "itl:5", "ttft:inf"] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_meets_all_objectives_or_none() {
        let exchange = super::super::exchange::tests::answer(4, 1, 1_000_000);
        let met = |texts: &[&str]| {
            let objectives: Vec<Objective> = texts.iter().map(|text| text.parse().expect(text)).collect();
            Objective::all_met(&objectives, &exchange, true)
        };
        assert!(met(&[]) && met(&["e2e:3.002"]) && met(&["ttft:1", "e2e:5"]));
        assert!(!met(&["e2e:3"]) && !met(&["ttft:0.0001", "e2e:5"]));
        let failed = Exchange { outcome: Outcome::EndedEarly, ..exchange };
        assert!(!Objective::all_met(&[], &failed, true));
    }
}
