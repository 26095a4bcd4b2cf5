//! One load on the scheduler of the server per iteration.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Iteration, Measured, Outcome, SharedSubject, Workload, drop_warm_up, energy::Energy};
use crate::{
    device::DeviceChoice,
    generate,
    load::{Arrivals, Lengths, Plan, Planned, Shape, Shard, Spacing, Turns},
    measure::{
        LimitsOverTime,
        memory::{self, HeldBytes, Peak},
        statistics::{ms, percentile, sample_means},
    },
    record::{Measures, Serving},
    scenario::{Latency, Traffic},
    serve::{Answer, Arrival, Batch, Replay, replay},
};

/// A second of the plan of a load stands for a step.
const STEP_NS: u64 = 1_000_000_000;

/// Loads of the same requests on one model.
pub struct ServingWorkload {
    subject: SharedSubject,
    batch: Batch,
    arrivals: Vec<Arrival>,
    schedule_digest: String,
    latency: Latency,
    deviates: Option<String>,
    replays: Vec<Replay>,
    peak: Peak,
    energy: Energy,
}

impl ServingWorkload {
    /// Draws the requests, and finds out what the scheduler may do with the model. `held` is the memory that the subject
    /// holds.
    ///
    /// # Errors
    /// Returns an error if the requests are too long for the model, their caches do not fit in memory, or the model cannot run.
    pub fn new(
        subject: SharedSubject,
        held: HeldBytes,
        traffic: &Traffic,
        latency: Latency,
        seed: u64,
        device: DeviceChoice,
    ) -> Result<Self> {
        let plan = plan(traffic, seed)?;
        let planned: Vec<Planned> = plan.first_turns(Shard::WHOLE).collect();
        let mut loaded = subject.borrow_mut();
        let own_tokens: usize = planned.iter().map(|request| request.prompt_tokens as usize).sum();
        let tokens = traffic.shared_prefix_tokens + own_tokens;
        let text = generate::prompt_ids(loaded.tokenizer.as_ref(), loaded.model.vocab_size(), tokens, seed)?;
        let arrivals = arrivals(traffic, &planned, &text);

        let model = loaded.model.as_mut();
        let (total, new_tokens) = (traffic.total_tokens(), traffic.new_tokens as usize);
        generate::check_lengths(model, total - new_tokens, new_tokens)?;
        let deviates = model.deviates(total - new_tokens, new_tokens);
        // A benchmark that failed may have left something.
        (0..model.max_sequences()).try_for_each(|sequence| model.release(sequence))?;
        let batch = Batch::of(model, traffic.max_sequences, traffic.step_tokens)?;
        let bytes = model.cache_bytes(total).allocated.saturating_mul(batch.sequences as u64);
        memory::ensure_fits(&format!("the caches of {} sequences", batch.sequences), bytes, model.device())?;
        let peak = Peak::of(model.device(), held);
        drop(loaded);
        Ok(Self {
            subject,
            batch,
            arrivals,
            schedule_digest: plan.digest(),
            latency,
            deviates,
            replays: Vec::new(),
            peak,
            energy: Energy::of(device),
        })
    }

    /// Mean latency of the requests of a load.
    fn time(&self, replay: &Replay) -> Duration {
        let of = |answer: &Answer| match self.latency {
            Latency::Ttft => answer.ttft(),
            Latency::Decode => answer.e2e() - answer.ttft(),
        };
        replay.answers.iter().map(of).sum::<Duration>() / replay.answers.len().max(1) as u32
    }

