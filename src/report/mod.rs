//! Output for people and other tools, made from records and Criterion's baselines. Nothing here measures.
//!
//! - [`joined`] joins the records of a run with Criterion's estimates.
//! - `write` writes the folder of a report: tables, plots, an HTML page, and the data files that [`columns`] lists.
//! - [`compare`] compares two runs, and [`history`] follows a benchmark over many reports.
//! - [`watch`] draws a run while it is in progress.
//! - [`export`] writes formats of other tools.
//!
//! The folder `schemas` has the JSON schemas of these files.

pub mod columns;
pub mod compare;
pub mod export;
pub mod history;
mod html;
pub mod joined;
mod plot;
mod statistics;
pub mod table;
mod training;
pub mod watch;
mod write;

pub use plot::loss_curve;
pub use write::{LOG, write, zip};
