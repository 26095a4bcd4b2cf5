//! Conversations as prompts, by the model's chat template. A process of its own renders it, because a template is the program
//! of somebody else: whatever it does to that process, it refuses chats only.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;

use crate::model::ChatTemplate;

/// The command of the process, and its most virtual memory in KiB.
pub const COMMAND: &str = "render-chats";
const MEMORY_KIB: u64 = 4 << 20;
/// Longest answer of the process. It limits its texts to less.
const ANSWER_MAX_BYTES: u64 = 256 << 20;

/// A message of a conversation.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub role: String,
    pub content: String,
    /// The message with all its keys.
    pub whole: minijinja::Value,
}

/// How conversations become prompts.
#[derive(Debug)]
pub enum Template {
    /// For models without a template: each message on a line after its role, and `assistant:` at the end.
    Plain,
    /// The template of a model.
    Jinja(Box<Jinja>),
    /// The model's template can't be used, for this reason. Only chats are refused.
    Unusable(String),
}

/// A template and the process that renders it.
#[derive(Debug)]
pub struct Jinja {
    template: ChatTemplate,
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Text(String),
    Error(String),
}

impl Template {
    /// Compiles the template of a model in a process of this program, which must be `candlepower`, or chooses the plain one.
    pub fn new(template: Option<ChatTemplate>) -> Self {
        let Some(template) = template else { return Self::Plain };
        match Worker::start(&template) {
            Ok(worker) => Self::Jinja(Box::new(Jinja { template, worker: Mutex::new(Some(worker)) })),
            Err(reason) => Self::Unusable(reason),
        }
    }

    /// The prompt of a conversation, and whether the tokenizer adds its special tokens to it, which templates write
    /// themselves.
    ///
    /// # Errors
    /// If the template refuses the conversation, for example because roles do not alternate, or ends its process.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<(String, bool), String> {
        match self {
            Self::Plain => {
                let mut text = String::new();
                for Message { role, content, .. } in messages {
                    let _ = writeln!(text, "{role}: {content}");
                }
                Ok((text + "assistant:", true))
            }
            Self::Jinja(jinja) => jinja.render(messages).map(|text| (text, false)),
            Self::Unusable(reason) => Err(reason.clone()),
        }
    }
}

impl Jinja {
    fn render(&self, messages: &[Message]) -> Result<String, String> {
        let wholes: Vec<&minijinja::Value> = messages.iter().map(|message| &message.whole).collect();
        let line = serde_json::to_string(&wholes).map_err(|error| error.to_string())?;
        let mut place = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = match place.take() {
            Some(worker) => worker,
            None => Worker::start(&self.template)?,
        };
        let mut worker = worker;
        match worker.ask(&line) {
            Ok(answer) => {
                *place = Some(worker);
                answer
            }
            // Another conversation may fare better, in a new process.
            Err(_) => Err(ENDED.into()),
        }
    }
}

const ENDED: &str = "the model's chat template takes too much time or memory, or recurses too deeply";

impl Worker {
    /// Starts a process, which compiles the template.
    fn start(template: &ChatTemplate) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the process for the model's chat template did not start: {error}");
        let program = std::env::current_exe().map_err(failed)?;
        // The shell sets the limit of memory and becomes the program.
        let limited = format!("ulimit -c 0; ulimit -v {MEMORY_KIB}; exec \"$0\" {COMMAND}");
        let mut command = Command::new(if cfg!(unix) { "/bin/sh".as_ref() } else { program.as_os_str() });
        if cfg!(unix) {
            command.args(["-c", &limited]).arg(&program);
        } else {
            command.arg(COMMAND);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let mut worker = Self { child, input, output: BufReader::new(output) };
        let line = serde_json::to_string(template).map_err(|error| error.to_string())?;
        match worker.ask(&line) {
            Ok(compiled) => compiled.map(|_| worker),
            Err(_) => Err(ENDED.into()),
        }
    }

    /// Sends a line and returns the answer. An error means that the process has ended, or is of no use.
    fn ask(&mut self, line: &str) -> io::Result<Result<String, String>> {
        self.input.write_all(line.as_bytes())?;
        self.input.write_all(b"\n")?;
        let mut answer = String::new();
        (&mut self.output).take(ANSWER_MAX_BYTES).read_line(&mut answer)?;
        Ok(match serde_json::from_str(&answer)? {
            Answer::Text(text) => Ok(text),
            Answer::Error(reason) => Err(reason),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
