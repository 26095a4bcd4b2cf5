//! History of a benchmark over the kept reports, with the commits between which its level changed.

mod page;

pub use page::page;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    bisect,
    plot::{self, Course},
    statistics::median,
    table::number,
    text_table::{sparkline, terminal},
};
use crate::{
    files::is_temporary,
    record::{self, Better, Record},
    text::line,
};

/// The history of one benchmark on one machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct History {
    /// Id of the benchmark.
    pub id: String,
    /// Name of the machine.
    pub machine: String,
    /// Name of the metric, without the unit.
    pub metric: String,
    /// Unit of the values; empty where they have none.
    pub unit: &'static str,
    /// The direction of improvement.
    pub better: Better,
    /// In order of time.
    pub points: Vec<Point>,
    /// Changes of level, in order of time.
    pub moves: Vec<Move>,
}

/// The result of one run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Point {
    /// Time at which the benchmark ended, in UTC, as RFC 3339.
    pub at: String,
    /// `unknown` if the record has none.
    pub commit: String,
    /// Value of the metric.
    pub value: f64,
    /// True if the record has doubts. Such a point is in no level.
    pub is_disturbed: bool,
}

impl Point {
    /// The mark of a disturbed result in a table.
    fn mark(&self) -> &'static str {
        if self.is_disturbed { " !" } else { "" }
    }
}

/// A change of level.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Move {
    /// First point of the new level.
    pub point: usize,
    /// Commit of the last point of the old level.
    pub last_commit: String,
    /// Commit of the first point of the new level.
    pub commit: String,
    /// Median of the old level.
    pub before: f64,
    /// Median of the new level.
    pub after: f64,
}

/// The histories of the benchmarks whose ids contain `part`, from every `results.jsonl` below `folder`, and the problems of
/// unreadable lines. `metric` is the name of one of [`record::Measures::metrics`]; the default is each benchmark's
/// headline.
///
/// # Errors
/// When there is no report, or no matching benchmark.
pub fn histories(folder: &Path, part: &str, metric: Option<&str>, noise: f64) -> Result<(Vec<History>, Vec<String>)> {
    let files = results(folder)?;
    let mut problems = Vec::new();
    let mut histories: BTreeMap<(String, String), History> = BTreeMap::new();
    let mut known: Vec<&str> = Vec::new();
    // A run that was reported twice counts once.
    let mut seen = BTreeSet::new();
    for file in &files {
        let read = record::latest(file)?;
        problems.extend(read.problems);
        let is_wanted = |record: &&Record| !record.sandbox && record.id.contains(part);
        for record in read.records.iter().filter(is_wanted) {
            if !seen.insert((record.run.clone(), record.id.clone(), record.at.clone())) {
                continue;
            }
            let metrics = record.measures.as_ref().map(record::Measures::metrics).unwrap_or_default();
            known.extend(metrics.iter().map(|metric| metric.name));
            let wanted = |found: &&record::Metric| metric.is_none_or(|metric| metric == found.name);
            let Some(found) = metrics.iter().find(wanted) else { continue };
            let history =
                histories.entry((record.id.clone(), record.machine.name.clone())).or_insert_with(|| History {
                    id: record.id.clone(),
                    machine: record.machine.name.clone(),
                    metric: found.name.to_owned(),
                    unit: found.unit.name(),
                    better: found.better,
                    points: Vec::new(),
                    moves: Vec::new(),
                });
            history.points.push(point(record, found.value));
        }
    }
    if histories.is_empty() {
        known.sort_unstable();
        known.dedup();
        match (metric, known.is_empty()) {
            (Some(metric), false) => bail!("no benchmark has a figure '{metric}': there are {}", known.join(", ")),
            _ => {
                bail!("no benchmark whose id contains '{part}' was measured in the reports below {}", folder.display())
            }
        }
    }
    let mut histories: Vec<History> = histories.into_values().collect();
    for history in &mut histories {
        history.points.sort_by(|a, b| a.at.cmp(&b.at));
        history.moves = moves(&history.points, noise);
    }
    Ok((histories, problems))
}

fn point(record: &Record, value: f64) -> Point {
    let commit = record.software.commit.clone().unwrap_or_else(|| "unknown".into());
    let is_disturbed = record.conditions.as_ref().is_some_and(|conditions| !conditions.doubts.is_empty());
    Point { at: record.at.clone(), commit, value, is_disturbed }
}

