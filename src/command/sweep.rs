//! `candlepower sweep`: measures series models over a grid of architectures and sizes.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{
    flags::{Flags, Select},
    report,
};
use crate::{
    config::Layers,
    files::{SETTINGS_MAX_BYTES, read_text_limited},
    names::PathName,
    output,
    record::{self, Guarded, Measures, Record, Status, columns, write_whole},
    report::{
        columns::{self as report_columns, LabelTemplate},
        sweep::{self, Ranking},
        table,
    },
    runner::{self, Progress, Session, Shard, State},
    scenario::SWEEP,
    settings::Settings,
    text,
    workload::series::{PRESETS, SeriesGrid, Translated, preset, translate},
};

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
    #[arg(long, conflicts_with = "config", help = format!("{} [default: smoke]", PRESETS.map(|(name, _)| name).join(", ")))]
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
    /// Labels of the results, of {architecture}, {model_dim}, {depth}, {horizon}, {window} and {conv_dilations} [default:
    /// {architecture},{model_dim},{depth},{horizon}]
    #[arg(long, value_name = "TEXT")]
    label_template: Option<LabelTemplate>,
    /// Also print the measures of each benchmark, as a line of JSON
    #[arg(long)]
    print_metrics: bool,
    /// Run part I of N of the combinations, as one of N machines
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
}

#[derive(Subcommand)]
enum Command {
    /// Summarise the results of sweeps per architecture
    Summarise(Summarise),
}

#[derive(Args)]
struct Summarise {
    /// Parquet, CSV or JSON files, or names of runs. Results of shards are merged
    #[arg(required = true)]
    files: Vec<String>,
    /// Column to rank by
    #[arg(long, default_value = "metric_val_loss")]
    metric: String,
    /// Rank the largest value first
    #[arg(long)]
    higher_is_better: bool,
    /// Another column to average, such as a return
    #[arg(long, value_name = "COLUMN")]
    profitability_metric: Option<String>,
    /// Number of best runs to list for each architecture, in Markdown
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// Format of the summary
    #[arg(long, value_enum, default_value_t = Format::Markdown)]
    format: Format,
    /// File to write the summary to as well
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print nothing
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Markdown,
    Csv,
    Json,
    Parquet,
}

impl Summarise {
    fn run(&self) -> Result<ExitCode> {
        let settings = Settings::load(&[])?;
        let mut rows = Vec::new();
        for file in &self.files {
            let is_run = !Path::new(file).is_file();
            let file = if is_run { report::records(Some(file), &settings.out)? } else { file.into() };
            rows.extend(sweep::read_rows(&file)?);
        }
        let Self { metric, higher_is_better, profitability_metric, top, .. } = self;
        let (metric, profitability_metric) = (metric.clone(), profitability_metric.clone());
        let ranking = Ranking { metric, higher_is_better: *higher_is_better, profitability_metric };
        let summaries = sweep::summarise(&rows, &ranking)?;
        let table = || sweep::summary_markdown(&summaries, &ranking, *top);
        let bytes = match self.format {
            Format::Markdown => table().into_bytes(),
            Format::Csv => columns::csv(&sweep::summary_columns(), &summaries)?,
            Format::Json => (serde_json::to_string_pretty(&summaries)? + "\n").into_bytes(),
            Format::Parquet => columns::parquet(&sweep::summary_columns(), &summaries)?,
        };
        if let Some(output) = &self.output {
            create_parent(output)?;
            write_whole(output, &bytes)?;
        }
        match (self.quiet, self.format) {
            (true, _) => {}
            // Parquet is not text.
            (false, Format::Parquet) => output::print(table()),
            (false, _) => output::print(String::from_utf8_lossy(&bytes)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Sweep {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(Command::Summarise(summarise)) = &self.command {
            return summarise.run();
        }
        runner::guarded(|guarded| self.measure(guarded))
    }

    fn measure(self, guarded: Option<Guarded>) -> Result<ExitCode> {
        let grid = self.grid()?;
        let of_grid = [
            ("device", grid.device.to_string()),
            ("dtype", grid.dtype.as_str().to_owned()),
            ("seed", grid.seed.to_string()),
        ];
        let settings = Settings::load(&[self.settings.given(), &of_grid].concat())?;
        let command = runner::own_command(std::env::args_os(), &settings);
        let mut session = Session::new(settings)?.with_command(command).with_guard(guarded)?;
        grid.combinations()?;
        let of_settings = session.settings().run.clone();
        let path = session.join(self.run.as_ref().map(PathName::as_str).or(of_settings.as_deref()))?;
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        output::report(format_args!("Run {name}. If it is interrupted, --run {name} resumes it."));
        let show = |progress: Progress| {
            show(&progress);
            if let (true, State::Done(Record { measures: Some(measures), .. })) = (self.print_metrics, &progress.state)
            {
                output::print_data(&json!({ "id": progress.id.to_string(), "measures": measures }).to_string());
            }
        };
        runner::sweep(&mut session, Some(&name), &grid, self.shard.unwrap_or(Shard::WHOLE), show)?;

        // Of a combination that failed and was tried again, the last record counts.
        let read = record::latest(&path)?;
        let records: Vec<Record> = read.records.into_iter().filter(|record| SWEEP.contains(&record.scenario)).collect();
        let parquet = columns::parquet(&report_columns::sweep(&self.label_template.unwrap_or_default()), &records)?;
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
            output::print_line(table.terminal());
        }
        output::print_line(format_args!("Parquet: {}", file.display()));
        output::print_line(format_args!("Log: {}", log.display()));
        for problem in read.problems {
            super::note(&problem);
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
                            super::note(&format!("{name}: skipped, not used by a sweep: {skipped}"));
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

/// Prints one line.
fn show(Progress { number, total, id, state }: &Progress) {
    let state = match state {
        State::DoneBefore => "done before".to_owned(),
        State::Step { step, steps, loss: Some(loss) } => format!("step {step} of {steps}, loss {loss:.6}"),
        State::Step { step, steps, loss: None } => format!("step {step} of {steps}"),
        State::Done(record) => outcome(record),
    };
    output::report(text::line(&format!("{number}/{total} {id}: {state}")));
}

fn outcome(record: &Record) -> String {
    match (&record.measures, &record.reason) {
        (Some(Measures::Sweep(measures)), _) => {
            format!("{:.1} ms/step, {:.0} samples/s", measures.step_p50_ms, measures.windows_per_s)
        }
        (_, reason) => format!("failed: {}", reason.as_deref().unwrap_or_default()),
    }
}
