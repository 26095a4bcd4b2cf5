//! What one generation leaves behind.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times and tokens of one generation. Every duration ends with the device idle.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    pub prompt_tokens: usize,
    /// Time to first token: prompt in to first token out, choosing it included.
    pub ttft: Duration,
    /// Inter-token latencies: one for each token after the first, choosing it included.
    pub steps: Vec<Duration>,
    /// The part of the whole that went into choosing tokens, logits to id.
    pub sampling: Duration,
    /// The part of the steps in which the device had all its work and was waited for. Of a processor, next to nothing.
    pub waiting: Duration,
    /// The generated ids.
    pub tokens: Vec<u32>,
    pub finish_reason: FinishReason,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// As many tokens as were asked for.
    Length,
    /// An end-of-sequence token, where those are obeyed.
    EndOfSequence,
}

impl Timeline {
    /// End-to-end time: prompt in to last token out.
    pub fn total(&self) -> Duration {
        self.ttft + self.steps.iter().sum::<Duration>()
    }
}
