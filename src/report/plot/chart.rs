//! Charts as SVG text: axes, marks, and a legend below the chart, so that a phone shows both. Text and axes have the colour of the
//! surrounding text, so that a chart suits light and dark pages.

use std::fmt::Write;

use crate::text::xml;

/// Colours of the marks. Each has a contrast of at least three to white and to black, and colour-blind people can
/// distinguish neighbours.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#b5599a", "#a87b00", "#7a6bd0", "#808080"];

/// Lengths of dashes and gaps. The first is a solid line.
const DASHES: [&str; 4] = ["", "7 4", "2 3", "10 3 2 3"];

const WIDTH: f64 = 590.0;
const HEIGHT: f64 = 360.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 52.0;
const LEFT: f64 = 70.0;
/// Width of a character and height of a line of text, about.
const CHARACTER: f64 = 7.1;
const LINE: f64 = 14.0;
/// Height of a row of the legend, and the width of a colour or dash with its distance from the text.
const LEGEND_ROW: f64 = 20.0;
const KEY: f64 = 28.0;
/// Longest text of the legend. The rest is left out in the middle.
const LEGEND_CHARS: usize = 36;

/// Labels of a linear axis. Its steps are never as small as that.
const MOST_TICKS: usize = 20;

/// The colour of a mark: an index into the palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub usize);

impl Colour {
    /// Worse than before.
    pub const WORSE: Self = Self(1);
    /// Better than before.
    pub const BETTER: Self = Self(2);
    /// Neither.
    pub const NEUTRAL: Self = Self(6);

    fn name(self) -> &'static str {
        COLOURS[self.0 % COLOURS.len()]
    }
}

/// Colour and dash of a mark. The second and later dashes are also drawn as hollow dots and lighter bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Stands for the model.
    pub colour: Colour,
    /// Stands for the scenario or the engine: an index into the kinds of dashes.
    pub dash: usize,
}

impl Style {
    fn stroke(self) -> String {
        let dash = DASHES[self.dash % DASHES.len()];
        let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
        format!("stroke=\"{}\"{dash}", self.colour.name())
    }

    fn fill(self) -> String {
        match self.dash {
            0 => format!("fill=\"{0}\" stroke=\"{0}\"", self.colour.name()),
            _ => format!("fill=\"{}\" fill-opacity=\"0.3\" {}", self.colour.name(), self.stroke()),
        }
    }
}

/// Scale of an axis.
#[derive(Clone, Debug)]
pub enum Scale {
    /// Equal distances for equal differences.
    Linear(f64, f64),
    /// Equal distances for equal quotients. Both ends are positive.
    Log(f64, f64),
    /// One place for each name. The value of a place is its index.
    Names(Vec<String>),
}

impl Scale {
    /// A linear scale from 0 to a little more than the largest value.
    pub fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        Self::Linear(0.0, values.fold(1e-9, f64::max) * 1.05)
    }

    /// Shares in percent: from 0 to a little more than 100, or than the largest value if it is larger.
    pub fn percent(values: impl Iterator<Item = f64>) -> Self {
        Self::Linear(0.0, values.fold(100.0, f64::max) * 1.05)
    }

    /// A logarithmic scale around the positive values.
    pub fn log(values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|value| *value > 0.0 && value.is_finite());
        let (low, high) = positive.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
        if low > high { Self::Log(1.0, 10.0) } else { Self::Log(low / 1.3, high * 1.3) }
    }

    /// Share of the axis at which a value lies.
    fn place(&self, value: f64) -> f64 {
        match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Log(from, to) => (value / from).ln() / (to / from).ln(),
            Self::Names(names) => (value + 0.5) / names.len() as f64,
        }
    }

    /// Values with a label, and their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let numbers: Vec<f64> = match self {
            Self::Names(names) => return names.iter().cloned().enumerate().map(|(n, name)| (n as f64, name)).collect(),
            Self::Linear(from, to) => {
                let rough = (to - from) / 5.0;
                let power = 10f64.powf(rough.log10().floor());
                let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
                let step = factor * power;
                // An empty axis has a step of 0, and no first tick.
                let first = (from / step).ceil();
                let values = (0..MOST_TICKS).map(|n| (first + n as f64) * step);
                values.take_while(|value| *value <= to * (1.0 + 1e-9)).collect()
            }
            // Values from elsewhere may leave no axis.
            Self::Log(from, to) if !(*from > 0.0 && to.is_finite()) => Vec::new(),
            Self::Log(from, to) => {
                let factors: &[f64] = match (to / from).log10() {
                    decades if decades > 3.0 => &[1.0],
                    decades if decades > 0.8 => &[1.0, 2.0, 5.0],
                    _ => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
                };
                let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
                let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
                all.filter(|value| (*from..=*to).contains(value)).collect()
            }
        };
        numbers.into_iter().map(|value| (value, short(value))).collect()
    }
}

