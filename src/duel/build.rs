//! Programs of the sides. Each side is built from a worktree of its commit; the working tree becomes a commit first, so that
//! it may change during the duel, and Cargo does not write to its `Cargo.lock`.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{
    guard::{guarded, wait},
    side::{Candle, Side},
    slot::Slot,
};
use crate::{
    files,
    git::{git, git_with},
    output, progress, text,
};

/// The crates of Candle that a checkout may replace.
const CANDLE: [&str; 3] = ["candle-core", "candle-nn", "candle-transformers"];

/// The source of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Commit that is built.
    pub commit: String,
    /// Commit for records, with `-dirty` if the working tree has other changes.
    pub recorded_commit: String,
    /// Commit of Candle, if the side names a revision of a checkout.
    pub candle: Option<String>,
}

/// Finds the commit of a side in the checkout `repository`.
///
/// # Errors
/// When there is no such commit, or a path in the side does not exist.
pub fn source(name: &str, side: &Side, repository: &Path, slot: &Slot) -> Result<Source> {
    let (commit, recorded_commit) = match &side.revision {
        Some(revision) => commit_of(name, revision, repository).map(|commit| (commit.clone(), commit))?,
        None => snapshot(repository, slot)?,
    };
    let candle = match &side.candle {
        Some(Candle::Revision(checkout, revision)) => Some(commit_of(name, revision, &opened(name, checkout)?)?),
        _ => None,
    };
    Ok(Source { commit, recorded_commit, candle })
}

/// The commit that a revision names.
fn commit_of(name: &str, revision: &str, repository: &Path) -> Result<String> {
    let object = format!("{revision}^{{commit}}");
    git(repository, &["rev-parse", "--verify", "--quiet", "--end-of-options", &object])
        .ok()
        .with_context(|| format!("{name}: there is no commit '{}' in {}", text::line(revision), repository.display()))
}

/// The absolute path of a checkout of Candle.
pub fn opened(name: &str, checkout: &Path) -> Result<PathBuf> {
    checkout.canonicalize().with_context(|| format!("{name}: {} could not be opened", checkout.display()))
}

/// Commits the working tree as it is, with new files that git does not ignore, without touching the index or a branch. Returns
/// the commit, and that for records.
fn snapshot(repository: &Path, slot: &Slot) -> Result<(String, String)> {
    let head =
        git(repository, &["rev-parse", "--verify", "--quiet", "HEAD"]).context("the checkout has no commit yet")?;
    let index = slot.folder().join("index");
    let index = index.to_str().context("the path of the target folder is not UTF-8")?;
    let environment = [
        ("GIT_INDEX_FILE", index),
        ("GIT_AUTHOR_NAME", "candlepower"),
        ("GIT_AUTHOR_EMAIL", "candlepower@localhost"),
        ("GIT_COMMITTER_NAME", "candlepower"),
        ("GIT_COMMITTER_EMAIL", "candlepower@localhost"),
        // Equal trees get equal commits.
        ("GIT_AUTHOR_DATE", "2000-01-01T00:00:00Z"),
        ("GIT_COMMITTER_DATE", "2000-01-01T00:00:00Z"),
    ];
    let run = |arguments: &[&str]| git_with(repository, arguments, &environment);
    run(&["read-tree", &head])?;
    run(&["add", "--all"])?;
    let tree = run(&["write-tree"])?;
    if tree == git(repository, &["rev-parse", &format!("{head}^{{tree}}")])? {
        return Ok((head.clone(), head));
    }
    let commit = run(&["commit-tree", &tree, "-p", &head, "-m", "The working tree, for a duel"])?;
    Ok((commit, format!("{head}-dirty")))
}

