//! Attention in one operation that stores neither scores nor probabilities. Each head of each sequence is one task, which
//! works in blocks of queries. The backward pass recomputes the probabilities. Causal scores of later keys are not computed.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax as composed_softmax;

use super::{
    Mask, Matrix, MatrixMut, Start, dot,
    elementary::{compiled, exp},
    inference::{Machine, element::Element, pool::Parts},
    product,
    tape::{Memory, Operation},
};

/// Queries per block.
const BLOCK: usize = 128;

/// Base of the RoPE frequencies.
const ROPE_BASE: f32 = 10_000.0;

/// How attention encodes positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// RoPE: rotates queries and keys by their position, in pairs (2i, 2i+1) of a head's elements.
    Rope,
    /// As [`Self::Rope`], but the angles of the elements are laid out in halves, `cat(f, f)`. The two numbers of a pair are
    /// therefore turned by different angles, and the result is not a pure rotation.
    Halves,
    /// ALiBi: scores decrease with the distance, at a rate per head (Press, Smith and Lewis 2022).
    Alibi,
    /// No encoding of positions.
    None,
}

/// Multi-head attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Encoding of positions.
    pub positions: Positions,
    /// True if a step sees no later one.
    pub is_causal: bool,
    /// Dropout of the probabilities.
    pub mask: Mask,
}

impl Attention {
    /// Maps queries (batch, time, width), and keys and values (batch, other time, width), to (batch, time, width), in Candle's
    /// operations.
    ///
    /// # Errors
    /// Returns an error if the number of heads does not divide the width, or the device fails.
    pub(super) fn composed(self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = query.dims3()?;
        let split = |x: &Tensor| -> Result<Tensor> {
            Ok(x.reshape((batch, (), self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()?)
        };
        let (query, key, value) = (self.turned(&split(query)?)?, self.turned(&split(key)?)?, split(value)?);
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let mut scores = (query * scale)?.matmul(&key.transpose(2, 3)?.contiguous()?)?;
        if self.is_causal || self.positions == Positions::Alibi {
            scores = scores.to_dtype(DType::F32)?;
            scores = scores.broadcast_add(&self.bias(time, scores.device())?)?;
        }
        let shares = self.mask.composed(&composed_softmax(&scores, D::Minus1)?)?.to_dtype(value.dtype())?;
        Ok(shares.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((batch, time, width))?)
    }

    /// (heads, time, time): the bias of the scores, -∞ for keys that are not seen.
    fn bias(self, time: usize, device: &Device) -> Result<Tensor> {
        let mut bias = Vec::with_capacity(self.heads * time * time);
        for head in 0..self.heads {
            let slope = self.slope(head);
            for query in 0..time {
                bias.extend((0..time).map(|key| match key > query && self.is_causal {
                    true => f32::NEG_INFINITY,
                    false => -slope * query.abs_diff(key) as f32,
                }));
            }
        }
        Ok(Tensor::from_vec(bias, (1, self.heads, time, time), device)?)
    }

    /// Slope of the ALiBi bias of each head: a geometric sequence for a power of two of heads. For other numbers, the
    /// sequence of the power below, then every other element of that of the power above.
    fn slope(self, head: usize) -> f32 {
        if self.positions != Positions::Alibi {
            return 0.0;
        }
        let below = 1usize << self.heads.ilog2();
        let power = match head < below {
            true => (head + 1) as f32 * 8.0 / below as f32,
            false => (2 * (head - below) + 1) as f32 * 4.0 / below as f32,
        };
        (-power).exp2()
    }

    /// (batch, heads, time, size), turned by position.
    fn turned(self, x: &Tensor) -> Result<Tensor> {
        let (batch, heads, time, size) = x.dims4()?;
        let turns = self.positions.turns(time, size);
        if turns.is_empty() {
            return Ok(x.clone());
        }
        let table = |places: [usize; 2]| -> Result<Tensor> {
            let values = turns.iter().flat_map(|turn| places.map(|place| turn[place])).collect();
            Ok(Tensor::from_vec(values, (1, 1, time, size / 2, 2), x.device())?.to_dtype(x.dtype())?)
        };
        let (cos, sin) = (table([0, 2])?, table([1, 3])?);
        let pairs = x.reshape((batch, heads, time, size / 2, 2))?;
        let crossed = Tensor::cat(&[pairs.narrow(4, 1, 1)?.neg()?, pairs.narrow(4, 0, 1)?], 4)?;
        Ok((pairs.broadcast_mul(&cos)? + crossed.broadcast_mul(&sin)?)?.reshape(x.shape())?)
    }
}

/// Cosine and sine of the angle of the first number of a pair, then of the second.
type Turn = [f32; 4];

/// An encoding, and the numbers of steps and of elements that it turns.
type Places = (Positions, usize, usize);

impl Positions {
    /// The turns of (time, half of a head); empty if nothing is turned.
    fn turns(self, time: usize, size: usize) -> Arc<Vec<Turn>> {
        /// Those of the last call: successive layers turn by the same angles.
        static LAST: Mutex<Option<(Places, Arc<Vec<Turn>>)>> = Mutex::new(None);
        if !matches!(self, Self::Rope | Self::Halves) {
            return Arc::default();
        }
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, turns)) if *known == (self, time, size) => turns.clone(),
            _ => {
                let turns: Vec<Turn> = (0..time * (size / 2)).map(|place| self.turn(place, size / 2)).collect();
                let turns = Arc::new(turns);
                *last = Some(((self, time, size), turns.clone()));
                turns
            }
        }
    }

    /// The turn of a pair, counted from the first step's first.
    fn turn(self, place: usize, half: usize) -> Turn {
        let (step, pair) = (place / half, place % half);
        match self {
            Self::Halves => {
                let angle = |number: usize| {
                    let rate = f64::from(ROPE_BASE).powf(-((number % half) as f64) / half as f64);
                    (step as f64 * rate) as f32
                };
                let (first, second) = (angle(2 * pair), angle(2 * pair + 1));
                [first.cos(), first.sin(), second.cos(), second.sin()]
            }
            _ => {
                let angle = step as f32 * (1.0 / ROPE_BASE.powf(pair as f32 / half as f32));
                [angle.cos(), angle.sin(), angle.cos(), angle.sin()]
            }
        }
    }
}

