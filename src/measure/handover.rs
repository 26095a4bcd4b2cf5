//! The handover between two processes that run a benchmark at the same time. The speed of a shared machine changes within
//! milliseconds. The sides of a duel therefore run in turns of a few milliseconds, so that every change meets both.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

/// Least length of a turn. Passing it on takes about 0.2 ms.
const TURN: Duration = Duration::from_millis(3);

struct Turns {
    pass_on: Box<dyn FnMut()>,
    began: Instant,
}

impl Turns {
    /// Ends the turn, and returns the time until the next one began.
    fn pass_on(&mut self) -> Duration {
        let ended = Instant::now();
        (self.pass_on)();
        self.began = Instant::now();
        self.began - ended
    }
}

thread_local! {
    /// The turns of the benchmark that this thread runs.
    static TURNS: RefCell<Option<Turns>> = const { RefCell::new(None) };
}

/// Runs a benchmark on this thread in turns, and waits for the first. `pass_on` ends a turn and returns when the next one
/// begins.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only duels take turns"))]
pub fn within<T>(pass_on: impl FnMut() + 'static, benchmark: impl FnOnce() -> T) -> T {
    /// A benchmark that panics has no turns left either.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            TURNS.set(None);
        }
    }
    let mut turns = Turns { pass_on: Box::new(pass_on), began: Instant::now() };
    turns.pass_on();
    TURNS.set(Some(turns));
    let _end = End;
    benchmark()
}

/// Says that a step of a benchmark has ended, and passes the turn on if it was long enough. Returns the time until the next
/// turn began, which the clock of the benchmark leaves out. Outside of a duel it is zero.
pub fn pass() -> Duration {
    TURNS.with_borrow_mut(|turns| match turns {
        Some(turns) if turns.began.elapsed() >= TURN => turns.pass_on(),
        _ => Duration::ZERO,
    })
}

/// Returns whether this thread runs a benchmark in turns.
pub fn is_used() -> bool {
    TURNS.with_borrow(Option::is_some)
}

#[cfg(test)]
mod tests {
    use std::{panic::catch_unwind, rc::Rc, thread::sleep};

    use super::*;

    #[test]
    fn a_turn_is_passed_on_once_it_was_long_enough() {
        let passed = Rc::new(RefCell::new(0));
        let counted = passed.clone();
        let pass_on = move || {
            *counted.borrow_mut() += 1;
            sleep(Duration::from_millis(2));
        };
        let waited = within(pass_on, || {
            assert_eq!((*passed.borrow(), is_used()), (1, true), "the first turn is waited for");
            assert_eq!(pass(), Duration::ZERO, "the turn is too short");
            sleep(TURN);
            let waited = pass();
            assert_eq!(pass(), Duration::ZERO, "the next turn has only begun");
            waited
        });
        assert!(waited >= Duration::from_millis(2), "{waited:?}");
        assert_eq!((*passed.borrow(), is_used()), (2, false));
        sleep(TURN);
        assert_eq!(pass(), Duration::ZERO, "there are no turns");
    }

    #[test]
    fn a_panic_ends_the_turns() {
        let ended = catch_unwind(|| within(|| (), || panic!("planted")));
        assert!(ended.is_err() && !is_used());
    }
}
