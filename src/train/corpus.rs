//! A corpus: paragraphs, byte-pair tokens, packed sequences, a validation part, and its perplexity under a bigram
//! model.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use sha2::{Digest, Sha256};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, Tokenizer, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{files::read_limited, progress, step::gradients::Sequences};

/// Largest corpus. The text, its tokens and the counts of its pairs are in memory at once.
const MAX_BYTES: u64 = 4 << 30;

/// Longest line. Training the tokenizer and encoding take time that grows faster than the line's length.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Longest word, as the tokenizer divides a text. Pairs of letters are merged within words, which takes minutes in a word of 100 kB.
const MAX_WORD_BYTES: usize = 1 << 14;

/// Bytes of the longest run of letters, of digits, of spaces or of other characters.
fn longest_word(line: &str) -> usize {
    let kind = |letter: char| match letter {
        letter if letter.is_alphabetic() => 0,
        letter if letter.is_numeric() => 1,
        letter if letter.is_whitespace() => 2,
        _ => 3,
    };
    let (mut longest, mut bytes, mut before) = (0, 0, None);
    for letter in line.chars() {
        let own = Some(kind(letter));
        bytes = if own == before { bytes } else { 0 } + letter.len_utf8();
        (longest, before) = (longest.max(bytes), own);
    }
    longest
}

/// Follows every paragraph.
const END: &str = "<|endoftext|>";

/// Tokens of a text, in a training and a validation part.
pub struct Text {
    /// The tokenizer of the text.
    pub tokenizer: Tokenizer,
    /// Size of its vocabulary.
    pub vocab_size: usize,
    /// Packed sequences, each one longer than the input of the model.
    training: Vec<Vec<u32>>,
    validation: Vec<Vec<u32>>,
    /// UTF-8 bytes that a token of the validation part stands for, on average.
    validation_bytes_per_token: f64,
    /// SHA-256 of the file, in hexadecimal.
    pub(super) digest: String,
}

impl Text {
    /// Reads a corpus with one paragraph per line, and trains a tokenizer of at most `vocab_size` on its training
    /// part. The seed assigns each paragraph to training or, with probability `validation_share`, to validation.
    /// Sequences have `length` tokens and the following one.
    ///
    /// # Errors
    /// Returns one line that names the file and the problem.
    pub fn read(corpus: &Path, vocab_size: usize, length: usize, validation_share: f64, seed: u64) -> Result<Self> {
        let name = corpus.display();
        let bytes = read_limited(corpus, MAX_BYTES).with_context(|| format!("corpus {name} can't be read"))?;
        let digest = hexadecimal(&Sha256::digest(&bytes));
        let text = String::from_utf8(bytes).map_err(|error| {
            anyhow!("corpus {name} is not UTF-8: byte {} is invalid", error.utf8_error().valid_up_to())
        })?;
        let paragraphs: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        ensure!(!paragraphs.is_empty(), "corpus {name} is empty: write one paragraph per line");
        let longest = paragraphs.iter().map(|line| line.len()).max().unwrap_or(0);
        ensure!(
            longest <= MAX_LINE_BYTES,
            "corpus {name}: a line has {longest} bytes; at most {MAX_LINE_BYTES} are supported: write one paragraph per line"
        );
        let longest = paragraphs.iter().map(|line| longest_word(line)).max().unwrap_or(0);
        ensure!(
            longest <= MAX_WORD_BYTES,
            "corpus {name}: a word has {longest} bytes; at most {MAX_WORD_BYTES} are supported: is it a text?"
        );
        let line = progress::live(format_args!("corpus {name}"));
        line.step("training the tokenizer");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut is_kept = || f64::from(random.next_u32()) < validation_share * f64::from(u32::MAX);
        let (validation, training): (Vec<&str>, Vec<&str>) = paragraphs.into_iter().partition(|_| is_kept());
        let tokenizer = tokenizer(&training, vocab_size)?;
        line.step("encoding");
        let end = tokenizer.token_to_id(END).context("the tokenizer has no end-of-text token")?;
        // The rows, and the bytes per token. The end of a paragraph stands for its line break.
        let packed = |part: &[&str], what: &str| -> Result<(Vec<Vec<u32>>, f64)> {
            let encoded = tokenizer.encode_batch(part.to_vec(), false).map_err(|error| anyhow!("{name}: {error}"))?;
            let mut ids: Vec<u32> = Vec::new();
            for paragraph in encoded {
                ids.extend(paragraph.get_ids());
                ids.push(end);
            }
            if ids.len() <= length {
                bail!(
                    "corpus {name} is too short: its {what} part has {} tokens, but a sequence needs {}; use a longer text, shorter sequences or another validation_share",
                    ids.len(),
                    length + 1
                );
            }
            // Each sequence begins with the last token of the one before, so that every token but the first is
            // predicted.
            let rows =
                (0..(ids.len() - 1) / length).map(|row| ids[row * length..=(row + 1) * length].to_vec()).collect();
            let bytes: usize = part.iter().map(|paragraph| paragraph.len() + 1).sum();
            Ok((rows, bytes as f64 / ids.len() as f64))
        };
        let (training, _) = packed(&training, "training")?;
        let (validation, validation_bytes_per_token) = packed(&validation, "validation")?;
        let vocab_size = tokenizer.get_vocab_size(true);
        Ok(Self { tokenizer, vocab_size, training, validation, validation_bytes_per_token, digest })
    }

