//! Plots of training steps: the architecture sweep, gradient checkpointing, and language models. They show candlepower's own
//! steps: beside a peer, the tables have ratios.

use super::{
    Styles,
    chart::{Axis, Chart, Scale},
};
use crate::{
    record::{Measures, Sweep, Training},
    report::joined::Row,
    scenario::{CHECKPOINT_MEMORY, PSANN_THROUGHPUT, Quantity, SWEEP},
};

fn sweep_measures(row: &Row) -> Option<&Sweep> {
    match &row.record.measures {
        Some(Measures::Sweep(measures)) => Some(measures),
        _ => None,
    }
}

fn training_measures(row: &Row) -> Option<&Training> {
    match &row.record.measures {
        Some(Measures::Training(measures)) => Some(measures),
        _ => None,
    }
}

fn is_own(row: &Row) -> bool {
    row.record.subject.peer.is_none()
}

fn architecture(row: &Row) -> String {
    row.record.subject.architecture_and_sizes().0.to_owned()
}

fn dtype(row: &Row) -> String {
    row.record.subject.dtype.clone()
}

/// Samples per second over parameters: a colour for each architecture, and hollow dots for forecasts.
pub fn sweep(rows: &[Row]) -> Option<Chart> {
    let point = |row: &Row| Some((row.record.subject.parameters? as f64, sweep_measures(row)?.windows_per_s));
    let rows: Vec<&Row> = rows.iter().filter(|row| is_own(row) && point(row).is_some()).collect();
    let points: Vec<(f64, f64)> = rows.iter().filter_map(|row| point(row)).collect();
    if points.is_empty() {
        return None;
    }
    let mut chart = Chart::new(
        Axis::new(Scale::log(points.iter().map(|(x, _)| *x)), "parameters"),
        Axis::new(Scale::log(points.iter().map(|(_, y)| *y)), "samples/s"),
    );
    let phase = |row: &Row| if row.record.scenario == SWEEP.train { "training step" } else { "forecast" }.to_owned();
    let styles = Styles::new(&rows, architecture, phase);
    styles.explain(&mut chart);
    for (row, point) in rows.iter().zip(points) {
        chart.dot(point, styles.of(row));
    }
    Some(chart)
}

/// Training steps over the length of the series.
pub fn growth_train(rows: &[Row]) -> Option<Chart> {
    growth(rows, SWEEP.train)
}

/// Forecasts over the length of the series.
pub fn growth_forward(rows: &[Row]) -> Option<Chart> {
    growth(rows, SWEEP.forward)
}

fn growth(rows: &[Row], scenario: &str) -> Option<Chart> {
    let point = |row: &Row| Some((*row.record.subject.sizes.get("window")? as f64, sweep_measures(row)?.step_p50_ms));
    let name = |row: &Row| {
        let window = row.record.subject.sizes.get("window").copied().unwrap_or_default();
        row.record.subject.model.replace(&format!("-w{window}"), "")
    };
    lines(rows, scenario, ["steps of the series that are seen", "ms per step, median"], point, name)
}

/// Language models forward to the loss.
pub fn throughput_forward(rows: &[Row]) -> Option<Chart> {
    throughput(rows, PSANN_THROUGHPUT[0].key)
}

/// Language models in training.
pub fn throughput_train(rows: &[Row]) -> Option<Chart> {
    throughput(rows, PSANN_THROUGHPUT[1].key)
}

fn throughput(rows: &[Row], scenario: &str) -> Option<Chart> {
    let point = |row: &Row| {
        let measures = training_measures(row)?;
        Some((measures.batch_tokens as f64, measures.tokens_per_s))
    };
    let name = |row: &Row| {
        let model = &row.record.subject.model;
        model.rsplit_once("-b").map_or(model.clone(), |(model, _)| model.to_owned())
    };
    lines(rows, scenario, ["tokens per step", "tok/s"], point, name)
}

