//! Plots of generations.

use super::{
    Styles,
    chart::{Axis, Chart, Colour, Scale, Style},
    distinct, generations, model, scenario, variant,
};
use crate::{
    report::{joined::Row, ratios::trusted_share, statistics::median},
    scenario::{LONG_CONTEXT, TENSOR_PARALLEL, THREADS_SCALING},
};

/// A bar: its height, an interval, and a line across it.
struct Value {
    height: f64,
    interval: Option<(f64, f64)>,
    notch: Option<f64>,
}

impl Value {
    fn plain(height: f64) -> Self {
        Self { height, interval: None, notch: None }
    }
}

/// Weights of a large model. Bars of absolute values show small and large models apart: beside a large one, the other's bars are
/// either too small to read or the only ones.
const LARGE_BYTES: u64 = 500_000_000;

/// The models of a plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    All,
    Small,
    Large,
}

impl Of {
    fn includes(self, row: &Row) -> bool {
        let is_large = row.record.subject.weight_bytes.is_some_and(|bytes| bytes >= LARGE_BYTES);
        self == Self::All || (self == Self::Large) == is_large
    }
}

/// Generated tokens per second.
pub fn tokens_per_s(rows: &[Row], of: Of) -> Option<Chart> {
    by_scenario(rows, of, "tok/s", false, |row| {
        let measures = row.generation()?;
        let tokens = (measures.sequences() * measures.generated_tokens) as f64;
        let rate = |ns: f64| tokens / ns * 1e9;
        let interval = row.criterion.map(|estimate| (rate(estimate.high_ns), rate(estimate.low_ns)));
        Some(Value { height: measures.tokens_per_s, interval, notch: None })
    })
}

/// Share of the bandwidth.
pub fn mbu(rows: &[Row]) -> Option<Chart> {
    by_scenario(rows, Of::All, "% of bandwidth", true, |row| {
        Some(Value::plain(trusted_share(&row.record, "mbu")? * 100.0))
    })
}

/// Share of the matrix rate.
pub fn mfu(rows: &[Row]) -> Option<Chart> {
    by_scenario(rows, Of::All, "% of matrix rate", true, |row| {
        Some(Value::plain(trusted_share(&row.record, "mfu")? * 100.0))
    })
}

/// Peak memory beside the weights.
pub fn memory(rows: &[Row], of: Of) -> Option<Chart> {
    by_scenario(rows, of, "peak memory, MB", false, |row| {
        let notch = row.record.subject.weight_bytes.map(|bytes| bytes as f64 / 1e6);
        Some(Value { notch, ..Value::plain(row.generation()?.peak_bytes? as f64 / 1e6) })
    })
}

/// Returns whether a scenario has a plot of its own, over a size.
fn is_over_a_size(row: &Row) -> bool {
    [LONG_CONTEXT, THREADS_SCALING, TENSOR_PARALLEL].concat().iter().any(|scenario| scenario.key == row.record.scenario)
}

/// Bars grouped by scenario: a colour for each model, and lighter bars for each further engine. Scenarios over a size have bars
/// only if there are no others, because the names of all scenarios do not fit below an axis.
fn by_scenario(rows: &[Row], of: Of, unit: &str, is_share: bool, value: fn(&Row) -> Option<Value>) -> Option<Chart> {
    let is_shown = |row: &&Row| of.includes(row) && value(row).is_some();
    let mut rows: Vec<&Row> = generations(rows, false).into_iter().filter(is_shown).collect();
    if rows.iter().any(|row| !is_over_a_size(row)) {
        rows.retain(|row| !is_over_a_size(row));
    }
    if rows.is_empty() {
        return None;
    }
    let scenarios = distinct(rows.iter().map(|row| scenario(row)));
    let subject = |row: &Row| (model(row), variant(row));
    let mut subjects: Vec<_> = rows.iter().map(|row| subject(row)).collect();
    let styles = Styles::new(&rows, model, variant);
    subjects.sort_by_key(|(model, _)| styles.colour.1.iter().position(|known| known == model));
    subjects.dedup();
    let heights =
        || rows.iter().filter_map(|row| value(row)).map(|value| value.interval.map_or(value.height, |(_, high)| high));
    let scale = if is_share { Scale::percent(heights()) } else { Scale::from_zero(heights()) };
    let mut chart = Chart::new(Axis::new(Scale::Names(scenarios.clone()), "scenario"), Axis::new(scale, unit));
    styles.explain(&mut chart);
    if is_share {
        chart.guide(&[(-0.5, 100.0), (scenarios.len() as f64 - 0.5, 100.0)]);
        chart.text_key("line: the limit");
    }
    for row in &rows {
        let (Some(value), Some(place)) = (value(row), scenarios.iter().position(|name| *name == scenario(row))) else {
            continue;
        };
        let number = subjects.iter().position(|known| *known == subject(row)).unwrap_or_default();
        let bar = chart.bar(place, (number, subjects.len()), value.height, styles.of(row));
        if let Some((low, high)) = value.interval {
            chart.whisker(&bar, low, high);
        }
        if let Some(notch) = value.notch {
            chart.notch(&bar, notch);
        }
    }
    Some(chart)
}

