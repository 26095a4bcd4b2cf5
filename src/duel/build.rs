//! Programs of the sides. Each side is built from a worktree of its commit; the working tree becomes a commit first, so that
//! it may change during the duel, and Cargo does not write to its `Cargo.lock`. The program is `candlepower`, or a bench target of
//! a crate that measures a model of its own.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{
    commits::Checkout,
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
/// and `program` is the `candlepower` program that runs.
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
    checkout: &Checkout,
) -> Result<PathBuf> {
    let Checkout { root, package, repository } = checkout;
    let turn = root.join("build.lock");
    let turn = File::create(&turn).with_context(|| format!("{} could not be made", turn.display()))?;
    if turn.try_lock().is_err() {
        output::report("waiting until another duel has been built");
        turn.lock().context("the builds of duels could not take turns")?;
    }
    let target = root.join("build");
    let kept = slot.folder().join(format!("candlepower-{label}{}", env::consts::EXE_SUFFIX));
    let worktree = slot.worktree(label, &source.commit)?;
    let folder = worktree.join(package);
    let is_alone = !anchored(&worktree, checkout).with_context(|| name.to_owned())?;
    let mut manifest = Manifest::read(&folder.join("Cargo.toml")).with_context(|| name.to_owned())?;
    let bench = manifest.bench(side).with_context(|| name.to_owned())?;
    // Files outside of the commit may have changed since they were compiled.
    let is_known = is_alone && !matches!(side.candle, Some(Candle::Checkout(_)));
    let earlier = is_known.then(|| earlier(&target, (side, &bench), source));
    if let Some(earlier) = &earlier
        && fs::copy(earlier, &kept).is_ok()
    {
        // The programs that were used last are kept.
        let _ = File::options().append(true).open(earlier).and_then(|file| file.set_modified(SystemTime::now()));
        output::report(format_args!("{name} was built for an earlier duel"));
        return Ok(kept);
    }
    let replaced = match (&side.candle, &source.candle) {
        (Some(Candle::Checkout(checkout)), _) => candle(name, &opened(name, checkout)?)?,
        (Some(Candle::Revision(checkout, _)), Some(commit)) => {
            candle(name, &slot.worktree_of(&opened(name, checkout)?, &format!("{label}-candle"), commit)?)?
        }
        _ => Vec::new(),
    };
    if let Some(Candle::Version(version)) = &side.candle {
        manifest.require(version).with_context(|| name.to_owned())?;
        manifest.write()?;
    }
    if !folder.join("Cargo.lock").exists() && !worktree.join("Cargo.lock").exists() {
        // A library often ignores its own. The build then finds other versions.
        let _ = fs::copy(repository.join(package).join("Cargo.lock"), folder.join("Cargo.lock"));
    }
    let log = slot.log(&format!("build-{label}"));
    let mut cargo = guarded(program, cargo());
    match &bench {
        Some(bench) => cargo.args(["bench", "--no-run"]).arg(format!("--bench={bench}")),
        None => cargo.args(["build", "--release", "--bin", PROGRAM]),
    };
    cargo.current_dir(&folder).args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(&target);
    if !side.features.is_empty() {
        cargo.args(["--features", &side.features.join(",")]);
    }
    for (package, path) in &replaced {
        cargo.arg("--config").arg(patch(package, path)?);
    }
    let work = format!("building {name} (messages of cargo: {})", log.display());
    output::report(&work);
    let _line = progress::live(work);
    let artifacts = slot.folder().join(format!("artifacts-{label}"));
    cargo.stdout(File::create(&artifacts)?).stderr(File::create(&log)?);
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
    let lock = [&folder, &worktree].map(|folder| fs::read_to_string(folder.join("Cargo.lock")));
    let lock = lock.into_iter().find_map(Result::ok).unwrap_or_default();
    for (package, path) in &replaced {
        ensure!(
            comes_from_a_path(&lock, package),
            "{name}: {package} in {} is not used, because its version is not the one that this commit needs",
            path.display()
        );
    }
    let wanted = bench.as_deref().unwrap_or(PROGRAM);
    let built = executable(&fs::read_to_string(&artifacts)?, wanted)
        .with_context(|| format!("{name}: cargo has built no '{}'", text::line(wanted)))?;
    fs::copy(&built, &kept).with_context(|| format!("{name}: {} could not be copied", built.display()))?;
    if let Some(earlier) = earlier {
        // The next duel builds it again if this fails.
        let _ = keep(&kept, &earlier);
    }
    Ok(kept)
}

