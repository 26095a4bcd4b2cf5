//! Backbones for series: training steps and forecasts over architectures and sizes, for the small grid `smoke` or the preset
//! that `CANDLEPOWER_PRESET` names.

use std::process::ExitCode;

use candlepower::{CountingAllocator, target};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    target("sweep")
}
