//! Joins the records of a run with Criterion's estimates of the same samples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

#[cfg(feature = "cli")]
use super::Section;
use crate::{
    files::read_limited,
    record::{self, Estimate, Measures, Record, Status},
};

/// The data of a report.
#[derive(Default, Debug)]
pub struct Joined {
    /// Each benchmark of the run once, in the order of completion.
    pub rows: Vec<Row>,
    /// One line for everything missing, unreadable or left out.
    pub problems: Vec<String>,
    /// True if every record is a sandbox record. In a run with measurements, sandbox records are left out.
    pub is_sandbox: bool,
    /// Parts of a report that come from no record.
    #[cfg(feature = "cli")]
    pub(crate) sections: Vec<Section>,
}

/// Most benchmarks of a report with plots. More marks would hide each other.
pub(super) const MOST_PLOTTED: usize = 2000;

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
    pub(crate) fn generation(&self) -> Option<&record::Generation> {
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
    let kept = kept_estimates(&records.with_file_name("results.csv"));
    let is_sandbox = read.records.iter().all(|record| record.sandbox);
    if is_sandbox {
        problems.push("every figure is made up: this is a sandbox, not a measurement".into());
    }
    let mut rows = Vec::new();
    let mut without = Vec::new();
    let mut of_another_run = 0;
    for record in read.records {
        if record.sandbox && !is_sandbox {
            problems.push(format!("{}: a sandbox record is no measurement and is left out", record.id));
            continue;
        }
        if record.status != Status::Measured {
            let reason = record.reason.as_deref().unwrap_or("no reason given");
            problems.push(format!("{}: {}: {reason}", record.id, record.status));
        }
        let mut row = Row { criterion: None, record };
        let sample_ms = row.record.measures.as_ref().map(Measures::sample_ms).unwrap_or_default();
        if !sample_ms.is_empty() {
            match samples.get(&row.record.id) {
                _ if kept.contains_key(&row.record.id) => row.criterion = kept.get(&row.record.id).copied(),
                Some(found) if are_equal(found, sample_ms) => {
                    row.criterion = estimates.get(&row.record.id).copied();
                }
                Some(_) => of_another_run += 1,
                None => without.push(row.record.id.clone()),
            }
        }
        rows.push(row);
    }
    if of_another_run > 0 {
        let benchmarks = if of_another_run == 1 { "benchmark" } else { "benchmarks" };
        problems.push(format!(
            "Criterion's last run is another one, so there is no confidence interval of {of_another_run} {benchmarks}"
        ));
    }
    let timed = |row: &&Row| row.record.measures.as_ref().is_some_and(|measures| !measures.sample_ms().is_empty());
    if !without.is_empty() && without.len() == rows.iter().filter(timed).count() {
        problems.push("Criterion has no estimates of this run: there are no intervals".into());
    } else if !without.is_empty() {
        problems.push(format!("Criterion has no estimate, and there is no interval, of {}", without.join(", ")));
    }
    Ok(Joined {
        rows,
        problems,
        is_sandbox,
        #[cfg(feature = "cli")]
        sections: Vec::new(),
    })
}

/// Joins several files of records, such as those of shards, or none. Of a benchmark that is in several files, the last counts.
///
/// # Errors
/// When a file cannot be read or contains no record.
pub(crate) fn join_all(files: &[PathBuf], criterion_home: &Path) -> Result<Joined> {
    let parts = files.iter().map(|file| join(file, criterion_home)).collect::<Result<Vec<_>>>()?;
    let is_sandbox = !parts.is_empty() && parts.iter().all(|part| part.is_sandbox);
    let mut merged = Joined { is_sandbox, ..Joined::default() };
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
    if merged.rows.len() > MOST_PLOTTED {
        let count = merged.rows.len();
        merged
            .problems
            .push(format!("{count} benchmarks are more than plots can show, so there are none: report fewer"));
    }
    Ok(merged)
}

/// Largest data file of a report that is read.
pub(super) const DATA_MAX_BYTES: u64 = 1 << 30;

/// Criterion's estimates in the data file of a report. Empty if there is no such file, so that a report of a report keeps its
/// intervals.
fn kept_estimates(file: &Path) -> BTreeMap<String, Estimate> {
    let Ok(content) = read_limited(file, DATA_MAX_BYTES) else { return BTreeMap::new() };
    let mut reader = csv::Reader::from_reader(content.as_slice());
    let Ok(header) = reader.headers().cloned() else { return BTreeMap::new() };
    let estimate = |row: csv::StringRecord| {
        let cell = |name: &str| row.get(header.iter().position(|column| column == name)?);
        let number = |name: &str| cell(name)?.parse::<f64>().ok().filter(|number| number.is_finite());
        let estimate = Estimate {
            median_ns: number("criterion_median_ns")?,
            low_ns: number("criterion_median_low_ns")?,
            high_ns: number("criterion_median_high_ns")?,
        };
        Some((cell("id")?.to_owned(), estimate))
    };
    reader.records().flatten().filter_map(estimate).collect()
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
