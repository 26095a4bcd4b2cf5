//! The operations of a network as compositions of Candle's: for GPUs, and for other types than f32. Weights may have another
//! dtype than the activations: an operation computes in the dtype of its input.

use anyhow::{Result, bail};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::sigmoid;

use super::{Attention, Decay, Graph, Mask, Taps, Waveform, activation::LEAST_FREQUENCY, inference::Layer};

/// The graph that Candle keeps itself.
pub(super) struct Composed;

impl Graph for Composed {
    type Value = Tensor;

    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        // As one matrix, because Candle multiplies the matrices of a batch one by one.
        let mut dims = x.dims().to_vec();
        let inputs = dims.pop().unwrap_or_default();
        let out = x.reshape(((), inputs))?.matmul(&weight.to_dtype(x.dtype())?.t()?)?;
        dims.push(weight.dim(0)?);
        let out = out.reshape(dims)?;
        match bias {
            Some(bias) => Ok(out.broadcast_add(&bias.to_dtype(x.dtype())?)?),
            None => Ok(out),
        }
    }

    fn infer(&mut self, x: &Tensor, _: &Layer) -> Result<Tensor> {
        bail!("layers of inference take f32 on a CPU, not {:?} on {:?}", x.dtype(), x.device())
    }

    fn layer_norm(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let wide = wide(x)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
        let scaled = normed.broadcast_mul(&weight.to_dtype(wide.dtype())?)?;
        Ok(scaled.broadcast_add(&bias.to_dtype(wide.dtype())?)?.to_dtype(x.dtype())?)
    }

    fn add_norm(
        &mut self,
        x: &Tensor,
        branch: &Tensor,
        mask: Mask,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        let sum = self.add(x, branch, mask)?;
        self.layer_norm(&sum, weight, bias, eps)
    }

    fn rms_norm(&mut self, x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
        let wide = wide(x)?;
        let rms = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        Ok(wide.broadcast_div(&rms)?.broadcast_mul(&scale.to_dtype(wide.dtype())?)?.to_dtype(x.dtype())?)
    }

    fn add(&mut self, x: &Tensor, branch: &Tensor, mask: Mask) -> Result<Tensor> {
        Ok((x + mask.composed(branch)?)?)
    }

    fn add_scaled(&mut self, x: &Tensor, branch: &Tensor, scale: &Tensor) -> Result<Tensor> {
        Ok((x + branch.broadcast_mul(&scale.to_dtype(branch.dtype())?)?)?)
    }

    fn drop(&mut self, x: &Tensor, mask: Mask) -> Result<Tensor> {
        mask.composed(x)
    }

    fn gelu(&mut self, x: &Tensor, mask: Mask) -> Result<Tensor> {
        mask.composed(&x.gelu_erf()?)
    }

    fn gate(&mut self, both: &Tensor) -> Result<Tensor> {
        let (value, gate) = halves(both)?;
        Ok((value * sigmoid(&gate)?)?)
    }

    fn sine(&mut self, z: &Tensor, [amplitude, frequency, damping]: [&Tensor; 3], form: Waveform) -> Result<Tensor> {
        let wide = wide(z)?;
        let positive = |raw: &Tensor, least: f32, (low, high): (f32, f32)| -> Result<Tensor> {
            let raw = raw.to_dtype(wide.dtype())?;
            let value = ((raw.relu()? + (raw.abs()?.neg()?.exp()? + 1.0)?.log()?)? + f64::from(least))?;
            Ok(if low.is_finite() || high.is_finite() { value.clamp(low, high)? } else { value })
        };
        let [of_amplitude, of_frequency, of_damping] = form.bounds;
        let wave = wide.broadcast_mul(&positive(frequency, LEAST_FREQUENCY, of_frequency)?)?.sin()?;
        let distance = match form.decay {
            Decay::Abs => Some(wide.abs()?),
            Decay::Relu => Some(wide.relu()?),
            Decay::None => None,
        };
        let wave = match distance {
            Some(distance) => (wave * distance.broadcast_mul(&positive(damping, 0.0, of_damping)?)?.neg()?.exp()?)?,
            None => wave,
        };
        Ok(wave.broadcast_mul(&positive(amplitude, 0.0, of_amplitude)?)?.to_dtype(z.dtype())?)
    }

    fn depthwise(&mut self, x: &Tensor, taps: Taps) -> Result<Tensor> {
        let (_, time, channels) = x.dims3()?;
        let count = taps.weight.dim(2)?;
        let (weight, bias) = (taps.weight.to_dtype(x.dtype())?, taps.bias.to_dtype(x.dtype())?);
        let (reach, before) = ((count - 1) * taps.dilation, taps.before(count));
        let padded = x.pad_with_zeros(1, before, reach - before)?;
        let mut sum = bias.reshape((1, 1, channels))?.broadcast_as(x.shape())?.contiguous()?;
        for tap in 0..count {
            let shifted = padded.narrow(1, tap * taps.dilation, time)?;
            sum = (sum + shifted.broadcast_mul(&weight.narrow(2, tap, 1)?.reshape((1, 1, channels))?)?)?;
        }
        Ok(sum)
    }

    fn gated_convolution(&mut self, both: &Tensor, taps: Taps) -> Result<Tensor> {
        let (gate, state) = halves(both)?;
        let state = self.depthwise(&state, taps)?.tanh()?;
        Ok((state * sigmoid(&gate)?)?)
    }

    fn attention(&mut self, query: &Tensor, key: &Tensor, value: &Tensor, attention: Attention) -> Result<Tensor> {
        attention.composed(query, key, value)
    }

    fn joined_attention(&mut self, all: &Tensor, attention: Attention) -> Result<Tensor> {
        let width = all.dim(2)? / 3;
        let part = |number: usize| all.narrow(2, number * width, width)?.contiguous();
        attention.composed(&part(0)?, &part(1)?, &part(2)?)
    }

    fn add_positions(&mut self, x: &Tensor, positions: &Tensor, mask: Mask) -> Result<Tensor> {
        let positions = positions.narrow(0, 0, x.dim(1)?)?.to_dtype(x.dtype())?;
        mask.composed(&x.broadcast_add(&positions)?)
    }

    fn pool(&mut self, x: &Tensor, factor: usize) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let whole = time / factor;
        let mut parts = Vec::new();
        if whole > 0 {
            parts.push(x.narrow(1, 0, whole * factor)?.contiguous()?.reshape((batch, whole, factor, width))?.mean(2)?);
        }
        if whole * factor < time {
            parts.push(x.narrow(1, whole * factor, time - whole * factor)?.mean_keepdim(1)?);
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn last(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?)
    }
}

/// The two halves of the last dimension.
fn halves(both: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = both.dim(D::Minus1)? / 2;
    Ok((both.narrow(D::Minus1, 0, width)?, both.narrow(D::Minus1, width, width)?))
}

/// At least f32, in which norms and sines are computed.
fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F64 => x.clone(),
        _ => x.to_dtype(DType::F32)?,
    })
}
