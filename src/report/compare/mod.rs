//! Comparison of two runs or Criterion baselines, with a row for each benchmark.

mod change;
mod text;

pub(crate) use text::change;
pub(super) use text::quantity;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::Serialize;

use self::change::Change;
use super::{
    statistics::{holm, median},
    summary::is_disturbed,
};
use crate::{
    record::{self, AllocationChange, Allocations, Basis, BetweenRuns, Record, SampleUnit, Status, VARIABLES},
    scenario,
};

/// Thresholds of a comparison.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Strictness {
    /// Share up to which a difference counts as noise between runs of the same code.
    pub noise: f64,
    /// Probability with which a comparison of two runs of the same code may find any change.
    pub level: f64,
}

impl Default for Strictness {
    /// A difference of 3 % is noise, and one comparison in twenty may find a change in equal code.
    fn default() -> Self {
        Self { noise: 0.03, level: 0.05 }
    }
}

/// One of the two runs of a comparison.
#[derive(Debug, Default)]
pub struct Side {
    /// Name in messages and in the result: a run, a file, or a baseline.
    pub name: String,
    benchmarks: BTreeMap<String, Benchmark>,
    /// Failed benchmarks and unreadable lines.
    pub problems: Vec<String>,
    /// True if every record is a sandbox record, so that no value is a measurement.
    pub is_sandbox: bool,
    /// Properties of the machine and the software, if the run has records.
    setting: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Benchmark {
    unit: SampleUnit,
    samples: Vec<f64>,
    peak_bytes: Option<u64>,
    token_digest: Option<String>,
    allocations: Option<Allocations>,
    /// True if its record has doubts.
    is_doubted: bool,
    /// How much its result varies between runs. `None` without a record.
    between_runs: Option<BetweenRuns>,
    /// What its times are multiplied by in each form.
    factors: BTreeMap<Basis, f64>,
}

impl Benchmark {
    /// A benchmark of which only samples are known.
    fn of_samples(unit: SampleUnit, samples: Vec<f64>) -> Self {
        let peak_bytes = (unit == SampleUnit::Bytes).then(|| median(&samples) as u64);
        Self {
            unit,
            samples,
            peak_bytes,
            token_digest: None,
            allocations: None,
            is_doubted: false,
            between_runs: None,
            factors: [(Basis::Time, 1.0)].into(),
        }
    }

    /// What its times are multiplied by. `None` if the limit was not read.
    fn factor(&self, basis: Basis) -> Option<f64> {
        self.factors.get(&basis).copied()
    }
}

impl Side {
    /// Finds a run by name: a file of records, a folder with such a file, a run below `out`, or a Criterion baseline.
    ///
    /// # Errors
    /// When there is no such run; the error lists the baselines.
    pub(crate) fn find(name: &str, out: &Path, criterion_home: &Path) -> Result<Self> {
        let path = Path::new(name);
        let candidates = [
            path.to_owned(),
            path.join(record::RECORDS),
            path.join("results.jsonl"),
            out.join(name).join(record::RECORDS),
        ];
        if let Some(file) = candidates.iter().find(|file| file.is_file()) {
            let read = record::latest(file)?;
            let mut side = Self::from_records(name, &read.records);
            side.problems.extend(read.problems);
            return Ok(side);
        }
        let (samples, problems) = match criterion_home.is_dir() {
            true => record::baseline(criterion_home, name),
            false => Default::default(),
        };
        if samples.is_empty() {
            let there = record::baselines(criterion_home).join(", ");
            bail!(
                "there is no file of records, no run below {} and no Criterion baseline named {name} (baselines: {})",
                out.display(),
                if there.is_empty() { "none" } else { &there }
            );
        }
        // Records know more than Criterion's files. Those of an earlier version have none.
        let records: Vec<Record> = record::baseline_records(criterion_home, name).into_values().collect();
        let mut side = Self::from_records(name, &records);
        // Criterion's files have no unit and count everything as nanoseconds.
        let benchmark = |(id, ms): (String, Vec<f64>)| match scenario::is_in_bytes(record::group(&id)) {
            true => {
                let bytes = ms.iter().map(|ms| ms * 1e6).collect();
                (id, Benchmark::of_samples(SampleUnit::Bytes, bytes))
            }
            false => (id, Benchmark::of_samples(SampleUnit::Ms, ms)),
        };
        for (id, benchmark) in samples.into_iter().map(benchmark) {
            side.benchmarks.entry(id).or_insert(benchmark);
        }
        side.problems.extend(problems);
        Ok(side)
    }

