//! Histograms of times that can be added without a loss.

use anyhow::{Result, ensure};
use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Significant decimal digits of a value.
const DIGITS: u8 = 3;
/// Longest time that is told apart: a week.
const MOST_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;
/// Most values that a histogram of a file has.
const MOST_COUNT: u64 = 1_000_000_000_000;

/// A high-dynamic-range histogram of times in nanoseconds. A value that it returns differs from the recorded one by less
/// than a thousandth. Sum, smallest and largest value are exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    counts: Hdr<u64>,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

/// The form in files: the recorded values, lowest of each bucket, with their counts.
#[derive(Serialize, Deserialize)]
struct Stored {
    digits: u8,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    counts_by_ns: Vec<(u64, u64)>,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts =
            Hdr::new_with_bounds(1, MOST_NS, DIGITS).unwrap_or_else(|_| unreachable!("the bounds are constant"));
        Self { counts, sum_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }
}

impl Histogram {
    /// Records a time. One above a week counts as a week.
    pub(crate) fn record(&mut self, ns: u64) {
        self.record_times(ns, 1);
    }

    /// Records a time that occurred several times.
    pub(crate) fn record_times(&mut self, ns: u64, times: u64) {
        if times == 0 {
            return;
        }
        let ns = ns.min(MOST_NS);
        self.counts.saturating_record_n(ns, times);
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(times));
        (self.min_ns, self.max_ns) = (self.min_ns.min(ns), self.max_ns.max(ns));
    }

    /// Adds the values of another histogram. The result is that of recording all values in one.
    ///
    /// # Errors
    /// When the other can't be added, which a histogram of this module always can.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.counts.add(&other.counts)?;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        (self.min_ns, self.max_ns) = (self.min_ns.min(other.min_ns), self.max_ns.max(other.max_ns));
        Ok(())
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Mean in milliseconds; `None` without a value.
    pub(crate) fn mean_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum_ns as f64 / self.count() as f64 / 1e6)
    }

    /// Smallest value in milliseconds.
    pub(crate) fn min_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.min_ns as f64 / 1e6)
    }

    /// Largest value in milliseconds.
    pub(crate) fn max_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.max_ns as f64 / 1e6)
    }

    /// The value with this rank from below, from 1, in milliseconds.
    pub(crate) fn at_rank_ms(&self, rank: u64) -> Option<f64> {
        let mut below = 0;
        for value in self.counts.iter_recorded() {
            below += value.count_since_last_iteration();
            if rank >= 1 && below >= rank {
                let ns = self.counts.median_equivalent(value.value_iterated_to());
                return Some(ns.clamp(self.min_ns, self.max_ns) as f64 / 1e6);
            }
        }
        None
    }

    /// The smallest value that the share `percentile` of the values does not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, percentile: f64) -> Option<f64> {
        self.at_rank_ms(((self.count() as f64 * percentile).ceil() as u64).max(1))
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts_by_ns = self
            .counts
            .iter_recorded()
            .map(|value| (self.counts.lowest_equivalent(value.value_iterated_to()), value.count_at_value()))
            .collect();
        let min_ns = if self.count() > 0 { self.min_ns } else { 0 };
        Stored { digits: DIGITS, sum_ns: self.sum_ns, min_ns, max_ns: self.max_ns, counts_by_ns }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        let read = || {
            ensure!(stored.digits == DIGITS, "a histogram has {} digits; this version reads {DIGITS}", stored.digits);
            let mut histogram = Self::default();
            for (ns, count) in stored.counts_by_ns {
                ensure!(ns <= MOST_NS, "a histogram has a value of {ns} ns");
                ensure!(
                    count <= MOST_COUNT - histogram.count(),
                    "a histogram has {count} values, more than {MOST_COUNT}"
                );
                histogram.record_times(ns, count);
            }
            if histogram.count() > 0 {
                ensure!(
                    stored.min_ns <= stored.max_ns && stored.max_ns <= MOST_NS,
                    "a histogram is from {} to {} ns",
                    stored.min_ns,
                    stored.max_ns
                );
                (histogram.sum_ns, histogram.min_ns, histogram.max_ns) = (stored.sum_ns, stored.min_ns, stored.max_ns);
            }
            Ok(histogram)
        };
        read().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::draw::{Draw, Purpose};

    /// A million lognormal times around 50 ms, in one histogram and in merged shards that went through files.
    #[test]
    fn percentiles_are_exact_to_a_thousandth_and_shards_add_up() {
        let mut draw = Draw::new(11, Purpose::Arrivals, 0);
        let values: Vec<u64> = (0..1_000_000).map(|_| (50e6 * draw.normal().exp()) as u64).collect();
        let (mut whole, mut shards) = (Histogram::default(), vec![Histogram::default(); 7]);
        for (number, value) in values.iter().enumerate() {
            whole.record(*value);
            shards[number % 7].record(*value);
        }
        let mut merged = Histogram::default();
        for shard in &shards {
            let text = serde_json::to_string(shard).expect("JSON");
            merged.add(&serde_json::from_str(&text).expect("a histogram")).expect("added");
        }
        assert_eq!(merged, whole);
        let mut sorted = values;
        sorted.sort_unstable();
        for percentile in [0.5, 0.9, 0.95, 0.99, 0.999] {
            let exact = sorted[(percentile * 1e6) as usize - 1] as f64 / 1e6;
            let found = merged.percentile_ms(percentile).expect("values");
            assert!((found / exact - 1.0).abs() < 1e-3, "P{}: {found}, not {exact}", percentile * 100.0);
        }
        let mean = sorted.iter().map(|value| *value as f64).sum::<f64>() / 1e12;
        assert!((merged.mean_ms().expect("values") / mean - 1.0).abs() < 1e-9);
        assert_eq!(merged.max_ms(), Some(sorted[999_999] as f64 / 1e6));
        assert_eq!(merged.min_ms(), Some(sorted[0] as f64 / 1e6));
        merged.record(u64::MAX);
        assert_eq!(merged.max_ms(), Some(7.0 * 24.0 * 3600.0 * 1e3));
    }

    #[test]
    fn an_empty_histogram_has_no_values() {
        let empty = Histogram::default();
        assert_eq!((empty.mean_ms(), empty.percentile_ms(0.5)), (None, None));
        assert_eq!((empty.min_ms(), empty.max_ms()), (None, None));
        let text = serde_json::to_string(&empty).expect("JSON");
        assert!(text.contains(r#""min_ns":0,"max_ns":0"#), "{text}");
        assert_eq!(serde_json::from_str::<Histogram>(&text).expect("a histogram"), empty);
        for (digits, min_ns, max_ns, counts) in [
            (2, 0, 0, "[]"),
            (3, u64::MAX, 9, "[[9, 1]]"),
            (3, 9, u64::MAX, "[[9, 1]]"),
            (3, 9, 9, "[[9, 9223372036854775808]]"),
            (3, 9, 9, "[[9, 600000000000], [9, 600000000000]]"),
            (3, 9, 9, "[[18446744073709551615, 1]]"),
        ] {
            let text = format!(
                r#"{{"digits":{digits},"sum_ns":0,"min_ns":{min_ns},"max_ns":{max_ns},"counts_by_ns":{counts}}}"#
            );
            assert!(serde_json::from_str::<Histogram>(&text).is_err(), "{text}");
        }
    }
}