/// Lengths of prompts that are shown as bars. More are an axis.
const FEW_LENGTHS: usize = 3;

/// Time to first token: bars, or points over the length of the prompt where there are many lengths. A logarithmic axis then has room
/// for models of all sizes.
pub fn ttft(rows: &[Row], of: Of) -> Option<Chart> {
    let own = generations(rows, false);
    let points: Vec<(f64, f64)> = own
        .iter()
        .filter_map(|row| row.generation())
        .map(|measures| (measures.prompt_tokens as f64, measures.ttft_ms))
        .collect();
    if distinct(points.iter().map(|(length, _)| length.to_string())).len() <= FEW_LENGTHS {
        return by_scenario(rows, of, "TTFT, ms", false, |row| Some(Value::plain(row.generation()?.ttft_ms)));
    }
    if of == Of::Large {
        return None;
    }
    let styles = Styles::new(&own, model, variant);
    let mut chart = Chart::new(
        Axis::at(points.iter().map(|(x, _)| *x).collect(), "prompt, tokens"),
        Axis::new(Scale::log(points.iter().map(|(_, y)| *y)), "TTFT, ms"),
    );
    styles.explain(&mut chart);
    for (row, point) in own.iter().zip(points) {
        chart.dot(point, styles.of(row));
    }
    Some(chart)
}

/// Rate of a prompt pass over its length, below the rate of the matrix products that it needs.
pub fn prefill_over_depth(rows: &[Row]) -> Option<Chart> {
    over_depth(rows, "prompt, tokens", "prefill, tok/s", "matrix rate", |row| {
        let (measures, limits) = (row.generation()?, row.record.limits.as_ref()?);
        let tokens = (measures.sequences() * measures.prompt_tokens) as f64;
        let flops_per_token = measures.work?.prefill_flops as f64 / tokens;
        Some((measures.prefill_tokens_per_s, limits.matrix_flops_per_s / flops_per_token))
    })
}

/// Rate of decode steps over their depth, below the rate at which weights and cache can be read.
pub fn decode_over_depth(rows: &[Row]) -> Option<Chart> {
    over_depth(rows, "tokens before the steps", "decode, tok/s", "bandwidth", |row| {
        let (measures, limits) = (row.generation()?, row.record.limits.as_ref()?);
        let bytes_per_token = measures.work?.step_bytes as f64 / measures.sequences() as f64;
        Some((measures.decode_tokens_per_s?, limits.read_bytes_per_s / bytes_per_token))
    })
}

/// Rates of the long contexts over their depth, with a thin line for the bound of each model and engine.
fn over_depth(
    rows: &[Row],
    depth: &str,
    unit: &str,
    bound: &str,
    rate_and_bound: fn(&Row) -> Option<(f64, f64)>,
) -> Option<Chart> {
    let is_long = |row: &&Row| LONG_CONTEXT.iter().any(|scenario| scenario.key == row.record.scenario);
    let rows: Vec<&Row> = rows.iter().filter(is_long).filter(|row| rate_and_bound(row).is_some()).collect();
    let subjects = distinct(rows.iter().map(|row| format!("{} {}", model(row), variant(row))));
    /// Depth, rate and bound.
    type Point = (f64, f64, f64);
    let lines: Vec<(Style, Vec<Point>)> = subjects
        .iter()
        .filter_map(|subject| {
            let own: Vec<&Row> =
                rows.iter().filter(|row| format!("{} {}", model(row), variant(row)) == *subject).copied().collect();
            let mut points: Vec<Point> = own
                .iter()
                .filter_map(|row| {
                    let (rate, bound) = rate_and_bound(row)?;
                    Some((row.generation()?.prompt_tokens as f64, rate, bound))
                })
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Some((Styles::new(&rows, model, variant).of(own.first()?), points))
        })
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    points().next()?;
    let mut chart = Chart::new(
        Axis::at(points().map(|(depth, ..)| *depth).collect(), depth),
        Axis::new(Scale::log(points().flat_map(|(_, rate, bound)| [*rate, *bound])), unit),
    );
    Styles::new(&rows, model, variant).explain(&mut chart);
    chart.text_key(&format!("thin: {bound}"));
    for (style, points) in &lines {
        chart.guide(&points.iter().map(|(depth, _, bound)| (*depth, *bound)).collect::<Vec<_>>());
        chart.dotted_line(&points.iter().map(|(depth, rate, _)| (*depth, *rate)).collect::<Vec<_>>(), *style);
    }
    Some(chart)
}

