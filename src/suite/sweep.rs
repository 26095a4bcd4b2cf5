//! The groups of the architecture sweep: a group a phase, an entry a combination, one step an iteration.

use criterion::{BenchmarkGroup, BenchmarkId, SamplingMode, Throughput, measurement::WallTime};

use super::{SAMPLES, Suite, abort, argument, session::Seen, steps};
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
        let mut work: Option<Work> = None;
        let mut samples: Vec<usize> = Vec::new();
        let ended = Self::isolated(|| {
            group.bench_function(BenchmarkId::new(&combination.name, config.variant()), |bencher| {
                let prepare = || Work::new(combination, phase, config).unwrap_or_else(|error| abort(error));
                let work = work.get_or_insert_with(prepare);
                bencher.iter_custom(|iterations| {
                    samples.push(iterations as usize);
                    (0..iterations).map(|_| work.step().unwrap_or_else(|error| abort(error))).sum()
                });
            });
        });
        let seen = match (ended, work) {
            (Ok(()), None) => return, // left out by the filter, or only listed
            (Ok(()), Some(work)) => {
                // Criterion warms up in samples of its own, which come first.
                let size = argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(SAMPLES);
                work.end(&samples[samples.len().saturating_sub(size)..])
            }
            (Err(error), _) => Seen::failed(error),
        };
        let id = format!("{scenario}/{}/{}", combination.name, config.variant());
        let record = self.session.record(id, scenario, subject(combination, config), seen);
        self.keep(record);
    }
}
