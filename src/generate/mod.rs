//! How tokens are made: the prompt, the choice of the next token, and the loop between them, with the timeline that it
//! leaves behind. What the times mean together is worked out in `summary`; nothing here knows Criterion.

mod timeline;

pub use timeline::{FinishReason, Timeline};
