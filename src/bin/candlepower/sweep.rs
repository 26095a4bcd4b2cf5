//! `candlepower sweep`: measures series models over a grid of architectures and sizes.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use candlepower::{
    config::Layers,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    names::PathName,
    output,
    record::{self, Measures, Record, Status, columns, write_whole},
    report::{columns as report_columns, sweep, table},
    runner::{self, Progress, Session, Shard},
    scenario::SWEEP,
    settings::Settings,
    text,
    workload::series::{SeriesGrid, Translated, preset, translate},
};
use clap::{Args, Subcommand};

use crate::flags::{Flags, Select};

/// The settings that are not keys of the grid.
struct BesideGrid;

impl Select for BesideGrid {
    fn takes(key: &str) -> bool {
        ["threads", "out"].contains(&key)
    }
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Sweep {
    #[command(subcommand)]
    command: Option<Command>,
    /// smoke, baseline-cpu, hybrid-gpu, omni-gpu or growth [default: smoke]
    #[arg(long, conflicts_with = "config")]
    preset: Option<String>,
    /// YAML file; its keys are the flags below, with underscores, or the sections data, model, optimizer and trainer
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    grid: Flags<SeriesGrid>,
    #[command(flatten)]
    settings: Flags<Settings, BesideGrid>,
    /// Name of a new run, or of an interrupted run to resume
    #[arg(long)]
    run: Option<PathName>,
    /// Parquet file of the results, in addition to that of the run
    #[arg(long, value_name = "FILE.parquet")]
    output: Option<PathBuf>,
    /// Markdown file to append the table of results to [default: sweep.md beside the Parquet file]
    #[arg(long, value_name = "FILE.md")]
    log: Option<PathBuf>,
    /// Run part I of N of the combinations, as one of N machines
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
}

#[derive(Subcommand)]
enum Command {
    /// Summarise the results of sweeps per architecture
    Summarise {
        /// Parquet, CSV or JSON files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Column to rank by; lower is better
        #[arg(long, default_value = "metric_val_loss")]
        metric: String,
        /// Number of best runs to list for each architecture
        #[arg(long, default_value_t = 3)]
        top: usize,
    },
}

impl Sweep {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(Command::Summarise { files, metric, top }) = &self.command {
            let rows = files.iter().map(|file| sweep::read_rows(file)).collect::<Result<Vec<_>>>()?.concat();
            output::print(sweep::summarise(&rows, metric, *top)?);
            return Ok(ExitCode::SUCCESS);
        }
        let grid = self.grid()?;
        let of_grid = [
            ("device", grid.device.to_string()),
            ("dtype", grid.dtype.as_str().to_owned()),
            ("seed", grid.seed.to_string()),
        ];
        let mut session = Session::new(Settings::load(&[self.settings.given(), &of_grid].concat())?)?;
        grid.combinations()?;
        let path = session.join(self.run.as_ref().map(PathName::as_str))?;
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        output::report(format_args!("Run {name}. If it is interrupted, --run {name} resumes it."));
        runner::sweep(&mut session, Some(&name), &grid, self.shard.unwrap_or(Shard::WHOLE), show)?;

        // Of a combination that failed and was tried again, the last record counts.
        let read = record::latest(&path)?;
        let records: Vec<Record> = read.records.into_iter().filter(|record| SWEEP.contains(&record.scenario)).collect();
        let parquet = columns::parquet(&report_columns::sweep(), &records)?;
        let mut file = folder.join("sweep.parquet");
        write_whole(&file, &parquet)?;
        if let Some(output) = self.output {
            create_parent(&output)?;
            write_whole(&output, &parquet)?;
            file = output;
        }
        let log = self.log.unwrap_or_else(|| file.with_file_name("sweep.md"));
        let machine = records.first().map_or("", |record| record.machine.name.as_str());
        append(&log, &sweep::log_entry(&format!("{name} on {machine}"), &records))?;
        for table in table::tables(records.iter()) {
            output::print_line(table.markdown());
        }
        output::print_line(format_args!("Parquet: {}", file.display()));
        output::print_line(format_args!("Log: {}", log.display()));
        for problem in read.problems {
            crate::note(&problem);
        }
        let failed = records.iter().filter(|record| record.status == Status::Failed).count();
        if failed > 0 {
            let all = records.len();
            output::report(format_args!("error: {failed} of {all} combinations failed; see the table for the reasons"));
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn grid(&self) -> Result<SeriesGrid> {
        let layers = Layers::new(&SeriesGrid::default());
        let layers = match &self.config {
            Some(file) => {
                let text = read_text_limited(file, SETTINGS_MAX_BYTES).unwrap_or_default();
                match translate(&text).with_context(|| file.display().to_string())? {
                    Some(Translated { yaml, skipped }) => {
                        if !skipped.is_empty() {
                            let (name, skipped) = (file.display(), skipped.join(", "));
                            crate::note(&format!("{name}: skipped, not used by a sweep: {skipped}"));
                        }
                        layers.yaml(&file.display().to_string(), &yaml)
                    }
                    None => layers.yaml_file(file),
                }
            }
            None => {
                let name = self.preset.as_deref().unwrap_or("smoke");
                layers.yaml(name, preset(name)?)
            }
        };
        layers.flags(self.grid.given()).resolve()
    }
}

fn create_parent(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), fs::create_dir_all)
        .with_context(|| format!("the folder of {} cannot be made", file.display()))
}

fn append(file: &Path, text: &str) -> Result<()> {
    create_parent(file)?;
    let opened = fs::OpenOptions::new().create(true).append(true).open(file);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} cannot be written", file.display()))
}

/// Prints one line per finished benchmark.
fn show(Progress { number, total, id, record }: Progress) {
    let outcome = record.map_or("done before".to_owned(), outcome);
    output::report(text::line(&format!("{number}/{total} {id}: {outcome}")));
}

fn outcome(record: &Record) -> String {
    match (&record.measures, &record.reason) {
        (Some(Measures::Sweep(measures)), _) => {
            format!("{:.1} ms/step, {:.0} samples/s", measures.step_p50_ms, measures.windows_per_s)
        }
        (_, reason) => format!("failed: {}", reason.as_deref().unwrap_or_default()),
    }
}
