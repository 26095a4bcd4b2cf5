//! The rules of the contract: one row of [`CHECKS`] each.

use std::time::Instant;

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use super::{Bounds, Checked, Counterexample, time};
use crate::{
    error::caught,
    generate::{self, Request},
    model::{CausalLm, Part},
    scenario::Sampling,
};

/// A rule. An input of a rule is a number: the length of a prompt, or the number of sequences.
pub struct Check {
    name: &'static str,
    rule: &'static str,
    inputs: fn(&Probe) -> Result<Vec<usize>, String>,
    /// Tries an input. Each comparison with the expected logits goes through [`Probe::expect`].
    attempt: fn(&mut Probe, usize) -> Attempt,
}

/// A counterexample, or none. An error is that of a model that cannot do what the rule is about.
type Attempt = Result<Option<Counterexample>, String>;

/// All rules, the plainest first: later ones take for granted that a prompt at once is right.
pub const CHECKS: &[Check] = &[
    Check {
        name: "prompt",
        rule: "a prompt at once and token by token give the same, finite logits, at each length",
        inputs: |probe| Ok(probe.lengths()),
        attempt: prompt,
    },
    Check {
        name: "chunks",
        rule: "a prompt in two parts, cut anywhere, gives the same logits",
        inputs: |probe| Ok(probe.some_lengths(&[2, 3, 5, 9, 17, 33, 65, 129])),
        attempt: chunks,
    },
    Check {
        name: "rows",
        rule: "logit_rows gives the logits of each position",
        inputs: |probe| Ok(probe.some_lengths(&[1, 2, 3, 17, 65, 129])),
        attempt: rows,
    },
    Check {
        name: "reset",
        rule: "after another prompt and a reset, a prompt gives the same logits",
        inputs: |probe| Ok(probe.some_lengths(&[1, 2, 3, 5, 9, 33, 65])),
        attempt: reset,
    },
    Check {
        name: "batch",
        rule: "sequences in one step give the logits that each gives alone",
        inputs: |probe| match probe.model.max_sequences() {
            0 | 1 => Err("the model holds one sequence".into()),
            most => Ok((2..=most.min(MOST_SEQUENCES)).collect()),
        },
        attempt: batch,
    },
    Check {
        name: "prefix",
        rule: "a sequence that shares a prefix gives the logits of a fresh one",
        inputs: |probe| match probe.model.max_sequences() {
            0 | 1 => Err("the model holds one sequence".into()),
            _ => Ok(probe.some_lengths(&[2, 17, 65, 66, 129, 130, 200])),
        },
        attempt: prefix,
    },
    Check {
        name: "samples",
        rule: "equal seeds give equal samples",
        inputs: |probe| Ok(probe.some_lengths(&[1, 9, 33])),
        attempt: samples,
    },
];

/// Sequences of the largest batch that is tried.
const MOST_SEQUENCES: usize = 8;

/// Decode steps that follow a batch of prompts, and tokens that are sampled.
const STEPS: usize = 4;

/// A model under test, and what it has said token by token.
pub struct Probe<'a> {
    model: &'a mut dyn CausalLm,
    bounds: &'a Bounds,
    tokens: Vec<u32>,
    /// The logits after each token of [`Self::tokens`], token by token.
    stepwise: Vec<Vec<f32>>,
    largest_distance: f64,
}

impl<'a> Probe<'a> {
    pub fn new(model: &'a mut dyn CausalLm, bounds: &'a Bounds) -> Result<Self> {
        let (vocab_size, context) = (model.vocab_size(), model.max_position_embeddings());
        ensure!(vocab_size > 0 && context > 0, "the model has a vocabulary of {vocab_size} and a context of {context}");
        ensure!(bounds.longest > 0, "the longest prompt has no token");
        let tokens = drawn(bounds.seed, bounds.longest.min(context), vocab_size);
        model.reset()?;
        Ok(Self { model, bounds, tokens, stepwise: Vec::new(), largest_distance: 0.0 })
    }

