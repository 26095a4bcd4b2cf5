//! Ratios between benchmarks of a run, and shares of the machine's limits: the cells and notes that need more than one
//! measure.

use std::collections::BTreeSet;

use super::{
    statistics::median,
    summary::is_disturbed,
    table::{number, quantity},
};
use crate::{
    record::{Conditions, FEWEST, LARGEST_SHARE, MeasureUnit, Measures, Record, Spread},
    scenario::Counterpart,
};

/// Marks a ratio of medians, which drift of the machine affects.
const UNPAIRED: &str = "*";

/// The paired ratio of time to a counterpart, with its interval. Without one, the ratio `of_medians`, marked. Empty for a
/// benchmark that is not compared.
pub fn cell(record: &Record, counterpart: Counterpart, of_medians: Option<f64>) -> String {
    match record.ratios.iter().find(|ratio| ratio.counterpart == counterpart) {
        Some(paired) => format!("{:.3} ({:.3} to {:.3})", paired.ratio, paired.low, paired.high),
        None => of_medians.map_or(String::new(), |ratio| format!("{}{UNPAIRED}", number(Some(ratio)))),
    }
}

/// Time of a record divided by that of the record with this scenario, model and engine, from medians. Other parts of the
/// variant must be equal.
pub fn of_medians(record: &Record, all: &[&Record], scenario: &str, engine: &str) -> Option<f64> {
    let is_other = |other: &&&Record| {
        let (this, other_subject) = (&record.subject, &other.subject);
        other.scenario == scenario
            && other.id != record.id
            && other_subject.engine == engine
            && (&other_subject.model, &other_subject.dtype, &other_subject.device)
                == (&this.model, &this.dtype, &this.device)
    };
    let of = |record: &Record| {
        let sample_ms = record.measures.as_ref()?.sample_ms();
        (!sample_ms.is_empty()).then(|| median(sample_ms))
    };
    Some(of(record)? / of(all.iter().find(is_other)?)?)
}

/// Number of threads or ranks of a subject that was measured with several, and the fewest of them.
pub fn degrees(record: &Record) -> Option<(f64, f64)> {
    let size = |name: &str| record.subject.sizes.get(name).map(|size| *size as f64);
    Some((size("threads").or(size("ranks"))?, size(FEWEST)?))
}

/// Parallel efficiency: how many times faster than with the fewest threads, over how many times as many there are.
pub fn efficiency(record: &Record) -> Option<f64> {
    // Ranks divide the threads that one rank has alone, so more of them need not be faster.
    record.subject.sizes.get("threads")?;
    let (own, fewest) = degrees(record)?;
    if own == fewest {
        return Some(1.0);
    }
    let paired = record.ratios.iter().find(|ratio| ratio.counterpart == Counterpart::Fewest)?;
    Some(fewest / own / paired.ratio)
}

/// The note below a table with ratios: how they were made.
pub fn note<'a>(records: &[&Record], cells: impl Iterator<Item = &'a str>) -> Option<String> {
    let (mut paired, mut unpaired) = (false, false);
    for cell in cells.filter(|cell| !cell.is_empty()) {
        *if cell.ends_with(UNPAIRED) { &mut unpaired } else { &mut paired } = true;
    }
    let level = records.iter().flat_map(|record| &record.ratios).map(|ratio| ratio.level).reduce(f64::min);
    let mut sentences = Vec::new();
    if paired {
        sentences.push(format!(
            "Ratios of time are medians of paired ratios from samples taken in turns, with their {:.0} % interval.",
            level.unwrap_or_default() * 100.0
        ));
    }
    if unpaired {
        let reasons: BTreeSet<&str> =
            records.iter().filter_map(|record| Some(record.unmeasured.get("ratios")?.as_str())).collect();
        let reasons = match reasons.is_empty() {
            true => "the benchmarks were measured one after the other".to_owned(),
            false => reasons.into_iter().collect::<Vec<_>>().join("; "),
        };
        sentences.push(format!("Ratios marked {UNPAIRED} are not paired but ratios of medians: {reasons}."));
    }
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

/// A limit of the machine.
#[derive(Clone, Copy)]
pub enum Limit {
    /// Bandwidth of memory, which MBU divides by.
    Read,
    /// Rate of matrix products, which MFU divides by.
    Matrix,
}

impl Limit {
    /// The limit that the share of a record divides by, and the spread of the machine's readings.
    fn of(self, record: &Record) -> Option<(f64, Option<Spread>)> {
        let limits = record.limits.as_ref()?;
        Some(match self {
            Self::Read => (limits.read_of(record.measures.as_ref()), limits.read),
            Self::Matrix => (limits.matrix_flops_per_s, limits.matrix),
        })
    }

    fn share(self, measures: &Measures) -> Option<f64> {
        match self {
            Self::Read => measures.mbu(),
            Self::Matrix => measures.mfu(),
        }
    }

    /// The best reading of the run.
    fn best(self, records: &[&Record]) -> Option<f64> {
        let bests = records.iter().filter_map(|record| Some(self.of(record)?.1?.best_of_run));
        bests.reduce(f64::max)
    }
}

/// Returns whether a share of a limit is at most 100 %, but for the error of reading the limit. A larger one is no result: the machine was
/// slower while the limit was read than while the benchmark ran.
pub(crate) fn is_possible(share: f64) -> bool {
    share <= LARGEST_SHARE
}

/// The share of a limit that a benchmark reached, at most 1, or why it is no result. `None` for a benchmark without one.
pub(super) fn share(record: &Record, measure: &str) -> Option<Result<f64, &'static str>> {
    let (share, _) = record.measures.as_ref()?.measure(measure)?;
    Some(match share {
        _ if is_disturbed(record) => Err("the machine was busy"),
        share if !is_possible(share) => Err("the limit was read while the machine was slower"),
        share => Ok(share.min(1.0)),
    })
}

