//! Several sequences in one step. The candidates share one model in this process.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use candle_core::Tensor;

use super::Ratio;
use crate::{
    generate,
    measure::{LimitsOverTime, conditions::Watch},
    model::{self, Engine, ModelSpec, Part},
    runner::turns::{self, Pace},
    settings::Settings,
    workload::{Iteration, Outcome, SharedSubject, Workload},
};

/// Numbers of sequences that are tried.
const SEQUENCES: [usize; 5] = [1, 2, 4, 8, 16];

/// Length of each prompt and of each answer.
const TOKENS: usize = 64;

/// Generations of some sequences, all in the same steps. Its time is that of one sequence's share.
struct Batch {
    subject: SharedSubject,
    prompt: Vec<u32>,
    sequences: usize,
}

impl Batch {
    /// The most likely token after each sequence.
    fn step(&self, tokens: &[&[u32]], position: usize) -> Result<Vec<u32>> {
        let mut subject = self.subject.borrow_mut();
        let parts: Vec<Part> =
            tokens.iter().enumerate().map(|(sequence, tokens)| Part { sequence, tokens, position }).collect();
        let logits = subject.model.forward_batch(&parts)?;
        let likeliest = |logits: &Tensor| Ok(logits.argmax(0)?.to_scalar()?);
        logits.iter().map(likeliest).collect()
    }
}

impl Workload for Batch {
    fn iterate(&mut self) -> Result<Iteration> {
        self.subject.borrow_mut().model.reset()?;
        let started = Instant::now();
        let mut next = self.step(&vec![self.prompt.as_slice(); self.sequences], 0)?;
        for position in self.prompt.len()..self.prompt.len() + TOKENS - 1 {
            let tokens: Vec<&[u32]> = next.chunks(1).collect();
            next = self.step(&tokens, position)?;
        }
        let time = started.elapsed() / self.sequences as u32;
        self.subject.borrow_mut().model.reset()?;
        Ok(Iteration { time, peak_bytes: 0 })
    }

    fn forget_last(&mut self) {}

    fn finish(self: Box<Self>, _: &[usize], _: &LimitsOverTime) -> Outcome {
        Outcome::failed(anyhow!("a batch is compared, and has no measures"))
    }
}

/// Measures all numbers of sequences that the model holds, in turns. Returns each number but the first, with its time for one
/// sequence over that of every smaller number. Empty if the model holds one sequence, or the time is too short.
///
/// # Errors
/// Returns an error if the model cannot be loaded or fails.
pub fn measure(
    spec: &ModelSpec,
    engine: Engine,
    settings: &Settings,
    time: Duration,
) -> Result<Vec<(usize, Vec<Ratio>)>> {
    let started = Instant::now();
    let subject = model::load(spec, engine, settings.first_dtype(), settings.device, settings.seed)?;
    let (most, longest) = (subject.model.max_sequences(), subject.model.max_position_embeddings());
    if most < 2 || longest < 2 * TOKENS {
        return Ok(Vec::new());
    }
    let vocab_size = subject.model.vocab_size();
    let prompt = generate::prompt_ids(subject.tokenizer.as_ref(), vocab_size, TOKENS, settings.seed)?;
    let subject = Rc::new(RefCell::new(subject));
    let numbers: Vec<usize> = SEQUENCES.into_iter().filter(|sequences| *sequences <= most).collect();
    let batch = |sequences: &usize| Batch { subject: subject.clone(), prompt: prompt.clone(), sequences: *sequences };
    let mut members: Vec<Batch> = numbers.iter().map(batch).collect();
    // The time of a sequence in a large batch is not known, but it is at most that of a sequence alone.
    let alone = members[0].iterate()?.time;
    let round = alone * numbers.iter().sum::<usize>() as u32;
    let left = time.saturating_sub(started.elapsed());
    let Some(plan) = plan(left, round) else { return Ok(Vec::new()) };
    let watch = Watch::start(settings.device, Vec::new());
    let members = members.into_iter().map(|batch| Ok(Box::new(batch) as Box<dyn Workload>)).collect();
    let taken = turns::take(members, plan, |_| (), |run| watch.around(run).1);
    let taken = taken.into_iter().collect::<Result<Vec<_>>>()?;
    let ratios = |place: usize| {
        let smaller = taken[..place].iter().map(|other| turns::paired(&taken[place], other).map(Ratio::from));
        smaller.collect::<Option<Vec<_>>>().map(|ratios| (numbers[place], ratios))
    };
    (1..numbers.len()).map(|place| ratios(place).ok_or_else(|| anyhow!("no sample was taken"))).collect()
}

/// Ten samples of one iteration, or as many as there is time for; `None` if they are too few.
fn plan(left: Duration, round: Duration) -> Option<Pace> {
    let rounds = (left.as_secs_f64() / round.as_secs_f64().max(1e-9)) as usize;
    let samples = rounds.checked_sub(1).filter(|samples| *samples >= super::contest::FEWEST)?.min(10);
    Some(Pace {
        warm_up: Duration::from_millis(1),
        warm_ups: 1,
        measuring: Duration::from_millis(1),
        iterations: None,
        samples,
        block: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_sequences_is_compared_with_every_smaller_one() {
        let settings = Settings::default();
        let fixture = concat!("path:", env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");
        let spec: ModelSpec = fixture.parse().expect("a specification");
        let ratios = measure(&spec, Engine::Tuned, &settings, Duration::from_secs(600)).expect("ratios");
        let numbers: Vec<usize> = ratios.iter().map(|(sequences, _)| *sequences).collect();
        assert_eq!(numbers, SEQUENCES[1..]);
        assert!(ratios.iter().enumerate().all(|(place, (_, ratios))| ratios.len() == place + 1));
        let stock = measure(&spec, Engine::Stock, &settings, Duration::from_secs(600)).expect("one sequence");
        assert!(stock.is_empty());
        assert!(measure(&spec, Engine::Tuned, &settings, Duration::ZERO).expect("no time").is_empty());
    }
}
