//! Pauses of a benchmark: moments between two steps at which something else may run. The clock of the benchmark leaves them
//! out. The speed of a shared machine changes within milliseconds, so whatever is compared with a benchmark has to run in its
//! pauses: the sides of a duel pass a turn to each other, and an observation reads the limits of the machine. It may also read
//! the weights of the benchmark's model, whose bandwidth it returns to the benchmark.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

/// The step of a benchmark beside which a pause is.
pub enum Moment<'a> {
    /// Any step.
    Step,
    /// A step that reads these weights, in this order.
    Decode(Option<Vec<&'a [u64]>>),
    /// A step that is long and rare: that of a prompt.
    Prompt,
}

/// Runs in a pause. Returns the bandwidth of reading the weights of the moment, if it reads them.
type Take = Box<dyn FnMut(&Moment) -> Option<f64>>;

struct Pauses {
    take: Take,
    /// Least time between two pauses.
    apart: Duration,
    ended: Instant,
}

impl Pauses {
    fn take(&mut self, moment: &Moment) -> Pause {
        let began = Instant::now();
        let read_bytes_per_s = (self.take)(moment);
        self.ended = Instant::now();
        Pause { began, length: self.ended - began, read_bytes_per_s }
    }
}

/// A pause that was taken.
pub struct Pause {
    /// When it began.
    pub began: Instant,
    /// How long it lasted.
    pub length: Duration,
    /// Bandwidth of reading the weights of the moment, if they were read.
    pub read_bytes_per_s: Option<f64>,
}

thread_local! {
    /// The pauses of the benchmark that this thread runs.
    static PAUSES: RefCell<Option<Pauses>> = const { RefCell::new(None) };
}

/// Runs a benchmark on this thread. `take` runs in its pauses, which are at least `apart` from each other. Inside of another
/// call, the pauses of the inner one count.
pub fn within<T>(
    apart: Duration,
    take: impl FnMut(&Moment) -> Option<f64> + 'static,
    benchmark: impl FnOnce() -> T,
) -> T {
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
    pass_at(|| Moment::Step).map_or(Duration::ZERO, |pause| pause.length)
}

/// Does the same at a moment between two steps of a model, and returns the pause.
pub fn pass_at<'a>(moment: impl FnOnce() -> Moment<'a>) -> Option<Pause> {
    pass_after(1.0, moment)
}

/// Does the same however short ago the last pause is.
pub fn pass_now<'a>(moment: impl FnOnce() -> Moment<'a>) -> Option<Pause> {
    pass_after(0.0, moment)
}

/// Does the same before and after a prompt: takes a pause unless the last one has only just ended.
pub fn pass_early() {
    pass_after(0.2, || Moment::Prompt);
}

/// Takes a pause if this share of the least time between two has passed.
fn pass_after<'a>(share: f64, moment: impl FnOnce() -> Moment<'a>) -> Option<Pause> {
    PAUSES.with_borrow_mut(|pauses| {
        let pauses = pauses.as_mut().filter(|pauses| pauses.ended.elapsed() >= pauses.apart.mul_f64(share))?;
        Some(pauses.take(&moment()))
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
        let take = move |moment: &Moment| {
            counted.set(counted.get() + 1);
            sleep(Duration::from_millis(2));
            matches!(moment, Moment::Decode(Some(weights)) if weights.concat() == [3, 4, 5]).then_some(7.0)
        };
        let paused = within(APART, take, || {
            assert_eq!((taken.get(), is_used()), (0, true));
            assert_eq!(pass(), Duration::ZERO, "the benchmark has only begun");
            sleep(APART);
            let paused = pass();
            assert_eq!(pass(), Duration::ZERO, "the last pause has only ended");
            sleep(APART / 4);
            pass_early();
            assert_eq!(taken.get(), 2, "a prompt does not wait as long");
            sleep(APART);
            let pause = pass_at(|| Moment::Decode(Some(vec![&[3, 4][..], &[5]]))).expect("a pause");
            assert_eq!(pause.read_bytes_per_s, Some(7.0));
            paused
        });
        assert!(paused >= Duration::from_millis(2), "{paused:?}");
        assert_eq!((taken.get(), is_used()), (3, false));
        sleep(APART);
        assert_eq!(pass(), Duration::ZERO, "there are no pauses");
    }

    #[test]
    fn inner_pauses_count() {
        let (outer, inner) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let count = |of: &Rc<Cell<i32>>| {
            let of = of.clone();
            move |_: &Moment| {
                of.set(of.get() + 1);
                None
            }
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
        let ended = catch_unwind(|| within(APART, |_| None, || panic!("planted")));
        assert!(ended.is_err() && !is_used());
    }
}
