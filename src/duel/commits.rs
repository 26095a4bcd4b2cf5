//! A duel of two sides: each is built, and both programs are measured.

use std::{env, path};

use anyhow::{Context, Result};

use super::{Folders, Program, Rules, Side, build, measure, slot};
use crate::{git, record::check_writable, report, settings};

/// The checkout around the working directory, and the folder of its duels.
pub(super) fn checkout() -> Result<(path::PathBuf, path::PathBuf)> {
    let repository = git::git(path::Path::new("."), &["rev-parse", "--show-toplevel"])
        .context("a duel builds commits of a checkout of candlepower: run it in one")?;
    let root = settings::cargo_target_of(path::Path::new(&repository)).join("duel");
    Ok((repository.into(), root))
}

/// Builds both sides, measures them in turns, and removes what it built. `progress` gets a line after each benchmark.
///
/// # Errors
/// When a side cannot be built, and see [`measure`].
pub(crate) fn run(
    [a, b]: [&Side; 2],
    rules: &Rules,
    out: &path::Path,
    progress: impl FnMut(&str),
) -> Result<report::duel::Duel> {
    let (repository, root) = checkout()?;
    let repository = repository.as_path();
    check_writable(out)?;
    let program = env::current_exe().context("the path of this program is unknown")?;
    let slot = slot::Slot::take(&root, repository)?;
    let names = [format!("side A ({a})"), format!("side B ({b})")];
    let sources = [build::source(&names[0], a, repository, &slot)?, build::source(&names[1], b, repository, &slot)?];
    let built_a = build::build(("a", &names[0]), a, &sources[0], &slot, &program, &root)?;
    let is_same_build = sources[0] == sources[1] && a.candle == b.candle && a.features == b.features;
    let built_b = match is_same_build {
        true => built_a.clone(),
        false => build::build(("b", &names[1]), b, &sources[1], &slot, &program, &root)?,
    };
    let [commit_a, commit_b] = sources.map(|source| source.recorded_commit);
    let built =
        |side: &Side, path, commit| Program { given: side.to_string(), commit, path, settings: side.settings.clone() };
    let (a, b) = (built(a, built_a, commit_a), built(b, built_b, commit_b));
    measure([&a, &b], rules, Folders { out, logs: slot.folder() }, progress)
}