/// An axis: its scale, and a label with the unit.
pub struct Axis {
    /// Scale of the axis.
    pub scale: Scale,
    /// Label, with the unit.
    pub label: String,
    /// Values with a label, if they are not those of the scale.
    ticks: Option<Vec<f64>>,
}

impl Axis {
    /// An axis.
    pub fn new(scale: Scale, label: &str) -> Self {
        Self { scale, label: label.to_owned(), ticks: None }
    }

    /// A logarithmic axis with a label at each value.
    pub fn at(mut values: Vec<f64>, label: &str) -> Self {
        values.sort_by(f64::total_cmp);
        values.dedup();
        Self { ticks: Some(values.clone()), ..Self::new(Scale::log(values.into_iter()), label) }
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        match &self.ticks {
            Some(values) => values.iter().map(|value| (*value, short(*value))).collect(),
            None => self.scale.ticks(),
        }
    }
}

/// A chart under construction.
pub struct Chart {
    x: Axis,
    y: Axis,
    marks: String,
    legend: Vec<(Key, String)>,
    height: f64,
    left: f64,
}

/// The sample beside a text of the legend.
enum Key {
    Colour(Colour),
    Dash(usize),
    Text,
}

impl Key {
    /// Its width, with its distance from the text.
    fn width(&self) -> f64 {
        if matches!(self, Self::Text) { 0.0 } else { KEY }
    }
}

impl Chart {
    /// A chart without marks.
    pub fn new(x: Axis, y: Axis) -> Self {
        // Names need room beside the vertical axis.
        let longest = match &y.scale {
            Scale::Names(names) => names.iter().map(|name| name.chars().count()).max().unwrap_or(0),
            _ => 0,
        };
        let height = match &y.scale {
            Scale::Names(names) => TOP + BOTTOM + 20.0 * names.len() as f64,
            _ => HEIGHT,
        };
        Self {
            x,
            y,
            marks: String::new(),
            legend: Vec::new(),
            height,
            left: LEFT.max(CHARACTER * longest as f64 + 14.0),
        }
    }

    fn width(&self) -> f64 {
        WIDTH - LEFT + self.left
    }

    fn right(&self) -> f64 {
        self.width() - 20.0
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        // A value that the axis has no place for, such as 0 on a logarithmic one, is far outside, but still a number.
        let place =
            |scale: &Scale, value: f64| Some(scale.place(value)).filter(|place| !place.is_nan()).unwrap_or(-10.0);
        let [x, y] = [place(&self.x.scale, x), place(&self.y.scale, y)].map(|place| place.clamp(-10.0, 10.0));
        let (bottom, top) = (self.height - BOTTOM, TOP);
        // A row of names goes down, values go up.
        let y = if matches!(self.y.scale, Scale::Names(_)) {
            top + y * (bottom - top)
        } else {
            bottom - y * (bottom - top)
        };
        (self.left + x * (self.right() - self.left), y)
    }

    /// Explains a colour in the legend.
    pub fn colour_key(&mut self, colour: Colour, name: &str) {
        self.legend.push((Key::Colour(colour), name.to_owned()));
    }

    /// Explains a dash in the legend.
    pub fn dash_key(&mut self, dash: usize, name: &str) {
        self.legend.push((Key::Dash(dash), name.to_owned()));
    }

    /// Adds a line of text to the legend.
    pub fn text_key(&mut self, text: &str) {
        self.legend.push((Key::Text, text.to_owned()));
    }

    /// A line through at least three points, or dots: a line through two points would suggest a course that was not
    /// measured.
    pub fn line(&mut self, points: &[(f64, f64)], style: Style) {
        if points.len() < 3 {
            return points.iter().for_each(|point| self.dot(*point, style));
        }
        self.path(points, &format!("{} stroke-width=\"2\"", style.stroke()));
    }

    /// A line with a dot at each point.
    pub fn dotted_line(&mut self, points: &[(f64, f64)], style: Style) {
        if points.len() > 2 {
            self.line(points, style);
        }
        points.iter().for_each(|point| self.dot(*point, style));
    }

    /// A thin line in the colour of the text.
    pub fn guide(&mut self, points: &[(f64, f64)]) {
        self.path(points, "stroke=\"currentColor\" stroke-opacity=\"0.6\"");
    }

