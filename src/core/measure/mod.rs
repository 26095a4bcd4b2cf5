//! Measurement: clocks, memory and power counters, limits and properties of the machine, conditions, the pauses of
//! benchmarks, and the CPUs of processes that run side by side. This folder knows no scenarios and no models.

pub mod clocks;
pub mod conditions;
mod cpu_time;
pub mod gpu;
mod limits;
pub mod machine;
mod matrix;
pub mod memory;
pub mod page_cache;
pub mod pauses;
pub mod peak_bytes;
pub mod placement;
pub mod processes;
pub mod rapl;
mod token_time;

pub use crate::kernels::system::allocator::{self, CountingAllocator};
pub use crate::statistics;
pub use cpu_time::{CpuTime, page_faults};
pub use limits::{Gauge, LimitsOverTime, Reading, around, limits, weights_bytes_per_s};
pub use peak_bytes::PeakBytes;
pub use token_time::TokenTime;
