//! One generation per iteration.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use anyhow::{Result, anyhow};

use super::{Iteration, Measured, Outcome, Workload, drop_warm_up};
use crate::{
    device::DeviceChoice,
    generate::{self, Request, Timeline},
    measure::{
        gpu,
        memory::{self, Peak},
    },
    model::Subject,
    record::{Limits, Measures, Routing},
};

/// A loaded model that a pool and a workload share. One thread uses it.
pub type SharedSubject = Rc<RefCell<Subject>>;

/// Generations with one prompt.
pub struct GenerationWorkload {
    subject: SharedSubject,
    prompt: Vec<u32>,
    request: Request,
    device: DeviceChoice,
    deviates: Option<String>,
    timelines: Vec<Timeline>,
    /// Use of the experts by the last generation.
    routing: Option<Routing>,
    peak: Peak,
    joules: Vec<f64>,
    energy_unknown: Option<String>,
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
            device,
            deviates,
            timelines: Vec::new(),
            routing: None,
            peak,
            joules: Vec::new(),
            energy_unknown: None,
        })
    }

    /// Token ids of the last generation.
    pub fn tokens(&self) -> &[u32] {
        self.timelines.last().map_or(&[], |timeline| &timeline.tokens)
    }

    fn energy_joules(&self) -> Result<f64> {
        match self.device {
            DeviceChoice::Cuda(ordinal) => gpu::energy_joules(ordinal),
            DeviceChoice::Cpu | DeviceChoice::Metal => Err(anyhow!("energy is not measured on {}", self.device)),
        }
    }

    fn measures(&self, samples: &[usize], limits: &Limits) -> Result<Measured> {
        let subject = self.subject.borrow();
        let (model, peak_bytes) = (subject.model.as_ref(), self.peak.most().ok());
        let timelines = &self.timelines;
        let mut measures = generate::summarise(model, &self.request, timelines, samples, peak_bytes, Some(limits))?;
        measures.routing = self.routing.clone();
        let mut unmeasured = BTreeMap::new();
        let mut note = |field: &str, reason: &str| unmeasured.insert(field.to_owned(), reason.to_owned());
        if !self.joules.is_empty() {
            let joules = self.joules.iter().sum::<f64>() / self.joules.len() as f64;
            measures.joules_per_token = Some(joules / measures.generated_tokens as f64);
        } else if let Some(reason) = &self.energy_unknown {
            note("joules_per_token", reason);
        }
        if let Err(reason) = self.peak.most() {
            note("peak_bytes", reason);
        }
        if measures.tpot_ms.is_none() {
            for field in ["itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "tpot_ms", "decode_tokens_per_s", "mbu"] {
                note(field, "only one token was generated");
            }
        }
        Ok(Measured { measures: Measures::Generation(measures), unmeasured })
    }
}

impl Workload for GenerationWorkload {
    /// Runs one generation, timed from the prompt to the last token. Clears the sequence afterwards, so that a workload
    /// that shares the subject neither counts nor frees this one's cache.
    fn iterate(&mut self) -> Result<Iteration> {
        self.peak.begin();
        let before = self.energy_joules();
        let mut subject = self.subject.borrow_mut();
        let timeline = generate::run(subject.model.as_mut(), &self.prompt, &self.request)?;
        match (before, self.energy_joules()) {
            (Ok(before), Ok(after)) => self.joules.push(after - before),
            (Err(error), _) | (_, Err(error)) => self.energy_unknown = Some(format!("{error:#}")),
        }
        let peak_bytes = self.peak.end();
        self.routing = generate::routing(subject.model.as_ref());
        subject.model.reset()?;
        self.peak.settle();
        let time = timeline.total();
        self.timelines.push(timeline);
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.timelines.pop();
        self.joules.pop();
    }

    fn output_digest(&self) -> Option<String> {
        Some(generate::digest(self.tokens()))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &Limits) -> Outcome {
        drop_warm_up(&mut self.timelines, samples);
        drop_warm_up(&mut self.joules, samples);
        Outcome { measured: self.measures(samples, limits), deviates: self.deviates }
    }
}
