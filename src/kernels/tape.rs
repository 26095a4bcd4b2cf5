//! Networks of kernels as one operation of Candle. Candle's operations have at most three inputs, and its backward pass fills
//! and adds a tensor for each input of each operation. A [`Tape`] runs kernels on buffers, records those that a gradient passes
//! through, and appears to Candle as one operation with any number of inputs.

use std::{
    collections::HashMap,
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Storage, Tensor, TensorId};
use tracing::trace_span;

use super::{Candle, add_to, is_plain, slice};

/// A kernel with its gradient, on f32 in row-major order.
pub trait Operation: Send + Sync + 'static {
    /// The part of its spans.
    fn name(&self) -> &'static str;

    /// Fills `out`, whose elements may have any value before.
    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]);

    /// Fills the gradients `of` the inputs; `None` is not wanted. `out` is empty unless [`Self::needs_output`].
    fn backward(&self, inputs: &[&[f32]], out: &[f32], grad: Memory, of: &mut [Option<Memory>]);

    /// Returns whether the backward pass reads the output.
    fn needs_output(&self) -> bool {
        false
    }
}

/// Buffers that are used again by values of the same length. Allocating a large buffer takes longer than filling it.
#[derive(Default)]
pub struct Buffers(Mutex<HashMap<usize, Vec<Vec<f32>>>>);

impl Buffers {
    /// Elements of any value.
    pub fn take(self: &Arc<Self>, len: usize) -> Memory {
        let known = lock(&self.0).get_mut(&len).and_then(Vec::pop);
        Memory { values: known.unwrap_or_else(|| vec![0.0; len]), home: Some(self.clone()) }
    }
}

/// A buffer that returns to the others when it is dropped.
pub struct Memory {
    values: Vec<f32>,
    home: Option<Arc<Buffers>>,
}

impl Memory {
    /// The elements; they don't return.
    fn into_vec(mut self) -> Vec<f32> {
        self.home = None;
        mem::take(&mut self.values)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            lock(&home.0).entry(self.values.len()).or_default().push(mem::take(&mut self.values));
        }
    }
}

impl Deref for Memory {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// The gradient to be filled, or other memory if it is not wanted.
pub fn destination<'a>(of: &'a mut Option<Memory>, unwanted: &'a mut Vec<f32>, len: usize) -> &'a mut [f32] {
    match of {
        Some(of) => of,
        None => {
            unwanted.resize(len, 0.0);
            unwanted
        }
    }
}

/// A tensor, or the result of an operation.
pub struct Node {
    id: usize,
    data: Data,
    dims: Vec<usize>,
    /// True if a gradient with respect to it is wanted.
    is_tracked: bool,
}

enum Data {
    Tensor(Tensor),
    Own(Memory),
}

/// A node, which lives as long as it is used.
pub type Value = Arc<Node>;

impl Node {
    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Calls `with` with the elements of some nodes.
fn with_inputs<'a, T>(nodes: impl IntoIterator<Item = &'a Node>, with: impl FnOnce(&[&[f32]]) -> T) -> Candle<T> {
    let nodes: Vec<&Node> = nodes.into_iter().collect();
    let storage = |node: &&'a Node| match &node.data {
        Data::Tensor(tensor) => Some(tensor.storage_and_layout()),
        Data::Own(_) => None,
    };
    let storages: Vec<_> = nodes.iter().map(storage).collect();
    let mut slices: Vec<&[f32]> = Vec::with_capacity(nodes.len());
    for (node, storage) in nodes.iter().zip(&storages) {
        slices.push(match (&node.data, storage) {
            (Data::Own(memory), _) => memory,
            (_, Some((storage, layout))) => match &**storage {
                Storage::Cpu(storage) => slice(storage, layout)?,
                _ => candle_core::bail!("a tensor on a CPU is required"),
            },
            (_, None) => &[],
        });
    }
    Ok(with(&slices))
}

struct Step {
    operation: Box<dyn Operation>,
    inputs: Vec<Value>,
    out: usize,
    /// The output, if the operation needs it.
    output: Option<Value>,
}

/// A network in the course of its forward pass.
pub struct Tape {
    buffers: Arc<Buffers>,
    nodes: usize,
    steps: Vec<Step>,
    /// Tensors, each once.
    known: HashMap<TensorId, Value>,
    /// Those that have gradients, and their nodes.
    leaves: Vec<(Tensor, usize)>,
}

impl Tape {
    /// An empty tape.
    pub fn new(buffers: &Arc<Buffers>) -> Self {
        Self { buffers: buffers.clone(), nodes: 0, steps: Vec::new(), known: HashMap::new(), leaves: Vec::new() }
    }

