//! How tokens are made: the prompt, the choice of the next token, and the loop between them, with the timeline that it
//! leaves behind. What several timelines mean together is worked out in `summary`. Nothing here knows Criterion.

mod prompt;
mod run;
mod sampler;
mod summary;
mod timeline;

pub use prompt::{encode, prompt_ids};
pub use run::{Request, check_lengths, run};
pub use sampler::{Candidate, Sampler};
pub use summary::summarise;
pub use timeline::{FinishReason, Timeline};
