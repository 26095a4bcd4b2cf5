//! The types of weights.

use std::cell::RefCell;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{
    memory::Zeroed,
    simd::{Instructions, Simd},
};

/// The type of weights, of keys and values, and of what they are multiplied with.
pub trait Element: Zeroed + Copy + Default {
    /// Its name in ids.
    const NAME: &'static str;

    /// Consecutive inputs that lie side by side in a panel, because one instruction multiplies them.
    const GROUP: usize;

    /// [`Simd::LANES`] groups.
    type Groups<S: Simd>: Copy;

    /// Rounds a number to this type.
    fn from_f32(value: f32) -> Self;

    /// Converts to f32, which is exact.
    fn to_f32(self) -> f32;

    /// Rounds a number to one that this type can represent.
    fn round(value: f32) -> f32;

    /// Converts numbers to f32, as many as both slices have.
    fn convert(from: &[Self], to: &mut [f32]);

    /// Returns whether instructions multiply numbers of this type as fast as those of f32. Of others, many rows are converted
    /// once before they are multiplied.
    fn is_multiplied_by(instructions: Instructions) -> bool;

    /// Groups of weights.
    ///
    /// # Safety
    /// [`Simd::LANES`] groups must be readable.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> Self::Groups<S>;

    /// Equal groups.
    ///
    /// # Safety
    /// One group must be readable.
    unsafe fn splat<S: Simd>(simd: S, from: *const Self) -> Self::Groups<S>;

    /// Adds the products of the elements of each group to the sum in its lane.
    fn multiply_add<S: Simd>(simd: S, sum: S::Vector, a: Self::Groups<S>, b: Self::Groups<S>) -> S::Vector;

    /// Calls `with` with temporary elements of any value. They are allocated once per thread.
    fn scratch<T>(len: usize, with: impl FnOnce(&mut [Self]) -> T) -> T;
}

/// A type that weights, keys and values may be stored in.
pub trait Operand: Zeroed + Copy + Default {
    /// The type of what they are multiplied with.
    type Factor: Element;

    /// The quotient of a number and that which [`Self::load`] returns: a power of two.
    const SCALE: f32;

    /// Rounds a number to this type.
    fn stored(value: f32) -> Self;

    /// Groups of numbers, converted.
    ///
    /// # Safety
    /// [`Simd::LANES`] groups must be readable.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> <Self::Factor as Element>::Groups<S>;
}

impl<E: Element> Operand for E {
    type Factor = E;
    const SCALE: f32 = 1.0;

    #[inline(always)]
    fn stored(value: f32) -> Self {
        E::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> E::Groups<S> {
        // SAFETY: as the caller ensures.
        unsafe { <E as Element>::load(simd, from) }
    }
}

/// Lends a vector from a list of unused ones, so that calls can be nested.
macro_rules! scratch {
    ($element:ty, $len:ident, $with:ident) => {{
        thread_local!(static UNUSED: RefCell<Vec<Vec<$element>>> = const { RefCell::new(Vec::new()) });
        let mut elements = UNUSED.with_borrow_mut(Vec::pop).unwrap_or_default();
        if elements.len() < $len {
            elements.resize($len, <$element>::default());
        }
        let result = $with(&mut elements[..$len]);
        UNUSED.with_borrow_mut(|unused| unused.push(elements));
        result
    }};
}

/// Lends temporary memory that starts at a cache line.
pub fn aligned<T>(len: usize, with: impl FnOnce(&mut [f32]) -> T) -> T {
    if len == 0 {
        return with(&mut []);
    }
    // The numbers of a cache line.
    const LINE_LEN: usize = 16;
    f32::scratch(len + LINE_LEN, |memory| {
        let start = memory.as_ptr().align_offset(64).min(LINE_LEN);
        with(&mut memory[start..start + len])
    })
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const GROUP: usize = 1;
    type Groups<S: Simd> = S::Vector;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn is_multiplied_by(_: Instructions) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: as the caller ensures.
        unsafe { simd.load(from) }
    }

    #[inline(always)]
    unsafe fn splat<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: as the caller ensures.
        simd.splat(unsafe { *from })
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, sum: S::Vector, a: S::Vector, b: S::Vector) -> S::Vector {
        simd.multiply_add(sum, a, b)
    }

    fn scratch<T>(len: usize, with: impl FnOnce(&mut [Self]) -> T) -> T {
        scratch!(f32, len, with)
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const GROUP: usize = 2;
    type Groups<S: Simd> = S::Pairs;

    /// Rounds to the nearest, or the even of two nearest. NaN stays NaN. Unlike that of `half`, this has no branch, so that
    /// loops over it are vectorised.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        <Self as Element>::to_f32(<Self as Element>::from_f32(value))
    }

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = <Self as Element>::to_f32(*from));
    }

    fn is_multiplied_by(instructions: Instructions) -> bool {
        instructions == Instructions::Avx512Bf16
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Pairs {
        // SAFETY: as the caller ensures.
        unsafe { simd.load_pairs(from) }
    }

    #[inline(always)]
    unsafe fn splat<S: Simd>(simd: S, from: *const Self) -> S::Pairs {
        // SAFETY: as the caller ensures; an array has no greater alignment than its elements.
        simd.splat_pair(unsafe { *from.cast::<[bf16; 2]>() })
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, sum: S::Vector, a: S::Pairs, b: S::Pairs) -> S::Vector {
        simd.multiply_add_pairs(sum, a, b)
    }

    fn scratch<T>(len: usize, with: impl FnOnce(&mut [Self]) -> T) -> T {
        scratch!(bf16, len, with)
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const GROUP: usize = 1;
    type Groups<S: Simd> = S::Vector;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        Self::from_f32(value).to_f32()
    }

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        let count = from.len().min(to.len());
        from[..count].convert_to_f32_slice(&mut to[..count]);
    }

    fn is_multiplied_by(_: Instructions) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: as the caller ensures.
        unsafe { simd.load_half(from) }
    }

    #[inline(always)]
    unsafe fn splat<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: as the caller ensures.
        simd.splat(Self::to_f32(unsafe { *from }))
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, sum: S::Vector, a: S::Vector, b: S::Vector) -> S::Vector {
        simd.multiply_add(sum, a, b)
    }

    fn scratch<T>(len: usize, with: impl FnOnce(&mut [Self]) -> T) -> T {
        scratch!(f16, len, with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_half_rounds_them() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-42];
        for value in special.into_iter().chain((0..1 << 16).map(|bits: u32| f32::from_bits(bits * 65_521))) {
            let (found, expected) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{value}: {found}");
        }
        assert!(<bf16 as Element>::from_f32(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
