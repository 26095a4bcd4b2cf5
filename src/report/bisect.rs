//! The result of a bisection: the commit since which a benchmark differs.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{compare::change, duel::Row, text_table::terminal};
use crate::{record::SampleUnit, text};

/// Digits of a commit's hash that are shown.
const DIGITS: usize = 12;

/// Result of a bisection.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Bisection {
    /// The side that every commit was measured against.
    pub good: String,
    /// The last side.
    pub bad: String,
    /// The kind of difference; `null` without one.
    pub kind: Option<Kind>,
    /// The benchmark that was followed, with the duel of both ends; `null` if nothing differs.
    pub row: Option<Row>,
    /// Number of commits after `good`, up to `bad`.
    pub commits: usize,
    /// The first commit that differs. Several, the oldest first, if those before the last could not be measured.
    pub suspects: Vec<Commit>,
    /// The last suspect in relation to `good`.
    pub found: Option<Row>,
    /// The commits that were measured, in the order of the steps.
    pub steps: Vec<Step>,
    /// Steps that were kept from an earlier run.
    pub kept: usize,
    /// The command that repeats the duel of the last suspect.
    pub repeat: Option<String>,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "BisectionKind")]
pub enum Kind {
    /// More time
    Slower,
    /// Less time
    Faster,
    /// More or less memory
    Memory,
    /// Other tokens
    Tokens,
    /// More or fewer allocations
    Allocations,
}

/// A commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Commit {
    /// Its hash.
    pub hash: String,
    /// Date on which its author made it.
    pub date: String,
    /// First line of its message.
    pub subject: String,
}

/// A step of a bisection.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "BisectionStep")]
pub struct Step {
    /// The commit that was measured.
    pub commit: Commit,
    /// The judgement of the commit.
    pub verdict: Verdict,
    /// Its duel with `good`; `null` if it could not be measured.
    pub row: Option<Row>,
    /// Why it was skipped.
    pub reason: Option<String>,
}

/// The judgement of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "BisectionVerdict")]
pub enum Verdict {
    /// As the first end.
    Good,
    /// As the last end.
    Bad,
    /// It could not be measured, or not well enough.
    Skipped,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Good => "as GOOD",
            Self::Bad => "as BAD",
            Self::Skipped => "skipped",
        }
    }
}

impl Kind {
    /// The kind as on the command line.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::Memory => "memory",
            Self::Tokens => "tokens",
            Self::Allocations => "allocations",
        }
    }

    /// Returns whether one block of a duel tells how much the sides differ in this.
    pub(crate) fn is_exact(self, unit: SampleUnit) -> bool {
        match self {
            Self::Slower | Self::Faster => false,
            Self::Memory => unit == SampleUnit::Ms,
            Self::Tokens | Self::Allocations => true,
        }
    }

    /// Predicate of a sentence about a commit of this kind.
    fn predicate(self) -> &'static str {
        match self {
            Self::Slower => "is slower",
            Self::Faster => "is faster",
            Self::Memory => "takes other memory",
            Self::Tokens => "generates other tokens",
            Self::Allocations => "allocates otherwise",
        }
    }

    /// How much a row differs in this.
    pub(crate) fn change(self, row: &Row) -> String {
        match (self, row.unit) {
            (Self::Tokens, _) => {
                row.same_work.map_or("n/a", |same| if same { "equal tokens" } else { "other tokens" }).into()
            }
            (Self::Memory, SampleUnit::Ms) => {
                format!("peak memory {}", row.memory_ratio.map_or("n/a".into(), change))
            }
            (Self::Allocations, _) => row.allocations.map_or("equal allocations".into(), |change| change.to_string()),
            _ => row.measured(),
        }
    }
}

/// The command that bisects the commits between two by a benchmark; `None` if they are not two commits. `parts` belong to both sides.
pub(crate) fn command(good: &str, bad: &str, parts: &[String], kind: Option<Kind>, id: &str) -> Option<String> {
    let is_hash = |commit: &str| commit.len() >= DIGITS && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
    let side = |commit| {
        let parts = parts.iter().fold(short(commit).to_owned(), |side, part| side + "+" + part);
        text::shell(&text::line(&parts))
    };
    let kind = kind.map_or(String::new(), |kind| format!(" --for {}", kind.text()));
    let filter = text::shell(&text::line(&format!("^{id}$")));
    let is_between = good != bad && is_hash(good) && is_hash(bad);
    is_between.then(|| format!("candlepower bisect {} {}{kind} -- {filter}", side(good), side(bad)))
}

/// A hash in short.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..DIGITS).unwrap_or(hash)
}

