//! The sequences of a decoder, by number, and the pages of their keys and values.

use std::mem;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use half::{bf16, f16};

use crate::{
    kernels::inference::{F8E4M3, Operand, PAGE, Pages, Region, Sequence, Span},
    measure::memory::ensure_fits,
    model::{causal_lm::Part, config::ModelConfig},
};

/// Number of sequences that a decoder holds.
pub const MAX_SEQUENCES: usize = 64;

/// Bytes of the pages of a sequence of `tokens`, with keys and values in `dtype`.
pub fn allocated_bytes(config: &ModelConfig, dtype: DType, tokens: usize) -> u64 {
    let page_bytes = match dtype {
        DType::BF16 => pages::<bf16>(config).page_bytes(),
        DType::F16 => pages::<f16>(config).page_bytes(),
        DType::F8E4M3 => pages::<F8E4M3>(config).page_bytes(),
        _ => pages::<f32>(config).page_bytes(),
    };
    tokens.div_ceil(PAGE) as u64 * page_bytes as u64
}

fn pages<C: Operand>(config: &ModelConfig) -> Pages<C> {
    Pages::new(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
}

/// Sequences from number 0 to [`MAX_SEQUENCES`], some of them empty.
pub struct Sequences<C> {
    pages: Pages<C>,
    held: Vec<Sequence<C>>,
}

impl<C: Operand> Sequences<C> {
    /// Empty sequences.
    pub fn new(config: &ModelConfig) -> Self {
        Self { pages: pages(config), held: (0..MAX_SEQUENCES).map(|_| Sequence::default()).collect() }
    }

    /// The region of a layer in each page.
    pub fn region(&self, layer: usize) -> Region {
        self.pages.region(layer)
    }

    /// Takes the sequences of a step out, with room for its tokens. The rows of the parts follow each other.
    ///
    /// # Errors
    /// If a number is wrong or occurs twice, a position is not the length of its sequence, or memory is missing. The sequences
    /// are then as before.
    pub fn begin(&mut self, parts: &[Part]) -> Result<Vec<Span<C>>> {
        for (place, Part { sequence, position, .. }) in parts.iter().enumerate() {
            let tokens = self.get(*sequence)?.tokens();
            ensure!(
                *position == tokens,
                "position {position} is not that of the next token: sequence {sequence} has {tokens} tokens"
            );
            let is_again = parts[..place].iter().any(|other| other.sequence == *sequence);
            ensure!(!is_again, "sequence {sequence} occurs twice in one step");
        }
        let growths = parts.iter().map(|part| (&self.held[part.sequence], part.tokens.len()));
        let new_bytes = self.pages.lacking(growths) as u64 * self.pages.page_bytes() as u64;
        // Reading how much memory is available takes longer than taking a page that was returned.
        if new_bytes > 0 {
            ensure_fits("the cache", new_bytes, &Device::Cpu)?;
        }
        for part in parts {
            let has_room = self.pages.extend(&mut self.held[part.sequence], part.tokens.len());
            ensure!(has_room, "the system has no memory for the cache: {new_bytes} bytes are needed");
        }
        let mut start = 0;
        let span = |part: &Part| {
            let rows = start..start + part.tokens.len();
            start = rows.end;
            Span { sequence: mem::take(&mut self.held[part.sequence]), rows }
        };
        Ok(parts.iter().map(span).collect())
    }

    /// Puts the sequences of a step back, with its tokens.
    pub fn end(&mut self, parts: &[Part], spans: Vec<Span<C>>) {
        parts.iter().zip(spans).for_each(|(part, span)| self.held[part.sequence] = span.ended());
    }

    /// Empties a sequence.
    ///
    /// # Errors
    /// If the number is wrong.
    pub fn release(&mut self, sequence: usize) -> Result<()> {
        self.get(sequence)?;
        self.pages.release(&mut self.held[sequence]);
        Ok(())
    }

    /// Empties all sequences.
    pub fn clear(&mut self) {
        self.held.iter_mut().for_each(|sequence| self.pages.release(sequence));
    }

    /// Lets the empty sequence `to` begin with the full pages of the first `tokens` tokens of `from`. Returns the number of
    /// tokens that it now has.
    ///
    /// # Errors
    /// If a number is wrong, `to` is not empty, or `from` has fewer tokens.
    pub fn share(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        let (donor, own) = (self.get(from)?, self.get(to)?.tokens());
        ensure!(own == 0, "sequence {to} has {own} tokens: only an empty sequence can begin with those of another");
        ensure!(tokens <= donor.tokens(), "sequence {from} has {} tokens, fewer than {tokens}", donor.tokens());
        let prefix = donor.prefix(tokens);
        // A step that failed may have left pages to the empty sequence.
        self.pages.release(&mut self.held[to]);
        self.held[to] = prefix;
        Ok(self.held[to].tokens())
    }

    fn get(&self, sequence: usize) -> Result<&Sequence<C>> {
        ensure!(
            sequence < MAX_SEQUENCES,
            "sequence {sequence} does not exist: the numbers are below max_sequences={MAX_SEQUENCES}"
        );
        Ok(&self.held[sequence])
    }

    /// Number of pages that no sequence uses.
    #[cfg(test)]
    pub(crate) fn unused_pages(&self) -> usize {
        self.pages.unused()
    }
}
