//! A dialogue with a child process: one JSON object per line, each way. The process may be any program: it can die, hang or
//! print what it likes.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};

use crate::text;

/// How long the last words of a process may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long a process may take to end after it closed its output.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// How often an ending process is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Bytes of standard error that are kept.
const TAIL_BYTES: usize = 1 << 16;

/// Most characters of another program's text in an error.
const QUOTED_CHARS: usize = 300;

/// A running process. Dropping it ends the process.
pub struct Dialogue {
    name: String,
    child: Child,
    /// `None` once its input is closed.
    requests: Option<Sender<Vec<u8>>>,
    answers: Receiver<Result<Vec<u8>>>,
    errors: Tail,
}

impl Dialogue {
    /// Starts a process. `name` names it in errors. A line of its output may have `longest_bytes`. Its standard error is
    /// also written to `log`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(name: &str, mut command: Command, longest_bytes: u64, log: Option<File>) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            let program = command.get_program().to_string_lossy();
            format!("{name} could not be started: {}", text::line(&program))
        })?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("{name} has no pipes");
        };
        let (sender, answers) = sync_channel(1);
        spawn(move || {
            let mut output = BufReader::new(output);
            while let Some(line) = read_line(&mut output, longest_bytes).transpose() {
                let is_last = line.is_err();
                if sender.send(line).is_err() || is_last {
                    return;
                }
            }
        })?;
        let requests = Some(writer(input)?);
        Ok(Self { name: name.to_owned(), child, requests, answers, errors: Tail::of(errors, log)? })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request. If the process has ended, [`Self::receive`] tells so.
    ///
    /// # Errors
    /// When the process spoke without being asked.
    pub fn send(&mut self, request: &impl Serialize) -> Result<()> {
        if let Ok(unasked) = self.answers.try_recv() {
            return Err(match unasked {
                Ok(line) => self.complaint(format_args!("it sent '{}' without being asked", quoted(&line))),
                Err(error) => self.complaint(error),
            });
        }
        let line = line_of(request)?;
        if let Some(requests) = &self.requests {
            // A writer that has gone means that the process does not read. Its end is the answer.
            let _ = requests.send(line);
        }
        Ok(())
    }

    /// Waits for the next line and reads it as a message.
    ///
    /// # Errors
    /// When the line is not such a message, or does not come in time, or the process has ended. The error names the process
    /// and repeats the last line of its standard error.
    pub fn receive<M: DeserializeOwned>(&mut self, patience: Duration) -> Result<M> {
        match self.answers.recv_timeout(patience) {
            Ok(line) => line.and_then(|line| parse(&line)).map_err(|error| self.complaint(error)),
            Err(RecvTimeoutError::Disconnected) => Err(self.death()),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.complaint(format_args!("it did not answer within {} s", patience.as_secs_f64())))
            }
        }
    }

    /// An error of the process that runs on, with the last line that it wrote to standard error.
    pub fn complaint(&self, reason: impl fmt::Display) -> anyhow::Error {
        match self.last_words().as_str() {
            "" => anyhow!("{}: {reason}", self.name),
            words => anyhow!("{}: {reason}; its last message: {words}", self.name),
        }
    }

    /// Ends the process: closes its input, and kills it if it runs on for longer than `patience`.
    pub fn end(&mut self, patience: Duration) {
        self.requests = None;
        if self.exit_within(patience).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// The last line that the process wrote to standard error.
    pub fn last_words(&self) -> String {
        self.errors.last_line()
    }

    /// How the process ended, and the last line that it wrote to standard error.
    fn death(&mut self) -> anyhow::Error {
        self.requests = None;
        let how = match self.exit_within(LAST_BREATH) {
            Some(status) => format!("ended ({status})"),
            None => "closed its output".to_owned(),
        };
        self.end(Duration::ZERO);
        match self.last_words().as_str() {
            "" => anyhow!("{} {how}", self.name),
            words => anyhow!("{} {how}: {words}", self.name),
        }
    }

    fn exit_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if started.elapsed() < patience => thread::sleep(INTERVAL),
                ended => return ended.ok().flatten(),
            }
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().spawn(work).map(drop).context("a thread could not be started")
}

/// Writes lines on a thread of its own, because a process that does not read blocks its writer. The input closes when the
/// sender is dropped.
fn writer(mut input: ChildStdin) -> Result<Sender<Vec<u8>>> {
    let (sender, lines) = channel::<Vec<u8>>();
    spawn(move || while lines.recv().is_ok_and(|line| input.write_all(&line).and_then(|()| input.flush()).is_ok()) {})?;
    Ok(sender)
}

/// The end of what a process writes to standard error.
struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Disconnected when the stream has ended.
    running: Receiver<()>,
}

impl Tail {
    fn of(mut errors: ChildStderr, log: Option<File>) -> Result<Self> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (sender, running) = channel();
        let mut keeper = Keeper { kept: kept.clone(), log };
        spawn(move || {
            let _ = io::copy(&mut errors, &mut keeper);
            drop(sender);
        })?;
        Ok(Self { kept, running })
    }

    fn last_line(&self) -> String {
        let _ = self.running.recv_timeout(LAST_WORDS);
        let kept = self.kept.lock().map(|kept| kept.clone()).unwrap_or_default();
        let kept = String::from_utf8_lossy(&kept);
        let last = kept.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        quoted(last.trim().trim_start_matches("error: ").as_bytes())
    }
}

struct Keeper {
    kept: Arc<Mutex<Vec<u8>>>,
    log: Option<File>,
}

impl Write for Keeper {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        // A log without room must not stop the process.
        if let Some(log) = &mut self.log {
            let _ = log.write_all(part);
        }
        if let Ok(mut kept) = self.kept.lock() {
            kept.extend_from_slice(part);
            let surplus = kept.len().saturating_sub(TAIL_BYTES);
            kept.drain(..surplus);
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a line; `None` at the end of the input.
///
/// # Errors
/// When the line is longer than `longest_bytes`, or breaks off.
pub fn read_line(input: &mut impl BufRead, longest_bytes: u64) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.take(longest_bytes).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    ensure!(
        line.len() as u64 != longest_bytes || line.ends_with(b"\n"),
        "it sent a line of over {longest_bytes} bytes"
    );
    ensure!(line.ends_with(b"\n"), "its last line breaks off");
    Ok(Some(line))
}

/// Reads a line as a message.
///
/// # Errors
/// When it is another text. The error quotes it.
pub fn parse<M: DeserializeOwned>(line: &[u8]) -> Result<M> {
    serde_json::from_slice(line).map_err(|error| {
        let shown: String = String::from_utf8_lossy(line.trim_ascii()).chars().take(60).collect();
        anyhow!("'{}' is not a message of the protocol: {}", text::line(&shown), quoted(error.to_string().as_bytes()))
    })
}

/// A message as a line.
///
/// # Errors
/// When a value of it has no form in JSON.
pub fn line_of(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The start of another program's text, in one line.
pub fn quoted(text: &[u8]) -> String {
    let shown: String = String::from_utf8_lossy(text.trim_ascii()).chars().take(QUOTED_CHARS).collect();
    text::line(&shown)
}
