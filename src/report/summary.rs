//! A run at a glance: limits of the machine, counts, and one card per model. The page, the report's README and the end of a
//! run in the terminal show it.

use std::{fmt::Write, path::Path};

use super::{
    compare::{Row, Side, Strictness, Verdict, compare},
    ratios,
    table::quantity,
    text_table::width,
};
use crate::{
    record::{self, Limits, MeasureUnit, Measures, Record, Status},
    scenario::Counterpart,
    text,
};

/// Models with a verdict at the end of a run, which is to fit a screen.
const MOST_VERDICTS: usize = 5;

/// The scenario of the cards. A run without it shows its first generation scenario.
const HEADLINE: &str = "medium";

/// A run at a glance.
pub struct Summary<'a> {
    records: Vec<&'a Record>,
}

/// A count of benchmarks.
struct Count {
    name: &'static str,
    is_counted: fn(&Record) -> bool,
}

/// Name of the count of disturbed benchmarks.
pub(crate) const DISTURBED: &str = "disturbed";

const COUNTS: [Count; 4] = [
    Count { name: "measured", is_counted: |record| record.status == Status::Measured },
    Count { name: "failed", is_counted: |record| record.status == Status::Failed },
    Count { name: DISTURBED, is_counted: is_disturbed },
    Count { name: "deviating", is_counted: |record| record.deviates.is_some() },
];

/// Returns whether the machine was busy during the benchmark.
pub(crate) fn is_disturbed(record: &Record) -> bool {
    record.conditions.as_ref().is_some_and(|conditions| !conditions.doubts.is_empty())
}

/// A limit of the machine, and the measure that is a share of it.
struct Limit {
    name: &'static str,
    value: fn(&Limits) -> String,
    /// Field of the measure.
    measure: &'static str,
    /// The phase that the measure describes.
    phase: &'static str,
    /// The limit in a sentence.
    of: &'static str,
}

const LIMITS: [Limit; 2] = [
    Limit {
        name: "memory is read at",
        value: |limits| format!("{:.1} GB/s", limits.read_bytes_per_s / 1e9),
        measure: "mbu",
        phase: "decode",
        of: "the memory bandwidth",
    },
    Limit {
        name: "matrices are multiplied at",
        value: matrix_rate,
        measure: "mfu",
        phase: "prefill or step",
        of: "the matrix rate",
    },
];

/// Rate, dtype and implementation of the matrix product that is the limit.
pub(crate) fn matrix_rate(limits: &Limits) -> String {
    let library = limits.matrix_library.as_ref().map_or_else(String::new, |library| format!(" by {library}"));
    format!("{:.0} GFLOP/s in {}{library}", limits.matrix_flops_per_s / 1e9, limits.matrix_dtype)
}

/// A value of a card.
struct Figure {
    name: &'static str,
    /// Field of a generation.
    measure: &'static str,
}

const FIGURES: [Figure; 3] = [
    Figure { name: "decode", measure: "decode_tokens_per_s" },
    Figure { name: "prefill", measure: "prefill_tokens_per_s" },
    Figure { name: "TTFT", measure: "ttft_ms" },
];

/// The results of one model in one scenario, engines side by side.
pub(crate) struct Card {
    /// Short name of the model.
    pub model: String,
    /// True if the weights were drawn from a seed.
    pub is_synthetic: bool,
    /// The engines that ran it.
    pub engines: Vec<Engine>,
}

/// The results of a model on one engine.
pub(crate) struct Engine {
    /// Engine, dtype and device.
    pub name: String,
    /// Name and value of each figure, with the unit.
    pub figures: Vec<(&'static str, String)>,
    /// Share of the memory bandwidth that decode uses, or why it is no result.
    pub mbu: Option<Result<f64, &'static str>>,
}

impl<'a> Summary<'a> {
    /// The summary of records.
    pub fn new(records: impl Iterator<Item = &'a Record>) -> Self {
        Self { records: records.collect() }
    }

