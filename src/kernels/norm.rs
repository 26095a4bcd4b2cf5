//! Normalisation over the last dimension.

use std::ops::Range;

use super::{
    Mask, SMALL, add_slices, dot, each_part,
    elementary::compiled,
    inference::{Machine, pool::Parts},
    tape::{Memory, Operation, destination},
};

/// Layer norm of `x`, or of `x + branch` with dropout of the branch. Inputs: `x`, the weight, the bias, and the branch if there
/// is one.
pub(super) struct LayerNorm {
    pub eps: f32,
    pub mask: Mask,
}

/// The sum of a row, in lanes that the compiler can vectorise.
#[inline(always)]
fn sum_of(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = row.as_chunks::<16>();
    for numbers in whole {
        lanes.iter_mut().zip(numbers).for_each(|(lane, number)| *lane += of(*number));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|number| of(*number)).sum::<f32>()
}

/// Mean of a row, and the reciprocal of its standard deviation.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum_of(row, |x| x) / row.len() as f32;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    (mean, (variance + eps).sqrt().recip())
}

/// Fills `sum` with `x + branch`, where `x` starts at place `first`.
#[inline(always)]
fn summed(x: &[f32], branch: Option<&[f32]>, mask: Mask, first: usize, sum: &mut [f32]) {
    match branch {
        None => sum.copy_from_slice(x),
        Some(branch) if mask.is_none() => {
            sum.iter_mut().zip(x).zip(branch).for_each(|((sum, x), branch)| *sum = x + branch);
        }
        Some(branch) => {
            for (i, ((sum, x), branch)) in sum.iter_mut().zip(x).zip(branch).enumerate() {
                *sum = x + mask.factor(first + i) * branch;
            }
        }
    }
}

/// The inputs of some rows, the first of which has this number.
#[derive(Clone, Copy)]
struct Norm<'a> {
    x: &'a [f32],
    branch: Option<&'a [f32]>,
    weight: &'a [f32],
    bias: &'a [f32],
    first: usize,
    eps: f32,
    mask: Mask,
}

compiled! {
    fn normed(norm: Norm, out: &mut [f32]) {
        let width = norm.weight.len();
        let (weight, bias) = (&norm.weight[..width], &norm.bias[..width]);
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let at = row * width..(row + 1) * width;
            let branch = norm.branch.map(|branch| &branch[at.clone()]);
            summed(&norm.x[at.clone()], branch, norm.mask, norm.first * width + at.start, out);
            let (mean, scale) = moments(out, norm.eps);
            for i in 0..width {
                out[i] = (out[i] - mean) * scale * weight[i] + bias[i];
            }
        }
    }

    /// Fills the gradient of the sum of `x` and branch, and those of weight and bias, one after the other.
    fn normed_backward(norm: Norm, grad: &[f32], of_x: &mut [f32], sums: &mut [f32]) {
        let width = norm.weight.len();
        sums.fill(0.0);
        let (of_weight, of_bias) = sums.split_at_mut(width);
        let (of_weight, of_bias, weight) = (&mut of_weight[..width], &mut of_bias[..width], &norm.weight[..width]);
        for (row, (of_x, grad)) in of_x.chunks_exact_mut(width).zip(grad.chunks_exact(width)).enumerate() {
            let at = row * width..(row + 1) * width;
            let branch = norm.branch.map(|branch| &branch[at.clone()]);
            summed(&norm.x[at.clone()], branch, norm.mask, norm.first * width + at.start, of_x);
            let (mean, scale) = moments(of_x, norm.eps);
            let (mut lanes, mut normed_lanes) = ([0f32; 16], [0f32; 16]);
            for start in (0..width).step_by(16) {
                for i in start..width.min(start + 16) {
                    let normed = (of_x[i] - mean) * scale;
                    let weighted = grad[i] * weight[i];
                    of_weight[i] += grad[i] * normed;
                    of_bias[i] += grad[i];
                    lanes[i - start] += weighted;
                    normed_lanes[i - start] += weighted * normed;
                }
            }
            let mean_grad = lanes.iter().sum::<f32>() / width as f32;
            let mean_normed = normed_lanes.iter().sum::<f32>() / width as f32;
            for i in 0..width {
                let normed = (of_x[i] - mean) * scale;
                of_x[i] = scale * (grad[i] * weight[i] - mean_grad - normed * mean_normed);
            }
        }
    }

    fn masked(grad: &[f32], mask: Mask, first: usize, of_branch: &mut [f32]) {
        for (i, (of_branch, grad)) in of_branch.iter_mut().zip(grad).enumerate() {
            *of_branch = mask.factor(first + i) * grad;
        }
    }

    fn rms_normed(x: &[f32], scale: &[f32], eps: f32, out: &mut [f32]) {
        let width = scale.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let reciprocal = (dot(x, x) / width as f32 + eps).sqrt().recip();
            for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
                *out = x * reciprocal * scale;
            }
        }
    }

    fn rms_normed_backward(x: &[f32], scale: &[f32], eps: f32, grad: &[f32], of_x: &mut [f32], of_scale: &mut [f32]) {
        let width = scale.len();
        let of_scale = &mut of_scale[..width];
        of_scale.fill(0.0);
        let rows = of_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width));
        for ((of_x, x), grad) in rows {
            let reciprocal = (dot(x, x) / width as f32 + eps).sqrt().recip();
            for i in 0..width {
                of_x[i] = grad[i] * scale[i];
                of_scale[i] += grad[i] * x[i] * reciprocal;
            }
            let mean = dot(of_x, x) * reciprocal * reciprocal / width as f32;
            for i in 0..width {
                of_x[i] = reciprocal * (of_x[i] - x[i] * mean);
            }
        }
    }
}

