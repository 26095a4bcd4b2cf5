//! Loads on the scheduler of the server, in this process: requests arrive while others are answered.

use super::Tier;

/// One benchmark of a load, which is a Criterion group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingLoad {
    /// First part of the benchmark id.
    pub key: &'static str,
    /// The latency that a sample consists of.
    pub latency: Latency,
    /// The requests.
    pub traffic: Traffic,
    /// The smallest tier that runs it.
    pub tier: Tier,
    /// A short description for `candlepower list`.
    pub purpose: &'static str,
}

impl ServingLoad {
    /// Tokens of a request that its latency is spent on: a prompt of mean length, or the tokens after the first.
    pub fn counted_tokens(&self) -> usize {
        let Traffic { shared_prefix_tokens, own_tokens: (low, high), new_tokens, .. } = self.traffic;
        match self.latency {
            Latency::Ttft => (shared_prefix_tokens + (low + high) as usize) / 2,
            Latency::Decode => new_tokens as usize - 1,
        }
    }
}

/// A latency of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// From the arrival of a request to its first token.
    Ttft,
    /// From the first token of a request to its last: TPOT times the tokens after the first.
    Decode,
}

/// Requests to a scheduler, and the limits of its steps. Arrivals are a Poisson process whose clock is the number of steps, so
/// that a load does the same work on every machine and never waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Number of requests.
    pub requests: u64,
    /// Mean number of steps between two arrivals.
    pub steps_between: f64,
    /// Tokens that every second prompt begins with: whole pages of the cache, which sequences can share.
    pub shared_prefix_tokens: usize,
    /// Least and most tokens of a prompt after the shared ones.
    pub own_tokens: (u32, u32),
    /// Tokens of each answer.
    pub new_tokens: u32,
    /// Most sequences of a step. Further requests wait.
    pub max_sequences: usize,
    /// Most tokens of a step, prompts and answers together. Longer prompts run in chunks.
    pub step_tokens: usize,
}

impl Traffic {
    /// Tokens in the longest sequence at its end.
    pub fn total_tokens(&self) -> usize {
        self.shared_prefix_tokens + (self.own_tokens.1 + self.new_tokens) as usize
    }
}

/// Seven tenths of what the steps can hold arrive, so requests wait at times, and the batch is rarely empty.
const TRAFFIC: Traffic = Traffic {
    requests: 10,
    steps_between: 3.0,
    shared_prefix_tokens: 64,
    own_tokens: (8, 40),
    new_tokens: 8,
    max_sequences: 4,
    step_tokens: 64,
};

/// Latencies under load.
#[rustfmt::skip]
pub const SERVING_LOAD: &[ServingLoad] = &[
    ServingLoad { key: "serving_load_tpot", latency: Latency::Decode, traffic: TRAFFIC, tier: Tier::Quick, purpose: "time between tokens under load" },
    ServingLoad { key: "serving_load_ttft", latency: Latency::Ttft, traffic: TRAFFIC, tier: Tier::Quick, purpose: "time to first token under load" },
];
