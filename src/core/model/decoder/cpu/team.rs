//! The ranks of a sharded decoder as threads of one process: each runs its part of a pass, and sums are formed over all of them
//! (all-reduce).

use std::{
    hint,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::kernels::inference::Element;

/// Turns of the loop in which a rank waits for the others before it lets the system run something else: some 50 µs.
const PATIENCE: usize = 2000;

/// A thread for each rank.
pub struct Team {
    threads: ThreadPool,
    meeting: Arc<Meeting>,
}

/// The part of one rank in the sums over all.
pub struct Reduce {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// Where the ranks meet.
struct Meeting {
    /// The addends of each rank. Two sets take turns: a rank writes to one while another may still read the other.
    addends: [Vec<RwLock<Vec<f32>>>; 2],
    /// Ranks that wait for the others.
    arrived: AtomicUsize,
    /// Meetings so far.
    round: AtomicUsize,
    /// Set when a rank panics, so that the others do not wait for it.
    is_broken: AtomicBool,
    /// Bytes that each rank has added.
    bytes: AtomicU64,
}

impl Team {
    /// Starts a thread for each rank, and returns the part of each in the sums.
    ///
    /// # Errors
    /// If the system does not start as many threads.
    pub fn new(ranks: usize) -> Result<(Self, Vec<Reduce>)> {
        let threads = ThreadPoolBuilder::new().num_threads(ranks).thread_name(|rank| format!("rank-{rank}")).build();
        let threads = threads.with_context(|| format!("{ranks} threads for the ranks could not be started"))?;
        let meeting = Arc::new(Meeting {
            addends: [(); 2].map(|()| (0..ranks).map(|_| RwLock::default()).collect()),
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
        });
        let reduce = |rank| Reduce { rank, meeting: meeting.clone() };
        let reduces = (0..ranks).map(reduce).collect();
        Ok((Self { threads, meeting }, reduces))
    }

    /// Calls `task` with each member at the same time, and returns the results in order. There must be a member for each rank.
    ///
    /// # Panics
    /// With the panic of a task. No sum can be formed afterwards.
    pub fn each<M: Send, T: Send>(&self, members: &mut [M], task: impl Fn(&mut M) -> T + Sync) -> Vec<T> {
        let members: Vec<Mutex<&mut M>> = members.iter_mut().map(Mutex::new).collect();
        self.threads.broadcast(|thread| {
            let _watch = Watch(&self.meeting);
            let mut member = members[thread.index()].lock().unwrap_or_else(PoisonError::into_inner);
            task(&mut member)
        })
    }

    /// Bytes that each rank has added to sums since the last call of [`Self::clear`].
    pub fn reduced_bytes(&self) -> u64 {
        self.meeting.bytes.load(Ordering::Relaxed)
    }

    /// Begins to count bytes anew.
    pub fn clear(&self) {
        self.meeting.bytes.store(0, Ordering::Relaxed);
    }
}

/// Tells the other ranks of a panic.
struct Watch<'a>(&'a Meeting);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_broken.store(true, Ordering::Release);
        }
    }
}

impl Reduce {
    /// Replaces `values` by their sums over all ranks, rounded to the type of the weights. Every rank calls this with as many
    /// values, and gets the same bits, because all of them add in the order of the ranks.
    ///
    /// # Panics
    /// If another rank has panicked.
    pub fn sum<E: Element>(&self, values: &mut [f32]) {
        let Meeting { addends, round, bytes, .. } = &*self.meeting;
        let addends = &addends[round.load(Ordering::Acquire) % 2];
        {
            let mut own = addends[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            own.clear();
            own.extend_from_slice(values);
        }
        if self.rank == 0 {
            bytes.fetch_add(size_of_val(values) as u64, Ordering::Relaxed);
        }
        self.meeting.meet(addends.len());
        values.fill(0.0);
        for addend in addends {
            let addend = addend.read().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(addend.len(), values.len(), "values of the ranks");
            values.iter_mut().zip(&*addend).for_each(|(sum, value)| *sum += value);
        }
        values.iter_mut().for_each(|sum| *sum = E::round(*sum));
    }
}

impl Meeting {
    /// Waits until all ranks are here. No rank is ahead by a whole meeting, so a rank that has passed one finds its addends
    /// unchanged until it arrives at the next.
    fn meet(&self, ranks: usize) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == ranks {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut turns = 0;
        while self.round.load(Ordering::Acquire) == round {
            assert!(!self.is_broken.load(Ordering::Acquire), "another rank of the decoder failed");
            turns += 1;
            if turns < PATIENCE { hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn all_ranks_get_the_same_sums() {
        for ranks in [1, 2, 4, 7] {
            let (team, mut reduces) = Team::new(ranks).expect("threads");
            // Lengths change from sum to sum, and ranks arrive in any order.
            let sums = team.each(&mut reduces, |reduce| {
                let mut all = Vec::new();
                for length in [3, 1000, 1, 0, 64, 65].into_iter().cycle().take(200) {
                    let mut values: Vec<f32> = (0..length).map(|at| (at + reduce.rank) as f32 * 0.1).collect();
                    reduce.sum::<f32>(&mut values);
                    all.extend(values);
                }
                all
            });
            assert!(sums.iter().all(|other| *other == sums[0]), "{ranks} ranks");
            let expected: f32 = (0..ranks).map(|rank| (2 + rank) as f32 * 0.1).fold(0.0, |sum, value| sum + value);
            assert_eq!(sums[0][2], expected, "{ranks} ranks");
            assert_eq!(team.reduced_bytes(), 4 * sums[0].len() as u64);
            team.clear();
            assert_eq!(team.reduced_bytes(), 0);
        }
    }

    #[test]
    fn a_rank_that_panics_does_not_leave_the_others_waiting() {
        let (team, mut reduces) = Team::new(3).expect("threads");
        let failed = catch_unwind(AssertUnwindSafe(|| {
            team.each(&mut reduces, |reduce| {
                assert!(reduce.rank != 1, "rank 1 fails");
                reduce.sum::<f32>(&mut [1.0]);
            })
        }));
        assert!(failed.is_err());
    }
}