/// Where queries, keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// In one input, (batch, time, 3 · width).
    Joined,
    /// In three inputs.
    Separate,
}

/// Attention as an operation.
pub(super) struct Attend {
    attention: Attention,
    sources: Sources,
    batch: usize,
    /// Number of queries of a sequence.
    time: usize,
    /// Number of keys of a sequence.
    over: usize,
    width: usize,
    /// Width of a head.
    size: usize,
    turns: Arc<Vec<Turn>>,
}

/// Rows of one head of one sequence in an input.
#[derive(Clone, Copy)]
struct View {
    input: usize,
    start: usize,
    stride: usize,
}

impl Attend {
    /// Attention of `time` queries over `over` keys, whose width is `width`.
    ///
    /// # Errors
    /// Returns an error if the number of heads does not divide the width, or lengths differ where they must be equal.
    pub fn new(
        attention: Attention,
        sources: Sources,
        (batch, time, over, width): (usize, usize, usize, usize),
    ) -> Result<Self> {
        let heads = attention.heads;
        anyhow::ensure!(heads > 0 && width.is_multiple_of(heads), "{heads} heads do not divide {width}");
        let size = width / heads;
        let turns = attention.positions.turns(time, size);
        let is_plain = attention.positions == Positions::None && !attention.is_causal;
        anyhow::ensure!(time == over || is_plain, "{time} queries can't attend to {over} keys by position");
        Ok(Self { attention, sources, batch, time, over, width, size, turns })
    }

