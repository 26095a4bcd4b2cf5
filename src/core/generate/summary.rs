//! Summaries of several timelines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{FinishReason, Request, Timeline};
use crate::{
    measure::{
        CpuTime, LimitsOverTime, Reading, around,
        statistics::{median, ms, percentile, sample_means},
    },
    model::{CacheBytes, CausalLm, Footprint},
    record,
};

/// The cache that a generation takes, and the work that it requires.
#[derive(Clone, Debug)]
pub struct Required {
    /// The cache at the end.
    pub cache: CacheBytes,
    /// Bytes and operations.
    pub work: record::Work,
    /// Bytes that each decode step reads.
    pub step_bytes: Vec<u64>,
    /// True if the time in which steps wait for the device is known.
    pub shows_waiting: bool,
}

impl Required {
    /// The bytes and operations that `model` requires for the prompts of a batch and so many decode steps. A step reads each
    /// weight once for all sequences.
    pub fn by(model: &dyn CausalLm, sequences: usize, prompt_tokens: usize, steps: usize) -> Self {
        let (count, held) = (sequences as u64, sequences.min(model.max_sequences()) as u64);
        let cache = |tokens| {
            let CacheBytes { used, allocated } = model.cache_bytes(tokens);
            CacheBytes { used: count * used, allocated: held * allocated }
        };
        let one = model.footprint();
        let footprint = Footprint {
            step_weight_bytes: model.step_weight_bytes(sequences),
            flops_per_token: count * one.flops_per_token,
            ..one
        };
        let flops = count * model.prefill_flops(prompt_tokens);
        let shows_waiting = !model.device().is_cpu();
        Self { shows_waiting, ..Self::of(&footprint, cache, flops, prompt_tokens, steps) }
    }

    /// The bytes and operations of a step and a prompt of this footprint. `cache` gives the size of the cache after so many
    /// tokens.
    pub fn of(
        footprint: &Footprint,
        cache: impl Fn(usize) -> CacheBytes,
        prefill_flops: u64,
        prompt_tokens: usize,
        steps: usize,
    ) -> Self {
        // The step at a position reads every weight once, and the cache of all earlier tokens and of its own.
        let step_bytes: Vec<u64> =
            (1..=steps).map(|step| footprint.step_weight_bytes + cache(prompt_tokens + step).used).collect();
        let work = record::Work {
            prefill_bytes: footprint.step_weight_bytes + cache(prompt_tokens).used,
            prefill_flops,
            step_bytes: step_bytes.iter().sum::<u64>().checked_div(steps as u64).unwrap_or_default(),
            step_flops: footprint.flops_per_token,
        };
        Self { cache: cache(prompt_tokens + steps), work, step_bytes, shows_waiting: false }
    }
}

