//! Peak memory and time of training with and without gradient checkpointing.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner, scenario::CHECKPOINT_MEMORY};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::set_up_training();
    runner::main(|suite| {
        suite.training(CHECKPOINT_MEMORY);
    })
}
