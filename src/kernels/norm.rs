//! Normalisation over the last dimension.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{CHUNK, Candle, added, dot, is_plain, slice, tensor, with_slices};

/// Layer norm over the last dimension, computed in f32 in every dtype.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps: eps as f32 })?);
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let scaled = normed.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    Ok(scaled.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?)
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Mean of a row, and the reciprocal of its standard deviation.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / row.len() as f32;
        (mean, (variance + self.eps).sqrt().recip())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm-with-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let width = weight.len();
        let mut out = vec![0f32; x.len()];
        let row = |(out, x): (&mut [f32], &[f32])| {
            let (mean, scale) = self.moments(x);
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        };
        out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(16).for_each(row);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight, of_bias) = with_slices([x, weight, grad], |[x, weight, grad]| {
            let width = weight.len();
            let rows = CHUNK.div_ceil(width);
            let mut of_x = vec![0f32; x.len()];
            let chunks =
                of_x.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).zip(grad.par_chunks(rows * width));
            let sums = chunks.map(|((of_x, x), grad)| {
                let (mut of_weight, mut of_bias) = (vec![0f32; width], vec![0f32; width]);
                let each = of_x.chunks_mut(width).zip(x.chunks(width)).zip(grad.chunks(width));
                for ((of_x, x), grad) in each {
                    let (mean, scale) = self.moments(x);
                    let (mut sum, mut sum_normed) = (0.0, 0.0);
                    for i in 0..width {
                        let normed = (x[i] - mean) * scale;
                        of_weight[i] += grad[i] * normed;
                        of_bias[i] += grad[i];
                        sum += grad[i] * weight[i];
                        sum_normed += grad[i] * weight[i] * normed;
                    }
                    let (mean_grad, mean_normed) = (sum / width as f32, sum_normed / width as f32);
                    for i in 0..width {
                        let normed = (x[i] - mean) * scale;
                        of_x[i] = scale * (grad[i] * weight[i] - mean_grad - normed * mean_normed);
                    }
                }
                (of_weight, of_bias)
            });
            let (of_weight, of_bias) =
                sums.reduce(|| (vec![0f32; width], vec![0f32; width]), |a, b| (added(a.0, &b.0), added(a.1, &b.1)));
            (of_x, of_weight, of_bias)
        })?;
        Ok((Some(tensor(of_x, x)?), Some(tensor(of_weight, weight)?), Some(tensor(of_bias, bias)?)))
    }
}

/// `x · scale / √(mean(x²) + eps)` over the last dimension, computed in f32.
pub fn rms_norm(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op2(scale, RmsNorm { eps: eps as f32 })?);
    }
    let wide = x.to_dtype(DType::F32)?;
    let rms = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(wide.broadcast_div(&rms)?.broadcast_mul(&scale.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?)
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    /// Reciprocal of the root of the mean square of a row.
    fn reciprocal(&self, row: &[f32]) -> f32 {
        (dot(row, row) / row.len() as f32 + self.eps).sqrt().recip()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm-with-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let (x, scale) = (slice(x, x_layout)?, slice(scale, scale_layout)?);
        let width = scale.len();
        let mut out = vec![0f32; x.len()];
        let row = |(out, x): (&mut [f32], &[f32])| {
            let reciprocal = self.reciprocal(x);
            for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
                *out = x * reciprocal * scale;
            }
        };
        out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(16).for_each(row);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, scale: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_scale) = with_slices([x, scale, grad], |[x, scale, grad]| {
            let width = scale.len();
            let size = CHUNK.div_ceil(width) * width;
            let mut of_x = vec![0f32; x.len()];
            let chunks = of_x.par_chunks_mut(size).zip(x.par_chunks(size)).zip(grad.par_chunks(size));
            let sums = chunks.map(|((of_x, x), grad)| {
                let (mut of_scale, mut scaled) = (vec![0f32; width], vec![0f32; width]);
                let rows = of_x.chunks_mut(width).zip(x.chunks(width)).zip(grad.chunks(width));
                for ((of_x, x), grad) in rows {
                    let reciprocal = self.reciprocal(x);
                    for i in 0..width {
                        scaled[i] = grad[i] * scale[i];
                        of_scale[i] += grad[i] * x[i] * reciprocal;
                    }
                    let mean = dot(&scaled, x) * reciprocal * reciprocal / width as f32;
                    for i in 0..width {
                        of_x[i] = reciprocal * (scaled[i] - x[i] * mean);
                    }
                }
                of_scale
            });
            let of_scale = sums.reduce(|| vec![0f32; width], |a, b| added(a, &b));
            (of_x, of_scale)
        })?;
        Ok((Some(tensor(of_x, x)?), Some(tensor(of_scale, scale)?)))
    }
}
