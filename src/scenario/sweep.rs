//! The groups of the architecture sweep. The combinations come from configurations: `workload::series` reads them.

use super::Phase;

/// The groups of the sweep, one for each phase.
pub struct SweepScenario {
    /// A training step.
    pub train: &'static str,
    /// A forecast.
    pub forward: &'static str,
}

/// The architecture sweep.
pub const SWEEP: SweepScenario =
    SweepScenario { train: "architecture_sweep_train", forward: "architecture_sweep_infer" };

impl SweepScenario {
    /// The first part of the benchmark ids of a phase.
    pub fn key(&self, phase: Phase) -> &'static str {
        match phase {
            Phase::Train => self.train,
            Phase::Forward => self.forward,
        }
    }

    /// Whether a scenario is one of the sweep's.
    pub fn contains(&self, scenario: &str) -> bool {
        [self.train, self.forward].contains(&scenario)
    }
}