    /// Name and value of each limit of the machine. Empty if they were not measured.
    pub(crate) fn limits(&self) -> Vec<(&'static str, String)> {
        let limits = self.records.iter().find_map(|record| record.limits.as_ref());
        limits.map_or(Vec::new(), |limits| LIMITS.iter().map(|limit| (limit.name, (limit.value)(limits))).collect())
    }

    /// Names and counts of benchmarks.
    pub(crate) fn counts(&self) -> Vec<(&'static str, usize)> {
        let count = |count: &Count| self.records.iter().filter(|record| (count.is_counted)(record)).count();
        COUNTS.iter().map(|row| (row.name, count(row))).collect()
    }

    /// The scenario of the cards, and one card per model.
    pub(crate) fn cards(&self) -> Option<(&'a str, Vec<Card>)> {
        let is_generation = |record: &Record| matches!(record.measures, Some(Measures::Generation(_)));
        let generations = || self.records.iter().filter(|record| is_generation(record));
        let first = generations().find(|record| record.scenario == HEADLINE).or_else(|| generations().next())?;
        let mut cards: Vec<Card> = Vec::new();
        for record in generations().filter(|record| record.scenario == first.scenario) {
            let figure = |figure: &Figure| {
                let (value, unit) = record.measures.as_ref()?.measure(figure.measure)?;
                Some((figure.name, format!("{} {}", quantity(value, unit), unit.name())))
            };
            let paired = record.ratios.iter().find(|ratio| ratio.counterpart == Counterpart::Stock);
            let stock = paired.map(|paired| ("time / stock", quantity(paired.ratio, MeasureUnit::Ratio)));
            let engine = Engine {
                name: record.subject.variant().to_string(),
                figures: FIGURES.iter().filter_map(figure).chain(stock).collect(),
                mbu: ratios::share(record, "mbu"),
            };
            match cards.iter_mut().find(|card| card.model == record.subject.model) {
                Some(card) => card.engines.push(engine),
                None => cards.push(Card {
                    model: record.subject.model.clone(),
                    is_synthetic: record.subject.synthetic_weights,
                    engines: vec![engine],
                }),
            }
        }
        Some((&first.scenario, cards))
    }

    /// The end of a run in at most ten lines: counts, the results nearest to and farthest from the limits, benchmarks to
    /// doubt, and changes since the last run on this machine, which is in another folder below `out`. A run that is compared with
    /// another one gives no `out`.
    pub fn closing_lines(&self, out: Option<&Path>) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        if let Some(first) = self.records.first() {
            let limits: Vec<String> = self.limits().iter().map(|(name, value)| format!("{name} {value}")).collect();
            lines.push(("machine", [vec![first.machine.name.clone()], limits].concat().join(", ")));
        }
        let counts: Vec<String> = self.counts().iter().map(|(name, count)| format!("{count} {name}")).collect();
        lines.push(("benchmarks", counts.join(", ")));
        let verdicts = self.verdicts();
        match verdicts.is_empty() {
            true => LIMITS.iter().for_each(|limit| lines.extend(self.extremes(limit))),
            false => lines.extend(verdicts.into_iter().map(|line| ("verdict", line))),
        }
        let several = |records: &[&&Record], why: &dyn Fn(&Record) -> Option<String>| {
            let first = records.first()?;
            let more = if records.len() > 1 { format!(" (and {} more)", records.len() - 1) } else { String::new() };
            Some(format!("{}{more}: {}", first.id, why(first)?))
        };
        let disturbed: Vec<&&Record> = self.records.iter().filter(|record| is_disturbed(record)).collect();
        let doubt = |record: &Record| record.conditions.as_ref()?.doubts.first().cloned();
        lines.extend(several(&disturbed, &doubt).map(|line| (DISTURBED, line)));
        let deviating: Vec<&&Record> = self.records.iter().filter(|record| record.deviates.is_some()).collect();
        lines.extend(several(&deviating, &|record| record.deviates.clone()).map(|line| ("deviating", line)));
        lines.extend(out.and_then(|out| self.changes(out)).map(|line| ("changes", line)));
        if let Some(run) = self.records.first().map(|record| &record.run) {
            lines.push(("report", format!("candlepower report {run}")));
        }
        let mut text = String::new();
        for (name, line) in lines {
            let _ = writeln!(text, "{name:<12}{}", cut(&text::line(&line), width() - 12));
        }
        text
    }

