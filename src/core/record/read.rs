//! Readers of records. They return every readable record, and name every unreadable line.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read as _, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Deserialize;

use super::{OLDEST_SCHEMA, RECORDS, Record, SCHEMA};
use crate::files::{LINE_MAX_BYTES, read_line_limited};

/// The records of a file, and the problems of its other lines.
#[derive(Debug, Default)]
pub struct Read {
    /// The records, in the order of the file.
    pub records: Vec<Record>,
    /// One text for each problem: file, line number and cause. Of many unreadable lines, the first are named.
    pub problems: Vec<String>,
}

/// Reads a file with one record on each line. Empty lines are skipped.
///
/// # Errors
/// When the file cannot be opened. Unreadable lines are in [`Read::problems`].
pub fn read(path: &Path) -> Result<Read> {
    let file = File::open(path).with_context(|| format!("{} could not be read", path.display()))?;
    let mut read = Read::default();
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match read_line_limited(&mut lines, &mut line, LINE_MAX_BYTES) {
            Ok(0) => break,
            Ok(_) if line.trim_ascii().is_empty() => {}
            Ok(_) => match parse(line.trim_ascii()) {
                Ok(record) => read.records.push(record),
                Err(problem) => read.problems.push(format!("{} line {number}: {problem}", path.display())),
            },
            Err(error) => {
                read.problems.push(format!("{} line {number}: {error}; the rest is not read", path.display()));
                break;
            }
        }
    }
    read.problems = few(read.problems, path);
    Ok(read)
}

/// Unreadable lines that are named.
const NAMED: usize = 5;

/// The first unreadable lines, and the number of the others: a damaged file may have thousands.
fn few(mut problems: Vec<String>, path: &Path) -> Vec<String> {
    let more = problems.len().saturating_sub(NAMED);
    problems.truncate(NAMED);
    if more > 0 {
        problems.push(format!("{}: {more} more lines could not be read", path.display()));
    }
    problems
}

/// Runs that are searched for earlier results. Old runs may be many.
const MOST_RUNS: usize = 20;

/// Name and records of the newest runs below `out`, other than `run`, on a machine of this name. The newest comes first.
pub fn earlier_runs(out: &Path, run: &str, machine: &str) -> impl Iterator<Item = (String, Vec<Record>)> {
    let runs = fs::read_dir(out).into_iter().flatten().flatten().filter(|earlier| *earlier.file_name() != *run);
    let mut files: Vec<_> = runs
        .filter_map(|run| {
            let file = run.path().join(RECORDS);
            Some((fs::metadata(&file).ok()?.modified().ok()?, run.file_name().to_string_lossy().into_owned(), file))
        })
        .collect();
    files.sort();
    files.into_iter().rev().take(MOST_RUNS).filter_map(move |(_, run, file)| {
        let mut records = latest(&file).ok()?.records;
        records.retain(|record| record.machine.name == machine);
        Some((run, records))
    })
}

/// Reads the last record of each benchmark, in the order of the file. Sandbox records count separately. If a benchmark has
/// several records, a problem states how many. All threads scan the file, and only the last record of each benchmark is
/// kept, so the memory in use depends on the number of benchmarks and not on the size of the file.
///
/// # Errors
/// See [`read`].
pub fn latest(path: &Path) -> Result<Read> {
    let bytes = fs::metadata(path).with_context(|| format!("{} could not be read", path.display()))?.len();
    let parts = (bytes / PART_BYTES + 1).min(4 * rayon::current_num_threads() as u64);
    let looked: Vec<Part> = (0..parts)
        .into_par_iter()
        .map(|part| look_through(path, part * bytes / parts, (part + 1) * bytes / parts))
        .collect::<io::Result<_>>()
        .with_context(|| format!("{} could not be read", path.display()))?;

    let mut found = Read::default();
    let mut last: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
    let mut times: BTreeMap<Key, u64> = BTreeMap::new();
    let mut lines_before = 0;
    for part in looked {
        let named =
            |(line, problem): (u64, String)| format!("{} line {}: {problem}", path.display(), lines_before + line);
        found.problems.extend(part.problems.into_iter().map(named));
        for (key, (count, at)) in part.last {
            *times.entry(key.clone()).or_default() += count;
            last.insert(key, at);
        }
        lines_before += part.lines;
    }
    found.problems = few(found.problems, path);
    for ((id, _), times) in times.iter().filter(|(_, times)| **times > 1) {
        found.problems.push(format!("{id}: measured {times} times; the last counts"));
    }
    let mut places: Vec<(u64, u64)> = last.into_values().collect();
    places.sort_unstable();
    let mut file = File::open(path)?;
    let line = |(start, length): (u64, u64)| -> io::Result<Vec<u8>> {
        let mut line = vec![0; length as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut line)?;
        Ok(line)
    };
    let lines = places.into_iter().map(line).collect::<io::Result<Vec<_>>>()?;
    match lines.par_iter().map(|line| parse(line.trim_ascii())).collect::<Result<_, _>>() {
        Ok(records) => Ok(Read { records, ..found }),
        // A line has an id but is not a record, so an earlier record counts, and every line must be read.
        Err(_) => slowly(path),
    }
}

