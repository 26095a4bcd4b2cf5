//! Mixtures of experts and their dense twins of equal active and equal total parameters.

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
        suite.generation(MOE_TOP_K, candidates);
    })
}
