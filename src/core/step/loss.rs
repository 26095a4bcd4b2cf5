//! Cross-entropy of next tokens, over chunks of rows, so that the logits of a large batch never exist at once. The
//! same pass computes the gradients, because they need the same logits.

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax;
use tracing::trace_span;

use crate::kernels::{
    Loop, Matrix, MatrixMut, Start, change, each_of, exp, inference::Machine, is_plain, losses, product, vectorised,
    with_slices,
};

/// Rows whose logits exist at a time on a CPU. A smaller chunk adds to the head's gradient more often.
const CHUNK: usize = 512;

/// The same on other devices, which need more rows to be busy and have the memory.
const DEVICE_CHUNK: usize = 4096;

/// Buffers that are reused from one loss to the next, and the gradient of the head, which accumulates over the parts
/// of a batch. Allocating such buffers takes longer than filling them.
#[derive(Default)]
pub struct Workspace {
    /// (rows of a chunk, vocabulary)
    logits: Vec<f32>,
    /// (width, vocabulary): the transposed gradient of the head, the fastest layout to add to.
    turned: Vec<f32>,
    /// (vocabulary, width)
    of_head: Option<Tensor>,
    parts: usize,
}

impl Workspace {
    /// Starts a new batch.
    pub fn clear(&mut self) {
        self.parts = 0;
    }

    /// Returns the gradient of the head (vocabulary, width) over the parts since [`Self::clear`]. It is valid until
    /// the next call.
    ///
    /// # Errors
    /// Returns an error if nothing was added.
    pub fn of_head(&mut self) -> Result<Tensor> {
        let of_head = self.of_head.as_ref().filter(|_| self.parts > 0).context("no loss was computed")?;
        if !self.turned.is_empty() {
            let (vocab_size, width) = of_head.dims2()?;
            change(of_head, |of_head| turn(&self.turned, of_head, vocab_size, width))?;
        }
        Ok(of_head.clone())
    }
}

/// Transposes (width, rows) to (rows, width), one square at a time.
fn turn(from: &[f32], to: &mut [f32], rows: usize, width: usize) {
    const SIDE: usize = 32;
    /// Squares that a thread transposes at a time.
    const STRIPS: usize = 8;
    let strip = |strip: usize, to: &mut [f32]| {
        for left in (0..width).step_by(SIDE) {
            for (row, to) in to.chunks_mut(width).enumerate() {
                let part = left..(left + SIDE).min(width);
                for (column, to) in part.clone().zip(&mut to[part]) {
                    *to = from[column * rows + strip * SIDE + row];
                }
            }
        }
    };
    each_of(to.chunks_mut(STRIPS * SIDE * width).enumerate(), |(number, to)| {
        to.chunks_mut(SIDE * width).enumerate().for_each(|(place, to)| strip(number * STRIPS + place, to));
    });
}

/// The loss of hidden states.
pub struct HeadLoss {
    /// Sum over the rows, in nats.
    pub sum: f64,
    /// Rows whose largest logit is that of the target.
    pub correct: usize,
    /// Gradient of `weight · sum` with respect to the hidden states (rows, width); `None` if it was not requested.
    /// The gradient of the head is in the workspace.
    pub of_hidden: Option<Tensor>,
}

/// Computes the cross-entropy of `hidden` (rows, width) through `head` (vocabulary, width) with the ids of the
/// `targets`. With a `weight`, which is one over the rows of the whole batch for a mean, it computes the gradients
/// too.
///
/// # Errors
/// Returns an error if the numbers of targets and rows differ, a target is not in the vocabulary, or the device
/// fails.
pub fn cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weight: Option<f64>,
    workspace: &mut Workspace,
) -> Result<HeadLoss> {
    let _span = trace_span!("head, loss").entered();
    let (rows, vocab_size) = (hidden.dim(0)?, head.dim(0)?);
    ensure!(rows == targets.len(), "{rows} rows have {} targets", targets.len());
    if let Some(outside) = targets.iter().find(|target| **target as usize >= vocab_size) {
        anyhow::bail!("token {outside} is not in the vocabulary of {vocab_size}");
    }
    let (hidden, head) = (hidden.detach(), head.detach());
    match (is_plain(&hidden) && is_plain(&head), weight) {
        (true, Some(weight)) => by_kernel(&hidden, &head, targets, weight, workspace),
        (true, None) => without_logits(&hidden, &head, targets),
        (false, _) => composed(&hidden, &head, targets, weight, workspace),
    }
}

/// The loss alone, without logits in memory.
fn without_logits(hidden: &Tensor, head: &Tensor, targets: &[u32]) -> Result<HeadLoss> {
    let ((rows, width), vocab_size) = (hidden.dims2()?, head.dim(0)?);
    let losses = with_slices([hidden, head], |[hidden, head]| {
        let (states, weights) = (Matrix::new(hidden, rows, width, width), Matrix::new(head, vocab_size, width, width));
        losses(Machine::shared(), states, weights, targets)
    })?;
    let sum = losses.iter().map(|loss| loss.nats).sum();
    let correct = losses.iter().filter(|loss| loss.is_top).count();
    Ok(HeadLoss { sum, correct, of_hidden: None })
}

