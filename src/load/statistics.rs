//! The binomial distribution, and the intervals and stopping rules that follow from it.

/// Natural logarithm of the gamma function for positive `x` (Lanczos, 1964).
pub fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const COEFFICIENTS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // The reflection formula.
        return (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let base = x + G + 0.5;
    let series =
        COEFFICIENTS[1..].iter().enumerate().fold(COEFFICIENTS[0], |sum, (i, c)| sum + c / (x + i as f64 + 1.0));
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * base.ln() - base + series.ln()
}

/// Probability of at most `k` successes in `n` trials of probability `p`, which is between 0 and 1.
pub fn binomial_at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    let mean = n as f64 * p;
    if k as f64 > mean {
        return 1.0 - binomial_at_most(n - k - 1, n, 1.0 - p);
    }
    // The terms fall from k downwards, so the sum ends when they no longer count.
    let (k, n) = (k as f64, n as f64);
    let ln_term = ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0) + k * p.ln() + (n - k) * (-p).ln_1p();
    let (mut term, mut sum, mut k) = (ln_term.exp(), 0.0, k);
    while term > sum * 1e-17 && term > 0.0 {
        sum += term;
        if k == 0.0 {
            break;
        }
        term *= k / (n - k + 1.0) * (1.0 - p) / p;
        k -= 1.0;
    }
    sum.min(1.0)
}

/// MLPerf's early-stopping rule: how many requests show at `confidence` that at least the share `percentile` of all
/// requests meets a limit, when `over` of them did not.
pub fn requests_needed(percentile: f64, confidence: f64, over: u64) -> u64 {
    let shows = |n: u64| n > over && binomial_at_most(over, n, 1.0 - percentile) <= 1.0 - confidence;
    let mut high = over + 1;
    while !shows(high) {
        high *= 2;
    }
    let mut low = high / 2;
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if shows(middle) { high = middle } else { low = middle }
    }
    high
}

/// The largest number of requests over a limit with which `requests` still show that the percentile meets it; `None` if
/// they are too few for any percentile estimate. The value with this many above it is MLPerf's estimate of the percentile.
pub fn most_over(percentile: f64, confidence: f64, requests: u64) -> Option<u64> {
    if requests < requests_needed(percentile, confidence, 0) {
        return None;
    }
    let (mut low, mut high) = (0, requests);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if requests_needed(percentile, confidence, middle) <= requests { low = middle } else { high = middle }
    }
    Some(low)
}

/// Ranks, from 1, of the sorted values between which the percentile lies with the given confidence, for every
/// distribution. An end is `None` if the values are too few to have it.
///
/// `dependence` is the variance of the share of values above the percentile, divided by its variance for independent
/// values; 1 if they are independent. Values of a queue come in runs, so they say less than as many independent ones.
pub fn interval_ranks(count: u64, percentile: f64, confidence: f64, dependence: f64) -> (Option<u64>, Option<u64>) {
    let tail = (1.0 - confidence) / 2.0;
    let dependence = dependence.max(1.0);
    let effective = (count as f64 / dependence).floor() as u64;
    // The number of values at or below the percentile is binomial. Rank l is too high with P(B < l), rank u too low with
    // P(B >= u).
    let below = |rank: u64| rank > 0 && binomial_at_most(rank - 1, effective, percentile) <= tail;
    let above = |rank: u64| 1.0 - binomial_at_most(rank - 1, effective, percentile) <= tail;
    let first = |is: &dyn Fn(u64) -> bool| {
        let (mut low, mut high) = (0, effective + 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if is(middle) { high = middle } else { low = middle }
        }
        high
    };
    let low = first(&|rank| !below(rank)) - 1;
    let high = first(&above);
    let scaled = |rank: u64| (rank as f64 * dependence).round() as u64;
    ((low > 0).then(|| scaled(low).clamp(1, count)), (high <= effective).then(|| scaled(high).clamp(1, count)))
}

