//! Element-wise operations.

use super::{
    CHUNK, Loop, Mask, add_slices, each_part,
    elementary::{WIDEST_ANGLE, compiled, exp, sigmoid, sin_cos},
    inference::{Machine, pool::Parts},
    tape::{Memory, Operation, destination},
    vectorised,
};

/// GELU with the error function, PyTorch's default, then dropout.
pub(super) struct Gelu(pub Mask);

/// The normal distribution function at `x`, and `exp(-x²/2)`. Abramowitz and Stegun, formula 7.1.26, with an
/// error below 1.5e-7.
#[inline(always)]
fn distribution(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let series = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let tail = 0.5 * series * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

compiled! {
    fn gelus(x: &[f32], mask: Mask, first: usize, out: &mut [f32]) {
        match mask.is_none() {
            true => out.iter_mut().zip(x).for_each(|(out, x)| *out = x * distribution(*x).0),
            false => {
                for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    *out = x * distribution(*x).0 * mask.factor(first + i);
                }
            }
        }
    }

    fn gelus_backward(x: &[f32], mask: Mask, first: usize, grad: &[f32], of_x: &mut [f32]) {
        /// 1 / √(2π)
        const DENSITY: f32 = 0.398_942_3;
        let slope = |x: f32| {
            let (below, bell) = distribution(x);
            below + x * DENSITY * bell
        };
        match mask.is_none() {
            true => of_x.iter_mut().zip(x).zip(grad).for_each(|((of_x, x), grad)| *of_x = grad * slope(*x)),
            false => {
                for (i, ((of_x, x), grad)) in of_x.iter_mut().zip(x).zip(grad).enumerate() {
                    *of_x = grad * slope(*x) * mask.factor(first + i);
                }
            }
        }
    }

    fn gates(both: &[f32], width: usize, out: &mut [f32]) {
        for (out, both) in out.chunks_exact_mut(width).zip(both.chunks_exact(2 * width)) {
            let (value, gate) = both.split_at(width);
            out.iter_mut().zip(value).zip(gate).for_each(|((out, value), gate)| *out = value * sigmoid(*gate));
        }
    }

    fn gates_backward(both: &[f32], width: usize, grad: &[f32], of_both: &mut [f32]) {
        let rows = of_both.chunks_exact_mut(2 * width).zip(both.chunks_exact(2 * width)).zip(grad.chunks_exact(width));
        for ((of_both, both), grad) in rows {
            let (of_value, of_gate) = of_both.split_at_mut(width);
            let (value, gate) = both.split_at(width);
            for ((((of_value, of_gate), value), gate), grad) in
                of_value.iter_mut().zip(of_gate).zip(value).zip(gate).zip(grad)
            {
                let open = sigmoid(*gate);
                *of_value = grad * open;
                *of_gate = grad * value * open * (1.0 - open);
            }
        }
    }
}

impl Operation for Gelu {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let x = inputs[0];
        each_part(out, 1, |part, out| gelus(&x[part.clone()], self.0, part.start, out));
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let x = inputs[0];
        if let Some(of_x) = &mut of[0] {
            each_part(of_x, 1, |part, of_x| {
                gelus_backward(&x[part.clone()], self.0, part.start, &grad[part], of_x);
            });
        }
    }
}

/// `value · sigmoid(gate)`, of rows with the value and then the gate, each of this width.
pub(super) struct Gate(pub usize);

impl Operation for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (both, width) = (inputs[0], self.0);
        each_part(out, width, |rows, out| gates(&both[rows.start * 2 * width..rows.end * 2 * width], width, out));
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (both, width) = (inputs[0], self.0);
        if let Some(of_both) = &mut of[0] {
            each_part(of_both, 2 * width, |rows, of_both| {
                let both = &both[rows.start * 2 * width..rows.end * 2 * width];
                gates_backward(both, width, &grad[rows.start * width..rows.end * width], of_both);
            });
        }
    }
}

/// The quantity that damps a sine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// The distance from 0.
    #[default]
    Abs,
    /// The part above 0.
    Relu,
    /// No damping.
    None,
}

/// The form of a sine: what damps it, and the bounds of its positive parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waveform {
    /// The quantity that damps it.
    pub decay: Decay,
    /// Least and largest amplitude, frequency and damping. A parameter outside has the value of the bound, and no gradient.
    pub bounds: [(f32, f32); 3],
}

impl From<Decay> for Waveform {
    /// Without bounds.
    fn from(decay: Decay) -> Self {
        Self { decay, bounds: [(f32::NEG_INFINITY, f32::INFINITY); 3] }
    }
}