/// The result of [`latest`], found by reading every record.
fn slowly(path: &Path) -> Result<Read> {
    let mut read = read(path)?;
    let mut seen = BTreeSet::new();
    read.records.reverse();
    read.records.retain(|record| seen.insert((record.id.clone(), record.sandbox)));
    read.records.reverse();
    Ok(read)
}

/// Bytes for which one more thread pays off.
const PART_BYTES: u64 = 1 << 20;

/// Id, and whether the record is a sandbox record.
type Key = (String, bool);

/// Index of the lines in a part of a file.
#[derive(Default)]
struct Part {
    lines: u64,
    /// Number of records of a benchmark, and start and length in bytes of the last.
    last: BTreeMap<Key, (u64, (u64, u64))>,
    /// Line within the part, and its problem.
    problems: Vec<(u64, String)>,
}

/// Indexes the lines that start in `from..to`.
fn look_through(path: &Path, from: u64, to: u64) -> io::Result<Part> {
    /// The fields that the index needs. The rest of a line is only checked to be JSON.
    #[derive(Deserialize)]
    struct Head<'a> {
        schema: u32,
        #[serde(borrow)]
        id: Cow<'a, str>,
        #[serde(default)]
        sandbox: bool,
    }
    let mut part = Part::default();
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    let mut start = from;
    if from > 0 {
        // A line that starts in the previous part belongs to that part.
        file.seek(SeekFrom::Start(from - 1))?;
        start = from - 1 + read_line_limited(&mut file, &mut line, LINE_MAX_BYTES)? as u64;
    }
    while start < to {
        line.clear();
        let length = read_line_limited(&mut file, &mut line, LINE_MAX_BYTES)? as u64;
        if length == 0 {
            break;
        }
        part.lines += 1;
        let text = line.trim_ascii();
        match serde_json::from_slice::<Head>(text) {
            _ if text.is_empty() => {}
            Ok(head) if is_known(head.schema) => {
                let (count, at) = part.last.entry((head.id.into_owned(), head.sandbox)).or_default();
                (*count, *at) = (*count + 1, (start, length));
            }
            // `parse` describes the problem.
            _ => part.problems.extend(parse(text).err().map(|problem| (part.lines, problem))),
        }
        start += length;
    }
    Ok(part)
}

/// Parses a line as a record.
///
/// # Errors
/// The problem of the line, without its number.
pub fn parse(line: &[u8]) -> Result<Record, String> {
    /// The field that every version of the schema has.
    #[derive(Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let versioned: Versioned = serde_json::from_slice(line).map_err(|error| match error.is_eof() {
        true => "the line breaks off".to_owned(),
        false => format!("no record: {error}"),
    })?;
    if !is_known(versioned.schema) {
        return Err(format!(
            "schema {} is not known here; this version reads {OLDEST_SCHEMA} to {SCHEMA}",
            versioned.schema
        ));
    }
    serde_json::from_slice(line).map_err(|error| format!("no record of schema {}: {error}", versioned.schema))
}

