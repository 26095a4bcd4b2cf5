//! Kernels of inference on CPUs, for weights and caches in f32, bf16 or f16 with sums in f32, for quantised weights, and for caches in
//! FP8.
//!
//! - `simd` chooses the instruction set at run time, and `pool` holds the threads.
//! - `linear` computes linear layers. `packed` holds their weights in panels. `quantised` holds them in `fp8`, or in `tiles` of one of
//!   the `formats` of ggml. All multiply with them.
//! - `layer` gives weights of any type to networks whose values are f32.
//! - `cache` holds the keys and values of sequences in pages of the same panels. `attention` reads them.
//! - `fused` contains the operations between products: norms, rotary positions, activations, sums.
//!
//! Operations are functions over slices; each shares its work out to the threads of a [`Machine`]. Activations are row-major.
//! They are f32 where they are added up, and have the type of the weights where they are multiplied.
//!
//! Each result that transformers stores in bf16 is rounded to bf16 here, even where it is kept in f32. Within an operation,
//! nothing is rounded.

mod attention;
mod cache;
pub(super) mod element;
mod formats;
mod fp8;
mod fused;
mod layer;
mod linear;
mod memory;
pub(super) mod packed;
pub(super) mod pool;
mod quantised;
pub(super) mod simd;
#[cfg(test)]
mod tests;
mod tiles;

pub use attention::Attention;
pub use cache::{Heads, PAGE, Pages, Region, Sequence, Span};
pub use element::{Element, Operand};
pub use formats::Format;
pub use fp8::F8E4M3;
pub use fused::{Activation, Angles, RowNorm, add_norm, combine, embed, norm, norm_in_place, round_rows, soft_cap};
pub use layer::Layer;
pub use linear::{Gate, Linear, Product, Then, Weights, gated, products};
pub use memory::elements;
#[cfg(target_arch = "x86_64")]
pub(crate) use packed::AHEAD;
pub use packed::{Packed, Rows, Source};
pub use quantised::Quantised;
pub use simd::Instructions;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use pool::Pool;
use simd::Dispatch;

/// The threads and the instruction set of kernels.
#[derive(Clone)]
pub struct Machine {
    pub(super) pool: Arc<Pool>,
    pub(super) dispatch: Dispatch,
}

/// The instruction set that [`Machine::with_threads`] uses: its place in [`Instructions::ALL`] plus 1, or 0 for the fastest.
static SELECTED: AtomicUsize = AtomicUsize::new(0);

impl Machine {
    /// A number of threads, and an instruction set; `None` if this machine does not have it.
    pub fn new(threads: usize, instructions: Instructions) -> Option<Self> {
        Some(Self { dispatch: Dispatch::new(instructions)?, pool: Pool::shared(threads) })
    }

    /// A number of threads, and the selected or the fastest instruction set.
    pub fn with_threads(threads: usize) -> Self {
        let selected = SELECTED.load(Ordering::Relaxed).checked_sub(1).map(|place| Instructions::ALL[place]);
        let dispatch = selected.and_then(Dispatch::new).unwrap_or_else(Dispatch::best);
        Self { dispatch, pool: Pool::shared(threads) }
    }

    /// Machines that run at the same time: each has an equal part of the threads, and at least one.
    pub fn split(self, count: usize) -> Vec<Self> {
        if count == 1 {
            return vec![self];
        }
        let threads = self.threads() / count;
        // Machines that shared a pool would wait for it in turns.
        (0..count).map(|_| Self { pool: Arc::new(Pool::new(threads)), dispatch: self.dispatch }).collect()
    }

    /// The threads of trainings, as many as Candle uses. They are started at the first call.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Machine> = OnceLock::new();
        SHARED.get_or_init(|| Self::with_threads(candle_core::utils::get_num_threads()))
    }

    /// Selects the instruction set of machines that are made later.
    pub fn select(instructions: Instructions) {
        let place = Instructions::ALL.iter().position(|other| *other == instructions);
        SELECTED.store(place.map_or(0, |place| place + 1), Ordering::Relaxed);
    }

    /// The instruction set.
    pub fn instructions(&self) -> Instructions {
        self.dispatch.instructions()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `task` with the number of each row and its part of `out`, `width` elements. Rows that are too little work for
    /// several threads are done by the caller.
    fn each_row<T: Send>(&self, out: &mut [T], width: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        if width == 0 {
            return;
        }
        if out.len() < SMALL {
            return out.chunks_mut(width).enumerate().for_each(|(row, part)| task(row, part));
        }
        let rows = (SMALL / 4 / width).max(1);
        self.pool.parts(out, rows * width, |number, part| {
            part.chunks_mut(width).enumerate().for_each(|(row, part)| task(number * rows + row, part));
        });
    }
}

/// Elements that one thread processes in about the time in which two threads could meet.
const SMALL: usize = 16 * 1024;
