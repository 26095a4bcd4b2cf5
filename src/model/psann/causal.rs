//! A trained decoder as a language model that is scored. It has no cache: each pass computes the whole sequence.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{Decoder, PsannConfig};
use crate::{
    error::one_line,
    model::{CausalLm, Footprint, LogitRows},
};

/// Longest sequence. Positions are computed for any length, but a model knows only those of its training well.
const LONGEST: usize = 4096;

/// A trained decoder.
pub struct PsannLm {
    config: PsannConfig,
    decoder: Decoder,
    dtype: DType,
    device: Device,
    parameters: usize,
    /// The sequence so far.
    tokens: Vec<u32>,
}

impl PsannLm {
    /// Loads a safetensors file with psannlm's names. The model computes in `dtype`. Bases that see later tokens are no language
    /// models; see [`Decoder::leak`].
    ///
    /// # Errors
    /// If the file cannot be read, or lacks a tensor of the configuration.
    pub fn load(config: &PsannConfig, dtype: DType, file: &Path, device: &Device) -> Result<Self> {
        let read = candle_core::safetensors::load(file, device);
        let tensors: HashMap<String, Tensor> =
            read.map_err(|error| anyhow!("{} can't be read: {}", file.display(), one_line(&error)))?;
        let parameters = tensors.values().map(Tensor::elem_count).sum();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        let decoder = Decoder::new(config, dtype, weights)?;
        Ok(Self { config: config.clone(), decoder, dtype, device: device.clone(), parameters, tokens: Vec::new() })
    }

    /// Logits after each token from number `from` on: (tokens, vocabulary).
    fn logits(&self, tokens: &[u32], from: usize) -> Result<Tensor> {
        ensure!(tokens.len() <= LONGEST, "{} tokens exceed {LONGEST}", tokens.len());
        let ids = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        Ok(self.decoder.forward(&ids)?.squeeze(0)?.narrow(0, from, tokens.len() - from)?)
    }
}

impl CausalLm for PsannLm {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        ensure!(!tokens.is_empty(), "a forward pass needs at least one token");
        ensure!(position <= self.tokens.len(), "position {position} follows {} tokens", self.tokens.len());
        self.tokens.truncate(position);
        self.tokens.extend_from_slice(tokens);
        Ok(self.logits(&self.tokens, self.tokens.len() - 1)?.squeeze(0)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.tokens.clear();
        Ok(())
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        let rows: Vec<Vec<f32>> = self.logits(tokens, from)?.to_vec2()?;
        Ok(Box::new(rows.into_iter().map(Ok)))
    }

    fn footprint(&self) -> Footprint {
        Footprint::dense(self.parameters, self.config.vocab_size * self.config.d_model, self.dtype, 0)
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
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
}
