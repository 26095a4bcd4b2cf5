//! Sampling of the next token. Order and definitions follow the logits processors of Hugging Face transformers:
//! repetition penalty, temperature, top-k, top-p over the renormalised top-k, draw.
//!
//! The cost of sampling is part of the measurement, so nothing sorts or hashes a whole vocabulary. A vectorised pass
//! finds the largest logit of each chunk. Later passes read only the chunks that can contain a candidate.

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::scenario::Sampling;

/// Number of logits per chunk.
const CHUNK: usize = 64;

/// Number of likeliest tokens that top-p examines first if top-k is off.
const FIRST_LOOK: usize = 256;

/// Samples the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    scores: Vec<f32>,
    chunk_maxima: Vec<f32>,
    ordered_maxima: Vec<f32>,
    candidates: Vec<Candidate>,
    seen: Seen,
}

/// A token that can still be drawn, with its score and later its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Id of the token.
    pub id: u32,
    /// Score, and after the last transform probability.
    pub probability: f32,
}

/// The distinct tokens of a growing sequence.
#[derive(Default)]
struct Seen {
    ids: Vec<u32>,
    bits: Vec<u64>,
    /// Length of the part of the sequence that is included.
    length: usize,
}

impl Sampler {
    /// # Errors
    /// Returns an error if a parameter is out of range.
    pub fn new(sampling: Sampling, seed: u64) -> Result<Self> {
        sampling.validate()?;
        Ok(Self {
            sampling,
            random: ChaCha8Rng::seed_from_u64(seed),
            scores: Vec::new(),
            chunk_maxima: Vec::new(),
            ordered_maxima: Vec::new(),
            candidates: Vec::new(),
            seen: Seen::default(),
        })
    }

    /// Returns the next token for `logits` of shape `(vocab_size)` and the whole sequence so far, prompt and output.
    ///
    /// # Errors
    /// Returns an error if a logit is not finite, or if a transform exceeds the range of f32.
    pub fn sample(&mut self, logits: &[f32], sequence: &[u32]) -> Result<u32> {
        if self.sampling.temperature == 0.0 && self.sampling.repetition_penalty.is_none() {
            let largest = largest(logits).with_context(|| unusable(logits))?;
            return Ok(argmax(logits, largest));
        }
        if let [only] = self.distribution(logits, sequence)? {
            return Ok(only.id);
        }
        // Uniform in [0, 1) with the 53 bits of an f64.
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        // Rounding can make the sum differ from one. A draw scaled by the sum always ends on a token with a nonzero
        // probability.
        let sum: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.probability)).sum();
        let mut cumulative = 0.0;
        let drawn = self.candidates.iter().find(|candidate| {
            cumulative += f64::from(candidate.probability);
            cumulative > uniform * sum
        });
        Ok(drawn.context("every token has probability 0")?.id)
    }

    /// Returns the tokens that remain after every transform, with probabilities that sum to one.
    ///
    /// # Errors
    /// See [`sample`](Self::sample).
    pub fn distribution(&mut self, logits: &[f32], sequence: &[u32]) -> Result<&[Candidate]> {
        let Sampling { repetition_penalty, temperature, top_k, top_p } = self.sampling;
        largest(logits).with_context(|| unusable(logits))?;
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if let Some(penalty) = repetition_penalty {
            self.seen.extend(sequence);
            for &id in &self.seen.ids {
                if let Some(score) = self.scores.get_mut(id as usize) {
                    *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
                }
            }
        }
        self.candidates.clear();
        if temperature == 0.0 {
            let largest = largest(&self.scores).with_context(|| out_of_range(&self.sampling))?;
            let id = argmax(&self.scores, largest);
            self.candidates.push(Candidate { id, probability: 1.0 });
            return Ok(&self.candidates);
        }
        self.scores.iter_mut().for_each(|score| *score /= temperature);
        let max = largest(&self.scores).with_context(|| out_of_range(&self.sampling))?;

        match (top_k.filter(|k| *k < self.scores.len()), top_p.filter(|p| *p < 1.0)) {
            (None, None) => {
                let every = self.scores.iter().enumerate();
                self.candidates.extend(every.map(|(id, score)| Candidate { id: id as u32, probability: *score }));
            }
            (Some(k), None) => self.keep_top_k(k),
            (Some(k), Some(p)) => {
                self.keep_top_k(k);
                let mass = mass(self.candidates.iter().map(|candidate| candidate.probability), max);
                self.keep_top_p(f64::from(p) * mass, max);
            }
            (None, Some(p)) => {
                let mass = f64::from(p) * mass(self.scores.iter().copied(), max);
                let mut look = FIRST_LOOK;
                loop {
                    self.keep_top_k(look.min(self.scores.len()));
                    if self.keep_top_p(mass, max) || look >= self.scores.len() {
                        break;
                    }
                    look *= 4;
                }
            }
        }

        let mut mass = 0.0;
        for candidate in &mut self.candidates {
            candidate.probability = (candidate.probability - max).exp();
            mass += f64::from(candidate.probability);
        }
        for candidate in &mut self.candidates {
            candidate.probability = (f64::from(candidate.probability) / mass) as f32;
        }
        Ok(&self.candidates)
    }

    /// Collects the tokens whose score is at least the k-th largest, ties included, likeliest first.
    fn keep_top_k(&mut self, k: usize) {
        self.candidates.clear();
        // The k chunks with the largest maxima contain k scores that are at least the k-th largest maximum. No lower
        // score can be among the first k.
        let mut floor = f32::NEG_INFINITY;
        self.chunk_maxima.clear();
        self.chunk_maxima.extend(self.scores.chunks(CHUNK).map(maximum));
        if k < self.chunk_maxima.len() {
            self.ordered_maxima.clone_from(&self.chunk_maxima);
            floor = *self.ordered_maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        }
        for (chunk, scores) in self.scores.chunks(CHUNK).enumerate() {
            if self.chunk_maxima[chunk] < floor {
                continue;
            }
            for (offset, &score) in scores.iter().enumerate() {
                if score >= floor {
                    self.candidates.push(Candidate { id: (chunk * CHUNK + offset) as u32, probability: score });
                }
            }
        }
        if k < self.candidates.len() {
            let kth = self.candidates.select_nth_unstable_by(k - 1, likeliest_first).1.probability;
            self.candidates.retain(|candidate| candidate.probability >= kth);
        }
        self.candidates.sort_unstable_by(likeliest_first);
    }

    /// Truncates the candidates after the first whose cumulative mass reaches `mass`. Returns `false` if none does.
    /// The sort of the reference is not stable, so it does not define which of several equal candidates stay; this
    /// function keeps those with lower ids.
    fn keep_top_p(&mut self, mass: f64, max: f32) -> bool {
        let mut cumulative = 0.0;
        for (index, candidate) in self.candidates.iter().enumerate() {
            cumulative += f64::from((candidate.probability - max).exp());
            if cumulative >= mass {
                self.candidates.truncate(index + 1);
                return true;
            }
        }
        false
    }
}

