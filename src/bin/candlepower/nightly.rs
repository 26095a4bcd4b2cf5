//! `candlepower nightly`: runs a list of benchmarks and compares them with the last good run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candlepower::{
    config::Config as _,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    record::{self, Metric, RECORDS, Record, write_whole},
    report::{
        self,
        compare::{Comparison, Side, Strictness, compare},
    },
    settings::{PREFIX, Settings},
};
use chrono::{SecondsFormat, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::compare::percent;

#[derive(Args)]
pub struct Nightly {
    /// JSON file: what to run, time budgets, and thresholds of regressions
    config: PathBuf,
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
    fn keep() -> usize {
        30
    }
}

/// One call of `cargo bench`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Benchmarks {
    /// Bench target, such as `generation`.
    bench: String,
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
    compared_with: Option<String>,
    /// One line for each regression, failure or overrun.
    problems: &'a [String],
    benchmarks: Vec<Figures<'a>>,
}

#[derive(Serialize)]
struct Figures<'a> {
    id: &'a str,
    metrics: Vec<Metric>,
}

const LAST_GOOD: &str = "last-good";

impl Nightly {
    pub fn run(self) -> Result<ExitCode> {
        let config = self.config()?;
        let shares = [percent(&config.fail_above), percent(&config.fail_memory_above)];
        let [fail_above, fail_memory_above] = shares.map(|share| share.map_err(|error| anyhow!("fail_above: {error}")));
        let (fail_above, fail_memory_above) = (fail_above?, fail_memory_above?);
        let runs = config.folder.join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("{} could not be made", runs.display()))?;

        let run = Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
        let mut problems = Vec::new();
        let until = Instant::now() + minutes(config.budget_minutes);
        for benchmarks in &config.benchmarks {
            if let Err(problem) = benchmarks.run(&run, &config.folder, until) {
                eprintln!("nightly: {problem:#}");
                problems.push(format!("{problem:#}"));
            }
        }

        let file = runs.join(&run).join(RECORDS);
        let read = if file.is_file() { record::latest(&file)? } else { record::Read::default() };
        problems.extend(read.problems.iter().cloned());
        let failed = |record: &Record| Some(format!("{}: failed: {}", record.id, record.reason.as_ref()?));
        problems.extend(read.records.iter().filter_map(failed));
        if read.records.is_empty() {
            problems.push("nothing was measured".into());
        }
        let last_good = fs::read_to_string(config.folder.join(LAST_GOOD)).ok();
        let comparison = match &last_good {
            Some(good) => self.compared(&runs, good, &run, &read.records),
            None => Ok(None),
        };
        let comparison = comparison.unwrap_or_else(|error| {
            problems.push(format!("{error:#}"));
            None
        });
        if let Some(comparison) = &comparison {
            let slower = comparison.regressions(fail_above).into_iter();
            problems.extend(slower.map(|row| format!("{}: {:.1} % slower", row.id, (row.ratio - 1.0) * 100.0)));
            let larger = comparison.memory_regressions(fail_memory_above).into_iter();
            let rise = |ratio: Option<f64>| (ratio.unwrap_or(1.0) - 1.0) * 100.0;
            problems.extend(larger.map(|row| format!("{}: {:.1} % more memory", row.id, rise(row.memory_ratio))));
        }

