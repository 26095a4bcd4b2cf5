//! The records of scores, and the exit codes of the commands that make them.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Error, Result};

use crate::{
    output,
    record::{self, Measures, Record, Status},
    runner::Session,
    workload::{Measured, Outcome},
};

/// The record of a score, which does not depend on the speed of the machine.
pub fn record(
    session: &Session,
    scenario: &str,
    about: record::Subject,
    measures: Measures,
    mut unmeasured: BTreeMap<String, String>,
    deviates: Option<String>,
) -> Record {
    for field in ["limits", "conditions"] {
        unmeasured.insert(field.into(), "a score does not depend on the speed of the machine".into());
    }
    let outcome = Outcome { measured: Ok(Measured { measures, unmeasured }), deviates };
    session.record(scenario, about, outcome, None)
}

/// Keeps the record of a score that failed, and prints the reason.
pub fn failed(session: &mut Session, scenario: &str, about: record::Subject, error: Error) -> Result<Record> {
    let mut record = session.record(scenario, about, Outcome::failed(error), None);
    session.append(&mut record)?;
    output::report(format_args!("error: {}: {}", record.id, record.reason.as_deref().unwrap_or_default()));
    Ok(record)
}

/// Ends a command that has scored nothing: its error is that of the first score. Without one, each score ended an earlier
/// process of the guard, which has said so.
pub fn none_scored(errors: impl IntoIterator<Item = Error>) -> Result<ExitCode> {
    errors.into_iter().next().map_or(Ok(ExitCode::FAILURE), Err)
}

/// The exit code of a command with these records.
pub fn exit_code(records: &[Record]) -> ExitCode {
    let has_failed = records.iter().any(|record| record.status == Status::Failed);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
