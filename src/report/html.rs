//! The HTML page of a report: one file that works from disk and loads nothing else. It links to the data files beside it.

use std::fmt::Write;

use super::{
    joined::Joined,
    plot::Plot,
    summary::{Card, DISTURBED, Summary},
    table::Table,
    trained::Trained,
    write::TRAININGS,
};
use crate::{
    scenario::GENERATION,
    text::{self, xml as escaped},
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// More notes than this below a table are folded.
const MOST_NOTES: usize = 3;

/// The page. `files` are the names of the data files beside it.
pub fn page(
    title: &str,
    joined: &Joined,
    trained: &[Trained],
    plots: &[Plot],
    tables: &[Table],
    files: &[&str],
) -> String {
    let mut body = String::new();
    let _ = writeln!(body, "<main>\n<h1>{}</h1>", escaped(title));
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
    if !joined.rows.is_empty() {
        // The note below this table says what disturbed its rows.
        let disturbed = tables.iter().position(|table| table.notes.iter().any(|note| note.starts_with('!')));
        first_screen(&mut body, &Summary::new(joined.rows.iter().map(|row| &row.record)), disturbed);
    }

    let links = tables.iter().enumerate().map(|(number, table)| {
        let is_only = tables.iter().filter(|other| other.key == table.key).count() == 1;
        let scenario = table.scenario.as_ref().filter(|_| !is_only);
        (format!("#table-{number}"), scenario.map_or(table.title, String::as_str).to_owned())
    });
    let folders =
        trained.iter().map(|one| (format!("{TRAININGS}/{}", text::url(one.name.as_str())), one.name.to_string()));
    let files = files.iter().map(|file| ((*file).to_owned(), (*file).to_owned())).chain(folders);
    for (label, links) in [("Tables", links.collect::<Vec<_>>()), ("Data", files.collect())] {
        let links: Vec<String> =
            links.iter().map(|(to, text)| format!("<a href=\"{}\">{}</a>", escaped(to), escaped(text))).collect();
        let _ = writeln!(body, "<nav aria-label=\"{label}\">{label}: {}</nav>", links.join(" · "));
    }
    for (number, table) in tables.iter().enumerate() {
        let heading = escaped(&table.heading());
        let _ = writeln!(body, "<section id=\"table-{number}\">\n<h2>{heading}</h2>");
        // Tables of one family share their plots, which stand beside the first.
        let is_first = tables.iter().position(|other| other.key == table.key) == Some(number);
        let own: Vec<&Plot> = plots.iter().filter(|plot| is_first && plot.beside == Some(table.key)).collect();
        figures(&mut body, &own);
        element(&mut body, &table.rows, table.words, &heading);
        let is_folded = table.notes.len() > MOST_NOTES;
        if is_folded {
            let _ = writeln!(body, "<details><summary>{} notes</summary>", table.notes.len());
        }
        for note in &table.notes {
            let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(note));
        }
        if is_folded {
            body.push_str("</details>\n");
        }
        body.push_str("</section>\n");
    }
    for section in &joined.sections {
        let _ = writeln!(body, "<section>\n<h2>{}</h2>", escaped(section.heading));
        figures(&mut body, &[&section.plot]);
        element(&mut body, &section.rows, 3, section.heading);
        body.push_str("</section>\n");
    }
    for one in trained {
        let heading = format!("Training {}", escaped(one.name.as_str()));
        let _ = writeln!(body, "<section>\n<h2>{heading}</h2>");
        element(&mut body, &one.rows, 4, &heading);
        body.push_str("</section>\n");
    }
    if !joined.problems.is_empty() {
        body.push_str("<h2>Missing, unreadable or left out</h2><ul>\n");
        for problem in &joined.problems {
            let _ = writeln!(body, "<li>{}</li>", escaped(problem));
        }
        body.push_str("</ul>\n");
    }
    body.push_str("</main>\n");
    document(title, &body)
}

/// Forbids the browser to load anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// A whole document with the style and the script of reports.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title>\n<style>\n{STYLE}</style></head>\n<body>\n{body}<script>\n{SCRIPT}</script></body></html>\n",
        escaped(title)
    )
}

