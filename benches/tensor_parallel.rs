//! Engine `tuned`, sharded over ranks, for each model of the settings: `CANDLEPOWER_TENSOR_PARALLEL=1,2,4` runs it.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("tensor_parallel")
}
