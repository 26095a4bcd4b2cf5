//! Joins the records of a run with Criterion's estimates of the same samples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::record::{self, Estimate, Measures, Record, Status};

/// The data of a report.
#[derive(Debug)]
pub struct Joined {
    /// Each benchmark of the run once, in the order of completion.
    pub rows: Vec<Row>,
    /// One line for everything missing, unreadable or left out.
    pub problems: Vec<String>,
    /// True if every record is a sandbox record. In a run with measurements, sandbox records are left out.
    pub is_sandbox: bool,
}

/// A benchmark of the run.
#[derive(Debug)]
pub struct Row {
    /// The record of the benchmark.
    pub record: Record,
    /// Criterion's estimate, if Criterion's last run is the run of the record.
    pub criterion: Option<Estimate>,
}

impl Row {
    /// The measures, if the benchmark is a generation that succeeded.
    pub fn generation(&self) -> Option<&record::Generation> {
        match &self.record.measures {
            Some(Measures::Generation(measures)) => Some(measures),
            _ => None,
        }
    }
}

/// Reads a file of records and joins it with Criterion's last estimates.
///
/// # Errors
/// When the file cannot be read or contains no record.
pub fn join(records: &Path, criterion_home: &Path) -> Result<Joined> {
    let read = record::latest(records)?;
    let mut problems = read.problems;
    if read.records.is_empty() {
        bail!("{} holds no record that can be read{}", records.display(), listed(&problems));
    }
    let (mut samples, mut estimates) = (BTreeMap::new(), BTreeMap::new());
    if criterion_home.is_dir() {
        let (of_samples, of_estimates);
        (samples, of_samples) = record::baseline(criterion_home, "new");
        (estimates, of_estimates) = record::estimates(criterion_home, "new");
        // A file that both need is named once.
        let both = of_samples.into_iter().chain(of_estimates).collect::<BTreeSet<_>>();
        problems.extend(both.into_iter().map(|problem| format!("{problem}; no interval")));
    }
    let is_sandbox = read.records.iter().all(|record| record.sandbox);
    if is_sandbox {
        problems.push("every figure is made up: this is a sandbox, not a measurement".into());
    }
    let mut rows = Vec::new();
    let mut without = Vec::new();
    for record in read.records {
        if record.sandbox && !is_sandbox {
            problems.push(format!("{}: a sandbox record is no measurement and is left out", record.id));
            continue;
        }
        if record.status == Status::Failed {
            problems.push(format!("{}: failed: {}", record.id, record.reason.as_deref().unwrap_or("no reason given")));
        }
        let mut row = Row { criterion: None, record };
        let sample_ms = row.record.measures.as_ref().map(Measures::sample_ms).unwrap_or_default();
        if !sample_ms.is_empty() {
            match samples.get(&row.record.id) {
                Some(found) if are_equal(found, sample_ms) => {
                    row.criterion = estimates.get(&row.record.id).copied();
                }
                Some(_) => {
                    problems.push(format!("{}: Criterion's last run is another one; no interval", row.record.id))
                }
                None => without.push(row.record.id.clone()),
            }
        }
        rows.push(row);
    }
    let timed = |row: &&Row| row.record.measures.as_ref().is_some_and(|measures| !measures.sample_ms().is_empty());
    if !without.is_empty() && without.len() == rows.iter().filter(timed).count() {
        problems.push("Criterion has no estimates of this run: there are no intervals".into());
    } else if !without.is_empty() {
        problems.push(format!("Criterion has no estimate, and there is no interval, of {}", without.join(", ")));
    }
    Ok(Joined { rows, problems, is_sandbox })
}

/// Joins several files of records, such as those of shards. Of a benchmark that is in several files, the last counts.
///
/// # Errors
/// When a file cannot be read or contains no record.
pub fn join_all(files: &[PathBuf], criterion_home: &Path) -> Result<Joined> {
    let parts = files.iter().map(|file| join(file, criterion_home)).collect::<Result<Vec<_>>>()?;
    let is_sandbox = parts.iter().all(|part| part.is_sandbox);
    let mut merged = Joined { rows: Vec::new(), problems: Vec::new(), is_sandbox };
    let mut places = BTreeMap::new();
    for (part, file) in parts.into_iter().zip(files) {
        if part.is_sandbox && !is_sandbox {
            merged.problems.push(format!("{}: a sandbox is no measurement and is left out", file.display()));
            continue;
        }
        for problem in part.problems {
            if !merged.problems.contains(&problem) {
                merged.problems.push(problem);
            }
        }
        for row in part.rows {
            match places.get(&row.record.id) {
                Some(&place) => {
                    merged.problems.push(format!(
                        "{}: in several files; that of {} counts",
                        row.record.id,
                        file.display()
                    ));
                    merged.rows[place] = row;
                }
                None => {
                    places.insert(row.record.id.clone(), merged.rows.len());
                    merged.rows.push(row);
                }
            }
        }
    }
    let machines: BTreeSet<&str> = merged.rows.iter().map(|row| row.record.machine.name.as_str()).collect();
    if let (Some(first), 2..) = (merged.rows.first(), machines.len()) {
        merged.problems.push(format!(
            "the benchmarks ran on several machines: {}; results.csv names that of each, the description is that of {}",
            machines.into_iter().collect::<Vec<_>>().join(", "),
            first.record.machine.name
        ));
    }
    Ok(merged)
}

/// The tolerance covers Criterion's conversion from nanoseconds.
fn are_equal(criterion_ms: &[f64], record_ms: &[f64]) -> bool {
    criterion_ms.len() == record_ms.len() && criterion_ms.iter().zip(record_ms).all(|(a, b)| (a - b).abs() < 1e-5)
}

fn listed(problems: &[String]) -> String {
    problems.first().map_or(String::new(), |first| match problems.len() {
        1 => format!(": {first}"),
        more => format!(": {first}, and {} more", more - 1),
    })
}
