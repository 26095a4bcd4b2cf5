//! The guide.
//!
//! | chapter | content |
//! |---|---|
//! | [`settings`] | settings, models, features, exit codes |
//! | [`scenarios`] | generation scenarios and benchmark ids |
//! | [`mixtures`] | mixtures of experts and their dense twins |
//! | [`sweep`] | networks for series over a grid of sizes |
//! | [`training`] | training benchmarks, `candlepower train` and `shootout` |
//! | [`gpu`] | accelerators |
//! | [`experimental`] | features that no real GPU has run |
//! | [`why`] | where the time of a generation goes, and what would make it faster |
//! | [`duels`] | judging a change: `candlepower duel`, and the commit that made it: `candlepower bisect` |
//! | [`serve`] | a model behind an OpenAI-compatible interface |
//! | [`load`] | loads on a server: schedules, latencies, verdicts, shards |
//! | [`quality`] | perplexity, divergence from a reference, tasks |
//! | [`standings`] | ranks of the engines and peers that run some models |
//! | [`peers`] | other systems beside the engines, and their protocol |
//! | [`wrappers`] | memory and power of any command |
//! | [`reports`] | tables, comparisons, histories, exports, data formats |
//! | [`candle`] | where candle-transformers is slower, larger or less right than a peer, and why |
//! | [`deviations`] | known differences from the reference implementations |
//! | [`methodology`] | what is timed, and known biases |
//! | [`keys`] | the keys of trainings and of the sweep |
//! | [`security`] | what is trusted, what is not, and how to report a problem |
//! | [`coming_from`] | commands of other benchmark suites, and those that take their place |
//! | [`contributing`] | recipes for additions |

#[doc = include_str!("settings.md")]
pub mod settings {}

#[doc = include_str!("scenarios.md")]
pub mod scenarios {}

#[doc = include_str!("mixtures.md")]
pub mod mixtures {}

#[doc = include_str!("sweep.md")]
pub mod sweep {}

#[doc = include_str!("training.md")]
pub mod training {}

#[doc = include_str!("gpu.md")]
pub mod gpu {}

#[doc = include_str!("experimental.md")]
pub mod experimental {}

#[doc = include_str!("why.md")]
pub mod why {}

#[doc = include_str!("duels.md")]
pub mod duels {}

#[doc = include_str!("serve.md")]
pub mod serve {}

#[doc = include_str!("load.md")]
pub mod load {}

#[doc = include_str!("quality.md")]
pub mod quality {}

#[doc = include_str!("standings.md")]
pub mod standings {}

#[doc = include_str!("peers.md")]
pub mod peers {}

#[doc = include_str!("wrappers.md")]
pub mod wrappers {}

#[doc = include_str!("reports.md")]
pub mod reports {}

#[doc = include_str!("candle.md")]
pub mod candle {}

#[doc = include_str!("deviations.md")]
pub mod deviations {}

#[doc = include_str!("methodology.md")]
pub mod methodology {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("coming_from.md")]
pub mod coming_from {}

#[doc = include_str!("contributing.md")]
pub mod contributing {}

#[doc = include_str!("keys.md")]
pub mod keys {}
