//! An allocator that counts the allocations of the process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

static INSTALLED: AtomicBool = AtomicBool::new(false);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Allocations of this thread, and their bytes. Constant and without a destructor, so that an access neither allocates nor fails.
    static OWN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The system's allocator with counters. A program installs it as its global allocator:
///
/// ```
/// # use candlepower_kernels::system::allocator as candlepower;
/// #[global_allocator]
/// static ALLOCATOR: candlepower::CountingAllocator = candlepower::CountingAllocator;
/// # fn main() { assert!(candlepower::peak_bytes().is_some()) }
/// ```
///
/// It passes requests for zeroed and grown memory on to the system. A large zeroed cache therefore consists of
/// untouched pages until it is used, as without the counters. Memory-mapped files are not counted.
pub struct CountingAllocator;

// SAFETY: every method passes its arguments to `System` and returns the result of `System`. Counting only accesses
// three atomics and a constant thread-local cell without a destructor, and neither allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`.
        let memory = unsafe { System.alloc(layout) };
        grown(memory, layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc_zeroed`.
        let memory = unsafe { System.alloc_zeroed(layout) };
        grown(memory, layout.size());
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller upholds the contract of `GlobalAlloc::dealloc`, and `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::realloc`, and `memory` came from `System`.
        let moved = unsafe { System.realloc(memory, layout, size) };
        // Counts only the difference, so that a growing buffer is always included in the count.
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
        OWN.with(|own| {
            let (count, total) = own.get();
            own.set((count + 1, total + bytes as u64));
        });
        let current = CURRENT.fetch_add(bytes, Relaxed) + bytes;
        // Most allocations set no new peak. Reading first avoids contention for the cache line.
        if current > PEAK.load(Relaxed) {
            PEAK.fetch_max(current, Relaxed);
        }
    }
}

/// Counts memory that did not come from the global allocator, in a program that counts.
pub fn took(bytes: usize) {
    if INSTALLED.load(Relaxed) {
        grown(NonNull::<u8>::dangling().as_ptr(), bytes);
    }
}

/// Counts the end of memory that [`took`] counted.
pub fn gave_back(bytes: usize) {
    if INSTALLED.load(Relaxed) {
        CURRENT.fetch_sub(bytes, Relaxed);
    }
}

/// Bytes in use; 0 in a program without the [`CountingAllocator`].
pub fn current_bytes() -> u64 {
    CURRENT.load(Relaxed) as u64
}

/// Number of allocations of this thread so far, those that grew included, and their bytes; 0 in a program without the
/// [`CountingAllocator`]. Other threads change neither, so both are the same in each run of the same work.
pub fn allocations() -> (u64, u64) {
    OWN.get()
}

/// Resets the peak to the bytes in use now.
pub fn reset_peak() {
    PEAK.store(CURRENT.load(Relaxed), Relaxed);
}

/// Peak of the bytes in use since [`reset_peak`]; `None` in a program without the [`CountingAllocator`].
pub fn peak_bytes() -> Option<u64> {
    INSTALLED.load(Relaxed).then(|| PEAK.load(Relaxed) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    // tests/allocator.rs installs the allocator and tests the counts.

    #[test]
    fn a_program_that_does_not_count_says_so() {
        drop(vec![0u8; 1 << 20]);
        assert_eq!(peak_bytes(), None);
    }
}
