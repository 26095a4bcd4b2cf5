//! Runs the tests of a program that has a `main` of its own. Most of their time they wait for processes that they started.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// A test and its name.
pub type Test = (&'static str, fn());

/// Tests that run at once. The processes of each hold up to half a gigabyte to measure the limits of the machine.
const AT_ONCE: usize = 4;

/// Runs the tests whose names contain the first argument that is not a flag. Those of `together` run side by side. Those of
/// `alone` follow one after the other: they compare times, need much memory, or run a file that they wrote.
pub fn run(together: &[Test], alone: &[Test]) {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let selected =
        |tests: &[Test]| -> Vec<Test> { tests.iter().copied().filter(|(name, _)| name.contains(&wanted)).collect() };
    let pass = |(name, test): Test| {
        test();
        println!("test {name} ... ok");
    };
    let together = selected(together);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(test) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                    pass(*test);
                }
            });
        }
    });
    selected(alone).into_iter().for_each(pass);
}
