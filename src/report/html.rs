//! The HTML page of a report: one file that works from disk and loads nothing else.

use std::fmt::Write;

use super::{
    joined::Joined,
    plot::Plot,
    table::{self, Table},
};
use crate::text::xml as escaped;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page. `criterion` is a link to Criterion's own report, if it exists.
pub fn page(title: &str, joined: &Joined, plots: &[Plot], criterion: Option<&str>) -> String {
    let mut body = String::new();
    let _ = writeln!(body, "<h1>{}</h1>", escaped(title));
    if let Some(row) = joined.rows.first() {
        let (machine, software) = (&row.record.machine, &row.record.software);
        let commit = software.commit.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            body,
            "<p>{} · {} threads · candle {} · {} · commit <code>{}</code></p>",
            escaped(machine.gpu.as_ref().map_or(&machine.cpu, |gpu| &gpu.name)),
            machine.threads,
            escaped(&software.candle),
            escaped(&software.rustc),
            escaped(commit)
        );
    }
    if let Some(criterion) = criterion {
        let _ = writeln!(body, "<p><a href=\"{}\">Criterion's report</a></p>", escaped(criterion));
    }
    for table in table::tables(joined.rows.iter().map(|row| &row.record)) {
        let _ = writeln!(body, "<h2>{}</h2>", escaped(table.title));
        body.push_str(&element(&table));
        for note in &table.notes {
            let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(note));
        }
    }
    let mut list = |heading: &str, items: &[String]| {
        if !items.is_empty() {
            let _ = writeln!(body, "<h2>{heading}</h2><ul>");
            for item in items {
                let _ = writeln!(body, "<li>{}</li>", escaped(item));
            }
            body.push_str("</ul>\n");
        }
    };
    list("Missing, unreadable or left out", &joined.problems);
    for plot in plots {
        let _ = writeln!(body, "<figure><figcaption>{}</figcaption>{}</figure>", escaped(plot.title), plot.svg);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title>\n<style>\n{STYLE}</style></head>\n<body>\n{body}<script>\n{SCRIPT}</script></body></html>\n",
        escaped(title)
    )
}

fn element(table: &Table) -> String {
    let mut text = String::from("<div class=\"wide\"><table>\n");
    for (index, row) in table.rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        if index < 2 {
            text.push_str(if index == 0 { "<thead>" } else { "</thead><tbody>" });
        }
        text.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let class = if column < table.words { " class=\"word\"" } else { "" };
            let _ = write!(text, "<{tag}{class}>{}</{tag}>", escaped(cell));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    text
}
