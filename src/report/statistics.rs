//! Statistics of a comparison: the ratio of medians, its confidence interval, and p-values.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::statistics;

/// Number of bootstrap resamples.
const RESAMPLES: usize = 10_000;

/// Median of `b` divided by the median of `a`, and the ends of its `1 - level` confidence interval by the percentile bootstrap
/// over both. The generator has a fixed seed, so equal samples give equal results.
pub fn ratio(a: &[f64], b: &[f64], level: f64) -> (f64, f64, f64) {
    let point = median(b) / median(a);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut resampled = |sample: &[f64]| {
        let pick = |random: &mut ChaCha8Rng| sample[(random.next_u64() % sample.len() as u64) as usize];
        median(&sample.iter().map(|_| pick(&mut random)).collect::<Vec<_>>())
    };
    let mut ratios: Vec<_> = (0..RESAMPLES).map(|_| resampled(b) / resampled(a)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| ratios[(share * (RESAMPLES - 1) as f64).round() as usize];
    (point, at(level / 2.0), at(1.0 - level / 2.0))
}

/// p-value of the difference between `a` and `b` beyond `noise`, where 0.03 means 3 %. It is the two-sided Mann-Whitney test
/// after `b` is scaled towards `a` by `noise`. Samples of separate runs differ by more than their own spread, and `noise`
/// allows for that.
pub fn p_value(a: &[f64], b: &[f64], noise: f64) -> f64 {
    let ratio = median(b) / median(a);
    if (ratio.ln()).abs() <= noise.ln_1p() {
        return 1.0;
    }
    let towards = if ratio > 1.0 { 1.0 / (1.0 + noise) } else { 1.0 + noise };
    let moved: Vec<_> = b.iter().map(|value| value * towards).collect();
    mann_whitney(a, &moved)
}

/// A ratio that is finite and above 0: equal values have ratio 1, also if both are 0.
fn quotient(b: f64, a: f64) -> f64 {
    if a == b { 1.0 } else { (b / a).clamp(f64::MIN_POSITIVE, f64::MAX) }
}

/// Mean of `b` divided by the mean of `a`, whose values belong together pair by pair, and the ends of its `1 - level` confidence
/// interval by the percentile bootstrap over pairs.
pub fn paired_ratio(a: &[f64], b: &[f64], level: f64) -> (f64, f64, f64) {
    let point = quotient(b.iter().sum(), a.iter().sum());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut resampled = || {
        let (mut of_a, mut of_b) = (0.0, 0.0);
        for _ in 0..a.len() {
            let pick = (random.next_u64() % a.len() as u64) as usize;
            (of_a, of_b) = (of_a + a[pick], of_b + b[pick]);
        }
        quotient(of_b, of_a)
    };
    let mut ratios: Vec<_> = (0..RESAMPLES).map(|_| resampled()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| ratios[(share * (RESAMPLES - 1) as f64).round() as usize];
    (point, at(level / 2.0), at(1.0 - level / 2.0))
}

/// p-value of the difference between pairs beyond `noise`. It is the two-sided test of the mean difference by random changes of
/// sign (Fisher, 1935), after `b` is scaled towards `a` by `noise`.
pub fn paired_p_value(a: &[f64], b: &[f64], noise: f64) -> f64 {
    let ratio = quotient(b.iter().sum(), a.iter().sum());
    if (ratio.ln()).abs() <= noise.ln_1p() {
        return 1.0;
    }
    let towards = if ratio > 1.0 { 1.0 / (1.0 + noise) } else { 1.0 + noise };
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b * towards - a).collect();
    let found = differences.iter().sum::<f64>().abs();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut as_far = || {
        let signed = differences.chunks(64).map(|differences| {
            let signs = random.next_u64();
            let sign = |place: usize| if signs >> place & 1 == 1 { 1.0 } else { -1.0 };
            differences.iter().enumerate().map(|(place, difference)| sign(place) * difference).sum::<f64>()
        });
        signed.sum::<f64>().abs() >= found * (1.0 - 1e-12)
    };
    let count = (0..RESAMPLES).filter(|_| as_far()).count();
    (count + 1) as f64 / (RESAMPLES + 1) as f64
}

/// Exact two-sided p-value of the Mann-Whitney U test. Ties count half, which is conservative.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    let u: f64 = pairs
        .map(|(a, b)| {
            if b > a {
                1.0
            } else if b == a {
                0.5
            } else {
                0.0
            }
        })
        .sum();
    let most = (a.len() * b.len()) as f64;
    let nearer_end = u.min(most - u).ceil() as usize;
    let counts = orderings(a.len(), b.len());
    let all: f64 = counts.iter().sum();
    let as_far: f64 = counts[..=nearer_end.min(counts.len() - 1)].iter().sum();
    (2.0 * as_far / all).min(1.0)
}

