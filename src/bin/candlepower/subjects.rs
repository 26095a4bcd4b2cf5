//! The models that a command scores, each on its engines, and the records of their scores.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candlepower::{
    model,
    record::{self, Measures, Record},
    runner::{Candidate, Session},
    settings::{EngineChoice, Settings},
    workload::{Measured, Outcome},
};

/// Loads the models of the settings in every dtype, each on the engines that they name, or on one engine if they name none.
pub fn load(settings: &Settings) -> Result<Vec<(record::Subject, model::Subject)>> {
    let is_default = settings.sources["engine"].from == "default";
    let mut loaded = Vec::new();
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
            let parallel = settings.parallel(own);
            let subject = model::load_parallel(spec, own, dtype, settings.device, settings.seed, parallel)?;
            let mut candidate = Candidate::from_settings(&settings.with_variant(spec, engine, dtype)).remove(0);
            candidate.learn(&subject);
            loaded.push((candidate.about, subject));
        }
    }
    Ok(loaded)
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
