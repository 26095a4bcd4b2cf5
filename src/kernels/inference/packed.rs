//! Weights in panels, and products of rows with them. [`quantised`](super::quantised) has weights in blocks.
//!
//! Weights are packed once, into panels of 64 outputs: for each input (in bf16: for each pair of inputs), the weights of the 64
//! outputs lie side by side. A product passes blocks of rows over a part of a panel that stays in a core's cache, with the sums
//! of a block in registers. The product of a single row reads the same panels in order, at the speed of memory. So one layout
//! serves prompts and decoding, and weights that change can be packed in each step.

use std::ops::Range;

use super::{
    Machine,
    element::{Element, Operand, aligned},
    memory::Buffer,
    pool::Parts,
    quantised::{Inputs, Shared},
    simd::{Dispatch, Kernel, Simd},
};

/// Outputs of a panel; the last panel may have fewer.
pub const PANEL: usize = 64;

/// The width of a panel is a multiple of this: the longest vector.
pub const STEP: usize = 16;

/// Bytes of each row of the input that are multiplied at a time. A panel of this depth has 256 KB and stays in the L2 cache,
/// and a block of six rows stays in the L1 cache.
pub const DEPTH_BYTES: usize = 4096;

/// Rows from which on both operands are converted to f32, if no instruction multiplies them as they are. Converting a panel costs about
/// as much as a few rows.
const MANY: usize = 16;

/// Distance of prefetches in the product of one row, in bytes.
pub const AHEAD: usize = 4096;

/// Inputs or outputs in memory: `count` rows, `stride` elements apart.
///
/// Rows have even lengths in bf16, with zeros at odd ends: see [`Rows::stride_of`].
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    values: &'a [E],
    count: usize,
    stride: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    /// `count` rows that start `stride` elements apart.
    ///
    /// # Panics
    /// If the slice has fewer elements.
    pub fn new(values: &'a [E], count: usize, stride: usize) -> Self {
        assert!(count * stride <= values.len() && stride.is_multiple_of(E::GROUP), "rows are outside of their slice");
        Self { values, count, stride }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Distance of rows in elements.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All rows.
    pub fn all(&self) -> &'a [E] {
        self.values
    }

    /// One row, with the zero at its end.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, number: usize) -> &'a [E] {
        &self.values[number * self.stride..][..self.stride]
    }

    /// Length of rows of `width` elements in memory.
    pub fn stride_of(width: usize) -> usize {
        width.next_multiple_of(E::GROUP)
    }
}

/// Weights in row-major order or any other with constant strides, to be packed.
#[derive(Clone, Copy)]
pub struct Source<'a, E> {
    /// The elements, the first of which is that of output 0 and input 0.
    pub values: &'a [E],
    /// Distance between outputs in elements.
    pub output_stride: usize,
    /// Distance between inputs in elements: 1 in row-major order.
    pub input_stride: usize,
}

impl<'a, E> Source<'a, E> {
    /// (outputs, inputs) in row-major order.
    pub fn row_major(values: &'a [E], inputs: usize) -> Self {
        Self { values, output_stride: inputs, input_stride: 1 }
    }
}

/// A matrix of weights in panels.
pub struct Packed<E> {
    panels: Buffer<E>,
    outputs: usize,
    inputs: usize,
}

impl<E: Element> Packed<E> {
    /// Packs weights.
    ///
    /// # Panics
    /// If the source has fewer elements.
    pub fn new(machine: &Machine, outputs: usize, inputs: usize, source: Source<E>) -> Self {
        let Source { values, output_stride, input_stride } = source;
        if outputs * inputs > 0 {
            let last = (outputs - 1) * output_stride + (inputs - 1) * input_stride;
            assert!(last < values.len(), "{outputs} x {inputs} weights are outside of their slice");
        }
        let depth = inputs.next_multiple_of(E::GROUP);
        let len = outputs.next_multiple_of(STEP) * depth;
        let panels = Buffer::written(len, PANEL * depth, &machine.pool, |number, panel| {
            let first = number * PANEL;
            let (count, width) = (PANEL.min(outputs - first), panel.len() / depth);
            // The part of a panel that some inputs fill stays in the L1 cache while the rows of the source are copied to it.
            for inputs in (0..inputs).step_by(STEP).map(|from| from..inputs.min(from + STEP)) {
                for output in 0..count {
                    let from = (first + output) * output_stride;
                    if input_stride == 1 {
                        let row = &values[from + inputs.start..from + inputs.end];
                        let (groups, start) = (row.chunks(E::GROUP), place::<E>(width, output, inputs.start));
                        for (group, at) in groups.zip((start..).step_by(width * E::GROUP)) {
                            panel[at..at + group.len()].copy_from_slice(group);
                        }
                    } else {
                        for input in inputs.clone() {
                            panel[place::<E>(width, output, input)] = values[from + input * input_stride];
                        }
                    }
                }
            }
        });
        Self { panels, outputs, inputs }
    }

