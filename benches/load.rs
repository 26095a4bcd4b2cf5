//! Loading the checkpoints of the settings, with the files in the page cache and from storage.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("load")
}
