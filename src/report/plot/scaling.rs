//! Plots of one model over its number of threads.

use super::{
    Styles,
    chart::{Axis, Chart, Scale},
    distinct, model, scenario,
};
use crate::{
    report::{joined::Row, ratios::degrees},
    scenario::THREADS_SCALING,
};

/// Generated tokens per second over threads: a line for each model, and a thin one for a rate in proportion to the threads.
pub fn over_threads(rows: &[Row]) -> Option<Chart> {
    let is_scaled = |row: &Row| THREADS_SCALING.iter().any(|scenario| scenario.key == row.record.scenario);
    let rate = |row: &Row| Some((degrees(&row.record)?.0, row.generation()?.tokens_per_s));
    let rows: Vec<&Row> = rows.iter().filter(|row| is_scaled(row) && rate(row).is_some()).collect();
    let lines: Vec<(&Row, Vec<(f64, f64)>)> = distinct(rows.iter().map(|row| model(row)))
        .iter()
        .filter_map(|name| {
            let own: Vec<&Row> = rows.iter().filter(|row| model(row) == *name).copied().collect();
            let mut points: Vec<(f64, f64)> = own.iter().filter_map(|row| rate(row)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Some((*own.first()?, points))
        })
        .collect();
    let ideal = |points: &[(f64, f64)]| {
        let (fewest, rate) = points[0];
        points.iter().map(|(threads, _)| (*threads, rate * threads / fewest)).collect::<Vec<_>>()
    };
    let all = || lines.iter().flat_map(|(_, points)| points.iter().copied().chain(ideal(points)));
    all().next()?;
    let mut chart = Chart::new(
        Axis::at(all().map(|(threads, _)| threads).collect(), "threads"),
        Axis::new(Scale::from_zero(all().map(|(_, rate)| rate)), "tok/s"),
    );
    let styles = Styles::new(&rows, model, scenario);
    styles.explain(&mut chart);
    chart.text_key("thin: in proportion");
    for (row, points) in &lines {
        chart.guide(&ideal(points));
        chart.line(points, styles.of(row));
        // A line through two points has its dots.
        if points.len() > 2 {
            points.iter().for_each(|point| chart.dot(*point, styles.of(row)));
        }
    }
    Some(chart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FEWEST, Measures, Record};

    #[test]
    fn a_model_is_a_line_beside_its_ideal() {
        let row = |threads: u64, rate: f64| {
            let mut record: Record =
                serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
            record.scenario = THREADS_SCALING[0].key.into();
            record.subject.sizes = [("threads", threads), (FEWEST, 1)].map(|(k, v)| (k.to_owned(), v)).into();
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.tokens_per_s = rate;
            Row { record, criterion: None }
        };
        let svg = over_threads(&[row(2, 150.0), row(1, 100.0), row(4, 220.0)]).expect("values").svg("a plot");
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 3), "{svg}");
        assert!(over_threads(&[]).is_none());
    }
}
