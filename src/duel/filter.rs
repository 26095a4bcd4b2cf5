//! The filter of benchmark ids.

use std::str::FromStr;

use anyhow::{Result, ensure};

/// Selects ids that contain a text. `^` and `$` stand for the start and the end of an id, and `|` separates alternatives, as
/// in a regular expression. Other special characters of regular expressions are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: String,
}

impl Filter {
    /// Returns whether the filter selects an id.
    pub(crate) fn takes(&self, id: &str) -> bool {
        self.text.split('|').any(|part| {
            let (part, from_start) = part.strip_prefix('^').map_or((part, false), |part| (part, true));
            let (part, to_end) = part.strip_suffix('$').map_or((part, false), |part| (part, true));
            match (from_start, to_end) {
                (true, true) => id == part,
                (true, false) => id.starts_with(part),
                (false, true) => id.ends_with(part),
                (false, false) => id.contains(part),
            }
        })
    }

    /// The text of the filter.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(
            !text.contains(['*', '+', '?', '(', ')', '[', ']', '{', '}', '\\']),
            "filter '{text}': expected a part of an id; only ^, $ and | are special"
        );
        Ok(Self { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_selected_by_their_parts() {
        let id = "short/llama-3.2-1b/stock-f32-cpu";
        for (filter, takes) in [
            ("", true),
            ("llama-3.2", true),
            ("^short/", true),
            ("^llama", false),
            ("-cpu$", true),
            ("-f32$", false),
            ("^short/llama-3.2-1b/stock-f32-cpu$", true),
            ("^short$", false),
            ("^medium/|^short/", true),
            ("qwen|gemma", false),
        ] {
            assert_eq!(filter.parse::<Filter>().expect(filter).takes(id), takes, "{filter}");
        }
        let error = "short/.*cpu".parse::<Filter>().expect_err("a regular expression").to_string();
        assert!(error.contains("only ^, $ and | are special"), "{error}");
    }
}