/// Summarises generations of the same work on the same model. `required` gives what a prompt and so many decode steps
/// require. `samples` holds the number of generations of each sample, and `peak_bytes` is the peak memory of all of them.
/// Without `limits`, MBU and MFU are empty. MBU is that of the median step and MFU that of the median prompt, each a share of the
/// limit of its own time. If the weights of the model were read, MBU is a share of their bandwidth. Only the model knows its routing and what its ranks
/// reduce, which are left empty: see [`routing`].
///
/// # Errors
/// Returns an error if there is no generation, or if their tokens differ. Then the model keeps state from one
/// generation to the next, and the generations did different work.
pub fn summarise(
    required: impl FnOnce(usize, usize) -> Required,
    request: &Request,
    timelines: &[Timeline],
    samples: &[usize],
    peak_bytes: Option<u64>,
    limits: Option<&LimitsOverTime>,
) -> Result<record::Generation> {
    let first = timelines.first().context("no generation was measured")?;
    ensure!(
        timelines.iter().all(|timeline| timeline.tokens == first.tokens),
        "the same prompt and seed made different tokens: the model keeps state from one generation to the next"
    );
    let (prompt_tokens, steps, sequences) = (first.prompt_tokens, first.steps.len(), first.tokens.len());
    let all_tokens = first.tokens.concat();
    let over_samples = |of: &dyn Fn(&Timeline) -> f64| median(timelines.iter().map(of).collect());
    let total_ms = over_samples(&|timeline| ms(timeline.total()));
    let ttft_ms = over_samples(&|timeline| ms(timeline.ttft));
    let decode_ms = over_samples(&|timeline| ms(timeline.steps.iter().sum()));
    let mut every_step_ms: Vec<f64> =
        timelines.iter().flat_map(|timeline| &timeline.steps).map(|step| ms(*step)).collect();
    every_step_ms.sort_unstable_by(f64::total_cmp);
    let itl_ms = |share| (steps > 0).then(|| percentile(&every_step_ms, share));

    let Required { cache, work, step_bytes, shows_waiting } = required(prompt_tokens, steps);
    let weight_readings: Vec<(Instant, f64)> =
        timelines.iter().flat_map(|timeline| timeline.weight_readings.iter().copied()).collect();
    let sampling_share = |timeline: &Timeline| Some(timeline.sampling?.as_secs_f64() / timeline.total().as_secs_f64());
    // A thread pool takes a block of memory for every some dozens of jobs, so single generations may differ.
    let allocated = |part: fn((u64, u64)) -> u64| {
        let counts: Option<Vec<f64>> =
            timelines.iter().map(|timeline| Some(part(timeline.allocations?) as f64 / steps as f64)).collect();
        counts.filter(|_| steps > 0).map(median)
    };
    let sampling_shares: Option<Vec<f64>> = timelines.iter().map(sampling_share).collect();
    Ok(record::Generation {
        batch: (sequences > 1).then_some(sequences),
        prompt_tokens,
        new_tokens: request.new_tokens,
        sampling: request.sampling,
        seed: request.seed,
        samples: samples.len(),
        total_ms,
        sample_total_ms: sample_means(
            &timelines.iter().map(|timeline| ms(timeline.total())).collect::<Vec<_>>(),
            samples,
        ),
        ttft_ms,
        itl_p50_ms: itl_ms(0.50),
        itl_p95_ms: itl_ms(0.95),
        itl_p99_ms: itl_ms(0.99),
        tpot_ms: (steps > 0).then(|| decode_ms / steps as f64),
        prefill_tokens_per_s: 1e3 * (sequences * prompt_tokens) as f64 / ttft_ms,
        decode_tokens_per_s: (steps > 0).then(|| 1e3 * (all_tokens.len() - sequences) as f64 / decode_ms),
        tokens_per_s: 1e3 * all_tokens.len() as f64 / total_ms,
        sampling_share: sampling_shares.map(median),
        waiting_share: (steps > 0 && shows_waiting).then(|| {
            let share = |timeline: &Timeline| timeline.waiting.div_duration_f64(timeline.steps.iter().sum());
            over_samples(&share)
        }),
        kernel_share: timelines
            .iter()
            .map(|timeline| timeline.cpu)
            .sum::<Option<CpuTime>>()
            .and_then(CpuTime::kernel_share),
        step_allocations: allocated(|(count, _)| count),
        step_allocated_bytes: allocated(|(_, bytes)| bytes),
        cache_used_bytes: cache.used,
        cache_allocated_bytes: cache.allocated,
        peak_bytes,
        weights_bytes_per_s: (!weight_readings.is_empty())
            .then(|| median(weight_readings.iter().map(|(_, rate)| *rate).collect())),
        mbu: limits.filter(|_| steps > 0).map(|limits| {
            let share = |timeline: &Timeline, step: usize| {
                let took = timeline.steps[step];
                let began = timeline.step_ends.get(step).map(|end| *end - took);
                let of_weights = began.and_then(|began| mean_around(&weight_readings, began, began + took));
                let limit = of_weights.unwrap_or_else(|| during(limits, began, took).read_bytes_per_s);
                step_bytes[step] as f64 / took.as_secs_f64() / limit
            };
            let every = timelines.iter().flat_map(|timeline| (0..steps).map(move |step| share(timeline, step)));
            median(every.collect())
        }),
        mfu: limits.map(|limits| {
            over_samples(&|timeline| {
                let limit = during(limits, timeline.began, timeline.ttft).matrix_flops_per_s;
                work.prefill_flops as f64 / timeline.ttft.as_secs_f64() / limit
            })
        }),
        joules_per_token: None,
        finish_reason: match first.finish_reason {
            FinishReason::Length => "length".into(),
            FinishReason::EndOfSequence => "end_of_sequence".into(),
        },
        generated_tokens: first.tokens.iter().map(Vec::len).max().unwrap_or_default(),
        token_digest: digest(&all_tokens),
        predicted_peak_bytes: None,
        attention: None,
        cache_dtype: None,
        work: Some(work),
        routing: None,
        reduced_bytes: None,
        itl_by_position_ms: (0..steps).map(|step| over_samples(&|timeline| ms(timeline.steps[step]))).collect(),
    })
}