impl Seen {
    fn extend(&mut self, sequence: &[u32]) {
        for &id in &sequence[self.length.min(sequence.len())..] {
            let (word, bit) = (id as usize / 64, 1 << (id % 64));
            if word >= self.bits.len() {
                self.bits.resize(word + 1, 0);
            }
            if self.bits[word] & bit == 0 {
                self.bits[word] |= bit;
                self.ids.push(id);
            }
        }
        self.length = sequence.len();
    }
}

/// Orders by score, then by id, so that the order is deterministic.
fn likeliest_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.probability.total_cmp(&a.probability).then(a.id.cmp(&b.id))
}

/// Returns the largest logit, or `None` if there is none or one is not finite.
fn largest(logits: &[f32]) -> Option<f32> {
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    // A finite number times zero is zero. Infinities and NaN give NaN, and a sum keeps it.
    let mut poison = [0f32; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for lanes in whole {
        for lane in 0..LANES {
            max[lane] = if lanes[lane] > max[lane] { lanes[lane] } else { max[lane] };
            poison[lane] += lanes[lane] * 0.0;
        }
    }
    let finite = poison.iter().sum::<f32>() == 0.0 && rest.iter().all(|logit| logit.is_finite());
    (finite && !logits.is_empty()).then(|| maximum(rest).max(maximum(&max)))
}

/// Explains why [`largest`] returned `None`.
fn unusable(logits: &[f32]) -> String {
    let bad = |logit: &&f32| !logit.is_finite();
    let Some((first, logit)) = logits.iter().enumerate().find(|(_, logit)| bad(logit)) else {
        return "there are no logits".into();
    };
    format!(
        "{} of {} logits are not finite, the first is {logit} for token {first}: the weights or the precision are not fit for this model",
        logits.iter().filter(bad).count(),
        logits.len()
    )
}

fn out_of_range(sampling: &Sampling) -> String {
    format!("'{sampling}' takes logits out of the range of f32: choose values nearer to 1")
}

/// Returns the sum of the softmax's denominators in f64, because f32 loses more than the share of one token over a
/// whole vocabulary.
fn mass(scores: impl Iterator<Item = f32>, max: f32) -> f64 {
    scores.map(|score| f64::from((score - max).exp())).sum()
}

fn maximum(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max })
}

