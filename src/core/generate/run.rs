//! The token loop and its clock.

use std::{
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use tracing::trace_span;

use super::{FinishReason, Sampler, Timeline};
use crate::{
    measure::{
        CpuTime, allocator,
        pauses::{self, Moment},
    },
    model::{CausalLm, Part},
    scenario::Sampling,
};

/// The span of the forward pass on a prompt and of the choice of the first token, for whoever traces.
pub const PREFILL: &str = "prefill";
/// The same for each later token.
pub const DECODE: &str = "decode";

/// The span of the forward pass alone. Its own time is that of the model outside of its spans.
pub const MODEL: &str = "model";

/// A request for tokens that follow a prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of tokens to generate.
    pub new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Seed of the sampling.
    pub seed: u64,
    /// Ids that end the sequence. Empty by default, because runs of different lengths must not be compared.
    pub stop: Vec<u32>,
}

/// Generates tokens after each prompt of a batch, whose sequences advance together: in each step, by a token each. Resets the
/// model before it starts the clock. The sampler of the first sequence has the seed of the request, and each other one the seed
/// that follows.
///
/// A model that holds fewer sequences than the batch has generates them in parts, one after the other. The time of a step is
/// then the sum of the times of its parts.
///
/// # Errors
/// Returns an error if a prompt is empty or too long, if the model fails, or if its logits are not usable.
pub fn run(model: &mut dyn CausalLm, prompts: &[Vec<u32>], request: &Request) -> Result<Timeline> {
    let mut run = Run::new(model, prompts, request)?;
    run.advance(model, Duration::MAX)?;
    Ok(run.end())
}

/// A generation that has begun. Something else may run between two of its steps, except on the same model.
pub struct Run {
    request: Request,
    sequences: Vec<Sequence>,
    /// The sequences that the model holds.
    part: Range<usize>,
    /// Number of decode steps of these sequences so far; `None` before their prompts.
    steps: Option<usize>,
    timeline: Timeline,
}

