//! The files of checkpoints: loads, and passes of tokenizers.

use std::rc::Rc;

use anyhow::Result;
use criterion::Throughput;

use super::{Benchmark, Kind, LONG_STEPS, Listing, Sampled, Section};
use crate::{
    device::{DeviceChoice, Precision},
    model::{self, Engine, ModelSpec},
    record::Subject,
    runner::{Session, candidate::about},
    scenario::{CheckpointScenario, CheckpointWork, Pass, TOKENIZER_TEXT_BYTES},
    settings::Settings,
    workload::{EMBEDDED_TOKENIZER, LoadWorkload, TokenizerWorkload, Workload},
};

/// Scenarios on the models of the settings that have files. Without any, tokenizers run on an embedded one.
pub struct Files(pub &'static [CheckpointScenario]);

impl Kind for Files {
    fn keys(&self) -> Vec<&'static str> {
        self.0.iter().map(|scenario| scenario.key).collect()
    }

    fn listing(&self, _: &Settings) -> Listing {
        let row = |scenario: &CheckpointScenario| vec![scenario.key.to_owned(), scenario.purpose.to_owned()];
        Listing { heading: &["files of a checkpoint", "purpose"], texts: 2, rows: self.0.iter().map(row).collect() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        let settings = session.settings();
        let of_scenario = |scenario: &CheckpointScenario| match scenario.work {
            CheckpointWork::Load { is_cold } => loads(scenario.key, is_cold, settings),
            CheckpointWork::Tokenizer(pass) => passes(scenario.key, pass, settings),
        };
        let benchmarks = self.0.iter().flat_map(of_scenario).collect();
        vec![Section::new(Sampled::WallTime, LONG_STEPS, benchmarks)]
    }
}

/// A load of each checkpoint by each of its engines.
fn loads(scenario: &'static str, is_cold: bool, settings: &Settings) -> Vec<Rc<dyn Benchmark>> {
    let device = settings.device;
    let mut benchmarks: Vec<Rc<dyn Benchmark>> = Vec::new();
    for spec in settings.models.iter().filter(|spec| !spec.is_synthetic()) {
        // A peer loads its files in a way of its own.
        for (engine, dtype) in settings.variants_for(spec) {
            let Some(engine) = engine.own() else { continue };
            benchmarks.push(Rc::new(Load { scenario, spec: spec.clone(), engine, dtype, device, is_cold }));
        }
    }
    benchmarks
}

struct Load {
    scenario: &'static str,
    spec: ModelSpec,
    engine: Engine,
    dtype: Precision,
    device: DeviceChoice,
    is_cold: bool,
}

impl Benchmark for Load {
    fn scenario(&self) -> &'static str {
        self.scenario
    }

    fn subject(&self) -> Subject {
        let names = (self.spec.slug(), self.engine.to_string(), model::dtype_of(&self.spec, self.dtype));
        about(names, self.device, &self.spec.to_string(), false)
    }

    fn prepare(&self) -> Result<Box<dyn Workload>> {
        Ok(Box::new(LoadWorkload::new(&self.spec, self.engine, self.dtype, self.device, self.is_cold)?))
    }
}

/// A pass of the tokenizer of each checkpoint, or of the embedded one.
fn passes(scenario: &'static str, pass: Pass, settings: &Settings) -> Vec<Rc<dyn Benchmark>> {
    let own = settings.models.iter().filter(|spec| !spec.is_synthetic()).cloned();
    let mut specs: Vec<Option<ModelSpec>> = own.map(Some).collect();
    if specs.is_empty() {
        specs.push(None);
    }
    let benchmark = |spec| -> Rc<dyn Benchmark> { Rc::new(Tokenize { scenario, spec, pass }) };
    specs.into_iter().map(benchmark).collect()
}

struct Tokenize {
    scenario: &'static str,
    /// `None` for the embedded tokenizer.
    spec: Option<ModelSpec>,
    pass: Pass,
}

impl Benchmark for Tokenize {
    fn scenario(&self) -> &'static str {
        self.scenario
    }

    fn subject(&self) -> Subject {
        let spec = self.spec.as_ref();
        let name = spec.map_or_else(|| EMBEDDED_TOKENIZER.to_owned(), ModelSpec::slug);
        let source = spec.map_or_else(|| format!("embedded:{EMBEDDED_TOKENIZER}"), ToString::to_string);
        // A tokenizer makes ids, and runs on the CPU for every device of the model.
        about((name, "tokenizers".to_owned(), "u32".to_owned()), DeviceChoice::Cpu, &source, false)
    }

    fn throughput(&self) -> Option<Throughput> {
        Some(Throughput::Bytes(TOKENIZER_TEXT_BYTES as u64))
    }

    fn prepare(&self) -> Result<Box<dyn Workload>> {
        Ok(Box::new(TokenizerWorkload::new(self.spec.as_ref(), self.pass)?))
    }
}
