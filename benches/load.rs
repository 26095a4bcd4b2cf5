//! Loading the checkpoints of the settings, with the files in the page cache and from storage.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner, scenario::LOAD};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| suite.checkpoints(LOAD))
}
