//! AdamW (Loshchilov and Hutter 2019) with warm-up and clipping by the global norm. In f32 on a CPU, one pass updates
//! weights and moments in place; Candle's own needs about ten passes and as many copies. Elsewhere, it is composed of
//! Candle's operations and groups small variables, because about twenty launches per variable took two fifths of a
//! small model's step.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use tracing::trace_span;

use crate::kernels::{Loop, change_all, each_of, is_plain, vectorised, with_all_slices};

/// Elements that a thread processes at a time.
const CHUNK: usize = 16 * 1024;

/// Maximum number of elements that are updated together, unless one variable has more. Their copies add to the memory
/// of a step.
const BUCKET: usize = 4 << 20;

/// Options of AdamW, of its schedule and of clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Decay rate of the moving average of the gradients.
    pub beta1: f64,
    /// Decay rate of the moving average of their squares.
    pub beta2: f64,
    /// Added to the root of the average of the squares.
    pub eps: f64,
    /// Decoupled weight decay per step, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Steps of the linear warm-up of the learning rate.
    pub warmup_steps: usize,
    /// The step at which the cosine schedule reaches 0; `None` keeps the rate constant.
    #[serde(default)]
    pub decay_steps: Option<usize>,
    /// Gradients with a larger norm are scaled down to this norm.
    pub clip_norm: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
            warmup_steps: 200,
            decay_steps: None,
            clip_norm: 1.0,
        }
    }
}

impl Options {
    /// Returns the learning rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        let number = step + 1;
        if number <= self.warmup_steps {
            return self.learning_rate * number as f64 / self.warmup_steps as f64;
        }
        let Some(end) = self.decay_steps.filter(|end| *end > self.warmup_steps) else { return self.learning_rate };
        let gone = (number - self.warmup_steps) as f64 / (end - self.warmup_steps) as f64;
        self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * gone.min(1.0)).cos())
    }
}

/// Variables with their moments.
pub(crate) struct AdamW {
    /// The options.
    pub options: Options,
    variables: Vec<Var>,
    buckets: Vec<Bucket>,
    steps: usize,
}

/// Variables that are updated together.
struct Bucket {
    variables: Range<usize>,
    /// (2, elements): moving averages of their gradients and of the squares. f32.
    moments: Tensor,
}

/// Statistics of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Update {
    /// Norm of all gradients, before clipping.
    pub gradient_norm: f64,
    /// Norm of the update over the norm of the weights.
    pub update_ratio: f64,
}

impl AdamW {
    /// # Errors
    /// Returns an error if memory for the moments is insufficient.
    pub(crate) fn new(variables: Vec<Var>, options: Options) -> Result<Self> {
        let mut parts: Vec<(Range<usize>, usize)> = Vec::new();
        for (number, variable) in variables.iter().enumerate() {
            let count = variable.elem_count();
            let alone = is_plain(variable) || number == 0 || is_plain(&variables[number - 1]);
            match parts.last_mut().filter(|(_, before)| !alone && before + count <= BUCKET) {
                Some((part, before)) => (part.end, *before) = (number + 1, *before + count),
                None => parts.push((number..number + 1, count)),
            }
        }
        let bucket = |(part, count): (Range<usize>, usize)| {
            let moments = Tensor::zeros((2, count), DType::F32, variables[part.start].device())?;
            Ok(Bucket { variables: part, moments })
        };
        let buckets = parts.into_iter().map(bucket).collect::<Result<_>>()?;
        Ok(Self { options, variables, buckets, steps: 0 })
    }

