//! The folder of a report: tables, data, plots and a page, written whole or not at all.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    html,
    joined::{Joined, Row},
    plot::plots,
    table,
};
use crate::record::{Conditions, Limits, Machine, Setting, Software, temporary_that_stays, write_whole};

/// File of the dated rows, one for each report of a machine.
pub const LOG: &str = "GENERATION_LOG.md";

const LOG_HEAD: &str = "# Generation log\n\nThe `medium` scenario of each report, newest last.\n\n\
| date | model | variant | tok/s | decode tok/s | TTFT ms | candle | commit | report |\n\
|---|---|---|---:|---:|---:|---|---|---|\n";

/// Writes `<root>/<machine>/<utc>/` and a row of the machine's log. `criterion_home` is linked to where it is there.
/// Returns the folder.
///
/// # Errors
/// When the folder can't be written to.
pub fn write(joined: &Joined, root: &Path, criterion_home: &Path, now: DateTime<Utc>) -> Result<PathBuf> {
    let first = joined.rows.first().context("a report needs at least one benchmark")?;
    let (machine, stamp) = (&first.record.machine.name, now.format("%Y%m%dT%H%M%SZ").to_string());
    let folder = root.join(machine).join(&stamp);
    fs::create_dir_all(root.join(machine)).with_context(|| format!("{} could not be made", root.display()))?;
    // Filled under another name, so that a report that is there is whole.
    let filling = temporary_that_stays(0o777).tempdir_in(root.join(machine)).context("a folder could not be made")?;
    let title = format!("candlepower on {machine}, {}", now.format("%Y-%m-%d %H:%M UTC"));
    let plots = plots(&joined.rows)?;

    write_whole(&filling.path().join("README.md"), readme(&title, joined, first).as_bytes())?;
    write_whole(&filling.path().join("results.jsonl"), &jsonl(&joined.rows)?)?;
    write_whole(&filling.path().join("results.csv"), &csv(&joined.rows)?)?;
    write_whole(&filling.path().join("environment.yaml"), environment(first)?.as_bytes())?;
    for plot in &plots {
        write_whole(&filling.path().join(plot.file), plot.svg.as_bytes())?;
    }
    let link = link_to_criterion(root, criterion_home);
    let page = html::page(&title, joined, &plots, link.as_deref());
    write_whole(&filling.path().join("index.html"), page.as_bytes())?;

    fs::rename(filling.keep(), &folder).with_context(|| format!("{} could not be made", folder.display()))?;
    log(&root.join(machine).join(LOG), joined, &stamp, now)?;
    Ok(folder)
}

/// Criterion's own report as seen from a report's folder. Only a relative way there: a report that is kept must not
/// carry the paths of the machine that made it.
fn link_to_criterion(root: &Path, criterion_home: &Path) -> Option<String> {
    let index = criterion_home.join("report").join("index.html");
    let is_near = index.is_file() && index.is_relative() && root.is_relative();
    is_near.then(|| format!("{}{}", "../".repeat(root.components().count() + 2), index.display()))
}

