//! The only reader of Criterion's baselines. Criterion calls the format of these files internal; this reader is tested with
//! files of criterion 0.8.2.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Record, write_whole};
use crate::files::read_limited;

/// Largest file of a baseline.
const MAX_BYTES: u64 = 64 << 20;

/// Milliseconds of an iteration in each sample, by benchmark id.
pub type Samples = BTreeMap<String, Vec<f64>>;

/// Criterion's estimate of a benchmark: the median time of an iteration and its confidence interval, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Median time of an iteration.
    pub median_ns: f64,
    /// Lower bound of the confidence interval of the median.
    pub low_ns: f64,
    /// Upper bound of the confidence interval of the median.
    pub high_ns: f64,
}

#[derive(Deserialize)]
struct SavedSample {
    iters: Vec<f64>,
    /// Nanoseconds.
    times: Vec<f64>,
}

#[derive(Deserialize)]
struct SavedBenchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct SavedEstimates {
    median: SavedEstimate,
}

#[derive(Deserialize)]
struct SavedEstimate {
    point_estimate: f64,
    confidence_interval: SavedInterval,
}

#[derive(Deserialize)]
struct SavedInterval {
    lower_bound: f64,
    upper_bound: f64,
}

/// The samples of a baseline, and a line for each benchmark that cannot be read. Criterion names the last run `new`.
pub fn baseline(criterion_home: &Path, name: &str) -> (Samples, Vec<String>) {
    let mut samples = Samples::new();
    let problems = each(criterion_home, name, &mut |id, saved| {
        let sample: SavedSample = json(&saved.join("sample.json"))?;
        ensure!(sample.iters.len() == sample.times.len(), "{}: a sample without iterations", saved.display());
        let ms = sample.times.iter().zip(&sample.iters).map(|(ns, iters)| ns / iters / 1e6).collect();
        samples.insert(id, ms);
        Ok(())
    });
    (samples, problems)
}

/// File of a baseline's benchmark that holds its record.
const RECORD: &str = "candlepower.json";

/// Puts the record of each benchmark beside Criterion's files of a baseline, with its doubts, memory and digests.
///
/// # Errors
/// When Criterion's folder is not writable.
pub fn keep_records(criterion_home: &Path, name: &str, records: &[Record]) -> Result<()> {
    let mut failed = Ok(());
    each(criterion_home, name, &mut |id, saved| {
        if let Some(record) = records.iter().find(|record| record.id == id) {
            let kept = write_whole(&saved.join(RECORD), &serde_json::to_vec(record)?);
            failed = std::mem::replace(&mut failed, Ok(())).and(kept);
        }
        Ok(())
    });
    failed
}

/// The records of a baseline, by id. Benchmarks that another version saved have none.
pub fn baseline_records(criterion_home: &Path, name: &str) -> BTreeMap<String, Record> {
    let mut records = BTreeMap::new();
    each(criterion_home, name, &mut |id, saved| {
        let record: Record = json(&saved.join(RECORD))?;
        records.insert(id, record);
        Ok(())
    });
    records
}

/// Criterion's estimates of a baseline, by id, and a line for each benchmark that cannot be read.
pub fn estimates(criterion_home: &Path, name: &str) -> (BTreeMap<String, Estimate>, Vec<String>) {
    let mut estimates = BTreeMap::new();
    let problems = each(criterion_home, name, &mut |id, saved| {
        let SavedEstimates { median } = json(&saved.join("estimates.json"))?;
        let SavedInterval { lower_bound: low_ns, upper_bound: high_ns } = median.confidence_interval;
        estimates.insert(id, Estimate { median_ns: median.point_estimate, low_ns, high_ns });
        Ok(())
    });
    (estimates, problems)
}

/// Calls `look` with the id and the folder of each benchmark that has this baseline. Returns a line for each that fails: one
/// damaged file must not take the others away.
fn each(criterion_home: &Path, name: &str, look: &mut impl FnMut(String, &Path) -> Result<()>) -> Vec<String> {
    let mut problems = Vec::new();
    visit(
        criterion_home,
        &mut |folder| {
            let saved = folder.join(name);
            if !saved.join("sample.json").is_file() {
                return Ok(());
            }
            let benchmark: SavedBenchmark = json(&saved.join("benchmark.json"))?;
            look(benchmark.full_id, &saved)
        },
        &mut problems,
    );
    problems
}

