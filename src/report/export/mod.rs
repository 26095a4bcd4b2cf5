//! Exports of a run for other tools. Those for dashboards have every metric of every benchmark; [`Measures::metrics`] lists
//! them.

mod llama_bench;
mod sql;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    record::{Better, MeasureUnit, Measures, Metric, Record},
    text,
};

/// Format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON for github-action-benchmark's tool `customBiggerIsBetter`
    GithubBigger,
    /// JSON for github-action-benchmark's tool `customSmallerIsBetter`
    GithubSmaller,
    /// Bencher Metric Format, for `bencher run --adapter json`
    Bencher,
    /// OpenMetrics text, for Prometheus and Grafana
    Openmetrics,
    /// YAML entries for a registry of metrics
    Registry,
    /// The lines of llama.cpp's `llama-bench -o jsonl`
    LlamaBenchJsonl,
    /// SQL for the shell of SQLite: `candlepower export --format sql | sqlite3 results.sqlite`
    Sql,
    /// A database of SQLite, which its shell `sqlite3` writes to the file of --to
    Sqlite,
}

/// The records in a format.
///
/// # Errors
/// When the text cannot be encoded, or the run has nothing that the format can hold.
pub fn export(records: &[&Record], format: Format) -> Result<String> {
    let rows: Vec<Exported> = records
        .iter()
        .filter_map(|record| {
            let measures = record.measures.as_ref()?;
            Some(Exported { record, metrics: measures.metrics(), measures })
        })
        .collect();
    match format {
        Format::GithubBigger => github(&rows, Better::Higher),
        Format::GithubSmaller => github(&rows, Better::Lower),
        Format::Bencher => bencher(&rows),
        Format::Openmetrics => Ok(openmetrics(&rows)),
        Format::Registry => registry(&rows),
        Format::LlamaBenchJsonl => llama_bench::llama_bench(records),
        Format::Sql | Format::Sqlite => sql::sql(records),
    }
}

struct Exported<'a> {
    record: &'a Record,
    metrics: Vec<Metric>,
    measures: &'a Measures,
}

fn github(rows: &[Exported], better: Better) -> Result<String> {
    let entries: Vec<Value> = rows
        .iter()
        .flat_map(|row| row.metrics.iter().map(move |metric| (row, metric)))
        .filter(|(_, metric)| metric.better == better)
        .map(|(row, metric)| {
            let commit = row.record.software.commit.as_deref().unwrap_or("unknown");
            let mut entry = json!({
                "name": format!("{} {}", row.record.exported_id(), metric.name),
                "unit": metric.unit.name(),
                "value": metric.value,
                "extra": format!("{}, candle {}, commit {commit}", row.record.machine.name, row.record.software.candle),
            });
            if let Some(deviation) = metric.deviation {
                entry["range"] = format!("± {deviation:.3}").into();
            }
            entry
        })
        .collect();
    serde_json::to_string_pretty(&entries).context("the export could not be written")
}

fn bencher(rows: &[Exported]) -> Result<String> {
    let mut benchmarks = Map::new();
    for row in rows {
        let mut measures = Map::new();
        // `latency` is Bencher's built-in measure, in nanoseconds.
        let sample_ms = row.measures.sample_ms();
        if !sample_ms.is_empty() {
            let extreme = |pick: fn(f64, f64) -> f64| sample_ms.iter().copied().reduce(pick).map(|ms| ms * 1e6);
            measures.insert(
                "latency".into(),
                json!({
                    "value": crate::report::statistics::median(sample_ms) * 1e6,
                    "lower_value": extreme(f64::min),
                    "upper_value": extreme(f64::max),
                }),
            );
        }
        for metric in &row.metrics {
            measures.insert(metric.name.replace('_', "-"), json!({ "value": metric.value }));
        }
        benchmarks.insert(row.record.exported_id(), measures.into());
    }
    serde_json::to_string_pretty(&benchmarks).context("the export could not be written")
}

