//! Linear layers in one operation. A composition needs five (two reshapes, a transposition, a product, a sum), and
//! its backward pass fills and adds a tensor for each.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{CHUNK, Candle, Matrix, MatrixMut, added, is_plain, product, slice, tensor, with_slices};

/// `x · weightᵀ + bias`, from (…, inputs) to (…, outputs), with a weight (outputs, inputs) and a bias (outputs).
/// Computes in the dtype of `x`, regardless of the dtype of the weight.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if is_plain(x) && is_plain(weight) {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return Ok(match bias {
            Some(bias) => x.apply_op3(&weight, bias, Linear)?,
            None => x.apply_op2(&weight, Linear)?,
        });
    }
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

struct Linear;

impl Linear {
    fn forward(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Candle<(CpuStorage, Shape)> {
        let (outputs, inputs) = weight.1.shape().dims2()?;
        let mut dims = x.1.dims().to_vec();
        if dims.pop() != Some(inputs) {
            candle_core::bail!("a layer of {inputs} inputs can't take {:?}", x.1.dims());
        }
        dims.push(outputs);
        let (x, weight) = (slice(x.0, x.1)?, slice(weight.0, weight.1)?);
        let rows = x.len() / inputs;
        let mut out = vec![0f32; rows * outputs];
        if let Some((bias, layout)) = bias {
            let bias = slice(bias, layout)?;
            out.par_chunks_mut(outputs).with_min_len(16).for_each(|row| row.copy_from_slice(bias));
        }
        let (x, weight) = (Matrix::new(x, rows, inputs, inputs), Matrix::new(weight, outputs, inputs, inputs));
        let keep = if bias.is_some() { 1.0 } else { 0.0 };
        product(MatrixMut::new(&mut out, rows, outputs, outputs), keep, 1.0, x, weight.transposed(), threads());
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }

    /// Returns the gradients of the inputs and the weight.
    fn backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Candle<(Tensor, Tensor)> {
        let (outputs, inputs) = weight.dims2()?;
        let (of_x, of_weight) = with_slices([x, weight, grad], |[x, weight, grad]| {
            let rows = x.len() / inputs;
            let (mut of_x, mut of_weight) = (vec![0f32; x.len()], vec![0f32; weight.len()]);
            let (x, weight) = (Matrix::new(x, rows, inputs, inputs), Matrix::new(weight, outputs, inputs, inputs));
            let grad = Matrix::new(grad, rows, outputs, outputs);
            product(MatrixMut::new(&mut of_x, rows, inputs, inputs), 0.0, 1.0, grad, weight, threads());
            let out = MatrixMut::new(&mut of_weight, outputs, inputs, inputs);
            product(out, 0.0, 1.0, grad.transposed(), x, threads());
            (of_x, of_weight)
        })?;
        Ok((tensor(of_x, x)?, tensor(of_weight, weight)?))
    }

    /// Returns the gradient of the bias.
    fn sums(bias: &Tensor, grad: &Tensor) -> Candle<Tensor> {
        let width = bias.elem_count();
        let of_bias = with_slices([grad], |[grad]| {
            let sums = grad.par_chunks(CHUNK.div_ceil(width) * width).map(|grad| {
                let mut sum = vec![0f32; width];
                grad.chunks(width).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, grad)| *sum += grad));
                sum
            });
            sums.reduce(|| vec![0f32; width], |a, b| added(a, &b))
        })?;
        tensor(of_bias, bias)
    }
}

fn threads() -> usize {
    candle_core::utils::get_num_threads()
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight) = Self::backward(x, weight, grad)?;
        Ok((Some(of_x), Some(of_weight)))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-with-bias"
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
        Self::forward((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight) = Self::backward(x, weight, grad)?;
        Ok((Some(of_x), Some(of_weight), Some(Self::sums(bias, grad)?)))
    }
}
