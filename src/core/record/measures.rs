//! The table of measures. Each row is a field of a record, with its explanation, its unit, and every output that shows it.
//!
//! To add a measure, add a row here and fill the field where it is measured. Its type must be an `Option`, so that records
//! from before it can still be read. The row generates the field of the record and of its JSON schema, the column of
//! `results.csv` and `results.parquet`, the column of each table that it names, its entry in every export, and its line of
//! the guide.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    Better, Measures, Routing, SampleUnit, Stability, Work,
    columns::{Cell, DataType, Value},
};
use crate::scenario::Sampling;

const HIGHER: Option<Better> = Some(Better::Higher);
const LOWER: Option<Better> = Some(Better::Lower);

/// The value follows from the samples of the record.
const SAMPLED: fn(&Measures) -> bool = |_| true;

/// The same in a benchmark of memory.
const SAMPLED_BYTES: fn(&Measures) -> bool = |measures| measures.samples().0 == SampleUnit::Bytes;

/// The same in a generation of one token, whose time is that of the prompt.
const SAMPLED_OF_ONE_TOKEN: fn(&Measures) -> bool =
    |measures| matches!(measures, Measures::Generation(measures) if measures.new_tokens == 1);

/// The same in a load on a server, whose samples are times to the end of the answer.
const SAMPLED_E2E: fn(&Measures) -> bool =
    |measures| matches!(measures, Measures::Serving(measures) if measures.sample_ms.is_empty());

/// Defines the measures of one kind of benchmark: a struct for records, and a table with a row for each field that has one.
/// A field without a row is in the record only. Rows below `derived` are computed from the fields and are not in the record.
macro_rules! measures {
    (
        $(#[$attribute:meta])*
        $kind:ident {
            $( $(#[doc = $doc:literal])* $(#[serde($serde:ident)])? $field:ident: $type:ty $(=> $row:expr)? ),* $(,)?
        }
        derived {
            $( $(#[doc = $derived_doc:literal])* $derived:ident: $derived_type:ty = $get:expr => $derived_row:expr ),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $kind {
            $( $(#[doc = $doc])* $(#[serde($serde)])? pub $field: $type, )*
        }

        impl $kind {
            /// The rows of this kind of benchmark. A field without a row is `None`.
            const MEASURES: &'static [Option<Measure>] = &[
                $( measure!($kind, $field: $type, [$($doc),*], |measures: &$kind| measures.$field.value() $(, $row)?), )*
                $( measure!($kind, $derived: $derived_type, [$($derived_doc),*], |measures: &$kind| {
                    let get: fn(&$kind) -> $derived_type = $get;
                    get(measures).value()
                }, $derived_row), )*
            ];
        }
    };
}

/// One entry of the table: `None` without a row. A row whose field or accessor is missing does not compile.
macro_rules! measure {
    ($kind:ident, $name:ident: $type:ty, [$($doc:literal),*], $get:expr) => {
        None
    };
    ($kind:ident, $name:ident: $type:ty, [$($doc:literal),*], $get:expr, $row:expr) => {
        Some(Measure {
            name: stringify!($name),
            explanation: concat!($($doc),*),
            data_type: <$type as Cell>::DATA_TYPE,
            value: |measures| match measures {
                Measures::$kind(measures) => ($get)(measures),
                _ => None,
            },
            row: $row,
        })
    };
}

/// A measure of one kind of benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Name of the field in the record.
    pub name: &'static str,
    /// The field's documentation, with a leading space.
    explanation: &'static str,
    /// Type of the column in data files.
    pub data_type: DataType,
    /// `None` for a benchmark of another kind, and where there is no value.
    pub value: fn(&Measures) -> Option<Value>,
    /// Outputs that show the measure.
    pub row: Row,
}

/// Where a measure is shown, and how.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Unit of the value in records.
    pub unit: MeasureUnit,
    /// `None` where neither direction is better.
    pub better: Option<Better>,
    /// Column in `results.csv` and `results.parquet`.
    pub results: Name,
    /// Column in `sweep.parquet`.
    pub sweep: Option<&'static str>,
    /// Place among the exported metrics and name there, without the unit. The lowest place is the headline.
    pub export: Option<(u8, &'static str)>,
    /// True if the value is the middle of the samples of these measures, its exponential, or a quotient with
    /// it. Exports then tell how it varies.
    pub is_sampled: fn(&Measures) -> bool,
    /// True if the value is that of decode steps, which a generation of one token lacks.
    pub of_steps: bool,
    /// Tables, the place of the column in each, and its header with the unit. Places only order columns: leave gaps.
    pub tables: &'static [(TableKey, u8, &'static str)],
    /// Display of a missing value in tables.
    pub missing: Missing,
}

impl Row {
    /// A column of the result files that no table shows.
    const DATA: Self = Self {
        unit: MeasureUnit::None,
        better: None,
        results: Name::OfField,
        sweep: None,
        export: None,
        is_sampled: |_| false,
        of_steps: false,
        tables: &[],
        missing: Missing::NotAvailable,
    };
}

/// Name of a measure in an output.
#[derive(Clone, Copy, Debug)]
pub enum Name {
    /// The output leaves the measure out.
    LeftOut,
    /// The name of the field.
    OfField,
    /// Another name.
    Other(&'static str),
}

/// A table for people. `Live` is the view of `candlepower watch`; the others are the tables of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKey {
    /// Generations of dense models.
    Generation,
    /// Long prompts, and the steps after them.
    LongContext,
    /// Prompt passes of mixtures of experts.
    MixturePrefill,
    /// Decode steps of mixtures of experts.
    MixtureDecode,
    /// Steps of time-series models.
    Sweep,
    /// Training with and without gradient checkpointing.
    Checkpointing,
    /// Training of language models.
    Training,
    /// Requests to a server.
    Serving,
    /// Likelihood of a text.
    Quality,
    /// Size, speed and quality of a model in several dtypes.
    Dtypes,
    /// Tasks scored by log-likelihood.
    Evaluation,
    /// Loads of checkpoints.
    Loading,
    /// Passes of tokenizers.
    Tokenizing,
    /// Generations of one model over threads or ranks.
    Scaling,
    /// The view of `candlepower watch`.
    Live,
}

/// How a table shows a missing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `n/a`: the value could not be measured.
    NotAvailable,
    /// An empty cell: the measure does not apply to the benchmark. No column in a table where every cell is empty.
    Blank,
    /// `n/a`, and no column in a table where every value is missing.
    NoColumn,
}

/// Unit of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasureUnit {
    /// Text or a flag.
    None,
    /// A number of things, for example of samples.
    Count,
    /// A number of tokens.
    Tokens,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Tokens per second.
    TokensPerS,
    /// Windows of a series per second.
    WindowsPerS,
    /// Requests per second.
    RequestsPerS,
    /// Bytes.
    Bytes,
    /// Bytes per second. Tables print MB/s.
    BytesPerS,
    /// From 0 to 1. Tables print it in percent.
    Share,
    /// A share of a limit of the machine. Above 1 it is no result.
    OfLimit,
    /// A share of answers, from 0 to 1. Tables print it in percent with two more digits than a [`Share`](Self::Share).
    Accuracy,
    /// A quotient of two like quantities.
    Ratio,
    /// Bits of entropy.
    Bits,
    /// A value of the loss function.
    Loss,
    /// Negative log-likelihood or divergence, in natural units of information.
    Nats,
    /// Exponential of a negative log-likelihood.
    Perplexity,
    /// Energy in joules.
    Joules,
    /// Power in watts.
    Watts,
}

impl MeasureUnit {
    /// Short name, empty where values have no unit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None | Self::Count | Self::Ratio | Self::Loss | Self::Perplexity => "",
            Self::Tokens => "tokens",
            Self::Ms => "ms",
            Self::Us => "µs",
            Self::TokensPerS => "tok/s",
            Self::WindowsPerS => "samples/s",
            Self::RequestsPerS => "requests/s",
            Self::Bytes => "bytes",
            Self::BytesPerS => "bytes/s",
            Self::Share | Self::OfLimit | Self::Accuracy => "share",
            Self::Bits => "bits",
            Self::Nats => "nats",
            Self::Joules => "J",
            Self::Watts => "W",
        }
    }

    /// Name of the base unit as OpenMetrics spells it, and the factor to it. The name is empty where there is none.
    pub const fn base(self) -> (&'static str, f64) {
        match self {
            Self::Ms => ("seconds", 1e-3),
            Self::Us => ("seconds", 1e-6),
            Self::Bytes => ("bytes", 1.0),
            Self::Bits => ("bytes", 0.125),
            Self::Joules => ("joules", 1.0),
            Self::Watts => ("watts", 1.0),
            Self::None
            | Self::Count
            | Self::Tokens
            | Self::TokensPerS
            | Self::WindowsPerS
            | Self::RequestsPerS
            | Self::BytesPerS
            | Self::Share
            | Self::OfLimit
            | Self::Accuracy
            | Self::Ratio
            | Self::Loss
            | Self::Nats
            | Self::Perplexity => ("", 1.0),
        }
    }
}

