//! The groups whose iterations are steps: language models in training, and the architecture sweep.

use criterion::{Criterion, SamplingMode, Throughput, measurement::Measurement};

use super::{Entry, NOISE_THRESHOLD, Suite, bytes, long_steps, steps};
use crate::{
    device::DeviceChoice,
    measure::{TokenTime, peak_bytes},
    scenario::{Phase, Quantity, SWEEP, Tier, TrainingScenario},
    settings::Settings,
    workload::{
        Iteration, LanguageWorkload, language_subject,
        series::{SeriesGrid, SeriesWorkload, series_subject},
    },
};

impl Suite {
    /// Runs every entry of the groups that the tier includes.
    pub fn training(&mut self, scenarios: &[TrainingScenario]) {
        let of = |quantity| scenarios.iter().filter(move |scenario| scenario.quantity == quantity);
        if of(Quantity::Time).next().is_some() {
            let mut criterion = long_steps(TokenTime, NOISE_THRESHOLD);
            for scenario in of(Quantity::Time) {
                self.language(&mut criterion, scenario, |iteration, _| iteration.time);
            }
            self.conclude("all groups", || criterion.final_summary());
        }
        if of(Quantity::PeakBytes).next().is_some() {
            let mut criterion = bytes();
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
        let mut group = criterion.benchmark_group(scenario.key);
        group.sampling_mode(SamplingMode::Flat);
        for entry in scenario.entries(tier(self.settings())) {
            group.throughput(Throughput::Elements(entry.batch_tokens() as u64));
            let (seed, device) = (self.settings().seed, self.settings().device);
            let subject = match language_subject(&entry, self.settings()) {
                Ok(subject) => subject,
                Err(error) => {
                    self.fail(&error);
                    continue;
                }
            };
            let dtype = subject.dtype.clone();
            let prepare = || {
                let (phase, quantity) = (scenario.phase, scenario.quantity);
                Ok(Box::new(LanguageWorkload::new(&entry, phase, quantity, &dtype, seed, device)?) as _)
            };
            let entry = Entry { scenario: scenario.key, subject };
            if let Some(ended) = self.entry(&mut group, entry, prepare, &value) {
                self.keep(ended);
            }
        }
        self.conclude(scenario.key, || group.finish());
    }

    /// Runs every combination of a preset of the sweep, in training and in forecasting. Device, dtype and seed come
    /// from the settings.
    pub fn sweep(&mut self, preset: &str) {
        let read = SeriesGrid::preset(preset).map(|grid| grid.with_settings(self.settings()));
        let (grid, combinations) = match read.and_then(|grid| Ok((grid.clone(), grid.combinations()?))) {
            Ok(read) => read,
            Err(error) => return self.fail(&error),
        };
        let mut criterion = steps();
        for phase in [Phase::Train, Phase::Forward] {
            let scenario = SWEEP.key(phase);
            let mut group = criterion.benchmark_group(scenario);
            group.sampling_mode(SamplingMode::Flat);
            group.throughput(Throughput::Elements(grid.batch as u64));
            for combination in &combinations {
                let entry = Entry { scenario, subject: series_subject(combination, &grid) };
                let prepare = || Ok(Box::new(SeriesWorkload::new(combination, phase, &grid)?) as _);
                if let Some(ended) = self.entry(&mut group, entry, prepare, |iteration, _| iteration.time) {
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
