//! Long prompts, and steps at their depth, for each model of the settings: `CANDLEPOWER_TIER=full` runs them.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    runner::{self, Candidate},
    scenario::LONG_CONTEXT,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| {
        let candidates = Candidate::from_settings(suite.settings());
        suite.generation(LONG_CONTEXT, candidates);
    })
}
