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
    inference::{
        Machine,
        pool::Parts,
        simd::{Kernel, Simd},
    },
    linear::column_sums,
    tape::{Memory, Operation, destination},
};

/// Channels of a task of the gradient of the weights: at least two vectors.
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

    /// Fills some rows, with their distance: see [`Convolved`].
    fn convolve(
        &self,
        x: Strided,
        weights: &[f32],
        bias: Option<&[f32]>,
        rows: Range<usize>,
        (out, out_stride): (&mut [f32], usize),
    ) {
        Machine::shared().dispatch.run(Convolved { sizes: *self, x, weights, bias, rows, out, out_stride });
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
            Machine::shared().dispatch.run(TapSums { sizes: *self, x, grad, first, of_weight });
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

/// Fills some rows, `out_stride` elements apart: the bias, plus for each tap the row of `x` at its offset times its row of
/// `weights` (taps, channels). Without a bias, it is a backward convolution, whose offsets are the opposite.
struct Convolved<'a> {
    sizes: Depthwise,
    x: Strided<'a>,
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    rows: Range<usize>,
    out: &'a mut [f32],
    out_stride: usize,
}

impl Convolved<'_> {
    /// Fills `N` vectors of channels of a row from the rows of some taps. Returns the number of channels.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(&mut self, simd: S, row: usize, taps: &Range<usize>, first: usize) -> usize {
        let (channels, len) = (self.sizes.channels, N * S::LANES);
        let mut sums = [simd.splat(0.0); N];
        if let Some(bias) = self.bias {
            sums = vectors(simd, &bias[first..]);
        }
        for tap in taps.clone() {
            let x: [S::Vector; N] = vectors(simd, &self.x.values[self.from(row, tap) * self.x.stride + first..]);
            let weights: [S::Vector; N] = vectors(simd, &self.weights[tap * channels + first..]);
            for n in 0..N {
                sums[n] = simd.multiply_add(sums[n], x[n], weights[n]);
            }
        }
        let start = (row - self.rows.start) * self.out_stride + first;
        store(simd, sums, &mut self.out[start..start + len]);
        len
    }

    /// The row that a tap reads for a row.
    #[inline(always)]
    fn from(&self, row: usize, tap: usize) -> usize {
        let offset = self.sizes.offset(tap);
        row.wrapping_add_signed(if self.bias.is_none() { -offset } else { offset })
    }

    /// The taps that read a step of the sequence.
    #[inline(always)]
    fn taps(&self, row: usize) -> Range<usize> {
        let sequence = row / self.sizes.time * self.sizes.time;
        let sees = |tap: &usize| (sequence..sequence + self.sizes.time).contains(&self.from(row, *tap));
        let first = (0..self.sizes.taps).find(sees).unwrap_or(0);
        first..first + (first..self.sizes.taps).take_while(sees).count()
    }
}

impl Kernel for Convolved<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let channels = self.sizes.channels;
        for row in self.rows.clone() {
            let (taps, mut first) = (self.taps(row), 0);
            while first + S::LANES <= channels {
                first += match channels - first >= 4 * S::LANES {
                    true => self.vectors::<S, 4>(simd, row, &taps, first),
                    false => self.vectors::<S, 1>(simd, row, &taps, first),
                };
            }
            for channel in first..channels {
                let mut sum = self.bias.map_or(0.0, |bias| bias[channel]);
                for tap in taps.clone() {
                    let x = self.x.values[self.from(row, tap) * self.x.stride + channel];
                    sum += x * self.weights[tap * channels + channel];
                }
                self.out[(row - self.rows.start) * self.out_stride + channel] = sum;
            }
        }
    }
}

/// Fills the gradients of the weights of the channels from `first` on, (channels, taps).
struct TapSums<'a> {
    sizes: Depthwise,
    x: Strided<'a>,
    grad: &'a [f32],
    first: usize,
    of_weight: &'a mut [f32],
}