    fn path(&mut self, points: &[(f64, f64)], stroke: &str) {
        let at: Vec<String> =
            points.iter().map(|point| self.at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.marks, "<polyline fill=\"none\" {stroke} points=\"{}\"/>", at.join(" "));
    }

    /// A dot.
    pub fn dot(&mut self, point: (f64, f64), style: Style) {
        let (x, y) = self.at(point);
        let _ = writeln!(self.marks, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" {}/>", solid_edge(style));
    }

    /// A triangle.
    pub fn triangle(&mut self, point: (f64, f64), style: Style) {
        let (x, y) = self.at(point);
        let _ = writeln!(self.marks, "<path d=\"M{:.1} {:.1}l5 9h-10z\" {}/>", x, y - 6.0, solid_edge(style));
    }

    /// An arrow from one point to another.
    pub fn arrow(&mut self, from: (f64, f64), to: (f64, f64), style: Style) {
        self.path(&[from, to], &format!("{} stroke-width=\"2\"", style.stroke()));
        let ((x0, y0), (x1, y1)) = (self.at(from), self.at(to));
        let angle = (y1 - y0).atan2(x1 - x0).to_degrees();
        let _ = writeln!(
            self.marks,
            "<path d=\"M0 0l-11 -5v10z\" fill=\"{}\" transform=\"translate({x1:.1} {y1:.1}) rotate({angle:.1})\"/>",
            style.colour.name()
        );
    }

    /// A bar from 0 to `value`, in part `number` of `count` of the place `name` of the horizontal axis.
    pub fn bar(&mut self, name: usize, (number, count): (usize, usize), value: f64, style: Style) -> Bar {
        let share = 0.8 / count as f64;
        let from = name as f64 - 0.4 + number as f64 * share;
        let ((left, top), (right, bottom)) = (self.at((from, value)), self.at((from + share * 0.88, 0.0)));
        let _ = writeln!(
            self.marks,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" {}/>",
            right - left,
            (bottom - top).max(0.0),
            style.fill()
        );
        Bar { left: from, right: from + share * 0.88 }
    }

    /// An interval on a bar.
    pub fn whisker(&mut self, bar: &Bar, low: f64, high: f64) {
        let middle = (bar.left + bar.right) / 2.0;
        self.path(&[(middle, low), (middle, high)], "stroke=\"currentColor\" stroke-width=\"1.5\"");
    }

    /// A line across a bar.
    pub fn notch(&mut self, bar: &Bar, value: f64) {
        self.path(&[(bar.left, value), (bar.right, value)], "stroke=\"currentColor\" stroke-width=\"1.5\"");
    }

    /// An interval with a dot, on a place of the vertical axis.
    pub fn interval(&mut self, row: usize, (low, middle, high): (f64, f64, f64), style: Style) {
        let row = row as f64;
        self.path(&[(low, row), (high, row)], &format!("{} stroke-width=\"2\"", style.stroke()));
        let (x, y) = self.at((middle, row));
        let _ = writeln!(self.marks, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" {}/>", solid_edge(style));
    }

    /// A bar from one horizontal value to another, on a place of the vertical axis.
    pub fn span(&mut self, row: usize, (from, to): (f64, f64), style: Style) {
        let row = row as f64;
        let ((left, top), (right, bottom)) = (self.at((from, row - 0.4)), self.at((to, row + 0.4)));
        let _ = writeln!(
            self.marks,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" {}/>",
            right - left,
            bottom - top,
            style.fill()
        );
    }

    /// A line across a bar on a place of the vertical axis.
    pub fn mark(&mut self, row: usize, value: f64) {
        let row = row as f64;
        self.path(&[(value, row - 0.5), (value, row + 0.5)], "stroke=\"currentColor\" stroke-width=\"2\"");
    }

    /// A band over the whole height, from one horizontal value to another.
    pub fn band(&mut self, from: f64, to: f64) {
        let ((left, _), (right, _)) = (self.at((from, 0.0)), self.at((to, 0.0)));
        let _ = writeln!(
            self.marks,
            "<rect x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"currentColor\" fill-opacity=\"0.08\"/>",
            right - left,
            self.height - BOTTOM - TOP
        );
    }

    /// A vertical line over the whole height.
    pub fn vertical(&mut self, x: f64, style: Style) {
        let (x, _) = self.at((x, 0.0));
        let _ = writeln!(
            self.marks,
            "<path d=\"M{x:.1} {TOP}V{:.1}\" fill=\"none\" {} stroke-width=\"2\"/>",
            self.height - BOTTOM,
            style.stroke()
        );
    }

