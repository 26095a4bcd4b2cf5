//! Output for people and other tools, made from records and Criterion's baselines. Nothing here measures.
//!
//! - [`joined`] joins the records of a run with Criterion's estimates.
//! - `write` writes the folder of a report: tables, plots, an HTML page, and the data files that [`columns`] lists.
//! - [`compare`] compares two runs, and [`history`] follows a benchmark over many reports.
//! - [`watch`] draws a run while it is in progress.
//! - [`export`] writes formats of other tools.
//! - `sweep` writes the log of architecture sweeps and summarises their results.
//!
//! The folder `schemas` has the JSON schemas of these files.

pub mod columns;
pub mod compare;
pub mod export;
#[cfg(feature = "cli")]
pub mod history;
#[cfg(feature = "cli")]
mod html;
pub mod joined;
#[cfg(feature = "cli")]
mod plot;
mod ratios;
mod statistics;
#[cfg(feature = "cli")]
pub mod sweep;
pub mod table;
#[cfg(feature = "cli")]
mod training;
#[cfg(feature = "cli")]
pub mod watch;
#[cfg(feature = "cli")]
mod write;

#[cfg(feature = "cli")]
pub use plot::loss_curve;
pub use ratios::disturbance;
#[cfg(feature = "cli")]
pub use write::{LOG, write, zip};
