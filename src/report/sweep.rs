//! The log of architecture sweeps, and summaries of their results.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    columns::{self, LabelTemplate},
    joined::DATA_MAX_BYTES,
    table,
    text_table::markdown,
};
use crate::{
    files::{read_limited, read_text_limited},
    record::{
        self, Measures, RECORDS, Record,
        columns::{self as record_columns, Column},
    },
    scenario::SWEEP,
    text,
};

/// A table of the combinations of a sweep, failed ones included, under a heading. It is made to be appended to a log.
pub fn log_entry(heading: &str, records: &[Record]) -> String {
    let header = ["Run", "Throughput (samples/s)", "VRAM (GB)", "Latency (ms/step)", "Status"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for record in records {
        let (throughput, vram, latency) = match &record.measures {
            Some(Measures::Sweep(measures)) => (
                table::number(Some(measures.windows_per_s)),
                measures.peak_bytes.map_or("n/a".into(), |bytes| format!("{:.2}", bytes as f64 / 1e9)),
                table::number(Some(measures.step_p50_ms)),
            ),
            _ => ("n/a".into(), "n/a".into(), "n/a".into()),
        };
        let status = record.reason.as_ref().map_or("ok".to_owned(), |reason| format!("failed: {reason}"));
        let run = format!("{} ({})", record.subject.model, record.scenario);
        rows.push(vec![run, throughput, vram, latency, status]);
    }
    let note = "On a CPU, VRAM is the peak of the memory that the process allocated.";
    format!("## {}\n\n{}\n{note}\n\n", text::markdown(heading), markdown(&rows, 1))
}

/// A row of a sweep's results: columns by name.
pub type ResultRow = Map<String, Value>;

/// Reads the rows of a sweep's results from the records of a run, or from a Parquet, CSV or JSON file. JSON is a list of
/// objects, one object per line, or an object of columns, as pandas writes it.
///
/// # Errors
/// Returns an error if the file cannot be read as its extension says.
pub fn read_rows(path: &Path) -> Result<Vec<ResultRow>> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let read: fn(&Path) -> Result<Vec<ResultRow>> = match extension {
        _ if path.ends_with(RECORDS) => read_records,
        "parquet" | "pq" => read_parquet,
        "csv" => read_csv,
        "json" | "jsonl" => read_json,
        _ => bail!("{}: expected a file that ends in .parquet, .csv, .json or .jsonl", path.display()),
    };
    // Opening a FIFO waits for a writer.
    ensure!(!path.exists() || path.is_file(), "{} is not a regular file", path.display());
    read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The last record of each benchmark of a sweep. The columns do not tell engines apart, so peers are left out.
fn read_records(path: &Path) -> Result<Vec<ResultRow>> {
    let read = record::latest(path)?;
    let columns = columns::sweep(&LabelTemplate::default());
    let is_own = |record: &Record| SWEEP.contains(&record.scenario) && record.subject.peer.is_none();
    let of_sweep = read.records.into_iter().filter(is_own);
    let row = |record: Record| {
        let cell = |column: &Column<Record>| Some((column.name.to_owned(), of_cell((column.get)(&record)?)));
        columns.iter().filter_map(cell).collect()
    };
    Ok(of_sweep.map(row).collect())
}

fn of_cell(value: record_columns::Value) -> Value {
    match value {
        record_columns::Value::Text(text) => text.into(),
        record_columns::Value::Whole(number) => number.into(),
        record_columns::Value::Real(number) => number.into(),
        record_columns::Value::Flag(flag) => flag.into(),
        record_columns::Value::Time(time) => time.to_rfc3339().into(),
    }
}

fn read_parquet(path: &Path) -> Result<Vec<ResultRow>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None)? {
        let row = row?;
        rows.push(row.get_column_iter().map(|(name, field)| (name.clone(), of_field(field))).collect());
    }
    Ok(rows)
}

fn of_field(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(text) => text.as_str().into(),
        Field::Bool(flag) => (*flag).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        other => other.to_string().into(),
    }
}

