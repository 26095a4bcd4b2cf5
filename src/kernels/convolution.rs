//! Depthwise convolutions over time.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::{
    SMALL, each_part, each_part_of_two,
    elementary::{compiled, sigmoid, tanh},
    inference::{Machine, pool::Parts},
    linear::column_sums,
    tape::{Memory, Operation, destination},
};

/// Channels that are summed in registers.
const BLOCK: usize = 32;

/// Position of the taps of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// As many taps before the step as after it.
    Same,
    /// No tap after the step.
    Causal,
}

/// A depthwise convolution over time that keeps the length.
#[derive(Clone, Copy)]
pub struct Taps<'a> {
    /// (channels, 1, taps)
    pub weight: &'a Tensor,
    /// (channels)
    pub bias: &'a Tensor,
    /// Distance of the taps in steps.
    pub dilation: usize,
    /// Their position.
    pub padding: Padding,
}

impl Taps<'_> {
    /// Steps from the first tap to the step that it contributes to.
    pub(super) fn before(&self, taps: usize) -> usize {
        let reach = (taps - 1) * self.dilation;
        match self.padding {
            Padding::Same => reach / 2,
            Padding::Causal => reach,
        }
    }

    /// The convolution of inputs (batch, time, channels).
    ///
    /// # Errors
    /// When the weight has other channels.
    pub(super) fn sizes(&self, dims: &[usize], channels: usize) -> Result<Depthwise> {
        let (of, _, taps) = self.weight.dims3()?;
        ensure!(of == channels, "a convolution of {of} channels can't take {channels}");
        let time = dims[dims.len() - 2];
        Ok(Depthwise { time, channels, taps, dilation: self.dilation, before: self.before(taps) })
    }
}

/// Sizes of a convolution. Inputs of the operation: (batch, time, channels), the weight, the bias.
#[derive(Clone, Copy)]
pub(super) struct Depthwise {
    time: usize,
    channels: usize,
    taps: usize,
    dilation: usize,
    /// Steps from the first tap to the step that it contributes to.
    before: usize,
}

/// Rows of a matrix: its elements from the first row on, and the distance of rows.
#[derive(Clone, Copy)]
struct Strided<'a> {
    values: &'a [f32],
    stride: usize,
}

impl Depthwise {
    /// For each tap, the offset of the step that it reads.
    fn offset(&self, tap: usize) -> isize {
        (tap * self.dilation) as isize - self.before as isize
    }

    /// The weight (channels, 1, taps) as (taps, channels).
    fn turned(&self, weight: &[f32]) -> Vec<f32> {
        let (channels, taps) = (self.channels, self.taps);
        (0..channels * taps).map(|place| weight[place % channels * taps + place / channels]).collect()
    }

    /// Fills the gradient of the weight (channels, 1, taps).
    fn of_weight(&self, x: Strided, grad: &[f32], of_weight: &mut [f32]) {
        let (taps, channels) = (self.taps, self.channels);
        let parts = Parts::new(of_weight);
        let block = |number: usize| {
            let first = number * BLOCK;
            let count = BLOCK.min(channels - first);
            // SAFETY: each task has its own channels.
            let of_weight = unsafe { parts.get(first * taps..(first + count) * taps) };
            tap_sums(*self, x, grad, first, of_weight);
        };
        let blocks = channels.div_ceil(BLOCK);
        if grad.len() < SMALL { (0..blocks).for_each(block) } else { Machine::shared().pool.run(blocks, block) }
    }
}

/// The steps for which a tap with this offset reads a step of the sequence.
#[inline(always)]
fn seen(time: usize, offset: isize) -> Range<usize> {
    let before = (-offset).max(0) as usize;
    let after = time.saturating_sub(offset.max(0) as usize);
    before.min(after)..after
}