        let good = problems.is_empty();
        let disturbed = report::disturbance(&read.records).filter(|_| !self.even_if_disturbed);
        let becomes_reference = good && disturbed.is_none();
        let first = read.records.first();
        let summary = Summary {
            run: &run,
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            machine: first.map(|record| record.machine.name.as_str()),
            commit: first.and_then(|record| record.software.commit.as_deref()),
            good,
            disturbed,
            compared_with: last_good,
            problems: &problems,
            benchmarks: read
                .records
                .iter()
                .filter_map(|record| Some(Figures { id: &record.id, metrics: record.measures.as_ref()?.metrics() }))
                .collect(),
        };
        fs::create_dir_all(runs.join(&run))?;
        let summary_file = runs.join(&run).join("summary.json");
        write_whole(&summary_file, serde_json::to_string_pretty(&summary)?.as_bytes())?;
        let text = text(&summary, comparison.as_ref());
        write_whole(&runs.join(&run).join("summary.md"), text.as_bytes())?;
        print!("{text}");
        println!("\nSummary: {}", summary_file.display());
        if becomes_reference {
            write_whole(&config.folder.join(LAST_GOOD), run.as_bytes())?;
        }
        prune(&runs, config.keep, &config.folder)?;
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn config(&self) -> Result<Config> {
        let name = self.config.display();
        let text =
            read_text_limited(&self.config, SETTINGS_MAX_BYTES).with_context(|| format!("{name} could not be read"))?;
        let config: Config = serde_json::from_str(&text).with_context(|| format!("{name}"))?;
        ensure!(!config.benchmarks.is_empty(), "{name}: benchmarks: list at least one");
        ensure!(config.keep > 0, "{name}: keep: it must be at least 1");
        let budgets = config.benchmarks.iter().filter_map(|benchmarks| benchmarks.budget_minutes);
        for budget in budgets.chain([config.budget_minutes]) {
            ensure!(budget > 0.0 && budget.is_finite(), "{name}: budget_minutes: {budget} is not a positive number");
        }
        for benchmarks in &config.benchmarks {
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
        Ok(config)
    }

    fn compared(&self, runs: &Path, good: &str, run: &str, records: &[Record]) -> Result<Option<Comparison>> {
        let file = runs.join(good).join(RECORDS);
        if records.is_empty() || !file.is_file() {
            return Ok(None);
        }
        let before = Side::from_records(good, &record::latest(&file)?.records);
        let now = Side::from_records(run, records);
        compare(&before, &now, Strictness { noise: 0.03, level: 0.05 }).map(Some)
    }
}

impl Benchmarks {
    /// # Errors
    /// Returns an error if `cargo bench` fails or takes too long. Records written before that are kept.
    fn run(&self, run: &str, folder: &Path, until: Instant) -> Result<()> {
        let name = format!("{} {}", self.bench, self.filter.as_deref().unwrap_or_default());
        let name = name.trim();
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "{name}: skipped: the budget for all benchmarks is used up");
        let budget = self.budget_minutes.map_or(left, |own| minutes(own).min(left));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["bench", "--bench", &self.bench]);
        if let Some(features) = &self.features {
            cargo.args(["--features", features]);
        }
        cargo.arg("--").args(&self.filter).stdin(Stdio::null());
        let here = std::env::current_dir()?;
        cargo.env("CANDLEPOWER_RUN", run).env("CANDLEPOWER_OUT", here.join(folder).join("runs"));
        cargo.env("CRITERION_HOME", here.join(folder).join("criterion"));
        for (key, value) in &self.settings {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            cargo.env(format!("{PREFIX}{}", key.to_uppercase()), value);
        }
        // A separate process group, so that the processes that cargo starts can be stopped too.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut cargo, 0);
        let mut child = cargo.spawn().context("cargo could not be started: is it installed?")?;
        let ends = Instant::now() + budget;
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{name}: cargo bench ended with {status}");
                return Ok(());
            }
            if Instant::now() >= ends {
                stop(&mut child);
                bail!("{name}: stopped after its budget of {:.1} minutes", budget.as_secs_f64() / 60.0);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn stop(child: &mut Child) {
    #[cfg(unix)]
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
    let _ = child.kill();
    let _ = child.wait();
}

fn minutes(minutes: f64) -> Duration {
    Duration::from_secs_f64(minutes * 60.0)
}

fn text(summary: &Summary, comparison: Option<&Comparison>) -> String {
    let verdict = if summary.good { "good" } else { "not good" };
    let mut text = format!("# Nightly {}: {verdict}\n\n", summary.run);
    for problem in summary.problems {
        text.push_str(&format!("- {problem}\n"));
    }
    if let Some(reason) = &summary.disturbed {
        text.push_str(&format!("\nThe run was disturbed and is no reference for later ones: {reason}.\n"));
    }
    match comparison {
        Some(comparison) => text.push_str(&format!("\n{}", comparison.text())),
        None => text.push_str("\nThere is no good run before it to compare with.\n"),
    }
    text
}

/// Removes the oldest runs beyond `keep`, but never the last good one.
fn prune(runs: &Path, keep: usize, folder: &Path) -> Result<()> {
    let good = fs::read_to_string(folder.join(LAST_GOOD)).unwrap_or_default();
    let mut all: Vec<PathBuf> = fs::read_dir(runs)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.sort();
    let surplus = all.len().saturating_sub(keep);
    for run in all.iter().take(surplus).filter(|run| !run.ends_with(&good)) {
        fs::remove_dir_all(run).with_context(|| format!("{} could not be removed", run.display()))?;
    }
    Ok(())
}
