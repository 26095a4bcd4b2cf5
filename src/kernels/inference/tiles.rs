//! Weights in blocks of whole numbers, in tiles for vectors. [`formats`](super::formats) says how the blocks of a file become tiles.
//!
//! A tile holds the blocks of 16 outputs. Each line of 64 bytes has the next inputs of all 16, for each of them four bytes, so that one
//! instruction multiplies four inputs of each output. Formats with fewer bits than eight are cut into planes of four, two or one bits,
//! whose lines have the bits of several inputs in each byte. So a tile has the bits of its blocks, and a few more: scales of six
//! bits have whole bytes. Inputs are quantised too, 32 at a time. Products of whole numbers are exact; only their sums are scaled.

use std::{ops::Range, ptr};

use super::{
    Machine,
    element::Element,
    memory::{Buffer, LINE, Zeroed},
    packed::{AHEAD, PANEL, Rows},
    simd::{Dispatch, Kernel, Simd},
};

/// Outputs of a tile: the numbers in the longest vector.
pub const OUTPUTS: usize = 16;

/// Inputs that share a scale, those of a row, and those of weights at most.
pub const GROUP: usize = 32;

/// Rows of inputs are padded with zeros to a multiple of the inputs of every tile.
const PADDING: usize = 256;

/// Some inputs of a row, as whole numbers.
#[derive(Clone, Copy)]
pub struct Group {
    /// Between -127 and 127.
    quants: [i8; GROUP],
    scale: f32,
    sum: i32,
    /// The sum of the inputs, negative, and those of both halves.
    negative_sum: f32,
    negative_halves: [f32; 2],
}

const ZEROS: Group = Group { quants: [0; GROUP], scale: 0.0, sum: 0, negative_sum: 0.0, negative_halves: [0.0; 2] };

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
            for (quant, value) in group.quants.iter_mut().zip(&values) {
                *quant = ((value * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32) as i8;
            }
            let halves = group.quants.as_chunks::<{ GROUP / 2 }>().0;
            let [first, second] = [0, 1].map(|half| halves[half].iter().map(|quant| i32::from(*quant)).sum::<i32>());
            group.scale = if most.is_finite() { most / 127.0 } else { f32::NAN };
            group.sum = first + second;
            group.negative_sum = -group.scale * group.sum as f32;
            group.negative_halves = [first, second].map(|sum| -group.scale * sum as f32);
        }
    }
}

/// Bytes that one load of the longest vector reads.
pub type Line = [u8; LINE];

// SAFETY: every pattern of bits is a number.
unsafe impl<const N: usize> Zeroed for [Line; N] {}

/// A format of weights: how many bits they have, and how a block in a file becomes a part of a tile.
pub trait Format: Send + Sync + 'static {
    /// Inputs of a block in a file, and its bytes.
    const BLOCK: (usize, usize);
    /// Bits of the planes that a weight is cut into, the lowest first.
    const PLANES: &'static [usize];
    /// Inputs that share a scale: [`GROUP`], or half as many.
    const STEP: usize = GROUP;
    const VALUES: Values;
    type Header: Header;
    /// The bits of the planes, a line for each bit of each group.
    type Lines: Zeroed + AsRef<[Line]> + AsMut<[Line]>;

    /// Reads a block: sets its scales for an output in the header, and its whole numbers, one in each byte. The block is the first of
    /// its tile, or the one of this number.
    fn unpack(block: &[u8], header: &mut Self::Header, at: (usize, usize), quants: &mut [u8]);
}

/// The meaning of the bits of a weight.
#[derive(Clone, Copy)]
pub enum Values {
    /// Numbers without a sign, of which this is subtracted.
    Unsigned(i8),
    /// Bytes with a sign.
    Signed,
    /// Places in a table of numbers without a sign, of which this is subtracted.
    Table([i8; 16], i8),
    /// Places in a table of numbers with a sign.
    SignedTable([i8; 16]),
}