/// Results of the reports below a folder: `<machine>/<utc>/results.jsonl`.
fn results(folder: &Path) -> Result<Vec<PathBuf>> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut files: Vec<PathBuf> = inside(folder)
        .iter()
        .flat_map(|machine| inside(machine))
        // A report that was interrupted.
        .filter(|report| !is_temporary(report))
        .map(|report| report.join("results.jsonl"))
        .filter(|file| file.is_file())
        .collect();
    files.sort();
    (!files.is_empty()).then_some(files).with_context(|| format!("there is no report below {}", folder.display()))
}

/// Partitions the logarithms into levels by optimal partitioning (Jackson et al., 2005). The cost of a level is the sum of
/// squares around its mean. The penalty of one more level is `3 σ² ln n`, close to that of Zhang and Siegmund (2007). `σ`
/// comes from the median difference of neighbours and is at least a third of `noise`. Changes within `noise` are dropped, and
/// disturbed points are in no level.
fn moves(points: &[Point], noise: f64) -> Vec<Move> {
    let quiet: Vec<(usize, f64)> = points
        .iter()
        .enumerate()
        .filter(|(_, point)| !point.is_disturbed)
        .map(|(at, point)| (at, point.value))
        .collect();
    let logarithms: Vec<f64> = quiet.iter().map(|(_, value)| value.max(f64::MIN_POSITIVE).ln()).collect();
    let starts = levels(&logarithms, noise);
    let level = |from: usize, to: usize| median(&quiet[from..to].iter().map(|(_, value)| *value).collect::<Vec<_>>());
    let mut moves: Vec<Move> = Vec::new();
    for (index, &start) in starts.iter().enumerate().skip(1) {
        let (from, to) = (starts[index - 1], starts.get(index + 1).copied().unwrap_or(quiet.len()));
        let (before, after) = (level(from, start), level(start, to));
        if (after / before).ln().abs() > noise.ln_1p() {
            let [last_commit, commit] = [start - 1, start].map(|place| points[quiet[place].0].commit.clone());
            moves.push(Move { point: quiet[start].0, last_commit, commit, before, after });
        }
    }
    moves
}

/// Index of the first value of each level. The first index is 0.
fn levels(values: &[f64], noise: f64) -> Vec<usize> {
    let count = values.len();
    if count < 2 {
        return vec![0];
    }
    let steps: Vec<f64> = values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    // For a normal distribution, the median of |a - b| is 0.6745 · √2 standard deviations.
    let deviation = (median(&steps) / (0.6745 * 2f64.sqrt())).max(noise / 3.0);
    let penalty = 3.0 * deviation * deviation * (count as f64).ln();
    let mut sums = vec![(0.0, 0.0)];
    for value in values {
        let (sum, squares) = sums[sums.len() - 1];
        sums.push((sum + value, squares + value * value));
    }
    let cost = |from: usize, to: usize| {
        let (sum, squares) = (sums[to].0 - sums[from].0, sums[to].1 - sums[from].1);
        squares - sum * sum / (to - from) as f64
    };
    // For the first `to` values: the lowest cost, and the start of the last level.
    let mut best: Vec<(f64, usize)> = vec![(-penalty, 0)];
    for to in 1..=count {
        let over = |from: usize| (best[from].0 + cost(from, to) + penalty, from);
        let least = (0..to).map(over).min_by(|a, b| a.0.total_cmp(&b.0));
        best.extend(least);
    }
    let mut starts = Vec::new();
    let mut to = count;
    while to > 0 {
        to = best[to].1;
        starts.push(to);
    }
    starts.reverse();
    starts
}

/// Benchmarks of a machine whose last change of level lies between the same two commits, or that have none.
pub struct Group<'a> {
    /// The largest change for the worse first.
    pub histories: Vec<&'a History>,
}

/// The groups of the histories: the one with the largest change for the worse first, then those with changes for the better, and
/// last the benchmarks whose level has not changed.
pub fn groups<'a>(histories: impl IntoIterator<Item = &'a History>) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<_, Vec<&History>> = BTreeMap::new();
    for history in histories {
        let step = history.moves.last().map(|step| (history.day(step), &step.last_commit, &step.commit));
        groups.entry((&history.machine, step)).or_default().push(history);
    }
    let mut groups: Vec<Group> = groups.into_values().map(|histories| Group { histories }).collect();
    for group in &mut groups {
        group.histories.sort_by(|a, b| b.worsening().total_cmp(&a.worsening()).then_with(|| a.id.cmp(&b.id)));
    }
    let order = |group: &Group| (group.histories[0].moves.is_empty(), -group.histories[0].worsening());
    groups.sort_by(|a, b| order(a).partial_cmp(&order(b)).unwrap_or(Ordering::Equal));
    groups
}

