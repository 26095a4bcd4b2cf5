//! Operations for training that Candle has no gradient for (norms, softmax over the last dimension), or that take
//! Candle many passes over memory (linear layers, attention, activations with their gradients, depthwise
//! convolutions). In f32 on a CPU, each has one kernel for the forward and one for the backward pass. Elsewhere, each
//! is a composition of Candle's operations. Tests compare the two, and gradients with finite differences. Layers with
//! weights are in the models. [`inference`] has the kernels of inference, which have no gradients. All `unsafe` code of the
//! crate is in this folder; `system` has what is not a kernel.

mod activation;
mod attention;
mod convolution;
mod elementary;
pub mod inference;
mod linear;
mod norm;
mod product;
mod residual;
mod softmax;
mod sum;
pub mod system;
#[cfg(test)]
mod tests;

pub use activation::{Decay, gate, gelu, sine};
pub use attention::{Attention, Positions};
pub use convolution::{Padding, depthwise};
pub use elementary::{Kernel, exp, vectorised};
pub use linear::linear;
pub use norm::{layer_norm, rms_norm};
pub use product::{Matrix, MatrixMut, product};
pub use residual::add_scaled;
pub use softmax::softmax;
pub use sum::sum;

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, bail};

type Candle<T> = candle_core::Result<T>;

/// Elements that a thread processes at a time.
const CHUNK: usize = 16 * 1024;

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
    let tensors = tensors.map(Tensor::contiguous);
    let mut whole = Vec::with_capacity(N);
    for tensor in tensors {
        whole.push(tensor?);
    }
    let storages: Vec<_> = whole.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = [&[][..]; N];
    for (place, (storage, layout)) in slices.iter_mut().zip(&storages) {
        let Storage::Cpu(storage) = &**storage else { bail!("contiguous f32 on a CPU is required") };
        *place = slice(storage, layout)?;
    }
    Ok(with(slices))
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

fn added(mut sum: Vec<f32>, more: &[f32]) -> Vec<f32> {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    sum
}

/// Σ aᵢ·bᵢ, in lanes that the compiler can vectorise.
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