/// The room that a share of a limit leaves, in words.
pub(crate) fn left_to_gain(share: f64) -> &'static str {
    match share {
        0.85.. => "little is left to gain",
        0.6.. => "some is left to gain",
        _ => "much is left to gain",
    }
}

/// The share of a limit that a benchmark reached, if it is a result.
pub(super) fn trusted_share(record: &Record, measure: &str) -> Option<f64> {
    share(record, measure)?.ok()
}

/// The share of the best reading of the run. Empty in records that have no readings.
pub fn of_best(record: &Record, all: &[&Record], limit: Limit) -> String {
    let share = || {
        let (own, spread) = limit.of(record)?;
        spread?;
        Some(limit.share(record.measures.as_ref()?)? * own / limit.best(all)?)
    };
    share().map_or(String::new(), |share| quantity(share, MeasureUnit::OfLimit))
}

/// The note below a table with shares: what they divide by.
pub fn divisors(records: &[&Record], headers: &[&str]) -> Option<String> {
    let mut parts = Vec::new();
    for (name, limit, unit, header) in
        [("MBU", Limit::Read, "GB/s", "MBU of best"), ("MFU", Limit::Matrix, "GFLOP/s", "MFU of best")]
    {
        if !headers.contains(&name) {
            continue;
        }
        let limits = || records.iter().filter_map(|record| limit.of(record)).map(|(own, _)| own / 1e9);
        let (Some(lowest), Some(highest)) = (limits().reduce(f64::min), limits().reduce(f64::max)) else { continue };
        let range = match number(Some(lowest)) == number(Some(highest)) {
            true => format!("{} {unit}", number(Some(lowest))),
            false => format!("{} to {} {unit}", number(Some(lowest)), number(Some(highest))),
        };
        let reads_weights =
            |record: &&Record| record.measures.as_ref().is_some_and(|m| m.weights_bytes_per_s().is_some());
        let own = match name == "MBU" && records.iter().any(reads_weights) {
            true => ", which is the bandwidth of the model's weights where it was read",
            false => "",
        };
        parts.push(match limit.best(records) {
            Some(best) => format!(
                "{name} divides by the limit while each benchmark ran{own}, in the median {range}; {header} divides by the best \
                 reading of the run, {} {unit}.",
                number(Some(best / 1e9))
            ),
            None => format!("{name} divides by the limit that was measured once in the process, {range}."),
        });
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

/// Schema of the first records whose samples were observed one by one.
const SAMPLES_OBSERVED: u32 = 2;

/// Medians of a benchmark with and without the samples that were held back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Medians {
    /// Number of samples.
    pub samples: usize,
    /// Number of samples that were held back.
    pub held_back: usize,
    /// Median of all samples.
    pub all_ms: f64,
    /// Median of the others; `None` if every sample was held back.
    pub undisturbed_ms: Option<f64>,
}

/// The medians of a benchmark of time. `None` for a benchmark without samples of time or whose samples were not observed.
pub fn medians(record: &Record) -> Option<Medians> {
    let sample_ms = record.measures.as_ref()?.sample_ms();
    let held_back = &record.conditions.as_ref()?.held_back;
    if sample_ms.is_empty() || record.schema < SAMPLES_OBSERVED {
        return None;
    }
    let is_quiet = |sample: &usize| !held_back.iter().any(|held| held.sample == *sample);
    let quiet: Vec<f64> = (0..sample_ms.len()).filter(is_quiet).map(|sample| sample_ms[sample]).collect();
    Some(Medians {
        samples: sample_ms.len(),
        held_back: sample_ms.len() - quiet.len(),
        all_ms: median(sample_ms),
        undisturbed_ms: (!quiet.is_empty()).then(|| median(&quiet)),
    })
}

/// The note for all rows whose results are in doubt: why, and how much at most.
pub fn doubted(records: &[&Record]) -> Option<String> {
    let doubted: Vec<&Record> = records.iter().copied().filter(|record| is_disturbed(record)).collect();
    let conditions = || doubted.iter().filter_map(|record| record.conditions.as_ref());
    let most =
        |share: fn(&Conditions) -> Option<f64>| conditions().filter_map(share).reduce(f64::max).unwrap_or_default();
    let shares = [
        ("other processes used", most(|conditions| conditions.other_cpu_share)),
        ("the hypervisor gave other guests", most(|conditions| conditions.stolen_cpu_share)),
    ];
    let of_cpu = shares.into_iter().filter(|(_, share)| *share >= 0.01);
    let of_cpu = of_cpu.map(|(who, share)| format!("{who} up to {:.0} % of the CPU time", share * 100.0));
    let held_back = doubted.iter().filter_map(|record| medians(record)).map(|m| m.held_back as f64 / m.samples as f64);
    let held_back = held_back.reduce(f64::max).filter(|share| *share > 0.0);
    let held_back = held_back.map(|share| format!("up to {:.0} % of the samples were held back", share * 100.0));
    let mut causes: Vec<String> = of_cpu.chain(held_back).collect();
    // Those of a GPU have no share here.
    if causes.is_empty() {
        causes.extend(conditions().flat_map(|conditions| &conditions.doubts).next().cloned());
    }
    (!doubted.is_empty()).then(|| {
        let (count, all, causes) = (doubted.len(), records.len(), causes.join(", "));
        format!("! in doubt, {count} of {all} rows: {causes}. Measure again, or use `candlepower duel`.")
    })
}

/// A run is disturbed if more than this share of its benchmarks is doubtful. A quarter of doubtful benchmarks makes every
/// comparison with the run a guess.
const DISTURBED: f64 = 0.25;

/// Why a run must not become a reference: too many of its benchmarks are doubtful. `None` for a run that may.
pub fn disturbance<'a>(records: impl IntoIterator<Item = &'a Record>) -> Option<String> {
    let (mut measured, mut doubtful, mut example) = (0, 0, None);
    for record in records.into_iter().filter(|record| record.measures.is_some()) {
        measured += 1;
        if let Some(doubt) = record.conditions.iter().flat_map(|conditions| &conditions.doubts).next() {
            doubtful += 1;
            example.get_or_insert_with(|| format!("{}: {doubt}", record.id));
        }
    }
    let example = example.filter(|_| f64::from(doubtful) > DISTURBED * f64::from(measured))?;
    Some(format!("{doubtful} of {measured} benchmarks are doubtful, for example {example}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{HeldBack, Hindrance, PairedRatio, SCHEMA};

    fn sample() -> Record {
        serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample")
    }

    fn with(edit: impl Fn(&mut Record)) -> Record {
        let mut record = sample();
        edit(&mut record);
        record
    }

    #[test]
    fn a_paired_ratio_has_its_interval_and_another_its_mark() {
        let paired = with(|record| {
            record.ratios = vec![PairedRatio {
                counterpart: Counterpart::ActiveTwin,
                to: "moe_top_k_decode/dense-2/tuned-f32-cpu".into(),
                ratio: 1.0712,
                low: 1.05,
                high: 1.0999,
                level: 0.979,
                pairs: 10,
            }]
        });
        let (active, total) = (Counterpart::ActiveTwin, Counterpart::TotalTwin);
        assert_eq!(cell(&paired, active, Some(2.0)), "1.071 (1.050 to 1.100)");
        assert_eq!(cell(&paired, total, Some(0.25)), "0.25*");
        assert_eq!(cell(&sample(), active, None), "");
        let text = note(&[&paired], ["1.071 (1.050 to 1.100)", ""].into_iter()).expect("a note");
        assert!(text.contains("98 % interval") && !text.contains('*'), "{text}");
        let alone = with(|record| drop(record.unmeasured.insert("ratios".into(), "it does not fit".into())));
        let text = note(&[&alone], ["0.25*"].into_iter()).expect("a note");
        assert_eq!(text, "Ratios marked * are not paired but ratios of medians: it does not fit.");
        assert_eq!(note(&[&alone], [""].into_iter()), None);
    }

    #[test]
    fn shares_say_what_they_divide_by() {
        let read = |median: f64, best_of_run: f64| {
            with(|record| {
                let limits = record.limits.as_mut().expect("limits");
                limits.read_bytes_per_s = median;
                limits.read = Some(Spread { readings: 3, lowest: median, highest: median, best_of_run });
            })
        };
        let (slow, fast) = (read(39.7e9, 40e9), read(66.8e9, 70e9));
        let all = [&slow, &fast];
        assert_eq!(of_best(&slow, &all, Limit::Read), "28 %", "0.4906 of 39.7 of 70");
        assert_eq!(of_best(&sample(), &all, Limit::Read), "");
        let text = divisors(&all, &["model", "MBU"]).expect("a note");
        assert!(text.contains("39.7 to 66.8 GB/s") && text.contains("best reading of the run, 70.0 GB/s"), "{text}");
        assert!(!text.contains("weights"), "{text}");
        let own = with(|record| {
            *record = slow.clone();
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.weights_bytes_per_s = Some(35e9);
        });
        assert_eq!(of_best(&own, &[&own], Limit::Read), "43 %", "0.4906 of 35 of 40");
        let text = divisors(&[&own], &["MBU"]).expect("a note");
        assert!(text.contains("the model's weights where it was read, in the median 35.0 GB/s"), "{text}");
        let old = sample();
        let text = divisors(&[&old], &["MFU"]).expect("a note");
        assert_eq!(text, "MFU divides by the limit that was measured once in the process, 272 GFLOP/s.");
        assert_eq!(divisors(&all, &["model"]), None);
    }

    #[test]
    fn medians_are_given_with_and_without_samples_that_were_held_back() {
        let held = with(|record| {
            record.schema = SCHEMA;
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.sample_total_ms = vec![10.0, 30.0, 11.0, 12.0, 40.0];
            let by = |by| [by].into();
            record.conditions = Some(Conditions {
                held_back: vec![
                    HeldBack { sample: 1, by: by(Hindrance::OtherProcesses) },
                    HeldBack { sample: 4, by: by(Hindrance::Clocks) },
                ],
                doubts: vec!["it was busy".into()],
                ..Conditions::default()
            });
        });
        let expected = Medians { samples: 5, held_back: 2, all_ms: 12.0, undisturbed_ms: Some(11.0) };
        assert_eq!(medians(&held), Some(expected));
        let text = doubted(&[&held, &sample()]).expect("a note");
        let expected = "! in doubt, 1 of 2 rows: up to 40 % of the samples were held back. Measure again, or use `candlepower duel`.";
        assert_eq!((text.as_str(), doubted(&[&sample()])), (expected, None));
        assert_eq!(medians(&sample()), None, "schema 1 does not tell which samples were held back");
    }

    #[test]
    fn a_run_with_many_doubts_is_disturbed() {
        let doubtful = with(|record| {
            let (doubts, other_cpu_share) = (vec!["it was busy".into()], Some(0.83));
            record.conditions = Some(Conditions { doubts, other_cpu_share, ..Conditions::default() })
        });
        let quiet = sample();
        let note = doubted(&[&doubtful, &quiet]).expect("a note");
        assert!(note.contains("1 of 2 rows: other processes used up to 83 % of the CPU time"), "{note}");
        assert_eq!(disturbance([&quiet]), None);
        assert_eq!(disturbance([]), None);
        assert_eq!(disturbance([&doubtful, &quiet, &quiet, &quiet]), None, "a quarter is allowed");
        let reason = disturbance([&doubtful, &quiet, &quiet]).expect("a third is too much");
        assert!(reason.starts_with("1 of 3 benchmarks are doubtful") && reason.ends_with("it was busy"), "{reason}");
    }
}
