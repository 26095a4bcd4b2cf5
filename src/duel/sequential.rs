//! The statistics of a duel: the ratio of two sides and an interval that is valid whenever sampling stops.
//!
//! Both sides take a sample at the same time, in turns. Such a pair gives a ratio B / A. Pairs come in blocks of two. A fair coin
//! decides which side has the first turn of the first pair, and the other side has that of the second. The estimate is the median of the
//! ratios. If the sides start anew during the duel, two starts are a block. The coin decides which side is loaded first in the first of
//! them, and the other side is in the second. Both pairs of the block then have the geometric mean of the ratios of its starts.
//!
//! A block votes on a candidate ratio `m` if both of its pairs are on the same side of `m`. If `m` is the true ratio, the
//! coin makes both votes equally likely, under any other load of the machine: swapping the sides turns one vote into
//! the other, also that of a mean. A drift makes the two pairs disagree, and the block does not vote. After `above` votes for a larger ratio and
//! `below` for a smaller one, the mixture of all bets on a biased coin has the value
//!
//! ```text
//! 2^n ∫ p^above (1 - p)^below dp = 2^n above! below! / (n + 1)!        n = above + below
//! ```
//!
//! For the true ratio this is a non-negative martingale with mean 1. By Ville's inequality, it ever reaches `1 / level` with
//! a probability of at most `level`. The interval contains every ratio whose value is still below that. It therefore misses
//! the true ratio with a probability of at most `level`, although the duel looks after each block and stops when it likes
//! the width (Howard and Ramdas, 2022, construct such sequences for quantiles in general).

/// The ratios of one benchmark so far.
#[derive(Debug, Default)]
pub struct Ratios {
    /// The smaller ratio of each block, sorted.
    least: Vec<f64>,
    /// The larger ratio of each block, sorted.
    most: Vec<f64>,
}

/// An interval of ratios, ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Returns whether the interval reaches at most `share` below and above its middle.
    pub fn is_within(&self, share: f64) -> bool {
        self.high <= self.low * (1.0 + share).powi(2)
    }

    /// Returns whether the change is known well enough to tell it from half of it, on the logarithmic scale.
    fn is_halved(&self) -> bool {
        let Self { low, high } = *self;
        if low > 1.0 { low * low > high } else { high < 1.0 && high * high < low }
    }
}

/// When the blocks of a benchmark are enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// The interval is resolved: it reaches at most the share that was asked for below and above its middle.
    Resolved,
    /// The interval contains 1 and is resolved, or the change can be told from half of it.
    Halved,
    /// The interval lies below the first of two ratios, or above the second.
    Apart([f64; 2]),
    /// One block is measured, which has no interval: memory, tokens and allocations need none.
    Block,
}

impl Until {
    /// Returns whether an interval is enough, where `None` contains all ratios.
    pub fn is_met(&self, interval: Option<Interval>, resolve: f64) -> bool {
        let Some(interval) = interval else { return *self == Self::Block };
        match *self {
            Self::Block => true,
            Self::Resolved => interval.is_within(resolve),
            Self::Halved => {
                let contains_one = interval.low <= 1.0 && interval.high >= 1.0;
                interval.is_halved() || contains_one && interval.is_within(resolve)
            }
            Self::Apart([low, high]) => interval.high < low || interval.low > high,
        }
    }
}

impl Ratios {
    /// Adds the ratios of the two pairs of a block.
    pub fn push(&mut self, pairs: [f64; 2]) {
        insert(&mut self.least, pairs[0].min(pairs[1]));
        insert(&mut self.most, pairs[0].max(pairs[1]));
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.least.len()
    }

    /// Median of the ratios of all pairs; `None` without a block.
    pub fn median(&self) -> Option<f64> {
        let all = self.all();
        let (below, above) = (all.get(all.len().checked_sub(1)? / 2)?, all.get(all.len() / 2)?);
        Some((below + above) / 2.0)
    }

