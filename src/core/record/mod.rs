//! Records of benchmarks: their schema, the table of measures, benchmark ids, and the writers and readers of records.
//!
//! One record is one line of JSON in `<out>/<run>/records.jsonl`, appended when its benchmark ends. Field names carry their
//! units. A value that could not be measured is `null`, and [`Record::unmeasured`] gives the reason. This module does not
//! measure anything, and it does not format anything for people.
//!
//! Programs read records and do not build them: a minor version may add fields and variants to these types.

mod allocations;
mod baseline;
mod between_runs;
pub mod columns;
mod environment;
mod guarded;
mod id;
pub mod measures;
#[cfg(feature = "parquet")]
mod parquet;
mod read;
mod sink;

pub use allocations::{AllocationChange, Allocations};
pub use baseline::{Estimate, Samples, baseline, baseline_records, baselines, estimates, keep_records};
pub use between_runs::{Basis, BetweenRuns, History};
pub use environment::{GLIBC_TUNABLES, VARIABLES, Variable};
pub use guarded::{GUARDED, Guarded, Note};
pub use id::{BenchmarkId, Variant, group};
pub use measures::{Evaluation, Generation, Loading, MeasureUnit, Quality, Serving, Sweep, Tokenizing, Training};
pub use read::{Read, earlier_runs, latest, parse, read};
pub use sink::{RECORDS, Sink, check_writable, parent_process, write_whole};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::Counterpart;

/// Version of the schema. It is raised when a field changes its meaning or is removed, not when one is added.
///
/// In version 1, [`Limits`] were the best of the process, and MBU and MFU were shares of them. Since version 2 they are the
/// medians of the benchmark's own time. Since version 3 these are medians of means over a second, and the MBU and the MFU of a
/// generation are those of its median step and its median prompt, each a share of the limit of its own time.
pub const SCHEMA: u32 = 3;

/// The oldest version that is still read.
pub(crate) const OLDEST_SCHEMA: u32 = 1;

/// The result of one benchmark in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Version of the schema, [`SCHEMA`].
    pub schema: u32,
    /// Name of the run and of its folder.
    pub run: String,
    /// True if the record is invented to try out a reader of records. Such a record is not a measurement.
    #[serde(default)]
    pub sandbox: bool,
    /// Time at which the benchmark ended, in UTC, as RFC 3339.
    pub at: String,
    /// Criterion's id, `<scenario>/<model>/<engine>-<dtype>-<device>`.
    pub id: String,
    /// Key of the scenario.
    pub scenario: String,
    /// The duel that the benchmark was part of; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duel: Option<Duel>,
    /// The model and the implementation that ran it.
    pub subject: Subject,
    /// The end of the benchmark: measured, failed or excluded.
    pub status: Status,
    /// Why the benchmark failed or is excluded.
    pub reason: Option<String>,
    /// The first step of a training whose loss or gradient was not finite, counted from 1; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_non_finite_step: Option<usize>,
    /// Known reason why the output differs from that of the reference implementation.
    pub deviates: Option<String>,
    /// The measures; `null` when the benchmark failed.
    pub measures: Option<Measures>,
    /// Why a field is `null`, by field.
    #[serde(default)]
    pub unmeasured: BTreeMap<String, String>,
    /// Times of this benchmark divided by those of the benchmarks that it is compared with, where their samples were taken in
    /// turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<PairedRatio>,
    /// Limits of the machine around the samples; `null` if they were not measured.
    pub limits: Option<Limits>,
    /// Load on the machine during the benchmark; `null` if it was not observed.
    pub conditions: Option<Conditions>,
    /// How much the result varies between runs of the same program on this machine; absent for a benchmark without times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between_runs: Option<BetweenRuns>,
    /// The machine that ran the benchmark.
    pub machine: Machine,
    /// Versions of the software.
    pub software: Software,
    /// Value and source of each setting, by setting.
    pub settings: BTreeMap<String, Setting>,
    /// Command line that made the record, where the other fields do not determine it; absent for a benchmark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// The part of a benchmark in a duel, whose two sides took samples in turns. The records of the other side have the same id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Duel {
    /// Id of the duel.
    pub id: String,
    /// `a` or `b`.
    pub side: String,
    /// The side as given on the command line, for example `main+threads=1`.
    pub given: String,
    /// The ratios B / A of both pairs of each block, in the order of measuring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<[f64; 2]>,
}

