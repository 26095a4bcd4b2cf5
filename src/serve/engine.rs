//! The loop that owns the model: continuous batching with a budget of tokens per step.
//!
//! Each step has one token of every sequence that generates, and fills the rest of its budget with chunks of prompts, the
//! oldest first. The slot of a finished sequence keeps its cache, so that a later prompt with the same beginning starts from
//! there: in the same slot if the prompt continues the whole sequence, as the next turn of a conversation does, and otherwise
//! in another slot that shares pages of the cache.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::{
    metrics::Metrics,
    queue::{Event, Finish, Job, Logprobs, Queue},
};
use crate::{
    error::{caught, one_line},
    generate::{Sampler, check_logits, with_logits},
    model::{CausalLm, Part},
    scenario::Sampling,
};

/// Largest difference between logits of a prompt in one call and in two, as a share of the largest logit. It is above the
/// rounding of bf16 and far below the effect of a wrong mask.
const CHUNK_TOLERANCE: f32 = 0.05;

pub struct Engine<'a> {
    model: &'a mut dyn CausalLm,
    queue: &'a Queue,
    metrics: &'a Metrics,
    vocab_size: usize,
    batch: Batch,
    slots: Vec<Slot>,
    /// Number of sequences that were admitted so far.
    admitted: u64,
}

/// Limits of a step.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Most sequences.
    pub sequences: usize,
    /// Most tokens, prompts and new tokens together.
    step_tokens: usize,
    /// False if the model takes several tokens only into an empty sequence. Prompts then run in one call, even above the
    /// budget.
    appends: bool,
}

impl Batch {
    /// Finds out how many sequences the model holds, at most `most`, and whether it appends to them. Leaves it empty and warm.
    ///
    /// # Errors
    /// If the model can't run at all.
    pub fn of(model: &mut dyn CausalLm, most: usize, step_tokens: usize) -> Result<Self> {
        Ok(Self { sequences: model.max_sequences().clamp(1, most), step_tokens, appends: appends(model)? })
    }
}

/// A sequence of the model.
#[derive(Default)]
struct Slot {
    /// The tokens in the model's cache.
    cached: Vec<u32>,
    running: Option<Running>,
    /// The number of the last sequence that it admitted.
    used: u64,
    /// True if the model failed in it and did not release it.
    is_spoilt: bool,
}

struct Running {
    job: Job,
    /// Prompt and new tokens.
    sequence: Vec<u32>,
    sampler: Sampler,
}

impl Slot {
    /// Number of tokens that the model has not seen.
    fn pending(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.sequence.len() - self.cached.len())
    }

    /// Number of tokens at the beginning of a prompt that are in the cache.
    fn common(&self, prompt: &[u32]) -> usize {
        self.cached.iter().zip(prompt).take_while(|(cached, token)| cached == token).count()
    }
}

impl<'a> Engine<'a> {
    /// An engine for an empty model.
    pub fn new(model: &'a mut dyn CausalLm, batch: Batch, queue: &'a Queue, metrics: &'a Metrics) -> Self {
        let vocab_size = model.vocab_size();
        let slots = (0..batch.sequences).map(|_| Slot::default()).collect();
        Self { model, queue, metrics, vocab_size, batch, slots, admitted: 0 }
    }

    /// Runs until the queue ends.
    pub fn run(&mut self) {
        while self.turn() || self.queue.wait() {}
    }

    /// Admits what waits and runs a step. Returns `false` if there is nothing to run.
    pub fn turn(&mut self) -> bool {
        self.drop_cancelled();
        self.admit();
        let running = self.slots.iter().filter(|slot| slot.running.is_some()).count();
        self.metrics.running.set(running);
        if running > 0 {
            self.step();
        }
        running > 0
    }

    /// Leaves the model empty.
    ///
    /// # Errors
    /// If the device fails.
    pub fn end(mut self) -> Result<()> {
        (0..self.slots.len()).try_for_each(|place| self.clear(place))
    }

