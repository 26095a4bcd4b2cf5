//! The note of the benchmark that a process is measuring, for the process that guards it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
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
}

/// A record of the failure that is true if the process ends now.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    /// Folder of the runs.
    pub out: PathBuf,
    /// The record. Its run is empty if the process has not opened one.
    pub record: Record,
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

    /// Removes the note, because its benchmark has a record.
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
