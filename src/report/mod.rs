//! What people and other tools see, made from records and Criterion's baselines. `joined` brings a run's records and
//! Criterion's estimates together, `write` makes a folder of them: `table`, `plot`, `html`, and the data files that
//! `columns` lists. `compare` sets two runs side by side, `history` many reports, `watch` shows a run as it goes, `export`
//! writes what other tools read. `schemas` holds the JSON schemas of what is written. Nothing here measures.

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
mod statistics;
pub mod table;
#[cfg(feature = "cli")]
mod training;
#[cfg(feature = "cli")]
pub mod watch;
#[cfg(feature = "cli")]
mod write;

#[cfg(feature = "cli")]
pub use plot::loss_curve;
#[cfg(feature = "cli")]
pub use write::{LOG, write, zip};
