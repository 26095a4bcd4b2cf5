//! Training of language models: PSANN bases and the plain transformer over batch sizes, and one of them over precision,
//! sequence length and batch size.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner,
    scenario::{PSANN_THROUGHPUT, TRAINING_SWEEP},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::set_up_training();
    runner::main(|suite| {
        suite.training(PSANN_THROUGHPUT);
        suite.training(TRAINING_SWEEP);
    })
}
