//! The groups of the files of checkpoints: loads, and passes of tokenizers.

use anyhow::Result;
use criterion::{SamplingMode, Throughput, measurement::WallTime};

use super::{NOISE_THRESHOLD, Suite, long_steps, paired::Turns};
use crate::{
    device::DeviceChoice,
    model::{self, ModelSpec},
    record,
    runner::{pool::about, set::Entry},
    scenario::{CheckpointScenario, CheckpointWork, Pass, TOKENIZER_TEXT_BYTES},
    settings::Settings,
    workload::{EMBEDDED_TOKENIZER, LoadWorkload, TokenizerWorkload, Workload},
};

impl Suite {
    /// Runs the scenarios on the models of the settings that have files. Without any, tokenizers run on an embedded one.
    pub fn checkpoints(&mut self, scenarios: &[CheckpointScenario]) {
        let settings = self.settings().clone();
        let mut criterion = self.criterion(WallTime, NOISE_THRESHOLD);
        for scenario in scenarios {
            let entries = match scenario.work {
                CheckpointWork::Load { is_cold } => loads(scenario.key, is_cold, &settings),
                CheckpointWork::Tokenizer(pass) => passes(scenario.key, pass, &settings),
            };
            if entries.is_empty() {
                continue;
            }
            let mut turns = Turns::new(&entries, long_steps(), &self.session);
            let mut group = criterion.benchmark_group(scenario.key);
            group.sampling_mode(SamplingMode::Flat);
            if matches!(scenario.work, CheckpointWork::Tokenizer(_)) {
                group.throughput(Throughput::Bytes(TOKENIZER_TEXT_BYTES as u64));
            }
            for place in 0..entries.len() {
                let ended = self.entry(&mut group, &entries, place, &mut turns, |iteration, _| iteration.time);
                if let Some(ended) = ended {
                    self.keep(ended);
                }
            }
            self.conclude(scenario.key, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

/// A load of each checkpoint by each of its engines.
fn loads<'a>(key: &'a str, is_cold: bool, settings: &'a Settings) -> Vec<Entry<'a>> {
    let device = settings.device;
    let mut entries = Vec::new();
    for spec in settings.models.iter().filter(|spec| !spec.is_synthetic()) {
        // A peer loads its files in a way of its own.
        for (engine, dtype) in settings.variants_for(spec) {
            let Some(engine) = engine.own() else { continue };
            let prepare = move || -> Result<Box<dyn Workload>> {
                Ok(Box::new(LoadWorkload::new(spec, engine, dtype, device, is_cold)?))
            };
            let names = (spec.slug(), engine.to_string(), model::dtype_of(spec, dtype));
            entries.push(entry(key, about(names, device, &spec.to_string(), false), prepare));
        }
    }
    entries
}

/// A pass of the tokenizer of each checkpoint, or of the embedded one.
fn passes<'a>(key: &'a str, pass: Pass, settings: &'a Settings) -> Vec<Entry<'a>> {
    let own: Vec<&ModelSpec> = settings.models.iter().filter(|spec| !spec.is_synthetic()).collect();
    let specs = if own.is_empty() { vec![None] } else { own.into_iter().map(Some).collect() };
    let of = |spec: Option<&'a ModelSpec>| {
        let name = spec.map_or_else(|| EMBEDDED_TOKENIZER.to_owned(), ModelSpec::slug);
        let source = spec.map_or_else(|| format!("embedded:{EMBEDDED_TOKENIZER}"), ToString::to_string);
        let prepare = move || -> Result<Box<dyn Workload>> { Ok(Box::new(TokenizerWorkload::new(spec, pass)?)) };
        // A tokenizer makes ids, and runs on the CPU for every device of the model.
        let names = (name, "tokenizers".to_owned(), "u32".to_owned());
        entry(key, about(names, DeviceChoice::Cpu, &source, false), prepare)
    };
    specs.into_iter().map(of).collect()
}

fn entry<'a>(
    key: &'a str,
    subject: record::Subject,
    prepare: impl Fn() -> Result<Box<dyn Workload>> + 'a,
) -> Entry<'a> {
    Entry { scenario: key, subject, counterparts: Vec::new(), needs: Box::new(|| (0, 0)), prepare: Box::new(prepare) }
}
