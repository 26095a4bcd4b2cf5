//! A load on the scheduler without clients: requests arrive after given numbers of steps. The time between steps, in which a
//! server would wait or speak HTTP, is left out, so the same requests do the same work in every replay.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::mpsc;

use super::{
    engine::{Batch, Engine},
    metrics::Metrics,
    queue::{Event, Job, Queue},
};
use crate::{measure::pauses, model::CausalLm, scenario::Sampling};

/// A request of a load.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Number of steps that begin before it arrives. Steps with nothing to run count too, and take no time.
    pub after_steps: u64,
    pub prompt: Arc<[u32]>,
    pub new_tokens: usize,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Prompt tokens that were in the cache.
    pub cached_tokens: usize,
    pub tokens: Vec<u32>,
    /// Time from the arrival of the request to the end of the step that made each token.
    pub times: Vec<Duration>,
}

impl Answer {
    /// Time to first token.
    pub fn ttft(&self) -> Duration {
        self.times.first().copied().unwrap_or_default()
    }

    /// Time to the last token.
    pub fn e2e(&self) -> Duration {
        self.times.last().copied().unwrap_or_default()
    }

    /// Times between successive tokens.
    pub fn itl(&self) -> impl Iterator<Item = Duration> + '_ {
        self.times.windows(2).map(|pair| pair[1] - pair[0])
    }
}

/// The result of a load.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The answers, in the order of the requests.
    pub answers: Vec<Answer>,
    /// Time of all steps.
    pub duration: Duration,
}

/// Answers requests, which must be in the order of their arrival, and decodes greedily. The model must be empty, and is left
/// empty.
///
/// # Errors
/// If the model fails.
pub fn replay(model: &mut dyn CausalLm, batch: Batch, arrivals: &[Arrival]) -> Result<Replay> {
    let (queue, metrics) = (Queue::new(arrivals.len()), Metrics::default());
    let mut engine = Engine::new(model, batch, &queue, &metrics);
    let played = play(&mut engine, &queue, arrivals);
    engine.end()?;
    played
}

fn play(engine: &mut Engine, queue: &Queue, arrivals: &[Arrival]) -> Result<Replay> {
    // One event says that a request was admitted, and one follows for each token.
    let events = arrivals.iter().map(|arrival| 1 + arrival.new_tokens).sum::<usize>();
    let (sender, mut receiver) = mpsc::channel(events.max(1));
    let job = |choice: usize, arrival: &Arrival| Job {
        prompt: arrival.prompt.clone(),
        max_new_tokens: arrival.new_tokens,
        sampling: Sampling::GREEDY,
        seed: 0,
        stop: Arc::new([]),
        min_new_tokens: 0,
        min_p: 0.0,
        logprobs: None,
        scores_prompt: false,
        choice,
        events: sender.clone(),
        cancelled: Arc::default(),
    };
    let mut waiting = arrivals.iter().enumerate().peekable();
    let mut arrived: Vec<Instant> = Vec::with_capacity(arrivals.len());
    let mut answers = vec![Answer { cached_tokens: 0, tokens: Vec::new(), times: Vec::new() }; arrivals.len()];
    let (mut steps, mut waited) = (0, Duration::ZERO);
    // A clock that stands still during the turns of another process.
    let now = |waited: Duration| Instant::now() - waited;
    let started = now(waited);
    loop {
        while let Some((number, arrival)) = waiting.next_if(|(_, arrival)| arrival.after_steps <= steps) {
            arrived.push(now(waited));
            queue.push(vec![job(number, arrival)]).map_err(|refusal| anyhow!("the queue refuses: {refusal:?}"))?;
        }
        let ran = engine.turn();
        let now = now(waited);
        while let Ok((number, event)) = receiver.try_recv() {
            let answer = answers.get_mut(number).context("an event without a request")?;
            match event {
                Event::Started { cached_tokens } => answer.cached_tokens = cached_tokens,
                Event::Token { id, .. } => {
                    answer.tokens.push(id);
                    answer.times.push(now - arrived[number]);
                }
                Event::Prompt { .. } | Event::Ended => {}
                Event::Failed(reason) => bail!("request {number}: {reason}"),
            }
        }
        steps += 1;
        waited += pauses::pass();
        match waiting.peek() {
            Some((_, next)) if !ran => steps = steps.max(next.after_steps),
            None if !ran => return Ok(Replay { answers, duration: now - started }),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{DeviceChoice, Precision},
        model::{self, Engine as Implementation, ModelSpec},
    };

    fn arrival(after_steps: u64, prompt: Vec<u32>) -> Arrival {
        Arrival { after_steps, prompt: prompt.into(), new_tokens: 6 }
    }

    fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
        (0..tokens).map(|place| (31 * seed + 7 * place * place + 3) % 1000).collect()
    }

    #[test]
    fn answers_are_those_of_each_prompt_alone_and_times_follow_the_steps() {
        let shared = prompt(9, 64);
        let with = |seed: u32| [shared.clone(), prompt(seed, 5)].concat();
        let arrivals = [
            arrival(0, with(1)),
            arrival(1, prompt(2, 100)),
            arrival(4, with(3)),
            arrival(4, prompt(4, 7)),
            // Long after the others have ended.
            arrival(1000, with(5)),
        ];
        for engine in Implementation::ALL {
            let spec = ModelSpec::Mini("llama-mini");
            let subject = model::load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 42).expect("a model");
            let mut model = subject.model;
            let batch = Batch::of(model.as_mut(), 3, 32).expect("a batch");
            assert_eq!(batch.sequences, if engine == Implementation::Tuned { 3 } else { 1 });
            let load = replay(model.as_mut(), batch, &arrivals).expect("a replay");
            let again = replay(model.as_mut(), batch, &arrivals).expect("the model was left empty");
            for (number, (arrival, answer)) in arrivals.iter().zip(&load.answers).enumerate() {
                let only = [Arrival { after_steps: 0, ..arrival.clone() }];
                let alone = replay(model.as_mut(), batch, &only).expect("a replay").answers.remove(0);
                assert_eq!((answer.tokens.len(), answer.times.len()), (6, 6));
                assert_eq!(answer.tokens, alone.tokens, "{engine}: request {number}");
                let again = &again.answers[number];
                assert_eq!((&answer.tokens, answer.cached_tokens), (&again.tokens, again.cached_tokens));
                assert!(answer.times.is_sorted() && answer.times[0] > Duration::ZERO);
                assert!(answer.times[5] <= load.duration);
            }
            // The third request shares the page of the first, which runs, and the last that of the third, which has ended.
            let cached: Vec<usize> = load.answers.iter().map(|answer| answer.cached_tokens).collect();
            assert_eq!(cached, if engine == Implementation::Tuned { [0, 0, 64, 0, 64] } else { [0; 5] }, "{engine}");
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_fails_and_leaves_the_model_empty() {
        let spec = ModelSpec::Mini("llama-mini");
        let tuned = Implementation::Tuned;
        let mut model = model::load(&spec, tuned, Precision::F32, DeviceChoice::Cpu, 42).expect("a model").model;
        let batch = Batch::of(model.as_mut(), 4, 1 << 14).expect("a batch");
        let long = arrival(0, vec![1; model.max_position_embeddings() + 1]);
        let error = replay(model.as_mut(), batch, &[long, arrival(0, vec![1, 2])]).expect_err("too long").to_string();
        assert!(error.starts_with("request 0: "), "{error}");
        assert!(replay(model.as_mut(), batch, &[arrival(0, vec![1, 2])]).is_ok());
        assert!(replay(model.as_mut(), batch, &[]).expect("nothing to do").answers.is_empty());
    }
}
