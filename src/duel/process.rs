//! The process of a side, seen from the duel.

use std::{fs::File, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::protocol::{LINE_MAX_BYTES, Listed, Reply, Request, Sample, VERSION};
use crate::{dialogue::Dialogue, record::Record, text};

/// Longest time until a side greets or lists its benchmarks.
const START: Duration = Duration::from_secs(60);

/// Longest time of any other request: loading may include a download, and a sample of a large model takes minutes.
const WORK: Duration = Duration::from_secs(30 * 60);

/// A running side. Dropping it ends the process.
pub struct Process {
    name: String,
    dialogue: Dialogue,
    /// Iterations of the present sample.
    asked_iterations: usize,
}

/// Answer to a request about a benchmark.
#[derive(Debug)]
pub enum Answer<T> {
    /// The answer.
    Done(T),
    /// The benchmark failed; its record says why.
    Failed(Box<Record>),
}

impl Process {
    /// Starts a side and waits for its greeting. `name` names it in messages. Standard error of the process goes to `log`.
    ///
    /// # Errors
    /// When it does not start, or does not speak this version of the protocol.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("{} could not be written", log.display()))?;
        let dialogue = Dialogue::start(name, command, LINE_MAX_BYTES, Some(log))?;
        let mut process = Self { name: name.to_owned(), dialogue, asked_iterations: 0 };
        match process.dialogue.receive(START) {
            Ok(Reply::Hello { protocol: VERSION, .. }) => Ok(process),
            Ok(Reply::Hello { protocol, .. }) => {
                bail!("{name} speaks version {protocol} of the duel's protocol, and this program version {VERSION}")
            }
            Ok(_) => bail!("{name} did not greet as the duel's protocol asks"),
            // clap's message about an unknown subcommand.
            Err(_) if process.dialogue.last_words().contains("duel-side") => {
                bail!("{name} has no `candlepower duel`: its commit is older than the command")
            }
            Err(error) => Err(error),
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.dialogue.id()
    }

    /// Every benchmark of the side.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn list(&mut self) -> Result<Vec<Listed>> {
        self.dialogue.send(&Request::List {})?;
        match self.dialogue.receive(START)? {
            Reply::Benchmarks(listed) => Ok(listed),
            other => self.unexpected(other),
        }
    }

    /// Prepares a benchmark.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn prepare(&mut self, id: &str) -> Result<Answer<()>> {
        self.dialogue.send(&Request::Prepare { id: id.to_owned() })?;
        match self.dialogue.receive(WORK)? {
            Reply::Prepared {} => Ok(Answer::Done(())),
            Reply::Record(record) => Ok(Answer::Failed(record)),
            other => self.unexpected(other),
        }
    }

    /// Takes a sample, turn after turn.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn sample(&mut self, warm_up: usize, iterations: usize) -> Result<Answer<Sample>> {
        if let Answer::Failed(record) = self.begin(warm_up, iterations)? {
            return Ok(Answer::Failed(record));
        }
        loop {
            match self.turn()? {
                Answer::Done(None) => {}
                Answer::Done(Some(sample)) => return Ok(Answer::Done(sample)),
                Answer::Failed(record) => return Ok(Answer::Failed(record)),
            }
        }
    }

    /// Begins a sample, which goes on by [`Self::turn`].
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn begin(&mut self, warm_up: usize, iterations: usize) -> Result<Answer<()>> {
        self.asked_iterations = warm_up + iterations;
        self.dialogue.send(&Request::Sample { warm_up, iterations })?;
        match self.dialogue.receive(WORK)? {
            Reply::Turn {} => Ok(Answer::Done(())),
            Reply::Record(record) => Ok(Answer::Failed(record)),
            other => self.unexpected(other),
        }
    }

    /// Goes on with a sample for a turn. Returns the sample at its end. It has as many times and peaks as iterations were
    /// asked for.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn turn(&mut self) -> Result<Answer<Option<Sample>>> {
        self.dialogue.send(&Request::Turn {})?;
        match self.dialogue.receive(WORK)? {
            Reply::Turn {} => Ok(Answer::Done(None)),
            Reply::Sample(sample) => {
                let all = self.asked_iterations;
                ensure!(
                    sample.ns.len() == all && sample.peak_bytes.len() == all && !sample.ns.contains(&0),
                    "{} measured {} iterations instead of {all}",
                    self.name,
                    sample.ns.len()
                );
                Ok(Answer::Done(Some(sample)))
            }
            Reply::Record(record) => Ok(Answer::Failed(record)),
            other => self.unexpected(other),
        }
    }

    /// Ends the benchmark and returns its record.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn finish(&mut self) -> Result<Box<Record>> {
        self.dialogue.send(&Request::Finish {})?;
        match self.dialogue.receive(WORK)? {
            Reply::Record(record) => Ok(record),
            other => self.unexpected(other),
        }
    }

    fn unexpected<T>(&self, reply: Reply) -> Result<T> {
        match reply {
            Reply::Error(error) => bail!("{}: {}", self.name, text::line(&error)),
            _ => bail!("{} gave an answer that does not belong to its request", self.name),
        }
    }
}
