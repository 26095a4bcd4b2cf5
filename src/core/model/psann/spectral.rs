//! The spectral branch of `sgrpsann`: the spectrum of the last steps over time, with a gate for each frequency of each channel.
//! Each of these steps depends on all of them, later ones included, so a model with it is not causal.

use std::f64::consts::TAU;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, ops::sigmoid};

use super::PsannConfig;

pub struct Spectral {
    /// (channels, frequencies); its sigmoid is the gate.
    mask: Tensor,
    /// (channels, 1, 1): the factor of each channel.
    mix: Tensor,
    steps: usize,
    /// (steps, 2 · frequencies): from steps to the real and imaginary parts of their spectrum. `from_spectrum` of shape
    /// (2 · frequencies, steps) inverts it, times the strength of the gate. For so few steps, `rfft` and `irfft` are two small
    /// matrix products.
    to_spectrum: Tensor,
    from_spectrum: Tensor,
}

impl Spectral {
    pub fn new(config: &PsannConfig, weights: VarBuilder) -> Result<Self> {
        let (channels, steps) = (config.d_model, config.k_fft);
        let frequencies = steps / 2 + 1;
        let (to_spectrum, from_spectrum) = transforms(steps, config.gate_strength, weights.device())?;
        Ok(Self {
            mask: weights.get_with_hints((channels, frequencies), "mask", Init::Const(config.gate_init))?,
            mix: weights.get_with_hints((channels, 1, 1), "mix.weight", Init::Const(1.0))?,
            steps,
            to_spectrum,
            from_spectrum,
        })
    }

    /// From (batch, time, channels) to the same shape; all but the last steps are 0.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, channels) = x.dims3()?;
        let seen = time.min(self.steps);
        let window = x.narrow(1, time - seen, seen)?.to_dtype(DType::F32)?;
        let window = window.pad_with_zeros(1, self.steps - seen, 0)?.transpose(1, 2)?.contiguous()?;
        let spectrum = window.reshape((batch * channels, self.steps))?.matmul(&self.to_spectrum)?;
        let gate = sigmoid(&self.mask.to_dtype(DType::F32)?)?;
        let gate = Tensor::cat(&[&gate, &gate], 1)?.broadcast_mul(&self.mix.to_dtype(DType::F32)?.squeeze(2)?)?;
        let gated = spectrum.reshape((batch, channels, ()))?.broadcast_mul(&gate)?;
        let steps = gated.reshape((batch * channels, ()))?.matmul(&self.from_spectrum)?;
        let steps = steps.reshape((batch, channels, self.steps))?.transpose(1, 2)?;
        let steps = steps.narrow(1, self.steps - seen, seen)?;
        Ok(steps.pad_with_zeros(1, time - seen, 0)?.to_dtype(x.dtype())?)
    }
}

/// The discrete Fourier transform of real numbers, and `strength` times its inverse, as matrices. A factor in a matrix keeps the
/// gradients of the gate at a strength of 0: Candle's backward pass leaves out tensors that are multiplied by the number 0.
fn transforms(steps: usize, strength: f64, device: &Device) -> Result<(Tensor, Tensor)> {
    let frequencies = steps / 2 + 1;
    let (mut to, mut from) = (vec![0f32; steps * 2 * frequencies], vec![0f32; 2 * frequencies * steps]);
    for step in 0..steps {
        for frequency in 0..frequencies {
            let angle = TAU * ((step * frequency) % steps) as f64 / steps as f64;
            // Each frequency except the first and the last has a mirrored one.
            let share = if frequency == 0 || 2 * frequency == steps { 1.0 } else { 2.0 } / steps as f64 * strength;
            to[step * 2 * frequencies + frequency] = angle.cos() as f32;
            to[step * 2 * frequencies + frequencies + frequency] = -angle.sin() as f32;
            from[frequency * steps + step] = (share * angle.cos()) as f32;
            from[(frequencies + frequency) * steps + step] = (-share * angle.sin()) as f32;
        }
    }
    Ok((
        Tensor::from_vec(to, (steps, 2 * frequencies), device)?,
        Tensor::from_vec(from, (2 * frequencies, steps), device)?,
    ))
}
