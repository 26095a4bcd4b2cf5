//! Plots of a report as SVG and PNG. [`PLOTS`] has a row for each plot. Colour stands for the model, and dash for the scenario
//! or the engine.

mod chart;
mod dtypes;
mod forest;
mod generation;
mod mixtures;
mod over_time;
mod scaling;
mod serving;
mod stacked;
mod training;

use anyhow::{Context, Result};
use epaint_default_fonts::UBUNTU_LIGHT;
use resvg::{tiny_skia, usvg};

pub use chart::shortened;
use chart::{Chart, Colour, Style};
use generation::Of;
pub use over_time::{Course, Over, history, loss_curve, over_seconds, sparkline};
pub use serving::latency_over_rate;

use super::{
    Stack,
    joined::{MOST_PLOTTED, Row},
};
use crate::{record::measures::TableKey, scenario::MOE_TOP_K, text};

/// A plot with its file name and title.
#[derive(Debug)]
pub struct Plot {
    /// Name of the SVG file.
    pub file: &'static str,
    /// A sentence without a full stop.
    pub title: &'static str,
    /// The table of records that has the values of the plot; `None` if it stands alone.
    pub beside: Option<TableKey>,
    /// SVG for a page: text has the colour of the text around it.
    pub svg: String,
}

impl Plot {
    fn new(file: &'static str, title: &'static str, beside: Option<TableKey>, chart: Chart) -> Self {
        // Names in records may hold characters that XML does not allow.
        Self { file, title, beside, svg: text::xml_characters(&chart.svg(title)) }
    }

