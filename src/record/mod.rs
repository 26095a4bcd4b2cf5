//! What is kept of a benchmark beyond Criterion's statistics: the schema of a record, and its writers and readers. A
//! record is plain data that stands for itself; nothing here measures or formats for people.
//!
//! One record is one line of JSON in `<out>/<run>/records.jsonl`, appended whole as its benchmark ends. Field names
//! carry their units. A value that could not be measured is `null`, and [`Record::unmeasured`] says why.

mod baseline;
pub mod columns;
mod id;
mod read;
mod sink;

pub use baseline::{Estimate, Samples, baseline, baselines, estimates};
pub use id::{BenchmarkId, Variant};
pub use read::{Read, latest, parse, read};
pub use sink::{RECORDS, Sink, check_writable, temporary_that_stays, write_whole};

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::Sampling;

/// Version of the schema: raised when a field changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// What one benchmark of one run left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    pub schema: u32,
    /// The run that it belongs to; also the folder's name.
    pub run: String,
    /// Made up to try out a reader; never a measurement.
    #[serde(default)]
    pub sandbox: bool,
    /// When it ended, RFC 3339, UTC.
    pub at: String,
    /// Criterion's id, `<scenario>/<model>/<engine>-<dtype>-<device>`.
    pub id: String,
    pub scenario: String,
    pub subject: Subject,
    pub status: Status,
    /// Why it failed.
    pub reason: Option<String>,
    /// Why its output is known to differ from the reference implementation's.
    pub deviates: Option<String>,
    /// What was measured; `null` when it failed.
    pub measures: Option<Measures>,
    /// Field → why it is `null`.
    #[serde(default)]
    pub unmeasured: BTreeMap<String, String>,
    pub limits: Option<Limits>,
    pub conditions: Option<Conditions>,
    pub machine: Machine,
    pub software: Software,
    /// Setting → value and where it came from.
    pub settings: BTreeMap<String, Setting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Measured,
    Failed,
}

/// Who was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Short name, second part of the id.
    pub model: String,
    pub engine: String,
    pub dtype: String,
    pub device: String,
    /// Where the weights came from: the model's full specification, with the commit that a Hub revision resolved to.
    pub source: String,
    pub synthetic_weights: bool,
    pub parameters: Option<u64>,
    pub weight_bytes: Option<u64>,
    /// Sizes that its scenario sweeps, by name: `dim`, `depth` and the like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, u64>,
}

/// What was measured, by the kind of scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "most are generations, and there are few at a time")]
pub enum Measures {
    Generation(Generation),
    Sweep(Sweep),
    Training(Training),
}

impl Measures {
    /// Time of each sample, as Criterion was given it. Empty where something else was measured.
    pub fn sample_ms(&self) -> &[f64] {
        match self {
            Self::Generation(measures) => &measures.sample_total_ms,
            Self::Sweep(measures) => &measures.sample_ms,
            Self::Training(measures) => &measures.sample_ms,
        }
    }

    /// What Criterion was given, one value a sample, and in what.
    pub fn samples(&self) -> (Unit, Vec<f64>) {
        match self {
            Self::Training(measures) if measures.sample_ms.is_empty() => {
                (Unit::Bytes, measures.sample_peak_bytes.iter().map(|bytes| *bytes as f64).collect())
            }
            timed => (Unit::Ms, timed.sample_ms().to_vec()),
        }
    }

    /// Most memory in use at once.
    pub fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Generation(measures) => measures.peak_bytes,
            Self::Sweep(measures) => measures.peak_bytes,
            Self::Training(measures) => measures.peak_bytes,
        }
    }

    /// What stands for it in dashboards and histories, the headline first.
    pub fn metrics(&self) -> Vec<Metric> {
        let memory = |bytes: Option<u64>| ("peak_memory", "bytes", Better::Lower, bytes.map(|bytes| bytes as f64));
        let all = match self {
            Self::Generation(m) => vec![
                // Of one token it says nothing that the prefill does not.
                ("tokens_per_s", "tok/s", Better::Higher, (m.new_tokens > 1).then_some(m.tokens_per_s)),
                ("decode_tokens_per_s", "tok/s", Better::Higher, m.decode_tokens_per_s),
                ("prefill_tokens_per_s", "tok/s", Better::Higher, Some(m.prefill_tokens_per_s)),
                ("ttft", "ms", Better::Lower, Some(m.ttft_ms)),
                ("itl_p50", "ms", Better::Lower, m.itl_p50_ms),
                ("itl_p95", "ms", Better::Lower, m.itl_p95_ms),
                memory(m.peak_bytes),
                ("joules_per_token", "J", Better::Lower, m.joules_per_token),
            ],
            Self::Sweep(m) => vec![
                ("samples_per_s", "samples/s", Better::Higher, Some(m.windows_per_s)),
                ("step_p50", "ms", Better::Lower, Some(m.step_p50_ms)),
                ("step_p95", "ms", Better::Lower, Some(m.step_p95_ms)),
                memory(m.peak_bytes),
            ],
            // Of a benchmark of memory the times are by the way.
            Self::Training(m) if m.sample_ms.is_empty() => vec![memory(m.peak_bytes)],
            Self::Training(m) => vec![
                ("tokens_per_s", "tok/s", Better::Higher, Some(m.tokens_per_s)),
                ("step_p50", "ms", Better::Lower, Some(m.step_p50_ms)),
                ("step_p95", "ms", Better::Lower, Some(m.step_p95_ms)),
                memory(m.peak_bytes),
            ],
        };
        all.into_iter()
            .filter_map(|(name, unit, better, value)| Some(Metric { name, unit, better, value: value? }))
            .collect()
    }

    /// What tells whether two runs did the same work.
    pub fn output_digest(&self) -> Option<&str> {
        match self {
            Self::Generation(measures) => Some(&measures.token_digest),
            Self::Sweep(_) | Self::Training(_) => None,
        }
    }
}

