//! The choice of experts for each token, how evenly experts are used, and which of them the last steps used.

use std::{collections::VecDeque, ops::Range};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::model::causal_lm::Part;

/// The experts of each token of a forward pass in one layer: `top_k` each, the most likely first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    pub top_k: usize,
    /// `top_k` entries for each token in turn.
    pub experts: Vec<u32>,
    pub weights: Vec<f32>,
}

impl Routes {
    /// Chooses the `top_k` most likely experts of each token by a softmax over all experts; of equally likely experts, the
    /// first. Weights are their probabilities, scaled to a sum of 1 if `normalise`. `logits` holds `num_experts` numbers for
    /// each token.
    pub fn choose(logits: &[f32], num_experts: usize, top_k: usize, normalise: bool) -> Self {
        let tokens = logits.len() / num_experts;
        let mut routes =
            Self { top_k, experts: Vec::with_capacity(tokens * top_k), weights: Vec::with_capacity(tokens * top_k) };
        let mut chosen: Vec<(f32, u32)> = Vec::with_capacity(top_k + 1);
        for logits in logits.chunks_exact(num_experts) {
            chosen.clear();
            for (expert, logit) in logits.iter().enumerate() {
                let place = chosen.partition_point(|(better, _)| better >= logit);
                if place < top_k {
                    chosen.truncate(top_k - 1);
                    chosen.insert(place, (*logit, expert as u32));
                }
            }
            let most = chosen[0].0;
            let exp = |logit: &f32| (logit - most).exp();
            let sum: f32 =
                if normalise { chosen.iter().map(|(logit, _)| exp(logit)).sum() } else { logits.iter().map(exp).sum() };
            routes.experts.extend(chosen.iter().map(|(_, expert)| *expert));
            routes.weights.extend(chosen.iter().map(|(logit, _)| exp(logit) / sum));
        }
        routes
    }

    /// For each expert, its tokens in order and their weights.
    pub fn by_expert(&self, num_experts: usize) -> Vec<(Vec<u32>, Vec<f32>)> {
        let mut groups = vec![(Vec::new(), Vec::new()); num_experts];
        for (place, (expert, weight)) in self.experts.iter().zip(&self.weights).enumerate() {
            let (tokens, weights) = &mut groups[*expert as usize];
            tokens.push((place / self.top_k) as u32);
            weights.push(*weight);
        }
        groups
    }
}

/// Router logits that are drawn from a seed, so that the cost of a set imbalance can be measured.
///
/// Each token draws its experts without replacement, with probabilities proportional to `rank^-skew`: 0 is even, 1 is Zipf's
/// law. Each layer assigns the ranks to the experts in a different order. The router's own product is still computed, and its
/// result is ignored.
#[derive(Clone, Debug)]
pub struct Planted {
    /// Exponent of the distribution over experts: 0 is even, 1 is Zipf's law.
    pub skew: f64,
    /// For each layer, [`POSITIONS`] rows of `num_experts` logits.
    layers: Vec<Vec<f32>>,
    num_experts: usize,
}

/// Period of planted routes in positions.
const POSITIONS: usize = 2048;

/// Distance of the planted routes of two sequences. Without it, all sequences of a batch would choose the same experts.
const BETWEEN_SEQUENCES: usize = 797;

impl Planted {
    pub fn new(skew: f64, seed: u64, layers: usize, num_experts: usize) -> Self {
        let layer = |layer: usize| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(layer as u64);
            let mut unit = || (f64::from(random.next_u32()) + 0.5) / (1u64 << 32) as f64;
            let mut ranks: Vec<usize> = (1..=num_experts).collect();
            for left in (1..num_experts).rev() {
                ranks.swap(left, (unit() * (left + 1) as f64) as usize);
            }
            // The top k of log-probabilities plus Gumbel noise are a draw without replacement.
            let logit = |place: usize| -skew * (ranks[place % num_experts] as f64).ln() - (-unit().ln()).ln();
            (0..POSITIONS * num_experts).map(logit).map(|logit| logit as f32).collect()
        };
        Self { skew, layers: (0..layers).map(layer).collect(), num_experts }
    }

    /// Routes for the layers and experts of a load.
    ///
    /// # Errors
    /// If no layer is a mixture.
    pub fn for_load(load: &ExpertLoad, skew: f64, seed: u64) -> Result<Self> {
        let first = load.layers.first().context("cannot plant routes: no layer is a mixture of experts")?;
        Ok(Self::new(skew, seed, load.layers.len(), first.len()))
    }

    /// Positions whose logits the tokens of a part take. Those of sequence 0 are its own.
    pub fn positions(part: &Part) -> Range<usize> {
        let start = part.position + part.sequence * BETWEEN_SEQUENCES;
        start..start + part.tokens.len()
    }

    /// Logits of a layer for `tokens` positions that start at `position`.
    pub fn logits(&self, layer: usize, position: usize, tokens: usize) -> Vec<f32> {
        let rows = &self.layers[layer];
        let row = |position: usize| {
            let at = position % POSITIONS * self.num_experts;
            &rows[at..at + self.num_experts]
        };
        (position..position + tokens).flat_map(row).copied().collect()
    }
}

