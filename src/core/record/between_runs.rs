//! How much the result of a benchmark varies between runs of the same program on the same machine. The samples of one run cannot
//! say: where the memory of a process lies and what others do on the machine stays the same from sample to sample.

use std::{collections::BTreeMap, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Generation, Machine, Measures, Record, SampleUnit, Status, earlier_runs};
use crate::statistics::median;

/// The time of a benchmark, or its time multiplied by a limit that was read around its samples: the work that the machine could
/// have done meanwhile. A machine that is slower for a time makes the time longer and the limit lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The time.
    Time,
    /// The time multiplied by the bandwidth that MBU divides by.
    Bandwidth,
    /// The time multiplied by the rate of matrix products that MFU divides by.
    Matrix,
}

impl Basis {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Time, Self::Bandwidth, Self::Matrix];

    /// What the times of a record are multiplied by. `None` if the limit was not read.
    pub fn factor(self, record: &Record) -> Option<f64> {
        let limits = record.limits.as_ref();
        let of_generation = match &record.measures {
            Some(Measures::Generation(measures)) => self.limit_of_shares(measures),
            _ => None,
        };
        let factor = match self {
            Self::Time => 1.0,
            Self::Bandwidth => of_generation.or(limits.map(|limits| limits.read_bytes_per_s))?,
            Self::Matrix => of_generation.or(limits.map(|limits| limits.matrix_flops_per_s))?,
        };
        (factor.is_finite() && factor > 0.0).then_some(factor)
    }

    /// The limit that the shares of a generation divide by. These are medians of steps and prompts, each over the limit of its own time,
    /// so it describes the benchmark better than the median of all readings.
    fn limit_of_shares(self, measures: &Generation) -> Option<f64> {
        let work = measures.work.as_ref()?;
        let (required, ms, share) = match self {
            Self::Time => return None,
            Self::Bandwidth => (work.step_bytes, measures.tpot_ms?, measures.mbu?),
            Self::Matrix => (work.prefill_flops, measures.ttft_ms, measures.mfu?),
        };
        Some(required as f64 / (ms / 1e3 * share))
    }
}

/// Deviation of the result of a benchmark between runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BetweenRuns {
    /// The form of the result that varies least.
    pub basis: Basis,
    /// Standard deviation of its natural logarithm: about the relative standard deviation.
    pub deviation: f64,
    /// Degrees of freedom of the deviation.
    pub freedom: f64,
    /// Earlier runs on this machine that it follows from. With fewer than [`Self::ENOUGH_RUNS`], it is the typical one.
    pub runs: usize,
}

/// Degrees of freedom of a typical deviation: it counts as much as some ten runs of the machine itself.
const TYPICAL_FREEDOM: f64 = 8.0;

/// Degrees of freedom of a deviation that is estimated by a median of distances, for each of them: its efficiency relative to the
/// standard deviation (Rousseeuw and Croux, 1993, table 2, for the median absolute deviation).
const EFFICIENCY: f64 = 0.37;

/// Standard deviations in the median distance between two values of a normal distribution.
const MEDIAN_DISTANCE: f64 = 0.674_49 * std::f64::consts::SQRT_2;

impl BetweenRuns {
    /// Earlier runs that say which form varies least.
    pub const ENOUGH_RUNS: usize = 5;

    /// The typical deviation of times.
    pub const OF_TIMES: Self = Self { basis: Basis::Time, deviation: 0.13, freedom: TYPICAL_FREEDOM, runs: 0 };

    /// Returns whether it follows from runs on the machine.
    pub fn is_of_machine(&self) -> bool {
        self.runs >= Self::ENOUGH_RUNS
    }

    /// The deviation of a record for which nothing is known but its kind. The guide's chapter on methodology has the measurements that
    /// these values come from.
    pub fn typical(record: &Record) -> Self {
        let (basis, deviation) = typical(record);
        Self { basis, deviation, ..Self::OF_TIMES }
    }

    /// The deviation of a record whose forms had these values in earlier runs, in their order.
    ///
    /// The distances of neighbours count, so that a change of the program between two runs counts once; their median, so that it counts
    /// little. The deviation of each form is moderated by the typical one in proportion to the degrees of freedom of both (Smyth,
    /// 2004), so that few runs do not choose the form by chance.
    fn of(record: &Record, earlier: &[[Option<f64>; Basis::ALL.len()]]) -> Self {
        let (usual, least) = typical(record);
        if earlier.len() < Self::ENOUGH_RUNS {
            return Self { basis: usual, deviation: least, runs: earlier.len(), ..Self::OF_TIMES };
        }
        let own_freedom = EFFICIENCY * (earlier.len() - 1) as f64;
        let freedom = TYPICAL_FREEDOM + own_freedom;
        let form = |(place, basis): (usize, Basis)| {
            let values: Vec<f64> = earlier.iter().filter_map(|values| values[place]).collect();
            let distances: Vec<f64> = values.windows(2).map(|pair| (pair[1] / pair[0]).ln().abs()).collect();
            let is_known = values.len() == earlier.len() && basis.factor(record).is_some();
            let typical = if basis == usual { least } else { Self::OF_TIMES.deviation };
            is_known.then(|| {
                let own = median(distances) / MEDIAN_DISTANCE;
                let variance = (TYPICAL_FREEDOM * typical.powi(2) + own_freedom * own.powi(2)) / freedom;
                Self { basis, deviation: variance.sqrt(), freedom, runs: earlier.len() }
            })
        };
        let known = Basis::ALL.into_iter().enumerate().filter_map(form);
        known.min_by(|a, b| a.deviation.total_cmp(&b.deviation)).unwrap_or_else(|| Self::typical(record))
    }
}

