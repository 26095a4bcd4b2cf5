//! Mixtures of experts and their dense twins of equal active and equal total parameters.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("moe")
}