    /// A tensor, f32 on a CPU.
    ///
    /// # Errors
    /// Returns an error if the tensor has another dtype or device.
    pub fn tensor(&mut self, tensor: &Tensor) -> Result<Value> {
        if let Some(known) = self.known.get(&tensor.id()) {
            return Ok(known.clone());
        }
        ensure!(is_plain(tensor), "f32 on a CPU is required, not {:?} on {:?}", tensor.dtype(), tensor.device());
        let node = self.node(Data::Tensor(tensor.detach().contiguous()?), tensor.dims().to_vec(), tensor.track_op());
        if node.is_tracked {
            self.leaves.push((tensor.clone(), node.id));
        }
        self.known.insert(tensor.id(), node.clone());
        Ok(node)
    }

    fn node(&mut self, data: Data, dims: Vec<usize>, is_tracked: bool) -> Value {
        self.nodes += 1;
        Arc::new(Node { id: self.nodes - 1, data, dims, is_tracked })
    }

    /// Runs an operation whose output has the shape `dims`.
    ///
    /// # Errors
    /// Returns an error if an input can't be read.
    pub fn run(&mut self, operation: impl Operation, inputs: Vec<Value>, dims: Vec<usize>) -> Result<Value> {
        let mut out = self.buffers.take(dims.iter().product());
        let forward = || with_inputs(inputs.iter().map(Arc::as_ref), |inputs| operation.forward(inputs, &mut out));
        trace_span!("forward", part = operation.name()).in_scope(forward)?;
        let node = self.node(Data::Own(out), dims, inputs.iter().any(|input| input.is_tracked));
        if node.is_tracked {
            let output = operation.needs_output().then(|| node.clone());
            self.steps.push(Step { operation: Box::new(operation), inputs, out: node.id, output });
        }
        Ok(node)
    }

    /// Runs an operation that has no gradient. Its output has the shape `dims`.
    ///
    /// # Errors
    /// Returns an error if the input can't be read, or a gradient with respect to it is wanted.
    pub fn without_gradient(
        &mut self,
        x: &Value,
        dims: Vec<usize>,
        forward: impl FnOnce(&[f32], &mut [f32]),
    ) -> Result<Value> {
        ensure!(!x.is_tracked, "an operation of inference has no gradient");
        let mut out = self.buffers.take(dims.iter().product());
        trace_span!("forward", part = "linear")
            .in_scope(|| with_inputs([x.as_ref()], |inputs| forward(inputs[0], &mut out)))?;
        Ok(self.node(Data::Own(out), dims, false))
    }

    /// Temporary elements of any value.
    pub fn memory(&self, len: usize) -> Memory {
        self.buffers.take(len)
    }

    /// Makes the result a tensor, whose gradient passes through the tape.
    ///
    /// # Errors
    /// Returns an error if Candle can't make the tensor.
    pub fn finish(self, result: Value) -> Result<Tensor> {
        let Self { buffers, nodes, steps, known, leaves } = self;
        drop(known);
        let (id, is_tracked, shape) = (result.id, result.is_tracked, Shape::from(result.dims.clone()));
        let values = match Arc::try_unwrap(result) {
            Ok(Node { data: Data::Own(memory), .. }) => memory.into_vec(),
            Ok(node) => with_inputs([&node], |slices| slices[0].to_vec())?,
            Err(shared) => with_inputs([&*shared], |slices| slices[0].to_vec())?,
        };
        if !is_tracked {
            return Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?);
        }
        let gradients: Gradients = Arc::default();
        // Scalars that stand for the leaves, because an operation of Candle can't have as many inputs.
        let mut all: Option<Tensor> = None;
        for (number, pair) in leaves.chunks(2).enumerate() {
            let bundle = Bundle { gradients: gradients.clone(), first: 2 * number, follows: all.is_some() };
            all = Some(match (all, pair) {
                (None, [(a, _)]) => a.apply_op1(bundle)?,
                (None, [(a, _), (b, _), ..]) => a.apply_op2(b, bundle)?,
                (Some(before), [(a, _)]) => before.apply_op2(a, bundle)?,
                (Some(before), [(a, _), (b, _), ..]) => before.apply_op3(a, b, bundle)?,
                (before, []) => return before.map_or_else(|| anyhow::bail!("a network has no inputs"), Ok),
            });
        }
        let Some(all) = all else { anyhow::bail!("a network has no inputs") };
        let leaf =
            |(tensor, id): (Tensor, usize)| Leaf { is_variable: tensor.is_variable(), tensor: tensor.detach(), id };
        let recorded = Recorded { buffers, nodes, steps, leaves: leaves.into_iter().map(leaf).collect(), out: id };
        Ok(all.apply_op1(Fused { recorded, gradients, out: Mutex::new(Some((values, shape))) })?)
    }
}

