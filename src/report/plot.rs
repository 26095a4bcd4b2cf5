//! Plots as SVG text. Grey axes and a transparent background suit light and dark pages. The colours are those of Okabe and
//! Ito, which colour-blind people can distinguish.

use anyhow::{Context, Result, anyhow};
use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::{
    prelude::*,
    style::{
        RGBColor,
        text_anchor::{HPos, Pos, VPos},
    },
};

use resvg::{tiny_skia, usvg};

use super::joined::Row;
use crate::{
    record::{Measures, Routing},
    scenario::{MOE_TOP_K, PSANN_THROUGHPUT, SWEEP},
    text,
};

const SIZE: (u32, u32) = (900, 420);
const GREY: RGBColor = RGBColor(128, 128, 128);
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(240, 228, 66),
];

/// A plot with its file name and title.
pub struct Plot {
    pub file: &'static str,
    pub title: &'static str,
    pub svg: String,
}

impl Plot {
    /// The plot as a PNG image of twice the size, on white. The program contains the font, so that no system font is needed.
    ///
    /// # Errors
    /// When the plot cannot be parsed or drawn.
    pub fn png(&self) -> Result<Vec<u8>> {
        const SCALE: f32 = 2.0;
        let mut options = usvg::Options::default();
        options.fontdb_mut().load_font_data(UBUNTU_LIGHT.to_vec());
        let family = options.fontdb.faces().next().and_then(|face| Some(face.families.first()?.0.clone()));
        options.fontdb_mut().set_sans_serif_family(family.unwrap_or_default());
        let tree = usvg::Tree::from_str(&self.svg, &options)?;
        let size = tree.size().to_int_size().scale_by(SCALE).context("a plot has no size")?;
        let mut picture = tiny_skia::Pixmap::new(size.width(), size.height()).context("a plot has no size")?;
        picture.fill(tiny_skia::Color::WHITE);
        resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
        Ok(picture.encode_png()?)
    }
}

/// Every plot for which the rows have values.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn plots(rows: &[Row]) -> Result<Vec<Plot>> {
    let measured: Vec<&Row> = rows.iter().filter(|row| row.generation().is_some()).collect();
    let mut plots = Vec::new();
    // One plot has no room for the bars of all mixtures and their twins.
    let is_mixture = |row: &Row| MOE_TOP_K.iter().any(|scenario| scenario.key == row.record.scenario);
    let generation: Vec<&Row> = measured.iter().copied().filter(|row| !is_mixture(row)).collect();
    if !generation.is_empty() {
        plots.extend(of_generation(&generation)?);
    }
    let routed: Vec<&Row> = measured.iter().copied().filter(|row| routing(row).is_some()).collect();
    if let Some(scenario) = routed.first().map(|row| &row.record.scenario) {
        let mut routed: Vec<&Row> = routed.iter().copied().filter(|row| row.record.scenario == *scenario).collect();
        let factor = |row: &Row| routing(row).map_or(0.0, |routing| routing.load_balance_factor);
        routed.sort_by(|a, b| factor(b).total_cmp(&factor(a)));
        routed.truncate(COLOURS.len());
        plots.push(Plot {
            file: "expert_load.svg",
            title: "Load of experts, the busiest first, mean over the layers; the least even mixtures",
            svg: expert_load(&routed)?,
        });
    }
    for of in &GROWTHS {
        plots.extend(growth(rows, of)?);
    }
    Ok(plots)
}