impl LayerNorm {
    fn rows<'a>(&self, inputs: &[&'a [f32]], rows: &Range<usize>) -> Norm<'a> {
        let (weight, bias) = (inputs[1], inputs[2]);
        let part = |values: &'a [f32]| &values[rows.start * weight.len()..rows.end * weight.len()];
        let branch = inputs.get(3).map(|branch| part(branch));
        Norm { x: part(inputs[0]), branch, weight, bias, first: rows.start, eps: self.eps, mask: self.mask }
    }
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        each_part(out, inputs[1].len(), |rows, out| normed(self.rows(inputs, &rows), out));
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (width, mask) = (inputs[1].len(), self.mask);
        let (mut of_x, mut unwanted) = (of[0].take(), Vec::new());
        let of_sum = destination(&mut of_x, &mut unwanted, grad.len());
        let backward = |rows: Range<usize>, of_sum: &mut [f32], sums: &mut [f32]| {
            normed_backward(self.rows(inputs, &rows), &grad[rows.start * width..rows.end * width], of_sum, sums);
        };
        let sums = with_row_sums(of_sum, width, 2 * width, backward);
        for (of, sums) in of[1..3].iter_mut().zip(sums.chunks_exact(width)) {
            if let Some(of) = of {
                of.copy_from_slice(sums);
            }
        }
        if let Some(Some(of_branch)) = of.get_mut(3) {
            each_part(of_branch, 1, |part, of_branch| match mask.is_none() {
                true => of_branch.copy_from_slice(&of_sum[part]),
                false => masked(&of_sum[part.clone()], mask, part.start, of_branch),
            });
        }
        of[0] = of_x;
    }
}

/// Calls `task` with ranges of rows, their part of `out`, and `len` sums to be filled. Returns the sums of these sums.
fn with_row_sums(
    out: &mut [f32],
    width: usize,
    len: usize,
    task: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    /// Rows that share sums, which would otherwise be as large as the rows.
    const ROWS: usize = 32;
    let (rows, is_small) = (out.len() / width, out.len() < SMALL);
    let blocks = rows.div_ceil(ROWS);
    let mut sums = vec![0f32; blocks * len];
    {
        let (out, sums) = (Parts::new(out), Parts::new(&mut sums));
        let block = |number: usize| {
            let rows = number * ROWS..rows.min((number + 1) * ROWS);
            // SAFETY: each block has its own rows.
            let out = unsafe { out.get(rows.start * width..rows.end * width) };
            // SAFETY: each block has its own sums.
            task(rows, out, unsafe { sums.get(number * len..(number + 1) * len) });
        };
        if is_small { (0..blocks).for_each(block) } else { Machine::shared().pool.run(blocks, block) }
    }
    let mut total = vec![0f32; len];
    sums.chunks_exact(len).for_each(|sums| add_slices(&mut total, sums));
    total
}

/// `x · scale / √(mean(x²) + eps)`.
pub(super) struct RmsNorm {
    pub eps: f32,
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (x, scale) = (inputs[0], inputs[1]);
        let width = scale.len();
        each_part(out, width, |rows, out| rms_normed(&x[rows.start * width..rows.end * width], scale, self.eps, out));
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (x, scale) = (inputs[0], inputs[1]);
        let width = scale.len();
        let (mut of_x, mut unwanted) = (of[0].take(), Vec::new());
        let backward = |rows: Range<usize>, of_x: &mut [f32], sums: &mut [f32]| {
            let at = rows.start * width..rows.end * width;
            rms_normed_backward(&x[at.clone()], scale, self.eps, &grad[at], of_x, sums);
        };
        let sums = with_row_sums(destination(&mut of_x, &mut unwanted, grad.len()), width, width, backward);
        if let Some(of_scale) = &mut of[1] {
            of_scale.copy_from_slice(&sums);
        }
        of[0] = of_x;
    }
}
