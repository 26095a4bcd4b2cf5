//! Work that a peer does in a process of its own. The peer takes the times, because those of this process would include the way
//! between the two. `generation` has one generation per iteration, and `steps` a step of a language model or of a network for
//! series. `logits` makes a peer a model of this process, which nothing times.

mod generation;
mod logits;
mod steps;

pub use generation::{PeerSubject, PeerWorkload, SharedPeer};
pub use logits::PeerLogits;
pub use steps::PeerSteps;

use std::time::Duration;

/// Pause between the work of a peer and that of this process, which is not timed. Waiting threads of OpenMP and of our own
/// pools spin for some milliseconds, and those of one side must not slow down the other.
pub const SETTLE: Duration = Duration::from_millis(30);
