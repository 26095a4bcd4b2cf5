//! A trained decoder as a language model that is scored. It has no cache: each pass computes the whole sequence.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{Decoder, PsannConfig, layers::Table};
use crate::{
    device::Precision,
    error::one_line,
    kernels::inference::Layer,
    model::{CausalLm, Footprint, LogitRows},
};

/// Longest sequence. Positions are computed for any length, but a model knows only those of its training well.
const LONGEST: usize = 4096;

/// Rows of logits that one product computes.
const LOGIT_ROWS: usize = 64;

/// A trained decoder.
pub struct PsannLm<T = Tensor> {
    vocab_size: usize,
    decoder: Decoder<T>,
    footprint: Footprint,
    device: Device,
    /// The sequence so far.
    tokens: Vec<u32>,
}

impl PsannLm {
    /// Loads a safetensors file with psannlm's names. The model computes in `dtype`, as in training. Bases that see later tokens
    /// are no language models; see `PsannConfig::is_causal`.
    ///
    /// # Errors
    /// If the file cannot be read, or lacks a tensor of the configuration.
    pub fn load(config: &PsannConfig, dtype: DType, file: &Path, device: &Device) -> Result<Self> {
        let read = candle_core::safetensors::load(file, device);
        let tensors: HashMap<String, Tensor> =
            read.map_err(|error| anyhow!("{} can't be read: {}", file.display(), one_line(&error)))?;
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        Self::new(config, Decoder::new(config, dtype, weights)?, device)
    }
}

impl PsannLm<Layer> {
    /// Builds a model for inference on a CPU; see `Decoder::packed`.
    ///
    /// # Errors
    /// If `weights` lacks a tensor of the configuration, or a weight that is quantised is not finite.
    pub fn packed(config: &PsannConfig, precision: Precision, weights: VarBuilder) -> Result<Self> {
        Self::new(config, Decoder::packed(config, precision, weights)?, &Device::Cpu)
    }
}

impl<T: Table> PsannLm<T> {
    fn new(config: &PsannConfig, decoder: Decoder<T>, device: &Device) -> Result<Self> {
        let (vocab_size, footprint) = (config.vocab_size, decoder.footprint()?);
        Ok(Self { vocab_size, decoder, footprint, device: device.clone(), tokens: Vec::new() })
    }

    /// The input of the head for each token: (tokens, width).
    fn hidden(&self, tokens: &[u32]) -> Result<Tensor> {
        ensure!(tokens.len() <= LONGEST, "{} tokens exceed {LONGEST}", tokens.len());
        self.decoder.hidden(&Tensor::new(tokens, &self.device)?.unsqueeze(0)?)
    }
}

