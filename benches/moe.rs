//! What a mixture of experts costs beside dense decoders of as many active parameters, and of as many in all.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::MOE_TOP_K,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::expert_grid(suite.settings());
        suite.generation(&MOE_TOP_K, candidates);
    })
}
