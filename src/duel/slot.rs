//! Folders of duels: `<target>/duel/0`, `1` and so on. A duel holds the lock file beside its folder while it runs. The
//! system releases the lock when the process ends, however it ends, so that the next duel knows which folders are left over.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::git::git;

/// The folder of one duel. Dropping it removes the folder and its worktrees.
#[derive(Debug)]
pub struct Slot {
    folder: PathBuf,
    repository: PathBuf,
    /// Locked.
    _lock: File,
}

/// Slots that are tried, far more than a machine runs duels at once.
const SLOTS: usize = 100;

impl Slot {
    /// Takes the first free folder below `root`, and removes what duels that were killed left there. The numbers make paths
    /// recur, so that Cargo finds what it compiled for the last duel. `repository` is the checkout that worktrees belong to.
    ///
    /// # Errors
    /// When `root` is not writable.
    pub fn take(root: &Path, repository: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("{} could not be made", root.display()))?;
        let mut taken: Option<Self> = None;
        for number in 0..SLOTS {
            let lock = root.join(format!("{number}.lock"));
            if taken.is_some() && !lock.exists() {
                break;
            }
            // The file stays: a duel that removed it could remove one that another duel has just locked.
            let file = File::create(&lock).with_context(|| format!("{} could not be made", lock.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("{} could not be locked", lock.display()));
                }
            }
            let slot = Self { folder: root.join(number.to_string()), repository: repository.to_owned(), _lock: file };
            slot.clear();
            taken.get_or_insert(slot);
        }
        let slot = taken.with_context(|| format!("{SLOTS} duels run already"))?;
        fs::create_dir_all(&slot.folder).with_context(|| format!("{} could not be made", slot.folder.display()))?;
        Ok(slot)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file beside the folder that stays after the duel.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.with_extension(format!("{name}.log"))
    }

    /// Makes a worktree of a commit in the folder.
    ///
    /// # Errors
    /// When git refuses.
    pub fn worktree(&self, name: &str, commit: &str) -> Result<PathBuf> {
        self.worktree_of(&self.repository, name, commit)
    }

    /// Makes a worktree of a commit of another repository in the folder.
    ///
    /// # Errors
    /// When git refuses.
    pub fn worktree_of(&self, repository: &Path, name: &str, commit: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let text = path.to_str().context("the path of the target folder is not UTF-8")?;
        // Twice, because a duel that was killed while git worked may have left an entry that is locked.
        git(repository, &["worktree", "add", "--quiet", "--force", "--force", "--detach", text, commit])?;
        Ok(path)
    }

    /// Removes the folder and its worktrees. The next duel removes the rest.
    fn clear(&self) {
        let worktrees = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in worktrees.map(|entry| entry.path()).filter(|path| path.join(".git").is_file()) {
            let Some(text) = path.to_str() else { continue };
            // In the worktree, because it may belong to a checkout of Candle.
            let _ = git(&path, &["worktree", "remove", "--force", "--force", text]);
        }
        if self.folder.exists() {
            let _ = fs::remove_dir_all(&self.folder);
            let _ = git(&self.repository, &["worktree", "prune"]);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one commit.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("file"), "one\n").expect("written");
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        git(folder.path(), &["init", "--quiet"]).expect("a repository");
        git(folder.path(), &["add", "file"]).expect("added");
        git(folder.path(), &[&author[..], &["commit", "--quiet", "-m", "one"]].concat()).expect("a commit");
        folder
    }

    fn worktrees(repository: &Path) -> usize {
        git(repository, &["worktree", "list"]).expect("a list").lines().count()
    }

    #[test]
    fn duels_at_once_have_folders_of_their_own_and_leave_none() {
        let repository = repository();
        let root = repository.path().join("target/duel");
        let first = Slot::take(&root, repository.path()).expect("free");
        let source = first.worktree("a", "HEAD").expect("a worktree");
        let second = Slot::take(&root, repository.path()).expect("free");
        assert_eq!((first.folder(), second.folder()), (root.join("0").as_path(), root.join("1").as_path()));
        assert!(source.join("file").is_file(), "the second did not clear the first");
        second.worktree("a", "HEAD").expect("a worktree of the same name");
        assert_eq!(worktrees(repository.path()), 3);
        drop(first);
        drop(second);
        assert_eq!(worktrees(repository.path()), 1);
        assert!(!root.join("0").exists() && !root.join("1").exists());
        assert_eq!(Slot::take(&root, repository.path()).expect("free").folder(), root.join("0"));
    }

    #[test]
    fn what_a_killed_duel_left_is_removed() {
        let repository = repository();
        let root = repository.path().join("target/duel");
        let slots = [(); 2].map(|()| Slot::take(&root, repository.path()).expect("free"));
        for slot in slots {
            slot.worktree("a", "HEAD").expect("a worktree");
            let b = slot.worktree("b", "HEAD").expect("a worktree");
            fs::remove_dir_all(b).expect("as if it was killed while git removed it");
            // A killed process runs no destructor, but the system releases its locks.
            slot._lock.unlock().expect("unlocked");
            std::mem::forget(slot);
        }
        // As if git had been killed while it made the worktree.
        let entries = repository.path().join(".git/worktrees");
        for entry in fs::read_dir(&entries).expect("entries") {
            fs::write(entry.expect("an entry").path().join("locked"), "initializing").expect("written");
        }
        let next = Slot::take(&root, repository.path()).expect("free");
        assert_eq!(next.folder(), root.join("0"));
        assert!(!root.join("1").exists() && !root.join("0/a").exists());
        for name in ["a", "b"] {
            next.worktree(name, "HEAD").expect("nothing is in the way");
        }
    }

    #[test]
    fn git_says_in_one_line_what_is_wrong_and_other_repositories_stay_clean() {
        let repository = repository();
        let slot = Slot::take(&repository.path().join("duel"), repository.path()).expect("free");
        let other = self::repository();
        slot.worktree_of(other.path(), "a-candle", "HEAD").expect("a worktree of another repository");
        slot.clear();
        assert_eq!(worktrees(other.path()), 1);
        let error = slot.worktree("a", "no-such-commit").expect_err("unknown").to_string();
        assert!(error.starts_with("git worktree: ") && error.contains("no-such-commit"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
