//! The formats of quantised weights, as ggml defines them: a row of [`Format::ALL`] for each, and how its blocks are unpacked.

use std::fmt;

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{
    Machine,
    memory::Zeroed,
    simd::Simd,
    tiles::{self, BlocksOf, GROUP, Header, Line, Matrix, OUTPUTS, Tiles, Values},
};

/// A format of weights in blocks.
#[derive(Clone, Copy)]
pub struct Format {
    /// Its name in ids.
    pub name: &'static str,
    /// Its number in files.
    pub number: u32,
    /// Inputs of a block, and its bytes.
    pub block: (usize, usize),
    pub(super) tiles: MakeTiles,
}

/// Makes tiles of this many outputs and inputs.
type MakeTiles = fn(&Machine, (usize, usize), &BlocksOf) -> Box<dyn Matrix>;

const fn row<F: tiles::Format>(name: &'static str, number: u32) -> Format {
    Format {
        name,
        number,
        block: F::BLOCK,
        tiles: |machine, shape, blocks| Box::new(Tiles::<F>::new(machine, shape, blocks)),
    }
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 13] = [
        row::<Q4_0>("q4_0", 2),
        row::<Q4_1>("q4_1", 3),
        row::<Q5_0>("q5_0", 6),
        row::<Q5_1>("q5_1", 7),
        row::<Q8_0>("q8_0", 8),
        row::<Q2K>("q2_k", 10),
        row::<Q3K>("q3_k", 11),
        row::<Q4K>("q4_k", 12),
        row::<Q5K>("q5_k", 13),
        row::<Q6K>("q6_k", 14),
        row::<Iq4Nl>("iq4_nl", 20),
        row::<Iq4Xs>("iq4_xs", 23),
        row::<Mxfp4>("mxfp4", 39),
    ];

    /// The format of a number in files; `None` if weights in blocks cannot have it.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.number == number)
    }
}

impl TryFrom<GgmlDType> for Format {
    type Error = GgmlDType;