/// How much more the share of values above the percentile varies than for independent values, by the means of consecutive
/// batches; at least 1. `values` are in the order of arrival.
pub fn dependence(values: &[f64], percentile: f64) -> f64 {
    const BATCHES: usize = 25;
    let length = values.len() / BATCHES;
    if length < 4 {
        return 1.0;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let limit = sorted[((values.len() as f64 * percentile) as usize).min(values.len() - 1)];
    let share = |batch: &[f64]| batch.iter().filter(|value| **value > limit).count() as f64 / batch.len() as f64;
    let shares: Vec<f64> = values.chunks_exact(length).take(BATCHES).map(share).collect();
    let mean = shares.iter().sum::<f64>() / BATCHES as f64;
    let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / (BATCHES - 1) as f64;
    let independent = mean * (1.0 - mean) / length as f64;
    if independent > 0.0 { (variance / independent).max(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::draw::{Draw, Purpose};

    #[test]
    fn the_binomial_distribution_is_right() {
        for (k, n, p, expected) in [
            (0, 10, 0.5, 1.0 / 1024.0),
            (5, 10, 0.5, 0.623_046_875),
            (9, 10, 0.5, 1.0 - 1.0 / 1024.0),
            (2, 4, 0.25, 0.949_218_75),
            (10, 10, 0.3, 1.0),
        ] {
            let found = binomial_at_most(k, n, p);
            assert!((found - expected).abs() < 1e-12, "{k} of {n}: {found}, not {expected}");
        }
        assert!((binomial_at_most(500_000, 1_000_000, 0.5) - 0.5004).abs() < 1e-4);
    }

    #[test]
    fn early_stopping_needs_mlperfs_numbers() {
        let needed = [0, 1, 2, 5, 10].map(|over| requests_needed(0.99, 0.99, over));
        assert_eq!(needed, [459, 662, 838, 1307, 2010]);
        assert_eq!(most_over(0.99, 0.99, 300), None);
        assert_eq!([459, 661, 662, 837, 2010].map(|n| most_over(0.99, 0.99, n)), [0, 0, 1, 1, 10].map(Some));
    }

    /// A share of a thousand samples whose interval has the true percentile.
    fn coverage(count: usize, percentile: f64, truth: f64, sample: impl Fn(&mut Draw) -> Vec<f64>) -> f64 {
        let covers = |seed: u64| {
            let values = sample(&mut Draw::new(seed, Purpose::Arrivals, 0));
            assert_eq!(values.len(), count);
            let (low, high) = interval_ranks(count as u64, percentile, 0.95, dependence(&values, percentile));
            let mut sorted = values;
            sorted.sort_unstable_by(f64::total_cmp);
            low.is_none_or(|rank| sorted[rank as usize - 1] <= truth)
                && high.is_none_or(|rank| sorted[rank as usize - 1] >= truth)
        };
        (0..1000).filter(|seed| covers(*seed)).count() as f64 / 1000.0
    }

    #[test]
    fn intervals_cover_the_percentile() {
        // Percentiles of the standard normal, for lognormal values.
        for (percentile, normal) in [(0.5, 0.0f64), (0.9, 1.281_551_6), (0.99, 2.326_347_9)] {
            for count in [100, 1000] {
                let covered =
                    coverage(count, percentile, normal.exp(), |draw| (0..count).map(|_| draw.normal().exp()).collect());
                assert!(covered >= 0.93, "P{}: {covered} of the intervals over {count} values", percentile * 100.0);
            }
        }
    }

    /// Each value depends on the one before it, as the waiting times of a queue do.
    #[test]
    fn intervals_cover_the_percentile_of_dependent_values() {
        let covered = coverage(2000, 0.5, 0.0, |draw| {
            let mut value = draw.normal();
            let mut next = || {
                value = 0.8 * value + 0.6 * draw.normal();
                value
            };
            (0..2000).map(|_| next()).collect()
        });
        assert!(covered >= 0.93, "{covered}");
    }

    #[test]
    fn too_few_values_have_no_upper_end() {
        assert_eq!(interval_ranks(100, 0.99, 0.95, 1.0).1, None);
        assert_eq!(interval_ranks(0, 0.5, 0.95, 1.0), (None, None));
        // The median of ten values lies between the second and the ninth with 97.9 %.
        assert_eq!(interval_ranks(10, 0.5, 0.95, 1.0), (Some(2), Some(9)));
    }
}
