//! The groups of the architecture sweep. What is swept is in configurations: `sweep` has them.

/// A training step of a backbone for series.
pub const SWEEP_TRAIN: &str = "architecture_sweep_train";

/// A forecast of a backbone for series.
pub const SWEEP_INFER: &str = "architecture_sweep_infer";
