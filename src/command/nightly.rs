//! `candlepower nightly`: runs a list of benchmarks and compares them with the last good run.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::{SecondsFormat, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    compare::percent,
    process::{self, Ended, Signals},
};
use crate::{
    config::Config as _,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    names::PathName,
    output,
    record::{self, Metric, RECORDS, Record, Status, write_whole},
    report::{
        self,
        bisect::{self, Kind},
        compare::{Comparison, Row, Side, Strictness, compare},
    },
    runner::{Shard, Target},
    settings::{Settings, variable},
    text,
};

#[derive(Args)]
pub struct Nightly {
    /// JSON file: what to run, time budgets, and thresholds of regressions
    config: PathBuf,
    /// Run part I of N of the list, as one of N machines, in a folder of its own
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Let the run become the last good one even if it was disturbed
    #[arg(long)]
    even_if_disturbed: bool,
}

/// Contents of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    benchmarks: Vec<Benchmarks>,
    /// For all benchmarks together.
    #[serde(default = "Config::budget_minutes")]
    budget_minutes: f64,
    /// Folder of runs, summaries and Criterion's files.
    #[serde(default = "Config::folder")]
    folder: PathBuf,
    #[serde(default = "Config::fail_above")]
    fail_above: String,
    #[serde(default = "Config::fail_memory_above")]
    fail_memory_above: String,
    #[serde(default = "Config::fail_quality_above")]
    fail_quality_above: String,
    /// Number of runs to keep.
    #[serde(default = "Config::keep")]
    keep: usize,
}

impl Config {
    fn budget_minutes() -> f64 {
        120.0
    }
    fn folder() -> PathBuf {
        Path::new("target").join("nightly")
    }
    fn fail_above() -> String {
        "5%".into()
    }
    fn fail_memory_above() -> String {
        "1%".into()
    }
    fn fail_quality_above() -> String {
        "0.5%".into()
    }
    fn keep() -> usize {
        30
    }

    /// The command that finds the commit of a regression, with the settings and features of its benchmark. `None` if a commit is unknown,
    /// or if several entries of the list may have run the benchmark.
    fn bisection(&self, comparison: &Comparison, row: &Row, kind: Kind) -> Option<String> {
        let target = Target::of_scenario(record::group(&row.id))?.name;
        let mut entries = self.benchmarks.iter().filter(|entry| entry.bench.as_deref() == Some(target));
        let (entry, None) = (entries.next()?, entries.next()) else { return None };
        let settings = entry.settings.iter().map(|(key, value)| format!("{key}={}", as_text(value)));
        let features = entry.features.iter().map(|features| format!("features={features}"));
        let parts: Vec<String> = settings.chain(features).collect();
        // A side separates its parts by this sign.
        let is_side = parts.iter().all(|part| !part.contains('+'));
        let [good, bad] = [comparison.a_commit.as_deref()?, comparison.b_commit.as_deref()?];
        is_side.then(|| bisect::command(good, bad, &parts, Some(kind), &row.id))?
    }
}

/// The value of a setting as it is given in the environment.
fn as_text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One call of `cargo bench`, or of a command that scores a model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Benchmarks {
    /// Bench target, such as `generation`.
    bench: Option<String>,
    /// Arguments of a command instead: `perplexity` or `eval`, and what follows.
    score: Option<Vec<String>>,
    /// Regular expression over ids; `None` selects all.
    filter: Option<String>,
    budget_minutes: Option<f64>,
    /// Settings by their keys, such as `models` and `tier`.
    #[serde(default)]
    settings: serde_json::Map<String, serde_json::Value>,
    /// Cargo features.
    features: Option<String>,
}

/// The result of a nightly run.
#[derive(Serialize)]
struct Summary<'a> {
    run: &'a str,
    at: String,
    machine: Option<&'a str>,
    commit: Option<&'a str>,
    good: bool,
    /// Why the run is no reference for later ones, although it may be good.
    disturbed: Option<String>,
    /// The last earlier run that was good.
    compared_with: Option<&'a str>,
    /// One line for each regression, failure or overrun.
    problems: &'a [String],
    /// Commands that find the commit of the largest regression of each kind.
    bisections: Vec<String>,
    benchmarks: Vec<Figures<'a>>,
}

#[derive(Serialize)]
struct Figures<'a> {
    id: &'a str,
    metrics: Vec<Metric>,
}

/// File that names the last good run.
const LAST_GOOD: &str = "last-good";

/// File that marks the folder of a run as made by this command. The command holds a lock on it while it runs.
const MARK: &str = "nightly.lock";

/// Longest budget: a year.
const MAX_BUDGET_MINUTES: f64 = 366.0 * 24.0 * 60.0;