fn of_generation(measured: &[&Row]) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    plots.push(Plot {
        file: "tokens_per_s.svg",
        title: "Generated tokens a second, end to end, with Criterion's 95 % interval",
        svg: by_scenario(measured, "tok/s", &|row| {
            let measures = row.generation()?;
            let rate = |ns: f64| measures.generated_tokens as f64 / ns * 1e9;
            let interval = row.criterion.map(|estimate| (rate(estimate.high_ns), rate(estimate.low_ns)));
            Some((measures.tokens_per_s, interval))
        })?,
    });
    plots.push(Plot {
        file: "mbu.svg",
        title: "Decode: share of the measured memory bandwidth (MBU)",
        svg: by_scenario(measured, "% of bandwidth", &|row| Some((row.generation()?.mbu? * 100.0, None)))?,
    });
    plots.push(Plot {
        file: "mfu.svg",
        title: "Prefill: share of the measured matrix rate (MFU)",
        svg: by_scenario(measured, "% of matrix rate", &|row| Some((row.generation()?.mfu? * 100.0, None)))?,
    });
    if let Some(svg) = roofline(measured)? {
        plots.push(Plot {
            file: "roofline.svg",
            title: "Roofline: rate over operations for each byte that must be read; circles decode, triangles prefill",
            svg,
        });
    }
    if let Some(longest) = measured.iter().filter_map(|row| Some(row.generation()?.itl_by_position_ms.len())).max() {
        let of_longest: Vec<&Row> = measured
            .iter()
            .copied()
            .filter(|row| row.generation().is_some_and(|measures| measures.itl_by_position_ms.len() == longest))
            .collect();
        if longest > 1 {
            plots.push(Plot {
                file: "step_latency.svg",
                title: "Inter-token latency over position, in the longest scenarios",
                svg: by_position(&of_longest)?,
            });
        }
    }
    Ok(plots)
}

/// The roofline model (Williams, Waterman and Patterson, 2009): the rate of each benchmark below its bound by bandwidth and
/// matrix rate.
fn roofline(rows: &[&Row]) -> Result<Option<String>> {
    struct Point {
        subject: String,
        is_decode: bool,
        flops_per_byte: f64,
        gflops: f64,
    }
    let Some(limits) = rows.iter().find_map(|row| row.record.limits.as_ref()) else { return Ok(None) };
    let mut points = Vec::new();
    for row in rows {
        let Some((measures, work)) = row.generation().and_then(|measures| Some((measures, measures.work?))) else {
            continue;
        };
        let mut add = |is_decode, flops: u64, bytes: u64, ms: f64| {
            let (flops_per_byte, gflops) = (flops as f64 / bytes as f64, flops as f64 / ms / 1e6);
            points.push(Point { subject: subject(row), is_decode, flops_per_byte, gflops });
        };
        add(false, work.prefill_flops, work.prefill_bytes, measures.ttft_ms);
        if let Some(ms) = measures.tpot_ms {
            add(true, work.step_flops, work.step_bytes, ms);
        }
    }
    if points.is_empty() {
        return Ok(None);
    }
    let (gb_per_s, peak) = (limits.read_bytes_per_s / 1e9, limits.matrix_flops_per_s / 1e9);
    let intensities = || points.iter().map(|point| point.flops_per_byte);
    let left = intensities().fold(0.5, f64::min) / 2.0;
    let right = intensities().fold(peak / gb_per_s, f64::max) * 4.0;
    let low = points.iter().map(|point| point.gflops).fold(left * gb_per_s, f64::min) / 2.0;
    let subjects = distinct(points.iter().map(|point| point.subject.clone()));
    let svg = draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d((left..right).log_scale(), (low..peak * 3.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("floating-point operations a byte")
            .y_desc("GFLOP/s")
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 14, &GREY))
            .draw()?;
        let ridge = peak / gb_per_s;
        let roof = [(left, left * gb_per_s), (ridge, peak), (right, peak)];
        chart
            .draw_series(LineSeries::new(roof, GREY.stroke_width(2)))?
            .label(format!("{gb_per_s:.0} GB/s, then {peak:.0} GFLOP/s"))
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 12, y)], GREY.stroke_width(3)));
        for (number, name) in subjects.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let own = |is_decode| {
                let own = points.iter().filter(move |point| point.subject == *name && point.is_decode == is_decode);
                own.map(|point| (point.flops_per_byte, point.gflops))
            };
            chart
                .draw_series(own(true).map(|at| Circle::new(at, 5, colour.filled())))?
                .label(name)
                .legend(move |(x, y)| Circle::new((x + 6, y), 5, colour.filled()));
            chart.draw_series(own(false).map(|at| TriangleMarker::new(at, 7, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(("sans-serif", 14, &GREY))
            .draw()
    })?;
    Ok(Some(svg))
}

