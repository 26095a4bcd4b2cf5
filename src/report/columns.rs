//! The columns of the data files: `results.csv` and `results.parquet`, `sweep.parquet`, and `throughput.csv`. Columns of
//! measures come from the [table of measures](crate::record::measures).

use std::str::FromStr;

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};

use super::{
    joined::Row,
    ratios::{efficiency, medians},
    text_table::markdown,
};
use crate::record::{
    Better, MeasureUnit, Measures, PairedRatio, Record, Sweep, Training,
    columns::Column,
    measures::{self, Measure},
};
use crate::scenario::Counterpart;

/// The columns of each paired ratio: the median, and the ends of its interval.
const RATIOS: [(Counterpart, [&str; 3]); 7] = [
    (Counterpart::Scenario, ["scenario_ratio", "scenario_ratio_low", "scenario_ratio_high"]),
    (Counterpart::Stock, ["stock_ratio", "stock_ratio_low", "stock_ratio_high"]),
    (Counterpart::Peer, ["peer_ratio", "peer_ratio_low", "peer_ratio_high"]),
    (Counterpart::ActiveTwin, ["active_twin_ratio", "active_twin_ratio_low", "active_twin_ratio_high"]),
    (Counterpart::TotalTwin, ["total_twin_ratio", "total_twin_ratio_low", "total_twin_ratio_high"]),
    (Counterpart::Plain, ["plain_ratio", "plain_ratio_low", "plain_ratio_high"]),
    (Counterpart::Fewest, ["fewest_ratio", "fewest_ratio_low", "fewest_ratio_high"]),
];

