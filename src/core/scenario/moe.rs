//! The mixtures of experts that `moe_top_k` compares, and their dense twins: decoders that differ only in their
//! feed-forward.

use std::collections::BTreeSet;

use super::{Counterpart, Tier};

/// Width of the decoders, unless a user chooses others.
pub const EXPERT_HIDDEN_SIZE: usize = 512;

/// A decoder of the comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertDecoder {
    /// Width of the residual stream, and of each expert.
    pub hidden_size: usize,
    /// The feed-forward of each layer.
    pub feed_forward: FeedForward,
}

impl ExpertDecoder {
    /// The decoder of the usual width.
    pub fn new(feed_forward: FeedForward) -> Self {
        Self { hidden_size: EXPERT_HIDDEN_SIZE, feed_forward }
    }

    /// The dense decoders that a mixture is compared with; none for a dense one.
    pub fn twins(self) -> Vec<(Counterpart, Self)> {
        let twins = self.feed_forward.twins().into_iter();
        twins.map(|(counterpart, feed_forward)| (counterpart, Self { feed_forward, ..self })).collect()
    }

    /// Second part of the benchmark id. It carries the width unless that is the usual one.
    pub fn name(self, default_skew: f64) -> String {
        let name = self.feed_forward.name(default_skew);
        match self.hidden_size {
            EXPERT_HIDDEN_SIZE => name,
            other => format!("{name}-h{other}"),
        }
    }
}

/// A row of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertGrid {
    /// The feed-forward of each layer.
    pub feed_forward: FeedForward,
    /// The smallest tier that runs it.
    pub tier: Tier,
}

/// The feed-forward of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForward {
    /// A mixture of experts.
    Mixture {
        /// Experts of each layer.
        num_experts: usize,
        /// Experts that compute each token.
        top_k: usize,
        /// How unevenly experts are chosen: 0 is even, 1 is Zipf's law. `None` takes the value of the settings.
        skew: Option<f64>,
    },
    /// A dense feed-forward as wide as `experts` experts together. It has as many parameters as the active experts of a
    /// mixture with this top-k, and as all experts of a mixture with this number of experts.
    Dense {
        /// Width, as a number of experts.
        experts: usize,
    },
}

impl FeedForward {
    /// The dense feed-forwards that a mixture is compared with; none for a dense one.
    pub(crate) fn twins(self) -> Vec<(Counterpart, Self)> {
        match self {
            Self::Dense { .. } => Vec::new(),
            Self::Mixture { num_experts, top_k, .. } => vec![
                (Counterpart::ActiveTwin, Self::Dense { experts: top_k }),
                (Counterpart::TotalTwin, Self::Dense { experts: num_experts }),
            ],
        }
    }

    /// Second part of the benchmark id.
    pub fn name(self, default_skew: f64) -> String {
        match self {
            Self::Dense { experts } => dense_name(experts),
            Self::Mixture { num_experts, top_k, skew } => match skew.unwrap_or(default_skew) {
                0.0 => format!("moe-{num_experts}x{top_k}"),
                skew => format!("moe-{num_experts}x{top_k}-skew{skew}"),
            },
        }
    }
}

/// Name of the dense decoder that is as wide as `experts` experts.
pub fn dense_name(experts: usize) -> String {
    format!("dense-{experts}")
}

const fn moe(num_experts: usize, top_k: usize, tier: Tier) -> ExpertGrid {
    ExpertGrid { feed_forward: FeedForward::Mixture { num_experts, top_k, skew: None }, tier }
}

const fn skewed(num_experts: usize, top_k: usize, skew: f64, tier: Tier) -> ExpertGrid {
    ExpertGrid { feed_forward: FeedForward::Mixture { num_experts, top_k, skew: Some(skew) }, tier }
}

const fn dense(experts: usize, tier: Tier) -> ExpertGrid {
    ExpertGrid { feed_forward: FeedForward::Dense { experts }, tier }
}

/// The grid of experts and top-k, two imbalanced mixtures, and the dense twins.
pub const EXPERT_GRID: &[ExpertGrid] = &[
    moe(4, 1, Tier::Full),
    moe(4, 2, Tier::Standard),
    moe(4, 4, Tier::Full),
    moe(8, 1, Tier::Full),
    moe(8, 2, Tier::Standard),
    moe(8, 4, Tier::Full),
    moe(16, 1, Tier::Standard),
    moe(16, 2, Tier::Quick),
    moe(16, 4, Tier::Standard),
    moe(32, 1, Tier::Full),
    moe(32, 2, Tier::Standard),
    moe(32, 4, Tier::Full),
    skewed(16, 2, 1.0, Tier::Standard),
    skewed(16, 2, 2.0, Tier::Standard),
    dense(1, Tier::Standard),
    dense(2, Tier::Quick),
    dense(4, Tier::Standard),
    dense(8, Tier::Standard),
    dense(16, Tier::Quick),
    dense(32, Tier::Standard),
];

