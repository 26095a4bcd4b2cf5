//! Causal attention in one operation that stores neither scores nor probabilities. Each head of each sequence is one
//! task, which works in blocks of queries. The backward pass recomputes the probabilities. Scores of later keys are
//! not computed.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Shape, Tensor};
use candle_nn::ops::softmax as composed_softmax;
use rayon::prelude::*;

use super::{
    Candle, Matrix, MatrixMut, dot,
    elementary::{Kernel, exp, vectorised},
    is_plain, product, slice, tensor, with_slices,
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
    /// ALiBi: scores decrease with the distance, at a rate per head (Press, Smith and Lewis 2022).
    Alibi,
    /// No encoding of positions.
    None,
}

/// Multi-head causal attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Encoding of positions.
    pub positions: Positions,
}

impl Attention {
    /// Maps queries, keys and values, each (batch, time, width), to (batch, time, width).
    ///
    /// # Errors
    /// Returns an error if the number of heads does not divide the width, or the device fails.
    pub fn forward(self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        if is_plain(query) {
            return Ok(query.contiguous()?.apply_op3(&key.contiguous()?, &value.contiguous()?, self)?);
        }
        self.composed(query, key, value)
    }

    fn composed(self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = query.dims3()?;
        let split = |x: &Tensor| -> Result<Tensor> {
            Ok(x.reshape((batch, time, self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()?)
        };
        let (mut query, mut key, value) = (split(query)?, split(key)?, split(value)?);
        if self.positions == Positions::Rope {
            (query, key) = (turned(&query)?, turned(&key)?);
        }
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let scores = (query * scale)?.matmul(&key.transpose(2, 3)?.contiguous()?)?.to_dtype(DType::F32)?;
        let scores = scores.broadcast_add(&self.bias(time, scores.device())?)?;
        let shares = composed_softmax(&scores, D::Minus1)?.to_dtype(value.dtype())?;
        Ok(shares.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((batch, time, width))?)
    }

    /// (heads, time, time): the bias of the scores, -∞ for keys after their query.
    fn bias(self, time: usize, device: &Device) -> Result<Tensor> {
        let mut bias = Vec::with_capacity(self.heads * time * time);
        for head in 0..self.heads {
            let slope = self.slope(head);
            for query in 0..time {
                bias.extend((0..time).map(|key| match key > query {
                    true => f32::NEG_INFINITY,
                    false => -slope * (query - key) as f32,
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

    /// Cosines and sines (time, half of a head) of the RoPE angles; empty for other encodings.
    fn turns(self, time: usize, size: usize) -> Vec<(f32, f32)> {
        if self.positions != Positions::Rope {
            return Vec::new();
        }
        angles(time, size).map(|angle| (angle.cos(), angle.sin())).collect()
    }
}

/// The RoPE angle of each pair at each step.
fn angles(time: usize, size: usize) -> impl Iterator<Item = f32> {
    let half = size / 2;
    let rates: Vec<f32> = (0..half).map(|pair| 1.0 / ROPE_BASE.powf(pair as f32 / half as f32)).collect();
    (0..time * half).map(move |place| (place / half) as f32 * rates[place % half])
}

/// (batch, heads, time, size), rotated by position.
fn turned(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, time, size) = x.dims4()?;
    let table = |of: fn(f32) -> f32| -> Result<Tensor> {
        let table = Tensor::from_vec(angles(time, size).map(of).collect(), (1, 1, time, size / 2, 1), x.device())?;
        Ok(table.to_dtype(x.dtype())?)
    };
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
    let pairs = x.reshape((batch, heads, time, size / 2, 2))?;
    let (a, b) = (pairs.narrow(D::Minus1, 0, 1)?, pairs.narrow(D::Minus1, 1, 1)?);
    let turned =
        [(a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?];
    Ok(Tensor::cat(&turned, D::Minus1)?.reshape((batch, heads, time, size))?)
}

/// Sizes of a problem, and the data that all its tasks share.
struct Problem {
    attention: Attention,
    time: usize,
    width: usize,
    size: usize,
    turns: Vec<(f32, f32)>,
}

impl Problem {
    fn new(attention: Attention, dims: (usize, usize, usize)) -> Candle<Self> {
        let (_, time, width) = dims;
        if attention.heads == 0 || !width.is_multiple_of(attention.heads) {
            candle_core::bail!("{} heads do not divide {width}", attention.heads);
        }
        let size = width / attention.heads;
        Ok(Self { attention, time, width, size, turns: attention.turns(time, size) })
    }

    /// The part (time, size) of a head, as a matrix view.
    fn part<'a>(&self, x: &'a [f32], task: usize) -> Matrix<'a> {
        Matrix::new(&x[self.start(task)..], self.time, self.size, self.width)
    }

    /// Offset of the elements of a task in (batch, time, width).
    fn start(&self, task: usize) -> usize {
        let (sequence, head) = (task / self.attention.heads, task % self.attention.heads);
        sequence * self.time * self.width + head * self.size
    }

    /// A copy of the part of a head, rotated by position.
    fn turned(&self, x: &[f32], task: usize) -> Vec<f32> {
        let start = self.start(task);
        let mut part: Vec<f32> = Vec::with_capacity(self.time * self.size);
        for row in x[start..].chunks(self.width).take(self.time) {
            part.extend_from_slice(&row[..self.size]);
        }
        for (pair, (cos, sin)) in part.as_chunks_mut::<2>().0.iter_mut().zip(&self.turns) {
            *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
        }
        part
    }

    /// Rotates gradients back.
    fn turn_back(&self, part: &mut [f32]) {
        for (pair, (cos, sin)) in part.as_chunks_mut::<2>().0.iter_mut().zip(&self.turns) {
            *pair = [pair[0] * cos + pair[1] * sin, pair[1] * cos - pair[0] * sin];
        }
    }

    /// Starts and ends of the blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let time = self.time;
        (0..time).step_by(BLOCK).map(move |start| (start, (start + BLOCK).min(time)))
    }

    /// Computes the probabilities of a block of queries for each key up to its last, in `shares` with rows of `end`.
    fn shares(&self, task: usize, (start, end): (usize, usize), query: &[f32], key: &[f32], shares: &mut [f32]) {
        let (size, rows) = (self.size, end - start);
        let queries = Matrix::new(&query[start * size..], rows, size, size);
        let keys = Matrix::new(key, end, size, size).transposed();
        let scale = 1.0 / (size as f32).sqrt();
        product(MatrixMut::new(shares, rows, end, end), 0.0, scale, queries, keys, 1);
        let slope = self.attention.slope(task % self.attention.heads);
        vectorised(Soften { scores: &mut shares[..rows * end], start, end, slope });
    }

    /// Copies the parts of all tasks, one after the other, to (batch, time, width).
    fn together(&self, parts: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; parts.len()];
        let row = |(place, row): (usize, &mut [f32])| {
            let (sequence, step) = (place / self.time, place % self.time);
            for (head, out) in row.chunks_mut(self.size).enumerate() {
                let from = ((sequence * self.attention.heads + head) * self.time + step) * self.size;
                out.copy_from_slice(&parts[from..from + self.size]);
            }
        };
        out.par_chunks_mut(self.width).enumerate().with_min_len(16).for_each(row);
        out
    }

    fn forward(&self, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f32> {
        let mut parts = vec![0f32; query.len()];
        let task = |(task, out): (usize, &mut [f32])| {
            let (query, key) = (self.turned(query, task), self.turned(key, task));
            let mut shares = vec![0f32; BLOCK.min(self.time) * self.time];
            for (start, end) in self.blocks() {
                self.shares(task, (start, end), &query, &key, &mut shares);
                let rows = end - start;
                let shares = Matrix::new(&shares, rows, end, end);
                let seen = self.part(value, task).first(end);
                let out = MatrixMut::new(&mut out[start * self.size..end * self.size], rows, self.size, self.size);
                product(out, 0.0, 1.0, shares, seen, 1);
            }
        };
        parts.par_chunks_mut(self.time * self.size).enumerate().for_each(task);
        self.together(&parts)
    }

    /// Returns the gradients of query, key and value.
    fn backward(&self, way: &Way) -> [Vec<f32>; 3] {
        let part = self.time * self.size;
        let mut of = [(); 3].map(|()| vec![0f32; way.query.len()]);
        let [of_query, of_key, of_value] = &mut of;
        let tasks = of_query.par_chunks_mut(part).zip(of_key.par_chunks_mut(part)).zip(of_value.par_chunks_mut(part));
        tasks.enumerate().for_each(|(task, ((of_query, of_key), of_value))| {
            self.backward_task(task, way, [&mut *of_query, &mut *of_key, of_value]);
            self.turn_back(of_query);
            self.turn_back(of_key);
        });
        of.map(|parts| self.together(&parts))
    }

    /// Gradients of one head of one sequence, still rotated.
    fn backward_task(&self, task: usize, way: &Way, [of_query, of_key, of_value]: [&mut [f32]; 3]) {
        let (query, key) = (self.turned(way.query, task), self.turned(way.key, task));
        let scale = 1.0 / (self.size as f32).sqrt();
        let mut shares = vec![0f32; BLOCK.min(self.time) * self.time];
        let mut of_scores = shares.clone();
        for (start, end) in self.blocks() {
            let (rows, size) = (end - start, self.size);
            self.shares(task, (start, end), &query, &key, &mut shares);
            let begin = self.start(task) + start * self.width;
            let grads = Matrix::new(&way.grad[begin..], rows, size, self.width);
            let values = self.part(way.value, task).first(end);
            let given = Matrix::new(&shares, rows, end, end);
            product(
                MatrixMut::new(&mut of_value[..end * size], end, size, size),
                1.0,
                1.0,
                given.transposed(),
                grads,
                1,
            );
            product(MatrixMut::new(&mut of_scores, rows, end, end), 0.0, 1.0, grads, values.transposed(), 1);
            let each = of_scores.chunks_mut(end).zip(shares.chunks(end)).take(rows).enumerate();
            for (place, (of_scores, shares)) in each {
                let from = begin + place * self.width;
                // The mean of the gradients under the probabilities equals the product of the output with its
                // gradient.
                let mean = dot(&way.out[from..from + size], &way.grad[from..from + size]);
                for (of_score, share) in of_scores.iter_mut().zip(shares) {
                    *of_score = share * (*of_score - mean);
                }
            }
            let of_scores = Matrix::new(&of_scores, rows, end, end);
            let queries = Matrix::new(&query[start * size..], rows, size, size);
            let keys = Matrix::new(&key, end, size, size);
            let of_queries = MatrixMut::new(&mut of_query[start * size..end * size], rows, size, size);
            product(of_queries, 0.0, scale, of_scores, keys, 1);
            let of_keys = MatrixMut::new(&mut of_key[..end * size], end, size, size);
            product(of_keys, 1.0, scale, of_scores.transposed(), queries, 1);
        }
    }
}

/// Inputs and output, each (batch, time, width), and the gradient of the output.
struct Way<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
}

/// Softmax of the scores of queries from `start` on with the keys up to their own, in rows of `end`.
struct Soften<'a> {
    scores: &'a mut [f32],
    start: usize,
    end: usize,
    slope: f32,
}

impl Kernel for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { scores, start, end, slope } = self;
        for (place, row) in scores.chunks_mut(end).enumerate() {
            let (seen, later) = row.split_at_mut(start + place + 1);
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
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let problem = Problem::new(*self, query_layout.shape().dims3()?)?;
        let out = problem.forward(slice(query, query_layout)?, slice(key, key_layout)?, slice(value, value_layout)?);
        Ok((CpuStorage::F32(out), query_layout.shape().clone()))
    }

    fn bwd(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let problem = Problem::new(*self, query.dims3()?)?;
        let all = [query, key, value, out, grad];
        let [of_query, of_key, of_value] =
            with_slices(all, |[query, key, value, out, grad]| problem.backward(&Way { query, key, value, out, grad }))?;
        let gradient = |numbers: Vec<f32>| tensor(numbers, query).map(Some);
        Ok((gradient(of_query)?, gradient(of_key)?, gradient(of_value)?))
    }
}
