//! Residual connections.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{CHUNK, Candle, dot, is_plain, slice, tensor, with_slices};

/// `x + scale · branch`, with a scalar scale.
pub fn add_scaled(x: &Tensor, branch: &Tensor, scale: &Tensor) -> Result<Tensor> {
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op3(&branch.contiguous()?, scale, AddScaled)?);
    }
    Ok((x + branch.broadcast_mul(&scale.to_dtype(branch.dtype())?)?)?)
}

struct AddScaled;

impl CustomOp3 for AddScaled {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        branch: &CpuStorage,
        branch_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let (x, branch, scale) = (slice(x, x_layout)?, slice(branch, branch_layout)?, slice(scale, scale_layout)?[0]);
        let mut out = vec![0f32; x.len()];
        let chunk = |((out, x), branch): ((&mut [f32], &[f32]), &[f32])| {
            for ((out, x), branch) in out.iter_mut().zip(x).zip(branch) {
                *out = x + scale * branch;
            }
        };
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(branch.par_chunks(CHUNK)).for_each(chunk);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        branch: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_branch, of_scale) = with_slices([branch, scale, grad], |[branch, scale, grad]| {
            let mut of_branch = vec![0f32; branch.len()];
            let chunks = of_branch.par_chunks_mut(CHUNK).zip(branch.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK));
            let sums = chunks.map(|((of_branch, branch), grad)| {
                of_branch.iter_mut().zip(grad).for_each(|(of_branch, grad)| *of_branch = scale[0] * grad);
                f64::from(dot(branch, grad))
            });
            let of_scale: f64 = sums.sum();
            (of_branch, vec![of_scale as f32])
        })?;
        Ok((Some(grad.clone()), Some(tensor(of_branch, branch)?), Some(tensor(of_scale, scale)?)))
    }
}
