//! Weights in blocks of whole numbers that share a scale, in the formats of GGUF files, which Candle defines, or in FP8.
//!
//! The formats in which weights are quantised here are kept in [`tiles`](super::tiles). Of files, blocks of other formats are kept
//! as they are: a few rows of inputs are quantised for them and multiplied by Candle's dot products; for more rows, a part of a
//! panel is converted at a time, while all rows pass over it.

use std::{
    any::Any,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::quantized::{
    GgmlDType, GgmlType,
    k_quants::{
        BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    },
};

use super::{
    Instructions, Machine,
    element::Element,
    fp8::Fp8,
    memory::{Buffer, Zeroed},
    packed::{DEPTH_BYTES, PANEL, Rows, STEP, Start, Sums, place},
    pool::Parts,
    simd::Dispatch,
    tiles::{GroupRows, Q4Tile, Q8Tile, Tile, Tiles},
};

/// Rows of inputs that are multiplied by dot products. Converting weights costs as much as some twenty rows.
const FEW: usize = 16;

/// Inputs that are converted at a time: a multiple of the length of every block.
const CONVERTED: usize = 256;

/// A matrix of weights in blocks or in FP8.
pub struct Quantised {
    held: Held,
    outputs: usize,
    inputs: usize,
}

enum Held {
    Q8(Tiles<Q8Tile>),
    Q4(Tiles<Q4Tile>),
    Fp8(Fp8),
    Blocks(Box<dyn Blocks>),
}

/// Rows of inputs in the form that weights are multiplied with.
#[derive(Clone)]
pub enum Inputs {
    /// For tiles.
    Groups(Arc<GroupRows>),
    /// For FP8, and for types that no instruction multiplies: rows without space between them.
    Numbers(Arc<Vec<f32>>),
    /// Blocks of the type that Candle multiplies the weights with.
    Blocks(Arc<dyn Any + Send + Sync>),
}

/// The form of inputs.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Groups,
    Numbers,
    Blocks(GgmlDType),
}

/// The address and the number of rows, the inputs of each, and their form.
type Key<E> = (*const E, usize, usize, Form);

/// Converted inputs of the layers of one operation. Layers that multiply the same rows share them.
pub struct Shared<E>(Vec<(Key<E>, Inputs)>);

impl<E> Default for Shared<E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<E: Element> Shared<E> {
    /// The first `inputs` elements of each row in a form. `make` converts them if no layer did before.
    fn in_form(
        &mut self,
        x: Rows<E>,
        inputs: usize,
        form: Form,
        make: impl FnOnce() -> Option<Inputs>,
    ) -> Option<Inputs> {
        let key = (x.all().as_ptr(), x.count(), inputs, form);
        if let Some((_, converted)) = self.0.iter().find(|(other, _)| *other == key) {
            return Some(converted.clone());
        }
        let converted = make()?;
        self.0.push((key, converted.clone()));
        Some(converted)
    }

    /// The first `inputs` elements of each row as f32.
    pub(super) fn numbers(&mut self, machine: &Machine, x: Rows<E>, inputs: usize) -> Option<Inputs> {
        self.in_form(x, inputs, Form::Numbers, || Some(Inputs::Numbers(Arc::new(numbers(machine, x, inputs)))))
    }
}

fn numbers<E: Element>(machine: &Machine, x: Rows<E>, inputs: usize) -> Vec<f32> {
    let mut all = vec![0.0; x.count() * inputs];
    machine.each_row(&mut all, inputs, |number, row| E::convert(x.row(number), row));
    all
}

