//! Training of language models: PSANN bases and the plain transformer over batch sizes, and one of them over precision,
//! sequence length and batch size.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("training")
}
