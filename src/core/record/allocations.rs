//! Allocations of decode steps, which hardly differ between runs of the same program on the same number of threads.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Generation, Measures};

/// Allocations of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Allocations {
    /// Their number.
    pub count: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Allocations {
    /// Those of a generation. `None` if they were not counted.
    pub fn of(measures: &Measures) -> Option<Self> {
        match measures {
            Measures::Generation(Generation { step_allocations, step_allocated_bytes, .. }) => {
                Some(Self { count: (*step_allocations)?, bytes: (*step_allocated_bytes)? })
            }
            _ => None,
        }
    }
}

/// Largest differences by chance: of the number, and of the bytes as a share. A thread that passes work to a pool takes a block of
/// memory for every some dozens of jobs, so a step of engine `stock` may have some hundredths of an allocation more.
const BY_CHANCE: f64 = 0.5;
const BYTES_BY_CHANCE: f64 = 0.001;

/// Allocations that differ between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AllocationChange {
    /// Those of `a`.
    pub a: Allocations,
    /// Those of `b`.
    pub b: Allocations,
}

impl AllocationChange {
    /// The difference of two sides; `None` if there is none beyond chance, or if a side did not count.
    pub fn between(a: Option<Allocations>, b: Option<Allocations>) -> Option<Self> {
        let (a, b) = a.zip(b)?;
        let differ = (a.count - b.count).abs() > BY_CHANCE || (a.bytes / b.bytes - 1.0).abs() > BYTES_BY_CHANCE;
        differ.then_some(Self { a, b })
    }
}

impl fmt::Display for AllocationChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { a, b } = self;
        write!(
            f,
            "a decode step allocates {} times and {:.0} bytes, and before {} times and {:.0} bytes",
            b.count, b.bytes, a.count, a.bytes
        )
    }
}
