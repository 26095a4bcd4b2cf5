//! A comparison as text: counts first, then the benchmarks that changed, the worst first.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, Result};

use super::{Comparison, MEMORY_NOISE, QUALITY_NOISE, Row, Strictness, Verdict};
use crate::{
    record::{self, Basis, BetweenRuns, SampleUnit},
    report::text_table::{markdown, terminal, width, wrapped},
    text,
};

/// A column of the table of benchmarks.
struct Column {
    header: &'static str,
    text: fn(&Row) -> String,
    /// False for a column that appears only beside unchanged benchmarks.
    is_always_shown: bool,
}

const fn column(header: &'static str, text: fn(&Row) -> String) -> Column {
    Column { header, text, is_always_shown: true }
}

const COLUMNS: [Column; 10] = [
    column("benchmark", |row| row.id.clone()),
    column("A", |row| quantity(row.unit, row.a)),
    column("B", |row| quantity(row.unit, row.b)),
    column("change of", |row| match row.between_runs.map(|between| between.basis) {
        Some(Basis::Time) => "time".into(),
        Some(Basis::Bandwidth) => "time × bandwidth".into(),
        Some(Basis::Matrix) => "time × matrix rate".into(),
        None if row.unit == SampleUnit::Bytes => "memory".into(),
        None => "likelihood".into(),
    }),
    column("change %", |row| percent(row.ratio)),
    column("interval %", |row| format!("{} to {}", percent(row.low), percent(row.high))),
    column("p", |row| if row.p < 0.001 { "<0.001".into() } else { format!("{:.3}", row.p) }),
    Column { header: "verdict", text: |row| row.verdict.name().to_owned(), is_always_shown: false },
    column("peak memory", |row| row.memory_ratio.map_or("n/a".into(), change)),
    Column {
        header: "minimum detectable change",
        text: |row| row.minimum_detectable_change.map_or("n/a".into(), |share| change(1.0 + share)),
        is_always_shown: false,
    },
];

/// Rises of the peak memory that have a line of their own.
const MOST_RISES: usize = 10;

/// The form of the tables and paragraphs.
#[derive(Clone, Copy)]
enum Form {
    Terminal,
    Markdown,
}

impl Form {
    fn table(self, rows: &[Vec<String>], left: usize) -> String {
        match self {
            Self::Terminal => terminal(rows, left),
            Self::Markdown => markdown(rows, left),
        }
    }

    fn paragraph(self, text: &str) -> String {
        match self {
            Self::Terminal => wrapped(&text::line(text), width()).join("\n") + "\n",
            Self::Markdown => format!("{}\n", text::markdown(text)),
        }
    }

    fn item(self, text: &str) -> String {
        match self {
            Self::Terminal => format!("- {}\n", text::line(text)),
            Self::Markdown => format!("- {}\n", text::markdown(text)),
        }
    }
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::More => "more memory",
            Self::Less => "less memory",
            Self::Worse => "worse quality",
            Self::Better => "better quality",
            Self::Same => "no change",
            Self::Incomparable => "not comparable",
        }
    }
}

impl Row {
    /// Peak memory of `b` divided by that of `a`, if it changed by more than the noise.
    fn changed_memory(&self) -> Option<f64> {
        self.memory_ratio.filter(|ratio| (ratio - 1.0).abs() > MEMORY_NOISE)
    }
}

impl Comparison {
    /// The comparison for a terminal. Unchanged benchmarks are left out unless `all` is true.
    pub fn text(&self, all: bool) -> String {
        self.formed(Form::Terminal, all)
    }

    /// The same as Markdown.
    pub(crate) fn markdown(&self, all: bool) -> String {
        self.formed(Form::Markdown, all)
    }

    /// A comment for a pull request: the counts, what was removed, memory and the changes, and everything else folded away.
    pub fn github(&self) -> String {
        let mut text = format!("### candlepower: {}\n\n", self.counted());
        for line in self.doubts.iter().cloned().chain(self.one_sided()).chain(self.memory_lines()) {
            text.push_str(&Form::Markdown.item(&line));
        }
        let changed = self.rows(false);
        if !changed.is_empty() {
            let _ = write!(text, "\n{}", self.table(Form::Markdown, &changed, false));
        }
        let _ = write!(text, "\n<details><summary>All benchmarks</summary>\n\n{}\n</details>\n", self.markdown(true));
        text
    }

