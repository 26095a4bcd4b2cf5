//! Trainings that learn from a text: `text` makes tokens of a corpus, `config` says what is trained and how, `run` trains it
//! and leaves its files behind, so that it can be stopped and goes on, `shootout` trains several to compare them. What a step
//! is, `train` knows; how long one takes is measured in `suite`.

mod config;
mod run;
mod shootout;
mod text;

pub use config::{Config, Source};
pub use run::{Outcome, Progress, run};
pub use shootout::{Entry, Shootout, shootout};
pub use text::Text;