impl Serialize for MeasureUnit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Measure {
    /// One or two sentences of plain English.
    pub fn explanation(&self) -> &'static str {
        self.explanation.trim_start()
    }

    /// Column in `results.csv` and `results.parquet`.
    pub fn results_column(&self) -> Option<&'static str> {
        match self.row.results {
            Name::LeftOut => None,
            Name::OfField => Some(self.name),
            Name::Other(name) => Some(name),
        }
    }
}

/// The rows of every kind of benchmark.
pub fn all() -> impl Iterator<Item = &'static Measure> {
    let kinds = [
        Generation::MEASURES,
        Sweep::MEASURES,
        Training::MEASURES,
        Serving::MEASURES,
        Quality::MEASURES,
        Evaluation::MEASURES,
        Loading::MEASURES,
        Tokenizing::MEASURES,
    ];
    kinds.into_iter().flatten().flatten()
}

/// A column of a table for people.
pub struct TableColumn {
    /// Order of the column among the columns of its table.
    pub place: u8,
    /// Header, with the unit.
    pub header: &'static str,
    /// Display of a missing value.
    pub missing: Missing,
    /// The direction of improvement; `None` for a property of the work.
    pub better: Option<Better>,
    /// Rows of the table of measures that have this header; kinds of benchmarks may share it.
    measures: Vec<&'static Measure>,
}

impl TableColumn {
    /// The value, and the unit that it is in.
    pub fn value(&self, measures: &Measures) -> Option<(f64, MeasureUnit)> {
        self.measures.iter().find_map(|measure| Some(((measure.value)(measures)?.number()?, measure.row.unit)))
    }
}

/// The columns that rows put into a table, in their order.
pub fn table_columns(table: TableKey) -> Vec<TableColumn> {
    let mut columns: Vec<TableColumn> = Vec::new();
    for measure in all() {
        for &(_, place, header) in measure.row.tables.iter().filter(|(key, ..)| *key == table) {
            match columns.iter_mut().find(|column| column.header == header) {
                Some(column) => column.measures.push(measure),
                None => columns.push(TableColumn {
                    place,
                    header,
                    missing: measure.row.missing,
                    better: measure.row.better,
                    measures: vec![measure],
                }),
            }
        }
    }
    columns.sort_by_key(|column| column.place);
    columns
}

