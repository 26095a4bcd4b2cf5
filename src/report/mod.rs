//! What people see, made from records and Criterion's baselines: tables, plots, a page, comparisons. `joined` brings a
//! run's records and Criterion's estimates together, `write` makes a folder of them. Nothing here measures.

pub mod columns;
pub mod compare;
pub mod export;
pub mod history;
mod html;
pub mod joined;
mod plot;
mod statistics;
pub mod table;
pub mod watch;
mod write;

pub use write::{LOG, write, zip};