    fn measures(&self, samples: &[usize]) -> Result<Measured> {
        let first = self.replays.first().context("no load was measured")?;
        ensure!(
            self.replays.iter().all(|replay| tokens(replay) == tokens(first)),
            "the same requests got different tokens: the model keeps state from one load to the next"
        );
        let answers = || self.replays.iter().flat_map(|replay| &replay.answers);
        let sorted = |times: &mut dyn Iterator<Item = Duration>| {
            let mut values: Vec<f64> = times.map(ms).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let ttft = sorted(&mut answers().map(Answer::ttft));
        let e2e = sorted(&mut answers().map(Answer::e2e));
        let itl = sorted(&mut answers().flat_map(Answer::itl));
        let tpot = sorted(&mut answers().filter_map(|answer| {
            let steps = answer.itl().count() as u32;
            (answer.e2e() - answer.ttft()).checked_div(steps)
        }));
        let at = |values: &[f64], share| (!values.is_empty()).then(|| percentile(values, share));

        let (requests, loads) = (answers().count() as u64, self.replays.len() as f64);
        let duration_s = self.replays.iter().map(|replay| replay.duration.as_secs_f64()).sum::<f64>();
        let output_tokens: u64 = answers().map(|answer| answer.tokens.len() as u64).sum();
        let prompts: Vec<u32> = self.arrivals.iter().flat_map(|arrival| arrival.prompt.iter().copied()).collect();
        let mut unmeasured = BTreeMap::new();
        let mut note = |fields: &[&str], reason: &str| {
            unmeasured.extend(fields.iter().map(|field| ((*field).to_owned(), reason.to_owned())));
        };
        note(&["offered_requests_per_s"], "arrivals are counted in steps");
        note(&["goodput_requests_per_s", "goodput_share", "goodput_share_from_send"], "there is no objective");
        let from_send =
            ["ttft_from_send_p50_ms", "ttft_from_send_p99_ms", "e2e_from_send_p50_ms", "e2e_from_send_p99_ms"];
        note(&from_send, "nothing is sent");
        note(&["lateness_p99_ms", "chunk_gap_p50_ms", "chunk_gap_p99_ms"], "nothing is sent");
        note(&["output_tokens_by_tokenizer"], "answers are not decoded to text");
        let joules_per_token = self.energy.mean_joules().map(|joules| joules * loads / output_tokens as f64);
        let joules_per_token = joules_per_token.map_err(|reason| note(&["joules_per_token"], reason)).ok();
        let peak_bytes = self.peak.most().map_err(|reason| note(&["peak_bytes"], reason)).ok();
        let measures = Serving {
            valid: true,
            offered_requests_per_s: None,
            requests,
            failed_requests: 0,
            duration_s,
            requests_per_s: requests as f64 / duration_s,
            output_tokens_per_s: output_tokens as f64 / duration_s,
            goodput_requests_per_s: None,
            goodput_share: None,
            goodput_share_from_send: None,
            ttft_p50_ms: at(&ttft, 0.5),
            ttft_p90_ms: at(&ttft, 0.9),
            ttft_p95_ms: at(&ttft, 0.95),
            ttft_p99_ms: at(&ttft, 0.99),
            ttft_p99_9_ms: at(&ttft, 0.999),
            tpot_p50_ms: at(&tpot, 0.5),
            tpot_p90_ms: at(&tpot, 0.9),
            tpot_p95_ms: at(&tpot, 0.95),
            tpot_p99_ms: at(&tpot, 0.99),
            tpot_p99_9_ms: at(&tpot, 0.999),
            itl_p50_ms: at(&itl, 0.5),
            itl_p90_ms: at(&itl, 0.9),
            itl_p95_ms: at(&itl, 0.95),
            itl_p99_ms: at(&itl, 0.99),
            itl_p99_9_ms: at(&itl, 0.999),
            e2e_p50_ms: at(&e2e, 0.5),
            e2e_p90_ms: at(&e2e, 0.9),
            e2e_p95_ms: at(&e2e, 0.95),
            e2e_p99_ms: at(&e2e, 0.99),
            e2e_p99_9_ms: at(&e2e, 0.999),
            ttft_from_send_p50_ms: None,
            ttft_from_send_p99_ms: None,
            e2e_from_send_p50_ms: None,
            e2e_from_send_p99_ms: None,
            chunk_gap_p50_ms: None,
            chunk_gap_p99_ms: None,
            lateness_p99_ms: None,
            prompt_tokens_by_usage: Some(prompts.len() as u64 * self.replays.len() as u64),
            cached_tokens: answers().map(|answer| answer.cached_tokens as u64).sum(),
            output_tokens_by_usage: Some(output_tokens),
            output_tokens_by_tokenizer: None,
            chunks: output_tokens,
            divergent_requests: 0,
            schedule_digest: self.schedule_digest.clone(),
            prompt_digest: generate::digest(&prompts),
            sample_e2e_ms: Vec::new(),
            sample_ms: sample_means(
                &self.replays.iter().map(|replay| ms(self.time(replay))).collect::<Vec<_>>(),
                samples,
            ),
            token_digest: Some(generate::digest(&tokens(first))),
            peak_bytes,
            joules_per_token,
        };
        Ok(Measured { measures: Measures::Serving(measures), unmeasured })
    }
}

/// The schedule of the requests.
fn plan(traffic: &Traffic, seed: u64) -> Result<Plan> {
    let (low, high) = traffic.own_tokens;
    Plan::new(Shape {
        seed,
        arrivals: Arrivals::Open {
            rate: 1.0 / traffic.steps_between,
            spacing: Spacing::Poisson,
            ramp_from: 0.0,
            ramp_s: 0.0,
        },
        duration_s: None,
        requests: Some(traffic.requests),
        prompt_tokens: Lengths::Uniform(low, high),
        max_new_tokens: Lengths::Fixed(traffic.new_tokens),
        shared_prefix_tokens: 0,
        turns: Turns { count: 1, think_ms: 0.0 },
        trace: None,
    })
}

/// The requests of a schedule. `text` has the shared tokens, and then those of each prompt alone.
fn arrivals(traffic: &Traffic, planned: &[Planned], text: &[u32]) -> Vec<Arrival> {
    let (shared, mut rest) = text.split_at(traffic.shared_prefix_tokens);
    let arrival = |request: &Planned| {
        let (own, after) = rest.split_at(request.prompt_tokens as usize);
        rest = after;
        let beginning = if request.index.is_multiple_of(2) { shared } else { &[] };
        Arrival {
            after_steps: request.due_ns.unwrap_or_default() / STEP_NS,
            prompt: [beginning, own].concat().into(),
            new_tokens: request.max_new_tokens as usize,
        }
    };
    planned.iter().map(arrival).collect()
}

/// The tokens of all answers, in the order of the requests.
fn tokens(replay: &Replay) -> Vec<u32> {
    replay.answers.iter().flat_map(|answer| &answer.tokens).copied().collect()
}

impl Workload for ServingWorkload {
    /// Answers all requests. The time is the mean latency of a request.
    fn iterate(&mut self) -> Result<Iteration> {
        self.peak.begin();
        let mut subject = self.subject.borrow_mut();
        let load = self.energy.over(|| replay(subject.model.as_mut(), self.batch, &self.arrivals))?;
        let peak_bytes = self.peak.end();
        drop(subject);
        self.peak.settle();
        let time = self.time(&load);
        self.replays.push(load);
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.replays.pop();
        self.energy.iterations().pop();
    }