impl Commit {
    /// The hash in short.
    pub(crate) fn short(&self) -> &str {
        short(&self.hash)
    }

    fn line(&self) -> String {
        format!("{} ({}) {}", self.short(), self.date, text::line(&self.subject))
    }
}

impl Step {
    /// The judgement in a few words.
    pub(crate) fn summary(&self, kind: Kind) -> String {
        format!("{} is {}: {}", self.commit.short(), self.verdict.text(), self.because(kind))
    }

    fn because(&self, kind: Kind) -> String {
        match (&self.reason, &self.row) {
            (Some(reason), _) => text::line(reason),
            (None, row) => row.as_ref().map_or("n/a".into(), |row| kind.change(row)),
        }
    }
}

impl Bisection {
    /// The bisection for a terminal, the answer first.
    pub(crate) fn text(&self) -> String {
        let (Some(kind), Some(row), [.., last]) = (self.kind, &self.row, self.suspects.as_slice()) else {
            return format!("No difference between {} and {} was found.\n", self.good, self.bad);
        };
        let mut text = match self.suspects.as_slice() {
            [one] => format!("The first commit that {}: {}\n", kind.predicate(), one.line()),
            several => {
                let lines: Vec<String> = several.iter().map(Commit::line).collect();
                let (first, count) = (kind.predicate(), several.len());
                format!(
                    "The first commit that {first} is one of these {count}, of which all but the last were skipped:\n  {}\n",
                    lines.join("\n  ")
                )
            }
        };
        let found = self.found.as_ref().map_or("n/a".into(), |found| kind.change(found));
        let _ = writeln!(text, "{}: {found} from {} to {}", row.id, self.good, last.short());
        let _ = writeln!(text, "{} steps among {} commits, {} of them kept", self.steps.len(), self.commits, self.kept);
        if !self.steps.is_empty() {
            let mut rows = vec![["commit", "verdict", "change or reason"].map(str::to_owned).to_vec()];
            rows.extend(
                self.steps
                    .iter()
                    .map(|step| vec![step.commit.short().to_owned(), step.verdict.text().into(), step.because(kind)]),
            );
            let _ = write!(text, "\n{}", terminal(&rows, 3));
        }
        if let Some(repeat) = &self.repeat {
            let _ = writeln!(text, "\nThe duel with it again: {repeat}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_first_and_hostile_subjects_stay_in_their_line() {
        let commit = |hash: &str| Commit {
            hash: hash.repeat(20),
            date: "2026-11-26".into(),
            subject: "Speed\u{1b}[2J up".into(),
        };
        let row = Row {
            id: "short/a/b".into(),
            unit: SampleUnit::Ms,
            a: 100.0,
            b: 110.0,
            ratio: 1.1,
            low: Some(1.09),
            high: Some(1.12),
            verdict: super::super::duel::Verdict::Slower,
            pairs: 40,
            seconds: 12.0,
            memory_ratio: Some(1.02),
            same_work: Some(false),
            allocations: None,
            ttft: None,
        };
        let skipped = Step {
            commit: commit("ab"),
            verdict: Verdict::Skipped,
            row: None,
            reason: Some("side B does not build".into()),
        };
        let mut bisection = Bisection {
            good: "main".into(),
            bad: "HEAD".into(),
            kind: Some(Kind::Slower),
            row: Some(row.clone()),
            commits: 12,
            suspects: vec![commit("ab"), commit("cd")],
            found: Some(row.clone()),
            steps: vec![skipped],
            kept: 1,
            repeat: Some("candlepower duel main cdcdcdcdcdcd".into()),
        };
        let text = bisection.text();
        for part in [
            "The first commit that is slower is one of these 2, of which all but the last were skipped:\n  abababababab (2026",
            "short/a/b: +10.0 % (+9.0 % to +12.0 %) from main to cdcdcdcdcdcd\n",
            "1 steps among 12 commits, 1 of them kept",
            "side B does not build",
            "\nThe duel with it again: candlepower duel main cdcdcdcdcdcd\n",
        ] {
            assert!(text.contains(part), "{part} is missing from:\n{text}");
        }
        bisection.suspects.remove(0);
        let text = bisection.text();
        let first = "The first commit that is slower: cdcdcdcdcdcd (2026-11-26) Speed\\u{1b}[2J up\n";
        assert!(text.starts_with(first), "{text}");
        assert_eq!(Kind::Memory.change(&row), "peak memory +2.0 %");
        assert_eq!(Kind::Tokens.change(&row), "other tokens");
        bisection.kind = None;
        assert_eq!(bisection.text(), "No difference between main and HEAD was found.\n");
    }
}