    /// The side made of `records`. Sandbox records among measurements are left out.
    pub fn from_records(name: &str, records: &[Record]) -> Self {
        let is_sandbox = !records.is_empty() && records.iter().all(|record| record.sandbox);
        let mut side = Self { name: name.to_owned(), is_sandbox, ..Self::default() };
        for record in records.iter().filter(|record| record.sandbox == is_sandbox) {
            match (&record.measures, record.status) {
                (Some(measures), Status::Measured) => {
                    let (unit, samples) = measures.samples();
                    // If a run repeated a benchmark, the last record counts.
                    side.benchmarks.insert(
                        record.id.clone(),
                        Benchmark {
                            unit,
                            samples,
                            peak_bytes: measures.peak_bytes(),
                            token_digest: measures.output_digest().map(str::to_owned),
                            allocations: Allocations::of(measures),
                            is_doubted: is_disturbed(record),
                            between_runs: Some(record.between_runs.unwrap_or_else(|| BetweenRuns::typical(record))),
                            factors: Basis::ALL
                                .iter()
                                .filter_map(|basis| Some((*basis, basis.factor(record)?)))
                                .collect(),
                        },
                    );
                }
                _ => {
                    side.problems.push(format!("{}: {}", record.id, record.reason.as_deref().unwrap_or("not measured")))
                }
            }
            side.setting = [
                ("CPU", record.machine.cpu.clone()),
                ("GPU", record.machine.gpu.as_ref().map_or("none".into(), |gpu| gpu.name.clone())),
                ("threads", record.machine.threads.to_string()),
                ("kernel", record.machine.kernel.clone().unwrap_or_default()),
                ("SIMD compiled in", record.machine.simd_compiled.join(" ")),
                ("candle", record.software.candle.clone()),
                ("rustc", record.software.rustc.clone()),
                ("features", record.software.features.join(",")),
                ("profile", record.software.profile.clone()),
                ("commit", record.software.commit.clone().unwrap_or_default()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            let variable = |name| (String::from(name), record.software.variable(name).cloned().unwrap_or_default());
            side.setting.extend(VARIABLES.iter().map(|known| variable(known.name)));
            let crates = record.software.candle_crates.iter().flatten().filter(|(name, _)| *name != "candle-core");
            side.setting.extend(crates.map(|(name, version)| (name.clone(), version.clone())));
        }
        side
    }

    /// The side with those benchmarks only whose id is chosen.
    pub(crate) fn only(mut self, is_chosen: impl Fn(&str) -> bool) -> Self {
        self.benchmarks.retain(|id, _| is_chosen(id));
        self
    }

    /// The number of benchmarks with doubts.
    fn doubted(&self) -> usize {
        self.benchmarks.values().filter(|benchmark| benchmark.is_doubted).count()
    }

    fn commit(&self) -> Option<String> {
        self.setting.get("commit").filter(|commit| !commit.is_empty()).cloned()
    }
}

/// Result of a comparison.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Comparison {
    /// Name of the earlier side.
    pub a: String,
    /// Name of the later side.
    pub b: String,
    /// Commit of `a`; `null` if it is unknown.
    pub a_commit: Option<String>,
    /// Commit of `b`; `null` if it is unknown.
    pub b_commit: Option<String>,
    /// The thresholds that were used.
    pub strictness: Strictness,
    /// The benchmarks that both sides have.
    pub rows: Vec<Row>,
    /// Geometric mean of the ratios of each group.
    pub groups: BTreeMap<String, f64>,
    /// Ids of the benchmarks that only `a` has.
    pub only_a: Vec<String>,
    /// Ids of the benchmarks that only `b` has.
    pub only_b: Vec<String>,
    /// Says that the run of a side has doubts, first of all; `null` if neither has.
    pub doubts: Option<String>,
    /// Other differences, failed benchmarks, and unreadable lines.
    pub remarks: Vec<String>,
}

/// A benchmark that both sides have.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Id of the benchmark.
    pub id: String,
    /// Unit of the medians.
    pub unit: SampleUnit,
    /// Median of `a`. In nats, the mean.
    pub a: f64,
    /// Median of `b`. In nats, the mean.
    pub b: f64,
    /// The form in which times are compared, and how much it varies between runs of the same program; `null` for other units.
    pub between_runs: Option<BetweenRuns>,
    /// `b` divided by `a`. Above 1, `b` is slower, uses more memory, or finds the text less likely.
    pub ratio: f64,
    /// Lower end of the confidence interval of the ratio, at the level of the comparison.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Probability of such a difference by chance, corrected for the number of benchmarks.
    pub p: f64,
    /// The judgement of the difference.
    pub verdict: Verdict,
    /// Minimum detectable change: the smallest rise, as a share, that such a comparison finds in nine of ten cases.
    /// `null` if it would not find twice the value.
    #[serde(rename = "found_from")]
    pub minimum_detectable_change: Option<f64>,
    /// Peak memory of `b` divided by that of `a`.
    pub memory_ratio: Option<f64>,
    /// True if both generated the same tokens.
    pub same_work: Option<bool>,
    /// Allocations of decode steps, if they differ.
    pub allocations: Option<AllocationChange>,
}

/// Result of comparing one benchmark. A change exceeds the noise and is statistically significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// More time.
    Slower,
    /// Less time.
    Faster,
    /// More memory; only for a benchmark of memory.
    More,
    /// Less memory.
    Less,
    /// The text is less likely; only for a benchmark of quality.
    Worse,
    /// The text is more likely.
    Better,
    /// No change was found.
    Same,
    /// A side has doubts, so that its time says nothing.
    Incomparable,
}