impl Quantised {
    /// Quantises weights to q8_0 or q4_k: (outputs, inputs) in row-major order, with zeros after the last inputs. `None` if one is
    /// not finite, which a block would hide, or the format is another.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn new<E: Element>(
        machine: &Machine,
        format: GgmlDType,
        shape @ (outputs, inputs): (usize, usize),
        values: &[E],
    ) -> Option<Self> {
        assert_eq!(values.len(), outputs * inputs, "values of {outputs} x {inputs} weights");
        let is_finite = AtomicBool::new(true);
        let held = match format {
            GgmlDType::Q8_0 => Held::Q8(quantised::<Q8Tile, BlockQ8_0, E>(machine, shape, values, &is_finite)),
            GgmlDType::Q4K => Held::Q4(quantised::<Q4Tile, BlockQ4K, E>(machine, shape, values, &is_finite)),
            _ => return None,
        };
        is_finite.into_inner().then_some(Self { held, outputs, inputs })
    }

    /// Quantises weights to FP8: (outputs, inputs) in row-major order. `None` if one is not finite.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn fp8<E: Element>(machine: &Machine, shape @ (outputs, inputs): (usize, usize), values: &[E]) -> Option<Self> {
        assert_eq!(values.len(), outputs * inputs, "values of {outputs} x {inputs} weights");
        let is_finite = AtomicBool::new(true);
        let held = Held::Fp8(Fp8::new(machine, shape, values, &is_finite));
        is_finite.into_inner().then_some(Self { held, outputs, inputs })
    }

    /// Weights as a file holds them: `bytes` has a row of whole blocks for each output. `row_of` is the place of an output among the
    /// rows. `None` if weights cannot have this format, or there are not as many bytes.
    ///
    /// # Panics
    /// If a place is not below the number of outputs.
    pub fn from_bytes(
        machine: &Machine,
        format: GgmlDType,
        shape @ (outputs, inputs): (usize, usize),
        bytes: &[u8],
        row_of: impl Fn(usize) -> usize + Sync,
    ) -> Option<Self> {
        let row_bytes = inputs / format.block_size() * format.type_size();
        if !inputs.is_multiple_of(format.block_size()) || bytes.len() != outputs * row_bytes {
            return None;
        }
        let row = |output: usize| &bytes[row_of(output) * row_bytes..][..row_bytes];
        let rows = |outputs: Range<usize>, set: &mut dyn FnMut(usize, &[u8])| {
            outputs.for_each(|output| set(output, row(output)));
        };
        let held = match format {
            GgmlDType::Q8_0 => Held::Q8(Tiles::new(machine, shape, rows)),
            GgmlDType::Q4K => Held::Q4(Tiles::new(machine, shape, rows)),
            GgmlDType::Q4_0 => Held::Blocks(Box::new(Matrix::<BlockQ4_0>::new(machine, shape, row))),
            GgmlDType::Q4_1 => Held::Blocks(Box::new(Matrix::<BlockQ4_1>::new(machine, shape, row))),
            GgmlDType::Q5_0 => Held::Blocks(Box::new(Matrix::<BlockQ5_0>::new(machine, shape, row))),
            GgmlDType::Q5_1 => Held::Blocks(Box::new(Matrix::<BlockQ5_1>::new(machine, shape, row))),
            GgmlDType::Q2K => Held::Blocks(Box::new(Matrix::<BlockQ2K>::new(machine, shape, row))),
            GgmlDType::Q3K => Held::Blocks(Box::new(Matrix::<BlockQ3K>::new(machine, shape, row))),
            GgmlDType::Q5K => Held::Blocks(Box::new(Matrix::<BlockQ5K>::new(machine, shape, row))),
            GgmlDType::Q6K => Held::Blocks(Box::new(Matrix::<BlockQ6K>::new(machine, shape, row))),
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
        };
        Some(Self { held, outputs, inputs })
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of the weights, with their scales.
    pub fn bytes(&self) -> usize {
        match &self.held {
            Held::Q8(tiles) => tiles.bytes(),
            Held::Q4(tiles) => tiles.bytes(),
            Held::Fp8(weights) => weights.bytes(),
            Held::Blocks(blocks) => blocks.bytes(),
        }
    }

    /// The memory of the weights. FP8's scales are apart.
    pub fn words(&self) -> &[u64] {
        match &self.held {
            Held::Q8(tiles) => tiles.words(),
            Held::Q4(tiles) => tiles.words(),
            Held::Fp8(weights) => weights.words(),
            Held::Blocks(blocks) => blocks.words(),
        }
    }

    /// Bytes of a row of many, in the form that the weights are multiplied with: 0 if that is as it is.
    pub fn input_bytes(&self) -> usize {
        match &self.held {
            Held::Q8(_) | Held::Q4(_) => GroupRows::row_bytes(self.inputs),
            Held::Fp8(_) => self.inputs * size_of::<f32>(),
            Held::Blocks(_) => 0,
        }
    }

    /// Writes the weights of one output, as f32.
    ///
    /// # Panics
    /// If there is no such output, or `row` does not have an element for each input.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "no row {output} of {} inputs", row.len());
        match &self.held {
            Held::Q8(tiles) => tiles.row(output, row),
            Held::Q4(tiles) => tiles.row(output, row),
            Held::Fp8(weights) => weights.row(output, row),
            Held::Blocks(blocks) => blocks.convert(output, 0, row),
        }
    }

    /// The inputs with which [`Self::sums`] multiplies; `None` if it multiplies with the rows themselves.
    pub(super) fn inputs_of<E: Element>(
        &self,
        machine: &Machine,
        x: Rows<E>,
        shared: &mut Shared<E>,
    ) -> Option<Inputs> {
        let form = match &self.held {
            Held::Q8(_) | Held::Q4(_) => Form::Groups,
            Held::Fp8(_) => Form::Numbers,
            Held::Blocks(blocks) => Form::Blocks(blocks.format_of_inputs()),
        };
        if x.count() == 0 || (matches!(form, Form::Blocks(_)) && x.count() > FEW) {
            return None;
        }
        shared.in_form(x, self.inputs, form, || match &self.held {
            Held::Q8(_) | Held::Q4(_) => Some(Inputs::Groups(Arc::new(GroupRows::new(machine, x, self.inputs)))),
            Held::Fp8(_) => Some(Inputs::Numbers(Arc::new(numbers(machine, x, self.inputs)))),
            Held::Blocks(blocks) => {
                let values = numbers(machine, x, self.inputs);
                // Blocks would hide a number that is not finite.
                values.iter().all(|value| value.is_finite()).then(|| blocks.quantise(&values))
            }
        })
    }

    /// Computes the sums of some rows with a panel, [`PANEL`] for each row. `inputs` are those of [`Self::inputs_of`].
    pub(super) fn sums<E: Element>(
        &self,
        dispatch: Dispatch,
        (x, inputs): (Rows<E>, Option<&Inputs>),
        rows: Range<usize>,
        panel: usize,
        sums: &mut [f32],
    ) {
        let outputs = panel * PANEL..self.outputs.min((panel + 1) * PANEL);
        match (&self.held, inputs) {
            (Held::Q8(tiles), Some(Inputs::Groups(x))) => tiles.sums(dispatch, x, rows, panel, sums),
            (Held::Q4(tiles), Some(Inputs::Groups(x))) => tiles.sums(dispatch, x, rows, panel, sums),
            (Held::Fp8(weights), Some(Inputs::Numbers(x))) => weights.sums(dispatch, x, rows, panel, sums),
            (Held::Blocks(blocks), Some(Inputs::Blocks(x))) => {
                blocks.multiply(dispatch.instructions() == Instructions::Portable, &**x, rows, outputs, sums);
            }
            (Held::Blocks(blocks), None) => converted_sums(&**blocks, self.inputs, dispatch, x, (rows, outputs), sums),
            _ => unreachable!("inputs for weights of another kind"),
        }
    }
}