/// A label of an axis, without trailing zeros.
fn short(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn routing(row: &Row) -> Option<&Routing> {
    row.generation()?.routing.as_ref()
}

/// Tokens of each expert divided by the mean, in descending order. A value of 1 everywhere is even.
fn sorted_load(routing: &Routing) -> Vec<f64> {
    let mut load = vec![0.0; routing.num_experts];
    for layer in &routing.tokens_per_expert {
        let mean = layer.iter().sum::<u64>() as f64 / layer.len() as f64;
        let mut sorted: Vec<f64> = layer.iter().map(|tokens| *tokens as f64 / mean).collect();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        load.iter_mut().zip(sorted).for_each(|(sum, load)| *sum += load);
    }
    load.iter().map(|sum| sum / routing.tokens_per_expert.len() as f64).collect()
}

/// A line plot of values with a name below each, and a vertical line at each index of `moved`.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn history(values: &[f64], names: &[&str], moved: &[usize], unit: &str) -> Result<String> {
    let top = values.iter().copied().fold(1e-9, f64::max) * 1.2;
    let end = values.len() as f64 - 0.5;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(-0.5..end, 0.0..top)?;
        let name = |x: &f64| {
            let place = x.round();
            let is_there = (x - place).abs() < 1e-6 && place >= 0.0;
            names.get(place as usize).filter(|_| is_there).map_or(String::new(), |name| (*name).to_owned())
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(values.len().min(12))
            .x_desc("commit")
            .y_desc(unit)
            .x_label_formatter(&name)
            .y_label_formatter(&|y| if top < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 14, &GREY))
            .draw()?;
        for &place in moved {
            let x = place as f64 - 0.5;
            chart.draw_series([PathElement::new(vec![(x, 0.0), (x, top)], COLOURS[4].stroke_width(2))])?;
        }
        let points = || values.iter().enumerate().map(|(place, value)| (place as f64, *value));
        chart.draw_series(LineSeries::new(points(), COLOURS[0].stroke_width(2)))?;
        chart.draw_series(points().map(|point| Circle::new(point, 4, COLOURS[0].filled())))?;
        Ok(())
    })
}

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A plot of lines in different colours, with a legend. The x axis begins at `from`, the y axis at 0.
fn lines(lines: &[Line], legend: SeriesLabelPosition, from: f64, x_unit: &str, y_unit: &str) -> Result<String> {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let end = points().map(|(x, _)| *x).fold(from + 1.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(1e-9, f64::max) * 1.3;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(from..end, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc(x_unit)
            .y_desc(y_unit)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if top < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 14, &GREY))
            .draw()?;
        for (number, line) in lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 12, y)], colour.stroke_width(3)));
        }
        chart.configure_series_labels().position(legend.clone()).label_font(("sans-serif", 14, &GREY)).draw()
    })
}

/// Loss over the steps of a training, for the batches and for the validation split.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn loss_curve(training: Vec<(f64, f64)>, validation: Vec<(f64, f64)>) -> Result<Plot> {
    let all =
        [Line { name: "training".into(), points: training }, Line { name: "validation".into(), points: validation }];
    Ok(Plot {
        file: "loss_curve.svg",
        title: "Loss over steps",
        svg: lines(&all, SeriesLabelPosition::UpperRight, 0.0, "step", "loss, nats a token")?,
    })
}