fn ratio_columns(counterpart: Counterpart, [median, low, high]: [&'static str; 3]) -> Vec<Column<Row>> {
    let column = |name, explanation: &str, value: fn(&PairedRatio) -> f64| {
        Column::new(name, explanation, move |row: &Row| {
            row.record.ratios.iter().find(|ratio| ratio.counterpart == counterpart).map(value)
        })
    };
    vec![
        column(median, &format!("Paired ratio of time to the counterpart `{counterpart}`."), |ratio| ratio.ratio),
        column(low, "Lower end of its interval.", |ratio| ratio.low),
        column(high, "Upper end of its interval.", |ratio| ratio.high),
    ]
}

/// A column of a report that is a property of the record.
macro_rules! of_record {
    ($name:literal, $explanation:literal, |$record:ident| $value:expr) => {
        Column::new($name, $explanation, |row: &Row| {
            let $record = &row.record;
            $value
        })
    };
}

/// The columns of `results.csv` and `results.parquet`, which have a row for each benchmark.
pub fn results() -> Vec<Column<Row>> {
    let mut columns = vec![
        of_record!("run", "Name of the run.", |record| record.run.clone()),
        of_record!("at", "Time at which the benchmark ended, in UTC.", |record| at(record)),
        of_record!("id", "Id of the benchmark.", |record| record.id.clone()),
        of_record!("scenario", "First part of the id.", |record| record.scenario.clone()),
        of_record!("model", "Second part of the id.", |record| record.subject.model.clone()),
        of_record!("engine", "Implementation that ran the model.", |record| record.subject.engine.clone()),
        of_record!("dtype", "Type of the weights and activations.", |record| record.subject.dtype.clone()),
        of_record!("device", "Device that ran the model.", |record| record.subject.device.clone()),
        of_record!("source", "Full model specification.", |record| record.subject.source.clone()),
        of_record!("synthetic_weights", "Whether the weights are seeded instead of trained.", |record| record
            .subject
            .synthetic_weights),
        of_record!("parameters", "Parameters of the model.", |record| record.subject.parameters),
        of_record!("weight_bytes", "Bytes of the weights.", |record| record.subject.weight_bytes),
        of_record!("peer", "Name and version of the peer that ran the model.", |record| record
            .subject
            .peer
            .as_ref()
            .map(|peer| format!("{} {}", peer.name, peer.version))),
        of_record!("status", "`measured`, `failed` or `excluded`.", |record| record.status.to_string()),
        of_record!("reason", "Why the benchmark failed or is excluded.", |record| record.reason.clone()),
        of_record!(
            "first_non_finite_step",
            "First step of a training whose loss or gradient was not finite, counted from 1.",
            |record| record.first_non_finite_step
        ),
        of_record!("deviates", "Known reason why the output differs from the reference implementation's.", |record| {
            record.deviates.clone()
        }),
        criterion("criterion_median_ns", "Criterion's median time of an iteration.", |row| {
            Some(row.criterion?.median_ns)
        }),
        criterion("criterion_median_low_ns", "Lower end of Criterion's 95 % confidence interval.", |row| {
            Some(row.criterion?.low_ns)
        }),
        criterion("criterion_median_high_ns", "Upper end of Criterion's 95 % confidence interval.", |row| {
            Some(row.criterion?.high_ns)
        }),
    ];
    columns.extend(of_measures(Measure::results_column, |row: &Row| row.record.measures.as_ref()));
    columns.extend([
        of_record!("read_bytes_per_s", "Measured bandwidth of reading memory.", |record| {
            record.limits.as_ref().map(|limits| limits.read_bytes_per_s)
        }),
        of_record!("matrix_flops_per_s", "Measured rate of a large matrix product.", |record| {
            record.limits.as_ref().map(|limits| limits.matrix_flops_per_s)
        }),
        of_record!("other_cpu_share", "Share of the machine's CPU time that other processes used.", |record| {
            record.conditions.as_ref().and_then(|conditions| conditions.other_cpu_share)
        }),
        of_record!("gpu_sm_mhz", "Median clock of the GPU's multiprocessors.", |record| {
            record.conditions.as_ref().and_then(|conditions| conditions.gpu.as_ref()?.sm_mhz)
        }),
        of_record!("gpu_power_watts", "Mean power of the GPU.", |record| {
            record.conditions.as_ref().and_then(|conditions| conditions.gpu.as_ref()?.power_watts)
        }),
        of_record!("machine", "Name of the machine.", |record| record.machine.name.clone()),
        of_record!("candle", "Version of candle-core.", |record| record.software.candle.clone()),
        of_record!("commit", "Commit of the working directory.", |record| record.software.commit.clone()),
        of_record!("best_read_bytes_per_s", "Best bandwidth of the process until the benchmark ended.", |record| {
            Some(record.limits.as_ref()?.read?.best_of_run)
        }),
        of_record!("best_matrix_flops_per_s", "Best rate of a large matrix product of the process.", |record| {
            Some(record.limits.as_ref()?.matrix?.best_of_run)
        }),
        of_record!("read_moved", "Highest bandwidth around the samples over the lowest, less one.", |record| {
            Some(record.limits.as_ref()?.read?.moved())
        }),
        of_record!(
            "matrix_moved",
            "Highest rate of a matrix product around the samples over the lowest, less one.",
            |record| Some(record.limits.as_ref()?.matrix?.moved())
        ),
        of_record!("held_back_samples", "Samples during which the machine was held back.", |record| {
            medians(record).map(|medians| medians.held_back)
        }),
        of_record!("median_ms", "Median time of the samples.", |record| medians(record).map(|medians| medians.all_ms)),
        of_record!("undisturbed_median_ms", "Median time of the samples that were not held back.", |record| {
            medians(record)?.undisturbed_ms
        }),
    ]);
    columns.extend(RATIOS.iter().flat_map(|&(counterpart, names)| ratio_columns(counterpart, names)));
    columns.push(of_record!(
        "parallel_efficiency",
        "How many times faster than with the fewest threads, over how many times as many there are.",
        |record| efficiency(record)
    ));
    columns
}

/// The columns of `sweep.parquet`, which has a row for each combination of the sweep.
pub fn sweep(labels: &LabelTemplate) -> Vec<Column<Record>> {
    let mut columns = vec![
        Column::new("run", "Name of the run.", |record: &Record| record.run.clone()),
        Column::new("at", "Time at which the benchmark ended, in UTC.", at),
        Column::new("id", "Id of the benchmark.", |record: &Record| record.id.clone()),
        Column::new("scenario", "First part of the id.", |record: &Record| record.scenario.clone()),
        Column::new("architecture", "Backbone.", architecture),
    ];
    let size = |name: &'static str, explanation| {
        Column::new(name, explanation, move |record: &Record| record.subject.sizes.get(name).copied())
    };
    columns.extend([
        size("dim", "Width of the backbone."),
        size("depth", "Layers of the backbone."),
        size("heads", "Attention heads."),
        size("horizon", "Steps that are forecast."),
        size("window", "Steps of the series that are seen."),
        size("batch", "Windows of a batch."),
        size("features", "Input values of each step."),
        size("outputs", "Output values of each step."),
        Column::new("dtype", "Type of the weights and activations.", |record: &Record| record.subject.dtype.clone()),
        Column::new("device", "Device that ran the model.", |record: &Record| record.subject.device.clone()),
        Column::new("parameters", "Parameters of the model.", |record: &Record| record.subject.parameters),
        Column::new("status", "`measured` or `failed`.", |record: &Record| record.status.to_string()),
        Column::new("reason", "Why the benchmark failed.", |record: &Record| record.reason.clone()),
    ]);
    columns.extend(of_source(labels));
    columns.extend(of_measures(|measure| measure.row.sweep, |record: &Record| record.measures.as_ref()));
    columns.extend([
        Column::new("machine", "Name of the machine.", |record: &Record| record.machine.name.clone()),
        Column::new("candle", "Version of candle-core.", |record: &Record| record.software.candle.clone()),
        Column::new("commit", "Commit of the working directory.", |record: &Record| record.software.commit.clone()),
    ]);
    columns
}

/// How combinations of the sweep are labelled: a text with names of columns in braces.
#[derive(Clone, Debug)]
pub struct LabelTemplate(String);

impl LabelTemplate {
    const NAMES: [&str; 6] = ["architecture", "model_dim", "depth", "horizon", "window", "conv_dilations"];

