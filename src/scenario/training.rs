//! Trainings of language models: grids of sizes, batches and precisions. Each grid is a Criterion group.

use super::{Counterpart, Tier};

/// The work of one iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward pass to the loss.
    Forward,
    /// Forward pass, backward pass and update.
    Train,
}

impl Phase {
    /// Name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Train => "train",
        }
    }
}

/// The quantity that Criterion samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Time of an iteration.
    Time,
    /// Peak memory of an iteration in bytes.
    PeakBytes,
}

/// A language model that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Name of the architecture, a [`Base`](crate::model::psann::Base).
    pub base: &'static str,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of attention heads.
    pub n_heads: usize,
    /// Inner width of the feed-forward.
    pub d_mlp: usize,
    /// Number of token ids.
    pub vocab_size: usize,
}

/// The batch of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences of the batch.
    pub rows: usize,
    /// Length of each sequence.
    pub tokens_per_row: usize,
    /// The smallest tier that runs it.
    pub tier: Tier,
}

/// A group: each shape with each batch, precision and checkpointing mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingScenario {
    /// First part of the benchmark id.
    pub key: &'static str,
    /// Work of an iteration.
    pub phase: Phase,
    /// Quantity that Criterion samples.
    pub quantity: Quantity,
    /// Shapes, and the smallest tier that runs each.
    pub shapes: &'static [(Shape, Tier)],
    /// Batches of a step.
    pub batches: &'static [Batch],
    /// Precisions, and the smallest tier that runs each. If empty, the settings choose the precision.
    pub dtypes: &'static [(&'static str, Tier)],
    /// The modes of gradient checkpointing that are measured: on, off or both.
    pub checkpointing: &'static [bool],
    /// A short description for `candlepower list`.
    pub purpose: &'static str,
}

/// One entry of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trained {
    /// The model.
    pub shape: Shape,
    /// The batch of a step.
    pub batch: Batch,
    /// Precision; `None` for that of the settings.
    pub dtype: Option<&'static str>,
    /// True if gradient checkpointing is on.
    pub checkpointing: bool,
}

impl Trained {
    /// Second part of the benchmark id.
    pub fn name(&self) -> String {
        let Self { shape: Shape { base, d_model, n_layers, .. }, batch: Batch { rows, tokens_per_row, .. }, .. } = self;
        let kept = if self.checkpointing { "-checkpointed" } else { "" };
        format!("{base}-d{d_model}-l{n_layers}-s{tokens_per_row}-b{rows}{kept}")
    }

    /// The entry that this one is compared with: the same without gradient checkpointing.
    pub fn plain(&self) -> Option<Self> {
        self.checkpointing.then_some(Self { checkpointing: false, ..*self })
    }

    /// Tokens of a step.
    pub fn batch_tokens(&self) -> usize {
        self.batch.rows * self.batch.tokens_per_row
    }
}

impl TrainingScenario {
    /// The entries that `entry` is compared with in turns. Peak memory does not depend on what else the machine does, so a
    /// group of memory has none.
    pub fn counterparts(&self, entry: &Trained) -> Vec<(Counterpart, Trained)> {
        match self.quantity {
            Quantity::Time => entry.plain().map(|plain| (Counterpart::Plain, plain)).into_iter().collect(),
            Quantity::PeakBytes => Vec::new(),
        }
    }

    /// The entries that `tier` includes.
    pub fn entries(&self, tier: Tier) -> Vec<Trained> {
        let dtypes: Vec<Option<&'static str>> = match self.dtypes {
            [] => vec![None],
            some => some.iter().filter(|(_, of)| *of <= tier).map(|(dtype, _)| Some(*dtype)).collect(),
        };
        let mut all = Vec::new();
        for (shape, _) in self.shapes.iter().filter(|(_, of)| *of <= tier) {
            for batch in self.batches.iter().filter(|batch| batch.tier <= tier) {
                for &dtype in &dtypes {
                    let entry = |&checkpointing| Trained { shape: *shape, batch: *batch, dtype, checkpointing };
                    all.extend(self.checkpointing.iter().map(entry));
                }
            }
        }
        all
    }
}

/// The model of the throughput grid, with the default sizes of psannlm (`d_mlp` as in its corpus benchmark).
const fn grid(base: &'static str) -> (Shape, Tier) {
    (Shape { base, d_model: 256, n_layers: 4, n_heads: 4, d_mlp: 1024, vocab_size: 32_000 }, Tier::Quick)
}

const BASES: &[(Shape, Tier)] = &[grid("respsann"), grid("sgrpsann"), grid("waveresnet"), grid("transformer")];

const fn batch(rows: usize, tokens_per_row: usize, tier: Tier) -> Batch {
    Batch { rows, tokens_per_row, tier }
}