impl Run {
    /// Begins a generation: see [`run`].
    ///
    /// # Errors
    /// Returns an error if a prompt is empty or too long, or the model cannot be reset.
    pub fn new(model: &mut dyn CausalLm, prompts: &[Vec<u32>], request: &Request) -> Result<Self> {
        let (vocab_size, at_once) = (model.vocab_size(), model.max_sequences().max(1));
        let mut sequences = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            check_lengths(model, prompt.len(), request.new_tokens)?;
            if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
                anyhow::bail!(
                    "the prompt contains token {id}, but the vocabulary of the model has {vocab_size} tokens"
                );
            }
            let seed = request.seed.wrapping_add(number as u64);
            sequences.push(Sequence::new(number % at_once, prompt, request, seed)?);
        }
        model.reset()?;
        Ok(Self {
            request: request.clone(),
            part: 0..at_once.min(sequences.len()),
            sequences,
            steps: None,
            timeline: Timeline {
                sampling: Some(Duration::ZERO),
                allocations: allocator::peak_bytes().map(|_| (0, 0)),
                ..Timeline::default()
            },
        })
    }

    /// Runs steps until this time has passed, at least one. Returns whether the generation has ended. `model` is that of
    /// [`Self::new`].
    ///
    /// # Errors
    /// Returns an error if the model fails, or if its logits are not usable.
    pub fn advance(&mut self, model: &mut dyn CausalLm, time: Duration) -> Result<bool> {
        let (began, cpu) = (Instant::now(), CpuTime::now());
        let mut has_ended = self.part.is_empty();
        while !has_ended {
            self.step(model)?;
            has_ended = self.pass_on(model)?;
            if began.elapsed() >= time {
                break;
            }
        }
        if let Some((before, after)) = cpu.zip(CpuTime::now()) {
            self.timeline.cpu = Some(self.timeline.cpu.unwrap_or_default() + (after - before));
        }
        Ok(has_ended)
    }

    /// The result of a generation that has ended.
    pub fn end(self) -> Timeline {
        let Self { request, sequences, mut timeline, .. } = self;
        let has_ended = |sequence: &Sequence| sequence.has_ended(&request);
        timeline.finish_reason =
            if sequences.iter().all(has_ended) { FinishReason::EndOfSequence } else { FinishReason::Length };
        timeline.prompt_tokens = sequences.first().map_or(0, |sequence| sequence.prompt_tokens);
        timeline.tokens =
            sequences.into_iter().map(|mut sequence| sequence.tokens.split_off(sequence.prompt_tokens)).collect();
        timeline
    }

    /// Runs the prompts of the sequences that the model holds, or a decode step.
    fn step(&mut self, model: &mut dyn CausalLm) -> Result<()> {
        let Self { request, sequences, part, steps, timeline, .. } = self;
        let mut active: Vec<&mut Sequence> = sequences[part.clone()].iter_mut().collect();
        match steps {
            None => {
                model.device().synchronize()?;
                // An observation reads the limits just before the prompt and just after it.
                pauses::pass_early();
                let started = Instant::now();
                let Spent { sampling, .. } = trace_span!(PREFILL).in_scope(|| append(model, &mut active))?;
                timeline.began.get_or_insert(started);
                timeline.ttft += started.elapsed();
                timeline.sampling = timeline.sampling.map(|before| before + sampling);
                pauses::pass_early();
                *steps = Some(0);
            }
            Some(number) => {
                active.retain(|sequence| !sequence.has_ended(request));
                // Each generation reads the weights once, so that runs do not differ in what their MBU divides by.
                let is_due = timeline.weight_readings.is_empty() && 2 * (*number + 1) >= request.new_tokens;
                let moment = || Moment::Decode(model.weights());
                let pause = if is_due { pauses::pass_now(moment) } else { pauses::pass_at(moment) };
                let read = pause.and_then(|pause| Some((pause.began, pause.read_bytes_per_s?)));
                timeline.weight_readings.extend(read);
                let before = allocator::allocations();
                let started = Instant::now();
                let Spent { sampling, waiting } = trace_span!(DECODE).in_scope(|| append(model, &mut active))?;
                let ended = Instant::now();
                let after = allocator::allocations();
                if let Some((count, bytes)) = &mut timeline.allocations {
                    (*count, *bytes) = (*count + after.0 - before.0, *bytes + after.1 - before.1);
                }
                match timeline.steps.get_mut(*number) {
                    Some(step) => *step += ended - started,
                    None => {
                        timeline.steps.push(ended - started);
                        timeline.step_ends.push(ended);
                    }
                }
                timeline.sampling = timeline.sampling.map(|before| before + sampling);
                timeline.waiting += waiting;
                *number += 1;
            }
        }
        Ok(())
    }

    /// Passes to the next sequences if those that the model holds have their tokens. Returns whether none is left.
    fn pass_on(&mut self, model: &mut dyn CausalLm) -> Result<bool> {
        let Self { request, sequences, part, steps, .. } = self;
        let is_full = *steps == Some(request.new_tokens - 1);
        if !is_full && !sequences[part.clone()].iter().all(|sequence| sequence.has_ended(request)) {
            return Ok(false);
        }
        // The last sequences stay, because a caller may ask for what the model knows about them.
        if part.end == sequences.len() {
            return Ok(true);
        }
        sequences[part.clone()].iter().try_for_each(|sequence| model.release(sequence.number))?;
        *part = part.end..(part.end + part.len()).min(sequences.len());
        *steps = None;
        Ok(false)
    }
}

/// A sequence that grows.
struct Sequence {
    /// Its number in the model.
    number: usize,
    prompt_tokens: usize,
    /// The prompt and the tokens that follow it.
    tokens: Vec<u32>,
    /// How many of the tokens the model holds.
    held: usize,
    sampler: Sampler,
}

impl Sequence {
    fn new(number: usize, prompt: &[u32], request: &Request, seed: u64) -> Result<Self> {
        let mut tokens = Vec::with_capacity(prompt.len() + request.new_tokens);
        tokens.extend_from_slice(prompt);
        Ok(Self {
            number,
            prompt_tokens: prompt.len(),
            tokens,
            held: 0,
            sampler: Sampler::new(request.sampling, seed)?,
        })
    }

    /// Returns whether the last token ends the sequence.
    fn has_ended(&self, request: &Request) -> bool {
        self.tokens.last().is_some_and(|token| request.stop.contains(token))
    }

    /// The tokens that the model does not hold yet.
    fn part(&self) -> Part<'_> {
        Part { sequence: self.number, tokens: &self.tokens[self.held..], position: self.held }
    }
}

