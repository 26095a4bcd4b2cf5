//! Scenarios that run on the models of a pool: generations, and loads on the scheduler of the server.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use anyhow::{Result, anyhow};
use criterion::Throughput;

use super::{Benchmark, Kind, Listing, Sampled, Section};
use crate::{
    device::DeviceChoice,
    record::Subject,
    runner::{Candidate, Session, candidate::Loaded, pool::Pool, turns::Pace},
    scenario::{Counterpart, Generation, Tier},
    settings::Settings,
    workload::{GenerationWorkload, PeerWorkload, Workload},
};

/// Generations, on the candidates for given settings.
pub struct Generations(pub &'static [Generation], pub fn(&Settings) -> Vec<Candidate>);

impl Kind for Generations {
    fn keys(&self) -> Vec<&'static str> {
        self.0.iter().map(|scenario| scenario.key).collect()
    }

    fn listing(&self, _: &Settings) -> Listing {
        let row = |scenario: &Generation| {
            let (sampling, tier) = (scenario.sampling.to_string(), scenario.tier.to_string());
            let (prompt, new) = (scenario.prompt_tokens.to_string(), scenario.new_tokens.to_string());
            vec![scenario.key.to_owned(), sampling, tier, scenario.purpose.to_owned(), prompt, new]
        };
        let heading = &["scenario", "sampling", "smallest tier", "purpose", "prompt", "new tokens"];
        Listing { heading, texts: 4, rows: self.0.iter().map(row).collect() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        vec![generations(session, self.0, self.1(session.settings()))]
    }
}

/// Generations of the candidates whose tier includes them, with each batch of the settings.
pub fn generations(session: &Session, scenarios: &[Generation], candidates: Vec<Candidate>) -> Section {
    section(session, scenarios, candidates, &session.settings().generation_batches(), super::GENERATIONS)
}

/// Loads, on the models of the settings.
#[cfg(feature = "serve")]
pub struct Loads(pub &'static [crate::scenario::ServingLoad]);

#[cfg(feature = "serve")]
impl Kind for Loads {
    fn keys(&self) -> Vec<&'static str> {
        self.0.iter().map(|load| load.key).collect()
    }

    fn listing(&self, _: &Settings) -> Listing {
        let row = |load: &crate::scenario::ServingLoad| {
            let (requests, new) = (load.traffic.requests.to_string(), load.traffic.new_tokens.to_string());
            vec![load.key.to_owned(), load.tier.to_string(), load.purpose.to_owned(), requests, new]
        };
        let heading = &["load", "smallest tier", "purpose", "requests", "new tokens"];
        Listing { heading, texts: 3, rows: self.0.iter().map(row).collect() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        vec![loads(session, self.0, Candidate::serving(session.settings()))]
    }
}

/// Loads of the candidates whose tier includes them.
#[cfg(feature = "serve")]
pub fn loads(session: &Session, scenarios: &[crate::scenario::ServingLoad], candidates: Vec<Candidate>) -> Section {
    section(session, scenarios, candidates, &[1], super::SINGLE_ITERATIONS)
}

/// A scenario that runs on a model.
pub trait OnModel {
    /// First part of the benchmark id.
    fn key(&self) -> &'static str;

    /// The smallest tier that runs it.
    fn tier(&self) -> Tier;

    /// Key of the scenario that it is compared with, on the same model.
    fn against(&self) -> Option<&'static str>;

    /// Tokens in the longest sequence at its end.
    fn total_tokens(&self) -> usize;

    /// Tokens of its throughput.
    fn counted_tokens(&self) -> usize;

    /// Loads the subject at a place if needed, and prepares its work in a batch of so many sequences.
    fn workload(
        &self,
        pool: &mut Pool,
        at: (usize, usize),
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Box<dyn Workload>>;
}

fn section<S: OnModel + Clone + 'static>(
    session: &Session,
    scenarios: &[S],
    candidates: Vec<Candidate>,
    batches: &[usize],
    pace: Pace,
) -> Section {
    let notes = left_out(session.settings(), &candidates);
    let (candidates, failures) = distinct(candidates);
    let (_, benchmarks) = benchmarks_of(session, scenarios, candidates, batches);
    Section { failures, notes, ..Section::new(Sampled::TokenTime, pace, benchmarks) }
}

/// The pool of some candidates, and the benchmarks of the scenarios on those whose tier includes them.
pub fn benchmarks_of<S: OnModel + Clone + 'static>(
    session: &Session,
    scenarios: &[S],
    candidates: Vec<Candidate>,
    batches: &[usize],
) -> (Rc<RefCell<Pool>>, Vec<Rc<dyn Benchmark>>) {
    let Settings { seed, device, .. } = *session.settings();
    let pool = Rc::new(RefCell::new(Pool::new(candidates, session.device().clone())));
    let mut benchmarks: Vec<Rc<dyn Benchmark>> = Vec::new();
    for scenario in scenarios {
        let places = pool.borrow().that_run(scenario);
        for place in places {
            for batch in batches.iter().copied() {
                pool.borrow_mut().reserve(place);
                benchmarks.push(Rc::new(Run {
                    scenario: scenario.clone(),
                    pool: pool.clone(),
                    place,
                    batch,
                    seed,
                    device,
                }));
            }
        }
    }
    (pool, benchmarks)
}

/// Leaves out candidates with the name, engine, dtype and device of another, because their benchmarks would have the same ids.
fn distinct(candidates: Vec<Candidate>) -> (Vec<Candidate>, Vec<anyhow::Error>) {
    let mut known = BTreeSet::new();
    let name = |candidate: &Candidate| format!("{}/{}", candidate.about.model, candidate.about.variant());
    let (kept, twice): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|candidate| known.insert(name(candidate)));
    let refused = |candidate: &Candidate| {
        anyhow!("{}: two models have this name; only the first is measured: rename the other", name(candidate))
    };
    (kept, twice.iter().map(refused).collect())
}

