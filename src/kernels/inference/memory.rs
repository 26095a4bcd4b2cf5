//! Memory for weights and caches: aligned to cache lines, and large ones to huge pages, where the system grants them.
//!
//! The time to read weights depends on the pages that hold them. A buffer that starts anywhere has ordinary pages at its ends,
//! and two copies of a model were read at rates up to 10 % apart. The matrices of a small model hardly fill a huge page each, so
//! buffers up to a few of them lie one after the other in a [`Region`].

use std::{
    alloc::{GlobalAlloc, Layout, System, alloc, dealloc, handle_alloc_error},
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use half::{bf16, f16};

use super::pool::Pool;
use crate::system::{HUGE_PAGE_BYTES, allocator, ask_for_huge_pages};

/// Bytes of a cache line, to which vectors of 512 bits should be aligned.
pub const LINE: usize = 64;

/// A type that a [`Buffer`] can hold.
///
/// # Safety
/// Every pattern of bits must be a valid value. Values must need no drop.
pub unsafe trait Zeroed: Send + Sync + 'static {}

// SAFETY: every pattern of bits is a number.
unsafe impl Zeroed for f32 {}
// SAFETY: as above.
unsafe impl Zeroed for bf16 {}
// SAFETY: as above.
unsafe impl Zeroed for f16 {}

/// Huge pages that several buffers share. Pages to which nothing was written take no memory, so only the last huge page of a
/// region may be used in part. The allocator of the program does not see it: the buffers are counted, one by one.
struct Region(NonNull<u8>);

/// Large enough that the system's allocator maps it rather than finding it among freed memory, whose pages are used.
const REGION_BYTES: usize = 32 << 20;

/// Most bytes of a buffer in a region. The ends of larger ones matter little.
const MOST_SHARED_BYTES: usize = REGION_BYTES / 2;

/// The region that has room, and its used bytes. It lives as long as its buffers.
static OPEN: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

// SAFETY: the region gives each of its bytes to at most one buffer, and accesses none itself.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    const LAYOUT: Layout = match Layout::from_size_align(REGION_BYTES, HUGE_PAGE_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a region has a layout"),
    };

    /// `None` if memory is missing.
    fn reserve() -> Option<Arc<Self>> {
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { System.alloc(Self::LAYOUT) })?;
        // SAFETY: the allocation has this size, its bytes need not be initialised for this type, and nothing else refers to it.
        ask_for_huge_pages(unsafe { slice::from_raw_parts_mut(base.cast::<MaybeUninit<u8>>().as_ptr(), REGION_BYTES) });
        Some(Arc::new(Self(base)))
    }

    /// The next bytes of the open region, or of a new one. They start on a cache line. `None` if memory is missing or the buffer
    /// is too large.
    fn share(bytes: usize) -> Option<(NonNull<u8>, Arc<Self>)> {
        if bytes > MOST_SHARED_BYTES {
            return None;
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, used) = match open.0.upgrade().filter(|_| open.1 + bytes <= REGION_BYTES) {
            Some(region) => (region, open.1),
            None => (Self::reserve()?, 0),
        };
        *open = (Arc::downgrade(&region), used + bytes.next_multiple_of(LINE));
        // SAFETY: `used` is at most the size of the region.
        Some((unsafe { region.0.add(used) }, region))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `reserve` allocated it with this layout, and no buffer refers to it any more.
        unsafe { System.dealloc(self.0.as_ptr(), Self::LAYOUT) };
    }
}

/// A slice with zeros in the beginning. It is aligned to cache lines, or to huge pages if it fills many.
pub struct Buffer<E> {
    start: NonNull<E>,
    len: usize,
    layout: Layout,
    /// The region that it is in; `None` if the memory is its own.
    region: Option<Arc<Region>>,
}

// SAFETY: the buffer owns its elements.
unsafe impl<E: Zeroed> Send for Buffer<E> {}
// SAFETY: as above.
unsafe impl<E: Zeroed> Sync for Buffer<E> {}

