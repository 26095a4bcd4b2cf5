//! Where the time of a generation or of a training goes: the parts of a prompt, of a decode step or of a step of a training, what each
//! must read and compute, and how close it is to the limits of the machine.
//!
//! A part is a span of the crate `tracing`. Engine `tuned`, the trainings and the models of candle-transformers open them, and so can
//! your own model. A span may say what is in it in the fields `bytes`, `flops` and `kernel`, and spans of one name that differ in the
//! field `part` are parts of their own:
//!
//! ```
//! use candlepower::{
//!     CausalLm, Footprint,
//!     anyhow::Result,
//!     candle_core::{DType, Device, Tensor},
//!     tracing::trace_span,
//!     why::{Lengths, Trace},
//! };
//!
//! struct Model(Tensor, Device);
//!
//! impl CausalLm for Model {
//!     fn forward(&mut self, tokens: &[u32], _: usize) -> Result<Tensor> {
//!         let x = trace_span!("embedding").in_scope(|| self.0.get(tokens[tokens.len() - 1] as usize))?;
//!         let head = trace_span!("head", bytes = 8 * 4 * 4, flops = 2 * 8 * 4);
//!         Ok(head.in_scope(|| self.0.matmul(&x.unsqueeze(1)?)?.squeeze(1))?)
//!     }
//! #   fn reset(&mut self) -> Result<()> { Ok(()) }
//! #   fn footprint(&self) -> Footprint { Footprint::dense(32, 32, DType::F32, 0) }
//! #   fn vocab_size(&self) -> usize { 8 }
//! #   fn max_position_embeddings(&self) -> usize { 64 }
//! #   fn device(&self) -> &Device { &self.1 }
//! }
//!
//! # fn main() -> Result<()> {
//! let trace = Trace::start()?; // Before the model is loaded.
//! let mut model = Model(Tensor::ones((8, 4), DType::F32, &Device::Cpu)?, Device::Cpu);
//! let found = trace.explain(&mut model, &Lengths { prompt_tokens: 4, new_tokens: 8, rounds: 2 })?;
//! assert!(found.phases.iter().all(|phase| phase.parts.iter().any(|part| part.name == "head")));
//! println!("{found}");
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "cli")]
mod advice;
#[cfg(feature = "cli")]
mod section;
#[cfg(test)]
mod tests;
mod text;
mod trace;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[cfg(feature = "cli")]
pub use self::advice::{Advice, Advised, Beside};
#[cfg(feature = "cli")]
pub(crate) use self::section::section;
pub use self::trace::Trace;
use self::trace::{Left, Part as Traced, Phase as Recorded};
use crate::{
    device::Precision,
    generate::{self, DECODE, PREFILL, Request, prompt_ids},
    measure::{Gauge, Reading, allocator, statistics::median, weights_bytes_per_s},
    model::CausalLm,
    progress,
    scenario::Sampling,
};
#[cfg(feature = "cli")]
use crate::{step::STEP, workload::Workload};

/// Least time of the steps of a round.
#[cfg(feature = "cli")]
const ROUND: Duration = Duration::from_millis(200);

/// The lengths of the generations that are traced.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that are generated.
    pub new_tokens: usize,
    /// Generations that are traced. Each has one beside it that is not, to tell what tracing costs.
    pub rounds: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { prompt_tokens: 256, new_tokens: 64, rounds: 5 }
    }
}

/// Where the time of a generation goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Tokens of the prompt; `null` for steps of a training.
    pub prompt_tokens: Option<usize>,
    /// Tokens that were generated; `null` for steps of a training.
    pub new_tokens: Option<usize>,
    /// Bandwidth of reading the weights, or memory if the model does not offer them, in the median reading.
    pub read_bytes_per_s: f64,
    /// Rate of a large matrix product in the median reading.
    pub matrix_flops_per_s: f64,
    /// Time with tracing over that without, less one, in the median pair.
    pub tracing_cost: f64,
    /// The prompt and the decode steps, or the steps of a training.
    pub phases: Vec<Phase>,
}

