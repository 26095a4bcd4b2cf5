//! The generation groups: a group a scenario, an entry a subject, one generation an iteration.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, anyhow};
use criterion::{BenchmarkGroup, BenchmarkId, SamplingMode, Throughput};

use super::{
    Candidate, Suite, abort,
    candidate::Pool,
    long_iterations,
    session::{Measured, Seen},
};
use crate::{
    generate::{self, Request, Timeline},
    measure::{self, TokenTime, conditions::Watch, gpu, memory::Peak},
    record::{Limits, Measures},
    scenario::Generation,
    subject::{DeviceChoice, Subject},
};

impl Suite {
    /// Runs the scenarios on every candidate whose tier includes them.
    pub fn generation(&mut self, scenarios: &[Generation], candidates: Vec<Candidate>) {
        let mut criterion = long_iterations(TokenTime);
        let mut pool = Pool::new(candidates, self.session.device().clone());
        for (index, scenario) in scenarios.iter().enumerate() {
            let places = pool.in_tier(scenario.tier);
            if places.is_empty() {
                continue;
            }
            let mut group = criterion.benchmark_group(scenario.key);
            group.sampling_mode(SamplingMode::Flat);
            for place in places {
                group.throughput(Throughput::Elements(scenario.counted_tokens() as u64));
                self.generate(&mut group, scenario, &mut pool, place);
                let tier = pool.candidate(place).tier;
                if scenarios[index + 1..].iter().all(|later| later.tier > tier) {
                    pool.release(place);
                }
            }
            group.finish();
        }
        criterion.final_summary();
    }

    fn generate(
        &mut self,
        group: &mut BenchmarkGroup<'_, TokenTime>,
        scenario: &Generation,
        pool: &mut Pool,
        place: usize,
    ) {
        let (model, variant) = (pool.candidate(place).about.model.clone(), pool.candidate(place).variant());
        let settings = self.settings();
        let (seed, device) = (settings.seed, settings.device);
        let mut work: Option<Work> = None;
        let ended = Self::isolated(|| {
            group.bench_function(BenchmarkId::new(&model, &variant), |bencher| {
                let mut prepare = || Work::prepare(pool, place, scenario, seed, device);
                let work = match &mut work {
                    Some(work) => work,
                    none => none.insert(prepare().unwrap_or_else(|error| abort(error))),
                };
                let subject = pool.subject(place).unwrap_or_else(|error| abort(error));
                bencher.iter_custom(|iterations| {
                    let once = |_| work.generate(subject).unwrap_or_else(|error| abort(error));
                    (0..iterations).map(once).sum()
                });
            });
        });
        let seen = match (ended, work) {
            (Ok(()), None) => return, // left out by the filter, or only listed
            (Ok(()), Some(work)) => match pool.subject(place) {
                Ok(subject) => work.end(subject, WARMUP),
                Err(error) => Seen::failed(error),
            },
            (Err(error), _) => Seen::failed(error),
        };
        let record = self.session.record(
            format!("{}/{model}/{variant}", scenario.key),
            scenario.key,
            pool.candidate(place).about.clone(),
            seen,
        );
        self.keep(record);
    }
}

/// Iterations that Criterion makes before those that it measures: see `long_iterations`.
const WARMUP: usize = 1;

/// Generations of one benchmark, and what was seen beside them. Also what `candlepower run` does.
pub struct Work {
    prompt: Vec<u32>,
    request: Request,
    device: DeviceChoice,
    deviates: Option<String>,
    limits: Limits,
    watch: Watch,
    timelines: Vec<Timeline>,
    peak: Peak,
    joules: Vec<f64>,
    energy_unknown: Option<String>,
}

impl Work {
    /// Loads the subject, if it isn't, and cuts the prompt.
    fn prepare(pool: &mut Pool, place: usize, scenario: &Generation, seed: u64, device: DeviceChoice) -> Result<Self> {
        // Before the subject is there: measuring them takes memory too.
        measure::limits(&device.open()?)?;
        pool.subject(place)?;
        let bytes_beside = pool.bytes_beside(place);
        let subject = pool.subject(place)?;
        let vocab_size = subject.model.vocab_size();
        let prompt = generate::prompt_ids(subject.tokenizer.as_ref(), vocab_size, scenario.prompt_tokens, seed)?;
        let request = Request { new_tokens: scenario.new_tokens, sampling: scenario.sampling, seed, stop: Vec::new() };
        Self::new(subject, bytes_beside, prompt, request, device)
    }

    /// `bytes_beside` is memory in use that is not the subject's.
    ///
    /// # Errors
    /// When the generation is too long for the model, or the limits of the device can't be measured.
    pub fn new(
        subject: &Subject,
        bytes_beside: u64,
        prompt: Vec<u32>,
        request: Request,
        device: DeviceChoice,
    ) -> Result<Self> {
        generate::check_lengths(subject.model.as_ref(), prompt.len(), request.new_tokens)?;
        Ok(Self {
            deviates: subject.model.deviates(prompt.len(), request.new_tokens),
            prompt,
            request,
            device,
            limits: measure::limits(subject.model.device())?,
            watch: Watch::start(device),
            timelines: Vec::new(),
            peak: Peak::new(subject.model.device(), bytes_beside),
            joules: Vec::new(),
            energy_unknown: None,
        })
    }

    /// One generation; returns the time from the prompt to the last token.
    ///
    /// # Errors
    /// As [`generate::run`].
    pub fn generate(&mut self, subject: &mut Subject) -> Result<Duration> {
        self.peak.begin();
        let before = self.energy_joules();
        let timeline = generate::run(subject.model.as_mut(), &self.prompt, &self.request)?;
        match (before, self.energy_joules()) {
            (Ok(before), Ok(after)) => self.joules.push(after - before),
            (Err(error), _) | (_, Err(error)) => self.energy_unknown = Some(format!("{error:#}")),
        }
        self.peak.end();
        let total = timeline.total();
        self.timelines.push(timeline);
        Ok(total)
    }

    /// The timelines so far.
    pub fn timelines(&self) -> &[Timeline] {
        &self.timelines
    }

    fn energy_joules(&self) -> Result<f64> {
        match self.device {
            DeviceChoice::Cuda(ordinal) => gpu::energy_joules(ordinal),
            DeviceChoice::Cpu | DeviceChoice::Metal => Err(anyhow!("no energy counter is read on {}", self.device)),
        }
    }

    /// What was seen, the first `warmup` generations left out as long as one is left.
    pub fn end(mut self, subject: &Subject, warmup: usize) -> Seen {
        let warmup = warmup.min(self.timelines.len().saturating_sub(1));
        self.timelines.drain(..warmup);
        self.joules.drain(..warmup.min(self.joules.len()));
        let measured = self.measures(subject);
        Seen { measured, deviates: self.deviates, limits: Some(self.limits), conditions: Some(self.watch.end()) }
    }

    fn measures(&self, subject: &Subject) -> Result<Measured> {
        let (model, limits) = (subject.model.as_ref(), Some(&self.limits));
        let mut measures = generate::summarise(model, &self.request, &self.timelines, self.peak.most().ok(), limits)?;
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