    /// Runs a check: the inputs in their order, until one fails or the time has passed; then those smaller than it, the smallest first.
    pub fn run(&mut self, check: &Check) -> Result<Checked> {
        let mut checked = Checked {
            name: check.name,
            rule: check.rule,
            tried: 0,
            left: 0,
            largest_distance: 0.0,
            counterexample: None,
            skipped: None,
        };
        let mut inputs = match (check.inputs)(self) {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Checked { skipped: Some(reason), ..checked }),
        };
        let smallest = inputs.iter().copied().min().unwrap_or_default();
        let (began, mut tried) = (Instant::now(), Vec::new());
        self.largest_distance = 0.0;
        while let Some(input) = inputs.first().copied() {
            if checked.counterexample.is_none() && began.elapsed() > time(self.bounds) && checked.tried > 0 {
                break;
            }
            inputs.remove(0);
            tried.push(input);
            self.model.reset()?;
            match (check.attempt)(self, input) {
                Ok(None) => checked.tried += 1,
                Ok(found) => {
                    let is_first = checked.counterexample.is_none();
                    checked.counterexample = found;
                    checked.tried += 1;
                    if !is_first {
                        break;
                    }
                    inputs = (smallest..input).filter(|smaller| !tried.contains(smaller)).collect();
                }
                Err(reason) => {
                    checked.skipped = Some(reason);
                    inputs.clear();
                }
            }
        }
        if checked.counterexample.is_none() {
            checked.left = inputs.len();
        }
        self.model.reset()?;
        Ok(Checked { largest_distance: self.largest_distance, ..checked })
    }

    /// Every length. Short ones, powers of two and their neighbours, and the longest come first: those fail most often.
    fn lengths(&self) -> Vec<usize> {
        let longest = self.tokens.len();
        let powers = (0..usize::BITS).map(|power| 1_usize << power).take_while(|power| *power <= longest);
        let near = powers.flat_map(|power| [power - 1, power, power + 1]).chain([longest]);
        let mut lengths: Vec<usize> = Vec::new();
        for length in near.chain(1..=longest) {
            if (1..=longest).contains(&length) && !lengths.contains(&length) {
                lengths.push(length);
            }
        }
        lengths
    }

    /// Those of some lengths that the context has room for.
    fn some_lengths(&self, lengths: &[usize]) -> Vec<usize> {
        lengths.iter().copied().filter(|length| *length <= self.tokens.len()).collect()
    }

    /// The logits after the first `length` tokens, token by token.
    fn stepwise(&mut self, length: usize) -> Result<Vec<f32>> {
        if self.stepwise.len() < length {
            self.model.reset()?;
            let known = self.stepwise.len();
            // The cache may have been cleared since.
            for position in 0..length {
                let logits = self.model.forward(&self.tokens[position..=position], position)?.to_vec1()?;
                if position >= known {
                    self.stepwise.push(logits);
                }
            }
            self.model.reset()?;
        }
        Ok(self.stepwise[length - 1].clone())
    }

    /// Compares logits with the expected ones.
    fn expect(
        &mut self,
        (tokens, position): (&[u32], usize),
        found: Result<Vec<f32>>,
        expected: &[f32],
        happened: impl FnOnce() -> String,
    ) -> Option<Counterexample> {
        let counterexample = |distance, end: String| {
            Some(Counterexample {
                tokens: tokens.to_vec(),
                position,
                distance,
                happened: format!("{}: {end}", happened()),
            })
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return counterexample(None, format!("{error:#}")),
        };
        match distance(&found, expected) {
            Some(distance) if distance <= self.bounds.tolerance => {
                self.largest_distance = self.largest_distance.max(distance);
                None
            }
            Some(distance) => {
                let end = format!("the logits are off by {distance:.1e}, and {:.1e} is allowed", self.bounds.tolerance);
                counterexample(Some(distance), end)
            }
            None => counterexample(None, "the logits are not finite, or not as many as the vocabulary".into()),
        }
    }

    /// The logits of a prompt that is the only one.
    fn alone(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.model.reset()?;
        forward(self.model, tokens, 0)
    }
}

/// Logits of a step. A model that panics has an error.
fn forward(model: &mut dyn CausalLm, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
    caught(|| Ok(model.forward(tokens, position)?.to_vec1()?))
}

