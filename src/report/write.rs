//! The folder of a report: tables, data files, plots and an HTML page. A report is written completely or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    io::{Cursor, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde::Serialize;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{
    columns::results,
    html,
    joined::{Joined, Row},
    plot::plots,
    readme::readme,
    table,
    trained::Trained,
    training,
};
use crate::{
    files::{self, is_temporary, read_limited, temporary_that_stays},
    names::PathName,
    record::{self, Conditions, Limits, Machine, Record, Setting, Software, columns, write_whole},
    scenario::GENERATION,
    text,
};

/// File that gets a dated row for each report of a machine.
pub const LOG: &str = "GENERATION_LOG.md";

const LOG_MAX_BYTES: u64 = 1 << 30;

const LOG_HEAD: &str = "# Generation log\n";

/// Folder of the files of trainings in a report.
pub const TRAININGS: &str = "trainings";

/// Columns of a table in the README and on the page: as many as a window of 1280 pixels shows.
const MOST_COLUMNS: usize = 10;

/// Writes `<root>/<machine>/<utc>/` and a row of the machine's log, and returns the folder.
///
/// # Errors
/// When there is neither a benchmark nor a training that names its machine, two trainings have one name, or the folder cannot
/// be written to.
pub fn write(joined: &Joined, trained: &[Trained], root: &Path, now: DateTime<Utc>) -> Result<PathBuf> {
    let of_rows = joined.rows.iter().map(|row| &row.record.machine);
    let machine = of_rows.chain(trained.iter().filter_map(|trained| trained.machine.as_ref())).next();
    let machine = machine.context("a report needs a benchmark, or a training whose metrics.json names its machine")?;
    let machine: PathName = machine.name.parse().context("the machine's name")?;
    let reports = root.join(&machine);
    fs::create_dir_all(&reports).with_context(|| format!("{} could not be created", root.display()))?;
    files::remove_abandoned(&reports);
    // The folder gets its name only when it is complete.
    let filling = temporary_that_stays(0o777).tempdir_in(&reports).context("a folder could not be created")?;
    let _held = files::hold(filling.path());
    let what = if joined.is_sandbox { "Made-up figures, a sandbox of candlepower" } else { "candlepower" };
    let title = format!("{what} on {machine}, {}", now.format("%Y-%m-%d %H:%M UTC"));
    let plots = plots(&joined.rows);
    let tables = table::narrow_tables(joined.rows.iter().map(|row| &row.record), MOST_COLUMNS);

    let records: Vec<&Record> = joined.rows.iter().map(|row| &row.record).collect();
    let mut data = Vec::new();
    if let Some(first) = joined.rows.first() {
        data.push(("results.csv", columns::csv(&results(), &joined.rows)?));
        data.push(("results.parquet", columns::parquet(&results(), &joined.rows)?));
        data.push(("results.jsonl", jsonl(&joined.rows)?));
        data.push(("environment.yaml", environment(joined, first)?.into_bytes()));
        data.extend(training::files(&records)?);
    }
    for (name, content) in &data {
        write_whole(&filling.path().join(name), content)?;
    }
    for plot in plots.iter().chain(joined.sections.iter().map(|section| &section.plot)) {
        let file = filling.path().join(plot.file);
        write_whole(&file, plot.file_svg().as_bytes())?;
        write_whole(&file.with_extension("png"), &plot.png()?)?;
    }
    for (number, one) in trained.iter().enumerate() {
        ensure!(
            trained[..number].iter().all(|other| other.name != one.name),
            "two folders of trainings are named {}: make a report of each, or rename one",
            one.name
        );
        for (below, content) in &one.files {
            let file = filling.path().join(TRAININGS).join(&one.name).join(below);
            file.parent().map_or(Ok(()), fs::create_dir_all).context("a folder could not be created")?;
            write_whole(&file, content)?;
        }
    }
    write_whole(&filling.path().join("README.md"), readme(&title, joined, trained, &plots, &tables).as_bytes())?;
    let files: Vec<&str> = data.iter().map(|(name, _)| *name).collect();
    let page = html::page(&title, joined, trained, &plots, &tables, &files);
    write_whole(&filling.path().join("index.html"), page.as_bytes())?;

    let folder = named_by_time(filling.keep(), &reports, now)?;
    log(&reports, joined, &folder, now)?;
    Ok(folder)
}

