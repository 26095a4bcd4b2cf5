//! Trainings of language models on a text. `corpus` tokenises the text, `config` holds the configuration, `training`
//! trains one model and can be interrupted and resumed, `shootout` trains several and ranks them.

mod config;
mod corpus;
mod shootout;
mod training;

pub use config::TrainConfig;
pub(crate) use corpus::Text;
pub use shootout::{Entry, Shootout};
pub(crate) use shootout::{TaskScores, Trained, shootout};
pub(crate) use training::{Outcome, Progress, run};