/// The decoders of a tier, in each width. If the user chose numbers of experts or of those that compute a token, these take the
/// place of the tier's, and each mixture has its twins. A mixture with fewer experts than compute a token is left out. Without
/// a width, the usual one counts.
pub fn expert_grid(tier: Tier, experts: &[usize], top_k: &[usize], hidden_sizes: &[usize]) -> Vec<ExpertDecoder> {
    let hidden_sizes = if hidden_sizes.is_empty() { &[EXPERT_HIDDEN_SIZE] } else { hidden_sizes };
    let feed_forwards = feed_forwards(tier, experts, top_k);
    let of_width = |hidden_size: &usize| {
        let hidden_size = *hidden_size;
        feed_forwards.iter().map(move |feed_forward| ExpertDecoder { hidden_size, feed_forward: *feed_forward })
    };
    hidden_sizes.iter().flat_map(of_width).collect()
}

fn feed_forwards(tier: Tier, experts: &[usize], top_k: &[usize]) -> Vec<FeedForward> {
    let of_tier = EXPERT_GRID.iter().filter(|row| row.tier <= tier).map(|row| row.feed_forward);
    if experts.is_empty() && top_k.is_empty() {
        return of_tier.collect();
    }
    let mixtures: Vec<(usize, usize)> = of_tier
        .filter_map(|row| match row {
            FeedForward::Mixture { num_experts, top_k, skew: None } => Some((num_experts, top_k)),
            _ => None,
        })
        .collect();
    let or_tier = |chosen: &[usize], size: fn(&(usize, usize)) -> usize| match chosen {
        [] => mixtures.iter().map(size).collect(),
        some => some.iter().copied().collect::<BTreeSet<_>>(),
    };
    let mut grid = Vec::new();
    for num_experts in or_tier(experts, |mixture| mixture.0) {
        for top_k in or_tier(top_k, |mixture| mixture.1).into_iter().filter(|top_k| *top_k <= num_experts) {
            let mixture = FeedForward::Mixture { num_experts, top_k, skew: None };
            grid.push(mixture);
            for (_, twin) in mixture.twins() {
                if !grid.contains(&twin) {
                    grid.push(twin);
                }
            }
        }
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_experts_take_the_place_of_the_tiers() {
        let names = |experts: &[usize], top_k: &[usize], hidden_sizes: &[usize]| {
            let grid = expert_grid(Tier::Quick, experts, top_k, hidden_sizes);
            grid.iter().map(|decoder| decoder.name(0.0)).collect::<Vec<_>>()
        };
        assert_eq!(names(&[64], &[8], &[]), ["moe-64x8", "dense-8", "dense-64"]);
        assert_eq!(names(&[64], &[8], &[256]), ["moe-64x8-h256", "dense-8-h256", "dense-64-h256"]);
        assert_eq!(names(&[], &[1, 32], &[]), ["moe-16x1", "dense-1", "dense-16"]);
        assert_eq!(names(&[], &[], &[]), ["moe-16x2", "dense-2", "dense-16"]);
        let widths = ["moe-16x2", "dense-2", "dense-16", "moe-16x2-h96", "dense-2-h96", "dense-16-h96"];
        assert_eq!(names(&[], &[], &[512, 96]), widths);
        let narrow = expert_grid(Tier::Quick, &[8], &[2], &[96]);
        let twins: Vec<String> = narrow[0].twins().iter().map(|(_, twin)| twin.name(0.0)).collect();
        assert_eq!(twins, ["dense-2-h96", "dense-8-h96"]);
    }

    #[test]
    fn names_are_distinct_and_every_mixture_has_its_twins_in_its_tier() {
        let names: std::collections::BTreeSet<_> = EXPERT_GRID.iter().map(|row| row.feed_forward.name(0.0)).collect();
        assert_eq!(names.len(), EXPERT_GRID.len());
        for row in EXPERT_GRID {
            for (_, twin) in row.feed_forward.twins() {
                let twin = EXPERT_GRID.iter().find(|other| other.feed_forward == twin);
                assert!(twin.is_some_and(|twin| twin.tier <= row.tier), "{}", row.feed_forward.name(0.0));
            }
        }
    }
}
