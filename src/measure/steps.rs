//! Times of many steps, in figures.

use std::time::Duration;

/// Figures over steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Mean time of the steps of each sample.
    pub sample_ms: Vec<f64>,
    /// Percentiles over every step.
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

/// Sums up steps; `samples` says how many of them each sample has. `None` without a step.
pub fn summarise(steps: &[Duration], samples: &[usize]) -> Option<Steps> {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let mut rest = steps;
    let mut sample_ms = Vec::new();
    for &count in samples {
        let (sample, after) = rest.split_at(count.min(rest.len()));
        sample_ms.push(ms(sample.iter().sum()) / sample.len() as f64);
        rest = after;
    }
    let mut sorted: Vec<f64> = steps.iter().map(|step| ms(*step)).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let percentile = |share: f64| {
        let place = share * last as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    Some(Steps { sample_ms, p50_ms: percentile(0.5), p95_ms: percentile(0.95), p99_ms: percentile(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_samples_and_percentiles_of_steps() {
        let steps = [1, 3, 2, 4, 10].map(Duration::from_millis);
        let found = summarise(&steps, &[2, 3]).expect("figures");
        assert_eq!(found.sample_ms, [2.0, 16.0 / 3.0]);
        assert!((found.p50_ms - 3.0).abs() < 1e-9 && (found.p95_ms - 8.8).abs() < 1e-9);
        assert_eq!(summarise(&[], &[]), None);
    }
}