/// How many tokens each expert was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    /// Experts that each token goes to.
    pub top_k: usize,
    /// For each layer that is a mixture, the tokens that each of its experts was given.
    pub layers: Vec<Vec<u64>>,
}

impl ExpertLoad {
    /// A count of zero for each of `num_experts` experts in each of `layers` mixture layers.
    pub(crate) fn new(layers: usize, num_experts: usize, top_k: usize) -> Self {
        Self { top_k, layers: vec![vec![0; num_experts]; layers] }
    }

    pub(crate) fn count(&mut self, layer: usize, routes: &Routes) {
        for expert in &routes.experts {
            self.layers[layer][*expert as usize] += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.fill(0));
    }

    /// Load-balance factor: tokens of the busiest expert over the mean of all experts, from 1 (even) to `num_experts` (one
    /// expert has all tokens). The mean over layers; `None` before the first token.
    pub(crate) fn balance_factor(&self) -> Option<f64> {
        self.mean(|shares| shares.iter().copied().fold(0.0, f64::max) * shares.len() as f64)
    }

    /// Entropy in bits of the distribution of tokens over experts, at most log2 of their number. The mean over layers.
    pub(crate) fn entropy_bits(&self) -> Option<f64> {
        self.mean(|shares| shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.log2()).sum())
    }

    /// Share of experts without a token. The mean over layers.
    pub(crate) fn idle_share(&self) -> Option<f64> {
        self.mean(|shares| shares.iter().filter(|share| **share == 0.0).count() as f64 / shares.len() as f64)
    }

    fn mean(&self, of: impl Fn(&[f64]) -> f64) -> Option<f64> {
        let values: Vec<f64> = self
            .layers
            .iter()
            .filter_map(|tokens| {
                let total: u64 = tokens.iter().sum();
                let shares: Vec<f64> = tokens.iter().map(|tokens| *tokens as f64 / total as f64).collect();
                (total > 0).then(|| of(&shares))
            })
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

/// Decode steps whose experts are kept. They read more than fits into most caches.
const STEPS: usize = 32;

/// The experts that each layer with a mixture used in one step, in the order in which it reads them.
pub type Step = Vec<Vec<usize>>;

/// The experts that the last decode steps used. Which weights the caches hold depends on how often a step chooses the experts of the
/// steps before it.
#[derive(Debug, Default)]
pub struct LastSteps {
    before: Vec<Vec<u64>>,
    steps: VecDeque<Step>,
}

impl LastSteps {
    /// Begins a step after so much load.
    pub fn begin(&mut self, load: &ExpertLoad) {
        self.before.clone_from(&load.layers);
    }

    /// Ends the step. Memory of the step that is forgotten is used again.
    pub fn end(&mut self, load: &ExpertLoad) {
        if load.layers.is_empty() {
            return;
        }
        let oldest = if self.steps.len() < STEPS { None } else { self.steps.pop_front() };
        let mut step = oldest.unwrap_or_else(|| vec![Vec::new(); load.layers.len()]);
        for ((used, before), after) in step.iter_mut().zip(&self.before).zip(&load.layers) {
            used.clear();
            used.extend((0..after.len()).filter(|expert| after[*expert] > before[*expert]));
        }
        self.steps.push_back(step);
    }

    /// The steps, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_experts_are_chosen_with_their_probabilities() {
        let logits = [0.0, 2f32.ln(), 0.0, 4f32.ln(), 3f32.ln(), 0.0, 0.0, 0.0];
        let raw = Routes::choose(&logits, 4, 2, false);
        assert_eq!(raw.experts, [3, 1, 0, 1]);
        let near = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(&raw.weights, &[0.5, 0.25, 0.5, 1.0 / 6.0]), "{:?}", raw.weights);
        let scaled = Routes::choose(&logits, 4, 2, true);
        assert_eq!(scaled.experts, raw.experts);
        assert!(near(&scaled.weights, &[2.0 / 3.0, 1.0 / 3.0, 0.75, 0.25]), "{:?}", scaled.weights);
    }

    #[test]
    fn the_experts_of_the_last_steps_are_kept_in_order() {
        let (mut load, mut last) = (ExpertLoad::new(2, 4, 2), LastSteps::default());
        for step in 0..STEPS + 3 {
            last.begin(&load);
            for layer in 0..2 {
                let experts = vec![((step + layer + 1) % 4) as u32, ((step + layer) % 4) as u32];
                load.count(layer, &Routes { top_k: 2, experts, weights: vec![0.5; 2] });
            }
            last.end(&load);
        }
        assert_eq!(last.iter().count(), STEPS);
        assert_eq!(last.iter().next(), Some(&vec![vec![0, 3], vec![0, 1]]));
        assert_eq!(last.iter().last(), Some(&vec![vec![2, 3], vec![0, 3]]));
    }

    #[test]
    fn sorting_by_expert_loses_no_token() {
        let routes = Routes { top_k: 2, experts: vec![2, 0, 0, 1, 2, 1], weights: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6] };
        let groups = routes.by_expert(4);
        assert_eq!(groups[0], (vec![0, 1], vec![0.2, 0.3]));
        assert_eq!(groups[1], (vec![1, 2], vec![0.4, 0.6]));
        assert_eq!(groups[2], (vec![0, 2], vec![0.1, 0.5]));
        assert_eq!(groups[3], (vec![], vec![]));
    }

    #[test]
    fn diagnostics_distinguish_even_from_uneven() {
        let even = ExpertLoad { top_k: 1, layers: vec![vec![5; 4], vec![7; 4]] };
        assert_eq!((even.balance_factor(), even.entropy_bits(), even.idle_share()), (Some(1.0), Some(2.0), Some(0.0)));
        let one = ExpertLoad { top_k: 1, layers: vec![vec![0, 12, 0, 0]] };
        assert_eq!((one.balance_factor(), one.entropy_bits(), one.idle_share()), (Some(4.0), Some(0.0), Some(0.75)));
        assert_eq!(ExpertLoad::new(2, 4, 1).balance_factor(), None);
    }

    #[test]
    fn planted_routes_have_the_requested_skew() {
        let factor = |skew| {
            let planted = Planted::new(skew, 42, 3, 16);
            let mut load = ExpertLoad::new(3, 16, 2);
            for layer in 0..3 {
                load.count(layer, &Routes::choose(&planted.logits(layer, 0, POSITIONS), 16, 2, true));
            }
            load
        };
        let (even, zipf, steep) = (factor(0.0), factor(1.0), factor(3.0));
        // 4096 choices over 16 experts: the busiest of an even draw has a tenth more than the mean.
        assert!(even.balance_factor() < Some(1.2), "{:?}", even.balance_factor());
        assert!(zipf.balance_factor() > Some(3.0) && steep.balance_factor() > zipf.balance_factor());
        assert!(steep.entropy_bits() < zipf.entropy_bits() && zipf.entropy_bits() < even.entropy_bits());
        assert_eq!(factor(1.0), zipf, "seeded");
        let busiest = |layer: &Vec<u64>| layer.iter().max().map(|most| layer.iter().position(|tokens| tokens == most));
        let places: Vec<_> = steep.layers.iter().map(busiest).collect();
        assert!(
            places.iter().any(|place| *place != places[0]),
            "the busy expert is the same in all layers: {places:?}"
        );
    }

    #[test]
    fn planted_routes_depend_on_the_position() {
        let planted = Planted::new(1.0, 7, 2, 8);
        let all = planted.logits(1, 0, 10);
        assert_eq!(planted.logits(1, 6, 4), all[6 * 8..]);
        assert_eq!(planted.logits(1, POSITIONS, 1), all[..8]);
        assert_ne!(planted.logits(0, 0, 10), all);
    }
}