/// Quantises weights, those of a tile at a time.
fn quantised<T: Tile, B: GgmlType, E: Element>(
    machine: &Machine,
    shape @ (_, inputs): (usize, usize),
    values: &[E],
    is_finite: &AtomicBool,
) -> Tiles<T> {
    Tiles::new(machine, shape, |outputs, set| {
        let mut padded = vec![0.0; inputs.next_multiple_of(B::BLCK_SIZE)];
        let mut blocks = vec![B::zeros(); padded.len() / B::BLCK_SIZE];
        for output in outputs {
            let row = &values[output * inputs..][..inputs];
            padded.iter_mut().zip(row).for_each(|(to, from)| *to = from.to_f32());
            if !padded.iter().all(|value| value.is_finite()) {
                return is_finite.store(false, Ordering::Relaxed);
            }
            B::from_float(&padded, &mut blocks);
            // SAFETY: the slice has the bytes of the blocks, which consist of numbers without space between them.
            let bytes = unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(&blocks[..])) };
            set(output, bytes);
        }
    })
}

/// The sums of some rows with some outputs, whose weights are converted to a panel, as deep as stays in a core's cache.
fn converted_sums<E: Element>(
    blocks: &dyn Blocks,
    inputs: usize,
    dispatch: Dispatch,
    x: Rows<E>,
    (rows, outputs): (Range<usize>, Range<usize>),
    sums: &mut [f32],
) {
    let width = outputs.len().next_multiple_of(STEP);
    let deepest = DEPTH_BYTES / size_of::<E>();
    E::scratch(width * deepest, |panel| {
        for start in (0..inputs).step_by(deepest) {
            let depth = deepest.min(inputs - start);
            convert(blocks, outputs.clone(), start..start + depth, width, panel);
            dispatch.run(Sums {
                x: &x.all()[rows.start * x.stride() + start..],
                stride: x.stride(),
                step: E::GROUP,
                rows: rows.len(),
                panel: &*panel,
                width,
                groups: depth.div_ceil(E::GROUP),
                out: Parts::new(&mut *sums),
                out_stride: PANEL,
                start: if start > 0 { Start::Out } else { Start::Zero },
            });
        }
    });
}

