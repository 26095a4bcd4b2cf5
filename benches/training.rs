//! How fast language models train: PSANN bases and the plain transformer over batches, and one of them over precision, length
//! and batch.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner,
    scenario::{PSANN_THROUGHPUT, TRAINING_SWEEP},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::let_waiting_threads_sleep();
    runner::main(|suite| {
        suite.training(&PSANN_THROUGHPUT);
        suite.training(&TRAINING_SWEEP);
    })
}
