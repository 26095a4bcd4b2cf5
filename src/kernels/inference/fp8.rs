//! Weights in FP8, in the format E4M3: four bits of exponent with a bias of 7, three bits of mantissa, and no infinity
//! (Micikevicius et al. 2022, *FP8 formats for deep learning*). The weights of an output share a scale, by which the largest of
//! them becomes the largest number of the format. Keys and values of a [`cache`](super::cache) have no scale.
//!
//! Weights lie in panels like those of [`packed`](super::packed), and are multiplied by the same loops. A weight is converted when
//! it is loaded: its bits, shifted, are those of an f16 that is 256 times smaller, which instructions convert to f32. Inputs and
//! sums are f32.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use half::f16;

use super::{
    Machine,
    element::{Element, Operand},
    memory::{Buffer, Zeroed},
    packed::{PANEL, STEP, Start, Sums, place},
    pool::Parts,
    simd::{Dispatch, Simd},
};

/// A number in the format E4M3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8E4M3(u8);

impl F8E4M3 {
    /// The largest number.
    const MAX: f32 = 448.0;
    /// Its bits. One more would be those of NaN.
    const MAX_BITS: u32 = 0x7e;
    /// The smallest number with all bits of the mantissa.
    const MIN_NORMAL: f32 = 1.0 / 64.0;
    /// The quotient of a number and that of [`Self::to_half`].
    pub const OF_HALF: f32 = 256.0;

    /// Rounds to the nearest, or the even of two nearest. Numbers beyond the largest become the largest. NaN does too: weights are
    /// checked before, and keys and values are not.
    pub fn from_f32(value: f32) -> Self {
        let magnitude = value.abs();
        let bits = if magnitude < Self::MIN_NORMAL {
            // Steps of 1/512. Eight of them are the smallest normal number, whose bits are 8.
            (magnitude * 512.0).round_ties_even() as u32
        } else {
            let bits = magnitude.to_bits();
            // The exponent of f32 has a bias of 127.
            (((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)).min(Self::MAX_BITS)
        };
        Self(bits as u8 | u8::from(value.is_sign_negative()) << 7)
    }

    /// The number, divided by [`Self::OF_HALF`], which is exact.
    #[inline(always)]
    pub fn to_half(self) -> f16 {
        // The shift leaves two copies of the sign, of which one is cleared.
        f16::from_bits((i16::from(self.0 as i8) << 7) as u16 & 0xbf80)
    }
}

// SAFETY: every pattern of bits is a byte.
unsafe impl Zeroed for F8E4M3 {}

impl Operand for F8E4M3 {
    type Factor = f32;
    const SCALE: f32 = Self::OF_HALF;

    fn stored(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: as the caller ensures.
        unsafe { simd.load_f8(from) }
    }
}

/// A matrix of weights in FP8.
pub struct Fp8 {
    panels: Buffer<F8E4M3>,
    /// The scale of each output, which multiplies the numbers that loads return.
    scales: Vec<f32>,
    inputs: usize,
}

impl Fp8 {
    /// Quantises weights: (outputs, inputs) in row-major order. Clears `is_finite` if one is not finite.
    pub fn new<E: Element>(
        machine: &Machine,
        (outputs, inputs): (usize, usize),
        values: &[E],
        is_finite: &AtomicBool,
    ) -> Self {
        let row = |output: usize| values[output * inputs..][..inputs].iter().map(|value| value.to_f32());
        let mut scales = vec![0f32; outputs];
        machine.pool.parts(&mut scales, PANEL, |number, scales| {
            for (output, scale) in (number * PANEL..).zip(scales) {
                if !row(output).all(f32::is_finite) {
                    is_finite.store(false, Ordering::Relaxed);
                }
                let most = row(output).fold(0f32, |most, value| most.max(value.abs()));
                // A row of zeros has no largest number to divide by.
                *scale = (most / F8E4M3::MAX).max(f32::MIN_POSITIVE);
            }
        });
        let len = outputs.next_multiple_of(STEP) * inputs;
        let panels = Buffer::written(len, PANEL * inputs, &machine.pool, |number, panel| {
            let first = number * PANEL;
            let (count, width) = (PANEL.min(outputs - first), panel.len() / inputs);
            // The part of a panel that some inputs fill stays in the L1 cache while the rows are converted to it.
            for some in (0..inputs).step_by(STEP).map(|from| from..inputs.min(from + STEP)) {
                for output in 0..count {
                    let scale = scales[first + output];
                    let values = &values[(first + output) * inputs..][some.clone()];
                    for (input, value) in some.clone().zip(values) {
                        panel[place::<f32>(width, output, input)] = F8E4M3::from_f32(value.to_f32() / scale);
                    }
                }
            }
        });
        scales.iter_mut().for_each(|scale| *scale *= F8E4M3::OF_HALF);
        Self { panels, scales, inputs }
    }

    /// Bytes of the weights and of their scales. The zeros that fill a panel do not count.
    pub fn bytes(&self) -> usize {
        self.scales.len() * (self.inputs + size_of::<f32>())
    }

