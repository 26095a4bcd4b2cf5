//! The file that is scored: a text, or token ids.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::window::Window;
use crate::{files::read_limited, generate, model};

/// Largest file. A tokenizer takes about forty times the memory of the text.
const MAX_BYTES: u64 = 64 << 20;

/// Characters of the name of the file in ids of benchmarks.
const NAME_CHARS: usize = 24;

/// A file that is scored.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path, for messages and results.
    pub name: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Its tokens, or its text.
    pub content: Content,
}

/// The tokens of a file for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// All of them.
    pub ids: Vec<u32>,
    /// The token that the tokenizer puts before a text (BOS); `None` if there is none.
    pub bos: Option<u32>,
}

impl Tokens {
    /// The input of a model for a window: all tokens of the window but the last. BOS takes the place of the first one, as in llama.cpp,
    /// because models that were trained with it predict badly without it.
    pub fn inputs(&self, window: &Window) -> Vec<u32> {
        let mut inputs = self.ids[window.begin..window.end - 1].to_vec();
        if let (Some(bos), Some(first)) = (self.bos, inputs.first_mut()) {
            *first = bos;
        }
        inputs
    }
}

/// The content of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Token ids.
    Ids(Vec<u32>),
    /// A text, which the model's tokenizer encodes.
    Text(String),
}

impl Source {
    /// Reads a file. One that has only digits, white space and commas is a list of token ids.
    ///
    /// # Errors
    /// When the file cannot be read, is too large, is not UTF-8, or is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = read_limited(path, MAX_BYTES).with_context(|| name.clone())?;
        let sha256 = sha256(&bytes);
        let size = bytes.len() as u64;
        let text = String::from_utf8(bytes).map_err(|error| error.utf8_error().valid_up_to());
        let text = text.map_err(|at| anyhow::anyhow!("{name} is not UTF-8: byte {at} is invalid"))?;
        ensure!(
            !text.trim().is_empty(),
            "{name} is empty: give a text, or token ids separated by white space or commas"
        );
        let content = match text.bytes().all(|c| c.is_ascii_digit() || c.is_ascii_whitespace() || c == b',') {
            true => Content::Ids(ids(&text).with_context(|| name.clone())?),
            false => Content::Text(text),
        };
        Ok(Self { name, sha256, bytes: size, content })
    }

    /// A text that is not in a file of its own.
    pub fn of_text(name: &str, text: &str) -> Self {
        Self {
            name: name.to_owned(),
            sha256: sha256(text.as_bytes()),
            bytes: text.len() as u64,
            content: Content::Text(text.to_owned()),
        }
    }

    /// The tokens for a model. The tokenizer adds the special tokens that it adds to a prompt.
    ///
    /// # Errors
    /// When a text meets a model without a tokenizer, the tokenizer fails, or an id is not in the vocabulary.
    pub fn tokens(&self, subject: &model::Subject) -> Result<Tokens> {
        let (ids, bos) = match &self.content {
            Content::Ids(ids) => (ids.clone(), None),
            Content::Text(text) => {
                let tokenizer = subject.tokenizer_for(&format!("the text {}", self.name))?;
                let ids = generate::encode(tokenizer, text)?;
                // The tokenizer puts BOS before an empty text too.
                let bos = generate::encode(tokenizer, "")?.first().copied().filter(|bos| ids.first() == Some(bos));
                (ids, bos)
            }
        };
        let vocab_size = subject.model.vocab_size();
        let unknown = ids.iter().position(|id| *id as usize >= vocab_size);
        if let Some(place) = unknown {
            anyhow::bail!(
                "{}: token {} is {}, which is not below vocab_size={vocab_size} of {}",
                self.name,
                place + 1,
                ids[place],
                subject.source
            );
        }
        Ok(Tokens { ids, bos })
    }

    /// Words between white space; `None` for token ids.
    pub fn words(&self) -> Option<u64> {
        match &self.content {
            Content::Text(text) => Some(text.split_whitespace().count() as u64),
            Content::Ids(_) => None,
        }
    }

    /// A name for ids of benchmarks, by which only results of the same content are compared.
    pub fn slug(&self) -> String {
        let stem = Path::new(&self.name).file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
        let stem: String = stem.chars().map(plain).take(NAME_CHARS).collect();
        format!("{stem}-{}", &self.sha256[..8])
    }
}

/// The SHA-256 of a content, in hexadecimal.
fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ids(text: &str) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c.is_ascii_whitespace() || c == ',').filter(|word| !word.is_empty());
    let ids: Vec<u32> = (1..)
        .zip(words)
        .map(|(place, word)| {
            word.parse().map_err(|_| anyhow::anyhow!("token {place} is {word}, which is above every vocabulary"))
        })
        .collect::<Result<_>>()?;
    ensure!(!ids.is_empty(), "it has no token ids");
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(content: &[u8]) -> Result<Source> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("My text.v2.txt");
        fs::write(&path, content).expect("written");
        Source::read(&path)
    }

    #[test]
    fn digits_are_ids_and_everything_else_is_text() {
        for text in ["1 2,3\n", "1,\t2 ,, 3", "1\r\n2\r\n3"] {
            assert_eq!(read(text.as_bytes()).expect(text).content, Content::Ids(vec![1, 2, 3]));
        }
        let source = read("In 1851, a whale.\n".as_bytes()).expect("a text");
        assert_eq!((source.words(), source.bytes), (Some(4), 18));
        assert!(source.slug().starts_with("my_text.v2-"), "{}", source.slug());
        assert_eq!(source.slug().len(), "my_text.v2-".len() + 8);
        assert_eq!(read(b"1 2").expect("ids").words(), None);
    }

    #[test]
    fn files_that_cannot_be_scored_are_refused_in_one_line() {
        for (content, part) in [
            (&b""[..], "is empty"),
            (b" \n\t", "is empty"),
            (b",,", "no token ids"),
            (b"1 4294967296", "token 2 is 4294967296"),
            (b"abc\xff", "is not UTF-8: byte 3"),
        ] {
            let error = format!("{:#}", read(content).expect_err(part));
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        }
    }
}