/// Name of the size of a subject that has the fewest threads or ranks that it is compared with.
pub const FEWEST: &str = "fewest";

/// Result of running a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The record has measures.
    Measured,
    /// The record has a reason instead of measures.
    Failed,
    /// A peer does not support the benchmark. The record has a reason instead of measures.
    Excluded,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Failed => "failed",
            Self::Excluded => "excluded",
        })
    }
}

/// The model that was measured, and the implementation that ran it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Short name: the second part of the id.
    pub model: String,
    /// Implementation that ran the model.
    pub engine: String,
    /// Data type of the weights and the computation, for example `bf16`.
    pub dtype: String,
    /// Device that ran the model, for example `cpu` or `cuda`.
    pub device: String,
    /// Source of the weights: the full model specification, with the commit that a Hub revision resolved to.
    pub source: String,
    /// True if the weights were drawn from a seed instead of read from a checkpoint.
    pub synthetic_weights: bool,
    /// Number of weights; `null` if it is unknown.
    pub parameters: Option<u64>,
    /// Size of the weights in memory; `null` if it is unknown.
    pub weight_bytes: Option<u64>,
    /// Bytes of the tensors in a GGUF file, by the name of their format, for example `q4_k`; absent for other models.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub formats: BTreeMap<String, u64>,
    /// Sizes that the scenario sweeps, by name, for example `dim` and `depth`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, u64>,
    /// The process that ran the model, if a peer did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

/// Another system that ran a model in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Name of the system, as it gives it.
    pub name: String,
    /// Versions of the system and of what it runs on, as it gives them.
    pub version: String,
    /// Command that started it.
    pub command: String,
}

/// The measures of a benchmark, by the kind of scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Measures {
    /// Generation of tokens.
    Generation(Generation),
    /// Steps of a time-series model.
    Sweep(Sweep),
    /// Steps of a language model.
    Training(Training),
    /// Requests to a server.
    Serving(Serving),
    /// Likelihood of a text.
    Quality(Quality),
    /// A task scored by log-likelihood.
    Evaluation(Evaluation),
    /// Loads of a checkpoint.
    Loading(Loading),
    /// Passes of a tokenizer.
    Tokenizing(Tokenizing),
}

impl Measures {
    /// Time of each sample, as Criterion received it. Empty for a benchmark of memory, and for what Criterion does not run: loads of
    /// a server, tasks, and texts that the command scores.
    pub fn sample_ms(&self) -> &[f64] {
        match self {
            Self::Generation(measures) => &measures.sample_total_ms,
            Self::Sweep(measures) => &measures.sample_ms,
            Self::Training(measures) => &measures.sample_ms,
            Self::Serving(measures) => &measures.sample_ms,
            Self::Quality(measures) => &measures.sample_ms,
            Self::Evaluation(_) => &[],
            Self::Loading(measures) => &measures.sample_ms,
            Self::Tokenizing(measures) => &measures.sample_ms,
        }
    }

    /// The values that a comparison takes, one for each sample, and their unit: those that Criterion received, those of a
    /// load, or those of the windows of a text or the questions of a task.
    pub fn samples(&self) -> (SampleUnit, Vec<f64>) {
        match self {
            Self::Training(measures) if measures.sample_ms.is_empty() => {
                (SampleUnit::Bytes, measures.sample_peak_bytes.iter().map(|bytes| *bytes as f64).collect())
            }
            Self::Serving(measures) if measures.sample_ms.is_empty() => {
                (SampleUnit::Ms, measures.sample_e2e_ms.clone())
            }
            Self::Quality(measures) => (SampleUnit::Nats, measures.window_nll.clone()),
            Self::Evaluation(measures) => (SampleUnit::Nats, measures.question_nll.clone()),
            timed => (SampleUnit::Ms, timed.sample_ms().to_vec()),
        }
    }

    /// The value of the measure with this field, and its unit. `None` if the benchmark does not have it.
    pub fn measure(&self, field: &str) -> Option<(f64, MeasureUnit)> {
        let mut named = measures::all().filter(|measure| measure.name == field);
        named.find_map(|measure| Some(((measure.value)(self)?.number()?, measure.row.unit)))
    }