/// Gives a complete report its name: the time, and a number if an earlier report has the same second.
fn named_by_time(filled: PathBuf, reports: &Path, now: DateTime<Utc>) -> Result<PathBuf> {
    let stamp = now.format("%Y%m%dT%H%M%SZ");
    let mut folder = reports.join(stamp.to_string());
    for number in 2.. {
        match files::rename(&filled, &folder) {
            // The name is taken. A folder that is not empty stays as it is.
            Err(_) if folder.exists() => folder = reports.join(format!("{stamp}-{number}")),
            renamed => {
                renamed.with_context(|| format!("{} could not be created", folder.display()))?;
                break;
            }
        }
    }
    Ok(folder)
}

/// Packs a report's folder into `<folder>.zip` and returns the file. The archive contains one folder of that name.
///
/// # Errors
/// When the folder cannot be read or the file cannot be written.
pub fn zip(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().context("a report's folder has a name")?.to_string_lossy().into_owned();
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for file in files_below(folder)? {
        let inside: Vec<_> = file.strip_prefix(folder)?.iter().map(|part| part.to_string_lossy()).collect();
        archive.start_file(format!("{name}/{}", inside.join("/")), SimpleFileOptions::default())?;
        archive.write_all(&fs::read(&file).with_context(|| format!("{} could not be read", file.display()))?)?;
    }
    let file = folder.with_extension("zip");
    write_whole(&file, archive.finish()?.get_ref())?;
    Ok(file)
}

/// All files of a report, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

fn jsonl(rows: &[Row]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut text, &row.record)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// Load on the machine over all benchmarks of a report.
#[derive(Serialize)]
struct Load<'a> {
    /// Benchmarks during which the load was observed.
    observed_benchmarks: usize,
    /// The largest share of the machine's CPU time that other processes used during a benchmark.
    largest_other_cpu_share: Option<f64>,
    /// The largest share of the machine's CPU time that a hypervisor gave to other guests during a benchmark.
    largest_stolen_cpu_share: Option<f64>,
    /// Reasons to doubt a result, by benchmark.
    doubts: BTreeMap<&'a str, &'a [String]>,
}

impl<'a> Load<'a> {
    fn new(rows: &'a [Row]) -> Self {
        let observed = || rows.iter().filter_map(|row| Some((row.record.id.as_str(), row.record.conditions.as_ref()?)));
        let largest = |share: fn(&Conditions) -> Option<f64>| {
            observed().filter_map(|(_, conditions)| share(conditions)).max_by(f64::total_cmp)
        };
        Self {
            observed_benchmarks: observed().count(),
            largest_other_cpu_share: largest(|conditions| conditions.other_cpu_share),
            largest_stolen_cpu_share: largest(|conditions| conditions.stolen_cpu_share),
            doubts: observed()
                .filter(|(_, conditions)| !conditions.doubts.is_empty())
                .map(|(id, conditions)| (id, conditions.doubts.as_slice()))
                .collect(),
        }
    }
}

fn environment(joined: &Joined, first: &Row) -> Result<String> {
    #[derive(Serialize)]
    struct Environment<'a> {
        machine: &'a Machine,
        software: &'a Software,
        settings: &'a BTreeMap<String, Setting>,
        limits: &'a Option<Limits>,
        conditions: Load<'a>,
    }
    let record = &first.record;
    let environment = Environment {
        machine: &record.machine,
        software: &record.software,
        settings: &record.settings,
        limits: &record.limits,
        conditions: Load::new(&joined.rows),
    };
    let yaml = serde_saphyr::to_string(&environment).context("the environment could not be written")?;
    Ok(text::json(&yaml))
}