/// Added to frequencies, so that none is 0.
pub(super) const LEAST_FREQUENCY: f32 = 1e-6;

/// `A·exp(−d·g(z))·sin(f·z)`, with `A` = softplus of the first row of `raw` (3, width), `f` of the second plus a
/// small constant, `d` of the third, each within its bounds (SineParam of psann 2.0.1). Inputs: `z` and the three rows.
pub(super) struct Sine(pub Waveform);

/// The positive parameters, and their derivatives with respect to the raw ones.
struct Waves {
    amplitude: Vec<f32>,
    frequency: Vec<f32>,
    decay: Vec<f32>,
    slopes: Vec<f32>,
}

impl Sine {
    fn waves(&self, raw: &[&[f32]]) -> Waves {
        let mut slopes = Vec::with_capacity(raw.iter().map(|row| row.len()).sum());
        let mut row = |row: usize, least: f32| -> Vec<f32> {
            let (low, high) = self.0.bounds[row];
            let parameter = |raw: &f32| {
                let value = raw.max(0.0) + (-raw.abs()).exp().ln_1p() + least;
                // NaN is not outside, so that it is not hidden.
                let is_outside = value < low || value > high;
                slopes.push(if is_outside { 0.0 } else { 1.0 / (1.0 + (-raw).exp()) });
                value.clamp(low, high)
            };
            raw[row].iter().map(parameter).collect()
        };
        let (amplitude, frequency, decay) = (row(0, 0.0), row(1, LEAST_FREQUENCY), row(2, 0.0));
        Waves { amplitude, frequency, decay, slopes }
    }

    #[inline(always)]
    fn distance(&self, z: f32) -> f32 {
        match self.0.decay {
            Decay::Abs => z.abs(),
            // Unlike `max`, this keeps NaN.
            Decay::Relu => {
                if z < 0.0 {
                    0.0
                } else {
                    z
                }
            }
            Decay::None => 0.0,
        }
    }

    #[inline(always)]
    fn slope(&self, z: f32) -> f32 {
        match self.0.decay {
            // 0 at 0, as in PyTorch.
            Decay::Abs => f32::from(u8::from(z > 0.0)) - f32::from(u8::from(z < 0.0)),
            Decay::Relu => f32::from(u8::from(z > 0.0)),
            Decay::None => 0.0,
        }
    }
}

/// Sines and cosines of a row of angles.
#[inline(always)]
fn sines(angles: &[f32], sin: &mut [f32], cos: &mut [f32]) {
    let mut widest = [0f32; 16];
    for angles in angles.chunks(16) {
        widest.iter_mut().zip(angles).for_each(|(widest, angle)| *widest = widest.max(angle.abs()));
    }
    if widest.iter().any(|widest| *widest > WIDEST_ANGLE) {
        for ((angle, sin), cos) in angles.iter().zip(sin).zip(cos) {
            (*sin, *cos) = angle.sin_cos();
        }
        return;
    }
    let ((angles, last), (sin, last_sin), (cos, last_cos)) =
        (angles.as_chunks::<16>(), sin.as_chunks_mut::<16>(), cos.as_chunks_mut::<16>());
    for ((angles, sin), cos) in angles.iter().zip(sin).zip(cos) {
        for i in 0..16 {
            (sin[i], cos[i]) = sin_cos(angles[i]);
        }
    }
    for ((angle, sin), cos) in last.iter().zip(last_sin).zip(last_cos) {
        (*sin, *cos) = sin_cos(*angle);
    }
}

/// Buffers for one row.
struct Row {
    sin: Vec<f32>,
    cos: Vec<f32>,
    faded: Vec<f32>,
}

impl Row {
    fn new(width: usize) -> Self {
        Self { sin: vec![0.0; width], cos: vec![0.0; width], faded: vec![0.0; width] }
    }

    /// Sines and cosines of a row's angles, and the damping factors of its waves.
    #[inline(always)]
    fn fill(&mut self, sine: &Sine, waves: &Waves, z: &[f32]) {
        let angles = &mut self.faded;
        angles.iter_mut().zip(z).zip(&waves.frequency).for_each(|((angle, z), f)| *angle = z * f);
        sines(angles, &mut self.sin, &mut self.cos);
        match sine.0.decay {
            Decay::Abs => self.fade(waves, z, f32::abs),
            Decay::Relu => self.fade(waves, z, |z| if z < 0.0 { 0.0 } else { z }),
            Decay::None => self.faded.fill(1.0),
        }
    }