/// The roofline model (Williams, Waterman and Patterson, 2009): the rate of each benchmark below its bound by bandwidth and
/// the matrix rate of its dtype.
pub fn roofline(rows: &[Row]) -> Option<Chart> {
    let rows = generations(rows, false);
    let limits: Vec<_> =
        rows.iter().filter_map(|row| Some((&row.record.subject.dtype, row.record.limits.as_ref()?))).collect();
    let roofs: Vec<(String, f64)> = distinct(limits.iter().map(|(dtype, _)| (*dtype).clone()))
        .into_iter()
        .map(|dtype| {
            let own = limits.iter().filter(|(of, _)| **of == dtype);
            let rates: Vec<f64> = own.map(|(_, limits)| limits.matrix_flops_per_s / 1e9).collect();
            (dtype, median(&rates))
        })
        .collect();
    let bandwidths: Vec<f64> = limits.iter().map(|(_, limits)| limits.read_bytes_per_s / 1e9).collect();
    let peak = roofs.iter().map(|(_, rate)| *rate).reduce(f64::max)?;
    let lowest = roofs.iter().map(|(_, rate)| *rate).fold(peak, f64::min);
    let styles = Styles::new(&rows, model, variant);
    /// True for a decode; operations per byte; GFLOP/s; the style.
    type Point = (bool, f64, f64, Style);
    let mut points: Vec<Point> = Vec::new();
    for row in &rows {
        let Some((measures, work)) = row.generation().and_then(|measures| Some((measures, measures.work?))) else {
            continue;
        };
        let mut add = |is_decode, flops: u64, bytes: u64, ms: f64| {
            points.push((is_decode, flops as f64 / bytes as f64, flops as f64 / ms / 1e6, styles.of(row)));
        };
        add(false, work.prefill_flops, work.prefill_bytes, measures.ttft_ms);
        if let Some(ms) = measures.tpot_ms {
            add(true, work.step_flops, work.step_bytes, ms);
        }
    }
    if points.is_empty() {
        return None;
    }
    let gb_per_s = median(&bandwidths);
    let left = points.iter().map(|point| point.1).fold(0.5f64.min(lowest / gb_per_s / 4.0), f64::min) / 2.0;
    let right = points.iter().map(|point| point.1).fold(peak / gb_per_s * 4.0, f64::max) * 2.0;
    let low = points.iter().map(|point| point.2).fold(left * gb_per_s, f64::min) / 2.0;
    let mut chart = Chart::new(
        Axis::new(Scale::Log(left, right), "floating-point operations per byte"),
        Axis::new(Scale::Log(low, peak * 3.0), "GFLOP/s"),
    );
    styles.explain(&mut chart);
    chart.text_key("circle: decode");
    chart.text_key("triangle: prefill");
    let (foot, bend) = ((left, left * gb_per_s), (peak / gb_per_s, peak));
    chart.guide(&[foot, bend]);
    let slope = chart.angle(foot, bend);
    chart.label((left * 1.5, left * 1.5 * gb_per_s), &format!("bandwidth: {gb_per_s:.1} GB/s"), slope);
    let mut labels = Vec::new();
    for (dtype, rate) in roofs {
        let ridge = rate / gb_per_s;
        chart.guide(&[(ridge, rate), (right, rate)]);
        labels.push(((ridge * 1.05, rate), format!("matrix rate in {dtype}: {rate:.0} GFLOP/s")));
    }
    chart.labels(labels.iter().map(|(point, text)| (*point, text.as_str())));
    for (is_decode, flops_per_byte, gflops, style) in points {
        match is_decode {
            true => chart.dot((flops_per_byte, gflops), style),
            false => chart.triangle((flops_per_byte, gflops), style),
        }
    }
    Some(chart)
}

/// Most points of a line of [`step_latency`].
const MOST_POINTS: usize = 96;

