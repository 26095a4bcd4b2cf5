//! Matrix products on slices, by the library that Candle uses. Unlike Candle's API, it can add to the result and read
//! parts of larger matrices.

use gemm::Parallelism;

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

/// `out = keep · out + scale · lhs · rhs`, with the given number of threads.
///
/// # Panics
/// Panics if the sizes are inconsistent, or a matrix is larger than its slice.
pub fn product(out: MatrixMut, keep: f32, scale: f32, lhs: Matrix, rhs: Matrix, threads: usize) {
    assert!(lhs.rows == out.rows && lhs.columns == rhs.rows && rhs.columns == out.columns, "sizes don't go together");
    assert!(out.row_stride >= out.columns, "rows would overlap");
    for (matrix, len) in [(lhs, lhs.values.len()), (rhs, rhs.values.len())] {
        assert!(
            span(matrix.rows, matrix.columns, matrix.row_stride, matrix.column_stride) <= len,
            "a matrix is too large"
        );
    }
    assert!(span(out.rows, out.columns, out.row_stride, 1) <= out.values.len(), "the result is too large");
    // SAFETY: the checks above ensure that every element of the three matrices lies in its slice. The rows of the
    // result do not overlap. The result is borrowed mutably, so it overlaps neither operand. With `keep` 0, the
    // result is not read.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            lhs.columns,
            out.values.as_mut_ptr(),
            1,
            out.row_stride as isize,
            keep != 0.0,
            lhs.values.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            keep,
            scale,
            false,
            false,
            false,
            if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(out: &mut [f32], keep: f32, scale: f32, lhs: Matrix, rhs: Matrix, row_stride: usize) {
        for row in 0..lhs.rows {
            for column in 0..rhs.columns {
                let sum: f32 = (0..lhs.columns)
                    .map(|k| {
                        lhs.values[row * lhs.row_stride + k * lhs.column_stride]
                            * rhs.values[k * rhs.row_stride + column * rhs.column_stride]
                    })
                    .sum();
                let place = &mut out[row * row_stride + column];
                *place = keep * *place + scale * sum;
            }
        }
    }

    #[test]
    fn as_three_loops() {
        let values: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.37).sin()).collect();
        for (rows, inner, columns) in [(1, 1, 1), (5, 7, 3), (33, 17, 40), (0, 3, 2)] {
            let (lhs, rhs) = (&values[..1500], &values[1500..]);
            for transposed in [false, true] {
                let a = Matrix::new(lhs, rows, inner, inner + 2);
                let b = match transposed {
                    false => Matrix::new(rhs, inner, columns, columns + 1),
                    true => Matrix::new(rhs, columns, inner, inner).transposed(),
                };
                for (keep, threads) in [(0.0, 1), (1.0, 2)] {
                    let stride = columns + 3;
                    let mut found: Vec<f32> = values[..rows * stride].to_vec();
                    let mut expected = found.clone();
                    product(MatrixMut::new(&mut found, rows, columns, stride), keep, 0.5, a, b, threads);
                    plain(&mut expected, keep, 0.5, a, b, stride);
                    for (a, b) in found.iter().zip(&expected) {
                        assert!((a - b).abs() < 1e-5, "{rows}x{inner}x{columns}: {a} for {b}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a matrix is too large")]
    fn what_does_not_lie_in_its_slice_is_refused() {
        let values = [0f32; 5];
        let mut out = [0f32; 4];
        let matrix = Matrix::new(&values, 2, 3, 3);
        product(MatrixMut::new(&mut out, 2, 2, 2), 0.0, 1.0, matrix, matrix.transposed(), 1);
    }
}
