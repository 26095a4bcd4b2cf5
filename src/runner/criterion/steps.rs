//! The groups whose iterations are steps: language models in training, and the architecture sweep.

use std::{cell::RefCell, rc::Rc};

use anyhow::Result;
use criterion::{
    Criterion, SamplingMode, Throughput,
    measurement::{Measurement, WallTime},
};

use super::{Ended, NOISE_THRESHOLD, Suite, beside_peers, long_steps, paired::Turns, steps};
use crate::{
    device::DeviceChoice,
    measure::{PeakBytes, TokenTime, peak_bytes},
    peer::PeerName,
    record::{BenchmarkId, Subject},
    runner::{peers::Peers, set::Entry, turns::Plan},
    scenario::{Counterpart, Phase, Quantity, SWEEP, Tier, Trained, TrainingScenario},
    settings::Settings,
    workload::{
        Iteration, LanguageWorkload, PeerSteps, Workload, language_bytes, language_subject,
        series::{Combination, SeriesGrid, SeriesWorkload, series_subject},
    },
};

impl Suite {
    /// Runs every entry of the groups that the tier includes.
    pub fn training(&mut self, scenarios: &[TrainingScenario]) {
        let of = |quantity| scenarios.iter().filter(move |scenario| scenario.quantity == quantity);
        if of(Quantity::Time).next().is_some() {
            let mut criterion = self.criterion(TokenTime, NOISE_THRESHOLD);
            for scenario in of(Quantity::Time) {
                self.language(&mut criterion, scenario, |iteration, _| iteration.time);
            }
            self.conclude("all groups", || criterion.final_summary());
        }
        if of(Quantity::PeakBytes).next().is_some() {
            let mut criterion = self.criterion(PeakBytes, peak_bytes::NOISE_THRESHOLD);
            for scenario in of(Quantity::PeakBytes) {
                self.language(&mut criterion, scenario, |iteration, sample| {
                    peak_bytes::apart(iteration.peak_bytes, sample)
                });
            }
            self.conclude("all groups", || criterion.final_summary());
        }
    }

    fn language<M: Measurement<Value: std::iter::Sum>>(
        &mut self,
        criterion: &mut Criterion<M>,
        scenario: &TrainingScenario,
        value: impl Fn(Iteration, usize) -> M::Value,
    ) {
        let settings = self.settings().clone();
        // A peer counts its memory in another way.
        let peers = if scenario.quantity == Quantity::Time { settings.peer_names() } else { Vec::new() };
        let running = Rc::new(RefCell::new(Peers::new(&settings)));
        let mut trained: Vec<Trained> = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for entry in scenario.entries(tier(&settings), &settings.training_grid()) {
            for peer in engines(&peers) {
                match self.language_entry(scenario, entry, (peer, &peers, &running), entries.len(), &settings) {
                    Ok(made) => {
                        trained.push(entry);
                        entries.push(made);
                    }
                    Err(error) => self.fail(&error),
                }
            }
        }
        // Peak memory does not depend on the number of steps.
        let iterations = settings.steps.filter(|_| scenario.quantity == Quantity::Time);
        let plan = Plan { iterations, ..beside_peers(long_steps(), &peers) };
        let mut turns = Turns::new(&entries, plan, &self.session);
        let mut group = criterion.benchmark_group(scenario.key);
        group.sampling_mode(SamplingMode::Flat);
        for (place, entry) in trained.iter().enumerate() {
            group.throughput(Throughput::Elements(entry.batch_tokens() as u64));
            if let Some(ended) = self.entry(&mut group, &entries, place, &mut turns, &value) {
                self.keep(described(ended, &running));
            }
        }
        self.conclude(scenario.key, || group.finish());
    }

