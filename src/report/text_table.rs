//! Tables of text: aligned Markdown for documents, and columns for a terminal.

use std::fmt::Write;

use crate::{output, text};

/// Columns of output that goes to no terminal.
const TERMINAL_WIDTH: usize = 120;

/// Columns into which every table of [`terminal`] and every paragraph fits: those of the terminal.
pub(crate) fn width() -> usize {
    output::columns().map_or(TERMINAL_WIDTH, |columns| columns.clamp(60, 250))
}

/// Spaces between the columns of a table for a terminal.
const GAP: usize = 2;

/// An aligned Markdown table. The first row is the header. The first `left` columns are left-aligned, the others
/// right-aligned.
pub(crate) fn markdown(rows: &[Vec<String>], left: usize) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| text::markdown(cell)).collect()).collect();
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

/// The part of the width that a first column keeps when it is narrowed.
const LEAST_NAME: usize = 3;

/// A table for a terminal: the words of a header stand above each other, so that its column is as wide as its cells. Where the
/// columns do not fit into the width of a terminal, long names of the first column get a line of their own. If that is not enough,
/// columns are left out from the right, and a last line names them. A table of words alone loses none: the words of its last column
/// take several lines.
pub fn terminal(rows: &[Vec<String>], left: usize) -> String {
    let Some(header) = rows.first() else { return String::new() };
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| text::line(cell)).collect()).collect();
    let count = |text: &str| text.chars().count();
    let rows = if left < header.len() { rows } else { with_wrapped_words(rows) };
    let width = |column: usize| {
        let cells = rows[1..].iter().map(|row| count(&row[column]));
        let words = rows[0][column].split(' ').map(count);
        cells.chain(words).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..header.len()).map(width).collect();
    let others = widths[1..].iter().map(|width| GAP + width).sum::<usize>();
    let most = self::width();
    let narrowed = most.saturating_sub(others);
    if narrowed >= most / LEAST_NAME {
        widths[0] = widths[0].min(narrowed);
    }
    let is_within = |shown: &usize| widths[..*shown].iter().sum::<usize>() + GAP * (shown - 1) <= most;
    let shown = (left.max(1)..=header.len()).rev().find(is_within).unwrap_or(left.max(1)).min(header.len());

    let headers: Vec<Vec<String>> = (0..shown).map(|column| wrapped(&rows[0][column], widths[column])).collect();
    let height = headers.iter().map(Vec::len).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let (width, gap) = (widths[column], if column == 0 { 0 } else { GAP });
            let _ = match column < left {
                true => write!(line, "{:gap$}{cell:<width$}", ""),
                false => write!(line, "{:gap$}{cell:>width$}", ""),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    for number in 0..height {
        let part = |lines: &Vec<String>| {
            // The last words of all headers stand directly above the cells.
            let above = height - lines.len();
            number.checked_sub(above).map_or(String::new(), |place| lines[place].clone())
        };
        let parts: Vec<String> = headers.iter().map(part).collect();
        line(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let rules: Vec<String> = widths[..shown].iter().map(|width| "─".repeat(*width)).collect();
    line(&rules.iter().map(String::as_str).collect::<Vec<_>>());
    for row in &rows[1..] {
        let mut cells: Vec<&str> = row[..shown].iter().map(String::as_str).collect();
        if count(cells[0]) > widths[0] {
            line(&cells[..1]);
            cells[0] = "";
        }
        line(&cells);
    }
    if shown < header.len() {
        let _ = writeln!(text, "Left out at this width: {}.", rows[0][shown..].join(", "));
    }
    text
}

/// The rows with the last column as narrow as the width of the terminal needs, but for very narrow ones. The lines of a cell become
/// rows.
fn with_wrapped_words(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let last = rows[0].len() - 1;
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let others: usize = (0..last).map(|column| widest(column) + GAP).sum();
    let room = width().saturating_sub(others).max(width() / LEAST_NAME);
    let lines = |row: &Vec<String>| {
        let line = |(number, line): (usize, String)| {
            let mut cells = if number == 0 { row.clone() } else { vec![String::new(); row.len()] };
            cells[last] = line;
            cells
        };
        wrapped(&row[last], room).into_iter().enumerate().map(line).collect::<Vec<_>>()
    };
    rows.iter().flat_map(lines).collect()
}

/// The words of a text in lines of at most `width` characters. A longer word has a line of its own.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The last `width` values as bars of eight heights, from the smallest to the largest.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let last = &values[values.len().saturating_sub(width)..];
    let (low, high) = last.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let bar = |value: &f64| {
        let share = if high > low { (value - low) / (high - low) } else { 0.5 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    last.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&[&str]]) -> Vec<Vec<String>> {
        texts.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn headers_stand_above_their_columns() {
        let table =
            rows(&[&["model", "decode tok/s", "TTFT ms"], &["llama-mini", "106", "137"], &["a", "9.1", "1125"]]);
        let expected = "            decode  TTFT\n\
                        model        tok/s    ms\n\
                        ──────────  ──────  ────\n\
                        llama-mini     106   137\n\
                        a              9.1  1125\n";
        assert_eq!(terminal(&table, 1), expected);
    }

    #[test]
    fn columns_that_do_not_fit_are_named() {
        let wide = "x".repeat(60);
        let text = terminal(&rows(&[&["model", "a", "b", "c"], &[&wide[..30], &wide, &wide[..30], "1"]]), 1);
        assert!(text.lines().all(|line| line.chars().count() <= TERMINAL_WIDTH), "{text}");
        assert!(text.ends_with("Left out at this width: b, c.\n"), "{text}");
    }

    #[test]
    fn a_long_name_has_a_line_of_its_own() {
        let long = "x".repeat(90);
        let text = terminal(&rows(&[&["benchmark", "a", "b"], &[&long, &long[..30], "1"], &["short", "2", "3"]]), 1);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= TERMINAL_WIDTH), "{text}");
        assert_eq!((lines.len(), lines[2]), (5, long.as_str()));
        assert!(lines[3].starts_with("  ") && lines[3].ends_with("  1") && lines[4].starts_with("short "), "{text}");
    }

    #[test]
    fn text_from_outside_can_not_move_the_cursor() {
        assert!(!terminal(&rows(&[&["model"], &["a\u{1b}[2J"]]), 1).contains('\u{1b}'));
    }
}
