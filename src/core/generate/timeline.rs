//! The result of one generation.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::measure::CpuTime;

/// Times and tokens of one generation, of a sequence or of a batch of them. The device is idle at the end of every duration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The start of the prompt.
    pub began: Option<Instant>,
    /// Length of the prompt, or of each prompt of a batch.
    pub prompt_tokens: usize,
    /// Time to first token: from the start of the prompt to the first token of every sequence, sampling included.
    pub ttft: Duration,
    /// Inter-token latencies: one for each token after the first, sampling included. A step of a batch has a token for each
    /// sequence.
    pub steps: Vec<Duration>,
    /// The moment at which each step ended. Between two steps, the benchmark may have paused.
    pub step_ends: Vec<Instant>,
    /// Bandwidth of reading the model's weights in pauses between the steps, with the moments of the pauses. Empty without an
    /// observation, and for a model that does not offer its weights.
    pub weight_readings: Vec<(Instant, f64)>,
    /// Total time of sampling: from logits to ids. `None` if it is not known apart.
    pub sampling: Option<Duration>,
    /// Time of the decode steps spent waiting for the device after all work was submitted. Near 0 on a CPU.
    pub waiting: Duration,
    /// CPU time of this process from the prompt to the last token, with that of the readings of limits between steps. `None` if it is
    /// not known.
    pub cpu: Option<CpuTime>,
    /// Allocations in the decode steps by the thread that ran them, and their bytes. `None` in a program that does not count them.
    pub allocations: Option<(u64, u64)>,
    /// The generated ids of each sequence.
    pub tokens: Vec<Vec<u32>>,
    /// Why the generation ended.
    pub finish_reason: FinishReason,
}

/// Reason for the end of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The requested number of tokens was generated.
    #[default]
    Length,
    /// Every sequence generated an end-of-sequence token, and the request stops at those.
    EndOfSequence,
}

impl Timeline {
    /// End-to-end time: from the start of the prompt to the last token.
    pub fn total(&self) -> Duration {
        self.ttft + self.steps.iter().sum::<Duration>()
    }
}