/// Share up to which a difference in memory counts as noise. Peak memory hardly varies between runs of the same code.
pub(super) const MEMORY_NOISE: f64 = 0.005;

/// Share up to which a difference in negative log-likelihood counts as noise. Kernels that sum in another order change it by
/// less.
pub(super) const QUALITY_NOISE: f64 = 1e-4;

/// Compares every benchmark that both sides have.
///
/// # Errors
/// When they have none in common, or when one of them is a sandbox and the other is not.
pub fn compare(a: &Side, b: &Side, strictness: Strictness) -> Result<Comparison> {
    if a.is_sandbox != b.is_sandbox {
        let sandbox = if a.is_sandbox { a } else { b };
        bail!("{} contains only sandbox records, which cannot be compared with measurements", sandbox.name);
    }
    let level = strictness.level;
    let both: Vec<_> = a
        .benchmarks
        .iter()
        .filter_map(|(id, old)| Some((id, old, b.benchmarks.get(id)?)))
        .filter(|(_, old, new)| old.unit == new.unit && !old.samples.is_empty() && !new.samples.is_empty())
        .filter(|(_, old, new)| old.unit != SampleUnit::Nats || old.samples.len() == new.samples.len())
        .collect();
    if both.is_empty() {
        bail!("{} and {} have no benchmark in common", a.name, b.name);
    }
    let changes: Vec<Change> = both.iter().map(|(_, old, new)| Change::of(old, new, strictness)).collect();
    let p_values: Vec<f64> = changes.iter().map(Change::p).collect();
    let rows: Vec<Row> = both
        .iter()
        .zip(&changes)
        .zip(holm(&p_values))
        .map(|(((id, old, new), change), p)| {
            let (ratio, low, high) = change.ratio(level);
            Row {
                id: (*id).clone(),
                unit: old.unit,
                a: change.middle(&old.samples),
                b: change.middle(&new.samples),
                between_runs: change.between,
                ratio,
                low,
                high,
                p,
                verdict: match (old.unit, p < level) {
                    (SampleUnit::Ms, _) if old.is_doubted || new.is_doubted => Verdict::Incomparable,
                    (_, false) => Verdict::Same,
                    (SampleUnit::Ms, true) if ratio > 1.0 => Verdict::Slower,
                    (SampleUnit::Ms, true) => Verdict::Faster,
                    (SampleUnit::Bytes, true) if ratio > 1.0 => Verdict::More,
                    (SampleUnit::Bytes, true) => Verdict::Less,
                    (SampleUnit::Nats, true) if ratio > 1.0 => Verdict::Worse,
                    (SampleUnit::Nats, true) => Verdict::Better,
                },
                minimum_detectable_change: change.minimum_detectable(level, both.len()),
                memory_ratio: old.peak_bytes.zip(new.peak_bytes).map(|(old, new)| new as f64 / old as f64),
                same_work: old.token_digest.as_ref().zip(new.token_digest.as_ref()).map(|(old, new)| old == new),
                allocations: AllocationChange::between(old.allocations, new.allocations),
            }
        })
        .collect();
    let mut logarithms: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.verdict != Verdict::Incomparable) {
        logarithms.entry(record::group(&row.id).to_owned()).or_default().push(row.ratio.ln());
    }
    let mean = |logarithms: Vec<f64>| (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
    let only = |here: &Side, there: &Side| -> Vec<String> {
        here.benchmarks.keys().filter(|id| !there.benchmarks.contains_key(*id)).cloned().collect()
    };
    Ok(Comparison {
        a: a.name.clone(),
        b: b.name.clone(),
        a_commit: a.commit(),
        b_commit: b.commit(),
        only_a: only(a, b),
        only_b: only(b, a),
        strictness,
        groups: logarithms.into_iter().map(|(group, logarithms)| (group, mean(logarithms))).collect(),
        doubts: doubts(a, b),
        remarks: remarks(a, b, &rows),
        rows,
    })
}

