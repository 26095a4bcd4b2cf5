//! The generation groups: one group per scenario, one entry per model, one generation per iteration.

use std::{
    cell::{Ref, RefCell},
    collections::BTreeSet,
};

use anyhow::{Result, anyhow};
use criterion::{SamplingMode, Throughput};

use super::{Entry, NOISE_THRESHOLD, Suite, generations, paired::Turns};
use crate::{
    device::DeviceChoice,
    generate::{self, Request},
    measure::TokenTime,
    record::BenchmarkId,
    runner::pool::{Candidate, Loaded, Pool},
    scenario::{Counterpart, Generation},
    workload::{GenerationWorkload, PeerWorkload, Workload},
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        let (seed, device) = (self.settings().seed, self.settings().device);
        let candidates = self.distinct(candidates);
        let pool = RefCell::new(Pool::new(candidates, self.session.device().clone()));
        let mut benchmarks: Vec<(&Generation, usize)> = Vec::new();
        for scenario in scenarios {
            benchmarks.extend(pool.borrow().that_run(scenario).into_iter().map(|place| (scenario, place)));
        }
        let mut entries: Vec<Entry> = Vec::new();
        for &(scenario, place) in &benchmarks {
            let pool = &pool;
            let candidate = Ref::map(pool.borrow(), |pool| pool.candidate(place));
            entries.push(Entry {
                scenario: scenario.key,
                subject: candidate.about.clone(),
                counterparts: counterparts(scenario, &candidate),
                needs: Box::new(move || (place, pool.borrow().needed_bytes(place))),
                prepare: Box::new(move || workload(&mut pool.borrow_mut(), place, scenario, seed, device)),
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
                let place = benchmarks[number].1;
                group.throughput(Throughput::Elements(scenario.counted_tokens() as u64));
                // The length of a model from the Hub is known once its first benchmark has loaded it.
                let is_long_enough = pool.borrow().is_long_enough(place, scenario);
                let ended = match is_long_enough {
                    true => self.entry(&mut group, &entries, number, &mut turns, |iteration, _| iteration.time),
                    false => None,
                };
                if let Some(mut ended) = ended {
                    // Loading the model has filled in its size.
                    ended.subject = pool.borrow().candidate(place).about.clone();
                    self.keep(ended);
                }
                let tier = pool.borrow().candidate(place).tier;
                if scenarios[index + 1..].iter().all(|later| later.tier > tier) {
                    pool.borrow_mut().release(place);
                }
            }
            self.conclude(scenario.key, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

impl Suite {
    /// Refuses candidates with the name, engine, dtype and device of another, because their benchmarks would have the same ids.
    fn distinct(&mut self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut known = BTreeSet::new();
        let mut kept = Vec::new();
        for candidate in candidates {
            let name = format!("{}/{}", candidate.about.model, candidate.about.variant());
            if known.insert(name.clone()) {
                kept.push(candidate);
            } else {
                self.fail(&anyhow!("{name}: two models have this name; only the first is measured: rename the other"));
            }
        }
        kept
    }
}

/// Ids of the benchmarks that a candidate is compared with in a scenario.
fn counterparts(scenario: &Generation, candidate: &Candidate) -> Vec<(Counterpart, String)> {
    let id = |scenario: &str, subject| BenchmarkId::new(scenario, subject).to_string();
    let of_scenario = scenario.against.map(|other| (Counterpart::Scenario, id(other, &candidate.about)));
    let of_model = candidate.against.iter().map(|(counterpart, subject)| (*counterpart, id(scenario.key, subject)));
    of_scenario.into_iter().chain(of_model).collect()
}

/// Loads the subject if needed, and makes the prompt.
pub(in crate::runner) fn workload(
    pool: &mut Pool,
    place: usize,
    scenario: &Generation,
    seed: u64,
    device: DeviceChoice,
) -> Result<Box<dyn Workload>> {
    let request = Request { new_tokens: scenario.new_tokens, sampling: scenario.sampling, seed, stop: Vec::new() };
    match pool.subject(place)? {
        Loaded::Model(subject) => {
            let bytes_beside = pool.bytes_beside(place);
            let prompt = {
                let loaded = subject.borrow();
                let vocab_size = loaded.model.vocab_size();
                generate::prompt_ids(loaded.tokenizer.as_ref(), vocab_size, scenario.prompt_tokens, seed)?
            };
            Ok(Box::new(GenerationWorkload::new(subject, bytes_beside, prompt, request, device)?))
        }
        Loaded::Peer(subject) => {
            let prompt = subject.borrow().prompt(scenario.prompt_tokens, seed)?;
            Ok(Box::new(PeerWorkload::new(subject, prompt, request)?))
        }
    }
}
