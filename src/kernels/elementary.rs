//! exp, sin and cos without branches, so that the compiler can vectorise loops over them. It cannot vectorise calls
//! into the system's mathematics library. The error is at most three units in the last place of f32.

use super::inference::{Machine, simd};

/// Adding this constant rounds a small number to an integer, which is then in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// A loop that [`vectorised`] runs. Mark its `run` with `#[inline(always)]`: the compiler compiles functions and
/// closures that are not inlined for the narrowest vectors.
pub trait Loop {
    /// Result of the loop.
    type Output;

    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs a loop that is compiled for the chosen instruction set.
#[inline]
pub fn vectorised<L: Loop>(slices: L) -> L::Output {
    struct Call<L>(L);
    impl<L: Loop> simd::Kernel for Call<L> {
        type Output = L::Output;
        #[inline(always)]
        fn run<S: simd::Simd>(self, _: S) -> L::Output {
            self.0.run()
        }
    }
    Machine::shared().dispatch.run(Call(slices))
}

/// Defines functions that are compiled for each instruction set and run for the chosen one.
macro_rules! compiled {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$doc])*
        fn $name($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($argument: $type),*) $(-> $output)? {
                body($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512($($argument: $type),*) $(-> $output)? {
                body($($argument),*)
            }

            use $crate::inference::{Instructions, Machine};
            match Machine::shared().dispatch.instructions() {
                // SAFETY: only instruction sets that this machine has are chosen.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 | Instructions::Avx512Bf16 => unsafe { avx512($($argument),*) },
                _ => body($($argument),*),
            }
        }
    )*};
}

pub(super) use compiled;

/// e to the power of `x`, with `x` clamped to -87 to 88. NaN stays NaN.
///
/// The range reduction follows Cephes: x = n·ln 2 + r, and a polynomial in r.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let series =
        0.166_666_65 + rest * (0.041_665_795 + rest * (0.008_333_452 + rest * (0.001_398_2 + rest * 1.987_569_1e-4)));
    let series = 1.0 + rest + rest * rest * (0.5 + rest * series);
    let power = (shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127)) << 23;
    series * f32::from_bits(power)
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, with an absolute error of at most 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// Angles beyond this have lost too many digits for [`sin_cos`].
pub const WIDEST_ANGLE: f32 = 8192.0;

/// Sine and cosine of an angle of at most [`WIDEST_ANGLE`] in magnitude. NaN stays NaN.
///
/// The method follows Cephes: subtract whole quarters of a turn in three parts, then evaluate two polynomials.
#[inline(always)]
pub fn sin_cos(x: f32) -> (f32, f32) {
    let shifted = x * std::f32::consts::FRAC_2_PI + ROUNDER;
    let quarters = shifted - ROUNDER;
    let r = x - quarters * 1.570_312_5 - quarters * 4.837_513e-4 - quarters * 7.549_79e-8;
    let square = r * r;
    let sine = r + r * square * (-0.166_666_55 + square * (0.008_332_161 + square * -1.951_529_6e-4));
    let cosine =
        1.0 - 0.5 * square + square * square * (0.041_666_646 + square * (-0.001_388_731_6 + square * 2.443_315_7e-5));
    let turn = shifted.to_bits();
    let (odd, half) = (turn & 1, (turn & 2) << 30);
    let (sin, cos) = if odd == 0 { (sine, cosine) } else { (cosine, sine) };
    (f32::from_bits(sin.to_bits() ^ half), f32::from_bits(cos.to_bits() ^ half ^ (odd << 31)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_system_computes_them() {
        for step in 0..400_000 {
            let x = -87.0 + step as f32 * (175.0 / 400_000.0);
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 4e-7, "exp({x}) = {found}");
            if x.abs() < 20.0 {
                let wide = f64::from(x);
                assert!((f64::from(tanh(x)) - wide.tanh()).abs() < 2e-7, "tanh({x}) = {}", tanh(x));
                assert!(
                    (f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 2e-7,
                    "sigmoid({x}) = {}",
                    sigmoid(x)
                );
            }
            let x = -8192.0 + step as f32 * (16384.0 / 400_000.0);
            let ((sin, cos), (e_sin, e_cos)) = (sin_cos(x), f64::from(x).sin_cos());
            assert!((f64::from(sin) - e_sin).abs() < 2e-6 && (f64::from(cos) - e_cos).abs() < 2e-6, "{x}: {sin} {cos}");
            let x = x / 1000.0;
            let ((sin, cos), (e_sin, e_cos)) = (sin_cos(x), f64::from(x).sin_cos());
            assert!((f64::from(sin) - e_sin).abs() < 2e-7 && (f64::from(cos) - e_cos).abs() < 2e-7, "{x}: {sin} {cos}");
        }
        assert_eq!((exp(0.0), sin_cos(0.0)), (1.0, (0.0, 1.0)));
        assert!(exp(f32::NAN).is_nan() && sin_cos(f32::NAN).0.is_nan() && exp(f32::NEG_INFINITY) < 1e-37);
    }
}