/// Latency over the rate of requests, with a line for each named percentile: the knee of a server.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn latency_over_rate(percentiles: Vec<(&str, Vec<(f64, f64)>)>) -> Result<Plot> {
    let all: Vec<Line> = percentiles.into_iter().map(|(name, points)| Line { name: name.to_owned(), points }).collect();
    Ok(Plot {
        file: "latency_over_rate.svg",
        title: "Latency over the rate of requests",
        svg: lines(&all, SeriesLabelPosition::UpperLeft, 0.0, "requests/s", "ms from the schedule")?,
    })
}

/// Load over the experts, with a line for each mixture.
fn expert_load(rows: &[&Row]) -> Result<String> {
    let line = |row: &&Row| {
        let load = sorted_load(routing(row)?);
        let points = load.into_iter().enumerate().map(|(place, load)| ((place + 1) as f64, load)).collect();
        Some(Line { name: row.record.subject.model.clone(), points })
    };
    let all: Vec<Line> = rows.iter().filter_map(line).collect();
    lines(&all, SeriesLabelPosition::UpperRight, 1.0, "expert, the busiest first", "tokens over the mean")
}

/// A plot over a size of the models. Models that differ only in this size share a line.
struct Growth {
    scenario: &'static str,
    file: &'static str,
    title: &'static str,
    axes: [&'static str; 2],
    point: fn(&Row) -> Option<Named>,
}

/// The name of a line, and a point of it.
type Named = (String, (f64, f64));

const GROWTHS: [Growth; 4] = [
    Growth {
        scenario: SWEEP.train,
        file: "growth_train.svg",
        title: "Training step over the length of the series",
        axes: STEP_OVER_WINDOW,
        point: step_over_window,
    },
    Growth {
        scenario: SWEEP.forward,
        file: "growth_infer.svg",
        title: "Forecast over the length of the series",
        axes: STEP_OVER_WINDOW,
        point: step_over_window,
    },
    Growth {
        scenario: PSANN_THROUGHPUT[0].key,
        file: "throughput_forward.svg",
        title: "Language models forward to the loss, over the batch",
        axes: RATE_OVER_BATCH,
        point: rate_over_batch,
    },
    Growth {
        scenario: PSANN_THROUGHPUT[1].key,
        file: "throughput_train.svg",
        title: "Language models in training, over the batch",
        axes: RATE_OVER_BATCH,
        point: rate_over_batch,
    },
];

const STEP_OVER_WINDOW: [&str; 2] = ["steps of the series that are seen", "ms a step, median"];
const RATE_OVER_BATCH: [&str; 2] = ["tokens a step", "tok/s"];

fn step_over_window(row: &Row) -> Option<Named> {
    let (Some(Measures::Sweep(measures)), subject) = (&row.record.measures, &row.record.subject) else { return None };
    let window = *subject.sizes.get("window")?;
    Some((subject.model.replace(&format!("-w{window}"), ""), (window as f64, measures.step_p50_ms)))
}

fn rate_over_batch(row: &Row) -> Option<Named> {
    let (Some(Measures::Training(measures)), subject) = (&row.record.measures, &row.record.subject) else {
        return None;
    };
    let model = subject.model.rsplit_once("-b").map_or(subject.model.as_str(), |(model, _)| model);
    Some((format!("{model} {}", subject.dtype), (measures.batch_tokens as f64, measures.tokens_per_s)))
}

fn growth(rows: &[Row], growth: &Growth) -> Result<Option<Plot>> {
    let mut all: Vec<Line> = Vec::new();
    for row in rows.iter().filter(|row| row.record.scenario == growth.scenario) {
        let Some((name, point)) = (growth.point)(row) else { continue };
        match all.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => all.push(Line { name, points: vec![point] }),
        }
    }
    all.retain(|line| line.points.len() > 1);
    all.iter_mut().for_each(|line| line.points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0)));
    let [x_unit, y_unit] = growth.axes;
    let draw = || lines(&all, SeriesLabelPosition::UpperLeft, 0.0, x_unit, y_unit);
    let plot = |svg| Plot { file: growth.file, title: growth.title, svg };
    Ok((!all.is_empty()).then(draw).transpose()?.map(plot))
}