measures! {
    /// Measures of a generation scenario. Each time is a median over the samples. Percentiles are over every step of every
    /// sample.
    Generation {
        /// Sequences of a batch, which advance together. Empty for a single sequence. Rates are those of all sequences.
        #[serde(default)]
        batch: Option<usize> => Row {
            unit: MeasureUnit::Count, missing: Missing::Blank,
            tables: &[
                (TableKey::Generation, 5, "batch"), (TableKey::MixturePrefill, 5, "batch"),
                (TableKey::MixtureDecode, 5, "batch"),
            ],
            ..Row::DATA
        },
        /// Tokens of the prompt, or of each prompt of a batch.
        prompt_tokens: usize => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Tokens that the scenario asks for, of each sequence.
        new_tokens: usize => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// How tokens are chosen.
        sampling: Sampling,
        /// Seed of the prompt and of sampling.
        seed: u64,
        /// Samples that were measured, warm-up excluded.
        samples: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Time of a generation, from the prompt to the last token.
        total_ms: f64 => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Mean time of the generations of each sample, in the order of measurement.
        sample_total_ms: Vec<f64>,
        /// Time to first token (TTFT): from the prompt to the first generated token, sampling included.
        ttft_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((40, "ttft")), is_sampled: SAMPLED_OF_ONE_TOKEN,
            tables: &[
                (TableKey::Generation, 12, "TTFT ms"), (TableKey::LongContext, 50, "TTFT ms"),
                (TableKey::Live, 10, "TTFT ms"),
            ],
            ..Row::DATA
        },
        /// Median inter-token latency (ITL): the time between successive tokens. Empty when one token was generated.
        itl_p50_ms: Option<f64> => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((50, "itl_p50")), of_steps: true,
            tables: &[
                (TableKey::Generation, 30, "ITL P50 ms"), (TableKey::LongContext, 30, "ITL P50 ms"),
                (TableKey::Live, 20, "ITL ms"),
            ],
            ..Row::DATA
        },
        /// 95th percentile of the inter-token latency.
        itl_p95_ms: Option<f64> => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((60, "itl_p95")), of_steps: true,
            tables: &[(TableKey::Generation, 40, "ITL P95 ms")], ..Row::DATA
        },
        /// 99th percentile of the inter-token latency.
        itl_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, of_steps: true, ..Row::DATA },
        /// Time per output token (TPOT): the mean inter-token latency.
        tpot_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, of_steps: true, ..Row::DATA },
        /// Prompt tokens divided by the time to first token.
        prefill_tokens_per_s: f64 => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, export: Some((30, "prefill_tokens_per_s")),
            is_sampled: SAMPLED_OF_ONE_TOKEN,
            tables: &[
                (TableKey::Generation, 11, "prefill tok/s"), (TableKey::MixturePrefill, 10, "prefill tok/s"),
                (TableKey::Scaling, 25, "prefill tok/s"), (TableKey::LongContext, 25, "prefill tok/s"),
            ],
            ..Row::DATA
        },
        /// Tokens after the first divided by the time of their steps.
        decode_tokens_per_s: Option<f64> => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, export: Some((20, "decode_tokens_per_s")), of_steps: true,
            tables: &[
                (TableKey::Generation, 10, "decode tok/s"), (TableKey::MixtureDecode, 10, "decode tok/s"),
                (TableKey::Scaling, 20, "decode tok/s"), (TableKey::LongContext, 20, "decode tok/s"),
            ],
            ..Row::DATA
        },
        /// Generated tokens divided by the time of the whole generation. This is the headline of a generation.
        tokens_per_s: f64 => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER,
            tables: &[(TableKey::Generation, 20, "tok/s"), (TableKey::Scaling, 10, "tok/s")], ..Row::DATA
        },
        /// Share of the total time spent choosing tokens. Empty for a peer, which does not tell it apart.
        sampling_share: Option<f64> => Row { unit: MeasureUnit::Share, better: LOWER, ..Row::DATA },
        /// Share of decode time spent waiting for the GPU after all work was submitted. Near 0 %: launch-bound. Near 100 %:
        /// GPU-bound. Empty on a CPU.
        #[serde(default)]
        waiting_share: Option<f64> => Row {
            unit: MeasureUnit::Share, tables: &[(TableKey::Generation, 70, "GPU wait")], missing: Missing::NoColumn,
            ..Row::DATA
        },
        /// Share of the CPU time of generations that the kernel took, for example to map pages that the allocator had returned.
        /// Empty for a peer, for less than a second, and on systems other than Linux.
        #[serde(default)]
        kernel_share: Option<f64> => Row { unit: MeasureUnit::Share, better: LOWER, ..Row::DATA },
        /// Allocations of memory in a decode step, by the thread that runs the steps, in the median generation. Empty for a peer and
        /// in a program without the counting allocator.
        #[serde(default)]
        step_allocations: Option<f64> => Row { unit: MeasureUnit::Count, better: LOWER, of_steps: true, ..Row::DATA },
        /// Bytes of these allocations.
        #[serde(default)]
        step_allocated_bytes: Option<f64> => Row { unit: MeasureUnit::Bytes, better: LOWER, of_steps: true, ..Row::DATA },
        /// Bytes of the key-value cache that the last step read.
        cache_used_bytes: u64 => Row {
            unit: MeasureUnit::Bytes, better: LOWER,
            tables: &[(TableKey::Generation, 90, "cache MB"), (TableKey::LongContext, 90, "cache MB")], ..Row::DATA
        },
        /// Bytes allocated for the key-value cache at the last step.
        cache_allocated_bytes: u64 => Row { unit: MeasureUnit::Bytes, better: LOWER, ..Row::DATA },
        /// Peak memory while a benchmark runs, weights included. For training, gradients, optimizer state and activations
        /// are also included.
        peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, export: Some((70, "peak_memory")),
            tables: &[
                (TableKey::Generation, 100, "peak MB"), (TableKey::MixturePrefill, 100, "peak MB"),
                (TableKey::MixtureDecode, 100, "peak MB"), (TableKey::Scaling, 100, "peak MB"),
                (TableKey::LongContext, 100, "peak MB"), (TableKey::Live, 30, "peak MB"),
            ],
            ..Row::DATA
        },
        /// Peak memory as it is predicted before the first generation: weights, cache and activations. Empty for engines whose
        /// activations are not known.
        predicted_peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, tables: &[(TableKey::LongContext, 101, "predicted MB")], ..Row::DATA
        },
        /// Implementation of attention: `paged` (kernels of engine `tuned`), `candle` or `flash-attn`. Empty for models of your own
        /// and for peers.
        attention: Option<String> => Row::DATA,
        /// Dtype of keys and values in the cache. Empty for models of your own and for peers.
        cache_dtype: Option<String> => Row::DATA,
        /// Bandwidth at which the model's weights are read if nothing else is done, in the median reading between decode steps. Empty
        /// for models that do not offer their weights, and if nothing was read between steps.
        #[serde(default)]
        weights_bytes_per_s: Option<f64>,
        /// Model bandwidth utilization (MBU) of decode: that of the median step, whose bytes to read are divided by its time, as a
        /// share of `weights_bytes_per_s` during the step, or of the memory bandwidth if that is empty.
        mbu: Option<f64> => Row {
            unit: MeasureUnit::OfLimit, better: HIGHER, of_steps: true,
            tables: &[
                (TableKey::Generation, 13, "MBU"), (TableKey::MixtureDecode, 40, "MBU"), (TableKey::Scaling, 60, "MBU"),
                (TableKey::LongContext, 60, "MBU"),
            ],
            ..Row::DATA
        },
        /// Model FLOP utilization (MFU): required operations divided by time, as a share of the rate of matrix products. Generations
        /// count the prefill over the time to first token, as a share of the rate at that time, and take the median prompt. Training
        /// counts three forward passes over the median step.
        mfu: Option<f64> => Row {
            unit: MeasureUnit::OfLimit, better: HIGHER,
            tables: &[
                (TableKey::Generation, 17, "MFU"), (TableKey::MixturePrefill, 40, "MFU"), (TableKey::Scaling, 80, "MFU"),
                (TableKey::LongContext, 80, "MFU"),
            ],
            ..Row::DATA
        },
        /// Energy that the device used, divided by the number of tokens that all sequences generated. On a CPU, it is that of all
        /// packages and their memory.
        joules_per_token: Option<f64> => Row {
            unit: MeasureUnit::Joules, better: LOWER, export: Some((80, "joules_per_token")),
            tables: &[(TableKey::Generation, 110, "J/token")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// `length` or `end_of_sequence`.
        finish_reason: String,
        /// Tokens that each sequence generated.
        generated_tokens: usize,
        /// First 16 hexadecimal digits of the SHA-256 of the generated ids as little-endian u32. Equal digests mean equal
        /// output.
        token_digest: String => Row::DATA,
        /// Median inter-token latency at each position.
        itl_by_position_ms: Vec<f64>,
        /// Bytes and operations that the two phases require. `null` in records from before this field.
        #[serde(default)]
        work: Option<Work>,
        /// Use of the experts. `null` for a dense model.
        #[serde(default)]
        routing: Option<Routing>,
        /// Bytes that each rank of a sharded model passed to sums over the ranks in one generation. Empty for a model that is
        /// not sharded.
        #[serde(default)]
        reduced_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, tables: &[(TableKey::Scaling, 70, "reduced MB")],
            missing: Missing::NoColumn, ..Row::DATA
        },
    }
    derived {
        /// Generated tokens of one sequence of a batch divided by the time of the whole generation.
        sequence_tokens_per_s: Option<f64> = |m| Some(m.tokens_per_s / m.batch? as f64) => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, missing: Missing::Blank,
            tables: &[(TableKey::Generation, 21, "tok/s per sequence")], ..Row::DATA
        },
        /// Tokens of one sequence of a batch after the first, divided by the time of their steps.
        sequence_decode_tokens_per_s: Option<f64> = |m| Some(m.decode_tokens_per_s? / m.batch? as f64) => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, missing: Missing::Blank,
            tables: &[
                (TableKey::Generation, 22, "decode tok/s per sequence"),
                (TableKey::MixtureDecode, 12, "decode tok/s per sequence"),
            ],
            ..Row::DATA
        },
        /// Tokens of the busiest expert divided by the mean over the experts, averaged over the layers. 1 is even.
        load_balance_factor: Option<f64> = |m| Some(m.routing.as_ref()?.load_balance_factor) => Row {
            unit: MeasureUnit::Ratio, better: LOWER, missing: Missing::Blank,
            tables: &[(TableKey::MixturePrefill, 50, "load factor"), (TableKey::MixtureDecode, 50, "load factor")],
            ..Row::DATA
        },
        /// Entropy of the distribution of tokens over experts, averaged over the layers. The maximum is the binary logarithm
        /// of the number of experts.
        routing_entropy_bits: Option<f64> = |m| Some(m.routing.as_ref()?.entropy_bits) => Row {
            unit: MeasureUnit::Bits, better: HIGHER, missing: Missing::Blank,
            tables: &[(TableKey::MixturePrefill, 60, "entropy bits"), (TableKey::MixtureDecode, 60, "entropy bits")],
            ..Row::DATA
        },
        /// Share of the experts that received no token, averaged over the layers.
        idle_expert_share: Option<f64> = |m| Some(m.routing.as_ref()?.idle_share) => Row {
            unit: MeasureUnit::Share, better: LOWER, missing: Missing::Blank,
            tables: &[(TableKey::MixturePrefill, 70, "idle experts"), (TableKey::MixtureDecode, 70, "idle experts")],
            ..Row::DATA
        },
        /// The exported headline. Empty for a scenario of one token, whose rate the prefill already states.
        headline_tokens_per_s: Option<f64> = |m| (m.new_tokens > 1).then_some(m.tokens_per_s) => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, results: Name::LeftOut, export: Some((10, "tokens_per_s")),
            is_sampled: SAMPLED,
            ..Row::DATA
        },
        /// Mean power of the device.
        watts: Option<f64> = |m| Some(m.joules_per_token? * m.tokens_per_s) => Row {
            unit: MeasureUnit::Watts, results: Name::LeftOut, tables: &[(TableKey::Live, 40, "watts")], ..Row::DATA
        },
    }
}

