//! Bisections: the first commit that differs from an earlier one in time, memory, tokens or allocations. A bisection is a sequence of
//! duels of commits with GOOD.
//!
//! ```text
//! range       the sides GOOD and BAD, and the commits between them
//!   kept      what earlier runs of the same bisection measured
//!   search    which commit comes next
//!   rule      whether a duel says that a commit is as GOOD or as BAD
//! ```

mod kept;
mod range;
mod rule;
mod search;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::TimeDelta;

use self::{
    kept::{First, Kept, Outcome},
    range::Range,
    rule::{Rule, differences},
    search::Search,
};
use super::{Filter, Rules, Side, Until, sequential::Interval};
use crate::{
    error::one_line,
    output, progress,
    record::{SampleUnit, check_writable},
    report::{
        bisect::{Bisection, Commit, Kind, Step, Verdict},
        duel::{Duel, Row, Verdict as RowVerdict},
        watch::duration,
    },
    settings::Settings,
    text,
};

/// Most duels of both ends. Each has twice the time of the one before.
const TRIES: usize = 3;

/// Times of the budget that a step has. Most steps end long before: with their commit told apart.
const PATIENCE: u32 = 4;

/// The parameters of a bisection.
pub(crate) struct Request {
    /// GOOD and BAD.
    pub sides: [Side; 2],
    /// The change to look for, if both ends differ in more than one way.
    pub kind: Option<Kind>,
    /// How the first duel measures. The benchmark of the others and how narrow their intervals are follows from the first one.
    pub rules: Rules,
    /// Measure everything anew.
    pub restart: bool,
}

/// Bisects the commits between both sides, which inherit the settings. Records are below `settings.out`, and so is what is kept
/// for another run.
///
/// # Errors
/// When there are no such commits, when GOOD or BAD cannot be measured, when a duel cannot be carried out for a reason that does
/// not lie in a commit, or when both ends differ in more than one way and the request does not say in which.
pub(crate) fn run(request: &Request, settings: &Settings) -> Result<Bisection> {
    let out = settings.out.as_path();
    let range = Range::of(&request.sides)?;
    let rules = &request.rules;
    let inherited: Vec<_> = settings.sources.iter().map(|(key, setting)| format!("{key}={}", setting.value)).collect();
    let question = format!(
        "{} {} {:?} {} {} {} {}",
        range.good,
        range.bad,
        rules.filter.as_ref().map(Filter::as_str),
        rules.resolve,
        rules.level,
        rules.budget.as_secs_f64(),
        inherited.join(" ")
    );
    check_writable(out)?;
    let mut kept = Kept::open(out, question, request.restart)?;
    let fight = |commit: &Commit, rules: &Rules| {
        let b = range.side(&commit.hash);
        fought(super::run([&range.good, &b], rules, out, |line| output::report(line)))
    };
    let (commits, rules) = (range.commits.as_slice(), rules.clone());
    let say = |line: &str| output::report(line);
    let hunt = Hunt { commits, kind: request.kind, rules, kept: &mut kept, fight, say };
    let mut bisection = hunt.run([&range.good, &range.bad].map(ToString::to_string))?;
    if let (Some(row), Some(last)) = (&bisection.row, bisection.suspects.last()) {
        let [a, b] = [&range.good, &range.side(&last.hash)].map(|side| text::shell(&side.to_string()));
        let filter = text::shell(only(&row.id)?.as_str());
        bisection.repeat = Some(format!("candlepower duel {a} {b} -- {filter}"));
    }
    Ok(bisection)
}

/// Result of a duel with a commit.
enum Fought {
    Rows(Vec<Row>),
    /// The commit cannot be measured, and why.
    Unfit(String),
}

/// Tells a commit that cannot be measured from a duel that the machine or GOOD has stopped. Errors that lie in a side begin with
/// its name.
fn fought(duel: Result<Duel>) -> Result<Fought> {
    match duel {
        Ok(duel) if duel.rows.is_empty() => {
            let failed = duel.failed.first().context("a duel without a benchmark")?;
            ensure!(failed.contains(": B: "), "GOOD failed: {failed}");
            Ok(Fought::Unfit(failed.clone()))
        }
        Ok(duel) => Ok(Fought::Rows(duel.rows)),
        Err(error) if error.to_string().starts_with("side B ") => Ok(Fought::Unfit(one_line(&format!("{error:#}")))),
        Err(error) => Err(error),
    }
}

