//! One generation per iteration.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use anyhow::Result;

use super::{Iteration, Measured, Outcome, Workload, drop_warm_up, energy::Energy};
use crate::{
    device::DeviceChoice,
    generate::{self, Request, Required, Timeline},
    measure::memory::{self, Peak},
    model::Subject,
    record::{self, Limits, Measures, Routing},
};

/// A loaded model that a pool and a workload share. One thread uses it.
pub type SharedSubject = Rc<RefCell<Subject>>;

/// Generations with one prompt.
pub struct GenerationWorkload {
    subject: SharedSubject,
    prompt: Vec<u32>,
    request: Request,
    deviates: Option<String>,
    timelines: Vec<Timeline>,
    /// Use of the experts by the last generation.
    routing: Option<Routing>,
    /// Bytes that each rank of a sharded model passed to the others in the last generation.
    reduced_bytes: Option<u64>,
    peak: Peak,
    energy: Energy,
}

impl GenerationWorkload {
    /// Prepares generations. `bytes_beside` is the memory in use that does not belong to the subject.
    ///
    /// # Errors
    /// Returns an error if the generation is too long for the model, or its attention scores do not fit in memory.
    pub fn new(
        subject: SharedSubject,
        bytes_beside: u64,
        prompt: Vec<u32>,
        request: Request,
        device: DeviceChoice,
    ) -> Result<Self> {
        let loaded = subject.borrow();
        let model = loaded.model.as_ref();
        generate::check_lengths(model, prompt.len(), request.new_tokens)?;
        let work = format!("the attention scores of {} tokens", prompt.len());
        memory::ensure_fits(&work, model.score_bytes(prompt.len()), model.device())?;
        let deviates = model.deviates(prompt.len(), request.new_tokens);
        let peak = Peak::new(model.device(), bytes_beside);
        drop(loaded);
        Ok(Self {
            subject,
            prompt,
            request,
            deviates,
            timelines: Vec::new(),
            routing: None,
            reduced_bytes: None,
            peak,
            energy: Energy::of(device),
        })
    }

    /// Token ids of the last generation.
    pub fn tokens(&self) -> &[u32] {
        self.timelines.last().map_or(&[], |timeline| &timeline.tokens)
    }

    fn measures(&self, samples: &[usize], limits: &Limits) -> Result<Measured> {
        let subject = self.subject.borrow();
        let required = |prompt_tokens, steps| Required::by(subject.model.as_ref(), prompt_tokens, steps);
        let peak_bytes = self.peak.most();
        let measures =
            generate::summarise(required, &self.request, &self.timelines, samples, peak_bytes.ok(), Some(limits))?;
        let measures =
            record::Generation { routing: self.routing.clone(), reduced_bytes: self.reduced_bytes, ..measures };
        Ok(measured(measures, &self.energy, peak_bytes.err()))
    }
}

/// Adds the energy, and the reasons for empty fields.
pub(super) fn measured(mut measures: record::Generation, energy: &Energy, no_peak: Option<&str>) -> Measured {
    let mut unmeasured = BTreeMap::new();
    let mut note = |field: &str, reason: &str| unmeasured.insert(field.to_owned(), reason.to_owned());
    match energy.mean_joules() {
        Ok(joules) => measures.joules_per_token = Some(joules / measures.generated_tokens as f64),
        Err(reason) => drop(note("joules_per_token", reason)),
    }
    if let Some(reason) = no_peak {
        note("peak_bytes", reason);
    }
    if measures.tpot_ms.is_none() {
        for field in ["itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "tpot_ms", "decode_tokens_per_s", "mbu"] {
            note(field, "only one token was generated");
        }
    }
    Measured { measures: Measures::Generation(measures), unmeasured }
}

impl Workload for GenerationWorkload {
    /// Runs one generation, timed from the prompt to the last token. Clears the sequence afterwards, so that a workload
    /// that shares the subject neither counts nor frees this one's cache.
    fn iterate(&mut self) -> Result<Iteration> {
        self.peak.begin();
        let mut subject = self.subject.borrow_mut();
        let timeline = self.energy.over(|| generate::run(subject.model.as_mut(), &self.prompt, &self.request))?;
        let peak_bytes = self.peak.end();
        self.routing = generate::routing(subject.model.as_ref());
        self.reduced_bytes = subject.model.reduced_bytes();
        subject.model.reset()?;
        self.peak.settle();
        let time = timeline.total();
        self.timelines.push(timeline);
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.timelines.pop();
        self.energy.iterations().pop();
    }

    fn output_digest(&self) -> Option<String> {
        Some(generate::digest(self.tokens()))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &Limits) -> Outcome {
        drop_warm_up(&mut self.timelines, samples);
        drop_warm_up(self.energy.iterations(), samples);
        Outcome { measured: self.measures(samples, limits), deviates: self.deviates }
    }
}
