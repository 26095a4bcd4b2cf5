//! Instruction sets: which of them this machine has, and kernels that are compiled once for each.
//!
//! A [`Kernel`] is a loop that is generic over [`Simd`]. [`Dispatch::run`] runs the version that was compiled for the chosen
//! instruction set. Loops over slices need no explicit vectors: the compiler vectorises them for that instruction set. Only
//! the products use the vectors of [`Simd`] themselves.
//!
//! On processors other than x86, the portable version is compiled for the vectors that the target always has, such as NEON.

use std::{fmt, str::FromStr};

use half::{bf16, f16};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::fp8::F8E4M3;

/// A set of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// Those that every processor of the target has.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors with products of bf16 and of bytes. Every processor with the first has both.
    Avx512Bf16,
}

impl Instructions {
    /// All sets, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// Returns whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = || has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = || avx2() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2(),
                Self::Avx512 => avx512(),
                Self::Avx512Bf16 => avx512() && has!("avx512bf16") && has!("avx512vnni"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The fastest set that this machine has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Instructions {
    type Err = String;

    /// Parses the name of a set that this machine has.
    fn from_str(text: &str) -> Result<Self, String> {
        let available = || Self::ALL.into_iter().filter(|set| set.is_available());
        available().find(|set| set.name() == text).ok_or_else(|| {
            let names: Vec<_> = available().map(Self::name).collect();
            format!("unknown instruction set '{text}': this machine has {}", names.join(", "))
        })
    }
}

impl Serialize for Instructions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Instructions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub struct Dispatch(Instructions);

/// A loop that is compiled for each instruction set.
pub trait Kernel {
    /// Result of the loop.
    type Output;

    /// Runs the loop. Mark the implementation with `#[inline(always)]`: a function that is not inlined is compiled for the
    /// narrowest vectors.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Dispatch {
    /// Chooses an instruction set; `None` if this machine does not have it.
    pub fn new(instructions: Instructions) -> Option<Self> {
        instructions.is_available().then_some(Self(instructions))
    }

    /// The fastest instruction set that this machine has.
    pub fn best() -> Self {
        Self(Instructions::best())
    }

    /// The chosen instruction set.
    pub fn instructions(self) -> Instructions {
        self.0
    }

    /// Runs the version of a kernel for the chosen instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: `new` checked that this machine has the instructions.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { x86::avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { x86::avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => unsafe { x86::avx512_bf16(kernel) },
            _ => kernel.run(Portable),
        }
    }
}

/// Vectors of one instruction set. A value proves that the machine has the instructions: only [`Dispatch::run`] makes one.
///
/// Methods that take pointers need no alignment.
pub trait Simd: Copy {
    /// Numbers in a vector: 4, 8 or 16.
    const LANES: usize;
    /// Rows of the tile of a product. Its sums, `ROWS` times `VECTORS` vectors, stay in registers.
    const ROWS: usize;
    /// Vectors of the tile of a product.
    const VECTORS: usize;
    /// Bytes of each row of the inputs that are multiplied at a time: the tile's part of the weights, or its rows, stay in the L1
    /// cache.
    const DEPTH_BYTES: usize;
    /// [`Self::LANES`] numbers.
    type Vector: Copy;
    /// [`Self::LANES`] pairs of bf16.
    type Pairs: Copy;
    /// [`Self::LANES`] whole numbers.
    type Ints: Copy;
    /// Four bytes for each lane.
    type Bytes: Copy;
    /// Sums of products of bytes, which may have 16 bits only: see [`Self::dot_unsigned`].
    type Partial: Copy;
    /// [`Self::dot_signed`] adds this times the sum of the inputs to the product.
    const OFFSET: i32;

    /// A vector of equal numbers.
    fn splat(self, value: f32) -> Self::Vector;

    /// # Safety
    /// [`Self::LANES`] numbers must be readable.
    unsafe fn load(self, from: *const f32) -> Self::Vector;