    /// The plot as a file of its own: text is dark, or light for viewers with a dark colour scheme.
    pub fn file_svg(&self) -> String {
        standalone(&self.svg)
    }

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

/// Gives a plot of a page its own colour of text.
pub(super) fn standalone(svg: &str) -> String {
    const STYLE: &str = "<style>:root{color-scheme:light dark;color:#1f2328}\
                         @media(prefers-color-scheme:dark){:root{color:#e6edf3}}</style>";
    svg.replacen(">\n", &format!(">{STYLE}\n"), 1)
}

/// A kind of plot. A row of [`PLOTS`] is all that a new plot needs besides its function.
struct PlotRow {
    file: &'static str,
    title: &'static str,
    /// The table that has the values of the plot.
    beside: TableKey,
    /// Draws the plot if the rows of the report have values for it.
    draw: fn(&[Row]) -> Option<Chart>,
}

const fn plot(file: &'static str, beside: TableKey, title: &'static str, draw: fn(&[Row]) -> Option<Chart>) -> PlotRow {
    PlotRow { file, title, beside, draw }
}

#[rustfmt::skip]
const PLOTS: [PlotRow; 23] = [
    plot("tokens_per_s.svg", TableKey::Generation,
        "Generated tokens per second, end to end, with Criterion's 95 % interval", |rows| generation::tokens_per_s(rows, Of::Small)),
    plot("tokens_per_s_large.svg", TableKey::Generation,
        "Generated tokens per second of models above 500 MB", |rows| generation::tokens_per_s(rows, Of::Large)),
    plot("ttft.svg", TableKey::Generation, "Time to first token", |rows| generation::ttft(rows, Of::Small)),
    plot("ttft_large.svg", TableKey::Generation,
        "Time to first token of models above 500 MB", |rows| generation::ttft(rows, Of::Large)),
    plot("mbu.svg", TableKey::Generation, "Decode: share of the measured memory bandwidth (MBU)", generation::mbu),
    plot("mfu.svg", TableKey::Generation, "Prefill: share of the measured matrix rate (MFU)", generation::mfu),
    plot("memory.svg", TableKey::Generation,
        "Peak memory, with a line at the size of the weights", |rows| generation::memory(rows, Of::Small)),
    plot("memory_large.svg", TableKey::Generation,
        "Peak memory of models above 500 MB, with a line at the size of the weights", |rows| generation::memory(rows, Of::Large)),
    plot("roofline.svg", TableKey::Generation, "Roofline: rate over operations per byte that must be read", generation::roofline),
    plot("step_latency.svg", TableKey::Generation,
        "Inter-token latency over position, in the longest scenarios", generation::step_latency),
    plot("long_context_prefill.svg", TableKey::LongContext,
        "Prefill over the length of the prompt, in the long contexts", generation::prefill_over_depth),
    plot("long_context_decode.svg", TableKey::LongContext,
        "Decode over the length of the sequence, in the long contexts", generation::decode_over_depth),
    plot("threads_scaling.svg", TableKey::Scaling, "Generated tokens per second over threads, with their ideal", scaling::over_threads),
    plot("expert_load.svg", TableKey::MixturePrefill,
        "Load of the experts, the busiest first, mean over the layers; the least even mixtures", mixtures::expert_load),
    plot("mixture_prefill.svg", TableKey::MixturePrefill,
        "Prefill time of a mixture over that of its dense twins", mixtures::prefill),
    plot("mixture_decode.svg", TableKey::MixtureDecode,
        "Decode time of a mixture over that of its dense twins", mixtures::decode),
    plot("sweep.svg", TableKey::Sweep, "Samples per second over parameters", training::sweep),
    plot("growth_train.svg", TableKey::Sweep, "Training step over the length of the series", training::growth_train),
    plot("growth_infer.svg", TableKey::Sweep, "Forecast over the length of the series", training::growth_forward),
    plot("checkpointing.svg", TableKey::Checkpointing,
        "Gradient checkpointing: time of a step over peak memory", training::checkpointing),
    plot("throughput_forward.svg", TableKey::Training,
        "Language models forward to the loss, over the batch", training::throughput_forward),
    plot("throughput_train.svg", TableKey::Training, "Language models in training, over the batch", training::throughput_train),
    plot("dtypes.svg", TableKey::Dtypes,
        "Divergence from the reference over speed, with the size of the weights", dtypes::divergence_over_rate),
];

/// Every plot for which the rows have values, unless there are more than [`MOST_PLOTTED`].
pub fn plots(rows: &[Row]) -> Vec<Plot> {
    if rows.len() > MOST_PLOTTED {
        return Vec::new();
    }
    let plot = |row: &PlotRow| Some(Plot::new(row.file, row.title, Some(row.beside), (row.draw)(rows)?));
    PLOTS.iter().filter_map(plot).collect()
}

/// Stacked bars, beside no table of records.
pub fn stacked(file: &'static str, title: &'static str, stacks: &[Stack]) -> Plot {
    Plot::new(file, title, None, stacked::shares(stacks))
}

/// Name of the model of a row, or of another property that its colour or dash stands for.
type Name = fn(&Row) -> String;

/// The colour of each model and the dash of each scenario or engine, in order of first appearance.
struct Styles {
    colour: (Name, Vec<String>),
    dash: (Name, Vec<String>),
}

impl Styles {
    fn new(rows: &[&Row], colour: Name, dash: Name) -> Self {
        let names = |name: Name| distinct(rows.iter().map(|row| name(row)));
        Self { colour: (colour, names(colour)), dash: (dash, names(dash)) }
    }

    fn of(&self, row: &Row) -> Style {
        let place = |(name, names): &(Name, Vec<String>)| {
            let own = name(row);
            names.iter().position(|name| *name == own).unwrap_or_default()
        };
        Style { colour: Colour(place(&self.colour)), dash: place(&self.dash) }
    }

    /// Explains the colours, and the dashes if there are several.
    fn explain(&self, chart: &mut Chart) {
        for (number, name) in self.colour.1.iter().enumerate() {
            chart.colour_key(Colour(number), name);
        }
        if self.dash.1.len() > 1 {
            for (number, name) in self.dash.1.iter().enumerate() {
                chart.dash_key(number, name);
            }
        }
    }
}

/// The rows with a generation, mixtures of experts and their twins apart.
fn generations(rows: &[Row], mixtures: bool) -> Vec<&Row> {
    let is_mixture = |row: &Row| MOE_TOP_K.iter().any(|scenario| scenario.key == row.record.scenario);
    rows.iter().filter(|row| row.generation().is_some() && is_mixture(row) == mixtures).collect()
}

fn model(row: &Row) -> String {
    row.record.subject.model.clone()
}

fn variant(row: &Row) -> String {
    row.record.subject.variant().to_string()
}

fn scenario(row: &Row) -> String {
    row.record.scenario.clone()
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
