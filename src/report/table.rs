//! Markdown tables, aligned so that they read well in a terminal too.

use std::fmt::Write;

use crate::record::{Measures, Record, Status};

/// The table of the generation log: a row a benchmark, and below it what must be known of the figures.
pub fn generation(records: &[Record]) -> String {
    let (rows, notes) = generation_rows(records.iter());
    let mut text = markdown(&rows, 3);
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// The same as cells, head first, and the notes.
pub fn generation_rows<'a>(records: impl Iterator<Item = &'a Record>) -> (Vec<Vec<String>>, Vec<String>) {
    const HEAD: [&str; 12] = [
        "scenario",
        "model",
        "variant",
        "tok/s",
        "decode tok/s",
        "ITL P50 ms",
        "ITL P95 ms",
        "TTFT ms",
        "MBU",
        "MFU",
        "cache MB",
        "peak MB",
    ];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let mut marks: Vec<String> = Vec::new();
    let mut is_synthetic = false;
    for record in records {
        let (Some(Measures::Generation(measures)), Status::Measured) = (&record.measures, record.status) else {
            continue;
        };
        is_synthetic |= record.subject.synthetic_weights;
        let mut mark = String::new();
        let doubts = record.conditions.iter().flat_map(|conditions| &conditions.doubts);
        for note in record.deviates.iter().map(|why| format!("deviates: {why}")).chain(doubts.cloned()) {
            let number = marks.iter().position(|known| *known == note).unwrap_or_else(|| {
                marks.push(note);
                marks.len() - 1
            });
            let _ = write!(mark, " [{}]", number + 1);
        }
        let variant = record.id.rsplit('/').next().unwrap_or_default();
        rows.push(vec![
            record.scenario.clone(),
            format!("{}{mark}", record.subject.model),
            variant.to_owned(),
            number(Some(measures.tokens_per_s)),
            number(measures.decode_tokens_per_s),
            number(measures.itl_p50_ms),
            number(measures.itl_p95_ms),
            number(Some(measures.ttft_ms)),
            percent(measures.mbu),
            percent(measures.mfu),
            number(Some(measures.cache_used_bytes as f64 / 1e6)),
            number(measures.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
        ]);
    }
    let mut notes: Vec<_> = marks.iter().enumerate().map(|(number, mark)| format!("[{}] {mark}", number + 1)).collect();
    if is_synthetic {
        notes.insert(0, "Weights are synthetic: seeded, not trained.".into());
    }
    (rows, notes)
}

/// A table whose first row is its head; the first `left` columns are set to the left, the others to the right.
pub fn markdown(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column < left { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let _ = if column < left { write!(text, "|{dashes}-") } else { write!(text, "|{dashes}:") };
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three digits, which is what the figures are worth.
pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => "n/a".into(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("n/a".into(), |share| format!("{:.0} %", share * 100.0))
}
