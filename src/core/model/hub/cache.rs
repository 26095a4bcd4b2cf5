//! The Hub's cache, in the layout that its clients share:
//!
//! ```text
//! models--<owner>--<name>/
//!   blobs/<etag>                 contents, by git's hash or SHA-256
//!   snapshots/<commit>/<file>    links to blobs
//!   refs/<branch or tag>         the commit that it meant last
//! .locks/models--<owner>--<name>/<etag>.lock
//! ```
//!
//! Every part of a path that a user or a server gives is a [`PathName`].

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use hf_hub::Repo;
use tempfile::NamedTempFile;

use crate::{
    files::{self, read_text_limited, temporary_that_stays},
    names::PathName,
};

/// How often a lock that another process holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Returns whether it is a commit's hash: 40 hexadecimal digits.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The path of a file in a repository. Most are in no folder.
pub struct RepoFile(Vec<PathName>);

impl RepoFile {
    /// Its folders and its name.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(PathName::as_str)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.last().map_or("", PathName::as_str)
    }

    fn below(&self, folder: PathBuf) -> PathBuf {
        self.0.iter().fold(folder, |folder, part| folder.join(part))
    }
}

impl FromStr for RepoFile {
    type Err = anyhow::Error;

    fn from_str(path: &str) -> Result<Self> {
        path.split('/').map(str::parse).collect::<Result<_>>().map(Self)
    }
}

impl fmt::Display for RepoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments().collect::<Vec<_>>().join("/"))
    }
}

/// The cache of one repository.
pub struct Cache {
    root: PathBuf,
    folder: PathName,
}

impl Cache {
    /// # Errors
    /// When the owner or the name can't be part of a path.
    pub fn new(root: PathBuf, owner: &str, name: &str) -> Result<Self> {
        Ok(Self { root, folder: Repo::model(format!("{owner}/{name}")).folder_name().parse()? })
    }

    /// The folder of all repositories.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn repository(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub fn blob(&self, etag: &PathName) -> PathBuf {
        self.repository().join("blobs").join(etag)
    }

    fn snapshot(&self, commit: &PathName) -> PathBuf {
        self.repository().join("snapshots").join(commit)
    }

    fn reference(&self, revision: &[PathName]) -> PathBuf {
        revision.iter().fold(self.repository().join("refs"), |folder, part| folder.join(part))
    }

    /// A file of a commit, if it is there.
    pub fn find(&self, commit: &PathName, file: &RepoFile) -> Option<PathBuf> {
        Some(file.below(self.snapshot(commit))).filter(|path| path.exists())
    }

    /// Returns whether a commit is known to lack a file: `.no_exist` holds an empty file for each, as huggingface_hub writes it.
    pub fn lacks(&self, commit: &PathName, file: &RepoFile) -> bool {
        self.absent(commit, file).exists()
    }

    /// Remembers that a commit lacks a file. A cache that cannot be written to forgets it.
    pub fn remember_absent(&self, commit: &PathName, file: &RepoFile) {
        let path = self.absent(commit, file);
        let _ = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, ""));
    }

    fn absent(&self, commit: &PathName, file: &RepoFile) -> PathBuf {
        file.below(self.repository().join(".no_exist").join(commit.as_str()))
    }

    /// The GGUF files of a commit that are there, in its folder and the folders in it.
    pub fn gguf_files(&self, commit: &PathName) -> Vec<String> {
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
        };
        let root = self.snapshot(commit);
        let inside = |name: String| {
            let below = names(&root.join(&name)).into_iter().map(|file| format!("{name}/{file}")).collect::<Vec<_>>();
            [name].into_iter().chain(below)
        };
        names(&root).into_iter().flat_map(inside).filter(|name| name.ends_with(".gguf")).collect()
    }

    /// The commit that a branch or tag meant when it was last fetched.
    pub fn commit(&self, revision: &[PathName]) -> Option<PathName> {
        let text = read_text_limited(&self.reference(revision), 1 << 10).ok()?;
        Some(text.trim()).filter(|commit| is_commit(commit))?.parse().ok()
    }

    /// Keeps what a revision means, for when the Hub can't be asked.
    ///
    /// # Errors
    /// When the cache can't be written to.
    pub fn remember(&self, revision: &[PathName], commit: &PathName) -> io::Result<()> {
        let file = self.reference(revision);
        let folder = file.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder)?;
        files::write_whole(&file, commit.as_str().as_bytes())
    }

    /// A file beside the blobs, which becomes one when it gets its name.
    ///
    /// # Errors
    /// When the cache can't be written to.
    pub fn new_blob(&self) -> io::Result<NamedTempFile> {
        let folder = self.repository().join("blobs");
        fs::create_dir_all(&folder)?;
        temporary_that_stays(0o666).tempfile_in(folder)
    }

    /// Makes a blob the file of a commit. Returns the file's path.
    ///
    /// # Errors
    /// When the cache can't be written to.
    pub fn link(&self, commit: &PathName, file: &RepoFile, etag: &PathName) -> io::Result<PathBuf> {
        let path = file.below(self.snapshot(commit));
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        #[cfg(unix)]
        let made =
            std::os::unix::fs::symlink(Path::new(&"../".repeat(1 + file.0.len())).join("blobs").join(etag), &path);
        // Elsewhere links need rights that users do not have.
        #[cfg(not(unix))]
        let made = fs::copy(self.blob(etag), &path).map(drop);
        match made {
            // Another process made it meanwhile.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(path),
        }
    }

    /// Waits until no other process fetches this blob. Returns `None` when that takes longer than `patience`.
    ///
    /// # Errors
    /// When the cache can't be written to.
    pub fn lock(&self, etag: &PathName, patience: Duration) -> io::Result<Option<File>> {
        let folder = self.root.join(".locks").join(&self.folder);
        fs::create_dir_all(&folder)?;
        let file = File::create(folder.join(format!("{etag}.lock")))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
            }
        }
    }
}
