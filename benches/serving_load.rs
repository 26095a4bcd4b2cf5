//! Latencies of requests that arrive while others are answered: the scheduler of `candlepower serve`, for each model of the
//! settings.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::SERVING_LOAD,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::serving(suite.settings());
        suite.serving(SERVING_LOAD, candidates);
    })
}
