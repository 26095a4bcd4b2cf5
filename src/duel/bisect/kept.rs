//! Measurements of earlier runs of a bisection, in a file below the folder of runs.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    files,
    record::write_whole,
    report::{bisect::Kind, duel::Row},
};

/// The largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// The measurements of one question. Each is in the file before the next one begins.
pub struct Kept {
    file: PathBuf,
    content: Content,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    /// All that the measurements depend on.
    question: String,
    first: Option<First>,
    trials: Vec<Trial>,
}

/// The duel of both ends.
#[derive(Clone, Serialize, Deserialize)]
pub struct First {
    pub rows: Vec<Row>,
    /// Time that it took, with both builds.
    pub seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct Trial {
    kind: Kind,
    commit: String,
    outcome: Outcome,
}

/// Result of the duels with a commit, which is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The benchmark that is followed.
    Measured(Row),
    /// The commit cannot be measured, and why.
    Unfit(String),
}

impl Kept {
    /// Opens what is kept for a question below `out`, or forgets it.
    ///
    /// # Errors
    /// When the file cannot be read, or is not such a file.
    pub fn open(out: &Path, question: String, restart: bool) -> Result<Self> {
        let digest: String = Sha256::digest(&question).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let file = out.join(format!("bisect-{digest}.json"));
        let told = || format!("{} cannot be read: --restart forgets it", file.display());
        let content = match files::read_text_limited(&file, MAX_BYTES) {
            _ if restart => Content::default(),
            Err(error) if error.kind() == ErrorKind::NotFound => Content::default(),
            read => serde_json::from_str(&read.with_context(told)?).with_context(told)?,
        };
        Ok(Self { file, content: Content { question, ..content } })
    }

    /// The duel of both ends.
    pub fn first(&self) -> Option<&First> {
        self.content.first.as_ref()
    }

    /// Keeps the duel of both ends.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_first(&mut self, first: First) -> Result<()> {
        self.content.first = Some(first);
        self.write()
    }

    /// The result of a commit, if it is known.
    pub fn outcome(&self, kind: Kind, commit: &str) -> Option<&Outcome> {
        let is_this = |trial: &&Trial| trial.kind == kind && trial.commit == commit;
        self.content.trials.iter().find(is_this).map(|trial| &trial.outcome)
    }

    /// Keeps what a commit gave.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&mut self, kind: Kind, commit: &str, outcome: Outcome) -> Result<()> {
        self.content.trials.push(Trial { kind, commit: commit.to_owned(), outcome });
        self.write()
    }

    fn write(&self) -> Result<()> {
        write_whole(&self.file, &serde_json::to_vec(&self.content)?)
    }
}