/// The passes of one kind.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Phase {
    /// `prefill`, `decode` or `step`.
    pub name: String,
    /// Passes that were traced.
    pub passes: u64,
    /// Mean time of a pass.
    pub ms: f64,
    /// Bytes of weights and cache that a pass must read; 0 for a step of a training, which is bound by its products.
    pub bytes: u64,
    /// Floating-point operations that a pass must do.
    pub flops: u64,
    /// The least time that the limits of the machine allow.
    pub bound_ms: f64,
    /// True if that is the time of reading, false if that of computing.
    pub is_bound_by_memory: bool,
    /// Pages that the kernel mapped in a pass; `null` where the system does not tell.
    pub page_faults: Option<f64>,
    /// The parts, by time. Their times sum to that of the pass.
    pub parts: Vec<Part>,
}

/// A part of a pass: the spans of one name, and of one field `part` where they have it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// The name of the spans, followed by `: ` and the field; [`OTHER`] for the time outside of all.
    pub name: String,
    /// Spans in a pass.
    pub calls: f64,
    /// Mean time in a pass, without that of spans inside.
    pub ms: f64,
    /// Share of the time of the pass.
    pub share: f64,
    /// Bytes of weights and cache that it must read; `null` if its spans do not say.
    pub bytes: Option<f64>,
    /// Floating-point operations that it must do; `null` if its spans do not say.
    pub flops: Option<f64>,
    /// The least time that the limits of the machine allow; `null` without bytes and operations.
    pub bound_ms: Option<f64>,
    /// The kernels that its spans state. Those of engine `tuned` state the formats of the weights and the instruction set.
    pub kernels: Vec<String>,
    /// Allocations in a pass; `null` in a program without the counting allocator.
    pub allocations: Option<f64>,
    /// Their bytes.
    pub allocated_bytes: Option<f64>,
}

/// The name of the part that no span names.
pub const OTHER: &str = "(other)";

impl Trace {
    /// Generates with a model that was loaded after this has started, and explains where the time goes.
    ///
    /// # Errors
    /// If the model fails, or holds fewer tokens.
    pub fn explain(&self, model: &mut dyn CausalLm, lengths: &Lengths) -> Result<Explanation> {
        Ok(self.explain_in(&mut [(model, Precision::F32.name())], lengths)?.0.remove(0))
    }

    /// As [`Self::explain`], for some models in turns, each with the limit of products in a dtype. Also returns the spans in Chrome's format
    /// of traces.
    pub(crate) fn explain_in(
        &self,
        models: &mut [(&mut dyn CausalLm, &str)],
        lengths: &Lengths,
    ) -> Result<(Vec<Explanation>, Value)> {
        let Lengths { prompt_tokens, new_tokens, rounds } = *lengths;
        ensure!(rounds > 0, "at least one generation must be traced");
        let device = models.first().context("no model to explain")?.0.device().clone();
        let request = Request { new_tokens, sampling: Sampling::GREEDY, seed: 42, stop: Vec::new() };
        let mut works: Vec<Work<'_>> = Vec::new();
        for (model, dtype) in models.iter_mut() {
            generate::check_lengths(*model, prompt_tokens, new_tokens)?;
            let prompt = prompt_ids(None, model.vocab_size(), prompt_tokens, 42)?;
            let (model, request) = (&mut **model, &request);
            let run = Box::new(move || generate::run(model, std::slice::from_ref(&prompt), request).map(drop));
            works.push((run, *dtype));
        }
        let (measured, left) = self.measure(works, rounds, &device)?;
        let explained = models.iter().zip(measured).map(|((model, _), measured)| measured.explain(*model, lengths));
        Ok((explained.collect(), chrome(&left)))
    }