/// Builds the program of a side and returns its path in the slot. `label` names its folders, `name` the side in messages,
/// `program` is the `candlepower` program that runs, and `root` is the folder of all duels.
///
/// All sides of all duels are compiled in one folder, so that Candle is compiled once: Cargo keeps dependencies of other
/// versions, features and paths apart by their hashes. It does not do so with the crate itself, which has the same hash in
/// every worktree, and is compiled again only if its files are newer than the last build. Therefore builds take turns, a
/// worktree is made when the builds before it have ended, and the program is copied. For the same reason the folder is not
/// that of the checkout: a later `cargo build` there would take the files of a duel for its own. The last few programs are kept,
/// so that another duel of the same commits starts at once.
///
/// # Errors
/// The first error of the compiler, and the file with the rest.
pub fn build(
    (label, name): (&str, &str),
    side: &Side,
    source: &Source,
    slot: &Slot,
    program: &Path,
    root: &Path,
) -> Result<PathBuf> {
    let turn = root.join("build.lock");
    let turn = File::create(&turn).with_context(|| format!("{} could not be made", turn.display()))?;
    if turn.try_lock().is_err() {
        output::report("waiting until another duel has been built");
        turn.lock().context("the builds of duels could not take turns")?;
    }
    let target = root.join("build");
    let kept = slot.folder().join(format!("candlepower-{label}{}", env::consts::EXE_SUFFIX));
    // A checkout of Candle may have changed since it was compiled.
    let earlier = (!matches!(side.candle, Some(Candle::Checkout(_)))).then(|| earlier(&target, side, source));
    if let Some(earlier) = &earlier
        && fs::copy(earlier, &kept).is_ok()
    {
        // The programs that were used last are kept.
        let _ = File::options().append(true).open(earlier).and_then(|file| file.set_modified(SystemTime::now()));
        output::report(format_args!("{name} was built for an earlier duel"));
        return Ok(kept);
    }
    let worktree = slot.worktree(label, &source.commit)?;
    let replaced = match (&side.candle, &source.candle) {
        (Some(Candle::Checkout(checkout)), _) => candle(name, &opened(name, checkout)?)?,
        (Some(Candle::Revision(checkout, _)), Some(commit)) => {
            candle(name, &slot.worktree_of(&opened(name, checkout)?, &format!("{label}-candle"), commit)?)?
        }
        _ => Vec::new(),
    };
    if let Some(Candle::Version(version)) = &side.candle {
        require(&worktree.join("Cargo.toml"), version).with_context(|| name.to_owned())?;
    }
    let log = slot.log(&format!("build-{label}"));
    let mut cargo = guarded(program, env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&worktree).args(["build", "--release", "--bin", "candlepower", "--target-dir"]).arg(&target);
    if !side.features.is_empty() {
        cargo.args(["--features", &side.features.join(",")]);
    }
    for (package, path) in &replaced {
        cargo.arg("--config").arg(patch(package, path)?);
    }
    let work = format!("building {name} (messages of cargo: {})", log.display());
    output::report(&work);
    let _line = progress::live(work);
    cargo.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
    let status = wait(cargo).with_context(|| format!("{} could not be started", program.display()))?;
    if !status.success() {
        let messages = fs::read(&log).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        let first = messages.lines().find(|line| line.starts_with("error")).unwrap_or("cargo failed");
        let (first, log) = (text::line(first), log.display());
        if MACHINE.iter().any(|sign| messages.contains(sign)) {
            bail!("building {name} failed: {first} (all messages: {log})");
        }
        bail!("{name} does not build: {first} (all messages: {log})");
    }
    let lock = fs::read_to_string(worktree.join("Cargo.lock")).unwrap_or_default();
    for (package, path) in &replaced {
        ensure!(
            comes_from_a_path(&lock, package),
            "{name}: {package} in {} is not used, because its version is not the one that this commit needs",
            path.display()
        );
    }
    let built = target.join("release").join(format!("candlepower{}", env::consts::EXE_SUFFIX));
    fs::copy(&built, &kept).with_context(|| format!("{name}: {} could not be copied", built.display()))?;
    if let Some(earlier) = earlier {
        // The next duel builds it again if this fails.
        let _ = keep(&kept, &earlier);
    }
    Ok(kept)
}

