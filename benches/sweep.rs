//! Backbones for series: a training step and a forecast over architectures and sizes, in the small grid that is called
//! `smoke`. `candlepower sweep` runs other grids.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| suite.sweep("smoke"))
}