    /// The memory of the weights, without their scales.
    pub fn words(&self) -> &[u64] {
        // SAFETY: the elements are bytes, which have no padding.
        unsafe { self.panels.words() }
    }

    /// Writes the weights of an output.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        let (panel, width) = self.panel(output / PANEL);
        for (input, value) in row.iter_mut().enumerate() {
            *value = panel[place::<f32>(width, output % PANEL, input)].to_half().to_f32() * self.scales[output];
        }
    }

    /// Computes the sums of some rows with a panel, [`PANEL`] for each row. `x` has the inputs of all rows.
    pub fn sums(&self, dispatch: Dispatch, x: &[f32], rows: Range<usize>, panel: usize, sums: &mut [f32]) {
        let (weights, width) = self.panel(panel);
        dispatch.run(Sums {
            x: &x[rows.start * self.inputs..],
            stride: self.inputs,
            step: 1,
            rows: rows.len(),
            panel: weights,
            width,
            groups: self.inputs,
            out: Parts::new(&mut *sums),
            out_stride: PANEL,
            start: Start::Zero,
        });
        for sums in sums.chunks_exact_mut(PANEL).take(rows.len()) {
            sums.iter_mut().zip(&self.scales[panel * PANEL..]).for_each(|(sum, scale)| *sum *= scale);
        }
    }

    /// A panel and its width.
    fn panel(&self, number: usize) -> (&[F8E4M3], usize) {
        let width = PANEL.min(self.scales.len().next_multiple_of(STEP) - number * PANEL);
        (&self.panels[number * PANEL * self.inputs..][..width * self.inputs], width)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::inference::{Instructions, simd::Kernel};

    fn to_f32(number: F8E4M3) -> f32 {
        number.to_half().to_f32() * F8E4M3::OF_HALF
    }

    /// Every number of the format, but NaN.
    fn all() -> impl Iterator<Item = F8E4M3> {
        (0..=u8::MAX).filter(|bits| bits & 0x7f != 0x7f).map(F8E4M3)
    }

    #[test]
    fn numbers_are_those_of_the_format() {
        for number in all() {
            let (exponent, mantissa) = (i32::from(number.0 >> 3 & 15), f32::from(number.0 & 7) / 8.0);
            let magnitude = match exponent {
                0 => mantissa * 2f32.powi(-6),
                _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
            };
            let expected = if number.0 & 0x80 == 0 { magnitude } else { -magnitude };
            assert_eq!(to_f32(number).to_bits(), expected.to_bits(), "{number:?}");
            assert_eq!(F8E4M3::from_f32(expected), number);
        }
    }

    /// Candle's conversion is that of another crate. It makes NaN of numbers beyond the largest.
    #[test]
    fn numbers_are_rounded_as_candle_rounds_them() {
        let dense = (0..100_000).map(|step| (step as f32 - 50_000.0) * 0.0089);
        let small = (0..20_000).map(|step| (step as f32 - 10_000.0) * 1.7e-6);
        // Ties between neighbours.
        let values: Vec<f32> = all().map(to_f32).collect();
        let ties = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        let values: Vec<f32> = dense.chain(small).chain(ties).filter(|value| value.abs() <= F8E4M3::MAX).collect();
        let tensor =
            Tensor::new(values.as_slice(), &Device::Cpu).and_then(|t| t.to_dtype(DType::F8E4M3)?.to_dtype(DType::F32));
        let expected: Vec<f32> = tensor.and_then(|tensor| tensor.to_vec1()).expect("converted");
        for (value, expected) in values.iter().zip(expected) {
            let found = to_f32(F8E4M3::from_f32(*value));
            assert_eq!(found, expected, "{value}");
        }
        for beyond in [449.0, 1e30, f32::INFINITY] {
            assert_eq!([beyond, -beyond].map(|value| to_f32(F8E4M3::from_f32(value))), [448.0, -448.0]);
        }
    }

    /// Loads vectors of numbers and stores them.
    struct Load<'a>(&'a [F8E4M3], &'a mut [f32]);

    impl Kernel for Load<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for first in (0..self.0.len()).step_by(S::LANES) {
                let (from, to) = (&self.0[first..first + S::LANES], &mut self.1[first..first + S::LANES]);
                // SAFETY: both slices have a number for each lane.
                unsafe { simd.store(to.as_mut_ptr(), simd.load_f8(from.as_ptr())) };
            }
        }
    }

    #[test]
    fn every_instruction_set_converts_alike() {
        let numbers: Vec<F8E4M3> = (0..=u8::MAX).map(F8E4M3).collect();
        for set in Instructions::ALL {
            let Some(dispatch) = Dispatch::new(set) else { continue };
            let mut found = vec![f32::NAN; numbers.len()];
            dispatch.run(Load(&numbers, &mut found));
            for (number, found) in numbers.iter().zip(found) {
                assert_eq!(found.to_bits(), number.to_half().to_f32().to_bits(), "{set}, {number:?}");
            }
        }
    }
}
