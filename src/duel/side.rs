//! The description of a side on the command line.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use anyhow::{Result, bail, ensure};

use crate::{
    config::{Config, unknown},
    names::PathName,
    settings::{PREFIX, Settings},
};

/// One side of a duel as the user describes it: a revision or the working tree, and what differs from a plain build and run.
///
/// Its text is parts joined by `+`. A part without `=` is a revision of git, or `.` for the working tree, which is also the
/// default. `candle=PATH` replaces Candle by a checkout, `candle=PATH@REVISION` by a commit of one, and `candle=VERSION` by a
/// published version. `bench=NAME` builds a bench target, `features=LIST` enables Cargo features, and any other key is a setting, as
/// in `threads=1` or `CANDLEPOWER_THREADS=1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    text: String,
    /// Revision; `None` for the working tree.
    pub revision: Option<String>,
    /// The replacement of Candle.
    pub candle: Option<Candle>,
    /// Bench target of a crate with a model of its own.
    pub bench: Option<PathName>,
    /// Cargo features, sorted.
    pub features: Vec<String>,
    /// Settings by their keys.
    pub settings: BTreeMap<String, String>,
}

/// The replacement of the Candle that a commit needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Candle {
    /// A checkout as it is.
    Checkout(PathBuf),
    /// A revision of a checkout.
    Revision(PathBuf, String),
    /// A published version, which Cargo downloads.
    Version(String),
}

impl Candle {
    /// Three numbers are a version, and anything else is a path, with a revision behind the last `@`. No revision ends with a
    /// slash, so a path with `@` in its name does.
    fn of(text: &str) -> Self {
        if let Some((path, revision)) = text.rsplit_once('@').filter(|(_, revision)| !revision.ends_with('/')) {
            return Self::Revision(path.into(), revision.to_owned());
        }
        let numbers: Vec<&str> = text.split('.').collect();
        let is_number =
            |part: &&str| !part.is_empty() && part.len() < 6 && part.bytes().all(|digit| digit.is_ascii_digit());
        match numbers.len() == 3 && numbers.iter().all(is_number) {
            true => Self::Version(text.to_owned()),
            false => Self::Checkout(text.into()),
        }
    }
}

impl fmt::Display for Candle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkout(path) => write!(f, "{}", path.display()),
            Self::Revision(path, revision) => write!(f, "{}@{revision}", path.display()),
            Self::Version(version) => f.write_str(version),
        }
    }
}

impl FromStr for Side {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut side = Self {
            text: text.to_owned(),
            revision: None,
            candle: None,
            bench: None,
            features: Vec::new(),
            settings: BTreeMap::new(),
        };
        let mut has_source = false;
        for part in text.split('+') {
            let Some((key, value)) = part.split_once('=') else {
                ensure!(
                    !part.is_empty(),
                    "side '{text}': a part is empty: expected a revision, . or key=value, joined by +"
                );
                check_revision(text, part)?;
                ensure!(
                    !has_source,
                    "side '{text}': it names two sources: a side has one revision, or . for the working tree"
                );
                has_source = true;
                side.revision = (part != ".").then(|| part.to_owned());
                continue;
            };
            ensure!(!value.is_empty(), "side '{text}': {key} has no value");
            let is_new = match key {
                "candle" => side.candle.replace(Candle::of(value)).is_none(),
                "bench" => side.bench.replace(value.parse()?).is_none(),
                "features" => {
                    let is_new = side.features.is_empty();
                    side.features = value.split(',').map(str::to_owned).collect();
                    side.features.sort_unstable();
                    is_new
                }
                _ => side.settings.insert(setting(text, key)?, value.to_owned()).is_none(),
            };
            ensure!(is_new, "side '{text}': {key} is given twice");
        }
        if let Some(Candle::Revision(_, revision)) = &side.candle {
            check_revision(text, revision)?;
        }
        Ok(side)
    }
}

/// Git would read it as an option, or as that of HEAD.
fn check_revision(text: &str, revision: &str) -> Result<()> {
    ensure!(!revision.is_empty() && !revision.starts_with('-'), "side '{text}': '{revision}' is not a revision");
    Ok(())
}

