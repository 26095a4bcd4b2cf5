//! The group of perplexities: a benchmark for each model on each engine in each dtype.

use std::cell::RefCell;

use anyhow::Result;
use criterion::{SamplingMode, Throughput, measurement::WallTime};

use super::{NOISE_THRESHOLD, Suite, long_steps, paired::Turns};
use crate::{
    device::Precision,
    model::{self, Engine, ModelSpec, Subject},
    quality,
    record::BenchmarkId,
    runner::{pool::Candidate, set::Entry},
    scenario::PerplexityScenario,
    settings::{EngineChoice, Settings},
    workload::{PerplexityWorkload, Workload},
};

/// A model on an engine in a dtype.
struct Variant<'a> {
    spec: &'a ModelSpec,
    engine: Engine,
    dtype: Precision,
    /// Its description, to which loading adds the size.
    candidate: RefCell<Candidate>,
}

impl Variant<'_> {
    fn load(&self, settings: &Settings) -> Result<Subject> {
        let subject = model::load(self.spec, self.engine, self.dtype, settings.device, settings.seed)?;
        self.candidate.borrow_mut().learn(&subject);
        Ok(subject)
    }

    fn id(&self, scenario: &PerplexityScenario) -> String {
        BenchmarkId::new(scenario.key, &self.candidate.borrow().about).to_string()
    }
}

impl Suite {
    /// Scores the embedded text with the models of the settings. Divergences are from engine `tuned` in f32 if it is among the
    /// engines and dtypes of the model, and from the first of them otherwise. A peer gives no logits, so it has no score.
    pub fn perplexity(&mut self, scenarios: &[PerplexityScenario]) {
        let settings = self.settings().clone();
        let mut criterion = self.criterion(WallTime, NOISE_THRESHOLD);
        for scenario in scenarios.iter().filter(|scenario| settings.generation_tier() >= scenario.tier) {
            let models: Vec<Vec<Variant>> = settings.models.iter().map(|spec| variants(spec, &settings)).collect();
            let variants: Vec<(&Variant, Option<&Variant>)> =
                models.iter().flat_map(|own| with_reference(own)).collect();
            let mut entries: Vec<Entry> = Vec::new();
            for &(variant, reference) in &variants {
                entries.push(Entry {
                    scenario: scenario.key,
                    subject: variant.candidate.borrow().about.clone(),
                    counterparts: Vec::new(),
                    needs: Box::new(|| (0, 0)),
                    prepare: Box::new(prepared(scenario, variant, reference, &settings)),
                });
            }
            if entries.is_empty() {
                continue;
            }
            let mut turns = Turns::new(&entries, long_steps(), &self.session);
            let mut group = criterion.benchmark_group(scenario.key);
            group.sampling_mode(SamplingMode::Flat);
            group.throughput(Throughput::Elements(scenario.window_tokens as u64 - 1));
            for (place, (variant, _)) in variants.iter().enumerate() {
                let ended = self.entry(&mut group, &entries, place, &mut turns, |iteration, _| iteration.time);
                if let Some(mut ended) = ended {
                    ended.subject = variant.candidate.borrow().about.clone();
                    self.keep(ended);
                }
            }
            self.conclude(scenario.key, || group.finish());
        }
        self.conclude("all groups", || criterion.final_summary());
    }
}

fn variants<'a>(spec: &'a ModelSpec, settings: &Settings) -> Vec<Variant<'a>> {
    let variant = |(choice, dtype): (EngineChoice, Precision)| {
        let engine = choice.own()?;
        let candidate = Candidate::from_settings(&settings.with_variant(spec, choice, dtype)).into_iter().next()?;
        Some(Variant { spec, engine, dtype, candidate: RefCell::new(candidate) })
    };
    settings.variants_for(spec).into_iter().filter_map(variant).collect()
}

/// Each variant of a model with its reference. The reference itself has none.
fn with_reference<'a, 'b>(own: &'a [Variant<'b>]) -> impl Iterator<Item = (&'a Variant<'b>, Option<&'a Variant<'b>>)> {
    let exact = own.iter().position(|variant| (variant.engine, variant.dtype) == (Engine::Tuned, Precision::F32));
    let reference = exact.unwrap_or(0);
    own.iter().enumerate().map(move |(place, variant)| (variant, own.get(reference).filter(|_| place != reference)))
}

/// Loads both models, of which the reference stays until the text is scored.
fn prepared<'a>(
    scenario: &'a PerplexityScenario,
    variant: &'a Variant<'_>,
    reference: Option<&'a Variant<'_>>,
    settings: &'a Settings,
) -> impl Fn() -> Result<Box<dyn Workload>> + 'a {
    move || {
        let subject = variant.load(settings)?;
        let loaded = |reference: &Variant| -> Result<quality::Entry> {
            Ok(quality::Entry { id: reference.id(scenario), model: reference.load(settings)?.model })
        };
        let reference = reference.map(loaded).transpose()?;
        let is_synthetic = variant.spec.is_synthetic();
        let work = PerplexityWorkload::new(scenario, variant.id(scenario), subject, reference, is_synthetic)?;
        Ok(Box::new(work))
    }
}