/// Signs in the messages of Cargo that the machine stopped the build: a full disk, a lack of memory, the network.
const MACHINE: [&str; 4] = ["(os error 28)", "signal: 9, SIGKILL", "failed to download", "failed to fetch"];

/// Programs that are kept for later duels.
const PROGRAMS: usize = 8;

/// Where the program of a commit is kept. The name depends on all that a build depends on.
fn earlier(target: &Path, side: &Side, source: &Source) -> PathBuf {
    let mut hash = Sha256::new();
    let compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV").output();
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"].map(env::var_os);
    hash.update(format!("{} {:?} {:?} {:?} {flags:?} ", source.commit, source.candle, side.features, side.candle));
    hash.update(compiler.map(|output| output.stdout).unwrap_or_default());
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    target.join("programs").join(name)
}

/// Keeps a program, and removes those that were used first.
fn keep(program: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder)?;
    let temporary = to.with_extension("tmp");
    fs::copy(program, &temporary)?;
    files::rename(&temporary, to)?;
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let surplus = kept.len().saturating_sub(PROGRAMS);
    kept[..surplus].iter().try_for_each(|(_, path)| fs::remove_file(path))
}

/// The crates of a checkout of Candle, with their folders.
fn candle(name: &str, checkout: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let there = CANDLE.map(|package| (package, checkout.join(package)));
    let there: Vec<_> = there.into_iter().filter(|(_, folder)| folder.join("Cargo.toml").is_file()).collect();
    ensure!(!there.is_empty(), "{name}: {} has none of the folders {}", checkout.display(), CANDLE.join(", "));
    Ok(there)
}

/// Lets a manifest require exactly this version of Candle's crates.
fn require(manifest: &Path, version: &str) -> Result<()> {
    let text = fs::read_to_string(manifest).with_context(|| format!("{} could not be read", manifest.display()))?;
    let mut parsed: toml::Table = text.parse().with_context(|| manifest.display().to_string())?;
    let exact = toml::Value::from(format!("={version}"));
    let mut has_any = false;
    for path in [&["dependencies"][..], &["workspace", "dependencies"]] {
        let mut tables = path.iter();
        let first = tables.next().and_then(|name| parsed.get_mut(*name));
        let Some(table) = tables.fold(first, |table, name| table?.get_mut(name)) else { continue };
        for package in CANDLE {
            match table.get_mut(package) {
                // A member of a workspace takes the requirement of the workspace.
                None => continue,
                Some(toml::Value::Table(entry)) if entry.contains_key("workspace") => {}
                Some(toml::Value::Table(entry)) => drop(entry.insert("version".into(), exact.clone())),
                Some(requirement) => *requirement = exact.clone(),
            }
            has_any = true;
        }
    }
    ensure!(has_any, "{} requires none of {}", manifest.display(), CANDLE.join(", "));
    fs::write(manifest, toml::to_string(&parsed)?)
        .with_context(|| format!("{} could not be written", manifest.display()))
}

/// The option of Cargo that replaces a package by the one in a folder.
fn patch(package: &str, folder: &Path) -> Result<OsString> {
    let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    Ok(format!("patch.crates-io.{package}.path={}", toml::Value::from(folder)).into())
}

