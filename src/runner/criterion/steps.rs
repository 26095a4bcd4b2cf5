//! The groups whose iterations are steps: language models in training, and the architecture sweep.

use anyhow::Result;
use criterion::{
    Criterion, SamplingMode, Throughput,
    measurement::{Measurement, WallTime},
};

use super::{Entry, NOISE_THRESHOLD, Suite, long_steps, paired::Turns, steps};
use crate::{
    device::DeviceChoice,
    measure::{PeakBytes, TokenTime, peak_bytes},
    record::BenchmarkId,
    runner::turns::Plan,
    scenario::{Phase, Quantity, SWEEP, Tier, Trained, TrainingScenario},
    settings::Settings,
    workload::{
        Iteration, LanguageWorkload, language_bytes, language_subject,
        series::{SeriesGrid, SeriesWorkload, series_subject},
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
        let mut trained: Vec<Trained> = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for entry in scenario.entries(tier(&settings), &settings.training_grid()) {
            match self.language_entry(scenario, entry, trained.len(), &settings) {
                Ok(made) => {
                    trained.push(entry);
                    entries.push(made);
                }
                Err(error) => self.fail(&error),
            }
        }
        // Peak memory does not depend on the number of steps.
        let iterations = settings.steps.filter(|_| scenario.quantity == Quantity::Time);
        let mut turns = Turns::new(&entries, Plan { iterations, ..long_steps() }, &self.session);
        let mut group = criterion.benchmark_group(scenario.key);
        group.sampling_mode(SamplingMode::Flat);
        for (place, entry) in trained.iter().enumerate() {
            group.throughput(Throughput::Elements(entry.batch_tokens() as u64));
            if let Some(ended) = self.entry(&mut group, &entries, place, &mut turns, &value) {
                self.keep(ended);
            }
        }
        self.conclude(scenario.key, || group.finish());
    }

    fn language_entry<'a>(
        &self,
        scenario: &'a TrainingScenario,
        entry: Trained,
        place: usize,
        settings: &'a Settings,
    ) -> Result<Entry<'a>> {
        let (seed, device) = (settings.seed, settings.device);
        let mut counterparts = Vec::new();
        for (counterpart, other) in scenario.counterparts(&entry) {
            let other = BenchmarkId::new(scenario.key, &language_subject(&other, settings)?);
            counterparts.push((counterpart, other.to_string()));
        }
        let subject = language_subject(&entry, settings)?;
        let (dtype, (phase, quantity)) = (subject.dtype.clone(), (scenario.phase, scenario.quantity));
        // An error here is one of the preparation too, which puts it into a record.
        let needed_bytes = language_bytes(&entry, phase, &dtype, device).unwrap_or_default();
        Ok(Entry {
            scenario: scenario.key,
            subject,
            counterparts,
            needs: Box::new(move || (place, needed_bytes)),
            prepare: Box::new(move || {
                Ok(Box::new(LanguageWorkload::new(&entry, phase, quantity, &dtype, seed, device)?))
            }),
        })
    }

    /// Runs every combination of a preset of the sweep, in training and in forecasting. Device, dtype and seed come
    /// from the settings.
    pub fn sweep(&mut self, preset: &str) {
        let read = SeriesGrid::preset(preset).map(|grid| grid.with_settings(self.settings()));
        let (grid, combinations) = match read.and_then(|grid| Ok((grid.clone(), grid.combinations()?))) {
            Ok(read) => read,
            Err(error) => return self.fail(&error),
        };
        let mut criterion = self.criterion(WallTime, NOISE_THRESHOLD);
        for phase in [Phase::Train, Phase::Forward] {
            let scenario = SWEEP.key(phase);
            let entry = |(place, combination)| Entry {
                scenario,
                subject: series_subject(combination, &grid),
                counterparts: Vec::new(),
                needs: Box::new(move || (place, 0)),
                prepare: {
                    let grid = &grid;
                    Box::new(move || Ok(Box::new(SeriesWorkload::new(combination, phase, grid)?)))
                },
            };
            let entries: Vec<Entry> = combinations.iter().enumerate().map(entry).collect();
            let mut turns = Turns::new(&entries, steps(), &self.session);
            let mut group = criterion.benchmark_group(scenario);
            group.sampling_mode(SamplingMode::Flat);
            group.throughput(Throughput::Elements(grid.batch as u64));
            for place in 0..entries.len() {
                let ended = self.entry(&mut group, &entries, place, &mut turns, |iteration, _| iteration.time);
                if let Some(ended) = ended {
                    self.keep(ended);
                }
            }
            self.conclude(scenario, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// The tier of trainings: as set, or by default the smallest on a CPU.
pub(in crate::runner) fn tier(settings: &Settings) -> Tier {
    let default = if settings.device == DeviceChoice::Cpu { Tier::Quick } else { Tier::Full };
    settings.tier.unwrap_or(default)
}
