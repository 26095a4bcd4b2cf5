//! The writer of records: one folder for each run, one line for each record.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Guarded, Record};
use crate::{files, names::PathName};

/// Name of the records' file in a run's folder.
pub const RECORDS: &str = "records.jsonl";

/// File that names the process that opened a run, so that the other bench targets of the same `cargo bench` can join it.
const OPENED_BY: &str = "run.json";

#[derive(Serialize, Deserialize, PartialEq)]
struct OpenedBy {
    cargo_process: u32,
}

/// Appends records to a run. Each record is one write, so that concurrent writers do not mix their lines, and a killed
/// process loses at most one record.
pub struct Sink {
    run: String,
    path: PathBuf,
}

impl Sink {
    /// Opens the run of this process below `out`. If `run` is given, it is that run. Otherwise, if Cargo started the
    /// process, it is the run that an earlier bench target of the same `cargo bench` opened. Otherwise it is a new run,
    /// named by the time.
    ///
    /// # Errors
    /// When the folder cannot be created or written to.
    pub fn open(out: &Path, run: Option<&str>) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").and_then(|_| parent_process());
        let run = match (run, cargo) {
            (Some(run), _) => run.to_owned(),
            (None, Some(cargo)) => opened_by(out, cargo).unwrap_or_else(|| new_run(Utc::now())),
            (None, None) => new_run(Utc::now()),
        };
        let run: PathName = run.parse().context("the run")?;
        let folder = out.join(&run);
        let sink = Self { path: folder.join(RECORDS), run: run.to_string() };
        fs::create_dir_all(&folder)
            .and_then(|()| sink.file().map(drop))
            .with_context(|| format!("records can't be written to {}: set CANDLEPOWER_OUT", folder.display()))?;
        if let Some(cargo_process) = cargo {
            let opened_by = serde_json::to_vec(&OpenedBy { cargo_process })?;
            write_whole(&folder.join(OPENED_BY), &opened_by)?;
        }
        Ok(sink)
    }

    /// Name of the run.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The file of records.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn append(&self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let written = self.file().and_then(|mut file| {
            // A writer that was killed in the middle of a line left no newline, and this record would join its line.
            if ends_in_mid_line(&self.path)? {
                line.insert(0, b'\n');
            }
            file.write_all(&line)
        });
        written.with_context(|| format!("{}: the record of {} was not written", self.path.display(), record.id))
    }

    /// Opens the file of records. A folder that was removed since the last record is made again, so that later records are
    /// kept.
    fn file(&self) -> io::Result<File> {
        let open = || OpenOptions::new().create(true).append(true).open(&self.path);
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.path.parent().map_or(Ok(()), fs::create_dir_all)?;
                open()
            }
            opened => opened,
        }
    }
}

/// Checks that records can be written below `out`, before anything is measured.
///
/// # Errors
/// When they cannot.
pub fn check_writable(out: &Path) -> Result<()> {
    files::check_room(out)
        .with_context(|| format!("records can't be written to {}: set CANDLEPOWER_OUT", out.display()))
}

/// Writes a file whole or not at all. Devices, FIFOs and standard output, which `-` names, are written to directly.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    files::write_whole(path, content).with_context(|| format!("{} was not written", path.display()))
}

fn ends_in_mid_line(path: &Path) -> io::Result<bool> {
    use io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn new_run(now: DateTime<Utc>) -> String {
    format!("{}-{}", now.format("%Y%m%dT%H%M%SZ"), std::process::id())
}

/// The newest run below `out`, if the given Cargo process opened it.
fn opened_by(out: &Path, cargo_process: u32) -> Option<String> {
    let newest = fs::read_dir(out)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| out.join(name).join(OPENED_BY).is_file())
        .max()?;
    let opened: OpenedBy = serde_json::from_slice(&fs::read(out.join(&newest).join(OPENED_BY)).ok()?).ok()?;
    (opened == OpenedBy { cargo_process }).then_some(newest)
}

/// The process that started the program. A guard that started this process for it does not count.
#[cfg(unix)]
pub fn parent_process() -> Option<u32> {
    match Guarded::of_this_process() {
        Some(guarded) => guarded.started_by,
        None => Some(std::os::unix::process::parent_id()),
    }
}

/// On other systems each bench target opens its own run.
#[cfg(not(unix))]
pub fn parent_process() -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_after_the_folder_was_removed_are_kept() {
        let out = tempfile::tempdir().expect("a folder");
        let sample: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        let sink = Sink::open(out.path(), Some("run")).expect("a sink");
        sink.append(&sample).expect("appended");
        fs::remove_dir_all(out.path()).expect("removed");
        sink.append(&sample).expect("appended");
        assert_eq!(crate::record::read(sink.path()).expect("read").records.len(), 1);
    }

    /// Each writer has its own handle, as two processes would.
    #[test]
    fn writers_at_once_lose_nothing() {
        let out = tempfile::tempdir().expect("a folder");
        let sample: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (out, sample) = (out.path(), &sample);
                scope.spawn(move || {
                    let sink = Sink::open(out, Some("shared")).expect("a sink");
                    for number in 0..250 {
                        let record = Record { id: format!("{writer}/{number}"), ..sample.clone() };
                        sink.append(&record).expect("appended");
                    }
                });
            }
        });
        let read = crate::record::read(&out.path().join("shared").join(RECORDS)).expect("read");
        assert_eq!(read.problems, Vec::<String>::new());
        let ids: std::collections::BTreeSet<_> = read.records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!((read.records.len(), ids.len()), (1000, 1000));
    }
}
