//! One generation of a peer per iteration.

use std::{
    cell::RefCell,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::super::{Iteration, Measured, Outcome, Workload, drop_warm_up, energy::Energy, generation::measured};
use super::SETTLE;
use crate::{
    device::{DeviceChoice, Precision},
    generate::{self, FinishReason, Request, Required, Timeline},
    measure::LimitsOverTime,
    model::{CacheBytes, External, Footprint},
    peer::{Generated, Loaded, Model, Peer, Work},
    record,
    scenario::Generation,
};

/// A peer that has loaded a model.
pub struct PeerSubject {
    pub(super) peer: Peer,
    pub(super) model: External,
    loaded: Loaded,
    pub(super) precision: Precision,
    device: DeviceChoice,
}

/// A peer that a pool and a workload share.
pub type SharedPeer = Rc<RefCell<PeerSubject>>;

impl PeerSubject {
    /// Lets a peer load a model for one kind of work, in a precision with its name in ids. `seed` is that of seeded weights.
    ///
    /// # Errors
    /// Returns an error if the peer does not load the model.
    pub fn load(
        (mut peer, work): (Peer, Work),
        model: External,
        (precision, dtype): (Precision, &str),
        device: DeviceChoice,
        seed: u64,
    ) -> Result<Self> {
        let path;
        let weights = match model.shape() {
            Some(config) => Model::Seeded { config, seed },
            None => {
                path = model.path()?;
                if model.is_gguf() { Model::Gguf(&path) } else { Model::Folder(&path) }
            }
        };
        let parameters = model.config().parameters();
        let loaded = peer.load(&weights, work, (dtype, &device.to_string()), parameters)?;
        Ok(Self { peer, model, loaded, precision, device })
    }

    /// Fills in the properties that only the running peer knows.
    pub fn describe(&self, subject: &mut record::Subject) {
        subject.source = self.model.source().to_owned();
        subject.parameters = Some(self.loaded.parameters);
        subject.weight_bytes = Some(self.loaded.weight_bytes);
        subject.formats = self.model.formats();
        subject.peer = Some(self.peer.about().clone());
    }

    /// Makes prompts, as for the engines.
    ///
    /// # Errors
    /// See [`generate::prompt_batch`].
    fn prompts(&self, tokens: usize, batch: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
        generate::prompt_batch(self.model.tokenizer(), self.model.config().vocab_size, tokens, batch, seed)
    }

    fn reset(&mut self, prompts: &[Vec<u32>], request: &Request) -> Result<()> {
        let tokens = prompts.first().map_or(0, Vec::len) + request.new_tokens;
        self.peer.reset((prompts.len(), tokens), request.sampling, request.seed)
    }

    /// Runs one generation.
    fn generate(&mut self, prompts: &[Vec<u32>], request: &Request) -> Result<(Timeline, Generated)> {
        let vocab_size = self.model.config().vocab_size;
        self.reset(prompts, request)?;
        let began = Instant::now();
        let first = self.peer.prefill(&prompts.concat(), vocab_size)?;
        let rest = match request.new_tokens {
            1 => Generated { tokens: Vec::new(), ns: Vec::new(), ..first.clone() },
            tokens => self.peer.step(tokens - 1, vocab_size)?,
        };
        let ttft: Duration = first.ns.iter().copied().map(Duration::from_nanos).sum();
        let steps: Vec<Duration> = rest.ns.iter().copied().map(Duration::from_nanos).collect();
        let ends = steps.iter().scan(began + ttft, |end, step| {
            *end += *step;
            Some(*end)
        });
        let timeline = Timeline {
            began: Some(began),
            step_ends: ends.collect(),
            weight_readings: Vec::new(),
            prompt_tokens: prompts.first().map_or(0, Vec::len),
            ttft,
            steps,
            sampling: None,
            waiting: Duration::ZERO,
            cpu: None,
            allocations: None,
            tokens: by_sequence([first.tokens.as_slice(), &rest.tokens].concat(), prompts.len()),
            finish_reason: FinishReason::Length,
        };
        let peak_bytes = first.peak_bytes.zip(rest.peak_bytes).map(|(first, rest)| first.max(rest));
        Ok((timeline, Generated { peak_bytes, ..rest }))
    }
}

/// The tokens of each sequence, from those of each step.
fn by_sequence(tokens: Vec<u32>, sequences: usize) -> Vec<Vec<u32>> {
    (0..sequences).map(|sequence| tokens.iter().skip(sequence).step_by(sequences).copied().collect()).collect()
}

/// Generations of a peer with a batch of prompts.
pub struct PeerWorkload {
    subject: SharedPeer,
    prompts: Vec<Vec<u32>>,
    request: Request,
    timelines: Vec<Timeline>,
    /// Bytes of the cache after the last generation.
    cache_bytes: u64,
    /// Peak of all generations; `None` if the peer does not count it.
    peak_bytes: Option<u64>,
    energy: Energy,
}

impl PeerWorkload {
    /// Prepares generations of a scenario. The peer is asked whether it supports them.
    ///
    /// # Errors
    /// Returns an error if the generation is too long for the model, and `Unsupported` if the peer does not run it.
    pub fn new(subject: SharedPeer, scenario: &Generation, batch: usize, seed: u64) -> Result<Self> {
        let mut loaded = subject.borrow_mut();
        let Generation { prompt_tokens, new_tokens, sampling, .. } = *scenario;
        let longest = loaded.model.config().max_position_embeddings;
        generate::check_lengths_within(longest, prompt_tokens, new_tokens)?;
        let prompts = loaded.prompts(prompt_tokens, batch, seed)?;
        let request = Request { new_tokens, sampling, seed, stop: Vec::new() };
        loaded.reset(&prompts, &request)?;
        let energy = Energy::of(loaded.device);
        drop(loaded);
        Ok(Self { subject, prompts, request, timelines: Vec::new(), cache_bytes: 0, peak_bytes: None, energy })
    }

    fn measures(&self, samples: &[usize], limits: &LimitsOverTime) -> Result<Measured> {
        let subject = self.subject.borrow();
        let model = &subject.model;
        let (dtype, count) = (model.dtype(subject.precision), self.prompts.len() as u64);
        let used = |tokens| count * model.used_cache_bytes(dtype, tokens);
        let cache = |tokens| CacheBytes { used: used(tokens), allocated: self.cache_bytes };
        let one = model.footprint(subject.precision);
        let footprint = Footprint { flops_per_token: count * one.flops_per_token, ..one };
        let required = |prompt_tokens, steps| {
            let prefill_flops = count * model.config().prefill_flops(prompt_tokens);
            Required::of(&footprint, cache, prefill_flops, prompt_tokens, steps)
        };
        let (timelines, peak_bytes) = (&self.timelines, self.peak_bytes);
        let measures = generate::summarise(required, &self.request, timelines, samples, peak_bytes, Some(limits))?;
        let no_peak = peak_bytes.is_none().then_some("the peer does not count it");
        let mut measured = measured(measures, &self.energy, no_peak);
        measured.unmeasured.insert("sampling_share".into(), "the peer does not tell it apart".into());
        Ok(measured)
    }
}

impl Workload for PeerWorkload {
    fn iterate(&mut self) -> Result<Iteration> {
        let mut subject = self.subject.borrow_mut();
        thread::sleep(SETTLE);
        let (timeline, last) = self.energy.over(|| subject.generate(&self.prompts, &self.request))?;
        thread::sleep(SETTLE);
        self.cache_bytes = last.cache_bytes;
        self.peak_bytes = last.peak_bytes.map(|peak| peak.max(self.peak_bytes.unwrap_or_default()));
        let time = timeline.total();
        self.timelines.push(timeline);
        Ok(Iteration { time, peak_bytes: last.peak_bytes.unwrap_or_default() })
    }

    fn forget_last(&mut self) {
        self.timelines.pop();
        self.energy.iterations().pop();
    }

    fn ttft(&self) -> Option<Duration> {
        self.timelines.last().filter(|timeline| !timeline.steps.is_empty()).map(|timeline| timeline.ttft)
    }

    fn output_digest(&self) -> Option<String> {
        let tokens = self.timelines.last().map(|timeline| timeline.tokens.concat());
        Some(generate::digest(&tokens.unwrap_or_default()))
    }

    fn helpers(&self) -> Vec<u32> {
        vec![self.subject.borrow().peer.id()]
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.timelines, samples);
        drop_warm_up(self.energy.iterations(), samples);
        Outcome { measured: self.measures(samples, limits), deviates: None }
    }
}