/// Checks that a generation has a prompt and at least one new token, and fits in the model. Callers check before they
/// make a prompt, so that a mistyped length does not create a huge one.
///
/// # Errors
/// Returns an error with both lengths in one line.
pub fn check_lengths(model: &dyn CausalLm, prompt_tokens: usize, new_tokens: usize) -> Result<()> {
    check_lengths_within(model.max_position_embeddings(), prompt_tokens, new_tokens)
}

/// Does the same for a model whose longest sequence has `longest` tokens.
///
/// # Errors
/// See [`check_lengths`]. Lengths that are too large for the model are [`TooLong`].
pub fn check_lengths_within(longest: usize, prompt_tokens: usize, new_tokens: usize) -> Result<()> {
    ensure!(prompt_tokens > 0, "the prompt is empty: at least one token is needed");
    ensure!(new_tokens > 0, "the number of new tokens is 0: request at least one");
    let fits = prompt_tokens.checked_add(new_tokens).is_some_and(|tokens| tokens <= longest);
    if fits { Ok(()) } else { Err(TooLong { prompt_tokens, new_tokens, longest }.into()) }
}

/// A generation that is longer than the model's longest sequence.
#[derive(Debug)]
pub struct TooLong {
    prompt_tokens: usize,
    new_tokens: usize,
    longest: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_tokens, new_tokens, longest } = self;
        write!(f, "{prompt_tokens} prompt and {new_tokens} new tokens are more than the model's {longest}")
    }
}

impl std::error::Error for TooLong {}

/// Durations of the parts of one step.
struct Spent {
    sampling: Duration,
    waiting: Duration,
}

/// Appends the newest tokens of all sequences in one step, and samples the next token of each.
fn append(model: &mut dyn CausalLm, sequences: &mut [&mut Sequence]) -> Result<Spent> {
    let vocab_size = model.vocab_size();
    let parts: Vec<Part> = sequences.iter().map(|sequence| sequence.part()).collect();
    let logits = trace_span!(MODEL).in_scope(|| model.forward_batch(&parts))?;
    ensure!(
        logits.len() == sequences.len(),
        "the model gave {} rows of logits for a batch of {}",
        logits.len(),
        sequences.len()
    );
    logits.iter().try_for_each(|logits| check_logits(logits, vocab_size))?;
    let given = Instant::now();
    model.device().synchronize()?;
    let started = Instant::now();
    let _sampling = trace_span!("sampling").entered();
    for (sequence, logits) in sequences.iter_mut().zip(&logits) {
        let Sequence { tokens, held, sampler, .. } = &mut **sequence;
        let next = with_logits(logits, |logits| sampler.sample(logits, tokens))
            .with_context(|| format!("at position {}", tokens.len()))?;
        *held = tokens.len();
        tokens.push(next);
    }
    Ok(Spent { sampling: started.elapsed(), waiting: started - given })
}

/// Checks that logits are as the trait promises.
pub fn check_logits(logits: &Tensor, vocab_size: usize) -> Result<()> {
    ensure!(
        logits.dims() == [vocab_size] && logits.dtype() == DType::F32,
        "the model's logits are {} of shape {:?}; f32 of shape [{vocab_size}] is needed",
        logits.dtype().as_str(),
        logits.dims()
    );
    Ok(())
}

