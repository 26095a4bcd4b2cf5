//! A running peer. It may be any program, so every answer is checked.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::{
    PeerName,
    launch::{self, FOLDER, Launch},
    protocol::{Described, Generated, LINE_MAX_BYTES, Loaded, Model, OLDEST, Ran, Ready, Request, VERSION, Work},
};
use crate::{
    dialogue::{Dialogue, quoted},
    files, record,
    scenario::{Phase, Sampling},
};

/// How long a peer may take to end after it is told to.
const GOODBYE: Duration = Duration::from_secs(2);

/// A running peer. Dropping it ends the process.
pub struct Peer {
    /// Its name in errors.
    name: String,
    dialogue: Dialogue,
    timeout: Duration,
    threads: usize,
    /// Names of the kinds of work that it does.
    work: Vec<String>,
    /// Most sequences that it generates at once.
    most_sequences: usize,
    /// Sequences since the last reset.
    sequences: usize,
    /// Name, version and command for records.
    about: record::Peer,
    /// Folder for its files.
    folder: PathBuf,
    /// Where it writes logits, once it has. The lock says that this process lives.
    logits: Option<(TempDir, Option<File>)>,
    /// Why the peer is not asked any more: it has ended, or it broke the protocol and was ended.
    lost: Option<String>,
}

/// A benchmark that a peer does not run.
#[derive(Clone, Debug)]
pub struct Unsupported {
    peer: String,
    reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not support it: {}", self.peer, self.reason)
    }
}

impl std::error::Error for Unsupported {}

impl Peer {
    /// Starts a peer and asks what it is. `out` is the folder of the records.
    ///
    /// # Errors
    /// When it does not start, or does not speak this version of the protocol.
    pub fn start(name: &PeerName, launch: &Launch, out: &Path, threads: usize) -> Result<Self> {
        let words = launch.words(name, out)?;
        let process = launch::process(&words, threads);
        let own_name = format!("peer {name}");
        let dialogue = Dialogue::start(&own_name, process, LINE_MAX_BYTES, None)?;
        let about = record::Peer { name: String::new(), version: String::new(), command: words.join(" ") };
        let mut peer = Self {
            name: own_name,
            dialogue,
            timeout: launch.start_timeout,
            threads,
            work: Vec::new(),
            most_sequences: 1,
            sequences: 1,
            about,
            folder: out.join(FOLDER),
            logits: None,
            lost: None,
        };
        let described: Described = peer.ask(&Request::Describe { protocol: VERSION }, |described: &Described, _| {
            ensure!(
                (OLDEST..=VERSION).contains(&described.protocol),
                "it speaks version {} of the protocol, and this program versions {OLDEST} to {VERSION}",
                described.protocol
            );
            Ok(())
        })?;
        peer.work = described.work.iter().map(|kind| quoted(kind.as_bytes())).collect();
        peer.most_sequences = described.sequences;
        peer.about.name = quoted(described.name.as_bytes());
        peer.about.version = quoted(described.version.as_bytes());
        peer.timeout = launch.timeout;
        Ok(peer)
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.dialogue.id()
    }

    /// Name, version and command for records.
    pub fn about(&self) -> &record::Peer {
        &self.about
    }

    /// Loads a model with so many `parameters`, for one kind of work. It takes the place of the model before.
    ///
    /// # Errors
    /// When the peer cannot load it, or loads something else, and [`Unsupported`] when it does not do this work.
    pub fn load(
        &mut self,
        model: &Model,
        work: Work,
        (dtype, device): (&str, &str),
        parameters: u64,
    ) -> Result<Loaded> {
        if !self.work.iter().any(|kind| kind == work.name()) {
            let does = if self.work.is_empty() { "nothing".to_owned() } else { self.work.join(" and ") };
            let reason = format!("it does not {}, it does {does}", work.name());
            return Err(Unsupported { peer: self.name.clone(), reason }.into());
        }
        let threads = self.threads;
        self.ask(&Request::Load { model, work, dtype, device, threads }, |loaded: &Loaded, _| {
            let found = (loaded.dtype.as_str(), loaded.device.as_str(), loaded.threads);
            ensure!(
                found == (dtype, device, threads),
                "it loaded the model in {} on {} with {} threads instead of in {dtype} on {device} with {threads} threads",
                quoted(loaded.dtype.as_bytes()),
                quoted(loaded.device.as_bytes()),
                loaded.threads
            );
            ensure!(
                loaded.parameters == parameters,
                "it loaded a model of {} parameters instead of {parameters}",
                loaded.parameters
            );
            Ok(())
        })
    }

    /// Empties all sequences and prepares some of up to `tokens` each.
    ///
    /// # Errors
    /// When the peer fails, and [`Unsupported`] when it does not sample so, or hold so many sequences or tokens.
    pub fn reset(&mut self, (sequences, tokens): (usize, usize), sampling: Sampling, seed: u64) -> Result<()> {
        if sequences > self.most_sequences {
            return Err(self.unsupported(format!("it generates at most {} sequences at once", self.most_sequences)));
        }
        self.sequences = sequences;
        self.ask(&Request::Reset { tokens, sequences, sampling, seed }, |_: &Ready, _| Ok(())).map(drop)
    }

    /// Computes the prompts of all sequences, one after the other in `ids`, and chooses their first tokens, of a vocabulary of
    /// `vocab_size`.
    ///
    /// # Errors
    /// When the peer fails or its answer is wrong.
    pub fn prefill(&mut self, ids: &[u32], vocab_size: usize) -> Result<Generated> {
        let asked = (1, self.sequences);
        self.ask(&Request::Prefill { ids }, |generated, elapsed| check(generated, asked, vocab_size, elapsed))
    }

