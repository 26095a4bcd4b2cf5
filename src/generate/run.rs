//! The token loop and its clock.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, Storage, Tensor};

use super::{FinishReason, Sampler, Timeline};
use crate::{model::CausalLm, scenario::Sampling};

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

/// Generates tokens after a prompt. Resets the model before it starts the clock.
///
/// # Errors
/// Returns an error if the prompt is empty or too long, if the model fails, or if its logits are not usable.
pub fn run(model: &mut dyn CausalLm, prompt: &[u32], request: &Request) -> Result<Timeline> {
    check_lengths(model, prompt.len(), request.new_tokens)?;
    let vocab_size = model.vocab_size();
    if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
        anyhow::bail!("the prompt contains token {id}, but the vocabulary of the model has {vocab_size} tokens");
    }

    let mut sampler = Sampler::new(request.sampling, request.seed)?;
    let mut sequence = Vec::with_capacity(prompt.len() + request.new_tokens);
    sequence.extend_from_slice(prompt);
    let mut steps = Vec::with_capacity(request.new_tokens - 1);
    let mut spent = Spent::default();
    let mut finish_reason = FinishReason::Length;
    model.reset()?;
    model.device().synchronize()?;

    let started = Instant::now();
    let mut next = step(model, prompt, 0, &mut sampler, &sequence, &mut spent)?;
    let mut last = Instant::now();
    let ttft = last - started;
    spent.waiting = Duration::ZERO;
    for _ in 1..request.new_tokens {
        if request.stop.contains(&next) {
            break;
        }
        sequence.push(next);
        let position = sequence.len() - 1;
        next = step(model, &[next], position, &mut sampler, &sequence, &mut spent)?;
        let now = Instant::now();
        steps.push(now - last);
        last = now;
    }
    if request.stop.contains(&next) {
        finish_reason = FinishReason::EndOfSequence;
    }
    sequence.push(next);
    let tokens = sequence.split_off(prompt.len());
    let Spent { sampling, waiting } = spent;
    let sampling = Some(sampling);
    Ok(Timeline { prompt_tokens: prompt.len(), ttft, steps, sampling, waiting, tokens, finish_reason })
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
#[derive(Default)]
struct Spent {
    sampling: Duration,
    waiting: Duration,
}

/// Runs one forward pass and samples the next token.
fn step(
    model: &mut dyn CausalLm,
    tokens: &[u32],
    position: usize,
    sampler: &mut Sampler,
    sequence: &[u32],
    spent: &mut Spent,
) -> Result<u32> {
    let vocab_size = model.vocab_size();
    let logits = model.forward(tokens, position)?;
    check_logits(&logits, vocab_size)?;
    let given = Instant::now();
    model.device().synchronize()?;
    let started = Instant::now();
    spent.waiting += started - given;
    let next = with_logits(&logits, |logits| sampler.sample(logits, sequence))
        .with_context(|| format!("at position {}", sequence.len()))?;
    spent.sampling += started.elapsed();
    Ok(next)
}

/// Checks that logits are as the trait promises.
pub(crate) fn check_logits(logits: &Tensor, vocab_size: usize) -> Result<()> {
    ensure!(
        logits.dims() == [vocab_size] && logits.dtype() == DType::F32,
        "the model's logits are {} of shape {:?}; f32 of shape [{vocab_size}] is needed",
        logits.dtype().as_str(),
        logits.dims()
    );
    Ok(())
}

/// Passes the logits to `body` as a slice: in place on a CPU, copied from other devices.
pub(crate) fn with_logits<T>(logits: &Tensor, use_them: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
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
        held: usize,
        vocab_size: usize,
        bad_logit: Option<f32>,
        spoil: fn(Tensor) -> candle_core::Result<Tensor>,
    }

    fn counter() -> Counter {
        Counter { held: 0, vocab_size: 50, bad_logit: None, spoil: Ok }
    }

    impl CausalLm for Counter {
        fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
            assert_eq!(position, self.held, "the position is what the cache holds");
            self.held += tokens.len();
            let mut logits = vec![0f32; self.vocab_size];
            let next = (tokens[tokens.len() - 1] as usize + 1) % self.vocab_size;
            logits[next] = self.bad_logit.unwrap_or(1.0);
            Ok((self.spoil)(Tensor::from_vec(logits, self.vocab_size, &Device::Cpu)?)?)
        }
        fn reset(&mut self) -> Result<()> {
            self.held = 0;
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
            let timeline = run(&mut model, &[3, 4, 5], &request(4, &[])).expect("runs");
            assert_eq!(timeline.tokens, [6, 7, 8, 9]);
            assert_eq!((timeline.prompt_tokens, timeline.steps.len()), (3, 3));
            assert_eq!(timeline.finish_reason, FinishReason::Length);
            assert!(timeline.sampling.is_some_and(|sampling| sampling < timeline.total()));
        }
    }

    #[test]
    fn a_sequence_ends_only_where_asked_to() {
        let timeline = run(&mut counter(), &[3], &request(30, &[9, 7])).expect("runs");
        assert_eq!(timeline.tokens, [4, 5, 6, 7]);
        assert_eq!(timeline.finish_reason, FinishReason::EndOfSequence);
        let timeline = run(&mut counter(), &[3], &request(4, &[7])).expect("runs");
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
            let error = format!("{:#}", run(&mut model, &prompt, &request).expect_err(part));
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