    /// Writes the weights of one output, as f32.
    ///
    /// # Panics
    /// If there is no such output, or `row` does not have an element for each input.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "no row {output} of {} inputs", row.len());
        let (panel, width) = self.panel(output / PANEL);
        for (input, value) in row.iter_mut().enumerate() {
            *value = panel[place::<E>(width, output % PANEL, input)].to_f32();
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of the weights. The zeros that fill a panel do not count.
    pub fn bytes(&self) -> usize {
        self.outputs * self.inputs * size_of::<E>()
    }

    /// The memory of the weights.
    pub fn words(&self) -> &[u64] {
        // SAFETY: the elements are numbers, which have no padding.
        unsafe { self.panels.words() }
    }

    /// Bytes of a row of many, in the form that the weights are multiplied with: 0 if that is as it is.
    pub fn input_bytes(&self, machine: &Machine) -> usize {
        match E::is_multiplied_by(machine.dispatch.instructions()) {
            true => 0,
            false => self.inputs * size_of::<f32>(),
        }
    }

    /// The inputs with which [`Self::sums`] multiplies; `None` if it multiplies with the rows themselves.
    pub(super) fn inputs_of(&self, machine: &Machine, x: Rows<E>, shared: &mut Shared<E>) -> Option<Inputs> {
        let is_many = x.count >= MANY && self.inputs > 0;
        let is_converted = is_many && !E::is_multiplied_by(machine.dispatch.instructions());
        is_converted.then(|| shared.numbers(machine, x, self.inputs))
    }

    /// Computes the sums of some rows with a panel, [`PANEL`] for each row. `inputs` are those of [`Self::inputs_of`].
    pub(super) fn sums(
        &self,
        dispatch: Dispatch,
        (x, inputs): (Rows<E>, Option<&Inputs>),
        rows: Range<usize>,
        panel: usize,
        sums: &mut [f32],
    ) {
        if let Some(Inputs::Numbers(x)) = inputs {
            return self.converted_sums(dispatch, x, rows, panel, sums);
        }
        let (panel, width) = self.panel(panel);
        dispatch.run(Sums {
            x: &x.values[rows.start * x.stride..],
            stride: x.stride,
            step: E::GROUP,
            rows: rows.len(),
            panel,
            width,
            groups: self.groups(),
            out: Parts::new(sums),
            out_stride: PANEL,
            start: Start::Zero,
        });
    }

    fn groups(&self) -> usize {
        self.inputs.div_ceil(E::GROUP)
    }

    /// Computes the sums of some rows with a panel that is converted to f32, as deep as stays in a core's cache. `x` has the inputs
    /// of all rows.
    fn converted_sums(&self, dispatch: Dispatch, x: &[f32], rows: Range<usize>, panel: usize, sums: &mut [f32]) {
        let (panel, width) = self.panel(panel);
        let deepest = DEPTH_BYTES / size_of::<f32>();
        aligned(deepest * width, |converted| {
            for (number, part) in panel.chunks(deepest * width).enumerate() {
                dispatch.run(Convert { from: part, width, to: &mut *converted });
                let start = number * deepest;
                dispatch.run(Sums {
                    x: &x[rows.start * self.inputs + start..],
                    stride: self.inputs,
                    step: 1,
                    rows: rows.len(),
                    panel: &*converted,
                    width,
                    groups: deepest.min(self.inputs - start),
                    out: Parts::new(&mut *sums),
                    out_stride: PANEL,
                    start: if start > 0 { Start::Out } else { Start::Zero },
                });
            }
        });
    }

    /// A panel and its width.
    fn panel(&self, number: usize) -> (&[E], usize) {
        let width = PANEL.min(self.outputs.next_multiple_of(STEP) - number * PANEL);
        let depth = self.groups() * E::GROUP;
        (&self.panels[number * PANEL * depth..][..width * depth], width)
    }
}

/// Converts a part of a panel to one of f32.
struct Convert<'a, E> {
    from: &'a [E],
    width: usize,
    to: &'a mut [f32],
}

impl<E: Element> Kernel for Convert<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { from, width, to } = self;
        if E::GROUP == 1 {
            return E::convert(from, to);
        }
        for (from, to) in from.chunks_exact(E::GROUP * width).zip(to.chunks_exact_mut(E::GROUP * width)) {
            for (input, to) in to.chunks_exact_mut(width).enumerate() {
                let from = from[input..].iter().step_by(E::GROUP);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
            }
        }
    }
}

/// Place of a weight in a panel of this width.
#[inline(always)]
pub fn place<E: Element>(width: usize, output: usize, input: usize) -> usize {
    (input / E::GROUP * width + output) * E::GROUP + input % E::GROUP
}

