//! Perplexities: a benchmark for each model on each engine in each dtype.

use std::{cell::RefCell, rc::Rc};

use anyhow::Result;
use criterion::Throughput;

use super::{Benchmark, Kind, LONG_STEPS, Listing, Sampled, Section};
use crate::{
    device::Precision,
    model::Engine,
    quality,
    record::Subject,
    runner::{Candidate, Session},
    scenario::PerplexityScenario,
    settings::{EngineChoice, Settings},
    workload::{PerplexityWorkload, Workload},
};

/// Scores of the embedded text by the models of the settings. Divergences are from engine `tuned` in f32 if it is among the
/// engines and dtypes of the model, and from the first of them otherwise. A peer gives no logits, so it has no score.
pub struct Scores(pub &'static [PerplexityScenario]);

impl Kind for Scores {
    fn keys(&self) -> Vec<&'static str> {
        self.0.iter().map(|scenario| scenario.key).collect()
    }

    fn listing(&self, _: &Settings) -> Listing {
        let row = |scenario: &PerplexityScenario| {
            let (window, stride) = (scenario.window_tokens.to_string(), scenario.stride_tokens.to_string());
            vec![scenario.key.to_owned(), scenario.tier.to_string(), scenario.purpose.to_owned(), window, stride]
        };
        let heading = &["quality", "smallest tier", "purpose", "window", "stride"];
        Listing { heading, texts: 3, rows: self.0.iter().map(row).collect() }
    }

    fn sections(&self, session: &Session) -> Vec<Section> {
        let settings = session.settings();
        let scenarios = self.0.iter().filter(|scenario| settings.generation_tier() >= scenario.tier);
        let benchmarks = scenarios.flat_map(|scenario| scores(scenario, settings)).collect();
        vec![Section::new(Sampled::WallTime, LONG_STEPS, benchmarks)]
    }
}

fn scores(scenario: &'static PerplexityScenario, settings: &Settings) -> Vec<Rc<dyn Benchmark>> {
    let mut benchmarks: Vec<Rc<dyn Benchmark>> = Vec::new();
    for spec in &settings.models {
        let own = |(engine, _): &(EngineChoice, Precision)| engine.own().is_some();
        let variants: Vec<_> = settings.variants_for(spec).into_iter().filter(own).collect();
        let exact = (EngineChoice::Own(Engine::Tuned), Precision::F32);
        let reference = variants.iter().position(|variant| *variant == exact).unwrap_or(0);
        let candidates = Candidate::of_model(settings, spec, &variants);
        let candidates: Vec<_> = candidates.into_iter().map(|one| Rc::new(RefCell::new(one))).collect();
        for (place, candidate) in candidates.iter().enumerate() {
            let reference = (place != reference).then(|| candidates[reference].clone());
            benchmarks.push(Rc::new(Score { scenario, candidate: candidate.clone(), reference }));
        }
    }
    benchmarks
}

struct Score {
    scenario: &'static PerplexityScenario,
    /// Its description, to which loading adds the size.
    candidate: Rc<RefCell<Candidate>>,
    /// The reference itself has none.
    reference: Option<Rc<RefCell<Candidate>>>,
}

impl Benchmark for Score {
    fn scenario(&self) -> &'static str {
        self.scenario.key
    }

    fn subject(&self) -> Subject {
        self.candidate.borrow().about.clone()
    }

    fn throughput(&self) -> Option<Throughput> {
        Some(Throughput::Elements(self.scenario.window_tokens as u64 - 1))
    }

    /// Loads both models, of which the reference stays until the text is scored.
    fn prepare(&self) -> Result<Box<dyn Workload>> {
        let subject = self.candidate.borrow_mut().load_model()?;
        let loaded = |reference: &Rc<RefCell<Candidate>>| -> Result<quality::Entry> {
            let mut reference = reference.borrow_mut();
            let id = crate::record::BenchmarkId::new(self.scenario.key, &reference.about).to_string();
            Ok(quality::Entry { id, model: reference.load_model()?.model })
        };
        let reference = self.reference.as_ref().map(loaded).transpose()?;
        let is_synthetic = self.candidate.borrow().about.synthetic_weights;
        let id = self.id().to_string();
        Ok(Box::new(PerplexityWorkload::new(self.scenario, id, subject, reference, is_synthetic)?))
    }
}
