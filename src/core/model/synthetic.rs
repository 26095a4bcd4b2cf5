//! Seeded weights for a configuration. They are the same on every machine and for any number of threads.
//!
//! The key of a tensor is the hash of the seed and the tensor's name. Element `i` comes from word `i` of the ChaCha8 stream of
//! that key, so threads generate parts of a tensor independently.

use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor, op::BackpropOp};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use half::{bf16, f16};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::config::ModelConfig;

/// Standard deviation of the matrices: the value from which the published families were trained.
const STANDARD_DEVIATION: f32 = 0.02;

/// Elements per task: a multiple of ChaCha's block of 16 words, small enough for a core's cache.
const CHUNK: usize = 16 * 1024;

/// Weights for a configuration in `dtype`. Each tensor is generated in its final place when the model requests it, so loading
/// needs no more memory than the weights.
pub fn weights(config: &ModelConfig, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    // Every norm multiplies by 1.
    let norm = (1.0 - config.family.norm_offset) as f32;
    let has_head = !config.tie_word_embeddings;
    VarBuilder::from_backend(Box::new(Synthetic { seed, norm, has_head }), dtype, device.clone())
}

struct Synthetic {
    seed: u64,
    /// Value of the weights of every norm.
    norm: f32,
    /// False if the head is the embedding.
    has_head: bool,
}

impl SimpleBackend for Synthetic {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if shape.rank() == 1 {
            let value = if name.ends_with("norm.weight") { self.norm } else { 0.0 };
            return Tensor::full(value, shape, device)?.to_dtype(dtype);
        }
        let count = shape.elem_count();
        let storage = match dtype {
            DType::F32 => CpuStorage::F32(uniform(self.seed, name, count, |x| x)),
            DType::F16 => CpuStorage::F16(uniform(self.seed, name, count, f16::from_f32)),
            DType::BF16 => CpuStorage::BF16(uniform(self.seed, name, count, bf16::from_f32)),
            _ => return Err(Error::UnsupportedDTypeForOp(dtype, "seeded weights")),
        };
        Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false).to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::Msg(format!("{name}: seeded weights need a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.has_head || name != "lm_head.weight"
    }
}

/// `count` numbers, uniform with a mean of 0 and [`STANDARD_DEVIATION`].
fn uniform<T: Copy + Default + Send + Sync>(
    seed: u64,
    name: &str,
    count: usize,
    convert: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let key: [u8; 32] = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into();
    // A uniform distribution from -w to w has the standard deviation w / √3.
    let half_width = STANDARD_DEVIATION * 3f32.sqrt();
    let mut values = vec![T::default(); count];
    values.par_chunks_mut(CHUNK).enumerate().for_each_init(
        || vec![0u8; 4 * CHUNK],
        |bytes, (chunk, values)| {
            let mut words = ChaCha8Rng::from_seed(key);
            words.set_word_pos((chunk * CHUNK) as u128);
            let bytes = &mut bytes[..4 * values.len()];
            words.fill_bytes(bytes);
            for (value, word) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                // An f32 holds 24 bits exactly, so every machine computes the same value.
                let unit = (word >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0;
                *value = convert(unit * half_width);
            }
        },
    );
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_for_any_number_of_threads() {
        let made = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| uniform(42, "model.embed_tokens.weight", 3 * CHUNK + 5, |x| x))
        };
        assert_eq!(made(1), made(3));
    }

    /// Records of seeded models are compared across versions and machines, so their weights must never change.
    #[test]
    fn pinned_values_do_not_change() {
        let bits = |name, seed| uniform(seed, name, 4, f32::to_bits);
        assert_eq!(bits("model.embed_tokens.weight", 42), PINNED);
        assert_ne!(bits("lm_head.weight", 42), PINNED);
        assert_ne!(bits("model.embed_tokens.weight", 43), PINNED);
    }
    const PINNED: [u32; 4] = [0xbbcc_1ca6, 0xbaaf_2f17, 0xbca1_b764, 0xbc7f_f579];

    /// Some published modules ask for a head to find out whether it is the embedding.
    #[test]
    fn a_tied_head_is_no_tensor_and_biases_add_nothing() {
        let of = |tie_word_embeddings| {
            let config = ModelConfig { tie_word_embeddings, ..crate::model::shape("llama-mini").expect("a shape") };
            weights(&config, 1, DType::F32, &Device::Cpu)
        };
        assert!(!of(true).contains_tensor("lm_head.weight") && of(false).contains_tensor("lm_head.weight"));
        let row = |name: &str| of(true).get(2, name).and_then(|row| row.to_vec1::<f32>()).expect("a row");
        assert_eq!((row("q_proj.bias"), row("norm.weight")), (vec![0.0; 2], vec![1.0; 2]));
    }

    #[test]
    fn mean_and_standard_deviation_are_as_stated() {
        let values = uniform(1, "w", 1 << 20, f64::from);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 1e-4, "{mean}");
        assert!((variance.sqrt() / f64::from(STANDARD_DEVIATION) - 1.0).abs() < 2e-3, "{variance}");
    }

    #[test]
    fn sixteen_bit_weights_are_rounded_f32_weights() {
        let exact = uniform(7, "w", 1000, |x| x);
        assert_eq!(uniform(7, "w", 1000, bf16::from_f32), exact.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    }
}