/// Converts a part of the weights to a panel. Blocks of all types have even lengths, and so have the rows.
fn convert<E: Element>(
    blocks: &dyn Blocks,
    outputs: Range<usize>,
    inputs: Range<usize>,
    width: usize,
    panel: &mut [E],
) {
    f32::scratch(outputs.len() * CONVERTED, |rows| {
        for first in inputs.clone().step_by(CONVERTED) {
            let count = CONVERTED.min(inputs.end - first);
            for (row, output) in rows.chunks_exact_mut(CONVERTED).zip(outputs.clone()) {
                blocks.convert(output, first, &mut row[..count]);
            }
            // The part of a panel that some inputs fill stays in the L1 cache while the rows are copied to it.
            for some in (0..count).step_by(STEP).map(|from| from..count.min(from + STEP)) {
                for (output, row) in rows.chunks_exact(CONVERTED).enumerate() {
                    for input in some.clone() {
                        panel[place::<E>(width, output, first - inputs.start + input)] = E::from_f32(row[input]);
                    }
                }
            }
        }
    });
}

/// A matrix in a format that only files have.
trait Blocks: Send + Sync {
    fn format_of_inputs(&self) -> GgmlDType;

    fn bytes(&self) -> usize;

    fn words(&self) -> &[u64];

    fn quantise(&self, x: &[f32]) -> Inputs;

    /// Converts the weights of an output from an input on that begins a block, in whole blocks.
    fn convert(&self, output: usize, from: usize, to: &mut [f32]);

    /// Multiplies some rows with some outputs. The sums of a row are [`PANEL`] apart.
    fn multiply(&self, is_portable: bool, x: &dyn Any, rows: Range<usize>, outputs: Range<usize>, sums: &mut [f32]);
}

struct Matrix<T> {
    blocks: Buffer<T>,
    /// Blocks of each output.
    per_output: usize,
}

/// Lets buffers hold blocks of Candle.
macro_rules! zeroed {
    ($($block:ty),*) => {
        $(
            // SAFETY: a block consists of numbers, which need no drop.
            unsafe impl Zeroed for $block {}
        )*
    };
}

zeroed!(BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K);

impl<T: GgmlType + Zeroed> Matrix<T> {
    /// Copies the bytes of each output's blocks. Only Candle's types of blocks may be used.
    fn new<'a>(machine: &Machine, (outputs, inputs): (usize, usize), row: impl Fn(usize) -> &'a [u8] + Sync) -> Self {
        let per_output = inputs / T::BLCK_SIZE;
        let blocks = Buffer::<T>::written(outputs * per_output, per_output, &machine.pool, |output, blocks| {
            // SAFETY: the slice has the bytes of the blocks, which nothing else refers to while it lives. They consist of numbers
            // without space between them, which may have any bytes.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast::<u8>(), size_of_val(blocks)) };
            bytes.copy_from_slice(row(output));
        });
        Self { blocks, per_output }
    }
}

impl<T: GgmlType<VecDotType: 'static> + Zeroed> Blocks for Matrix<T> {
    fn format_of_inputs(&self) -> GgmlDType {
        T::VecDotType::DTYPE
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.blocks[..])
    }

    fn words(&self) -> &[u64] {
        // SAFETY: only Candle's types of blocks are used, which consist of numbers without space between them.
        unsafe { self.blocks.words() }
    }

    fn quantise(&self, x: &[f32]) -> Inputs {
        let mut blocks = vec![T::VecDotType::zeros(); x.len() / T::VecDotType::BLCK_SIZE];
        T::VecDotType::from_float(x, &mut blocks);
        Inputs::Blocks(Arc::new(blocks))
    }

    fn convert(&self, output: usize, from: usize, to: &mut [f32]) {
        let first = output * self.per_output + from / T::BLCK_SIZE;
        T::to_float(&self.blocks[first..][..to.len() / T::BLCK_SIZE], to);
    }

    fn multiply(&self, is_portable: bool, x: &dyn Any, rows: Range<usize>, outputs: Range<usize>, sums: &mut [f32]) {
        let x: &Vec<T::VecDotType> = x.downcast_ref().expect("inputs of this format");
        let inputs = self.per_output * T::BLCK_SIZE;
        for (column, output) in outputs.enumerate() {
            let weights = &self.blocks[output * self.per_output..][..self.per_output];
            for (row, sums) in rows.clone().zip(sums.chunks_exact_mut(PANEL)) {
                let x = &x[row * self.per_output..][..self.per_output];
                sums[column] = match is_portable {
                    true => T::vec_dot_unopt(inputs, weights, x),
                    false => T::vec_dot(inputs, weights, x),
                };
            }
        }
    }
}