impl Generation {
    /// Number of sequences: that of the batch, or 1.
    pub fn sequences(&self) -> usize {
        self.batch.unwrap_or(1)
    }
}

measures! {
    /// Measures of one combination of the architecture sweep: training steps or forecasts.
    Sweep {
        /// Steps that were measured, warm-up excluded.
        steps: usize => Row { unit: MeasureUnit::Count, results: Name::LeftOut, sweep: Some("steps"), ..Row::DATA },
        /// Samples that were measured, warm-up excluded.
        samples: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Mean time of the steps of each sample, in the order of measurement.
        sample_ms: Vec<f64>,
        /// Windows of the series divided by the time of the median step.
        windows_per_s: f64 => Row {
            unit: MeasureUnit::WindowsPerS, better: HIGHER, results: Name::LeftOut, sweep: Some("samples_per_s"),
            export: Some((10, "samples_per_s")), is_sampled: SAMPLED,
            tables: &[(TableKey::Sweep, 10, "samples/s")], ..Row::DATA
        },
        /// Median time of a step.
        step_p50_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, sweep: Some("step_p50_ms"), export: Some((20, "step_p50")),
            is_sampled: SAMPLED,
            tables: &[(TableKey::Sweep, 20, "step P50 ms"), (TableKey::Live, 25, "step ms")], ..Row::DATA
        },
        /// 95th percentile of the time of a step.
        step_p95_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, sweep: Some("step_p95_ms"), export: Some((30, "step_p95")),
            tables: &[(TableKey::Sweep, 30, "P95 ms")], ..Row::DATA
        },
        /// 99th percentile of the time of a step.
        step_p99_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, sweep: Some("step_p99_ms"),
            tables: &[(TableKey::Sweep, 40, "P99 ms")], ..Row::DATA
        },
        /// Peak memory while a benchmark runs, weights included. For training, gradients, optimizer state and activations
        /// are also included.
        peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, sweep: Some("peak_bytes"), export: Some((40, "peak_memory")),
            tables: &[(TableKey::Sweep, 100, "peak MB"), (TableKey::Live, 30, "peak MB")], ..Row::DATA
        },
        /// Model FLOP utilization (MFU) at the median step: operations of the matrix products divided by time, as a share of
        /// `matrix_flops_per_s`. A training step counts as three forward passes.
        mfu: Option<f64> => Row {
            unit: MeasureUnit::OfLimit, better: HIGHER, sweep: Some("mfu"), tables: &[(TableKey::Sweep, 50, "MFU")],
            ..Row::DATA
        },
        /// Mean squared error before the first measured step. `null` where nothing is trained.
        first_loss: Option<f64> => Row {
            unit: MeasureUnit::Loss, results: Name::LeftOut, sweep: Some("first_loss"), missing: Missing::Blank,
            tables: &[(TableKey::Sweep, 110, "first loss")], ..Row::DATA
        },
        /// Mean squared error before the last measured step. `null` where nothing is trained.
        last_loss: Option<f64> => Row {
            unit: MeasureUnit::Loss, results: Name::LeftOut, sweep: Some("last_loss"), missing: Missing::Blank,
            tables: &[(TableKey::Sweep, 120, "last loss")], ..Row::DATA
        },
        /// Mean squared error after the last step, on windows that training does not see. `null` where nothing is trained.
        held_out_loss: Option<f64> => Row {
            unit: MeasureUnit::Loss, better: LOWER, results: Name::LeftOut, sweep: Some("held_out_loss"),
            missing: Missing::Blank, tables: &[(TableKey::Sweep, 130, "held-out loss")], ..Row::DATA
        },
    }
    derived {
        /// Windows of the series divided by the time of the median step.
        windows_per_s: f64 = |m| m.windows_per_s => Row {
            unit: MeasureUnit::WindowsPerS, better: HIGHER, ..Row::DATA
        },
    }
}