    /// Explains the steps of work whose operations are known. `device` and `dtype` are those of its limits. Also returns the spans in
    /// Chrome's format of traces.
    ///
    /// # Errors
    /// If the work fails, or is no step of a training.
    #[cfg(feature = "cli")]
    pub(crate) fn explain_steps(
        &self,
        work: &mut dyn Workload,
        rounds: usize,
        (device, dtype): (&Device, &str),
    ) -> Result<(Explanation, Value)> {
        let flops = work.flops().context("only the steps of trainings and of the sweep have parts here")?;
        let step = work.iterate()?.time;
        let count = (ROUND.as_secs_f64() / step.as_secs_f64()).clamp(1.0, 1000.0) as usize;
        let steps = Box::new(|| work.repeat(count).map(drop));
        let (mut measured, left) = self.measure(vec![(steps, dtype)], rounds, device)?;
        let Measured { limits, tracing_cost, phases } = measured.remove(0);
        let explanation = Explanation {
            prompt_tokens: None,
            new_tokens: None,
            read_bytes_per_s: limits.read_bytes_per_s,
            matrix_flops_per_s: limits.matrix_flops_per_s,
            tracing_cost,
            phases: phases
                .iter()
                .filter(|phase| phase.name == STEP)
                .map(|phase| Phase::new(phase, (0, flops), limits))
                .collect(),
        };
        Ok((explanation, chrome(&left)))
    }

    /// Runs works in rounds and in turns, once with and once without tracing in each, and reads the limits of the machine between the rounds.
    fn measure(&self, mut works: Vec<Work>, rounds: usize, device: &Device) -> Result<(Vec<Measured>, Vec<Left>)> {
        let line = progress::live("tracing");
        line.step("measuring the limits of the machine");
        let gauge = Gauge::new(device)?;
        let run = |(work, _): &mut Work, subject: Option<usize>| -> Result<Duration> {
            self.record(subject);
            let started = Instant::now();
            let ended = work();
            let time = started.elapsed();
            self.record(None);
            ended?;
            Ok(time)
        };
        line.step("warming up");
        works.iter_mut().try_for_each(|work| run(work, None).map(drop))?;
        let began = Instant::now();
        let reading = || Ok::<_, anyhow::Error>((Instant::now(), gauge.read()?));
        let mut readings: Vec<(Instant, Reading)> = vec![reading()?];
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); works.len()];
        for round in 0..rounds {
            line.part("round", (round, rounds), began);
            // The one that comes first changes, so that drift of the machine meets both, and all works.
            let is_even = round % 2 == 0;
            for place in 0..works.len() {
                let subject = if is_even { place } else { works.len() - 1 - place };
                let work = &mut works[subject];
                let (traced, plain) = match is_even {
                    true => (run(work, Some(subject))?, run(work, None)?),
                    false => {
                        let plain = run(work, None)?;
                        (run(work, Some(subject))?, plain)
                    }
                };
                costs[subject].push(traced.as_secs_f64() / plain.as_secs_f64() - 1.0);
            }
            readings.push(reading()?);
        }
        let (phases, left) = self.take();
        let measured = works.iter().zip(costs).zip(phases).map(|(((_, dtype), costs), phases)| Measured {
            limits: gauge.limits(&readings, dtype).median(),
            tracing_cost: median(costs),
            phases,
        });
        Ok((measured.collect(), left))
    }
}

/// Something to run, and the dtype of its products.
type Work<'a> = (Box<dyn FnMut() -> Result<()> + 'a>, &'a str);

/// The rounds of some work.
struct Measured {
    /// The median readings.
    limits: Reading,
    /// See [`Explanation::tracing_cost`].
    tracing_cost: f64,
    phases: Vec<Recorded>,
}

