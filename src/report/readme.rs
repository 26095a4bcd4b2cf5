//! The report as Markdown: the first screen, and each table with its plots.

use std::fmt::Write;

use super::{
    joined::Joined, plot::Plot, summary::Summary, table::Table, text_table::markdown, trained::Trained,
    write::TRAININGS,
};
use crate::text;

/// Characters of a full bar.
const BAR: usize = 10;

/// The text of `README.md`. The plots are files beside it.
pub fn readme(title: &str, joined: &Joined, trained: &[Trained], plots: &[Plot], tables: &[Table]) -> String {
    let mut text = format!("# {}\n\n", text::markdown(title));
    if let Some(row) = joined.rows.first() {
        let (machine, software) = (&row.record.machine, &row.record.software);
        let _ = writeln!(
            text,
            "{}, {} threads, {}; candle {}, {}, commit {}, run `{}`.\n",
            text::markdown(machine.gpu.as_ref().map_or(&machine.cpu, |gpu| &gpu.name)),
            machine.threads,
            text::markdown(&machine.os),
            text::markdown(&software.candle),
            text::markdown(&software.rustc),
            text::markdown(software.commit.as_deref().unwrap_or("unknown")),
            text::markdown(&row.record.run)
        );
    }
    if joined.rows.is_empty() {
        text.push_str(
            "`candlepower report` made this report. [`index.html`](index.html) has the same tables, sortable.\n\n",
        );
    } else {
        first_screen(&mut text, &Summary::new(joined.rows.iter().map(|row| &row.record)));
        text.push_str(
            "`cargo bench` and `candlepower report` made this report. The settings are in `environment.yaml`, and the results in \
             [`results.csv`](results.csv). [`index.html`](index.html) has the same tables, sortable.\n\n",
        );
    }
    trainings(&mut text, trained);
    for (number, table) in tables.iter().enumerate() {
        let _ = write!(text, "## {}\n\n{}\n", text::markdown(&table.heading()), table.markdown());
        // Tables of one family share their plots, which follow the first.
        if tables.iter().position(|other| other.key == table.key) == Some(number) {
            for plot in plots.iter().filter(|plot| plot.beside == Some(table.key)) {
                let _ = writeln!(text, "![{}]({})\n", plot.title, plot.file);
            }
        }
    }
    for section in &joined.sections {
        let _ = write!(text, "## {}\n\n{}\n", section.heading, markdown(&section.rows, 3));
        let _ = writeln!(text, "![{}]({})\n", section.plot.title, section.plot.file);
    }
    let medians: Vec<Vec<String>> = joined
        .rows
        .iter()
        .filter_map(|row| {
            let estimate = row.criterion?;
            let ms = |ns: f64| format!("{:.3}", ns / 1e6);
            Some(vec![row.record.id.clone(), ms(estimate.median_ns), ms(estimate.low_ns), ms(estimate.high_ns)])
        })
        .collect();
    if !medians.is_empty() {
        let head = ["benchmark", "median ms", "95 % from", "to"].map(str::to_owned).to_vec();
        text.push_str("## Criterion's medians\n\n");
        text.push_str(&markdown(&[vec![head], medians].concat(), 1));
    }
    if !joined.problems.is_empty() {
        text.push_str("\n## Missing, unreadable or left out\n\n");
        for problem in &joined.problems {
            let _ = writeln!(text, "- {}", text::markdown(problem));
        }
    }
    text
}

/// A table and the loss curves of each folder of trainings.
fn trainings(text: &mut String, trained: &[Trained]) {
    for one in trained {
        let name = text::markdown(one.name.as_str());
        let _ = writeln!(text, "## Training {name}\n");
        if let Some(machine) = &one.machine {
            let cpu = text::markdown(machine.gpu.as_ref().map_or(&machine.cpu, |gpu| &gpu.name));
            let _ = writeln!(text, "On {cpu}, {} threads. The files are in `{TRAININGS}/{name}`.\n", machine.threads);
        }
        let _ = writeln!(text, "{}", markdown(&one.rows, 4));
        for curve in one.curves() {
            let path: Vec<_> = curve.iter().map(|part| text::url(&part.to_string_lossy())).collect();
            let _ = writeln!(text, "![Loss]({TRAININGS}/{}/{})\n", text::url(one.name.as_str()), path.join("/"));
        }
    }
}

/// The limits of the machine, the counts, and one row for each model and engine.
fn first_screen(text: &mut String, summary: &Summary) {
    let limits: Vec<String> = summary.limits().iter().map(|(name, value)| format!("{name} {value}")).collect();
    if !limits.is_empty() {
        let _ = writeln!(text, "Limits measured in the process: {}.\n", text::markdown(&limits.join(", ")));
    }
    let counts: Vec<String> = summary.counts().iter().map(|(name, count)| format!("{count} {name}")).collect();
    let _ = writeln!(text, "Benchmarks: {}.\n", counts.join(", "));
    let Some((scenario, cards)) = summary.cards() else { return };
    let figures =
        cards.iter().flat_map(|card| &card.engines).map(|engine| &engine.figures).max_by_key(|figures| figures.len());
    let names: Vec<&str> = figures.map_or(Vec::new(), |figures| figures.iter().map(|(name, _)| *name).collect());
    let header = ["model", "engine"].into_iter().chain(names.iter().copied()).chain(["share of the memory bandwidth"]);
    let mut rows = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    for card in &cards {
        for engine in &card.engines {
            let value = |name: &&str| {
                let found = engine.figures.iter().find(|(known, _)| known == name);
                found.map_or("n/a".to_owned(), |(_, value)| value.clone())
            };
            let names = names.iter().map(value);
            let cells = [card.model.clone(), engine.name.clone()].into_iter().chain(names);
            rows.push(
                cells
                    .chain([match engine.mbu {
                        None => "n/a".to_owned(),
                        Some(Ok(share)) => bar(share),
                        Some(Err(why)) => format!("unreliable: {why}"),
                    }])
                    .collect(),
            );
        }
    }
    let _ = write!(text, "## {}\n\n{}\n", text::markdown(scenario), markdown(&rows, 2));
}

/// A share as a bar of [`BAR`] characters and in percent.
fn bar(share: f64) -> String {
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("{}{} {:3.0} %", "█".repeat(full), "░".repeat(BAR - full), share * 100.0)
}
