//! One optimisation step of each kind, without a clock.
//!
//! `language` trains language models: `gradients` runs the forward and backward pass, with or without checkpointing, `loss`
//! is the cross-entropy that it starts from, and `optimizer` is AdamW. `forecast` trains a network for series.

pub(crate) mod forecast;
#[cfg(test)]
mod golden;
pub mod gradients;
pub mod language;
pub mod loss;
pub mod optimizer;
