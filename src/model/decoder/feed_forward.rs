//! One gated feed-forward, `down · (silu(gate · x) ⊙ (up · x))`, of a dense layer or of one expert.
//!
//! Weights are the left operands of the products and tokens the right ones, so results are transposed. Candle packs the left
//! operand of a product into blocks and reads the right one in place. Measured with 32 tokens per expert, the usual order
//! loses a third of the speed to copies of the weights. Results are transposed back as they are added to the tokens.

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::kernels::is_plain;

/// Weights of shape (2 × intermediate, hidden), gate above up, and (hidden, intermediate).
#[derive(Clone, Debug)]
pub struct Gated {
    gate_up: Tensor,
    down: Tensor,
}

impl Gated {
    pub fn new(gate_up: Tensor, down: Tensor) -> Self {
        Self { gate_up, down }
    }

    /// The feed-forward of `rows` (n, hidden), transposed: (hidden, n).
    pub fn transposed(&self, rows: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.matmul(&rows.t()?)?;
        self.down.matmul(&gated(&gate_up)?)
    }

    /// The feed-forward of `rows` (n, hidden): (n, hidden). For devices other than CPUs, whose products copy neither operand.
    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let gate_up = rows.matmul(&self.gate_up.t()?)?;
        let inner = gate_up.dim(1)? / 2;
        (gate_up.narrow(1, 0, inner)?.silu()? * gate_up.narrow(1, inner, inner)?)?.matmul(&self.down.t()?)
    }

    /// Adds the feed-forward of `rows` to `sum`, token by token: both (tokens, hidden).
    pub fn add_all_to(&self, sum: Tensor, rows: &Tensor) -> Result<Tensor> {
        if !rows.device().is_cpu() {
            return sum + self.forward(rows)?;
        }
        let tokens = rows.dim(0)?;
        let every: Vec<u32> = (0..tokens as u32).collect();
        self.add_to(sum, rows, &every, &vec![1.0; tokens])
    }

    /// Adds the feed-forward of `rows`, scaled by `weights`, to those tokens of `sum`: see [`add_transposed`].
    pub fn add_to(&self, sum: Tensor, rows: &Tensor, tokens: &[u32], weights: &[f32]) -> Result<Tensor> {
        add_transposed(sum, &self.transposed(rows)?, tokens, weights)
    }
}

/// `silu` of the first half of the rows, times the second half.
fn gated(gate_up: &Tensor) -> Result<Tensor> {
    if is_plain(gate_up) {
        return gate_up.apply_op1_no_bwd(&SiluTimes);
    }
    let inner = gate_up.dim(0)? / 2;
    gate_up.narrow(0, 0, inner)?.silu()? * gate_up.narrow(0, inner, inner)?
}

/// Adds column `i` of `columns` (hidden, n), times `weights[i]`, to row `tokens[i]` of `sum` (tokens, hidden). `tokens`
/// increases. On a CPU `sum` is changed in place, so no other tensor may share its storage.
pub fn add_transposed(sum: Tensor, columns: &Tensor, tokens: &[u32], weights: &[f32]) -> Result<Tensor> {
    if is_plain(&sum) && sum.is_contiguous() {
        sum.inplace_op2(columns, &AddTransposed { tokens, weights })?;
        return Ok(sum);
    }
    let device = sum.device();
    let weights = Tensor::new(weights, device)?.to_dtype(sum.dtype())?;
    let rows = columns.broadcast_mul(&weights)?.t()?.contiguous()?;
    sum.index_add(&Tensor::new(tokens, device)?, &rows, 0)
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
        bail!("contiguous f32 is needed")
    };
    Ok(&values[start..end])
}

struct SiluTimes;

impl CustomOp1 for SiluTimes {
    fn name(&self) -> &'static str {
        "silu-times"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        const CHUNK: usize = 4096;
        let (rows, columns) = layout.shape().dims2()?;
        let (gate, up) = slice(storage, layout)?.split_at(rows / 2 * columns);
        let mut out = vec![0f32; gate.len()];
        let chunk = |(out, (gate, up)): (&mut [f32], (&[f32], &[f32]))| {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        };
        out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK))).for_each(chunk);
        Ok((CpuStorage::F32(out), (rows / 2, columns).into()))
    }
}

