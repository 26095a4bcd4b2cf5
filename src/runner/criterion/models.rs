//! The groups that run on models: one group per scenario, one entry per model, one generation or one load per iteration.

use std::{cell::RefCell, collections::BTreeSet};

use anyhow::anyhow;
use criterion::{SamplingMode, Throughput};

use super::{NOISE_THRESHOLD, Suite, generations, paired::Turns};
use crate::{
    measure::TokenTime,
    output,
    runner::{
        on_model::{self, OnModel},
        pool::{Candidate, Pool},
        set::Entry,
        turns::Plan,
    },
    scenario::Generation,
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them, with each batch of the settings.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        let batches = self.settings().generation_batches();
        self.on_models(scenarios, candidates, &batches, generations());
    }

    /// Runs the loads on every candidate whose tier includes them.
    #[cfg(feature = "serve")]
    pub fn serving(&mut self, scenarios: &[crate::scenario::ServingLoad], candidates: Vec<Candidate>) {
        self.on_models(scenarios, candidates, &[1], super::single_iterations());
    }

    fn on_models<S: OnModel>(&mut self, scenarios: &[S], candidates: Vec<Candidate>, batches: &[usize], plan: Plan) {
        let (seed, device) = (self.settings().seed, self.settings().device);
        self.report_left_out(&candidates);
        let candidates = self.distinct(candidates);
        let pool = RefCell::new(Pool::new(candidates, self.session.device().clone()));
        let mut benchmarks: Vec<(&S, usize, usize)> = Vec::new();
        for scenario in scenarios {
            for place in pool.borrow().that_run(scenario) {
                benchmarks.extend(batches.iter().map(|batch| (scenario, place, *batch)));
            }
        }
        let mut entries: Vec<Entry> = Vec::new();
        for &(scenario, place, batch) in &benchmarks {
            entries.push(on_model::entry(scenario, &pool, (place, batch), seed, device));
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
                if is_last && scenarios[index + 1..].iter().all(|later| later.tier() > tier) {
                    pool.borrow_mut().release(place);
                }
            }
            self.conclude(scenario.key(), || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }

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

    /// Says which engines lack a dtype of the settings, if they run in another one.
    fn report_left_out(&self, candidates: &[Candidate]) {
        if !self.measures {
            return;
        }
        for (engine, dtype) in self.settings().left_out() {
            let engine = engine.id();
            if candidates.iter().any(|candidate| candidate.about.engine == engine) {
                output::report(format_args!("engine {engine} has no dtype {dtype} and is left out there"));
            }
        }
    }
}