    /// Number of completed steps.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Returns (2, elements) of each variable, in their order, for saving.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub(crate) fn moments(&self) -> Result<Vec<Tensor>> {
        let mut moments = Vec::new();
        for bucket in &self.buckets {
            let mut first = 0;
            for variable in &self.variables[bucket.variables.clone()] {
                let count = variable.elem_count();
                moments.push(bucket.moments.narrow(1, first, count)?.contiguous()?);
                first += count;
            }
        }
        Ok(moments)
    }

    /// Restores the result of [`Self::moments`] after the given number of steps.
    ///
    /// # Errors
    /// Returns an error if the moments belong to other variables.
    pub(crate) fn resume(&mut self, moments: &[Tensor], steps: usize) -> Result<()> {
        let same = moments.len() == self.variables.len()
            && moments
                .iter()
                .zip(&self.variables)
                .all(|(moments, variable)| moments.dims() == [2, variable.elem_count()]);
        ensure!(same, "the optimizer's moments belong to another model");
        for bucket in &mut self.buckets {
            bucket.moments = Tensor::cat(&moments[bucket.variables.clone()], 1)?;
        }
        self.steps = steps;
        Ok(())
    }

    /// Runs one step; `gradients` are in the order of the variables.
    ///
    /// # Errors
    /// Returns an error if the device fails. If a gradient is not finite, the norm is not finite and nothing is
    /// updated; this is not an error.
    pub(crate) fn step(&mut self, gradients: &[Tensor]) -> Result<Update> {
        ensure!(gradients.len() == self.variables.len(), "a gradient is missing");
        let _optimizer = trace_span!("optimizer").entered();
        let mut squares = Squares::default();
        let (plain, others): (Vec<&Tensor>, Vec<&Tensor>) = gradients.iter().partition(|gradient| is_plain(gradient));
        squares.known += squared(&plain)?;
        if !others.is_empty() {
            squares.add(&flat(others)?)?;
        }
        let gradient_norm = squares.sum()?.sqrt();
        if !gradient_norm.is_finite() {
            return Ok(Update { gradient_norm, update_ratio: f64::NAN });
        }
        // As in PyTorch, the clipped norm is slightly below the requested norm.
        let clip = (self.options.clip_norm / (gradient_norm + 1e-6)).min(1.0);
        let (mut changes, mut weights) = (Squares::default(), Squares::default());
        let scales = Scales::new(&self.options, self.steps, clip);
        let mut plain = Vec::new();
        for Bucket { variables, moments } in &mut self.buckets {
            match (&self.variables[variables.clone()], &gradients[variables.clone()]) {
                ([variable], [gradient]) if is_plain(variable) && is_plain(gradient) => {
                    plain.push((variable.as_tensor(), &*moments, gradient));
                }
                (variables, gradients) => {
                    scales.composed(variables, moments, gradients, &mut changes, &mut weights)?;
                }
            }
        }
        let (change, weight) = scales.in_place(&plain)?;
        changes.known += change;
        weights.known += weight;
        self.steps += 1;
        Ok(Update { gradient_norm, update_ratio: (changes.sum()? / weights.sum()?).sqrt() })
    }
}

/// All elements of some tensors, one after another, in f32.
fn flat<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    let part = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F32);
    let parts = tensors.into_iter().map(part).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(match parts.as_slice() {
        [one] => one.clone(),
        parts => Tensor::cat(parts, 0)?,
    })
}

/// The sum of the squares of some tensors. Sums on a device are read at the end, because each read waits for the
/// device.
#[derive(Default)]
struct Squares {
    known: f64,
    /// Scalars, f32.
    on_device: Vec<Tensor>,
}

impl Squares {
    fn add(&mut self, x: &Tensor) -> Result<()> {
        match is_plain(x) {
            true => self.known += squared(&[x])?,
            false => self.on_device.push(x.to_dtype(DType::F32)?.sqr()?.sum_all()?),
        }
        Ok(())
    }

    fn sum(self) -> Result<f64> {
        if self.on_device.is_empty() {
            return Ok(self.known);
        }
        let fetched = Tensor::stack(&self.on_device, 0)?.to_vec1::<f32>()?;
        Ok(self.known + fetched.into_iter().map(f64::from).sum::<f64>())
    }
}

