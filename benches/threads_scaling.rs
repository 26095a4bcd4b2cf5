//! Engine `tuned` over its number of threads, for each model of the settings: `CANDLEPOWER_THREADS=1,2,4` runs it.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("threads_scaling")
}
