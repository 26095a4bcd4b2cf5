//! What data files hold, column by column: of a report's benchmarks, and of a sweep's combinations. CSV and Parquet are
//! made of the same lists.

use chrono::{DateTime, Utc};

use super::joined::Row;
use crate::record::{
    Generation, Measures, Record, Status, Sweep, Training,
    columns::{Column, Get},
};

/// A column of the report for which `$record` is the row's record.
macro_rules! of_record {
    ($kind:ident, $name:literal, |$record:ident| $value:expr) => {
        Column {
            name: $name,
            get: Get::$kind(|row: &Row| {
                let $record = &row.record;
                $value
            }),
        }
    };
}

/// A column that only generations have.
macro_rules! of_generation {
    ($kind:ident, $name:literal, |$measures:ident| $value:expr) => {
        Column {
            name: $name,
            get: Get::$kind(|row: &Row| {
                let $measures = row.generation()?;
                $value
            }),
        }
    };
}

/// A column that only combinations of a sweep have.
macro_rules! of_sweep {
    ($kind:ident, $name:literal, |$measures:ident| $value:expr) => {
        Column {
            name: $name,
            get: Get::$kind(|record: &Record| {
                let $measures = sweep(record)?;
                $value
            }),
        }
    };
}

fn sweep(record: &Record) -> Option<&Sweep> {
    match &record.measures {
        Some(Measures::Sweep(measures)) => Some(measures),
        _ => None,
    }
}

fn training(record: &Record) -> Option<&Training> {
    match &record.measures {
        Some(Measures::Training(measures)) => Some(measures),
        _ => None,
    }
}

fn at(record: &Record) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(&record.at).ok().map(|at| at.to_utc())
}

fn size(record: &Record, name: &str) -> Option<i64> {
    record.subject.sizes.get(name).map(|size| *size as i64)
}

fn status(record: &Record) -> Option<String> {
    Some(match record.status {
        Status::Measured => "measured".into(),
        Status::Failed => "failed".into(),
    })
}

fn step(record: &Record, of_sweep: fn(&Sweep) -> f64, of_training: fn(&Training) -> f64) -> Option<f64> {
    sweep(record).map(of_sweep).or_else(|| training(record).map(of_training))
}

fn routing(measures: &Generation, get: impl Fn(&crate::record::Routing) -> f64) -> Option<f64> {
    measures.routing.as_ref().map(get)
}

