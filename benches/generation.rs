//! How fast models generate: seven scenarios, each model that the settings name.

use std::process::ExitCode;

use candlepower::{
    measure::CountingAllocator,
    scenario::GENERATION,
    suite::{self, Candidate},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    suite::main(|suite| {
        let candidates = Candidate::from_settings(suite.settings());
        suite.generation(&GENERATION, candidates);
    })
}
