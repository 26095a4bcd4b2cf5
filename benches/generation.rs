//! Generation: every scenario for each model of the settings.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::GENERATION,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::from_settings(suite.settings());
        suite.generation(GENERATION, candidates);
    })
}
