//! The process of a side, seen from the duel. It may be any program: it can die, hang or print what it likes.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::protocol::{self, Listed, Reply, Request, Sample, VERSION};
use crate::{record::Record, text};

/// Longest time until a side greets or lists its benchmarks.
const START: Duration = Duration::from_secs(60);

/// Longest time of any other request: loading may include a download, and a sample of a large model takes minutes.
const WORK: Duration = Duration::from_secs(30 * 60);

/// A running side. Dropping it ends the process.
pub struct Process {
    name: String,
    child: Child,
    /// `None` once it is closed.
    requests: Option<BufWriter<ChildStdin>>,
    replies: Receiver<Result<Reply>>,
    log: PathBuf,
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
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let errors = File::create(log).with_context(|| format!("{} could not be written", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let requests = child.stdin.take().map(BufWriter::new);
        let mut output = BufReader::new(child.stdout.take().context("a process without output")?);
        let (sender, replies) = sync_channel(1);
        thread::spawn(move || {
            while let Some(reply) = protocol::read(&mut output).transpose() {
                let is_last = reply.is_err();
                if sender.send(reply).is_err() || is_last {
                    return;
                }
            }
        });
        let mut process = Self { name: name.to_owned(), child, requests, replies, log: log.to_owned() };
        match process.reply(START) {
            Ok(Reply::Hello { protocol: VERSION, .. }) => Ok(process),
            Ok(Reply::Hello { protocol, .. }) => {
                bail!("{name} speaks version {protocol} of the duel's protocol, and this program version {VERSION}")
            }
            Ok(_) => bail!("{name} did not greet as the duel's protocol asks"),
            // clap's message about an unknown subcommand.
            Err(_) if process.last_words().contains("duel-side") => {
                bail!("{name} has no `candlepower duel`: its commit is older than the command")
            }
            Err(error) => Err(error),
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Every benchmark of the side.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn list(&mut self) -> Result<Vec<Listed>> {
        self.send(&Request::List {})?;
        match self.reply(START)? {
            Reply::Benchmarks(listed) => Ok(listed),
            other => self.unexpected(other),
        }
    }

    /// Prepares a benchmark.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn prepare(&mut self, id: &str) -> Result<Answer<()>> {
        self.send(&Request::Prepare { id: id.to_owned() })?;
        match self.reply(WORK)? {
            Reply::Prepared {} => Ok(Answer::Done(())),
            Reply::Record(record) => Ok(Answer::Failed(record)),
            other => self.unexpected(other),
        }
    }

    /// Takes a sample. It has as many times and peaks as the request has iterations.
    ///
    /// # Errors
    /// When the side dies or breaks the protocol.
    pub fn sample(&mut self, warm_up: usize, iterations: usize) -> Result<Answer<Sample>> {
        self.send(&Request::Sample { warm_up, iterations })?;
        match self.reply(WORK)? {
            Reply::Sample(sample) => {
                let all = warm_up + iterations;
                ensure!(
                    sample.ns.len() == all && sample.peak_bytes.len() == all && !sample.ns.contains(&0),
                    "{} measured {} iterations instead of {all}",
                    self.name,
                    sample.ns.len()
                );
                Ok(Answer::Done(sample))
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
        self.send(&Request::Finish {})?;
        match self.reply(WORK)? {
            Reply::Record(record) => Ok(record),
            other => self.unexpected(other),
        }
    }

    /// A side that has died cannot be written to. Then its last words are the error.
    fn send(&mut self, request: &Request) -> Result<()> {
        let requests = self.requests.as_mut().context("the side has ended")?;
        match protocol::write(requests, request) {
            Ok(()) => Ok(()),
            Err(_) => bail!("{}", self.death()),
        }
    }

    fn reply(&mut self, patience: Duration) -> Result<Reply> {
        match self.replies.recv_timeout(patience) {
            Ok(reply) => reply.with_context(|| self.name.clone()),
            Err(RecvTimeoutError::Disconnected) => bail!("{}", self.death()),
            Err(RecvTimeoutError::Timeout) => bail!("{} did not answer within {} s", self.name, patience.as_secs()),
        }
    }

    fn unexpected<T>(&self, reply: Reply) -> Result<T> {
        match reply {
            Reply::Error(error) => bail!("{}: {}", self.name, text::line(&error)),
            _ => bail!("{} gave an answer that does not belong to its request", self.name),
        }
    }

    /// How the process ended, and the last line that it wrote to standard error.
    fn death(&mut self) -> String {
        self.requests = None;
        // A process that closed its output may run on.
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        match self.last_words().as_str() {
            "" => format!("{} ended ({status})", self.name),
            words => format!("{} ended ({status}): {words}", self.name),
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        text::line(last.trim().trim_start_matches("error: "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A side ends when its input closes; another program may not.
        self.requests = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
