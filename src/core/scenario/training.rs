//! Trainings of language models: grids of sizes, batches and precisions. Each grid is a Criterion group.

use std::collections::BTreeSet;

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

/// Sizes that a user chose for the groups. Each list takes the place of the sizes of the tier; an empty list leaves them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingGrid {
    /// Architectures of the groups that compare several.
    pub bases: Vec<&'static str>,
    /// Lengths of the sequences.
    pub tokens_per_row: Vec<usize>,
    /// Sequences in a batch.
    pub rows: Vec<usize>,
    /// Tokens in a batch. They give the sequences in a batch, rounded down, at least one.
    pub batch_tokens: Vec<usize>,
    /// Precisions of the groups that compare several.
    pub dtypes: Vec<&'static str>,
}

impl TrainingGrid {
    /// The batches instead of those of a tier.
    fn batches(&self, of_tier: Vec<Batch>) -> Vec<Batch> {
        let Self { tokens_per_row, rows, batch_tokens, .. } = self;
        if tokens_per_row.is_empty() && rows.is_empty() && batch_tokens.is_empty() {
            return of_tier;
        }
        let or_tier = |chosen: &[usize], size: fn(&Batch) -> usize| match chosen {
            [] => of_tier.iter().map(size).collect::<BTreeSet<_>>().into_iter().collect(),
            some => some.to_vec(),
        };
        let mut batches = Vec::new();
        for tokens_per_row in or_tier(tokens_per_row, |batch| batch.tokens_per_row) {
            let rows = match batch_tokens.as_slice() {
                [] => or_tier(rows, |batch| batch.rows),
                some => some.iter().map(|tokens| (tokens / tokens_per_row).max(1)).collect(),
            };
            for rows in rows {
                let batch = batch(rows, tokens_per_row, Tier::Quick);
                // Several numbers of tokens may give the same number of sequences.
                if !batches.contains(&batch) {
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// The shapes instead of those of a tier: its first one with each base.
    fn shapes(&self, of_tier: Vec<Shape>) -> Vec<Shape> {
        let bases: BTreeSet<&str> = of_tier.iter().map(|shape| shape.base).collect();
        match of_tier.first() {
            Some(first) if bases.len() > 1 && !self.bases.is_empty() => {
                self.bases.iter().map(|base| Shape { base, ..*first }).collect()
            }
            _ => of_tier,
        }
    }
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
    pub(crate) fn plain(&self) -> Option<Self> {
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

    /// The entries that `tier` includes, with the sizes of `grid`.
    pub fn entries(&self, tier: Tier, grid: &TrainingGrid) -> Vec<Trained> {
        let dtypes: Vec<Option<&'static str>> = match (self.dtypes, grid.dtypes.as_slice()) {
            ([], _) => vec![None],
            (_, chosen @ [_, ..]) => chosen.iter().copied().map(Some).collect(),
            (some, []) => some.iter().filter(|(_, of)| *of <= tier).map(|(dtype, _)| Some(*dtype)).collect(),
        };
        let shapes = self.shapes.iter().filter(|(_, of)| *of <= tier).map(|(shape, _)| *shape);
        let batches = grid.batches(self.batches.iter().filter(|batch| batch.tier <= tier).copied().collect());
        let mut all = Vec::new();
        for shape in grid.shapes(shapes.collect()) {
            for &batch in &batches {
                for &dtype in &dtypes {
                    let entry = |&checkpointing| Trained { shape, batch, dtype, checkpointing };
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
const PRECISIONS: &[(&str, Tier)] = &[("f32", Tier::Quick), ("bf16", Tier::Quick)];

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
    fn a_grid_takes_the_place_of_the_sizes_of_the_tier() {
        let names = |group: &TrainingScenario, grid: &TrainingGrid| {
            let entries = group.entries(Tier::Quick, grid);
            entries.iter().map(|entry| format!("{} {}", entry.name(), entry.dtype.unwrap_or("any"))).collect::<Vec<_>>()
        };
        let grid = TrainingGrid {
            tokens_per_row: vec![64, 256],
            rows: vec![3],
            dtypes: vec!["bf16"],
            bases: vec!["transformer"],
            ..TrainingGrid::default()
        };
        let sweep = ["respsann-d128-l2-s64-b3 bf16", "respsann-d128-l2-s256-b3 bf16"];
        assert_eq!(names(&TRAINING_SWEEP[0], &grid), sweep);
        let throughput = ["transformer-d256-l4-s64-b3 any", "transformer-d256-l4-s256-b3 any"];
        assert_eq!(names(&PSANN_THROUGHPUT[0], &grid), throughput);
        let grid = TrainingGrid { batch_tokens: vec![1024, 100, 1030], ..TrainingGrid::default() };
        let rows: Vec<usize> =
            PSANN_THROUGHPUT[1].entries(Tier::Quick, &grid).iter().map(|entry| entry.batch.rows).collect();
        assert_eq!(rows, [2, 1, 2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn entries_have_distinct_names_and_tiers_grow() {
        let by_tier = TrainingGrid::default();
        for group in PSANN_THROUGHPUT.iter().chain(CHECKPOINT_MEMORY).chain(TRAINING_SWEEP) {
            let counts = [Tier::Quick, Tier::Standard, Tier::Full].map(|tier| group.entries(tier, &by_tier).len());
            assert!(counts[0] > 0 && counts[0] <= counts[1] && counts[1] < counts[2], "{}: {counts:?}", group.key);
            let names: std::collections::BTreeSet<_> = group
                .entries(Tier::Full, &by_tier)
                .iter()
                .map(|entry| format!("{}{:?}", entry.name(), entry.dtype))
                .collect();
            assert_eq!(names.len(), counts[2], "{}", group.key);
        }
        let full = PSANN_THROUGHPUT[0].entries(Tier::Full, &by_tier);
        for tokens in [65_536, 131_072, 262_144] {
            assert_eq!(full.iter().filter(|entry| entry.batch_tokens() == tokens).count(), 4);
        }
    }
}
