//! The sides of a bisection, and the commits between them.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    duel::{
        build::{self, Source},
        commits::Checkout,
        side::{Candle, Side},
        slot::Slot,
    },
    git::git,
    report::bisect::{Commit, short},
};

/// Two sides that differ in one commit, and the commits from one to the other.
pub struct Range {
    /// GOOD at its commits.
    pub good: Side,
    /// BAD at its commits.
    pub bad: Side,
    /// The commits after GOOD up to BAD, the oldest first.
    pub commits: Vec<Commit>,
    /// Commits of the package and of Candle that do not change.
    own: String,
    candle: Option<String>,
    is_of_candle: bool,
}

impl Range {
    /// Finds the commits. The sides must be the same but for one revision, of the package or of a checkout of Candle.
    ///
    /// # Errors
    /// When they are not, when a side is not a commit, or when GOOD is not an ancestor of BAD.
    pub fn of(sides: &[Side; 2]) -> Result<Self> {
        let Checkout { repository, root, .. } = Checkout::here()?;
        let slot = Slot::take(&root, &repository)?;
        let [good, bad] = sides;
        let names = [format!("GOOD ({good})"), format!("BAD ({bad})")];
        let found = |name: &str, side: &Side| -> Result<Source> {
            ensure!(
                !matches!(side.candle, Some(Candle::Checkout(_))),
                "{name}: the checkout may change on the way: name a commit of it, as in candle=PATH@HEAD"
            );
            let source = build::source(name, side, &repository, &slot)?;
            ensure!(
                source.commit == source.recorded_commit,
                "{name}: the working tree has changes, and may change on the way: commit them, or name a revision"
            );
            Ok(source)
        };
        let [a, b] = [found(&names[0], good)?, found(&names[1], bad)?];
        let at = |side: &Side, of: &Source| side.at(short(&of.commit), of.candle.as_deref().map(short));
        ensure!(
            at(good, &a) == at(bad, &a),
            "GOOD ({good}) and BAD ({bad}) differ in more than a commit: give both the same Candle, bench target, features and settings"
        );
        let is_of_candle = a.candle != b.candle;
        ensure!(
            !is_of_candle || a.commit == b.commit,
            "GOOD ({good}) and BAD ({bad}) are different commits of the package and of Candle: let them differ in one of them"
        );
        let commits = match (&bad.candle, &a.candle, &b.candle) {
            (Some(Candle::Revision(folder, _)), Some(a), Some(b)) if is_of_candle => {
                commits(&build::opened(&names[1], folder)?, a, b)
            }
            _ => commits(&repository, &a.commit, &b.commit),
        }
        .with_context(|| format!("from GOOD ({good}) to BAD ({bad})"))?;
        Ok(Self { good: at(good, &a), bad: at(bad, &b), commits, own: b.commit, candle: b.candle, is_of_candle })
    }

    /// The side at one of the commits.
    pub fn side(&self, commit: &str) -> Side {
        match self.is_of_candle {
            true => self.bad.at(short(&self.own), Some(short(commit))),
            false => self.bad.at(short(commit), self.candle.as_deref().map(short)),
        }
    }
}

/// The commits after `good` up to `bad` that change more than Markdown, the oldest first.
///
/// They are those along first parents that contain GOOD. Each contains the one before, so a change that appears stays until it is
/// undone. A merge stands for its branch, and a merge that brought GOOD itself is the first one.
fn commits(repository: &Path, good: &str, bad: &str) -> Result<Vec<Commit>> {
    ensure!(good != bad, "both are the same commit");
    let base = git(repository, &["merge-base", good, bad]);
    ensure!(base.is_ok_and(|base| base == good), "GOOD is not an ancestor of BAD");
    let range = format!("{good}..{bad}");
    // Git loses the path to a GOOD that a merge brought if it follows first parents only.
    let all = git(repository, &["rev-list", "--ancestry-path", &range])?;
    let after_good: HashSet<&str> = all.lines().collect();
    let which = ["log", "--first-parent", "--reverse", "--format=%H%x1f%as%x1f%s", &range];
    let list = git(repository, &[which.as_slice(), &["--", ":(top)", ":(top,exclude)*.md"]].concat())?;
    let commit = |line: &str| {
        let mut parts = line.splitn(3, '\u{1f}').map(str::to_owned);
        Some(Commit { hash: parts.next()?, date: parts.next()?, subject: parts.next()? })
    };
    let commits = list.lines().filter_map(commit).filter(|commit| after_good.contains(commit.hash.as_str()));
    let commits: Vec<Commit> = commits.collect();
    ensure!(!commits.is_empty(), "the commits change nothing but Markdown");
    Ok(commits)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Repository(tempfile::TempDir);

    impl Repository {
        fn git(&self, arguments: &[&str]) -> String {
            let author = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
            git(self.0.path(), &[&author, arguments].concat()).expect("git")
        }

        fn commit(&self, file: &str, subject: &str) -> String {
            fs::write(self.0.path().join(file), subject).expect("written");
            self.git(&["add", "."]);
            self.git(&["commit", "--quiet", "-m", subject]);
            self.git(&["rev-parse", "HEAD"])
        }
    }

    #[test]
    fn commits_are_those_along_first_parents_that_change_the_program() {
        let repository = Repository(tempfile::tempdir().expect("a folder"));
        repository.git(&["init", "--quiet", "--initial-branch", "main"]);
        let good = repository.commit("a.rs", "one");
        repository.commit("README.md", "words");
        repository.commit("a.rs", "a\u{1b}[2J subject");
        repository.git(&["checkout", "--quiet", "-b", "side", &good]);
        let other = repository.commit("b.rs", "on a branch");
        repository.commit("b.rs", "again");
        repository.git(&["checkout", "--quiet", "main"]);
        repository.git(&["merge", "--quiet", "--no-ff", "-m", "the branch", "side"]);
        let last = repository.commit("a.rs", "last");
        repository.commit("c.md", "more words");

        let of = |good: &str, bad: &str| commits(repository.0.path(), good, bad).map_err(|error| error.to_string());
        let subjects = |commits: Vec<Commit>| commits.into_iter().map(|commit| commit.subject).collect::<Vec<_>>();
        assert_eq!(
            of(&good, "HEAD").map(subjects),
            Ok(vec!["a\u{1b}[2J subject".into(), "the branch".into(), "last".into()])
        );
        // A commit of the branch: the first one after it is the merge.
        assert_eq!(of(&other, "HEAD").map(subjects), Ok(vec!["the branch".into(), "last".into()]));
        let commit = &of(&good, "HEAD").expect("commits")[2];
        assert_eq!((commit.hash.as_str(), commit.date.len()), (last.as_str(), 10));
        for (good, bad, part) in [
            (last.as_str(), "HEAD", "nothing but Markdown"),
            ("HEAD", &good, "GOOD is not an ancestor of BAD"),
            ("HEAD", "HEAD", "the same commit"),
        ] {
            let error = of(good, bad).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