compiled! {
    /// Fills some rows, `out_stride` elements apart: the bias, plus for each tap the row of `x` at its offset times its row of
    /// `weights` (taps, channels). A backward convolution has the opposite offsets.
    fn convolved(
        sizes: Depthwise,
        x: Strided,
        weights: &[f32],
        bias: Option<&[f32]>,
        is_backward: bool,
        rows: Range<usize>,
        out: &mut [f32],
        out_stride: usize,
    ) {
        let Depthwise { time, channels, taps, .. } = sizes;
        let start = rows.start;
        for number in rows {
            let (sequence, step) = (number / time * time, (number % time) as isize);
            let out = &mut out[(number - start) * out_stride..][..channels];
            for first in (0..channels).step_by(BLOCK) {
                let mut sums = [0f32; BLOCK];
                let count = BLOCK.min(channels - first);
                if let Some(bias) = bias {
                    sums[..count].copy_from_slice(&bias[first..first + count]);
                }
                for tap in 0..taps {
                    let offset = if is_backward { -sizes.offset(tap) } else { sizes.offset(tap) };
                    let from = step + offset;
                    if from < 0 || from >= time as isize {
                        continue;
                    }
                    let x = &x.values[(sequence + from as usize) * x.stride + first..][..count];
                    let weights = &weights[tap * channels + first..][..count];
                    match (x.as_chunks::<BLOCK>().0, weights.as_chunks::<BLOCK>().0) {
                        ([x], [weights]) => {
                            for i in 0..BLOCK {
                                sums[i] += x[i] * weights[i];
                            }
                        }
                        _ => sums.iter_mut().zip(x).zip(weights).for_each(|((sum, x), weight)| *sum += x * weight),
                    }
                }
                out[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }

    /// Fills the gradients of the weights of the channels from `first` on, (channels, taps).
    fn tap_sums(sizes: Depthwise, x: Strided, grad: &[f32], first: usize, of_weight: &mut [f32]) {
        let Depthwise { time, channels, taps, .. } = sizes;
        let count = of_weight.len() / taps;
        for tap in 0..taps {
            let (offset, mut sums) = (sizes.offset(tap), [0f32; BLOCK]);
            for sequence in (0..grad.len() / channels).step_by(time) {
                for step in seen(time, offset) {
                    let from = (sequence as isize + step as isize + offset) as usize;
                    let x = &x.values[from * x.stride + first..][..count];
                    let grad = &grad[(sequence + step) * channels + first..][..count];
                    match (x.as_chunks::<BLOCK>().0, grad.as_chunks::<BLOCK>().0) {
                        ([x], [grad]) => {
                            for i in 0..BLOCK {
                                sums[i] += x[i] * grad[i];
                            }
                        }
                        _ => sums.iter_mut().zip(x).zip(grad).for_each(|((sum, x), grad)| *sum += x * grad),
                    }
                }
            }
            for (channel, sum) in sums[..count].iter().enumerate() {
                of_weight[channel * taps + tap] = *sum;
            }
        }
    }

    /// `sigmoid(gate) · tanh(state)`, with the gate in the first half of each row of `both`; `state` becomes its tanh.
    fn opened(both: &[f32], width: usize, state: &mut [f32], out: &mut [f32]) {
        let rows = out.chunks_exact_mut(width).zip(both.chunks_exact(2 * width)).zip(state.chunks_exact_mut(width));
        for ((out, both), state) in rows {
            for ((out, gate), state) in out.iter_mut().zip(both).zip(state) {
                *state = tanh(*state);
                *out = sigmoid(*gate) * *state;
            }
        }
    }

    /// Fills the gradients of the gates, in the first half of each row of `of_both`. `grad` becomes that of the states before
    /// tanh.
    fn opened_backward(both: &[f32], width: usize, state: &[f32], grad: &mut [f32], of_both: &mut [f32]) {
        for (row, grad) in grad.chunks_exact_mut(width).enumerate() {
            let gates = &both[2 * row * width..][..width];
            let of_gates = &mut of_both[2 * row * width..][..width];
            let state = &state[row * width..][..width];
            for i in 0..width {
                let open = sigmoid(gates[i]);
                of_gates[i] = grad[i] * state[i] * open * (1.0 - open);
                grad[i] *= open * (1.0 - state[i] * state[i]);
            }
        }
    }
}

impl Operation for Depthwise {
    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let weights = self.turned(inputs[1]);
        let x = Strided { values: inputs[0], stride: self.channels };
        each_part(out, self.channels, |rows, out| {
            convolved(*self, x, &weights, Some(inputs[2]), false, rows, out, self.channels);
        });
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        if let Some(of_x) = &mut of[0] {
            let weights = self.turned(inputs[1]);
            let grad = Strided { values: &grad, stride: self.channels };
            each_part(of_x, self.channels, |rows, of_x| {
                convolved(*self, grad, &weights, None, true, rows, of_x, self.channels);
            });
        }
        if let Some(of_weight) = &mut of[1] {
            self.of_weight(Strided { values: inputs[0], stride: self.channels }, &grad, of_weight);
        }
        if let Some(of_bias) = &mut of[2] {
            column_sums(&grad, of_bias);
        }
    }
}

/// `sigmoid(gate) · tanh(conv(state))`, of rows with the gate and then the state. Other inputs: the weight and the bias of the
/// convolution.
pub(super) struct GatedConvolution {
    pub sizes: Depthwise,
    /// `tanh(conv(state))`, which the backward pass needs: as many elements as the output.
    pub state: Mutex<Memory>,
}

impl Operation for GatedConvolution {
    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (both, width) = (inputs[0], self.sizes.channels);
        let weights = self.sizes.turned(inputs[1]);
        let x = Strided { values: &both[width.min(both.len())..], stride: 2 * width };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        each_part_of_two((out, width), (&mut state, width), |rows, out, state| {
            convolved(self.sizes, x, &weights, Some(inputs[2]), false, rows.clone(), state, width);
            opened(&both[rows.start * 2 * width..rows.end * 2 * width], width, state, out);
        });
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], mut grad: Memory, of: &mut [Option<Memory>]) {
        let (both, width) = (inputs[0], self.sizes.channels);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (of_both, rest) = of.split_at_mut(1);
        let mut unwanted = Vec::new();
        let of_both = destination(&mut of_both[0], &mut unwanted, both.len());
        // From here on, `grad` is the gradient of the states before tanh.
        each_part_of_two((of_both, 2 * width), (&mut grad, width), |rows, of_both, grad| {
            let both = &both[rows.start * 2 * width..rows.end * 2 * width];
            opened_backward(both, width, &state[rows.start * width..rows.end * width], grad, of_both);
        });
        let weights = self.sizes.turned(inputs[1]);
        let of_state = Strided { values: &grad, stride: width };
        each_part(of_both, 2 * width, |rows, of_both| {
            convolved(self.sizes, of_state, &weights, None, true, rows, &mut of_both[width..], 2 * width);
        });
        if let Some(of_weight) = &mut rest[0] {
            let x = Strided { values: &both[width.min(both.len())..], stride: 2 * width };
            self.sizes.of_weight(x, &grad, of_weight);
        }
        if let Some(of_bias) = &mut rest[1] {
            column_sums(&grad, of_bias);
        }
    }
}