impl Nightly {
    pub fn run(self) -> Result<ExitCode> {
        let config = self.config()?;
        let share = |key: &str, text: &str| percent(text).map_err(|error| anyhow!("{key}: {error}"));
        let fail_above = share("fail_above", &config.fail_above)?;
        let fail_memory_above = share("fail_memory_above", &config.fail_memory_above)?;
        let fail_quality_above = share("fail_quality_above", &config.fail_quality_above)?;
        let runs = config.folder.join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("{} could not be made", runs.display()))?;

        let signals = Signals::catch()?;
        // The lock ends with this function.
        let (run, _lock) = new_run(&runs)?;
        let mut problems = Vec::new();
        let until = Instant::now() + minutes(config.budget_minutes);
        for benchmarks in &config.benchmarks {
            if let Err(problem) = benchmarks.run(&run, &config.folder, until, &signals) {
                let problem = format!("{problem:#}");
                output::report(format_args!("nightly: {}", text::line(&problem)));
                problems.push(problem);
            }
            if signals.received().is_some() {
                break;
            }
        }

        let file = runs.join(&run).join(RECORDS);
        let read = if file.is_file() { record::latest(&file)? } else { record::Read::default() };
        problems.extend(read.problems.iter().cloned());
        for record in read.records.iter().filter(|record| record.status == Status::Failed) {
            let reason = record.reason.as_deref().unwrap_or("no reason given");
            problems.push(format!("{}: failed: {reason}", record.id));
        }
        if read.records.is_empty() {
            problems.push("nothing was measured".into());
        }
        let last_good = last_good(&config.folder.join(LAST_GOOD), &runs);
        // An unknown last good run may be any of them.
        let may_prune = last_good.is_ok();
        let last_good = last_good.unwrap_or_else(|error| {
            problems.push(format!("{error:#}"));
            None
        });
        let comparison = match &last_good {
            Some(good) if !read.records.is_empty() => compared(&runs, good, run.as_str(), &read.records).map(Some),
            _ => Ok(None),
        };
        let comparison = comparison.unwrap_or_else(|error| {
            problems.push(format!("{error:#}"));
            None
        });
        let mut bisections = Vec::new();
        if let Some(comparison) = &comparison {
            let slower = comparison.regressions(fail_above).into_iter();
            problems.extend(slower.map(|row| format!("{}: {:.1} % slower", row.id, (row.ratio - 1.0) * 100.0)));
            let larger = comparison.memory_regressions(fail_memory_above).into_iter();
            let rise = |ratio: Option<f64>| (ratio.unwrap_or(1.0) - 1.0) * 100.0;
            problems.extend(larger.map(|row| format!("{}: {:.1} % more memory", row.id, rise(row.memory_ratio))));
            let worse = comparison.quality_regressions(fail_quality_above).into_iter();
            problems.extend(worse.map(|row| format!("{}: {:.2} % higher NLL", row.id, (row.ratio - 1.0) * 100.0)));
            let ratio_of = |kind, row: &Row| if kind == Kind::Memory { row.memory_ratio } else { Some(row.ratio) };
            for (kind, rows) in [
                (Kind::Slower, comparison.regressions(fail_above)),
                (Kind::Memory, comparison.memory_regressions(fail_memory_above)),
            ] {
                let largest = rows.into_iter().max_by(|a, b| {
                    let [a, b] = [a, b].map(|row| ratio_of(kind, row).unwrap_or_default());
                    a.total_cmp(&b)
                });
                bisections.extend(largest.and_then(|row| config.bisection(comparison, row, kind)));
            }
        }