/// Tokens of a vocabulary, drawn by a seed.
pub fn drawn(seed: u64, count: usize, vocab_size: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (random.next_u64() % vocab_size.max(1) as u64) as u32).collect()
}

/// See [`Counterexample::distance`]. `None` if a value is not finite or their numbers differ.
pub fn distance(found: &[f32], expected: &[f32]) -> Option<f64> {
    if found.len() != expected.len() || found.iter().chain(expected).any(|logit| !logit.is_finite()) {
        return None;
    }
    let count = expected.len().max(1) as f64;
    let mean = expected.iter().map(|logit| f64::from(*logit)).sum::<f64>() / count;
    let spread: f64 = expected.iter().map(|logit| (f64::from(*logit) - mean).powi(2)).sum();
    let apart: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    // Logits that are all equal have no spread, and then their own size counts.
    let scale = if spread > 0.0 { spread } else { mean * mean * count };
    Some(if apart == 0.0 { 0.0 } else { (apart / scale.max(f64::MIN_POSITIVE)).sqrt() })
}

/// Reports an error of the model as a counterexample of these tokens.
macro_rules! or_found {
    ($result:expr, $tokens:expr, $happened:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => {
                let (tokens, happened) = ($tokens.to_vec(), format!("{}: {error:#}", $happened));
                return Ok(Some(Counterexample { position: 0, tokens, distance: None, happened }));
            }
        }
    };
}

fn prompt(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    let expected = or_found!(caught(|| probe.stepwise(length)), tokens, "token by token");
    let found = probe.alone(&tokens);
    Ok(probe.expect((&tokens, 0), found, &expected, || format!("a prompt of {length} at once")))
}

fn chunks(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    let expected = or_found!(probe.alone(&tokens), tokens, "a prompt at once");
    for cut in 1..length {
        probe.model.reset().map_err(|error| format!("{error:#}"))?;
        or_found!(forward(probe.model, &tokens[..cut], 0), tokens, format!("the first {cut} of {length} tokens"));
        let found = forward(probe.model, &tokens[cut..], cut);
        if let (Err(error), 2..) = (&found, length - cut) {
            return Err(format!("the model takes no several tokens at a position above 0: {error:#}"));
        }
        let wrong = probe.expect((&tokens, cut), found, &expected, || format!("a prompt of {length}, cut after {cut}"));
        if wrong.is_some() {
            return Ok(wrong);
        }
    }
    Ok(None)
}