    /// Chooses `count` more tokens of each sequence.
    ///
    /// # Errors
    /// When the peer fails or its answer is wrong.
    pub fn step(&mut self, count: usize, vocab_size: usize) -> Result<Generated> {
        let asked = (count, self.sequences);
        self.ask(&Request::Step { count }, |generated, elapsed| check(generated, asked, vocab_size, elapsed))
    }

    /// Computes the logits that follow each of `ids` from the index `from` on: a file of rows of `row_bytes`.
    ///
    /// # Errors
    /// When the peer fails, or writes more or less, and when there is no space for the file.
    pub fn logits(&mut self, ids: &[u32], from: usize, row_bytes: usize) -> Result<NamedTempFile> {
        let file = self.file_for_logits().context("a file for the logits of a peer could not be made")?;
        let expected = ((ids.len() - from) * row_bytes) as u64;
        self.ask(&Request::Logits { ids, from, file: file.path() }, |_: &Ready, _| {
            let written = file.as_file().metadata().context("the file of the logits could not be read")?.len();
            ensure!(written == expected, "it wrote {written} bytes of logits instead of {expected}");
            Ok(())
        })?;
        Ok(file)
    }

    /// An empty file in a folder of this process. The folders of processes that were killed are removed.
    fn file_for_logits(&mut self) -> io::Result<NamedTempFile> {
        if self.logits.is_none() {
            fs::create_dir_all(&self.folder)?;
            files::remove_abandoned(&self.folder);
            let folder = files::temporary_that_stays(0o700).tempdir_in(&self.folder)?;
            let held = files::hold(folder.path());
            self.logits = Some((folder, held));
        }
        let folder = self.logits.as_ref().map_or(self.folder.as_path(), |(folder, _)| folder.path());
        NamedTempFile::new_in(std::path::absolute(folder)?)
    }

    /// Runs `count` steps of the loaded model, one right after the other. Each has a loss if `has_losses`.
    ///
    /// # Errors
    /// When the peer fails or its answer is wrong.
    pub fn run(&mut self, phase: Phase, count: usize, has_losses: bool) -> Result<Ran> {
        let request = match phase {
            Phase::Train => Request::Train { count },
            Phase::Forward => Request::Forward { count },
        };
        self.ask(&request, |ran: &Ran, elapsed| {
            let losses = if has_losses { count } else { 0 };
            ensure!(
                ran.ns.len() == count && ran.losses.len() == losses,
                "it sent {} times and {} losses instead of {count} and {losses}",
                ran.ns.len(),
                ran.losses.len()
            );
            check_times(&ran.ns, elapsed)
        })
    }

    /// Asks, and checks the answer, given the time that it took. After a wrong answer the peer is not asked again.
    fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        check: impl FnOnce(&T, Duration) -> Result<()>,
    ) -> Result<T> {
        if let Some(reason) = &self.lost {
            bail!("it is not asked again: {reason}");
        }
        let started = Instant::now();
        let answered = self.dialogue.send(request).and_then(|()| self.dialogue.receive::<Value>(self.timeout));
        let elapsed = started.elapsed();
        if let Some(refusal) = answered.as_ref().ok().and_then(|answer| self.refusal(answer)) {
            return Err(refusal);
        }
        let checked = answered.and_then(|answer| {
            let read = serde_json::from_value::<T>(answer);
            let read = read.map_err(|error| anyhow!("its answer is wrong: {}", quoted(error.to_string().as_bytes())));
            let checked = read.and_then(|answer| check(&answer, elapsed).map(|()| answer));
            checked.map_err(|error| self.dialogue.complaint(error))
        });
        if let Err(error) = &checked {
            self.lost = Some(format!("{error:#}"));
            self.dialogue.end(Duration::ZERO);
        }
        checked
    }

    /// The error for a benchmark that the peer does not run.
    pub fn unsupported(&self, reason: String) -> anyhow::Error {
        Unsupported { peer: self.name.clone(), reason }.into()
    }

    /// Why the peer did not serve a request, if it says so.
    fn refusal(&self, answer: &Value) -> Option<anyhow::Error> {
        let told = |key: &str| Some(quoted(answer.get(key)?.as_str()?.as_bytes()));
        told("unsupported")
            .map(|reason| self.unsupported(reason))
            .or_else(|| told("error").map(|reason| anyhow!("{}: {reason}", self.name)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.lost.is_none() && self.dialogue.send(&Request::Close {}).is_ok() {
            self.dialogue.end(GOODBYE);
        }
    }
}

/// Checks that steps and their tokens are as many as asked for and of the vocabulary, and that their times are possible.
fn check(
    generated: &Generated,
    (count, sequences): (usize, usize),
    vocab_size: usize,
    elapsed: Duration,
) -> Result<()> {
    let Generated { tokens, ns, .. } = generated;
    ensure!(
        tokens.len() == count * sequences && ns.len() == count,
        "it sent {} tokens and {} times instead of {} and {count}",
        tokens.len(),
        ns.len(),
        count * sequences
    );
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
        bail!("it chose token {token}, but the vocabulary of the model has {vocab_size} tokens");
    }
    check_times(ns, elapsed)
}

/// Checks that times are possible in an answer that took `elapsed`.
fn check_times(ns: &[u64], elapsed: Duration) -> Result<()> {
    ensure!(!ns.contains(&0), "it sent a time of 0 ns");
    let sum: u128 = ns.iter().map(|ns| u128::from(*ns)).sum();
    ensure!(
        sum <= elapsed.as_nanos(),
        "its times add up to {:.3} s, but its answer came after {:.3} s",
        sum as f64 / 1e9,
        elapsed.as_secs_f64()
    );
    Ok(())
}
