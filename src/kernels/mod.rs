//! The kernels of candlepower on CPUs: for inference, for training, and the code of the system below them. All `unsafe` code of
//! candlepower is in this package.
//!
//! [`inference`] has the kernels of models that run: products with weights in any format, attention over a cache, and the operations
//! between them. They have no gradients. The threads, the memory of weights and the choice of instructions are there too, and all
//! kernels use them.
//!
//! The other modules are operations for training. In f32 on a CPU, they are kernels with a forward and a backward pass, and whole
//! networks of them are one operation of Candle. Elsewhere, they are compositions of Candle's operations. Tests compare the two,
//! and gradients with finite differences. Layers with weights are in the models.
//!
//! - [`Graph`] lists the operations. A network is written once, for any graph, and [`fused`] runs it.
//! - `tape` runs kernels and records them for the backward pass; `composed` has the compositions.
//! - [`product`](mod@product) multiplies matrices; the other files hold one kind of operation each.
//!
//! [`system`] has what is not a kernel: allocators, huge pages, maps of files and the variables of the process.

// Its documentation is for people who change it, with private items.
#![allow(rustdoc::private_intra_doc_links)]

mod activation;
mod attention;
mod composed;
mod convolution;
mod elementary;
mod graph;
pub mod inference;
mod linear;
mod loss;
mod mask;
mod norm;
mod positions;
mod product;
mod residual;
mod sum;
pub mod system;
mod tape;
#[cfg(test)]
mod tests;

pub use activation::{Decay, Waveform};
pub use attention::{Attention, Positions};
pub use convolution::{Padding, Taps};
pub use elementary::{Loop, exp, vectorised};
pub use graph::{Graph, Network, fused};
pub use loss::losses;
pub use mask::Mask;
pub use product::{Matrix, MatrixMut, Start, product};
pub use sum::{read, sum};
pub use tape::Buffers;

use std::{
    cell::RefCell,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, bail};

use inference::{Machine, pool::Parts};

type Candle<T> = candle_core::Result<T>;

/// Elements that a thread processes at a time.
const CHUNK: usize = 8 * 1024;

/// Elements that one thread processes in about the time in which two threads could meet.
const SMALL: usize = 16 * 1024;

/// Returns whether the kernels support the tensor.
pub fn is_plain(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Candle<&'a [f32]> {
    let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
        bail!("contiguous f32 on a CPU is required")
    };
    Ok(&values[start..end])
}

/// Calls `with` with the elements of some tensors, f32 on a CPU.
///
/// # Errors
/// Returns an error if a tensor has another dtype or device.
pub fn with_slices<const N: usize, T>(tensors: [&Tensor; N], with: impl FnOnce([&[f32]; N]) -> T) -> Candle<T> {
    with_all_slices(tensors, |slices| {
        let mut all = [&[][..]; N];
        all.copy_from_slice(slices);
        with(all)
    })
}

/// As [`with_slices`], with any number of tensors.
///
/// # Errors
/// Returns an error if a tensor has another dtype or device.
pub fn with_all_slices<'a, T>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
    with: impl FnOnce(&[&[f32]]) -> T,
) -> Candle<T> {
    let whole: Vec<Tensor> = tensors.into_iter().map(Tensor::contiguous).collect::<Candle<_>>()?;
    let storages: Vec<_> = whole.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(whole.len());
    for (storage, layout) in &storages {
        let Storage::Cpu(storage) = &**storage else { bail!("contiguous f32 on a CPU is required") };
        slices.push(slice(storage, layout)?);
    }
    Ok(with(&slices))
}

/// Changes the elements of a contiguous tensor in place, f32 on a CPU.
///
/// # Errors
/// Returns an error if the tensor has another dtype, device or layout.
pub fn change(tensor: &Tensor, with: impl FnMut(&mut [f32])) -> Candle<()> {
    struct Change<F>(RefCell<F>);
    impl<F: FnMut(&mut [f32])> InplaceOp1 for Change<F> {
        fn name(&self) -> &'static str {
            "change"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Candle<()> {
            let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
                bail!("contiguous f32 on a CPU is required")
            };
            (self.0.borrow_mut())(&mut values[start..end]);
            Ok(())
        }
    }
    tensor.inplace_op1(&Change(RefCell::new(with)))
}

