//! Ranks of the engines that run a model, from samples that they took in turns.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    statistics::median,
    summary::is_disturbed,
    table::{number, quantity},
    text_table::{markdown, terminal, width, wrapped},
};
use crate::{
    record::{Measures, PairedRatio, Record, Status},
    scenario::Counterpart,
    text,
};

/// The engines on one model in one dtype and batch.
pub(crate) struct Standing<'a> {
    /// The fastest first.
    ranked: Vec<&'a Record>,
    /// Those that have no rank.
    others: Vec<&'a Record>,
    /// The perplexities of a run.
    scores: Vec<&'a Record>,
}

/// A column: its header, and the measure of a generation.
const MEASURES: [(&str, &str); 5] = [
    ("decode tok/s", "decode_tokens_per_s"),
    ("prefill tok/s", "prefill_tokens_per_s"),
    ("TTFT ms", "ttft_ms"),
    ("MBU", "mbu"),
    ("peak MB", "peak_bytes"),
];

/// The same for a perplexity.
const SCORES: [(&str, &str); 2] = [("perplexity", "perplexity"), ("KL", "kl_mean")];

/// Difference of negative log-likelihoods that rounding explains. Quantised products of other inputs differed by 0.02.
const EQUAL_NATS: f64 = 0.05;

/// The standings of a run's records of `scenario`, one for each model, dtype and batch.
pub(crate) fn standings<'a>(records: &'a [Record], scenario: &str) -> Vec<Standing<'a>> {
    let scores: Vec<&Record> =
        records.iter().filter(|record| matches!(record.measures, Some(Measures::Quality(_)))).collect();
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in records.iter().filter(|record| record.scenario == scenario) {
        let of = |record: &Record| {
            let subject = &record.subject;
            (subject.model.clone(), subject.dtype.clone(), subject.device.clone(), subject.sizes.clone())
        };
        match groups.iter_mut().find(|group| of(group[0]) == of(record)) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    groups.into_iter().map(|group| Standing::new(group, scores.clone())).collect()
}

impl<'a> Standing<'a> {
    fn new(group: Vec<&'a Record>, scores: Vec<&'a Record>) -> Self {
        let (mut ranked, others): (Vec<_>, Vec<_>) = group.into_iter().partition(|record| time_ms(record).is_some());
        ranked.sort_by(|a, b| time_ms(a).partial_cmp(&time_ms(b)).unwrap_or(Ordering::Equal));
        Self { ranked, others, scores }
    }

    /// The rank of each engine. One ties with the first of a rank if the interval of their ratio contains 1.
    fn ranks(&self) -> Vec<usize> {
        let mut leader = 0;
        let rank = |(place, record): (usize, &&Record)| {
            let ties = place > 0 && to(record, self.ranked[leader]).is_some_and(|ratio| ratio.low <= 1.0);
            if !ties {
                leader = place;
            }
            leader + 1
        };
        self.ranked.iter().enumerate().map(rank).collect()
    }

    /// The table, with its header. Columns that no engine has a value for are left out.
    fn rows(&self) -> Vec<Vec<String>> {
        let mut columns = vec![("rank", self.ranks().iter().map(usize::to_string).collect::<Vec<_>>())];
        let engine =
            |record: &&Record| format!("{}{}", record.subject.engine, if is_disturbed(record) { " !" } else { "" });
        columns.push(("engine", self.ranked.iter().map(engine).collect()));
        let cell = |record: Option<&Record>, measure: &str| {
            let found = record.and_then(|record| record.measures.as_ref()?.measure(measure));
            found.map_or(String::new(), |(value, unit)| quantity(value, unit))
        };
        for (header, measure) in MEASURES {
            columns.push((header, self.ranked.iter().map(|record| cell(Some(*record), measure)).collect()));
        }
        columns.push(("time / first", self.ranked.iter().map(|record| self.over_first(record)).collect()));
        for (header, measure) in SCORES {
            columns.push((header, self.ranked.iter().map(|record| cell(self.score(record), measure)).collect()));
        }
        columns.push(("tokens", self.ranked.iter().map(|record| self.tokens(record)).collect()));
        columns.retain(|(_, cells)| cells.iter().any(|cell| !cell.is_empty()));
        let header = columns.iter().map(|(header, _)| (*header).to_owned()).collect();
        let row = |place: usize| columns.iter().map(|(_, cells)| cells[place].clone()).collect();
        [header].into_iter().chain((0..self.ranked.len()).map(row)).collect()
    }

