//! Measurement: clocks, memory and power counters, limits and properties of the machine, conditions, the pauses of
//! benchmarks, and the CPUs of processes that run side by side. This folder knows no scenarios and no models.

pub mod clocks;
pub(crate) mod conditions;
mod cpu_time;
pub mod gpu;
mod limits;
pub mod machine;
mod matrix;
pub mod memory;
pub(crate) mod page_cache;
pub(crate) mod pauses;
pub mod peak_bytes;
#[cfg(feature = "cli")]
pub(crate) mod placement;
pub mod processes;
pub mod rapl;
pub(crate) mod statistics;
mod token_time;

pub use crate::kernels::system::allocator::{self, CountingAllocator};
pub use cpu_time::CpuTime;
pub use limits::{Gauge, LimitsOverTime, Reading, limits};
pub(crate) use limits::{around, weights_bytes_per_s};
pub use peak_bytes::PeakBytes;
pub use token_time::TokenTime;