/// The limits of the machine, the counts, and one card per model. `disturbed` is the number of the first table with a disturbed row.
fn first_screen(body: &mut String, summary: &Summary, disturbed: Option<usize>) {
    body.push_str("<dl class=\"tiles\">\n");
    for (name, value) in summary.limits() {
        let _ = writeln!(body, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(&value));
    }
    for (name, count) in summary.counts() {
        let _ = match disturbed.filter(|_| name == DISTURBED) {
            Some(table) => writeln!(
                body,
                "<div class=\"doubt\"><dt>{name}</dt><dd><a href=\"#table-{table}\">{count}</a></dd></div>"
            ),
            None => writeln!(body, "<div><dt>{name}</dt><dd>{count}</dd></div>"),
        };
    }
    body.push_str("</dl>\n");
    let verdicts = summary.verdicts();
    if !verdicts.is_empty() {
        let items: String = verdicts.iter().map(|verdict| format!("<li>{}</li>\n", escaped(verdict))).collect();
        let _ = writeln!(body, "<ul class=\"verdicts\">\n{items}</ul>");
    }
    if let Some((scenario, cards)) = summary.cards() {
        let known = GENERATION.iter().find(|known| known.key == scenario);
        let lengths = known.map_or(String::new(), |known| {
            format!(
                " <small>{} prompt tokens, {} new tokens: {}</small>",
                known.prompt_tokens, known.new_tokens, known.purpose
            )
        });
        let _ = writeln!(body, "<h2>{}{lengths}</h2>\n<div class=\"cards\">", escaped(scenario));
        cards.iter().for_each(|model| card(body, model));
        body.push_str("</div>\n");
    }
}

fn card(body: &mut String, card: &Card) {
    let weights = if card.is_synthetic { " <small>synthetic weights</small>" } else { "" };
    let _ =
        writeln!(body, "<article class=\"card\">\n<h3>{}{weights}</h3>\n<div class=\"engines\">", escaped(&card.model));
    for engine in &card.engines {
        let _ = writeln!(body, "<div>\n<h4>{}</h4>\n<dl>", escaped(&engine.name));
        for (name, value) in &engine.figures {
            let _ = writeln!(body, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(value));
        }
        body.push_str("</dl>\n");
        if let Some(share) = engine.mbu {
            let (class, width, text) = match share {
                Ok(share) => ("bar", share * 100.0, format!("{:.0} % of the memory bandwidth", share * 100.0)),
                Err(why) => ("bar unreliable", 100.0, format!("share of the bandwidth unreliable: {why}")),
            };
            let _ = writeln!(
                body,
                "<div class=\"share\"><span class=\"{class}\"><span style=\"width:{width:.1}%\"></span></span>{text}</div>"
            );
        }
        body.push_str("</div>\n");
    }
    body.push_str("</div>\n</article>\n");
}

/// Plots beside each other, each with its title.
fn figures(body: &mut String, plots: &[&Plot]) {
    if plots.is_empty() {
        return;
    }
    body.push_str("<div class=\"plots\">\n");
    for plot in plots {
        let (title, svg) = (escaped(plot.title), &plot.svg);
        let _ = writeln!(
            body,
            "<figure><figcaption>{title}</figcaption><div class=\"wide\" role=\"region\" aria-label=\"{title}\" tabindex=\"0\">{svg}</div></figure>"
        );
    }
    body.push_str("</div>\n");
}

/// A table that can be sorted, whose first columns hold `words`. A button in each header makes this possible without a mouse.
fn element(body: &mut String, rows: &[Vec<String>], words: usize, name: &str) {
    let _ = writeln!(body, "<div class=\"wide\" role=\"region\" aria-label=\"{name}\" tabindex=\"0\"><table>");
    for (index, row) in rows.iter().enumerate() {
        if index < 2 {
            body.push_str(if index == 0 { "<thead>" } else { "</thead><tbody>" });
        }
        body.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let class = if column < words { " class=\"word\"" } else { "" };
            let cell = escaped(cell);
            let _ = match index {
                0 => write!(body, "<th scope=\"col\"{class}><button type=\"button\">{cell}</button></th>"),
                _ => write!(body, "<td{class}>{cell}</td>"),
            };
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</tbody></table></div>\n");
}