impl<E: Zeroed> Buffer<E> {
    /// `len` elements that are kept as long as others, such as the weights of a model. The threads of the pool set each part of `size`
    /// elements to zero and call `write` with its number and the part, while it is in a cache. So each page is near one of the threads.
    ///
    /// # Panics
    /// If the size overflows. The process ends if memory is missing.
    pub fn written(len: usize, size: usize, pool: &Pool, write: impl Fn(usize, &mut [E]) + Sync) -> Self {
        let layout = Self::layout(len).expect("a size that fits in memory");
        let buffer = match Region::share(layout.size()) {
            Some((base, region)) => {
                allocator::took(layout.size());
                Self { start: base.cast(), len, layout, region: Some(region) }
            }
            // SAFETY: the layout is that of this length, and the tasks below write every element.
            None => unsafe { Self::allocate(len, layout) }.unwrap_or_else(|| handle_alloc_error(layout)),
        };
        // SAFETY: the buffer has this memory to itself, and it need not be initialised for this type.
        let elements = unsafe { slice::from_raw_parts_mut(buffer.start.cast::<MaybeUninit<E>>().as_ptr(), len) };
        // A task writes a huge page or more: of two threads that touch a new page at once, the system would clear one for each.
        let parts = (HUGE_PAGE_BYTES / size_of::<E>()).div_ceil(size.max(1));
        pool.parts(elements, size.max(1) * parts, |task, elements| {
            for (number, part) in (task * parts..).zip(elements.chunks_mut(size.max(1))) {
                write(number, zero(part));
            }
        });
        buffer
    }

    /// `len` zeros; `None` if memory is missing.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        // SAFETY: the layout is that of this length, and all elements are set to zero below.
        let buffer = unsafe { Self::allocate(len, Self::layout(len)?) }?;
        // SAFETY: the buffer has this memory to itself, and it need not be initialised for this type.
        zero(unsafe { slice::from_raw_parts_mut(buffer.start.cast::<MaybeUninit<E>>().as_ptr(), len) });
        Some(buffer)
    }

    /// Memory for `len` elements; `None` if the size overflows.
    fn layout(len: usize) -> Option<Layout> {
        const { assert!(align_of::<E>() <= LINE, "elements are aligned to more than a cache line") }
        let bytes = len.checked_mul(size_of::<E>())?;
        let align = if bytes < HUGE_PAGE_BYTES { LINE } else { HUGE_PAGE_BYTES };
        Layout::from_size_align(bytes.max(1), align).ok()
    }

    /// Memory for `len` elements with this layout; `None` if it is missing.
    ///
    /// # Safety
    /// The layout must be that of [`Self::layout`], and all elements must be written before they are read.
    unsafe fn allocate(len: usize, layout: Layout) -> Option<Self> {
        // SAFETY: the size is at least a byte.
        let base = NonNull::new(unsafe { alloc(layout) })?;
        // Pages are chosen when they are first written.
        // SAFETY: the allocation has this size, its bytes need not be initialised for this type, and nothing else refers to it.
        ask_for_huge_pages(unsafe {
            slice::from_raw_parts_mut(base.cast::<MaybeUninit<u8>>().as_ptr(), layout.size())
        });
        Some(Self { start: base.cast(), len, layout, region: None })
    }
}

/// Sets elements to zero.
fn zero<E: Zeroed>(elements: &mut [MaybeUninit<E>]) -> &mut [E] {
    let start = elements.as_mut_ptr();
    // SAFETY: the elements are borrowed mutably, and zeros are valid values of the type.
    unsafe {
        start.write_bytes(0, elements.len());
        slice::from_raw_parts_mut(start.cast(), elements.len())
    }
}