fn read_csv(path: &Path) -> Result<Vec<ResultRow>> {
    let content = read_limited(path, DATA_MAX_BYTES)?;
    let mut reader = csv::Reader::from_reader(content.as_slice());
    let header = reader.headers()?.clone();
    let value = |text: &str| match text.parse::<f64>() {
        _ if text.is_empty() => Value::Null,
        Ok(number) => number.into(),
        Err(_) => text.into(),
    };
    let row = |row: csv::StringRecord| header.iter().map(str::to_owned).zip(row.iter().map(value)).collect();
    reader.records().map(|record| Ok(row(record?))).collect()
}

fn read_json(path: &Path) -> Result<Vec<ResultRow>> {
    let text = read_text_limited(path, DATA_MAX_BYTES)?;
    if text.trim_start().starts_with('[') {
        return Ok(serde_json::from_str(&text)?);
    }
    if let Ok(columns) = serde_json::from_str::<BTreeMap<String, ResultRow>>(&text) {
        let mut rows: BTreeMap<String, ResultRow> = BTreeMap::new();
        for (column, cells) in columns {
            for (row, cell) in cells {
                rows.entry(row).or_default().insert(column.clone(), cell);
            }
        }
        return Ok(rows.into_values().collect());
    }
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// How results are summarised.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Column to rank by.
    pub metric: String,
    /// True if the largest value is the best.
    pub higher_is_better: bool,
    /// Another column to average.
    pub profitability_metric: Option<String>,
}

/// The results of an architecture. Rows without the metric are not counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArchitectureSummary {
    /// Name of the architecture.
    pub architecture: String,
    /// Number of rows with the metric.
    pub scenario_count: usize,
    /// Number of rows that failed.
    pub failed_count: usize,
    /// Best value of the metric.
    pub best_metric: Option<f64>,
    /// Label of the row with the best value.
    pub best_metric_label: Option<String>,
    /// Median of the metric.
    pub median_metric: Option<f64>,
    /// Mean of the metric.
    pub mean_metric: Option<f64>,
    /// Median duration in seconds.
    pub median_duration: Option<f64>,
    /// Mean duration in seconds.
    pub mean_duration: Option<f64>,
    /// Mean of the column [`Ranking::profitability_metric`].
    pub mean_profitability: Option<f64>,
    /// Labels and values of all rows with the metric, best first.
    #[serde(skip)]
    pub ranked: Vec<(String, f64)>,
}

