//! Depthwise convolutions over time.

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{CHUNK, Candle, added, is_plain, slice, tensor, with_slices};

/// Position of the taps of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// As many taps before the step as after it.
    Same,
    /// No tap after the step.
    Causal,
}

/// Depthwise convolution over time that keeps the length: `x` (batch, time, channels), `weight` (channels, 1, taps),
/// `bias` (channels).
pub fn depthwise(x: &Tensor, weight: &Tensor, bias: &Tensor, dilation: usize, padding: Padding) -> Result<Tensor> {
    let (_, time, channels) = x.dims3()?;
    let (of, _, taps) = weight.dims3()?;
    ensure!(of == channels, "a convolution of {of} channels can't take {channels}");
    let reach = (taps - 1) * dilation;
    let before = match padding {
        Padding::Same => reach / 2,
        Padding::Causal => reach,
    };
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op3(weight, bias, Depthwise { dilation, before })?);
    }
    let padded = x.pad_with_zeros(1, before, reach - before)?;
    let mut sum = bias.reshape((1, 1, channels))?.broadcast_as(x.shape())?.contiguous()?;
    for tap in 0..taps {
        let shifted = padded.narrow(1, tap * dilation, time)?;
        sum = (sum + shifted.broadcast_mul(&weight.narrow(2, tap, 1)?.reshape((1, 1, channels))?)?)?;
    }
    Ok(sum)
}

struct Depthwise {
    dilation: usize,
    /// Steps from the first tap to the step that it contributes to.
    before: usize,
}

impl Depthwise {
    /// For each tap, the offset of the step that it reads.
    fn offsets(&self, taps: usize) -> Vec<isize> {
        (0..taps).map(|tap| (tap * self.dilation) as isize - self.before as isize).collect()
    }

    /// For every step, adds to `start` the rows of `x` at `offsets` from it, times the rows of `weights` (taps,
    /// channels).
    fn sum(
        x: &[f32],
        weights: &[f32],
        offsets: &[isize],
        start: Option<&[f32]>,
        time: usize,
        channels: usize,
    ) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        let step = |(number, out): (usize, &mut [f32])| {
            let (sequence, step) = (number / time * time, (number % time) as isize);
            if let Some(start) = start {
                out.copy_from_slice(start);
            }
            for (offset, weights) in offsets.iter().zip(weights.chunks_exact(channels)) {
                if (0..time as isize).contains(&(step + offset)) {
                    let from = (sequence + (step + offset) as usize) * channels;
                    for ((out, x), weight) in out.iter_mut().zip(&x[from..from + channels]).zip(weights) {
                        *out += x * weight;
                    }
                }
            }
        };
        out.par_chunks_mut(channels).enumerate().with_min_len(16).for_each(step);
        out
    }
}

/// Transposes (channels, taps) to (taps, channels), or back with the sizes swapped.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|place| values[place % rows * columns + place / rows]).collect()
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise-with-gradient"
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
        let (_, time, channels) = x_layout.shape().dims3()?;
        let (_, _, taps) = weight_layout.shape().dims3()?;
        let weights = transposed(slice(weight, weight_layout)?, channels, taps);
        let (x, bias) = (slice(x, x_layout)?, slice(bias, bias_layout)?);
        let out = Self::sum(x, &weights, &self.offsets(taps), Some(bias), time, channels);
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
        let (_, time, channels) = x.dims3()?;
        let taps = weight.dim(2)?;
        let offsets = self.offsets(taps);
        let (of_x, of_weight, of_bias) = with_slices([x, weight, grad], |[x, weight, grad]| {
            let backwards: Vec<isize> = offsets.iter().map(|offset| -offset).collect();
            let of_x = Self::sum(grad, &transposed(weight, channels, taps), &backwards, None, time, channels);
            let steps = CHUNK.div_ceil(channels);
            let sums = grad.par_chunks(steps * channels).enumerate().map(|(chunk, grad)| {
                let (mut of_weight, mut of_bias) = (vec![0f32; taps * channels], vec![0f32; channels]);
                for (place, grad) in grad.chunks(channels).enumerate() {
                    let number = chunk * steps + place;
                    let (sequence, step) = (number / time * time, (number % time) as isize);
                    of_bias.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
                    for (offset, sums) in offsets.iter().zip(of_weight.chunks_exact_mut(channels)) {
                        if (0..time as isize).contains(&(step + offset)) {
                            let from = (sequence + (step + offset) as usize) * channels;
                            for ((sum, x), grad) in sums.iter_mut().zip(&x[from..from + channels]).zip(grad) {
                                *sum += x * grad;
                            }
                        }
                    }
                }
                (of_weight, of_bias)
            });
            let (of_weight, of_bias) = sums.reduce(
                || (vec![0f32; taps * channels], vec![0f32; channels]),
                |a, b| (added(a.0, &b.0), added(a.1, &b.1)),
            );
            (of_x, transposed(&of_weight, taps, channels), of_bias)
        })?;
        Ok((Some(tensor(of_x, x)?), Some(tensor(of_weight, weight)?), Some(tensor(of_bias, bias)?)))
    }
}
