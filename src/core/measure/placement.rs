//! Placement of the threads of a process on CPUs. The CPUs of a shared machine are not equally fast at any moment, and the
//! system seldom moves a busy thread. Two processes of one program may therefore differ for as long as their threads are on
//! different CPUs. The sides of a duel give each busy thread a CPU, in the same order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::machine::first_line;

/// Time that each thread of this process spent on a CPU, in nanoseconds, by thread id.
pub type Times = BTreeMap<u32, u64>;

/// A thread that had a smaller share of the time of all threads is not placed.
const BUSY_SHARE: f64 = 0.05;

/// The CPUs that a process may use.
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// The CPUs of this process, the first one of each core before the second ones. Empty where the system does not tell.
    pub fn of_process() -> Self {
        let core = |cpu: &usize| {
            let siblings = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            first_line(siblings).unwrap_or_else(|| cpu.to_string())
        };
        let mut cores = BTreeSet::new();
        let (first, other): (Vec<_>, Vec<_>) = system::allowed().into_iter().partition(|cpu| cores.insert(core(cpu)));
        Self([first, other].concat())
    }

    /// Gives each thread that was busy since `before` a CPU of its own, as far as there are enough. Nothing happens where the
    /// system refuses.
    pub fn place(&self, before: &Times) {
        let spent =
            times().into_iter().map(|(thread, time)| (thread, time - before.get(&thread).unwrap_or(&0).min(&time)));
        for (thread, place) in assigned(std::process::id(), &spent.collect(), self.0.len()) {
            system::run_on(thread, &self.0[place..=place]);
        }
    }

    /// Lets all threads of the process use all of its CPUs again.
    pub fn release(&self) {
        times().keys().for_each(|thread| system::run_on(*thread, &self.0));
    }
}

/// Reads the [`Times`] of this process. Empty where the system does not tell.
pub fn times() -> Times {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Times::new() };
    let time = |thread: fs::DirEntry| -> Option<(u32, u64)> {
        let on_cpu_and_more = first_line(thread.path().join("schedstat"))?;
        Some((thread.file_name().to_str()?.parse().ok()?, on_cpu_and_more.split(' ').next()?.parse().ok()?))
    };
    threads.flatten().filter_map(time).collect()
}

/// The places of the busy threads among so many. The main thread comes first, then the others in the order of their ids, which
/// is that of their creation. Each gets the place that has been given the least time.
fn assigned(main: u32, spent: &Times, places: usize) -> Vec<(u32, usize)> {
    let least = BUSY_SHARE * spent.values().map(|time| *time as f64).sum::<f64>();
    let mut given = vec![0; places];
    let (main, others): (Vec<_>, Vec<_>) = spent.iter().partition(|(thread, _)| **thread == main);
    let busy = [main, others].concat().into_iter().filter(|(_, time)| **time as f64 > least);
    busy.filter_map(|(thread, time)| {
        let place = (0..places).min_by_key(|place| given[*place])?;
        given[place] += time;
        Some((*thread, place))
    })
    .collect()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

    pub fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    }

    pub fn run_on(thread: u32, cpus: &[usize]) {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        // A thread may have ended since it was listed.
        let _ = sched_setaffinity(Pid::from_raw(thread as i32), &set);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    pub(crate) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(crate) fn run_on(_thread: u32, _cpus: &[usize]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_threads_get_places_in_the_order_of_their_creation() {
        let spent = |times: &[u64]| (10..).zip(times.iter().copied()).collect::<Times>();
        // The main thread computes with one helper, and a third thread reads.
        assert_eq!(assigned(10, &spent(&[100, 1, 99]), 2), [(10, 0), (12, 1)]);
        // The main thread mostly waits for two others.
        assert_eq!(assigned(10, &spent(&[12, 100, 100]), 2), [(10, 0), (11, 1), (12, 0)]);
        // Ids do not tell which thread is the main one.
        assert_eq!(assigned(12, &spent(&[50, 50, 100]), 4), [(12, 0), (10, 1), (11, 2)]);
        assert_eq!(assigned(10, &spent(&[5, 5, 5]), 0), []);
        assert_eq!(assigned(10, &Times::new(), 2), []);
    }

    #[test]
    fn the_cpus_are_listed_once() {
        let cpus = Cpus::of_process().0;
        assert_eq!(cpus.iter().collect::<BTreeSet<_>>().len(), cpus.len());
        assert_eq!(cpus.is_empty(), !cfg!(any(target_os = "linux", target_os = "android")));
    }
}
