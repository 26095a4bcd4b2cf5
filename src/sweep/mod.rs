//! The architecture sweep: backbones for series over a grid of sizes, a training step and a forecast each. `config` says
//! what is swept, in YAML, with presets; `work` does the steps of one combination and keeps their times. It stands
//! beside `suite`, which runs the same work under Criterion.

mod config;
mod work;

pub use config::{Combination, Config, PRESETS, Source};
pub use work::{Phase, Work, subject};
