//! Memory for weights and caches: aligned to cache lines, on huge pages where the system grants them.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use super::Element;
use crate::kernels::system::ask_for_huge_pages;

/// Bytes of a cache line, to which vectors of 512 bits should be aligned.
const LINE: usize = 64;

/// A slice that is aligned to cache lines, with zeros in the beginning. The system provides large ones page by page as they
/// are first written, near the thread that writes them.
pub struct Buffer<E> {
    start: NonNull<E>,
    len: usize,
    /// Start of the allocation, at most a line before `start`.
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
        let layout = Self::layout(len).expect("a size that fits in memory");
        Self::allocate(len, layout).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// `len` zeros; `None` if memory is missing.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        Self::allocate(len, Self::layout(len)?)
    }

    /// Memory for `len` elements from an aligned address on; `None` if the size overflows.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<E>())?.checked_add(LINE)?;
        // Small alignments are zeroed by the system, without writing to the pages.
        Layout::from_size_align(bytes, 16).ok()
    }

    /// `len` zeros in memory with the layout of their number.
    fn allocate(len: usize, layout: Layout) -> Option<Self> {
        // SAFETY: the size is at least a line.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        // SAFETY: one line was allocated in addition, so the aligned address and `len` elements after it are in the allocation.
        let start = unsafe { base.add(base.align_offset(LINE)) }.cast();
        // SAFETY: the allocation has this size, its bytes need not be initialised for this type, and nothing else refers to it.
        ask_for_huge_pages(unsafe {
            slice::from_raw_parts_mut(base.cast::<MaybeUninit<u8>>().as_ptr(), layout.size())
        });
        Some(Self { start, len, base, layout })
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        // SAFETY: `allocate` allocated `base` with this layout. Elements need no drop.
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
