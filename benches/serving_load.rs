//! Latencies of requests that arrive while others are answered: the scheduler of `candlepower serve`, for each model of the
//! settings.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("serving_load")
}
