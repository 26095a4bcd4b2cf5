//! Element-wise operations.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};
use candle_nn::ops::sigmoid;
use rayon::prelude::*;

use super::{
    CHUNK, Candle, Kernel, added,
    elementary::{WIDEST_ANGLE, exp, sin_cos},
    is_plain, slice, tensor, vectorised, with_slices,
};

/// GELU with the error function, PyTorch's default.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(if is_plain(x) { x.contiguous()?.apply_op1(Gelu)? } else { x.gelu_erf()? })
}

struct Gelu;

impl Gelu {
    /// The normal distribution function at `x`, and `exp(-x²/2)`. Abramowitz and Stegun, formula 7.1.26, with an
    /// error below 1.5e-7.
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

/// `value · sigmoid(gate)`.
pub fn gate(value: &Tensor, gate: &Tensor) -> Result<Tensor> {
    Ok((value * sigmoid(gate)?)?)
}

/// The quantity that damps a [`sine`].
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

/// Added to frequencies, so that none is 0.
const LEAST_FREQUENCY: f32 = 1e-6;

/// `A·exp(−d·g(z))·sin(f·z)`, with `A` = softplus of the first row of `raw` (3, width), `f` of the second plus a
/// small constant, `d` of the third (SineParam of psann 2.0.1).
pub fn sine(z: &Tensor, raw: &Tensor, decay: Decay) -> Result<Tensor> {
    if is_plain(z) {
        return Ok(z.contiguous()?.apply_op2(&raw.contiguous()?, Sine(decay))?);
    }
    let wide = z.to_dtype(DType::F32)?;
    let raw = raw.to_dtype(DType::F32)?;
    let positive = (raw.relu()? + (raw.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let row = |row: usize| positive.narrow(0, row, 1)?.squeeze(0);
    let wave = wide.broadcast_mul(&(row(1)? + f64::from(LEAST_FREQUENCY))?)?.sin()?;
    let distance = match decay {
        Decay::Abs => Some(wide.abs()?),
        Decay::Relu => Some(wide.relu()?),
        Decay::None => None,
    };
    let wave = match distance {
        Some(distance) => (wave * distance.broadcast_mul(&row(2)?)?.neg()?.exp()?)?,
        None => wave,
    };
    Ok(wave.broadcast_mul(&row(0)?)?.to_dtype(z.dtype())?)
}

struct Sine(Decay);

/// The positive parameters, and their derivatives with respect to the raw ones.
struct Waves {
    amplitude: Vec<f32>,
    frequency: Vec<f32>,
    decay: Vec<f32>,
    slopes: Vec<f32>,
}

impl Sine {
    fn waves(raw: &[f32]) -> Waves {
        let softplus = |raw: &f32| raw.max(0.0) + (-raw.abs()).exp().ln_1p();
        let slopes = raw.iter().map(|raw| 1.0 / (1.0 + (-raw).exp())).collect();
        let mut rows = raw.chunks(raw.len() / 3).map(|row| row.iter().map(softplus).collect::<Vec<f32>>());
        let mut next = || rows.next().unwrap_or_default();
        let (amplitude, mut frequency, decay) = (next(), next(), next());
        frequency.iter_mut().for_each(|frequency| *frequency += LEAST_FREQUENCY);
        Waves { amplitude, frequency, decay, slopes }
    }

    #[inline(always)]
    fn distance(&self, z: f32) -> f32 {
        match self.0 {
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
        match self.0 {
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
        match sine.0 {
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

impl Kernel for ForwardRows<'_> {
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

impl Kernel for BackwardRows<'_> {
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

impl CustomOp2 for Sine {
    fn name(&self) -> &'static str {
        "sine-param"
    }

    fn cpu_fwd(
        &self,
        z: &CpuStorage,
        z_layout: &Layout,
        raw: &CpuStorage,
        raw_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let (z, waves) = (slice(z, z_layout)?, Self::waves(slice(raw, raw_layout)?));
        let width = waves.amplitude.len();
        let size = CHUNK.div_ceil(width) * width;
        let mut out = vec![0f32; z.len()];
        let chunks = out.par_chunks_mut(size).zip(z.par_chunks(size));
        chunks.for_each(|(out, z)| vectorised(ForwardRows { sine: self, waves: &waves, z, out }));
        Ok((CpuStorage::F32(out), z_layout.shape().clone()))
    }

    fn bwd(&self, z: &Tensor, raw: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        let (of_z, of_raw) = with_slices([z, raw, grad], |[z, raw, grad]| {
            let waves = Self::waves(raw);
            let width = waves.amplitude.len();
            let size = CHUNK.div_ceil(width) * width;
            let mut of_z = vec![0f32; z.len()];
            let chunks = of_z.par_chunks_mut(size).zip(z.par_chunks(size)).zip(grad.par_chunks(size));
            let sums =
                chunks.map(|((of_z, z), grad)| vectorised(BackwardRows { sine: self, waves: &waves, z, grad, of_z }));
            let mut of_raw = sums.reduce(|| vec![0f32; 3 * width], |a, b| added(a, &b));
            of_raw.iter_mut().zip(&waves.slopes).for_each(|(sum, slope)| *sum *= slope);
            (of_z, of_raw)
        })?;
        Ok((Some(tensor(of_z, z)?), Some(tensor(of_raw, raw)?)))
    }
}
