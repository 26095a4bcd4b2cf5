//! One generation per iteration.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use anyhow::{Context, Result, ensure};
use candle_core::Device;

use super::{Iteration, Measured, Outcome, Workload, drop_warm_up, energy::Energy};
use crate::{
    device::DeviceChoice,
    generate::{self, Request, Required, Run, Timeline},
    measure::{
        LimitsOverTime,
        memory::{self, HeldBytes, Peak},
    },
    model::Subject,
    record::{self, Measures, Routing},
    scenario::Generation,
};

/// A loaded model that a pool and a workload share. One thread uses it.
pub type SharedSubject = Rc<RefCell<Subject>>;

/// Most sequences of a batch. A model that holds fewer runs them in parts, and far more would take days without a result.
const MOST_SEQUENCES: usize = 1024;

/// Generations with one prompt, or with a batch of prompts.
pub struct GenerationWorkload {
    subject: SharedSubject,
    prompts: Vec<Vec<u32>>,
    request: Request,
    deviates: Option<String>,
    /// Peak memory as it was predicted before the first generation.
    predicted_bytes: Option<u64>,
    timelines: Vec<Timeline>,
    /// A generation that has begun, and its peak memory so far.
    begun: Option<(Run, u64)>,
    /// Use of the experts by the last generation.
    routing: Option<Routing>,
    /// Bytes that each rank of a sharded model passed to the others in the last generation.
    reduced_bytes: Option<u64>,
    peak: Peak,
    energy: Energy,
}

impl GenerationWorkload {
    /// Prepares generations of a scenario, with a batch of so many prompts. `held` is the memory that the subject
    /// holds.
    ///
    /// # Errors
    /// As [`new`](Self::new), and if the tokenizer cannot make the prompts.
    pub(crate) fn of_scenario(
        subject: SharedSubject,
        held: HeldBytes,
        (scenario, batch): (&Generation, usize),
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Self> {
        let Generation { prompt_tokens, new_tokens, sampling, .. } = *scenario;
        let request = Request { new_tokens, sampling, seed, stop: Vec::new() };
        ensure!(
            batch <= MOST_SEQUENCES,
            "batch={batch}: at most {MOST_SEQUENCES} sequences are generated in a batch; set batch to fewer"
        );
        let prompts = {
            let loaded = subject.borrow();
            let (model, tokenizer) = (loaded.model.as_ref(), loaded.tokenizer.as_ref());
            generate::check_lengths(model, prompt_tokens, new_tokens)?;
            let bytes = (batch * scenario.total_tokens() * size_of::<u32>()) as u64;
            memory::ensure_fits(&format!("the tokens of {batch} sequences"), bytes, &Device::Cpu)?;
            generate::prompt_batch(tokenizer, model.vocab_size(), prompt_tokens, batch, seed)?
        };
        Self::new(subject, held, prompts, request, device)
    }

    /// Prepares generations with these prompts, all of the same length. `held` is the memory that the subject
    /// holds.
    ///
    /// # Errors
    /// Returns an error if there is no prompt, the generation is too long for the model, or the attention scores, the activations
    /// or the cache of a batch do not fit in memory.
    pub fn new(
        subject: SharedSubject,
        held: HeldBytes,
        prompts: Vec<Vec<u32>>,
        request: Request,
        device: DeviceChoice,
    ) -> Result<Self> {
        let loaded = subject.borrow();
        let model = loaded.model.as_ref();
        let (prompt_tokens, new_tokens) = (prompts.first().map_or(0, Vec::len), request.new_tokens);
        generate::check_lengths(model, prompt_tokens, new_tokens)?;
        let sequences = prompts.len().min(model.max_sequences());
        let prompt_bytes = model.prompt_bytes(sequences * prompt_tokens);
        let work = format!("the attention scores and activations of {prompt_tokens} tokens");
        let needed_bytes = model.score_bytes(prompt_tokens).max(prompt_bytes.unwrap_or_default());
        memory::ensure_fits(&work, needed_bytes, model.device())?;
        // The cache of one sequence was counted with the model.
        let more = sequences.saturating_sub(1);
        if more > 0 {
            let bytes = more as u64 * model.cache_bytes(prompt_tokens + new_tokens).allocated;
            memory::ensure_fits(&format!("the cache of {sequences} sequences"), bytes, model.device())?;
        }
        let tokens = prompt_tokens + new_tokens.saturating_sub(1);
        let of_model = model.footprint().weight_bytes + sequences as u64 * model.cache_bytes(tokens).allocated;
        let predicted_bytes = prompt_bytes.map(|bytes| of_model + bytes);
        let deviates = model.deviates(prompt_tokens, new_tokens);
        let peak = Peak::of(model.device(), held);
        drop(loaded);
        Ok(Self {
            subject,
            prompts,
            request,
            deviates,
            predicted_bytes,
            timelines: Vec::new(),
            begun: None,
            routing: None,
            reduced_bytes: None,
            peak,
            energy: Energy::of(device),
        })
    }

    /// Token ids of each sequence of the last generation.
    pub(crate) fn tokens(&self) -> &[Vec<u32>] {
        self.timelines.last().map_or(&[], |timeline| &timeline.tokens)
    }

    fn measures(&self, samples: &[usize], limits: &LimitsOverTime) -> Result<Measured> {
        let subject = self.subject.borrow();
        let sequences = self.prompts.len();
        let required = |prompt_tokens, steps| Required::by(subject.model.as_ref(), sequences, prompt_tokens, steps);
        let peak_bytes = self.peak.most();
        let measures =
            generate::summarise(required, &self.request, &self.timelines, samples, peak_bytes.ok(), Some(limits))?;
        let (attention, cache_dtype) = subject.model.attention().unzip();
        let measures = record::Generation {
            routing: self.routing.clone(),
            reduced_bytes: self.reduced_bytes,
            predicted_peak_bytes: self.predicted_bytes,
            attention: attention.map(str::to_owned),
            cache_dtype: cache_dtype.map(|dtype| dtype.as_str().to_owned()),
            ..measures
        };
        Ok(measured(measures, &self.energy, peak_bytes.err()))
    }
}

/// Adds the energy, and the reasons for empty fields.
pub(super) fn measured(mut measures: record::Generation, energy: &Energy, no_peak: Option<&str>) -> Measured {
    let mut unmeasured = BTreeMap::new();
    let mut note = |field: &str, reason: &str| unmeasured.insert(field.to_owned(), reason.to_owned());
    match energy.mean_joules() {
        Ok(joules) => {
            let tokens = measures.sequences() * measures.generated_tokens;
            measures.joules_per_token = Some(joules / tokens as f64);
        }
        Err(reason) => drop(note("joules_per_token", reason)),
    }
    if let Some(reason) = no_peak {
        note("peak_bytes", reason);
    }
    if measures.tpot_ms.is_none() {
        for measure in record::measures::all().filter(|measure| measure.row.of_steps) {
            note(measure.name, "only one token was generated");
        }
    }
    Measured { measures: Measures::Generation(measures), unmeasured }
}

impl Workload for GenerationWorkload {
    fn iterate(&mut self) -> Result<Iteration> {
        self.advance(Duration::MAX)?.context("the generation has not ended")
    }

