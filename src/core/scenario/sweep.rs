//! The groups of the architecture sweep. `workload::series` reads its combinations from configurations.

use super::Phase;

/// The benchmark groups of a sweep, one for each phase.
pub struct SweepScenario {
    /// A training step.
    pub train: &'static str,
    /// A forecast.
    pub forward: &'static str,
}

/// The architecture sweep.
pub const SWEEP: SweepScenario =
    SweepScenario { train: "architecture_sweep_train", forward: "architecture_sweep_infer" };

/// Names of the grids that the sweep's groups can run. The first is the default.
pub const SWEEP_PRESETS: [&str; 5] = ["smoke", "baseline-cpu", "hybrid-gpu", "omni-gpu", "growth"];

impl SweepScenario {
    /// The first part of the benchmark ids of a phase.
    pub fn key(&self, phase: Phase) -> &'static str {
        match phase {
            Phase::Train => self.train,
            Phase::Forward => self.forward,
        }
    }

    /// Returns whether `scenario` is a group of the sweep.
    pub fn contains(&self, scenario: &str) -> bool {
        [self.train, self.forward].contains(&scenario)
    }
}
