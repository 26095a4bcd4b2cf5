//! What gradient checkpointing saves in memory, and costs in time.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, scenario::CHECKPOINT_MEMORY, suite};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    suite::let_waiting_threads_sleep();
    suite::main(|suite| {
        suite.training(&CHECKPOINT_MEMORY);
    })
}
