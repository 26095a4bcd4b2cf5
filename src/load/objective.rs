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
    pub(crate) const ALL: [(Self, &'static str); 3] = [(Self::Ttft, "ttft"), (Self::Tpot, "tpot"), (Self::E2e, "e2e")];

    /// Its name in objectives.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(timed, _)| *timed == self).map_or("", |(_, name)| name)
    }

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
    /// Returns whether a request meets every objective; `None` if it misses none that can be judged, and one cannot. A failed
    /// request meets none. An answer of one token has no time per token, and meets an objective of that time.
    pub(crate) fn all_met(objectives: &[Self], exchange: &Exchange, from_schedule: bool) -> Option<bool> {
        if exchange.outcome != Outcome::Ok {
            return Some(false);
        }
        let mut all = Some(true);
        for Self { timed, limit_ms } in objectives {
            match timed.of(exchange, from_schedule) {
                Some(ns) if ns as f64 > limit_ms * 1e6 => return Some(false),
                None if exchange.lacks(*timed) => all = None,
                _ => {}
            }
        }
        all
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
        write!(f, "{}:{}", self.timed.name(), self.limit_ms)
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
        use super::super::exchange::Oddity;
        let exchange = super::super::exchange::tests::answer(4, 1, 1_000_000);
        let met = |texts: &[&str], exchange: &Exchange| {
            let objectives: Vec<Objective> = texts.iter().map(|text| text.parse().expect(text)).collect();
            Objective::all_met(&objectives, exchange, true)
        };
        for (objectives, expected) in [
            (&[][..], Some(true)),
            (&["e2e:3.002"], Some(true)),
            (&["ttft:1", "e2e:5"], Some(true)),
            (&["e2e:3"], Some(false)),
            (&["ttft:0.0001", "e2e:5"], Some(false)),
        ] {
            assert_eq!(met(objectives, &exchange), expected, "{objectives:?}");
        }
        // What is unknown is not judged, unless another objective is missed.
        let at_once = Exchange { oddities: [Oddity::AllAtOnce].into(), ..exchange.clone() };
        for (objectives, expected) in [
            (&["ttft:1"][..], None),
            (&["tpot:9", "e2e:5"], None),
            (&["ttft:1", "e2e:3"], Some(false)),
            (&["e2e:5"], Some(true)),
        ] {
            assert_eq!(met(objectives, &at_once), expected, "{objectives:?}");
        }
        let failed = Exchange { outcome: Outcome::EndedEarly, ..at_once };
        assert_eq!(met(&["ttft:1"], &failed), Some(false));
    }
}