/// Number of orderings of `n` and `m` values for each U from 0 to `n * m`: the coefficients of the Gaussian binomial (Mann and
/// Whitney, 1947).
fn orderings(n: usize, m: usize) -> Vec<f64> {
    // Multiply by (1 - x^(m + i)) and divide by (1 - x^i) for i from 1 to n.
    let mut counts = vec![0.0; n * m + 1];
    counts[0] = 1.0;
    for i in 1..=n {
        for u in (m + i..counts.len()).rev() {
            counts[u] -= counts[u - m - i];
        }
        for u in i..counts.len() {
            counts[u] += counts[u - i];
        }
    }
    counts
}

/// p-values adjusted by Holm's correction for multiple tests, in the given order.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..p_values.len()).collect();
    order.sort_unstable_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

/// Median of at least one value.
pub fn median(values: &[f64]) -> f64 {
    statistics::median(values.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_zero_have_a_finite_ratio() {
        assert_eq!(paired_ratio(&[0.0; 4], &[0.0; 4], 0.05), (1.0, 1.0, 1.0));
        assert_eq!(paired_p_value(&[0.0; 4], &[0.0; 4], 0.01), 1.0);
        let (ratio, low, high) = paired_ratio(&[0.0; 4], &[1.0; 4], 0.05);
        assert!([ratio, low, high].iter().all(|ratio| ratio.is_finite() && ratio.ln().is_finite()));
    }

    #[test]
    fn the_test_is_exact() {
        // Three against three: 20 orderings, of which 1 has U = 0, 1 has 1, 2 have 2, 3 have 3 and 3 have 4.
        assert_eq!(orderings(3, 3), [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 2.0, 1.0, 1.0]);
        assert_eq!(mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 2.0 / 20.0);
        // Counted over all 126 ways to split the nine values: 14 are as far from even.
        assert!((mann_whitney(&[1., 2., 3., 7.], &[4., 5., 6., 8., 9.]) - 0.1111111111111111).abs() < 1e-12);
        assert_eq!(mann_whitney(&[1.0; 10], &[1.0; 10]), 1.0);
        let total: f64 = orderings(10, 10).iter().sum();
        assert_eq!(total, 184_756.0);
    }

    #[test]
    fn holm_corrects_step_by_step() {
        let adjusted = holm(&[0.01, 0.04, 0.03]);
        for (adjusted, expected) in adjusted.iter().zip([0.03, 0.06, 0.06]) {
            assert!((adjusted - expected).abs() < 1e-12, "{adjusted}");
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn a_difference_within_the_noise_is_none() {
        let a: Vec<_> = (0..10).map(|i| 100.0 + 0.1 * f64::from(i)).collect();
        let slower = |by: f64| a.iter().map(|a| a * by).collect::<Vec<_>>();
        assert_eq!(p_value(&a, &slower(1.02), 0.03), 1.0);
        assert_eq!(p_value(&slower(1.02), &a, 0.03), 1.0);
        assert!(p_value(&a, &slower(1.10), 0.03) < 0.001);
        assert!(p_value(&slower(1.10), &a, 0.03) < 0.001);
        assert!(p_value(&a, &slower(1.02), 0.0) < 0.001);
    }

    /// Values of pairs differ much more than their difference, which only a paired test finds.
    #[test]
    fn a_small_difference_of_pairs_is_found() {
        let a: Vec<_> = (0..40).map(|i| 2.0 + f64::from(i * 7 % 40) / 10.0).collect();
        let b: Vec<_> = a.iter().enumerate().map(|(i, a)| a * 1.01 + if i % 2 == 0 { 0.01 } else { -0.01 }).collect();
        assert!(paired_p_value(&a, &b, 0.0) < 0.001 && paired_p_value(&b, &a, 0.0) < 0.001);
        assert!(p_value(&a, &b, 0.0) > 0.5);
        assert_eq!(paired_p_value(&a, &b, 0.02), 1.0);
        assert_eq!(paired_p_value(&a, &a, 0.0), 1.0);
        let (point, low, high) = paired_ratio(&a, &b, 0.05);
        assert!(
            (point - 1.01).abs() < 1e-9 && low > 1.008 && low < point && point < high && high < 1.012,
            "{low} {high}"
        );
        // Two pairs can fall on one side by chance.
        assert!((paired_p_value(&[1.0, 2.0], &[1.5, 2.5], 0.0) - 0.5).abs() < 0.02);
    }

    #[test]
    fn the_interval_holds_the_ratio() {
        let a: Vec<_> = (0..10).map(|i| 100.0 + f64::from(i)).collect();
        let b: Vec<_> = a.iter().map(|a| a * 1.5).collect();
        let (point, low, high) = ratio(&a, &b, 0.05);
        assert_eq!(point, 1.5);
        assert!(low < point && point < high && low > 1.4 && high < 1.6, "{low} {high}");
        assert_eq!(ratio(&a, &b, 0.05), (point, low, high));
    }
}