/// The benchmarks of a report, `results.csv` and `results.parquet`.
#[rustfmt::skip]
pub const RESULTS: &[Column<Row>] = &[
    of_record!(Text, "run", |record| Some(record.run.clone())),
    of_record!(Time, "at", |record| at(record)),
    of_record!(Text, "id", |record| Some(record.id.clone())),
    of_record!(Text, "scenario", |record| Some(record.scenario.clone())),
    of_record!(Text, "model", |record| Some(record.subject.model.clone())),
    of_record!(Text, "engine", |record| Some(record.subject.engine.clone())),
    of_record!(Text, "dtype", |record| Some(record.subject.dtype.clone())),
    of_record!(Text, "device", |record| Some(record.subject.device.clone())),
    of_record!(Text, "source", |record| Some(record.subject.source.clone())),
    of_record!(Flag, "synthetic_weights", |record| Some(record.subject.synthetic_weights)),
    of_record!(Whole, "parameters", |record| record.subject.parameters.map(|count| count as i64)),
    of_record!(Whole, "weight_bytes", |record| record.subject.weight_bytes.map(|bytes| bytes as i64)),
    of_record!(Text, "status", |record| status(record)),
    of_record!(Text, "reason", |record| record.reason.clone()),
    of_record!(Text, "deviates", |record| record.deviates.clone()),
    Column { name: "criterion_median_ns", get: Get::Real(|row| Some(row.criterion?.median_ns)) },
    Column { name: "criterion_median_low_ns", get: Get::Real(|row| Some(row.criterion?.low_ns)) },
    Column { name: "criterion_median_high_ns", get: Get::Real(|row| Some(row.criterion?.high_ns)) },
    of_generation!(Whole, "prompt_tokens", |m| Some(m.prompt_tokens as i64)),
    of_generation!(Whole, "new_tokens", |m| Some(m.new_tokens as i64)),
    of_record!(Whole, "samples", |record| Some(record.measures.as_ref()?.sample_ms().len() as i64)),
    of_generation!(Real, "total_ms", |m| Some(m.total_ms)),
    of_generation!(Real, "ttft_ms", |m| Some(m.ttft_ms)),
    of_generation!(Real, "itl_p50_ms", |m| m.itl_p50_ms),
    of_generation!(Real, "itl_p95_ms", |m| m.itl_p95_ms),
    of_generation!(Real, "itl_p99_ms", |m| m.itl_p99_ms),
    of_generation!(Real, "tpot_ms", |m| m.tpot_ms),
    of_generation!(Real, "prefill_tokens_per_s", |m| Some(m.prefill_tokens_per_s)),
    of_generation!(Real, "decode_tokens_per_s", |m| m.decode_tokens_per_s),
    of_generation!(Real, "tokens_per_s", |m| Some(m.tokens_per_s)),
    of_generation!(Real, "sampling_share", |m| Some(m.sampling_share)),
    of_generation!(Real, "waiting_share", |m| m.waiting_share),
    of_generation!(Whole, "cache_used_bytes", |m| Some(m.cache_used_bytes as i64)),
    of_generation!(Whole, "cache_allocated_bytes", |m| Some(m.cache_allocated_bytes as i64)),
    of_record!(Whole, "peak_bytes", |record| record.measures.as_ref()?.peak_bytes().map(|bytes| bytes as i64)),
    of_generation!(Real, "mbu", |m| m.mbu),
    of_record!(Real, "mfu", |record| match record.measures.as_ref()? {
        Measures::Generation(m) => m.mfu,
        Measures::Sweep(m) => m.mfu,
        Measures::Training(m) => m.mfu,
    }),
    of_generation!(Real, "joules_per_token", |m| m.joules_per_token),
    of_generation!(Text, "token_digest", |m| Some(m.token_digest.clone())),
    of_generation!(Real, "load_balance_factor", |m| routing(m, |routing| routing.load_balance_factor)),
    of_generation!(Real, "routing_entropy_bits", |m| routing(m, |routing| routing.entropy_bits)),
    of_generation!(Real, "idle_expert_share", |m| routing(m, |routing| routing.idle_share)),
    of_record!(Real, "step_p50_ms", |record| step(record, |m| m.step_p50_ms, |m| m.step_p50_ms)),
    of_record!(Real, "step_p95_ms", |record| step(record, |m| m.step_p95_ms, |m| m.step_p95_ms)),
    of_record!(Real, "step_p99_ms", |record| step(record, |m| m.step_p99_ms, |m| m.step_p99_ms)),
    of_record!(Real, "windows_per_s", |record| sweep(record).map(|m| m.windows_per_s)),
    of_record!(Text, "phase", |record| training(record).map(|m| m.phase.clone())),
    of_record!(Whole, "batch_tokens", |record| training(record).map(|m| m.batch_tokens as i64)),
    of_record!(Real, "train_tokens_per_s", |record| training(record).map(|m| m.tokens_per_s)),
    of_record!(Whole, "micro_batches", |record| training(record).map(|m| m.micro_batches as i64)),
    of_record!(Flag, "checkpointing", |record| training(record).map(|m| m.checkpointing)),
    of_record!(Whole, "allocated_bytes", |record| training(record)?.allocated_bytes.map(|bytes| bytes as i64)),
    of_record!(Whole, "reserved_bytes", |record| training(record)?.reserved_bytes.map(|bytes| bytes as i64)),
    of_record!(Real, "first_loss", |record| training(record)?.stability.as_ref()?.losses.first().copied()),
    of_record!(Real, "last_loss", |record| training(record)?.stability.as_ref()?.losses.last().copied()),
    of_record!(Real, "read_bytes_per_s", |record| Some(record.limits.as_ref()?.read_bytes_per_s)),
    of_record!(Real, "matrix_flops_per_s", |record| Some(record.limits.as_ref()?.matrix_flops_per_s)),
    of_record!(Real, "other_cpu_share", |record| record.conditions.as_ref()?.other_cpu_share),
    of_record!(Whole, "gpu_sm_mhz", |record| record.conditions.as_ref()?.gpu.as_ref()?.sm_mhz.map(i64::from)),
    of_record!(Real, "gpu_power_watts", |record| record.conditions.as_ref()?.gpu.as_ref()?.power_watts),
    of_record!(Text, "machine", |record| Some(record.machine.name.clone())),
    of_record!(Text, "candle", |record| Some(record.software.candle.clone())),
    of_record!(Text, "commit", |record| record.software.commit.clone()),
];

