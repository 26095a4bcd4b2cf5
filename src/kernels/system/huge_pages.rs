//! Huge pages: fewer translations of addresses.

/// Size and alignment of a huge page on most systems. A buffer without any is left as it is.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks Linux to back memory that nothing has touched yet with huge pages. Many systems do so only on request.
#[cfg(target_os = "linux")]
pub fn ask_for_huge_pages<T>(memory: &mut [T]) {
    const MADV_HUGEPAGE: std::ffi::c_int = 14;
    unsafe extern "C" {
        fn madvise(address: *mut std::ffi::c_void, length: usize, advice: std::ffi::c_int) -> std::ffi::c_int;
    }
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    // Only whole huge pages inside the buffer: the pages at its ends may hold other data.
    let skipped = start.align_offset(HUGE_PAGE_BYTES);
    let length = bytes.saturating_sub(skipped) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if length > 0 {
        // SAFETY: `skipped + length` is at most `bytes`, so the range lies within one allocation, and the advice does not
        // change its content. A refusal leaves the pages as they are.
        unsafe { madvise(start.add(skipped).cast(), length, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub fn ask_for_huge_pages<T>(_: &mut [T]) {}