    /// The interval at a level; `None` while the blocks are too few to exclude any ratio.
    pub fn interval(&self, level: f64) -> Option<Interval> {
        let blocks = self.blocks();
        let is_possible = |above: usize, below: usize| log_evidence(above, below) < -level.ln();
        if blocks == 0 || is_possible(blocks, 0) {
            return None;
        }
        // The votes change only at ratios, so it is enough to look at each ratio and beside it. Votes for a larger ratio come
        // from blocks with both pairs above the candidate.
        let least_up_to = |ratio: f64| self.least.partition_point(|other| *other <= ratio);
        let least_below = |ratio: f64| self.least.partition_point(|other| *other < ratio);
        let most_up_to = |ratio: f64| self.most.partition_point(|other| *other <= ratio);
        let most_below = |ratio: f64| self.most.partition_point(|other| *other < ratio);
        let at = |ratio: f64| is_possible(blocks - least_up_to(ratio), most_below(ratio));
        let beyond = |ratio: f64| is_possible(blocks - least_up_to(ratio), most_up_to(ratio));
        let before = |ratio: f64| is_possible(blocks - least_below(ratio), most_below(ratio));
        let all = self.all();
        let low = all.iter().copied().find(|ratio| at(*ratio) || beyond(*ratio))?;
        let high = all.iter().rev().copied().find(|ratio| at(*ratio) || before(*ratio))?;
        Some(Interval { low, high })
    }

    fn all(&self) -> Vec<f64> {
        let mut all = [self.least.as_slice(), &self.most].concat();
        all.sort_unstable_by(f64::total_cmp);
        all
    }
}

/// The least number of blocks that can exclude a ratio at a level.
pub fn least_blocks(level: f64) -> usize {
    // The smallest number above 0 needs fewer.
    const MOST: usize = 2048;
    (1..MOST).find(|blocks| log_evidence(*blocks, 0) >= -level.ln()).unwrap_or(MOST)
}

fn insert(sorted: &mut Vec<f64>, ratio: f64) {
    sorted.insert(sorted.partition_point(|other| *other < ratio), ratio);
}

