//! Prompts of an exact length.

use anyhow::{Result, anyhow, ensure};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use tokenizers::{Encoding, Tokenizer};

use crate::error::one_line;

/// The text of prompts. It is repeated for longer prompts.
const TEXT: &str = include_str!("prompt.txt");

/// The text of prompts, repeated until it has at least so many bytes.
pub fn prompt_text(bytes: usize) -> String {
    TEXT.repeat(bytes.div_ceil(TEXT.len()))
}

/// Makes a prompt of exactly `tokens` ids. With a tokenizer, the prompt is real text, with the beginning-of-sequence
/// id in front if the tokenizer adds one. Without a tokenizer, the ids are seeded.
///
/// # Errors
/// Returns an error if the tokenizer cannot encode the text, or does not return more ids for a longer text.
pub fn prompt_ids(tokenizer: Option<&Tokenizer>, vocab_size: usize, tokens: usize, seed: u64) -> Result<Vec<u32>> {
    match tokenizer {
        None => Ok(seeded_ids(vocab_size, tokens, seed)),
        Some(tokenizer) => text_ids(tokenizer, TEXT, tokens),
    }
}

/// Makes a batch of prompts, each of exactly `tokens` ids. The first is that of [`prompt_ids`]. The text of the others begins
/// at other words, or their ids have the seeds that follow.
///
/// # Errors
/// As [`prompt_ids`].
pub fn prompt_batch(
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    tokens: usize,
    batch: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let prompt = |number: usize| match tokenizer {
        None => Ok(seeded_ids(vocab_size, tokens, seed.wrapping_add(number as u64))),
        Some(tokenizer) => text_ids(tokenizer, &text_from(number * BETWEEN_PROMPTS), tokens),
    };
    (0..batch).map(prompt).collect()
}

/// Words between the beginnings of two prompts of a batch: a prime, so that many prompts begin at different words.
const BETWEEN_PROMPTS: usize = 61;

/// The text of prompts from a word on, with the words before it at the end.
fn text_from(word: usize) -> String {
    let words: Vec<&str> = TEXT.split_inclusive(char::is_whitespace).collect();
    let (before, after) = words.split_at(word % words.len());
    after.iter().chain(before).copied().collect()
}

/// The first `tokens` ids of a text that is repeated.
fn text_ids(tokenizer: &Tokenizer, text: &str, tokens: usize) -> Result<Vec<u32>> {
    let (mut copies, mut made) = (1, 0);
    loop {
        let mut ids = opening(tokenizer, &text.repeat(copies))?;
        if ids.len() >= tokens {
            ids.truncate(tokens);
            return Ok(ids);
        }
        ensure!(
            ids.len() > made,
            "the tokenizer makes {} tokens of the prompt's text however often it is repeated, {tokens} are needed",
            ids.len()
        );
        made = ids.len();
        copies += 1 + copies * (tokens - made) / made;
    }
}

/// Encodes a text that continues: with the special ids that the tokenizer adds in front, without those at the end.
fn opening(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = encoding(tokenizer, text)?;
    let added = encoding.get_special_tokens_mask();
    let front = added.iter().take_while(|added| **added == 1).count();
    let ids = encoding.get_ids().iter().zip(added).enumerate();
    Ok(ids.filter(|(index, (_, added))| *index < front || **added == 0).map(|(_, (id, _))| *id).collect())
}

/// Encodes a text, with the special ids that the tokenizer adds.
///
/// # Errors
/// Returns an error if the tokenizer cannot encode the text.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(encoding(tokenizer, text)?.get_ids().to_vec())
}

fn encoding(tokenizer: &Tokenizer, text: &str) -> Result<Encoding> {
    tokenizer.encode(text, true).map_err(|error| anyhow!("the tokenizer failed: {}", one_line(&error)))
}