/// Products of rows with one panel, whose weights are stored as `W`.
pub struct Sums<'a, E, W = E> {
    /// Rows, `stride` elements apart, with `step` elements from one group of inputs to the next.
    pub x: &'a [E],
    pub stride: usize,
    pub step: usize,
    pub rows: usize,
    /// `groups` groups of inputs, of `width` outputs each.
    pub panel: &'a [W],
    pub width: usize,
    pub groups: usize,
    /// `width` sums for each row, `out_stride` elements apart.
    pub out: Parts<'a, f32>,
    pub out_stride: usize,
    /// The values that the products are added to. A bias has one for each of the `width` outputs.
    pub start: Start<'a>,
}

/// The values that the sums of a product are added to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start<'a> {
    /// 0.
    Zero,
    /// The value of the result before.
    Out,
    /// A value for each column.
    Bias(&'a [f32]),
}

impl<E: Element, W: Operand<Factor = E>> Kernel for Sums<'_, E, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, stride, step, width, groups, out_stride, .. } = self;
        if rows == 0 || width == 0 {
            return;
        }
        let row = groups.checked_sub(1).map_or(0, |last| last * step + E::GROUP);
        assert!((rows - 1) * stride + row <= self.x.len(), "rows are outside of their slice");
        assert!(groups * E::GROUP * width <= self.panel.len() && width.is_multiple_of(STEP), "a panel is too short");
        assert!((rows - 1) * out_stride + width <= self.out.len(), "sums are outside of their slice");
        if let Start::Bias(bias) = self.start {
            assert!(width <= bias.len(), "a bias is too short");
        }
        if rows == 1 && width == PANEL && step == E::GROUP && self.start == Start::Zero {
            let (x, panel, out) = (self.x.as_ptr(), self.panel.as_ptr(), self.out.start());
            // SAFETY: the checks above, for one row.
            return match PANEL / S::LANES {
                4 => unsafe { one_row::<S, E, W, 4, 2>(simd, x, panel, groups, out) },
                _ => unsafe { one_row::<S, E, W, 8, 1>(simd, x, panel, groups, out) },
            };
        }
        let deepest = S::DEPTH_BYTES / size_of::<E>() / E::GROUP;
        let mut group = 0;
        loop {
            let groups = group..groups.min(group + deepest);
            // SAFETY: the checks above; each tile has some rows from `row` on and some columns from `column` on.
            unsafe {
                if S::VECTORS * S::LANES < PANEL {
                    // The columns of a tile stay in the L1 cache while all rows pass.
                    let mut column = 0;
                    while column < width {
                        let mut columns = 0;
                        for row in (0..rows).step_by(S::ROWS) {
                            columns = self.tile(simd, groups.clone(), row, column);
                        }
                        column += columns;
                    }
                } else {
                    // The rows of a tile do while all columns pass.
                    for row in (0..rows).step_by(S::ROWS) {
                        let mut column = 0;
                        while column < width {
                            column += self.tile(simd, groups.clone(), row, column);
                        }
                    }
                }
            }
            group = groups.end;
            if group == self.groups {
                return;
            }
        }
    }
}

impl<E: Element, W: Operand<Factor = E>> Sums<'_, E, W> {
    /// Computes the sums of some groups for the tile that begins at a row and a column. Returns the number of its columns.
    ///
    /// # Safety
    /// The row, the column and the groups must exist, and operands and sums lie in their slices. The width must be a multiple of
    /// [`STEP`].
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, simd: S, groups: Range<usize>, row: usize, column: usize) -> usize {
        let Self { stride, step, width, out_stride, .. } = *self;
        // SAFETY: as the caller ensures. The width is a multiple of `STEP`, and so of every vector.
        unsafe {
            let tile = Tile {
                x: self.x.as_ptr().add(row * stride + groups.start * step),
                stride,
                step,
                panel: self.panel.as_ptr().add((groups.start * width + column) * E::GROUP),
                width,
                groups: groups.len(),
                out: self.out.start().add(row * out_stride + column),
                out_stride,
                start: match self.start {
                    _ if groups.start > 0 => Begin::Out,
                    Start::Zero => Begin::Zero,
                    Start::Out => Begin::Out,
                    Start::Bias(bias) => Begin::Row(bias.as_ptr().add(column)),
                },
            };
            let rows = S::ROWS.min(self.rows - row);
            match S::VECTORS {
                4 if width - column >= 4 * S::LANES => tile.rows::<S, 4>(simd, rows),
                2 | 4 if width - column >= 2 * S::LANES => tile.rows::<S, 2>(simd, rows),
                _ => tile.rows::<S, 1>(simd, rows),
            }
        }
    }
}