measures! {
    /// Measures of steps of a language model: training, or forward to the loss.
    Training {
        /// `train` or `forward`.
        phase: String => Row::DATA,
        /// Tokens that a step predicts.
        batch_tokens: usize => Row {
            unit: MeasureUnit::Tokens, tables: &[(TableKey::Training, 10, "batch tokens")], ..Row::DATA
        },
        /// Tokens of a batch divided by the time of the median step.
        tokens_per_s: f64 => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, results: Name::Other("train_tokens_per_s"),
            export: Some((10, "tokens_per_s")), is_sampled: SAMPLED,
            tables: &[(TableKey::Training, 20, "tok/s"), (TableKey::Checkpointing, 80, "tok/s")], ..Row::DATA
        },
        /// Tokens of each row of a batch.
        tokens_per_row: usize,
        /// Micro-batches that a batch was split into. 1 when the batch fitted at once.
        micro_batches: usize => Row {
            unit: MeasureUnit::Count, tables: &[(TableKey::Training, 120, "micro-batches")], ..Row::DATA
        },
        /// True if gradient checkpointing was on: a layer keeps only its input and is computed again in the backward pass.
        checkpointing: bool => Row::DATA,
        /// Steps that were measured, warm-up excluded.
        steps: usize,
        /// Samples that were measured, warm-up excluded.
        samples: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Mean time of the steps of each sample, in the order of measurement. Empty for a benchmark of memory.
        sample_ms: Vec<f64>,
        /// Peak memory of each sample, as Criterion received it. Empty for a benchmark of time.
        sample_peak_bytes: Vec<u64>,
        /// Median time of a step.
        step_p50_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((20, "step_p50")), is_sampled: SAMPLED,
            tables: &[
                (TableKey::Training, 30, "step P50 ms"), (TableKey::Checkpointing, 60, "step P50 ms"),
                (TableKey::Live, 25, "step ms"),
            ],
            ..Row::DATA
        },
        /// 95th percentile of the time of a step.
        step_p95_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((30, "step_p95")),
            tables: &[(TableKey::Training, 40, "P95 ms")], ..Row::DATA
        },
        /// 99th percentile of the time of a step.
        step_p99_ms: f64 => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Peak memory while a benchmark runs, weights included. For training, gradients, optimizer state and activations
        /// are also included.
        peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, export: Some((40, "peak_memory")), is_sampled: SAMPLED_BYTES,
            tables: &[
                (TableKey::Training, 110, "peak MB"), (TableKey::Checkpointing, 10, "peak MB"),
                (TableKey::Live, 30, "peak MB"),
            ],
            ..Row::DATA
        },
        /// Memory in use between steps.
        allocated_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER,
            tables: &[(TableKey::Training, 90, "allocated MB"), (TableKey::Checkpointing, 20, "between steps MB")],
            ..Row::DATA
        },
        /// Memory that the device's pool reserved, in use or not.
        reserved_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, tables: &[(TableKey::Training, 100, "reserved MB")],
            missing: Missing::NoColumn, ..Row::DATA
        },
        /// Model FLOP utilization (MFU) at the median step: operations of the matrix products divided by time, as a share of
        /// `matrix_flops_per_s`. A training step counts as three forward passes, whether or not checkpointing repeats one.
        mfu: Option<f64> => Row {
            unit: MeasureUnit::OfLimit, better: HIGHER, tables: &[(TableKey::Training, 50, "MFU")], ..Row::DATA
        },
        /// Loss, gradients and updates of each step. `null` where nothing is trained.
        stability: Option<Stability>,
    }
    derived {
        /// Loss before the first measured update: the mean cross-entropy in nats.
        first_loss: Option<f64> = |m| m.stability.as_ref()?.losses.first().copied() => Row {
            unit: MeasureUnit::Loss, missing: Missing::Blank, tables: &[(TableKey::Training, 130, "first loss")],
            ..Row::DATA
        },
        /// Loss before the last measured update: the mean cross-entropy in nats.
        last_loss: Option<f64> = |m| m.stability.as_ref()?.losses.last().copied() => Row {
            unit: MeasureUnit::Loss, missing: Missing::Blank, tables: &[(TableKey::Training, 140, "last loss")],
            ..Row::DATA
        },
        /// Norm of all gradients in the last measured step, before clipping.
        gradient_norm: Option<f64> = |m| m.stability.as_ref()?.gradient_norms.last().copied() => Row::DATA,
        /// Norm of the last measured update divided by that of the weights.
        update_ratio: Option<f64> = |m| m.stability.as_ref()?.update_ratios.last().copied() => Row::DATA,
    }
}

