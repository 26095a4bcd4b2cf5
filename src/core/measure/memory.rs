//! Memory of a device, in use and available. On a CPU, the allocator of the program counts it; on a CUDA device, the
//! driver's pool that holds Candle's tensors. Metal's memory is not counted.

use std::{cell::Cell, fmt, rc::Rc};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind};

use super::allocator;
#[cfg(feature = "cuda")]
use crate::kernels::system::pool::Pool;

/// Bytes in use; 0 if they are not counted.
pub fn current_bytes(device: &Device) -> u64 {
    match device {
        Device::Cpu => allocator::current_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Pool::of(device).and_then(|pool| pool.used_bytes()).unwrap_or_default(),
        _ => 0,
    }
}

/// Resets the peak to the bytes in use now.
pub(crate) fn reset_peak(device: &Device) {
    match device {
        Device::Cpu => allocator::reset_peak(),
        // If the pool cannot be reset, reading it fails too and reports the reason.
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => drop(Pool::of(device).and_then(|pool| pool.reset_peak())),
        _ => {}
    }
}

/// Peak of the bytes in use since [`reset_peak`].
///
/// # Errors
/// Returns the reason if they are not counted.
pub(crate) fn peak_bytes(device: &Device) -> Result<u64> {
    match device {
        Device::Cpu => allocator::peak_bytes().context("the program does not count its allocations"),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Pool::of(device)?.peak_bytes(),
        _ => bail!("the memory of this device is not counted"),
    }
}

/// Memory that something holds between pieces of work. All work on one model shares it: a piece of work can leave buffers that
/// the next piece uses again.
#[derive(Clone, Debug, Default)]
pub struct HeldBytes(Rc<Cell<u64>>);

impl HeldBytes {
    /// All memory in use now except `bytes_beside`.
    pub fn except(device: &Device, bytes_beside: u64) -> Self {
        Self(Rc::new(Cell::new(current_bytes(device).saturating_sub(bytes_beside))))
    }
}

/// Peak memory of a piece of work over its repetitions. Other work may allocate and free between them, because the memory
/// that the work holds itself is known from the end of each.
pub struct Peak {
    device: Device,
    /// Memory that the work holds between repetitions.
    held: HeldBytes,
    /// Memory of everything else, at the start of the repetition.
    bytes_beside: u64,
    most: Result<u64, String>,
}

impl Peak {
    /// `bytes_beside` is the memory in use now that does not belong to the work. The rest is what the work holds.
    pub fn new(device: &Device, bytes_beside: u64) -> Self {
        Self::of(device, HeldBytes::except(device, bytes_beside))
    }

    /// The peak of work on something that holds memory already.
    pub fn of(device: &Device, held: HeldBytes) -> Self {
        Self { device: device.clone(), held, bytes_beside: 0, most: Err("nothing was run".into()) }
    }

    /// Starts one repetition.
    pub fn begin(&mut self) {
        self.bytes_beside = current_bytes(&self.device).saturating_sub(self.held.0.get());
        reset_peak(&self.device);
    }

    /// Notes the memory that the work holds until its next repetition.
    pub fn settle(&self) {
        self.held.0.set(current_bytes(&self.device).saturating_sub(self.bytes_beside));
    }

    /// Ends one repetition. Returns its peak, or 0 if memory is not counted.
    pub fn end(&mut self) -> u64 {
        let peak = peak_bytes(&self.device).map(|peak| peak.saturating_sub(self.bytes_beside));
        let (peak, most) = match peak {
            Ok(peak) => (peak, Ok(self.most.as_ref().map_or(peak, |most| peak.max(*most)))),
            Err(error) => (0, Err(format!("{error:#}"))),
        };
        self.most = most;
        peak
    }

    /// Returns the peak of all repetitions.
    ///
    /// # Errors
    /// Returns the reason if it is unknown.
    pub fn most(&self) -> Result<u64, &str> {
        self.most.as_ref().copied().map_err(String::as_str)
    }
}