    /// Text above a point, turned by an angle in degrees.
    pub fn label(&mut self, point: (f64, f64), text: &str, angle: f64) {
        let (x, y) = self.at(point);
        let _ = writeln!(
            self.marks,
            "<text transform=\"translate({x:.1} {y:.1}) rotate({angle:.1})\" dy=\"-7\">{}</text>",
            xml(text)
        );
    }

    /// Text above each point, towards the middle of the chart, and a line higher where it would cover an earlier one.
    pub fn labels<'a>(&mut self, labels: impl IntoIterator<Item = ((f64, f64), &'a str)>) {
        let middle = (self.left + self.right()) / 2.0;
        let mut taken: Vec<(f64, f64, f64)> = Vec::new();
        for (point, text) in labels {
            let (x, y) = self.at(point);
            let width = CHARACTER * text.chars().count() as f64;
            let (anchor, from) = if x > middle { ("end", x - width) } else { ("start", x) };
            let mut base = y - 7.0;
            while taken
                .iter()
                .any(|(left, right, other)| from < *right && *left < from + width && (base - other).abs() < LINE)
            {
                base -= LINE;
            }
            taken.push((from, from + width, base));
            let _ = writeln!(
                self.marks,
                "<text x=\"{x:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\">{}</text>",
                xml(text)
            );
        }
    }

    /// The angle, in degrees, of a line through two points.
    pub fn angle(&self, from: (f64, f64), to: (f64, f64)) -> f64 {
        let ((x0, y0), (x1, y1)) = (self.at(from), self.at(to));
        (y1 - y0).atan2(x1 - x0).to_degrees()
    }

    /// The place of each entry of the legend: from left to right, in as many rows as it takes.
    fn legend(&self) -> Vec<(f64, f64, &Key, String)> {
        let (mut x, mut y) = (LEFT, self.height + LEGEND_ROW / 2.0);
        let mut entries = Vec::new();
        for (key, text) in &self.legend {
            let text = shortened(text, LEGEND_CHARS);
            let width = key.width() + CHARACTER * text.chars().count() as f64;
            if x > LEFT && x + width > self.right() {
                (x, y) = (LEFT, y + LEGEND_ROW);
            }
            entries.push((x, y, key, text));
            x += width + 14.0;
        }
        entries
    }

    /// The chart as SVG. `title` describes it to people who cannot see it.
    pub fn svg(self, title: &str) -> String {
        let (width, bottom, right) = (self.width(), self.height - BOTTOM, self.right());
        let legend = self.legend();
        let height = self.height + legend.last().map_or(0.0, |(_, y, ..)| y - self.height + LEGEND_ROW);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"14\" fill=\"currentColor\">\n",
            xml(title),
        );
        for (value, label) in self.x.ticks() {
            let (x, _) = self.at((value, 0.0));
            if !matches!(self.x.scale, Scale::Names(_)) {
                let _ = writeln!(svg, "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" {GRID}/>");
            }
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                xml(&label)
            );
        }
        for (value, label) in self.y.ticks() {
            let (_, y) = self.at((0.0, value));
            let _ = writeln!(svg, "<path d=\"M{:.1} {y:.1}H{right:.1}\" {GRID}/>", self.left);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                self.left - 7.0,
                y + 4.5,
                xml(&label)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} {TOP}V{bottom:.1}H{right:.1}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\"0.6\"/>",
            self.left
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (self.left + right) / 2.0,
            self.height - 12.0,
            xml(&self.x.label)
        );
        if !self.y.label.is_empty() {
            let _ = writeln!(
                svg,
                "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                (TOP + bottom) / 2.0,
                xml(&self.y.label)
            );
        }
        svg.push_str(&self.marks);
        for (x, y, key, text) in legend {
            match key {
                Key::Colour(colour) => {
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"22\" height=\"10\" fill=\"{}\"/>",
                        y - 5.0,
                        colour.name()
                    );
                }
                Key::Dash(dash) => {
                    let lengths = DASHES[dash % DASHES.len()];
                    let _ = writeln!(
                        svg,
                        "<path d=\"M{x:.1} {y:.1}h22\" stroke=\"currentColor\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>\
                         <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" stroke=\"currentColor\" fill-opacity=\"{}\"/>",
                        if lengths.is_empty() { "none" } else { lengths },
                        x + 11.0,
                        if *dash == 0 { 1.0 } else { 0.15 },
                    );
                }
                Key::Text => {}
            }
            let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + key.width(), y + 4.5, xml(&text));
        }
        svg.push_str("</svg>");
        svg
    }
}

/// A bar of a chart: its ends on the horizontal axis.
pub struct Bar {
    left: f64,
    right: f64,
}