/// Name, unit and value of a metric in OpenMetrics, which requires base units, names that end in the unit, and units that are
/// not abbreviated. A quotient such as joules per token names its units itself. The base unit of information is the byte.
fn base_unit(metric: &Metric) -> (String, &'static str, f64) {
    let (unit, factor) = metric.unit.base();
    let name = match metric.name.strip_suffix("_per_s") {
        Some(counted) => format!("{counted}_per_second"),
        None if metric.unit == MeasureUnit::Bits => metric.name.replace("bits", unit),
        None => metric.name.to_owned(),
    };
    match unit.is_empty() || name.contains("_per_") {
        true => (name, "", metric.value * factor),
        false => (format!("{name}_{unit}"), unit, metric.value * factor),
    }
}

/// A family of OpenMetrics: its unit, its help text, and its samples.
struct MetricFamily {
    unit: &'static str,
    help: &'static str,
    lines: Vec<String>,
}

fn openmetrics(rows: &[Exported]) -> String {
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for row in rows {
        let record = row.record;
        let labels = [
            ("id", record.id.as_str()),
            ("scenario", &record.scenario),
            ("model", &record.subject.model),
            ("engine", &record.subject.engine),
            ("dtype", &record.subject.dtype),
            ("device", &record.subject.device),
            ("machine", &record.machine.name),
            ("run", &record.run),
            ("commit", record.software.commit.as_deref().unwrap_or("unknown")),
            ("sandbox", if record.sandbox { "true" } else { "false" }),
        ];
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", text::openmetrics(value))).collect();
        for metric in &row.metrics {
            let (name, unit, value) = base_unit(metric);
            let line = format!("candlepower_{name}{{{}}} {value}", labels.join(","));
            let family = MetricFamily { unit, help: metric.explanation, lines: Vec::new() };
            families.entry(name).or_insert(family).lines.push(line);
        }
    }
    let mut text = String::new();
    for (name, MetricFamily { unit, help, lines }) in families {
        let _ = writeln!(text, "# HELP candlepower_{name} {}", text::openmetrics(help));
        let _ = writeln!(text, "# TYPE candlepower_{name} gauge");
        if !unit.is_empty() {
            let _ = writeln!(text, "# UNIT candlepower_{name} {unit}");
        }
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
    }
    text.push_str("# EOF\n");
    text
}

