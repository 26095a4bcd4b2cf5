//! Softmax over the last dimension.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};
use candle_nn::ops::softmax as composed_softmax;
use rayon::prelude::*;

use super::{Candle, is_plain, slice, tensor, with_slices};

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op1(Softmax)?);
    }
    Ok(composed_softmax(x, D::Minus1)?)
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax-with-gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let mut out = vec![0f32; x.len()];
        let row = |(out, x): (&mut [f32], &[f32])| {
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (out, x) in out.iter_mut().zip(x) {
                *out = (x - most).exp();
                sum += *out;
            }
            out.iter_mut().for_each(|out| *out /= sum);
        };
        out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(16).for_each(row);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, shares: &Tensor, grad: &Tensor) -> Candle<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let of_x = with_slices([shares, grad], |[shares, grad]| {
            let mut of_x = vec![0f32; shares.len()];
            let row = |((of_x, shares), grad): ((&mut [f32], &[f32]), &[f32])| {
                let mean: f32 = shares.iter().zip(grad).map(|(share, grad)| share * grad).sum();
                for ((of_x, share), grad) in of_x.iter_mut().zip(shares).zip(grad) {
                    *of_x = share * (grad - mean);
                }
            };
            of_x.par_chunks_mut(width)
                .zip(shares.par_chunks(width))
                .zip(grad.par_chunks(width))
                .with_min_len(16)
                .for_each(row);
            of_x
        })?;
        Ok(Some(tensor(of_x, x)?))
    }
}
