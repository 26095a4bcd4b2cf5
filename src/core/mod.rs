//! The library below candlepower: models and their engines, generation and training steps, the limits of the machine, and records.
//!
//! This package runs no benchmarks and has no command: candlepower does, and re-exports the names that its users need. The items here
//! change without notice.

#![warn(missing_docs)]

pub mod config;
pub mod device;
pub mod dialogue;
pub mod error;
pub mod files;
pub mod generate;
pub mod git;
pub mod measure;
pub mod model;
pub mod names;
pub mod output;
pub mod progress;
pub mod record;
pub mod scenario;
pub mod statistics;
pub mod step;
pub mod text;
#[cfg(feature = "tls")]
pub mod tls;

use candlepower_kernels as kernels;