measures! {
    /// Measures of a load of requests on a server. Times count from the schedule of each request, unless their name says
    /// otherwise. Failed requests are not in the times.
    Serving {
        /// True if the generator was on time and the run long enough. The reasons against it are doubts of the record.
        valid: bool => Row::DATA,
        /// Requests per second that the schedule asks for. `null` in a closed loop and for a trace.
        offered_requests_per_s: Option<f64> => Row {
            unit: MeasureUnit::RequestsPerS, tables: &[(TableKey::Serving, 10, "offered/s")], ..Row::DATA
        },
        /// Requests that were due.
        requests: u64 => Row { unit: MeasureUnit::Count, tables: &[(TableKey::Serving, 20, "requests")], ..Row::DATA },
        /// Requests that failed.
        failed_requests: u64 => Row {
            unit: MeasureUnit::Count, better: LOWER, tables: &[(TableKey::Serving, 30, "failed")], ..Row::DATA
        },
        /// Time from the first schedule to the last end.
        duration_s: f64,
        /// Requests that succeeded, per second.
        requests_per_s: f64 => Row { unit: MeasureUnit::RequestsPerS, better: HIGHER, ..Row::DATA },
        /// Tokens of answers that succeeded, per second.
        output_tokens_per_s: f64 => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, export: Some((10, "output_tokens_per_s")),
            tables: &[(TableKey::Serving, 40, "output tok/s")], ..Row::DATA
        },
        /// Requests per second that met every objective. `null` without objectives.
        goodput_requests_per_s: Option<f64> => Row {
            unit: MeasureUnit::RequestsPerS, better: HIGHER, export: Some((20, "goodput")),
            tables: &[(TableKey::Serving, 50, "goodput/s")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// Requests that met every objective, as a share of the requests that were due.
        goodput_share: Option<f64> => Row {
            unit: MeasureUnit::Share, better: HIGHER, tables: &[(TableKey::Serving, 60, "goodput")],
            missing: Missing::NoColumn, ..Row::DATA
        },
        /// The same share, with times from the send.
        goodput_share_from_send: Option<f64> => Row { unit: MeasureUnit::Share, better: HIGHER, ..Row::DATA },
        /// Median time to first token (TTFT).
        ttft_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((30, "ttft_p50")), tables: &[(TableKey::Serving, 70, "TTFT P50 ms")], ..Row::DATA },
        /// 90th percentile of the time to first token (TTFT).
        ttft_p90_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 95th percentile of the time to first token (TTFT).
        ttft_p95_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time to first token (TTFT).
        ttft_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((40, "ttft_p99")), tables: &[(TableKey::Serving, 80, "TTFT P99 ms")], ..Row::DATA },
        /// 99.9th percentile of the time to first token (TTFT).
        ttft_p99_9_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median time per output token (TPOT).
        tpot_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((50, "tpot_p50")), tables: &[(TableKey::Serving, 90, "TPOT P50 ms")], ..Row::DATA },
        /// 90th percentile of the time per output token (TPOT).
        tpot_p90_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 95th percentile of the time per output token (TPOT).
        tpot_p95_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time per output token (TPOT).
        tpot_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((60, "tpot_p99")), tables: &[(TableKey::Serving, 100, "TPOT P99 ms")], ..Row::DATA },
        /// 99.9th percentile of the time per output token (TPOT).
        tpot_p99_9_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median inter-token latency (ITL).
        itl_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 90th percentile of the inter-token latency (ITL).
        itl_p90_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 95th percentile of the inter-token latency (ITL).
        itl_p95_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the inter-token latency (ITL).
        itl_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99.9th percentile of the inter-token latency (ITL).
        itl_p99_9_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median time to the end of the answer (E2E).
        e2e_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((70, "e2e_p50")), is_sampled: SAMPLED_E2E, tables: &[(TableKey::Serving, 110, "E2E P50 ms")], ..Row::DATA },
        /// 90th percentile of the time to the end of the answer (E2E).
        e2e_p90_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 95th percentile of the time to the end of the answer (E2E).
        e2e_p95_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time to the end of the answer (E2E).
        e2e_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, export: Some((80, "e2e_p99")), tables: &[(TableKey::Serving, 120, "E2E P99 ms")], ..Row::DATA },
        /// 99.9th percentile of the time to the end of the answer (E2E).
        e2e_p99_9_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median time to first token, from the send.
        ttft_from_send_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time to first token, from the send.
        ttft_from_send_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median time to the end of the answer, from the send.
        e2e_from_send_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time to the end of the answer, from the send.
        e2e_from_send_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Median time between events of a stream, however many tokens they have.
        chunk_gap_p50_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time between events.
        chunk_gap_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// 99th percentile of the time between the schedule and the send of a request: the error of the generator.
        lateness_p99_ms: Option<f64> => Row { unit: MeasureUnit::Ms, better: LOWER, tables: &[(TableKey::Serving, 130, "lateness P99 ms")], ..Row::DATA },
        /// Tokens of prompts by the server's usage. `null` if it gave none.
        prompt_tokens_by_usage: Option<u64> => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Prompt tokens that the server took from a cache, by its usage.
        cached_tokens: u64 => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Tokens of answers by the server's usage. `null` if it gave none.
        output_tokens_by_usage: Option<u64> => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Tokens of answers by the pinned tokenizer. `null` without one.
        output_tokens_by_tokenizer: Option<u64> => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Events with text.
        chunks: u64 => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Requests in which the server's count differs from that of the tokenizer.
        divergent_requests: u64 => Row { unit: MeasureUnit::Count, better: LOWER, ..Row::DATA },
        /// First 16 hexadecimal digits of the SHA-256 of the schedule. Equal digests mean equal times and lengths.
        schedule_digest: String => Row::DATA,
        /// First 16 hexadecimal digits of the SHA-256 of the prompts, or those of each shard joined by commas.
        prompt_digest: String => Row::DATA,
        /// Median time to the end of each group of consecutive requests, in the order of the schedule. A comparison takes
        /// groups, because the times of neighbours depend on each other. Empty for a load in this process.
        sample_e2e_ms: Vec<f64>,
        /// Mean latency of the requests of each sample of a load in this process, in the order of measurement: time to first
        /// token, or time from the first token to the last, as the scenario says. Empty for a load on a server.
        #[serde(default)]
        sample_ms: Vec<f64>,
        /// First 16 hexadecimal digits of the SHA-256 of the tokens of all answers of a load in this process, as
        /// little-endian u32. Equal digests mean equal tokens. Empty for a load on a server.
        token_digest: Option<String>,
        /// Peak memory of a load in this process, weights included. Empty for a load on a server.
        peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, export: Some((90, "peak_memory")),
            tables: &[(TableKey::Serving, 140, "peak MB")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// Energy divided by the tokens of answers: that of the device for a load in this process, and that of the CPUs, their
        /// memory and the GPUs of this machine for a load on a server that runs on it.
        joules_per_token: Option<f64> => Row {
            unit: MeasureUnit::Joules, better: LOWER, export: Some((100, "joules_per_token")),
            tables: &[(TableKey::Serving, 150, "J/token")], missing: Missing::NoColumn, ..Row::DATA
        },
    }
    derived {}
}