    /// An entry of a group on candlepower, or on one of the `peers`.
    fn language_entry<'a>(
        &self,
        scenario: &'a TrainingScenario,
        entry: Trained,
        (peer, peers, running): (Option<&PeerName>, &[PeerName], &Rc<RefCell<Peers>>),
        place: usize,
        settings: &'a Settings,
    ) -> Result<Entry<'a>> {
        let (seed, device) = (settings.seed, settings.device);
        let own = language_subject(&entry, settings)?;
        let mut counterparts = counterparts(scenario.key, &own, peer, peers);
        for (counterpart, other) in scenario.counterparts(&entry) {
            let other = BenchmarkId::new(scenario.key, &on(language_subject(&other, settings)?, peer));
            counterparts.push((counterpart, other.to_string()));
        }
        let (dtype, (phase, quantity)) = (own.dtype.clone(), (scenario.phase, scenario.quantity));
        // An error here is one of the preparation too, which puts it into a record.
        let needed_bytes = language_bytes(&entry, phase, &dtype, device).unwrap_or_default();
        let (subject, running, peer) = (on(own, peer), running.clone(), peer.cloned());
        Ok(Entry {
            scenario: scenario.key,
            subject,
            counterparts,
            needs: Box::new(move || (place, needed_bytes)),
            prepare: Box::new(move || -> Result<Box<dyn Workload>> {
                let Some(peer) = &peer else {
                    return Ok(Box::new(LanguageWorkload::new(&entry, phase, quantity, &dtype, seed, device)?));
                };
                let process = running.borrow_mut().free(peer)?;
                Ok(Box::new(PeerSteps::language(process, &entry, phase, &dtype, (seed, device))?))
            }),
        })
    }

    /// Runs every combination of the preset that the settings name, in training and in forecasting. Device, dtype and seed come
    /// from the settings too.
    pub fn sweep(&mut self) {
        let settings = self.settings().clone();
        let read = SeriesGrid::of_settings(&settings);
        let (grid, combinations) = match read.and_then(|grid| Ok((grid.clone(), grid.combinations()?))) {
            Ok(read) => read,
            Err(error) => return self.fail(&error),
        };
        let peers = settings.peer_names();
        let running = Rc::new(RefCell::new(Peers::new(&settings)));
        let mut criterion = self.criterion(WallTime, NOISE_THRESHOLD);
        for phase in [Phase::Train, Phase::Forward] {
            let scenario = SWEEP.key(phase);
            let on_engines = |combination| engines(&peers).map(move |peer| (combination, peer));
            let entry =
                |(place, (combination, peer))| series_entry(combination, phase, &grid, (peer, &peers, &running), place);
            let entries: Vec<Entry> = combinations.iter().flat_map(on_engines).enumerate().map(entry).collect();
            let mut turns = Turns::new(&entries, beside_peers(steps(), &peers), &self.session);
            let mut group = criterion.benchmark_group(scenario);
            group.sampling_mode(SamplingMode::Flat);
            group.throughput(Throughput::Elements(grid.batch as u64));
            for place in 0..entries.len() {
                let ended = self.entry(&mut group, &entries, place, &mut turns, |iteration, _| iteration.time);
                if let Some(ended) = ended {
                    self.keep(described(ended, &running));
                }
            }
            self.conclude(scenario, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// Candlepower, which is `None`, and the peers.
fn engines(peers: &[PeerName]) -> impl Iterator<Item = Option<&PeerName>> {
    [None].into_iter().chain(peers.iter().map(Some))
}

/// The subject on a peer, or as it is.
fn on(subject: Subject, peer: Option<&PeerName>) -> Subject {
    Subject { engine: peer.map_or(subject.engine, PeerName::to_string), ..subject }
}

/// The peers that a subject of this crate is compared with. A peer is compared with nothing by itself.
fn counterparts(
    scenario: &str,
    own: &Subject,
    peer: Option<&PeerName>,
    peers: &[PeerName],
) -> Vec<(Counterpart, String)> {
    let others = if peer.is_none() { peers } else { &[] };
    let id = |other| BenchmarkId::new(scenario, &on(own.clone(), Some(other))).to_string();
    others.iter().map(|other| (Counterpart::Peer, id(other))).collect()
}

/// Fills in what the peer of a benchmark says that it is.
fn described(mut ended: Ended, running: &RefCell<Peers>) -> Ended {
    ended.subject.peer = running.borrow().about(&ended.subject.engine);
    ended
}

/// An entry of the sweep on candlepower, or on one of the `peers`.
fn series_entry<'a>(
    combination: &'a Combination,
    phase: Phase,
    grid: &'a SeriesGrid,
    (peer, peers, running): (Option<&'a PeerName>, &[PeerName], &Rc<RefCell<Peers>>),
    place: usize,
) -> Entry<'a> {
    let (scenario, own, running) = (SWEEP.key(phase), series_subject(combination, grid), running.clone());
    Entry {
        scenario,
        counterparts: counterparts(scenario, &own, peer, peers),
        subject: on(own, peer),
        needs: Box::new(move || (place, 0)),
        prepare: Box::new(move || -> Result<Box<dyn Workload>> {
            let Some(peer) = peer else { return Ok(Box::new(SeriesWorkload::new(combination, phase, grid)?)) };
            let process = running.borrow_mut().free(peer)?;
            Ok(Box::new(PeerSteps::series(process, combination, phase, grid)?))
        }),
    }
}

/// The tier of trainings: as set, or by default the smallest on a CPU.
pub(in crate::runner) fn tier(settings: &Settings) -> Tier {
    let default = if settings.device == DeviceChoice::Cpu { Tier::Quick } else { Tier::Full };
    settings.tier.unwrap_or(default)
}
