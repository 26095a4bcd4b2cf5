//! Token generation: the prompt, sampling, the token loop, and the timeline that it returns. `summary` combines
//! several timelines. This folder does not use Criterion.

mod prompt;
mod run;
mod sampler;
mod summary;
mod timeline;

pub use prompt::{encode, prompt_batch, prompt_ids, prompt_text};
pub use run::{
    DECODE, MODEL, PREFILL, Request, Run, TooLong, check_lengths, check_lengths_within, check_logits, run, with_logits,
};
pub use sampler::{Candidate, Sampler};
pub use summary::{Required, digest, routing, summarise};
pub use timeline::{FinishReason, Timeline};