    fn drop_cancelled(&mut self) {
        for slot in &mut self.slots {
            if slot.running.as_ref().is_some_and(|running| running.job.is_cancelled()) {
                slot.running = None;
                self.metrics.cancelled.add(1);
            }
        }
    }

    fn admit(&mut self) {
        while self.slots.iter().any(|slot| slot.running.is_none()) {
            let Some(job) = self.queue.pop() else { return };
            // What is in a cache has no logits any more.
            let cacheable: &[u32] = if job.scores_prompt { &[] } else { &job.prompt };
            let placed = Sampler::new(job.sampling, job.seed).and_then(|sampler| Ok((self.place(cacheable)?, sampler)));
            match placed {
                Ok((place, sampler)) => {
                    self.admitted += 1;
                    let slot = &mut self.slots[place];
                    slot.used = self.admitted;
                    self.metrics.prompt_tokens.add(job.prompt.len());
                    self.metrics.cached_tokens.add(slot.cached.len());
                    job.send(Event::Started { cached_tokens: slot.cached.len() });
                    if let (true, Some(id)) = (job.scores_prompt, job.prompt.first()) {
                        job.send(Event::Prompt { id: *id, logprobs: None });
                    }
                    let mut sequence = Vec::with_capacity(job.prompt.len() + job.max_new_tokens);
                    sequence.extend_from_slice(&job.prompt);
                    slot.running = Some(Running { job, sequence, sampler });
                }
                Err(error) => job.send(Event::Failed(one_line(&format!("{error:#}")))),
            }
        }
    }

    /// Chooses a free slot for a prompt, and lets it begin with what a cache has of the prompt. There must be a free slot.
    fn place(&mut self, prompt: &[u32]) -> Result<usize> {
        // The last token is computed in any case, because its logits are needed.
        let (_, needed) = prompt.split_last().unwrap_or((&0, &[]));
        let slots = &self.slots;
        let common = |place: &usize| if self.batch.appends { slots[*place].common(needed) } else { 0 };
        let free = || (0..slots.len()).filter(|place| slots[*place].running.is_none());
        let source = (0..slots.len()).max_by_key(common).unwrap_or(0);
        let shared = common(&source);
        let continued = free().filter(|place| common(place) == slots[*place].cached.len()).max_by_key(common);
        if let Some(place) = continued.filter(|place| shared > 0 && common(place) == shared) {
            return Ok(place);
        }
        // An empty slot, else the one unused for longest, and the source only if there is no other.
        let cost = |place: &usize| {
            let slot = &slots[*place];
            (shared > 0 && *place == source, !slot.cached.is_empty(), slot.used)
        };
        let place = free().min_by_key(cost).unwrap_or(0);
        self.clear(place)?;
        if shared > 0 && place != source {
            // Until the model has said what it shares, the slot holds something unknown.
            self.slots[place].is_spoilt = true;
            let shared = self.model.share_prefix(source, place, shared)?.min(shared);
            self.slots[place].is_spoilt = false;
            self.slots[place].cached.extend_from_slice(&prompt[..shared]);
        }
        Ok(place)
    }

    /// Empties a slot.
    fn clear(&mut self, place: usize) -> Result<()> {
        let slot = &mut self.slots[place];
        if slot.is_spoilt || !slot.cached.is_empty() {
            slot.cached.clear();
            slot.is_spoilt = true;
            self.model.release(place)?;
            slot.is_spoilt = false;
        }
        Ok(())
    }

    /// Ends the sequence of a slot with an error, and empties the slot.
    fn fail(&mut self, place: usize, reason: &str) {
        if let Some(running) = self.slots[place].running.take() {
            running.job.send(Event::Failed(reason.to_owned()));
        }
        self.slots[place].is_spoilt = true;
        // The slot stays spoilt if the model refuses; its next use tries again.
        let _ = self.clear(place);
    }