    #[inline(always)]
    fn fade(&mut self, waves: &Waves, z: &[f32], distance: impl Fn(f32) -> f32) {
        for ((faded, z), decay) in self.faded.iter_mut().zip(z).zip(&waves.decay) {
            *faded = -decay * distance(*z);
        }
        let (whole, rest) = self.faded.as_chunks_mut::<16>();
        for faded in whole {
            faded.iter_mut().for_each(|faded| *faded = exp(*faded));
        }
        rest.iter_mut().for_each(|faded| *faded = exp(*faded));
    }
}

struct ForwardRows<'a> {
    sine: &'a Sine,
    waves: &'a Waves,
    z: &'a [f32],
    out: &'a mut [f32],
}

impl Loop for ForwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { sine, waves, z, out } = self;
        let width = waves.amplitude.len();
        let mut row = Row::new(width);
        for (out, z) in out.chunks_mut(width).zip(z.chunks(width)) {
            row.fill(sine, waves, z);
            for (((out, amplitude), faded), sin) in out.iter_mut().zip(&waves.amplitude).zip(&row.faded).zip(&row.sin) {
                *out = amplitude * faded * sin;
            }
        }
    }
}

/// Fills the gradient of `z`. Returns the gradients of the positive parameters, one after the other.
struct BackwardRows<'a> {
    sine: &'a Sine,
    waves: &'a Waves,
    z: &'a [f32],
    grad: &'a [f32],
    of_z: &'a mut [f32],
}

impl Loop for BackwardRows<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { sine, waves, z, grad, of_z } = self;
        let width = waves.amplitude.len();
        let mut row = Row::new(width);
        let mut sums = vec![0f32; 3 * width];
        let (of_amplitude, rest) = sums.split_at_mut(width);
        let (of_frequency, of_decay) = rest.split_at_mut(width);
        for ((of_z, z), grad) in of_z.chunks_mut(width).zip(z.chunks(width)).zip(grad.chunks(width)) {
            row.fill(sine, waves, z);
            let (of_z, z, grad) = (&mut of_z[..width], &z[..width], &grad[..width]);
            let (amplitude, frequency, decay) =
                (&waves.amplitude[..width], &waves.frequency[..width], &waves.decay[..width]);
            let (sin, cos, faded) = (&row.sin[..width], &row.cos[..width], &row.faded[..width]);
            for i in 0..width {
                let faded = grad[i] * faded[i];
                let whole = amplitude[i] * faded;
                of_amplitude[i] += faded * sin[i];
                of_frequency[i] += whole * cos[i] * z[i];
                of_decay[i] -= whole * sin[i] * sine.distance(z[i]);
                of_z[i] = whole * (frequency[i] * cos[i] - decay[i] * sine.slope(z[i]) * sin[i]);
            }
        }
        sums
    }
}

impl Operation for Sine {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (z, waves) = (inputs[0], self.waves(&inputs[1..]));
        let width = waves.amplitude.len();
        each_part(out, width, |rows, out| {
            let z = &z[rows.start * width..rows.end * width];
            vectorised(ForwardRows { sine: self, waves: &waves, z, out });
        });
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (z, waves) = (inputs[0], self.waves(&inputs[1..]));
        let width = waves.amplitude.len();
        let size = CHUNK.div_ceil(width) * width;
        let mut unwanted = Vec::new();
        let (of_z, of_raw) = of.split_at_mut(1);
        let of_z = destination(&mut of_z[0], &mut unwanted, z.len());
        let parts = z.len().div_ceil(size);
        let mut sums = vec![Vec::new(); parts];
        let (of_z, of_parts) = (Parts::new(of_z), Parts::new(&mut sums));
        Machine::shared().pool.run(parts, |number| {
            let at = number * size..z.len().min((number + 1) * size);
            let (z, grad) = (&z[at.clone()], &grad[at.clone()]);
            // SAFETY: each task has its own rows.
            let of_z = unsafe { of_z.get(at) };
            // SAFETY: each task has its own sums.
            let sums = unsafe { of_parts.get(number..number + 1) };
            sums[0] = vectorised(BackwardRows { sine: self, waves: &waves, z, grad, of_z });
        });
        let mut total = vec![0f32; 3 * width];
        sums.iter().for_each(|sums| add_slices(&mut total, sums));
        total.iter_mut().zip(&waves.slopes).for_each(|(sum, slope)| *sum *= slope);
        for (of, total) in of_raw.iter_mut().zip(total.chunks_exact(width)) {
            if let Some(of) = of {
                of.copy_from_slice(total);
            }
        }
    }
}
