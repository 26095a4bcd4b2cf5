//! How good the output of a model is: perplexity of a text, divergence from a reference, and tasks scored by log-likelihood.
//!
//! ```text
//! source      reads a text or token ids
//! window      slides over the tokens
//! perplexity  scores them with several models in one pass → Report
//! task        reads the questions of a task, in the formats of lm-evaluation-harness
//! evaluation  scores them with one model → TaskResult
//! ```
//!
//! `row` has the log-probabilities of a row of logits, and `mean` the standard error of a mean. Nothing here reads a clock.

mod evaluation;
#[cfg(test)]
mod golden;
mod mean;
mod perplexity;
mod row;
mod source;
mod task;
mod window;

pub use evaluation::Evaluation;
pub(crate) use evaluation::evaluate;
pub use perplexity::Report;
pub(crate) use perplexity::{Entry, Unscored, score, score_window};
pub(crate) use row::Row;
pub(crate) use source::{Content, Source, Tokens};
pub(crate) use task::{Questions, Task};
pub(crate) use window::{Sliding, Window};
