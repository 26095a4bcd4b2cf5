//! The change of one benchmark: its ratio, interval, p-value and minimum detectable change.
//!
//! Times of separate runs differ by more than the samples of either, so their test takes the deviation between runs of the same program
//! from the records. Bytes and likelihoods hardly vary between runs; their tests take the samples.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{Benchmark, MEMORY_NOISE, QUALITY_NOISE, Strictness};
use crate::{
    record::{BetweenRuns, SampleUnit},
    report::statistics::{median, p_value, paired_p_value, paired_ratio, ratio},
};

/// The samples of both sides, and what their difference means.
pub(super) struct Change {
    unit: SampleUnit,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    /// Share up to which a difference counts as noise.
    noise: f64,
    /// Deviation between runs, for times.
    pub between: Option<BetweenRuns>,
}

/// Chance of finding the minimum detectable change.
const POWER: f64 = 0.9;

impl Change {
    /// The change from `old` to `new`. Times are compared in the form that varies least, if both sides have it.
    pub fn of(old: &Benchmark, new: &Benchmark, strictness: Strictness) -> Self {
        let (between, noise) = match old.unit {
            SampleUnit::Ms => (Some(between(old, new)), strictness.noise),
            SampleUnit::Bytes => (None, MEMORY_NOISE),
            SampleUnit::Nats => (None, QUALITY_NOISE),
        };
        let scaled = |side: &Benchmark| {
            let factor = between.and_then(|between| side.factor(between.basis)).unwrap_or(1.0);
            side.samples.iter().map(|value| value * factor).collect()
        };
        Self { unit: old.unit, a: scaled(old), b: scaled(new), noise, between }
    }

    /// The value that stands for the samples of a side: the median, or the mean in nats.
    pub fn middle(&self, samples: &[f64]) -> f64 {
        match self.unit {
            SampleUnit::Ms | SampleUnit::Bytes => median(samples),
            SampleUnit::Nats => samples.iter().sum::<f64>() / samples.len() as f64,
        }
    }

    /// `b` divided by `a`, and the ends of its `1 - level` confidence interval.
    pub fn ratio(&self, level: f64) -> (f64, f64, f64) {
        match (self.unit, self.error()) {
            (SampleUnit::Ms, Some((distribution, error))) => {
                let point = median(&self.b) / median(&self.a);
                let half = distribution.inverse_cdf(1.0 - level / 2.0) * error;
                (point, point * (-half).exp(), point * half.exp())
            }
            (SampleUnit::Nats, _) => paired_ratio(&self.a, &self.b, level),
            _ => ratio(&self.a, &self.b, level),
        }
    }

    /// Probability of such a difference between two runs of the same program. Differences within the noise have probability 1.
    pub fn p(&self) -> f64 {
        match (self.unit, self.error()) {
            (SampleUnit::Ms, Some((distribution, error))) => {
                let distance = (median(&self.b) / median(&self.a)).ln().abs();
                let is_noise = distance <= self.noise.ln_1p() || distance.is_nan();
                if is_noise { 1.0 } else { 2.0 * distribution.sf(distance / error) }
            }
            (SampleUnit::Nats, _) => paired_p_value(&self.a, &self.b, self.noise),
            _ => p_value(&self.a, &self.b, self.noise),
        }
    }

    /// The smallest rise, as a share, that a comparison of `tests` benchmarks finds: in nine of ten for times, whose deviation is known;
    /// in samples with the spread of these for others. `None` if it would not find twice the value.
    pub fn minimum_detectable(&self, level: f64, tests: usize) -> Option<f64> {
        let share = match self.error() {
            Some((distribution, error)) => {
                let found_at = distribution.inverse_cdf(1.0 - level / 2.0 / tests as f64);
                ((found_at + distribution.inverse_cdf(POWER)) * error).exp_m1().max(self.noise)
            }
            None => self.smallest_found(level, tests)?,
        };
        (share <= 1.0).then_some(share)
    }

    /// The distribution of the logarithm of the ratio of two runs of the same program, and its scale; `None` for other units than
    /// times. The deviation between runs contains that of the median of a run, unless the samples of this run vary more than usual.
    fn error(&self) -> Option<(StudentsT, f64)> {
        let between = self.between?;
        let of_side = |samples: &[f64]| between.deviation.max(error_of_median(samples));
        let distribution = StudentsT::new(0.0, 1.0, between.freedom).ok()?;
        Some((distribution, of_side(&self.a).hypot(of_side(&self.b))))
    }

    /// As [`Self::minimum_detectable`], by bisection: the tests are monotone in the rise.
    fn smallest_found(&self, level: f64, tests: usize) -> Option<f64> {
        /// Resolution of the search.
        const STEP: f64 = 0.001;
        let test = if self.unit == SampleUnit::Nats { paired_p_value } else { p_value };
        let equal = self.middle(&self.a) / self.middle(&self.b);
        let is_found = |step: usize| {
            let risen: Vec<f64> = self.b.iter().map(|value| value * equal * (1.0 + step as f64 * STEP)).collect();
            test(&self.a, &risen, self.noise) * (tests as f64) < level
        };
        let (mut missed, mut found) = (0, (1.0 / STEP) as usize);
        if !is_found(found) {
            return None;
        }
        while found - missed > 1 {
            let middle = (found + missed) / 2;
            if is_found(middle) { found = middle } else { missed = middle }
        }
        Some(found as f64 * STEP)
    }
}

/// The deviation between runs that a comparison of two sides uses: that from more runs, in a form that both sides have.
fn between(old: &Benchmark, new: &Benchmark) -> BetweenRuns {
    let known = [new.between_runs, old.between_runs].into_iter().flatten().max_by_key(|between| between.runs);
    let has = |side: &Benchmark, between: &BetweenRuns| side.factor(between.basis).is_some();
    known.filter(|between| has(old, between) && has(new, between)).unwrap_or(BetweenRuns::OF_TIMES)
}