    fn output_digest(&self) -> Option<String> {
        self.replays.last().map(|replay| generate::digest(&tokens(replay)))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], _: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.replays, samples);
        drop_warm_up(self.energy.iterations(), samples);
        Outcome { measured: self.measures(samples), deviates: self.deviates }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::{
        device::Precision,
        model::{self, Engine, ModelSpec},
        record::Record,
        scenario::{SERVING_LOAD, ServingLoad},
    };

    fn limits() -> LimitsOverTime {
        let record: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        record.limits.expect("limits").into()
    }

    fn workload(subject: &SharedSubject, scenario: &ServingLoad, seed: u64) -> Box<ServingWorkload> {
        let ServingLoad { traffic, latency, .. } = scenario;
        let made =
            ServingWorkload::new(subject.clone(), HeldBytes::default(), traffic, *latency, seed, DeviceChoice::Cpu);
        Box::new(made.expect("a workload"))
    }

    /// A load does the same work each time, keeps the scheduler busy, and leaves nothing to the next benchmark.
    #[test]
    fn loads_repeat_and_use_what_the_scheduler_has() {
        let spec = ModelSpec::Mini("qwen3-mini");
        let subject = model::load(&spec, Engine::Tuned, Precision::F32, DeviceChoice::Cpu, 42).expect("a model");
        let subject: SharedSubject = Rc::new(RefCell::new(subject));
        let mut digests = Vec::new();
        for scenario in SERVING_LOAD {
            let mut work = workload(&subject, scenario, 42);
            let times: Vec<Duration> = (0..3).map(|_| work.iterate().expect("a load").time).collect();
            digests.push(work.output_digest().expect("a digest"));
            let load = work.replays[0].clone();
            assert!(load.answers.iter().all(|answer| answer.tokens.len() == scenario.traffic.new_tokens as usize));
            let measured = work.finish(&[1, 1], &limits()).measured.expect("measures");
            let Measures::Serving(measures) = measured.measures else { panic!("another kind") };
            assert_eq!(measures.requests, 2 * scenario.traffic.requests);
            assert_eq!(
                measures.output_tokens_by_usage,
                Some(measures.requests * u64::from(scenario.traffic.new_tokens))
            );
            assert_eq!(measures.sample_ms, times[1..].iter().map(|time| ms(*time)).collect::<Vec<_>>());
            // Half of the prompts share a page, and the first of them fills it.
            assert!(measures.cached_tokens >= 64 && measures.cached_tokens.is_multiple_of(2), "{measures:?}");
            assert_eq!(measures.token_digest.as_deref(), digests.last().map(String::as_str));
            let medians = [measures.ttft_p50_ms, measures.tpot_p50_ms, measures.e2e_p50_ms];
            let [ttft, tpot, e2e] = medians.map(|median| median.expect("times"));
            assert!(0.0 < tpot && tpot < e2e && 0.0 < ttft && ttft < e2e, "{measures:?}");
            assert!(measured.unmeasured.contains_key("lateness_p99_ms"));
            assert_eq!(measures.joules_per_token.is_none(), measured.unmeasured.contains_key("joules_per_token"));
        }
        assert_eq!(digests[0], digests[1], "the groups differ only in what they measure");
        let mut other = workload(&subject, &SERVING_LOAD[0], 43);
        other.iterate().expect("a load");
        assert_ne!(other.output_digest().as_ref(), digests.first(), "the seed decides what is asked");
    }

    #[test]
    fn requests_share_beginnings_arrive_over_time_and_overlap() {
        let traffic = &SERVING_LOAD[0].traffic;
        let planned: Vec<Planned> = plan(traffic, 42).expect("a plan").first_turns(Shard::WHOLE).collect();
        let text: Vec<u32> = (0..10_000).collect();
        let arrivals = arrivals(traffic, &planned, &text);
        assert_eq!(arrivals.len() as u64, traffic.requests);
        assert!(arrivals.windows(2).all(|pair| pair[0].after_steps <= pair[1].after_steps));
        assert!(arrivals[0].after_steps < arrivals[arrivals.len() - 1].after_steps);
        let begins = |arrival: &Arrival| arrival.prompt.starts_with(&text[..traffic.shared_prefix_tokens]);
        assert_eq!(arrivals.iter().filter(|arrival| begins(arrival)).count() as u64, traffic.requests / 2);
        let longest = arrivals.iter().map(|arrival| arrival.prompt.len() + arrival.new_tokens).max();
        assert!(longest.is_some_and(|longest| longest <= traffic.total_tokens()));
        // Some prompt is longer than a step, so chunks occur.
        assert!(arrivals.iter().any(|arrival| arrival.prompt.len() > traffic.step_tokens));
    }
}