        let good = problems.is_empty();
        let disturbed = report::disturbance(&read.records).filter(|_| !self.even_if_disturbed);
        let becomes_reference = good && disturbed.is_none();
        let first = read.records.first();
        let summary = Summary {
            run: run.as_str(),
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            machine: first.map(|record| record.machine.name.as_str()),
            commit: first.and_then(|record| record.software.commit.as_deref()),
            good,
            disturbed,
            compared_with: last_good.as_ref().map(PathName::as_str),
            problems: &problems,
            bisections,
            benchmarks: read
                .records
                .iter()
                .filter_map(|record| Some(Figures { id: &record.id, metrics: record.measures.as_ref()?.metrics() }))
                .collect(),
        };
        fs::create_dir_all(runs.join(&run))?;
        let summary_file = runs.join(&run).join("summary.json");
        write_whole(&summary_file, serde_json::to_string_pretty(&summary)?.as_bytes())?;
        let text = text(&summary, comparison.as_ref(), may_prune && last_good.is_none());
        write_whole(&runs.join(&run).join("summary.md"), text.as_bytes())?;
        output::print(text);
        output::print_line(format_args!("\nSummary: {}", summary_file.display()));
        if becomes_reference {
            write_whole(&config.folder.join(LAST_GOOD), run.as_str().as_bytes())?;
        }
        if may_prune {
            // A run that becomes the reference takes the place of the last one.
            let last_good = last_good.as_ref().filter(|_| !becomes_reference);
            prune(&runs, config.keep, &[Some(&run), last_good])?;
        }
        Ok(match signals.received() {
            Some(signal) => process::exit_code(signal),
            None if good => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        })
    }

    fn config(&self) -> Result<Config> {
        let name = self.config.display();
        let text =
            read_text_limited(&self.config, SETTINGS_MAX_BYTES).with_context(|| format!("{name} could not be read"))?;
        let mut config: Config = serde_json::from_str(&text).with_context(|| format!("{name}"))?;
        ensure!(!config.benchmarks.is_empty(), "{name}: benchmarks: list at least one");
        ensure!(config.keep > 0, "{name}: keep: it must be at least 1");
        let budgets = config.benchmarks.iter().filter_map(|benchmarks| benchmarks.budget_minutes);
        for budget in budgets.chain([config.budget_minutes]) {
            ensure!(
                budget > 0.0 && budget <= MAX_BUDGET_MINUTES,
                "{name}: budget_minutes: {budget:?} is not a positive number of at most {MAX_BUDGET_MINUTES}, a year"
            );
        }
        for benchmarks in &config.benchmarks {
            let command = benchmarks.score.as_ref().map(|arguments| arguments.first().map_or("", String::as_str));
            ensure!(
                command.is_none_or(|command| ["perplexity", "eval"].contains(&command)),
                "{name}: score: begin with perplexity or eval"
            );
            ensure!(
                benchmarks.bench.is_some() != benchmarks.score.is_some(),
                "{name}: each of the benchmarks has either bench or score"
            );
            ensure!(
                benchmarks.bench.is_some() || (benchmarks.filter.is_none() && benchmarks.features.is_none()),
                "{name}: filter and features need bench"
            );
            for key in benchmarks.settings.keys() {
                let names: Vec<_> = Settings::KEYS.iter().map(|key| key.name).collect();
                ensure!(
                    names.contains(&key.as_str()),
                    "{name}: unknown setting '{key}': the settings are {}",
                    names.join(", ")
                );
                // The folder of the records is the nightly's.
                ensure!(key != "out", "{name}: out cannot be set: use `folder`");
            }
        }
        if let Some(shard) = self.shard {
            let all = config.benchmarks.len();
            config.benchmarks = shard.of(config.benchmarks);
            ensure!(!config.benchmarks.is_empty(), "shard {shard} has none of the {all} benchmarks: use fewer shards");
            // Each shard is compared with its own last good run, also where the shards share a file system.
            config.folder = config.folder.join(format!("shard-{}", shard.to_string().replace('/', "-of-")));
        }
        Ok(config)
    }
}

/// Compares records with those of the last good run.
///
/// # Errors
/// When that run cannot be read. It must not pass as a comparison.
fn compared(runs: &Path, good: &PathName, run: &str, records: &[Record]) -> Result<Comparison> {
    let before = Side::from_records(good.as_str(), &record::latest(&runs.join(good).join(RECORDS))?.records);
    compare(&before, &Side::from_records(run, records), Strictness::default())
}

/// Makes the folder of a run, named by the time, and locks its mark.
fn new_run(runs: &Path) -> Result<(PathName, File)> {
    let time = Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
    // Another nightly may have begun in the same second.
    for number in 1..=100 {
        let name = if number == 1 { time.clone() } else { format!("{time}-{number}") };
        let folder = runs.join(&name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| format!("{} could not be made", folder.display()))?,
        }
        let mark = folder.join(MARK);
        let lock = File::create(&mark).and_then(|file| file.try_lock().map_err(Into::into).map(|()| file));
        return Ok((name.parse()?, lock.with_context(|| format!("{} could not be locked", mark.display()))?));
    }
    bail!("{}: a hundred runs have the name {time}", runs.display())
}

/// The run that `file` names as the last good one. `None` if there is no such file.
///
/// # Errors
/// When the file is not readable or names no run: the next run would pass without a comparison.
fn last_good(file: &Path, runs: &Path) -> Result<Option<PathName>> {
    let told =
        || format!("{}: the last good run is unknown: correct the file, or remove it to start over", file.display());
    let text = match read_text_limited(file, SETTINGS_MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(told),
    };
    let run: PathName = text.trim_end().parse().with_context(told)?;
    let records = runs.join(&run).join(RECORDS);
    ensure!(records.is_file(), "{}: {} does not exist", told(), records.display());
    Ok(Some(run))
}