    /// What the results of each model mean: how its fastest engine compares with `stock`, and how much the memory leaves to gain.
    pub fn verdicts(&self) -> Vec<String> {
        let Some((scenario, cards)) = self.cards() else { return Vec::new() };
        let verdict = |card: &Card| {
            let of = |record: &&&Record| record.scenario == scenario && record.subject.model == card.model;
            let own: Vec<&Record> = self.records.iter().filter(of).copied().collect();
            let busy = own.iter().filter(|record| is_disturbed(record)).count();
            if busy > 0 {
                let all = own.len();
                return format!("{}: not trustworthy, {busy} of {all} disturbed: use `candlepower duel`", card.model);
            }
            let decode = |record: &Record| Some(record.measures.as_ref()?.measure("decode_tokens_per_s")?.0);
            let fastest = own.iter().filter(|record| decode(record).is_some());
            let Some(fastest) = fastest.max_by(|a, b| decode(a).unwrap_or(0.0).total_cmp(&decode(b).unwrap_or(0.0)))
            else {
                return format!("{}: no decode", card.model);
            };
            let engine = &fastest.subject.engine;
            let is_beside = |record: &&&Record| {
                let (of, with) = (&record.subject, &fastest.subject);
                of.engine == "stock" && with.engine != "stock" && (&of.dtype, &of.device) == (&with.dtype, &with.device)
            };
            let over = own.iter().find(is_beside).and_then(|stock| decode(stock)).zip(decode(fastest));
            let over = over
                .map_or(String::new(), |(stock, own)| format!(" decodes {:.1} × as fast as stock and", own / stock));
            let left = match ratios::trusted_share(fastest, "mbu") {
                None => " has no share of the bandwidth that can be trusted".to_owned(),
                Some(share) => {
                    format!(" is at {:.0} % of the bandwidth: {}", share * 100.0, ratios::left_to_gain(share))
                }
            };
            format!("{}: {engine}{over}{left}", card.model)
        };
        cards.iter().take(MOST_VERDICTS).map(verdict).collect()
    }

    /// The results with the largest and the smallest share of a limit.
    fn extremes(&self, limit: &Limit) -> Vec<(&'static str, String)> {
        let share = |record: &&Record| Some((ratios::trusted_share(record, limit.measure)?, record.id.clone()));
        let mut shares: Vec<(f64, String)> = self.records.iter().filter_map(share).collect();
        shares.sort_by(|a, b| b.0.total_cmp(&a.0));
        let line =
            |(share, id): &(f64, String)| format!("{}: {:.0} % of {}: {id}", limit.phase, share * 100.0, limit.of);
        match shares.as_slice() {
            [] => Vec::new(),
            [only] => vec![("best", line(only))],
            [best, .., worst] => vec![("best", line(best)), ("worst", line(worst))],
        }
    }

    /// The changes since the newest other run on the machine that has one of the benchmarks. Only common benchmarks count.
    fn changes(&self, out: &Path) -> Option<String> {
        let own: Vec<Record> = self.records.iter().map(|record| (*record).clone()).collect();
        let first = own.first()?;
        let (run, earlier) =
            record::earlier_runs(out, &first.run, &first.machine.name).find_map(|(run, mut earlier)| {
                earlier.retain(|old| old.measures.is_some() && own.iter().any(|new| new.id == old.id));
                (!earlier.is_empty()).then_some((run, earlier))
            })?;
        let comparison =
            compare(&Side::from_records(&run, &earlier), &Side::from_records("now", &own), Strictness::default())
                .ok()?;
        let worst = comparison
            .rows(false)
            .first()
            .filter(|row| !matches!(row.verdict, Verdict::Faster | Verdict::Better))
            .map(|row: &&Row| format!("; worst: {} {}", row.id, super::compare::change(row.ratio)));
        Some(format!("{} since {run}{}", comparison.counted(), worst.unwrap_or_default()))
    }
}

