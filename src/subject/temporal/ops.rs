//! Operations of the backbones that Candle has no gradient for (layer norm, softmax over the last dimension), or that cost
//! it many passes over memory (GELU with its gradient, depthwise convolutions): in f32 on a processor one pass each way,
//! elsewhere a composition of Candle's own. Tests compare the two, and gradients with finite differences.

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, DType, Layout, Shape, Storage, Tensor, bail};
use candle_nn::ops::{sigmoid, softmax as composed_softmax};
use rayon::prelude::*;

type Candle<T> = candle_core::Result<T>;

/// Elements that a thread takes at a time.
const CHUNK: usize = 16 * 1024;

fn is_plain(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Candle<&'a [f32]> {
    let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
        bail!("contiguous f32 on a processor is needed")
    };
    Ok(&values[start..end])
}

/// Calls `with` with the numbers of some tensors.
fn with_slices<const N: usize, T>(tensors: [&Tensor; N], with: impl FnOnce([&[f32]; N]) -> T) -> Candle<T> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut whole = Vec::with_capacity(N);
    for tensor in tensors {
        whole.push(tensor?);
    }
    let storages: Vec<_> = whole.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = [&[][..]; N];
    for (place, (storage, layout)) in slices.iter_mut().zip(&storages) {
        let Storage::Cpu(storage) = &**storage else { bail!("contiguous f32 on a processor is needed") };
        *place = slice(storage, layout)?;
    }
    Ok(with(slices))
}

fn tensor(values: Vec<f32>, like: &Tensor) -> Candle<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// Layer norm over the last dimension, in f32 whatever the precision.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if is_plain(x) {
        return Ok(x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps: eps as f32 })?);
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    Ok(normed.broadcast_mul(weight)?.broadcast_add(bias)?)
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

fn added(mut sum: Vec<f32>, more: &[f32]) -> Vec<f32> {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    sum
}

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

/// GELU by the error function, as PyTorch's default is.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(if is_plain(x) { x.contiguous()?.apply_op1(Gelu)? } else { x.gelu_erf()? })
}

struct Gelu;

impl Gelu {
    /// The normal distribution below `x`, and `exp(-x²/2)`. By Abramowitz and Stegun's 7.1.26, whose error is below
    /// 1.5e-7.
    fn distribution(x: f32) -> (f32, f32) {
        let bell = (-0.5 * x * x).exp();
        let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
        let series = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
        let tail = 0.5 * series * bell;
        (if x < 0.0 { tail } else { 1.0 - tail }, bell)
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-with-gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut out = vec![0f32; x.len()];
        let chunk = |(out, x): (&mut [f32], &[f32])| {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x * Self::distribution(*x).0);
        };
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(chunk);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<Option<Tensor>> {
        /// 1 / √(2π)
        const DENSITY: f32 = 0.398_942_3;
        let of_x = with_slices([x, grad], |[x, grad]| {
            let mut of_x = vec![0f32; x.len()];
            let chunk = |((of_x, x), grad): ((&mut [f32], &[f32]), &[f32])| {
                for ((of_x, x), grad) in of_x.iter_mut().zip(x).zip(grad) {
                    let (below, bell) = Self::distribution(*x);
                    *of_x = grad * (below + x * DENSITY * bell);
                }
            };
            of_x.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK)).for_each(chunk);
            of_x
        })?;
        Ok(Some(tensor(of_x, x)?))
    }
}

/// Where the taps of a convolution lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// As many before as after the step.
    Same,
    /// None after the step.
    Causal,
}

/// Depthwise convolution over time, of the length of its input: `x` (batch, time, channels), `weight` (channels, 1,
/// taps), `bias` (channels).
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
    /// Steps from the first tap to the step that it is for.
    before: usize,
}

impl Depthwise {
    /// For each tap, how far from its step it reads.
    fn offsets(&self, taps: usize) -> Vec<isize> {
        (0..taps).map(|tap| (tap * self.dilation) as isize - self.before as isize).collect()
    }

