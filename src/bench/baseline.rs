//! Baselines of `--save-baseline` that only an undisturbed run may make. Criterion writes one benchmark after the other, before it is
//! known whether the run was disturbed. It therefore writes under another name, and the folders get theirs when the run is over.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    files, output,
    record::{self, Record},
    report::{
        self,
        compare::{Comparison, Side, Strictness, compare},
    },
};

/// A baseline that is being made.
#[derive(Debug)]
pub struct Pending {
    criterion_home: PathBuf,
    name: String,
}

impl Pending {
    /// Copies the earlier baseline of this name, if there is one, so that Criterion compares with it.
    ///
    /// # Errors
    /// Returns an error if Criterion's folder is not writable.
    pub fn open(criterion_home: PathBuf, name: String) -> Result<Self> {
        let pending = Self { criterion_home, name };
        // A run that was killed left its own.
        pending.discard()?;
        for earlier in pending.folders(&pending.name)? {
            let to = earlier.with_file_name(pending.pending_name());
            fs::create_dir_all(&to).with_context(|| format!("{} could not be created", to.display()))?;
            for file in fs::read_dir(&earlier)?.flatten() {
                fs::copy(file.path(), to.join(file.file_name()))?;
            }
        }
        Ok(pending)
    }

    /// The baseline that an earlier process of the same run opened.
    pub fn again(criterion_home: PathBuf, name: String) -> Self {
        Self { criterion_home, name }
    }

    /// Name that Criterion saves under.
    pub fn pending_name(&self) -> String {
        format!("{}.pending", self.name)
    }

    /// Makes it the baseline.
    ///
    /// # Errors
    /// Returns an error if Criterion's folder is not writable.
    pub fn keep(&self) -> Result<()> {
        for made in self.folders(&self.pending_name())? {
            let to = made.with_file_name(&self.name);
            if to.is_dir() {
                fs::remove_dir_all(&to).with_context(|| format!("{} could not be replaced", to.display()))?;
            }
            files::rename(&made, &to).with_context(|| format!("{} could not be created", to.display()))?;
        }
        Ok(())
    }

    /// Removes it. An earlier baseline of the name stays as it was.
    ///
    /// # Errors
    /// Returns an error if Criterion's folder is not writable.
    pub fn discard(&self) -> Result<()> {
        for made in self.folders(&self.pending_name())? {
            fs::remove_dir_all(&made).with_context(|| format!("{} could not be removed", made.display()))?;
        }
        Ok(())
    }

    /// The folders of a baseline, one for each benchmark.
    fn folders(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if self.criterion_home.is_dir() {
            collect(&self.criterion_home, name, &mut found)?;
        }
        Ok(found)
    }
}

fn collect(folder: &Path, name: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match entry.file_name() == name && entry.path().join("sample.json").is_file() {
            true => found.push(entry.path()),
            false => collect(&entry.path(), name, found)?,
        }
    }
    Ok(())
}

/// Checks that a baseline has been saved for some benchmark, and says which doubts it has.
///
/// # Errors
/// Returns an error that lists the saved ones if there is none of this name.
pub fn ensure_exists(criterion_home: &Path, name: &str) -> Result<()> {
    let mut saved = record::baselines(criterion_home);
    let is_saved = saved.iter().any(|saved| saved == name);
    // The last run, and the one before.
    saved.retain(|name| !["new", "base"].contains(&name.as_str()));
    let saved = if saved.is_empty() { "none is saved".into() } else { format!("saved are {}", saved.join(", ")) };
    ensure!(
        is_saved,
        "there is no baseline {name} in {}: {saved}; --save-baseline {name} saves one",
        criterion_home.display()
    );
    if let Some(reason) = report::disturbance(record::baseline_records(criterion_home, name).values()) {
        output::report(format_args!("baseline {name} was saved with doubts: {reason}"));
    }
    Ok(())
}

/// The comparison of a saved baseline with the records of this run. Criterion's own compares the samples of two processes as if nothing
/// but the code could differ between these.
///
/// # Errors
/// Returns an error if none of the benchmarks is in the baseline.
pub fn compared(criterion_home: &Path, name: &str, records: &[Record], out: &Path) -> Result<Comparison> {
    let of_ids = |id: &str| records.iter().any(|record| record.id == id);
    let before = Side::find(name, out, criterion_home)?.only(of_ids);
    compare(&before, &Side::from_records("this run", records), Strictness::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(home: &Path, baseline: &str, text: &str) {
        let folder = home.join("short/llama").join(baseline);
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("sample.json"), text).expect("written");
    }

    fn read(home: &Path, baseline: &str) -> Option<String> {
        fs::read_to_string(home.join("short/llama").join(baseline).join("sample.json")).ok()
    }

    #[test]
    fn a_baseline_appears_only_when_it_is_kept() {
        let home = tempfile::tempdir().expect("a folder");
        write(home.path(), "main", "earlier");
        write(home.path(), "main.pending", "of a run that was killed");
        write(home.path(), "other", "of somebody else");
        let open = || Pending::open(home.path().to_owned(), "main".into()).expect("opened");
        let pending = open();
        assert_eq!(read(home.path(), "main.pending").as_deref(), Some("earlier"), "Criterion compares with it");
        write(home.path(), &pending.pending_name(), "disturbed");
        pending.discard().expect("discarded");
        assert_eq!((read(home.path(), "main").as_deref(), read(home.path(), "main.pending")), (Some("earlier"), None));
        let pending = open();
        write(home.path(), &pending.pending_name(), "quiet");
        pending.keep().expect("kept");
        assert_eq!((read(home.path(), "main").as_deref(), read(home.path(), "main.pending")), (Some("quiet"), None));
        assert_eq!(read(home.path(), "other").as_deref(), Some("of somebody else"));
        Pending::open(home.path().join("none"), "main".into()).expect("a folder that does not exist yet");
    }
}
