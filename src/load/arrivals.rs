//! When requests arrive.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    draw::{Draw, Purpose},
    plan::MAX_S,
};

/// Most arrivals per second.
const MAX_RATE: f64 = 1e6;
/// Most clients of a closed loop.
const MAX_CLIENTS: u64 = 100_000;

/// The process that arrivals come from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// At a rate, whether or not earlier requests have been answered.
    Open {
        /// Arrivals per second after the ramp.
        rate: f64,
        /// Distribution of the gaps.
        spacing: Spacing,
        /// Rate at the start, which rises or falls linearly to `rate`.
        ramp_from: f64,
        /// Length of the ramp in seconds; 0 for none.
        ramp_s: f64,
    },
    /// Each of the clients sends its next request when its last one has ended.
    Closed {
        /// Number of clients.
        clients: u64,
    },
    /// At the times of a trace.
    Trace,
}

/// Distribution of the gaps between arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equal gaps; the first arrival is at the start.
    Constant,
    /// Exponential gaps: a Poisson process.
    Poisson,
    /// Gaps from a gamma distribution of this shape. Shape 1 is Poisson; a smaller shape gives bursts.
    Gamma(f64),
}

impl Arrivals {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When one is out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        match *self {
            Self::Open { rate, spacing, ramp_from, ramp_s } => {
                let rates = 1e-6..=MAX_RATE;
                ensure!(rates.contains(&rate), "the rate is {rate}: it must be above 0, from 0.000001 to {MAX_RATE}");
                ensure!((0.0..=MAX_RATE).contains(&ramp_from), "the ramp starts at {ramp_from}: use 0 to {MAX_RATE}");
                ensure!((0.0..=MAX_S).contains(&ramp_s), "the ramp takes {ramp_s} s: use 0 to {MAX_S}");
                if let Spacing::Gamma(shape) = spacing {
                    ensure!((0.01..=1e6).contains(&shape), "the burstiness is {shape}: use 0.01 to 1000000");
                }
            }
            Self::Closed { clients } => {
                ensure!(
                    (1..=MAX_CLIENTS).contains(&clients),
                    "a closed loop has {clients} clients: use 1 to {MAX_CLIENTS}"
                );
            }
            Self::Trace => {}
        }
        Ok(())
    }

    /// Arrival times in nanoseconds from the start, in order. Empty unless the loop is open.
    pub(crate) fn times(&self, seed: u64) -> impl Iterator<Item = u64> + use<> {
        let process = match *self {
            Self::Open { rate, spacing, ramp_from, ramp_s } => Some((rate, spacing, ramp_from, ramp_s)),
            Self::Closed { .. } | Self::Trace => None,
        };
        let mut draw = Draw::new(seed, Purpose::Arrivals, 0);
        let mut expected = 0.0;
        process.into_iter().flat_map(|process| (0u64..).map(move |index| (index, process))).map(
            move |(index, (rate, spacing, ramp_from, ramp_s))| {
                // The process has rate 1 in the expected number of arrivals. The rate maps that number to a time, so no
                // error adds up over the arrivals.
                expected = match spacing {
                    Spacing::Constant => index as f64,
                    Spacing::Poisson => expected + draw.exponential(),
                    Spacing::Gamma(shape) => expected + draw.gamma(shape) / shape,
                };
                (time_s(expected, rate, ramp_from, ramp_s) * 1e9).round() as u64
            },
        )
    }
}

/// The time at which `expected` arrivals are expected, in seconds.
fn time_s(expected: f64, rate: f64, ramp_from: f64, ramp_s: f64) -> f64 {
    let in_ramp = (ramp_from + rate) / 2.0 * ramp_s;
    if expected >= in_ramp {
        return ramp_s + (expected - in_ramp) / rate;
    }
    // The root of `ramp_from * t + slope * t² / 2 = expected`, in a form that also holds for a slope of 0.
    let slope = (rate - ramp_from) / ramp_s;
    2.0 * expected / (ramp_from + (ramp_from * ramp_from + 2.0 * slope * expected).sqrt()).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(rate: f64, spacing: Spacing) -> Arrivals {
        Arrivals::Open { rate, spacing, ramp_from: 0.0, ramp_s: 0.0 }
    }

    #[test]
    fn constant_arrivals_are_equally_spaced_without_drift() {
        let times: Vec<u64> = open(30.0, Spacing::Constant).times(0).take(3_000_001).collect();
        assert_eq!(
            (times[0], times[1], times[30], times[3_000_000]),
            (0, 33_333_333, 1_000_000_000, 100_000_000_000_000)
        );
    }

    /// A Poisson count has a variance equal to its mean.
    #[test]
    fn poisson_counts_are_dispersed_like_poisson_counts() {
        for rate in [5.0, 40.0, 300.0] {
            let counts: Vec<f64> = (0..200)
                .map(|seed| {
                    open(rate, Spacing::Poisson).times(seed).take_while(|at| *at < 1_000_000_000).count() as f64
                })
                .collect();
            let mean = counts.iter().sum::<f64>() / 200.0;
            let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 199.0;
            assert!((0.8..=1.25).contains(&(variance / mean)), "rate {rate}: variance {variance}, mean {mean}");
            assert!((mean - rate).abs() < 4.0 * (rate / 200.0).sqrt(), "rate {rate}: mean {mean}");
        }
    }

    #[test]
    fn a_ramp_rises_linearly() {
        let ramp = Arrivals::Open { rate: 100.0, spacing: Spacing::Constant, ramp_from: 0.0, ramp_s: 10.0 };
        let count = |until_s: f64| ramp.times(0).take_while(|at| (*at as f64) < until_s * 1e9).count();
        // 5 t² arrivals after t seconds, then 100 a second.
        for (until_s, expected) in [(2.0, 20), (5.0, 125), (10.0, 500), (12.0, 700)] {
            assert!(count(until_s).abs_diff(expected) <= 1, "{} after {until_s} s", count(until_s));
        }
        let falling = Arrivals::Open { rate: 10.0, spacing: Spacing::Constant, ramp_from: 30.0, ramp_s: 4.0 };
        let times: Vec<u64> = falling.times(0).take(200).collect();
        assert!(times.is_sorted() && times[0] == 0);
        assert_eq!(times.iter().filter(|at| **at < 4_000_000_000).count(), 80);
    }
}