/// Summarises results per architecture, that with the best value first. A row that occurs twice, with the same run and id,
/// counts once.
///
/// # Errors
/// Returns an error if no row has the metric.
pub fn summarise(rows: &[ResultRow], ranking: &Ranking) -> Result<Vec<ArchitectureSummary>> {
    let metric = &ranking.metric;
    let mut groups: BTreeMap<&str, Vec<&ResultRow>> = BTreeMap::new();
    for row in without_repetitions(rows) {
        let architecture = text(row, "architecture").context("a row has no column architecture")?;
        groups.entry(architecture).or_default().push(row);
    }
    let by_rank = |a: f64, b: f64| if ranking.higher_is_better { b.total_cmp(&a) } else { a.total_cmp(&b) };
    let summary = |(architecture, rows): (&str, Vec<&ResultRow>)| {
        let failed_count = rows.iter().filter(|row| text(row, "status") == Some("failed")).count();
        let mut rows: Vec<(&ResultRow, f64)> =
            rows.into_iter().filter_map(|row| Some((row, number(row, metric)?))).collect();
        rows.sort_by(|(_, a), (_, b)| by_rank(*a, *b));
        let values = |name: &str| rows.iter().filter_map(|(row, _)| number(row, name)).collect::<Vec<_>>();
        let (metrics, durations) = (values(metric), values("duration_seconds"));
        let ranked: Vec<_> =
            rows.iter().map(|(row, value)| (text(row, "label").unwrap_or_default().to_owned(), *value)).collect();
        ArchitectureSummary {
            architecture: architecture.to_owned(),
            scenario_count: rows.len(),
            failed_count,
            best_metric: metrics.first().copied(),
            best_metric_label: ranked.first().map(|(label, _)| label.clone()),
            median_metric: median(&metrics),
            mean_metric: mean(&metrics),
            median_duration: median(&durations),
            mean_duration: mean(&durations),
            mean_profitability: ranking.profitability_metric.as_deref().and_then(|name| mean(&values(name))),
            ranked,
        }
    };
    let mut summaries: Vec<_> = groups.into_iter().map(summary).collect();
    ensure!(summaries.iter().any(|summary| summary.scenario_count > 0), "no row has a number in column {metric}");
    // Architectures without the metric come last.
    summaries.sort_by(|a, b| match (a.best_metric, b.best_metric) {
        (Some(a), Some(b)) => by_rank(a, b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    });
    Ok(summaries)
}

/// Leaves out a row if a later one has the same run and id. Rows without them stay.
fn without_repetitions(rows: &[ResultRow]) -> Vec<&ResultRow> {
    let mut seen = BTreeSet::new();
    let mut rows: Vec<_> = rows
        .iter()
        .rev()
        .filter(|row| match (text(row, "run"), text(row, "id")) {
            (Some(run), Some(id)) => seen.insert((run, id)),
            _ => true,
        })
        .collect();
    rows.reverse();
    rows
}

fn text<'a>(row: &'a ResultRow, name: &str) -> Option<&'a str> {
    row.get(name).and_then(Value::as_str)
}

