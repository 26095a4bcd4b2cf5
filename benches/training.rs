//! How fast language models train: PSANN bases and the plain transformer over batches, and one of them over precision, length
//! and batch.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    scenario::{PSANN_THROUGHPUT, TRAINING_SWEEP},
    suite,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    suite::let_waiting_threads_sleep();
    suite::main(|suite| {
        suite.training(&PSANN_THROUGHPUT);
        suite.training(&TRAINING_SWEEP);
    })
}