impl Benchmarks {
    /// # Errors
    /// Returns an error if the command fails or takes too long. Records written before that are kept.
    fn run(&self, run: &PathName, folder: &Path, until: Instant, signals: &Signals) -> Result<()> {
        let score = self.score.as_deref().unwrap_or_default();
        let name = self.bench.iter().chain(&self.filter).chain(score).map(String::as_str).collect::<Vec<_>>().join(" ");
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "{name}: skipped: the budget for all benchmarks is used up");
        let budget = self.budget_minutes.map_or(left, |own| minutes(own).min(left));
        let mut command = match &self.bench {
            Some(bench) => {
                let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.args(["bench", "--bench", bench]);
                if let Some(features) = &self.features {
                    cargo.args(["--features", features]);
                }
                cargo.arg("--").args(&self.filter);
                cargo
            }
            None => {
                let mut own = Command::new(std::env::current_exe()?);
                own.args(score);
                own
            }
        };
        let here = std::env::current_dir()?;
        command.env("CANDLEPOWER_RUN", run.as_str()).env("CANDLEPOWER_OUT", here.join(folder).join("runs"));
        command.env("CRITERION_HOME", here.join(folder).join("criterion"));
        for (key, value) in &self.settings {
            command.env(variable(key), as_text(value));
        }
        let program = if self.bench.is_some() { "cargo" } else { "candlepower" };
        let ended = process::run(&mut command, Some(budget), signals);
        match ended.with_context(|| format!("{program} could not be started: is it installed?"))? {
            Ended::Exited(status) => ensure!(status.success(), "{name}: {program} ended with {status}"),
            Ended::OutOfTime => {
                bail!("{name}: stopped after its budget of {:.1} minutes", budget.as_secs_f64() / 60.0)
            }
            Ended::Signal(signal) => bail!("{name}: stopped by signal {signal}"),
        }
        Ok(())
    }
}

/// At most [`MAX_BUDGET_MINUTES`], which no duration or point in time overflows at.
fn minutes(minutes: f64) -> Duration {
    Duration::from_secs_f64(minutes.min(MAX_BUDGET_MINUTES) * 60.0)
}

fn text(summary: &Summary, comparison: Option<&Comparison>, is_first: bool) -> String {
    let verdict = if summary.good { "good" } else { "not good" };
    let mut text = format!("# Nightly {}: {verdict}\n\n", summary.run);
    for problem in summary.problems {
        text.push_str(&format!("- {}\n", text::markdown(problem)));
    }
    for bisection in &summary.bisections {
        text.push_str(&format!("\nTo find the commit: `{bisection}`\n"));
    }
    if let Some(reason) = &summary.disturbed {
        text.push_str(&format!("\nThe run was disturbed and is no reference for later ones: {reason}.\n"));
    }
    match comparison {
        Some(comparison) => text.push_str(&format!("\n{}", comparison.markdown(false))),
        None if is_first => text.push_str("\nThere is no good run before it to compare with.\n"),
        None => text.push_str("\nIt was not compared with the last good run.\n"),
    }
    text
}

/// Removes the oldest runs of this command beyond `keep`. Everything else below `runs` stays: the runs in `kept`, a run in
/// progress, and what others put there.
fn prune(runs: &Path, keep: usize, kept: &[Option<&PathName>]) -> Result<()> {
    let mut own: Vec<(PathName, PathBuf)> = Vec::new();
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        let name = entry.file_name().to_str().and_then(|name| name.parse::<PathName>().ok());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Some(name) = name.filter(|name| is_folder && is_own(&entry.path(), name)) {
            own.push((name, entry.path()));
        }
    }
    let surplus = own.len().saturating_sub(keep);
    own.retain(|(name, run)| !kept.contains(&Some(name)) && !is_locked(run));
    own.sort();
    for (_, run) in own.into_iter().take(surplus) {
        fs::remove_dir_all(&run).with_context(|| format!("{} could not be removed", run.display()))?;
    }
    Ok(())
}

/// Returns whether a process that runs holds the lock of a run.
fn is_locked(run: &Path) -> bool {
    File::open(run.join(MARK)).is_ok_and(|mark| mark.try_lock().is_err())
}

/// Returns whether a folder is a run of this command: it has the mark, or, from versions without the mark, a summary that
/// names it.
fn is_own(run: &Path, name: &PathName) -> bool {
    if run.join(MARK).is_file() {
        return true;
    }
    let summary = read_text_limited(&run.join("summary.json"), SETTINGS_MAX_BYTES).ok();
    let summary = summary.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    summary.is_some_and(|summary| summary["run"] == name.as_str() && summary.get("problems").is_some())
}