/// Standard error of the logarithm of the median of independent samples, from their deviation (Kenney and Keeping, 1962).
fn error_of_median(samples: &[f64]) -> f64 {
    let logarithms: Vec<f64> = samples.iter().map(|value| value.ln()).collect();
    let count = logarithms.len() as f64;
    let mean = logarithms.iter().sum::<f64>() / count;
    let squares: f64 = logarithms.iter().map(|value| (value - mean).powi(2)).sum();
    if samples.len() < 2 { 0.0 } else { (std::f64::consts::FRAC_PI_2 * squares / (count - 1.0) / count).sqrt() }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

    use super::*;
    use crate::record::Basis;

    const STRICTNESS: Strictness = Strictness { noise: 0.0, level: 0.05 };

    /// Draws from a normal distribution (Box and Muller, 1958).
    fn normal(random: &mut ChaCha8Rng) -> f64 {
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }

    /// A run of a program whose runs differ by `deviation` and whose samples differ by a quarter of that. The machine's bandwidth is
    /// another one in each run.
    fn run(random: &mut ChaCha8Rng, ms: f64, deviation: f64) -> Benchmark {
        let bandwidth = (0.3 * normal(random)).exp();
        let of_run = ms / bandwidth * (deviation * normal(random)).exp();
        let samples = (0..10).map(|_| of_run * (deviation / 4.0 * normal(random)).exp()).collect();
        Benchmark {
            between_runs: Some(BetweenRuns { basis: Basis::Bandwidth, deviation, freedom: 1e6, runs: 20 }),
            factors: [(Basis::Time, 1.0), (Basis::Bandwidth, bandwidth)].into(),
            ..Benchmark::of_samples(SampleUnit::Ms, samples)
        }
    }

    /// A thousand pairs of runs: intervals hold the truth and equal programs differ as often as the level says, and nine of ten changes
    /// of the minimum detectable size are found.
    #[test]
    fn intervals_levels_and_the_minimum_detectable_change_are_true() {
        const PAIRS: usize = 1000;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for deviation in [0.02, 0.06] {
            let smallest =
                Change::of(&run(&mut random, 100.0, deviation), &run(&mut random, 100.0, deviation), STRICTNESS)
                    .minimum_detectable(0.05, 1)
                    .expect("a threshold");
            let (mut held, mut alarms, mut found) = (0, 0, 0);
            for _ in 0..PAIRS {
                let old = run(&mut random, 100.0, deviation);
                let equal = Change::of(&old, &run(&mut random, 100.0, deviation), STRICTNESS);
                let (_, low, high) = equal.ratio(0.05);
                held += usize::from(low <= 1.0 && 1.0 <= high);
                alarms += usize::from(equal.p() < 0.05);
                let slower = run(&mut random, 100.0 * (1.0 + smallest), deviation);
                found += usize::from(Change::of(&old, &slower, STRICTNESS).p() < 0.05);
            }
            assert!((930..=975).contains(&held) && (25..=70).contains(&alarms), "{held} held, {alarms} alarms");
            assert!((870..=930).contains(&found), "{found} found of {smallest}");
        }
    }

    #[test]
    fn samples_that_vary_more_than_usual_widen_the_interval() {
        let width = |spread: f64| {
            let side = |ms: f64| Benchmark {
                between_runs: Some(BetweenRuns { deviation: 0.02, ..BetweenRuns::OF_TIMES }),
                ..Benchmark::of_samples(SampleUnit::Ms, vec![ms, ms * (1.0 + spread)])
            };
            let (_, low, high) = Change::of(&side(1.0), &side(1.0), STRICTNESS).ratio(0.05);
            high / low
        };
        assert!(width(0.0) == width(0.01) && width(1.0) > width(0.01));
    }

    #[test]
    fn sides_without_the_form_are_compared_in_time() {
        let of = |basis| Benchmark {
            between_runs: Some(BetweenRuns { basis, ..BetweenRuns::OF_TIMES }),
            ..Benchmark::of_samples(SampleUnit::Ms, vec![1.0; 10])
        };
        let change = Change::of(&of(Basis::Matrix), &of(Basis::Time), STRICTNESS);
        assert_eq!(change.between, Some(BetweenRuns::OF_TIMES));
    }

    #[test]
    fn the_minimum_detectable_change_of_samples_is_found_and_less_is_not() {
        let spread =
            |value: f64, share: f64| (0..10).map(|i| value * (1.0 + share * f64::from(i - 5))).collect::<Vec<_>>();
        let of = |samples: Vec<f64>| Benchmark::of_samples(SampleUnit::Bytes, samples);
        let mut before = 0.0;
        for share in [0.0001, 0.004, 0.02] {
            let (a, b) = (spread(100.0, share), spread(130.0, share));
            let change = Change::of(&of(a.clone()), &of(b.clone()), STRICTNESS);
            let from = change.minimum_detectable(0.05, 20).expect("a threshold");
            assert!(from > before, "a wider spread raises the threshold: {from} after {before}");
            let risen = |share: f64| b.iter().map(|value| value / 1.3 * (1.0 + share)).collect::<Vec<_>>();
            let p = |share: f64| Change::of(&of(a.clone()), &of(risen(share)), STRICTNESS).p();
            assert!(p(from) * 20.0 < 0.05 && p(from - 0.002) * 20.0 >= 0.05);
            before = from;
        }
        assert_eq!(
            Change::of(&of(vec![1.0]), &of(vec![1.0]), STRICTNESS).minimum_detectable(0.05, 1),
            None,
            "one sample each"
        );
    }
}