    /// Model bandwidth utilization, where it is measured.
    pub fn mbu(&self) -> Option<f64> {
        self.measure("mbu").map(|(share, _)| share)
    }

    /// Bandwidth of reading the weights of a model, where they were read.
    pub fn weights_bytes_per_s(&self) -> Option<f64> {
        match self {
            Self::Generation(measures) => measures.weights_bytes_per_s,
            _ => None,
        }
    }

    /// Model FLOP utilization, where it is measured.
    pub fn mfu(&self) -> Option<f64> {
        self.measure("mfu").map(|(share, _)| share)
    }

    /// Peak memory, where it is measured.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.measure("peak_bytes").map(|(bytes, _)| bytes as u64)
    }

    /// The metrics of the benchmark that dashboards and histories show. The first is the headline. A benchmark of memory
    /// has no metrics of time.
    pub fn metrics(&self) -> Vec<Metric> {
        let is_memory = self.samples().0 == SampleUnit::Bytes;
        let mut metrics: Vec<(u8, Metric)> = measures::all()
            .filter(|measure| !is_memory || measure.row.unit == MeasureUnit::Bytes)
            .filter_map(|measure| {
                let ((place, name), better) = (measure.row.export?, measure.row.better?);
                let value = (measure.value)(self)?.number()?;
                let (unit, explanation) = (measure.row.unit, measure.explanation());
                let deviation = (measure.row.is_sampled)(self).then(|| self.relative_deviation(unit)).flatten();
                let deviation = deviation.map(|share| share * value).filter(|deviation| deviation.is_finite());
                Some((place, Metric { name, explanation, unit, better, value, deviation }))
            })
            .collect();
        metrics.sort_by_key(|(place, _)| *place);
        metrics.into_iter().map(|(_, metric)| metric).collect()
    }

    /// Standard deviation of the samples, as a share of a value in this unit that follows from them; `None` for fewer than two
    /// samples. A perplexity is the exponential of their mean, so its share is their deviation itself. Others are proportional to
    /// their middle or to its inverse.
    fn relative_deviation(&self, unit: MeasureUnit) -> Option<f64> {
        let (_, samples) = self.samples();
        let count = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let deviation = (samples.len() > 1).then(|| (squares / (count - 1.0)).sqrt())?;
        Some(if unit == MeasureUnit::Perplexity { deviation } else { deviation / mean })
    }

    /// Digest of the output. Two runs with equal digests did the same work.
    pub fn output_digest(&self) -> Option<&str> {
        match self {
            Self::Generation(measures) => Some(&measures.token_digest),
            Self::Tokenizing(measures) => Some(&measures.token_digest),
            Self::Serving(measures) => measures.token_digest.as_deref(),
            _ => None,
        }
    }
}

/// Time of a benchmark divided by that of another one. Sample `i` of both was taken in the same round, so what changed on the
/// machine from round to round cancels out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PairedRatio {
    /// Role of the other benchmark.
    pub counterpart: Counterpart,
    /// Id of the other benchmark.
    pub to: String,
    /// Median of the ratios of all pairs. Above 1, this benchmark took longer.
    pub ratio: f64,
    /// Lower end of the interval of the median, from order statistics.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Probability with which such an interval contains the true median.
    pub level: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// Unit of the samples of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Unit")]
pub enum SampleUnit {
    /// Milliseconds.
    Ms,
    /// Bytes of peak memory.
    Bytes,
    /// Negative log-likelihood. The samples of two records of one id are of the same tokens.
    Nats,
}

/// One exported figure of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Name without the unit.
    pub name: &'static str,
    /// One or two sentences of plain English.
    #[serde(skip)]
    pub explanation: &'static str,
    /// Unit of the value.
    pub unit: MeasureUnit,
    /// The direction of improvement.
    pub better: Better,
    /// The value, in the unit.
    pub value: f64,
    /// Standard deviation of the samples that the value follows from, in the unit; `None` without such samples.
    #[serde(skip)]
    pub deviation: Option<f64>,
}

/// The direction in which a measure improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Higher values are better.
    Higher,
    /// Lower values are better.
    Lower,
}