/// A line for each name and dtype through the points of a scenario. Names with one point are left out.
fn lines(
    rows: &[Row],
    scenario: &str,
    [x_label, y_label]: [&str; 2],
    point: fn(&Row) -> Option<(f64, f64)>,
    name: fn(&Row) -> String,
) -> Option<Chart> {
    let is_shown = |row: &&Row| row.record.scenario == scenario && is_own(row) && point(row).is_some();
    let rows: Vec<&Row> = rows.iter().filter(is_shown).collect();
    let key = |row: &Row| (name(row), dtype(row));
    let mut lines: Vec<(&Row, Vec<(f64, f64)>)> = Vec::new();
    for &row in &rows {
        let Some(point) = point(row) else { continue };
        match lines.iter_mut().find(|(first, _)| key(first) == key(row)) {
            Some((_, points)) => points.push(point),
            None => lines.push((row, vec![point])),
        }
    }
    lines.retain(|(_, points)| points.len() > 1);
    if lines.is_empty() {
        return None;
    }
    lines.iter_mut().for_each(|(_, points)| points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0)));
    let shown: Vec<&Row> = lines.iter().map(|(row, _)| *row).collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points().map(|(x, _)| *x)), x_label),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), y_label),
    );
    let styles = Styles::new(&shown, name, dtype);
    styles.explain(&mut chart);
    for (row, points) in &lines {
        chart.dotted_line(points, styles.of(row));
    }
    Some(chart)
}

/// Time of a step over peak memory: an arrow from each model to the same model with gradient checkpointing. The group that
/// measures time is preferred to the one that measures memory.
pub fn checkpointing(rows: &[Row]) -> Option<Chart> {
    const SUFFIX: &str = "-checkpointed";
    let name = |row: &Row| {
        let model = &row.record.subject.model;
        model.strip_suffix(SUFFIX).unwrap_or(model).to_owned()
    };
    let point = |row: &Row| {
        let measures = training_measures(row)?;
        Some((measures.peak_bytes? as f64 / 1e6, measures.step_p50_ms))
    };
    let of = |quantity: Quantity| -> Vec<&Row> {
        let group = CHECKPOINT_MEMORY.iter().find(|group| group.quantity == quantity);
        let is_own = |row: &&Row| group.is_some_and(|group| group.key == row.record.scenario) && point(row).is_some();
        rows.iter().filter(is_own).collect()
    };
    let timed = of(Quantity::Time);
    let rows = if timed.is_empty() { of(Quantity::PeakBytes) } else { timed };
    let key = |row: &Row| (name(row), dtype(row));
    let is_kept = |row: &&&Row| row.record.subject.model.ends_with(SUFFIX);
    /// A model, its point, and its point with checkpointing.
    type Arrow<'a> = (&'a Row, (f64, f64), (f64, f64));
    let arrows: Vec<Arrow> = rows
        .iter()
        .filter(|row| !is_kept(row))
        .filter_map(|plain| {
            let kept = rows.iter().find(|row| is_kept(row) && key(row) == key(plain))?;
            Some((*plain, point(plain)?, point(kept)?))
        })
        .collect();
    if arrows.is_empty() {
        return None;
    }
    let ends = || arrows.iter().flat_map(|(_, from, to)| [*from, *to]);
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(ends().map(|(x, _)| x * 1.1)), "peak memory, MB"),
        Axis::new(Scale::from_zero(ends().map(|(_, y)| y * 1.1)), "ms per step, median"),
    );
    let styles = Styles::new(&arrows.iter().map(|(row, ..)| *row).collect::<Vec<_>>(), name, dtype);
    styles.explain(&mut chart);
    chart.text_key("dot: everything is kept");
    chart.text_key("arrow: checkpointing");
    for (row, from, to) in arrows {
        chart.dot(from, styles.of(row));
        chart.arrow(from, to, styles.of(row));
    }
    Some(chart)
}
