//! SQL that the shell of SQLite reads. A text needs no SQLite here, whose C sources would take a minute to compile.

use std::fmt::Write;

use anyhow::{Context, Result};
use chrono::SecondsFormat;

use crate::{
    record::{
        Record,
        columns::{DataType, Value},
    },
    report::{columns::results, joined::Row},
    text,
};

/// A table `results` with the columns of `results.csv`, whether the record is synthetic, and the whole record as JSON. It is
/// created if it does not exist; a benchmark that it has is replaced.
///
/// # Errors
/// Returns an error if a record cannot be encoded.
pub fn sql(records: &[&Record]) -> Result<String> {
    let columns = results();
    let mut names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let types = columns.iter().map(|column| match column.data_type {
        DataType::Text | DataType::Time => "TEXT",
        DataType::Whole | DataType::Flag => "INTEGER",
        DataType::Real => "REAL",
    });
    let mut declared: Vec<String> = names.iter().zip(types).map(|(name, kind)| format!("    {name} {kind}")).collect();
    names.extend(["\"sandbox\"", "\"record\""].map(str::to_owned));
    declared.extend(["    \"sandbox\" INTEGER", "    \"record\" TEXT"].map(str::to_owned));
    declared.push("    PRIMARY KEY (\"run\", \"id\", \"at\")".into());
    let mut sql = format!("BEGIN;\nCREATE TABLE IF NOT EXISTS results (\n{}\n);\n", declared.join(",\n"));
    for record in records {
        let row = Row { record: (*record).clone(), criterion: None };
        let mut values: Vec<String> =
            columns.iter().map(|column| (column.get)(&row).map_or("NULL".into(), literal)).collect();
        values.push(u8::from(record.sandbox).to_string());
        let json = serde_json::to_string(record).context("a record could not be encoded")?;
        values.push(quoted(&text::json(&json)));
        let _ = writeln!(sql, "INSERT OR REPLACE INTO results ({}) VALUES ({});", names.join(", "), values.join(", "));
    }
    Ok(sql + "COMMIT;\n")
}

fn literal(value: Value) -> String {
    match value {
        Value::Text(text) => quoted(&text::line(&text)),
        Value::Whole(value) => value.to_string(),
        Value::Real(value) if value.is_finite() => value.to_string(),
        Value::Real(_) => "NULL".into(),
        Value::Flag(value) => u8::from(value).to_string(),
        Value::Time(value) => quoted(&value.to_rfc3339_opts(SecondsFormat::Millis, true)),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(edit: impl Fn(&mut Record)) -> Record {
        let mut record = serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
        edit(&mut record);
        record
    }

    #[test]
    fn text_stays_in_its_value() {
        let hostile = "x'); DROP TABLE results; --\n.shell ls\u{0}";
        let failed = sample(|record| {
            record.measures = None;
            record.reason = Some(hostile.into());
        });
        let text = sql(&[&failed]).expect("SQL");
        assert!(text.contains("'x''); DROP TABLE results; --\\n.shell ls\\u{0}'"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("INSERT")).count(), 1);
        assert!(text.lines().all(|line| !line.starts_with('.')) && !text.contains('\0'));
        assert!(text.starts_with("BEGIN;\nCREATE TABLE IF NOT EXISTS results (\n    \"run\" TEXT,\n"), "{text}");
        assert!(text.contains(", NULL, ") && text.ends_with("COMMIT;\n"));
    }
}
