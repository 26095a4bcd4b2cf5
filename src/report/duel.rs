//! The result of a duel, with a row for each benchmark.

use std::fmt::Write;

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    compare::{MEMORY_NOISE, change, quantity},
    text_table::markdown,
};
use crate::record::{AllocationChange, SampleUnit};

/// Result of a duel.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Duel {
    /// Id of the duel, which the records of both runs have.
    pub id: String,
    /// The first side.
    pub a: Contestant,
    /// The second side.
    pub b: Contestant,
    /// Width at which a benchmark stops: the share that its interval reaches below and above its middle.
    pub resolve: f64,
    /// Probability with which a duel of a program with itself may find any change.
    pub level: f64,
    /// The benchmarks that were measured.
    pub rows: Vec<Row>,
    /// Id and reason of the benchmarks that failed on a side.
    pub failed: Vec<String>,
}

/// A side of a duel.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Contestant {
    /// The side as given on the command line.
    pub given: String,
    /// Commit that was built, with `-dirty` if the working tree had other changes.
    pub commit: String,
    /// Run that has its records.
    pub run: String,
}

/// A benchmark of a duel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Id of the benchmark.
    pub id: String,
    /// Unit of the medians.
    pub unit: SampleUnit,
    /// Median of the samples of `a`.
    pub a: f64,
    /// Median of the samples of `b`.
    pub b: f64,
    /// Median of the ratios `b` / `a` of all pairs. Above 1, `b` is slower or uses more memory.
    pub ratio: f64,
    /// Lower end of the interval of the ratio; `null` if too few pairs were measured.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// The judgement of the difference.
    pub verdict: Verdict,
    /// Number of pairs.
    pub pairs: usize,
    /// Time that its samples took.
    pub seconds: f64,
    /// Peak memory of `b` divided by that of `a`.
    pub memory_ratio: Option<f64>,
    /// True if both generated the same tokens; `null` if the benchmark does not generate tokens.
    pub same_work: Option<bool>,
    /// Allocations of decode steps, if they differ.
    #[serde(default)]
    pub allocations: Option<AllocationChange>,
    /// Time to the first token, whose change the time of a whole generation may hide.
    #[serde(default)]
    pub ttft: Option<Change>,
}

/// The change of a part of a benchmark's time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Median of the ratios `b` / `a` of all pairs.
    pub ratio: f64,
    /// Lower end of the interval of the ratio; `null` if too few pairs were measured.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// The judgement of the difference.
    pub verdict: Verdict,
}

/// Result of one benchmark of a duel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DuelVerdict")]
pub enum Verdict {
    /// More time. The interval excludes a ratio of 1.
    Slower,
    /// Less time.
    Faster,
    /// More memory; only for a benchmark of memory.
    More,
    /// Less memory.
    Less,
    /// No change: the interval contains 1 and is as narrow as requested.
    Same,
    /// The interval contains 1, and time ran out before it was as narrow as requested.
    Unresolved,
}

impl Verdict {
    /// The judgement of an interval of ratios, where `None` contains all ratios.
    pub(crate) fn of(unit: SampleUnit, interval: Option<(f64, f64)>, is_resolved: bool) -> Self {
        match (interval, unit) {
            (Some((low, _)), SampleUnit::Ms) if low > 1.0 => Self::Slower,
            (Some((low, _)), SampleUnit::Bytes) if low > 1.0 => Self::More,
            (Some((_, high)), SampleUnit::Ms) if high < 1.0 => Self::Faster,
            (Some((_, high)), SampleUnit::Bytes) if high < 1.0 => Self::Less,
            _ if is_resolved => Self::Same,
            _ => Self::Unresolved,
        }
    }

    fn is_change(self) -> bool {
        !matches!(self, Self::Same | Self::Unresolved)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::More => "more memory",
            Self::Less => "less memory",
            Self::Same => "no change",
            Self::Unresolved => "not resolved",
        }
    }
}

impl Row {
    /// Change, interval and verdict in a few words.
    pub fn summary(&self) -> String {
        let ttft = self.changed_ttft().map_or(String::new(), |change| format!("; {change}"));
        format!("{}, {}{ttft}", self.measured(), self.verdict.text())
    }

    /// The change of the time to the first token in a few words, if there is one.
    pub(crate) fn changed_ttft(&self) -> Option<String> {
        let Change { ratio, low, high, verdict } = self.ttft.filter(|ttft| ttft.verdict.is_change())?;
        Some(format!("TTFT {} ({}), {}", change(ratio), interval(low, high), verdict.text()))
    }