    /// The label of a record.
    fn label(&self, record: &Record) -> String {
        let mut label = self.0.clone();
        for name in Self::NAMES {
            let value = match name {
                "architecture" => Some(architecture(record)),
                "conv_dilations" => dilations(record),
                "model_dim" => size(record, "dim").map(|dim| dim.to_string()),
                name => size(record, name).map(|size| size.to_string()),
            };
            label = label.replace(&format!("{{{name}}}"), &value.unwrap_or_default());
        }
        label
    }
}

impl Default for LabelTemplate {
    fn default() -> Self {
        Self("{architecture},{model_dim},{depth},{horizon}".into())
    }
}

impl FromStr for LabelTemplate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let without_names =
            Self::NAMES.iter().fold(text.to_owned(), |text, name| text.replace(&format!("{{{name}}}"), ""));
        let is_known = !without_names.contains(['{', '}']);
        ensure!(is_known, "expected a text with only these names in braces: {}", Self::NAMES.join(", "));
        Ok(Self(text.to_owned()))
    }
}

fn size(record: &Record, name: &str) -> Option<u64> {
    record.subject.sizes.get(name).copied()
}

fn dilations(record: &Record) -> Option<String> {
    let sizes = record.subject.sizes.iter().filter(|(name, _)| name.starts_with("dilation_"));
    let sizes: Vec<_> = sizes.map(|(_, size)| size.to_string()).collect();
    (!sizes.is_empty()).then(|| sizes.join(","))
}

/// Columns of the results of the sweep's source, under its names.
fn of_source(labels: &LabelTemplate) -> Vec<Column<Record>> {
    let labels = labels.clone();
    let measure = |of: fn(&Sweep) -> Option<f64>| {
        move |record: &Record| match &record.measures {
            Some(Measures::Sweep(measures)) => of(measures),
            _ => None,
        }
    };
    let duration_seconds = |measures: &Sweep| {
        let samples = measures.sample_ms.len().max(1) as f64;
        Some(measures.sample_ms.iter().sum::<f64>() / samples * measures.steps as f64 / 1e3)
    };
    vec![
        Column::new("model_dim", "Width of the backbone.", |record: &Record| size(record, "dim")),
        Column::new("conv_dilations", "Dilations of successive layers, separated by commas.", dilations),
        Column::new("label", "Label of the combination.", move |record: &Record| labels.label(record)),
        Column::new("duration_seconds", "Total time of the measured steps.", measure(duration_seconds)),
        Column::new("metric_train_loss", "`last_loss`.", measure(|measures| measures.last_loss)),
        Column::new("metric_val_loss", "`held_out_loss`.", measure(|measures| measures.held_out_loss)),
    ]
}

/// The columns of `throughput.csv` and `throughput_forward.csv`: those of psannlm's benchmark.
pub(crate) fn throughput() -> Vec<Column<Record>> {
    vec![
        Column::new("timestamp", "Time at which the benchmark ended.", |record: &Record| record.at.clone()),
        Column::new("base", "Base of the language model.", architecture),
        Column::new("batch_tokens", "Tokens that a step predicts.", |record: &Record| {
            training(record).map(|m| m.batch_tokens)
        }),
        Column::new("tokens_per_s", "Tokens of a batch divided by the time of the median step.", |record| {
            training(record).map(|m| m.tokens_per_s)
        }),
    ]
}

/// The columns of `results.csv` as a Markdown table, for the guide.
pub fn documentation() -> String {
    let header = ["column", "unit", "better", "meaning"].map(str::to_owned).to_vec();
    let row = |column: Column<Row>| {
        let better = column.better.map_or("", |better| match better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        });
        let unit = column.unit.map_or("", MeasureUnit::name);
        vec![format!("`{}`", column.name), unit.to_owned(), better.to_owned(), column.explanation]
    };
    let rows: Vec<Vec<String>> = [header].into_iter().chain(results().into_iter().map(row)).collect();
    markdown(&rows, rows[0].len())
}

/// The columns to which `name` gives a name, in the order of the table of measures. Kinds of benchmarks share a column if
/// their rows have the same name for it.
fn of_measures<R: 'static>(
    name: impl Fn(&Measure) -> Option<&'static str>,
    get: fn(&R) -> Option<&Measures>,
) -> Vec<Column<R>> {
    let mut named: Vec<(&'static str, Vec<&'static Measure>)> = Vec::new();
    for measure in measures::all() {
        let Some(name) = name(measure) else { continue };
        match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, measures)) => measures.push(measure),
            None => named.push((name, vec![measure])),
        }
    }
    let column = |(name, measures): (&'static str, Vec<&'static Measure>)| Column {
        name,
        explanation: measures[0].explanation().to_owned(),
        unit: Some(measures[0].row.unit),
        better: measures[0].row.better,
        data_type: measures[0].data_type,
        get: Box::new(move |row| {
            let of_row = get(row)?;
            measures.iter().find_map(|measure| (measure.value)(of_row))
        }),
    };
    named.into_iter().map(column).collect()
}

fn criterion(name: &'static str, explanation: &str, get: fn(&Row) -> Option<f64>) -> Column<Row> {
    Column { better: Some(Better::Lower), ..Column::new(name, explanation, get) }
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

fn architecture(record: &Record) -> String {
    record.subject.architecture_and_sizes().0.to_owned()
}