impl Side {
    /// The same side at a commit of the package, and at a commit of Candle if it names a revision of it.
    pub fn at(&self, own: &str, candle: Option<&str>) -> Self {
        let mut side = self.clone();
        side.revision = Some(own.to_owned());
        if let (Some(Candle::Revision(_, revision)), Some(commit)) = (&mut side.candle, candle) {
            *revision = commit.to_owned();
        }
        let mut parts = vec![own.to_owned()];
        parts.extend(side.candle.iter().map(|candle| format!("candle={candle}")));
        parts.extend(side.bench.iter().map(|bench| format!("bench={bench}")));
        parts.extend((!side.features.is_empty()).then(|| format!("features={}", side.features.join(","))));
        parts.extend(side.settings.iter().map(|(key, value)| format!("{key}={value}")));
        side.text = parts.join("+");
        side
    }
}

/// The key of a setting, given as such or as its environment variable.
fn setting(text: &str, key: &str) -> Result<String> {
    let key = key.strip_prefix(PREFIX).map_or_else(|| key.to_owned(), str::to_lowercase);
    let mut names = vec!["candle", "bench", "features"];
    // The duel keeps both sides' records in one folder.
    names.extend(Settings::KEYS.iter().map(|key| key.name).filter(|name| *name != "out"));
    match names[3..].contains(&key.as_str()) {
        true => Ok(key),
        false => bail!("side '{text}': {}", unknown("key", &key, &names)),
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read() {
        let side = |text: &str| text.parse::<Side>().expect(text);
        assert_eq!(side("main").revision.as_deref(), Some("main"));
        assert_eq!((side(".").revision, side("threads=1").revision), (None, None));
        let all =
            side("HEAD~1+candle=../candle+features=mkl,avx512+CANDLEPOWER_THREADS=2+models=llama-mini,qwen3-mini");
        assert_eq!(all.revision.as_deref(), Some("HEAD~1"));
        assert_eq!(all.candle, Some(Candle::Checkout("../candle".into())));
        assert_eq!(side("candle=0.11.0").candle, Some(Candle::Version("0.11.0".into())));
        for path in ["0.11", "./0.11.0", "0.11.x", "a.b.c"] {
            assert_eq!(side(&format!("candle={path}")).candle, Some(Candle::Checkout(path.into())));
        }
        for (path, revision) in [("../candle", "main"), ("a@b", "user/fix")] {
            let candle = Candle::Revision(path.into(), revision.into());
            assert_eq!(side(&format!("candle={path}@{revision}")).candle, Some(candle));
        }
        assert_eq!(side("candle=a@b/").candle, Some(Candle::Checkout("a@b/".into())));
        let other = side("threads=1+bench=own+candle=../candle@main+features=mkl").at("abc", Some("def"));
        assert_eq!(other.to_string(), "abc+candle=../candle@def+bench=own+features=mkl+threads=1");
        assert_eq!(side(&other.to_string()), other);
        assert_eq!(all.features, ["avx512", "mkl"]);
        let settings: Vec<_> = all.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(settings, [("models", "llama-mini,qwen3-mini"), ("threads", "2")]);
    }

    #[test]
    fn parts_that_mean_nothing_are_refused() {
        for (text, part) in [
            ("", "a part is empty"),
            ("main+", "a part is empty"),
            ("main+other", "two sources"),
            (".+main", "two sources"),
            ("--upload-pack", "not a revision"),
            ("candle=../candle@", "'' is not a revision"),
            ("candle=../candle@--output=x", "'--output=x' is not a revision"),
            ("main+thread=1", "did you mean threads?"),
            ("main+CANDLEPOWER_SPEED=1", "unknown key 'speed'"),
            ("main+out=x", "unknown key 'out'"),
            ("main+threads=", "threads has no value"),
            ("threads=1+threads=2", "threads is given twice"),
            ("features=a+features=b", "features is given twice"),
            ("bench=a+bench=b", "bench is given twice"),
            ("bench=../a", "can't be the name of a file"),
        ] {
            let error = text.parse::<Side>().expect_err(text).to_string();
            assert!(error.contains(part) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
