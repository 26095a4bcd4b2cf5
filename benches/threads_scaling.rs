//! Engine `tuned` over its number of threads, for each model of the settings: `CANDLEPOWER_THREADS=1,2,4` runs it.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::THREADS_SCALING,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::threads_scaling(suite.settings());
        suite.generation(THREADS_SCALING, candidates);
    })
}
