//! How a peer is started.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::PeerName;
use crate::record::write_whole;

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
];

/// A peer that needs no entry in `candlepower.toml`.
struct Adapter {
    name: &'static str,
    file: &'static str,
    arguments: &'static [&'static str],
}

const ADAPTERS: &[Adapter] = &[
    Adapter { name: "transformers", file: "transformers.py", arguments: &[] },
    Adapter { name: "transformers-compiled", file: "transformers.py", arguments: &["--compile"] },
    Adapter { name: "torch", file: "torch_training.py", arguments: &[] },
    Adapter { name: "torch-compiled", file: "torch_training.py", arguments: &["--compile"] },
    Adapter { name: "llama.cpp", file: "llama_cpp.py", arguments: &[] },
    Adapter { name: "jax", file: "jax_llama.py", arguments: &[] },
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

    /// The program and its arguments. Writes an adapter below `out` first.
    ///
    /// # Errors
    /// When the adapter cannot be written.
    pub(super) fn words(&self, name: &PeerName, out: &Path) -> Result<Vec<String>> {
        if !self.words.is_empty() {
            return Ok(self.words.clone());
        }
        let adapter = ADAPTERS.iter().find(|adapter| adapter.name == name.as_str());
        let adapter = adapter.with_context(|| format!("peer {name} has no command"))?;
        let folder = out.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{} could not be created", folder.display()))?;
        for (file, text) in FILES {
            let path = folder.join(file);
            // Another process may be starting the same file.
            if !fs::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
                write_whole(&path, text.as_bytes())?;
            }
        }
        let file = folder.join(adapter.file).to_string_lossy().into_owned();
        let arguments = adapter.arguments.iter().map(|argument| (*argument).to_owned());
        Ok([PYTHON.to_owned(), file].into_iter().chain(arguments).collect())
    }
}

#[cfg(unix)]
const PYTHON: &str = "python3";
#[cfg(not(unix))]
const PYTHON: &str = "python";

/// The process of `words`. OpenMP, which most frameworks use, reads its number of threads when it is loaded.
pub(super) fn process(words: &[String], threads: usize) -> Command {
    let (program, arguments) = words.split_first().map_or(("", words), |(program, rest)| (program, rest));
    let mut command = Command::new(program);
    command.args(arguments).env("OMP_NUM_THREADS", threads.to_string());
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
                 llama.cpp, jax; for another, add [peers.mine]",
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
        assert_eq!(fs::read_dir(out.path().join(FOLDER)).expect("a folder").count(), FILES.len());
    }
}