    fn tasks(&self) -> usize {
        self.batch * self.attention.heads
    }

    /// The rows of queries (0), keys (1) or values (2) of a task.
    fn view(&self, which: usize, task: usize) -> View {
        let (sequence, head) = (task / self.attention.heads, task % self.attention.heads);
        let steps = if which == 0 { self.time } else { self.over };
        let (input, stride, offset) = match self.sources {
            Sources::Joined => (0, 3 * self.width, which * self.width),
            Sources::Separate => (which, self.width, 0),
        };
        View { input, start: sequence * steps * stride + offset + head * self.size, stride }
    }

    /// Fills `part` with the rows of a view, turned by position and scaled.
    fn turn(&self, inputs: &[&[f32]], view: View, scale: f32, part: &mut [f32]) {
        let View { input, start, stride } = view;
        for (row, part) in part.chunks_exact_mut(self.size).enumerate() {
            let from = &inputs[input][start + row * stride..][..self.size];
            part.iter_mut().zip(from).for_each(|(part, x)| *part = scale * x);
        }
        for (pair, [cos, sin, cos_2, sin_2]) in part.as_chunks_mut::<2>().0.iter_mut().zip(&*self.turns) {
            *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos_2 + pair[0] * sin_2];
        }
    }

    /// Turns gradients back, and scales them.
    fn turn_back(&self, part: &mut [f32], scale: f32) {
        for (pair, [cos, sin, cos_2, sin_2]) in part.as_chunks_mut::<2>().0.iter_mut().zip(&*self.turns) {
            *pair = [pair[0] * cos + pair[1] * sin_2, pair[1] * cos_2 - pair[0] * sin];
        }
        part.iter_mut().for_each(|x| *x *= scale);
    }

    /// Copies gradients to the rows of a view.
    fn place(&self, part: &[f32], view: View, out: &[Option<Parts<f32>>]) {
        let Some(out) = &out[view.input] else { return };
        for (row, part) in part.chunks_exact(self.size).enumerate() {
            let start = view.start + row * view.stride;
            // SAFETY: the views of tasks, and those of queries, keys and values, do not overlap.
            unsafe { out.get(start..start + self.size) }.copy_from_slice(part);
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    /// Starts and ends of the blocks of queries, and the number of keys that they see.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (time, over, is_causal) = (self.time, self.over, self.attention.is_causal);
        (0..time).step_by(BLOCK).map(move |start| {
            let end = (start + BLOCK).min(time);
            (start, end, if is_causal { end } else { over })
        })
    }

    /// Computes the probabilities of queries, of which the first is `start`, over `keys` keys.
    fn shares(&self, task: usize, start: usize, query: &[f32], key: &[f32], keys: usize, shares: &mut [f32]) {
        let (size, rows) = (self.size, query.len() / self.size);
        let queries = Matrix::new(query, rows, size, size);
        let transposed = Matrix::new(key, keys, size, size).transposed();
        product(Machine::shared(), MatrixMut::new(shares, rows, keys, keys), Start::Zero, queries, transposed);
        let first = if self.attention.is_causal { start + 1 } else { keys };
        soften(shares, keys, first, self.attention.slope(task % self.attention.heads));
    }

    /// Place of the first probability of a query.
    fn place_of(&self, task: usize, query: usize) -> usize {
        (task * self.time + query) * self.over
    }

    fn forward_task(&self, task: usize, inputs: &[&[f32]], out: &Parts<f32>) {
        let (size, most) = (self.size, BLOCK.min(self.time));
        let (time, over) = (self.time, self.over);
        f32::scratch((time + over + most) * size + most * over, |memory| {
            let (query, memory) = memory.split_at_mut(time * size);
            let (key, memory) = memory.split_at_mut(over * size);
            let (mixed, shares) = memory.split_at_mut(most * size);
            self.turn(inputs, self.view(0, task), self.scale(), query);
            self.turn(inputs, self.view(1, task), 1.0, key);
            let value = self.view(2, task);
            let values = Matrix::new(&inputs[value.input][value.start..], over, size, value.stride);
            let own = self.out_view(task);
            for (start, end, keys) in self.blocks() {
                let rows = end - start;
                let shares = &mut shares[..rows * keys];
                self.shares(task, start, &query[start * size..end * size], key, keys, shares);
                if !self.attention.mask.is_none() {
                    mask_rows(shares, keys, self.attention.mask, self.place_of(task, start), over);
                }
                let mixed = &mut mixed[..rows * size];
                let shares = Matrix::new(shares, rows, keys, keys);
                let result = MatrixMut::new(mixed, rows, size, size);
                product(Machine::shared(), result, Start::Zero, shares, values.first(keys));
                for (row, mixed) in (start..end).zip(mixed.chunks_exact(size)) {
                    let at = own.start + row * own.stride;
                    // SAFETY: the rows of the heads of the sequences do not overlap.
                    unsafe { out.get(at..at + size) }.copy_from_slice(mixed);
                }
            }
        });
    }

    /// The rows of a task in the output.
    fn out_view(&self, task: usize) -> View {
        let (sequence, head) = (task / self.attention.heads, task % self.attention.heads);
        View { input: 0, start: sequence * self.time * self.width + head * self.size, stride: self.width }
    }

    fn backward_task(&self, task: usize, inputs: &[&[f32]], out: &[f32], grad: &[f32], of: &[Option<Parts<f32>>]) {
        let (machine, size, most) = (Machine::shared(), self.size, BLOCK.min(self.time));
        let (time, over, mask) = (self.time, self.over, self.attention.mask);
        f32::scratch(2 * time * size + 3 * over * size + 3 * most * over, |memory| {
            let (query, memory) = memory.split_at_mut(time * size);
            let (of_query, memory) = memory.split_at_mut(time * size);
            let (key, memory) = memory.split_at_mut(over * size);
            let (of_key, memory) = memory.split_at_mut(over * size);
            let (of_value, memory) = memory.split_at_mut(over * size);
            let (shares, memory) = memory.split_at_mut(most * over);
            let (of_scores, kept) = memory.split_at_mut(most * over);
            self.turn(inputs, self.view(0, task), self.scale(), query);
            self.turn(inputs, self.view(1, task), 1.0, key);
            let value = self.view(2, task);
            let values = Matrix::new(&inputs[value.input][value.start..], over, size, value.stride);
            let own = self.out_view(task);
            of_key.fill(0.0);
            of_value.fill(0.0);
            for (start, end, keys) in self.blocks() {
                let rows = end - start;
                let (shares, of_scores) = (&mut shares[..rows * keys], &mut of_scores[..rows * keys]);
                let queries = &query[start * size..end * size];
                self.shares(task, start, queries, key, keys, shares);
                let begin = own.start + start * own.stride;
                let grads = Matrix::new(&grad[begin..], rows, size, own.stride);
                let given: &[f32] = match mask.is_none() {
                    true => shares,
                    false => {
                        let kept = &mut kept[..rows * keys];
                        kept.copy_from_slice(shares);
                        mask_rows(kept, keys, mask, self.place_of(task, start), over);
                        kept
                    }
                };
                let of_values = MatrixMut::new(&mut of_value[..keys * size], keys, size, size);
                product(machine, of_values, Start::Out, Matrix::new(given, rows, keys, keys).transposed(), grads);
                let of_shares = MatrixMut::new(of_scores, rows, keys, keys);
                product(machine, of_shares, Start::Zero, grads, values.first(keys).transposed());
                for row in 0..rows {
                    let at = begin + row * own.stride;
                    // The mean of the gradients under the probabilities equals the product of the output with its
                    // gradient.
                    let mean = dot(&out[at..at + size], &grad[at..at + size]);
                    let place = self.place_of(task, start + row);
                    let row = row * keys..(row + 1) * keys;
                    of_scores_of(&shares[row.clone()], mean, mask, place, &mut of_scores[row]);
                }
                let of_scores = Matrix::new(of_scores, rows, keys, keys);
                let seen = Matrix::new(key, keys, size, size);
                let of_queries = MatrixMut::new(&mut of_query[start * size..end * size], rows, size, size);
                product(machine, of_queries, Start::Zero, of_scores, seen);
                let of_keys = MatrixMut::new(&mut of_key[..keys * size], keys, size, size);
                let queries = Matrix::new(queries, rows, size, size);
                product(machine, of_keys, Start::Out, of_scores.transposed(), queries);
            }
            self.turn_back(of_query, self.scale());
            self.turn_back(of_key, 1.0);
            for (which, part) in [of_query, of_key, of_value].into_iter().enumerate() {
                self.place(part, self.view(which, task), of);
            }
        });
    }
}

