//! What is measured: pure data, in tables. A scenario says how much work there is and of what kind; it holds no
//! tensor, no clock and no model. Adding a scenario is adding a row here.

mod generation;
mod moe;
mod sweep;
mod training;

pub use generation::{GENERATION, Generation, MOE_TOP_K, Sampling};
pub use moe::{EXPERT_GRID, ExpertGrid, FeedForward, dense_name};
pub use sweep::{SWEEP, SweepScenario};
pub use training::{
    Batch, CHECKPOINT_MEMORY, PSANN_THROUGHPUT, Phase, Quantity, Shape, TRAINING_SWEEP, Trained, TrainingScenario,
};

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every generation scenario, by the bench target that runs it.
pub const GENERATIONS: [(&str, &[Generation]); 2] = [("generation", &GENERATION), ("moe", &MOE_TOP_K)];

/// Every group of trainings, by the bench target that runs it.
pub const TRAININGS: [(&str, &[TrainingScenario]); 3] =
    [("training", &PSANN_THROUGHPUT), ("training", &TRAINING_SWEEP), ("memory", &CHECKPOINT_MEMORY)];

/// Whether a group's samples are bytes instead of time.
pub fn is_in_bytes(key: &str) -> bool {
    let groups = || TRAININGS.iter().flat_map(|(_, groups)| groups.iter());
    groups().any(|group| group.key == key && group.quantity == Quantity::PeakBytes)
}

/// How much of a table runs. A scenario carries the smallest tier that includes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The two scenarios that answer "how fast is it?".
    Quick,
    /// Prefill, decode and sampling apart.
    Standard,
    /// Everything.
    Full,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Full => "full",
        })
    }
}
