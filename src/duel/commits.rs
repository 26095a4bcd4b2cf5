//! A duel of two sides: each is built, and both programs are measured.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Folders, Program, Rules, Side, build, measure, slot};
use crate::{git, record::check_writable, report, settings};

/// The checkout around the working directory.
pub(super) struct Checkout {
    pub repository: PathBuf,
    /// Folder of the package below the repository.
    pub package: PathBuf,
    /// Folder of its duels.
    pub root: PathBuf,
}

impl Checkout {
    /// # Errors
    /// When the working directory lies in no repository of git, or in no package.
    pub fn here() -> Result<Self> {
        let repository = git::git(Path::new("."), &["rev-parse", "--show-toplevel"]).context(
            "a duel builds commits of a checkout of candlepower, or of a crate with a model of its own: run it in one",
        )?;
        let repository = PathBuf::from(repository);
        let located = Command::new(build::cargo()).args(["locate-project", "--message-format", "plain"]).output();
        let manifest = located.context("cargo could not be started: is it installed?")?.stdout;
        let manifest = PathBuf::from(String::from_utf8_lossy(&manifest).trim());
        let package = manifest.parent().and_then(|folder| folder.canonicalize().ok());
        let package = package.as_deref().and_then(|folder| folder.strip_prefix(&repository).ok());
        let package =
            package.with_context(|| format!("there is no Cargo.toml here in {}", repository.display()))?.into();
        let root = settings::cargo_target_of(&repository).join("duel");
        Ok(Self { repository, package, root })
    }
}

/// Builds both sides, measures them in turns, and removes what it built. `progress` gets a line after each benchmark.
///
/// # Errors
/// When a side cannot be built, and see [`measure`].
pub(crate) fn run(
    [a, b]: [&Side; 2],
    rules: &Rules,
    out: &Path,
    progress: impl FnMut(&str),
) -> Result<report::duel::Duel> {
    let checkout = Checkout::here()?;
    let repository = checkout.repository.as_path();
    check_writable(out)?;
    let program = env::current_exe().context("the path of this program is unknown")?;
    let slot = slot::Slot::take(&checkout.root, repository)?;
    let names = [format!("side A ({a})"), format!("side B ({b})")];
    let sources = [build::source(&names[0], a, repository, &slot)?, build::source(&names[1], b, repository, &slot)?];
    let built_a = build::build(("a", &names[0]), a, &sources[0], &slot, &program, &checkout)?;
    let is_same_build =
        sources[0] == sources[1] && a.candle == b.candle && a.bench == b.bench && a.features == b.features;
    let built_b = match is_same_build {
        true => built_a.clone(),
        false => build::build(("b", &names[1]), b, &sources[1], &slot, &program, &checkout)?,
    };
    let [commit_a, commit_b] = sources.map(|source| source.recorded_commit);
    let built =
        |side: &Side, path, commit| Program { given: side.to_string(), commit, path, settings: side.settings.clone() };
    let (a, b) = (built(a, built_a, commit_a), built(b, built_b, commit_b));
    measure([&a, &b], rules, Folders { out, logs: slot.folder() }, progress)
}
