//! Prompts of an exact length.

use anyhow::{Result, anyhow, ensure};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tokenizers::Tokenizer;

use crate::subject::one_line;

/// The text that prompts are cut from, repeated where a longer one is asked for.
const TEXT: &str = include_str!("prompt.txt");

/// A prompt of exactly `tokens` ids: real text where the model has a tokenizer, with the beginning-of-sequence id in
/// front if the tokenizer puts one there; seeded ids otherwise.
///
/// # Errors
/// When the tokenizer can't encode the text.
pub fn prompt_ids(tokenizer: Option<&Tokenizer>, vocab_size: usize, tokens: usize, seed: u64) -> Result<Vec<u32>> {
    let Some(tokenizer) = tokenizer else { return Ok(seeded_ids(vocab_size, tokens, seed)) };
    let mut text = TEXT.to_owned();
    loop {
        let mut ids = encode(tokenizer, &text)?;
        if ids.len() >= tokens {
            ids.truncate(tokens);
            return Ok(ids);
        }
        ensure!(!ids.is_empty(), "the tokenizer makes no token of the prompt's text");
        text = text.repeat(1 + tokens / ids.len());
    }
}

/// The ids of a text, with the special ones that the tokenizer adds.
///
/// # Errors
/// When the tokenizer can't encode it.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding =
        tokenizer.encode(text, true).map_err(|error| anyhow!("the tokenizer failed: {}", one_line(&error)))?;
    Ok(encoding.get_ids().to_vec())
}

fn seeded_ids(vocab_size: usize, tokens: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The high half of a product scales evenly enough: its bias is below vocab_size / 2^32.
    (0..tokens).map(|_| ((u64::from(random.next_u32()) * vocab_size as u64) >> 32) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_ids_are_as_many_as_asked_for_and_always_the_same() {
        let ids = prompt_ids(None, 1000, 300, 42).expect("ids");
        assert_eq!(ids.len(), 300);
        assert!(ids.iter().all(|id| *id < 1000));
        assert_eq!(ids, prompt_ids(None, 1000, 300, 42).expect("ids"));
        assert_eq!(ids[..4], PINNED);
        assert_ne!(ids, prompt_ids(None, 1000, 300, 43).expect("ids"));
    }
    const PINNED: [u32; 4] = [224, 681, 146, 950];
}