impl Values {
    const fn is_signed(self) -> bool {
        matches!(self, Self::Signed | Self::SignedTable(_))
    }

    const fn bias(self) -> i8 {
        match self {
            Self::Unsigned(bias) | Self::Table(_, bias) => bias,
            Self::Signed | Self::SignedTable(_) => 0,
        }
    }

    /// The number that some bits mean.
    fn of(self, bits: u8) -> f32 {
        let number = match self {
            Self::Unsigned(_) => i16::from(bits),
            Self::Signed => i16::from(bits as i8),
            Self::Table(table, _) | Self::SignedTable(table) => i16::from(table[usize::from(bits)]),
        };
        f32::from(number - i16::from(self.bias()))
    }
}

/// The scales of a tile. A weight is a scale times a number, less an offset.
pub trait Header: Zeroed {
    /// Groups of a tile.
    const GROUPS: usize;

    /// The scale and the offset of an output for the inputs of a step.
    fn of(&self, step: usize, output: usize) -> (f32, f32);

    /// Those of the outputs from one on; `None` if offsets are zero.
    ///
    /// # Safety
    /// `first` plus the lanes of a vector must be at most [`OUTPUTS`].
    unsafe fn load<S: Simd>(&self, simd: S, step: usize, first: usize) -> (S::Vector, Option<S::Vector>);
}

/// The blocks of [`OUTPUTS`] outputs for some inputs, without space between their numbers.
#[repr(C, align(64))]
struct Tile<F: Format> {
    header: F::Header,
    lines: F::Lines,
}

// SAFETY: every pattern of bits is a number.
unsafe impl<F: Format> Zeroed for Tile<F> {}

/// Bits of a weight, and lines of a group.
const fn bits<F: Format>() -> usize {
    let (mut bits, mut plane) = (0, 0);
    while plane < F::PLANES.len() {
        bits += F::PLANES[plane];
        plane += 1;
    }
    bits
}

/// Lines of four inputs whose products fit into one [`Simd::Partial`].
const fn lines_of_partial<F: Format>() -> usize {
    let most = match F::VALUES {
        Values::Signed | Values::SignedTable(_) => return 1,
        Values::Unsigned(_) => (1 << bits::<F>()) - 1,
        Values::Table(table, _) => {
            let (mut most, mut place) = (0, 0);
            while place < table.len() {
                most = if table[place] as usize > most { table[place] as usize } else { most };
                place += 1;
            }
            most
        }
    };
    let lines = 0x7fff / (2 * 127 * most);
    // A power of two divides the lines of a step.
    let (lines, of_step) = (1 << lines.ilog2(), F::STEP / 4);
    if lines < of_step { lines } else { of_step }
}

/// Requests the lines that lie [`AHEAD`] bytes after some. A line that is not requested is waited for in each tile.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, bytes: *const u8, lines: usize) {
    for line in 0..lines {
        simd.prefetch(bytes.wrapping_add(AHEAD + line * LINE));
    }
}

impl<F: Format> Tile<F> {
    const INPUTS: usize = F::Header::GROUPS * GROUP;

    /// Places of the bits of an input: for each plane a line, the byte of an output in it, and the first of its bits there.
    fn places(output: usize, input: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let (group, line) = (input / GROUP, input % GROUP / 4);
        F::PLANES.iter().scan(group * bits::<F>(), move |first, plane| {
            let place = (*first + line * plane / 8, output * 4 + input % 4, line * plane % 8);
            *first += plane;
            Some(place)
        })
    }

    /// Sets an output from the bytes of its blocks. Where a row ends within the tile, blocks are missing.
    fn set(&mut self, output: usize, blocks: &[u8]) {
        let mut quants = [0; 8 * GROUP];
        let (inputs, bytes) = F::BLOCK;
        for (number, block) in blocks.chunks_exact(bytes).enumerate() {
            let quants = &mut quants[..inputs];
            F::unpack(block, &mut self.header, (number, output), quants);
            for (input, mut quant) in (number * inputs..).zip(quants.iter().copied()) {
                for ((line, byte, shift), plane) in Self::places(output, input).zip(F::PLANES) {
                    let mask = u8::MAX >> (8 - plane);
                    self.lines.as_mut()[line][byte] |= (quant & mask) << shift;
                    quant = quant.checked_shr(*plane as u32).unwrap_or(0);
                }
            }
        }
    }