    /// The time over that of the first, in turns where both fitted in memory.
    fn over_first(&self, record: &Record) -> String {
        let first = self.ranked[0];
        if record.id == first.id {
            return "1".to_owned();
        }
        match (to(record, first), time_ms(record), time_ms(first)) {
            (Some(paired), ..) => format!("{:.3} ({:.3} to {:.3})", paired.ratio, paired.low, paired.high),
            (None, Some(own), Some(other)) => format!("{}*", number(Some(own / other))),
            _ => String::new(),
        }
    }

    /// The perplexity of an engine.
    fn score(&self, record: &Record) -> Option<&'a Record> {
        let same = |score: &&&Record| {
            let (own, other) = (&record.subject, &score.subject);
            (&own.model, own.variant()) == (&other.model, other.variant())
        };
        self.scores.iter().find(same).copied()
    }

    /// Whether greedy decoding chose the tokens of the first.
    fn tokens(&self, record: &Record) -> String {
        let digest = |record: &Record| match &record.measures {
            Some(Measures::Generation(measures)) => Some(measures.token_digest.clone()),
            _ => None,
        };
        // Each system draws seeded weights of its own.
        match record.subject.synthetic_weights && record.subject.peer.is_some() {
            true => String::new(),
            false if digest(record) == digest(self.ranked[0]) => "same".to_owned(),
            false => "differ".to_owned(),
        }
    }

    /// The model, and what all generations have in common.
    fn heading(&self) -> String {
        let Some(first) = self.ranked.first().or(self.others.first()) else { return String::new() };
        let subject = &first.subject;
        let mut parts = vec![format!("{} in {}", subject.model, subject.dtype)];
        if let Some(Measures::Generation(measures)) = &first.measures {
            let (prompt, new) = (measures.prompt_tokens, measures.generated_tokens);
            parts.push(format!("{prompt} prompt tokens, {new} new tokens"));
            parts.extend((measures.sequences() > 1).then(|| format!("{} sequences", measures.sequences())));
        }
        parts.join(", ")
    }

    /// Notes below the table: marks, engines without a rank, and versions.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.ranked.iter().any(|record| is_disturbed(record)) {
            notes.push("! The machine was busy.".to_owned());
        }
        let paired = |record: &&Record| record.id == self.ranked[0].id || to(record, self.ranked[0]).is_some();
        if !self.ranked.iter().all(paired) {
            notes.push("* The engines did not fit in memory at once, so this is a ratio of medians.".to_owned());
        }
        // Several engines often have one reason, such as a file that is missing.
        let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for record in &self.others {
            let word = if record.status == Status::Excluded { "left out" } else { "failed" };
            let reason = format!("{word}: {}", record.reason.as_deref().unwrap_or_default());
            reasons.entry(reason).or_default().push(&record.subject.engine);
        }
        notes.extend(reasons.into_iter().map(|(reason, engines)| format!("{} {reason}", engines.join(", "))));
        notes.extend(self.other_weights());
        let version = |record: &&Record| match &record.subject.peer {
            Some(peer) => format!("{} {}", peer.name, peer.version),
            None => format!("candle {}, candlepower {}", record.software.candle, record.software.candlepower),
        };
        let versions: BTreeSet<String> = self.ranked.iter().map(version).collect();
        notes.extend((!versions.is_empty()).then(|| versions.into_iter().collect::<Vec<_>>().join("; ")));
        notes
    }

    /// The engines of the least and of the largest perplexity, if these are too far apart for equal weights.
    fn other_weights(&self) -> Option<String> {
        let scored = |record: &&'a Record| Some((*record, self.score(record)?.measures.as_ref()?.measure("nll")?.0));
        let scored: Vec<_> = self.ranked.iter().filter_map(scored).collect();
        let (best, least) = scored.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let (worst, most) = scored.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        (most - least > EQUAL_NATS).then(|| {
            format!(
                "Perplexity of {} is {:.2} times that of {}: their weights differ, or one computes them wrongly.",
                worst.subject.engine,
                (most - least).exp(),
                best.subject.engine
            )
        })
    }

    /// The table for a terminal.
    pub(crate) fn terminal(&self) -> String {
        let notes = self.notes().into_iter().flat_map(|note| wrapped(&text::line(&note), width()));
        let table = if self.ranked.is_empty() { String::new() } else { terminal(&self.rows(), 2) };
        let lines = [format!("{}\n", text::line(&self.heading())), table].into_iter().chain(notes);
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The table for a document, with the command that measures it again.
    pub(crate) fn markdown(&self) -> String {
        let table = if self.ranked.is_empty() { String::new() } else { markdown(&self.rows(), 2) };
        let command = self.ranked.first().and_then(|record| record.command.as_deref());
        let again = command.map(|command| format!("Measured by: `{}`", text::line(command)));
        let notes = self.notes().into_iter().map(|note| text::markdown(&note)).chain(again);
        let notes: String = notes.map(|note| format!("{note}\n\n")).collect();
        format!("## {}\n\n{table}\n{notes}", text::markdown(&self.heading()))
    }
}

