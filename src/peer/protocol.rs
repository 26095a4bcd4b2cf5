//! The messages between candlepower and a peer: one JSON object per line. `src/guide/peers.md` specifies them. Instead of the
//! answer to a request, a peer may send `{"unsupported": reason}` or `{"error": reason}`.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use crate::scenario::{Phase, Sampling};

/// Version of the protocol. It is raised when a kind of work is added, or a message changes its meaning or is removed, not when
/// a field is added.
pub const VERSION: u32 = 3;

/// The oldest version that a peer may speak. Its peers generate and do nothing else.
pub const OLDEST: u32 = 1;

/// Longest line of a peer.
pub const LINE_MAX_BYTES: u64 = 4 << 20;

/// A request to a peer.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request<'a> {
    /// Describe yourself. The answer is [`Described`].
    Describe {
        /// [`VERSION`].
        protocol: u32,
    },
    /// Load a model for one kind of work, instead of the one before. The answer is [`Loaded`].
    Load { model: &'a Model<'a>, work: Work, dtype: &'a str, device: &'a str, threads: usize },
    /// Empty all sequences and prepare some of up to `tokens` each. The answer is [`Ready`].
    Reset { tokens: usize, sequences: usize, sampling: Sampling, seed: u64 },
    /// Compute the prompts, which are of one length and follow each other in `ids`, and choose a token of each sequence. The answer is
    /// [`Generated`].
    Prefill { ids: &'a [u32] },
    /// Choose `count` more tokens of each sequence. The answer is [`Generated`].
    Step { count: usize },
    /// Write the logits that follow each of `ids` from the index `from` on to an empty file: f32, little-endian, row by row, each of
    /// the size of the vocabulary. The answer is [`Ready`].
    Logits { ids: &'a [u32], from: usize, file: &'a Path },
    /// Run `count` training steps. The answer is [`Ran`].
    Train { count: usize },
    /// Run `count` forward passes. The answer is [`Ran`].
    Forward { count: usize },
    /// End. There is no answer.
    Close {},
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Tokens after a prompt.
    Generate,
    /// Logits of given tokens.
    Score,
    /// Training steps.
    Train,
    /// Forward passes: to the loss of a language model, or to a forecast of a series.
    Forward,
}

impl Work {
    /// Its name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Score => "score",
            Self::Train => "train",
            Self::Forward => "forward",
        }
    }
}

impl From<Phase> for Work {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Train => Self::Train,
            Phase::Forward => Self::Forward,
        }
    }
}

/// The model that a peer loads.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Model<'a> {
    /// The shape of a published model with weights drawn from a seed.
    Seeded {
        /// The text of its `config.json`.
        config: &'a str,
        /// Seed of the weights.
        seed: u64,
    },
    /// A folder in the layout of the Hub.
    Folder(&'a str),
    /// A GGUF file.
    Gguf(&'a str),
    /// A language model of psannlm with its batch and optimizer: an object whose keys the guide lists.
    Language(Value),
    /// A network of the sweep with its windows and optimizer: an object whose keys the guide lists.
    Series(Value),
}

/// The description of a peer.
#[derive(Clone, Debug, Deserialize)]
pub struct Described {
    pub protocol: u32,
    pub name: String,
    pub version: String,
    /// Names of the kinds of work that the peer does. A peer of the oldest version does not send them.
    #[serde(default = "only_generation")]
    pub work: Vec<String>,
    /// Most sequences that it generates at once.
    #[serde(default = "one")]
    pub sequences: usize,
}

fn one() -> usize {
    1
}

fn only_generation() -> Vec<String> {
    vec![Work::Generate.name().to_owned()]
}

/// More bytes or parameters than any machine holds.
const MOST: u64 = 1 << 50;

/// A number of bytes or parameters.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let count = u64::deserialize(deserializer)?;
    let problem = || D::Error::custom(format_args!("{count} bytes or parameters are more than any machine holds"));
    (count <= MOST).then_some(count).ok_or_else(problem)
}

fn count_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    /// A number that is there.
    #[derive(Deserialize)]
    struct Count(#[serde(deserialize_with = "count")] u64);
    Ok(Option::<Count>::deserialize(deserializer)?.map(|Count(count)| count))
}

/// The description of a loaded model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Loaded {
    /// Data type of the weights and the computation.
    pub dtype: String,
    /// Device of the model.
    pub device: String,
    /// CPU threads that it computes with.
    pub threads: usize,
    /// Number of parameters. A head that is tied to the embedding counts once.
    #[serde(deserialize_with = "count")]
    pub parameters: u64,
    /// Bytes of the weights in memory.
    #[serde(deserialize_with = "count")]
    pub weight_bytes: u64,
}

/// The request is done.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {}

/// Tokens that a peer has chosen.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Generated {
    /// Ids of the tokens: one of each sequence, step by step.
    pub tokens: Vec<u32>,
    /// Time of each step, by a monotonic clock.
    pub ns: Vec<u64>,
    /// Bytes that the cache of all sequences holds.
    #[serde(deserialize_with = "count")]
    pub cache_bytes: u64,
    /// Peak memory since the last reset, weights included; `None` if the peer does not count it.
    #[serde(default, deserialize_with = "count_or_none")]
    pub peak_bytes: Option<u64>,
}

/// Steps that a peer has run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Ran {
    /// Time of each step, by a monotonic clock.
    pub ns: Vec<u64>,
    /// Loss of each step, before its update. `None` for one that is not finite. Empty for forecasts.
    #[serde(default)]
    pub losses: Vec<Option<f64>>,
    /// Peak memory during the steps, weights included; `None` if the peer does not count it.
    #[serde(default, deserialize_with = "count_or_none")]
    pub peak_bytes: Option<u64>,
}
