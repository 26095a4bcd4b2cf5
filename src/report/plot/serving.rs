//! Plots of a server under load.

use super::{
    Plot,
    chart::{Axis, Chart, Colour, Scale, Style},
};

/// Latency over the rate of requests, with a line for each named percentile: the knee of a server.
pub fn latency_over_rate(percentiles: &[(&str, Vec<(f64, f64)>)]) -> Plot {
    let points = || percentiles.iter().flat_map(|(_, points)| points);
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points().map(|(x, _)| *x)), "requests/s"),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), "ms from the schedule"),
    );
    for (number, (name, points)) in percentiles.iter().enumerate() {
        chart.colour_key(Colour(number), name);
        chart.dotted_line(points, Style { colour: Colour(number), dash: 0 });
    }
    Plot::new("latency_over_rate.svg", "Latency over the rate of requests", None, chart)
}
