//! The program that made a baseline. `--save-baseline` keeps a copy of it, and `--baseline` measures it in turns with the present
//! program: two runs at different times cannot tell a change of a few percent from a change of the machine.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    duel::{Filter, Folders, Program, Rules, Until, measure},
    files,
    names::PathName,
    output,
    record::{self, Measures, Record, SampleUnit},
    report::{compare::Comparison, duel::Duel},
};

/// Folder of the programs, below Criterion's.
const FOLDER: &str = "candlepower-programs";

/// Most benchmarks that are measured in turns with the program of a baseline.
const MOST: usize = 12;

/// Least benchmarks that are chosen among more.
const FEWEST: usize = 4;

/// Least time of a benchmark: enough for the blocks that decide, and for programs that start several times meanwhile.
const LEAST: Duration = Duration::from_secs(60);

/// Width at which a benchmark stops. A change of 5 % is then outside of the interval.
const RESOLVE: f64 = 0.03;

/// Probability with which equal programs are found to differ.
const LEVEL: f64 = 0.05;

/// The file of this bench target's program in a baseline. Cargo appends a hash to the name of the target.
fn kept(criterion_home: &Path, baseline: &str) -> Result<(PathBuf, PathBuf)> {
    let own = env::current_exe().context("the path of this program is unknown")?;
    let stem = own.file_stem().unwrap_or_default().to_string_lossy();
    let target = stem.rsplit_once('-').map_or(&*stem, |(target, _)| target).parse::<PathName>()?;
    let file = criterion_home.join(FOLDER).join(baseline.parse::<PathName>()?).join(target);
    Ok((own, file))
}

/// Keeps this program in a baseline.
///
/// # Errors
/// When Criterion's folder is not writable, or the program was replaced while it ran.
pub fn keep(criterion_home: &Path, baseline: &str) -> Result<()> {
    let (own, file) = kept(criterion_home, baseline)?;
    let write = || {
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        files::write_whole(&file, &fs::read(&own)?)?;
        fs::set_permissions(&file, fs::metadata(&own)?.permissions())
    };
    write().with_context(|| format!("{} could not be written", file.display()))
}

/// All records if they are few, and else those whose ratios are farthest from 1, for about as long as the run took.
fn chosen(mut records: Vec<&Record>, ratio: impl Fn(&str) -> f64, took: Duration) -> Vec<&Record> {
    if records.len() > MOST {
        let differs = |record: &&Record| ratio(&record.id).ln().abs();
        records.sort_by(|a, b| differs(b).total_cmp(&differs(a)));
        records.truncate(((took.as_secs() / LEAST.as_secs()) as usize).clamp(FEWEST, MOST));
    }
    records
}

/// Returns whether two files have the same content. Files of other sizes are not read.
fn is_equal(a: &Path, b: &Path) -> io::Result<bool> {
    Ok(fs::metadata(a)?.len() == fs::metadata(b)?.len() && fs::read(a)? == fs::read(b)?)
}

/// The result of [`in_turns`].
pub struct Measured {
    pub duel: Duel,
    /// Number of benchmarks that were left out.
    pub left_out: usize,
}

/// Measures the program of a baseline in turns with this one, on the benchmarks of these records that the baseline has. If they are too
/// many, those are measured that differ most between both runs, for about as long as the run took. `None` if there is no program, or if it
/// is this one.
///
/// # Errors
/// When the program does not start, or ends on the way.
pub fn in_turns(
    criterion_home: &Path,
    baseline: &str,
    (records, comparison): (&[Record], &Comparison),
    out: &Path,
    took: Duration,
) -> Result<Option<Measured>> {
    let (own, file) = kept(criterion_home, baseline)?;
    if !file.is_file() || is_equal(&file, &own)? {
        return Ok(None);
    }
    let before = record::baseline_records(criterion_home, baseline);
    let is_compared = |record: &&Record| {
        let unit = record.measures.as_ref().map(|measures: &Measures| measures.samples().0);
        let is_timed = matches!(unit, Some(SampleUnit::Ms | SampleUnit::Bytes));
        is_timed && record.subject.peer.is_none() && before.contains_key(&record.id)
    };
    let timed: Vec<&Record> = records.iter().filter(is_compared).collect();
    let all = timed.len();
    let ratio = |id: &str| comparison.rows.iter().find(|row| row.id == id).map_or(1.0, |row| row.ratio);
    let compared = chosen(timed, ratio, took);
    let Some(first) = compared.first() else { return Ok(None) };
    let ids: Vec<String> = compared.iter().map(|record| format!("^{}$", record.id)).collect();
    let rules = Rules {
        filter: Some(ids.join("|").parse::<Filter>()?),
        resolve: RESOLVE,
        until: Until::Resolved,
        level: LEVEL,
        budget: took.max(LEAST * compared.len() as u32),
    };
    let commit = |record: Option<&Record>| record.and_then(|record| record.software.commit.clone()).unwrap_or_default();
    let program = |given: &str, path: PathBuf, commit: String| Program {
        given: given.to_owned(),
        commit,
        path,
        settings: Default::default(),
    };
    output::report(format_args!(
        "measuring the program of {baseline} in turns with this one: {} of {all} benchmarks, {:.0} s at most",
        compared.len(),
        rules.budget.as_secs_f64()
    ));
    let earlier = program(baseline, file, commit(before.get(&first.id)));
    let present = program("this program", own, commit(Some(first)));
    let logs = tempfile::tempdir().context("the folder of temporary files can't be written to: set TMPDIR")?;
    let folders = Folders { out, logs: logs.path() };
    let duel = measure([&earlier, &present], &rules, folders, |_| ())?;
    Ok(Some(Measured { duel, left_out: all - compared.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmarks_that_differ_most_are_chosen_among_many() {
        let record = |number: usize| -> Record {
            let sample: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
            Record { id: format!("short/{number}/a"), ..sample }
        };
        let records: Vec<Record> = (0..MOST + 1).map(record).collect();
        let ratio = |id: &str| match id {
            "short/3/a" => 0.5,
            "short/7/a" => 1.4,
            "short/5/a" => 1.2,
            "short/2/a" => 0.9,
            _ => 1.01,
        };
        let ids = |count: usize, seconds| -> Vec<String> {
            let few = records.iter().take(count).collect();
            chosen(few, ratio, Duration::from_secs(seconds)).into_iter().map(|record| record.id.clone()).collect()
        };
        assert_eq!(ids(MOST + 1, 10), ["short/3/a", "short/7/a", "short/5/a", "short/2/a"]);
        assert_eq!(ids(MOST + 1, 300).len(), 5);
        assert_eq!(ids(MOST + 1, 10_000).len(), MOST);
        assert_eq!(ids(MOST, 10).len(), MOST);
    }
}