struct AddTransposed<'a> {
    tokens: &'a [u32],
    weights: &'a [f32],
}

/// Rows of the sum per task, and elements of each row that a task adds before it continues with the next row, so that the
/// columns of a block stay in the L1 cache.
const ROWS: usize = 64;
const BLOCK: usize = 32;

impl InplaceOp2 for AddTransposed<'_> {
    fn name(&self) -> &'static str {
        "add-transposed"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, sum_layout: &Layout, columns: &CpuStorage, layout: &Layout) -> Result<()> {
        let (_, hidden) = sum_layout.shape().dims2()?;
        let columns = slice(columns, layout)?;
        let (Some((start, end)), CpuStorage::F32(sum)) = (sum_layout.contiguous_offsets(), sum) else {
            bail!("contiguous f32 is needed")
        };
        let count = self.tokens.len();
        let part = |(number, sum): (usize, &mut [f32])| {
            let first = number * ROWS;
            let place = |row: usize| self.tokens.partition_point(|token| (*token as usize) < row);
            let places = place(first)..place(first + ROWS);
            for from in (0..hidden).step_by(BLOCK) {
                let block = from..hidden.min(from + BLOCK);
                for place in places.clone() {
                    let row = (self.tokens[place] as usize - first) * hidden;
                    let weight = self.weights[place];
                    for (value, element) in sum[row + block.start..row + block.end].iter_mut().zip(block.clone()) {
                        *value += weight * columns[element * count + place];
                    }
                }
            }
        };
        sum[start..end].par_chunks_mut(ROWS * hidden).enumerate().for_each(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, IndexOp};

    use super::*;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("numbers")
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("a difference")
    }

    /// The kernels equal Candle's operations, for partial blocks too.
    #[test]
    fn kernels_equal_the_plain_operations() {
        for (tokens, hidden, count) in [(1, 1, 1), (7, 33, 3), (130, 70, 129), (200, 64, 200), (3, 5, 0)] {
            let picked: Vec<u32> = (0..count as u32).map(|i| i * tokens as u32 / count as u32).collect();
            let weights: Vec<f32> = (0..count).map(|i| 0.5 + i as f32 / 100.0).collect();
            let (sum, columns) = (random((tokens, hidden)), random((hidden, count)));
            let mut expected = sum.to_vec2::<f32>().expect("rows");
            for (place, token) in picked.iter().enumerate() {
                let column: Vec<f32> = columns.i((.., place)).and_then(|column| column.to_vec1()).expect("numbers");
                for (sum, value) in expected[*token as usize].iter_mut().zip(column) {
                    *sum += weights[place] * value;
                }
            }
            let found = add_transposed(sum.copy().expect("a copy"), &columns, &picked, &weights).expect("added");
            let expected = Tensor::new(expected, &Device::Cpu).expect("rows");
            assert!(difference(&found, &expected) < 1e-6, "{tokens} {hidden} {count}");

            let gate_up = random((2 * hidden, tokens));
            let plain = (gate_up.narrow(0, 0, hidden).and_then(|g| g.silu()).expect("silu")
                * gate_up.narrow(0, hidden, hidden).expect("up"))
            .expect("product");
            assert!(difference(&gated(&gate_up).expect("gated"), &plain) < 1e-6);
        }
    }

    #[test]
    fn other_dtypes_use_plain_operations() {
        let gated = Gated::new(random((12, 8)), random((8, 6)));
        let half = Gated::new(
            gated.gate_up.to_dtype(DType::BF16).expect("bf16"),
            gated.down.to_dtype(DType::BF16).expect("bf16"),
        );
        let (sum, rows) = (random((5, 8)), random((2, 8)));
        let exact = gated.add_to(sum.copy().expect("a copy"), &rows, &[1, 4], &[0.3, 0.7]).expect("f32");
        let (sum, rows) = (sum.to_dtype(DType::BF16).expect("bf16"), rows.to_dtype(DType::BF16).expect("bf16"));
        let rounded = half.add_to(sum, &rows, &[1, 4], &[0.3, 0.7]).expect("bf16");
        let most = difference(&exact, &exact.zeros_like().expect("zeros"));
        let far = difference(&rounded.to_dtype(DType::F32).expect("f32"), &exact);
        assert!(far < 0.05 * most, "{far} of {most}");
    }
}
