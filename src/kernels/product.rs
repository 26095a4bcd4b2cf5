//! Matrix products in f32 whose operands change from one to the next, as in trainings. The kernels are those of
//! [`inference`](super::inference): the right operand is packed into their panels in the step, by the threads that use the
//! panels. Unlike Candle's API, a product can add to its result and read parts of larger matrices.

use std::ops::Range;

use super::dot;
pub use super::inference::packed::Start;
use super::inference::{
    Machine,
    element::aligned,
    packed::{PANEL, STEP, Sums},
    pool::Parts,
    simd::{Kernel, SQUARE, Simd},
};

/// Inputs that are multiplied at a time, so that the part of a panel that they fill stays in a core's L2 cache.
const DEPTH: usize = 1024;

/// Rows that a kernel computes at a time, or a multiple of them.
const TILE: usize = 6;

/// Rows of a left operand that are packed together: tiles that fill whole cache lines.
const LINES: usize = 48;

/// Multiplications that one thread does in about the time in which two threads could meet.
const SMALL: usize = 400_000;

/// More rows than this, with a right operand of at most [`CACHED`] elements, are multiplied in chunks of [`TALL_CHUNK`].
const TALL: usize = 2048;
const CACHED: usize = 512 * 1024;
const TALL_CHUNK: usize = 192;

/// Rows of a left operand that are too few to pack the right one for them.
const FEW: usize = 4;

/// Rows and columns in a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows whose starts are `row_stride` elements apart.
    pub fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The first rows.
    pub fn first(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The transposed view.
    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        row * self.row_stride + column * self.column_stride
    }
}

/// Rows and columns in a mutable slice.
pub struct MatrixMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// Rows whose starts are `row_stride` elements apart.
    pub fn new(values: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride }
    }
}

/// Number of elements from the first to the last of a matrix.
fn span(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

/// `out = start + lhs · rhs`. Small products are computed by the caller alone.
///
/// # Panics
/// Panics if the sizes are inconsistent, or a matrix is larger than its slice.
pub fn product(machine: &Machine, out: MatrixMut, start: Start, lhs: Matrix, rhs: Matrix) {
    assert!(lhs.rows == out.rows && lhs.columns == rhs.rows && rhs.columns == out.columns, "sizes don't go together");
    assert!(out.row_stride >= out.columns, "rows would overlap");
    for (matrix, len) in [(lhs, lhs.values.len()), (rhs, rhs.values.len())] {
        assert!(
            span(matrix.rows, matrix.columns, matrix.row_stride, matrix.column_stride) <= len,
            "a matrix is too large"
        );
    }
    let MatrixMut { values, rows, columns, row_stride } = out;
    assert!(span(rows, columns, row_stride, 1) <= values.len(), "the result is too large");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), columns, "elements of a bias");
    }
    if rows * columns == 0 {
        return;
    }
    let task = Task { machine, out: Parts::new(values), row_stride, start, lhs, rhs };
    match rows <= FEW || lhs.columns == 0 {
        true => task.few(),
        false => task.run(),
    }
}

/// Computes `lhs · rhs` without storing it: calls `with` with some rows, the columns of a panel of [`PANEL`], and their sums, a row
/// after the other. The panels are shared out among the threads.
///
/// # Panics
/// Panics if the sizes are inconsistent, or a matrix is larger than its slice.
pub(super) fn panels(
    machine: &Machine,
    lhs: Matrix,
    rhs: Matrix,
    with: impl Fn(Range<usize>, Range<usize>, &[f32]) + Sync,
) {
    let (rows, columns, depth) = (lhs.rows, rhs.columns, lhs.columns);
    assert!(depth == rhs.rows && lhs.column_stride == 1, "sizes don't go together, or the rows are not contiguous");
    let task = Task { machine, out: Parts::new(&mut []), row_stride: 0, start: Start::Zero, lhs, rhs };
    machine.pool.run(columns.div_ceil(PANEL), |panel| {
        let (first, width) = (panel * PANEL, task.width(panel));
        let end = columns.min(first + PANEL);
        aligned(depth * width + LINES * width, |memory| {
            let (packed, sums) = memory.split_at_mut(depth * width);
            task.pack_panel(panel, 0..depth, packed);
            for start in (0..rows).step_by(LINES) {
                let count = LINES.min(rows - start);
                machine.dispatch.run(Sums {
                    x: &lhs.values[lhs.at(start, 0)..],
                    stride: lhs.row_stride,
                    step: 1,
                    rows: count,
                    panel: packed,
                    width,
                    groups: depth,
                    out: Parts::new(&mut sums[..count * width]),
                    out_stride: width,
                    start: Start::Zero,
                });
                if end - first < width {
                    // The sums of the columns that fill the panel are left out.
                    for row in 1..count {
                        sums.copy_within(row * width..row * width + end - first, row * (end - first));
                    }
                }
                with(start..start + count, first..end, &sums[..count * (end - first)]);
            }
        });
    });
}