/// Passes the logits to `body` as a slice: in place on a CPU, copied from other devices.
pub fn with_logits<T>(logits: &Tensor, use_them: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = logits.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return use_them(&values[start..end]);
    }
    drop(storage);
    use_them(&logits.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::Footprint;

    /// Counts up: the next token is the last plus one. Checks that the loop calls it as the trait promises.
    struct Counter {
        /// Number of tokens of each sequence.
        held: Vec<usize>,
        /// Number of parts in each step.
        parts: Vec<usize>,
        vocab_size: usize,
        bad_logit: Option<f32>,
        spoil: fn(Tensor) -> candle_core::Result<Tensor>,
    }

    fn counter() -> Counter {
        Counter { held: vec![0], parts: Vec::new(), vocab_size: 50, bad_logit: None, spoil: Ok }
    }

    impl Counter {
        fn append(&mut self, part: &Part) -> Result<Tensor> {
            let held = &mut self.held[part.sequence];
            assert_eq!(part.position, *held, "the position is what the cache holds");
            *held += part.tokens.len();
            let mut logits = vec![0f32; self.vocab_size];
            let next = (part.tokens[part.tokens.len() - 1] as usize + 1) % self.vocab_size;
            logits[next] = self.bad_logit.unwrap_or(1.0);
            Ok((self.spoil)(Tensor::from_vec(logits, self.vocab_size, &Device::Cpu)?)?)
        }
    }

    impl CausalLm for Counter {
        fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
            Ok(self.forward_batch(&[Part { sequence: 0, tokens, position }])?.remove(0))
        }
        fn max_sequences(&self) -> usize {
            self.held.len()
        }
        fn forward_batch(&mut self, parts: &[Part]) -> Result<Vec<Tensor>> {
            self.parts.push(parts.len());
            parts.iter().map(|part| self.append(part)).collect()
        }
        fn release(&mut self, sequence: usize) -> Result<()> {
            self.held[sequence] = 0;
            Ok(())
        }
        fn reset(&mut self) -> Result<()> {
            self.held.fill(0);
            Ok(())
        }
        fn footprint(&self) -> Footprint {
            Footprint {
                parameters: 0,
                weight_bytes: 0,
                step_weight_bytes: 0,
                cache_bytes_per_token: 0,
                flops_per_token: 0,
                head_flops: 0,
            }
        }
        fn vocab_size(&self) -> usize {
            self.vocab_size
        }
        fn max_position_embeddings(&self) -> usize {
            40
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }

    fn request(new_tokens: usize, stop: &[u32]) -> Request {
        Request { new_tokens, sampling: Sampling::GREEDY, seed: 0, stop: stop.to_vec() }
    }

    #[test]
    fn tokens_and_times_are_as_many_as_asked_for() {
        let mut model = counter();
        for _ in 0..2 {
            let timeline = run(&mut model, &[vec![3, 4, 5]], &request(4, &[])).expect("runs");
            assert_eq!(timeline.tokens, [[6, 7, 8, 9]]);
            assert_eq!((timeline.prompt_tokens, timeline.steps.len()), (3, 3));
            assert_eq!(timeline.finish_reason, FinishReason::Length);
            assert!(timeline.sampling.is_some_and(|sampling| sampling < timeline.total()));
        }
    }

    /// Five sequences of which the model holds two at once: three parts, each with a prompt step and two more.
    #[test]
    fn a_batch_runs_in_parts_that_the_model_holds() {
        let mut model = Counter { held: vec![0; 2], ..counter() };
        let prompts: Vec<Vec<u32>> = (0..5).map(|number| vec![10 * number, 10 * number + 3]).collect();
        for _ in 0..2 {
            model.parts.clear();
            let timeline = run(&mut model, &prompts, &request(3, &[])).expect("runs");
            assert_eq!(timeline.tokens, [[4, 5, 6], [14, 15, 16], [24, 25, 26], [34, 35, 36], [44, 45, 46]]);
            assert_eq!(model.parts, [2, 2, 2, 2, 2, 2, 1, 1, 1]);
            assert_eq!((timeline.prompt_tokens, timeline.steps.len()), (2, 2));
        }
    }

    /// A sequence that has ended takes no part in later steps.
    #[test]
    fn sequences_of_a_batch_end_each_for_itself() {
        let mut model = Counter { held: vec![0; 2], ..counter() };
        let timeline = run(&mut model, &[vec![3], vec![5]], &request(9, &[7])).expect("runs");
        assert_eq!(timeline.tokens, [vec![4, 5, 6, 7], vec![6, 7]]);
        assert_eq!(model.parts, [2, 2, 1, 1]);
        assert_eq!((timeline.steps.len(), timeline.finish_reason), (3, FinishReason::EndOfSequence));
    }

    /// The steps of the scenarios that sample, in turns with those of `medium` on the same model. `cargo test --release --lib --
    /// --ignored --nocapture sampled_steps` prints the ratios for the shapes of published models in bf16.
    #[test]
    #[ignore = "takes five minutes, and the machine must do nothing else"]
    fn sampled_steps_take_as_long_as_greedy_ones() {
        use crate::{
            device::{DeviceChoice, Precision},
            model::{self, Engine, ModelSpec},
            scenario::GENERATION,
        };

        let prompt: Vec<u32> = (1..=256).collect();
        for shape in ["llama-3.2-1b", "qwen3-1.7b", "gemma3-1b"] {
            let spec = ModelSpec::Synthetic(shape);
            let subject = model::load(&spec, Engine::Tuned, Precision::BF16, DeviceChoice::Cpu, 42);
            let mut model = subject.expect(shape).model;
            let keys = ["medium", "sampled", "full-pipe"];
            let mut number = 0..keys.len();
            let mut sequences = keys.map(|key| {
                let row = GENERATION.iter().find(|row| row.key == key).expect(key);
                let request = Request { sampling: row.sampling, ..request(row.new_tokens, &[]) };
                Sequence::new(number.next().expect("a number"), &prompt, &request, request.seed).expect(key)
            });
            let mut steps = [const { Vec::new() }; 3];
            for _ in 0..256 {
                for (sequence, steps) in sequences.iter_mut().zip(&mut steps) {
                    let began = Instant::now();
                    append(&mut *model, &mut [sequence]).expect(shape);
                    steps.push(began.elapsed().as_secs_f64());
                }
            }
            let [greedy, sampled @ ..] = &steps;
            for (key, steps) in keys[1..].iter().zip(sampled) {
                let mut ratios: Vec<f64> = steps.iter().zip(greedy).map(|(step, greedy)| step / greedy).collect();
                ratios.sort_unstable_by(f64::total_cmp);
                let quartiles = [1, 2, 3].map(|quarter| ratios[ratios.len() * quarter / 4]);
                let whole = steps.iter().sum::<f64>() / greedy.iter().sum::<f64>();
                println!("{shape}, {key}: the whole {whole:.3}, quartiles of the ratios of steps {quartiles:.3?}");
                assert!((whole - 1.0).abs() < 0.03, "{shape}, {key}");
            }
        }
    }

    #[test]
    fn a_sequence_ends_only_where_asked_to() {
        let timeline = run(&mut counter(), &[vec![3]], &request(30, &[9, 7])).expect("runs");
        assert_eq!(timeline.tokens, [[4, 5, 6, 7]]);
        assert_eq!(timeline.finish_reason, FinishReason::EndOfSequence);
        let timeline = run(&mut counter(), &[vec![3]], &request(4, &[7])).expect("runs");
        assert_eq!(timeline.finish_reason, FinishReason::EndOfSequence);
    }

    #[test]
    fn what_can_not_run_is_said_in_one_line() {
        let nan = Counter { bad_logit: Some(f32::NAN), ..counter() };
        let batched = Counter { spoil: |logits| logits.unsqueeze(0), ..counter() };
        let narrow = Counter { spoil: |logits| logits.narrow(0, 0, 49), ..counter() };
        let halved = Counter { spoil: |logits| logits.to_dtype(DType::F16), ..counter() };
        for (mut model, prompt, request, part) in [
            (counter(), vec![], request(1, &[]), "the prompt is empty"),
            (counter(), vec![1], request(0, &[]), "the number of new tokens is 0"),
            (counter(), vec![1; 38], request(3, &[]), "38 prompt and 3 new tokens are more than the model's 40"),
            (counter(), vec![1; 3], request(usize::MAX, &[]), "new tokens are more than the model's 40"),
            (batched, vec![1], request(1, &[]), "f32 of shape [1, 50]; f32 of shape [50] is needed"),
            (narrow, vec![1], request(1, &[]), "f32 of shape [49]; f32 of shape [50] is needed"),
            (halved, vec![1], request(1, &[]), "f16 of shape [50]; f32 of shape [50] is needed"),
            (counter(), vec![50], request(1, &[]), "token 50, but the vocabulary of the model has 50 tokens"),
            (nan, vec![1], request(1, &[]), "logits are not finite"),
        ] {
            let error = format!("{:#}", run(&mut model, &[prompt], &request).expect_err(part));
            assert!(error.contains(part), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn logits_are_lent_wherever_they_lie() {
        let table = Tensor::arange(0f32, 12., &Device::Cpu).and_then(|t| t.reshape((3, 4))).expect("a table");
        let row = table.get(1).expect("a row");
        let column = table.t().and_then(|t| t.get(1)).expect("a column");
        for (logits, expected) in [(row, vec![4., 5., 6., 7.]), (column, vec![1., 5., 9.])] {
            with_logits(&logits, |found| {
                assert_eq!(found, expected);
                Ok(())
            })
            .expect("logits");
        }
    }
}