/// The combinations of a sweep, `sweep.parquet`.
#[rustfmt::skip]
pub const SWEEP_COLUMNS: &[Column<Record>] = &[
    Column { name: "run", get: Get::Text(|record| Some(record.run.clone())) },
    Column { name: "at", get: Get::Time(at) },
    Column { name: "id", get: Get::Text(|record| Some(record.id.clone())) },
    Column { name: "scenario", get: Get::Text(|record| Some(record.scenario.clone())) },
    Column { name: "architecture", get: Get::Text(|record| Some(record.subject.model.split('-').next()?.to_owned())) },
    Column { name: "dim", get: Get::Whole(|record| size(record, "dim")) },
    Column { name: "depth", get: Get::Whole(|record| size(record, "depth")) },
    Column { name: "heads", get: Get::Whole(|record| size(record, "heads")) },
    Column { name: "horizon", get: Get::Whole(|record| size(record, "horizon")) },
    Column { name: "window", get: Get::Whole(|record| size(record, "window")) },
    Column { name: "batch", get: Get::Whole(|record| size(record, "batch")) },
    Column { name: "features", get: Get::Whole(|record| size(record, "features")) },
    Column { name: "outputs", get: Get::Whole(|record| size(record, "outputs")) },
    Column { name: "dtype", get: Get::Text(|record| Some(record.subject.dtype.clone())) },
    Column { name: "device", get: Get::Text(|record| Some(record.subject.device.clone())) },
    Column { name: "parameters", get: Get::Whole(|record| record.subject.parameters.map(|count| count as i64)) },
    Column { name: "status", get: Get::Text(status) },
    Column { name: "reason", get: Get::Text(|record| record.reason.clone()) },
    of_sweep!(Whole, "steps", |m| Some(m.steps as i64)),
    of_sweep!(Real, "samples_per_s", |m| Some(m.windows_per_s)),
    of_sweep!(Real, "step_p50_ms", |m| Some(m.step_p50_ms)),
    of_sweep!(Real, "step_p95_ms", |m| Some(m.step_p95_ms)),
    of_sweep!(Real, "step_p99_ms", |m| Some(m.step_p99_ms)),
    of_sweep!(Whole, "peak_bytes", |m| m.peak_bytes.map(|bytes| bytes as i64)),
    of_sweep!(Real, "mfu", |m| m.mfu),
    of_sweep!(Real, "first_loss", |m| m.first_loss),
    of_sweep!(Real, "last_loss", |m| m.last_loss),
    Column { name: "machine", get: Get::Text(|record| Some(record.machine.name.clone())) },
    Column { name: "candle", get: Get::Text(|record| Some(record.software.candle.clone())) },
    Column { name: "commit", get: Get::Text(|record| record.software.commit.clone()) },
];

/// Throughput of language models in training, `throughput.csv`: the columns of psannlm's benchmark, and the phase.
#[rustfmt::skip]
pub const THROUGHPUT: &[Column<Record>] = &[
    Column { name: "timestamp", get: Get::Text(|record| Some(record.at.clone())) },
    Column { name: "base", get: Get::Text(base) },
    Column { name: "batch_tokens", get: Get::Whole(|record| training(record).map(|m| m.batch_tokens as i64)) },
    Column { name: "tokens_per_s", get: Get::Real(|record| training(record).map(|m| m.tokens_per_s)) },
    Column { name: "phase", get: Get::Text(|record| training(record).map(|m| m.phase.clone())) },
];

/// The base of a language model in training.
pub fn base(record: &Record) -> Option<String> {
    record.subject.model.split('-').next().map(str::to_owned)
}
