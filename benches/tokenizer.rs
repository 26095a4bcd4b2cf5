//! Tokenizers: that of each checkpoint of the settings, or an embedded one.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner, scenario::TOKENIZER};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| suite.checkpoints(TOKENIZER))
}
