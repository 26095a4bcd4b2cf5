//! Plots over time or steps: the history of a benchmark, a command that is measured, and the losses of a training.

use std::fmt::Write;

use super::{
    Plot,
    chart::{Axis, Chart, Colour, Scale, Style},
    generation::ONLY,
};

/// Labels below a history.
const MOST_LABELS: usize = 10;

/// The values of a benchmark in the order of its runs.
pub struct Course {
    pub values: Vec<f64>,
    /// Places at which a new level begins.
    pub moved: Vec<usize>,
    /// Places of disturbed runs.
    pub disturbed: Vec<usize>,
}

/// A line plot of a course with a name below some of its values, and a vertical line before each new level.
pub fn history(course: &Course, names: &[&str], unit: &str) -> String {
    let Course { values, moved, disturbed } = course;
    let every = values.len().div_ceil(MOST_LABELS).max(1);
    let name = |(place, name): (usize, &&str)| if place % every == 0 { (*name).to_owned() } else { String::new() };
    let names = names.iter().enumerate().map(name).collect();
    let mut chart =
        Chart::new(Axis::new(Scale::Names(names), "commit"), Axis::new(Scale::from_zero(values.iter().copied()), unit));
    for &place in moved {
        chart.vertical(place as f64 - 0.5, Style { colour: Colour::WORSE, dash: 1 });
    }
    if !moved.is_empty() {
        chart.dash_key(1, "change of level");
    }
    let (busy, quiet): (Vec<_>, Vec<_>) = values.iter().enumerate().partition(|(place, _)| disturbed.contains(place));
    let points = |of: Vec<(usize, &f64)>| of.iter().map(|(place, value)| (*place as f64, **value)).collect::<Vec<_>>();
    chart.dotted_line(&points(quiet), ONLY);
    points(busy).iter().for_each(|point| chart.dot(*point, Style { colour: Colour::NEUTRAL, dash: 0 }));
    if !disturbed.is_empty() {
        chart.colour_key(Colour::NEUTRAL, "disturbed");
    }
    super::standalone(&chart.svg(&format!("{unit} over commits")))
}

/// A course as a line without axes, 120 by 24 pixels, with a dot at each new level, at each disturbed run and at the last value.
pub fn sparkline(Course { values, moved, disturbed }: &Course) -> String {
    const WIDTH: f64 = 120.0;
    const HEIGHT: f64 = 24.0;
    const EDGE: f64 = 3.0;
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let at = |place: usize| {
        let share = if high > low { (values[place] - low) / (high - low) } else { 0.5 };
        let x = EDGE + (WIDTH - 2.0 * EDGE) * place as f64 / (values.len() - 1).max(1) as f64;
        (x, HEIGHT - EDGE - (HEIGHT - 2.0 * EDGE) * share)
    };
    let quiet = (0..values.len()).filter(|place| !disturbed.contains(place));
    let points: Vec<String> = quiet.map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" aria-hidden=\"true\">\
         <polyline fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.5\" points=\"{}\"/>",
        points.join(" ")
    );
    let classes = [(disturbed.as_slice(), "disturbed"), (moved, "step"), (&[values.len().saturating_sub(1)], "last")];
    let dots = classes.iter().flat_map(|(places, class)| places.iter().map(move |place| (*place, *class)));
    for (place, class) in
        dots.filter(|(place, class)| *place < values.len() && (*class != "last" || !disturbed.contains(place)))
    {
        let (x, y) = at(place);
        let _ = write!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
    }
    svg + "</svg>"
}

/// Named lines over the seconds of a command, as a file. `None` if no line has a point.
pub fn over_seconds(title: &str, unit: &str, lines: &[(String, Vec<(f64, f64)>)]) -> Option<String> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    points().next()?;
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points().map(|(x, _)| *x)), "s"),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), unit),
    );
    for (number, (name, points)) in lines.iter().enumerate() {
        chart.colour_key(Colour(number), name);
        chart.line(points, Style { colour: Colour(number), dash: 0 });
    }
    Some(super::standalone(&chart.svg(title)))
}

/// The x axis of a loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A point for each step.
    Steps,
    /// A point for each epoch.
    Epochs,
}

/// Loss over the steps of a training, for the batches and for the validation split.
pub fn loss_curve(over: Over, training: &[(f64, f64)], validation: &[(f64, f64)]) -> Plot {
    let (file, title, axis) = match over {
        Over::Steps => ("loss_curve.svg", "Loss over steps", "step"),
        Over::Epochs => ("loss_by_epoch.svg", "Loss over epochs", "epoch"),
    };
    let points = || training.iter().chain(validation);
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points().map(|(x, _)| *x)), axis),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), "loss, nats per token"),
    );
    for (number, (name, points)) in [("training", training), ("validation", validation)].into_iter().enumerate() {
        chart.colour_key(Colour(number), name);
        chart.line(points, Style { colour: Colour(number), dash: 0 });
    }
    Plot::new(file, title, None, chart)
}
