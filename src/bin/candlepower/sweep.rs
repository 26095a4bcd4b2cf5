//! `candlepower sweep`: measures series models over a grid of architectures and sizes.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use candlepower::{
    config::Layers,
    names::PathName,
    record::{self, Measures, Record, columns, write_whole},
    report::{columns as report_columns, table},
    runner::{self, Progress, Session},
    scenario::SWEEP,
    settings::Settings,
    workload::series::{SeriesGrid, preset},
};
use clap::Args;

use crate::flags::{Flags, Select};

/// The settings that are not keys of the grid.
struct BesideGrid;

impl Select for BesideGrid {
    fn takes(key: &str) -> bool {
        ["threads", "out"].contains(&key)
    }
}

#[derive(Args)]
pub struct Sweep {
    /// smoke, baseline-cpu, hybrid-gpu, omni-gpu or growth [default: smoke]
    #[arg(long, conflicts_with = "config")]
    preset: Option<String>,
    /// YAML file; its keys are the flags below, with underscores
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    grid: Flags<SeriesGrid>,
    #[command(flatten)]
    settings: Flags<Settings, BesideGrid>,
    /// Name of a new run, or of an interrupted run to resume
    #[arg(long)]
    run: Option<PathName>,
}

impl Sweep {
    pub fn run(self) -> Result<ExitCode> {
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
        eprintln!("Run {name}. If it is interrupted, --run {name} resumes it.");
        runner::sweep(&mut session, Some(&name), &grid, show)?;

        let read = record::read(&path)?;
        let records: Vec<Record> = read.records.into_iter().filter(|record| SWEEP.contains(&record.scenario)).collect();
        let file = folder.join("sweep.parquet");
        write_whole(&file, &columns::parquet(&report_columns::sweep(), &records)?)?;
        for table in table::tables(records.iter()) {
            println!("{}", table.markdown());
        }
        println!("Parquet: {}", file.display());
        for problem in read.problems {
            crate::note(&problem);
        }
        let failed = records.iter().filter(|record| record.reason.is_some()).count();
        if failed > 0 {
            eprintln!("error: {failed} of {} combinations failed; see the table for the reasons", records.len());
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn grid(&self) -> Result<SeriesGrid> {
        let layers = Layers::new(&SeriesGrid::default());
        let layers = match &self.config {
            Some(file) => layers.yaml_file(file),
            None => {
                let name = self.preset.as_deref().unwrap_or("smoke");
                layers.yaml(name, preset(name)?)
            }
        };
        layers.flags(self.grid.given()).resolve()
    }
}

/// Prints one line per finished benchmark.
fn show(Progress { number, total, id, record }: Progress) {
    eprintln!("{number}/{total} {id}: {}", record.map_or("done before".to_owned(), outcome));
}

fn outcome(record: &Record) -> String {
    match (&record.measures, &record.reason) {
        (Some(Measures::Sweep(measures)), _) => {
            format!("{:.1} ms/step, {:.0} samples/s", measures.step_p50_ms, measures.windows_per_s)
        }
        (_, reason) => format!("failed: {}", reason.as_deref().unwrap_or_default()),
    }
}
