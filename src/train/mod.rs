//! Training. `step` holds one optimisation step of each kind, without a clock. `run` trains a language model on a text
//! corpus, from configuration to checkpoints and result files.

#[cfg(feature = "cli")]
pub mod run;
#[warn(missing_docs)]
pub mod step;
