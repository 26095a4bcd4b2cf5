//! How a model of engine `tuned` divides its work on a CPU.

/// The threads of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parallel {
    /// Number of threads; `None` for as many as the process has.
    pub threads: Option<usize>,
}