/// Height of a bar, and an optional interval.
type Bar<'a> = &'a dyn Fn(&Row) -> Option<(f64, Option<(f64, f64)>)>;

/// Bars grouped by scenario, with a colour for each subject.
fn by_scenario(rows: &[&Row], unit: &str, bar: Bar) -> Result<String> {
    let scenarios = distinct(rows.iter().map(|row| row.record.scenario.clone()));
    let subjects = distinct(rows.iter().map(|row| subject(row)));
    let most = rows.iter().filter_map(|row| bar(row)).map(|(value, interval)| interval.map_or(value, |(_, high)| high));
    // The factor leaves room for the legend above the bars.
    let top = most.fold(1e-9, f64::max) * 1.35;
    let width = 0.8 / subjects.len() as f64;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..scenarios.len() as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc(unit)
            .y_label_formatter(&|y| format!("{y:.0}"))
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 14, &GREY))
            .draw()?;
        let below = ("sans-serif", 14).into_text_style(area).color(&GREY).pos(Pos::new(HPos::Center, VPos::Top));
        chart.draw_series(
            scenarios
                .iter()
                .enumerate()
                .map(|(place, scenario)| Text::new(scenario.clone(), (place as f64 + 0.5, -0.02 * top), below.clone())),
        )?;
        for (number, name) in subjects.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let mut bars = Vec::new();
            let mut whiskers = Vec::new();
            for row in rows.iter().filter(|row| subject(row) == *name) {
                let Some((value, interval)) = bar(row) else { continue };
                let Some(place) = scenarios.iter().position(|scenario| *scenario == row.record.scenario) else {
                    continue;
                };
                let left = place as f64 + 0.1 + number as f64 * width;
                bars.push(Rectangle::new([(left, 0.0), (left + width * 0.9, value)], colour.filled()));
                if let Some((low, high)) = interval {
                    let middle = left + width * 0.45;
                    whiskers.push(PathElement::new(vec![(middle, low), (middle, high)], GREY.stroke_width(2)));
                }
            }
            let key = move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled());
            chart.draw_series(bars)?.label(name).legend(key);
            chart.draw_series(whiskers)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 14, &GREY))
            .draw()
    })
}

/// Lines over the position in the sequence, with a colour for each subject.
fn by_position(rows: &[&Row]) -> Result<String> {
    let series: Vec<(String, usize, &[f64])> = rows
        .iter()
        .filter_map(|row| {
            let measures = row.generation()?;
            let name = format!("{} {}", row.record.scenario, subject(row));
            Some((name, measures.prompt_tokens, measures.itl_by_position_ms.as_slice()))
        })
        .collect();
    let end = series.iter().map(|(_, prompt, itl)| prompt + itl.len()).max().unwrap_or(1);
    // The 99th percentile keeps a single slow step from flattening all others.
    let mut every: Vec<f64> = series.iter().flat_map(|(.., itl)| itl.iter().copied()).collect();
    every.sort_unstable_by(f64::total_cmp);
    let top = every.get(every.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(1.0) * 1.3;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc("position in the sequence, tokens")
            .y_desc("inter-token latency, ms")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 14, &GREY))
            .draw()?;
        for (number, (name, prompt, itl)) in series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points = itl.iter().enumerate().map(|(step, ms)| ((prompt + step + 1) as f64, ms.min(top)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 12, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 14, &GREY))
            .draw()
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw(paint: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        paint(&area).map_err(|error| anyhow!("a plot could not be drawn: {error}"))?;
        area.present().map_err(|error| anyhow!("a plot could not be drawn: {error}"))?;
    }
    // The library escapes markup, but lets characters pass that XML does not allow.
    Ok(text::xml_characters(&svg))
}

fn subject(row: &Row) -> String {
    format!("{} {}", row.record.subject.model, row.record.subject.variant())
}

/// The distinct values in order of first appearance.
fn distinct(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}
