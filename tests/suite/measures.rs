//! The table of measures: one row puts a measure into every output, and old files keep their layout.

use std::{collections::BTreeSet, fs, path::Path};

use candlepower::report::columns::{LabelTemplate, documentation, results, sweep};
use candlepower_core::record::{
    self, Measures,
    columns::{csv, parquet},
    measures::{self, TableKey, table_columns},
};

use crate::generated::assert_part;

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");
/// A report that an earlier version wrote.
const KEPT: &str = "target-reports/amd-epyc-2c/20261122T165718Z";

fn names(text: &[u8]) -> Vec<String> {
    let header = std::str::from_utf8(text).expect("UTF-8").lines().next().expect("a header");
    header.split(',').map(str::to_owned).collect()
}

/// A row whose accessor or field is missing does not compile, so this test covers what the compiler does not: that each
/// row reaches each output that it names.
#[test]
fn every_row_is_in_every_output_that_it_names() {
    let (result_columns, sweep_columns) = (results(), sweep(&LabelTemplate::default()));
    let in_csv = names(&csv(&result_columns, &[]).expect("a table"));
    let in_sweep = names(&csv(&sweep_columns, &[]).expect("a table"));
    // The footer of a Parquet file has the names as plain text.
    let in_parquet = parquet(&result_columns, &[]).expect("a file");
    let in_parquet = String::from_utf8_lossy(&in_parquet);
    let guide = documentation();
    let fields = serde_json::to_string(&schemars::schema_for!(Measures)).expect("a schema");

    for measure in measures::all() {
        let name = measure.name;
        assert!(measure.explanation().ends_with('.'), "{name} is explained in whole sentences");
        assert!(!measure.explanation().contains(['[', '|']), "{name}: the explanation is a cell of a Markdown table");
        if let Some(column) = measure.results_column() {
            assert!(in_csv.iter().any(|known| known == column), "{column} is in results.csv");
            assert!(in_parquet.contains(column), "{column} is in results.parquet");
            assert!(guide.contains(&format!("| `{column}` ")), "{column} is in the guide");
        }
        if let Some(column) = measure.row.sweep {
            assert!(in_sweep.iter().any(|known| known == column), "{column} is in sweep.parquet");
        }
        for &(key, _, header) in measure.row.tables {
            assert!(table_columns(key).iter().any(|column| column.header == header), "{header} is in {key:?}");
        }
        let is_output = measure.results_column().is_some()
            || measure.row.sweep.is_some()
            || measure.row.export.is_some()
            || !measure.row.tables.is_empty();
        assert!(is_output, "a row without an output has no purpose: {name}");
        assert!(measure.row.export.is_none() || measure.row.better.is_some(), "{name}: an export needs a direction");
    }
    assert!(fields.contains("\"ttft_ms\"") && fields.contains("Time to first token (TTFT)"), "{fields}");
}

/// Each column has one header, and each exported name one place within a kind of benchmark.
#[test]
fn names_and_places_are_unambiguous() {
    for columns in [
        results().iter().map(|column| column.name).collect::<Vec<_>>(),
        sweep(&LabelTemplate::default()).iter().map(|c| c.name).collect(),
    ] {
        assert_eq!(columns.iter().collect::<BTreeSet<_>>().len(), columns.len(), "{columns:?}");
    }
    for key in [
        TableKey::Generation,
        TableKey::LongContext,
        TableKey::Sweep,
        TableKey::Checkpointing,
        TableKey::Training,
        TableKey::Serving,
        TableKey::Quality,
        TableKey::Evaluation,
        TableKey::Loading,
        TableKey::Tokenizing,
        TableKey::Scaling,
        TableKey::Live,
    ] {
        let places: Vec<u8> = table_columns(key).iter().map(|column| column.place).collect();
        assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "{key:?}: {places:?}");
    }
}

/// Old records can be read, and give the values of the columns that they gave when they were written. Newer columns are
/// empty, unless they are computed from fields that the records had.
#[test]
fn a_kept_report_is_read_and_its_columns_are_the_same() {
    let folder = Path::new(FOLDER).join(KEPT);
    let joined = candlepower::report::joined::join(&folder.join("results.jsonl"), Path::new("no/criterion/here"))
        .expect("the kept records");
    let computed = ["gradient_norm", "update_ratio"];
    let columns = results();
    let now = csv(&columns, &joined.rows).expect("a table");
    let then = fs::read(folder.join("results.csv")).expect("the kept table");
    let (now_names, then_names) = (names(&now), names(&then));
    let place = |name: &String| now_names.iter().position(|known| known == name);
    let places: Vec<usize> =
        then_names.iter().map(|name| place(name).unwrap_or_else(|| panic!("{name} is gone"))).collect();
    assert!(places.is_sorted(), "the columns keep their order");
    let rows = |text: &[u8]| -> Vec<Vec<String>> {
        let mut reader = csv::Reader::from_reader(text);
        reader.records().map(|row| row.expect("a row").iter().map(str::to_owned).collect()).collect()
    };
    let (now, then) = (rows(&now), rows(&then));
    assert_eq!(now.len(), then.len());
    assert!(now.len() > 10, "{} rows", now.len());
    for (now, then) in now.iter().zip(&then) {
        let is_newer = |place: &usize| !places.contains(place) && !computed.contains(&columns[*place].name);
        assert!((0..now.len()).filter(is_newer).all(|place| now[place].is_empty()), "newer columns are empty");
        for ((column, now), then) in places.iter().map(|place| (&columns[*place], &now[*place])).zip(then) {
            // Criterion's folders are not kept. Benchmarks of memory had no number of samples at the time.
            let is_new = column.name == "samples" && then == "0";
            assert!(
                column.name.starts_with("criterion_") || is_new || now == then,
                "{}: {now}, not {then}",
                column.name
            );
        }
    }
}

#[test]
fn metrics_begin_with_the_headline() {
    let sample = include_bytes!("../../src/core/record/sample.json");
    let record: record::Record = serde_json::from_slice(sample).expect("the sample");
    let metrics = record.measures.expect("measures").metrics();
    let names: Vec<&str> = metrics.iter().map(|metric| metric.name).collect();
    assert_eq!(names[..4], ["tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s", "ttft"]);
    assert_eq!(metrics[0].unit.name(), "tok/s");
}

#[test]
fn the_guide_has_the_table_of_columns() {
    assert_part("reports.md", "columns", &documentation());
}
