//! The specification of a model as a user types it, and its short name in benchmark ids.

use std::{fmt, path::PathBuf, str::FromStr};

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use super::shapes::{MINI, SYNTHETIC};

/// The specification of a model to load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelSpec {
    /// An embedded small model with the layers of its family and seeded weights.
    Mini(&'static str),
    /// A model with the sizes of a published one and seeded weights.
    Synthetic(&'static str),
    /// A repository on the Hugging Face Hub.
    Hub {
        /// Name of the repository, `<owner>/<name>`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// A folder in the Hub's layout, or a GGUF file.
    Path(PathBuf),
}

/// Length of the readable part of a short name. Criterion truncates the parts of an id to 64 characters in folder names, so
/// names must differ well before that.
const NAME_CHARS: usize = 31;

impl ModelSpec {
    /// The name in ids: at most 40 characters of `a-z 0-9 . - _`, different for different specifications. Names of Hub and
    /// local models end with eight hexadecimal digits of a hash of the whole specification.
    pub(crate) fn slug(&self) -> String {
        match self {
            Self::Mini(name) => (*name).into(),
            Self::Synthetic(name) => format!("synthetic-{name}"),
            Self::Hub { repo, .. } => self.hashed_slug(repo.rsplit('/').next().unwrap_or(repo)),
            Self::Path(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                self.hashed_slug(&name.to_string_lossy())
            }
        }
    }

    fn hashed_slug(&self, name: &str) -> String {
        let readable: String = name
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
            .take(NAME_CHARS)
            .collect();
        let hash = Sha256::digest(self.to_string());
        format!("{readable}-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
    }

    /// Returns whether the weights are seeded rather than trained.
    pub(crate) fn is_synthetic(&self) -> bool {
        matches!(self, Self::Mini(_) | Self::Synthetic(_))
    }

    /// Returns whether it is a GGUF file.
    pub(crate) fn is_gguf(&self) -> bool {
        matches!(self, Self::Path(path) if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")))
    }

    /// Returns whether it is one of the small embedded models.
    pub(crate) fn is_mini(&self) -> bool {
        matches!(self, Self::Mini(_))
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mini(name) => f.write_str(name),
            Self::Synthetic(name) => write!(f, "synthetic:{name}"),
            Self::Hub { repo, revision } => write!(f, "hub:{repo}@{revision}"),
            Self::Path(path) => write!(f, "path:{}", path.display()),
        }
    }
}

impl FromStr for ModelSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = |names: &[&'static str], name: &str| names.iter().copied().find(|n| *n == name);
        if let Some(name) = known(&MINI, text) {
            return Ok(Self::Mini(name));
        }
        match text.split_once(':') {
            Some(("synthetic", name)) => match known(&SYNTHETIC, name) {
                Some(name) => Ok(Self::Synthetic(name)),
                None => bail!("unknown shape '{name}': the shapes are {}", SYNTHETIC.join(", ")),
            },
            Some(("path", "")) => bail!("'path:' needs a folder or a GGUF file, as in path:./my-checkpoint"),
            Some(("path", path)) => Ok(Self::Path(path.into())),
            Some(("hub", repo)) => hub(repo),
            Some((scheme, _)) => {
                bail!("unknown kind of model '{scheme}:': the kinds are synthetic:, hub: and path:")
            }
            None if text.contains('/') => hub(text),
            None => bail!(
                "unknown model '{text}': name one of {}, synthetic:<shape> ({}), hub:<owner>/<name>[@revision] or path:<folder or file.gguf>",
                MINI.join(", "),
                SYNTHETIC.join(", ")
            ),
        }
    }
}

crate::config::serde_as_text!(ModelSpec);

fn hub(text: &str) -> Result<ModelSpec> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
    let is_part = |part: &str| {
        !part.is_empty() && part != ".." && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match repo.split_once('/') {
        Some((owner, name)) if is_part(owner) && is_part(name) && !revision.is_empty() => {
            Ok(ModelSpec::Hub { repo: repo.into(), revision: revision.into() })
        }
        _ => bail!("'{text}' is not a Hub repository: write hub:<owner>/<name> or hub:<owner>/<name>@<revision>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn parse(text: &str) -> ModelSpec {
        text.parse().expect(text)
    }

    #[test]
    fn a_specification_survives_printing_and_parsing() {
        for text in
            ["llama-mini", "synthetic:qwen3-1.7b", "hub:meta-llama/Llama-3.2-1B-Instruct@main", "path:./my-checkpoint"]
        {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("Qwen/Qwen3-1.7B"), parse("hub:Qwen/Qwen3-1.7B@main"));
        assert!(parse("path:./Model.GGUF").is_gguf() && !parse("path:./gguf").is_gguf());
    }

    #[test]
    fn slugs_are_short_safe_and_different() {
        let long = "a-very-long-model-name-that-goes-on-and-on-and-on-for-ever";
        let specs: Vec<_> = MINI
            .iter()
            .map(|name| name.to_string())
            .chain(SYNTHETIC.iter().map(|name| format!("synthetic:{name}")))
            .chain(["a", "b"].iter().flat_map(|owner| {
                ["x", "X", "x.y", "llama-mini", long, &format!("{long}-2")]
                    .iter()
                    .flat_map(|name| [format!("hub:{owner}/{name}"), format!("hub:{owner}/{name}@v2")])
                    .collect::<Vec<_>>()
            }))
            .chain(["path:x", "path:./x", "path:/tmp/a b:c", "path:/"].iter().map(|p| p.to_string()))
            .collect();
        let slugs: HashSet<_> = specs.iter().map(|text| parse(text).slug()).collect();
        assert_eq!(slugs.len(), specs.len(), "{slugs:?}");
        for slug in slugs {
            assert!(slug.len() <= 40, "{slug}");
            assert!(slug.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{slug}");
        }
    }

    #[test]
    fn errors_name_valid_specifications() {
        for (text, hint) in [
            ("lama-mini", "llama-mini"),
            ("synthetic:gpt-5", "qwen3-1.7b"),
            ("hub:nothing", "<owner>/<name>"),
            ("hub:a/b@", "<revision>"),
            ("hub:../etc/passwd", "<owner>/<name>"),
            ("s3:bucket", "hub:"),
            ("path:", "path:./my-checkpoint"),
            ("", "llama-mini"),
        ] {
            let message = text.parse::<ModelSpec>().expect_err(text).to_string();
            assert!(message.contains(hint), "{message}");
        }
    }
}
