//! Quality of the models of the settings, on each engine in each dtype: perplexity of an embedded text, divergence from the
//! reference, and the time to score a window.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("perplexity")
}