impl Group<'_> {
    /// The commits between which the benchmarks changed, the day, and the machine.
    pub fn title(&self) -> String {
        let first = self.histories[0];
        match first.moves.last() {
            None => format!("No change of level on {}", first.machine),
            Some(step) => format!(
                "Changed on {} between {} and {}, on {}",
                first.day(step),
                bisect::short(&step.last_commit),
                bisect::short(&step.commit),
                first.machine
            ),
        }
    }
}

/// A table for each group, with the values of each benchmark as bars. Disturbed runs have no bar. A long group without a change is
/// one line.
pub fn overview(histories: &[History]) -> String {
    let table = |group: Group| {
        let title = line(&group.title());
        let count = group.histories.len();
        if group.histories[0].moves.is_empty() && count > MOST_UNCHANGED {
            return format!(
                "{title}: {count} benchmarks. `candlepower history PART` shows those with PART in their ids.\n"
            );
        }
        let mut rows =
            vec![["benchmark", "runs", "disturbed", "course", "last", "last step"].map(str::to_owned).to_vec()];
        for history in &group.histories {
            let quiet = history.points.iter().filter(|point| !point.is_disturbed);
            let values: Vec<f64> = quiet.map(|point| point.value).collect();
            let last = history.points.last();
            rows.push(vec![
                history.id.clone(),
                history.points.len().to_string(),
                (history.points.len() - values.len()).to_string(),
                sparkline(&values, COURSE),
                format!(
                    "{} {}{}",
                    number(last.map(|point| point.value)),
                    history.unit,
                    last.map_or("", |point| point.mark())
                ),
                history.moves.last().map_or(String::new(), |step| history.said(step)),
            ]);
        }
        format!("{title}\n\n{}", terminal(&rows, 1))
    };
    groups(histories).into_iter().map(table).collect::<Vec<_>>().join("\n")
}

/// Benchmarks without a change that are listed.
const MOST_UNCHANGED: usize = 20;

/// Bars of an overview.
const COURSE: usize = 16;

impl History {
    /// The points as a table that marks each change of level.
    pub fn text(&self) -> String {
        let metric = format!("{} {}", self.metric, self.unit);
        let mut rows = vec![["measured", "commit", &metric, "step"].map(str::to_owned).to_vec()];
        for (place, point) in self.points.iter().enumerate() {
            let step = self.moves.iter().find(|step| step.point == place);
            rows.push(vec![
                format!("{}{}", point.at, point.mark()),
                bisect::short(&point.commit).to_owned(),
                number(Some(point.value)),
                step.map_or(String::new(), |step| {
                    format!(
                        "{}, {} to {}",
                        self.said(step),
                        bisect::short(&step.last_commit),
                        bisect::short(&step.commit)
                    )
                }),
            ]);
        }
        let disturbed = match self.points.iter().any(|point| point.is_disturbed) {
            true => "! The machine was busy: the point is in no level.\n",
            false => "",
        };
        let bisection = self.bisection().map_or(String::new(), |command| format!("\nTo find the commit: {command}\n"));
        format!("{} on {}\n\n{}{disturbed}{bisection}", line(&self.id), line(&self.machine), terminal(&rows, 2))
    }

    /// The command that finds the commit of the last change of level, if both of its ends are known.
    fn bisection(&self) -> Option<String> {
        let Move { last_commit: good, commit: bad, .. } = self.moves.last()?;
        bisect::command(good, bad, &[], None, &self.id)
    }

    fn said(&self, step: &Move) -> String {
        let change = (step.after / step.before - 1.0) * 100.0;
        format!("{} by {change:+.1} %", if self.is_worse(step) { "worse" } else { "better" })
    }

    /// The day on which the new level was first measured.
    fn day(&self, step: &Move) -> &str {
        let at = &self.points[step.point].at;
        at.get(..10).unwrap_or(at)
    }

    fn is_worse(&self, step: &Move) -> bool {
        (step.after > step.before) != (self.better == Better::Higher)
    }

    /// Size of the last change of level if it is for the worse, and 0 otherwise.
    fn worsening(&self) -> f64 {
        let worse = self.moves.last().filter(|step| self.is_worse(step));
        worse.map_or(0.0, |step| (step.after / step.before).ln().abs())
    }

    /// A plot of the points as SVG, with a line at each change of level, and disturbed points in grey.
    pub fn plot(&self) -> String {
        let commits: Vec<&str> =
            self.points.iter().map(|point| point.commit.get(..7).unwrap_or(&point.commit)).collect();
        plot::history(&self.course(), &commits, &format!("{}, {}", self.metric, self.unit))
    }