/// The sum of the squares of some tensors, f32 on a CPU.
fn squared(tensors: &[&Tensor]) -> Result<f64> {
    /// Numbers that are summed in f32.
    const SUM: usize = 4096;
    struct Part<'a>(&'a [f32]);
    impl Loop for Part<'_> {
        type Output = f64;
        #[inline(always)]
        fn run(self) -> f64 {
            let mut sum = 0.0;
            for part in self.0.chunks(SUM) {
                let mut lanes = [0f32; 16];
                let (whole, rest) = part.as_chunks::<16>();
                for numbers in whole {
                    lanes.iter_mut().zip(numbers).for_each(|(lane, x)| *lane += x * x);
                }
                sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
                sum += rest.iter().map(|x| f64::from(x * x)).sum::<f64>();
            }
            sum
        }
    }
    // Added in order, so that the same gradients give the same norm.
    let sums = with_all_slices(tensors.iter().copied(), |slices| {
        each_of(slices.iter().flat_map(|slice| slice.chunks(CHUNK)), |part| vectorised(Part(part)))
    })?;
    Ok(sums.iter().sum())
}

/// The factors of one step.
struct Scales {
    rate: f32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    clip: f32,
    /// Reciprocals of the bias corrections of the moments.
    unbias1: f32,
    unbias2: f32,
}

impl Scales {
    fn new(options: &Options, step: usize, clip: f64) -> Self {
        let rate = options.rate(step);
        let unbias = |beta: f64| (1.0 / (1.0 - beta.powf((step + 1) as f64))) as f32;
        Self {
            rate: rate as f32,
            decay: (rate * options.weight_decay) as f32,
            beta1: options.beta1 as f32,
            beta2: options.beta2 as f32,
            eps: options.eps as f32,
            clip: clip as f32,
            unbias1: unbias(options.beta1),
            unbias2: unbias(options.beta2),
        }
    }

    /// Updates variables with their moments and gradients, all in one pass. Returns the squared norms of the update and of the
    /// weights before it.
    fn in_place(&self, plain: &[(&Tensor, &Tensor, &Tensor)]) -> Result<(f64, f64)> {
        let changed: Vec<&Tensor> = plain.iter().flat_map(|(variable, moments, _)| [*variable, *moments]).collect();
        let of_chunks = with_all_slices(plain.iter().map(|(.., gradient)| *gradient), |gradients| {
            change_all(&changed, |mut changed| {
                let mut chunks = Vec::new();
                for (pair, gradient) in changed.chunks_exact_mut(2).zip(gradients) {
                    let [weights, moments] = pair else { continue };
                    let (means, squares) = moments.split_at_mut(gradient.len());
                    let parts = weights.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
                    let parts = parts.zip(means.chunks_mut(CHUNK)).zip(squares.chunks_mut(CHUNK));
                    chunks.extend(parts.map(|(((weights, gradient), means), squares)| Chunk {
                        scales: self,
                        weights,
                        gradient,
                        means,
                        squares,
                    }));
                }
                each_of(chunks, vectorised)
            })
        })??;
        // Added in order, so that the same step gives the same sums.
        Ok(of_chunks.iter().fold((0.0, 0.0), |sum, more| (sum.0 + more.0, sum.1 + more.1)))
    }