/// Bytes and operations that a generation requires, from which MBU and MFU are computed. A pass reads every weight once, and
/// the part of the cache that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Bytes that the pass over the prompt reads.
    pub prefill_bytes: u64,
    /// Floating-point operations of the pass over the prompt.
    pub prefill_flops: u64,
    /// Bytes of one decode step: the mean over the steps.
    pub step_bytes: u64,
    /// Operations of one decode step.
    pub step_flops: u64,
}

/// Use of the experts by one generation, prompt and steps together. It is the same in every sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    /// Experts of each mixture layer.
    pub num_experts: usize,
    /// Experts that each token is sent to.
    pub top_k: usize,
    /// Skew of the seeded draw that sent tokens to experts, where 0 is even; `null` when the routers chose.
    pub planted_skew: Option<f64>,
    /// Tokens of the busiest expert divided by the mean over the experts, averaged over the layers.
    pub load_balance_factor: f64,
    /// Entropy of the distribution of tokens over experts, averaged over the layers.
    pub entropy_bits: f64,
    /// Share of the experts that received no token, averaged over the layers.
    pub idle_share: f64,
    /// Tokens that each expert received, for each mixture layer.
    pub tokens_per_expert: Vec<Vec<u64>>,
}

/// Loss, gradients and updates of each measured step, in order. If training diverges, the benchmark fails and the reason
/// names the step. A peer tells its losses only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stability {
    /// Mean cross-entropy before the update, in nats.
    pub losses: Vec<f64>,
    /// Norm of all gradients before clipping.
    pub gradient_norms: Vec<f64>,
    /// Norm of the update divided by the norm of the weights.
    pub update_ratios: Vec<f64>,
}

/// The largest share of a limit that the error of reading the limit explains. `short/llama-mini` on engine `tuned`, whose
/// decode steps are at the limit, had an MBU of 95 to 105 % in twenty idle runs.
pub const LARGEST_SHARE: f64 = 1.05;

/// Limits of the machine, read in short passes around the samples of the benchmark and between its steps. Each is the median of
/// the means over a second. The MBU of a generation is that of its median step and the MFU that of its median prompt, each a share
/// of the limit of its own time. Where the weights of the model were read, MBU is a share of their bandwidth. The MFU of a training
/// is a share of the median.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Bandwidth of reading memory much larger than any cache, on every thread.
    pub read_bytes_per_s: f64,
    /// Rate of a large matrix product: of those for the dtype of the models, the fastest.
    pub matrix_flops_per_s: f64,
    /// Data type of the matrix product.
    pub matrix_dtype: String,
    /// Implementation of the matrix product: `candlepower` or `candle`. `null` in records from before this field, whose product
    /// was Candle's.
    #[serde(default)]
    pub matrix_library: Option<String>,
    /// The readings of the bandwidth. `null` in records of schema 1.
    #[serde(default)]
    pub read: Option<Spread>,
    /// The readings of the matrix product. `null` in records of schema 1.
    #[serde(default)]
    pub matrix: Option<Spread>,
    /// The reason for each share above 105 %, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<String>,
}

impl Limits {
    /// The bandwidth that the MBU of these measures divides by: that of the weights, where they were read.
    pub fn read_of(&self, measures: Option<&Measures>) -> f64 {
        measures.and_then(Measures::weights_bytes_per_s).unwrap_or(self.read_bytes_per_s)
    }
}

/// Readings of a limit around the samples of a benchmark, in the unit of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// Number of readings.
    pub readings: usize,
    /// The lowest mean over a second.
    pub lowest: f64,
    /// The highest mean over a second.
    pub highest: f64,
    /// The highest reading of the process until the benchmark ended.
    pub best_of_run: f64,
}

impl Spread {
    /// Share by which the limit moved during the benchmark: the highest mean over the lowest, less one.
    pub fn moved(&self) -> f64 {
        self.highest / self.lowest - 1.0
    }
}