fn by_kernel(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weight: f64,
    workspace: &mut Workspace,
) -> Result<HeadLoss> {
    let machine = Machine::shared();
    let ((rows, width), vocab_size) = (hidden.dims2()?, head.dim(0)?);
    let (mut sum, mut correct) = (0.0, 0);
    let mut of_hidden = vec![0f32; rows * width];
    let Workspace { logits, turned, of_head, parts } = workspace;
    logits.resize(CHUNK.min(rows).max(logits.len() / vocab_size) * vocab_size, 0.0);
    turned.resize(width * vocab_size, 0.0);
    if of_head.as_ref().is_none_or(|of_head| of_head.shape() != head.shape()) {
        *of_head = Some(head.zeros_like()?.detach());
    }
    with_slices([hidden, head], |[hidden, head]| {
        let weights = Matrix::new(head, vocab_size, width, width);
        for (number, targets) in targets.chunks(CHUNK).enumerate() {
            let (start, count) = (number * CHUNK * width, targets.len());
            let states = Matrix::new(&hidden[start..], count, width, width);
            let logits = &mut logits[..count * vocab_size];
            let out = MatrixMut::new(logits, count, vocab_size, vocab_size);
            product(machine, out, Start::Zero, states, weights.transposed());
            let seen = each_of(logits.chunks_mut(vocab_size).zip(targets), |(logits, target)| {
                vectorised(Soften { logits, target: *target as usize, weight: weight as f32 })
            });
            sum += seen.iter().map(|(loss, _)| loss).sum::<f64>();
            correct += seen.iter().map(|(_, hits)| hits).sum::<usize>();
            let slopes = Matrix::new(logits, count, vocab_size, vocab_size);
            let of_hidden = MatrixMut::new(&mut of_hidden[start..start + count * width], count, width, width);
            product(machine, of_hidden, Start::Zero, slopes, weights);
            let start = if *parts == 0 && number == 0 { Start::Zero } else { Start::Out };
            let turned = MatrixMut::new(turned, width, vocab_size, vocab_size);
            product(machine, turned, start, states.transposed(), slopes);
        }
    })?;
    *parts += 1;
    let of_hidden = Some(Tensor::from_vec(of_hidden, (rows, width), hidden.device())?);
    Ok(HeadLoss { sum, correct, of_hidden })
}

/// Returns the loss of a row and whether its largest logit is the target's. Replaces the logits by their gradients.
struct Soften<'a> {
    logits: &'a mut [f32],
    target: usize,
    weight: f32,
}

impl Loop for Soften<'_> {
    type Output = (f64, usize);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { logits, target, weight } = self;
        let mut tops = [f32::NEG_INFINITY; 16];
        let (whole, rest) = logits.as_chunks::<16>();
        for logits in whole {
            for (top, logit) in tops.iter_mut().zip(logits) {
                *top = if *logit > *top { *logit } else { *top };
            }
        }
        let most = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
        let of_target = logits[target];
        let mut lanes = [0f32; 16];
        let (whole, rest) = logits.as_chunks_mut::<16>();
        for logits in whole {
            for (lane, logit) in lanes.iter_mut().zip(logits) {
                *logit = exp(*logit - most);
                *lane += *logit;
            }
        }
        let mut sum: f32 = lanes.iter().sum();
        for logit in rest {
            *logit = exp(*logit - most);
            sum += *logit;
        }
        let scale = weight / sum;
        logits.iter_mut().for_each(|share| *share *= scale);
        logits[target] -= weight;
        (f64::from(sum.ln()) + f64::from(most) - f64::from(of_target), usize::from(of_target == most))
    }
}

