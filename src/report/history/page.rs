//! The history of a machine as an HTML page: a row with a sparkline for each benchmark, the largest step for the worse first.

use std::fmt::Write;

use super::{History, short};
use crate::{
    report::{html, plot, table::number},
    text::xml as escaped,
};

/// The page of a machine. `histories` are those of its benchmarks.
pub fn page(machine: &str, histories: &[&History]) -> String {
    let mut histories: Vec<&History> = histories.to_vec();
    histories.sort_by(|a, b| b.worsening().total_cmp(&a.worsening()).then_with(|| a.id.cmp(&b.id)));
    let title = format!("History of {machine}");
    let moved = histories.iter().filter(|history| !history.moves.is_empty()).count();
    let mut body = format!("<main>\n<h1>{}</h1>\n", escaped(&title));
    let _ = writeln!(
        body,
        "<p>{} benchmarks, {moved} with a change of level. A dot marks the first run of a new level, and the last run.</p>",
        histories.len()
    );
    let _ = writeln!(
        body,
        "<div class=\"wide\" role=\"region\" aria-label=\"{}\" tabindex=\"0\"><table>\n<thead><tr>",
        escaped(&title)
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
    for history in histories {
        let values: Vec<f64> = history.points.iter().map(|point| point.value).collect();
        let places: Vec<usize> = history.moves.iter().map(|moved| moved.point).collect();
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
            values.len(),
            plot::sparkline(&values, &places),
            number(values.last().copied()),
            step.map_or(String::new(), |step| {
                let at = history.points[step.point].at.get(..10).unwrap_or_default();
                escaped(&format!("{} at {at}", history.said(step)))
            }),
            commits.unwrap_or_default(),
        );
    }
    body.push_str("</tbody></table></div>\n</main>\n");
    html::document(&title, &body)
}
