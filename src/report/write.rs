//! The folder of a report: tables, data files, plots and an HTML page. A report is written completely or not at all.

use std::{
    fmt::Write,
    fs,
    io::{Cursor, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::Serialize;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{
    columns::results,
    html,
    joined::{Joined, Row},
    plot::plots,
    table, training,
};
use crate::{
    names::PathName,
    record::{Conditions, Limits, Machine, Record, Setting, Software, columns, temporary_that_stays, write_whole},
    text,
};

/// File that gets a dated row for each report of a machine.
pub const LOG: &str = "GENERATION_LOG.md";

const LOG_HEAD: &str = "# Generation log\n\nThe `medium` scenario of each report, newest last.\n\n\
| date | model | variant | tok/s | decode tok/s | TTFT ms | candle | commit | report |\n\
|---|---|---|---:|---:|---:|---|---|---|\n";

/// Writes `<root>/<machine>/<utc>/` and a row of the machine's log, and returns the folder. The report links to Criterion's
/// report in `criterion_home`, if that exists.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(joined: &Joined, root: &Path, criterion_home: &Path, now: DateTime<Utc>) -> Result<PathBuf> {
    let first = joined.rows.first().context("a report needs at least one benchmark")?;
    let machine: PathName = first.record.machine.name.parse().context("the machine's name")?;
    let stamp = now.format("%Y%m%dT%H%M%SZ").to_string();
    let folder = root.join(&machine).join(&stamp);
    fs::create_dir_all(root.join(&machine)).with_context(|| format!("{} could not be created", root.display()))?;
    // The folder gets its name only when it is complete.
    let filling =
        temporary_that_stays(0o777).tempdir_in(root.join(&machine)).context("a folder could not be created")?;
    let what = if joined.is_sandbox { "Made-up figures, a sandbox of candlepower" } else { "candlepower" };
    let title = format!("{what} on {machine}, {}", now.format("%Y-%m-%d %H:%M UTC"));
    let plots = plots(&joined.rows)?;

    write_whole(&filling.path().join("README.md"), readme(&title, joined, first).as_bytes())?;
    write_whole(&filling.path().join("results.jsonl"), &jsonl(&joined.rows)?)?;
    write_whole(&filling.path().join("results.csv"), &columns::csv(&results(), &joined.rows)?)?;
    write_whole(&filling.path().join("results.parquet"), &columns::parquet(&results(), &joined.rows)?)?;
    let records: Vec<&Record> = joined.rows.iter().map(|row| &row.record).collect();
    for (name, content) in training::files(&records)? {
        write_whole(&filling.path().join(name), &content)?;
    }
    write_whole(&filling.path().join("environment.yaml"), environment(first)?.as_bytes())?;
    for plot in &plots {
        let file = filling.path().join(plot.file);
        write_whole(&file, plot.svg.as_bytes())?;
        write_whole(&file.with_extension("png"), &plot.png()?)?;
    }
    let link = link_to_criterion(root, criterion_home);
    let page = html::page(&title, joined, &plots, link.as_deref());
    write_whole(&filling.path().join("index.html"), page.as_bytes())?;

    fs::rename(filling.keep(), &folder).with_context(|| format!("{} could not be created", folder.display()))?;
    log(&root.join(&machine).join(LOG), joined, &stamp, now)?;
    Ok(folder)
}

/// Packs a report's folder into `<folder>.zip` and returns the file. The archive contains one folder of that name.
///
/// # Errors
/// When the folder cannot be read or the file cannot be written.
pub fn zip(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().context("a report's folder has a name")?.to_string_lossy().into_owned();
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let inside = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.start_file(format!("{name}/{inside}"), SimpleFileOptions::default())?;
        archive.write_all(&fs::read(&file).with_context(|| format!("{} could not be read", file.display()))?)?;
    }
    let file = folder.with_extension("zip");
    write_whole(&file, archive.finish()?.get_ref())?;
    Ok(file)
}

/// Link from a report's folder to Criterion's own report. It is always relative, because a kept report must not contain
/// paths of the machine that wrote it.
fn link_to_criterion(root: &Path, criterion_home: &Path) -> Option<String> {
    let index = criterion_home.join("report").join("index.html");
    let is_near = index.is_file() && index.is_relative() && root.is_relative();
    is_near.then(|| format!("{}{}", "../".repeat(root.components().count() + 2), index.display()))
}

