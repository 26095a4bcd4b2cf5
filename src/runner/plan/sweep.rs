//! The architecture sweep: one step or forecast per iteration, here or by a peer.

use std::{cell::RefCell, rc::Rc};

use anyhow::Result;
use criterion::Throughput;

use super::{
    Benchmark, Kind, Listing, STEPS, Sampled, Section, beside_peers, counterparts, engines, on, training::described,
};
use crate::{
    peer::PeerName,
    record::Subject,
    runner::{Session, peers::Peers},
    scenario::{Counterpart, Phase, SWEEP},
    settings::Settings,
    workload::{
        PeerSteps, Workload,
        series::{Combination, SeriesGrid, SeriesWorkload, series_subject},
    },
};

const PHASES: [(Phase, &str); 2] = [(Phase::Train, "a training step"), (Phase::Forward, "a forecast")];

/// Every combination of the preset that the settings name, in training and in forecasting. Device, dtype and seed come from the
/// settings too.
pub struct Combinations;

impl Kind for Combinations {
    fn keys(&self) -> Vec<&'static str> {
        PHASES.map(|(phase, _)| SWEEP.key(phase)).into()
    }

    fn listing(&self, _: &Settings) -> Listing {
        let row =
            |(phase, purpose): (Phase, &str)| vec![SWEEP.key(phase).to_owned(), format!("{purpose} of backbones")];
        Listing { heading: &["sweep", "purpose"], texts: 2, rows: PHASES.map(row).into() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        let settings = session.settings();
        let read = SeriesGrid::of_settings(settings);
        let (grid, combinations) = match read.and_then(|grid| Ok((Rc::new(grid.clone()), grid.combinations()?))) {
            Ok(read) => read,
            Err(error) => {
                let none = Section::new(Sampled::WallTime, STEPS, Vec::new());
                return vec![Section { failures: vec![error], ..none }];
            }
        };
        let peers = settings.peer_names();
        let running = Rc::new(RefCell::new(Peers::new(settings)));
        let section = |(phase, _)| {
            let mut benchmarks: Vec<Rc<dyn Benchmark>> = Vec::new();
            for combination in &combinations {
                for peer in engines(&peers) {
                    let own = series_subject(combination, &grid);
                    benchmarks.push(Rc::new(Step {
                        phase,
                        combination: combination.clone(),
                        grid: grid.clone(),
                        counterparts: counterparts(SWEEP.key(phase), &own, peer, &peers),
                        about: on(own, peer),
                        place: benchmarks.len(),
                        peer: peer.cloned(),
                        peers: running.clone(),
                    }));
                }
            }
            Section::new(Sampled::WallTime, beside_peers(STEPS, &peers), benchmarks)
        };
        PHASES.map(section).into()
    }
}

/// A combination in a phase, on candlepower or on a peer.
struct Step {
    phase: Phase,
    combination: Combination,
    grid: Rc<SeriesGrid>,
    about: Subject,
    counterparts: Vec<(Counterpart, String)>,
    place: usize,
    peer: Option<PeerName>,
    peers: Rc<RefCell<Peers>>,
}

impl Benchmark for Step {
    fn scenario(&self) -> &'static str {
        SWEEP.key(self.phase)
    }

    fn subject(&self) -> Subject {
        described(&self.about, &self.peers)
    }

    fn counterparts(&self) -> Vec<(Counterpart, String)> {
        self.counterparts.clone()
    }

    fn throughput(&self) -> Option<Throughput> {
        Some(Throughput::Elements(self.grid.batch as u64))
    }

    fn needs(&self) -> (usize, u64) {
        (self.place, 0)
    }

    fn prepare(&self) -> Result<Box<dyn Workload>> {
        let Some(peer) = &self.peer else {
            return Ok(Box::new(SeriesWorkload::new(&self.combination, self.phase, &self.grid)?));
        };
        let process = self.peers.borrow_mut().free(peer)?;
        Ok(Box::new(PeerSteps::series(process, &self.combination, self.phase, &self.grid)?))
    }
}
