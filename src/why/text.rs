//! An explanation on one screen: what it means in words, and a table for each phase.

use std::fmt;

use super::{Explanation, OTHER, Part, Phase};

use crate::{
    generate::{MODEL, PREFILL},
    record::MeasureUnit,
    report::{
        is_possible, left_to_gain,
        table::{number, quantity},
        text_table::{terminal, width, wrapped},
    },
};

/// A part below this share of the time is in the row of the rest.
const LEAST_SHARE: f64 = 0.005;

/// Longest list of the names of small parts, in bytes.
const LONGEST_NAME: usize = 30;

/// A share of the time in no span of the model from which on the parts say little.
const MOSTLY: f64 = 0.5;

/// Mapped pages in a pass from which on they are named: some 50 µs of the kernel's time.
const MANY_PAGES: f64 = 200.0;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.phases.iter().flat_map(Phase::findings) {
            writeln!(f, "{}", wrapped(&line, width()).join("\n"))?;
        }
        for phase in &self.phases {
            let of = match (phase.name.as_str(), self.prompt_tokens, self.new_tokens) {
                (PREFILL, Some(tokens), _) => format!("{tokens} tokens"),
                (_, _, Some(tokens)) => format!("the mean of {} steps", tokens.saturating_sub(1)),
                _ => format!("the mean of {} steps", phase.passes),
            };
            write!(f, "\n{}: {} ms, {of}\n\n{}", phase.name, number(Some(phase.ms)), terminal(&phase.rows(), 1))?;
        }
        let limits = format!(
            "\nLimits: {:.1} GB/s and {:.0} GFLOP/s. Tracing took {:.1} % of the time.",
            self.read_bytes_per_s / 1e9,
            self.matrix_flops_per_s / 1e9,
            self.tracing_cost * 100.0
        );
        writeln!(f, "{limits}")
    }
}

impl Explanation {
    /// The parts of this explanation beside those of another one with a name, the largest difference first.
    #[cfg(feature = "cli")]
    pub(crate) fn beside(&self, other: &Self, name: &str) -> String {
        use std::{collections::BTreeMap, fmt::Write as _};

        /// The row of all small parts.
        const SMALLER: &str = "(smaller)";
        let ratio =
            |own: f64, other: f64| if own > 0.0 && other > 0.0 { format!("{:.2}", own / other) } else { String::new() };
        let mut text = String::new();
        for phase in &self.phases {
            let Some(of_other) = other.phases.iter().find(|of_other| of_other.name == phase.name) else { continue };
            let mut parts: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
            for (place, phase) in [phase, of_other].into_iter().enumerate() {
                for part in &phase.parts {
                    let name = if part.share < LEAST_SHARE { SMALLER } else { part.name.as_str() };
                    parts.entry(name).or_default()[place] += part.ms;
                }
            }
            let mut parts: Vec<_> = parts.into_iter().collect();
            parts.sort_by(|(_, [a, b]), (_, [c, d])| (c - d).abs().total_cmp(&(a - b).abs()));
            let mut rows = vec![["part", "ms", "ms there", "of there"].map(str::to_owned).to_vec()];
            let all = [("whole pass", [phase.ms, of_other.ms])];
            rows.extend(parts.into_iter().chain(all).map(|(name, [own, other])| {
                let shown = |ms: f64| if ms > 0.0 { number(Some(ms)) } else { String::new() };
                vec![name.to_owned(), shown(own), shown(other), ratio(own, other)]
            }));
            let _ = write!(text, "\n{} beside {name}\n\n{}", phase.name, terminal(&rows, 1));
        }
        text
    }

    /// Returns whether the kernel maps many pages in a phase.
    #[cfg(feature = "cli")]
    pub(crate) fn maps_many_pages(&self) -> bool {
        self.phases.iter().any(|phase| phase.page_faults.is_some_and(|pages| pages >= MANY_PAGES))
    }
}

