//! `candlepower sandbox`: synthetic records for building dashboards.

use std::{fs, io::Write, process::ExitCode};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use clap::Args;

use crate::{files::Target, names::PathName, output, record::RECORDS, runner::sandbox::records, settings::Settings};

#[derive(Args)]
pub struct Sandbox {
    /// Name of the run
    #[arg(long, default_value = "sandbox")]
    run: PathName,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Number of records of each benchmark
    #[arg(long, default_value_t = 1)]
    times: usize,
}

/// Most records of each benchmark: a few gigabytes.
const MAX_TIMES: usize = 10_000;

impl Sandbox {
    pub fn run(self) -> Result<ExitCode> {
        ensure!(self.times <= MAX_TIMES, "--times={}: at most {MAX_TIMES} is supported", self.times);
        let settings = Settings::load(&[])?;
        let folder = settings.out.join(&self.run);
        let path = folder.join(RECORDS);
        ensure!(!path.exists(), "{} already exists: choose another run with --run", path.display());
        let write = || -> Result<usize> {
            fs::create_dir_all(&folder)?;
            let mut writer = std::io::BufWriter::new(Target::create(&path)?);
            let mut count = 0;
            for record in records(self.run.as_str(), self.seed, self.times, Utc::now())? {
                serde_json::to_writer(&mut writer, &record)?;
                writer.write_all(b"\n")?;
                count += 1;
            }
            writer.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()?;
            Ok(count)
        };
        let count = write().with_context(|| format!("{} could not be written", path.display()))?;
        output::print_line(format_args!("{count} synthetic records: {}", path.display()));
        Ok(ExitCode::SUCCESS)
    }
}