/// Time of a generation: the median of the samples.
fn time_ms(record: &Record) -> Option<f64> {
    let sample_ms = record.measures.as_ref()?.sample_ms();
    (!sample_ms.is_empty()).then(|| median(sample_ms))
}

/// The paired ratio of a benchmark's time to that of a rival.
fn to<'a>(record: &'a Record, rival: &Record) -> Option<&'a PairedRatio> {
    record.ratios.iter().find(|ratio| ratio.counterpart == Counterpart::Rival && ratio.to == rival.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::sandbox;

    /// Records of one model on engines with these times, and the paired ratios to all before them with intervals of 5 % on each side.
    fn records(times: &[(&str, f64)]) -> Vec<Record> {
        let mut made = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let sample =
            made.find(|record| matches!(record.measures, Some(Measures::Generation(_)))).expect("a generation");
        let record = |(engine, ms): &(&str, f64)| {
            let mut record = sample.clone();
            record.scenario = "standings".into();
            record.id = format!("standings/{engine}");
            record.subject.engine = (*engine).into();
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.sample_total_ms = vec![*ms; 3];
            let ratio = |(other, other_ms): &(&str, f64)| PairedRatio {
                counterpart: Counterpart::Rival,
                to: format!("standings/{other}"),
                ratio: ms / other_ms,
                low: ms / other_ms * 0.95,
                high: ms / other_ms * 1.05,
                level: 0.95,
                pairs: 6,
            };
            record.ratios = times.iter().filter(|(other, _)| other != engine).map(ratio).collect();
            record
        };
        times.iter().map(record).collect()
    }

    #[test]
    fn engines_whose_interval_contains_1_share_a_rank() {
        let records = records(&[("slow", 20.0), ("first", 10.0), ("second", 10.3), ("near", 10.8), ("far", 11.2)]);
        let all = standings(&records, "standings");
        assert_eq!(all.len(), 1);
        let order: Vec<&str> = all[0].ranked.iter().map(|record| record.subject.engine.as_str()).collect();
        assert_eq!(order, ["first", "second", "near", "far", "slow"]);
        // `near` does not tie with `first`, so it leads the next rank, which `far` shares.
        assert_eq!(all[0].ranks(), [1, 1, 3, 3, 5]);
        assert!(all[0].markdown().contains("2.000 (1.900 to 2.100)"), "{}", all[0].markdown());
    }

    #[test]
    fn other_weights_are_noted() {
        let mut records = records(&[("tuned", 10.0), ("stock", 20.0)]);
        let mut made = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let score = made.find(|record| matches!(record.measures, Some(Measures::Quality(_)))).expect("a score");
        for (engine, nll) in [("tuned", 3.0), ("stock", 3.04)] {
            let mut score = Record { subject: records[0].subject.clone(), ..score.clone() };
            score.subject.engine = engine.into();
            let Some(Measures::Quality(measures)) = &mut score.measures else { panic!("a score") };
            measures.nll = nll;
            records.push(score);
        }
        let page = |records: &[Record]| standings(records, "standings").remove(0).markdown();
        assert!(!page(&records).contains("weights differ"), "{}", page(&records));
        let Some(Measures::Quality(measures)) = &mut records[3].measures else { panic!("a score") };
        measures.nll = 3.5;
        assert!(page(&records).contains("Perplexity of stock is 1.65 times that of tuned"), "{}", page(&records));
    }

    #[test]
    fn an_engine_without_a_result_has_its_reason() {
        let mut records = records(&[("tuned", 10.0), ("peer", 20.0)]);
        records[1].measures = None;
        records[1].status = Status::Failed;
        records[1].reason = Some("no such | package".into());
        let page = standings(&records, "standings").remove(0).markdown();
        assert!(page.contains("peer failed: no such \\| package"), "{page}");
    }
}