struct Task<'a> {
    machine: &'a Machine,
    out: Parts<'a, f32>,
    row_stride: usize,
    start: Start<'a>,
    lhs: Matrix<'a>,
    rhs: Matrix<'a>,
}

/// A packed operand. Its elements are aligned to cache lines.
type Packed<'a> = Option<&'a [f32]>;

impl Task<'_> {
    fn run(&self) {
        let (rows, columns, depth) = (self.lhs.rows, self.rhs.columns, self.lhs.columns);
        let (threads, panels) = (self.machine.threads(), columns.div_ceil(PANEL));
        let is_small = threads == 1 || rows * columns * depth < SMALL;
        let each = |tasks: usize, task: &(dyn Fn(usize) + Sync)| match is_small {
            true => (0..tasks).for_each(task),
            false => self.machine.pool.run(tasks, task),
        };
        let deepest = depth.min(DEPTH);
        // Where all threads have panels of their own, each packs them when it needs them. Few panels are packed together first,
        // and the rows are shared out. So are those of a tall product, whose rows would leave the caches between two panels.
        let is_tall = !is_small && rows > TALL && columns * deepest <= CACHED;
        let is_shared = is_tall || !is_small && panels < 4 * threads;
        let chunks = if is_shared { (4 * threads).div_ceil(panels) } else { 1 };
        let chunk = rows.div_ceil(chunks).min(if is_tall { TALL_CHUNK } else { rows }).next_multiple_of(TILE);
        let chunks = rows.div_ceil(chunk);
        // The kernels read a row of the left operand in order.
        let blocks = if self.lhs.column_stride == 1 { 0 } else { rows.div_ceil(LINES) };
        aligned(blocks * LINES * deepest, |lhs| {
            aligned(if is_shared { columns.next_multiple_of(STEP) * deepest } else { 0 }, |rhs| {
                for inputs in (0..depth).step_by(DEPTH).map(|input| input..depth.min(input + DEPTH)) {
                    let (lhs_parts, rhs_parts) = (Parts::new(lhs), Parts::new(rhs));
                    each(blocks + if is_shared { panels } else { 0 }, &|number| match number.checked_sub(blocks) {
                        None => {
                            let start = number * LINES * inputs.len();
                            // SAFETY: each task packs its own rows.
                            let to = unsafe { lhs_parts.get(start..start + LINES * inputs.len()) };
                            self.pack_rows(number, inputs.clone(), to);
                        }
                        Some(panel) => {
                            let start = panel * PANEL * inputs.len();
                            // SAFETY: each task packs its own panel.
                            let to = unsafe { rhs_parts.get(start..start + self.width(panel) * inputs.len()) };
                            self.pack_panel(panel, inputs.clone(), to);
                        }
                    });
                    let lhs: Packed = (blocks > 0).then_some(lhs);
                    let rhs: Packed = is_shared.then_some(rhs);
                    each(panels * chunks, &|number| {
                        let (panel, first) = match is_tall {
                            false => (number / chunks, number % chunks * chunk),
                            true => (number % panels, number / panels * chunk),
                        };
                        self.multiply(panel, first..rows.min(first + chunk), inputs.clone(), lhs, rhs);
                    });
                }
            });
        });
    }

    /// Columns of a panel in memory.
    fn width(&self, panel: usize) -> usize {
        PANEL.min(self.rhs.columns.next_multiple_of(STEP) - panel * PANEL)
    }

    /// Packs some inputs of a block of the left operand's rows: for each input, the rows side by side.
    fn pack_rows(&self, block: usize, inputs: Range<usize>, to: &mut [f32]) {
        let Matrix { values, rows, row_stride, .. } = self.lhs;
        let first = block * LINES;
        let count = LINES.min(rows - first);
        for (to, input) in to.chunks_exact_mut(LINES).zip(inputs) {
            let from = &values[self.lhs.at(first, input)..];
            match from.first_chunk::<LINES>() {
                Some(from) if row_stride == 1 && count == LINES => to.copy_from_slice(from),
                _ => (0..count).for_each(|row| to[row] = from[row * row_stride]),
            }
        }
    }

    /// Packs some inputs of a panel.
    fn pack_panel(&self, panel: usize, inputs: Range<usize>, to: &mut [f32]) {
        let Matrix { values, columns, row_stride, column_stride, .. } = self.rhs;
        let (first, width) = (panel * PANEL, self.width(panel));
        let count = PANEL.min(columns - first);
        if column_stride == 1 {
            for (to, input) in to.chunks_exact_mut(width).zip(inputs) {
                let (to, end) = to.split_at_mut(count);
                to.copy_from_slice(&values[self.rhs.at(input, first)..][..count]);
                end.fill(0.0);
            }
            return;
        }
        if row_stride == 1 && !inputs.is_empty() {
            let from = &values[self.rhs.at(inputs.start, first)..];
            self.machine.dispatch.run(Transposed {
                from,
                stride: column_stride,
                columns: count,
                inputs: inputs.len(),
                to,
                width,
            });
        } else {
            for (to, input) in to.chunks_exact_mut(width).zip(inputs) {
                (0..count).for_each(|column| to[column] = values[self.rhs.at(input, first + column)]);
            }
        }
        if count < width {
            to.chunks_exact_mut(width).for_each(|to| to[count..].fill(0.0));
        }
    }

    /// Adds the products of some inputs to some rows of a panel's columns.
    fn multiply(&self, panel: usize, rows: Range<usize>, inputs: Range<usize>, lhs: Packed, rhs: Packed) {
        let (first, width) = (panel * PANEL, self.width(panel));
        let count = PANEL.min(self.rhs.columns - first);
        let start = if inputs.start == 0 { self.start } else { Start::Out };
        // Where the kernels would write past the last column, they write elsewhere.
        let is_ragged = count < width;
        aligned(if rhs.is_none() { inputs.len() * width } else { 0 }, |own| {
            aligned(if is_ragged { rows.len() * width } else { 0 }, |aside| {
                let packed = match rhs {
                    Some(all) => &all[first * inputs.len()..][..inputs.len() * width],
                    None => {
                        self.pack_panel(panel, inputs.clone(), own);
                        &*own
                    }
                };
                let size = if lhs.is_some() { TILE } else { rows.len() };
                for tile in rows.clone().step_by(size) {
                    let (out, out_stride) = match is_ragged {
                        // SAFETY: no other task writes these columns of these rows, and none reads them.
                        false => (unsafe { self.out.from(tile * self.row_stride + first) }, self.row_stride),
                        true => (Parts::new(&mut aside[(tile - rows.start) * width..]), width),
                    };
                    let (x, stride, step) = match lhs {
                        Some(blocks) => (&blocks[tile / LINES * LINES * inputs.len() + tile % LINES..], 1, LINES),
                        None => (&self.lhs.values[self.lhs.at(tile, inputs.start)..], self.lhs.row_stride, 1),
                    };
                    self.machine.dispatch.run(Sums {
                        x,
                        stride,
                        step,
                        rows: size.min(rows.end - tile),
                        panel: packed,
                        width,
                        groups: inputs.len(),
                        out,
                        out_stride,
                        start: match start {
                            _ if is_ragged => Start::Zero,
                            Start::Bias(bias) => Start::Bias(&bias[first..first + count]),
                            other => other,
                        },
                    });
                }
                if is_ragged {
                    for (row, sums) in rows.zip(aside.chunks_exact(width)) {
                        self.finish(start, row, first, &sums[..count]);
                    }
                }
            });
        });
    }

    /// Adds sums to the value that they are added to.
    fn finish(&self, start: Start, row: usize, first: usize, sums: &[f32]) {
        let out = self.part(row, first, sums.len());
        match start {
            Start::Zero => out.copy_from_slice(sums),
            Start::Out => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            Start::Bias(bias) => {
                out.iter_mut().zip(sums).zip(&bias[first..]).for_each(|((out, sum), bias)| *out = sum + bias);
            }
        }
    }

    /// Some columns of a row of the result.
    #[expect(clippy::mut_from_ref, reason = "a part of the result, of which each task has its own")]
    fn part(&self, row: usize, first: usize, count: usize) -> &mut [f32] {
        let start = row * self.row_stride + first;
        // SAFETY: each task has its own columns or rows, of which it borrows one part at a time.
        unsafe { self.out.get(start..start + count) }
    }

    /// Computes a few rows without packing.
    fn few(&self) {
        let (columns, depth) = (self.rhs.columns, self.lhs.columns);
        if depth == 0 {
            return (0..self.lhs.rows).for_each(|row| self.finish(self.start, row, 0, &vec![0.0; columns]));
        }
        aligned(columns + depth, |memory| {
            let (sums, x) = memory.split_at_mut(columns);
            for row in 0..self.lhs.rows {
                x.iter_mut().enumerate().for_each(|(input, x)| *x = self.lhs.values[self.lhs.at(row, input)]);
                match self.rhs.row_stride {
                    1 => self.machine.dispatch.run(Dots { x, rhs: self.rhs, sums }),
                    _ => self.machine.dispatch.run(Rows { x, rhs: self.rhs, sums }),
                }
                self.finish(self.start, row, 0, sums);
            }
        });
    }
}