    /// The comparison as JSON.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("the comparison could not be written")
    }

    /// The counts in one line, for example `1 slower, 0 faster, 20 unchanged; memory: 1 more, 0 less; 2 removed, 0 added`.
    pub(crate) fn counted(&self) -> String {
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let unchanged = count(Verdict::Same);
        let mut text =
            format!("{} slower, {} faster, {unchanged} unchanged", count(Verdict::Slower), count(Verdict::Faster));
        let incomparable = count(Verdict::Incomparable);
        if incomparable > 0 {
            let _ = write!(text, ", {incomparable} not comparable");
        }
        let (worse, better) = (count(Verdict::Worse), count(Verdict::Better));
        if worse + better > 0 {
            let _ = write!(text, "; quality: {worse} worse, {better} better");
        }
        let memory: Vec<f64> = self.rows.iter().filter_map(Row::changed_memory).collect();
        if !memory.is_empty() {
            let more = memory.iter().filter(|ratio| **ratio > 1.0).count();
            let _ = write!(text, "; memory: {more} more, {} less", memory.len() - more);
        }
        if !(self.only_a.is_empty() && self.only_b.is_empty()) {
            let _ = write!(text, "; {} removed, {} added", self.only_a.len(), self.only_b.len());
        }
        text
    }

    /// The benchmarks that changed, or all, the worst first.
    pub(crate) fn rows(&self, all: bool) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| all || ![Verdict::Same, Verdict::Incomparable].contains(&row.verdict))
            .collect();
        rows.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
        rows
    }

    fn formed(&self, form: Form, all: bool) -> String {
        let side = |letter, name: &str, commit: &Option<String>| {
            let commit = commit.as_ref().map_or(String::new(), |commit| format!(", commit {commit}"));
            format!("{letter} is {name}{commit}.")
        };
        let mut text = self.doubts.iter().map(|doubts| form.paragraph(doubts)).collect::<String>();
        text.push_str(&form.paragraph(&side("A", &self.a, &self.a_commit)));
        text.push_str(&form.paragraph(&side("B", &self.b, &self.b_commit)));
        let _ = writeln!(text, "\n{}", form.table(&self.counts(), 1).trim_end());
        let lines: Vec<String> = self.one_sided().into_iter().chain(self.memory_lines()).collect();
        if !lines.is_empty() {
            text.push('\n');
        }
        lines.iter().for_each(|line| text.push_str(&form.item(line)));
        let rows = self.rows(all);
        if !rows.is_empty() {
            let _ = writeln!(text, "\n{}", self.table(form, &rows, all).trim_end());
        }
        let hidden = self.rows.len() - rows.len();
        if hidden > 0 {
            let or = if self.doubts.is_some() { " or not comparable" } else { "" };
            let _ = writeln!(
                text,
                "\nUnchanged{or} and left out: {}{}. --all shows them.",
                benchmarks(hidden),
                self.smallest_found()
            );
        }
        let _ = write!(text, "\n{}", form.paragraph(&self.explanation()));
        self.remarks.iter().for_each(|remark| text.push_str(&form.item(remark)));
        text
    }

    /// What would have been found in the unchanged times, in parentheses.
    fn smallest_found(&self) -> String {
        let unchanged = self.rows.iter().filter(|row| row.unit == SampleUnit::Ms && row.verdict == Verdict::Same);
        let mut found: Vec<f64> = unchanged.filter_map(|row| row.minimum_detectable_change).collect();
        found.sort_unstable_by(f64::total_cmp);
        match found.as_slice() {
            [] => String::new(),
            [only] => format!(" (a change of {:.0} % would have been found in nine of ten cases)", only * 100.0),
            [least, .., most] => format!(
                " (changes of {:.0} to {:.0} % would have been found in nine of ten cases)",
                least * 100.0,
                most * 100.0
            ),
        }
    }

    fn table(&self, form: Form, rows: &[&Row], all: bool) -> String {
        let columns: Vec<&Column> = COLUMNS.iter().filter(|column| all || column.is_always_shown).collect();
        let header = columns.iter().map(|column| column.header.to_owned()).collect();
        let cells = rows.iter().map(|row| columns.iter().map(|column| (column.text)(row)).collect());
        form.table(&[header].into_iter().chain(cells).collect::<Vec<_>>(), 1)
    }

    /// Number of benchmarks for each verdict, the geometric mean of their ratios, and their range.
    fn counts(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["verdict", "benchmarks", "mean change", "range"].map(str::to_owned).to_vec()];
        let mut add = |name: &str, ratios: &[f64]| {
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
            let (low, high) = ratios.iter().fold((f64::INFINITY, 0.0f64), |(l, h), r| (l.min(*r), h.max(*r)));
            let (mean, range) = match ratios.is_empty() {
                true => (String::new(), String::new()),
                false => (change(mean), format!("{} to {}", change(low), change(high))),
            };
            rows.push(vec![name.to_owned(), ratios.len().to_string(), mean, range]);
        };
        let of = |verdict| -> Vec<f64> {
            self.rows.iter().filter(|row| row.verdict == verdict).map(|row| row.ratio).collect()
        };
        for (verdict, is_always_shown) in [
            (Verdict::Slower, true),
            (Verdict::Faster, true),
            (Verdict::More, false),
            (Verdict::Less, false),
            (Verdict::Worse, false),
            (Verdict::Better, false),
            (Verdict::Same, true),
            (Verdict::Incomparable, false),
        ] {
            let ratios = of(verdict);
            if is_always_shown || !ratios.is_empty() {
                add(verdict.name(), &ratios);
            }
        }
        for (name, ids) in [("only in A", &self.only_a), ("only in B", &self.only_b)] {
            if !ids.is_empty() {
                rows.push(vec![name.to_owned(), ids.len().to_string(), String::new(), String::new()]);
            }
        }
        rows
    }

    /// Benchmarks that only one side has. A group with several of them has one line, because a full run compared with one
    /// group would otherwise fill a hundred lines.
    fn one_sided(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (ids, name, what) in [(&self.only_a, &self.a, "removed"), (&self.only_b, &self.b, "added")] {
            let mut groups: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
            for id in ids {
                groups.entry(record::group(id)).or_default().push(id);
            }
            lines.extend(groups.into_iter().map(|(group, ids)| match ids.as_slice() {
                [id] => format!("{what}: {id} is only in {name}"),
                ids => format!("{what}: {} benchmarks of {group} are only in {name}", ids.len()),
            }));
        }
        lines
    }

    /// Rises of the peak memory, the largest first, and the number of falls.
    fn memory_lines(&self) -> Vec<String> {
        let changed = self.rows.iter().filter_map(|row| Some((row.changed_memory()?, row.id.as_str())));
        let (mut rises, falls): (Vec<(f64, &str)>, Vec<_>) = changed.partition(|(ratio, _)| *ratio > 1.0);
        rises.sort_by(|a, b| b.0.total_cmp(&a.0));
        let shown = rises.iter().take(MOST_RISES);
        let mut lines: Vec<String> = shown.map(|(ratio, id)| format!("{id}: peak memory {}", change(*ratio))).collect();
        if rises.len() > MOST_RISES {
            lines.push(format!("{} more benchmarks: higher peak memory", rises.len() - MOST_RISES));
        }
        if !falls.is_empty() {
            lines.push(format!("{}: lower peak memory", benchmarks(falls.len())));
        }
        lines
    }

    fn explanation(&self) -> String {
        let groups: Vec<_> = self.groups.iter().map(|(group, ratio)| format!("{group} {}", change(*ratio))).collect();
        let Strictness { noise, level } = self.strictness;
        format!(
            "Geometric means: {}. The change is that of the median time, of peak memory in benchmarks of memory, or of the mean \
             negative log-likelihood in benchmarks of quality. p is corrected for {} benchmarks. Changes of up to {:.0} % of \
             time, {:.1} % of memory and {} % of likelihood count as noise. One comparison in {:.0} of two runs of the same code may find a \
             change. {} The minimum detectable change is found in nine of ten comparisons.",
            groups.join(", "),
            self.rows.len(),
            noise * 100.0,
            MEMORY_NOISE * 100.0,
            QUALITY_NOISE * 100.0,
            1.0 / level,
            self.spread()
        )
    }

    /// Where the intervals of the times come from.
    fn spread(&self) -> String {
        let between: Vec<BetweenRuns> = self.rows.iter().filter_map(|row| row.between_runs).collect();
        let of_machine = between.iter().filter(|between| between.is_of_machine()).count();
        let assumed = between.len() - of_machine;
        let mut text = "Times are compared in the form that varies least between runs.".to_owned();
        if of_machine > 0 {
            let _ = write!(
                text,
                " How much it varies comes from this machine's earlier runs of {}.",
                benchmarks(of_machine)
            );
        }
        if assumed > 0 {
            let _ = write!(
                text,
                " For {}, a typical spread is assumed: after {} undisturbed runs, their own counts too.",
                benchmarks(assumed),
                BetweenRuns::ENOUGH_RUNS
            );
        }
        text
    }
}

/// The change of a ratio in percent. A change that rounds to zero has no sign.
pub fn change(ratio: f64) -> String {
    percent(ratio) + " %"
}

/// The number of [`change`].
fn percent(ratio: f64) -> String {
    // Of a value of 0, there is no share.
    if ratio > 1e12 {
        return "n/a".into();
    }
    let text = format!("{:+.1}", (ratio - 1.0) * 100.0);
    if ["+0.0", "-0.0"].contains(&text.as_str()) { "0.0".into() } else { text }
}

fn benchmarks(count: usize) -> String {
    if count == 1 { "1 benchmark".into() } else { format!("{count} benchmarks") }
}

/// A median with its unit.
pub fn quantity(unit: SampleUnit, value: f64) -> String {
    match unit {
        SampleUnit::Bytes => format!("{:.1} MB", value / 1e6),
        SampleUnit::Ms if value >= 100.0 => format!("{value:.0} ms"),
        SampleUnit::Ms => format!("{value:.2} ms"),
        SampleUnit::Nats => format!("{value:.4} nats"),
    }
}
