//! The load generator: it sends requests to an OpenAI-compatible server by a schedule, and measures the answers from the
//! time at which each request was scheduled.
//!
//! A [`Plan`] is drawn from a seed. [`run`] sends it and returns a [`Report`] with histograms, which [`merge`] adds over the
//! shards of a schedule. [`search`] repeats runs at several rates. The module knows no models.
//!
//! ```text
//! Plan        arrivals, lengths, sessions, shards: equal seeds give equal bytes
//!   prompt    texts of the planned lengths
//!   generator one thread sends each request when it is due
//!     client  one request: HTTP, server-sent events, time of every chunk
//!   tally     histograms and counts, which can be added
//!   pairs     times of two servers that answer the same requests in turns
//!   report    percentiles with intervals, goodput, and the verdict on the run itself
//! ```

mod arrivals;
mod client;
mod draw;
mod exchange;
mod generator;
mod histogram;
mod lengths;
mod objective;
mod pairs;
mod plan;
mod prompt;
mod report;
pub mod search;
mod sse;
mod statistics;
mod tally;
mod verdict;

pub use arrivals::{Arrivals, Spacing};
pub(crate) use client::extra;
pub use client::{Api, Target};
pub use exchange::{Oddity, Outcome};
pub(crate) use generator::Progress;
pub use generator::{Run, run, run_against};
pub(crate) use lengths::Lengths;
pub(crate) use objective::Objective;
pub use pairs::TimeRatio;
pub(crate) use plan::Planned;
pub use plan::{Plan, Shape, Shard, Turns};
pub use prompt::Tokens;
pub(crate) use report::Figures;
pub use report::{Report, merge};
pub use sse::{Item, Parser};
pub use verdict::Limits;