/// Packs the inputs of some columns, `stride` elements apart, each of which is contiguous: for each input, the columns side by
/// side, `width` elements from one input to the next.
struct Transposed<'a> {
    from: &'a [f32],
    stride: usize,
    columns: usize,
    inputs: usize,
    to: &'a mut [f32],
    width: usize,
}

impl Kernel for Transposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { from, stride, columns, inputs, to, width } = self;
        assert!(columns <= width && span(columns, inputs, stride, 1) <= from.len() && inputs * width <= to.len());
        let (whole_columns, whole_inputs) = (columns / SQUARE * SQUARE, inputs / SQUARE * SQUARE);
        // The lines of the columns stay in the L1 cache from one strip to the next.
        for input in (0..whole_inputs).step_by(SQUARE) {
            for column in (0..whole_columns).step_by(SQUARE) {
                // SAFETY: the square lies in the columns, and its transpose in the panel, by the check above.
                unsafe {
                    let (from, to) =
                        (from.as_ptr().add(column * stride + input), to.as_mut_ptr().add(input * width + column));
                    simd.transpose(from, stride, to, width);
                }
            }
        }
        let mut rest = |columns: Range<usize>, inputs: Range<usize>| {
            for column in columns {
                inputs.clone().for_each(|input| to[input * width + column] = from[column * stride + input]);
            }
        };
        rest(whole_columns..columns, 0..inputs);
        rest(0..whole_columns, whole_inputs..inputs);
    }
}