    /// Steps per epoch.
    pub fn steps(&self, rows: usize) -> usize {
        self.training.len().div_ceil(rows)
    }

    /// Bits per byte of the validation part, for its loss in nats per token. Unlike perplexity, it does not depend on the
    /// tokenizer.
    pub fn bits_per_byte(&self, val_loss: f64) -> f64 {
        val_loss / std::f64::consts::LN_2 / self.validation_bytes_per_token
    }

    /// Predicted tokens per epoch.
    #[cfg(test)]
    pub fn tokens(&self) -> usize {
        self.training.iter().map(|row| row.len() - 1).sum()
    }

    /// Returns the batch of a step, counted over all epochs. The seed gives every epoch its own order.
    ///
    /// # Errors
    /// Returns an error if there is no sequence. Reading the text rules this out.
    pub fn batch(&self, step: usize, rows: usize, seed: u64) -> Result<Sequences> {
        let (epoch, place) = (step / self.steps(rows), step % self.steps(rows));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch as u64 + 1);
        let mut order: Vec<usize> = (0..self.training.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
        }
        let chosen = order.chunks(rows).nth(place).unwrap_or_default();
        of(chosen.iter().map(|row| &self.training[*row]))
    }

    /// Returns the whole validation part.
    ///
    /// # Errors
    /// Returns an error if there is no sequence. Reading the text rules this out.
    pub fn validation(&self) -> Result<Sequences> {
        of(self.validation.iter())
    }

    /// The token ids of the validation part in order, as `candlepower perplexity` reads them.
    pub fn validation_ids(&self) -> String {
        // Each sequence begins with the last token of the one before.
        let first = self.validation.first().and_then(|row| row.first());
        let ids = first.into_iter().chain(self.validation.iter().flat_map(|row| &row[1..]));
        ids.map(|id| format!("{id}\n")).collect()
    }

    /// Perplexity of the validation part under a bigram model of the training part: absolute discounting, with
    /// continuation counts for rare and unseen followers (Kneser and Ney 1995).
    pub fn bigram_perplexity(&self) -> f64 {
        const DISCOUNT: f64 = 0.75;
        let mut pairs: HashMap<(u32, u32), u64> = HashMap::new();
        for row in &self.training {
            for pair in row.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_default() += 1;
            }
        }
        let (mut totals, mut kinds, mut continues) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (&(first, second), &count) in &pairs {
            *totals.entry(first).or_insert(0u64) += count;
            *kinds.entry(first).or_insert(0u64) += 1;
            *continues.entry(second).or_insert(0u64) += 1;
        }
        let (all, vocab_size) = (pairs.len() as f64, self.vocab_size as f64);
        let continuation =
            |token: u32| (continues.get(&token).map_or(0.0, |count| *count as f64) + 1.0) / (all + vocab_size);
        let chance = |first: u32, second: u32| match totals.get(&first) {
            None => continuation(second),
            Some(total) => {
                let seen = pairs.get(&(first, second)).map_or(0.0, |count| *count as f64);
                let left = DISCOUNT * kinds.get(&first).map_or(0.0, |kinds| *kinds as f64);
                ((seen - DISCOUNT).max(0.0) + left * continuation(second)) / *total as f64
            }
        };
        let all = || self.validation.iter().flat_map(|row| row.windows(2));
        let loss: f64 = all().map(|pair| -chance(pair[0], pair[1]).ln()).sum();
        (loss / all().count() as f64).exp()
    }
}

/// Bytes in hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of<'a>(rows: impl Iterator<Item = &'a Vec<u32>>) -> Result<Sequences> {
    let rows: Vec<&Vec<u32>> = rows.collect();
    let length = rows.first().map_or(0, |row| row.len());
    Sequences::new(rows.into_iter().flatten().copied().collect(), length)
}

