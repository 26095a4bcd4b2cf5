//! Candidates, and those of them that are loaded. The pool loads a candidate once, when its first benchmark runs, and frees its
//! memory after the last.

use anyhow::{Result, anyhow};
use candle_core::Device;

use super::{Candidate, candidate::Loaded, plan::OnModel};
use crate::{
    measure::memory::{self, DoesNotFit, HeldBytes},
    peer::Unsupported,
};

/// Makes an error again, for every benchmark that it concerns.
pub(super) fn again(error: &anyhow::Error) -> Box<dyn Fn() -> anyhow::Error> {
    match error.downcast_ref::<Unsupported>().cloned() {
        Some(unsupported) => Box::new(move || unsupported.clone().into()),
        None => {
            let reason = format!("{error:#}");
            Box::new(move || anyhow!("{reason}"))
        }
    }
}

/// Candidates, and those of them that are loaded.
pub struct Pool {
    places: Vec<Place>,
    device: Device,
}

struct Place {
    candidate: Candidate,
    subject: Option<Loaded>,
    /// Memory that the subject holds.
    held: HeldBytes,
    /// Benchmarks that have not run yet.
    benchmarks: usize,
    /// Makes the error with which loading failed. The pool does not retry, because every scenario would repeat a failed
    /// download.
    unloadable: Option<Box<dyn Fn() -> anyhow::Error>>,
}

impl Pool {
    pub fn new(candidates: Vec<Candidate>, device: Device) -> Self {
        Self {
            device,
            places: candidates
                .into_iter()
                .map(|candidate| Place {
                    candidate,
                    subject: None,
                    held: HeldBytes::default(),
                    benchmarks: 0,
                    unloadable: None,
                })
                .collect(),
        }
    }

    /// Returns the places of the candidates whose tier includes the scenario and whose sequences are long enough for it, as
    /// far as that is known before they are loaded.
    pub fn that_run(&self, scenario: &dyn OnModel) -> Vec<usize> {
        let is_included = |place: &usize| self.places[*place].candidate.tier >= scenario.tier();
        (0..self.places.len()).filter(is_included).filter(|place| self.is_long_enough(*place, scenario)).collect()
    }

    /// Returns whether a candidate is long enough for a scenario, or its length is not known yet.
    pub fn is_long_enough(&self, place: usize, scenario: &dyn OnModel) -> bool {
        let Place { candidate, subject, .. } = &self.places[place];
        let loaded = subject.as_ref().and_then(|loaded| match loaded {
            Loaded::Model(subject) => Some(subject.borrow().model.max_position_embeddings()),
            Loaded::Peer(_) => None,
        });
        loaded.or_else(|| candidate.longest()).is_none_or(|longest| scenario.total_tokens() <= longest)
    }

    pub fn candidate(&self, place: usize) -> &Candidate {
        &self.places[place].candidate
    }

    /// Returns the subject and loads it first if needed. If it does not fit in memory, the pool unloads the other
    /// subjects and retries.
    pub fn subject(&mut self, place: usize) -> Result<Loaded> {
        if let Some(subject) = &self.places[place].subject {
            return Ok(subject.clone());
        }
        if let Some(error) = &self.places[place].unloadable {
            return Err(error());
        }
        let loaded = self.load(place);
        // A model that does not fit now may fit once others are released, and refusing it takes no time.
        let lasting = loaded.as_ref().err().filter(|error| !error.is::<DoesNotFit>());
        self.places[place].unloadable = lasting.map(again);
        Ok(self.places[place].subject.insert(loaded?).clone())
    }

    fn load(&mut self, place: usize) -> Result<Loaded> {
        let mut before = memory::current_bytes(&self.device);
        let mut loaded = self.places[place].candidate.load();
        if loaded.as_ref().is_err_and(|error| error.is::<DoesNotFit>()) {
            self.places.iter_mut().for_each(|place| place.subject = None);
            memory::release(&self.device);
            before = memory::current_bytes(&self.device);
            loaded = self.places[place].candidate.load();
        }
        let subject = loaded?;
        self.places[place].held = HeldBytes::except(&self.device, before);
        Ok(subject)
    }

    /// Returns the memory that loading the subject would take: 0 if it is loaded, or if its size is not known yet.
    pub fn needed_bytes(&self, place: usize) -> u64 {
        let Place { candidate, subject, .. } = &self.places[place];
        if subject.is_some() { 0 } else { candidate.needed_bytes(&self.device).unwrap_or_default() }
    }

    /// Returns the memory that the subject holds, which all work on it shares.
    pub fn held(&self, place: usize) -> HeldBytes {
        self.places[place].held.clone()
    }

    /// Says that a benchmark of the subject will run.
    pub fn reserve(&mut self, place: usize) {
        self.places[place].benchmarks += 1;
    }

    /// Says that a benchmark of the subject has run or will not run. The last one frees its memory.
    pub fn release(&mut self, place: usize) {
        let place = &mut self.places[place];
        place.benchmarks -= 1;
        if place.benchmarks == 0 {
            place.subject = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Engine, ModelSpec, SYNTHETIC, shape},
        scenario::{LONG_CONTEXT, Tier},
        settings::{EngineChoice, Settings},
    };

    fn running(settings: &Settings) -> Vec<(&'static str, usize)> {
        let pool = Pool::new(Candidate::from_settings(settings), Device::Cpu);
        LONG_CONTEXT.iter().map(|scenario| (scenario.key, pool.that_run(scenario).len())).collect()
    }

    #[test]
    fn long_contexts_run_on_request_on_models_that_are_long_enough() {
        let engine = vec![EngineChoice::Own(Engine::Tuned)];
        let settings = Settings { engine, ..Settings::default() };
        assert!(running(&settings).iter().all(|(_, count)| *count == 0), "nothing runs by default");
        // The embedded models have 8192 positions.
        let full = Settings { tier: Some(Tier::Full), ..settings };
        let counts: Vec<usize> = running(&full).into_iter().map(|(_, count)| count).collect();
        let models = full.models.len() * full.variants_for(&full.models[0]).len();
        assert_eq!(counts, [models, models, models, 0, 0]);
        let longest = LONG_CONTEXT.iter().map(OnModel::total_tokens).max().unwrap_or(0);
        let is_long = |name: &&str| shape(name).expect("a shape").max_position_embeddings >= longest;
        let published: Vec<_> = SYNTHETIC.into_iter().filter(is_long).map(ModelSpec::Synthetic).collect();
        let count = published.len();
        let published = Settings { models: published, ..full };
        assert!(running(&published).iter().all(|(_, found)| *found == count), "{:?}", running(&published));
    }
}
