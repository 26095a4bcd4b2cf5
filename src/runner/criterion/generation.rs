//! The generation groups: one group per scenario, one entry per model, one generation per iteration.

use std::cell::{Ref, RefCell};

use anyhow::Result;
use criterion::{SamplingMode, Throughput};

use super::{Entry, NOISE_THRESHOLD, Suite, generations, paired::Turns};
use crate::{
    device::DeviceChoice,
    measure::TokenTime,
    record::{BenchmarkId, Subject},
    runner::pool::{Candidate, Loaded, Pool},
    scenario::{Counterpart, Generation},
    workload::{GenerationWorkload, PeerWorkload, Workload},
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them, with each batch of the settings.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        let (seed, device) = (self.settings().seed, self.settings().device);
        let pool = RefCell::new(Pool::new(candidates, self.session.device().clone()));
        let batches = self.settings().generation_batches();
        let mut benchmarks: Vec<(&Generation, usize, usize)> = Vec::new();
        for scenario in scenarios {
            for place in pool.borrow().that_run(scenario) {
                benchmarks.extend(batches.iter().map(|batch| (scenario, place, *batch)));
            }
        }
        let mut entries: Vec<Entry> = Vec::new();
        for &(scenario, place, batch) in &benchmarks {
            let pool = &pool;
            let candidate = Ref::map(pool.borrow(), |pool| pool.candidate(place));
            entries.push(Entry {
                scenario: scenario.key,
                subject: candidate.about.clone().in_batch(batch),
                counterparts: counterparts(scenario, &candidate, batch),
                needs: Box::new(move || (place, pool.borrow().needed_bytes(place))),
                prepare: Box::new(move || workload(&mut pool.borrow_mut(), place, (scenario, batch), seed, device)),
            });
        }
        let mut turns = Turns::new(&entries, generations(), &self.session);
        let mut criterion = self.criterion(TokenTime, NOISE_THRESHOLD);
        for (index, scenario) in scenarios.iter().enumerate() {
            let own: Vec<usize> = (0..entries.len()).filter(|entry| benchmarks[*entry].0.key == scenario.key).collect();
            if own.is_empty() {
                continue;
            }
            let mut group = criterion.benchmark_group(scenario.key);
            group.sampling_mode(SamplingMode::Flat);
            for number in own {
                let (_, place, batch) = benchmarks[number];
                group.throughput(Throughput::Elements((batch * scenario.counted_tokens()) as u64));
                // The length of a model from the Hub is known once its first benchmark has loaded it.
                let is_long_enough = pool.borrow().is_long_enough(place, scenario);
                let ended = match is_long_enough {
                    true => self.entry(&mut group, &entries, number, &mut turns, |iteration, _| iteration.time),
                    false => None,
                };
                if let Some(mut ended) = ended {
                    // Loading the model has filled in its size.
                    ended.subject = pool.borrow().candidate(place).about.clone().in_batch(batch);
                    self.keep(ended);
                }
                let tier = pool.borrow().candidate(place).tier;
                let is_last = batches.last() == Some(&batch);
                if is_last && scenarios[index + 1..].iter().all(|later| later.tier > tier) {
                    pool.borrow_mut().release(place);
                }
            }
            self.conclude(scenario.key, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// Ids of the benchmarks that a candidate is compared with in a scenario, in the same batch.
fn counterparts(scenario: &Generation, candidate: &Candidate, batch: usize) -> Vec<(Counterpart, String)> {
    let id =
        |scenario: &str, subject: &Subject| BenchmarkId::new(scenario, &subject.clone().in_batch(batch)).to_string();
    let of_scenario = scenario.against.map(|other| (Counterpart::Scenario, id(other, &candidate.about)));
    let of_model = candidate.against.iter().map(|(counterpart, subject)| (*counterpart, id(scenario.key, subject)));
    of_scenario.into_iter().chain(of_model).collect()
}

/// Loads the subject if needed, and makes the prompts.
pub(in crate::runner) fn workload(
    pool: &mut Pool,
    place: usize,
    (scenario, batch): (&Generation, usize),
    seed: u64,
    device: DeviceChoice,
) -> Result<Box<dyn Workload>> {
    Ok(match pool.subject(place)? {
        Loaded::Model(subject) => {
            let bytes_beside = pool.bytes_beside(place);
            Box::new(GenerationWorkload::of_scenario(subject, bytes_beside, (scenario, batch), seed, device)?)
        }
        Loaded::Peer(subject) => Box::new(PeerWorkload::new(subject, scenario, batch, seed)?),
    })
}