    fn course(&self) -> Course {
        let places = |is_in: &dyn Fn(&Point) -> bool| {
            self.points.iter().enumerate().filter(|(_, point)| is_in(point)).map(|(place, _)| place).collect()
        };
        Course {
            values: self.points.iter().map(|point| point.value).collect(),
            moved: self.moves.iter().map(|moved| moved.point).collect(),
            disturbed: places(&|point| point.is_disturbed),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    /// Values around levels, with a standard deviation of about one percent.
    fn points(levels: &[(f64, usize)], seed: u64) -> Vec<Point> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut noise = || {
            let draw = (0..12).map(|_| f64::from(random.next_u32()) / f64::from(u32::MAX)).sum::<f64>() - 6.0;
            1.0 + 0.01 * draw
        };
        let values = levels.iter().flat_map(|(level, count)| std::iter::repeat_n(*level, *count));
        values
            .enumerate()
            .map(|(number, level)| Point {
                at: format!("{number:03}"),
                commit: format!("c{number}"),
                value: level * noise(),
                is_disturbed: false,
            })
            .collect()
    }

    #[test]
    fn noise_alone_hardly_ever_moves() {
        let found = (0..200).filter(|&seed| !moves(&points(&[(100.0, 30)], seed), 0.03).is_empty()).count();
        assert!(found <= 4, "{found} of 200");
    }

    #[test]
    fn planted_moves_are_found_where_they_are() {
        for seed in 0..50 {
            let found = moves(&points(&[(100.0, 12), (93.0, 10), (110.0, 8)], seed), 0.03);
            let places: Vec<usize> = found.iter().map(|moved| moved.point).collect();
            assert_eq!(places, [12, 22], "seed {seed}");
            assert_eq!((found[0].last_commit.as_str(), found[0].commit.as_str()), ("c11", "c12"));
            assert!((found[1].after / found[1].before - 110.0 / 93.0).abs() < 0.03);
        }
    }

    #[test]
    fn disturbed_points_are_in_no_level() {
        let mut points = points(&[(100.0, 12), (50.0, 1), (100.0, 6), (80.0, 10)], 2);
        points[12].is_disturbed = true;
        points[19].is_disturbed = true;
        let found = moves(&points, 0.03);
        assert_eq!(found.iter().map(|moved| moved.point).collect::<Vec<_>>(), [20]);
        assert_eq!((found[0].last_commit.as_str(), found[0].commit.as_str()), ("c18", "c20"));
    }

    fn history(id: &str, points: Vec<Point>) -> History {
        History {
            id: id.into(),
            machine: "here".into(),
            metric: "tokens_per_s".into(),
            unit: "",
            better: Better::Higher,
            moves: moves(&points, 0.03),
            points,
        }
    }

    #[test]
    fn benchmarks_that_changed_together_are_a_group_and_the_worst_comes_first() {
        let all = [
            history("same", points(&[(100.0, 22)], 3)),
            history("better", points(&[(100.0, 8), (120.0, 14)], 3)),
            history("worse", points(&[(100.0, 12), (90.0, 10)], 3)),
            history("worst", points(&[(100.0, 12), (70.0, 10)], 3)),
        ];
        let ids = |group: &Group| group.histories.iter().map(|history| history.id.clone()).collect::<Vec<_>>();
        let groups = groups(&all);
        assert_eq!(groups.iter().map(ids).collect::<Vec<_>>(), [vec!["worst", "worse"], vec!["better"], vec!["same"]]);
        assert_eq!(groups[0].title(), "Changed on 012 between c11 and c12, on here");
    }

    #[test]
    fn a_move_between_known_commits_has_a_command() {
        let mut points = points(&[(100.0, 12), (80.0, 10)], 1);
        points.iter_mut().enumerate().for_each(|(number, point)| point.commit = format!("{number:040x}"));
        let mut history = history("short/a b/c", points);
        history.moves[0].commit = "0123456789abcdef".into();
        let end = "\nTo find the commit: candlepower bisect 000000000000 0123456789ab -- '^short/a b/c$'\n";
        assert!(history.text().ends_with(end), "{}", history.text());
        for commit in ["unknown", "0123456789abcdef-dirty", &history.moves[0].last_commit.clone()] {
            history.moves[0].commit = commit.into();
            assert!(!history.text().contains("candlepower bisect"), "{commit}");
        }
    }

    #[test]
    fn few_and_equal_points_do_not_move() {
        assert!(moves(&[], 0.03).is_empty());
        assert!(moves(&points(&[(5.0, 1)], 0), 0.03).is_empty());
        let equal: Vec<Point> =
            points(&[(7.0, 10)], 0).into_iter().map(|point| Point { value: 7.0, ..point }).collect();
        assert!(moves(&equal, 0.0).is_empty());
        let doubled = points(&[(100.0, 3), (200.0, 1)], 0);
        assert_eq!(moves(&doubled, 0.03).len(), 1, "a jump shows at once");
    }
}