    /// The weight of an output and an input.
    fn weight(&self, output: usize, input: usize) -> f32 {
        let (mut quant, mut bit) = (0, 0);
        for ((line, byte, shift), plane) in Self::places(output, input).zip(F::PLANES) {
            quant |= (self.lines.as_ref()[line][byte] >> shift & (u8::MAX >> (8 - plane))) << bit;
            bit += plane;
        }
        let (scale, offset) = self.header.of(input / F::STEP, output);
        scale * F::VALUES.of(quant) - offset
    }

    /// The weights of four inputs of each lane. `lines` are those of a group from the first output on.
    ///
    /// # Safety
    /// The lines must lie in memory.
    #[inline(always)]
    unsafe fn weights<S: Simd>(simd: S, lines: *const u8, four: usize) -> S::Bytes {
        // SAFETY: as the caller ensures.
        let load = |line: usize| unsafe { simd.load_bytes(lines.add(line * LINE)) };
        let (plane, first) = (F::PLANES[0], four * F::PLANES[0]);
        if plane == 8 {
            return load(four);
        }
        let low = simd.bits(load(first / 8), (first % 8) as i32, u8::MAX >> (8 - plane));
        let all = match F::PLANES.get(1) {
            None => low,
            Some(high) => {
                let bytes = load(plane + four * high / 8);
                let right = (four * high % 8) as i32 - plane as i32;
                simd.or(low, simd.bits(bytes, right, u8::MAX >> (8 - high) << plane))
            }
        };
        match &F::VALUES {
            Values::Unsigned(_) | Values::Signed => all,
            Values::Table(table, _) | Values::SignedTable(table) => simd.look_up(table, all),
        }
    }

    /// Adds the products of four inputs of `R` rows with `V` vectors of outputs.
    ///
    /// # Safety
    /// As for [`Self::weights`].
    #[inline(always)]
    unsafe fn add_four<S: Simd, const R: usize, const V: usize>(
        (simd, lines, x): (S, *const u8, [&Group; R]),
        four: usize,
        partials: &mut [[S::Partial; V]; R],
        products: &mut [[S::Ints; V]; R],
    ) {
        let each = lines_of_partial::<F>();
        for v in 0..V {
            // SAFETY: as the caller ensures.
            let weights = unsafe { Self::weights(simd, lines.wrapping_add(v * 4 * S::LANES), four) };
            for r in 0..R {
                let quants = &x[r].quants;
                let inputs = [quants[4 * four], quants[4 * four + 1], quants[4 * four + 2], quants[4 * four + 3]];
                let before = if four.is_multiple_of(each) { simd.partial() } else { partials[r][v] };
                partials[r][v] = match F::VALUES.is_signed() {
                    true => simd.dot_signed(before, weights, inputs),
                    false => simd.dot_unsigned(before, weights, inputs),
                };
                if (four + 1).is_multiple_of(each) {
                    products[r][v] = simd.widen(products[r][v], partials[r][v]);
                }
            }
        }
    }

