//! How a peer is started.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::PeerName;
use crate::{output, progress, record::write_whole, text};

/// Longest time until a peer describes itself: it imports its framework first.
const START_TIMEOUT_S: f64 = 300.0;

/// Longest time of every other answer: a peer may load a large model or compile it.
const TIMEOUT_S: f64 = 30.0 * 60.0;

/// Folder of the adapters below that of the records.
pub(super) const FOLDER: &str = "peers";

/// The adapters of `scripts/peers`. They are part of the program and written below the folder of the records before they
/// run, so that they speak its version of the protocol, and other crates and installed programs have them too.
const FILES: &[(&str, &str)] = &[
    ("candlepower_peer.py", include_str!("../../scripts/peers/candlepower_peer.py")),
    ("transformers.py", include_str!("../../scripts/peers/transformers.py")),
    ("torch_training.py", include_str!("../../scripts/peers/torch_training.py")),
    ("backbones.py", include_str!("../../scripts/peers/backbones.py")),
    ("llama_cpp.py", include_str!("../../scripts/peers/llama_cpp.py")),
    ("gguf_file.py", include_str!("../../scripts/peers/gguf_file.py")),
    ("jax_llama.py", include_str!("../../scripts/peers/jax_llama.py")),
    // Cargo leaves folders with a Cargo.toml out of a published crate, so it has another name there.
    ("mistralrs/Cargo.toml", include_str!("../../scripts/peers/mistralrs.toml")),
    ("mistralrs/main.rs", include_str!("../../scripts/peers/mistralrs.rs")),
];

/// A peer that needs no entry in `candlepower.toml`.
struct Adapter {
    name: &'static str,
    program: Program,
}

/// The program of an adapter, below [`FOLDER`].
enum Program {
    /// A file for Python, and its arguments.
    Python(&'static str, &'static [&'static str]),
    /// The folder of a package, and the program that Cargo builds of it.
    Package(&'static str, &'static str),
}

const ADAPTERS: &[Adapter] = &[
    Adapter { name: "transformers", program: Program::Python("transformers.py", &[]) },
    Adapter { name: "transformers-compiled", program: Program::Python("transformers.py", &["--compile"]) },
    Adapter { name: "torch", program: Program::Python("torch_training.py", &[]) },
    Adapter { name: "torch-compiled", program: Program::Python("torch_training.py", &["--compile"]) },
    Adapter { name: "llama.cpp", program: Program::Python("llama_cpp.py", &[]) },
    Adapter { name: "mistral.rs", program: Program::Package("mistralrs", "candlepower-mistralrs") },
    Adapter { name: "jax", program: Program::Python("jax_llama.py", &[]) },
];

/// Names of the peers that need no entry.
pub fn adapters() -> impl Iterator<Item = &'static str> {
    ADAPTERS.iter().map(|adapter| adapter.name)
}

/// The table `[peers.<name>]` of `candlepower.toml`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The program and its arguments. A text is split at white space.
    command: Option<Words>,
    start_timeout_s: Option<f64>,
    timeout_s: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Words {
    Text(String),
    List(Vec<String>),
}

/// The command of a peer, and how long its answers may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Empty for an adapter.
    words: Vec<String>,
    /// Time until the peer describes itself.
    pub start_timeout: Duration,
    /// Time of every other answer.
    pub timeout: Duration,
}

impl Launch {
    /// The launch of a peer, from its entry if it has one.
    ///
    /// # Errors
    /// When a value of the entry is wrong, or a peer without an adapter has no command.
    pub fn new(name: &PeerName, entry: Option<&Entry>) -> Result<Self> {
        let Entry { command, start_timeout_s, timeout_s } = entry.cloned().unwrap_or_default();
        let has_command = command.is_some();
        let words: Vec<String> = match command {
            Some(Words::Text(text)) => text.split_whitespace().map(str::to_owned).collect(),
            Some(Words::List(words)) => words,
            None => Vec::new(),
        };
        let is_named = words.first().is_some_and(|program| !program.is_empty());
        ensure!(!has_command || is_named, "command: it names no program");
        let known = adapters().collect::<Vec<_>>();
        ensure!(
            has_command || known.contains(&name.as_str()),
            "unknown peer '{name}': the known ones are {}; for another, add [peers.{name}] with its command to \
             candlepower.toml",
            known.join(", ")
        );
        let timeout = |key: &str, given: Option<f64>, default: f64| {
            let timeout = Duration::try_from_secs_f64(given.unwrap_or(default)).ok().filter(|time| !time.is_zero());
            timeout.with_context(|| format!("{key}: expected a number of seconds above 0"))
        };
        Ok(Self {
            words,
            start_timeout: timeout("start_timeout_s", start_timeout_s, START_TIMEOUT_S)?,
            timeout: timeout("timeout_s", timeout_s, TIMEOUT_S)?,
        })
    }

