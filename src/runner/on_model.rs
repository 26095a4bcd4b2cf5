//! Scenarios that run on the models of a pool: what the runner has to know of each kind.

use std::cell::RefCell;

use anyhow::Result;

use super::{
    pool::{Loaded, Pool},
    set::Entry,
};
use crate::{
    device::DeviceChoice,
    scenario::{Generation, Tier},
    workload::{GenerationWorkload, PeerWorkload, Workload},
};

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

/// The benchmark of a scenario on the model at a place of the pool, in a batch of so many sequences.
pub fn entry<'a, S: OnModel>(
    scenario: &'a S,
    pool: &'a RefCell<Pool>,
    (place, batch): (usize, usize),
    seed: u64,
    device: DeviceChoice,
) -> Entry<'a> {
    let (subject, counterparts) = {
        let pool = pool.borrow();
        let candidate = pool.candidate(place);
        (candidate.about.clone().in_batch(batch), candidate.counterparts(scenario, batch))
    };
    Entry {
        scenario: scenario.key(),
        subject,
        counterparts,
        needs: Box::new(move || (place, pool.borrow().needed_bytes(place))),
        prepare: Box::new(move || scenario.workload(&mut pool.borrow_mut(), (place, batch), seed, device)),
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
