//! Threads that stay ready between the many short jobs of a forward pass.
//!
//! A model makes about a hundred jobs per token, each of which takes 50 µs to 1 ms. So waiting threads spin for a short while
//! before they sleep, and the caller takes part in the work. Tasks are handed out one by one: a thread that is held up delays
//! only its own task, and one that wakes too late is not waited for.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint,
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Turns of the loop in which a thread waits for a job before it sleeps: some 50 µs.
const SPINS: usize = 3000;

/// Turns of the loop in which the caller waits for the other threads before it lets the system run something else.
const PATIENCE: usize = 20_000;

/// A fixed number of threads, one of which is the caller's.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// Held while a job runs.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The number of the current job above [`OPEN`], [`STOP`] and the number of workers that are in it.
    state: AtomicU64,
    job: UnsafeCell<Job>,
    /// The next task that no thread has taken.
    next: AtomicUsize,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Payload of a panic in a worker's task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    run: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `job` is written only by the caller that holds the turn, while the job is closed and no worker is in it, and read
// only by workers that entered an open job. Its pointer is to a closure that is `Sync`, and outlives the job: see `Pool::run`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

const WORKERS: u64 = OPEN - 1;
/// Set while workers may enter the job.
const OPEN: u64 = 1 << 16;
/// Set when workers have to end.
const STOP: u64 = 1 << 17;
/// The unit of the number of the job.
const NUMBER: u64 = 1 << 18;

