//! Dropout. The mask of an element depends only on a seed and on its place, so that no mask is stored.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use super::{
    each_part,
    elementary::compiled,
    tape::{Memory, Operation},
};

/// Sets numbers to 0 with a probability, and scales the others so that the mean remains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    rate: f64,
    seed: u64,
    /// Hashes below this are those of zeros.
    least: u32,
    scale: f32,
    /// The seed of the hashes.
    key: u32,
}

impl Mask {
    /// Keeps all numbers.
    pub const NONE: Self = Self { rate: 0.0, seed: 0, least: 0, scale: 1.0, key: 0 };

    /// A mask with a probability of at least 0 and below 1.
    pub fn new(rate: f64, seed: u64) -> Self {
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let least = (rate * 2f64.powi(32)) as u32;
        Self { rate, seed, least, scale: (1.0 / (1.0 - rate)) as f32, key: (mixed >> 32) as u32 }
    }

    /// Returns whether all numbers are kept.
    pub fn is_none(self) -> bool {
        self.least == 0
    }

    /// The factor of the number with this place: 0, or 1 over the share of numbers that are kept.
    #[inline(always)]
    pub(super) fn factor(self, place: usize) -> f32 {
        // The mixing of C. Wellons' hash `lowbias32`.
        let mut hash = (place as u32).wrapping_mul(0x9e37_79b9) ^ self.key;
        hash = (hash ^ hash >> 16).wrapping_mul(0x7feb_352d);
        hash = (hash ^ hash >> 15).wrapping_mul(0x846c_a68b);
        if hash ^ hash >> 16 < self.least { 0.0 } else { self.scale }
    }

    /// `x` with the mask, in Candle's operations.
    ///
    /// # Errors
    /// When the device fails.
    pub fn composed(self, x: &Tensor) -> Result<Tensor> {
        if self.is_none() {
            return Ok(x.clone());
        }
        let mask = match x.device() {
            Device::Cpu => {
                let factors = (0..x.elem_count()).map(|place| self.factor(place)).collect();
                Tensor::from_vec(factors, x.shape(), x.device())?
            }
            device => {
                device.set_seed(self.seed)?;
                let kept = Tensor::rand(0f32, 1f32, x.shape(), device)?.ge(self.rate)?;
                (kept.to_dtype(DType::F32)? * f64::from(self.scale))?
            }
        };
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }
}

compiled! {
    /// Multiplies numbers from place `first` on by their factors.
    fn multiply(x: &[f32], mask: Mask, first: usize, out: &mut [f32]) {
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = x * mask.factor(first + i);
        }
    }
}

/// Dropout.
pub(super) struct Drop(pub Mask);

impl Operation for Drop {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let x = inputs[0];
        each_part(out, 1, |part, out| multiply(&x[part.clone()], self.0, part.start, out));
    }

    fn backward(&self, _: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        if let Some(of_x) = &mut of[0] {
            each_part(of_x, 1, |part, of_x| multiply(&grad[part.clone()], self.0, part.start, of_x));
        }
    }
}
