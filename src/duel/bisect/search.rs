//! Which commit comes next, and when the search ends.

use std::ops::RangeInclusive;

use crate::report::bisect::Verdict;

/// The search for the first bad one of some commits, the oldest first. The last one is bad, and the one before the first is good.
pub struct Search {
    verdicts: Vec<Option<Verdict>>,
}

impl Search {
    /// A search among so many commits, at least one.
    pub fn new(commits: usize) -> Self {
        let mut verdicts = vec![None; commits];
        verdicts[commits - 1] = Some(Verdict::Bad);
        Self { verdicts }
    }

    /// Commits that may be the first bad one: those after the last good one, up to the first bad one.
    pub fn suspects(&self) -> RangeInclusive<usize> {
        let bad = self.verdicts.iter().position(|verdict| *verdict == Some(Verdict::Bad)).unwrap_or_default();
        let good = self.verdicts[..bad].iter().rposition(|verdict| *verdict == Some(Verdict::Good));
        good.map_or(0, |good| good + 1)..=bad
    }

    /// The commit to measure next: the middle of the longest row of suspects that are not measured yet. Where commits were
    /// skipped, this leads away from them. `None` at the end.
    pub fn next(&self) -> Option<usize> {
        let suspects = self.suspects();
        let (start, end) = (*suspects.start(), *suspects.end());
        let mut rows = Vec::new();
        let mut from = start;
        for place in start..=end {
            if self.verdicts[place].is_some() {
                rows.push(from..place);
                from = place + 1;
            }
        }
        let longest = rows.into_iter().rev().max_by_key(ExactSizeIterator::len)?;
        (!longest.is_empty()).then(|| longest.start + (longest.len() - 1) / 2)
    }

    /// Takes note of a commit.
    pub fn learn(&mut self, commit: usize, verdict: Verdict) {
        self.verdicts[commit] = Some(verdict);
    }

    /// The most steps that are left, if no further commit is skipped.
    pub fn steps_left(&self) -> usize {
        let suspects = self.suspects();
        let measured = self.verdicts[suspects.clone()].iter().filter(|verdict| verdict.is_some()).count();
        let possible = suspects.count() - measured + 1;
        possible.next_power_of_two().ilog2() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches among commits of which those from `culprit` on are bad. Returns the search at its end, and its steps.
    fn search(commits: usize, culprit: usize, skipped: &[usize]) -> (Search, usize) {
        let mut search = Search::new(commits);
        let mut steps = 0;
        while let Some(next) = search.next() {
            assert!(search.suspects().contains(&next) && next + 1 < commits);
            let verdict = match next {
                next if skipped.contains(&next) => Verdict::Skipped,
                next if next >= culprit => Verdict::Bad,
                _ => Verdict::Good,
            };
            search.learn(next, verdict);
            steps += 1;
        }
        (search, steps)
    }

    #[test]
    fn each_culprit_is_found_in_the_steps_that_were_announced() {
        for commits in 1..40 {
            for culprit in 0..commits {
                let (search, steps) = search(commits, culprit, &[]);
                assert_eq!(search.suspects(), culprit..=culprit);
                assert!(steps <= Search::new(commits).steps_left(), "{culprit} of {commits}: {steps}");
            }
        }
        assert_eq!([1, 2, 3, 12, 16, 17].map(|commits| Search::new(commits).steps_left()), [0, 1, 2, 4, 4, 5]);
    }

    /// All sets of skipped commits: the suspects are the culprit and the skipped commits next to its place, and no more.
    #[test]
    fn skipped_commits_anywhere_leave_the_least_range() {
        const COMMITS: usize = 12;
        for set in 0..1u32 << (COMMITS - 1) {
            let skipped: Vec<usize> = (0..COMMITS - 1).filter(|place| set >> place & 1 == 1).collect();
            for culprit in 0..COMMITS {
                let first = (0..culprit).rev().find(|place| !skipped.contains(place)).map_or(0, |good| good + 1);
                let last = (culprit..COMMITS).find(|place| !skipped.contains(place)).expect("the last one is bad");
                let (search, steps) = search(COMMITS, culprit, &skipped);
                assert_eq!(search.suspects(), first..=last, "culprit {culprit}, skipped {skipped:?}");
                assert!(steps < COMMITS);
            }
        }
    }
}