impl Measured {
    /// Explains the generations of a model.
    fn explain(self, model: &dyn CausalLm, lengths: &Lengths) -> Explanation {
        let Self { limits, tracing_cost, phases } = self;
        let Lengths { prompt_tokens, new_tokens, rounds } = *lengths;
        let of_weights = model.weights().and_then(|weights| {
            let read: Vec<f64> = (0..rounds).filter_map(|_| weights_bytes_per_s(&weights)).collect();
            (!read.is_empty()).then(|| median(read))
        });
        let limits = Reading { read_bytes_per_s: of_weights.unwrap_or(limits.read_bytes_per_s), ..limits };
        let named = [PREFILL, DECODE].map(|name| phases.iter().find(|phase| phase.name == name));
        let footprint = model.footprint();
        // The cache of the middle step.
        let middle = prompt_tokens + new_tokens / 2;
        let required = |name: &str| match name {
            PREFILL => (footprint.step_weight_bytes, model.prefill_flops(prompt_tokens)),
            _ => (footprint.step_weight_bytes + model.cache_bytes(middle).used, footprint.flops_per_token),
        };
        Explanation {
            prompt_tokens: Some(prompt_tokens),
            new_tokens: Some(new_tokens),
            read_bytes_per_s: limits.read_bytes_per_s,
            matrix_flops_per_s: limits.matrix_flops_per_s,
            tracing_cost,
            phases: named.into_iter().flatten().map(|phase| Phase::new(phase, required(phase.name), limits)).collect(),
        }
    }
}

impl Phase {
    fn new(recorded: &Recorded, (bytes, flops): (u64, u64), limits: Reading) -> Self {
        let passes = recorded.passes.max(1) as f64;
        let ms = recorded.time.as_secs_f64() * 1e3 / passes;
        let counts = allocator::peak_bytes().is_some();
        let part = |traced: &Traced| {
            let own_ms = traced.time.as_secs_f64() * 1e3 / passes;
            let per_pass = |total: u64| total as f64 / passes;
            let (bytes, flops) = (traced.bytes.map(per_pass), traced.flops.map(per_pass));
            let bound = bytes.is_some() || flops.is_some();
            Part {
                name: if traced.name == recorded.name {
                    OTHER.into()
                } else {
                    named(traced.name, traced.part.as_deref())
                },
                calls: per_pass(traced.calls),
                ms: own_ms,
                share: own_ms / ms,
                bytes,
                flops,
                bound_ms: bound.then(|| bound_ms(bytes.unwrap_or(0.0), flops.unwrap_or(0.0), limits)),
                kernels: traced.kernels.iter().map(|kernel| kernel.to_string()).collect(),
                allocations: counts.then(|| per_pass(traced.allocations)),
                allocated_bytes: counts.then(|| per_pass(traced.allocated_bytes)),
            }
        };
        let mut parts: Vec<Part> = recorded.parts.iter().map(part).collect();
        parts.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Self {
            name: recorded.name.into(),
            passes: recorded.passes,
            ms,
            bytes,
            flops,
            bound_ms: bound_ms(bytes as f64, flops as f64, limits),
            is_bound_by_memory: bound_ms(bytes as f64, 0.0, limits) >= bound_ms(0.0, flops as f64, limits),
            page_faults: crate::measure::page_faults().map(|_| recorded.page_faults as f64 / passes),
            parts,
        }
    }
}

/// The name of a part.
fn named(name: &str, part: Option<&str>) -> String {
    part.map_or_else(|| name.to_owned(), |part| format!("{name}: {part}"))
}

/// The least time of work: the roofline model (Williams, Waterman, Patterson 2009).
fn bound_ms(bytes: f64, flops: f64, limits: Reading) -> f64 {
    (bytes / limits.read_bytes_per_s).max(flops / limits.matrix_flops_per_s) * 1e3
}

/// Spans in the JSON array format of Chrome's trace viewer, which Perfetto reads too.
fn chrome(left: &[Left]) -> Value {
    let first = left.iter().map(|span| span.started).min();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let event = |span: &Left| {
        let since = first.map_or(Duration::ZERO, |first| span.started - first);
        let name = named(span.name, span.part.as_deref());
        json!({ "name": name, "ph": "X", "pid": 1, "tid": 1, "ts": us(since), "dur": us(span.time) })
    };
    left.iter().map(event).collect()
}