/// The head of the log's table: a row for each run, model and variant, and a column for each scenario.
fn log_table() -> String {
    let scenarios: String = GENERATION.iter().map(|scenario| format!(" {} |", scenario.key)).collect();
    let rule = "---:|".repeat(GENERATION.len());
    format!(
        "\nGenerated tokens per second of each scenario, end to end, newest last.\n\n\
         | date | model | variant |{scenarios} candle | commit | report |\n|---|---|---|{rule}---|---|---|\n"
    )
}

/// Adds the report's rows to the machine's log. Rows of an earlier report of the same records give way to them. Other lines
/// stay as they are, in any encoding.
fn log(reports: &Path, joined: &Joined, folder: &Path, now: DateTime<Utc>) -> Result<()> {
    let file = reports.join(LOG);
    let stamp = |folder: &Path| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let link = |folder: &Path| format!("[report]({}/README.md)", stamp(folder));
    let earlier: Vec<String> = same_records(reports, joined, folder).iter().map(|folder| link(folder)).collect();
    let known = match read_limited(&file, LOG_MAX_BYTES) {
        Ok(known) => known,
        Err(error) if error.kind() == ErrorKind::NotFound => LOG_HEAD.as_bytes().to_vec(),
        Err(error) => return Err(error).with_context(|| format!("{} could not be read", file.display())),
    };
    let stays = |line: &&[u8]| !earlier.iter().any(|link| String::from_utf8_lossy(line).contains(link));
    let mut log = known.split_inclusive(|byte| *byte == b'\n').filter(stays).collect::<Vec<_>>().concat();
    let mut text = String::new();
    if log.last().is_some_and(|last| *last != b'\n') {
        text.push('\n');
    }
    let mut subjects: BTreeMap<_, (&Record, BTreeMap<&str, f64>)> = BTreeMap::new();
    for row in &joined.rows {
        let (Some(measures), record) = (row.generation(), &row.record) else { continue };
        if GENERATION.iter().any(|scenario| scenario.key == record.scenario) {
            let subject = (&record.run, &record.subject.model, record.subject.variant().to_string());
            let (_, rates) = subjects.entry(subject).or_insert_with(|| (record, BTreeMap::new()));
            rates.insert(&record.scenario, measures.tokens_per_s);
        }
    }
    let table = log_table();
    if !subjects.is_empty() && !log.windows(table.len()).any(|part| part == table.as_bytes()) {
        text.push_str(&table);
    }
    for ((_, _, variant), (record, rates)) in subjects {
        let rates: String = GENERATION
            .iter()
            .map(|scenario| format!(" {} |", table::number(rates.get(scenario.key).copied())))
            .collect();
        let commit = record.software.commit.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "| {} | {}{} | {} |{rates} {} | `{}` | {} |",
            now.format("%Y-%m-%d"),
            text::markdown(&record.subject.model),
            if record.subject.synthetic_weights { " (synthetic)" } else { "" },
            text::markdown(&variant),
            text::markdown(&record.software.candle),
            text::markdown(commit.get(..8).unwrap_or(commit)),
            link(folder),
        );
    }
    log.extend(text.as_bytes());
    write_whole(&file, &log)
}

/// The other reports of the machine that contain one of these records. A record is known by its run, its id and its time.
fn same_records(reports: &Path, joined: &Joined, folder: &Path) -> Vec<PathBuf> {
    let key = |record: &Record| (record.run.clone(), record.id.clone(), record.at.clone());
    let own: BTreeSet<_> = joined.rows.iter().map(|row| key(&row.record)).collect();
    let others = fs::read_dir(reports).into_iter().flatten().flatten().map(|entry| entry.path());
    let others = others.filter(|other| other != folder && !is_temporary(other));
    let has_one = |other: &PathBuf| {
        let read = record::latest(&other.join("results.jsonl"));
        read.is_ok_and(|read| read.records.iter().any(|record| own.contains(&key(record))))
    };
    others.filter(has_one).collect()
}
