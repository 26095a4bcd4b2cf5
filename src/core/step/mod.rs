//! One optimisation step of each kind, without a clock.
//!
//! `language` trains language models: `gradients` runs the forward and backward pass, with or without checkpointing, `loss`
//! is the cross-entropy that it starts from, and `optimizer` is AdamW. `forecast` trains a network for series.

pub mod forecast;
#[cfg(test)]
mod golden;
pub mod gradients;
pub mod language;
pub(crate) mod loss;
pub mod optimizer;

use std::fmt;

/// Name of the span of a step of a training, or of a pass without gradients. Its parts are spans too.
pub const STEP: &str = "step";

/// A training whose loss or gradient is not finite.
#[derive(Clone, Debug)]
pub struct Diverged {
    /// The step, from 1.
    pub step: usize,
    /// The error, with the step.
    reason: String,
}

impl Diverged {
    /// A training that diverged at a step, counted from 1.
    pub fn new(step: usize, reason: String) -> Self {
        Self { step, reason }
    }
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Diverged {}
