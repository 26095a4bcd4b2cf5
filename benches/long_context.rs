//! Long prompts, and steps at their depth, for each model of the settings: `CANDLEPOWER_TIER=full` runs them.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("long_context")
}
