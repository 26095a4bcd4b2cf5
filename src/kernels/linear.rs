//! Linear layers.

use super::{
    Matrix, MatrixMut, Start,
    elementary::compiled,
    inference::{Machine, pool::Parts},
    product,
    tape::{Memory, Operation},
};

/// Columns that are summed together.
const BLOCK: usize = 64;

/// `x · weightᵀ + bias`, from (rows, inputs) to (rows, outputs), with a weight (outputs, inputs). The bias is optional.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let Self { inputs: width, outputs } = *self;
        let rows = out.len() / outputs;
        let (x, weight) = (Matrix::new(inputs[0], rows, width, width), Matrix::new(inputs[1], outputs, width, width));
        let start = inputs.get(2).map_or(Start::Zero, |bias| Start::Bias(bias));
        product(Machine::shared(), MatrixMut::new(out, rows, outputs, outputs), start, x, weight.transposed());
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (machine, Self { inputs: width, outputs }) = (Machine::shared(), *self);
        let rows = grad.len() / outputs;
        let (x, weight) = (Matrix::new(inputs[0], rows, width, width), Matrix::new(inputs[1], outputs, width, width));
        let of_out = Matrix::new(&grad, rows, outputs, outputs);
        if let Some(of_x) = &mut of[0] {
            product(machine, MatrixMut::new(of_x, rows, width, width), Start::Zero, of_out, weight);
        }
        if let Some(of_weight) = &mut of[1] {
            let out = MatrixMut::new(of_weight, outputs, width, width);
            product(machine, out, Start::Zero, of_out.transposed(), x);
        }
        if let Some(Some(of_bias)) = of.get_mut(2) {
            column_sums(&grad, of_bias);
        }
    }
}

/// The sum of all rows, as long as `sums`.
pub(super) fn column_sums(rows: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let parts = Parts::new(sums);
    let block = |number: usize| {
        let first = number * BLOCK;
        let count = BLOCK.min(width - first);
        // SAFETY: each task has its own columns.
        sum_columns(rows, width, first, unsafe { parts.get(first..first + count) });
    };
    let blocks = width.div_ceil(BLOCK);
    if rows.len() < super::SMALL { (0..blocks).for_each(block) } else { Machine::shared().pool.run(blocks, block) }
}

compiled! {
    /// Sums of the columns from `first` on.
    fn sum_columns(rows: &[f32], width: usize, first: usize, sums: &mut [f32]) {
        match sums.as_chunks_mut::<BLOCK>().0 {
            [sums] => {
                let mut lanes = [0f32; BLOCK];
                for row in rows.chunks_exact(width) {
                    let row = row[first..].first_chunk::<BLOCK>().expect("a block of columns");
                    lanes.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                *sums = lanes;
            }
            _ => {
                sums.fill(0.0);
                for row in rows.chunks_exact(width) {
                    sums.iter_mut().zip(&row[first..]).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    }
}