impl TapSums<'_> {
    /// Fills the gradients of `N` vectors of channels, from `first` of these channels on. Returns their number.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(&mut self, simd: S, tap: usize, first: usize) -> usize {
        let Depthwise { time, channels, taps, .. } = self.sizes;
        let (offset, channel, len) = (self.sizes.offset(tap), self.first + first, N * S::LANES);
        let mut sums = [simd.splat(0.0); N];
        for sequence in (0..self.grad.len() / channels).step_by(time) {
            for row in seen(time, offset).map(|step| sequence + step) {
                let from = row.wrapping_add_signed(offset);
                let x: [S::Vector; N] = vectors(simd, &self.x.values[from * self.x.stride + channel..]);
                let grad: [S::Vector; N] = vectors(simd, &self.grad[row * channels + channel..]);
                for n in 0..N {
                    sums[n] = simd.multiply_add(sums[n], x[n], grad[n]);
                }
            }
        }
        let mut found = [0f32; BLOCK];
        store(simd, sums, &mut found[..len]);
        for (place, sum) in found[..len].iter().enumerate() {
            self.of_weight[(first + place) * taps + tap] = *sum;
        }
        len
    }
}

impl Kernel for TapSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Depthwise { time, channels, taps, .. } = self.sizes;
        let count = self.of_weight.len() / taps;
        for tap in 0..taps {
            let mut first = 0;
            while first + S::LANES <= count {
                first += match count - first >= 2 * S::LANES {
                    true => self.vectors::<S, 2>(simd, tap, first),
                    false => self.vectors::<S, 1>(simd, tap, first),
                };
            }
            let offset = self.sizes.offset(tap);
            for channel in first..count {
                let mut sum = 0.0;
                for sequence in (0..self.grad.len() / channels).step_by(time) {
                    for row in seen(time, offset).map(|step| sequence + step) {
                        let x = self.x.values[row.wrapping_add_signed(offset) * self.x.stride + self.first + channel];
                        sum += x * self.grad[row * channels + self.first + channel];
                    }
                }
                self.of_weight[channel * taps + tap] = sum;
            }
        }
    }
}

/// The first vectors of a slice.
#[inline(always)]
fn vectors<S: Simd, const N: usize>(simd: S, from: &[f32]) -> [S::Vector; N] {
    let from = &from[..N * S::LANES];
    let mut vectors = [simd.splat(0.0); N];
    for (n, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the slice has this many vectors.
        *vector = unsafe { simd.load(from.as_ptr().add(n * S::LANES)) };
    }
    vectors
}

/// Writes vectors to a slice.
#[inline(always)]
fn store<S: Simd, const N: usize>(simd: S, vectors: [S::Vector; N], to: &mut [f32]) {
    let to = &mut to[..N * S::LANES];
    for (n, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the slice has this many vectors.
        unsafe { simd.store(to.as_mut_ptr().add(n * S::LANES), vector) };
    }
}

compiled! {
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
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let weights = self.turned(inputs[1]);
        let x = Strided { values: inputs[0], stride: self.channels };
        each_part(out, self.channels, |rows, out| {
            self.convolve(x, &weights, Some(inputs[2]), rows, (out, self.channels));
        });
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        if let Some(of_x) = &mut of[0] {
            let weights = self.turned(inputs[1]);
            let grad = Strided { values: &grad, stride: self.channels };
            each_part(of_x, self.channels, |rows, of_x| {
                self.convolve(grad, &weights, None, rows, (of_x, self.channels));
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
    fn name(&self) -> &'static str {
        "gated convolution"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (both, width) = (inputs[0], self.sizes.channels);
        let weights = self.sizes.turned(inputs[1]);
        let x = Strided { values: &both[width.min(both.len())..], stride: 2 * width };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        each_part_of_two((out, width), (&mut state, width), |rows, out, state| {
            self.sizes.convolve(x, &weights, Some(inputs[2]), rows.clone(), (state, width));
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
            self.sizes.convolve(of_state, &weights, None, rows, (&mut of_both[width..], 2 * width));
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
