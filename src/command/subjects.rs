//! The models that a command scores, each on its engines, and the records of their scores.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Error, Result, bail};

use crate::{
    device::Precision,
    model::{self, Engine, ModelSpec},
    output,
    record::{self, Measures, Record, Status},
    runner::{Candidate, Session},
    settings::{EngineChoice, Settings},
    workload::{Measured, Outcome},
};

/// A model on an engine in a dtype, before it is loaded.
pub struct Named<'a> {
    candidate: Candidate,
    settings: &'a Settings,
    spec: &'a ModelSpec,
    engine: Engine,
    dtype: Precision,
}

/// The models of the settings in every dtype, each on the engines that they name, or on one engine if they name none.
pub fn named(settings: &Settings) -> Result<Vec<Named<'_>>> {
    let is_default = settings.sources["engine"].from == "default";
    let mut all = Vec::new();
    for spec in &settings.models {
        let mut known = Vec::new();
        for (engine, dtype) in settings.variants_for(spec) {
            if is_default && known.contains(&dtype) {
                continue;
            }
            known.push(dtype);
            let EngineChoice::Own(own) = engine else {
                bail!("engine {engine}: a peer gives no logits, so it has no score: name stock or tuned")
            };
            let candidate = Candidate::from_settings(&settings.with_variant(spec, engine, dtype)).remove(0);
            all.push(Named { candidate, settings, spec, engine: own, dtype });
        }
    }
    Ok(all)
}

impl Named<'_> {
    /// The description of the model, as far as it is known.
    pub fn about(&self) -> &record::Subject {
        &self.candidate.about
    }

    /// Loads the model. Returns its whole description with it.
    pub fn load(mut self) -> Result<(record::Subject, model::Subject)> {
        let Settings { device, seed, .. } = *self.settings;
        let parallel = self.settings.parallel(self.engine);
        let subject = model::load_parallel(self.spec, self.engine, self.dtype, device, seed, parallel)?;
        self.candidate.learn(&subject);
        Ok((self.candidate.about, subject))
    }
}

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