    /// Runs steps of a generation, which is timed from the prompt to the last token. Clears the sequence at its end, so that a
    /// workload that shares the subject neither counts nor frees this one's cache.
    fn advance(&mut self, time: Duration) -> Result<Option<Iteration>> {
        self.peak.begin();
        let mut subject = self.subject.borrow_mut();
        let model = subject.model.as_mut();
        let (mut run, peak_bytes) = match self.begun.take() {
            Some(begun) => begun,
            None => (Run::new(model, &self.prompts, &self.request)?, 0),
        };
        let has_ended = self.energy.over(|| run.advance(model, time))?;
        let peak_bytes = peak_bytes.max(self.peak.end());
        if !has_ended {
            self.peak.settle();
            self.begun = Some((run, peak_bytes));
            return Ok(None);
        }
        let timeline = run.end();
        self.routing = generate::routing(subject.model.as_ref());
        self.reduced_bytes = subject.model.reduced_bytes();
        subject.model.reset()?;
        self.peak.settle();
        let time = timeline.total();
        self.timelines.push(timeline);
        Ok(Some(Iteration { time, peak_bytes }))
    }

    /// A counter of energy would also count the work on other models.
    fn model_between_parts(&self) -> Option<*const ()> {
        (!self.energy.is_counted()).then(|| Rc::as_ptr(&self.subject).cast())
    }

    fn forget_last(&mut self) {
        self.timelines.pop();
        self.energy.iterations().pop();
    }

    fn ttft(&self) -> Option<Duration> {
        self.timelines.last().filter(|timeline| !timeline.steps.is_empty()).map(|timeline| timeline.ttft)
    }

    fn output_digest(&self) -> Option<String> {
        Some(generate::digest(&self.tokens().concat()))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.timelines, samples);
        drop_warm_up(self.energy.iterations(), samples);
        Outcome { measured: self.measures(samples, limits), deviates: self.deviates }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Precision,
        model::{self, Engine, ModelSpec},
        scenario::{Sampling, Tier},
    };

    /// On the engine that holds several sequences, and on the one that generates them one after the other.
    #[test]
    fn greedy_tokens_of_a_batch_are_those_of_each_prompt_alone() {
        let scenario = Generation {
            key: "tiny",
            prompt_tokens: 20,
            new_tokens: 6,
            sampling: Sampling::GREEDY,
            tier: Tier::Quick,
            against: None,
            purpose: "a test",
        };
        for engine in Engine::ALL {
            let spec = ModelSpec::Mini("llama-mini");
            let subject = model::load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 42).expect("a model");
            let subject = Rc::new(RefCell::new(subject));
            let work = |batch| {
                GenerationWorkload::of_scenario(
                    subject.clone(),
                    HeldBytes::default(),
                    (&scenario, batch),
                    42,
                    DeviceChoice::Cpu,
                )
            };
            let mut batch = work(3).expect("a workload");
            batch.iterate().expect("a generation");
            assert_eq!(batch.tokens().len(), 3);
            for (prompt, expected) in batch.prompts.iter().zip(batch.tokens()) {
                let request = batch.request.clone();
                let mut alone = GenerationWorkload::new(
                    subject.clone(),
                    HeldBytes::default(),
                    vec![prompt.clone()],
                    request,
                    DeviceChoice::Cpu,
                )
                .expect("a workload");
                alone.iterate().expect("a generation");
                assert_eq!(alone.tokens(), std::slice::from_ref(expected), "{engine}");
            }
            assert_ne!(batch.tokens()[0], batch.tokens()[1], "the prompts differ");
            let error = work(1 << 40).err().expect("a batch over the limit").to_string();
            assert!(error.contains("at most 1024 sequences"), "{error}");
        }
    }
}