/// What a benchmark measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Ms,
    Bytes,
}

/// One figure of a benchmark, with what is needed to show it without knowing what it is.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Metric {
    /// Without the unit.
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
    pub value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

/// Measures of a generation scenario. Each time is a median over the samples; percentiles are over every step of
/// every sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generation {
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// Generations measured, warm-up left out.
    pub samples: usize,
    /// End to end: prompt in to last token out.
    pub total_ms: f64,
    /// The same of each sample, in the order they were made.
    pub sample_total_ms: Vec<f64>,
    /// Time to first token, choosing it included.
    pub ttft_ms: f64,
    /// Inter-token latency; `null` when one token was made.
    pub itl_p50_ms: Option<f64>,
    pub itl_p95_ms: Option<f64>,
    pub itl_p99_ms: Option<f64>,
    /// Time per output token after the first: the mean inter-token latency.
    pub tpot_ms: Option<f64>,
    /// Prompt tokens over time to first token.
    pub prefill_tokens_per_s: f64,
    /// Tokens after the first over their time.
    pub decode_tokens_per_s: Option<f64>,
    /// Generated tokens over the whole time: the headline.
    pub tokens_per_s: f64,
    /// Share of the whole time that went into choosing tokens.
    pub sampling_share: f64,
    /// Share of the decode steps' time in which the device had been given all its work and was waited for: where it is small,
    /// giving the work bounds decode and not the device. `null` on a processor.
    #[serde(default)]
    pub waiting_share: Option<f64>,
    /// Key-value cache that the last step read, and that was allocated for it.
    pub cache_used_bytes: u64,
    pub cache_allocated_bytes: u64,
    /// Most memory in use at once during a generation, weights included.
    pub peak_bytes: Option<u64>,
    /// Model bandwidth utilisation of the decode steps: bytes that they must read over their time, as a share of
    /// [`Limits::read_bytes_per_s`].
    pub mbu: Option<f64>,
    /// Model FLOP utilisation of the prefill: operations it must do over time to first token, as a share of
    /// [`Limits::matrix_flops_per_s`].
    pub mfu: Option<f64>,
    /// Energy that the device drew over the generated tokens.
    pub joules_per_token: Option<f64>,
    pub finish_reason: String,
    pub generated_tokens: usize,
    /// SHA-256 of the generated ids as little-endian u32, first 16 hexadecimal digits. The same in every sample.
    pub token_digest: String,
    /// Median inter-token latency at each position.
    pub itl_by_position_ms: Vec<f64>,
    /// What the two phases must read and compute; `null` in records that were made before it was kept.
    #[serde(default)]
    pub work: Option<Work>,
    /// How experts were used; `null` where there are none.
    #[serde(default)]
    pub routing: Option<Routing>,
}

/// What a generation must read and compute, from which MBU and MFU come: weights once a pass, the cache that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    pub prefill_bytes: u64,
    pub prefill_flops: u64,
    /// Of one step: the mean over the steps.
    pub step_bytes: u64,
    pub step_flops: u64,
}

/// How a mixture of experts was used by one generation, prompt and steps together. The same in every sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    pub num_experts: usize,
    /// Experts that each token goes to.
    pub top_k: usize,
    /// How unevenly tokens were sent to experts by a seeded draw, 0 being even; `null` when the routers chose.
    pub planted_skew: Option<f64>,
    /// Tokens of the busiest expert over the mean, from 1 to the number of experts; mean over the layers.
    pub load_balance_factor: f64,
    /// Entropy of the distribution of tokens over experts, up to the binary logarithm of their number; mean over the layers.
    pub entropy_bits: f64,
    /// Share of the experts that got no token; mean over the layers.
    pub idle_share: f64,
    /// For each layer that is a mixture, the tokens that each expert got.
    pub tokens_per_expert: Vec<Vec<u64>>,
}

