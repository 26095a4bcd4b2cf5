//! The history of a machine as an HTML page: a table for each group of benchmarks that changed together, with a row for each
//! benchmark.

use std::fmt::Write;

use super::{Group, History, bisect::short, groups};
use crate::{
    report::{html, plot, table::number},
    text::xml as escaped,
};

/// The page of a machine. `histories` are those of its benchmarks.
pub fn page(machine: &str, histories: &[&History]) -> String {
    let title = format!("History of {machine}");
    let moved = histories.iter().filter(|history| !history.moves.is_empty()).count();
    let disturbed = histories.iter().flat_map(|history| &history.points).filter(|point| point.is_disturbed).count();
    let mut body = format!("<main>\n<h1>{}</h1>\n", escaped(&title));
    let _ = writeln!(
        body,
        "<p>{} benchmarks, {moved} with a change of level. A dot marks the first run of a new level, and the last run. \
         {disturbed} results are disturbed: they have a grey dot and are in no level.</p>",
        histories.len()
    );
    for group in groups(histories.iter().copied()) {
        table(&mut body, &group);
    }
    body.push_str("</main>\n");
    html::document(&title, &body)
}

fn table(body: &mut String, group: &Group) {
    let title = escaped(&group.title());
    let _ = writeln!(
        body,
        "<h2>{title}</h2>\n<div class=\"wide\" role=\"region\" aria-label=\"{title}\" tabindex=\"0\"><table>\n<thead><tr>"
    );
    for (header, is_word) in [
        ("benchmark", true),
        ("metric", true),
        ("runs", false),
        ("course", true),
        ("last", false),
        ("last step", true),
        ("commits", true),
    ] {
        let class = if is_word { " class=\"word\"" } else { "" };
        let _ = write!(body, "<th scope=\"col\"{class}><button type=\"button\">{header}</button></th>");
    }
    body.push_str("</tr></thead>\n<tbody>\n");
    for history in &group.histories {
        let step = history.moves.last();
        let commits = step.map(|step| {
            format!(
                "<code>{}</code> to <code>{}</code>",
                escaped(short(&step.last_commit)),
                escaped(short(&step.commit))
            )
        });
        let _ = writeln!(
            body,
            "<tr><td class=\"word\">{}</td><td class=\"word\">{}</td><td>{}</td><td class=\"word\">{}</td><td>{}</td>\
             <td class=\"word\">{}</td><td class=\"word\">{}</td></tr>",
            escaped(&history.id),
            escaped(&format!("{} {}", history.metric, history.unit)),
            history.points.len(),
            plot::sparkline(&history.course()),
            number(history.points.last().map(|point| point.value)),
            step.map_or(String::new(), |step| escaped(&format!("{} at {}", history.said(step), history.day(step)))),
            commits.unwrap_or_default(),
        );
    }
    body.push_str("</tbody></table></div>\n");
}
