//! Memory for weights and caches: aligned to cache lines, and large ones to huge pages, where the system grants them.
//!
//! The time to read weights depends on the pages that hold them. A buffer that starts anywhere has ordinary pages at its ends,
//! and two copies of a model were read at rates up to 10 % apart.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use half::{bf16, f16};

use super::pool::Pool;
use crate::kernels::system::{HUGE_PAGE_BYTES, ask_for_huge_pages};

/// Bytes of a cache line, to which vectors of 512 bits should be aligned.
pub const LINE: usize = 64;

/// A type that a [`Buffer`] can hold.
///
/// # Safety
/// Zero bytes must be a valid value. Values must need no drop.
pub unsafe trait Zeroed: Send + Sync + 'static {}

// SAFETY: every pattern of bits is a number.
unsafe impl Zeroed for f32 {}
// SAFETY: as above.
unsafe impl Zeroed for bf16 {}
// SAFETY: as above.
unsafe impl Zeroed for f16 {}

/// A slice with zeros in the beginning. It is aligned to cache lines, or to huge pages if it fills one.
pub struct Buffer<E> {
    start: NonNull<E>,
    len: usize,
    layout: Layout,
}

// SAFETY: the buffer owns its elements.
unsafe impl<E: Zeroed> Send for Buffer<E> {}
// SAFETY: as above.
unsafe impl<E: Zeroed> Sync for Buffer<E> {}

impl<E: Zeroed> Buffer<E> {
    /// `len` zeros. The threads of the pool write them, so that each page is near one of the threads.
    ///
    /// # Panics
    /// If the size overflows. The process ends if memory is missing.
    pub fn zeroed(len: usize, pool: &Pool) -> Self {
        let layout = Self::layout(len).expect("a size that fits in memory");
        let zero = |bytes: &mut [MaybeUninit<u8>]| pool.parts(bytes, HUGE_PAGE_BYTES, |_, part| fill(part));
        Self::allocate(len, layout, zero).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// `len` zeros; `None` if memory is missing.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        Self::allocate(len, Self::layout(len)?, fill)
    }

    /// Memory for `len` elements; `None` if the size overflows.
    fn layout(len: usize) -> Option<Layout> {
        const { assert!(align_of::<E>() <= LINE, "elements are aligned to more than a cache line") }
        let bytes = len.checked_mul(size_of::<E>())?;
        let align = if bytes < HUGE_PAGE_BYTES { LINE } else { HUGE_PAGE_BYTES };
        Layout::from_size_align(bytes.max(1), align).ok()
    }

    /// `len` zeros in memory with the layout of their number. `zero` writes all bytes.
    fn allocate(len: usize, layout: Layout, zero: impl FnOnce(&mut [MaybeUninit<u8>])) -> Option<Self> {
        // SAFETY: the size is at least a byte.
        let base = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the allocation has this size, its bytes need not be initialised for this type, and nothing else refers to it.
        let bytes = unsafe { slice::from_raw_parts_mut(base.cast::<MaybeUninit<u8>>().as_ptr(), layout.size()) };
        // Pages are chosen when they are first written.
        ask_for_huge_pages(bytes);
        zero(bytes);
        Some(Self { start: base.cast(), len, layout })
    }
}

fn fill(bytes: &mut [MaybeUninit<u8>]) {
    bytes.fill(MaybeUninit::new(0));
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        // SAFETY: `allocate` allocated `start` with this layout. Elements need no drop.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
    }
}

impl<E: Zeroed> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` elements lie in the allocation, whose alignment is at least theirs. They were zeroed, which is a valid value
        // of every element.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<E: Zeroed> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and the buffer is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligned to a cache line, as tiles are.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Line([u8; LINE]);

    // SAFETY: every pattern of bits is a number.
    unsafe impl Zeroed for Line {}

    fn address<E>(buffer: &[E]) -> usize {
        buffer.as_ptr().addr()
    }

    /// Large buffers start on a huge page, whether the threads write the zeros or the caller.
    #[test]
    fn buffers_are_zeroed_and_aligned() {
        let pool = Pool::new(2);
        for lines in [0, 1, 3, HUGE_PAGE_BYTES / LINE - 1, HUGE_PAGE_BYTES / LINE, HUGE_PAGE_BYTES / LINE + 1] {
            let align = if lines * LINE < HUGE_PAGE_BYTES { LINE } else { HUGE_PAGE_BYTES };
            for buffer in [Buffer::zeroed(lines, &pool), Buffer::<Line>::try_zeroed(lines).expect("memory")] {
                assert!(address(&buffer).is_multiple_of(align), "{lines} lines");
                assert_eq!(buffer.len(), lines);
                assert!(buffer.iter().all(|line| line.0 == [0; LINE]), "{lines} lines");
            }
            let numbers = Buffer::<f32>::zeroed(lines * LINE / size_of::<f32>(), &pool);
            assert!(address(&numbers).is_multiple_of(align) && numbers.iter().all(|number| *number == 0.0));
        }
    }

    #[test]
    fn elements_can_be_written() {
        let mut buffer = Buffer::<Line>::zeroed(3, &Pool::new(1));
        buffer[1].0[63] = 7;
        assert_eq!(buffer.iter().flat_map(|line| line.0).map(usize::from).sum::<usize>(), 7);
        assert!(Buffer::<f32>::try_zeroed(usize::MAX).is_none());
    }
}