/// Says which engines lack a dtype of the settings, if they run in another one.
fn left_out(settings: &Settings, candidates: &[Candidate]) -> Vec<String> {
    let engines = settings.left_out().into_iter().map(|(engine, dtype)| (engine.id(), dtype));
    engines
        .filter(|(engine, _)| candidates.iter().any(|candidate| candidate.about.engine == *engine))
        .map(|(engine, dtype)| format!("engine {engine} has no dtype {dtype} and is left out there"))
        .collect()
}

/// A scenario on the model at a place of the pool, in a batch of so many sequences.
struct Run<S> {
    scenario: S,
    pool: Rc<RefCell<Pool>>,
    place: usize,
    batch: usize,
    seed: u64,
    device: DeviceChoice,
}

impl<S: OnModel> Benchmark for Run<S> {
    fn scenario(&self) -> &'static str {
        self.scenario.key()
    }

    fn subject(&self) -> Subject {
        self.pool.borrow().candidate(self.place).about.clone().in_batch(self.batch)
    }

    fn counterparts(&self) -> Vec<(Counterpart, String)> {
        self.pool.borrow().candidate(self.place).counterparts(&self.scenario, self.batch)
    }

    fn throughput(&self) -> Option<Throughput> {
        Some(Throughput::Elements((self.batch * self.scenario.counted_tokens()) as u64))
    }

    fn needs(&self) -> (usize, u64) {
        (self.place, self.pool.borrow().needed_bytes(self.place))
    }

    fn is_possible(&self) -> bool {
        // The length of a model from the Hub is known once its first benchmark has loaded it.
        self.pool.borrow().is_long_enough(self.place, &self.scenario)
    }

    fn prepare(&self) -> Result<Box<dyn Workload>> {
        self.scenario.workload(&mut self.pool.borrow_mut(), (self.place, self.batch), self.seed, self.device)
    }

    fn release(&self) {
        self.pool.borrow_mut().release(self.place);
    }
}

impl OnModel for Generation {
    fn key(&self) -> &'static str {
        self.key
    }

    fn tier(&self) -> Tier {
        self.tier
    }

    fn against(&self) -> Option<&'static str> {
        self.against
    }

    fn total_tokens(&self) -> usize {
        self.total_tokens()
    }

    fn counted_tokens(&self) -> usize {
        self.counted_tokens()
    }

    fn workload(
        &self,
        pool: &mut Pool,
        (place, batch): (usize, usize),
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Box<dyn Workload>> {
        Ok(match pool.subject(place)? {
            Loaded::Model(subject) => {
                let held = pool.held(place);
                Box::new(GenerationWorkload::of_scenario(subject, held, (self, batch), seed, device)?)
            }
            Loaded::Peer(subject) => Box::new(PeerWorkload::new(subject, self, batch, seed)?),
        })
    }
}

#[cfg(feature = "serve")]
impl OnModel for crate::scenario::ServingLoad {
    fn key(&self) -> &'static str {
        self.key
    }

    fn tier(&self) -> Tier {
        self.tier
    }

    fn against(&self) -> Option<&'static str> {
        None
    }

    fn total_tokens(&self) -> usize {
        self.traffic.total_tokens()
    }

    fn counted_tokens(&self) -> usize {
        self.counted_tokens()
    }

    fn workload(
        &self,
        pool: &mut Pool,
        (place, _): (usize, usize),
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Box<dyn Workload>> {
        let Loaded::Model(subject) = pool.subject(place)? else {
            anyhow::bail!("a peer does not run on the scheduler of this crate")
        };
        let held = pool.held(place);
        let Self { traffic, latency, .. } = self;
        Ok(Box::new(crate::workload::ServingWorkload::new(subject, held, traffic, *latency, seed, device)?))
    }
}