/// The filter of one benchmark.
fn only(id: &str) -> Result<Filter> {
    format!("^{id}$").parse()
}

/// A bisection in progress.
struct Hunt<'a, F, S> {
    /// The oldest first.
    commits: &'a [Commit],
    kind: Option<Kind>,
    rules: Rules,
    kept: &'a mut Kept,
    /// Duels GOOD with a commit.
    fight: F,
    /// Gets lines of progress.
    say: S,
}

impl<F: FnMut(&Commit, &Rules) -> Result<Fought>, S: FnMut(&str)> Hunt<'_, F, S> {
    fn run(mut self, [good, bad]: [String; 2]) -> Result<Bisection> {
        let commits = self.commits;
        let mut search = Search::new(commits.len());
        let most = search.steps_left();
        // All duels together misjudge with the probability that the user gave. One share is for steps that skipped commits add.
        self.rules.level /= (most + TRIES + 1) as f64;
        (self.say)(&format!(
            "{} commits: a duel of both ends and at most {most} steps, each a build and up to {} of measuring",
            commits.len(),
            shown(self.rules.budget * PATIENCE)
        ));
        let live = progress::live(format_args!("bisecting {} commits", commits.len()));
        let first = self.first(&live)?;
        let mut bisection = Bisection { good, bad, commits: commits.len(), ..Bisection::default() };
        let Some((kind, row)) = self.chosen(&first.rows)? else { return Ok(bisection) };
        let rule = Rule::of(kind, row).with_context(|| {
            let change = kind.change(row);
            format!("{}: {change} is not exact enough to halve: give a smaller --resolve or a longer --budget", row.id)
        })?;
        self.rules.filter = Some(only(&row.id)?);
        self.rules.until = rule.until();
        let known = commits.iter().filter(|commit| self.kept.outcome(kind, &commit.hash).is_some()).count();
        let about = shown(Duration::from_secs_f64(first.seconds) * most.saturating_sub(known) as u32);
        let name = kind.text();
        (self.say)(&format!("Looking for '{name}' in {}: {most} steps, {known} of them kept, about {about}", row.id));

        let began = Instant::now();
        while let Some(next) = search.next() {
            let commit = &commits[next];
            let done = bisection.steps.len();
            live.part("step", (done - bisection.kept, done - bisection.kept + search.steps_left()), began);
            let outcome = match self.kept.outcome(kind, &commit.hash).cloned() {
                Some(outcome) => {
                    bisection.kept += 1;
                    outcome
                }
                None => {
                    (self.say)(&format!("Step {}: {} {}", done + 1, commit.short(), text::line(&commit.subject)));
                    let measured = bisection.steps.iter().filter(|step| step.row.is_some()).count();
                    self.trial(commit, kind, (measured + 1).saturating_sub(most))?
                }
            };
            let step = step(commit.clone(), outcome, &rule);
            search.learn(next, step.verdict);
            (self.say)(&step.summary(kind));
            bisection.steps.push(step);
        }
        bisection.suspects = commits[search.suspects()].to_vec();
        let of_last = bisection.steps.iter().find(|step| Some(&step.commit) == bisection.suspects.last());
        // The last commit has no step, but the first duel.
        bisection.found = of_last.map_or(Some(row), |step| step.row.as_ref()).cloned();
        (bisection.kind, bisection.row) = (Some(kind), Some(row.clone()));
        Ok(bisection)
    }

    /// The duel of both ends, repeated with more time until it shows what the search needs, or that nothing differs.
    fn first(&mut self, live: &progress::Live) -> Result<First> {
        if let Some(first) = self.kept.first() {
            return Ok(first.clone());
        }
        live.step("both ends");
        let began = Instant::now();
        let kind = self.kind;
        let is_always_exact = kind.is_some_and(|kind| kind.is_exact(SampleUnit::Bytes));
        self.rules.until = if is_always_exact { Until::Block } else { Until::Halved };
        let resolve = self.rules.resolve;
        let is_exact = |row: &Row| {
            let interval = row.low.zip(row.high).map(|(low, high)| Interval { low, high });
            kind.is_some_and(|kind| kind.is_exact(row.unit))
                || interval.is_some_and(|interval| interval.is_within(resolve))
        };
        let is_enough = |rows: &[Row]| {
            let mut found = differences(rows);
            found.retain(|(found, _)| kind.is_none_or(|kind| kind == *found));
            match found.as_slice() {
                [] => rows.iter().all(is_exact),
                found => found.iter().any(|(kind, row)| Rule::of(*kind, row).is_some()),
            }
        };
        let bad = self.commits.last().context("no commit to bisect")?;
        let mut rules = self.rules.clone();
        let mut tries = 1;
        let (rows, is_kept) = loop {
            let rows = match (self.fight)(bad, &rules)? {
                Fought::Rows(rows) => rows,
                Fought::Unfit(reason) => bail!("BAD cannot be measured: {reason}"),
            };
            let is_enough = is_enough(&rows);
            if is_enough || tries == TRIES {
                break (rows, is_enough);
            }
            tries += 1;
            rules.budget *= 2;
            (self.say)(&format!(
                "The change is not known well enough yet: measuring it for up to {}",
                shown(rules.budget)
            ));
        };
        let first = First { rows, seconds: began.elapsed().as_secs_f64() };
        if is_kept {
            self.kept.keep_first(first.clone())?;
        }
        Ok(first)
    }

    /// The duel with a commit, until the rule tells it apart. Of the duels beyond the expected ones, each has half of the level of the
    /// one before.
    fn trial(&mut self, commit: &Commit, kind: Kind, beyond: usize) -> Result<Outcome> {
        let level = self.rules.level / 2f64.powi(beyond as i32);
        let rules = Rules { budget: self.rules.budget * PATIENCE, level, ..self.rules.clone() };
        let outcome = match (self.fight)(commit, &rules)? {
            Fought::Rows(rows) => Outcome::Measured(rows.into_iter().next().context("a duel without a benchmark")?),
            Fought::Unfit(reason) => Outcome::Unfit(reason),
        };
        self.kept.keep(kind, &commit.hash, outcome.clone())?;
        Ok(outcome)
    }

    /// The kind of change to look for, with the benchmark that shows it best. `None` if nothing differs.
    fn chosen<'r>(&mut self, rows: &'r [Row]) -> Result<Option<(Kind, &'r Row)>> {
        let found = differences(rows);
        let named =
            |(kind, row): &(Kind, &Row)| format!("{} ({} in {})", kind.text(), kind.change(row), text::line(&row.id));
        let all = found.iter().map(named).collect::<Vec<_>>().join(", ");
        match (self.kind, found.as_slice()) {
            (_, []) => {
                let unresolved = rows.iter().filter(|row| row.verdict == RowVerdict::Unresolved).count();
                let count = rows.len();
                (self.say)(&format!("no difference in {count} benchmarks, of which {unresolved} are not resolved"));
                Ok(None)
            }
            // A change of the allocations often comes with another.
            (None, [one] | [one, (Kind::Allocations, _)]) => {
                (self.say)(&format!("GOOD and BAD differ: {all}"));
                Ok(Some(*one))
            }
            (None, several) => {
                let kinds: Vec<_> = several.iter().map(|(kind, _)| kind.text()).collect();
                bail!("GOOD and BAD differ in more than one way: {all}; choose one by --for {}", kinds.join("|"))
            }
            (Some(kind), several) => {
                let this = several.iter().find(|(found, _)| *found == kind);
                let this = this.with_context(|| format!("GOOD and BAD differ in this, not as --for says: {all}"))?;
                (self.say)(&format!("GOOD and BAD differ: {all}"));
                Ok(Some(*this))
            }
        }
    }
}