fn readme(title: &str, joined: &Joined, first: &Row) -> String {
    let (machine, software) = (&first.record.machine, &first.record.software);
    let mut text = format!("# {}\n\n", text::markdown(title));
    let _ = writeln!(
        text,
        "{}, {} threads, {}; candle {}, {}, commit {}, run `{}`.\n",
        text::markdown(machine.gpu.as_ref().map_or(&machine.cpu, |gpu| &gpu.name)),
        machine.threads,
        text::markdown(&machine.os),
        text::markdown(&software.candle),
        text::markdown(&software.rustc),
        text::markdown(software.commit.as_deref().unwrap_or("unknown")),
        text::markdown(&first.record.run)
    );
    if let Some(limits) = &first.record.limits {
        let _ = writeln!(
            text,
            "Limits around the first benchmark: memory is read at {:.1} GB/s, matrices are multiplied at {:.0} GFLOP/s in {}. The notes below the tables give those of the others.\n",
            limits.read_bytes_per_s / 1e9,
            limits.matrix_flops_per_s / 1e9,
            limits.matrix_dtype
        );
    }
    text.push_str("Made by `cargo bench` and `candlepower report`; the settings are in `environment.yaml`.\n\n");
    for table in table::tables(joined.rows.iter().map(|row| &row.record)) {
        let _ = write!(text, "## {}\n\n{}\n", table.title, table.markdown());
    }
    let medians: Vec<Vec<String>> = joined
        .rows
        .iter()
        .filter_map(|row| {
            let estimate = row.criterion?;
            let ms = |ns: f64| format!("{:.3}", ns / 1e6);
            Some(vec![row.record.id.clone(), ms(estimate.median_ns), ms(estimate.low_ns), ms(estimate.high_ns)])
        })
        .collect();
    if !medians.is_empty() {
        let head = ["benchmark", "median ms", "95 % from", "to"].map(str::to_owned).to_vec();
        text.push_str("## Criterion's medians\n\n");
        text.push_str(&table::markdown(&[vec![head], medians].concat(), 1));
    }
    if !joined.problems.is_empty() {
        text.push_str("\n## Missing, unreadable or left out\n\n");
        for problem in &joined.problems {
            let _ = writeln!(text, "- {}", text::markdown(problem));
        }
    }
    text
}

fn jsonl(rows: &[Row]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut text, &row.record)?;
        text.push(b'\n');
    }
    Ok(text)
}

fn environment(first: &Row) -> Result<String> {
    #[derive(Serialize)]
    struct Environment<'a> {
        machine: &'a Machine,
        software: &'a Software,
        settings: &'a std::collections::BTreeMap<String, Setting>,
        limits: &'a Option<Limits>,
        conditions: &'a Option<Conditions>,
    }
    let record = &first.record;
    let environment = Environment {
        machine: &record.machine,
        software: &record.software,
        settings: &record.settings,
        limits: &record.limits,
        conditions: &record.conditions,
    };
    serde_saphyr::to_string(&environment).context("the environment could not be written")
}

fn log(file: &Path, joined: &Joined, stamp: &str, now: DateTime<Utc>) -> Result<()> {
    let mut text = fs::read_to_string(file).unwrap_or_else(|_| LOG_HEAD.to_owned());
    for row in joined.rows.iter().filter(|row| row.record.scenario == "medium") {
        let (Some(measures), record) = (row.generation(), &row.record) else { continue };
        let commit = record.software.commit.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "| {} | {}{} | {} | {} | {} | {} | {} | `{}` | [report]({stamp}/README.md) |",
            now.format("%Y-%m-%d"),
            text::markdown(&record.subject.model),
            if record.subject.synthetic_weights { " (synthetic)" } else { "" },
            text::markdown(&record.subject.variant().to_string()),
            table::number(Some(measures.tokens_per_s)),
            table::number(measures.decode_tokens_per_s),
            table::number(Some(measures.ttft_ms)),
            text::markdown(&record.software.candle),
            text::markdown(commit.get(..8).unwrap_or(commit)),
        );
    }
    write_whole(file, text.as_bytes())
}