impl Phase {
    /// The limit of the phase, the part that takes most of the time, and other causes of time.
    pub(crate) fn findings(&self) -> Vec<String> {
        let reached = self.bound_ms / self.ms;
        let limit = match self.is_bound_by_memory {
            true => format!("the bandwidth, for {} MB", number(Some(self.bytes as f64 / 1e6))),
            false => format!("the matrix rate, for {} GFLOP", number(Some(self.flops as f64 / 1e9))),
        };
        let name = &self.name;
        let mut findings = vec![match is_possible(reached) {
            true => format!("{name} is at {:.0} % of {limit}: {}.", reached.min(1.0) * 100.0, left_to_gain(reached)),
            false => format!(
                "{name} takes less time than {limit} allows, because products of narrower numbers or data in caches are faster: its bound \
                 is not known."
            ),
        }];
        if let Some(largest) = self.parts.first().filter(|part| part.name != MODEL) {
            let of_bound = largest
                .of_bound()
                .filter(|share| is_possible(*share))
                .map_or(String::new(), |share| format!(", at {:.0} % of its bound", share.min(1.0) * 100.0));
            findings.push(format!(
                "{name}: {} takes {:.0} % of the time{of_bound}.",
                largest.name,
                largest.share * 100.0
            ));
        }
        // The part that loses most time beside its bound, if that is another one.
        let loss = |part: &&Part| part.ms - part.bound_ms.unwrap_or(0.0);
        if let Some(most) = self.parts.iter().max_by(|a, b| loss(a).total_cmp(&loss(b)))
            && self.parts.first().is_some_and(|largest| largest.name != most.name)
        {
            findings.push(format!(
                "{name}: {} loses most: {} ms beyond its bound.",
                most.name,
                number(Some(loss(&most)))
            ));
        }
        let model = self.parts.iter().find(|part| part.name == MODEL).filter(|part| part.share > MOSTLY);
        if let Some(model) = model {
            findings.push(format!(
                "{name}: {:.0} % of the time is in the model outside of its spans: it opens few or none.",
                model.share * 100.0
            ));
        }
        if let Some(pages) = self.page_faults.filter(|pages| *pages >= MANY_PAGES) {
            findings.push(format!(
                "{name}: the kernel maps {pages:.0} pages in each pass, because the allocator had given them back."
            ));
        }
        findings
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let headers = ["part", "ms", "share", "MB", "GFLOP", "bound ms", "of bound", "kernel", "calls", "allocations"];
        let mut rows = vec![headers.map(str::to_owned).to_vec()];
        let percent = |share: f64| quantity(share, MeasureUnit::OfLimit);
        let some = |value: Option<f64>, unit: f64| value.map_or(String::new(), |value| number(Some(value / unit)));
        let row = |part: &Part| {
            vec![
                part.name.clone(),
                number(Some(part.ms)),
                format!("{:.1} %", part.share * 100.0),
                some(part.bytes, 1e6),
                some(part.flops, 1e9),
                some(part.bound_ms, 1.0),
                part.of_bound().map_or(String::new(), percent),
                part.kernels.join(", "),
                format!("{:.0}", part.calls),
                part.allocations.map_or(String::new(), |count| format!("{count:.0}")),
            ]
        };
        let (shown, small): (Vec<&Part>, Vec<&Part>) =
            self.parts.iter().partition(|part| part.share >= LEAST_SHARE || part.name == OTHER);
        rows.extend(shown.into_iter().map(row));
        if !small.is_empty() {
            let (ms, share): (f64, f64) =
                small.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.ms, sum.1 + part.share));
            let names: Vec<&str> = small.iter().map(|part| part.name.as_str()).collect();
            let name = match names.join(", ") {
                long if long.len() > LONGEST_NAME => format!("{} smaller parts", names.len()),
                short => short,
            };
            let mut rest = vec![String::new(); headers.len()];
            (rest[0], rest[1], rest[2]) = (name, number(Some(ms)), format!("{:.1} %", share * 100.0));
            rows.push(rest);
        }
        let total = |of: fn(&Part) -> Option<f64>| self.parts.iter().filter_map(of).reduce(|a, b| a + b);
        rows.push(vec![
            "whole pass".into(),
            number(Some(self.ms)),
            "100 %".into(),
            some(Some(self.bytes as f64).filter(|bytes| *bytes > 0.0), 1e6),
            number(Some(self.flops as f64 / 1e9)),
            number(Some(self.bound_ms)),
            percent(self.bound_ms / self.ms),
            String::new(),
            String::new(),
            total(|part| part.allocations).map_or(String::new(), |count| format!("{count:.0}")),
        ]);
        // Columns that no part fills say nothing.
        let is_empty = |column: usize| rows[1..rows.len() - 1].iter().all(|row| row[column].is_empty());
        let kept: Vec<usize> = (0..headers.len()).filter(|column| !is_empty(*column)).collect();
        rows.iter().map(|row| kept.iter().map(|column| row[*column].clone()).collect()).collect()
    }
}

impl Part {
    pub(super) fn of_bound(&self) -> Option<f64> {
        Some(self.bound_ms? / self.ms)
    }
}