/// Bytes that the device's pool holds, in use or not.
///
/// # Errors
/// Returns the reason if there is no pool, or it is not counted.
pub fn reserved_bytes(device: &Device) -> Result<u64> {
    match device {
        Device::Cpu => bail!("a CPU has no memory pool"),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Pool::of(device)?.reserved_bytes(),
        _ => bail!("the memory of this device is not counted"),
    }
}

/// Releases memory of the device's pool that is not in use.
pub fn release(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        // If releasing fails, the pool reuses the memory for the next tensors.
        drop(Pool::of(device).and_then(|pool| pool.release()));
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// Work that needs more memory than is available.
#[derive(Debug)]
pub struct DoesNotFit {
    work: String,
    needed_bytes: u64,
    available_bytes: u64,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        write!(
            f,
            "it does not fit: {:.1} GB of memory are needed for {}, {:.1} GB are available; choose a smaller model, a \
             smaller batch or a 16-bit dtype",
            gb(self.needed_bytes),
            self.work,
            gb(self.available_bytes)
        )
    }
}

impl std::error::Error for DoesNotFit {}

/// Checks that `work` fits in the available memory of a device. A device that does not report its memory passes.
///
/// # Errors
/// If fewer than `needed_bytes` are available.
pub fn ensure_fits(work: &str, needed_bytes: u64, device: &Device) -> Result<(), DoesNotFit> {
    match available_bytes(device) {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(DoesNotFit { work: work.into(), needed_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// Memory available to new allocations; `None` if the system does not report it.
pub fn available_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => system_available_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Pool::of(device).and_then(|pool| pool.available_bytes()).ok(),
        _ => None,
    }
}

/// Available memory of the machine, of the process's control group (as in a container) or of its address space, whichever
/// is least. Cached
/// files count as available, because the kernel evicts them. A checkpoint that was just downloaded therefore does not
/// reduce the memory for the model.
fn system_available_bytes() -> Option<u64> {
    let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = sysinfo::System::new_with_specifics(what).ok()?;
    let pid = sysinfo::get_current_pid().ok()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
    let group = system.process(pid).and_then(|process| process.cgroup_limits());
    let left = group.map_or(u64::MAX, |group| group.total_memory.saturating_sub(group.rss));
    Some(system.available_memory().min(left).min(address_space_left().unwrap_or(u64::MAX)))
}

/// Address space that the process may still map, where `ulimit -v` limits it.
#[cfg(target_os = "linux")]
pub fn address_space_left() -> Option<u64> {
    let number = |file: &str, key: &str| -> Option<u64> {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    // The word `unlimited` is no number.
    let most_bytes = number("/proc/self/limits", "Max address space")?;
    Some(most_bytes.saturating_sub(1024 * number("/proc/self/status", "VmSize:")?))
}

/// Other systems do not report it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn address_space_left() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    // tests/allocator.rs installs the allocator and tests the counts.

    #[test]
    fn what_is_available_is_part_of_the_machine() {
        let available = available_bytes(&Device::Cpu).expect("this system says");
        let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let total = sysinfo::System::new_with_specifics(what).expect("a system").total_memory();
        assert!(available > 0 && available <= total, "{available} of {total}");
    }

    #[test]
    fn work_that_does_not_fit_is_refused_with_both_sizes() {
        assert!(ensure_fits("nothing", 0, &Device::Cpu).is_ok());
        let error = ensure_fits("a large model", u64::MAX, &Device::Cpu).expect_err("no machine has this much");
        assert!(
            error.to_string().starts_with("it does not fit: 18446744073.7 GB of memory are needed for a large model, ")
        );
    }

    #[test]
    fn what_is_not_counted_says_why() {
        let reason = |found: Result<u64>| found.expect_err("not counted").to_string();
        assert_eq!(reason(peak_bytes(&Device::Cpu)), "the program does not count its allocations");
        assert_eq!(reason(reserved_bytes(&Device::Cpu)), "a CPU has no memory pool");
        let mut peak = Peak::new(&Device::Cpu, 0);
        assert_eq!(peak.most(), Err("nothing was run"));
        peak.begin();
        assert_eq!((peak.end(), peak.most()), (0, Err("the program does not count its allocations")));
    }
}
