//! Operations between products: embeddings, norms, rotary positions, activations and sums of rows.

use super::{
    Machine,
    element::Element,
    linear::Weights,
    packed::Rows,
    simd::{Kernel, Simd},
};
use crate::exp;

/// The activation of a gated feed-forward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// `x · sigmoid(alpha · x)`, of a gate of at most `limit`. The up projection is clamped to `-limit` and `limit`, and 1 is added.
    ClampedSilu {
        /// Factor within the sigmoid.
        alpha: f32,
        /// Largest gate, and largest size of the up projection.
        limit: f32,
    },
}

impl Activation {
    #[inline(always)]
    pub(super) fn silu(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    /// The activation of the gate. NaN stays NaN.
    #[inline(always)]
    pub(super) fn clamped_silu(x: f32, alpha: f32, limit: f32) -> f32 {
        let x = at_most(x, limit);
        x / (1.0 + exp(-alpha * x))
    }

    /// The factor of a clamped SiLU, from an up projection. NaN stays NaN.
    #[inline(always)]
    pub(super) fn clamped_shift(x: f32, limit: f32) -> f32 {
        at_most(-at_most(-x, limit), limit) + 1.0
    }

    /// The error of the error function is at most 1.5e-7 (Abramowitz and Stegun, 7.1.26).
    #[inline(always)]
    pub(super) fn gelu(x: f32) -> f32 {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * z);
        let series = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
        let erf = 1.0 - series * exp(-z * z);
        0.5 * (x + x.abs() * erf)
    }

    #[inline(always)]
    pub(super) fn gelu_tanh(x: f32) -> f32 {
        let z = 0.797_884_6 * (x + 0.044_715 * x * x * x);
        // 0.5 · (1 + tanh(z)) = 1 / (1 + exp(-2z))
        x / (1.0 + exp(-2.0 * z))
    }
}

/// The smaller of two numbers, or NaN if the first is.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

/// `cap · tanh(x / cap)` in place, rounded.
pub fn soft_cap<E: Element>(machine: &Machine, values: &mut [f32], cap: f32) {
    machine.each_row(values, SOFT_CAP_ROW, |_, values| {
        values.iter_mut().for_each(|value| *value = E::round(cap * (*value / cap).tanh()));
    });
}

/// Elements that [`soft_cap`] processes at a time.
const SOFT_CAP_ROW: usize = 4096;

/// The weights and the epsilon of an RMSNorm.
#[derive(Clone, Debug)]
pub struct RowNorm {
    /// With the offset of the family.
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl RowNorm {
    /// The number that a row is multiplied by before the weights.
    #[inline(always)]
    fn scale(&self, row: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        let (whole, rest) = row.as_chunks::<16>();
        for chunk in whole {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value * value;
            }
        }
        let sum = lanes.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>();
        1.0 / (sum / row.len() as f32 + self.eps).sqrt()
    }

    /// Applies the norm in place, without rounding.
    #[inline(always)]
    pub(super) fn apply(&self, row: &mut [f32]) {
        let scale = self.scale(row);
        row.iter_mut().zip(&self.weight).for_each(|(value, weight)| *value = *value * scale * weight);
    }
}

/// Writes the norm of each row of `x`, as long as the weights, to the rows of `out`, which are [`Rows::stride_of`] elements
/// apart.
///
/// # Panics
/// If `x` does not consist of whole rows, or `out` is too short.
pub fn norm<E: Element>(machine: &Machine, x: &[f32], norm: &RowNorm, out: &mut [E]) {
    struct Apply<'a, E>(&'a [f32], &'a RowNorm, &'a mut [E]);
    impl<E: Element> Kernel for Apply<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            let Self(row, norm, out) = self;
            let scale = norm.scale(row);
            out[row.len()..].fill(E::default());
            for ((out, value), weight) in out.iter_mut().zip(row).zip(&norm.weight) {
                *out = E::from_f32(value * scale * weight);
            }
        }
    }
    let (width, stride) = (norm.weight.len(), Rows::<E>::stride_of(norm.weight.len()));
    let count = rows_of(x, width);
    machine.each_row(&mut out[..count * stride], stride, |number, out| {
        machine.dispatch.run(Apply(&x[number * width..][..width], norm, out));
    });
}

/// Applies a norm to each row of `x`, as long as the weights, in place, and rounds.
///
/// # Panics
/// If `x` does not consist of whole rows.
pub fn norm_in_place<E: Element>(machine: &Machine, x: &mut [f32], norm: &RowNorm) {
    struct Apply<'a, E>(&'a mut [f32], &'a RowNorm, std::marker::PhantomData<E>);
    impl<E: Element> Kernel for Apply<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            self.1.apply(self.0);
            self.0.iter_mut().for_each(|value| *value = E::round(*value));
        }
    }
    let width = norm.weight.len();
    rows_of(x, width);
    machine.each_row(x, width, |_, row| machine.dispatch.run(Apply::<E>(row, norm, std::marker::PhantomData)));
}

/// Writes each row of `x`, `width` long, rounded to the rows of `out`, which are [`Rows::stride_of`] elements apart.
///
/// # Panics
/// If `x` does not consist of whole rows, or `out` is too short.
pub fn round_rows<E: Element>(machine: &Machine, x: &[f32], width: usize, out: &mut [E]) {
    let (count, stride) = (rows_of(x, width), Rows::<E>::stride_of(width));
    machine.each_row(&mut out[..count * stride], stride, |number, out| {
        out[width..].fill(E::default());
        out.iter_mut().zip(&x[number * width..][..width]).for_each(|(out, value)| *out = E::from_f32(*value));
    });
}