    /// Change and interval.
    pub(super) fn measured(&self) -> String {
        format!("{} ({})", change(self.ratio), self.interval())
    }

    /// The ratio of the peak memories, if it differs from 1 by more than noise.
    pub(crate) fn changed_memory(&self) -> Option<f64> {
        self.memory_ratio.filter(|ratio| (ratio - 1.0).abs() > MEMORY_NOISE)
    }

    fn interval(&self) -> String {
        interval(self.low, self.high)
    }
}

fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{} to {}", change(low), change(high)),
        _ => "n/a".into(),
    }
}

impl Duel {
    /// The ids of benchmarks that are slower by more than `share`, or whose first token is, with the ratios.
    pub(crate) fn regressions(&self, share: f64) -> Vec<(String, f64)> {
        let is_worse = |verdict, ratio| verdict == Verdict::Slower && ratio > 1.0 + share;
        let of_row = |row: &Row| {
            let ttft = row.ttft.filter(|ttft| is_worse(ttft.verdict, ttft.ratio));
            let whole = is_worse(row.verdict, row.ratio).then(|| (row.id.clone(), row.ratio));
            [whole, ttft.map(|ttft| (format!("TTFT of {}", row.id), ttft.ratio))]
        };
        self.rows.iter().flat_map(of_row).flatten().collect()
    }

    /// Benchmarks whose peak memory rose by at least `share`.
    pub(crate) fn memory_regressions(&self, share: f64) -> Vec<&Row> {
        let rose = |row: &&Row| row.memory_ratio.is_some_and(|ratio| ratio > 1.0 && ratio >= 1.0 + share);
        self.rows.iter().filter(rose).collect()
    }

