//! The note of the benchmark or training that a process runs, for the process that guards it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Record, write_whole};

/// Variable of a guarded process. Its name starts like those of settings, but it is not one.
pub const GUARDED: &str = "CANDLEPOWER_GUARDED";

/// Facts about its guard that a guarded process gets in [`GUARDED`], as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guarded {
    /// Process that started the program: Cargo, for a bench target.
    pub started_by: Option<u32>,
    /// File of the note.
    pub note: PathBuf,
    /// Benchmarks with a record since this time are done. `None` in the first process of a guard.
    pub since: Option<String>,
    /// Trainings that ended earlier processes of the guard, by name, with the reason.
    pub ended: BTreeMap<String, String>,
}

/// The work that has failed if the process ends now.
#[derive(Debug, Serialize, Deserialize)]
pub enum Note {
    /// A benchmark.
    Benchmark {
        /// Folder of the runs.
        out: PathBuf,
        /// The record of its failure. Its run is empty if the process has not opened one.
        record: Box<Record>,
    },
    /// A training of a shoot-out, by name.
    Training(String),
}

impl Guarded {
    /// Reads the variable of this process. `None` if nothing guards it.
    pub fn of_this_process() -> Option<Self> {
        serde_json::from_str(&std::env::var(GUARDED).ok()?).ok()
    }

    /// Replaces the note.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, note: &Note) -> Result<()> {
        write_whole(&self.note, &serde_json::to_vec(note)?)
    }

    /// Notes a training that is about to start. A note that cannot be written leaves the training without a guard.
    ///
    /// # Errors
    /// When the training ended an earlier process of the guard.
    pub fn begin(&self, training: &str) -> Result<()> {
        if let Some(reason) = self.ended.get(training) {
            bail!("{reason}");
        }
        let _ = self.write(&Note::Training(training.to_owned()));
        Ok(())
    }

    /// Removes the note, because its benchmark has a record, or its training has ended.
    pub fn clear(&self) {
        let _ = fs::remove_file(&self.note);
    }

    /// Takes the note. `None` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn take(&self) -> Result<Option<Note>> {
        let told = || format!("{} can't be read", self.note.display());
        let text = match fs::read(&self.note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(told)?,
        };
        self.clear();
        Ok(Some(serde_json::from_slice(&text).with_context(told)?))
    }

    /// The records that earlier processes of the guard appended to a file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn done(&self, records: &Path) -> Result<Vec<Record>> {
        let Some(since) = &self.since else { return Ok(Vec::new()) };
        let read = super::latest(records)?;
        Ok(read.records.into_iter().filter(|record| record.at >= *since).collect())
    }
}