/// Makes a tensor with the shape of another.
fn tensor(values: Vec<f32>, like: &Tensor) -> Candle<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// Calls `task` with ranges of `rows` rows, of about `width` elements each, that cover all rows, on all threads.
fn share_out(rows: usize, width: usize, task: impl Fn(Range<usize>) + Sync) {
    if rows * width < SMALL {
        return task(0..rows);
    }
    let size = CHUNK.div_ceil(width.max(1));
    Machine::shared().pool.run(rows.div_ceil(size), |number| task(number * size..rows.min((number + 1) * size)));
}

/// Calls `task` with ranges of rows and their parts of `out`, `width` elements for each row.
fn each_part(out: &mut [f32], width: usize, task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let (rows, out) = (out.len() / width.max(1), Parts::new(out));
    share_out(rows, width, |rows| {
        // SAFETY: the ranges of different tasks do not overlap.
        let part = unsafe { out.get(rows.start * width..rows.end * width) };
        task(rows, part);
    });
}

/// As [`each_part`], with parts of two buffers.
fn each_part_of_two(
    (one, one_width): (&mut [f32], usize),
    (two, two_width): (&mut [f32], usize),
    task: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) {
    let (rows, two) = (one.len() / one_width.max(1), Parts::new(two));
    assert!(rows * two_width <= two.len(), "rows of two buffers");
    each_part(one, one_width, |rows, part| {
        // SAFETY: the ranges of different tasks do not overlap.
        let other = unsafe { two.get(rows.start * two_width..rows.end * two_width) };
        task(rows, part, other);
    });
}

elementary::compiled! {
    fn add_slices(sum: &mut [f32], more: &[f32]) {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
}

/// `sum += more`
fn add_to(sum: &mut [f32], more: &[f32]) {
    each_part(sum, 1, |part, sum| add_slices(sum, &more[part]));
}

/// Calls `task` with each item, on all threads. Returns the results in the order of the items.
pub fn each_of<T: Send, R: Send>(items: impl IntoIterator<Item = T>, task: impl Fn(T) -> R + Sync) -> Vec<R> {
    let cells: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    Machine::shared().pool.run(cells.len(), |number| {
        let mut cell = cells[number].lock().unwrap_or_else(PoisonError::into_inner);
        cell.1 = cell.0.take().map(&task);
    });
    let result = |cell: Mutex<(Option<T>, Option<R>)>| cell.into_inner().unwrap_or_else(PoisonError::into_inner).1;
    cells.into_iter().filter_map(result).collect()
}

/// Calls `with` with the elements of some tensors that are changed at once, f32 on a CPU. All must be different.
///
/// # Errors
/// Returns an error if a tensor has another dtype, device or layout.
pub fn change_all<T>(tensors: &[&Tensor], with: impl FnOnce(Vec<&mut [f32]>) -> T) -> Candle<T> {
    /// Borrows one tensor after the other, and calls `with` while all are borrowed.
    fn borrow<'a>(
        rest: &[&Tensor],
        borrowed: &mut Vec<Parts<'a, f32>>,
        with: &mut dyn FnMut(&[Parts<'a, f32>]),
    ) -> Candle<()> {
        let Some((first, rest)) = rest.split_first() else {
            with(borrowed);
            return Ok(());
        };
        let mut result = Ok(());
        change(first, |values| {
            // SAFETY: only the lifetime changes. The view is removed below, while `values` is still borrowed.
            borrowed.push(unsafe { std::mem::transmute::<Parts<'_, f32>, Parts<'a, f32>>(Parts::new(values)) });
            result = borrow(rest, borrowed, with);
            borrowed.pop();
        })?;
        result
    }
    let (mut with, mut out) = (Some(with), None);
    borrow(tensors, &mut Vec::with_capacity(tensors.len()), &mut |borrowed| {
        // SAFETY: each view has the elements of another tensor, which is borrowed mutably and locked.
        let slices = borrowed.iter().map(|part| unsafe { part.get(0..part.len()) }).collect();
        out = with.take().map(|with| with(slices));
    })?;
    out.map_or_else(|| bail!("tensors were not changed"), Ok)
}

/// Σ aᵢ·bᵢ, in lanes that the compiler can vectorise.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_whole, a_rest) = a.as_chunks::<16>();
    let (b_whole, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