/// Returns the first token with the largest logit. It compares whole chunks, because the compiler does not vectorise
/// a search that can end at any logit.
fn argmax(logits: &[f32], largest: f32) -> u32 {
    let holds = |chunk: &[f32]| chunk.iter().fold(false, |found, logit| found | (*logit == largest));
    let start = CHUNK * logits.chunks(CHUNK).position(holds).unwrap_or(0);
    let offset = logits[start..].iter().position(|logit| *logit == largest).unwrap_or(0);
    (start + offset) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { repetition_penalty: None, temperature: 1.0, top_k: None, top_p: None };

    /// Applies the definitions one after the other to a sorted vocabulary in f64.
    fn plainly(sampling: Sampling, logits: &[f32], sequence: &[u32]) -> Vec<f64> {
        let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        if let Some(penalty) = sampling.repetition_penalty.map(f64::from) {
            let distinct: std::collections::HashSet<_> = sequence.iter().collect();
            for id in distinct {
                let score = &mut scores[*id as usize];
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
        scores.iter_mut().for_each(|score| *score /= f64::from(sampling.temperature));
        let sorted = |scores: &[f64]| {
            let mut ids: Vec<_> = (0..scores.len()).collect();
            ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            ids
        };
        if let Some(k) = sampling.top_k {
            let kth = scores[sorted(&scores)[k.min(scores.len()) - 1]];
            scores.iter_mut().filter(|score| **score < kth).for_each(|score| *score = f64::NEG_INFINITY);
        }
        if let Some(p) = sampling.top_p.map(f64::from) {
            let probabilities = softmax(&scores);
            let mut before = 0.0;
            for id in sorted(&scores) {
                if before >= p {
                    scores[id] = f64::NEG_INFINITY;
                }
                before += probabilities[id];
            }
        }
        softmax(&scores)
    }

    fn softmax(scores: &[f64]) -> Vec<f64> {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mass: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        scores.iter().map(|score| (score - max).exp() / mass).collect()
    }

    fn logits(vocab: usize, seed: u64, spread: f32) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut unit = || random.next_u32() as f32 / u32::MAX as f32;
        (0..vocab).map(|_| spread * (unit() + unit() + unit() + unit() - 2.0)).collect()
    }

    #[test]
    fn the_first_of_equal_logits_is_chosen() {
        let mut logits = vec![0.0; 3 * CHUNK];
        for place in [CHUNK + 1, CHUNK + 2, 2 * CHUNK] {
            logits[place] = 1.0;
        }
        assert_eq!(argmax(&logits, 1.0) as usize, CHUNK + 1);
    }

    fn assert_as_plain(sampling: Sampling, logits: &[f32], sequence: &[u32]) {
        let plain = plainly(sampling, logits, sequence);
        let mut sampler = Sampler::new(sampling, 0).expect("a sampler");
        let mut fast = vec![0.0; logits.len()];
        for candidate in sampler.distribution(logits, sequence).expect("finite") {
            fast[candidate.id as usize] = f64::from(candidate.probability);
        }
        for (id, (fast, plain)) in fast.iter().zip(&plain).enumerate() {
            assert!((fast - plain).abs() < 1e-5, "{sampling:?}, token {id} of {}: {fast}, not {plain}", logits.len());
        }
    }

    #[test]
    fn every_combination_of_transforms_is_as_defined() {
        for vocab in [1, 2, 63, 64, 65, 300, 5000, 40_000] {
            for (seed, spread) in [(1, 1.0), (2, 8.0), (3, 30.0)] {
                let logits = logits(vocab, seed, spread);
                let sequence: Vec<u32> = (0..40).map(|i| (i * i * 7) % vocab as u32).collect();
                for repetition_penalty in [None, Some(1.1), Some(3.0)] {
                    for top_k in [None, Some(1), Some(2), Some(50), Some(1000), Some(1_000_000)] {
                        for top_p in [None, Some(1e-6), Some(0.5), Some(0.9), Some(1.0)] {
                            let sampling = Sampling { repetition_penalty, temperature: 0.8, top_k, top_p };
                            assert_as_plain(sampling, &logits, &sequence);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ties_at_the_kth_score_are_all_kept() {
        let mut logits = vec![0.0; 1000];
        logits[10] = 5.0;
        for id in [3, 64, 500, 999] {
            logits[id] = 4.0;
        }
        assert_as_plain(Sampling { top_k: Some(3), ..PLAIN }, &logits, &[]);
        let mut sampler = Sampler::new(Sampling { top_k: Some(3), ..PLAIN }, 0).expect("a sampler");
        assert_eq!(sampler.distribution(&logits, &[]).expect("finite").len(), 5);
        assert_as_plain(Sampling { top_k: Some(7), ..PLAIN }, &[1.0; 300], &[]);
    }

    #[test]
    fn a_flat_vocabulary_needs_more_than_the_first_look() {
        assert_as_plain(Sampling { top_p: Some(0.9), ..PLAIN }, &logits(20_000, 9, 0.01), &[]);
    }

    /// With 262144 tokens of small probability, f32 sums are off by hundreds of tokens.
    #[test]
    fn a_large_vocabulary_loses_no_mass() {
        for spread in [0.01, 1.0, 8.0] {
            let logits = logits(262_144, 5, spread);
            for top_p in [None, Some(0.5), Some(0.9), Some(0.99)] {
                let sampling = Sampling { top_p, ..PLAIN };
                let kept = plainly(sampling, &logits, &[]).iter().filter(|probability| **probability > 0.0).count();
                let mut sampler = Sampler::new(sampling, 0).expect("a sampler");
                let candidates = sampler.distribution(&logits, &[]).expect("finite");
                let sum: f64 = candidates.iter().map(|candidate| f64::from(candidate.probability)).sum();
                assert!((sum - 1.0).abs() < 1e-6, "{sampling}, spread {spread}: {sum}");
                // Two scores that f32 cannot distinguish may be swapped at the cut.
                assert!(candidates.len().abs_diff(kept) <= 1, "{sampling}, {spread}: {}, not {kept}", candidates.len());
            }
        }
    }

    #[test]
    fn the_penalty_counts_a_token_once_and_keeps_up_with_the_sequence() {
        let logits = [2.0, -2.0, 1.0, 0.5];
        let sampling = Sampling { repetition_penalty: Some(2.0), ..PLAIN };
        let mut sampler = Sampler::new(sampling, 0).expect("a sampler");
        let mut sequence = vec![0, 0, 1];
        for next in [3, 3, 2] {
            let plain = plainly(sampling, &logits, &sequence);
            for candidate in sampler.distribution(&logits, &sequence).expect("finite") {
                assert!((f64::from(candidate.probability) - plain[candidate.id as usize]).abs() < 1e-6);
            }
            sequence.push(next);
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::GREEDY, 0).expect("a sampler");
        for vocab in [1, 15, 16, 17, 63, 64, 65, 128, 129, 1000] {
            let mut logits = logits(vocab, 4, 3.0);
            logits[vocab / 2] = 99.0;
            logits[vocab - 1] = 99.0;
            assert_eq!(sampler.sample(&logits, &[]).expect("finite"), (vocab / 2) as u32);
        }
        let penalised = Sampling { repetition_penalty: Some(1.5), ..Sampling::GREEDY };
        let mut sampler = Sampler::new(penalised, 0).expect("a sampler");
        assert_eq!(sampler.sample(&[1.0, 1.2, 0.1], &[1]).expect("finite"), 0);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits = [1.0, 2.0, 0.0, -1.0];
        let expected = plainly(PLAIN, &logits, &[]);
        let draws = |seed| {
            let mut sampler = Sampler::new(PLAIN, seed).expect("a sampler");
            (0..20_000).map(|_| sampler.sample(&logits, &[]).expect("finite")).collect::<Vec<_>>()
        };
        let drawn = draws(1);
        assert_eq!(drawn, draws(1));
        assert_ne!(drawn, draws(2));
        for (id, expected) in expected.iter().enumerate() {
            let share = drawn.iter().filter(|drawn| **drawn as usize == id).count() as f64 / drawn.len() as f64;
            // Four standard deviations of a share of 20 000 draws are at most 0.0142.
            assert!((share - expected).abs() < 0.0142, "{id}: {share}, not {expected}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 99] {
                let mut logits = vec![1.0; 100];
                logits[at] = bad;
                for sampling in [Sampling::GREEDY, PLAIN] {
                    let mut sampler = Sampler::new(sampling, 0).expect("a sampler");
                    let error = sampler.sample(&logits, &[]).expect_err("not finite").to_string();
                    let expected = format!("1 of 100 logits are not finite, the first is {bad} for token {at}:");
                    assert!(error.starts_with(&expected), "{error}");
                }
            }
        }
        let error = Sampler::new(PLAIN, 0).expect("a sampler").sample(&[], &[]).expect_err("none").to_string();
        assert_eq!(error, "there are no logits");
    }

    #[test]
    fn a_parameter_that_overflows_is_blamed_itself() {
        for (sampling, name) in [
            (Sampling { temperature: 1e-40, ..PLAIN }, "temperature"),
            (Sampling { repetition_penalty: Some(1e-40), ..PLAIN }, "penalty"),
            (Sampling { repetition_penalty: Some(1e-40), ..Sampling::GREEDY }, "penalty"),
        ] {
            let mut sampler = Sampler::new(sampling, 0).expect("a sampler");
            let error = sampler.sample(&[3.0, -2.0], &[0]).expect_err("an overflow").to_string();
            assert!(error.contains(name) && error.contains("out of the range of f32"), "{error}");
        }
    }
}
