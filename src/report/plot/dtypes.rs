//! The plot of models in several dtypes.

use super::{
    Styles,
    chart::{Axis, Chart, Scale},
    distinct, model, scenario,
};
use crate::{
    record::Record,
    report::{
        dtypes::{Cost, costs},
        joined::Row,
    },
};

/// Divergence from the reference over the rate of decode, or of scoring if the run has no generations. Labels give the dtype and
/// the size.
pub fn divergence_over_rate(rows: &[Row]) -> Option<Chart> {
    let records: Vec<&Record> = rows.iter().map(|row| &row.record).collect();
    let groups = costs(&records);
    let has_decode = groups.iter().flatten().any(|cost| cost.decode.is_some());
    let rate = |cost: &Cost| match has_decode {
        true => cost.decode.map(|(rate, _)| rate),
        false => cost.quality.scored_tokens_per_s,
    };
    let label = if has_decode { "decode tok/s" } else { "scored tok/s" };
    let mut points: Vec<(&Row, (f64, f64), String)> = Vec::new();
    for group in &groups {
        for cost in group {
            let Some(row) = rows.iter().find(|row| std::ptr::eq(&row.record, cost.record)) else { continue };
            let (Some(rate), Some(kl)) = (rate(cost), cost.kl_mean(group)) else { continue };
            let (dtype, megabytes) = (&cost.record.subject.dtype, cost.weight_bytes as f64 / 1e6);
            points.push((row, (rate, kl), format!("{dtype}, {megabytes:.0} MB")));
        }
    }
    if distinct(points.iter().map(|(row, ..)| row.record.subject.dtype.clone())).len() < 2 {
        return None;
    }
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points.iter().map(|(_, (x, _), _)| *x)), label),
        Axis::new(Scale::from_zero(points.iter().map(|(_, (_, y), _)| *y)), "mean KL divergence, nats"),
    );
    let shown: Vec<&Row> = points.iter().map(|(row, ..)| *row).collect();
    let styles = Styles::new(&shown, model, scenario);
    styles.explain(&mut chart);
    for (row, point, _) in &points {
        chart.dot(*point, styles.of(row));
    }
    chart.labels(points.iter().map(|(_, point, label)| (*point, label.as_str())));
    Some(chart)
}