/// Lines over the position in the sequence: a colour for each model, and a dash for each scenario and engine.
pub fn step_latency(rows: &[Row]) -> Option<Chart> {
    let rows = generations(rows, false);
    let steps = |row: &Row| row.generation().map_or(0, |measures| measures.itl_by_position_ms.len());
    let longest = rows.iter().map(|row| steps(row)).max().filter(|longest| *longest > 1)?;
    let rows: Vec<&Row> = rows.into_iter().filter(|row| steps(row) == longest).collect();
    // Each point is the median of neighbours, so that a single slow step does not hide the course.
    let width = longest.div_ceil(MOST_POINTS);
    let lines: Vec<(&Row, Vec<(f64, f64)>)> = rows
        .iter()
        .filter_map(|row| {
            let measures = row.generation()?;
            let middle = |number: usize| measures.prompt_tokens as f64 + (number * width + width / 2 + 1) as f64;
            let points = measures.itl_by_position_ms.chunks(width).enumerate();
            Some((*row, points.map(|(number, itl)| (middle(number), median(itl))).collect()))
        })
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let mut chart = Chart::new(
        Axis::new(Scale::from_zero(points().map(|(x, _)| *x)), "position in the sequence, tokens"),
        Axis::new(Scale::from_zero(points().map(|(_, y)| *y)), "inter-token latency, ms"),
    );
    let is_one_variant = rows.iter().all(|row| variant(row) == variant(rows[0]));
    let both = |row: &Row| format!("{}, {}", scenario(row), variant(row));
    let styles = Styles::new(&rows, model, if is_one_variant { scenario } else { both });
    styles.explain(&mut chart);
    for (row, points) in &lines {
        chart.line(points, styles.of(row));
    }
    Some(chart)
}

/// The colour of a single line.
pub const ONLY: Style = Style { colour: Colour(0), dash: 0 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Measures, Record, Work};

    #[test]
    fn each_dtype_has_a_roof_and_shares_have_a_line_at_the_limit() {
        let row = |dtype: &str, matrix_flops_per_s: f64| {
            let mut record: Record =
                serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
            record.subject.dtype = dtype.into();
            record.limits.as_mut().expect("limits").matrix_flops_per_s = matrix_flops_per_s;
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            let (bytes, flops) = (1_000_000, 2_000_000);
            measures.work =
                Some(Work { prefill_bytes: bytes, prefill_flops: 64 * flops, step_bytes: bytes, step_flops: flops });
            Row { record, criterion: None }
        };
        let rows = [row("f32", 200e9), row("bf16", 600e9), row("bf16", 400e9)];
        let roofs = roofline(&rows).expect("values").svg("a plot");
        assert!(roofs.contains("in f32: 200 GFLOP/s") && roofs.contains("in bf16: 500 GFLOP/s"), "{roofs}");
        assert_eq!(roofs.matches("<polyline").count(), 3, "{roofs}");
        let shares = mbu(&rows).expect("values").svg("a plot");
        assert_eq!(shares.matches("<polyline").count(), 1, "{shares}");
    }

    #[test]
    fn the_long_contexts_are_a_line_below_their_bound() {
        let row = |scenario: &str, prompt_tokens: usize, rate: f64| {
            let mut record: Record =
                serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample");
            record.scenario = scenario.into();
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.prompt_tokens = prompt_tokens;
            measures.prefill_tokens_per_s = rate;
            measures.decode_tokens_per_s = Some(rate / 10.0);
            measures.work = Some(Work {
                prefill_bytes: 1,
                prefill_flops: 1_000_000 * prompt_tokens as u64,
                step_bytes: 1_000_000,
                step_flops: 1,
            });
            Row { record, criterion: None }
        };
        let mut rows: Vec<Row> =
            LONG_CONTEXT.iter().map(|scenario| row(scenario.key, scenario.prompt_tokens, 1000.0)).collect();
        rows.push(row("short", 64, 1e9));
        for draw in [prefill_over_depth, decode_over_depth] {
            let svg = draw(&rows).expect("values").svg("a plot");
            assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 5), "{svg}");
            assert!(
                svg.contains("16.384k") && (svg.contains("thin: matrix rate") || svg.contains("thin: bandwidth")),
                "{svg}"
            );
            assert!(draw(&rows[5..]).is_none());
        }
        // The names of a few scenarios fit below the bars.
        let names =
            |rows: &[Row]| tokens_per_s(rows, Of::All).expect("values").svg("a plot").matches(">depth-").count();
        assert_eq!((names(&rows), names(&rows[..5])), (0, 5));
    }
}