measures! {
    /// Likelihood of a file under a model, in sliding windows, and the divergence of its predictions from a reference.
    Quality {
        /// Perplexity: the exponential of the mean negative log-likelihood per token. Empty if it is above the range of numbers.
        perplexity: Option<f64> => Row {
            unit: MeasureUnit::Perplexity, better: LOWER, export: Some((10, "perplexity")), is_sampled: SAMPLED,
            tables: &[(TableKey::Quality, 10, "perplexity")], ..Row::DATA
        },
        /// Standard error of the perplexity, by the delta method. Empty for one token, and above the range of numbers.
        perplexity_standard_error: Option<f64> => Row {
            unit: MeasureUnit::Perplexity, tables: &[(TableKey::Quality, 20, "std error")], ..Row::DATA
        },
        /// Mean negative log-likelihood per token.
        nll: f64 => Row {
            unit: MeasureUnit::Nats, better: LOWER, export: Some((20, "nll")), is_sampled: SAMPLED,
            tables: &[(TableKey::Quality, 30, "NLL nats")], ..Row::DATA
        },
        /// Standard error of `nll`, as if tokens were independent. Empty for one token.
        nll_standard_error: Option<f64> => Row { unit: MeasureUnit::Nats, ..Row::DATA },
        /// Mean negative log-likelihood with the weights of the code in the documentation of transformers.
        transformers_nll: f64 => Row { unit: MeasureUnit::Nats, better: LOWER, ..Row::DATA },
        /// Negative log-likelihood per byte of a text. Empty for token ids.
        nll_per_byte: Option<f64> => Row { unit: MeasureUnit::Nats, better: LOWER, ..Row::DATA },
        /// Information in a byte of a text under the model: its negative log-likelihood. Empty for token ids.
        bits_per_byte: Option<f64> => Row {
            unit: MeasureUnit::Bits, better: LOWER, export: Some((30, "bits_per_byte")), is_sampled: SAMPLED,
            tables: &[(TableKey::Quality, 40, "bits / byte")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// Negative log-likelihood per word of a text. Empty for token ids.
        nll_per_word: Option<f64> => Row { unit: MeasureUnit::Nats, better: LOWER, ..Row::DATA },
        /// Tokens that count: all but those that no window predicts.
        scored_tokens: u64 => Row {
            unit: MeasureUnit::Tokens, tables: &[(TableKey::Quality, 90, "tokens")], ..Row::DATA
        },
        /// Tokens of a window.
        window_tokens: usize => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// Tokens by which the window moves.
        stride_tokens: usize => Row { unit: MeasureUnit::Tokens, ..Row::DATA },
        /// SHA-256 of the file, in hexadecimal.
        file_sha256: String => Row::DATA,
        /// Id of the reference. Empty without one.
        reference: Option<String> => Row::DATA,
        /// Mean Kullback-Leibler divergence from the reference. Empty without a reference.
        kl_mean: Option<f64> => Row {
            unit: MeasureUnit::Nats, better: LOWER, export: Some((40, "kl_mean")),
            tables: &[(TableKey::Quality, 50, "mean KL nats")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// Standard error of `kl_mean`. Empty without a reference.
        kl_standard_error: Option<f64> => Row { unit: MeasureUnit::Nats, ..Row::DATA },
        /// Largest Kullback-Leibler divergence from the reference. Empty without a reference.
        kl_max: Option<f64> => Row {
            unit: MeasureUnit::Nats, better: LOWER, tables: &[(TableKey::Quality, 60, "max KL nats")],
            missing: Missing::NoColumn, ..Row::DATA
        },
        /// Share of the tokens for which the most probable token is that of the reference. Empty without a reference.
        top1_agreement: Option<f64> => Row {
            unit: MeasureUnit::Accuracy, better: HIGHER, export: Some((50, "top1_agreement")),
            tables: &[(TableKey::Quality, 70, "same top-1")], missing: Missing::NoColumn, ..Row::DATA
        },
        /// Tokens that the model computed for windows of the text, divided by the time. In the group `perplexity`, those of a window
        /// over its median time. `null` in records from before this field.
        scored_tokens_per_s: Option<f64> => Row {
            unit: MeasureUnit::TokensPerS, better: HIGHER, tables: &[(TableKey::Quality, 80, "scored tok/s")],
            missing: Missing::NoColumn, ..Row::DATA
        },
        /// Mean time to score a window in each sample, in the order of measurement. Empty outside of the group `perplexity`.
        #[serde(default)]
        sample_ms: Vec<f64>,
        /// Negative log-likelihood of the targets of each window, scaled so that the mean over the windows is `nll`.
        window_nll: Vec<f64>,
    }
    derived {}
}

measures! {
    /// A task whose answers are scored by log-likelihood.
    Evaluation {
        /// Name of the task in lm-evaluation-harness.
        task: String => Row::DATA,
        /// Questions that were asked.
        questions: usize => Row {
            unit: MeasureUnit::Count, tables: &[(TableKey::Evaluation, 60, "questions")], ..Row::DATA
        },
        /// Share of the questions that are answered correctly: by the most likely choice, or by greedy decoding where there is
        /// one choice.
        accuracy: f64 => Row {
            unit: MeasureUnit::Accuracy, better: HIGHER, export: Some((10, "accuracy")),
            tables: &[(TableKey::Evaluation, 10, "accuracy")], ..Row::DATA
        },
        /// Standard error of the accuracy. Empty for one question.
        accuracy_standard_error: Option<f64> => Row {
            unit: MeasureUnit::Accuracy, tables: &[(TableKey::Evaluation, 20, "std error")], ..Row::DATA
        },
        /// Accuracy if each log-likelihood is divided by the characters of its choice. Empty where there is one choice.
        accuracy_norm: Option<f64> => Row {
            unit: MeasureUnit::Accuracy, better: HIGHER, export: Some((20, "accuracy_norm")), missing: Missing::Blank,
            tables: &[(TableKey::Evaluation, 30, "normalised accuracy")], ..Row::DATA
        },
        /// Standard error of `accuracy_norm`.
        accuracy_norm_standard_error: Option<f64> => Row { unit: MeasureUnit::Accuracy, ..Row::DATA },
        /// Exponential of the mean negative log-likelihood of the continuations. Empty where there are choices.
        target_perplexity: Option<f64> => Row {
            unit: MeasureUnit::Perplexity, better: LOWER, export: Some((30, "target_perplexity")), is_sampled: SAMPLED,
            missing: Missing::Blank, tables: &[(TableKey::Evaluation, 40, "target perplexity")], ..Row::DATA
        },
        /// Standard error of `target_perplexity`, by the delta method.
        target_perplexity_standard_error: Option<f64> => Row { unit: MeasureUnit::Perplexity, ..Row::DATA },
        /// SHA-256 of the file of questions, in hexadecimal.
        questions_sha256: String => Row::DATA,
        /// Negative log-likelihood of the correct choice of each question, in the order of the file.
        question_nll: Vec<f64>,
    }
    derived {}
}

measures! {
    /// Measures of loads of a checkpoint: from opening its files until the model is ready.
    Loading {
        /// Files of the weights.
        files: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Size of the files of the weights.
        file_bytes: u64 => Row { unit: MeasureUnit::Bytes, tables: &[(TableKey::Loading, 20, "files MB")], ..Row::DATA },
        /// Samples that were measured, warm-up excluded.
        samples: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Mean time of the loads of each sample, in the order of measurement.
        sample_ms: Vec<f64>,
        /// Median time of a load.
        load_ms: f64 => Row {
            unit: MeasureUnit::Ms, better: LOWER, export: Some((10, "load")), is_sampled: SAMPLED,
            tables: &[(TableKey::Loading, 10, "load ms")], ..Row::DATA
        },
        /// Size of the files divided by the median time.
        load_bytes_per_s: f64 => Row {
            unit: MeasureUnit::BytesPerS, better: HIGHER, tables: &[(TableKey::Loading, 30, "MB/s")], ..Row::DATA
        },
        /// Bytes that storage delivered during a load: the median. Near 0 if the page cache held the files.
        storage_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, tables: &[(TableKey::Loading, 40, "from storage MB")], ..Row::DATA
        },
        /// Peak memory of a load.
        peak_bytes: Option<u64> => Row {
            unit: MeasureUnit::Bytes, better: LOWER, export: Some((20, "peak_memory")),
            tables: &[(TableKey::Loading, 50, "peak MB")], ..Row::DATA
        },
    }
    derived {}
}

measures! {
    /// Measures of passes of a tokenizer over one text.
    Tokenizing {
        /// Size of the text.
        text_bytes: u64 => Row { unit: MeasureUnit::Bytes, ..Row::DATA },
        /// Tokens of the text.
        text_tokens: usize => Row {
            unit: MeasureUnit::Tokens, tables: &[(TableKey::Tokenizing, 30, "tokens")], ..Row::DATA
        },
        /// Samples that were measured, warm-up excluded.
        samples: usize => Row { unit: MeasureUnit::Count, ..Row::DATA },
        /// Mean time of the passes of each sample, in the order of measurement.
        sample_ms: Vec<f64>,
        /// Median time of a pass.
        pass_ms: f64 => Row { unit: MeasureUnit::Ms, better: LOWER, ..Row::DATA },
        /// Size of the text divided by the median time of a pass.
        text_bytes_per_s: f64 => Row {
            unit: MeasureUnit::BytesPerS, better: HIGHER, export: Some((10, "text_bytes_per_s")), is_sampled: SAMPLED,
            tables: &[(TableKey::Tokenizing, 10, "MB/s")], ..Row::DATA
        },
        /// Median time of a pass divided by the tokens of the text.
        token_us: f64 => Row {
            unit: MeasureUnit::Us, better: LOWER, export: Some((20, "token")), is_sampled: SAMPLED,
            tables: &[(TableKey::Tokenizing, 20, "µs/token")], ..Row::DATA
        },
        /// First 16 hexadecimal digits of the SHA-256 of the ids as little-endian u32. Equal digests mean equal tokens.
        token_digest: String => Row::DATA,
    }
    derived {}
}