fn step(commit: Commit, outcome: Outcome, rule: &Rule) -> Step {
    match outcome {
        Outcome::Unfit(reason) => Step { commit, verdict: Verdict::Skipped, row: None, reason: Some(reason) },
        Outcome::Measured(row) => {
            let verdict = rule.judge(&row);
            let reason = verdict.is_none().then(|| format!("it is not told apart: {}", row.summary()));
            Step { commit, verdict: verdict.unwrap_or(Verdict::Skipped), row: Some(row), reason }
        }
    }
}

fn shown(time: Duration) -> String {
    duration(TimeDelta::seconds(time.as_secs().max(1) as i64))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::record::{AllocationChange, Allocations};

    /// A benchmark whose ratio has this interval.
    pub(super) fn row(low: f64, high: f64) -> Row {
        let interval = Some((low, high));
        Row {
            id: "short/a/b".into(),
            unit: SampleUnit::Ms,
            a: 100.0,
            b: 100.0 * (low * high).sqrt(),
            ratio: (low * high).sqrt(),
            low: Some(low),
            high: Some(high),
            verdict: RowVerdict::of(SampleUnit::Ms, interval, high < low * 1.05),
            pairs: 40,
            seconds: 12.0,
            memory_ratio: Some(1.0),
            same_work: Some(true),
            allocations: None,
            ttft: None,
        }
    }

    /// Commits of which those from `culprit` on take 10 % longer.
    #[derive(Clone, Default)]
    struct World {
        culprit: usize,
        /// Commits that do not build.
        broken: Vec<usize>,
        /// Commits whose duels are resolved if they may take this many minutes.
        unsteady: Vec<(usize, u64)>,
        /// The duel during which the process is killed.
        killed_at: Option<usize>,
        /// The change is 5 %, and duels measure until they are as exact as they must be.
        is_slight: bool,
    }

    const COMMITS: usize = 12;
    const BUDGET: Duration = Duration::from_secs(60);
    const LEVEL: f64 = 0.05;

    fn commits() -> Vec<Commit> {
        let commit = |number| Commit { hash: format!("{number:040}"), date: "2026-11-26".into(), subject: "x".into() };
        (0..COMMITS).map(commit).collect()
    }

    impl World {
        fn row(&self, place: usize, rules: &Rules) -> Row {
            let change = match (place >= self.culprit, self.is_slight) {
                (false, _) => 1.0,
                (true, false) => 1.1,
                (true, true) => 1.05,
            };
            let needed =
                self.unsteady.iter().find(|(unsteady, _)| *unsteady == place).map_or(0, |(_, minutes)| *minutes);
            let interval = |width: f64| Some(Interval { low: change / width, high: change * width });
            let is_enough = |width: &f64| rules.until.is_met(interval(*width), rules.resolve);
            let width = match self.is_slight {
                true => (1..100).map(|part| 1.08f64.powf(1.0 / f64::from(part))).find(is_enough).expect("a width"),
                false if rules.budget.as_secs() < 60 * needed => 1.08,
                false => 1.01,
            };
            row(change / width, change * width)
        }

        /// Bisects the commits. Returns the result and the duels that were fought.
        fn bisect(&self, out: &TempDir, restart: bool) -> (Result<Bisection>, Vec<usize>) {
            let commits = commits();
            let mut kept = Kept::open(out.path(), "question".into(), restart).expect("a file");
            let (mut fights, mut level) = (Vec::new(), 0.0);
            let fight = |commit: &Commit, rules: &Rules| {
                ensure!(self.killed_at != Some(fights.len()), "killed");
                let place = commit.hash.parse().expect("a number");
                fights.push(place);
                if self.broken.contains(&place) {
                    return Ok(Fought::Unfit("side B does not build".into()));
                }
                level += rules.level;
                assert!(level <= LEVEL * (1.0 + f64::EPSILON), "{level} after {fights:?}");
                Ok(Fought::Rows(vec![self.row(place, rules)]))
            };
            let rules = Rules { filter: None, resolve: 0.02, until: Until::Resolved, level: LEVEL, budget: BUDGET };
            let hunt = Hunt { commits: &commits, kind: None, rules, kept: &mut kept, fight, say: |_: &str| () };
            (hunt.run(["GOOD".into(), "BAD".into()]), fights)
        }
    }

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a folder")
    }

    /// The places of the suspects.
    fn suspects(bisection: &Bisection) -> Vec<usize> {
        bisection.suspects.iter().map(|commit| commit.hash.parse().expect("a number")).collect()
    }

    #[test]
    fn every_culprit_is_found_with_its_ratio() {
        for culprit in 0..COMMITS {
            let (found, fights) = World { culprit, ..World::default() }.bisect(&folder(), false);
            let found = found.expect("a bisection");
            assert_eq!(suspects(&found), [culprit]);
            assert_eq!(found.found.map(|row| (row.ratio * 10.0).round()), Some(11.0));
            assert!(fights.len() <= 5 && fights[0] == COMMITS - 1, "{fights:?}");
        }
    }

    /// The change between both ends is seen at first, but not its half.
    #[test]
    fn the_first_duel_is_repeated_until_its_change_can_be_halved() {
        let out = folder();
        let world = World { culprit: 3, unsteady: vec![(COMMITS - 1, 4)], ..World::default() };
        let (found, fights) = world.bisect(&out, false);
        assert_eq!((suspects(&found.expect("a bisection")), &fights[..4]), (vec![3], &[11, 11, 11, 5][..]));
        // One duel is enough where duels may take the time that they need.
        let slight = World { culprit: 3, is_slight: true, ..World::default() };
        let (found, fights) = slight.bisect(&folder(), false);
        assert_eq!((suspects(&found.expect("a bisection")), &fights[..2]), (vec![3], &[11, 5][..]));
        let world = World { culprit: 3, unsteady: vec![(COMMITS - 1, 100)], ..World::default() };
        let (error, fights) = world.bisect(&out, true);
        let error = error.expect_err("half of the change stays unknown").to_string();
        assert!(error.contains("is not exact enough to halve") && fights == [11, 11, 11], "{error}");
        let (found, _) = World { culprit: 3, ..World::default() }.bisect(&out, false);
        assert_eq!(suspects(&found.expect("the duel was not kept")), [3]);
    }

    /// A commit may take longer than both ends. One that is not told apart even then is a suspect.
    #[test]
    fn broken_and_unsteady_commits_leave_the_rest() {
        let world = World { culprit: 6, unsteady: vec![(5, 2), (6, u64::from(PATIENCE))], ..World::default() };
        let (found, fights) = world.bisect(&folder(), false);
        assert_eq!(suspects(&found.expect("a bisection")), [6]);
        let count = |place| fights.iter().filter(|fight| **fight == place).count();
        assert_eq!((count(5), count(6)), (1, 1));

        let unsteady = (0..COMMITS - 1).map(|place| (place, 100)).collect();
        let (found, fights) = World { culprit: 6, unsteady, ..World::default() }.bisect(&folder(), false);
        assert_eq!((suspects(&found.expect("a bisection")).len(), fights.len()), (COMMITS, COMMITS));

        let world = World { culprit: 6, unsteady: vec![(5, 100)], broken: vec![4], ..World::default() };
        let (found, _) = world.bisect(&folder(), false);
        let found = found.expect("a bisection");
        assert_eq!(suspects(&found), [4, 5, 6]);
        let skipped = found.steps.iter().filter(|step| step.verdict == Verdict::Skipped);
        let mut reasons: Vec<_> = skipped.filter_map(|step| step.reason.clone()).collect();
        reasons.sort();
        assert!(
            reasons[0].starts_with("it is not told apart: ") && reasons[1] == "side B does not build",
            "{reasons:?}"
        );
    }

    #[test]
    fn a_bisection_that_is_killed_resumes_at_each_step() {
        for broken in [vec![], vec![5, 7]] {
            let world = World { culprit: 8, broken, ..World::default() };
            let (whole, all) = world.bisect(&folder(), false);
            let whole = suspects(&whole.expect("a bisection"));
            for killed_at in 0..all.len() {
                let out = folder();
                let (error, mut fights) = World { killed_at: Some(killed_at), ..world.clone() }.bisect(&out, false);
                assert_eq!(error.expect_err("it is killed").to_string(), "killed");
                let (found, rest) = world.bisect(&out, false);
                let found = found.expect("a bisection");
                fights.extend(rest);
                assert_eq!((suspects(&found), &fights), (whole.clone(), &all), "killed at {killed_at}");
                assert_eq!(found.kept, killed_at.saturating_sub(1));
                let (_, again) = world.bisect(&out, true);
                assert_eq!(again, all, "--restart forgets");
            }
        }
    }

    #[test]
    fn a_file_that_is_broken_is_one_line() {
        let out = folder();
        let world = World { culprit: 3, ..World::default() };
        world.bisect(&out, false).0.expect("a bisection");
        let file = std::fs::read_dir(out.path()).expect("a folder").next().expect("a file").expect("a file").path();
        std::fs::write(&file, "{").expect("written");
        let error = Kept::open(out.path(), "question".into(), false).err().expect("broken").to_string();
        assert!(error.ends_with("cannot be read: --restart forgets it"), "{error}");
        assert!(Kept::open(out.path(), "question".into(), true).is_ok());
    }

    #[test]
    fn what_differs_is_named_and_chosen() {
        let choose = |kind: Option<Kind>, rows: &[Row]| {
            let out = folder();
            let rows = rows.to_vec();
            let mut kept = Kept::open(out.path(), "question".into(), false).expect("a file");
            let rules = Rules { filter: None, resolve: 0.02, until: Until::Resolved, level: 0.05, budget: BUDGET };
            let fight = |_: &Commit, _: &Rules| Ok(Fought::Rows(rows.clone()));
            let hunt = Hunt { commits: &commits()[..1], kind, rules, kept: &mut kept, fight, say: |_: &str| () };
            hunt.run(["GOOD".into(), "BAD".into()]).map(|bisection| bisection.kind).map_err(|error| error.to_string())
        };
        let other = Row { same_work: Some(false), ..row(1.09, 1.11) };
        assert_eq!(choose(None, &[row(0.99, 1.01)]), Ok(None));
        assert_eq!(choose(Some(Kind::Tokens), &[row(0.99, 1.01)]), Ok(None));
        assert_eq!(choose(None, &[row(1.09, 1.11)]), Ok(Some(Kind::Slower)));
        assert_eq!(choose(Some(Kind::Tokens), std::slice::from_ref(&other)), Ok(Some(Kind::Tokens)));
        let several = choose(None, std::slice::from_ref(&other)).expect_err("two kinds");
        assert!(
            several.contains("slower (+10.0 % (+9.0 % to +11.0 %) in short/a/b), tokens (other tokens in"),
            "{several}"
        );
        assert!(several.ends_with("choose one by --for slower|tokens"), "{several}");
        let allocating = |count| Allocations { count, bytes: 512.0 };
        let change = AllocationChange { a: allocating(2.0), b: allocating(3.0) };
        let more = Row { allocations: Some(change), ..row(0.99, 1.01) };
        assert_eq!(choose(None, std::slice::from_ref(&more)), Ok(Some(Kind::Allocations)));
        let slower = Row { allocations: Some(change), ..row(1.09, 1.11) };
        assert_eq!(choose(None, std::slice::from_ref(&slower)), Ok(Some(Kind::Slower)));
        assert_eq!(choose(Some(Kind::Allocations), &[slower]), Ok(Some(Kind::Allocations)));
        let absent = choose(Some(Kind::Faster), &[other]).expect_err("it is not faster");
        assert!(absent.starts_with("GOOD and BAD differ in this, not as --for says: slower"), "{absent}");
        let wide = choose(None, &[row(1.005, 1.2)]).expect_err("half of it is unknown");
        assert!(wide.contains("is not exact enough to halve"), "{wide}");
    }

    #[test]
    fn only_faults_of_the_commit_are_skipped() {
        let skipped = |error: &str| fought(Err(anyhow::anyhow!(error.to_owned()))).is_ok();
        assert!(skipped("side B (abc) does not build: error[E0425]"));
        assert!(skipped("side B has other benchmarks than side A: only A has x"));
        assert!(!skipped("building side B (abc) failed: error: No space left (os error 28)"));
        assert!(!skipped("side A (abc) ended (signal: 9)"));
    }
}
