//! `candlepower sweep`: backbones for series over a grid of architectures and sizes.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use candlepower::{
    record::{self, Measures, Record, columns, write_whole},
    report::{columns as report_columns, table},
    runner::{self, Progress, Session},
    scenario::SWEEP,
    settings::Settings,
    workload::series::{SeriesGrid, Source},
};
use clap::Args;

#[derive(Args)]
pub struct Sweep {
    /// smoke, baseline-cpu, hybrid-gpu, omni-gpu or growth [default: smoke]
    #[arg(long, conflicts_with = "config")]
    preset: Option<String>,
    /// YAML file with the keys that are flags here
    #[arg(long)]
    config: Option<PathBuf>,
    /// hybrid_transformer, omni_mixture, state_space; several with commas between them, as in all lists
    #[arg(long)]
    architectures: Option<String>,
    #[arg(long)]
    model_dims: Option<String>,
    #[arg(long)]
    depths: Option<String>,
    /// Steps that are forecast
    #[arg(long)]
    horizons: Option<String>,
    /// Steps of the series that are seen
    #[arg(long)]
    windows: Option<String>,
    /// Windows a step
    #[arg(long)]
    batch: Option<String>,
    /// Features of the series
    #[arg(long)]
    features: Option<String>,
    /// Features that are forecast
    #[arg(long)]
    outputs: Option<String>,
    /// Heads of attention, instead of the architecture's own
    #[arg(long)]
    heads: Option<String>,
    /// cpu, cuda:N or metal
    #[arg(long)]
    accelerator: Option<String>,
    /// f32 or bf16
    #[arg(long)]
    dtype: Option<String>,
    /// Steps before those that count
    #[arg(long)]
    warmup_steps: Option<String>,
    /// Steps that count
    #[arg(long)]
    steps: Option<String>,
    #[arg(long)]
    learning_rate: Option<String>,
    #[arg(long)]
    seed: Option<String>,
    /// Go on with a run that was stopped, or give a new one this name
    #[arg(long)]
    run: Option<String>,
    /// Processor threads
    #[arg(long)]
    threads: Option<String>,
    /// Folder that records go into
    #[arg(long)]
    out: Option<String>,
}

impl Sweep {
    pub fn run(self) -> Result<ExitCode> {
        let grid = self.grid()?;
        let mut settings = vec![
            ("device", grid.accelerator.to_string()),
            ("dtype", grid.dtype.as_str().to_owned()),
            ("seed", grid.seed.to_string()),
        ];
        settings.extend(self.threads.map(|threads| ("threads", threads)));
        settings.extend(self.out.map(|out| ("out", out)));
        let mut session = Session::new(Settings::load(&settings)?)?;
        grid.combinations()?;
        let path = session.join(self.run.as_deref())?;
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
            eprintln!("note: {problem}");
        }
        let failed = records.iter().filter(|record| record.reason.is_some()).count();
        if failed > 0 {
            eprintln!("error: {failed} of {} combinations failed; the table says why", records.len());
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn grid(&self) -> Result<SeriesGrid> {
        let flags = [
            ("architectures", &self.architectures),
            ("model-dims", &self.model_dims),
            ("depths", &self.depths),
            ("horizons", &self.horizons),
            ("windows", &self.windows),
            ("batch", &self.batch),
            ("features", &self.features),
            ("outputs", &self.outputs),
            ("heads", &self.heads),
            ("accelerator", &self.accelerator),
            ("dtype", &self.dtype),
            ("warmup-steps", &self.warmup_steps),
            ("steps", &self.steps),
            ("learning-rate", &self.learning_rate),
            ("seed", &self.seed),
        ];
        let flags: Vec<_> = flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        let base = match &self.config {
            Some(file) => SeriesGrid::default().apply(Source::File(file))?,
            None => SeriesGrid::default().apply(Source::Preset(self.preset.as_deref().unwrap_or("smoke")))?,
        };
        base.apply(Source::Flags(&flags))
    }
}

/// Prints one line for a benchmark that ended.
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
