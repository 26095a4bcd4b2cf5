//! Summary statistics of repeated steps. All percentiles are computed here.

use std::time::Duration;

/// Statistics of the steps of a benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Mean time of the steps of each sample.
    pub sample_ms: Vec<f64>,
    /// Percentiles over every step.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

/// Summarises steps; `samples` holds the number of steps of each sample. Returns `None` without a step.
pub fn summarise(steps: &[Duration], samples: &[usize]) -> Option<Steps> {
    let mut sorted: Vec<f64> = steps.iter().map(|step| ms(*step)).collect();
    let sample_ms = sample_means(&sorted, samples);
    sorted.sort_unstable_by(f64::total_cmp);
    if sorted.is_empty() {
        return None;
    }
    let at = |share| percentile(&sorted, share);
    Some(Steps { sample_ms, p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99) })
}

/// Returns the mean of each sample; `samples` holds the number of values of each, in order.
pub fn sample_means(values: &[f64], samples: &[usize]) -> Vec<f64> {
    let mut rest = values;
    let mean = |count: &usize| {
        let (sample, after) = rest.split_at((*count).min(rest.len()));
        rest = after;
        sample.iter().sum::<f64>() / sample.len() as f64
    };
    samples.iter().map(mean).collect()
}

/// Converts to milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Returns the median of values in any order.
///
/// # Panics
/// Panics if `values` is empty.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// The median of paired ratios.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Paired {
    /// The median.
    pub ratio: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Probability with which such an interval contains the true median: at least [`LEVEL`], unless the pairs are too few.
    pub level: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// The level of intervals. Ten pairs reach 97.9 %, because an interval ends at pairs.
pub const LEVEL: f64 = 0.95;

/// Returns the median of `a[i] / b[i]` and its interval from order statistics, which assumes nothing about the
/// distribution. Returns `None` without a pair.
pub fn paired_ratio(a: &[f64], b: &[f64]) -> Option<Paired> {
    let mut ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let pairs = ratios.len();
    let (low, high) = (*ratios.first()?, *ratios.last()?);
    // The interval that leaves out `cut` pairs at each end misses the median if at most `cut` pairs are on one side of it.
    let mut found = Paired { ratio: percentile(&ratios, 0.5), low, high, level: 1.0 - at_most(0, pairs) * 2.0, pairs };
    for cut in 1..pairs / 2 {
        let level = 1.0 - at_most(cut, pairs) * 2.0;
        if level < LEVEL {
            break;
        }
        found = Paired { low: ratios[cut], high: ratios[pairs - 1 - cut], level, ..found };
    }
    found.level = found.level.max(0.0);
    Some(found)
}

/// Probability that at most `count` of `n` fair coins show heads.
fn at_most(count: usize, n: usize) -> f64 {
    let mut term = 0.5f64.powi(n as i32);
    let mut sum = term;
    for heads in 1..=count {
        term *= (n + 1 - heads) as f64 / heads as f64;
        sum += term;
    }
    sum
}

/// Returns a percentile of sorted values, with linear interpolation between neighbours: type 7 of Hyndman and Fan,
/// numpy's default. `share` is from 0 to 1.
///
/// # Panics
/// Panics if `sorted` is empty.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_is_that_of_order_statistics() {
        // 11 of 1024 ways to throw ten coins show at most one head, so the second and the ninth ratio bound 97.9 %.
        let a: Vec<f64> = (1..=10).map(f64::from).collect();
        let paired = paired_ratio(&a, &[1.0; 10]).expect("pairs");
        assert_eq!((paired.ratio, paired.low, paired.high, paired.pairs), (5.5, 2.0, 9.0, 10));
        assert!((paired.level - (1.0 - 22.0 / 1024.0)).abs() < 1e-12, "{paired:?}");
        // Twenty: 21700 / 2^20 ways show at most five, 6196 / 2^20 at most four.
        let paired = paired_ratio(&(1..=20).map(f64::from).collect::<Vec<_>>(), &[1.0; 20]).expect("pairs");
        assert_eq!((paired.low, paired.high), (6.0, 15.0));
        assert!((paired.level - (1.0 - 2.0 * 21_700.0 / f64::from(1 << 20))).abs() < 1e-9, "{paired:?}");
        let one = paired_ratio(&[3.0], &[2.0]).expect("a pair");
        assert_eq!((one.ratio, one.low, one.high, one.level), (1.5, 1.5, 1.5, 0.0));
        assert_eq!(paired_ratio(&[], &[1.0]), None);
    }

    #[test]
    fn samples_have_means_and_steps_have_percentiles() {
        let steps = [1, 3, 2, 4, 10].map(Duration::from_millis);
        let found = summarise(&steps, &[2, 3]).expect("figures");
        assert_eq!(found.sample_ms, [2.0, 16.0 / 3.0]);
        assert!((found.p50_ms - 3.0).abs() < 1e-9 && (found.p95_ms - 8.8).abs() < 1e-9);
        assert_eq!(summarise(&[], &[]), None);
    }
}
