//! The groups that run on models: one group per scenario, one entry per model, one generation or one load per iteration.

use std::cell::{Ref, RefCell};

use criterion::{SamplingMode, Throughput};

use super::{Entry, NOISE_THRESHOLD, Suite, generations, paired::Turns};
use crate::{
    measure::TokenTime,
    record::BenchmarkId,
    runner::{
        on_model::OnModel,
        pool::{Candidate, Pool},
        turns::Plan,
    },
    scenario::{Counterpart, Generation},
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        self.on_models(scenarios, candidates, generations());
    }

    /// Runs the loads on every candidate whose tier includes them.
    #[cfg(feature = "serve")]
    pub fn serving(&mut self, scenarios: &[crate::scenario::ServingLoad], candidates: Vec<Candidate>) {
        self.on_models(scenarios, candidates, super::single_iterations());
    }

    fn on_models<S: OnModel>(&mut self, scenarios: &[S], candidates: Vec<Candidate>, plan: Plan) {
        let (seed, device) = (self.settings().seed, self.settings().device);
        let pool = RefCell::new(Pool::new(candidates, self.session.device().clone()));
        let mut benchmarks: Vec<(&S, usize)> = Vec::new();
        for scenario in scenarios {
            benchmarks.extend(pool.borrow().that_run(scenario).into_iter().map(|place| (scenario, place)));
        }
        let mut entries: Vec<Entry> = Vec::new();
        for &(scenario, place) in &benchmarks {
            let pool = &pool;
            let candidate = Ref::map(pool.borrow(), |pool| pool.candidate(place));
            entries.push(Entry {
                scenario: scenario.key(),
                subject: candidate.about.clone(),
                counterparts: counterparts(scenario, &candidate),
                needs: Box::new(move || (place, pool.borrow().needed_bytes(place))),
                prepare: Box::new(move || scenario.workload(&mut pool.borrow_mut(), place, seed, device)),
            });
        }
        let mut turns = Turns::new(&entries, plan, &self.session);
        let mut criterion = self.criterion(TokenTime, NOISE_THRESHOLD);
        for (index, scenario) in scenarios.iter().enumerate() {
            let own: Vec<usize> =
                (0..entries.len()).filter(|entry| benchmarks[*entry].0.key() == scenario.key()).collect();
            if own.is_empty() {
                continue;
            }
            let mut group = criterion.benchmark_group(scenario.key());
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
                if scenarios[index + 1..].iter().all(|later| later.tier() > tier) {
                    pool.borrow_mut().release(place);
                }
            }
            self.conclude(scenario.key(), || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// Ids of the benchmarks that a candidate is compared with in a scenario.
fn counterparts(scenario: &impl OnModel, candidate: &Candidate) -> Vec<(Counterpart, String)> {
    let id = |scenario: &str, subject| BenchmarkId::new(scenario, subject).to_string();
    let of_scenario = scenario.against().map(|other| (Counterpart::Scenario, id(other, &candidate.about)));
    let of_model = candidate.against.iter().map(|(counterpart, subject)| (*counterpart, id(scenario.key(), subject)));
    of_scenario.into_iter().chain(of_model).collect()
}
