//! Engine `tuned`, sharded over ranks, for each model of the settings: `CANDLEPOWER_TENSOR_PARALLEL=1,2,4` runs it.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::TENSOR_PARALLEL,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::tensor_parallel(suite.settings());
        suite.generation(TENSOR_PARALLEL, candidates);
    })
}
