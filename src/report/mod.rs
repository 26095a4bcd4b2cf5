//! Output for people and other tools, made from records and Criterion's baselines. Nothing here measures.
//!
//! - [`summary`] is a run at a glance, and [`table`] has the tables of results.
//! - `glance` is one model on its engines, and `standings` ranks them.
//! - `dtypes` joins the perplexities of a run with its generations.
//! - [`joined`] joins the records of a run with Criterion's estimates.
//! - `write` writes the folder of a report: tables, plots, an HTML page, and the data files that [`columns`] lists. `trained` reads
//!   folders of trainings for it, and a `section` is a part that others make.
//! - [`compare`] compares two runs, `duel` shows the result of measuring two programs in turns, `bisect` the commit that a
//!   sequence of duels found, and [`history`] follows a benchmark over many reports.
//! - `watch` draws a run while it is in progress.
//! - [`export`] writes formats of other tools.
//! - `sweep` writes the log of architecture sweeps and summarises their results.
//!
//! The folder `schemas` has the JSON schemas of these files.

#[cfg(feature = "cli")]
pub mod bisect;
pub mod columns;
pub mod compare;
mod dtypes;
pub mod duel;
pub mod export;
#[cfg(feature = "cli")]
pub(crate) mod glance;
#[cfg(feature = "cli")]
pub mod history;
#[cfg(feature = "cli")]
mod html;
pub mod joined;
#[cfg(feature = "cli")]
mod plot;
mod ratios;
#[cfg(feature = "cli")]
mod readme;
#[cfg(feature = "cli")]
mod section;
#[cfg(feature = "cli")]
pub(crate) mod standings;
mod statistics;
pub mod summary;
#[cfg(feature = "cli")]
pub(crate) mod sweep;
pub mod table;
pub mod text_table;
#[cfg(feature = "cli")]
mod trained;
#[cfg(feature = "cli")]
mod training;
#[cfg(feature = "cli")]
pub(crate) mod watch;
#[cfg(feature = "cli")]
mod write;

#[cfg(feature = "cli")]
pub(crate) use plot::{Over, latency_over_rate, loss_curve, over_seconds};
pub(crate) use ratios::{disturbance, is_possible, left_to_gain};
#[cfg(feature = "cli")]
pub(crate) use section::{Section, Stack};
#[cfg(feature = "cli")]
pub(crate) use trained::Trained;
#[cfg(feature = "cli")]
pub use write::write;
#[cfg(feature = "cli")]
pub(crate) use write::zip;