/// Measures of one combination of the architecture sweep: training steps or forecasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sweep {
    /// Steps measured, warm-up left out.
    pub steps: usize,
    pub samples: usize,
    /// Mean time of the steps of each sample, in the order they were made.
    pub sample_ms: Vec<f64>,
    /// Percentiles over every step.
    pub step_p50_ms: f64,
    pub step_p95_ms: f64,
    pub step_p99_ms: f64,
    /// Windows of the series a second, at the median step.
    pub windows_per_s: f64,
    /// Most memory in use at once during a step, weights and optimizer included.
    pub peak_bytes: Option<u64>,
    /// Model FLOP utilisation at the median step: operations of its matrix products, three times those of a forward pass
    /// when it trains, as a share of [`Limits::matrix_flops_per_s`].
    pub mfu: Option<f64>,
    /// Mean squared error before the first measured step and before the last; `null` where nothing is trained.
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
}

/// Measures of steps of a language model: training, or forward to the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Training {
    /// `train` or `forward`.
    pub phase: String,
    /// Tokens that a step predicts.
    pub batch_tokens: usize,
    pub tokens_per_row: usize,
    /// Parts that a batch was computed in, since it did not fit at once; 1 where it did.
    pub micro_batches: usize,
    /// Whether only what goes into each layer was kept, and the layer computed again on the way back.
    pub checkpointing: bool,
    /// Steps measured, warm-up left out.
    pub steps: usize,
    pub samples: usize,
    /// Mean time of the steps of each sample, in the order they were made; empty where memory was measured.
    pub sample_ms: Vec<f64>,
    /// Peak memory of each sample, as Criterion was given it; empty where time was measured.
    pub sample_peak_bytes: Vec<u64>,
    /// Percentiles over every step.
    pub step_p50_ms: f64,
    pub step_p95_ms: f64,
    pub step_p99_ms: f64,
    /// At the median step.
    pub tokens_per_s: f64,
    /// Most memory in use at once during a step: weights, gradients, moments and activations.
    pub peak_bytes: Option<u64>,
    /// Memory in use between steps.
    pub allocated_bytes: Option<u64>,
    /// Memory that the device's pool held, in use or not.
    pub reserved_bytes: Option<u64>,
    /// Model FLOP utilisation at the median step: operations of its matrix products, three times those of a forward pass
    /// when it trains, whatever is computed again, as a share of [`Limits::matrix_flops_per_s`].
    pub mfu: Option<f64>,
    /// Whether the training goes well; `null` where nothing is trained.
    pub stability: Option<Stability>,
}

/// What a training left behind at each step that was measured, in their order. One that diverged is a record that failed,
/// whose reason names the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stability {
    /// Mean cross-entropy before the update, in nats.
    pub losses: Vec<f64>,
    /// Norm of all gradients before clipping.
    pub gradient_norms: Vec<f64>,
    /// Norm of what was added to the weights over the norm of the weights.
    pub update_ratios: Vec<f64>,
}

/// What the machine allows, measured in the process that made the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Bandwidth of reading memory much larger than any cache, with every thread.
    pub read_bytes_per_s: f64,
    /// Rate of a large matrix product on Candle, in `matrix_dtype`.
    pub matrix_flops_per_s: f64,
    pub matrix_dtype: String,
}

/// How quiet the machine was while the benchmark ran. Shares are `null` where the system does not say, or after less than
/// half a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conditions {
    /// Share of the machine's processor time that went to other processes.
    pub other_cpu_share: Option<f64>,
    /// Share of the machine's processor time that a hypervisor gave to other guests.
    pub stolen_cpu_share: Option<f64>,
    /// The GPU that was used, if that is one of NVIDIA's.
    #[serde(default)]
    pub gpu: Option<GpuLoad>,
    /// In words, what makes the figures doubtful.
    pub doubts: Vec<String>,
}

/// What a GPU did while the benchmark ran, looked at four times a second. What it does not count is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuLoad {
    /// Median clock of its multiprocessors.
    pub sm_mhz: Option<u32>,
    /// Mean.
    pub power_watts: Option<f64>,
    /// Highest.
    pub temperature_celsius: Option<u32>,
    /// What held the clocks back, by NVML's names in lower case → in what share of the looks.
    pub throttle_reasons: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// A name for folders and tables: what computes, and how many cores there are.
    pub name: String,
    pub cpu: String,
    pub physical_cores: Option<usize>,
    pub logical_cores: usize,
    /// Threads that Candle uses.
    pub threads: usize,
    pub memory_bytes: Option<u64>,
    pub os: String,
    pub kernel: Option<String>,
    pub governor: Option<String>,
    /// SIMD extensions that the processor has.
    pub simd_available: Vec<String>,
    /// SIMD extensions that the program was compiled for.
    pub simd_compiled: Vec<String>,
    pub gpu: Option<Gpu>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    pub name: String,
    pub driver: Option<String>,
    pub compute_capability: Option<String>,
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Software {
    pub candlepower: String,
    /// Version of candle-core, with ` (path)` when Cargo was pointed at a checkout.
    pub candle: String,
    pub criterion: String,
    pub rustc: String,
    /// Commit of the folder that the benchmark was started in, with `-dirty` when it had changes.
    pub commit: Option<String>,
    pub profile: String,
    /// Cargo features that are on.
    pub features: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    pub value: String,
    /// `default`, `environment`, `command line`, or the file's name.
    pub from: String,
}
