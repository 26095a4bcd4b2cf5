//! Reading records back. What can be read is used; what can't is named by its line, and nothing is dropped in silence.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Record, SCHEMA};

/// Records of a file, and what is wrong with its other lines.
#[derive(Debug, Default)]
pub struct Read {
    pub records: Vec<Record>,
    /// One line each: file, line number, what is wrong.
    pub problems: Vec<String>,
}

/// Reads a file of records, one a line. Empty lines are none.
///
/// # Errors
/// When the file can't be opened. Lines that can't be read are [`Read::problems`].
pub fn read(path: &Path) -> Result<Read> {
    let file = File::open(path).with_context(|| format!("{} could not be read", path.display()))?;
    let mut read = Read::default();
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.trim_ascii().is_empty() => {}
            Ok(_) => match record(line.trim_ascii()) {
                Ok(record) => read.records.push(record),
                Err(problem) => read.problems.push(format!("{} line {number}: {problem}", path.display())),
            },
            Err(error) => {
                read.problems.push(format!("{} line {number}: {error}; the rest is not read", path.display()));
                break;
            }
        }
    }
    Ok(read)
}

fn record(line: &[u8]) -> Result<Record, String> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let versioned: Versioned = serde_json::from_slice(line).map_err(|error| match error.is_eof() {
        true => "the line breaks off".to_owned(),
        false => format!("no record: {error}"),
    })?;
    if versioned.schema != SCHEMA {
        return Err(format!("schema {} is not known here; this version reads {SCHEMA}", versioned.schema));
    }
    serde_json::from_slice(line).map_err(|error| format!("no record of schema {SCHEMA}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_can_not_be_read_is_named_by_its_line() {
        let good = include_str!("sample.json").replace('\n', "");
        let torn = &good[..good.len() / 2];
        let newer = good.replacen("\"schema\":1", "\"schema\":99", 1).replacen("\"schema\": 1", "\"schema\": 99", 1);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("records.jsonl");
        fs::write(&file, format!("{good}\n{torn}\n\n{newer}\nnonsense\n{{\"schema\": 1}}\n{good}\n{torn}"))
            .expect("written");
        let read = read(&file).expect("it is there");
        assert_eq!(read.records.len(), 2);
        for (problem, part) in read.problems.iter().zip([
            "line 2: the line breaks off",
            "line 4: schema 99",
            "line 5: no record",
            "line 6: no record of schema 1",
            "line 8: the line breaks off",
        ]) {
            assert!(problem.contains(part), "{problem}");
        }
        assert_eq!(read.problems.len(), 5, "{:?}", read.problems);
    }

    #[test]
    fn an_empty_file_has_no_records_and_no_problems() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = read(file.path()).expect("it is there");
        assert!(read.records.is_empty() && read.problems.is_empty());
    }

    #[test]
    fn a_record_survives_writing_and_reading() {
        let record: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        let again = serde_json::to_string(&record).and_then(|text| serde_json::from_str::<Record>(&text));
        assert_eq!(record, again.expect("round"));
    }
}
