//! The generation groups: one group per scenario, one entry per model, one generation per iteration.

use anyhow::Result;
use criterion::{SamplingMode, Throughput};

use super::{Entry, Suite, long_iterations};
use crate::{
    device::DeviceChoice,
    generate::{self, Request},
    measure::{self, TokenTime},
    runner::pool::{Candidate, Pool},
    scenario::Generation,
    workload::GenerationWorkload,
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        let mut criterion = long_iterations(TokenTime);
        let mut pool = Pool::new(candidates, self.session.device().clone());
        let (seed, device) = (self.settings().seed, self.settings().device);
        for (index, scenario) in scenarios.iter().enumerate() {
            let places = pool.in_tier(scenario.tier);
            if places.is_empty() {
                continue;
            }
            let mut group = criterion.benchmark_group(scenario.key);
            group.sampling_mode(SamplingMode::Flat);
            for place in places {
                group.throughput(Throughput::Elements(scenario.counted_tokens() as u64));
                let about = pool.candidate(place).about.clone();
                let mut prepared = false;
                let prepare = || {
                    prepared = true;
                    Ok(Box::new(workload(&mut pool, place, scenario, seed, device)?) as _)
                };
                let entry = Entry { scenario: scenario.key, subject: about };
                if let Some(mut ended) = self.entry(&mut group, entry, prepare, |iteration, _| iteration.time) {
                    // Loading the model has filled in its size.
                    ended.subject = pool.candidate(place).about.clone();
                    self.keep(ended);
                }
                let tier = pool.candidate(place).tier;
                if scenarios[index + 1..].iter().all(|later| later.tier > tier) {
                    pool.release(place);
                }
            }
            self.conclude(scenario.key, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// Loads the subject if needed, and makes the prompt.
pub(in crate::runner) fn workload(
    pool: &mut Pool,
    place: usize,
    scenario: &Generation,
    seed: u64,
    device: DeviceChoice,
) -> Result<GenerationWorkload> {
    // Measuring the limits takes memory, so it comes before the subject.
    measure::limits(&device.open()?)?;
    let subject = pool.subject(place)?;
    let bytes_beside = pool.bytes_beside(place);
    let prompt = {
        let loaded = subject.borrow();
        generate::prompt_ids(loaded.tokenizer.as_ref(), loaded.model.vocab_size(), scenario.prompt_tokens, seed)?
    };
    let request = Request { new_tokens: scenario.new_tokens, sampling: scenario.sampling, seed, stop: Vec::new() };
    GenerationWorkload::new(subject, bytes_beside, prompt, request, device)
}
