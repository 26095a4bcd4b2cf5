//! Runs the tests of a program one after another, because they read counters of the whole process.

use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
};

/// Runs `test` while no other one runs. A thread of its own runs it, so that the buffers which a thread keeps to its end are released
/// before the next test counts.
pub(crate) fn alone(test: impl FnOnce() + Send) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| scope.spawn(test).join()).unwrap_or_else(|panic| resume_unwind(panic));
}
