//! The two formats in which weights are quantised here, q8_0 and q4_k, in tiles for vectors.
//!
//! A tile holds the blocks of 16 outputs. Each line of 64 bytes has the next inputs of all 16, four bytes each, so that one
//! instruction multiplies four inputs of each output. A tile has the bits of its blocks, and a few more: scales of q4_k have
//! whole bytes. Inputs are quantised too, 32 at a time. Products of whole numbers are exact; only their sums are scaled.

use std::{mem::offset_of, ops::Range, ptr};

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{
    Machine,
    element::Element,
    memory::{Buffer, LINE, Zeroed},
    packed::{AHEAD, PANEL, Rows},
    simd::{Dispatch, Kernel, Simd},
};

/// Outputs of a tile: the numbers in the longest vector.
const OUTPUTS: usize = 16;

/// Inputs that share a scale.
const GROUP: usize = 32;

/// Rows of inputs are padded with zeros to a multiple of the inputs of every tile.
const PADDING: usize = 256;

/// Some inputs of a row, as whole numbers.
#[derive(Clone, Copy)]
pub struct Group {
    /// Between -127 and 127.
    quants: [i8; GROUP],
    scale: f32,
    sum: i32,
    /// The sum of the inputs, negative.
    negative_sum: f32,
}

const ZEROS: Group = Group { quants: [0; GROUP], scale: 0.0, sum: 0, negative_sum: 0.0 };

/// Rows of quantised inputs.
pub struct GroupRows {
    groups: Vec<Group>,
    /// Groups of each row.
    per_row: usize,
}

impl GroupRows {
    /// Bytes of a row of this many inputs.
    pub fn row_bytes(inputs: usize) -> usize {
        inputs.next_multiple_of(PADDING) / GROUP * size_of::<Group>()
    }

    /// Quantises the first `inputs` elements of each row. A row with a number that is not finite becomes NaN.
    pub fn new<E: Element>(machine: &Machine, x: Rows<E>, inputs: usize) -> Self {
        let per_row = inputs.next_multiple_of(PADDING) / GROUP;
        let mut groups = vec![ZEROS; x.count() * per_row];
        let row = |number: usize, groups: &mut [Group]| {
            machine.dispatch.run(Quantise { row: &x.row(number)[..inputs], groups });
        };
        match x.count() {
            1 => row(0, &mut groups),
            _ => machine.pool.parts(&mut groups, per_row, row),
        }
        Self { groups, per_row }
    }
}

struct Quantise<'a, E> {
    row: &'a [E],
    groups: &'a mut [Group],
}

impl<E: Element> Kernel for Quantise<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // Adding this rounds a small number to a whole one, which is then in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        for (group, inputs) in self.groups.iter_mut().zip(self.row.chunks(GROUP)) {
            let mut values = [0f32; GROUP];
            values.iter_mut().zip(inputs).for_each(|(value, input)| *value = input.to_f32());
            // The bits of numbers without a sign have their order, and those of NaN come last. Unlike that of numbers, the compiler
            // vectorises this maximum.
            let most = values.iter().fold(0, |most, value| most.max(value.abs().to_bits()));
            let most = f32::from_bits(most);
            let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
            let mut sum = 0;
            for (quant, value) in group.quants.iter_mut().zip(&values) {
                let whole = (value * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                *quant = whole as i8;
                sum += i32::from(*quant);
            }
            group.scale = if most.is_finite() { most / 127.0 } else { f32::NAN };
            group.sum = sum;
            group.negative_sum = -group.scale * sum as f32;
        }
    }
}

/// The blocks of [`OUTPUTS`] outputs for some inputs, without space between their numbers.
pub trait Tile: Zeroed {
    const FORMAT: GgmlDType;
    const INPUTS: usize;

    /// Sets an output from the bytes of its blocks. Where a row ends within the tile, blocks are missing.
    fn set(&mut self, output: usize, blocks: &[u8]);

    /// The weight of an output and an input.
    fn weight(&self, output: usize, input: usize) -> f32;

    /// Adds the products with `R` rows of groups to the sums of the outputs from `first` on.
    ///
    /// # Safety
    /// `first` plus the lanes of a vector must be at most [`OUTPUTS`].
    unsafe fn add<S: Simd, const R: usize>(&self, simd: S, first: usize, x: [&[Group]; R], sums: &mut [S::Vector; R]);
}

