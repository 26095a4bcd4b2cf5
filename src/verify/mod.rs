//! Whether a model keeps the contract of [`CausalLm`], and the smallest input on which it does not.
//!
//! [`verify`] runs the checks of a table on one model. [`against`] compares it with another one. Both return the shortest input that
//! fails, so a test of your own crate can call them:
//!
//! ```
//! use candlepower::{
//!     anyhow::Result,
//!     verify::{Bounds, verify},
//! };
//! # use candlepower::{CausalLm, Footprint, candle_core::{DType, Device, Tensor}};
//! # struct Counter(Device);
//! # impl CausalLm for Counter {
//! #     fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
//! #         let _ = position;
//! #         Ok(Tensor::arange(tokens[tokens.len() - 1] as f32, tokens[tokens.len() - 1] as f32 + 8.0, &self.0)?)
//! #     }
//! #     fn reset(&mut self) -> Result<()> { Ok(()) }
//! #     fn footprint(&self) -> Footprint { Footprint::dense(8, 8, DType::F32, 0) }
//! #     fn vocab_size(&self) -> usize { 8 }
//! #     fn max_position_embeddings(&self) -> usize { 64 }
//! #     fn device(&self) -> &Device { &self.0 }
//! # }
//! # fn my_model() -> Result<Counter> { Ok(Counter(Device::Cpu)) }
//! # fn main() -> Result<()> {
//! let found = verify(&mut my_model()?, &Bounds::default())?;
//! assert!(found.is_right(), "{found}");
//! # Ok(())
//! # }
//! ```

mod checks;
mod reference;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use self::checks::{CHECKS, Probe};
pub use self::reference::{Reference, against};
use crate::model::CausalLm;

/// How much is tried, and what counts as equal.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Bounds {
    /// The longest prompt, in tokens. Shorter if the context of the model is.
    pub longest: usize,
    /// Largest distance of logits that count as equal: see [`Counterexample::distance`].
    pub tolerance: f64,
    /// Time for the lengths of a check, after which only half of the work is done: the lengths that fail most often come first.
    pub check_s: f64,
    /// Seed of the prompts.
    pub seed: u64,
}

impl Default for Bounds {
    /// Prompts of up to 300 tokens, ten seconds for each check, and the tolerance of f32.
    fn default() -> Self {
        Self { longest: 300, tolerance: tolerance("f32"), check_s: 10.0, seed: 42 }
    }
}

/// Distance of logits that rounding causes in a dtype: sums in another order in f32, values of eleven and eight bits, and in quantised
/// ones inputs of eight bits for one row and of 32 for many.
pub fn tolerance(dtype: &str) -> f64 {
    match dtype {
        "f32" => 1e-3,
        "f16" => 1e-2,
        "bf16" => 5e-2,
        _ => 0.25,
    }
}

/// The result of [`verify`].
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Verification {
    /// What was tried.
    pub bounds: Bounds,
    /// The checks, in the order of the table.
    pub checks: Vec<Checked>,
}

/// The result of one check.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Checked {
    /// Name of the check.
    pub name: &'static str,
    /// The rule that it checks.
    pub rule: &'static str,
    /// Number of inputs that were tried.
    pub tried: usize,
    /// Number of inputs that the time did not suffice for.
    pub left: usize,
    /// The largest distance of logits that counted as equal.
    pub largest_distance: f64,
    /// The smallest input that fails; `null` if none does.
    pub counterexample: Option<Counterexample>,
    /// Why the check does not apply to the model; `null` if it does.
    pub skipped: Option<String>,
}

/// An input on which a model breaks a rule.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Counterexample {
    /// The tokens of the sequence whose logits are wrong.
    pub tokens: Vec<u32>,
    /// The number of tokens before the logits.
    pub position: usize,
    /// Root mean square of the difference from the expected logits, as a share of that of the expected logits around their mean.
    /// `null` if the logits are not finite or the model fails.
    pub distance: Option<f64>,
    /// What was done, and what happened.
    pub happened: String,
}

/// What `candlepower verify` says of a model on an engine in a dtype.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Verified {
    /// Model, engine, dtype and device.
    pub variant: String,
    /// The checks of the contract.
    pub contract: Verification,
    /// The comparisons with other instruction sets, with other numbers of threads, and with the variant that was named.
    pub references: Vec<Reference>,
}

impl Verified {
    /// Returns whether there is no counterexample.
    pub fn is_right(&self) -> bool {
        self.contract.is_right() && self.references.iter().all(|reference| reference.parts_at.is_none())
    }

    /// Every counterexample.
    pub fn counterexamples(&self) -> impl Iterator<Item = &Counterexample> {
        let of_checks = self.contract.checks.iter().filter_map(|check| check.counterexample.as_ref());
        of_checks.chain(self.references.iter().filter_map(|reference| reference.parts_at.as_ref()))
    }
}

impl Verification {
    /// Returns whether no check found a counterexample.
    pub fn is_right(&self) -> bool {
        self.checks.iter().all(|check| check.counterexample.is_none())
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            write!(f, "{:<9} ", check.name)?;
            match (&check.counterexample, &check.skipped) {
                (Some(found), _) => writeln!(f, "WRONG  {}\n{found}", check.rule)?,
                (None, Some(reason)) => writeln!(f, "-      {reason}")?,
                (None, None) => {
                    let of = if check.left > 0 { format!(" of {}", check.tried + check.left) } else { String::new() };
                    let Checked { rule, tried, largest_distance, .. } = check;
                    writeln!(f, "right  {rule} ({tried}{of} inputs, distance up to {largest_distance:.1e})")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let shown: Vec<String> = self.tokens.iter().take(SHOWN).map(u32::to_string).collect();
        let more =
            if self.tokens.len() > SHOWN { format!(" and {} more", self.tokens.len() - SHOWN) } else { String::new() };
        writeln!(f, "          {}", self.happened)?;
        write!(f, "          {} tokens: {}{more}", self.tokens.len(), shown.join(" "))
    }
}

/// Checks the contract of a model. The model is reset before and afterwards.
///
/// # Errors
/// Returns an error if the model cannot be reset, or if it has no vocabulary or no context.
pub fn verify(model: &mut dyn CausalLm, bounds: &Bounds) -> Result<Verification> {
    let mut probe = Probe::new(model, bounds)?;
    let checks = CHECKS.iter().map(|check| probe.run(check)).collect::<Result<_>>()?;
    Ok(Verification { bounds: bounds.clone(), checks })
}

/// Time for a check.
fn time(bounds: &Bounds) -> Duration {
    Duration::try_from_secs_f64(bounds.check_s).unwrap_or(Duration::MAX)
}
