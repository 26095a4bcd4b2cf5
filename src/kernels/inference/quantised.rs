//! Weights in blocks of whole numbers that share a scale, in the formats of GGUF files, or in FP8.

use std::{
    ops::Range,
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::quantized::{
    GgmlDType, GgmlType,
    k_quants::{BlockQ4K, BlockQ8_0},
};

use super::{
    Machine,
    element::Element,
    formats::Format,
    fp8::Fp8,
    packed::Rows,
    simd::Dispatch,
    tiles::{BlocksOf, GroupRows, Matrix},
};

/// A matrix of weights in blocks or in FP8.
pub struct Quantised {
    format: &'static str,
    held: Held,
    outputs: usize,
    inputs: usize,
}

enum Held {
    Tiles(Box<dyn Matrix>),
    Fp8(Fp8),
}

/// Rows of inputs in the form that weights are multiplied with.
#[derive(Clone)]
pub enum Inputs {
    /// For tiles.
    Groups(Arc<GroupRows>),
    /// For FP8, and for types that no instruction multiplies: rows without space between them.
    Numbers(Arc<Vec<f32>>),
}

/// The form of inputs.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Groups,
    Numbers,
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
    fn in_form(&mut self, x: Rows<E>, inputs: usize, form: Form, make: impl FnOnce() -> Inputs) -> Inputs {
        let key = (x.all().as_ptr(), x.count(), inputs, form);
        if let Some((_, converted)) = self.0.iter().find(|(other, _)| *other == key) {
            return converted.clone();
        }
        let converted = make();
        self.0.push((key, converted.clone()));
        converted
    }

    /// The first `inputs` elements of each row as f32.
    pub(super) fn numbers(&mut self, machine: &Machine, x: Rows<E>, inputs: usize) -> Inputs {
        self.in_form(x, inputs, Form::Numbers, || Inputs::Numbers(Arc::new(numbers(machine, x, inputs))))
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
        let blocks = match format {
            GgmlDType::Q8_0 => quantised::<BlockQ8_0, E>(inputs, values, &is_finite),
            GgmlDType::Q4K => quantised::<BlockQ4K, E>(inputs, values, &is_finite),
            _ => return None,
        };
        let Format { name, tiles, .. } = Format::try_from(format).ok()?;
        let held = Held::Tiles(tiles(machine, shape, &*blocks));
        drop(blocks);
        is_finite.into_inner().then_some(Self { format: name, held, outputs, inputs })
    }

    /// Quantises weights to FP8: (outputs, inputs) in row-major order. `None` if one is not finite.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn fp8<E: Element>(machine: &Machine, shape @ (outputs, inputs): (usize, usize), values: &[E]) -> Option<Self> {
        assert_eq!(values.len(), outputs * inputs, "values of {outputs} x {inputs} weights");
        let is_finite = AtomicBool::new(true);
        let held = Held::Fp8(Fp8::new(machine, shape, values, &is_finite));
        is_finite.into_inner().then_some(Self { format: "f8e4m3", held, outputs, inputs })
    }

    /// Weights as a file holds them: `bytes` has a row of whole blocks for each output. `row_of` is the place of an output among the
    /// rows. `None` if weights cannot have this format, or there are not as many bytes.
    ///
    /// # Panics
    /// If a place is not below the number of outputs.
    pub fn from_bytes(
        machine: &Machine,
        format: impl TryInto<Format>,
        shape @ (outputs, inputs): (usize, usize),
        bytes: &[u8],
        row_of: impl Fn(usize) -> usize + Sync,
    ) -> Option<Self> {
        let Format { name, block: (block, block_bytes), tiles, .. } = format.try_into().ok()?;
        let row_bytes = inputs / block * block_bytes;
        if !inputs.is_multiple_of(block) || bytes.len() != outputs * row_bytes {
            return None;
        }
        let row = |output: usize| &bytes[row_of(output) * row_bytes..][..row_bytes];
        let rows = |outputs: Range<usize>, set: &mut dyn FnMut(usize, &[u8])| {
            outputs.for_each(|output| set(output, row(output)));
        };
        Some(Self { format: name, held: Held::Tiles(tiles(machine, shape, &rows)), outputs, inputs })
    }

    /// The name of the format in ids.
    pub fn format(&self) -> &'static str {
        self.format
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
            Held::Tiles(tiles) => tiles.bytes(),
            Held::Fp8(weights) => weights.bytes(),
        }
    }

    /// The memory of the weights. FP8's scales are apart.
    pub fn words(&self) -> &[u64] {
        match &self.held {
            Held::Tiles(tiles) => tiles.words(),
            Held::Fp8(weights) => weights.words(),
        }
    }

    /// Bytes of a row of many, in the form that the weights are multiplied with: 0 if that is as it is.
    pub fn input_bytes(&self) -> usize {
        match &self.held {
            Held::Tiles(_) => GroupRows::row_bytes(self.inputs),
            Held::Fp8(_) => self.inputs * size_of::<f32>(),
        }
    }

    /// Writes the weights of one output, as f32.
    ///
    /// # Panics
    /// If there is no such output, or `row` does not have an element for each input.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "no row {output} of {} inputs", row.len());
        match &self.held {
            Held::Tiles(tiles) => tiles.row(output, row),
            Held::Fp8(weights) => weights.row(output, row),
        }
    }

    /// The inputs with which [`Self::sums`] multiplies; `None` if there are no rows.
    pub(super) fn inputs_of<E: Element>(
        &self,
        machine: &Machine,
        x: Rows<E>,
        shared: &mut Shared<E>,
    ) -> Option<Inputs> {
        if x.count() == 0 {
            return None;
        }
        Some(match &self.held {
            Held::Tiles(_) => shared.in_form(x, self.inputs, Form::Groups, || {
                Inputs::Groups(Arc::new(GroupRows::new(machine, x, self.inputs)))
            }),
            Held::Fp8(_) => shared.numbers(machine, x, self.inputs),
        })
    }

    /// Computes the sums of some rows with a panel, [`PANEL`](super::packed::PANEL) for each row. `inputs` are those of [`Self::inputs_of`].
    pub(super) fn sums(
        &self,
        dispatch: Dispatch,
        inputs: Option<&Inputs>,
        rows: Range<usize>,
        panel: usize,
        sums: &mut [f32],
    ) {
        match (&self.held, inputs) {
            (Held::Tiles(tiles), Some(Inputs::Groups(x))) => tiles.sums(dispatch, x, rows, panel, sums),
            (Held::Fp8(weights), Some(Inputs::Numbers(x))) => weights.sums(dispatch, x, rows, panel, sums),
            _ => unreachable!("inputs for weights of another kind"),
        }
    }
}

/// Quantises weights, those of some outputs at a time. Clears `is_finite` if one is not finite.
fn quantised<'a, B: GgmlType, E: Element>(
    inputs: usize,
    values: &'a [E],
    is_finite: &'a AtomicBool,
) -> Box<BlocksOf<'a>> {
    Box::new(move |outputs, set| {
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
            let bytes = unsafe { slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(&blocks[..])) };
            set(output, bytes);
        }
    })
}
