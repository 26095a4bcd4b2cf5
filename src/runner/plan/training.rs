//! Trainings of language models: one step per iteration, here or by a peer.

use std::{cell::RefCell, rc::Rc};

use anyhow::Result;
use criterion::Throughput;

use super::{Benchmark, Kind, LONG_STEPS, Listing, Sampled, Section, beside_peers, counterparts, engines, on};
use crate::{
    device::DeviceChoice,
    peer::PeerName,
    record::{BenchmarkId, Subject},
    runner::{Session, peers::Peers, turns::Pace},
    scenario::{Counterpart, Quantity, Tier, Trained, TrainingScenario},
    settings::Settings,
    workload::{LanguageWorkload, PeerSteps, Workload, language_bytes, language_subject},
};

/// The entries of groups that the tier includes.
pub struct Trainings(pub &'static [TrainingScenario]);

impl Kind for Trainings {
    fn keys(&self) -> Vec<&'static str> {
        self.0.iter().map(|scenario| scenario.key).collect()
    }

    fn listing(&self, settings: &Settings) -> Listing {
        let grid = settings.training_grid();
        let row = |scenario: &TrainingScenario| {
            let entries = |tier| scenario.entries(tier, &grid).len().to_string();
            let counts = [Tier::Quick, Tier::Standard, Tier::Full].map(entries);
            [scenario.key, scenario.purpose].map(str::to_owned).into_iter().chain(counts).collect()
        };
        let heading = &["training", "purpose", "quick", "standard", "full"];
        Listing { heading, texts: 2, rows: self.0.iter().map(row).collect() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        self.0.iter().map(|scenario| section(scenario, session.settings())).collect()
    }
}

fn section(scenario: &'static TrainingScenario, settings: &Settings) -> Section {
    // A peer counts its memory in another way.
    let is_timed = scenario.quantity == Quantity::Time;
    let peers = if is_timed { settings.peer_names() } else { Vec::new() };
    let running = Rc::new(RefCell::new(Peers::new(settings)));
    let (mut benchmarks, mut failures): (Vec<Rc<dyn Benchmark>>, _) = (Vec::new(), Vec::new());
    for entry in scenario.entries(tier(settings), &settings.training_grid()) {
        for peer in engines(&peers) {
            let step = Step::new(scenario, entry, (peer, &peers), running.clone(), benchmarks.len(), settings);
            match step {
                Ok(step) => benchmarks.push(Rc::new(step)),
                Err(error) => failures.push(error),
            }
        }
    }
    let quantity = if is_timed { Sampled::TokenTime } else { Sampled::PeakBytes };
    // Peak memory does not depend on the number of steps.
    let iterations = settings.steps.filter(|_| is_timed);
    let pace = Pace { iterations, ..beside_peers(LONG_STEPS, &peers) };
    Section { failures, ..Section::new(quantity, pace, benchmarks) }
}

/// A step of an entry of a group, on candlepower or on a peer.
struct Step {
    scenario: &'static TrainingScenario,
    entry: Trained,
    about: Subject,
    counterparts: Vec<(Counterpart, String)>,
    /// Its place among those of the group, and the memory that it takes.
    needs: (usize, u64),
    peer: Option<PeerName>,
    peers: Rc<RefCell<Peers>>,
    seed: u64,
    device: DeviceChoice,
}

impl Step {
    fn new(
        scenario: &'static TrainingScenario,
        entry: Trained,
        (peer, peers): (Option<&PeerName>, &[PeerName]),
        running: Rc<RefCell<Peers>>,
        place: usize,
        settings: &Settings,
    ) -> Result<Self> {
        let Settings { seed, device, .. } = *settings;
        let about = language_subject(&entry, settings)?;
        let mut counterparts = counterparts(scenario.key, &about, peer, peers);
        for (counterpart, other) in scenario.counterparts(&entry) {
            let other = BenchmarkId::new(scenario.key, &on(language_subject(&other, settings)?, peer));
            counterparts.push((counterpart, other.to_string()));
        }
        // An error here is one of the preparation too, which puts it into a record.
        let needed_bytes = language_bytes(&entry, scenario.phase, &about.dtype, device).unwrap_or_default();
        let (about, peer) = (on(about, peer), peer.cloned());
        Ok(Self {
            scenario,
            entry,
            about,
            counterparts,
            needs: (place, needed_bytes),
            peer,
            peers: running,
            seed,
            device,
        })
    }
}

impl Benchmark for Step {
    fn scenario(&self) -> &'static str {
        self.scenario.key
    }

    fn subject(&self) -> Subject {
        described(&self.about, &self.peers)
    }

    fn counterparts(&self) -> Vec<(Counterpart, String)> {
        self.counterparts.clone()
    }

    fn throughput(&self) -> Option<Throughput> {
        Some(Throughput::Elements(self.entry.batch_tokens() as u64))
    }

    fn needs(&self) -> (usize, u64) {
        self.needs
    }

    fn prepare(&self) -> Result<Box<dyn Workload>> {
        let Self { scenario, entry, about, seed, device, .. } = self;
        let Some(peer) = &self.peer else {
            let (phase, quantity) = (scenario.phase, scenario.quantity);
            return Ok(Box::new(LanguageWorkload::new(entry, phase, quantity, &about.dtype, *seed, *device)?));
        };
        let process = self.peers.borrow_mut().free(peer)?;
        Ok(Box::new(PeerSteps::language(process, entry, scenario.phase, &about.dtype, (*seed, *device))?))
    }
}

/// Fills in what the peer of a benchmark says that it is, once it runs.
pub(super) fn described(about: &Subject, peers: &RefCell<Peers>) -> Subject {
    Subject { peer: peers.borrow().about(&about.engine), ..about.clone() }
}

/// The tier of trainings: as set, or by default the smallest on a CPU.
fn tier(settings: &Settings) -> Tier {
    let default = if settings.device == DeviceChoice::Cpu { Tier::Quick } else { Tier::Full };
    settings.tier.unwrap_or(default)
}