/// Reads four inputs.
#[inline(always)]
fn four(group: &Group, first: usize) -> [i8; 4] {
    [group.quants[first], group.quants[first + 1], group.quants[first + 2], group.quants[first + 3]]
}

/// Requests the first `lines` lines of the tile that lies [`AHEAD`] bytes after this one. The lines of a tile are read in order, from
/// its scales on: a single line that is not requested is waited for in each tile.
#[inline(always)]
fn prefetch_start<T>(tile: &T, lines: usize, prefetch: impl Fn(*const u8)) {
    let start = ptr::from_ref(tile).cast::<u8>().wrapping_add(AHEAD);
    (0..lines).for_each(|line| prefetch(start.wrapping_add(line * LINE)));
}

/// Eight bits for each weight, in blocks of 32 inputs with a scale.
#[repr(C, align(64))]
pub struct Q8Tile {
    scales: [[f16; OUTPUTS]; 2],
    /// Four inputs of each output in each line, with a sign.
    quants: [[u8; 64]; 16],
}

// SAFETY: every pattern of bits is a number.
unsafe impl Zeroed for Q8Tile {}

const _: () =
    assert!(size_of::<Q8Tile>() == (2 * 2 + Q8Tile::INPUTS) * OUTPUTS, "a tile has space between its numbers");

impl Tile for Q8Tile {
    const FORMAT: GgmlDType = GgmlDType::Q8_0;
    const INPUTS: usize = 2 * GROUP;