fn doubts(a: &Side, b: &Side) -> Option<String> {
    let of = |letter, side: &Side| format!("{} of {} in {letter}", side.doubted(), side.benchmarks.len());
    (a.doubted() + b.doubted() > 0).then(|| {
        format!(
            "Disturbed: {}, {}. The times of these are not comparable: measure again on a quiet machine, or run `candlepower duel`.",
            of("A", a),
            of("B", b)
        )
    })
}

fn remarks(a: &Side, b: &Side, rows: &[Row]) -> Vec<String> {
    let mut remarks = Vec::new();
    if a.is_sandbox {
        remarks.push("Every value is synthetic: both sides are sandboxes of candlepower, not measurements.".into());
    }
    for (what, old) in &a.setting {
        if let Some(new) = b.setting.get(what).filter(|new| *new != old) {
            let shown = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
            remarks.push(format!("{what} differs: {} and {}", shown(old), shown(new)));
        }
    }
    for side in [a, b] {
        remarks.extend(side.problems.iter().map(|problem| format!("{}: {problem}", side.name)));
    }
    for row in rows {
        if row.same_work == Some(false) {
            remarks.push(format!("{}: generated other tokens, so the two did not do the same work", row.id));
        }
        remarks.extend(row.allocations.map(|change| format!("{}: {change}", row.id)));
    }
    remarks
}