fn registry(rows: &[Exported]) -> Result<String> {
    #[derive(Serialize)]
    struct Entry {
        id: String,
        name: String,
        compare: &'static str,
        unit: &'static str,
        source: &'static str,
        tags: BTreeSet<String>,
    }
    let entry = |row: &Exported, metric: &Metric| Entry {
        id: row.record.exported_metric_id(metric.name),
        name: format!("{} of {}, {}", metric.name.replace('_', " "), row.record.subject.model, row.record.scenario),
        compare: match metric.better {
            Better::Higher => "higher_is_better",
            Better::Lower => "lower_is_better",
        },
        unit: metric.unit.name(),
        source: if row.record.sandbox { "candlepower sandbox" } else { "candlepower" },
        tags: [&row.record.scenario, &row.record.subject.engine, &row.record.subject.dtype, &row.record.subject.device]
            .into_iter()
            .cloned()
            .collect(),
    };
    let entries: Vec<Entry> =
        rows.iter().flat_map(|row| row.metrics.iter().map(move |metric| entry(row, metric))).collect();
    let yaml = serde_saphyr::to_string(&entries).context("the export could not be written")?;
    Ok(text::json(&yaml))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Evaluation, Generation, Loading, Quality, Serving, Sweep, Tokenizing, Training};

    fn record(edit: impl Fn(&mut Record)) -> Record {
        let mut record = serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
        edit(&mut record);
        record
    }

    fn exported(record: &Record, format: Format) -> String {
        export(&[record], format).expect("an export")
    }

    #[test]
    fn github_separates_the_directions() {
        let record = record(|_| {});
        let names = |format| -> Vec<String> {
            let entries: Vec<Value> = serde_json::from_str(&exported(&record, format)).expect("JSON");
            entries.iter().map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect()
        };
        let (bigger, smaller) = (names(Format::GithubBigger), names(Format::GithubSmaller));
        assert!(bigger.contains(&"short/llama-mini/stock-f32-cpu tokens_per_s".into()), "{bigger:?}");
        assert!(smaller.contains(&"short/llama-mini/stock-f32-cpu ttft".into()), "{smaller:?}");
        assert!(bigger.iter().all(|name| !smaller.contains(name)));
    }

    /// The exported values that have a range, with it.
    fn ranges(measures: Measures) -> String {
        let record = record(|record| record.measures = Some(measures.clone()));
        let texts = [Format::GithubBigger, Format::GithubSmaller].map(|format| exported(&record, format));
        let entries = texts.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).expect("JSON"));
        let range = |entry: Value| {
            let name = entry["name"].as_str().and_then(|name| name.split(' ').next_back()).expect("a name");
            Some(format!("{name} {} {}", entry["value"], entry.get("range")?.as_str()?))
        };
        entries.filter_map(range).collect::<Vec<_>>().join(", ")
    }

    /// The samples deviate by √2 from 10, and the values by the same share, but for the exponential of the samples.
    #[test]
    fn each_value_of_samples_has_a_range() {
        let samples = || vec![9.0, 11.0];
        let steps = Generation {
            new_tokens: 64,
            tokens_per_s: 100.0,
            ttft_ms: 3.0,
            sample_total_ms: samples(),
            ..Generation::default()
        };
        assert_eq!(ranges(Measures::Generation(steps.clone())), "tokens_per_s 100.0 ± 14.142");
        let of_one_token = Generation { new_tokens: 1, ttft_ms: 10.0, prefill_tokens_per_s: 100.0, ..steps.clone() };
        let expected = "prefill_tokens_per_s 100.0 ± 14.142, ttft 10.0 ± 1.414";
        assert_eq!(ranges(Measures::Generation(of_one_token)), expected);
        let of_one_sample = Generation { sample_total_ms: vec![10.0], ..steps };
        assert_eq!(ranges(Measures::Generation(of_one_sample)), "");
        let sweep = Sweep { windows_per_s: 100.0, step_p50_ms: 10.0, sample_ms: samples(), ..Sweep::default() };
        assert_eq!(ranges(Measures::Sweep(sweep)), "samples_per_s 100.0 ± 14.142, step_p50 10.0 ± 1.414");
        let training = Training {
            tokens_per_s: 100.0,
            step_p50_ms: 10.0,
            peak_bytes: Some(10),
            sample_ms: samples(),
            ..Training::default()
        };
        let expected = "tokens_per_s 100.0 ± 14.142, step_p50 10.0 ± 1.414";
        assert_eq!(ranges(Measures::Training(training.clone())), expected);
        let memory = Training { sample_ms: Vec::new(), sample_peak_bytes: vec![9, 11], ..training };
        assert_eq!(ranges(Measures::Training(memory)), "peak_memory 10.0 ± 1.414");
        let server = Serving { e2e_p50_ms: Some(10.0), sample_e2e_ms: samples(), ..Serving::default() };
        assert_eq!(ranges(Measures::Serving(server)), "e2e_p50 10.0 ± 1.414");
        let quality = Quality {
            perplexity: Some(100.0),
            nll: 10.0,
            bits_per_byte: Some(3.0),
            window_nll: samples(),
            ..Quality::default()
        };
        let expected = "perplexity 100.0 ± 141.421, nll 10.0 ± 1.414, bits_per_byte 3.0 ± 0.424";
        assert_eq!(ranges(Measures::Quality(quality)), expected);
        let task = Evaluation { target_perplexity: Some(100.0), question_nll: samples(), ..Evaluation::default() };
        assert_eq!(ranges(Measures::Evaluation(task)), "target_perplexity 100.0 ± 141.421");
        let loading = Loading { load_ms: 10.0, sample_ms: samples(), ..Loading::default() };
        assert_eq!(ranges(Measures::Loading(loading)), "load 10.0 ± 1.414");
        let tokenizing =
            Tokenizing { text_bytes_per_s: 100.0, token_us: 10.0, sample_ms: samples(), ..Tokenizing::default() };
        assert_eq!(ranges(Measures::Tokenizing(tokenizing)), "text_bytes_per_s 100.0 ± 14.142, token 10.0 ± 1.414");
    }

    #[test]
    fn bencher_gets_latency_in_nanoseconds() {
        let record = record(|_| {});
        let json: Value = serde_json::from_str(&exported(&record, Format::Bencher)).expect("JSON");
        let latency = &json["short/llama-mini/stock-f32-cpu"]["latency"];
        let value = |key: &str| latency[key].as_f64().expect(key);
        let sample_ms = record.measures.as_ref().expect("measures").sample_ms();
        assert!((value("value") / 1e6 - crate::report::statistics::median(sample_ms)).abs() < 1e-6);
        assert!(value("lower_value") <= value("value") && value("value") <= value("upper_value"));
        assert!(json["short/llama-mini/stock-f32-cpu"]["itl-p50"]["value"].is_f64());
    }

    #[test]
    fn openmetrics_has_base_units_escaped_labels_and_an_end() {
        let record = record(|record| record.subject.model = "a\"b\\c".into());
        let text = exported(&record, Format::Openmetrics);
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("# UNIT candlepower_ttft_seconds seconds\n"), "{text}");
        assert!(text.contains("# HELP candlepower_ttft_seconds Time to first token"), "{text}");
        // Prometheus' linter refuses abbreviated units and metrics without help.
        let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect::<Vec<_>>();
        assert_eq!(text.lines().filter(|line| line.starts_with("# HELP ")).count(), families.len());
        assert!(families.iter().all(|line| !line.contains("_per_s ") && !line.contains("_ms")), "{families:?}");
        assert!(text.contains("candlepower_tokens_per_second{"), "{text}");
        assert!(text.contains("model=\"a\\\"b\\\\c\""), "{text}");
        let ttft = text.lines().find(|line| line.starts_with("candlepower_ttft_seconds{")).expect("a sample");
        let seconds: f64 = ttft.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
        assert!((seconds - 0.0363).abs() < 1e-4);
        let (unit, better) = (MeasureUnit::Bits, Better::Lower);
        let metric = Metric { name: "bits_per_byte", explanation: "", unit, better, value: 2.0, deviation: None };
        assert_eq!(base_unit(&metric), ("bytes_per_byte".to_owned(), "", 0.25));
    }

    #[test]
    fn sandbox_records_are_marked_in_every_format() {
        let record = record(|record| record.sandbox = true);
        for format in [Format::GithubBigger, Format::GithubSmaller, Format::Bencher, Format::Registry] {
            assert!(exported(&record, format).contains("sandbox/short/llama-mini"), "{format:?}");
        }
        let text = exported(&record, Format::Openmetrics);
        assert!(text.lines().filter(|line| line.contains('{')).all(|line| line.contains("sandbox=\"true\"")));
    }

    #[test]
    fn the_registry_states_the_direction() {
        let record = record(|_| {});
        let entries: Vec<BTreeMap<String, Value>> =
            serde_saphyr::from_str(&exported(&record, Format::Registry)).expect("YAML");
        let find = |id: &str| entries.iter().find(|entry| entry["id"] == id).expect(id);
        assert_eq!(find("short/llama-mini/stock-f32-cpu/ttft")["compare"], "lower_is_better");
        assert_eq!(find("short/llama-mini/stock-f32-cpu/tokens_per_s")["compare"], "higher_is_better");
        assert_eq!(find("short/llama-mini/stock-f32-cpu/ttft")["source"], "candlepower");
    }

    #[test]
    fn a_failed_benchmark_has_no_metrics() {
        let record = record(|record| record.measures = None);
        assert_eq!(exported(&record, Format::GithubBigger), "[]");
        assert_eq!(exported(&record, Format::Openmetrics), "# EOF\n");
    }
}