fn seeded_ids(vocab_size: usize, tokens: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The high half of a product is uniform enough: its bias is below vocab_size / 2^32.
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

    /// A tokenizer of words, with the given other parts of its file.
    fn words(parts: &str) -> Tokenizer {
        let known = ["<unk>", "<bos>", "<eos>", "A", "candle", "is", "a", "small", "machine"];
        let vocab: Vec<_> = known.iter().enumerate().map(|(id, word)| format!(r#""{word}": {id}"#)).collect();
        let file = format!(
            r#"{{ "version": "1.0", "added_tokens": [], "pre_tokenizer": {{ "type": "Whitespace" }}, {parts}
                "model": {{ "type": "WordLevel", "unk_token": "<unk>", "vocab": {{ {} }} }} }}"#,
            vocab.join(", ")
        );
        file.parse().expect("a tokenizer")
    }

    const BOTH_ENDS: &str = r#""post_processor": { "type": "TemplateProcessing", "pair": [],
        "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                   { "SpecialToken": { "id": "<eos>", "type_id": 0 } }],
        "special_tokens": { "<bos>": { "id": "<bos>", "ids": [1], "tokens": ["<bos>"] },
                            "<eos>": { "id": "<eos>", "ids": [2], "tokens": ["<eos>"] } } },"#;

    #[test]
    fn text_is_cut_to_length_and_opens_as_the_tokenizer_says() {
        let plain = words("");
        let (text, both) = (encode(&plain, TEXT).expect("ids").len(), words(BOTH_ENDS));
        assert!(text > 1000, "{text} words");
        for tokens in [1, 2, 6, text - 1, text, text + 1, text + 2, 3 * text, 40 * text + 39] {
            let ids = prompt_ids(Some(&plain), 9, tokens, 42).expect("ids");
            assert_eq!(ids.len(), tokens);
            assert!(ids.iter().zip([3, 4, 5, 6, 7, 8]).all(|(found, expected)| *found == expected));
            let ids = prompt_ids(Some(&both), 9, tokens, 42).expect("ids");
            assert_eq!(ids.len(), tokens);
            assert!(ids.iter().zip([1, 3, 4, 5, 6, 7, 8]).all(|(found, expected)| *found == expected));
            assert!(!ids.contains(&2), "an end of sequence in {tokens} tokens");
        }
        // Where the text repeats, its words repeat too.
        assert_eq!(prompt_ids(Some(&plain), 9, text + 3, 42).expect("ids")[text..], [3, 4, 5]);
        assert_eq!(encode(&both, "a candle").expect("ids"), [1, 6, 4, 2]);
    }

    #[test]
    fn prompts_of_a_batch_differ_and_begin_with_the_usual_one() {
        let plain = words("");
        for tokenizer in [None, Some(&plain)] {
            let prompts = prompt_batch(tokenizer, 9, 200, 64, 42).expect("prompts");
            assert_eq!(prompts[0], prompt_ids(tokenizer, 9, 200, 42).expect("ids"));
            assert!(prompts.iter().all(|prompt| prompt.len() == 200));
            let distinct: std::collections::BTreeSet<_> = prompts.iter().collect();
            assert_eq!(distinct.len(), prompts.len());
        }
        assert_eq!(text_from(0), TEXT);
        assert_eq!(text_from(61).len(), TEXT.len());
    }

    #[test]
    fn a_tokenizer_that_makes_too_little_is_said_to() {
        let cutting =
            r#""truncation": { "direction": "Right", "max_length": 32, "strategy": "LongestFirst", "stride": 0 },"#;
        let error = prompt_ids(Some(&words(cutting)), 9, 40, 42).expect_err("32 at most").to_string();
        assert!(
            error.contains("makes 32 tokens of the prompt's text however often it is repeated, 40 are needed"),
            "{error}"
        );
        assert_eq!(prompt_ids(Some(&words(cutting)), 9, 32, 42).expect("ids").len(), 32);
    }

    const PINNED: [u32; 4] = [224, 681, 146, 950];
}
