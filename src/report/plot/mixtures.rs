//! Plots of mixtures of experts.

use super::{
    Styles,
    chart::{Axis, Chart, Colour, Scale, Style},
    generations, model, variant,
};
use crate::{
    record::{Record, Routing},
    report::{
        joined::Row,
        table::{Rate, Twin, decode_rate, prefill_rate, twin_time},
    },
    scenario::MOE_TOP_K,
};

/// Mixtures in the plot of the load.
const MOST_LINES: usize = 6;

fn routing(row: &Row) -> Option<&Routing> {
    row.generation()?.routing.as_ref()
}

/// Load over the experts, with a line for each of the least even mixtures.
pub fn expert_load(rows: &[Row]) -> Option<Chart> {
    let mut routed: Vec<&Row> = rows.iter().filter(|row| routing(row).is_some()).collect();
    let scenario = &routed.first()?.record.scenario;
    routed.retain(|row| row.record.scenario == *scenario);
    let factor = |row: &Row| routing(row).map_or(0.0, |routing| routing.load_balance_factor);
    routed.sort_by(|a, b| factor(b).total_cmp(&factor(a)));
    routed.truncate(MOST_LINES);
    let lines: Vec<(&Row, Vec<(f64, f64)>)> = routed
        .iter()
        .filter_map(|row| {
            let load = sorted_load(routing(row)?).into_iter().enumerate();
            Some((*row, load.map(|(place, load)| ((place + 1) as f64, load)).collect()))
        })
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let experts = points().map(|(x, _)| *x).fold(2.0, f64::max);
    let mut chart = Chart::new(
        Axis::new(Scale::Linear(0.5, experts + 0.5), "expert, the busiest first"),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), "tokens over the mean"),
    );
    let styles = Styles::new(&routed, model, variant);
    styles.explain(&mut chart);
    for (row, points) in &lines {
        chart.dotted_line(points, styles.of(row));
    }
    Some(chart)
}

/// Tokens of each expert divided by the mean, in descending order. A value of 1 everywhere is even.
fn sorted_load(routing: &Routing) -> Vec<f64> {
    let experts = routing.tokens_per_expert.iter().map(Vec::len).max().unwrap_or(0);
    let mut load = vec![0.0; experts];
    for layer in &routing.tokens_per_expert {
        let tokens = layer.iter().map(|tokens| *tokens as f64);
        let mean = tokens.clone().sum::<f64>() / layer.len() as f64;
        let mut sorted: Vec<f64> = tokens.map(|tokens| tokens / mean).collect();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        load.iter_mut().zip(sorted).for_each(|(sum, load)| *sum += load);
    }
    load.iter().map(|sum| sum / routing.tokens_per_expert.len() as f64).collect()
}

/// Prefill of mixtures beside their twins.
pub fn prefill(rows: &[Row]) -> Option<Chart> {
    beside_twins(rows, MOE_TOP_K[0].key, prefill_rate)
}

/// Decode of mixtures beside their twins.
pub fn decode(rows: &[Row]) -> Option<Chart> {
    beside_twins(rows, MOE_TOP_K[1].key, decode_rate)
}

/// Time of evenly used mixtures over that of their dense twins, over the number of experts: a colour for each top-k, and a
/// dash for each twin.
fn beside_twins(rows: &[Row], scenario: &str, rate: Rate) -> Option<Chart> {
    let mut rows: Vec<&Row> = generations(rows, true);
    rows.retain(|row| row.record.scenario == scenario);
    // One width and one batch, because a line connects points that differ in the number of experts only.
    let sizes = &rows.first()?.record.subject.sizes;
    rows.retain(|row| row.record.subject.sizes == *sizes);
    let all: Vec<&Record> = rows.iter().map(|row| &row.record).collect();
    /// Experts of a token, the twin, number of experts, and the ratio of the times.
    type Point = (usize, usize, f64, f64);
    let mut points: Vec<Point> = Vec::new();
    for row in &rows {
        let Some(routing) = routing(row).filter(|routing| routing.planted_skew.unwrap_or(0.0) == 0.0) else { continue };
        for (dash, twin) in [Twin::Active, Twin::Total].into_iter().enumerate() {
            let ratio = twin_time(&row.record, &all, twin, rate);
            points.extend(ratio.map(|ratio| (routing.top_k, dash, routing.num_experts as f64, ratio)));
        }
    }
    if points.is_empty() {
        return None;
    }
    points.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
    let mut chart = Chart::new(
        Axis::at(points.iter().map(|point| point.2).collect(), "experts"),
        Axis::new(Scale::from_zero(points.iter().map(|point| point.3).chain([1.2])), "time over that of the twin"),
    );
    let mut top_ks: Vec<usize> = points.iter().map(|point| point.0).collect();
    top_ks.dedup();
    for (number, top_k) in top_ks.iter().enumerate() {
        chart.colour_key(Colour(number), &format!("top-{top_k}"));
    }
    chart.dash_key(0, "active twin");
    chart.dash_key(1, "total twin");
    let ends = points.iter().map(|point| point.2).fold((f64::MAX, 0.0f64), |(l, h), x| (l.min(x), h.max(x)));
    chart.guide(&[(ends.0 / 1.3, 1.0), (ends.1 * 1.3, 1.0)]);
    for (number, top_k) in top_ks.iter().enumerate() {
        for dash in [0, 1] {
            let own = points.iter().filter(|point| point.0 == *top_k && point.1 == dash);
            let own: Vec<(f64, f64)> = own.map(|point| (point.2, point.3)).collect();
            chart.dotted_line(&own, Style { colour: Colour(number), dash });
        }
    }
    Some(chart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_relative_to_the_mean_of_each_layer() {
        let mut routing = Routing {
            num_experts: 3,
            top_k: 1,
            planted_skew: None,
            tokens_per_expert: vec![vec![1, 4, 1], vec![0, 8, 4]],
            load_balance_factor: 2.0,
            entropy_bits: 1.0,
            idle_share: 0.0,
        };
        assert_eq!(sorted_load(&routing), [2.0, 0.75, 0.25]);
        // A record of others may name any number of experts, and counts whose sum is not a 64-bit number.
        (routing.num_experts, routing.tokens_per_expert) = (usize::MAX, vec![vec![u64::MAX; 2]]);
        assert_eq!(sorted_load(&routing), [1.0, 1.0]);
    }
}