/// Trains a byte-level byte-pair tokenizer on a text.
fn tokenizer(paragraphs: &[&str], vocab_size: usize) -> Result<Tokenizer> {
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + 1;
    ensure!(vocab_size >= least, "vocab_size={vocab_size}: the bytes and the end of text alone are {least} tokens");
    let build = || -> tokenizers::Result<Tokenizer> {
        let bytes = ByteLevel::new(false, true, true);
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END, true)])
            .initial_alphabet(alphabet.into_iter().collect())
            .build();
        let mut made = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None::<NormalizerWrapper>)
            .with_pre_tokenizer(Some(bytes))
            .with_post_processor(None::<PostProcessorWrapper>)
            .with_decoder(Some(bytes))
            .build()?;
        made.train(&mut trainer, paragraphs.iter())?;
        // The trained tokenizer and the loaded one have different types. Both read the file format.
        let text = made.to_string(false)?;
        text.parse()
    };
    build().map_err(|error| anyhow!("the tokenizer could not be trained: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_would_take_minutes_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let letters: String = ('\u{4e00}'..='\u{9fff}').take(20_000).collect();
        for line in ["\0".repeat(300_000), letters, "7".repeat(20_000), format!("a{}b", " ".repeat(20_000))] {
            std::fs::write(file.path(), format!("some text\n{line}\n")).expect("written");
            let error = Text::read(file.path(), 300, 4, 0.1, 1).err().expect("refused").to_string();
            assert!(error.contains("a word has ") && error.ends_with("is it a text?"), "{error}");
        }
        assert_eq!(longest_word("ab 123 ééé, x"), 6);
        assert_eq!(longest_word(&"word ".repeat(100_000)), 4);
    }

    fn corpus(text: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("corpus.txt");
        std::fs::write(&file, text).expect("written");
        (folder, file)
    }

    fn paragraphs() -> String {
        (0..200)
            .map(|number| format!("The {number}. whale swims, and the ship follows the whale — so it goes.\n"))
            .collect()
    }

    #[test]
    fn every_token_is_in_one_batch_of_an_epoch_and_decodes_to_the_text() {
        let (_folder, file) = corpus(paragraphs().as_bytes());
        let text = Text::read(&file, 300, 16, 0.1, 7).expect("a text");
        assert_eq!(text.vocab_size, 300);
        let epoch = |epoch: usize, seed| -> Vec<Sequences> {
            let steps = text.steps(4);
            (epoch * steps..(epoch + 1) * steps).map(|step| text.batch(step, 4, seed).expect("a batch")).collect()
        };
        let tokens = |batches: &[Sequences]| batches.iter().map(Sequences::tokens).sum::<usize>();
        assert_eq!(tokens(&epoch(0, 1)), text.tokens());
        assert_eq!(tokens(&epoch(1, 1)), text.tokens());
        assert_eq!(epoch(0, 1), epoch(0, 1));
        assert!(epoch(0, 1) != epoch(1, 1) && epoch(0, 1) != epoch(0, 2));
        let decoded = text.tokenizer.decode(&text.training[0], true).expect("decoded");
        assert!(paragraphs().replace('\n', "").contains(decoded.trim()), "{decoded}");
        assert!(text.training[0][16] == text.training[1][0]);
        let ids: Vec<u32> = text.validation_ids().lines().map(|id| id.parse().expect("an id")).collect();
        assert_eq!(ids.len(), 16 * text.validation.len() + 1);
        assert!((0..).step_by(16).zip(&text.validation).all(|(at, row)| ids[at..at + 17] == **row));
    }

    #[test]
    fn the_same_seed_splits_and_merges_alike() {
        let (_folder, file) = corpus(paragraphs().as_bytes());
        let read = |seed| Text::read(&file, 320, 16, 0.1, seed).expect("a text");
        assert_eq!((read(7).training, read(7).validation), (read(7).training, read(7).validation));
        assert_ne!(read(7).validation, read(8).validation);
    }

    #[test]
    fn a_bigram_model_is_as_good_as_its_text_is_regular() {
        let (_folder, file) = corpus("a b\n".repeat(400).as_bytes());
        let text = Text::read(&file, 257, 4, 0.2, 7).expect("a text");
        let perplexity = text.bigram_perplexity();
        assert!(perplexity > 1.0 && perplexity < 1.1, "{perplexity}");
    }

    #[test]
    fn what_is_wrong_with_a_corpus_is_said() {
        let error = |text: &[u8]| {
            let (_folder, file) = corpus(text);
            format!("{:#}", Text::read(&file, 300, 16, 0.1, 7).err().expect("an error"))
        };
        assert!(error(b"").contains("is empty") && error(b"\n \n").contains("is empty"));
        assert!(error(b"good\xff\xfe").contains("is not UTF-8: byte 4 is invalid"));
        assert!(error(b"too short").contains("tokens, but a sequence needs 17"));
        let missing = Text::read(Path::new("nowhere.txt"), 300, 16, 0.1, 7).err().expect("an error");
        assert!(format!("{missing:#}").contains("corpus nowhere.txt can't be read"));
        let (_folder, file) = corpus(paragraphs().as_bytes());
        let small = Text::read(&file, 200, 16, 0.1, 7).err().expect("an error").to_string();
        assert!(small.contains("alone are 257 tokens"), "{small}");
    }
}