    /// The slots of the next step, with the number of tokens of each.
    fn plan(&self) -> Vec<(usize, usize)> {
        let slots = &self.slots;
        let mut order: Vec<usize> = (0..slots.len()).filter(|place| slots[*place].running.is_some()).collect();
        order.sort_by_key(|place| (slots[*place].pending() > 1, slots[*place].used));
        let mut left = self.batch.step_tokens;
        let mut plan = Vec::with_capacity(order.len());
        for place in order {
            if left == 0 {
                break;
            }
            let pending = slots[place].pending();
            let is_scored = slots[place].running.as_ref().is_some_and(|running| running.job.scores_prompt);
            let count = match (is_scored, self.batch.appends) {
                (true, _) => 1,
                (false, true) => pending.min(left),
                (false, false) => pending,
            };
            left = left.saturating_sub(count);
            plan.push((place, count));
        }
        plan
    }

    fn step(&mut self) {
        let started = Instant::now();
        let plan = self.plan();
        let part = |(place, count): &(usize, usize)| {
            let slot = &self.slots[*place];
            let position = slot.cached.len();
            let tokens = slot.running.as_ref().map(|running| &running.sequence[position..position + count]);
            Part { sequence: *place, tokens: tokens.unwrap_or_default(), position }
        };
        let parts: Vec<Part> = plan.iter().map(part).collect();
        let logits = self.model.forward_batch(&parts).and_then(|logits| {
            ensure!(logits.len() == parts.len(), "the model returned {} logits of {}", logits.len(), parts.len());
            Ok(logits)
        });
        match logits {
            Ok(logits) => {
                plan.iter().zip(&logits).for_each(|((place, count), logits)| self.advance(*place, *count, logits))
            }
            Err(error) => {
                let reason = one_line(&format!("{error:#}"));
                plan.iter().for_each(|(place, _)| self.fail(*place, &reason));
            }
        }
        self.metrics.step.add(started.elapsed());
    }

    /// Adds what a step computed to a sequence, and samples if it has reached the end of its tokens.
    fn advance(&mut self, place: usize, count: usize, logits: &Tensor) {
        let slot = &mut self.slots[place];
        let Some(Running { job, sequence, sampler }) = &mut slot.running else { return };
        let position = slot.cached.len();
        slot.cached.extend_from_slice(&sequence[position..position + count]);
        let next = sequence.get(slot.cached.len()).copied();
        if next.is_some() && !job.scores_prompt {
            return;
        }
        let new = sequence.len() - job.prompt.len();
        let sampled = check_logits(logits, self.vocab_size).and_then(|()| {
            with_logits(logits, |logits| {
                let id = match next {
                    Some(id) => id,
                    None if job.max_new_tokens == 0 => return Ok(None),
                    None => {
                        let masked = masked(logits, job, new, sequence);
                        sampler.sample(masked.as_deref().unwrap_or(logits), sequence)?
                    }
                };
                Ok(Some((id, job.logprobs.map(|count| logprobs(logits, id, count)))))
            })
        });
        match sampled {
            Ok(None) => {
                job.send(Event::Ended);
                slot.running = None;
            }
            Ok(Some((id, logprobs))) if next.is_some() => job.send(Event::Prompt { id, logprobs }),
            Ok(Some((id, logprobs))) => {
                sequence.push(id);
                self.metrics.generated_tokens.add(1);
                let finish = match new + 1 {
                    _ if job.stop.contains(&id) => Some(Finish::Stop),
                    new if new >= job.max_new_tokens => Some(Finish::Length),
                    _ => None,
                };
                job.send(Event::Token { id, logprobs, finish });
                if finish.is_some() {
                    slot.running = None;
                }
            }
            Err(error) => self.fail(place, &one_line(&format!("{error:#}"))),
        }
    }
}

