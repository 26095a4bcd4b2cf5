//! The parts beside kernels that need `unsafe` code: the allocators, huge pages, maps of files, the driver's memory pool, and the
//! variables of the process. They are here because `tests/suite/layout.rs` admits such code in this folder only.

pub mod allocator;
mod huge_pages;
#[cfg(feature = "cuda")]
pub mod pool;

pub use huge_pages::{HUGE_PAGE_BYTES, ask_for_huge_pages};

use std::path::Path;

use candle_core::safetensors::MmapedSafetensors;

/// Maps safetensors files and reads their headers.
///
/// # Errors
/// When a file cannot be opened, or its header is not that of the file.
pub fn map(files: &[impl AsRef<Path>]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: sound as long as no program changes or truncates the files while they are mapped, which cannot be enforced. The
    // Hub's cache renames finished files into place and never edits them.
    unsafe { MmapedSafetensors::multi(files) }
}

/// Sets a variable of the process. Call this first in `main`.
pub fn set_variable(variable: &str, value: &str) {
    // SAFETY: the callers run first in `main`, while the process has one thread, so no other thread reads the
    // environment.
    unsafe { std::env::set_var(variable, value) };
}

/// Makes glibc keep freed memory for later allocations instead of giving it back to the kernel. Call this first in `main`. Other
/// C libraries go on as before.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, i32::MAX)] {
        // SAFETY: glibc refuses values that it cannot use. The callers run first in `main`, while the process has one thread, so nothing
        // allocates at the same time.
        unsafe { libc::mallopt(parameter, value) };
    }
}