/// Products of a few rows with a few vectors of outputs.
struct Tile<E, W> {
    x: *const E,
    stride: usize,
    step: usize,
    panel: *const W,
    width: usize,
    groups: usize,
    out: *mut f32,
    out_stride: usize,
    start: Begin,
}

/// [`Start`] for a tile.
#[derive(Clone, Copy, PartialEq)]
enum Begin {
    Zero,
    Out,
    Row(*const f32),
}

impl<E: Element, W: Operand<Factor = E>> Tile<E, W> {
    /// Computes `rows` rows, at most six, and `N` vectors. Returns the number of columns.
    ///
    /// # Safety
    /// The rows of `x` and `out`, the groups of the panel and the values of the start must lie in memory.
    #[inline(always)]
    unsafe fn rows<S: Simd, const N: usize>(self, simd: S, rows: usize) -> usize {
        // SAFETY: as the caller ensures.
        unsafe {
            match rows {
                1 => self.run::<S, 1, N>(simd),
                2 => self.run::<S, 2, N>(simd),
                3 => self.run::<S, 3, N>(simd),
                4 => self.run::<S, 4, N>(simd),
                5 => self.run::<S, 5, N>(simd),
                _ => self.run::<S, 6, N>(simd),
            }
        }
        N * S::LANES
    }

    /// # Safety
    /// As for [`Self::rows`], with `R` rows.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the loops over registers are unrolled")]
    unsafe fn run<S: Simd, const R: usize, const N: usize>(self, simd: S) {
        let Self { mut x, stride, step, mut panel, width, groups, out, out_stride, start } = self;
        // SAFETY: rows, columns and groups are those that the caller vouches for. After the last group, the pointers are not
        // read; `wrapping_add` may leave the allocation.
        unsafe {
            let mut first = [simd.splat(0.0); N];
            if let Begin::Row(row) = start {
                for n in 0..N {
                    first[n] = simd.load(row.add(n * S::LANES));
                }
            }
            let mut sums = [first; R];
            // Stores to lines that are in no cache would hold up the next tile.
            for r in 0..R {
                for n in 0..N {
                    simd.prefetch(out.add(r * out_stride + n * S::LANES));
                }
            }
            for _ in 0..groups {
                let mut weights = [W::load(simd, panel); N];
                for n in 1..N {
                    weights[n] = W::load(simd, panel.add(n * S::LANES * E::GROUP));
                }
                for r in 0..R {
                    let x = E::splat(simd, x.add(r * stride));
                    for n in 0..N {
                        sums[r][n] = E::multiply_add(simd, sums[r][n], weights[n], x);
                    }
                }
                x = x.wrapping_add(step);
                panel = panel.wrapping_add(width * E::GROUP);
            }
            for r in 0..R {
                for n in 0..N {
                    let out = out.add(r * out_stride + n * S::LANES);
                    let sum = if start == Begin::Out { simd.add(simd.load(out), sums[r][n]) } else { sums[r][n] };
                    simd.store(out, sum);
                }
            }
        }
    }
}

/// The product of one row with a whole panel of `N` vectors, which is limited by memory: `U` groups at a time, into separate
/// sums, with prefetches.
///
/// # Safety
/// `groups` groups of `x` and of the panel, and [`PANEL`] sums must lie in memory.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the loops over registers are unrolled")]
unsafe fn one_row<S: Simd, E: Element, W: Operand<Factor = E>, const N: usize, const U: usize>(
    simd: S,
    mut x: *const E,
    mut panel: *const W,
    groups: usize,
    out: *mut f32,
) {
    // SAFETY: as the caller ensures. Prefetched addresses need not be valid.
    unsafe {
        let mut sums = [[simd.splat(0.0); N]; U];
        for _ in 0..groups / U {
            for u in 0..U {
                let x = E::splat(simd, x.add(u * E::GROUP));
                for n in 0..N {
                    let weights = panel.add((u * PANEL + n * S::LANES) * E::GROUP);
                    simd.prefetch_to_l2(weights.wrapping_byte_add(AHEAD));
                    sums[u][n] = E::multiply_add(simd, sums[u][n], W::load(simd, weights), x);
                }
            }
            x = x.wrapping_add(U * E::GROUP);
            panel = panel.wrapping_add(U * PANEL * E::GROUP);
        }
        // With U = 2, one group may be left.
        for _ in 0..groups % U {
            let x = E::splat(simd, x);
            for n in 0..N {
                let weights = W::load(simd, panel.add(n * S::LANES * E::GROUP));
                sums[0][n] = E::multiply_add(simd, sums[0][n], weights, x);
            }
        }
        for n in 0..N {
            let mut sum = sums[0][n];
            for u in 1..U {
                sum = simd.add(sum, sums[u][n]);
            }
            simd.store(out.add(n * S::LANES), sum);
        }
    }
}