impl<T: Table> CausalLm for PsannLm<T> {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        ensure!(!tokens.is_empty(), "a forward pass needs at least one token");
        ensure!(position <= self.tokens.len(), "position {position} follows {} tokens", self.tokens.len());
        self.tokens.truncate(position);
        self.tokens.extend_from_slice(tokens);
        let last = self.hidden(&self.tokens)?.narrow(0, self.tokens.len() - 1, 1)?;
        Ok(self.decoder.logits(&last)?.squeeze(0)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.tokens.clear();
        Ok(())
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        let (hidden, count) = (self.hidden(tokens)?, tokens.len());
        let rows = move |first: usize| -> Result<Vec<Vec<f32>>> {
            let some = hidden.narrow(0, first, LOGIT_ROWS.min(count - first))?;
            Ok(self.decoder.logits(&some)?.to_vec2()?)
        };
        let block = move |first: usize| -> Vec<Result<Vec<f32>>> {
            match rows(first) {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        Ok(Box::new((from..count).step_by(LOGIT_ROWS).flat_map(block)))
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        LONGEST
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{psann::Base, trainable::Variables};

    #[test]
    fn single_tokens_have_the_logits_of_the_whole_sequence() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("model.safetensors");
        for base in [Base::Respsann, Base::Transformer] {
            let config = PsannConfig {
                base,
                vocab_size: 40,
                d_model: 16,
                n_layers: 2,
                n_heads: 2,
                d_mlp: 24,
                ..PsannConfig::default()
            };
            let variables = Variables::new(7);
            Decoder::new(&config, DType::F32, variables.builder(DType::F32, &Device::Cpu)).expect("a decoder");
            let tensors: HashMap<String, Tensor> =
                variables.named().into_iter().map(|(name, variable)| (name, variable.as_tensor().clone())).collect();
            candle_core::safetensors::save(&tensors, &file).expect("written");
            let mut model = PsannLm::load(&config, DType::F32, &file, &Device::Cpu).expect("a model");
            let tokens: Vec<u32> = (0..20).map(|token| token * 7 % 40).collect();
            let rows: Vec<Vec<f32>> = model.logit_rows(&tokens, 3).expect("rows").collect::<Result<_>>().expect("rows");
            assert_eq!(rows.len(), 17);
            for (position, token) in tokens.iter().enumerate() {
                let row: Vec<f32> =
                    model.forward(&[*token], position).and_then(|row| Ok(row.to_vec1()?)).expect("a row");
                if position >= 3 {
                    let far = row.iter().zip(&rows[position - 3]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(far < 1e-5, "{base}, position {position}: {far}");
                }
            }
            assert!(model.forward(&[1], 99).is_err() && model.forward(&[], 0).is_err());
            let wider = PsannConfig { n_layers: 3, ..config };
            assert!(PsannLm::load(&wider, DType::F32, &file, &Device::Cpu).is_err(), "a layer is missing");
        }
    }

    fn small(base: Base, d_model: usize, d_mlp: usize) -> PsannConfig {
        PsannConfig { base, vocab_size: 300, d_model, n_layers: 2, n_heads: 2, d_mlp, ..PsannConfig::default() }
    }

    /// Rows that are not whole blocks are padded, so their bytes need not fall.
    #[test]
    fn packed_matrices_take_fewer_bytes_and_have_close_logits() {
        let tokens: Vec<u32> = (0..90).map(|token| token * 7 % 300).collect();
        let logits = |model: &mut dyn CausalLm| -> Vec<f32> {
            model.logit_rows(&tokens, 5).expect("rows").collect::<Result<Vec<_>>>().expect("rows").concat()
        };
        let norm = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let weights = || Variables::new(7).frozen(DType::F32, &Device::Cpu);
        for (config, is_whole) in [(small(Base::Waveresnet, 256, 512), true), (small(Base::Transformer, 24, 40), false)]
        {
            let trained = Decoder::new(&config, DType::F32, weights()).expect("a decoder");
            let mut trained = PsannLm::new(&config, trained, &Device::Cpu).expect("a model");
            let expected = logits(&mut trained);
            assert_eq!(expected.len(), 85 * 300);
            let mut sizes = vec![trained.footprint().weight_bytes];
            for (precision, tolerance) in [
                (Precision::F32, 1e-5),
                (Precision::F16, 0.01),
                (Precision::BF16, 0.03),
                (Precision::Q8_0, 0.03),
                (Precision::F8E4M3, 0.1),
                (Precision::Q4K, 0.3),
            ] {
                let mut packed = PsannLm::packed(&config, precision, weights()).expect("a model");
                let found = logits(&mut packed);
                let apart: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
                let far = norm(&apart) / norm(&expected);
                assert!(far < tolerance, "{} {precision}: {far}", config.base);
                assert_eq!(packed.footprint().flops_per_token, trained.footprint().flops_per_token);
                sizes.push(packed.footprint().weight_bytes);
            }
            assert!(sizes[0] == sizes[1] && sizes[1] > sizes[2] && sizes[2] == sizes[3], "{sizes:?}");
            assert!(!is_whole || sizes[3..].is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        let config = small(Base::Respsann, 32, 32);
        let variables = Variables::new(7);
        Decoder::new(&config, DType::F32, variables.builder(DType::F32, &Device::Cpu)).expect("a decoder");
        for (name, of) in [("blocks.1.attn.q_proj.weight", "blocks.1.attn.q_proj"), ("lm_head.weight", "lm_head")] {
            let tensor = |found: String, variable: candle_core::Var| {
                let broken = Tensor::full(f32::NAN, variable.shape(), &Device::Cpu).expect("a tensor");
                let tensor = if found == name { broken } else { variable.as_tensor().clone() };
                (found, tensor)
            };
            let tensors = variables.named().into_iter().map(|(found, variable)| tensor(found, variable)).collect();
            let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            let error = PsannLm::packed(&config, Precision::Q8_0, weights).err().expect("a refusal");
            assert_eq!(format!("{error:#}"), format!("{of}: a weight is not finite"));
        }
    }
}