/// Returns whether records of this version can be read. Fields that came later are empty in older records.
fn is_known(schema: u32) -> bool {
    (OLDEST_SCHEMA..=SCHEMA).contains(&schema)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn unreadable_lines_are_named() {
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
    fn of_many_unreadable_lines_the_first_are_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let good = include_str!("sample.json").replace('\n', "");
        fs::write(file.path(), format!("{}{good}\n", "nonsense\n".repeat(40_000))).expect("written");
        for found in [read(file.path()), latest(file.path())] {
            let found = found.expect("read");
            assert_eq!((found.records.len(), found.problems.len()), (1, NAMED + 1), "{:?}", found.problems);
            assert!(found.problems[0].contains("line 1: no record"), "{:?}", found.problems);
            assert!(found.problems[NAMED].ends_with(": 39995 more lines could not be read"), "{:?}", found.problems);
        }
    }

    /// The result is the same for one part, for many parts, and for reading every record.
    #[test]
    fn the_last_of_each_benchmark_is_found_and_repetitions_are_counted() {
        let sample: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        let line = |id: &str, total: u64, sandbox| {
            let record = Record { id: id.into(), run: total.to_string(), sandbox, ..sample.clone() };
            serde_json::to_string(&record).expect("a line")
        };
        let mut lines =
            vec![line("a", 1, false), "torn {".into(), line("b", 2, false), String::new(), line("a", 3, true)];
        lines.extend((10..3000).map(|number| line(["a", "b", "c"][number % 3], number as u64, false)));
        lines.push("{\"schema\": 99}".into());
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), lines.join("\n")).expect("written");
        assert!(fs::metadata(file.path()).expect("a size").len() > 2 * PART_BYTES, "it is read in parts");

        let found = latest(file.path()).expect("read");
        let seen: Vec<_> = found.records.iter().map(|record| (record.id.as_str(), record.run.as_str())).collect();
        assert_eq!(seen, [("a", "3"), ("a", "2997"), ("b", "2998"), ("c", "2999")]);
        assert_eq!(slowly(file.path()).expect("read").records, found.records);
        let problem = |part: &str| found.problems.iter().any(|problem| problem.contains(part));
        assert!(problem("line 2: no record") && problem("line 2996: schema 99"), "{:?}", found.problems);
        assert!(problem("a: measured 997 times"), "{:?}", found.problems);
    }

    #[test]
    fn an_invalid_line_with_an_id_does_not_hide_an_earlier_record() {
        let good = include_str!("sample.json").replace('\n', "");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), format!("{good}\n{{\"schema\": 1, \"id\": \"short/llama-mini/stock-f32-cpu\"}}\n"))
            .expect("written");
        let found = latest(file.path()).expect("read");
        assert_eq!((found.records.len(), found.problems.len()), (1, 1), "{:?}", found.problems);
    }

    #[test]
    fn an_empty_file_has_no_records_and_no_problems() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = read(file.path()).expect("it is there");
        assert!(read.records.is_empty() && read.problems.is_empty());
    }

    /// The fields that came with schema 2 are empty in a record of schema 1, and both versions are read.
    #[test]
    fn old_records_are_read() {
        let old: Record = parse(include_bytes!("sample.json")).expect("schema 1");
        assert_eq!((old.schema, old.ratios.len(), &old.software.candle_crates), (1, 0, &None));
        let limits = old.limits.clone().expect("limits");
        assert_eq!((limits.read, limits.matrix, limits.exceeded.len()), (None, None, 0));
        assert!(old.conditions.as_ref().is_some_and(|conditions| conditions.held_back.is_empty()));
        let line = serde_json::to_vec(&Record { schema: SCHEMA, ..old.clone() }).expect("a line");
        let new = parse(&line).expect("schema 2");
        assert_eq!(Record { schema: 1, ..new }, old);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let old_line = serde_json::to_vec(&old).expect("a line");
        fs::write(file.path(), [old_line, line].join(&b'\n')).expect("written");
        let found = latest(file.path()).expect("read");
        assert_eq!((found.records.len(), found.records[0].schema), (1, SCHEMA));
        assert_eq!(read(file.path()).expect("read").records.len(), 2);
    }

    #[test]
    fn a_record_survives_writing_and_reading() {
        let record: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        let again = serde_json::to_string(&record).and_then(|text| serde_json::from_str::<Record>(&text));
        assert_eq!(record, again.expect("round"));
    }
}