    /// Fails for formats that have no blocks, or those of inputs.
    fn try_from(format: GgmlDType) -> Result<Self, GgmlDType> {
        let number = match format {
            GgmlDType::Q4_0 => 2,
            GgmlDType::Q4_1 => 3,
            GgmlDType::Q5_0 => 6,
            GgmlDType::Q5_1 => 7,
            GgmlDType::Q8_0 => 8,
            GgmlDType::Q2K => 10,
            GgmlDType::Q3K => 11,
            GgmlDType::Q4K => 12,
            GgmlDType::Q5K => 13,
            GgmlDType::Q6K => 14,
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::Q8_1 | GgmlDType::Q8K => return Err(format),
        };
        Self::of_number(number).ok_or(format)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A number for each output.
type PerOutput<T> = [T; OUTPUTS];

/// A scale of 16 bits for each group.
#[repr(C)]
pub struct Scales([PerOutput<f16>; 2]);

/// A scale and an offset of 16 bits for each group.
#[repr(C)]
pub struct ScalesAndOffsets {
    scales: [PerOutput<f16>; 2],
    offsets: [PerOutput<f16>; 2],
}

/// A power of two for each group, in f32 of twice its size: the exponent.
#[repr(C)]
pub struct Powers([PerOutput<u8>; 4]);

/// A scale of eight bits for each step, and one of these scales.
#[repr(C)]
pub struct Small<const STEPS: usize> {
    of_scales: PerOutput<f16>,
    unused: PerOutput<f16>,
    scales: [PerOutput<i8>; STEPS],
}

/// The same with offsets.
#[repr(C)]
pub struct SmallWithOffsets {
    of_scales: PerOutput<f16>,
    of_offsets: PerOutput<f16>,
    scales: [PerOutput<i8>; 8],
    offsets: [PerOutput<i8>; 8],
}

/// A scale of four bits and, above it, an offset of four bits for each step.
#[repr(C)]
pub struct Nibbles {
    of_scales: PerOutput<f16>,
    of_offsets: PerOutput<f16>,
    both: [PerOutput<u8>; 16],
}

/// Declares headers: the groups of a tile, and how the scale and the offset of one output, and those of some, are found.
macro_rules! headers {
    ($($header:ty: $groups:literal, |$self:ident, $step:ident, $at:ident| $of:expr, |$simd:ident| $load:expr;)*) => {$(
        // SAFETY: every pattern of bits is a number.
        unsafe impl Zeroed for $header {}

        impl Header for $header {
            const GROUPS: usize = $groups;

            fn of(&self, $step: usize, $at: usize) -> (f32, f32) {
                let $self = self;
                $of
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(&self, $simd: S, $step: usize, $at: usize) -> (S::Vector, Option<S::Vector>) {
                let $self = self;
                // SAFETY: there is a number for each output, and the caller vouches for the outputs.
                unsafe { $load }
            }
        }
    )*};
}

/// The address of the numbers from an output on.
#[inline(always)]
fn from<T>(numbers: &PerOutput<T>, output: usize) -> *const T {
    numbers[output..].as_ptr()
}

headers! {
    Scales: 2,
    |header, step, at| (header.0[step][at].to_f32(), 0.0),
    |simd| (simd.load_half(from(&header.0[step], at)), None);

    ScalesAndOffsets: 2,
    |header, step, at| (header.scales[step][at].to_f32(), header.offsets[step][at].to_f32()),
    |simd| (
        simd.load_half(from(&header.scales[step], at)),
        Some(simd.load_half(from(&header.offsets[step], at))),
    );

    Powers: 4,
    |header, step, at| (0.5 * f32::from_bits(u32::from(header.0[step][at]) << 23), 0.0),
    |simd| (simd.multiply(simd.load_powers(from(&header.0[step], at)), simd.splat(0.5)), None);

    Small<8>: 8,
    |header, step, at| (header.of_scales[at].to_f32() * f32::from(header.scales[step][at]), 0.0),
    |simd| (
        simd.multiply(simd.load_half(from(&header.of_scales, at)), simd.load_small(from(&header.scales[step], at))),
        None,
    );

    Small<16>: 8,
    |header, step, at| (header.of_scales[at].to_f32() * f32::from(header.scales[step][at]), 0.0),
    |simd| (
        simd.multiply(simd.load_half(from(&header.of_scales, at)), simd.load_small(from(&header.scales[step], at))),
        None,
    );

    SmallWithOffsets: 8,
    |header, step, at| (
        header.of_scales[at].to_f32() * f32::from(header.scales[step][at]),
        header.of_offsets[at].to_f32() * f32::from(header.offsets[step][at]),
    ),
    |simd| (
        simd.multiply(simd.load_half(from(&header.of_scales, at)), simd.load_small(from(&header.scales[step], at))),
        Some(simd.multiply(
            simd.load_half(from(&header.of_offsets, at)),
            simd.load_small(from(&header.offsets[step], at)),
        )),
    );

    Nibbles: 8,
    |header, step, at| (
        header.of_scales[at].to_f32() * f32::from(header.both[step][at] & 15),
        header.of_offsets[at].to_f32() * f32::from(header.both[step][at] >> 4),
    ),
    |simd| {
        let [scales, offsets] = simd.load_nibbles(from(&header.both[step], at));
        (
            simd.multiply(simd.load_half(from(&header.of_scales, at)), scales),
            Some(simd.multiply(simd.load_half(from(&header.of_offsets, at)), offsets)),
        )
    };
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Two numbers in each byte: the first of all bytes, then the second.
fn nibbles(bytes: &[u8], quants: &mut [u8]) {
    let (low, high) = quants.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The numbers of a block of 256: of each 64, the first 32 are in the lower halves of 32 bytes.
fn nibbles_of_256(bytes: &[u8], quants: &mut [u8]) {
    bytes.chunks_exact(32).zip(quants.chunks_exact_mut(64)).for_each(|(bytes, quants)| nibbles(bytes, quants));
}

/// A fifth bit for each of 32 numbers.
fn fifth_bits(bytes: &[u8], quants: &mut [u8]) {
    quants.iter_mut().enumerate().for_each(|(input, quant)| *quant |= (bytes[input / 8] >> (input % 8) & 1) << 4);
}

/// Two bits of each of 256 numbers: of each 128, each byte has those that are 32 apart.
fn pairs_of_256(bytes: &[u8], quants: &mut [u8], shift: usize) {
    for (input, quant) in quants.iter_mut().enumerate() {
        *quant |= (bytes[input / 128 * 32 + input % 32] >> (input % 128 / 32 * 2) & 3) << shift;
    }
}

/// One bit of each of 256 numbers: each byte has those that are 32 apart.
fn bits_of_256(bytes: &[u8], quants: &mut [u8], shift: usize) {
    quants.iter_mut().enumerate().for_each(|(input, quant)| *quant |= (bytes[input % 32] >> (input / 32) & 1) << shift);
}

impl SmallWithOffsets {
    /// Two scales, and 12 bytes with eight scales and eight offsets of six bits.
    fn set(&mut self, block: &[u8], output: usize) {
        self.of_scales[output] = half(block, 0);
        self.of_offsets[output] = half(block, 2);
        let packed = &block[4..16];
        for number in 0..8 {
            // The last four have their upper two bits above the six bits of the first four.
            let (scale, offset) = match number {
                0..4 => (packed[number] & 63, packed[number + 4] & 63),
                _ => (
                    packed[number + 4] & 15 | packed[number - 4] >> 6 << 4,
                    packed[number + 4] >> 4 | packed[number] >> 6 << 4,
                ),
            };
            (self.scales[number][output], self.offsets[number][output]) = (scale as i8, offset as i8);
        }
    }
}

/// Declares formats: inputs and bytes of a block, planes of bits, inputs of a step, values, header, groups of a tile times the bits
/// of a weight, and how a block is unpacked.
macro_rules! formats {
    ($($(#[$doc:meta])* $format:ident: $block:expr, $planes:expr, $step:expr, $values:expr, $header:ty, $lines:expr,
        |$bytes:ident, $scales:ident, $number:ident, $output:ident, $quants:ident| $unpack:block)*) => {$(
        $(#[$doc])*
        enum $format {}

        impl tiles::Format for $format {
            const BLOCK: (usize, usize) = $block;
            const PLANES: &'static [usize] = &$planes;
            const STEP: usize = $step;
            const VALUES: Values = $values;
            type Header = $header;
            type Lines = [Line; $lines];

            fn unpack($bytes: &[u8], $scales: &mut $header, ($number, $output): (usize, usize), $quants: &mut [u8]) {
                $unpack
            }
        }
    )*};
}

/// The values of IQ4, denser around zero.
const IQ4: Values = Values::SignedTable([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Twice the values of E2M1, and 12.
const E2M1: Values = Values::Table([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0], 12);

formats! {
    Q4_0: (32, 18), [4], GROUP, Values::Unsigned(8), Scales, 2 * 4, |block, header, number, output, quants| {
        header.0[number][output] = half(block, 0);
        nibbles(&block[2..], quants);
    }
    Q4_1: (32, 20), [4], GROUP, Values::Unsigned(0), ScalesAndOffsets, 2 * 4, |block, header, number, output, quants| {
        header.scales[number][output] = half(block, 0);
        header.offsets[number][output] = -half(block, 2);
        nibbles(&block[4..], quants);
    }
    Q5_0: (32, 22), [4, 1], GROUP, Values::Unsigned(16), Scales, 2 * 5, |block, header, number, output, quants| {
        header.0[number][output] = half(block, 0);
        nibbles(&block[6..], quants);
        fifth_bits(&block[2..6], quants);
    }
    Q5_1: (32, 24), [4, 1], GROUP, Values::Unsigned(0), ScalesAndOffsets, 2 * 5, |block, header, number, output, quants| {
        header.scales[number][output] = half(block, 0);
        header.offsets[number][output] = -half(block, 2);
        nibbles(&block[8..], quants);
        fifth_bits(&block[4..8], quants);
    }
    Q8_0: (32, 34), [8], GROUP, Values::Signed, Scales, 2 * 8, |block, header, number, output, quants| {
        header.0[number][output] = half(block, 0);
        quants.copy_from_slice(&block[2..]);
    }
    Q2K: (256, 84), [2], 16, Values::Unsigned(0), Nibbles, 8 * 2, |block, header, _number, output, quants| {
        header.of_scales[output] = half(block, 80);
        header.of_offsets[output] = half(block, 82);
        header.both.iter_mut().zip(block).for_each(|(both, scale)| both[output] = *scale);
        pairs_of_256(&block[16..80], quants, 0);
    }
    Q3K: (256, 110), [2, 1], 16, Values::Unsigned(4), Small<16>, 8 * 3, |block, header, _number, output, quants| {
        header.of_scales[output] = half(block, 108);
        let packed = &block[96..108];
        for (step, scales) in header.scales.iter_mut().enumerate() {
            let low = packed[step % 8] >> (step / 8 * 4) & 15;
            let high = packed[8 + step % 4] >> (step / 4 * 2) & 3;
            scales[output] = (low | high << 4) as i8 - 32;
        }
        pairs_of_256(&block[32..96], quants, 0);
        bits_of_256(&block[..32], quants, 2);
    }
    Q4K: (256, 144), [4], GROUP, Values::Unsigned(0), SmallWithOffsets, 8 * 4, |block, header, _number, output, quants| {
        header.set(block, output);
        nibbles_of_256(&block[16..], quants);
    }
    Q5K: (256, 176), [4, 1], GROUP, Values::Unsigned(0), SmallWithOffsets, 8 * 5, |block, header, _number, output, quants| {
        header.set(block, output);
        nibbles_of_256(&block[48..], quants);
        bits_of_256(&block[16..48], quants, 4);
    }
    Q6K: (256, 210), [4, 2], 16, Values::Unsigned(32), Small<16>, 8 * 6, |block, header, _number, output, quants| {
        header.of_scales[output] = half(block, 208);
        header.scales.iter_mut().zip(&block[192..208]).for_each(|(scales, scale)| scales[output] = *scale as i8);
        // Of each 128, the first 64 are in the lower halves of 64 bytes.
        block[..128].chunks_exact(64).zip(quants.chunks_exact_mut(128)).for_each(|(bytes, quants)| nibbles(bytes, quants));
        pairs_of_256(&block[128..192], quants, 4);
    }
    Iq4Nl: (32, 18), [4], GROUP, IQ4, Scales, 2 * 4, |block, header, number, output, quants| {
        header.0[number][output] = half(block, 0);
        nibbles(&block[2..], quants);
    }
    Iq4Xs: (256, 136), [4], GROUP, IQ4, Small<8>, 8 * 4, |block, header, _number, output, quants| {
        header.of_scales[output] = half(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (group, scales) in header.scales.iter_mut().enumerate() {
            let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
            scales[output] = (low | ((high >> (2 * group) & 3) as u8) << 4) as i8 - 32;
        }
        block[8..].chunks_exact(16).zip(quants.chunks_exact_mut(32)).for_each(|(bytes, quants)| nibbles(bytes, quants));
    }
    Mxfp4: (32, 17), [4], GROUP, E2M1, Powers, 4 * 4, |block, header, number, output, quants| {
        header.0[number][output] = block[0];
        nibbles(&block[1..], quants);
    }
}
