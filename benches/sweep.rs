//! Backbones for series: training steps and forecasts over architectures and sizes, for the small grid `smoke`.
//! `candlepower sweep` runs other grids.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::main(|suite| suite.sweep("smoke"))
}
