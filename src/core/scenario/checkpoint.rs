//! Benchmarks of the files of a checkpoint: its tokenizer, and loading its weights.

/// One benchmark, which is a Criterion group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointScenario {
    /// First part of the benchmark id.
    pub key: &'static str,
    /// Work of an iteration.
    pub work: CheckpointWork,
    /// A short description for `candlepower list`.
    pub purpose: &'static str,
}

/// The work of an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointWork {
    /// Opening the files and building the model.
    Load {
        /// True if the page cache must not hold the files.
        is_cold: bool,
    },
    /// A pass of the tokenizer over a text.
    Tokenizer(Pass),
}

/// A pass of a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From text to tokens.
    Encode,
    /// From tokens to text, at once.
    Decode,
    /// From tokens to text, one at a time, as a server streams an answer.
    Stream,
}

/// Bytes of the text of a pass, at least.
pub const TOKENIZER_TEXT_BYTES: usize = 64 << 10;

const fn row(key: &'static str, work: CheckpointWork, purpose: &'static str) -> CheckpointScenario {
    CheckpointScenario { key, work, purpose }
}

/// Loads of the weights, from the page cache and from storage.
pub const LOAD: &[CheckpointScenario] = &[
    row("load_warm", CheckpointWork::Load { is_cold: false }, "files in the page cache to a model that is ready"),
    row("load_cold", CheckpointWork::Load { is_cold: true }, "the same with files that are read from storage"),
];

/// Passes of the tokenizer.
pub const TOKENIZER: &[CheckpointScenario] = &[
    row("tokenizer_encode", CheckpointWork::Tokenizer(Pass::Encode), "text to tokens"),
    row("tokenizer_decode", CheckpointWork::Tokenizer(Pass::Decode), "tokens to text, at once"),
    row("tokenizer_stream", CheckpointWork::Tokenizer(Pass::Stream), "tokens to text, one at a time"),
];
