//! CPU time of processes, in user mode and in the kernel.

use std::{
    fs,
    iter::Sum,
    ops::{Add, Sub},
};

/// CPU time of a process, in the kernel's clock ticks, over all its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Time of the process's own instructions.
    pub user: u64,
    /// Time that the kernel worked for the process, for example to map pages.
    pub kernel: u64,
}

/// Below this many ticks, a second where a tick takes 10 ms, the share of the kernel is not known well enough.
const ENOUGH_TICKS: u64 = 100;

impl CpuTime {
    /// The time that this process has spent so far. `None` where the system is not Linux.
    pub(crate) fn now() -> Option<Self> {
        let [user, kernel, ..] = counts(&fs::read_to_string("/proc/self/stat").ok()?)?;
        Some(Self { user, kernel })
    }

    /// Share of the time that the kernel took. `None` if the time is too short to tell.
    pub(crate) fn kernel_share(self) -> Option<f64> {
        let all = self.user + self.kernel;
        (all >= ENOUGH_TICKS).then(|| self.kernel as f64 / all as f64)
    }
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user: self.user + other.user, kernel: self.kernel + other.kernel }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), kernel: self.kernel.saturating_sub(earlier.kernel) }
    }
}

impl Sum for CpuTime {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), Self::add)
    }
}

/// Pages that this process touched first and that the kernel had to map, so far. `None` where the system is not Linux.
pub fn page_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// The counts in a process's `stat`, in ticks: its time in user mode and in the kernel, and the same of the processes that it
/// started and that have ended.
pub(super) fn counts(stat: &str) -> Option<[u64; 4]> {
    // The name, in parentheses, can contain any characters. The state is the first field after it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11).map(|ticks| ticks.parse().ok());
    let mut next = || fields.next()?;
    Some([next()?, next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_file_is_read() {
        let stat = "4242 (a (strange) name) R 1 2 3 4 5 6 7 8 9 10 70 20 3 4 20 0 2 0 5";
        assert_eq!(counts(stat), Some([70, 20, 3, 4]));
        for bad in ["", "4242 (name) R 1 2 3", "4242 (name) R 1 2 3 4 5 6 7 8 9 10 70 x 3 4"] {
            assert_eq!(counts(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_short_time_has_no_share() {
        let times = [CpuTime { user: 40, kernel: 20 }, CpuTime { user: 20, kernel: 40 }];
        assert_eq!(times[0].kernel_share(), None);
        assert_eq!(times.into_iter().sum::<CpuTime>().kernel_share(), Some(0.5));
        assert_eq!(times[0] - times[1], CpuTime { user: 20, kernel: 0 });
    }
}