/// Natural logarithm of the value of the bets after these votes.
fn log_evidence(above: usize, below: usize) -> f64 {
    let n = above + below;
    // n! / (above! below!) as a product of as few factors as possible.
    let ways: f64 = (1..=above.min(below)).map(|i| ((n - above.min(below) + i) as f64 / i as f64).ln()).sum();
    n as f64 * std::f64::consts::LN_2 - ways - ((n + 1) as f64).ln()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    /// A uniform number from 0 to 1.
    fn uniform(random: &mut ChaCha8Rng) -> f64 {
        (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, with standard deviation 1: the sum of twelve uniform numbers.
    fn normal(random: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| uniform(random)).sum::<f64>() - 6.0
    }

    /// Slowdowns of a machine from one sample to the next, as logarithms.
    #[derive(Clone, Copy, Debug)]
    enum Machine {
        /// Independent noise of 2 %.
        Quiet,
        /// Every fifth sample is much slower.
        Spikes,
        /// Another process comes and goes.
        Disturbed,
        /// Each sample is half a percent slower than the one before.
        Drifting,
        /// Slow fluctuation.
        Wandering,
    }

    const MACHINES: [Machine; 5] =
        [Machine::Quiet, Machine::Spikes, Machine::Disturbed, Machine::Drifting, Machine::Wandering];

    /// Blocks of a duel, and its final interval. `change` is the true ratio.
    fn duel(machine: Machine, change: f64, resolve: f64, level: f64, seed: u64) -> (usize, Option<Interval>) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut busy, mut level_of_machine) = (false, 0.0);
        let mut sample = |random: &mut ChaCha8Rng| {
            let noise = match machine {
                Machine::Quiet => 0.02 * normal(random),
                Machine::Spikes => {
                    0.01 * normal(random) + if uniform(random) < 0.2 { 0.5 * uniform(random) } else { 0.0 }
                }
                Machine::Disturbed => {
                    busy ^= uniform(random) < 0.1;
                    0.01 * normal(random) + if busy { 0.2 + 0.6 * uniform(random) } else { 0.0 }
                }
                Machine::Drifting => {
                    level_of_machine += 0.005;
                    level_of_machine + 0.01 * normal(random)
                }
                Machine::Wandering => {
                    level_of_machine = 0.9 * level_of_machine + 0.03 * normal(random);
                    level_of_machine + 0.01 * normal(random)
                }
            };
            100.0 * noise.exp()
        };
        let mut ratios = Ratios::default();
        for _ in 0..300 {
            let a_first = random.next_u32() & 1 == 0;
            let [first, second, third, fourth] = [(); 4].map(|()| sample(&mut random));
            ratios.push(match a_first {
                true => [change * second / first, change * third / fourth],
                false => [change * first / second, change * fourth / third],
            });
            if let Some(interval) = ratios.interval(level)
                && interval.is_within(resolve)
            {
                return (ratios.blocks(), Some(interval));
            }
        }
        (ratios.blocks(), ratios.interval(level))
    }

    /// The share of duels whose interval misses the true ratio at the moment they stop.
    #[test]
    fn identical_sides_seldom_differ_however_the_duel_stops() {
        const DUELS: u64 = 400;
        for machine in MACHINES {
            for level in [0.05, 0.2] {
                let misses = (0..DUELS)
                    .filter_map(|seed| duel(machine, 1.0, 0.02, level, seed).1)
                    .filter(|interval| interval.low > 1.0 || interval.high < 1.0)
                    .count();
                assert!(misses as f64 <= level * DUELS as f64, "{machine:?} at {level}: {misses} of {DUELS}");
            }
        }
    }

    #[test]
    fn a_planted_change_is_found_on_every_machine() {
        for machine in MACHINES {
            for (change, resolve) in [(1.05, 0.02), (1.0 / 1.05, 0.02), (1.02, 0.01)] {
                let ends: Vec<_> = (0..40).map(|seed| duel(machine, change, resolve, 0.05, seed)).collect();
                let found = ends.iter().filter_map(|(_, interval)| *interval).filter(|interval| match change > 1.0 {
                    true => interval.low > 1.0,
                    false => interval.high < 1.0,
                });
                assert!(found.count() >= 36, "{machine:?}, a ratio of {change}: {ends:?}");
            }
        }
    }

    /// Looking after every block must not raise the error, so the value of the bets has mean 1: the sum over all sequences
    /// of votes of a fair coin.
    #[test]
    fn the_bets_are_fair() {
        for n in 1..=20 {
            let mut ways = 1.0;
            let mut mean = 0.0;
            for above in 0..=n {
                mean += ways * (log_evidence(above, n - above) - n as f64 * std::f64::consts::LN_2).exp();
                ways *= (n - above) as f64 / (above + 1) as f64;
            }
            assert!((mean - 1.0).abs() < 1e-9, "{n} votes: {mean}");
        }
    }

    #[test]
    fn few_blocks_exclude_nothing_and_constants_are_exact() {
        let mut ratios = Ratios::default();
        assert_eq!((ratios.median(), ratios.interval(0.05)), (None, None));
        for _ in 0..7 {
            ratios.push([1.25, 1.25]);
        }
        assert_eq!((ratios.median(), ratios.interval(0.05)), (Some(1.25), None));
        ratios.push([1.25, 1.25]);
        assert_eq!(ratios.interval(0.05), Some(Interval { low: 1.25, high: 1.25 }));
        // Twenty benchmarks at once need more.
        assert_eq!(ratios.interval(0.05 / 20.0), None);
        assert_eq!([0.05, 0.05 * 0.75, 0.05 / 20.0].map(least_blocks), [8, 8, 13]);
        assert!((1000..2048).contains(&least_blocks(f64::from_bits(1))) && least_blocks(0.0) == 2048);
    }

    #[test]
    fn the_median_is_inside_and_the_level_widens_the_interval() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut ratios = Ratios::default();
        for _ in 0..60 {
            ratios.push([(); 2].map(|()| (0.03 * normal(&mut random)).exp()));
        }
        let (strict, loose) = (ratios.interval(0.01).expect("narrow"), ratios.interval(0.1).expect("narrow"));
        let median = ratios.median().expect("a median");
        assert!(strict.low < loose.low && loose.low < median && median < loose.high && loose.high < strict.high);
        assert!(loose.is_within(0.05) && !loose.is_within(0.001));
    }
}
