//! The name of a peer.

use std::{fmt, str::FromStr};

use anyhow::{Result, ensure};

use crate::{names::PathName, text};

/// Engines in ids that are not peers.
const TAKEN: [&str; 5] = ["stock", "stock-context", "tuned", "own", "http"];

/// Longest name. Criterion shortens the parts of an id to 64 characters.
const MAX_CHARS: usize = 32;

/// The name of a peer: the engine in benchmark ids, which become folders.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(PathName);

impl PeerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for PeerName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let name: PathName = text.parse()?;
        let is_plain = text.len() <= MAX_CHARS
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
        ensure!(
            is_plain,
            "'{}' is not the name of a peer: write at most {MAX_CHARS} of a-z, 0-9, '.', '_' and '-', a letter or digit \
             first",
            text::line(text)
        );
        ensure!(!TAKEN.contains(&text), "a peer can't be named '{text}', because an engine in ids has this name");
        Ok(Self(name))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_part_of_an_id_and_no_other_engine() {
        for name in ["transformers", "llama-cpp", "jax_0.6", "2"] {
            assert_eq!(name.parse::<PeerName>().expect(name).to_string(), name);
        }
        let long = "x".repeat(MAX_CHARS + 1);
        for name in ["", "..", "../x", "a/b", "Upper", "a b", "-x", "größe", "stock", "tuned", &long] {
            let error = name.parse::<PeerName>().expect_err(name).to_string();
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