    /// Adds the products with `R` rows of groups to the sums of `V` vectors of outputs from `first` on.
    ///
    /// # Safety
    /// `first` plus the lanes of the vectors must be at most [`OUTPUTS`], and each row must have the groups of a tile.
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        first: usize,
        x: [&[Group]; R],
        sums: &mut [[S::Vector; V]; R],
    ) {
        if R == 1 {
            prefetch(simd, ptr::from_ref(self).cast(), size_of::<F::Header>() / LINE);
        }
        for group in 0..F::Header::GROUPS {
            let lines = ptr::from_ref(&self.lines).cast::<u8>().wrapping_add(group * bits::<F>() * LINE);
            if R == 1 {
                prefetch(simd, lines, bits::<F>());
            }
            // Loops rather than calls of `map`, which the compiler does not always inline.
            let mut of_group = [&x[0][group]; R];
            for r in 1..R {
                of_group[r] = &x[r][group];
            }
            let x = of_group;
            let from_first = (simd, lines.wrapping_add(4 * first), x);
            let mut partials = [[simd.partial(); V]; R];
            for step in 0..GROUP / F::STEP {
                let mut products = [[simd.ints(0); V]; R];
                if F::VALUES.is_signed() && S::OFFSET != 0 {
                    for r in 0..R {
                        products[r] = [simd.ints(-S::OFFSET * x[r].sum); V];
                    }
                }
                // The loop is written out: in each turn, bits are shifted by another constant.
                macro_rules! fours {
                    ($first:expr, $($four:literal)*) => {
                        // SAFETY: the group has these lines, and the caller vouches for the outputs.
                        unsafe { $(Self::add_four(from_first, $first + $four, &mut partials, &mut products);)* }
                    };
                }
                match (F::STEP, step) {
                    (GROUP, _) => fours!(0, 0 1 2 3 4 5 6 7),
                    (_, 0) => fours!(0, 0 1 2 3),
                    _ => fours!(4, 0 1 2 3),
                }
                for v in 0..V {
                    // SAFETY: the caller vouches for the outputs.
                    let (scales, offsets) =
                        unsafe { self.header.load(simd, group * (GROUP / F::STEP) + step, first + v * S::LANES) };
                    let offsets = match F::VALUES.bias() {
                        0 => offsets,
                        bias => Some(simd.multiply(scales, simd.splat(bias.into()))),
                    };
                    for r in 0..R {
                        let (sum, group) = (&mut sums[r][v], x[r]);
                        let scales = simd.multiply(scales, simd.splat(group.scale));
                        *sum = simd.multiply_add(*sum, simd.to_vector(products[r][v]), scales);
                        if let Some(offsets) = offsets {
                            let of_inputs =
                                if F::STEP == GROUP { group.negative_sum } else { group.negative_halves[step] };
                            *sum = simd.multiply_add(*sum, offsets, simd.splat(of_inputs));
                        }
                    }
                }
            }
        }
    }
}

/// A matrix of weights in a format.
pub trait Matrix: Send + Sync {
    fn bytes(&self) -> usize;

    /// The memory of the weights.
    fn words(&self) -> &[u64];

    /// Converts the weights of an output.
    fn row(&self, output: usize, row: &mut [f32]);

    /// Computes the sums of some rows with a panel, [`PANEL`] for each row.
    fn sums(&self, dispatch: Dispatch, x: &GroupRows, rows: Range<usize>, panel: usize, sums: &mut [f32]);
}

/// A matrix in tiles: those of the first 16 outputs, then those of the next.
pub struct Tiles<F: Format> {
    tiles: Buffer<Tile<F>>,
    /// Tiles of each 16 outputs.
    per_output: usize,
}

/// Calls its second argument with the bytes of the blocks of some outputs.
pub type BlocksOf<'a> = dyn Fn(Range<usize>, &mut dyn FnMut(usize, &[u8])) + Sync + 'a;

impl<F: Format> Tiles<F> {
    /// Weights in blocks.
    pub fn new(machine: &Machine, (outputs, inputs): (usize, usize), blocks: &BlocksOf) -> Self {
        const {
            assert!(size_of::<Tile<F>>() == size_of::<F::Header>() + size_of::<F::Lines>(), "space between numbers");
            assert!(
                size_of::<F::Lines>() == F::Header::GROUPS * bits::<F>() * LINE,
                "a line for each bit of each group"
            );
            assert!(size_of::<F::Header>().is_multiple_of(LINE), "lines are aligned");
        }
        let per_output = inputs.div_ceil(Tile::<F>::INPUTS);
        let count = outputs.div_ceil(OUTPUTS) * per_output;
        let tile_bytes = Tile::<F>::INPUTS / F::BLOCK.0 * F::BLOCK.1;
        let tiles = Buffer::<Tile<F>>::written(count, per_output, &machine.pool, |number, tiles| {
            let first = number * OUTPUTS;
            blocks(first..outputs.min(first + OUTPUTS), &mut |output, blocks| {
                for (tile, blocks) in tiles.iter_mut().zip(blocks.chunks(tile_bytes)) {
                    tile.set(output - first, blocks);
                }
            });
        });
        Self { tiles, per_output }
    }
}