/// The text up to `width` characters.
fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::record::RECORDS;

    fn sample(id: &str, edit: impl Fn(&mut Record, &mut record::Generation)) -> Record {
        let mut record: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        let Some(Measures::Generation(mut measures)) = record.measures.take() else { panic!("a generation") };
        record.id = id.into();
        edit(&mut record, &mut measures);
        record.measures = Some(Measures::Generation(measures));
        record
    }

    #[test]
    fn a_run_ends_in_ten_lines() {
        let out = tempfile::tempdir().expect("a folder");
        let timed = |ms: f64| {
            move |_: &mut Record, measures: &mut record::Generation| {
                measures.sample_total_ms = (0..10).map(|sample| ms + 0.01 * f64::from(sample)).collect();
            }
        };
        let earlier = out.path().join("before");
        fs::create_dir_all(&earlier).expect("made");
        let line = serde_json::to_string(&sample("short/a/x", timed(100.0))).expect("a line");
        fs::write(earlier.join(RECORDS), line + "\n").expect("written");

        let mut records = vec![sample("short/a/x", timed(120.0)), sample("short/b/x", timed(50.0))];
        records.push(sample("short/c/x", |record, measures| {
            record.deviates = Some("a known reason".into());
            record.conditions.as_mut().expect("conditions").doubts.push("the machine was busy".into());
            measures.mbu = Some(0.93);
        }));
        let text = Summary::new(records.iter()).closing_lines(Some(out.path()));
        assert!(text.lines().count() <= 10, "{text}");
        for part in [
            "3 measured, 0 failed, 1 disturbed, 1 deviating",
            "verdict     llama-mini: not trustworthy, 1 of 3 disturbed: use `candlepower duel`",
            "disturbed   short/c/x: the machine was busy",
            "deviating   short/c/x: a known reason",
            "1 slower, 0 faster, 0 unchanged",
            "since before; worst: short/a/x +20.0 %",
            "candlepower report 2026",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= width()));
    }

    #[test]
    fn the_verdict_is_in_words_and_impossible_shares_are_no_results() {
        let verdict = |mbu: f64| {
            let tuned = move |record: &mut Record, measures: &mut record::Generation| {
                record.subject.engine = "tuned".into();
                measures.decode_tokens_per_s = measures.decode_tokens_per_s.map(|rate| 2.5 * rate);
                measures.mbu = Some(mbu);
            };
            let records = [sample("short/a/stock", |_, _| ()), sample("short/a/tuned", tuned)];
            Summary::new(records.iter()).verdicts().remove(0)
        };
        let of = "llama-mini: tuned decodes 2.5 × as fast as stock and";
        assert_eq!(verdict(0.9), format!("{of} is at 90 % of the bandwidth: little is left to gain"));
        assert_eq!(verdict(0.7), format!("{of} is at 70 % of the bandwidth: some is left to gain"));
        assert_eq!(verdict(2.34), format!("{of} has no share of the bandwidth that can be trusted"));
    }

    #[test]
    fn a_card_has_the_engines_of_a_model_side_by_side() {
        let tuned = |record: &mut Record, measures: &mut record::Generation| {
            record.subject.engine = "tuned".into();
            measures.mbu = Some(0.9);
        };
        let records = [sample("short/a/stock", |_, _| ()), sample("short/a/tuned", tuned)];
        let (scenario, cards) = Summary::new(records.iter()).cards().expect("cards");
        assert_eq!((scenario, cards.len(), cards[0].engines.len()), ("short", 1, 2));
        assert_eq!(
            cards[0].engines[0].figures,
            [("decode", "204 tok/s".to_owned()), ("prefill", "1763 tok/s".to_owned()), ("TTFT", "36.3 ms".to_owned())]
        );
        assert_eq!(cards[0].engines[1].mbu, Some(Ok(0.9)));
    }
}