    /// The program and its arguments. Writes an adapter below `out` first, and builds it if it is a package.
    ///
    /// # Errors
    /// When the adapter cannot be written or built.
    pub(super) fn words(&self, name: &PeerName, out: &Path) -> Result<Vec<String>> {
        if !self.words.is_empty() {
            return Ok(self.words.clone());
        }
        let adapter = ADAPTERS.iter().find(|adapter| adapter.name == name.as_str());
        let adapter = adapter.with_context(|| format!("peer {name} has no command"))?;
        let folder = out.join(FOLDER);
        for (file, text) in FILES {
            let path = folder.join(file);
            let parent = path.parent().unwrap_or(&folder);
            fs::create_dir_all(parent).with_context(|| format!("{} could not be created", parent.display()))?;
            // Another process may be starting the same file.
            if !fs::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
                write_whole(&path, text.as_bytes())?;
            }
        }
        match adapter.program {
            Program::Python(file, arguments) => {
                let file = folder.join(file).to_string_lossy().into_owned();
                let arguments = arguments.iter().map(|argument| (*argument).to_owned());
                Ok([PYTHON.to_owned(), file].into_iter().chain(arguments).collect())
            }
            Program::Package(package, program) => {
                let built = built(name, &folder.join(package), program)?;
                Ok(vec![built.to_string_lossy().into_owned()])
            }
        }
    }
}

/// Lets Cargo build a program of a package, for this CPU, and returns its path. Nothing is compiled if it is up to date.
fn built(name: &PeerName, package: &Path, program: &str) -> Result<PathBuf> {
    let package = std::path::absolute(package)?;
    let target = package.join("target");
    let file = target.join("release").join(format!("{program}{}", env::consts::EXE_SUFFIX));
    let work = format!("compiling peer {name}, which takes about ten minutes and is done once");
    if !file.exists() {
        output::report(&work);
    }
    let line = progress::live(work);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--target-dir"]).arg(&target).current_dir(&package);
    if env::var_os("RUSTFLAGS").is_none() {
        cargo.env("RUSTFLAGS", "-C target-cpu=native");
    }
    cargo.env_remove("CARGO_BUILD_TARGET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut cargo = cargo.spawn().context("cargo compiles this peer, and could not be started")?;
    let mut error = None;
    let messages = cargo.stderr.take().into_iter().flat_map(|messages| BufReader::new(messages).lines());
    for message in messages.map_while(Result::ok) {
        line.step(message.trim());
        error = error.or_else(|| message.starts_with("error").then(|| text::line(&message)));
    }
    let error = error.unwrap_or_else(|| "cargo failed".into());
    ensure!(cargo.wait()?.success(), "it does not build: {error}; see `cargo build` in {}", package.display());
    Ok(file)
}

#[cfg(unix)]
const PYTHON: &str = "python3";
#[cfg(not(unix))]
const PYTHON: &str = "python";

/// The process of `words`. OpenMP and rayon, which frameworks use, read their numbers of threads when they are loaded.
pub(super) fn process(words: &[String], threads: usize) -> Command {
    let (program, arguments) = words.split_first().map_or(("", words), |(program, rest)| (program, rest));
    let mut command = Command::new(program);
    let threads = threads.to_string();
    command.args(arguments).env("OMP_NUM_THREADS", &threads).env("RAYON_NUM_THREADS", threads);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(name: &str, entry: &str) -> Result<Launch> {
        Launch::new(&name.parse()?, Some(&toml::from_str(entry)?))
    }

    #[test]
    fn an_entry_names_a_command_and_timeouts() {
        let given = launch("mine", "command = 'python3 peer.py  --fast'\ntimeout_s = 0.5").expect("an entry");
        assert_eq!(given.words, ["python3", "peer.py", "--fast"]);
        assert_eq!(given.timeout, Duration::from_millis(500));
        assert_eq!(given.start_timeout, Duration::from_secs(300));
        let listed = launch("mine", "command = ['/with space/python', 'a b']").expect("an entry");
        assert_eq!(listed.words, ["/with space/python", "a b"]);
        for (entry, part) in [
            (
                "",
                "unknown peer 'mine': the known ones are transformers, transformers-compiled, torch, torch-compiled, \
                 llama.cpp, mistral.rs, jax; for another, add [peers.mine]",
            ),
            ("command = ' '", "it names no program"),
            ("command = []", "it names no program"),
            ("command = 7", "expected a text or a list of texts"),
            ("command = 'x'\ntimeout_s = 0", "timeout_s: expected a number of seconds above 0"),
            ("command = 'x'\ntimeout_s = -1", "timeout_s: expected a number of seconds above 0"),
            ("command = 'x'\nstart_timeout_s = nan", "start_timeout_s: expected a number of seconds above 0"),
            ("comand = 'x'", "unknown field `comand`"),
        ] {
            let error = format!("{:#}", launch("mine", entry).expect_err(part));
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
    }

    #[test]
    fn a_package_that_does_not_build_is_one_line() {
        let package = tempfile::tempdir().expect("a folder");
        fs::write(package.path().join("Cargo.toml"), "[package]\nname = \"x\"\n[workspace]\n").expect("written");
        let name = "mistral.rs".parse().expect("a name");
        let error = format!("{:#}", built(&name, package.path(), "x").expect_err("it has no target"));
        assert!(error.starts_with("it does not build: error") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn an_adapter_is_written_beside_what_it_imports() {
        let out = tempfile::tempdir().expect("a folder");
        let name: PeerName = "transformers-compiled".parse().expect("a name");
        let launch = Launch::new(&name, None).expect("an adapter");
        for _ in 0..2 {
            let words = launch.words(&name, out.path()).expect("written");
            assert_eq!((words.len(), words[2].as_str()), (3, "--compile"));
            assert_eq!(fs::read(&words[1]).expect("a file"), FILES[1].1.as_bytes());
            assert!(Path::new(&words[1]).with_file_name("candlepower_peer.py").is_file());
        }
        assert!(FILES.iter().all(|(file, _)| out.path().join(FOLDER).join(file).is_file()));
    }
}
