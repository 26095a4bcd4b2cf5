//! The groups of the architecture sweep: a group a phase, an entry a combination, one step an iteration.

use criterion::{Bencher, BenchmarkGroup, SamplingMode, Throughput, measurement::WallTime};

use super::{Suite, abort, stepped::Entry, steps};
use crate::{
    scenario::{SWEEP_INFER, SWEEP_TRAIN},
    sweep::{Combination, Config, Phase, Source, Work, subject},
};

impl Suite {
    /// Runs every combination of a preset of the sweep, training and forecast, where and how precisely the settings say.
    pub fn sweep(&mut self, preset: &str) {
        let read = Config::default().apply(Source::Preset(preset)).map(|config| config.with_settings(self.settings()));
        let (config, combinations) = match read.and_then(|config| Ok((config.clone(), config.combinations()?))) {
            Ok(read) => read,
            Err(error) => return self.fail(&error),
        };
        let mut criterion = steps();
        for (scenario, phase) in [(SWEEP_TRAIN, Phase::Train), (SWEEP_INFER, Phase::Infer)] {
            let mut group = criterion.benchmark_group(scenario);
            group.sampling_mode(SamplingMode::Flat);
            group.throughput(Throughput::Elements(config.batch as u64));
            for combination in &combinations {
                self.combination(&mut group, scenario, phase, combination, &config);
            }
            group.finish();
        }
        criterion.final_summary();
    }

    fn combination(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        scenario: &str,
        phase: Phase,
        combination: &Combination,
        config: &Config,
    ) {
        let variant = config.variant();
        let entry = Entry { scenario, name: &combination.name, variant: &variant, about: subject(combination, config) };
        let bench = |bencher: &mut Bencher<'_, WallTime>, work: &mut Work, samples: &mut Vec<usize>| {
            bencher.iter_custom(|iterations| {
                samples.push(iterations as usize);
                (0..iterations).map(|_| work.step().unwrap_or_else(|error| abort(error))).sum()
            });
        };
        self.stepped(group, entry, || Work::new(combination, phase, config), bench, Work::end);
    }
}
