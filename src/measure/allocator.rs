//! What this process has allocated.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

static INSTALLED: AtomicBool = AtomicBool::new(false);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting. A program opts in:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: candlepower::measure::CountingAllocator = candlepower::measure::CountingAllocator;
/// # fn main() { assert!(candlepower::measure::allocator::peak_bytes().is_some()) }
/// ```
///
/// Zeroed and grown memory is asked of the system as such: a large zeroed cache stays untouched pages until it is used,
/// with the counter as without. Memory-mapped files are not counted.
pub struct CountingAllocator;

// SAFETY: every method hands its arguments on to `System` and returns what that returns; counting touches no memory
// but three atomics, and neither allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        let memory = unsafe { System.alloc(layout) };
        grown(memory, layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc::alloc_zeroed`'s contract.
        let memory = unsafe { System.alloc_zeroed(layout) };
        grown(memory, layout.size());
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract, and `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc::realloc`'s contract, and `memory` came from `System`.
        let moved = unsafe { System.realloc(memory, layout, size) };
        // Only the difference, so that a buffer that grows is at no moment missing from the count.
        match size.checked_sub(layout.size()) {
            Some(more) => grown(moved, more),
            None if !moved.is_null() => {
                CURRENT.fetch_sub(layout.size() - size, Relaxed);
            }
            None => {}
        }
        moved
    }
}

fn grown(memory: *mut u8, bytes: usize) {
    if !memory.is_null() {
        INSTALLED.store(true, Relaxed);
        let current = CURRENT.fetch_add(bytes, Relaxed) + bytes;
        // Most allocations set no new peak; reading first keeps them from contending for the line.
        if current > PEAK.load(Relaxed) {
            PEAK.fetch_max(current, Relaxed);
        }
    }
}

/// Bytes in use. 0 in a program without the [`CountingAllocator`].
pub fn current_bytes() -> u64 {
    CURRENT.load(Relaxed) as u64
}

/// Starts looking for the peak again, from what is in use now.
pub fn reset_peak() {
    PEAK.store(CURRENT.load(Relaxed), Relaxed);
}

/// Most bytes in use at once since [`reset_peak`]; `None` in a program without the [`CountingAllocator`].
pub fn peak_bytes() -> Option<u64> {
    INSTALLED.load(Relaxed).then(|| PEAK.load(Relaxed) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Counting itself is tested where the allocator is installed, in tests/allocator.rs.

    #[test]
    fn a_program_that_does_not_count_says_so() {
        drop(vec![0u8; 1 << 20]);
        assert_eq!(peak_bytes(), None);
    }
}