fn composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weight: Option<f64>,
    workspace: &mut Workspace,
) -> Result<HeadLoss> {
    let (rows, dtype) = (hidden.dim(0)?, hidden.dtype());
    let narrow = head.to_dtype(dtype)?;
    let size = if hidden.device().is_cpu() { CHUNK } else { DEVICE_CHUNK };
    // Sums and hits of the chunks are read at the end, because each read waits for the device.
    let (mut seen, mut of_hidden) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(size) {
        let count = size.min(rows - start);
        let states = hidden.narrow(0, start, count)?;
        let targets = Tensor::new(&targets[start..start + count], hidden.device())?.unsqueeze(1)?;
        let logits = states.matmul(&narrow.t()?)?.to_dtype(DType::F32)?;
        let most = logits.max_keepdim(1)?;
        let of_target = logits.gather(&targets, 1)?;
        let losses = (logits.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?.log()? + &most - &of_target)?;
        seen.extend([losses.sum_all()?, of_target.eq(&most)?.to_dtype(DType::F32)?.sum_all()?]);
        if let Some(weight) = weight {
            let shares = softmax(&logits, D::Minus1)?;
            let ones = Tensor::ones(targets.shape(), DType::F32, targets.device())?;
            let slopes = (shares.scatter_add(&targets, &ones.neg()?, 1)? * weight)?.to_dtype(dtype)?;
            of_hidden.push(slopes.matmul(&narrow)?);
            let more = slopes.t()?.contiguous()?.matmul(&states)?.to_dtype(head.dtype())?;
            workspace.of_head = Some(match workspace.of_head.take().filter(|_| workspace.parts > 0) {
                Some(sum) => (sum + more)?,
                None => more,
            });
            workspace.parts += 1;
        }
    }
    let of_hidden = weight.map(|_| Tensor::cat(&of_hidden, 0)).transpose()?;
    let seen = Tensor::stack(&seen, 0)?.to_vec1::<f32>()?;
    let sum = seen.iter().step_by(2).map(|sum| f64::from(*sum)).sum();
    let correct = seen.iter().skip(1).step_by(2).map(|hits| *hits as usize).sum();
    Ok(HeadLoss { sum, correct, of_hidden })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use candle_nn::{Init, loss::cross_entropy as of_logits};

    use super::*;
    use crate::model::trainable::Variables;

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).expect("numbers")
    }

    /// Compares both implementations with Candle's loss of all logits at once, with more rows than a chunk.
    #[test]
    fn chunks_are_as_the_whole() {
        let (rows, width, vocab_size) = (2 * CHUNK + 37, 12, 101);
        let weights = Variables::new(3).builder(DType::F32, &Device::Cpu);
        let random = |shape: (usize, usize), name: &str| {
            let numbers = weights.get_with_hints(shape, name, Init::Randn { mean: 0.0, stdev: 1.5 }).expect("numbers");
            Var::from_tensor(&numbers).expect("a variable")
        };
        let (hidden, head) = (random((rows, width), "hidden"), random((vocab_size, width), "head"));
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 31 % vocab_size as u32).collect();
        let ids = Tensor::new(targets.as_slice(), &Device::Cpu).expect("ids");
        let logits = hidden.matmul(&head.t().expect("turned")).expect("logits");
        let expected = of_logits(&logits, &ids).expect("a loss");
        let grads = expected.backward().expect("gradients");
        let hits = logits.argmax(1).and_then(|top| top.to_vec1::<u32>()).expect("ids");
        let hits = hits.iter().zip(&targets).filter(|(top, target)| top == target).count();
        let weight = Some(1.0 / rows as f64);
        let mut workspaces = [Workspace::default(), Workspace::default()];
        let [by_kernel, by_composition] = &mut workspaces;
        let mut compute = || {
            // State of an earlier batch must not change the result.
            by_kernel.clear();
            by_composition.clear();
            [
                cross_entropy(&hidden, &head, &targets, weight, by_kernel).expect("a loss"),
                composed(&hidden, &head, &targets, weight, by_composition).expect("a loss"),
            ]
        };
        compute();
        let found = compute();
        for (found, workspace) in found.into_iter().zip(&mut workspaces) {
            assert!((found.sum / rows as f64 - numbers(&expected)[0]).abs() < 1e-5);
            assert_eq!(found.correct, hits);
            let (of_hidden, of_head) = (found.of_hidden.expect("a gradient"), workspace.of_head().expect("a gradient"));
            for (found, variable) in [(of_hidden, &hidden), (of_head, &head)] {
                let expected = numbers(grads.get(variable).expect("a gradient"));
                for (a, b) in numbers(&found).iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-7, "{a} for {b}");
                }
            }
        }
        let mut unused = Workspace::default();
        let without = cross_entropy(&hidden, &head, &targets, None, &mut unused).expect("a loss");
        assert!((without.sum / rows as f64 - numbers(&expected)[0]).abs() < 1e-5 && without.of_hidden.is_none());
        assert!(unused.of_head().is_err());
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_refused() {
        let zeros = |rows| Tensor::zeros((rows, 2), DType::F32, &Device::Cpu).expect("zeros");
        let error = cross_entropy(&zeros(2), &zeros(5), &[1, 5], None, &mut Workspace::default())
            .err()
            .expect("an error")
            .to_string();
        assert!(error.contains("token 5 is not in the vocabulary of 5"), "{error}");
    }

    #[test]
    fn a_loss_that_is_no_number_says_so() {
        let hidden = Tensor::new(&[[f32::NAN, 1.0]], &Device::Cpu).expect("a tensor");
        let head = Tensor::ones((40, 2), DType::F32, &Device::Cpu).expect("a tensor");
        assert!(!cross_entropy(&hidden, &head, &[3], None, &mut Workspace::default()).expect("a loss").sum.is_finite());
    }
}