/// The program of a checkout of candlepower.
const PROGRAM: &str = "candlepower";

/// The program of Cargo.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The path of the executable of a target in Cargo's messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut artifacts = messages.filter(|message| message["target"]["name"] == target);
    artifacts.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from))
}

/// Signs in the messages of Cargo that the machine stopped the build: a full disk, a lack of memory, the network.
const MACHINE: [&str; 4] = ["(os error 28)", "signal: 9, SIGKILL", "failed to download", "failed to fetch"];

/// Programs that are kept for later duels.
const PROGRAMS: usize = 8;

/// Where the program of a commit is kept. The name depends on all that a build depends on.
fn earlier(target: &Path, (side, bench): (&Side, &Option<String>), source: &Source) -> PathBuf {
    let mut hash = Sha256::new();
    let compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV").output();
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"].map(env::var_os);
    let sources = format!("{} {:?} {:?} {bench:?}", source.commit, source.candle, side.candle);
    hash.update(format!("{sources} {:?} {flags:?} ", side.features));
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

/// The manifest of a package in a worktree.
struct Manifest {
    file: PathBuf,
    table: toml::Table,
}

impl Manifest {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
        Ok(Self { file: file.to_owned(), table: text.parse().with_context(|| file.display().to_string())? })
    }

    fn write(&self) -> Result<()> {
        fs::write(&self.file, toml::to_string(&self.table)?)
            .with_context(|| format!("{} could not be written", self.file.display()))
    }

    /// The bench target to build, or `None` for the program of candlepower. A package with one target that has its own
    /// harness needs not name it.
    fn bench(&self, side: &Side) -> Result<Option<String>> {
        let package = self.table.get("package").and_then(|package| package.get("name")?.as_str());
        if side.bench.is_some() || package == Some(PROGRAM) {
            return Ok(side.bench.as_ref().map(ToString::to_string));
        }
        let targets = self.table.get("bench").and_then(toml::Value::as_array).into_iter().flatten();
        let own = targets.filter(|target| target.get("harness").and_then(toml::Value::as_bool) == Some(false));
        let names: Vec<&str> = own.filter_map(|target| target.get("name")?.as_str()).collect();
        match names[..] {
            [name] => Ok(Some(name.to_owned())),
            [] => bail!("its Cargo.toml has no bench target with harness = false, so there is nothing to measure"),
            _ => bail!("name one of its bench targets on both sides, as in bench={}: {}", names[0], names.join(", ")),
        }
    }

    /// Lets the manifest require exactly this version of Candle's crates.
    fn require(&mut self, version: &str) -> Result<()> {
        let exact = toml::Value::from(format!("={version}"));
        let mut has_any = false;
        for path in [&["dependencies"][..], &["workspace", "dependencies"]] {
            let mut tables = path.iter();
            let first = tables.next().and_then(|name| self.table.get_mut(*name));
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
        ensure!(has_any, "{} requires none of {}", self.file.display(), CANDLE.join(", "));
        Ok(())
    }
}

/// Makes relative paths that lead out of the repository absolute, in the manifests of the package and of its workspace, because the
/// worktree lies elsewhere. Returns whether there are any.
fn anchored(worktree: &Path, checkout: &Checkout) -> Result<bool> {
    let mut is_changed = false;
    for folder in BTreeSet::from([Path::new(""), &checkout.package]) {
        let file = worktree.join(folder).join("Cargo.toml");
        if !file.is_file() {
            continue;
        }
        let mut manifest = toml::Value::Table(Manifest::read(&file)?.table);
        if anchor(&mut manifest, &checkout.repository.join(folder), &checkout.repository)?
            && let toml::Value::Table(table) = manifest
        {
            Manifest { file, table }.write()?;
            is_changed = true;
        }
    }
    Ok(is_changed)
}

/// See [`anchored`]. `folder` is that of the manifest in the checkout.
fn anchor(value: &mut toml::Value, folder: &Path, repository: &Path) -> Result<bool> {
    let mut is_changed = false;
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                match value {
                    toml::Value::String(path)
                        if key == "path" && !normal(&folder.join(&*path)).starts_with(repository) =>
                    {
                        let absolute = normal(&folder.join(&*path));
                        let text = absolute.to_str().with_context(|| format!("{} is not UTF-8", absolute.display()))?;
                        *path = text.to_owned();
                        is_changed = true;
                    }
                    other => is_changed |= anchor(other, folder, repository)?,
                }
            }
        }
        toml::Value::Array(values) => {
            for value in values {
                is_changed |= anchor(value, folder, repository)?;
            }
        }
        _ => {}
    }
    Ok(is_changed)
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, part| {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
        normal
    })
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
        let mut read = Manifest::read(file.path()).expect("read");
        read.require("0.11.0").expect("edited");
        read.write().expect("written");
        let edited = Manifest::read(file.path()).expect("read").table;
        let workspace = &edited["workspace"]["dependencies"];
        assert_eq!(workspace["candle-core"].as_str(), Some("=0.11.0"));
        assert_eq!(workspace["candle-nn"]["version"].as_str(), Some("=0.11.0"));
        assert_eq!(workspace["candle-nn"]["features"][0].as_str(), Some("x"));
        let own = &edited["dependencies"];
        assert_eq!(own["candle-transformers"].as_str(), Some("=0.11.0"));
        assert_eq!((own["anyhow"].as_str(), own["candle-core"]["workspace"].as_bool()), (Some("1"), Some(true)));
        fs::write(file.path(), "[dependencies]\nanyhow = \"1\"\n").expect("written");
        assert!(Manifest::read(file.path()).expect("read").require("0.11.0").is_err());
    }

    fn manifest(text: &str) -> Manifest {
        Manifest { file: "Cargo.toml".into(), table: text.parse().expect("TOML") }
    }

    #[test]
    fn paths_out_of_the_repository_become_absolute() {
        let worktree = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| {
            let file = worktree.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        let read = |file: &str| Manifest::read(&worktree.path().join(file)).expect("read").table;
        let [repository, root] = ["/x/repository", "/x/target"].map(PathBuf::from);
        let checkout = Checkout { repository, package: "own".into(), root };
        write("own/Cargo.toml", "[package]\nname = \"own\"\n");
        assert!(!anchored(worktree.path(), &checkout).expect("nothing to do"));
        write("Cargo.toml", "[workspace.dependencies]\ncandlepower = { path = \"../candlepower\" }\n");
        write(
            "own/Cargo.toml",
            "[dependencies]\ncandlepower = { path = \"../../candlepower\" }\nnear = { path = \"../near\" }\n\
             [[bench]]\nname = \"own\"\npath = \"benches/own.rs\"\n\
             [target.'cfg(unix)'.dependencies]\nfar = { path = \"/far\" }\n",
        );
        assert!(anchored(worktree.path(), &checkout).expect("UTF-8"));
        let (workspace, manifest) = (read("Cargo.toml"), read("own/Cargo.toml"));
        let path = |table: &toml::Value, package: &str| table[package]["path"].as_str().expect("a path").to_owned();
        assert_eq!(path(&workspace["workspace"]["dependencies"], "candlepower"), "/x/candlepower");
        assert_eq!(path(&manifest["dependencies"], "candlepower"), "/x/candlepower");
        assert_eq!(path(&manifest["dependencies"], "near"), "../near");
        assert_eq!(manifest["bench"][0]["path"].as_str(), Some("benches/own.rs"));
        assert_eq!(path(&manifest["target"]["cfg(unix)"]["dependencies"], "far"), "/far");
    }

    #[test]
    fn the_bench_target_of_a_crate_is_found_or_named() {
        let bench = |text: &str, side: &str| manifest(text).bench(&side.parse().expect("a side"));
        let own =
            "[package]\nname = \"own\"\n[[bench]]\nname = \"model\"\nharness = false\n[[bench]]\nname = \"sort\"\n";
        assert_eq!(bench(own, ".").expect("one").as_deref(), Some("model"));
        assert_eq!(bench(own, ".+bench=sort").expect("named").as_deref(), Some("sort"));
        assert_eq!(bench("[package]\nname = \"candlepower\"\n", ".").expect("the program"), None);
        let two = format!("{own}[[bench]]\nname = \"other\"\nharness = false\n");
        let error = bench(&two, ".").expect_err("two").to_string();
        assert!(error.ends_with("as in bench=model: model, other"), "{error}");
        assert!(bench("[package]\nname = \"own\"\n", ".").is_err());
    }

    #[test]
    fn the_executable_is_that_of_the_target() {
        let line = |name: &str, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"target\":{{\"name\":\"{name}\"}},\"executable\":{executable}}}\n"
            )
        };
        let messages =
            format!("{}{}not JSON\n{}", line("own", "null"), line("other", "\"/o\""), line("own", "\"/a b\""));
        assert_eq!(executable(&messages, "own"), Some("/a b".into()));
        assert_eq!(executable(&messages, "none"), None);
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