fn rows(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    or_found!(caught(|| probe.stepwise(length)), tokens, "token by token");
    for from in [0, length / 2, length - 1] {
        let found = caught(|| probe.model.logit_rows(&tokens, from)?.collect::<Result<Vec<_>>>());
        let found = or_found!(found, tokens, format!("logit_rows of {length} from {from}"));
        if found.len() != length - from {
            let happened = format!("logit_rows of {length} from {from} has {} rows", found.len());
            return Ok(Some(Counterexample { tokens, position: from, distance: None, happened }));
        }
        for (row, logits) in (from..).zip(found) {
            let expected = probe.stepwise[row].clone();
            let happened = || format!("logit_rows of {length} from {from}, row {row}");
            let wrong = probe.expect((&tokens, row), Ok(logits), &expected, happened);
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
    }
    Ok(None)
}

fn reset(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    let expected = or_found!(probe.alone(&tokens), tokens, "a prompt at once");
    for before in probe.some_lengths(&[1, 2, 9, 65, 200]) {
        let other = drawn(probe.bounds.seed + 1, before, probe.model.vocab_size());
        or_found!(probe.alone(&other), other, "another prompt");
        // Its decode step leaves a row in the cache too.
        if before < probe.model.max_position_embeddings() {
            or_found!(forward(probe.model, &other[..1], before), other, "a decode step");
        }
        let found = probe.alone(&tokens);
        let happened = || format!("a prompt of {length} after one of {before} and a reset");
        let wrong = probe.expect((&tokens, 0), found, &expected, happened);
        if wrong.is_some() {
            return Ok(wrong);
        }
    }
    Ok(None)
}

/// Sequences of different lengths whose prompts are one step, and then decode steps in a turning order.
fn batch(probe: &mut Probe, count: usize) -> Attempt {
    let room = probe.model.max_position_embeddings().saturating_sub(STEPS).max(1);
    let vocab_size = probe.model.vocab_size();
    let sequences: Vec<Vec<u32>> = (0..count)
        .map(|number| drawn(probe.bounds.seed + number as u64, (1 + 7 * number % 20).min(room) + STEPS, vocab_size))
        .collect();
    let prompt = |number: usize| sequences[number].len() - STEPS;
    let mut expected = Vec::new();
    for sequence in &sequences {
        let mut of_sequence =
            vec![or_found!(probe.alone(&sequence[..sequence.len() - STEPS]), sequence, "a prompt alone")];
        for position in sequence.len() - STEPS..sequence.len() {
            let step = forward(probe.model, &sequence[position..=position], position);
            of_sequence.push(or_found!(step, sequence, "a decode step alone"));
        }
        expected.push(of_sequence);
    }
    probe.model.reset().map_err(|error| format!("{error:#}"))?;
    let wanted = |number: usize, step: usize| expected[number][step].clone();
    for step in 0..=STEPS {
        let order: Vec<usize> = (0..count).map(|place| (place + step) % count).collect();
        let parts: Vec<Part> = order
            .iter()
            .map(|number| {
                let (sequence, position) = (&sequences[*number], prompt(*number) + step);
                match step {
                    0 => Part { sequence: *number, tokens: &sequence[..position], position: 0 },
                    _ => Part { sequence: *number, tokens: &sequence[position - 1..position], position: position - 1 },
                }
            })
            .collect();
        let found = caught(|| probe.model.forward_batch(&parts));
        let found = or_found!(found, sequences[count - 1], format!("step {step} of {count} sequences"));
        if found.len() != count {
            let happened = format!("step {step} of {count} sequences returned {} logits", found.len());
            return Ok(Some(Counterexample {
                tokens: sequences[count - 1].clone(),
                position: 0,
                distance: None,
                happened,
            }));
        }
        for (number, logits) in order.iter().zip(found) {
            let end = prompt(*number) + step;
            let logits = logits.to_vec1().map_err(Into::into);
            let happened = || format!("step {step} of {count} sequences, sequence {number}");
            let tokens = &sequences[*number][..end];
            let wrong = probe.expect((tokens, end - 1), logits, &wanted(*number, step), happened);
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
    }
    Ok(None)
}

fn prefix(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    let expected = or_found!(probe.alone(&tokens), tokens, "a prompt at once");
    probe.model.reset().map_err(|error| format!("{error:#}"))?;
    or_found!(forward(probe.model, &tokens[..length - 1], 0), tokens, "the prefix");
    let shared = or_found!(caught(|| probe.model.share_prefix(0, 1, length - 1)), tokens, "sharing the prefix");
    if shared >= length {
        let happened = format!("{shared} of {} tokens were shared", length - 1);
        return Ok(Some(Counterexample { tokens, position: shared, distance: None, happened }));
    }
    let part = Part { sequence: 1, tokens: &tokens[shared..], position: shared };
    let found = caught(|| Ok(probe.model.forward_batch(&[part])?[0].to_vec1()?));
    Ok(probe
        .expect((&tokens, shared), found, &expected, || format!("a prompt of {length} of which {shared} are shared")))
}

fn samples(probe: &mut Probe, length: usize) -> Attempt {
    let tokens = probe.tokens[..length].to_vec();
    if length + STEPS > probe.model.max_position_embeddings() {
        return Ok(None);
    }
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let request = Request { new_tokens: STEPS, sampling, seed: probe.bounds.seed, stop: Vec::new() };
    let mut sample = || caught(|| Ok(generate::run(probe.model, std::slice::from_ref(&tokens), &request)?.tokens));
    let (first, second) = (sample(), sample());
    let first = or_found!(first, tokens, "sampling");
    let second = or_found!(second, tokens, "sampling");
    let happened = format!("sampling twice with seed {} gave {first:?} and {second:?}", request.seed);
    Ok((first != second).then_some(Counterexample { tokens, position: length, distance: None, happened }))
}
