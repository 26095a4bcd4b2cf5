//! `candlepower memory -- COMMAND` and `candlepower power -- COMMAND`: any command, measured while it runs.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use chrono::{SecondsFormat, Utc};
use clap::Args;

use super::process::{self, Signals};
use crate::{
    files,
    measure::machine,
    output,
    record::write_whole,
    runner, text,
    wrap::{Meter, Ran, Report, SCHEMA},
};

/// Exit codes of shells for a command that was not found, and for one that cannot be started.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;

#[derive(Args)]
pub struct Wrap {
    /// File for the result as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for an SVG plot over time
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Milliseconds from one reading of the counters to the next, at most a minute
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
    /// The command and its arguments, after --
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Wrap {
    /// Runs the command with the streams of this one, prints the result to standard error, and ends as the command did.
    pub fn run<M: Meter>(self) -> Result<ExitCode> {
        for file in [&self.json, &self.plot].into_iter().flatten() {
            files::check_target(file).with_context(|| format!("{} can't be written", file.display()))?;
        }
        let [program, arguments @ ..] = self.command.as_slice() else { bail!("no command is given; see --help") };
        let signals = Signals::catch()?;
        let machine = machine::machine(0, None).name;
        let mut meter = M::start();
        let started_at = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let started = Instant::now();
        let mut child = match Command::new(program).args(arguments).spawn() {
            Ok(child) => child,
            Err(error) => {
                let (reason, code) = match error.kind() {
                    ErrorKind::NotFound => ("command not found".to_owned(), NOT_FOUND),
                    _ => (format!("it could not be started: {error}"), NOT_STARTED),
                };
                output::report(format_args!("error: {}: {reason}", text::line(&program.to_string_lossy())));
                return Ok(ExitCode::from(code));
            }
        };
        let process = child.id();
        let mut looks = 0;
        let status = process::accompany(&mut child, Duration::from_millis(self.interval_ms), &signals, || {
            meter.look(process, started.elapsed().as_secs_f64());
            looks += 1;
        })?;
        let duration_s = started.elapsed().as_secs_f64();
        let ran = Ran {
            schema: SCHEMA,
            candlepower: env!("CARGO_PKG_VERSION").into(),
            machine,
            command: self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            started_at,
            duration_s,
            exit_code: status.code(),
            signal: runner::signal(status),
            interval_ms: self.interval_ms,
            looks,
        };
        let report = meter.end(ran);
        output::report(report.text());
        let code = process::exit_code_of(status);
        match self.keep(&report) {
            Err(error) if !status.success() => {
                output::report(format_args!("error: {error:#}"));
                Ok(code)
            }
            kept => kept.map(|()| code),
        }
    }

    fn keep(&self, report: &impl Report) -> Result<()> {
        if let Some(file) = &self.json {
            write_whole(file, (serde_json::to_string(report)? + "\n").as_bytes())?;
        }
        if let Some(file) = &self.plot {
            match report.plot() {
                Some(svg) => write_whole(file, svg.as_bytes())?,
                None => super::note("no plot was written, because nothing was measured"),
            }
        }
        Ok(())
    }
}