/// The elements whose bytes, in the order of this machine, are given; `None` if they are not aligned, or do not end with an element.
pub fn elements<E: Zeroed>(bytes: &[u8]) -> Option<&[E]> {
    // SAFETY: every pattern of bits is a valid value.
    let (before, elements, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(elements)
}

impl<E> Buffer<E> {
    /// The memory of the elements in whole words.
    ///
    /// # Safety
    /// The elements must have no padding.
    pub unsafe fn words(&self) -> &[u64] {
        // SAFETY: all elements lie in the allocation, or in the bytes of the region that are theirs alone, and were zeroed. Without
        // padding, all their bytes keep a value, and words have every pattern of bits.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len).align_to().1 }
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        match self.region {
            Some(_) => allocator::gave_back(self.layout.size()),
            // SAFETY: `allocate` allocated `start` with this layout. Elements need no drop.
            None => unsafe { dealloc(self.start.as_ptr().cast(), self.layout) },
        }
    }
}

impl<E: Zeroed> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` elements lie in the allocation, or in the bytes of the region that are theirs alone. The alignment of both is
        // at least theirs. They were zeroed, which is a valid value of every element.
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

    fn zeroed<E: Zeroed>(len: usize, pool: &Pool) -> Buffer<E> {
        Buffer::written(len, LINE, pool, |_, _| {})
    }

    fn address<E>(buffer: &[E]) -> usize {
        buffer.as_ptr().addr()
    }

    #[test]
    fn elements_need_whole_and_aligned_bytes() {
        let lines = [Line([0; LINE]), Line([1; LINE])];
        let bytes: &[u8] = lines[1].0.as_slice();
        assert_eq!(elements::<bf16>(bytes), Some(&[bf16::from_bits(0x0101); LINE / 2][..]));
        assert_eq!(elements::<f32>(&bytes[..LINE - 4]).map(<[f32]>::len), Some(LINE / 4 - 1));
        assert_eq!((elements::<f32>(&bytes[..LINE - 2]), elements::<f32>(&bytes[2..LINE - 2])), (None, None));
    }

    /// Parts of every size, below and above a huge page, and a last one that is shorter.
    #[test]
    fn parts_are_zeros_before_they_are_written() {
        let pool = Pool::new(2);
        for (len, size) in [(0, 0), (0, 5), (7, 3), (1 << 20, 1000), (5 << 20, (1 << 20) - 1)] {
            let buffer = Buffer::<f32>::written(len, size, &pool, |number, part| {
                assert!(part.iter().all(|element| *element == 0.0));
                part.fill(number as f32);
            });
            let is_number = |(place, element): (usize, &f32)| *element == (place / size) as f32;
            assert!(buffer.len() == len && buffer.iter().enumerate().all(is_number), "{len} in parts of {size}");
        }
    }

    #[test]
    fn words_are_the_elements() {
        let mut buffer = Buffer::<f32>::try_zeroed(7).expect("memory");
        buffer.iter_mut().zip(1_u8..).for_each(|(element, number)| *element = number.into());
        // SAFETY: numbers have no padding.
        let words = unsafe { buffer.words() };
        let found: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let expected: Vec<u8> = buffer[..6].iter().flat_map(|element| element.to_ne_bytes()).collect();
        assert_eq!(found, expected, "six of seven elements fill words");
    }

    /// Large buffers of their own start on a huge page, and all on a cache line.
    #[test]
    fn buffers_are_zeroed_and_aligned() {
        let pool = Pool::new(2);
        let most = MOST_SHARED_BYTES / LINE;
        for lines in [0, 1, 3, HUGE_PAGE_BYTES / LINE - 1, HUGE_PAGE_BYTES / LINE, most, most + 1] {
            let own = if lines * LINE < HUGE_PAGE_BYTES { LINE } else { HUGE_PAGE_BYTES };
            let shared = if lines > most { own } else { LINE };
            let buffers = [(zeroed(lines, &pool), shared), (Buffer::<Line>::try_zeroed(lines).expect("memory"), own)];
            for (buffer, align) in buffers {
                assert!(address(&buffer).is_multiple_of(align), "{lines} lines");
                assert_eq!(buffer.len(), lines);
                assert!(buffer.iter().all(|line| line.0 == [0; LINE]), "{lines} lines");
            }
            let numbers = zeroed::<f32>(lines * LINE / size_of::<f32>(), &pool);
            assert!(address(&numbers).is_multiple_of(shared) && numbers.iter().all(|number| *number == 0.0));
        }
    }

    /// Buffers of many threads, some of which are freed while others are made, never overlap.
    #[test]
    fn buffers_of_a_region_are_apart() {
        let work = |mark: u8| {
            let pool = Pool::new(1);
            let mut held: Vec<Buffer<Line>> = Vec::new();
            for round in 0..200_usize {
                let mut buffer = zeroed::<Line>(round * 97 % 20_000 + 1, &pool);
                assert!(buffer.iter().all(|line| line.0 == [0; LINE]), "another buffer wrote here");
                buffer.fill(Line([mark; LINE]));
                held.push(buffer);
                if round % 3 == 0 {
                    held.swap_remove(round % held.len());
                }
            }
            assert!(held.iter().flat_map(|buffer| buffer.iter()).all(|line| line.0 == [mark; LINE]));
        };
        std::thread::scope(|scope| (1..=4).for_each(|mark| drop(scope.spawn(move || work(mark)))));
    }

    #[test]
    fn elements_can_be_written() {
        let mut buffer = zeroed::<Line>(3, &Pool::new(1));
        buffer[1].0[63] = 7;
        assert_eq!(buffer.iter().flat_map(|line| line.0).map(usize::from).sum::<usize>(), 7);
        assert!(Buffer::<f32>::try_zeroed(usize::MAX).is_none());
    }
}
