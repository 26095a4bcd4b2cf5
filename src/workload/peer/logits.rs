//! A peer as a model of this process, for what needs logits: scores and checks.

use std::{io::Read, mem};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use super::PeerSubject;
use crate::model::{CausalLm, Footprint, LogitRows};

/// A peer that computes logits. It computes each sequence from its beginning, because the protocol has no cache for logits.
pub struct PeerLogits {
    subject: PeerSubject,
    footprint: Footprint,
    sequence: Vec<u32>,
    device: Device,
}

impl PeerLogits {
    /// A peer that has loaded a model for logits.
    pub fn new(subject: PeerSubject) -> Self {
        let footprint = subject.model.footprint(subject.precision);
        Self { subject, footprint, sequence: Vec::new(), device: Device::Cpu }
    }

    /// The tokenizer of the model; `None` for models without one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.subject.model.tokenizer()
    }

    /// Ids that end a sequence.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.subject.model.config().eos_token_ids
    }

    /// The rows from the index `from` on.
    fn rows(&mut self, ids: &[u32], from: usize) -> Result<LogitRows<'static>> {
        let longest = self.max_position_embeddings();
        ensure!(ids.len() <= longest, "{} tokens are more than the {longest} of the model", ids.len());
        let row_bytes = self.vocab_size() * size_of::<f32>();
        let mut file = self.subject.peer.logits(ids, from, row_bytes)?;
        Ok(Box::new((from..ids.len()).map(move |_| {
            let mut row = vec![0; row_bytes];
            file.read_exact(&mut row).context("the logits of a peer could not be read")?;
            let (values, _) = row.as_chunks();
            Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        })))
    }
}

impl CausalLm for PeerLogits {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        ensure!(position == self.sequence.len(), "position {position} does not follow {} tokens", self.sequence.len());
        let mut sequence = mem::take(&mut self.sequence);
        sequence.extend(tokens);
        let row = self.rows(&sequence, sequence.len() - 1)?.next().context("a peer computed no logits")??;
        self.sequence = sequence;
        Ok(Tensor::new(row, &self.device)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.sequence.clear();
        Ok(())
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        self.rows(tokens, from)
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn vocab_size(&self) -> usize {
        self.subject.model.config().vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.subject.model.config().max_position_embeddings
    }

    fn device(&self) -> &Device {
        &self.device
    }
}
