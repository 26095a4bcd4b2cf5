//! The `candlepower` command.

use std::process::ExitCode;

use candlepower::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    candlepower::command()
}
