//! Backbones for series: training steps and forecasts over architectures and sizes, for the small grid `smoke` or the preset
//! that `CANDLEPOWER_PRESET` names.

use std::process::ExitCode;

use candlepower::{measure::CountingAllocator, runner};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    runner::set_up_training();
    runner::main(runner::Suite::sweep)
}