/// Sequences of 512 as in psannlm. The last three rows are its grid: 65536, 131072 and 262144 tokens.
const BATCHES: &[Batch] = &[
    batch(1, 512, Tier::Quick),
    batch(2, 512, Tier::Quick),
    batch(16, 512, Tier::Standard),
    batch(128, 512, Tier::Full),
    batch(256, 512, Tier::Full),
    batch(512, 512, Tier::Full),
];

/// A model that a CPU trains in half a second per step, and the model of psannlm's memory benchmark.
const DEEP: &[(Shape, Tier)] = &[
    (Shape { base: "waveresnet", d_model: 256, n_layers: 8, n_heads: 4, d_mlp: 1024, vocab_size: 4096 }, Tier::Quick),
    (Shape { base: "waveresnet", d_model: 512, n_layers: 8, n_heads: 8, d_mlp: 2048, vocab_size: 4096 }, Tier::Full),
];
const DEEP_BATCHES: &[Batch] = &[batch(4, 256, Tier::Quick), batch(8, 512, Tier::Full)];

const SMALL: &[(Shape, Tier)] =
    &[(Shape { base: "respsann", d_model: 128, n_layers: 2, n_heads: 4, d_mlp: 512, vocab_size: 4096 }, Tier::Quick)];
const SWEPT: &[Batch] = &[
    batch(8, 128, Tier::Quick),
    batch(8, 512, Tier::Quick),
    batch(8, 2048, Tier::Full),
    batch(32, 128, Tier::Quick),
    batch(32, 512, Tier::Standard),
    batch(32, 2048, Tier::Full),
];
const PRECISIONS: &[(&str, Tier)] = &[("f32", Tier::Quick), ("bf16", Tier::Standard)];

const fn throughput(key: &'static str, phase: Phase, purpose: &'static str) -> TrainingScenario {
    TrainingScenario {
        key,
        phase,
        quantity: Quantity::Time,
        shapes: BASES,
        batches: BATCHES,
        dtypes: &[],
        checkpointing: &[false],
        purpose,
    }
}

const fn memory(key: &'static str, quantity: Quantity, purpose: &'static str) -> TrainingScenario {
    TrainingScenario {
        key,
        phase: Phase::Train,
        quantity,
        shapes: DEEP,
        batches: DEEP_BATCHES,
        dtypes: &[],
        checkpointing: &[false, true],
        purpose,
    }
}

const fn sweep(key: &'static str, phase: Phase, purpose: &'static str) -> TrainingScenario {
    TrainingScenario {
        key,
        phase,
        quantity: Quantity::Time,
        shapes: SMALL,
        batches: SWEPT,
        dtypes: PRECISIONS,
        checkpointing: &[false],
        purpose,
    }
}

/// Throughput of the PSANN bases.
pub const PSANN_THROUGHPUT: &[TrainingScenario] = &[
    throughput("psann_throughput_forward", Phase::Forward, "PSANN bases, forward to the loss"),
    throughput("psann_throughput_train", Phase::Train, "PSANN bases, training steps"),
];

/// Peak memory and time with and without gradient checkpointing, in separate groups.
pub const CHECKPOINT_MEMORY: &[TrainingScenario] = &[
    memory("checkpoint_memory_bytes", Quantity::PeakBytes, "peak memory with and without gradient checkpointing"),
    memory("checkpoint_memory_time", Quantity::Time, "time with and without gradient checkpointing"),
];

/// Steps over precision, sequence length and batch size.
pub const TRAINING_SWEEP: &[TrainingScenario] = &[
    sweep("training_sweep_train", Phase::Train, "training steps over precision, length and batch"),
    sweep("training_sweep_forward", Phase::Forward, "inference steps over precision, length and batch"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_distinct_names_and_tiers_grow() {
        for group in PSANN_THROUGHPUT.iter().chain(CHECKPOINT_MEMORY).chain(TRAINING_SWEEP) {
            let counts = [Tier::Quick, Tier::Standard, Tier::Full].map(|tier| group.entries(tier).len());
            assert!(counts[0] > 0 && counts[0] <= counts[1] && counts[1] < counts[2], "{}: {counts:?}", group.key);
            let names: std::collections::BTreeSet<_> =
                group.entries(Tier::Full).iter().map(|entry| format!("{}{:?}", entry.name(), entry.dtype)).collect();
            assert_eq!(names.len(), counts[2], "{}", group.key);
        }
        let full = PSANN_THROUGHPUT[0].entries(Tier::Full);
        for tokens in [65_536, 131_072, 262_144] {
            assert_eq!(full.iter().filter(|entry| entry.batch_tokens() == tokens).count(), 4);
        }
    }
}
