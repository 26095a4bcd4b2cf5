//! Memory for weights and caches: aligned to cache lines, on large pages where the system has them.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use super::Element;

/// Bytes of a cache line, to which vectors of 512 bits should be aligned.
const LINE: usize = 64;

/// Bytes from which large pages are requested.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// A slice that is aligned to cache lines, with zeros in the beginning. The system provides large ones page by page as they
/// are first written, near the thread that writes them.
pub struct Buffer<E> {
    start: NonNull<E>,
    len: usize,
    /// What was allocated, which begins up to a line before `start`.
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its elements.
unsafe impl<E: Element> Send for Buffer<E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for Buffer<E> {}

impl<E: Element> Buffer<E> {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the size overflows. The process ends if memory is missing.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<E>()).and_then(|bytes| bytes.checked_add(LINE));
        // Small alignments are zeroed by the system, without writing to the pages.
        let layout =
            bytes.and_then(|bytes| Layout::from_size_align(bytes, 16).ok()).expect("a size that fits in memory");
        // SAFETY: the size is at least a line.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: one line was allocated in addition, so the aligned address and `len` elements after it are in the allocation.
        let start = unsafe { base.add(base.align_offset(LINE)) }.cast();
        #[cfg(target_os = "linux")]
        request_large_pages(base, layout.size());
        Self { start, len, base, layout }
    }
}

/// Asks for large pages, of which a step through the weights needs fewer address translations. Without them it is slower.
#[cfg(target_os = "linux")]
fn request_large_pages(base: NonNull<u8>, size: usize) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // The start of a page of any size that Linux has.
    const PAGE: usize = 64 << 10;
    let skipped = base.align_offset(PAGE);
    if size >= LARGE + skipped {
        // SAFETY: the range is within one allocation and starts at a page. The advice changes no contents. Its failure has no
        // consequence but speed.
        unsafe { madvise(base.add(skipped).as_ptr().cast(), (size - skipped) / PAGE * PAGE, MADV_HUGEPAGE) };
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        // SAFETY: `zeroed` allocated `base` with this layout. Elements need no drop.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl<E: Element> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` elements lie in the allocation. They were zeroed, which is a valid value of every element.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<E: Element> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