/// The product of a row with a matrix of contiguous columns.
struct Dots<'a> {
    x: &'a [f32],
    rhs: Matrix<'a>,
    sums: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (column, sum) in self.sums.iter_mut().enumerate() {
            *sum = dot(self.x, &self.rhs.values[self.rhs.at(0, column)..][..self.x.len()]);
        }
    }
}

/// The product of a row with any other matrix.
struct Rows<'a> {
    x: &'a [f32],
    rhs: Matrix<'a>,
    sums: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, rhs, sums } = self;
        sums.fill(0.0);
        for (input, x) in x.iter().enumerate() {
            let row = &rhs.values[rhs.at(input, 0)..];
            if rhs.column_stride == 1 {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += x * value);
            } else {
                sums.iter_mut().zip(row.iter().step_by(rhs.column_stride)).for_each(|(sum, value)| *sum += x * value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::Instructions;

    /// Numbers of both signs.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    fn plain(out: &mut [f32], row_stride: usize, start: Start, lhs: Matrix, rhs: Matrix) {
        for row in 0..lhs.rows {
            for column in 0..rhs.columns {
                let products = (0..lhs.columns)
                    .map(|k| f64::from(lhs.values[lhs.at(row, k)]) * f64::from(rhs.values[rhs.at(k, column)]));
                let place = &mut out[row * row_stride + column];
                let start = match start {
                    Start::Zero => 0.0,
                    Start::Out => *place,
                    Start::Bias(bias) => bias[column],
                };
                *place = (f64::from(start) + products.sum::<f64>()) as f32;
            }
        }
    }

    /// A matrix with rows that are not adjacent, or the transpose of one.
    fn matrix(values: &[f32], rows: usize, columns: usize, is_transposed: bool) -> Matrix<'_> {
        match is_transposed {
            false => Matrix::new(values, rows, columns, columns + 2),
            true => Matrix::new(values, columns, rows, rows + 3).transposed(),
        }
    }

    #[test]
    fn as_three_loops() {
        let values = numbers(1_000_000, 1);
        let sizes = [
            (1, 1, 1),
            (5, 7, 3),
            (4, 9, 70),
            (33, 17, 40),
            (7, 1100, 70),
            (64, 24, 64),
            (130, 96, 200),
            (100, 2100, 17),
            (300, 5, 64),
            (61, 130, 600),
            // In chunks of rows.
            (TALL + 5, 9, 70),
            (6, 0, 3),
            (3, 0, 2),
            (0, 3, 2),
            (3, 2, 0),
        ];
        let sets = Instructions::ALL.into_iter().flat_map(|set| [1, 2, 3].map(|threads| Machine::new(threads, set)));
        for machine in sets.flatten() {
            for (rows, inner, columns) in sizes {
                for kind in 0..4 {
                    let lhs = matrix(&values[..500_000], rows, inner, kind & 1 > 0);
                    let rhs = matrix(&values[500_000..], inner, columns, kind & 2 > 0);
                    let (stride, bias) = (columns + 3, numbers(columns, 7));
                    for start in [Start::Zero, Start::Out, Start::Bias(&bias)] {
                        let mut found = numbers(rows * stride, 3);
                        let mut expected = found.clone();
                        product(&machine, MatrixMut::new(&mut found, rows, columns, stride), start, lhs, rhs);
                        plain(&mut expected, stride, start, lhs, rhs);
                        let near = |(found, expected): (&f32, &f32)| (found - expected).abs() < 2e-5;
                        assert!(
                            found.iter().zip(&expected).all(near),
                            "{}, {} threads, {rows}x{inner}x{columns}, kind {kind}, {start:?}",
                            machine.instructions(),
                            machine.threads()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_result_that_was_not_a_number_is_replaced() {
        let (values, mut out) = (vec![1f32; 600], vec![f32::NAN; 100]);
        let matrix = Matrix::new(&values, 10, 60, 60);
        product(Machine::shared(), MatrixMut::new(&mut out, 10, 10, 10), Start::Zero, matrix, matrix.transposed());
        assert_eq!(out, [60.0; 100]);
    }

    #[test]
    #[should_panic(expected = "a matrix is too large")]
    fn what_does_not_lie_in_its_slice_is_refused() {
        let values = [0f32; 5];
        let mut out = [0f32; 4];
        let matrix = Matrix::new(&values, 2, 3, 3);
        product(Machine::shared(), MatrixMut::new(&mut out, 2, 2, 2), Start::Zero, matrix, matrix.transposed());
    }
}
