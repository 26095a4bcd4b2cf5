//! Tokenizers: that of each checkpoint of the settings, or an embedded one.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("tokenizer")
}