fn number(row: &ResultRow, name: &str) -> Option<f64> {
    row.get(name).and_then(Value::as_f64).filter(|number| number.is_finite())
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// Summaries as Markdown: a table of the architectures, and one of the `top` best rows of each.
pub fn summary_markdown(summaries: &[ArchitectureSummary], ranking: &Ranking, top: usize) -> String {
    let metric = &ranking.metric;
    let real = |value: Option<f64>, digits: usize| value.map_or("n/a".to_owned(), |value| format!("{value:.digits$}"));
    let header = ["Architecture", "Best label", "Runs", "Failed", "Best metric", "Median", "Mean duration (s)"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut best = vec![["Architecture", "Label", "Rank", metric].map(str::to_owned).to_vec()];
    rows[0].extend(ranking.profitability_metric.as_ref().map(|column| format!("Mean {column}")));
    for summary in summaries {
        let label = summary.best_metric_label.clone().unwrap_or("n/a".into());
        let mut row = vec![summary.architecture.clone(), label];
        row.extend([summary.scenario_count, summary.failed_count].map(|count| count.to_string()));
        row.extend([real(summary.best_metric, 6), real(summary.median_metric, 6), real(summary.mean_duration, 3)]);
        row.extend(ranking.profitability_metric.as_ref().map(|_| real(summary.mean_profitability, 6)));
        rows.push(row);
        best.extend(summary.ranked.iter().take(top).zip(1..).map(|((label, value), place): (_, usize)| {
            vec![summary.architecture.clone(), label.clone(), place.to_string(), real(Some(*value), 6)]
        }));
    }
    format!("{}\n{}", markdown(&rows, 2), markdown(&best, 2))
}

/// The columns of summaries as data.
pub fn summary_columns() -> Vec<Column<ArchitectureSummary>> {
    type Summary = ArchitectureSummary;
    vec![
        Column::new("architecture", "Backbone.", |row: &Summary| row.architecture.clone()),
        Column::new("scenario_count", "Rows with the metric.", |row: &Summary| row.scenario_count),
        Column::new("failed_count", "Rows that failed.", |row: &Summary| row.failed_count),
        Column::new("best_metric", "Best value.", |row: &Summary| row.best_metric),
        Column::new("best_metric_label", "Label of the best row.", |row: &Summary| row.best_metric_label.clone()),
        Column::new("median_metric", "Median of the metric.", |row: &Summary| row.median_metric),
        Column::new("mean_metric", "Mean of the metric.", |row: &Summary| row.mean_metric),
        Column::new("median_duration", "Median duration in seconds.", |row: &Summary| row.median_duration),
        Column::new("mean_duration", "Mean duration in seconds.", |row: &Summary| row.mean_duration),
        Column::new("mean_profitability", "Mean of another column.", |row: &Summary| row.mean_profitability),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "architecture,label,metric_val_loss,duration_seconds,status,roi\na,\"a,1\",0.5,2,measured,0.1\n\
        a,\"a,2\",0.25,4,measured,0.3\nb,\"b,1\",,1,failed,\na,\"a,3\",1.0,,measured,\nb,\"b,2\",0.125,3,measured,\n\
        c,\"c,1\",,,failed,\n";

    fn by(metric: &str) -> Ranking {
        Ranking { metric: metric.into(), higher_is_better: false, profitability_metric: None }
    }

    #[test]
    fn summaries_are_the_same_from_csv_and_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rows.csv");
        std::fs::write(&file, CSV).expect("written");
        let rows = read_rows(&file).expect("rows");
        let summaries = summarise(&rows, &by("metric_val_loss")).expect("a summary");
        let text = summary_markdown(&summaries, &by("metric_val_loss"), 2);
        let cells = |line: &str| line.split('|').map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
        assert_eq!(lines[2][1..8], ["b", "b,2", "1", "1", "0.125000", "0.125000", "3.000"]);
        assert_eq!(lines[3][1..8], ["a", "a,2", "3", "0", "0.250000", "0.500000", "3.000"]);
        assert_eq!(lines[4][1..8], ["c", "n/a", "0", "1", "n/a", "n/a", "n/a"]);
        assert_eq!(lines[9][1..5], ["a", "a,2", "1", "0.250000"]);
        assert_eq!(lines.len(), 11);
        let higher =
            Ranking { higher_is_better: true, profitability_metric: Some("roi".into()), ..by("metric_val_loss") };
        let summaries = summarise(&rows, &higher).expect("a summary");
        let found: Vec<_> = summaries.iter().map(|row| (row.architecture.as_str(), row.best_metric)).collect();
        assert_eq!(found, [("a", Some(1.0)), ("b", Some(0.125)), ("c", None)]);
        assert_eq!((summaries[0].mean_profitability, summaries[0].median_duration), (Some(0.2), Some(3.0)));

        let json = folder.path().join("rows.json");
        std::fs::write(&json, serde_json::to_string(&rows).expect("JSON")).expect("written");
        assert_eq!(read_rows(&json).expect("rows"), rows);
        let lines: Vec<_> = rows.iter().map(|row| serde_json::to_string(row).expect("JSON")).collect();
        let jsonl = folder.path().join("rows.jsonl");
        std::fs::write(&jsonl, lines.join("\n")).expect("written");
        assert_eq!(read_rows(&jsonl).expect("rows"), rows);
        let columns = folder.path().join("columns.json");
        std::fs::write(&columns, r#"{"architecture": {"0": "a", "1": "b"}, "loss": {"0": 1.5, "1": null}}"#)
            .expect("written");
        let rows_of_columns = read_rows(&columns).expect("rows");
        assert_eq!(
            (rows_of_columns.len(), &rows_of_columns[0]["loss"], &rows_of_columns[1]["architecture"]),
            (2, &1.5.into(), &"b".into())
        );
        assert!(summarise(&rows, &by("metric_train_loss")).is_err());
        let twice: Vec<ResultRow> = (0..2)
            .map(|_| serde_json::from_str(r#"{"run": "r", "id": "i", "architecture": "a", "loss": 1}"#).expect("a row"))
            .collect();
        assert_eq!(summarise(&twice, &by("loss")).expect("a summary")[0].scenario_count, 1);
        assert!(read_rows(&folder.path().join("rows.txt")).expect_err("a name").to_string().contains(".parquet"));
    }
}
