//! A part of a report that does not come from records.

use super::plot::{self, Plot};

/// A heading with a plot and a table.
#[derive(Debug)]
pub struct Section {
    pub(super) heading: &'static str,
    pub(super) plot: Plot,
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
        (file, title): (&'static str, &'static str),
        stacks: &[Stack],
        rows: Vec<Vec<String>>,
    ) -> Self {
        Self { heading, plot: plot::stacked(file, title, stacks), rows }
    }
}
