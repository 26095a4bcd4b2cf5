//! The bounded queue between clients and the engine.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::scenario::Sampling;

/// One sequence to generate.
pub struct Job {
    pub prompt: Arc<[u32]>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// Ids that end the sequence.
    pub stop: Arc<[u32]>,
    /// New tokens before which no id ends the sequence.
    pub min_new_tokens: usize,
    /// Share of the largest probability that a token must have to be drawn; 0 for all.
    pub min_p: f32,
    /// Number of alternatives whose log-probabilities are reported, if any are.
    pub logprobs: Option<usize>,
    /// The log-probabilities of the prompt are reported too. It is then computed token by token.
    pub scores_prompt: bool,
    /// Index of the choice in its request.
    pub choice: usize,
    pub events: mpsc::Sender<(usize, Event)>,
    /// Set when this choice is not needed any more, for example because its text contains a stop string.
    pub cancelled: Arc<AtomicBool>,
}

impl Job {
    /// Returns whether nobody waits for the result.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.events.is_closed()
    }

    /// The channel has room for all events of its request, so this fails only if the client has left.
    pub fn send(&self, event: Event) {
        let _ = self.events.try_send((self.choice, event));
    }
}

/// News of a sequence.
#[derive(Debug)]
pub enum Event {
    /// It has a place in the batch. This many tokens of its prompt were in the cache.
    Started { cached_tokens: usize },
    /// Its next token.
    Token { id: u32, logprobs: Option<Logprobs>, finish: Option<Finish> },
    /// A token of the prompt. The first has no probability.
    Prompt { id: u32, logprobs: Option<Logprobs> },
    /// No new token was asked for, and the prompt is computed.
    Ended,
    /// It can't go on.
    Failed(String),
}

/// Log-probabilities of a token and of the likeliest ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    pub chosen: f32,
    /// Likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end-of-sequence token or a stop string.
    Stop,
    /// The limit of new tokens.
    Length,
}

/// Why jobs are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Full,
    /// The server is ending.
    Draining,
    /// The engine has failed.
    Closed,
}

pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    max_waiting: usize,
}

struct State {
    waiting: VecDeque<Job>,
    /// Why nothing more is accepted.
    refusal: Option<Refusal>,
}

impl Queue {
    pub fn new(max_waiting: usize) -> Self {
        let state = State { waiting: VecDeque::new(), refusal: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), max_waiting }
    }

    /// No code that holds the lock leaves the state half changed, so a panic elsewhere does no harm.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds all jobs of a request, or none.
    pub fn push(&self, jobs: Vec<Job>) -> Result<(), Refusal> {
        let mut state = self.state();
        if let Some(refusal) = state.refusal {
            return Err(refusal);
        }
        if state.waiting.len() + jobs.len() > self.max_waiting {
            // Clients that have left take no room.
            state.waiting.retain(|job| !job.is_cancelled());
            if state.waiting.len() + jobs.len() > self.max_waiting {
                return Err(Refusal::Full);
            }
        }
        state.waiting.extend(jobs);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job that somebody waits for.
    pub fn pop(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            let job = state.waiting.pop_front()?;
            if !job.is_cancelled() {
                return Some(job);
            }
        }
    }

    /// Waits for a job. Returns `false` if none is left and none will come.
    pub fn wait(&self) -> bool {
        let is_idle = |state: &mut State| state.waiting.is_empty() && state.refusal.is_none();
        let state = self.changed.wait_while(self.state(), is_idle).unwrap_or_else(PoisonError::into_inner);
        !state.waiting.is_empty()
    }

    /// Number of waiting jobs.
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Accepts nothing more. Waiting jobs still run.
    pub fn drain(&self) {
        self.state().refusal.get_or_insert(Refusal::Draining);
        self.changed.notify_one();
    }

    /// Accepts nothing more and drops the waiting jobs, because the engine has ended.
    pub fn close(&self) {
        let mut state = self.state();
        state.refusal.get_or_insert(Refusal::Closed);
        state.waiting.clear();
    }

    /// Why jobs are refused now, the full queue aside.
    pub fn refusal(&self) -> Option<Refusal> {
        self.state().refusal
    }
}