const GRID: &str = "fill=\"none\" stroke=\"currentColor\" stroke-opacity=\"0.13\"";

/// The fill of a small mark. Dashes would make its edge unreadable.
fn solid_edge(style: Style) -> String {
    let opacity = if style.dash == 0 { "" } else { " fill-opacity=\"0.15\" stroke-width=\"1.7\"" };
    format!("fill=\"{0}\" stroke=\"{0}\"{opacity}", style.colour.name())
}

/// A number without trailing zeros, and with a letter for thousands and more.
fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", if text.is_empty() || text == "-0" { "0" } else { text })
}

/// The text with its middle replaced by `…`, if it has more than `width` characters.
pub fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width || width < 5 {
        return text.chars().take(width).collect();
    }
    let (front, back) = (width.div_ceil(2) - 1, width / 2);
    let chars: Vec<char> = text.chars().collect();
    chars[..front].iter().chain(&['…']).chain(&chars[count - back..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let labels = |scale: Scale| scale.ticks().into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(Scale::Linear(0.0, 100.0)), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(Scale::Linear(-0.2, 0.25)), ["-0.2", "-0.1", "0", "0.1", "0.2"]);
        assert_eq!(labels(Scale::Log(0.9, 60.0)), ["1", "2", "5", "10", "20", "50"]);
        assert_eq!(labels(Scale::Log(50.0, 3e6)), ["100", "1000", "10k", "100k", "1M"]);
        assert_eq!(labels(Scale::Names(vec!["a".into(), "b".into()])), ["a", "b"]);
        assert!(labels(Scale::Log(0.0, 10.0)).is_empty() && labels(Scale::Linear(0.5, 0.5)).len() <= MOST_TICKS);
    }

    #[test]
    fn a_value_without_a_place_is_a_number_outside() {
        let mut chart =
            Chart::new(Axis::at(vec![0.0, 1.0, 10.0], "x"), Axis::new(Scale::Linear(0.0, f64::INFINITY), "y"));
        chart.dot((0.0, f64::NAN), Style { colour: Colour(0), dash: 0 });
        let svg = chart.svg("a chart");
        assert!(!svg.contains("inf") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn two_points_are_dots_and_three_a_line() {
        let style = Style { colour: Colour(0), dash: 1 };
        let drawn = |points: &[(f64, f64)]| {
            let axis = || Axis::new(Scale::Linear(0.0, 10.0), "x");
            let mut chart = Chart::new(axis(), axis());
            chart.line(points, style);
            chart.svg("a chart")
        };
        let two = drawn(&[(1.0, 1.0), (2.0, 2.0)]);
        assert!(two.matches("<circle").count() == 2 && !two.contains("<polyline"), "{two}");
        let three = drawn(&[(1.0, 1.0), (2.0, 2.0), (3.0, 1.0)]);
        assert!(three.contains("<polyline") && three.contains("stroke-dasharray=\"7 4\""), "{three}");
    }

    #[test]
    fn text_has_the_colour_of_the_page_and_is_escaped() {
        let mut chart = Chart::new(Axis::new(Scale::Linear(0.0, 1.0), "<x>"), Axis::new(Scale::Linear(0.0, 1.0), ""));
        chart.colour_key(Colour(0), "a&b");
        let svg = chart.svg("\"quoted\"");
        assert!(svg.contains("fill=\"currentColor\"") && svg.contains("&lt;x&gt;") && svg.contains("a&amp;b"), "{svg}");
        assert!(svg.contains("aria-label=\"&quot;quoted&quot;\""), "{svg}");
    }

    #[test]
    fn labels_cover_no_other_label() {
        let axis = |name| Axis::new(Scale::Linear(0.0, 100.0), name);
        let mut chart = Chart::new(axis("x"), axis("y"));
        chart.labels([((10.0, 50.0), "first"), ((11.0, 50.0), "second"), ((99.0, 50.0), "third")]);
        let of = |text: &str| {
            let line = chart.marks.lines().find(|line| line.contains(text)).expect(text);
            let number = |name: &str| {
                let (_, rest) = line.split_once(&format!(" {name}=\"")).expect(name);
                rest.split('"').next().expect("an end").to_owned()
            };
            (number("y").parse::<f64>().expect("a number"), number("text-anchor"))
        };
        let [first, second, third] = ["first", "second", "third"].map(of);
        assert_eq!((first.1.as_str(), second.1.as_str(), third.1.as_str()), ("start", "start", "end"));
        assert!((first.0 - second.0 - LINE).abs() < 0.2 && (first.0 - third.0).abs() < 0.2, "{first:?} {second:?}");
    }
}