fn readme(title: &str, joined: &Joined, first: &Row) -> String {
    let (machine, software) = (&first.record.machine, &first.record.software);
    let mut text = format!("# {title}\n\n");
    let _ = writeln!(
        text,
        "{}, {} threads, {}; candle {}, {}, commit {}, run `{}`.\n",
        machine.gpu.as_ref().map_or(&machine.cpu, |gpu| &gpu.name),
        machine.threads,
        machine.os,
        software.candle,
        software.rustc,
        software.commit.as_deref().unwrap_or("unknown"),
        first.record.run
    );
    if let Some(limits) = &first.record.limits {
        let _ = writeln!(
            text,
            "Limits measured in the process: memory is read at {:.1} GB/s, matrices are multiplied at {:.0} GFLOP/s in {}.\n",
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
            let _ = writeln!(text, "- {problem}");
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

/// One benchmark as a line of a table for other tools. Units are in the names; what is missing is empty.
#[derive(Default, Serialize)]
struct Flat<'a> {
    run: &'a str,
    at: &'a str,
    id: &'a str,
    scenario: &'a str,
    model: &'a str,
    engine: &'a str,
    dtype: &'a str,
    device: &'a str,
    source: &'a str,
    synthetic_weights: bool,
    parameters: Option<u64>,
    weight_bytes: Option<u64>,
    reason: Option<&'a str>,
    deviates: Option<&'a str>,
    criterion_median_ns: Option<f64>,
    criterion_median_low_ns: Option<f64>,
    criterion_median_high_ns: Option<f64>,
    prompt_tokens: Option<usize>,
    new_tokens: Option<usize>,
    samples: Option<usize>,
    total_ms: Option<f64>,
    ttft_ms: Option<f64>,
    itl_p50_ms: Option<f64>,
    itl_p95_ms: Option<f64>,
    itl_p99_ms: Option<f64>,
    tpot_ms: Option<f64>,
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    tokens_per_s: Option<f64>,
    sampling_share: Option<f64>,
    cache_used_bytes: Option<u64>,
    cache_allocated_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    mbu: Option<f64>,
    mfu: Option<f64>,
    joules_per_token: Option<f64>,
    token_digest: Option<&'a str>,
    read_bytes_per_s: Option<f64>,
    matrix_flops_per_s: Option<f64>,
    other_cpu_share: Option<f64>,
    machine: &'a str,
    candle: &'a str,
    commit: Option<&'a str>,
}

impl<'a> Flat<'a> {
    fn of(row: &'a Row) -> Self {
        let record = &row.record;
        let common = Self {
            run: &record.run,
            at: &record.at,
            id: &record.id,
            scenario: &record.scenario,
            model: &record.subject.model,
            engine: &record.subject.engine,
            dtype: &record.subject.dtype,
            device: &record.subject.device,
            source: &record.subject.source,
            synthetic_weights: record.subject.synthetic_weights,
            parameters: record.subject.parameters,
            weight_bytes: record.subject.weight_bytes,
            reason: record.reason.as_deref(),
            deviates: record.deviates.as_deref(),
            criterion_median_ns: row.criterion.map(|estimate| estimate.median_ns),
            criterion_median_low_ns: row.criterion.map(|estimate| estimate.low_ns),
            criterion_median_high_ns: row.criterion.map(|estimate| estimate.high_ns),
            read_bytes_per_s: record.limits.as_ref().map(|limits| limits.read_bytes_per_s),
            matrix_flops_per_s: record.limits.as_ref().map(|limits| limits.matrix_flops_per_s),
            other_cpu_share: record.conditions.as_ref().and_then(|conditions| conditions.other_cpu_share),
            machine: &record.machine.name,
            candle: &record.software.candle,
            commit: record.software.commit.as_deref(),
            ..Self::default()
        };
        let Some(measures) = row.generation() else { return common };
        Self {
            prompt_tokens: Some(measures.prompt_tokens),
            new_tokens: Some(measures.new_tokens),
            samples: Some(measures.samples),
            total_ms: Some(measures.total_ms),
            ttft_ms: Some(measures.ttft_ms),
            itl_p50_ms: measures.itl_p50_ms,
            itl_p95_ms: measures.itl_p95_ms,
            itl_p99_ms: measures.itl_p99_ms,
            tpot_ms: measures.tpot_ms,
            prefill_tokens_per_s: Some(measures.prefill_tokens_per_s),
            decode_tokens_per_s: measures.decode_tokens_per_s,
            tokens_per_s: Some(measures.tokens_per_s),
            sampling_share: Some(measures.sampling_share),
            cache_used_bytes: Some(measures.cache_used_bytes),
            cache_allocated_bytes: Some(measures.cache_allocated_bytes),
            peak_bytes: measures.peak_bytes,
            mbu: measures.mbu,
            mfu: measures.mfu,
            joules_per_token: measures.joules_per_token,
            token_digest: Some(&measures.token_digest),
            ..common
        }
    }
}

fn csv(rows: &[Row]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(Flat::of(row))?;
    }
    writer.into_inner().context("the table could not be written")
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
            record.subject.model,
            if record.subject.synthetic_weights { " (synthetic)" } else { "" },
            record.id.rsplit('/').next().unwrap_or_default(),
            table::number(Some(measures.tokens_per_s)),
            table::number(measures.decode_tokens_per_s),
            table::number(Some(measures.ttft_ms)),
            record.software.candle,
            commit.get(..8).unwrap_or(commit),
        );
    }
    write_whole(file, text.as_bytes())
}