impl Pool {
    /// The pool with this many threads, which all callers in the process share while one of them holds it.
    pub fn shared(threads: usize) -> Arc<Self> {
        static POOLS: Mutex<Vec<Weak<Pool>>> = Mutex::new(Vec::new());
        let mut pools = lock(&POOLS);
        pools.retain(|pool| pool.strong_count() > 0);
        if let Some(pool) = pools.iter().filter_map(Weak::upgrade).find(|pool| pool.threads == threads.max(1)) {
            return pool;
        }
        let pool = Arc::new(Self::new(threads));
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Starts the threads. If the system has no more threads, the pool has fewer.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { tasks: 0, run: &|_| {} }),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let threads = threads.clamp(1, WORKERS as usize);
        let worker = |number| {
            let shared = shared.clone();
            // The caller does the work of threads that could not be started.
            thread::Builder::new().name(format!("kernel-{number}")).spawn(move || shared.work()).ok()
        };
        let workers = (1..threads).filter_map(worker).collect();
        Self { shared, threads, turn: Mutex::new(()), workers }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task` with each number below `tasks`, on all threads, and returns after the last has ended. If the pool is in
    /// use, as when a task starts another job, the caller does all the work.
    ///
    /// # Panics
    /// With the panic of a task.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let turn = match self.turn.try_lock() {
            _ if tasks <= 1 || self.threads == 1 => None,
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        match turn {
            None => (0..tasks).for_each(task),
            Some(turn) => self.shared.lead(tasks, &task, turn),
        }
    }

    /// Calls `task` with each part of `size` elements and its number; the last part may be shorter.
    pub fn parts<T: Send>(&self, all: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let (len, all) = (all.len(), Parts::new(all));
        self.run(len.div_ceil(size.max(1)), |number| {
            // SAFETY: the parts of different tasks do not overlap.
            task(number, unsafe { all.get(number * size..len.min((number + 1) * size)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(STOP, Ordering::SeqCst);
        let sleep = lock(&self.shared.sleep);
        self.shared.wake.notify_all();
        drop(sleep);
        // The buffers of the threads are released when they have ended. No task can be the last owner of the pool that runs it, so
        // no thread waits for itself here.
        for worker in self.workers.drain(..) {
            // Panics of tasks are caught, and the loop has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs a job as its caller.
    fn lead<'a>(&self, tasks: usize, run: &'a (dyn Fn(usize) + Sync + 'a), _turn: MutexGuard<()>) {
        /// Closes the job and waits for the workers in it, also when the caller's task panics.
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
                let mut turns = 0;
                while self.0.state.load(Ordering::Acquire) & WORKERS > 0 {
                    turns += 1;
                    if turns < PATIENCE { hint::spin_loop() } else { thread::yield_now() }
                }
            }
        }
        let run: *const (dyn Fn(usize) + Sync + 'a) = run;
        // SAFETY: only the lifetime changes. `Close` waits for all workers before this function returns, and none enters a
        // closed job, so that no worker uses the closure after its lifetime.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(run) };
        // SAFETY: this thread holds the turn, and the last job is closed and left: no worker reads the job.
        unsafe { *self.job.get() = Job { tasks, run } };
        self.next.store(0, Ordering::Relaxed);
        let old = self.state.load(Ordering::Relaxed);
        self.state.store((old & !(NUMBER - 1)).wrapping_add(NUMBER) | OPEN, Ordering::SeqCst);
        let close = Close(self);
        // A worker counts itself as a sleeper before it looks at the state for the last time.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&self.sleep);
            self.wake.notify_all();
        }
        self.tasks(Job { tasks, run });
        drop(close);
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    fn tasks(&self, job: Job) {
        // SAFETY: the caller of `lead` waits for every thread that is in the job, so the closure lives.
        let run = unsafe { &*job.run };
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            run(task);
        }
    }

    /// The loop of a worker.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let state = self.wait(seen);
            if state & STOP > 0 {
                return;
            }
            // The job may have been closed, or others may have entered or left it.
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            seen = state / NUMBER;
            // SAFETY: this worker is in the open job, which is not changed before it has left.
            let job = unsafe { *self.job.get() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.tasks(job))) {
                *lock(&self.panic) = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job with another number than `seen`, or for the end. Returns the state.
    fn wait(&self, seen: u64) -> u64 {
        let ready = |state: u64| state & STOP > 0 || (state & OPEN > 0 && state / NUMBER != seen);
        for _ in 0..SPINS {
            let state = self.state.load(Ordering::Acquire);
            if ready(state) {
                return state;
            }
            hint::spin_loop();
        }
        let mut sleep = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if ready(state) {
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                return state;
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mutable slice of which several threads borrow different parts.
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    all: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared reference gives out mutable parts, which is sending them to another thread.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as a mutable slice.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(all: &'a mut [T]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), all: PhantomData }
    }

    /// The first element.
    pub fn start(&self) -> *mut T {
        self.start
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The elements from `first` on.
    ///
    /// # Safety
    /// As long as both views live, no thread may use an element through one that another thread writes through the other.
    ///
    /// # Panics
    /// If there are fewer elements.
    pub unsafe fn from(&self, first: usize) -> Self {
        assert!(first <= self.len, "a part is outside of its slice");
        // SAFETY: the address is in the slice or at its end.
        Self { start: unsafe { self.start.add(first) }, len: self.len - first, all: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// No two parts that are borrowed at the same time may overlap.
    ///
    /// # Panics
    /// If the range is outside of the slice.
    #[inline(always)]
    pub unsafe fn get(&self, part: Range<usize>) -> &'a mut [T] {
        assert!(part.start <= part.end && part.end <= self.len, "a part is outside of its slice");
        // SAFETY: the part lies in the slice, which is borrowed mutably for 'a, and the caller ensures that it is borrowed once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(part.start), part.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100] {
                for _ in 0..200 {
                    let mut counts = vec![0; tasks];
                    pool.parts(&mut counts, 1, |_, count| count[0] += 1);
                    assert!(counts.iter().all(|count| *count == 1), "{threads} threads, {tasks} tasks");
                }
            }
        }
    }

    #[test]
    fn parts_cover_the_slice() {
        let pool = Pool::new(2);
        let mut all = vec![usize::MAX; 10];
        pool.parts(&mut all, 4, |number, part| part.fill(number));
        assert_eq!(all, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn threads_that_sleep_are_woken() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            let count = AtomicUsize::new(0);
            pool.run(8, |_| {
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(std::time::Duration::from_millis(2));
            });
            assert_eq!(count.into_inner(), 8);
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn a_job_within_a_job_is_done_by_its_caller() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(4, |_| pool.run(5, |_| _ = count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(count.into_inner(), 20);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_remains_usable() {
        let pool = Pool::new(2);
        for panicking in 0..8 {
            let result =
                catch_unwind(AssertUnwindSafe(|| pool.run(8, |task| assert_ne!(task, panicking, "on purpose"))));
            assert!(result.is_err());
            let mut all = vec![0; 8];
            pool.parts(&mut all, 1, |_, part| part[0] = 1);
            assert_eq!(all, [1; 8]);
        }
    }

    #[test]
    fn pools_of_one_size_are_shared() {
        let pool = Pool::shared(2);
        assert!(Arc::ptr_eq(&pool, &Pool::shared(2)));
        assert_eq!(Pool::shared(3).threads(), 3);
    }
}