/// The logits without the tokens that a request excludes; `None` if it excludes none. They stay finite.
fn masked(logits: &[f32], job: &Job, new: usize, sequence: &[u32]) -> Option<Vec<f32>> {
    const EXCLUDED: f32 = -1e30;
    let Sampling { repetition_penalty, temperature, .. } = job.sampling;
    let ends: &[u32] = if new < job.min_new_tokens { &job.stop } else { &[] };
    let has_min_p = job.min_p > 0.0 && temperature > 0.0;
    if ends.is_empty() && !has_min_p {
        return None;
    }
    let mut masked = logits.to_vec();
    for id in ends {
        masked.get_mut(*id as usize).into_iter().for_each(|logit| *logit = EXCLUDED);
    }
    if has_min_p {
        // The share is that of the probabilities after the penalty and the temperature.
        let mut scores = masked.clone();
        let seen: BTreeSet<u32> = sequence.iter().copied().collect();
        for (penalty, id) in repetition_penalty.iter().flat_map(|penalty| seen.iter().map(move |id| (penalty, id))) {
            let Some(score) = scores.get_mut(*id as usize) else { continue };
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let smallest = largest + temperature * job.min_p.ln();
        for (logit, _) in masked.iter_mut().zip(&scores).filter(|(_, score)| **score < smallest) {
            *logit = EXCLUDED;
        }
    }
    Some(masked)
}

/// Log-probabilities of a token and of the `count` likeliest ones, before temperature and other transforms.
fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let of = |id: u32| (f64::from(logits[id as usize] - max) - mass.ln()) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let likeliest = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(ids.len());
    if count < ids.len() {
        ids.select_nth_unstable_by(count, likeliest);
        ids.truncate(count);
    }
    ids.sort_unstable_by(likeliest);
    Logprobs { chosen: of(chosen), top: ids.into_iter().map(|id| (id, of(id))).collect() }
}

/// Returns whether the model appends several tokens to a sequence that has some: published models may refuse, or mask them
/// wrongly. Leaves the model empty and warm.
///
/// # Errors
/// If the model can't run a prompt at all.
fn appends(model: &mut dyn CausalLm) -> Result<bool> {
    let vocab_size = model.vocab_size();
    let tokens = [1, 3, 5, 7].map(|id| id % vocab_size as u32);
    let whole = logits(model, &tokens, 0)?;
    model.release(0)?;
    if model.max_position_embeddings() < tokens.len() {
        return Ok(false);
    }
    let split = caught(|| {
        logits(model, &tokens[..2], 0)?;
        logits(model, &tokens[2..], 2)
    });
    model.release(0)?;
    let Ok(split) = split else { return Ok(false) };
    let largest = whole.iter().fold(0.0, |largest: f32, logit| largest.max(logit.abs()));
    Ok(whole.iter().zip(&split).all(|(a, b)| (a - b).abs() <= CHUNK_TOLERANCE * largest))
}

fn logits(model: &mut dyn CausalLm, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
    let vocab_size = model.vocab_size();
    let tokens = &tokens[..tokens.len().min(model.max_position_embeddings())];
    let logits = model.forward_batch(&[Part { sequence: 0, tokens, position }])?;
    ensure!(logits.len() == 1, "the model returned {} logits for one sequence", logits.len());
    check_logits(&logits[0], vocab_size)?;
    Ok(logits[0].to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0, 3.0, 3.0, -2.0];
        let mass: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let of = |id: usize| (f64::from(logits[id]).exp() / mass).ln();
        let found = logprobs(&logits, 0, 3);
        assert!((f64::from(found.chosen) - of(0)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
        assert!(found.top.iter().all(|(id, own)| (f64::from(*own) - of(*id as usize)).abs() < 1e-6));
        assert_eq!(logprobs(&logits, 3, 0).top, []);
        assert_eq!(logprobs(&logits, 3, 20).top.len(), 4);
    }
}