/// The limits during a part of a generation; the medians if it is unknown when it began.
fn during(limits: &LimitsOverTime, began: Option<Instant>, took: Duration) -> Reading {
    began.map_or_else(|| limits.median(), |began| limits.during(began, began + took))
}

/// The mean of the readings around a time; `None` without any.
fn mean_around(readings: &[(Instant, f64)], from: Instant, to: Instant) -> Option<f64> {
    let around = around(readings, from, to);
    (!around.is_empty()).then(|| around.iter().map(|(_, rate)| rate).sum::<f64>() / around.len() as f64)
}

/// Use of the model's experts in the last generation.
pub fn routing(model: &dyn CausalLm) -> Option<record::Routing> {
    let load = model.expert_load()?;
    Some(record::Routing {
        num_experts: load.layers.first()?.len(),
        top_k: load.top_k,
        planted_skew: model.planted_skew(),
        load_balance_factor: load.balance_factor()?,
        entropy_bits: load.entropy_bits()?,
        idle_share: load.idle_share()?,
        tokens_per_expert: load.layers.clone(),
    })
}

/// First 16 hexadecimal digits of the SHA-256 of the ids as little-endian u32.
pub fn digest(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{record::Limits, scenario::Sampling};

    struct Weighed;

    impl CausalLm for Weighed {
        fn forward(&mut self, _: &[u32], _: usize) -> Result<Tensor> {
            anyhow::bail!("only weighed")
        }
        fn reset(&mut self) -> Result<()> {
            Ok(())
        }
        fn footprint(&self) -> Footprint {
            Footprint {
                parameters: 500,
                weight_bytes: 2000,
                step_weight_bytes: 1000,
                cache_bytes_per_token: 10,
                flops_per_token: 300,
                head_flops: 0,
            }
        }
        fn vocab_size(&self) -> usize {
            100
        }
        fn max_position_embeddings(&self) -> usize {
            100
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn cache_bytes(&self, tokens: usize) -> CacheBytes {
            CacheBytes { used: 10 * tokens as u64, allocated: 4096 }
        }
    }

    fn timeline(ttft_ms: u64, steps_ms: &[u64], tokens: &[u32]) -> Timeline {
        Timeline {
            began: None,
            step_ends: Vec::new(),
            weight_readings: Vec::new(),
            prompt_tokens: 4,
            ttft: Duration::from_millis(ttft_ms),
            steps: steps_ms.iter().map(|step| Duration::from_millis(*step)).collect(),
            sampling: Some(Duration::from_millis(1)),
            waiting: Duration::ZERO,
            cpu: Some(CpuTime { user: 30, kernel: ttft_ms }),
            allocations: Some((6, 600 * ttft_ms)),
            tokens: vec![tokens.to_vec()],
            finish_reason: FinishReason::Length,
        }
    }

    fn weighed(prompt_tokens: usize, steps: usize) -> Required {
        Required::by(&Weighed, 1, prompt_tokens, steps)
    }

    fn request(new_tokens: usize) -> Request {
        Request { new_tokens, sampling: Sampling::GREEDY, seed: 42, stop: Vec::new() }
    }

    fn limits() -> LimitsOverTime {
        LimitsOverTime::from(Limits {
            read_bytes_per_s: 1e6,
            matrix_flops_per_s: 1e6,
            matrix_dtype: "f32".into(),
            matrix_library: None,
            read: None,
            matrix: None,
            exceeded: Vec::new(),
        })
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9 * expected, "{found}, not {expected}");
    }

    #[test]
    fn figures_worked_out_by_hand() {
        let timelines =
            [timeline(10, &[2, 4], &[7, 8, 9]), timeline(20, &[3, 5], &[7, 8, 9]), timeline(40, &[6, 20], &[7, 8, 9])];
        let limits = limits();
        let measures = summarise(weighed, &request(3), &timelines, &[1, 1, 1], Some(9999), Some(&limits))
            .expect("the same tokens");
        // The totals are 16, 28 and 66 ms; decode times 6, 8 and 26; sorted steps 2, 3, 4, 5, 6, 20.
        close(measures.total_ms, 28.0);
        assert_eq!(measures.sample_total_ms, [16.0, 28.0, 66.0]);
        close(measures.ttft_ms, 20.0);
        close(measures.itl_p50_ms.expect("steps"), 4.5);
        close(measures.itl_p95_ms.expect("steps"), 6.0 + 0.75 * 14.0);
        close(measures.tpot_ms.expect("steps"), 4.0);
        close(measures.prefill_tokens_per_s, 200.0);
        close(measures.decode_tokens_per_s.expect("steps"), 250.0);
        close(measures.tokens_per_s, 3.0 / 0.028);
        close(measures.sampling_share.expect("known"), 1.0 / 28.0);
        assert_eq!(measures.waiting_share, None, "a CPU does not wait for a device");
        // The first step reads 1000 bytes of weights and the cache of 5 tokens, in 2, 3 and 6 ms; the second one the cache of 6
        // tokens, in 4, 5 and 20 ms. The median of the six shares is between those of 4 and 5 ms.
        close(measures.mbu.expect("limits"), (1060.0 / 0.004 + 1060.0 / 0.005) / 2.0 / 1e6);
        close(measures.mfu.expect("limits"), 4.0 * 300.0 / 0.020 / 1e6);
        close(measures.kernel_share.expect("160 ticks"), 70.0 / 160.0);
        assert_eq!((measures.cache_used_bytes, measures.cache_allocated_bytes), (60, 4096));
        // 6, 12 and 24 kB in two steps each.
        assert_eq!((measures.step_allocations, measures.step_allocated_bytes), (Some(3.0), Some(6000.0)));
        assert_eq!(measures.itl_by_position_ms, [3.0, 5.0]);
        let work = measures.work.expect("the work");
        assert_eq!((work.step_bytes, work.step_flops, work.prefill_flops), (1055, 300, 1200));
        assert_eq!(work.prefill_bytes, 1000 + 40);
        assert_eq!((measures.samples, measures.peak_bytes), (3, Some(9999)));
    }

    #[test]
    fn steps_are_shares_of_the_bandwidth_of_the_weights_where_it_was_read() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // The steps take from 100 to 102 and from 196 to 200 ms.
        let read = Timeline {
            step_ends: vec![at(102), at(200)],
            weight_readings: vec![(at(90), 2e6), (at(150), 4e6), (at(300), 8e6)],
            ..timeline(10, &[2, 4], &[7, 8, 9])
        };
        let limits = limits();
        let measures = summarise(weighed, &request(3), &[read], &[1], None, Some(&limits)).expect("one generation");
        close(measures.mbu.expect("limits"), (1050.0 / 0.002 / 3e6 + 1060.0 / 0.004 / 6e6) / 2.0);
        assert_eq!(measures.weights_bytes_per_s, Some(4e6));
    }

    /// Three sequences with the times of the first generation above: the weights are read once per step, everything else three
    /// times.
    #[test]
    fn figures_of_a_batch_worked_out_by_hand() {
        let timeline = Timeline { tokens: vec![vec![7, 8, 9]; 3], ..timeline(10, &[2, 4], &[]) };
        let limits = limits();
        let required = |prompt_tokens, steps| Required::by(&Weighed, 3, prompt_tokens, steps);
        let measures =
            summarise(required, &request(3), &[timeline], &[1], None, Some(&limits)).expect("one generation");
        assert_eq!((measures.batch, measures.prompt_tokens, measures.generated_tokens), (Some(3), 4, 3));
        close(measures.prefill_tokens_per_s, 12.0 / 0.010);
        close(measures.decode_tokens_per_s.expect("steps"), 6.0 / 0.006);
        close(measures.tokens_per_s, 9.0 / 0.016);
        close(measures.mbu.expect("limits"), (1150.0 / 0.002 + 1180.0 / 0.004) / 2.0 / 1e6);
        close(measures.mfu.expect("limits"), 3.0 * 4.0 * 300.0 / 0.010 / 1e6);
        // The model holds one sequence at once.
        assert_eq!((measures.cache_used_bytes, measures.cache_allocated_bytes), (180, 4096));
        let work = measures.work.expect("the work");
        assert_eq!((work.step_bytes, work.step_flops), (1000 + 3 * 55, 900));
        assert_eq!((work.prefill_bytes, work.prefill_flops), (1000 + 3 * 40, 3600));
        assert_eq!(measures.token_digest, digest(&[7, 8, 9, 7, 8, 9, 7, 8, 9]));
    }

    #[test]
    fn one_token_has_no_latency_between_tokens() {
        let measures = summarise(weighed, &request(1), &[timeline(10, &[], &[7])], &[1], None, None).expect("one");
        assert_eq!((measures.itl_p50_ms, measures.tpot_ms, measures.decode_tokens_per_s), (None, None, None));
        assert_eq!((measures.mbu, measures.mfu), (None, None));
        close(measures.tokens_per_s, 100.0);
    }

    /// The table knows which measures lack a value then, and a record gives the reason for each.
    #[test]
    fn measures_of_steps_are_those_that_one_token_lacks() {
        let limits = limits();
        let of = |steps: &[u64], tokens: &[u32]| {
            let timelines = [timeline(10, steps, tokens)];
            summarise(weighed, &request(tokens.len()), &timelines, &[1], Some(1), Some(&limits)).expect("a summary")
        };
        let [one, two] = [of(&[], &[7]), of(&[2], &[7, 8])];
        let fields = serde_json::to_value(&one).expect("JSON");
        let [one, two] = [one, two].map(record::Measures::Generation);
        for measure in record::measures::all().filter(|measure| fields.get(measure.name).is_some()) {
            let is_lacking = (measure.value)(&two).is_some() && (measure.value)(&one).is_none();
            assert_eq!(measure.row.of_steps, is_lacking, "{}", measure.name);
        }
    }

    #[test]
    fn generations_that_differ_are_not_summed_up() {
        let timelines = [timeline(10, &[2], &[7, 8]), timeline(10, &[2], &[7, 9])];
        let error =
            summarise(weighed, &request(2), &timelines, &[1, 1], None, None).expect_err("they differ").to_string();
        assert!(error.contains("keeps state"), "{error}");
    }

    #[test]
    fn the_digest_is_of_the_ids() {
        // printf '\x01\0\0\0\x02\0\0\0' | sha256sum
        assert_eq!(digest(&[1, 2]), PINNED);
        assert_ne!(digest(&[2, 1]), PINNED);
    }
    const PINNED: &str = "34fb5c825de7ca4a";
}