/// The values that the backward pass needs.
struct Recorded {
    buffers: Arc<Buffers>,
    nodes: usize,
    steps: Vec<Step>,
    leaves: Vec<Leaf>,
    out: usize,
}

struct Leaf {
    tensor: Tensor,
    id: usize,
    is_variable: bool,
}

impl Recorded {
    /// Gradients of the leaves.
    fn backward(&self, grad: &Tensor) -> Candle<Vec<Option<Tensor>>> {
        let mut grads: Vec<Option<Memory>> = (0..self.nodes).map(|_| None).collect();
        grads[self.out] = Some(super::with_slices([grad], |[grad]| {
            let mut memory = self.buffers.take(grad.len());
            memory.copy_from_slice(grad);
            memory
        })?);
        for step in self.steps.iter().rev() {
            let Some(grad) = grads[step.out].take() else { continue };
            let _span = trace_span!("backward", part = step.operation.name()).entered();
            let wanted = |input: &Value| input.is_tracked.then(|| self.buffers.take(input.len()));
            let mut of: Vec<Option<Memory>> = step.inputs.iter().map(wanted).collect();
            with_inputs(step.inputs.iter().map(Arc::as_ref), |inputs| {
                with_inputs(step.output.iter().map(Arc::as_ref), |output| {
                    step.operation.backward(inputs, output.first().copied().unwrap_or_default(), grad, &mut of);
                })
            })??;
            for (input, of) in step.inputs.iter().zip(of) {
                match (&mut grads[input.id], of) {
                    (_, None) => {}
                    (Some(sum), Some(of)) => add_to(sum, &of),
                    (empty, of) => *empty = of,
                }
            }
        }
        let of_leaf = |Leaf { tensor, id, is_variable }: &Leaf| match grads[*id].take() {
            Some(of) => super::tensor(of.into_vec(), tensor).map(Some),
            // Candle requires a gradient of every result that an operation takes.
            None if !is_variable => tensor.zeros_like().map(Some),
            None => Ok(None),
        };
        self.leaves.iter().map(of_leaf).collect()
    }
}

/// Gradients of the leaves, from the backward pass of [`Fused`] to that of the bundles, which Candle runs after it.
type Gradients = Arc<Mutex<Vec<Option<Tensor>>>>;

struct Fused {
    recorded: Recorded,
    gradients: Gradients,
    /// The result until Candle takes it.
    out: Mutex<Option<(Vec<f32>, Shape)>>,
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Candle<(CpuStorage, Shape)> {
        match lock(&self.out).take() {
            Some((values, shape)) => Ok((CpuStorage::F32(values), shape)),
            None => candle_core::bail!("a network runs once"),
        }
    }

    fn bwd(&self, bundle: &Tensor, _: &Tensor, grad: &Tensor) -> Candle<Option<Tensor>> {
        *lock(&self.gradients) = self.recorded.backward(grad)?;
        Ok(Some(bundle.zeros_like()?))
    }
}

/// A scalar that stands for one or two leaves, and for the bundle before.
struct Bundle {
    gradients: Gradients,
    /// Number of the first leaf.
    first: usize,
    /// True if the first input is another bundle.
    follows: bool,
}

impl Bundle {
    fn forward() -> Candle<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    /// The gradient of the input with this number.
    fn of(&self, input: usize, bundle: &Tensor) -> Candle<Option<Tensor>> {
        match input.checked_sub(usize::from(self.follows)) {
            None => Ok(Some(bundle.zeros_like()?)),
            Some(leaf) => Ok(lock(&self.gradients).get_mut(self.first + leaf).and_then(Option::take)),
        }
    }
}

impl CustomOp1 for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Candle<(CpuStorage, Shape)> {
        Self::forward()
    }

    fn bwd(&self, _: &Tensor, bundle: &Tensor, _: &Tensor) -> Candle<Option<Tensor>> {
        self.of(0, bundle)
    }
}

impl CustomOp2 for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Candle<(CpuStorage, Shape)> {
        Self::forward()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, bundle: &Tensor, _: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.of(0, bundle)?, self.of(1, bundle)?))
    }
}

impl CustomOp3 for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        Self::forward()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        bundle: &Tensor,
        _: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((self.of(0, bundle)?, self.of(1, bundle)?, self.of(2, bundle)?))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
