//! Tables of what is measured. A scenario states the kind and the amount of work; it holds no tensors, clocks or models. To
//! add a scenario, add its row to a table here and to the table of the README.

mod checkpoint;
mod counterpart;
mod generation;
mod moe;
mod perplexity;
mod serving;
mod sweep;
mod training;

pub use checkpoint::{CheckpointScenario, CheckpointWork, LOAD, Pass, TOKENIZER, TOKENIZER_TEXT_BYTES};
pub use counterpart::Counterpart;
pub use generation::{GENERATION, Generation, LONG_CONTEXT, MOE_TOP_K, Sampling, TENSOR_PARALLEL, THREADS_SCALING};
pub use moe::{EXPERT_GRID, EXPERT_HIDDEN_SIZE, ExpertDecoder, ExpertGrid, FeedForward, dense_name, expert_grid};
pub use perplexity::{PERPLEXITY, PerplexityScenario};
pub use serving::{Latency, SERVING_LOAD, ServingLoad, Traffic};
pub use sweep::{SWEEP, SWEEP_PRESETS, SweepScenario};
pub use training::{
    Batch, CHECKPOINT_MEMORY, PSANN_THROUGHPUT, Phase, Quantity, Shape, TRAINING_SWEEP, Trained, TrainingGrid,
    TrainingScenario,
};

use std::{fmt, str::FromStr};

use crate::config::{serde_as_text, unknown};

/// Length in tokens of the longest sequence of the generation scenarios. A model must fit in memory with a cache of this
/// length. The long contexts are left out: a model that is too large for them runs the others.
pub(crate) fn longest_generation() -> usize {
    GENERATION.iter().chain(MOE_TOP_K).map(Generation::total_tokens).max().unwrap_or(0)
}

/// Returns whether the samples of a group are bytes rather than times.
pub fn is_in_bytes(key: &str) -> bool {
    let mut groups = [PSANN_THROUGHPUT, TRAINING_SWEEP, CHECKPOINT_MEMORY].into_iter().flatten();
    groups.any(|group| group.key == key && group.quantity == Quantity::PeakBytes)
}

/// The part of a table that runs. A row names the smallest tier that includes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The two scenarios that answer "how fast is it?".
    Quick,
    /// Also prefill, decode and sampling separately.
    Standard,
    /// Everything.
    Full,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Quick, Self::Standard, Self::Full];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|tier| tier.name() == text);
        found.ok_or_else(|| anyhow::anyhow!("{}", unknown("tier", text, &Self::ALL.map(Self::name))))
    }
}

serde_as_text!(Tier);
