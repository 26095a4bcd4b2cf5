//! The log of architecture sweeps, and summaries of their results.

use std::{collections::BTreeMap, fmt::Write, fs::File, path::Path};

use anyhow::{Context, Result, bail, ensure};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use serde_json::{Map, Value};

use super::text_table::markdown;
use crate::record::{Measures, Record};

/// A table of the combinations of a sweep, failed ones included, under a heading. It is made to be appended to a log.
pub fn log_entry(heading: &str, records: &[Record]) -> String {
    let header = ["Run", "Throughput (samples/s)", "VRAM (GB)", "Latency (ms/step)", "Status"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for record in records {
        let (throughput, vram, latency) = match &record.measures {
            Some(Measures::Sweep(measures)) => (
                format!("{:.1}", measures.windows_per_s),
                measures.peak_bytes.map_or("n/a".into(), |bytes| format!("{:.2}", bytes as f64 / 1e9)),
                format!("{:.1}", measures.step_p50_ms),
            ),
            _ => ("n/a".into(), "n/a".into(), "n/a".into()),
        };
        let status = record.reason.as_ref().map_or("ok".to_owned(), |reason| format!("failed: {reason}"));
        let run = format!("{} ({})", record.subject.model, record.scenario);
        rows.push(vec![run, throughput, vram, latency, status.replace('|', "\\|")]);
    }
    let note = "On a CPU, VRAM is the peak of the memory that the process allocated.";
    format!("## {heading}\n\n{}\n{note}\n\n", markdown(&rows, 1))
}

/// A row of a sweep's results: columns by name.
pub type ResultRow = Map<String, Value>;

/// Reads the rows of a sweep's results from a Parquet, CSV or JSON file. JSON is a list of objects, or one object per line.
///
/// # Errors
/// Returns an error if the file cannot be read as its extension says.
pub fn read_rows(path: &Path) -> Result<Vec<ResultRow>> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let rows = match extension {
        "parquet" => read_parquet(path),
        "csv" => read_csv(path),
        "json" | "jsonl" => read_json(path),
        _ => bail!("{}: expected a file that ends in .parquet, .csv, .json or .jsonl", path.display()),
    };
    rows.with_context(|| format!("{} cannot be read", path.display()))
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
    let mut reader = csv::Reader::from_path(path)?;
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
    let text = std::fs::read_to_string(path)?;
    match text.trim_start().starts_with('[') {
        true => Ok(serde_json::from_str(&text)?),
        false => {
            text.lines().filter(|line| !line.trim().is_empty()).map(|line| Ok(serde_json::from_str(line)?)).collect()
        }
    }
}

/// Rows that have the metric, and what a summary shows of each.
struct Run {
    label: String,
    metric: f64,
    duration_seconds: Option<f64>,
}

/// Summarises results per architecture as Markdown: the number of runs, the best and the median of the metric, the mean
/// duration, and the `top` best runs. Lower is better. Rows without the metric are not counted.
///
/// # Errors
/// Returns an error if no row has the metric.
pub fn summarise(rows: &[ResultRow], metric: &str, top: usize) -> Result<String> {
    let mut groups: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for row in rows {
        let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |name: &str| row.get(name).and_then(Value::as_f64).filter(|number| number.is_finite());
        let Some(value) = number(metric) else { continue };
        let architecture = text("architecture").context("a row has no column architecture")?;
        let label = text("label").unwrap_or_default();
        let run = Run { label, metric: value, duration_seconds: number("duration_seconds") };
        groups.entry(architecture).or_default().push(run);
    }
    ensure!(!groups.is_empty(), "no row has a number in column {metric}");
    let mut summary = vec![
        ["Architecture", "Best label", "Runs", "Best metric", "Median", "Mean duration (s)"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut best = vec![["Architecture", "Label", "Rank", metric].map(str::to_owned).to_vec()];
    for (architecture, runs) in &mut groups {
        runs.sort_by(|a, b| a.metric.total_cmp(&b.metric));
        let middle = runs.len() / 2;
        let median = match runs.len().is_multiple_of(2) {
            true => (runs[middle - 1].metric + runs[middle].metric) / 2.0,
            false => runs[middle].metric,
        };
        let durations: Vec<f64> = runs.iter().filter_map(|run| run.duration_seconds).collect();
        let mean = match durations.is_empty() {
            true => "n/a".to_owned(),
            false => format!("{:.3}", durations.iter().sum::<f64>() / durations.len() as f64),
        };
        let (first, count) = (&runs[0], runs.len().to_string());
        let numbers = [count, format!("{:.6}", first.metric), format!("{median:.6}"), mean];
        summary.push([architecture.clone(), first.label.clone()].into_iter().chain(numbers).collect());
        best.extend(runs.iter().take(top).enumerate().map(|(place, run)| {
            vec![architecture.clone(), run.label.clone(), (place + 1).to_string(), format!("{:.6}", run.metric)]
        }));
    }
    let mut text = markdown(&summary, 2);
    let _ = write!(text, "\n{}", markdown(&best, 2));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "architecture,label,metric_val_loss,duration_seconds\na,\"a,1\",0.5,2\na,\"a,2\",0.25,4\n\
        b,\"b,1\",,1\na,\"a,3\",1.0,\nb,\"b,2\",0.125,3\n";

    #[test]
    fn summaries_are_the_same_from_csv_and_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rows.csv");
        std::fs::write(&file, CSV).expect("written");
        let rows = read_rows(&file).expect("rows");
        let text = summarise(&rows, "metric_val_loss", 2).expect("a summary");
        let cells = |line: &str| line.split('|').map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
        assert_eq!(lines[2][1..7], ["a", "a,2", "3", "0.250000", "0.500000", "3.000"]);
        assert_eq!(lines[3][1..7], ["b", "b,2", "1", "0.125000", "0.125000", "3.000"]);
        assert_eq!(lines[7][1..5], ["a", "a,2", "1", "0.250000"]);
        assert_eq!(lines.len(), 10);

        let json = folder.path().join("rows.json");
        std::fs::write(&json, serde_json::to_string(&rows).expect("JSON")).expect("written");
        assert_eq!(read_rows(&json).expect("rows"), rows);
        let lines: Vec<_> = rows.iter().map(|row| serde_json::to_string(row).expect("JSON")).collect();
        let jsonl = folder.path().join("rows.jsonl");
        std::fs::write(&jsonl, lines.join("\n")).expect("written");
        assert_eq!(read_rows(&jsonl).expect("rows"), rows);
        assert!(summarise(&rows, "metric_train_loss", 2).is_err());
        assert!(read_rows(&folder.path().join("rows.txt")).expect_err("a name").to_string().contains(".parquet"));
    }
}