    fn set(&mut self, output: usize, blocks: &[u8]) {
        // A block is a scale and 32 numbers.
        for (number, block) in blocks.chunks_exact(2 + GROUP).enumerate() {
            self.scales[number][output] = f16::from_le_bytes([block[0], block[1]]);
            for (input, quant) in block[2..].iter().enumerate() {
                self.quants[number * GROUP / 4 + input / 4][output * 4 + input % 4] = *quant;
            }
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        let quant = self.quants[input / 4][output * 4 + input % 4] as i8;
        f32::from(quant) * self.scales[input / GROUP][output].to_f32()
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(&self, simd: S, first: usize, x: [&[Group]; R], sums: &mut [S::Vector; R]) {
        if R == 1 {
            prefetch_start(self, offset_of!(Self, quants) / LINE, |line| simd.prefetch_to_l2(line));
        }
        for (number, lines) in self.quants.as_chunks::<{ GROUP / 4 }>().0.iter().enumerate() {
            let x = x.map(|groups| &groups[number]);
            let mut products = x.map(|group| simd.ints(-S::OFFSET * group.sum));
            for (line, bytes) in lines.iter().enumerate() {
                // SAFETY: the line has four bytes for each output, and the caller vouches for the outputs.
                let weights = unsafe { simd.load_bytes(bytes.as_ptr().add(4 * first)) };
                if R == 1 {
                    simd.prefetch_to_l2(bytes.as_ptr().wrapping_add(AHEAD));
                }
                for (products, group) in products.iter_mut().zip(x) {
                    *products = simd.dot_signed(*products, weights, four(group, 4 * line));
                }
            }
            // SAFETY: there is a scale for each output.
            let scales = unsafe { simd.load_half(self.scales[number].as_ptr().add(first)) };
            for ((sum, products), group) in sums.iter_mut().zip(products).zip(x) {
                let scales = simd.multiply(scales, simd.splat(group.scale));
                *sum = simd.multiply_add(*sum, simd.to_vector(products), scales);
            }
        }
    }
}

/// Four bits for each weight, in blocks of 256 inputs. Each 32 of them have a scale and an offset of six bits, and all have a scale of
/// these scales and one of these offsets.
#[repr(C, align(64))]
pub struct Q4Tile {
    scale_of_scales: [f16; OUTPUTS],
    scale_of_offsets: [f16; OUTPUTS],
    scales: [[u8; OUTPUTS]; 8],
    offsets: [[u8; OUTPUTS]; 8],
    /// Eight inputs of each output in each line: the first four in the lower halves of its bytes.
    quants: [[u8; 64]; 32],
}

// SAFETY: every pattern of bits is a number.
unsafe impl Zeroed for Q4Tile {}

const _: () = assert!(
    size_of::<Q4Tile>() == (2 * 2 + 2 * 8 + Q4Tile::INPUTS / 2) * OUTPUTS,
    "a tile has space between its numbers"
);

impl Tile for Q4Tile {
    const FORMAT: GgmlDType = GgmlDType::Q4K;
    const INPUTS: usize = 8 * GROUP;

    fn set(&mut self, output: usize, blocks: &[u8]) {
        // Two scales, 12 bytes with the eight scales and the eight offsets, and 128 bytes with two numbers each.
        let Some(block) = blocks.first_chunk::<144>() else { return };
        self.scale_of_scales[output] = f16::from_le_bytes([block[0], block[1]]);
        self.scale_of_offsets[output] = f16::from_le_bytes([block[2], block[3]]);
        let packed = &block[4..16];
        for number in 0..8 {
            // The last four have their upper two bits above the six bits of the first four.
            (self.scales[number][output], self.offsets[number][output]) = match number {
                0..4 => (packed[number] & 63, packed[number + 4] & 63),
                _ => (
                    packed[number + 4] & 15 | packed[number - 4] >> 6 << 4,
                    packed[number + 4] >> 4 | packed[number] >> 6 << 4,
                ),
            };
        }
        for input in 0..Self::INPUTS {
            // Of 64 inputs, the first 32 are in the lower halves of 32 bytes, and the others in the upper halves.
            let byte = block[16 + input / 64 * 32 + input % 32];
            let quant = if input % 64 < 32 { byte & 15 } else { byte >> 4 };
            let place = &mut self.quants[input / 8][output * 4 + input % 4];
            *place |= if input % 8 < 4 { quant } else { quant << 4 };
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        let byte = self.quants[input / 8][output * 4 + input % 4];
        let quant = if input % 8 < 4 { byte & 15 } else { byte >> 4 };
        let scale = self.scale_of_scales[output].to_f32() * f32::from(self.scales[input / GROUP][output]);
        let offset = self.scale_of_offsets[output].to_f32() * f32::from(self.offsets[input / GROUP][output]);
        scale * f32::from(quant) - offset
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(&self, simd: S, first: usize, x: [&[Group]; R], sums: &mut [S::Vector; R]) {
        if R == 1 {
            // Into L1: its loop computes more for each byte, and was a little slower with prefetches into L2.
            prefetch_start(self, offset_of!(Self, quants) / LINE, |line| simd.prefetch(line));
        }
        // SAFETY: there are scales for each output, and the caller vouches for the outputs.
        let (of_scales, of_offsets) = unsafe {
            (
                simd.load_half(self.scale_of_scales.as_ptr().add(first)),
                simd.load_half(self.scale_of_offsets.as_ptr().add(first)),
            )
        };
        for (number, lines) in self.quants.as_chunks::<{ GROUP / 8 }>().0.iter().enumerate() {
            let x = x.map(|groups| &groups[number]);
            let (mut products, mut of_high) = ([simd.ints(0); R], simd.ints(0));
            for (line, bytes) in lines.iter().enumerate() {
                // SAFETY: as above, with four bytes for each output.
                let (low, high) = simd.halves(unsafe { simd.load_bytes(bytes.as_ptr().add(4 * first)) });
                if R == 1 {
                    simd.prefetch(bytes.as_ptr().wrapping_add(AHEAD));
                }
                for (products, group) in products.iter_mut().zip(x) {
                    // A product waits for the one before in its sum, so a single row has two sums.
                    let of_high = if R == 1 { &mut of_high } else { &mut *products };
                    *of_high = simd.dot_unsigned(*of_high, high, four(group, 8 * line + 4));
                    *products = simd.dot_unsigned(*products, low, four(group, 8 * line));
                }
            }
            if R == 1 {
                products[0] = simd.add_ints(products[0], of_high);
            }
            // SAFETY: as above.
            let (scales, offsets) = unsafe {
                (
                    simd.load_small(self.scales[number].as_ptr().add(first)),
                    simd.load_small(self.offsets[number].as_ptr().add(first)),
                )
            };
            let (scales, offsets) = (simd.multiply(scales, of_scales), simd.multiply(offsets, of_offsets));
            for ((sum, products), group) in sums.iter_mut().zip(products).zip(x) {
                let scales = simd.multiply(scales, simd.splat(group.scale));
                *sum = simd.multiply_add(*sum, simd.to_vector(products), scales);
                *sum = simd.multiply_add(*sum, offsets, simd.splat(group.negative_sum));
            }
        }
    }
}

/// A matrix in tiles: those of the first 16 outputs, then those of the next.
pub struct Tiles<T> {
    tiles: Buffer<T>,
    /// Tiles of each 16 outputs.
    per_output: usize,
}

impl<T: Tile> Tiles<T> {
    /// Weights in blocks. `blocks` calls its second argument with the bytes of an output's blocks.
    pub fn new(
        machine: &Machine,
        (outputs, inputs): (usize, usize),
        blocks: impl Fn(Range<usize>, &mut dyn FnMut(usize, &[u8])) + Sync,
    ) -> Self {
        let per_output = inputs.div_ceil(T::INPUTS);
        let count = outputs.div_ceil(OUTPUTS) * per_output;
        let tile_bytes = T::INPUTS / T::FORMAT.block_size() * T::FORMAT.type_size();
        let tiles = Buffer::<T>::written(count, per_output, &machine.pool, |number, tiles| {
            let first = number * OUTPUTS;
            blocks(first..outputs.min(first + OUTPUTS), &mut |output, blocks| {
                for (tile, blocks) in tiles.iter_mut().zip(blocks.chunks(tile_bytes)) {
                    tile.set(output - first, blocks);
                }
            });
        });
        Self { tiles, per_output }
    }

    pub fn bytes(&self) -> usize {
        self.tiles.len() * size_of::<T>()
    }

    /// The memory of the tiles.
    pub fn words(&self) -> &[u64] {
        // SAFETY: a tile consists of numbers without space between them.
        unsafe { self.tiles.words() }
    }

    /// Converts the weights of an output.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        let tiles = &self.tiles[output / OUTPUTS * self.per_output..][..self.per_output];
        for (input, weight) in row.iter_mut().enumerate() {
            *weight = tiles[input / T::INPUTS].weight(output % OUTPUTS, input % T::INPUTS);
        }
    }

    /// Computes the sums of some rows with a panel, [`PANEL`] for each row.
    pub fn sums(&self, dispatch: Dispatch, x: &GroupRows, rows: Range<usize>, panel: usize, sums: &mut [f32]) {
        let tiles = &self.tiles[panel * (PANEL / OUTPUTS) * self.per_output..];
        let x = &x.groups[rows.start * x.per_row..rows.end * x.per_row];
        for (number, tiles) in tiles.chunks_exact(self.per_output).take(PANEL / OUTPUTS).enumerate() {
            dispatch.run(Products { tiles, x, rows: rows.len(), column: number * OUTPUTS, sums: &mut *sums });
        }
    }
}

/// Products of some rows with the tiles of 16 outputs.
struct Products<'a, T> {
    tiles: &'a [T],
    /// The groups of each row.
    x: &'a [Group],
    rows: usize,
    /// The place of the first output in the sums of a row.
    column: usize,
    sums: &'a mut [f32],
}

impl<T: Tile> Kernel for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for row in (0..self.rows).step_by(S::ROWS) {
            match S::ROWS.min(self.rows - row) {
                1 => self.of_rows::<S, 1>(simd, row),
                2 => self.of_rows::<S, 2>(simd, row),
                3 => self.of_rows::<S, 3>(simd, row),
                4 => self.of_rows::<S, 4>(simd, row),
                5 => self.of_rows::<S, 5>(simd, row),
                _ => self.of_rows::<S, 6>(simd, row),
            }
        }
    }
}

impl<T: Tile> Products<'_, T> {
    /// The products of `R` rows.
    #[inline(always)]
    fn of_rows<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let per_row = self.x.len() / self.rows;
        let rows: [&[Group]; R] = std::array::from_fn(|r| &self.x[(row + r) * per_row..][..per_row]);
        for first in (0..OUTPUTS).step_by(S::LANES) {
            let mut sums = [simd.splat(0.0); R];
            for (number, tile) in self.tiles.iter().enumerate() {
                let groups = T::INPUTS / GROUP;
                let x = rows.map(|row| &row[number * groups..][..groups]);
                // SAFETY: the lanes of every vector divide the outputs of a tile.
                unsafe { tile.add(simd, first, x, &mut sums) };
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let out = &mut self.sums[(row + r) * PANEL + self.column + first..][..S::LANES];
                // SAFETY: the slice has a number for each lane.
                unsafe { simd.store(out.as_mut_ptr(), sum) };
            }
        }
    }
}
