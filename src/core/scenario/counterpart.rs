//! Comparisons within a run. A row that exists to be compared names its counterpart, and the runner measures both in turns.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The role of a benchmark that another one of the same run is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Counterpart {
    /// The scenario that differs in one respect, on the same model.
    Scenario,
    /// The same model and scenario on the engine `stock`.
    Stock,
    /// The same model and scenario in another system.
    Peer,
    /// The same model and scenario on another engine, for a rank.
    Rival,
    /// The dense decoder as wide as the experts of one token.
    ActiveTwin,
    /// The dense decoder as wide as all experts.
    TotalTwin,
    /// The same training without gradient checkpointing.
    Plain,
    /// The same benchmark with the fewest threads or ranks.
    Fewest,
}

impl fmt::Display for Counterpart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scenario => "scenario",
            Self::Stock => "stock",
            Self::Peer => "peer",
            Self::Rival => "rival",
            Self::ActiveTwin => "active twin",
            Self::TotalTwin => "total twin",
            Self::Plain => "plain",
            Self::Fewest => "fewest",
        })
    }
}