/// The form that usually varies least for a benchmark of this kind, and its deviation. The other forms vary as times do.
fn typical(record: &Record) -> (Basis, f64) {
    let (basis, deviation) = match &record.measures {
        Some(measures) if measures.mbu().is_some() => (Basis::Bandwidth, 0.05),
        Some(Measures::Sweep(measures)) if measures.mfu.is_some() => (Basis::Matrix, 0.08),
        Some(measures) if measures.mfu().is_some() => (Basis::Matrix, 0.05),
        _ => (Basis::Time, BetweenRuns::OF_TIMES.deviation),
    };
    match basis.factor(record) {
        Some(_) => (basis, deviation),
        None => (Basis::Time, BetweenRuns::OF_TIMES.deviation),
    }
}

/// The results of the benchmarks in earlier runs, by id.
#[derive(Debug, Default)]
pub struct History(BTreeMap<String, Vec<[Option<f64>; Basis::ALL.len()]>>);

impl History {
    /// The results in the newest runs below `out` on this machine, without those of `run` and without those that are in doubt.
    pub fn read(out: &Path, run: &str, machine: &Machine) -> Self {
        let mut results: BTreeMap<String, Vec<_>> = BTreeMap::new();
        let mut runs: Vec<_> = earlier_runs(out, run, &machine.name).collect();
        runs.reverse();
        for record in runs.iter().flat_map(|(_, records)| records) {
            let is_quiet = record.conditions.as_ref().is_none_or(|conditions| conditions.doubts.is_empty());
            let is_result = record.status == Status::Measured && !record.sandbox && record.duel.is_none();
            let is_result = is_result && record.machine == *machine;
            if let Some(ms) = record.measures.as_ref().and_then(median_ms).filter(|_| is_quiet && is_result) {
                let values = Basis::ALL.map(|basis| basis.factor(record).map(|factor| ms * factor));
                results.entry(record.id.clone()).or_default().push(values);
            }
        }
        Self(results)
    }

    /// How much the result of this record varies between runs. `None` for a benchmark without times.
    pub fn between_runs(&self, record: &Record) -> Option<BetweenRuns> {
        record.measures.as_ref().and_then(median_ms)?;
        Some(BetweenRuns::of(record, self.0.get(&record.id).map_or(&[][..], Vec::as_slice)))
    }
}

fn median_ms(measures: &Measures) -> Option<f64> {
    let (unit, samples) = measures.samples();
    let is_time = unit == SampleUnit::Ms && !samples.is_empty();
    is_time.then(|| median(samples)).filter(|ms| ms.is_finite() && *ms > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generation that took so long, on a machine with this bandwidth and this rate of matrix products.
    fn record(ms: f64, read_bytes_per_s: f64, matrix_flops_per_s: f64) -> Record {
        let mut record: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        if let (Some(Measures::Generation(measures)), Some(limits)) = (&mut record.measures, &mut record.limits) {
            measures.sample_total_ms = vec![ms; 10];
            (limits.read_bytes_per_s, limits.matrix_flops_per_s) = (read_bytes_per_s, matrix_flops_per_s);
        }
        record
    }

    /// The deviation of a record after earlier ones.
    fn after(earlier: &[Record]) -> BetweenRuns {
        let out = tempfile::tempdir().expect("a folder");
        for (number, record) in earlier.iter().enumerate() {
            let folder = out.path().join(format!("run-{number:02}"));
            std::fs::create_dir(&folder).expect("made");
            let line = serde_json::to_string(record).expect("a line");
            std::fs::write(folder.join(super::super::RECORDS), line + "\n").expect("written");
        }
        let record = record(100.0, 50e9, 200e9);
        History::read(out.path(), "now", &record.machine).between_runs(&record).expect("it has times")
    }

    #[test]
    fn the_form_that_varies_least_is_found() {
        // Times follow the bandwidth, and the rate of matrix products moves on its own.
        let earlier: Vec<Record> = (0..12)
            .map(|run| {
                let speed = 1.0 + 0.2 * f64::from(run % 3);
                record(
                    100.0 / speed * (1.0 + 0.01 * f64::from(run % 2)),
                    50e9 * speed,
                    200e9 * (1.0 + 0.1 * f64::from(run % 4)),
                )
            })
            .collect();
        let found = after(&earlier);
        assert_eq!((found.basis, found.runs), (Basis::Bandwidth, 12));
        assert!(found.deviation > 0.01 && found.deviation < 0.05 && found.freedom > TYPICAL_FREEDOM, "{found:?}");
        assert!(found.is_of_machine() && !after(&earlier[..4]).is_of_machine());
        assert_eq!((after(&earlier[..4]).basis, after(&[]).deviation), (Basis::Bandwidth, 0.05));
    }

    #[test]
    fn a_change_of_the_program_counts_little_and_doubted_runs_not_at_all() {
        let steady = |ms: f64| record(ms, 50e9, 200e9);
        let mut earlier: Vec<Record> = (0..10).map(|run| steady(if run < 5 { 100.0 } else { 150.0 })).collect();
        let once = after(&earlier);
        assert_eq!(once, after(&vec![steady(100.0); 10]), "the median distance is that of equal runs");
        let mut doubted = steady(900.0);
        doubted.conditions.get_or_insert_default().doubts.push("the machine was busy".into());
        earlier.extend([doubted.clone(), steady(150.0), doubted]);
        assert_eq!(after(&earlier).runs, 11);
        let mut elsewhere = steady(100.0);
        elsewhere.machine.threads += 1;
        assert_eq!(after(&vec![elsewhere; 10]).runs, 0, "another number of threads is another machine");
    }
}