impl Comparison {
    /// Returns whether no time of the two sides can be compared.
    pub(crate) fn is_void(&self) -> bool {
        let mut timed = self.rows.iter().filter(|row| row.unit == SampleUnit::Ms).peekable();
        timed.peek().is_some() && timed.all(|row| row.verdict == Verdict::Incomparable)
    }

    /// Benchmarks that are significantly slower, by more than `share`.
    pub(crate) fn regressions(&self, share: f64) -> Vec<&Row> {
        self.judged(Verdict::Slower, share)
    }

    /// Benchmarks whose negative log-likelihood rose significantly, by more than `share`.
    pub(crate) fn quality_regressions(&self, share: f64) -> Vec<&Row> {
        self.judged(Verdict::Worse, share)
    }

    fn judged(&self, verdict: Verdict, share: f64) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.verdict == verdict && row.ratio > 1.0 + share).collect()
    }

    /// Benchmarks whose peak memory rose by at least `share`.
    pub(crate) fn memory_regressions(&self, share: f64) -> Vec<&Row> {
        let rose = |row: &&Row| row.memory_ratio.is_some_and(|ratio| ratio > 1.0 && ratio >= 1.0 + share);
        self.rows.iter().filter(rose).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Measures;

    fn record(id: &str, total_ms: f64, edit: impl Fn(&mut Record, &mut record::Generation)) -> Record {
        let mut record: Record =
            serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
        let Some(Measures::Generation(mut measures)) = record.measures.take() else { panic!("a generation") };
        measures.sample_total_ms = (0..10).map(|sample| total_ms * (1.0 + 0.001 * f64::from(sample))).collect();
        record.id = id.into();
        edit(&mut record, &mut measures);
        record.measures = Some(Measures::Generation(measures));
        record
    }

    fn side(name: &str, records: &[Record]) -> Side {
        Side::from_records(name, records)
    }

    #[test]
    fn times_with_doubts_are_not_compared() {
        let doubted = |record: &mut Record, _: &mut record::Generation| {
            record.conditions.get_or_insert_default().doubts = vec!["the machine was busy".into()];
        };
        let quiet = |record: &mut Record, _: &mut record::Generation| record.conditions = None;
        let a = side("a", &[record("x/m/tuned-f32-cpu", 10.0, quiet), record("y/m/tuned-f32-cpu", 10.0, quiet)]);
        let b = side("b", &[record("x/m/tuned-f32-cpu", 30.0, doubted), record("y/m/tuned-f32-cpu", 30.0, quiet)]);
        let comparison = compare(&a, &b, Strictness::default()).expect("a comparison");
        let verdicts: Vec<Verdict> = comparison.rows.iter().map(|row| row.verdict).collect();
        assert_eq!(verdicts, [Verdict::Incomparable, Verdict::Slower]);
        assert!(
            comparison.text(false).starts_with("Disturbed: 0 of 2 in A, 1 of 2 in B."),
            "{}",
            comparison.text(false)
        );
        assert!(comparison.counted().contains("1 slower, 0 faster, 0 unchanged, 1 not comparable"));
        assert!(!comparison.is_void() && comparison.regressions(0.0).len() == 1);
        let all = side("b", &[record("x/m/tuned-f32-cpu", 30.0, doubted), record("y/m/tuned-f32-cpu", 30.0, doubted)]);
        let void = compare(&a, &all, Strictness::default()).expect("a comparison");
        assert!(void.is_void() && void.regressions(0.0).is_empty());
    }

    /// On a machine that is too busy for times, too.
    #[test]
    fn other_allocations_are_told() {
        let counted = |count: f64, bytes: f64| {
            let edit = move |record: &mut Record, measures: &mut record::Generation| {
                record.conditions.get_or_insert_default().doubts = vec!["the machine was busy".into()];
                (measures.step_allocations, measures.step_allocated_bytes) = (Some(count), Some(bytes));
            };
            side("one", &[record("x/m/tuned-f32-cpu", 10.0, edit)])
        };
        let remarks = |b: &Side| compare(&counted(12.0, 4096.0), b, Strictness::default()).expect("compared").remarks;
        assert!(remarks(&counted(12.0, 4096.0)).is_empty());
        let uncounted = side("two", &[record("x/m/tuned-f32-cpu", 10.0, |record, _| record.conditions = None)]);
        assert!(remarks(&uncounted).is_empty());
        assert!(remarks(&counted(12.02, 4099.0)).is_empty(), "a thread pool takes blocks");
        for (count, bytes) in [(13.0, 4096.0), (12.0, 4101.0), (11.0, 4096.0), (0.0, 0.0)] {
            let told = format!("allocates {count} times and {bytes:.0} bytes, and before 12 times and 4096 bytes");
            let remarks = remarks(&counted(count, bytes));
            assert!(remarks.iter().any(|remark| remark.ends_with(&told)), "{remarks:?}");
        }
    }

    /// Windows differ more from one another than the change, so pairs are compared.
    #[test]
    fn a_loss_of_quality_is_found_in_pairs() {
        let quality = |factor: f64| {
            let mut record = record("perplexity_a-00000000_w8_s4/m/tuned-f32-cpu", 1.0, |_, _| ());
            let window_nll = (0..30).map(|window| factor * (2.0 + f64::from(window) / 10.0)).collect();
            record.measures = Some(Measures::Quality(record::Quality { window_nll, ..Default::default() }));
            side("side", &[record])
        };
        let compared =
            |factor: f64| compare(&quality(1.0), &quality(factor), Strictness::default()).expect("one in common");
        let worse = compared(1.01);
        let row = &worse.rows[0];
        assert_eq!((row.unit, row.verdict), (SampleUnit::Nats, Verdict::Worse));
        assert!((row.a - 3.45).abs() < 1e-9 && (row.ratio - 1.01).abs() < 1e-9, "{row:?}");
        assert!(row.minimum_detectable_change.is_some_and(|share| share < 0.005), "{row:?}");
        assert_eq!((worse.quality_regressions(0.005).len(), worse.quality_regressions(0.02).len()), (1, 0));
        assert!(worse.regressions(0.0).is_empty());
        assert!(worse.counted().contains("quality: 1 worse, 0 better"), "{}", worse.counted());
        assert!(worse.text(false).contains("3.4500 nats"), "{}", worse.text(false));
        assert_eq!(compared(0.99).rows[0].verdict, Verdict::Better);
        assert_eq!(compared(1.000_05).rows[0].verdict, Verdict::Same);
        assert!(!compared(1.0).counted().contains("quality"));
    }

    #[test]
    fn only_changes_beyond_the_spread_of_runs_are_found() {
        let before = side(
            "before",
            &[
                record("short/a/x", 100.0, |_, _| ()),
                record("short/b/x", 100.0, |_, _| ()),
                record("medium/a/x", 100.0, |_, _| ()),
            ],
        );
        let after = side(
            "after",
            &[
                record("short/a/x", 140.0, |_, _| ()),
                record("short/b/x", 108.0, |_, _| ()),
                record("medium/a/x", 60.0, |_, _| ()),
            ],
        );
        let comparison = compare(&before, &after, Strictness::default()).expect("three in common");
        let verdicts: Vec<_> = comparison.rows.iter().map(|row| (row.id.as_str(), row.verdict)).collect();
        assert_eq!(
            verdicts,
            [("medium/a/x", Verdict::Faster), ("short/a/x", Verdict::Slower), ("short/b/x", Verdict::Same)]
        );
        assert!((comparison.groups["short"] - (1.4f64 * 1.08).sqrt()).abs() < 1e-9);
        assert_eq!(comparison.regressions(0.05).len(), 1);
        assert!(comparison.regressions(0.45).is_empty());
        assert!(comparison.github().contains("1 slower, 1 faster, 1 unchanged"));
        let text = comparison.text(false);
        let place = |id: &str| text.find(&format!("\n{id} "));
        assert!(place("short/a/x") < place("medium/a/x"), "the worst comes first:\n{text}");
        assert!(
            place("short/b/x").is_none() && text.contains("Unchanged and left out: 1 benchmark (a change of"),
            "{text}"
        );
        assert!(comparison.text(true).contains("short/b/x") && comparison.text(true).contains("detectable"));
        let json: serde_json::Value = serde_json::from_str(&comparison.json().expect("JSON")).expect("JSON");
        assert_eq!(json["rows"][1]["verdict"], "slower");
    }

    #[test]
    fn a_rise_of_one_percent_in_memory_is_a_regression() {
        let of = |name, bytes| side(name, &[record("a/m/v", 10.0, |_, measures| measures.peak_bytes = Some(bytes))]);
        let compared = |bytes| compare(&of("a", 1_000_000), &of("b", bytes), Strictness::default()).expect("compared");
        assert_eq!(compared(1_010_000).memory_regressions(0.01).len(), 1);
        assert!(compared(1_010_000).text(false).contains("a/m/v: peak memory +1.0 %"));
        assert!(compared(1_009_000).memory_regressions(0.01).is_empty());
        assert!(compared(1_000_000).memory_regressions(0.0).is_empty());
        assert!(compared(900_000).memory_regressions(0.0).is_empty());
    }

    #[test]
    fn other_differences_are_remarks() {
        let published = |record: &mut Record, _: &mut record::Generation| {
            record.software.candle_crates = Some([("candle-transformers".into(), "0.11.1".into())].into());
        };
        let alone = ["only/b/c", "many/b/c", "many/b/d"].map(|id| record(id, 1.0, published));
        let before = side("before", &[[record("a/b/c", 1.0, published)].as_slice(), &alone].concat());
        let after = side(
            "after",
            &[record("a/b/c", 1.0, |record, measures| {
                record.machine.cpu = "another processor".into();
                record.software.environment = [("CANDLE_CPU_MASK".into(), "0-1".into())].into();
                record.software.candle_crates = Some([("candle-transformers".into(), "0.11.1 (path)".into())].into());
                measures.token_digest = "other".into();
                measures.peak_bytes = measures.peak_bytes.map(|bytes| bytes * 101 / 100);
            })],
        );
        let compared = compare(&before, &after, Strictness::default()).expect("one in common");
        assert_eq!(compared.only_a, ["many/b/c", "many/b/d", "only/b/c"]);
        let (remarks, github) = (compared.text(false), compared.github());
        // Removed benchmarks and a rise in memory are among the first lines of the comment.
        let first: Vec<&str> = github.lines().take(6).collect();
        assert!(first[0].contains("0 slower, 0 faster, 1 unchanged; memory: 1 more, 0 less; 3 removed, 0 added"));
        assert!(first.join("\n").contains("only/b/c is only in before") && first[4].contains("peak memory +1.0 %"));
        for part in [
            "another processor",
            "CANDLE_CPU_MASK differs: none and 0-1",
            "candle-transformers differs: 0.11.1 and 0.11.1 (path)",
            "only/b/c is only in before",
            "2 benchmarks of many are only in before",
            "other tokens",
            "peak memory +1.0 %",
        ] {
            assert!(remarks.contains(part), "{part} is missing from\n{remarks}");
        }
    }

    #[test]
    fn equal_constants_are_no_change() {
        let constant = |_: &mut Record, measures: &mut record::Generation| measures.sample_total_ms = vec![5.0; 10];
        let before = side("before", &[record("a/b/c", 1.0, constant)]);
        let comparison =
            compare(&before, &side("after", &[record("a/b/c", 1.0, constant)]), Strictness::default()).expect("one");
        assert_eq!((comparison.rows[0].verdict, comparison.rows[0].ratio), (Verdict::Same, 1.0));
        assert!(comparison.remarks.is_empty());
        assert!(!comparison.markdown(true).contains("-0.0 ") && !comparison.markdown(true).contains("+0.0 "));
        assert_eq!((text::change(0.9999), text::change(0.99)), ("0.0 %".into(), "-1.0 %".into()));
    }

    /// A record of a benchmark of memory, with the same value in every sample.
    fn of_memory(bytes: u64) -> Record {
        let records = crate::runner::sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let is_wanted = |record: &Record| scenario::is_in_bytes(&record.scenario);
        let mut record = records.into_iter().find(is_wanted).expect("one in bytes");
        record.sandbox = false;
        let Some(Measures::Training(measures)) = &mut record.measures else { panic!("a training") };
        measures.sample_peak_bytes = vec![bytes; 10];
        measures.peak_bytes = Some(bytes);
        record
    }

    #[test]
    fn benchmarks_of_memory_are_compared_in_bytes() {
        let compared = |bytes| {
            let (before, after) = (side("before", &[of_memory(400_000_000)]), side("after", &[of_memory(bytes)]));
            compare(&before, &after, Strictness::default()).expect("one in common")
        };
        assert_eq!(compared(400_000_000).rows[0].verdict, Verdict::Same);
        assert_eq!(compared(396_000_000).rows[0].verdict, Verdict::Less);
        let more = compared(404_000_000);
        assert_eq!((more.rows[0].unit, more.rows[0].verdict), (SampleUnit::Bytes, Verdict::More));
        assert!(more.regressions(0.0).is_empty() && more.memory_regressions(0.01).len() == 1);
        assert!(
            more.text(false).contains("400.0 MB") && more.text(false).contains("more memory"),
            "{}",
            more.text(false)
        );
        assert!(more.github().contains("memory: 1 more, 0 less"), "{}", more.github());
    }

    #[test]
    fn a_criterion_baseline_of_a_memory_benchmark_is_in_bytes() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join("bytes").join("main");
        std::fs::create_dir_all(&folder).expect("a folder");
        let id = format!("{}/waveresnet/tuned-f32-cpu", scenario::CHECKPOINT_MEMORY[0].key);
        let about = serde_json::json!({ "full_id": id });
        std::fs::write(folder.join("benchmark.json"), about.to_string()).expect("written");
        let sample = serde_json::json!({ "iters": [1.0, 1.0], "times": [4e8, 4e8] });
        std::fs::write(folder.join("sample.json"), sample.to_string()).expect("written");
        let side = Side::find("main", home.path(), home.path()).expect("a baseline");
        let benchmark = &side.benchmarks[&id];
        assert_eq!((benchmark.unit, benchmark.peak_bytes), (SampleUnit::Bytes, Some(400_000_000)));
    }

    #[test]
    fn sandboxes_are_compared_with_each_other_and_never_with_measurements() {
        let synthetic = |ms| record("a/b/c", ms, |record, _| record.sandbox = true);
        let measured = record("a/b/c", 1.0, |_, _| ());
        let sandbox = side("sandbox", &[synthetic(1.0)]);
        let compared =
            compare(&sandbox, &side("other", &[synthetic(2.0)]), Strictness::default()).expect("both are synthetic");
        assert_eq!(compared.rows[0].verdict, Verdict::Slower);
        assert!(compared.text(false).contains("Every value is synthetic"), "{}", compared.text(false));
        let refused = compare(&sandbox, &side("measured", std::slice::from_ref(&measured)), Strictness::default());
        assert!(refused.expect_err("refused").to_string().contains("sandbox contains only sandbox records"));
        let mixed = side("mixed", &[measured, record("a/b/d", 1.0, |record, _| record.sandbox = true)]);
        assert!(!mixed.is_sandbox && mixed.benchmarks.len() == 1);
    }
}