/// Load on the machine while the benchmark ran. A share is `null` if the system does not report it, or if the benchmark took
/// less than half a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conditions {
    /// Share of the machine's CPU time that other processes used.
    pub other_cpu_share: Option<f64>,
    /// Share of the machine's CPU time that a hypervisor gave to other guests.
    pub stolen_cpu_share: Option<f64>,
    /// The GPU that was used, if it is an NVIDIA GPU.
    #[serde(default)]
    pub gpu: Option<GpuLoad>,
    /// The samples during which the machine was held back, in the order of measurement.
    #[serde(default)]
    pub held_back: Vec<HeldBack>,
    /// Reasons to doubt the result, as sentences.
    pub doubts: Vec<String>,
}

/// A sample during which the machine was held back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldBack {
    /// Number of the sample, from 0.
    pub sample: usize,
    /// Causes that held the machine back.
    pub by: BTreeSet<Hindrance>,
}

/// A cause that holds a machine back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hindrance {
    /// Other processes used the CPU.
    OtherProcesses,
    /// A hypervisor gave CPU time to other guests.
    Hypervisor,
    /// The clocks of the CPU or GPU were throttled.
    Clocks,
}

/// State of a GPU while the benchmark ran, sampled four times a second. A counter that the GPU lacks is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuLoad {
    /// Median clock of the multiprocessors.
    pub sm_mhz: Option<u32>,
    /// Mean power.
    pub power_watts: Option<f64>,
    /// Highest temperature.
    pub temperature_celsius: Option<u32>,
    /// Share of the samples in which each reason throttled the clocks, by NVML's name of the reason in lower case.
    pub throttle_reasons: BTreeMap<String, f64>,
}

/// The machine that ran the benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Name for folders and tables: the CPU or GPU, and the number of cores.
    pub name: String,
    /// Model name of the CPU, or its architecture if the system does not report the name.
    pub cpu: String,
    /// CPU cores, without simultaneous multithreading.
    pub physical_cores: Option<usize>,
    /// CPU threads that the process may use.
    pub logical_cores: usize,
    /// Threads that Candle uses.
    pub threads: usize,
    /// Size of the main memory.
    pub memory_bytes: Option<u64>,
    /// Name and version of the operating system.
    pub os: String,
    /// Version of the operating system's kernel.
    pub kernel: Option<String>,
    /// CPU frequency governor of Linux, for example `performance`.
    pub governor: Option<String>,
    /// SIMD extensions of the CPU.
    pub simd_available: Vec<String>,
    /// SIMD extensions that the program was compiled for.
    pub simd_compiled: Vec<String>,
    /// The GPU that was used, if it is an NVIDIA GPU.
    pub gpu: Option<Gpu>,
}

/// A GPU of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Model name.
    pub name: String,
    /// Version of the driver.
    pub driver: Option<String>,
    /// CUDA compute capability, for example `9.0`.
    pub compute_capability: Option<String>,
    /// Size of the GPU's memory.
    pub memory_bytes: Option<u64>,
}

/// Versions of the software that ran the benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Software {
    /// Version of this crate.
    pub candlepower: String,
    /// Version of candle-core, with ` (path)` when Cargo built it from a checkout.
    pub candle: String,
    /// Version of each Candle crate, by name, with its source in parentheses where that is not the registry. `null` if the
    /// build had no lock file.
    #[serde(default)]
    pub candle_crates: Option<BTreeMap<String, String>>,
    /// Version of Criterion.
    pub criterion: String,
    /// Version of the compiler, as `rustc --version` prints it.
    pub rustc: String,
    /// Commit of the working directory, with `-dirty` if it had uncommitted changes.
    pub commit: Option<String>,
    /// Cargo profile of the build.
    pub profile: String,
    /// Enabled Cargo features.
    pub features: Vec<String>,
    /// The variable `GLIBC_TUNABLES`, which tells the C library how to allocate memory; absent if it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glibc_tunables: Option<String>,
    /// The other variables that change what Candle, its thread pools or the C library do, with their values; absent if none was
    /// set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl Software {
    /// The value of one of [`VARIABLES`], if it was set.
    pub fn variable(&self, name: &str) -> Option<&String> {
        if name == GLIBC_TUNABLES { self.glibc_tunables.as_ref() } else { self.environment.get(name) }
    }
}

/// Value of a setting, and its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// The value, as text.
    pub value: String,
    /// `default`, `environment`, `command line`, or the file's name.
    pub from: String,
}
