//! Pauses of a benchmark: moments between two steps at which something else may run. The clock of the benchmark leaves them
//! out. The speed of a shared machine changes within milliseconds, so whatever is compared with a benchmark has to run in its
//! pauses: the sides of a duel pass a turn to each other, and an observation reads the limits of the machine.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

struct Pauses {
    take: Box<dyn FnMut()>,
    /// Least time between two pauses.
    apart: Duration,
    ended: Instant,
}

impl Pauses {
    /// Takes a pause, and returns its length.
    fn take(&mut self) -> Duration {
        let began = Instant::now();
        (self.take)();
        self.ended = Instant::now();
        self.ended - began
    }
}

thread_local! {
    /// The pauses of the benchmark that this thread runs.
    static PAUSES: RefCell<Option<Pauses>> = const { RefCell::new(None) };
}

/// Runs a benchmark on this thread. `take` runs in its pauses, which are at least `apart` from each other. Inside of another
/// call, the pauses of the inner one count.
pub fn within<T>(apart: Duration, take: impl FnMut() + 'static, benchmark: impl FnOnce() -> T) -> T {
    /// A benchmark that panics has no pauses left either.
    struct End(Option<Pauses>);
    impl Drop for End {
        fn drop(&mut self) {
            PAUSES.set(self.0.take());
        }
    }
    let pauses = Pauses { take: Box::new(take), apart, ended: Instant::now() };
    let _end = End(PAUSES.replace(Some(pauses)));
    benchmark()
}

/// Says that a step of a benchmark has ended, and takes a pause if the last one is long enough ago. Returns its length, which
/// the clock of the benchmark leaves out. Without pauses it is zero.
pub fn pass() -> Duration {
    pass_after(1.0)
}

/// Does the same before and after a step that is long and rare, such as that of a prompt: takes a pause unless the last one has
/// only just ended.
pub fn pass_early() -> Duration {
    pass_after(0.1)
}

/// Takes a pause if this share of the least time between two has passed.
fn pass_after(share: f64) -> Duration {
    PAUSES.with_borrow_mut(|pauses| match pauses {
        Some(pauses) if pauses.ended.elapsed() >= pauses.apart.mul_f64(share) => pauses.take(),
        _ => Duration::ZERO,
    })
}

/// Returns whether this thread runs a benchmark with pauses.
pub fn is_used() -> bool {
    PAUSES.with_borrow(Option::is_some)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, panic::catch_unwind, rc::Rc, thread::sleep};

    use super::*;

    const APART: Duration = Duration::from_millis(3);

    #[test]
    fn a_pause_is_taken_once_the_last_one_is_long_enough_ago() {
        let taken = Rc::new(Cell::new(0));
        let counted = taken.clone();
        let take = move || {
            counted.set(counted.get() + 1);
            sleep(Duration::from_millis(2));
        };
        let paused = within(APART, take, || {
            assert_eq!((taken.get(), is_used()), (0, true));
            assert_eq!(pass(), Duration::ZERO, "the benchmark has only begun");
            sleep(APART);
            let paused = pass();
            assert_eq!(pass(), Duration::ZERO, "the last pause has only ended");
            sleep(APART / 5);
            assert!(pass_early() > Duration::ZERO);
            paused
        });
        assert!(paused >= Duration::from_millis(2), "{paused:?}");
        assert_eq!((taken.get(), is_used()), (2, false));
        sleep(APART);
        assert_eq!(pass(), Duration::ZERO, "there are no pauses");
    }

    #[test]
    fn inner_pauses_count() {
        let (outer, inner) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let count = |of: &Rc<Cell<i32>>| {
            let of = of.clone();
            move || of.set(of.get() + 1)
        };
        within(Duration::ZERO, count(&outer), || {
            pass();
            within(Duration::ZERO, count(&inner), pass);
            pass();
        });
        assert_eq!((outer.get(), inner.get()), (2, 1));
    }

    #[test]
    fn a_panic_ends_the_pauses() {
        let ended = catch_unwind(|| within(APART, || (), || panic!("planted")));
        assert!(ended.is_err() && !is_used());
    }
}