compiled! {
    /// Softmax of rows of scores: the first row sees `first` keys and each later one another key, up to all.
    fn soften(scores: &mut [f32], keys: usize, first: usize, slope: f32) {
        for (place, row) in scores.chunks_exact_mut(keys).enumerate() {
            let (seen, later) = row.split_at_mut(keys.min(first + place));
            if slope != 0.0 {
                let last = seen.len() - 1;
                seen.iter_mut().enumerate().for_each(|(key, score)| *score -= slope * (last - key) as f32);
            }
            let mut tops = [f32::NEG_INFINITY; 16];
            for scores in seen.chunks(16) {
                tops.iter_mut().zip(scores).for_each(|(top, score)| *top = if *score > *top { *score } else { *top });
            }
            let most = tops.iter().fold(f32::NEG_INFINITY, |most, top| most.max(*top));
            let mut lanes = [0f32; 16];
            let (whole, rest) = seen.as_chunks_mut::<16>();
            for scores in whole {
                for (score, lane) in scores.iter_mut().zip(&mut lanes) {
                    *score = exp(*score - most);
                    *lane += *score;
                }
            }
            let mut sum: f32 = lanes.iter().sum();
            for score in rest {
                *score = exp(*score - most);
                sum += *score;
            }
            let one = sum.recip();
            seen.iter_mut().for_each(|score| *score *= one);
            later.fill(0.0);
        }
    }

    /// Dropout of rows of probabilities, whose places start `over` apart.
    fn mask_rows(shares: &mut [f32], keys: usize, mask: Mask, first: usize, over: usize) {
        for (row, shares) in shares.chunks_exact_mut(keys).enumerate() {
            let place = first + row * over;
            shares.iter_mut().enumerate().for_each(|(key, share)| *share *= mask.factor(place + key));
        }
    }

    /// Turns the gradients of a row of probabilities after dropout into those of its scores.
    fn of_scores_of(shares: &[f32], mean: f32, mask: Mask, place: usize, of_scores: &mut [f32]) {
        let pairs = of_scores.iter_mut().zip(shares);
        match mask.is_none() {
            true => pairs.for_each(|(of_score, share)| *of_score = share * (*of_score - mean)),
            false => {
                for (key, (of_score, share)) in pairs.enumerate() {
                    *of_score = share * (*of_score * mask.factor(place + key) - mean);
                }
            }
        }
    }
}

impl Operation for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let out = Parts::new(out);
        Machine::shared().pool.run(self.tasks(), |task| self.forward_task(task, inputs, &out));
    }

    fn backward(&self, inputs: &[&[f32]], out: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let of: Vec<Option<Parts<f32>>> = of.iter_mut().map(|of| of.as_mut().map(|of| Parts::new(of))).collect();
        Machine::shared().pool.run(self.tasks(), |task| self.backward_task(task, inputs, out, &grad, &of));
    }

    fn needs_output(&self) -> bool {
        true
    }
}