/// Returns whether a package of a Cargo.lock has no source but a path.
fn comes_from_a_path(lock: &str, package: &str) -> bool {
    let name = format!("name = \"{package}\"");
    // `[[patch.unused]]` lists the crates that were not used.
    lock.split("[[")
        .filter(|entry| entry.starts_with("package]]"))
        .filter(|entry| entry.lines().any(|line| line == name))
        .any(|entry| !entry.lines().any(|line| line.starts_with("source = ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_requires_a_version_of_candle() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let manifest = "[workspace.dependencies]\ncandle-core = \"0.11.1\"\ncandle-nn = { version = \"0.11.1\", features = [\"x\"] }\n\
                        [dependencies]\nanyhow = \"1\"\ncandle-core.workspace = true\ncandle-transformers = \"0.11.1\"\n";
        fs::write(file.path(), manifest).expect("written");
        require(file.path(), "0.11.0").expect("edited");
        let edited: toml::Table = fs::read_to_string(file.path()).expect("read").parse().expect("TOML");
        let workspace = &edited["workspace"]["dependencies"];
        assert_eq!(workspace["candle-core"].as_str(), Some("=0.11.0"));
        assert_eq!(workspace["candle-nn"]["version"].as_str(), Some("=0.11.0"));
        assert_eq!(workspace["candle-nn"]["features"][0].as_str(), Some("x"));
        let own = &edited["dependencies"];
        assert_eq!(own["candle-transformers"].as_str(), Some("=0.11.0"));
        assert_eq!((own["anyhow"].as_str(), own["candle-core"]["workspace"].as_bool()), (Some("1"), Some(true)));
        fs::write(file.path(), "[dependencies]\nanyhow = \"1\"\n").expect("written");
        assert!(require(file.path(), "0.11.0").is_err());
    }

    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("kept"), "one\n").expect("written");
        fs::write(folder.path().join(".gitignore"), "/target\n").expect("written");
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        git(folder.path(), &["init", "--quiet"]).expect("a repository");
        git(folder.path(), &["add", "."]).expect("added");
        git(folder.path(), &[&author[..], &["commit", "--quiet", "-m", "one"]].concat()).expect("a commit");
        folder
    }

    #[test]
    fn the_working_tree_becomes_a_commit_and_stays_as_it_is() {
        let repository = repository();
        let repository = repository.path();
        let slot = Slot::take(&repository.join("target/duel"), repository).expect("free");
        let find = |text: &str| source("A", &text.parse().expect("a side"), repository, &slot);
        let head = find("HEAD").expect("a commit");
        assert_eq!(find(".").expect("unchanged"), head);

        fs::write(repository.join("kept"), "two\n").expect("written");
        fs::write(repository.join("new"), "three\n").expect("written");
        let before = git(repository, &["status", "--porcelain"]).expect("a state");
        let changed = find(".").expect("a commit");
        assert_eq!(find(".").expect("the same again"), changed);
        assert_eq!(changed.recorded_commit, format!("{}-dirty", head.commit));
        let worktree = slot.worktree("a", &changed.commit).expect("a worktree");
        assert_eq!(fs::read_to_string(worktree.join("kept")).expect("read"), "two\n");
        assert_eq!(fs::read_to_string(worktree.join("new")).expect("read"), "three\n");
        assert!(!worktree.join("target").exists(), "ignored files stay behind");
        assert_eq!(git(repository, &["status", "--porcelain"]).expect("a state"), before);
        assert_eq!(git(repository, &["rev-parse", "HEAD"]).expect("a commit"), head.commit);

        let error = find("no-such-branch").expect_err("unknown").to_string();
        assert!(error.contains("A: there is no commit 'no-such-branch'"), "{error}");
    }

    #[test]
    fn the_crates_of_a_checkout_are_found() {
        let checkout = tempfile::tempdir().expect("a folder");
        let none = candle("A", checkout.path()).expect_err("empty").to_string();
        assert!(none.contains("has none of the folders candle-core, candle-nn, candle-transformers"), "{none}");
        let folder = checkout.path().join("candle-transformers");
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("Cargo.toml"), "").expect("written");
        let found = candle("A", checkout.path()).expect("one crate");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "candle-transformers");
    }

    #[test]
    fn a_crate_that_cargo_did_not_replace_is_noticed() {
        let lock = "[[package]]\nname = \"candle-core\"\nversion = \"0.11.1\"\nsource = \"registry+x\"\n\n\
                    [[package]]\nname = \"candle-nn\"\nversion = \"0.11.1\"\n\n\
                    [[patch.unused]]\nname = \"candle-core\"\nversion = \"0.9.0\"\n";
        assert!(comes_from_a_path(lock, "candle-nn"));
        assert!(!comes_from_a_path(lock, "candle-core"), "an unused patch is listed without a source");
    }
}