    /// # Safety
    /// [`Self::LANES`] numbers must be writable.
    unsafe fn store(self, to: *mut f32, vector: Self::Vector);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `sum + a · b`
    fn multiply_add(self, sum: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// Equal pairs.
    fn splat_pair(self, pair: [bf16; 2]) -> Self::Pairs;

    /// # Safety
    /// Twice [`Self::LANES`] numbers must be readable.
    unsafe fn load_pairs(self, from: *const bf16) -> Self::Pairs;

    /// Converts numbers from f16.
    ///
    /// # Safety
    /// [`Self::LANES`] numbers must be readable.
    unsafe fn load_half(self, from: *const f16) -> Self::Vector;

    /// Converts numbers from FP8, divided by [`F8E4M3::OF_HALF`]. The pattern of NaN becomes a number.
    ///
    /// # Safety
    /// [`Self::LANES`] numbers must be readable.
    unsafe fn load_f8(self, from: *const F8E4M3) -> Self::Vector;

    /// `sum + a.0 · b.0 + a.1 · b.1`
    fn multiply_add_pairs(self, sum: Self::Vector, a: Self::Pairs, b: Self::Pairs) -> Self::Vector;

    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// A vector of equal whole numbers.
    fn ints(self, value: i32) -> Self::Ints;

    /// Converts whole numbers, rounded.
    fn to_vector(self, ints: Self::Ints) -> Self::Vector;

    /// # Safety
    /// Four times [`Self::LANES`] bytes must be readable.
    unsafe fn load_bytes(self, from: *const u8) -> Self::Bytes;

    /// Converts bytes with a sign, one for each lane.
    ///
    /// # Safety
    /// [`Self::LANES`] bytes must be readable.
    unsafe fn load_small(self, from: *const i8) -> Self::Vector;

    /// Converts the lower and the upper four bits of bytes, one for each lane.
    ///
    /// # Safety
    /// [`Self::LANES`] bytes must be readable.
    unsafe fn load_nibbles(self, from: *const u8) -> [Self::Vector; 2];

    /// Powers of two, one for each lane, whose exponents in f32 are given. An exponent of 0 becomes 0.
    ///
    /// # Safety
    /// [`Self::LANES`] bytes must be readable.
    unsafe fn load_powers(self, from: *const u8) -> Self::Vector;

    /// The bits of each byte that `mask` has, after a shift to the right, or to the left if it is negative.
    fn bits(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes;

    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// Replaces bytes below 16 by the entries of a table.
    fn look_up(self, table: &[i8; 16], bytes: Self::Bytes) -> Self::Bytes;

    /// No products yet.
    fn partial(self) -> Self::Partial;

    /// Adds the products of four weights of each lane with four inputs from -127 on. Weights have no sign. Twice the greatest weight times
    /// 127 times the number of calls for one sum must be less than 2^15.
    fn dot_unsigned(self, sum: Self::Partial, weights: Self::Bytes, inputs: [i8; 4]) -> Self::Partial;

    /// The same for weights with a sign, of which a sum has one call. Adds [`Self::OFFSET`] times the sum of the inputs.
    fn dot_signed(self, sum: Self::Partial, weights: Self::Bytes, inputs: [i8; 4]) -> Self::Partial;

    /// Adds sums of products of bytes.
    fn widen(self, sum: Self::Ints, partial: Self::Partial) -> Self::Ints;

    /// Requests the cache line of an address, which need not be valid, for the L1 cache.
    fn prefetch<T>(self, address: *const T);

    /// The same for the L2 cache.
    fn prefetch_to_l2<T>(self, address: *const T);

    /// Transposes a square of [`SQUARE`] rows, `stride` numbers apart, to rows that are `to_stride` apart.
    ///
    /// # Safety
    /// The rows of both squares must lie in memory, and must not overlap.
    unsafe fn transpose(self, from: *const f32, stride: usize, to: *mut f32, to_stride: usize);
}

/// Rows and columns of a square that [`Simd::transpose`] transposes.
pub const SQUARE: usize = 8;

#[derive(Clone, Copy)]
struct Portable;

/// Width of the portable version. Compilers map the arrays to vectors.
const WIDTH: usize = 8;

impl Simd for Portable {
    const LANES: usize = WIDTH;
    const ROWS: usize = 3;
    const VECTORS: usize = 1;
    const DEPTH_BYTES: usize = 1024;
    type Vector = [f32; WIDTH];
    type Pairs = [u32; WIDTH];
    type Ints = [i32; WIDTH];
    type Bytes = [[u8; 4]; WIDTH];
    type Partial = [i32; WIDTH];
    const OFFSET: i32 = 0;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        [value; WIDTH]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::Vector {
        // SAFETY: the caller ensures that the numbers are readable; an array of f32 may lie at any address read unaligned.
        unsafe { from.cast::<Self::Vector>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: Self::Vector) {
        // SAFETY: the caller ensures that the numbers are writable.
        unsafe { to.cast::<Self::Vector>().write_unaligned(vector) }
    }

    #[inline(always)]
    fn add(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for lane in 0..WIDTH {
            a[lane] += b[lane];
        }
        a
    }

    #[inline(always)]
    fn multiply_add(self, mut sum: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for lane in 0..WIDTH {
            sum[lane] += a[lane] * b[lane];
        }
        sum
    }

    #[inline(always)]
    fn splat_pair(self, [first, second]: [bf16; 2]) -> Self::Pairs {
        [u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16; WIDTH]
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const bf16) -> Self::Pairs {
        // SAFETY: the caller ensures that the numbers are readable; every bit pattern is a u32.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_half(self, from: *const f16) -> Self::Vector {
        // SAFETY: the caller ensures that the numbers are readable.
        unsafe { from.cast::<[f16; WIDTH]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_f8(self, from: *const F8E4M3) -> Self::Vector {
        // SAFETY: the caller ensures that the numbers are readable.
        unsafe { from.cast::<[F8E4M3; WIDTH]>().read_unaligned() }.map(|number| number.to_half().to_f32())
    }

    #[inline(always)]
    fn multiply_add_pairs(self, mut sum: Self::Vector, a: Self::Pairs, b: Self::Pairs) -> Self::Vector {
        for lane in 0..WIDTH {
            let first = f32::from_bits(a[lane] << 16) * f32::from_bits(b[lane] << 16);
            let second = f32::from_bits(a[lane] & 0xffff_0000) * f32::from_bits(b[lane] & 0xffff_0000);
            sum[lane] = sum[lane] + first + second;
        }
        sum
    }

    #[inline(always)]
    fn multiply(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for lane in 0..WIDTH {
            a[lane] *= b[lane];
        }
        a
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        [value; WIDTH]
    }

    #[inline(always)]
    fn to_vector(self, ints: Self::Ints) -> Self::Vector {
        ints.map(|value| value as f32)
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::Bytes {
        // SAFETY: the caller ensures that the bytes are readable.
        unsafe { from.cast::<Self::Bytes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_small(self, from: *const i8) -> Self::Vector {
        // SAFETY: the caller ensures that the bytes are readable.
        unsafe { from.cast::<[i8; WIDTH]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8) -> [Self::Vector; 2] {
        // SAFETY: the caller ensures that the bytes are readable.
        let bytes = unsafe { from.cast::<[u8; WIDTH]>().read_unaligned() };
        [bytes.map(|byte| f32::from(byte & 15)), bytes.map(|byte| f32::from(byte >> 4))]
    }

    #[inline(always)]
    unsafe fn load_powers(self, from: *const u8) -> Self::Vector {
        // SAFETY: the caller ensures that the bytes are readable.
        unsafe { from.cast::<[u8; WIDTH]>().read_unaligned() }.map(|exponent| f32::from_bits(u32::from(exponent) << 23))
    }

    #[inline(always)]
    fn bits(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes {
        bytes.map(|four| four.map(|byte| if right < 0 { byte << -right } else { byte >> right } & mask))
    }

    #[inline(always)]
    fn or(self, mut a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        a.as_flattened_mut().iter_mut().zip(b.as_flattened()).for_each(|(a, b)| *a |= b);
        a
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|four| four.map(|byte| table[usize::from(byte & 15)] as u8))
    }

    #[inline(always)]
    fn partial(self) -> Self::Partial {
        self.ints(0)
    }

    #[inline(always)]
    fn dot_unsigned(self, mut sum: Self::Partial, weights: Self::Bytes, inputs: [i8; 4]) -> Self::Partial {
        for lane in 0..WIDTH {
            for place in 0..4 {
                sum[lane] += i32::from(weights[lane][place]) * i32::from(inputs[place]);
            }
        }
        sum
    }

    #[inline(always)]
    fn dot_signed(self, mut sum: Self::Partial, weights: Self::Bytes, inputs: [i8; 4]) -> Self::Partial {
        for lane in 0..WIDTH {
            for place in 0..4 {
                sum[lane] += i32::from(weights[lane][place] as i8) * i32::from(inputs[place]);
            }
        }
        sum
    }

    #[inline(always)]
    fn widen(self, mut sum: Self::Ints, partial: Self::Partial) -> Self::Ints {
        sum.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
        sum
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn prefetch_to_l2<T>(self, _: *const T) {}

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for (row, column) in (0..SQUARE).flat_map(|row| (0..SQUARE).map(move |column| (row, column))) {
            // SAFETY: the caller ensures that both squares lie in memory.
            unsafe { *to.add(column * to_stride + row) = *from.add(row * stride + column) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, mem::transmute};

    use half::{bf16, f16};

    use super::{F8E4M3, Kernel, Simd};

    /// Makes the function that compiles a kernel for a set of instructions.
    macro_rules! version {
        ($function:ident, $token:ident, $features:literal) => {
            #[derive(Clone, Copy)]
            pub struct $token(());

            #[target_feature(enable = $features)]
            pub fn $function<K: Kernel>(kernel: K) -> K::Output {
                kernel.run($token(()))
            }
        };
    }

    version!(avx2, Avx2, "avx2,fma,f16c");
    version!(avx512, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
    version!(avx512_bf16, Avx512Bf16, "avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

    // In the implementations below, a token proves that the machine has the instructions, because only the functions above
    // make one. They are safe to call only where the compiler uses these instructions too, hence the blocks. Pointers are
    // those that the caller vouches for.

    #[inline(always)]
    fn pair_bits([first, second]: [bf16; 2]) -> i32 {
        (u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16) as i32
    }

    #[inline(always)]
    fn four(inputs: [i8; 4]) -> i32 {
        i32::from_le_bytes(inputs.map(|input| input as u8))
    }

    #[inline(always)]
    fn prefetch<const HINT: i32, T>(address: *const T) {
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing that the program sees.
        unsafe { _mm_prefetch::<HINT>(address.cast()) }
    }

    /// # Safety
    /// The machine must have AVX2, and the rows of both squares must lie in memory.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: as the caller ensures.
        unsafe {
            // Each vector has the halves of two rows, so that the shuffles below need not cross the middle.
            let halves = |row: usize, column: usize| {
                let low = _mm_loadu_ps(from.add(row * stride + column));
                let high = _mm_loadu_ps(from.add((row + 4) * stride + column));
                _mm256_set_m128(high, low)
            };
            for column in [0, 4] {
                let [a, b, c, d] = [0, 1, 2, 3].map(|row| halves(row, column));
                let (low_ab, high_ab) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (low_cd, high_cd) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                let rows = [
                    _mm256_shuffle_ps::<0x44>(low_ab, low_cd),
                    _mm256_shuffle_ps::<0xee>(low_ab, low_cd),
                    _mm256_shuffle_ps::<0x44>(high_ab, high_cd),
                    _mm256_shuffle_ps::<0xee>(high_ab, high_cd),
                ];
                for (number, row) in rows.into_iter().enumerate() {
                    _mm256_storeu_ps(to.add((column + number) * to_stride), row);
                }
            }
        }
    }

    /// The method that all versions share.
    macro_rules! transposes {
        () => {
            #[inline(always)]
            unsafe fn transpose(self, from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
                // SAFETY: the token proves that the machine has AVX2, and the caller vouches for the squares.
                unsafe { transpose(from, stride, to, to_stride) }
            }
        };
    }

    impl Simd for Avx2 {
        transposes!();

        const LANES: usize = 8;
        const ROWS: usize = 6;
        const VECTORS: usize = 2;
        const DEPTH_BYTES: usize = 1024;
        type Vector = __m256;
        type Pairs = __m256i;
        type Ints = __m256i;
        type Bytes = __m256i;
        type Partial = __m256i;
        const OFFSET: i32 = 0;

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            // SAFETY: the token proves that the machine has AVX2.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> __m256 {
            // SAFETY: as for `splat`, and the caller vouches for the address.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32, vector: __m256) {
            // SAFETY: as for `load`.
            unsafe { _mm256_storeu_ps(to, vector) }
        }

        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: as for `splat`.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        fn multiply_add(self, sum: __m256, a: __m256, b: __m256) -> __m256 {
            // SAFETY: as for `splat`.
            unsafe { _mm256_fmadd_ps(a, b, sum) }
        }

        #[inline(always)]
        fn splat_pair(self, pair: [bf16; 2]) -> __m256i {
            // SAFETY: as for `splat`.
            unsafe { _mm256_set1_epi32(pair_bits(pair)) }
        }

        #[inline(always)]
        unsafe fn load_pairs(self, from: *const bf16) -> __m256i {
            // SAFETY: as for `load`.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load_half(self, from: *const f16) -> __m256 {
            // SAFETY: as for `load`, with the conversions of F16C, which are checked with AVX2.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_f8(self, from: *const F8E4M3) -> __m256 {
            // SAFETY: as for `load_half`, with eight bytes. The shift leaves two copies of the sign, of which one is cleared.
            unsafe {
                let shifted = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(_mm_loadl_epi64(from.cast())));
                _mm256_cvtph_ps(_mm_and_si128(shifted, _mm_set1_epi16(0xbf80u16 as i16)))
            }
        }

        #[inline(always)]
        fn multiply_add_pairs(self, sum: __m256, a: __m256i, b: __m256i) -> __m256 {
            // SAFETY: as for `splat`. A bf16 is the upper half of an f32.
            unsafe {
                let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
                let (first_a, first_b) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let (second_a, second_b) = (_mm256_and_si256(a, upper), _mm256_and_si256(b, upper));
                let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(first_a), _mm256_castsi256_ps(first_b), sum);
                _mm256_fmadd_ps(_mm256_castsi256_ps(second_a), _mm256_castsi256_ps(second_b), sum)
            }
        }

        #[inline(always)]
        fn multiply(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: as for `splat`.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        fn ints(self, value: i32) -> __m256i {
            // SAFETY: as for `splat`.
            unsafe { _mm256_set1_epi32(value) }
        }

        #[inline(always)]
        fn to_vector(self, ints: __m256i) -> __m256 {
            // SAFETY: as for `splat`.
            unsafe { _mm256_cvtepi32_ps(ints) }
        }

        #[inline(always)]
        unsafe fn load_bytes(self, from: *const u8) -> __m256i {
            // SAFETY: as for `load`.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load_small(self, from: *const i8) -> __m256 {
            // SAFETY: as for `load`, with eight bytes.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_nibbles(self, from: *const u8) -> [__m256; 2] {
            // SAFETY: as for `load`, with eight bytes.
            unsafe {
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
                let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
                [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes))]
            }
        }

        #[inline(always)]
        unsafe fn load_powers(self, from: *const u8) -> __m256 {
            // SAFETY: as for `load`, with eight bytes.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))) }
        }

        #[inline(always)]
        fn bits(self, bytes: __m256i, right: i32, mask: u8) -> __m256i {
            // SAFETY: as for `splat`. The compiler knows the count where it is used. Bits that come from another byte are masked.
            unsafe {
                let shifted = match right {
                    0 => bytes,
                    ..0 => _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(-right)),
                    _ => _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(right)),
                };
                _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
            }
        }

        #[inline(always)]
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: as for `splat`.
            unsafe { _mm256_or_si256(a, b) }
        }

        #[inline(always)]
        fn look_up(self, table: &[i8; 16], bytes: __m256i) -> __m256i {
            // SAFETY: as for `splat`. The table has the bytes of its vector.
            unsafe {
                let table = _mm_loadu_si128(table.as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), bytes)
            }
        }

        #[inline(always)]
        fn partial(self) -> __m256i {
            self.ints(0)
        }

        #[inline(always)]
        fn dot_unsigned(self, sum: __m256i, weights: __m256i, inputs: [i8; 4]) -> __m256i {
            // SAFETY: as for `splat`. The sums of pairs have 16 bits.
            unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four(inputs)))) }
        }

        #[inline(always)]
        fn dot_signed(self, sum: __m256i, weights: __m256i, inputs: [i8; 4]) -> __m256i {
            // SAFETY: as for `splat`. The signs of the weights are moved to the inputs, which have no -128. Two products of 127 with a
            // weight fit into 16 bits.
            unsafe {
                let signed = _mm256_sign_epi8(_mm256_set1_epi32(four(inputs)), weights);
                _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed))
            }
        }

        #[inline(always)]
        fn widen(self, sum: __m256i, partial: __m256i) -> __m256i {
            // SAFETY: as for `splat`.
            unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(partial, _mm256_set1_epi16(1))) }
        }

        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            prefetch::<_MM_HINT_T0, _>(address);
        }

        #[inline(always)]
        fn prefetch_to_l2<T>(self, address: *const T) {
            prefetch::<_MM_HINT_T1, _>(address);
        }
    }

    /// The methods that both versions with 512-bit vectors share.
    macro_rules! common_512 {
        () => {
            transposes!();

            const LANES: usize = 16;
            const ROWS: usize = 6;
            const VECTORS: usize = 4;
            const DEPTH_BYTES: usize = 4096;
            type Vector = __m512;
            type Pairs = __m512i;
            type Ints = __m512i;
            type Bytes = __m512i;
            type Partial = __m512i;

            #[inline(always)]
            fn splat(self, value: f32) -> __m512 {
                // SAFETY: the token proves that the machine has AVX-512.
                unsafe { _mm512_set1_ps(value) }
            }

            #[inline(always)]
            unsafe fn load(self, from: *const f32) -> __m512 {
                // SAFETY: as for `splat`, and the caller vouches for the address.
                unsafe { _mm512_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32, vector: __m512) {
                // SAFETY: as for `load`.
                unsafe { _mm512_storeu_ps(to, vector) }
            }

            #[inline(always)]
            fn add(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: as for `splat`.
                unsafe { _mm512_add_ps(a, b) }
            }

            #[inline(always)]
            fn multiply_add(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
                // SAFETY: as for `splat`.
                unsafe { _mm512_fmadd_ps(a, b, sum) }
            }

            #[inline(always)]
            fn splat_pair(self, pair: [bf16; 2]) -> __m512i {
                // SAFETY: as for `splat`.
                unsafe { _mm512_set1_epi32(pair_bits(pair)) }
            }

            #[inline(always)]
            unsafe fn load_pairs(self, from: *const bf16) -> __m512i {
                // SAFETY: as for `load`.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }

            #[inline(always)]
            unsafe fn load_half(self, from: *const f16) -> __m512 {
                // SAFETY: as for `load`.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            }

            #[inline(always)]
            unsafe fn load_f8(self, from: *const F8E4M3) -> __m512 {
                // SAFETY: as for `load`, with 16 bytes. The shift leaves two copies of the sign, of which one is cleared.
                unsafe {
                    let shifted = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())));
                    _mm512_cvtph_ps(_mm256_and_si256(shifted, _mm256_set1_epi16(0xbf80u16 as i16)))
                }
            }

            #[inline(always)]
            fn multiply(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: as for `splat`.
                unsafe { _mm512_mul_ps(a, b) }
            }

            #[inline(always)]
            fn ints(self, value: i32) -> __m512i {
                // SAFETY: as for `splat`.
                unsafe { _mm512_set1_epi32(value) }
            }

            #[inline(always)]
            fn to_vector(self, ints: __m512i) -> __m512 {
                // SAFETY: as for `splat`.
                unsafe { _mm512_cvtepi32_ps(ints) }
            }

            #[inline(always)]
            unsafe fn load_bytes(self, from: *const u8) -> __m512i {
                // SAFETY: as for `load`.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }

            #[inline(always)]
            unsafe fn load_small(self, from: *const i8) -> __m512 {
                // SAFETY: as for `load`, with 16 bytes.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_nibbles(self, from: *const u8) -> [__m512; 2] {
                // SAFETY: as for `load`, with 16 bytes.
                unsafe {
                    let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                    let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
                    [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes))]
                }
            }

            #[inline(always)]
            unsafe fn load_powers(self, from: *const u8) -> __m512 {
                // SAFETY: as for `load`, with 16 bytes.
                unsafe {
                    let exponents = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponents))
                }
            }

            #[inline(always)]
            fn bits(self, bytes: __m512i, right: i32, mask: u8) -> __m512i {
                // SAFETY: as for `splat`. The compiler knows the count where it is used. Bits that come from another byte are masked.
                unsafe {
                    let shifted = match right {
                        0 => bytes,
                        ..0 => _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(-right)),
                        _ => _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(right)),
                    };
                    _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
                }
            }

            #[inline(always)]
            fn or(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as for `splat`.
                unsafe { _mm512_or_si512(a, b) }
            }

            #[inline(always)]
            fn look_up(self, table: &[i8; 16], bytes: __m512i) -> __m512i {
                // SAFETY: as for `splat`. The table has the bytes of its vector.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), bytes)
                }
            }

            #[inline(always)]
            fn partial(self) -> __m512i {
                self.ints(0)
            }

            #[inline(always)]
            fn prefetch<T>(self, address: *const T) {
                prefetch::<_MM_HINT_T0, _>(address);
            }

            #[inline(always)]
            fn prefetch_to_l2<T>(self, address: *const T) {
                prefetch::<_MM_HINT_T1, _>(address);
            }
        };
    }

    impl Simd for Avx512 {
        common_512!();
        const OFFSET: i32 = 0;

        #[inline(always)]
        fn dot_unsigned(self, sum: __m512i, weights: __m512i, inputs: [i8; 4]) -> __m512i {
            // SAFETY: as for `splat`. The sums of pairs have 16 bits.
            unsafe { _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, _mm512_set1_epi32(four(inputs)))) }
        }

        #[inline(always)]
        fn dot_signed(self, sum: __m512i, weights: __m512i, inputs: [i8; 4]) -> __m512i {
            // SAFETY: as for `splat`. The signs of the weights are moved to the inputs, which have no -128. Two products of 127 with a
            // weight fit into 16 bits.
            unsafe {
                let inputs = _mm512_set1_epi32(four(inputs));
                let negative = _mm512_movepi8_mask(weights);
                let signed = _mm512_mask_sub_epi8(inputs, negative, _mm512_setzero_si512(), inputs);
                _mm512_add_epi16(sum, _mm512_maddubs_epi16(_mm512_abs_epi8(weights), signed))
            }
        }

        #[inline(always)]
        fn widen(self, sum: __m512i, partial: __m512i) -> __m512i {
            // SAFETY: as for `splat`.
            unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(partial, _mm512_set1_epi16(1))) }
        }

        #[inline(always)]
        fn multiply_add_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: as for `splat`. A bf16 is the upper half of an f32.
            unsafe {
                let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
                let (first_a, first_b) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
                let (second_a, second_b) = (_mm512_and_si512(a, upper), _mm512_and_si512(b, upper));
                let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(first_a), _mm512_castsi512_ps(first_b), sum);
                _mm512_fmadd_ps(_mm512_castsi512_ps(second_a), _mm512_castsi512_ps(second_b), sum)
            }
        }
    }

    impl Simd for Avx512Bf16 {
        common_512!();
        // The instruction takes bytes without a sign for one operand: those of the weights are moved up by 128.
        const OFFSET: i32 = 128;

        #[inline(always)]
        fn dot_unsigned(self, sum: __m512i, weights: __m512i, inputs: [i8; 4]) -> __m512i {
            // SAFETY: as for `splat`, with the instructions for bytes.
            unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(four(inputs))) }
        }

        #[inline(always)]
        fn dot_signed(self, sum: __m512i, weights: __m512i, inputs: [i8; 4]) -> __m512i {
            // SAFETY: as above.
            unsafe {
                let moved = _mm512_xor_si512(weights, _mm512_set1_epi8(-128));
                _mm512_dpbusd_epi32(sum, moved, _mm512_set1_epi32(four(inputs)))
            }
        }

        #[inline(always)]
        fn widen(self, sum: __m512i, partial: __m512i) -> __m512i {
            // SAFETY: as for `splat`.
            unsafe { _mm512_add_epi32(sum, partial) }
        }

        #[inline(always)]
        fn multiply_add_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: as for `splat`, with the instructions for bf16. Both types are 512 bits without invalid patterns.
            unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
        }
    }
}