    fn composed(
        &self,
        variables: &[Var],
        moments: &mut Tensor,
        gradients: &[Tensor],
        changes: &mut Squares,
        squares: &mut Squares,
    ) -> Result<()> {
        let (gradient, weights) = (flat(gradients)?, flat(variables.iter().map(Var::as_tensor))?);
        let number = f64::from;
        let gradient = (gradient * number(self.clip))?;
        let mean = ((moments.get(0)? * number(self.beta1))? + (&gradient * (1.0 - number(self.beta1)))?)?;
        let square = ((moments.get(1)? * number(self.beta2))? + (gradient.sqr()? * (1.0 - number(self.beta2)))?)?;
        let root = ((&square * number(self.unbias2))?.sqrt()? + number(self.eps))?;
        let change = ((&mean * number(-self.unbias1 * self.rate))? / root)?;
        let change = (change - (&weights * number(self.decay))?)?;
        *moments = Tensor::stack(&[mean, square], 0)?;
        changes.add(&change)?;
        squares.add(&weights)?;
        let (weights, mut first) = ((weights + change)?, 0);
        for variable in variables {
            let count = variable.elem_count();
            variable.set(&weights.narrow(0, first, count)?.reshape(variable.shape())?.to_dtype(variable.dtype())?)?;
            first += count;
        }
        Ok(())
    }
}

