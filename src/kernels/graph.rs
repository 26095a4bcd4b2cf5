//! Networks that are written once and run as kernels or as compositions.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;

use super::{
    Attention, Buffers, Mask, Taps, Waveform,
    activation::{Gate, Gelu, Sine},
    attention::{Attend, Sources},
    composed::Composed,
    convolution::GatedConvolution,
    inference::{Layer, Machine},
    is_plain,
    linear::Linear,
    mask::Drop,
    norm::{LayerNorm, RmsNorm},
    positions::{AddPositions, Last, Pool},
    residual::{Add, AddScaled},
    tape::{Tape, Value},
};

/// The operations of a network. Values have the shape (…, width), and (batch, time, width) where steps of a sequence matter;
/// weights are tensors.
///
/// Operations return an error if shapes do not go together, or the device fails.
pub trait Graph {
    /// A tensor in the course of the network.
    type Value: Clone;

    /// `x · weightᵀ + bias`, with a weight (outputs, inputs).
    fn linear(&mut self, x: &Self::Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self::Value>;

    /// A linear layer on the kernels of inference: for f32 on a CPU, without gradients.
    fn infer(&mut self, x: &Self::Value, layer: &Layer) -> Result<Self::Value>;

    /// Layer norm over the last dimension.
    fn layer_norm(&mut self, x: &Self::Value, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self::Value>;

    /// Layer norm of `x + branch`, with dropout of the branch.
    fn add_norm(
        &mut self,
        x: &Self::Value,
        branch: &Self::Value,
        mask: Mask,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Self::Value>;

    /// `x · scale / √(mean(x²) + eps)` over the last dimension.
    fn rms_norm(&mut self, x: &Self::Value, scale: &Tensor, eps: f64) -> Result<Self::Value>;

    /// `x + branch`, with dropout of the branch.
    fn add(&mut self, x: &Self::Value, branch: &Self::Value, mask: Mask) -> Result<Self::Value>;

    /// `x + scale · branch`, with a scalar scale.
    fn add_scaled(&mut self, x: &Self::Value, branch: &Self::Value, scale: &Tensor) -> Result<Self::Value>;

    /// Dropout.
    fn drop(&mut self, x: &Self::Value, mask: Mask) -> Result<Self::Value>;

    /// GELU with the error function, PyTorch's default, then dropout.
    fn gelu(&mut self, x: &Self::Value, mask: Mask) -> Result<Self::Value>;

    /// `value · sigmoid(gate)`, of rows with the value and then the gate.
    fn gate(&mut self, both: &Self::Value) -> Result<Self::Value>;

    /// `A·exp(−d·g(z))·sin(f·z)`, with `A`, `f` and `d` the softplus of the rows of `raw`.
    fn sine(&mut self, z: &Self::Value, raw: [&Tensor; 3], form: Waveform) -> Result<Self::Value>;

    /// A depthwise convolution over time.
    fn depthwise(&mut self, x: &Self::Value, taps: Taps) -> Result<Self::Value>;

    /// `sigmoid(gate) · tanh(depthwise(state))`, of rows with the gate and then the state.
    fn gated_convolution(&mut self, both: &Self::Value, taps: Taps) -> Result<Self::Value>;

    /// Attention of queries over keys and values.
    fn attention(
        &mut self,
        query: &Self::Value,
        key: &Self::Value,
        value: &Self::Value,
        attention: Attention,
    ) -> Result<Self::Value>;

    /// Attention of rows with the query, then the key, then the value.
    fn joined_attention(&mut self, all: &Self::Value, attention: Attention) -> Result<Self::Value>;

    /// Adds to each step the row of its position, then dropout. There may be more positions than steps.
    fn add_positions(&mut self, x: &Self::Value, positions: &Tensor, mask: Mask) -> Result<Self::Value>;

    /// Means of `factor` steps each. The last mean is over the steps that are left.
    fn pool(&mut self, x: &Self::Value, factor: usize) -> Result<Self::Value>;

    /// The last step of each sequence, (batch, width).
    fn last(&mut self, x: &Self::Value) -> Result<Self::Value>;
}

/// A network, or a part of one.
pub trait Network {
    /// Computes the output from the inputs.
    ///
    /// # Errors
    /// When shapes do not go together, or the device fails.
    fn forward<G: Graph>(&self, graph: &mut G, inputs: &[G::Value]) -> Result<G::Value>;
}

/// Runs a network. In f32 on a CPU, it is one operation of Candle, whose temporary memory comes from `buffers`.
///
/// # Errors
/// When shapes do not go together, or the device fails.
pub fn fused(network: &impl Network, inputs: &[&Tensor], buffers: &Arc<Buffers>) -> Result<Tensor> {
    if !inputs.iter().all(|input| is_plain(input)) {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
        return network.forward(&mut Composed, &inputs);
    }
    let mut tape = Tape::new(buffers);
    let result = {
        let inputs = inputs.iter().map(|input| tape.tensor(input)).collect::<Result<Vec<_>>>()?;
        network.forward(&mut tape, &inputs)?
    };
    tape.finish(result)
}

/// The dimensions with another width.
fn widened(x: &Value, width: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = width;
    }
    dims
}

fn width(x: &Value) -> usize {
    x.dims().last().copied().unwrap_or(1)
}

/// # Errors
/// When the value is not (batch, time, width).
fn dims3(x: &Value) -> Result<(usize, usize, usize)> {
    match x.dims() {
        [batch, time, width] => Ok((*batch, *time, *width)),
        other => anyhow::bail!("(batch, time, width) is required, not {other:?}"),
    }
}

impl Tape {
    fn weights<const N: usize>(&mut self, x: &Value, weights: [&Tensor; N]) -> Result<Vec<Value>> {
        let mut inputs = vec![x.clone()];
        for weight in weights {
            inputs.push(self.tensor(weight)?);
        }
        Ok(inputs)
    }

    /// # Errors
    /// When weights of a norm, of a sine or of positions have another width than the value.
    fn same_width(x: &Value, weights: &[&Tensor]) -> Result<()> {
        for weight in weights {
            let found = weight.dims().last().copied().unwrap_or(1);
            anyhow::ensure!(found == width(x), "a weight of width {found} can't take {:?}", x.dims());
        }
        Ok(())
    }

    /// # Errors
    /// When the shapes differ.
    fn same_shape(a: &Value, b: &Value) -> Result<()> {
        anyhow::ensure!(a.dims() == b.dims(), "{:?} can't be added to {:?}", b.dims(), a.dims());
        Ok(())
    }
}

impl Graph for Tape {
    type Value = Value;

    fn linear(&mut self, x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
        let (outputs, inputs) = weight.dims2()?;
        anyhow::ensure!(inputs == width(x), "a layer of {inputs} inputs can't take {:?}", x.dims());
        let mut all = self.weights(x, [weight])?;
        if let Some(bias) = bias {
            anyhow::ensure!(bias.elem_count() == outputs, "{} biases of {outputs} outputs", bias.elem_count());
            all.push(self.tensor(bias)?);
        }
        self.run(Linear { inputs, outputs }, all, widened(x, outputs))
    }

    fn infer(&mut self, x: &Value, layer: &Layer) -> Result<Value> {
        let (outputs, inputs) = (layer.outputs(), layer.inputs());
        anyhow::ensure!(inputs == width(x), "a layer of {inputs} inputs can't take {:?}", x.dims());
        self.without_gradient(x, widened(x, outputs), |x, out| layer.apply(Machine::shared(), x, out))
    }

    fn layer_norm(&mut self, x: &Value, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Value> {
        Self::same_width(x, &[weight, bias])?;
        let inputs = self.weights(x, [weight, bias])?;
        self.run(LayerNorm { eps: eps as f32, mask: Mask::NONE }, inputs, x.dims().to_vec())
    }

    fn add_norm(
        &mut self,
        x: &Value,
        branch: &Value,
        mask: Mask,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Value> {
        Self::same_shape(x, branch)?;
        Self::same_width(x, &[weight, bias])?;
        let mut inputs = self.weights(x, [weight, bias])?;
        inputs.push(branch.clone());
        self.run(LayerNorm { eps: eps as f32, mask }, inputs, x.dims().to_vec())
    }

    fn rms_norm(&mut self, x: &Value, scale: &Tensor, eps: f64) -> Result<Value> {
        Self::same_width(x, &[scale])?;
        let inputs = self.weights(x, [scale])?;
        self.run(RmsNorm { eps: eps as f32 }, inputs, x.dims().to_vec())
    }

    fn add(&mut self, x: &Value, branch: &Value, mask: Mask) -> Result<Value> {
        Self::same_shape(x, branch)?;
        self.run(Add(mask), vec![x.clone(), branch.clone()], x.dims().to_vec())
    }

    fn add_scaled(&mut self, x: &Value, branch: &Value, scale: &Tensor) -> Result<Value> {
        Self::same_shape(x, branch)?;
        anyhow::ensure!(scale.elem_count() == 1, "a scalar is required, not {:?}", scale.dims());
        let scale = self.tensor(scale)?;
        self.run(AddScaled, vec![x.clone(), branch.clone(), scale], x.dims().to_vec())
    }

    fn drop(&mut self, x: &Value, mask: Mask) -> Result<Value> {
        if mask.is_none() {
            return Ok(x.clone());
        }
        self.run(Drop(mask), vec![x.clone()], x.dims().to_vec())
    }

    fn gelu(&mut self, x: &Value, mask: Mask) -> Result<Value> {
        self.run(Gelu(mask), vec![x.clone()], x.dims().to_vec())
    }

    fn gate(&mut self, both: &Value) -> Result<Value> {
        let half = width(both) / 2;
        self.run(Gate(half), vec![both.clone()], widened(both, half))
    }

    fn sine(&mut self, z: &Value, raw: [&Tensor; 3], form: Waveform) -> Result<Value> {
        Self::same_width(z, &raw)?;
        let inputs = self.weights(z, raw)?;
        self.run(Sine(form), inputs, z.dims().to_vec())
    }

    fn depthwise(&mut self, x: &Value, taps: Taps) -> Result<Value> {
        let sizes = taps.sizes(x.dims(), width(x))?;
        let inputs = self.weights(x, [taps.weight, taps.bias])?;
        self.run(sizes, inputs, x.dims().to_vec())
    }

    fn gated_convolution(&mut self, both: &Value, taps: Taps) -> Result<Value> {
        let (batch, time, width) = dims3(both)?;
        let sizes = taps.sizes(both.dims(), width / 2)?;
        let state = self.memory(batch * time * (width / 2)).into();
        let inputs = self.weights(both, [taps.weight, taps.bias])?;
        self.run(GatedConvolution { sizes, state }, inputs, vec![batch, time, width / 2])
    }

    fn attention(&mut self, query: &Value, key: &Value, value: &Value, attention: Attention) -> Result<Value> {
        let ((batch, time, width), (_, over, _)) = (dims3(query)?, dims3(key)?);
        Self::same_shape(key, value)?;
        anyhow::ensure!(key.dims() == [batch, over, width], "{:?} can't attend to {:?}", query.dims(), key.dims());
        let attend = Attend::new(attention, Sources::Separate, (batch, time, over, width))?;
        self.run(attend, vec![query.clone(), key.clone(), value.clone()], query.dims().to_vec())
    }

    fn joined_attention(&mut self, all: &Value, attention: Attention) -> Result<Value> {
        let (batch, time, width) = dims3(all)?;
        let attend = Attend::new(attention, Sources::Joined, (batch, time, time, width / 3))?;
        self.run(attend, vec![all.clone()], vec![batch, time, width / 3])
    }

    fn add_positions(&mut self, x: &Value, positions: &Tensor, mask: Mask) -> Result<Value> {
        let (_, time, width) = dims3(x)?;
        Self::same_width(x, &[positions])?;
        anyhow::ensure!(positions.dim(0)? >= time, "{time} steps have {} positions", positions.dim(0)?);
        let inputs = self.weights(x, [positions])?;
        self.run(AddPositions { len: time * width, mask }, inputs, x.dims().to_vec())
    }

    fn pool(&mut self, x: &Value, factor: usize) -> Result<Value> {
        let (batch, time, width) = dims3(x)?;
        let pool = Pool { time, width, factor };
        let dims = vec![batch, pool.steps(), width];
        self.run(pool, vec![x.clone()], dims)
    }

    fn last(&mut self, x: &Value) -> Result<Value> {
        let (batch, time, width) = dims3(x)?;
        self.run(Last { time, width }, vec![x.clone()], vec![batch, width])
    }
}
