//! A part of a report that does not come from records.

use super::plot;

/// A heading with a plot and a table.
#[derive(Debug)]
pub struct Section {
    pub(super) heading: &'static str,
    /// File of the plot.
    pub(super) file: &'static str,
    pub(super) plot_title: &'static str,
    /// SVG for a page.
    pub(super) svg: String,
    /// The first row has the headers.
    pub(super) rows: Vec<Vec<String>>,
}

/// A whole and its parts.
pub(crate) struct Stack {
    pub name: String,
    /// Names and shares, which sum to 1.
    pub parts: Vec<(String, f64)>,
    /// The least share that the machine's limits allow.
    pub bound: f64,
}

impl Section {
    /// A bar for each whole, above a table.
    pub(crate) fn of_stacks(
        heading: &'static str,
        (file, plot_title): (&'static str, &'static str),
        stacks: &[Stack],
        rows: Vec<Vec<String>>,
    ) -> Self {
        Self { heading, file, plot_title, svg: plot::stacked(stacks, plot_title), rows }
    }
}