    /// Sums for every step the rows of `x` at `offsets` from it, times the rows of `weights` (taps, channels), upon `start`.
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

/// From (channels, taps) to (taps, channels), or with the sizes swapped back.
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

/// `value · sigmoid(gate)`.
pub fn gate(value: &Tensor, gate: &Tensor) -> Result<Tensor> {
    Ok((value * sigmoid(gate)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn random(shape: &[usize]) -> Var {
        let numbers = Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("numbers");
        Var::from_tensor(&numbers).expect("a variable")
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        let flat = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1());
        flat.expect("numbers")
    }

    /// Output and gradients of the fast way against those of the composition, which runs in f64.
    fn compare(shapes: &[&[usize]], of: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let fast: Vec<Var> = shapes.iter().map(|shape| random(shape)).collect();
        let plain: Vec<Var> = fast
            .iter()
            .map(|var| Var::from_tensor(&var.to_dtype(DType::F64).expect("f64")).expect("a variable"))
            .collect();
        let run = |vars: &[Var]| {
            let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let out = of(&inputs).expect("an output");
            // Each element weighs something else, or gradients that add up to nothing would show nothing.
            let count = out.elem_count() as f64;
            let weights = (Tensor::arange(0f64, count, &Device::Cpu).and_then(|x| (x * 0.37)?.sin())).expect("weights");
            let weights = weights.to_dtype(out.dtype()).and_then(|w| w.reshape(out.shape())).expect("weights");
            let loss = (&out * &weights).and_then(|x| x.sum_all()).expect("a loss");
            let grads = loss.backward().expect("gradients");
            let grads: Vec<_> = vars.iter().map(|var| numbers(grads.get(var).expect("a gradient"))).collect();
            (numbers(&out), grads)
        };
        let ((out, grads), (plain_out, plain_grads)) = (run(&fast), run(&plain));
        let near = |a: &[f64], b: &[f64], what: &str| {
            assert_eq!(a.len(), b.len());
            let most = b.iter().fold(1.0, |most: f64, b| most.max(b.abs()));
            let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6 * most, "{what} of {shapes:?}: {worst} off, of {most}");
        };
        near(&out, &plain_out, "output");
        for (number, (grad, plain)) in grads.iter().zip(&plain_grads).enumerate() {
            near(grad, plain, &format!("gradient {number}"));
        }
    }

    #[test]
    fn fast_operations_are_as_the_compositions() {
        for (rows, width) in [(1, 1), (3, 7), (200, 96), (1025, 17)] {
            compare(&[&[rows, width]], |x| softmax(&x[0]));
            compare(&[&[rows, width]], |x| gelu(&x[0]));
        }
        for (rows, width) in [(1, 2), (3, 7), (200, 96)] {
            compare(&[&[2, rows, width], &[width], &[width]], |x| {
                if x[0].dtype() == DType::F32 {
                    return layer_norm(&x[0], &x[1], &x[2], 1e-5);
                }
                let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
                let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
                Ok(centred.broadcast_div(&scale)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])?)
            });
        }
        for (time, channels, taps, dilation) in
            [(1, 1, 1, 1), (9, 5, 3, 1), (9, 5, 4, 3), (40, 33, 7, 8), (300, 80, 5, 2)]
        {
            for padding in [Padding::Same, Padding::Causal] {
                compare(&[&[2, time, channels], &[channels, 1, taps], &[channels]], |x| {
                    depthwise(&x[0], &x[1], &x[2], dilation, padding)
                });
            }
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        let check = |shapes: &[&[usize]], of: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let vars: Vec<Var> = shapes.iter().map(|shape| random(shape)).collect();
            let loss = |inputs: &[Tensor]| of(inputs).and_then(|x| Ok(x.sqr()?.sum_all()?)).expect("a loss");
            let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let grads = loss(&inputs).backward().expect("gradients");
            for (which, var) in vars.iter().enumerate() {
                let direction = Tensor::randn(0f32, 1f32, var.shape(), &Device::Cpu).expect("a direction");
                let moved = |by: f64| {
                    let mut inputs = inputs.clone();
                    inputs[which] = (&inputs[which] + (&direction * by).expect("a step")).expect("moved");
                    numbers(&loss(&inputs))[0]
                };
                let step = 5e-3;
                let slope = (moved(step) - moved(-step)) / (2.0 * step);
                let grad =
                    (grads.get(var).expect("a gradient") * &direction).and_then(|x| x.sum_all()).expect("a slope");
                let expected = numbers(&grad)[0];
                assert!((slope - expected).abs() < 0.01 * (1.0 + expected.abs()), "{which}: {slope} for {expected}");
            }
        };
        check(&[&[4, 6]], &|x| softmax(&x[0]));
        check(&[&[4, 6]], &|x| gelu(&x[0]));
        check(&[&[3, 6], &[6], &[6]], &|x| layer_norm(&x[0], &x[1], &x[2], 1e-5));
        check(&[&[2, 9, 3], &[3, 1, 4], &[3]], &|x| depthwise(&x[0], &x[1], &x[2], 2, Padding::Causal));
        check(&[&[2, 9, 3], &[3, 1, 5], &[3]], &|x| depthwise(&x[0], &x[1], &x[2], 1, Padding::Same));
    }

    #[test]
    fn a_causal_convolution_sees_no_later_step() {
        let (weight, bias) = (random(&[3, 1, 4]), random(&[3]));
        let x = random(&[1, 10, 3]);
        let run = |x: &Tensor| numbers(&depthwise(x, &weight, &bias, 2, Padding::Causal).expect("an output"));
        let later = Tensor::cat(&[&x.narrow(1, 0, 6).expect("rows"), &random(&[1, 4, 3])], 1).expect("changed");
        assert_eq!(run(&x)[..18], run(&later)[..18]);
        assert_ne!(run(&x)[18..], run(&later)[18..]);
    }
}