/// Adds the norm of each row of `x` to that of `sum`. The norm and the sum are rounded.
///
/// # Panics
/// If `x` does not consist of whole rows, or `sum` is shorter.
pub fn add_norm<E: Element>(machine: &Machine, x: &[f32], norm: &RowNorm, sum: &mut [f32]) {
    struct Apply<'a, E>(&'a [f32], &'a RowNorm, &'a mut [f32], std::marker::PhantomData<E>);
    impl<E: Element> Kernel for Apply<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            let Self(row, norm, sum, _) = self;
            let scale = norm.scale(row);
            for ((sum, value), weight) in sum.iter_mut().zip(row).zip(&norm.weight) {
                *sum = E::round(*sum + E::round(value * scale * weight));
            }
        }
    }
    let width = norm.weight.len();
    let count = rows_of(x, width);
    machine.each_row(&mut sum[..count * width], width, |number, sum| {
        machine.dispatch.run(Apply::<E>(&x[number * width..][..width], norm, sum, std::marker::PhantomData));
    });
}

fn rows_of(values: &[f32], width: usize) -> usize {
    assert!(values.len().is_multiple_of(width.max(1)), "{} elements in rows of {width}", values.len());
    values.len() / width.max(1)
}

/// Looks up the row of each token in a table of embeddings, times `scale`: (tokens, width).
///
/// # Panics
/// If a token has no row.
pub fn embed<E: Element>(machine: &Machine, table: &Weights<E>, tokens: &[u32], scale: f32, out: &mut [f32]) {
    let width = table.inputs();
    machine.each_row(&mut out[..tokens.len() * width], width, |number, row| {
        table.row(tokens[number] as usize, row);
        row.iter_mut().for_each(|value| *value = E::round(*value * scale));
    });
}

/// Adds rows of `parts`, (any, width), to each row of `sum`: for row `i`, the rows whose places and weights are elements
/// `i · count` to `(i + 1) · count` of `places` and `weights`. Each product and sum is rounded.
///
/// # Panics
/// If a place is not in `parts`, or there are fewer than `count` for each row.
pub fn combine<E: Element>(
    machine: &Machine,
    parts: &[f32],
    (places, weights): (&[u32], &[f32]),
    width: usize,
    sum: &mut [f32],
) {
    struct Apply<'a, E>(&'a [f32], &'a [u32], &'a [f32], &'a mut [f32], std::marker::PhantomData<E>);
    impl<E: Element> Kernel for Apply<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            let Self(parts, places, weights, sum, _) = self;
            let width = sum.len();
            f32::scratch(width, |mixed| {
                mixed.fill(0.0);
                for (place, weight) in places.iter().zip(weights) {
                    let part = &parts[*place as usize * width..][..width];
                    for (mixed, value) in mixed.iter_mut().zip(part) {
                        *mixed += E::round(weight * value);
                    }
                }
                sum.iter_mut().zip(&*mixed).for_each(|(sum, mixed)| *sum = E::round(*sum + E::round(*mixed)));
            });
        }
    }
    let count = places.len() / (sum.len() / width.max(1)).max(1);
    machine.each_row(sum, width, |number, sum| {
        let own = number * count..(number + 1) * count;
        let type_ = std::marker::PhantomData;
        machine.dispatch.run(Apply::<E>(parts, &places[own.clone()], &weights[own], sum, type_));
    });
}

/// Cosines and sines of the rotary positions of a step, half a head for each token.
#[derive(Clone, Debug, Default)]
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// For each token, the factor of its queries; empty for 1.
    query_factors: Vec<f32>,
}

impl Angles {
    /// The angles of tokens at some positions. Pair `i` of a head turns by `frequencies[i]` per position; cosines and sines are
    /// multiplied by `scale`.
    pub fn new(frequencies: &[f32], scale: f32, positions: impl Iterator<Item = usize>) -> Self {
        let angles = positions
            .flat_map(|position| frequencies.iter().map(move |frequency| (position as f32 * frequency).sin_cos()));
        let (sin, cos) = angles.map(|(sin, cos)| (sin * scale, cos * scale)).unzip();
        Self { cos, sin, half: frequencies.len(), query_factors: Vec::new() }
    }

    /// The same angles, with a factor of the queries of each token.
    pub fn with_query_factors(self, query_factors: Vec<f32>) -> Self {
        Self { query_factors, ..self }
    }

    /// Multiplies a query of the token in this row, and rounds it again.
    #[inline(always)]
    pub(super) fn scale<E: Element>(&self, row: usize, query: &mut [E]) {
        if let Some(factor) = self.query_factors.get(row) {
            query.iter_mut().for_each(|value| *value = E::from_f32(value.to_f32() * factor));
        }
    }

    /// Turns the first elements of a head of the token in this row in place, two for each frequency. Elements `i` and `i + half`
    /// are a pair.
    #[inline(always)]
    pub(super) fn turn(&self, row: usize, head: &mut [f32]) {
        let part = row * self.half..(row + 1) * self.half;
        let (first, second) = head.split_at_mut(self.half);
        let angles = self.cos[part.clone()].iter().zip(&self.sin[part]);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