/// Names of the existing baselines.
pub fn baselines(criterion_home: &Path) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut look = |folder: &Path| {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.path().join("sample.json").is_file() {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(())
    };
    visit(criterion_home, &mut look, &mut Vec::new());
    names.into_iter().collect()
}

/// Calls `look` with a folder and all below it, and adds a line for each that fails.
fn visit(folder: &Path, look: &mut impl FnMut(&Path) -> Result<()>, problems: &mut Vec<String>) {
    problems.extend(look(folder).err().map(|error| format!("{error:#}")));
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    visit(&entry.path(), look, problems);
                }
            }
        }
        Err(error) => problems.push(format!("{} could not be read: {error}", folder.display())),
    }
}

fn json<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
    let text = read_limited(file, MAX_BYTES).with_context(|| format!("{} could not be read", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not as Criterion writes it", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_criterion_are_read() {
        let home = tempfile::tempdir().expect("a folder");
        for (baseline, ms) in [("new", 3.0), ("main", 2.0)] {
            let folder = home.path().join("short/llama_x/stock-f32-cpu").join(baseline);
            fs::create_dir_all(&folder).expect("made");
            let benchmark = r#"{"group_id":"short","function_id":"llama/x","value_str":"stock-f32-cpu",
                "throughput":{"Elements":64},"full_id":"short/llama/x/stock-f32-cpu",
                "directory_name":"short/llama_x/stock-f32-cpu","title":"short/llama/x/stock-f32-cpu"}"#;
            fs::write(folder.join("benchmark.json"), benchmark).expect("written");
            let sample = format!(
                r#"{{"sampling_mode":"Flat","iters":[1.0,2.0],"times":[{},{}]}}"#,
                ms * 1e6,
                2.0 * ms * 1e6 + 2e6
            );
            fs::write(folder.join("sample.json"), sample).expect("written");
            let estimates = r#"{"mean":{},"median":{"confidence_interval":{"confidence_level":0.95,
                "lower_bound":1.5,"upper_bound":3.5},"point_estimate":2.25,"standard_error":0.1}}"#;
            fs::write(folder.join("estimates.json"), estimates).expect("written");
        }
        assert_eq!(baselines(home.path()), ["main", "new"]);
        let (main, problems) = baseline(home.path(), "main");
        assert_eq!((main["short/llama/x/stock-f32-cpu"].as_slice(), problems.len()), (&[2.0, 3.0][..], 0));
        let expected = Estimate { median_ns: 2.25, low_ns: 1.5, high_ns: 3.5 };
        assert_eq!(estimates(home.path(), "main").0["short/llama/x/stock-f32-cpu"], expected);
        assert!(baseline(home.path(), "never").0.is_empty());
    }

    #[test]
    fn a_damaged_benchmark_leaves_the_others() {
        let home = tempfile::tempdir().expect("a folder");
        let files = [
            ("benchmark.json", r#"{"full_id":"a/b/c-d-e"}"#),
            ("sample.json", r#"{"iters":[1.0],"times":[2e6]}"#),
            (
                "estimates.json",
                r#"{"median":{"confidence_interval":{"lower_bound":1.0,"upper_bound":2.0},"point_estimate":1.5}}"#,
            ),
        ];
        let damaged = ["", "{", "[]", "null", "\u{0}\u{0}", r#"{"full_id":5,"iters":"x","median":1}"#];
        for (number, (broken, _)) in files.iter().enumerate() {
            for (place, content) in damaged.iter().enumerate() {
                let folder = home.path().join(format!("damaged-{number}-{place}/new"));
                fs::create_dir_all(&folder).expect("made");
                for (name, whole) in files {
                    fs::write(folder.join(name), if name == *broken { content } else { whole }).expect("written");
                }
            }
        }
        let folder = home.path().join("whole/new");
        fs::create_dir_all(&folder).expect("made");
        for (name, whole) in files {
            fs::write(folder.join(name), whole.replace("a/b/c-d-e", "whole")).expect("written");
        }
        let ((samples, problems), (estimates, others)) = (baseline(home.path(), "new"), estimates(home.path(), "new"));
        assert_eq!((samples["whole"].as_slice(), estimates["whole"].median_ns), (&[2.0][..], 1.5));
        assert!(problems.len() == 2 * damaged.len() && others.len() == 2 * damaged.len(), "{problems:?} {others:?}");
        assert!(problems.iter().all(|problem| problem.contains("damaged-") && problem.lines().count() == 1));
    }
}
