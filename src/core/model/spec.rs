//! The specification of a model as a user types it, and its short name in benchmark ids.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::shapes::{MINI, SYNTHETIC};

/// The specification of a model to load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelSpec {
    /// An embedded small model with the layers of its family and seeded weights.
    Mini(&'static str),
    /// A model with the sizes of a published one and seeded weights.
    Synthetic(&'static str),
    /// A model with the sizes of a `config.json`, or of the one in a folder, and seeded weights.
    Seeded(PathBuf),
    /// A repository on the Hugging Face Hub.
    Hub {
        /// Name of the repository, `<owner>/<name>`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The path of a GGUF file in it, or the quantisation of one; `None` for safetensors.
        gguf: Option<String>,
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
    pub fn slug(&self) -> String {
        match self {
            Self::Mini(name) => (*name).into(),
            Self::Synthetic(name) => format!("synthetic-{name}"),
            Self::Hub { repo, .. } => self.hashed_slug(repo.rsplit('/').next().unwrap_or(repo)),
            Self::Seeded(path) | Self::Path(path) => {
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
    pub fn is_synthetic(&self) -> bool {
        matches!(self, Self::Mini(_) | Self::Synthetic(_) | Self::Seeded(_))
    }

    /// Returns whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        match self {
            Self::Path(path) => is_gguf_name(path),
            Self::Hub { gguf, .. } => gguf.is_some(),
            Self::Mini(_) | Self::Synthetic(_) | Self::Seeded(_) => false,
        }
    }

    /// Returns whether it is one of the small embedded models.
    pub fn is_mini(&self) -> bool {
        matches!(self, Self::Mini(_))
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mini(name) => f.write_str(name),
            Self::Synthetic(name) => write!(f, "synthetic:{name}"),
            Self::Seeded(path) => write!(f, "synthetic:{}", path.display()),
            Self::Hub { repo, revision, gguf: None } => write!(f, "hub:{repo}@{revision}"),
            Self::Hub { repo, revision, gguf: Some(gguf) } => {
                let mark = if is_gguf_name(Path::new(gguf)) { '/' } else { ':' };
                write!(f, "hub:{repo}{mark}{gguf}@{revision}")
            }
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
                None if is_path(name) || name.ends_with(".json") => Ok(Self::Seeded(name.into())),
                None => bail!("unknown shape '{name}': name a config.json, or one of {}", SYNTHETIC.join(", ")),
            },
            Some(("path", "")) => bail!("'path:' needs a folder or a GGUF file, as in path:./my-checkpoint"),
            Some(("path", path)) => Ok(Self::Path(path.into())),
            Some(("hub", repo)) => hub(repo),
            _ if is_path(text) => Ok(Self::Path(text.into())),
            Some((scheme, _)) if !scheme.contains('/') => {
                bail!("unknown kind of model '{scheme}:': the kinds are synthetic:, hub: and path:")
            }
            _ if text.contains('/') => hub(text),
            _ => bail!(
                "unknown model '{text}': name one of {}, synthetic:<shape or config.json> ({}), a folder, a file.gguf, or a repository of the Hub as {HUB_FORMS}",
                MINI.join(", "),
                SYNTHETIC.join(", ")
            ),
        }
    }
}

crate::config::serde_as_text!(ModelSpec);

/// The forms of a model of the Hub. The prefix `hub:` may be left out.
const HUB_FORMS: &str =
    "hub:<owner>/<name>[@<revision>], hub:<owner>/<name>:<quantisation> or hub:<owner>/<name>/<file.gguf>";

fn hub(text: &str) -> Result<ModelSpec> {
    let (named, revision) = text.split_once('@').unwrap_or((text, "main"));
    let is_part = |part: &str| {
        !["", ".", ".."].contains(&part) && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let (path, quantisation) = match named.split_once(':') {
        Some((path, quantisation)) => (path, Some(quantisation)),
        None => (named, None),
    };
    let parts: Vec<&str> = path.split('/').collect();
    let is_whole = parts.iter().chain(&quantisation).all(|part| is_part(part)) && parts.len() >= 2;
    let file = parts.get(2..).unwrap_or_default().join("/");
    let gguf = match (file.is_empty(), quantisation) {
        (true, quantisation) => quantisation.map(str::to_owned),
        (false, None) if is_gguf_name(Path::new(&file)) => Some(file),
        (false, _) => bail!("'{text}' is not a model of the Hub: write {HUB_FORMS}"),
    };
    // A revision has no colon, so that a quantisation after it is seen.
    ensure!(
        is_whole && !revision.is_empty() && !revision.contains(':'),
        "'{text}' is not a Hub repository: write {HUB_FORMS}"
    );
    Ok(ModelSpec::Hub { repo: parts[..2].join("/"), revision: revision.into(), gguf })
}

/// Returns whether a text without a prefix is a path: it looks like one, or there is such a folder or file.
fn is_path(text: &str) -> bool {
    let path = Path::new(text);
    let is_file_name = is_gguf_name(path) && text.matches('/').count() < 2 && !text.contains(':');
    let begins_as_path = ["./", "../"].iter().any(|start| text.starts_with(start)) || [".", ".."].contains(&text);
    !text.is_empty() && (begins_as_path || path.is_absolute() || is_file_name || path.exists())
}

fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
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
        for text in [
            "llama-mini",
            "synthetic:qwen3-1.7b",
            "synthetic:./config.json",
            "hub:meta-llama/Llama-3.2-1B-Instruct@main",
            "path:./my-checkpoint",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("Qwen/Qwen3-1.7B"), parse("hub:Qwen/Qwen3-1.7B@main"));
        assert!(parse("path:./Model.GGUF").is_gguf() && !parse("path:./gguf").is_gguf());
    }

    #[test]
    fn paths_and_files_of_the_hub_need_no_prefix() {
        for (text, canonical, is_gguf) in [
            ("./x.gguf", "path:./x.gguf", true),
            ("x.gguf", "path:x.gguf", true),
            ("models/x.gguf", "path:models/x.gguf", true),
            ("/tmp/none/x.gguf", "path:/tmp/none/x.gguf", true),
            ("../none", "path:../none", false),
            // They exist: the tests run in the folder of the crate.
            ("model/gguf", "path:model/gguf", false),
            ("model", "path:model", false),
            ("owner/name:Q4_K_M", "hub:owner/name:Q4_K_M@main", true),
            ("hub:owner/name:UD-Q4_K_XL@v2", "hub:owner/name:UD-Q4_K_XL@v2", true),
            ("owner/name/x.gguf", "hub:owner/name/x.gguf@main", true),
            ("hub:owner/name/Q8_0/x-00001-of-00002.gguf@v/2", "hub:owner/name/Q8_0/x-00001-of-00002.gguf@v/2", true),
            ("hub:model/gguf", "hub:model/gguf@main", false),
            ("hub:owner/x.gguf", "hub:owner/x.gguf@main", false),
        ] {
            let spec = parse(text);
            assert_eq!((spec.to_string().as_str(), spec.is_gguf()), (canonical, is_gguf), "{text}");
            assert_eq!(parse(canonical), spec);
        }
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
                    .flat_map(|name| {
                        ["", "@v2", ":Q4_0", ":Q8_0", "/x.gguf"].map(|end| format!("hub:{owner}/{name}{end}"))
                    })
                    .collect::<Vec<_>>()
            }))
            .chain(
                ["synthetic:./x.json", "path:x", "path:./x", "path:/tmp/a b:c", "path:/"].iter().map(|p| p.to_string()),
            )
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
            ("synthetic:", "config.json"),
            ("hub:nothing", "<owner>/<name>"),
            ("hub:a/b@", "<revision>"),
            ("hub:../etc/passwd", "<owner>/<name>"),
            ("hub:a/b/../x.gguf", "<owner>/<name>"),
            ("hub:a/b/c", "<file.gguf>"),
            ("hub:a/b/x.gguf:Q4_0", "<quantisation>"),
            ("hub:a/b@main:Q4_0", "<quantisation>"),
            ("a/b:", "<quantisation>"),
            ("a/b:Q4/0", "<quantisation>"),
            ("s3:bucket", "hub:"),
            ("path:", "path:./my-checkpoint"),
            ("", "llama-mini"),
        ] {
            let message = text.parse::<ModelSpec>().expect_err(text).to_string();
            assert!(message.contains(hint), "{message}");
        }
    }
}
