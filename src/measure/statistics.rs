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
    fn samples_have_means_and_steps_have_percentiles() {
        let steps = [1, 3, 2, 4, 10].map(Duration::from_millis);
        let found = summarise(&steps, &[2, 3]).expect("figures");
        assert_eq!(found.sample_ms, [2.0, 16.0 / 3.0]);
        assert!((found.p50_ms - 3.0).abs() < 1e-9 && (found.p95_ms - 8.8).abs() < 1e-9);
        assert_eq!(summarise(&[], &[]), None);
    }
}