/// Updates a part of a variable in one pass. Returns the squared norms of the update and of the weights before it.
struct Chunk<'a> {
    scales: &'a Scales,
    weights: &'a mut [f32],
    gradient: &'a [f32],
    means: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Loop for Chunk<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { scales, weights, gradient, means, squares } = self;
        let Scales { rate, decay, beta1, beta2, eps, clip, unbias1, unbias2 } = *scales;
        let (mut changes, mut before) = ([0f32; 16], [0f32; 16]);
        let parts =
            weights.chunks_mut(16).zip(gradient.chunks(16)).zip(means.chunks_mut(16)).zip(squares.chunks_mut(16));
        for (((weights, gradient), means), squares) in parts {
            let numbers = weights.iter_mut().zip(gradient).zip(means).zip(squares);
            for (i, (((weight, gradient), mean), square)) in numbers.enumerate() {
                let gradient = clip * gradient;
                *mean = beta1 * *mean + (1.0 - beta1) * gradient;
                *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
                let change = -rate * unbias1 * *mean / ((unbias2 * *square).sqrt() + eps) - decay * *weight;
                changes[i] += change * change;
                before[i] += *weight * *weight;
                *weight += change;
            }
        }
        (f64::from(changes.iter().sum::<f32>()), f64::from(before.iter().sum::<f32>()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_nn::{Optimizer, ParamsAdamW};

    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).expect("numbers")
    }

    /// Compares both implementations with Candle's AdamW; the composition runs in f64.
    #[test]
    fn steps_are_as_candles() {
        let start: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.7).sin()).collect();
        let variable = |dtype| {
            let tensor = Tensor::new(start.as_slice(), &Device::Cpu).and_then(|t| t.reshape((17, 59))?.to_dtype(dtype));
            Var::from_tensor(&tensor.expect("a tensor")).expect("a variable")
        };
        let options = Options { learning_rate: 1e-2, warmup_steps: 0, clip_norm: 1e9, ..Options::default() };
        let reference = variable(DType::F64);
        let parameters = ParamsAdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01 };
        let mut expected = candle_nn::AdamW::new(vec![reference.clone()], parameters).expect("an optimizer");
        let ours = [variable(DType::F32), variable(DType::F64)];
        let mut found = ours.clone().map(|variable| AdamW::new(vec![variable], options).expect("an optimizer"));
        let mut before = start.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        for step in 0..5 {
            let loss = |variable: &Var| {
                (variable.as_tensor() + f64::from(step)).and_then(|x| x.sqr()?.sum_all()).expect("a loss")
            };
            expected.backward_step(&loss(&reference)).expect("a step");
            let after = numbers(&reference);
            let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
            let ratio = norm(&mut after.iter().zip(&before).map(|(a, b)| a - b)) / norm(&mut before.iter().copied());
            for (variable, optimizer) in ours.iter().zip(&mut found) {
                let grads = loss(variable).backward().expect("gradients");
                let gradient = grads.get(variable).expect("a gradient").clone();
                let update = optimizer.step(std::slice::from_ref(&gradient)).expect("a step");
                let of_gradient = norm(&mut numbers(&gradient).into_iter());
                assert!((update.gradient_norm / of_gradient - 1.0).abs() < 1e-6);
                assert!((update.update_ratio / ratio - 1.0).abs() < 1e-4, "{} for {ratio}", update.update_ratio);
                for (a, b) in numbers(variable).iter().zip(&after) {
                    assert!((a - b).abs() < 2e-6, "step {step}: {a} for {b}");
                }
            }
            before = after;
        }
    }

    #[test]
    fn small_variables_are_stepped_together_as_each_alone() {
        let sizes = [3, 5, BUCKET - 9, 2, 7];
        let make = || {
            let variable = |size: &usize| {
                let numbers =
                    Tensor::arange(0f32, *size as f32, &Device::Cpu).and_then(|x| x.sin()?.to_dtype(DType::F64));
                Var::from_tensor(&numbers.expect("numbers")).expect("a variable")
            };
            sizes.iter().map(variable).collect::<Vec<_>>()
        };
        let options = Options { warmup_steps: 0, clip_norm: 1e9, ..Options::default() };
        let (together, alone) = (make(), make());
        let mut both = AdamW::new(together.clone(), options).expect("an optimizer");
        assert_eq!(both.buckets.iter().map(|bucket| bucket.variables.clone()).collect::<Vec<_>>(), [0..3, 3..5]);
        let gradients: Vec<_> = alone.iter().map(|x| x.as_tensor().cos().expect("a gradient")).collect();
        for _ in 0..2 {
            both.step(&gradients).expect("a step");
            // The saved state of one optimizer continues in another.
            let moments = both.moments().expect("moments");
            let steps = both.steps();
            both = AdamW::new(together.clone(), options).expect("an optimizer");
            both.resume(&moments, steps).expect("resumed");
        }
        for ((variable, gradient), together) in alone.into_iter().zip(gradients).zip(together) {
            let mut optimizer = AdamW::new(vec![variable.clone()], options).expect("an optimizer");
            for _ in 0..2 {
                optimizer.step(std::slice::from_ref(&gradient)).expect("a step");
            }
            assert_eq!(numbers(&variable), numbers(&together));
        }
    }

    #[test]
    fn the_rate_warms_up_and_falls() {
        let options = Options { learning_rate: 1.0, warmup_steps: 4, decay_steps: Some(12), ..Options::default() };
        let rates: Vec<f64> = (0..14).map(|step| options.rate(step)).collect();
        assert_eq!(rates[..4], [0.25, 0.5, 0.75, 1.0]);
        assert!(
            rates[3..].windows(2).all(|pair| pair[1] <= pair[0]) && rates[11].abs() < 1e-9 && rates[13].abs() < 1e-9
        );
        assert!((rates[7] - 0.5).abs() < 1e-9);
        assert_eq!(Options { decay_steps: None, ..options }.rate(99), 1.0);
    }

    #[test]
    fn large_gradients_are_clipped_and_missing_ones_change_nothing() {
        let variable = Var::zeros(4, DType::F32, &Device::Cpu).expect("a variable");
        let options = Options { warmup_steps: 0, weight_decay: 0.0, ..Options::default() };
        let mut optimizer = AdamW::new(vec![variable.clone()], options).expect("an optimizer");
        let gradient = Tensor::new(&[30f32, 40.0, 0.0, 0.0], &Device::Cpu).expect("a gradient");
        assert_eq!(optimizer.step(std::slice::from_ref(&gradient)).expect("a step").gradient_norm, 50.0);
        let moments = numbers(&optimizer.moments().expect("moments")[0]);
        assert!((moments[0] - 0.06).abs() < 1e-6 && (moments[1] - 0.08).abs() < 1e-6, "{moments:?}");
        let weights = numbers(&variable);
        let update = optimizer.step(&[(gradient * f64::NAN).expect("a gradient")]).expect("a step");
        assert!(update.gradient_norm.is_nan());
        assert_eq!((numbers(&variable), optimizer.steps()), (weights, 1));
    }
}