    /// The duel as an aligned Markdown table and remarks.
    pub(crate) fn text(&self) -> String {
        let head = ["benchmark", "A", "B", "change", "interval", "verdict", "pairs", "time", "tokens", "peak memory"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
            rows.push(vec![
                row.id.clone(),
                quantity(row.unit, row.a),
                quantity(row.unit, row.b),
                change(row.ratio),
                row.interval(),
                row.verdict.text().into(),
                row.pairs.to_string(),
                format!("{:.0} s", row.seconds),
                row.same_work.map_or("n/a", |same| if same { "equal" } else { "different" }).into(),
                row.memory_ratio.map_or("n/a".into(), change),
            ]);
        }
        let mut text = if self.rows.is_empty() { String::new() } else { markdown(&rows, 1) };
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let _ = writeln!(text, "\n{name}: {} (commit {}, run {})", side.given, side.commit, side.run);
        }
        let _ = writeln!(
            text,
            "\nThe change is the median of the ratios B / A of pairs of samples that were taken one after the other. A \
             benchmark stops when its interval reaches at most {:.1} % below and above its middle, or when its time is \
             spent. The intervals together miss a true ratio in at most one duel of {:.0}, at any moment they stop.",
            self.resolve * 100.0,
            1.0 / self.level
        );
        for row in &self.rows {
            if let Some(changed) = row.changed_ttft() {
                let _ = writeln!(text, "- {}: {changed}", row.id);
            }
            if row.same_work == Some(false) {
                let _ = writeln!(text, "- {}: generated other tokens, so the two did not do the same work", row.id);
            }
            if let Some(ratio) = row.changed_memory() {
                let _ = writeln!(text, "- {}: peak memory {}", row.id, change(ratio));
            }
            if let Some(change) = row.allocations {
                let _ = writeln!(text, "- {}: {change}", row.id);
            }
        }
        for failed in &self.failed {
            let _ = writeln!(text, "- failed: {failed}");
        }
        text
    }

    /// A comment for a pull request: the changes, and the whole table folded away.
    pub(crate) fn github(&self) -> String {
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let mut text = format!(
            "### candlepower duel: {} slower, {} faster, {} unchanged, {} not resolved",
            count(Verdict::Slower),
            count(Verdict::Faster),
            count(Verdict::Same),
            count(Verdict::Unresolved)
        );
        let (more, less) = (count(Verdict::More), count(Verdict::Less));
        if more + less > 0 {
            let _ = write!(text, "; memory: {more} more, {less} less");
        }
        if !self.failed.is_empty() {
            let _ = write!(text, "; {} failed", self.failed.len());
        }
        text.push_str("\n\n");
        for row in &self.rows {
            if row.verdict.is_change() {
                let (a, b) = (quantity(row.unit, row.a), quantity(row.unit, row.b));
                let _ = writeln!(text, "- `{}` {} ({}; {a} → {b})", row.id, change(row.ratio), row.interval());
            }
            if let Some(changed) = row.changed_ttft() {
                let _ = writeln!(text, "- `{}` {changed}", row.id);
            }
        }
        let _ = write!(text, "\n<details><summary>All benchmarks</summary>\n\n{}\n</details>\n", self.text());
        text
    }

    /// The duel as JSON.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub(crate) fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("the duel could not be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, unit: SampleUnit, interval: Option<(f64, f64)>, is_resolved: bool) -> Row {
        let (low, high) = interval.unzip();
        Row {
            id: id.into(),
            unit,
            a: 100.0,
            b: 105.0,
            ratio: 1.05,
            low,
            high,
            verdict: Verdict::of(unit, interval, is_resolved),
            pairs: 40,
            seconds: 12.0,
            memory_ratio: Some(1.02),
            same_work: Some(true),
            allocations: None,
            ttft: None,
        }
    }

    #[test]
    fn the_verdict_follows_the_interval() {
        use SampleUnit::{Bytes, Ms};
        for (unit, interval, is_resolved, verdict) in [
            (Ms, Some((1.04, 1.06)), true, Verdict::Slower),
            (Ms, Some((1.01, 1.20)), false, Verdict::Slower),
            (Ms, Some((0.90, 0.99)), true, Verdict::Faster),
            (Ms, Some((0.99, 1.01)), true, Verdict::Same),
            (Ms, Some((1.00, 1.00)), true, Verdict::Same),
            (Ms, Some((0.90, 1.10)), false, Verdict::Unresolved),
            (Ms, None, false, Verdict::Unresolved),
            (Bytes, Some((1.01, 1.01)), true, Verdict::More),
            (Bytes, Some((0.99, 0.99)), true, Verdict::Less),
        ] {
            assert_eq!(Verdict::of(unit, interval, is_resolved), verdict, "{interval:?}");
        }
    }

    #[test]
    fn a_duel_is_shown_with_all_that_matters() {
        let side = |given: &str| Contestant { given: given.into(), commit: "abc".into(), run: format!("1-{given}") };
        let mut duel = Duel {
            id: "1".into(),
            a: side("main"),
            b: side("threads=1"),
            resolve: 0.02,
            level: 0.05,
            rows: vec![
                row("short/m/x", SampleUnit::Ms, Some((1.04, 1.06)), true),
                row("medium/m/x", SampleUnit::Ms, None, false),
            ],
            failed: vec!["long/m/x: B: it does not fit".into()],
        };
        duel.rows[1].same_work = Some(false);
        let ttft = |low, high, verdict| Change { ratio: 1.07, low: Some(low), high: Some(high), verdict };
        duel.rows[0].ttft = Some(ttft(0.9, 1.2, Verdict::Unresolved));
        duel.rows[1].ttft = Some(ttft(1.06, 1.08, Verdict::Slower));
        let text = duel.text();
        for part in [
            "| short/m/x  | 100 ms | 105 ms | +5.0 % | +4.0 % to +6.0 % |       slower |    40 | 12 s |     equal |",
            "A: main (commit abc, run 1-main)",
            "at most 2.0 % below and above",
            "one duel of 20",
            "medium/m/x: TTFT +7.0 % (+6.0 % to +8.0 %), slower",
            "medium/m/x: generated other tokens",
            "short/m/x: peak memory +2.0 %",
            "failed: long/m/x: B: it does not fit",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        assert!(!text.contains("short/m/x: TTFT"), "it is not resolved");
        let regressions = |share| duel.regressions(share).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(regressions(0.04), ["short/m/x", "TTFT of medium/m/x"]);
        assert_eq!(regressions(0.05), ["TTFT of medium/m/x"]);
        assert!(regressions(0.07).is_empty());
        assert_eq!((duel.memory_regressions(0.01).len(), duel.memory_regressions(0.03).len()), (2, 0));
        let github = duel.github();
        assert!(
            github.starts_with("### candlepower duel: 1 slower, 0 faster, 0 unchanged, 1 not resolved; 1 failed\n")
        );
        assert!(github.contains("- `short/m/x` +5.0 % (+4.0 % to +6.0 %; 100 ms → 105 ms)"), "{github}");
        assert!(github.contains("- `medium/m/x` TTFT +7.0 %"), "{github}");
        let json: serde_json::Value = serde_json::from_str(&duel.json().expect("JSON")).expect("JSON");
        assert_eq!(
            (&json["rows"][1]["verdict"], &json["rows"][1]["low"]),
            (&"unresolved".into(), &serde_json::Value::Null)
        );
    }
}