impl<F: Format> Matrix for Tiles<F> {
    fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..])
    }

    fn words(&self) -> &[u64] {
        // SAFETY: a tile consists of numbers without space between them.
        unsafe { self.tiles.words() }
    }

    fn row(&self, output: usize, row: &mut [f32]) {
        let tiles = &self.tiles[output / OUTPUTS * self.per_output..][..self.per_output];
        for (input, weight) in row.iter_mut().enumerate() {
            *weight = tiles[input / Tile::<F>::INPUTS].weight(output % OUTPUTS, input % Tile::<F>::INPUTS);
        }
    }

    fn sums(&self, dispatch: Dispatch, x: &GroupRows, rows: Range<usize>, panel: usize, sums: &mut [f32]) {
        let tiles = &self.tiles[panel * (PANEL / OUTPUTS) * self.per_output..];
        let x = &x.groups[rows.start * x.per_row..rows.end * x.per_row];
        for (number, tiles) in tiles.chunks_exact(self.per_output).take(PANEL / OUTPUTS).enumerate() {
            dispatch.run(Products { tiles, x, rows: rows.len(), column: number * OUTPUTS, sums: &mut *sums });
        }
    }
}

/// Products of some rows with the tiles of 16 outputs.
struct Products<'a, F: Format> {
    tiles: &'a [Tile<F>],
    /// The groups of each row.
    x: &'a [Group],
    rows: usize,
    /// The place of the first output in the sums of a row.
    column: usize,
    sums: &'a mut [f32],
}

impl<F: Format> Kernel for Products<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                // A single row reads the weights once, and so all outputs of a tile at a time.
                1 => match OUTPUTS / S::LANES {
                    1 => self.of_rows::<S, 1, 1>(simd, row),
                    _ => self.of_rows::<S, 1, 2>(simd, row),
                },
                2..MOST_ROWS => self.of_rows::<S, 2, 1>(simd, row),
                _ => self.of_rows::<S, MOST_ROWS, 1>(simd, row),
            }
        }
    }
}

/// Rows that are multiplied at a time, so that their sums stay in registers.
const MOST_ROWS: usize = 6;

impl<F: Format> Products<'_, F> {
    /// The products of `R` rows with `V` vectors at a time. Returns the number of rows.
    #[inline(always)]
    fn of_rows<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize) -> usize {
        let per_row = self.x.len() / self.rows;
        let rows: [&[Group]; R] = std::array::from_fn(|r| &self.x[(row + r) * per_row..][..per_row]);
        for first in (0..OUTPUTS).step_by(V * S::LANES) {
            let mut sums = [[simd.splat(0.0); V]; R];
            for (number, tile) in self.tiles.iter().enumerate() {
                let groups = F::Header::GROUPS;
                let mut x = rows;
                for row in &mut x {
                    *row = &row[number * groups..][..groups];
                }
                // SAFETY: the lanes of every vector, and of two of AVX2, divide the outputs of a tile.
                unsafe { tile.add(simd, first, x, &mut sums) };
            }
            for (r, vectors) in sums.into_iter().enumerate() {
                for (v, sum) in vectors.into_iter().enumerate() {
                    let out = &mut self.sums[(row + r) * PANEL + self.column + first + v * S::LANES..][..S::LANES];
                    // SAFETY: the slice has a number for each lane.
                    unsafe { simd.store(out.as_mut_ptr(), sum) };
                }
            }
        }
        R
    }
}
