//! Measurement: clocks, memory and power counters, limits and properties of the machine, conditions, the pauses of
//! benchmarks, and the CPUs of processes that run side by side. This folder knows no scenarios and no models.

pub(crate) mod clocks;
pub(crate) mod conditions;
mod cpu_time;
pub(crate) mod gpu;
mod limits;
pub(crate) mod machine;
mod matrix;
pub mod memory;
pub(crate) mod page_cache;
pub(crate) mod pauses;
pub mod peak_bytes;
pub(crate) mod placement;
pub(crate) mod processes;
pub(crate) mod rapl;
mod token_time;

pub use crate::kernels::system::allocator::{self, CountingAllocator};
pub(crate) use crate::statistics;
pub use cpu_time::CpuTime;
pub(crate) use cpu_time::page_faults;
pub use limits::{Gauge, LimitsOverTime, Reading};
pub(crate) use limits::{around, limits, weights_bytes_per_s};
pub(crate) use peak_bytes::PeakBytes;
pub(crate) use token_time::TokenTime;
