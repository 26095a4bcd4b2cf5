//! Names that become part of a path.

use std::{fmt, path::Path, str::FromStr};

use anyhow::{Result, ensure};

use crate::text;

/// Longest name that the usual file systems take.
const MAX_BYTES: usize = 255;

/// A name that becomes one file or folder below another: it can't lead out of that folder, on any system.
///
/// Names of runs and machines, and revisions, commits and hashes that a server gives, become paths only through this type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathName(String);

impl PathName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PathName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let is_plain = !["", ".", ".."].contains(&name)
            && name.len() <= MAX_BYTES
            // `:` names a drive or a stream on Windows.
            && !name.contains(['/', '\\', ':'])
            && !name.contains(char::is_control);
        ensure!(is_plain, "'{}' can't be the name of a file or folder", text::line(name));
        Ok(Self(name.to_owned()))
    }
}

impl AsRef<Path> for PathName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_folder() {
        for name in ["20260101T000000Z-1", "runner.local", "..a", "a b", "größe", "-x"] {
            assert_eq!(name.parse::<PathName>().expect(name).as_str(), name);
        }
        let long = "x".repeat(MAX_BYTES + 1);
        for name in ["", ".", "..", "../x", "/x", "a/b", "a/", "C:x", "a\\b", "a\nb", "a\0b", "\u{1b}[2J", &long] {
            let error = name.parse::<PathName>().expect_err(name).to_string();
            assert!(error.lines().count() == 1 && !error.contains('\u{1b}'), "{error}");
        }
    }
}
