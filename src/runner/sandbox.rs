//! Synthetic records of every kind, marked as such, with values from a seed. They help to build dashboards and
//! readers without measuring.

use std::collections::BTreeMap;

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::{
    measure::machine,
    model::MINI,
    record::{
        BenchmarkId, Conditions, Evaluation, Generation, Limits, Loading, Machine, Measures, Quality, Record, Routing,
        SCHEMA, Serving, Spread, Stability, Status, Subject, Sweep, Tokenizing, Training, Work,
    },
    scenario::{
        self, CHECKPOINT_MEMORY, CheckpointScenario, CheckpointWork, EXPERT_GRID, FeedForward, GENERATION, LOAD,
        LONG_CONTEXT, Latency, MOE_TOP_K, PERPLEXITY, PSANN_THROUGHPUT, Phase, Quantity, SERVING_LOAD, SWEEP,
        ServingLoad, TENSOR_PARALLEL, THREADS_SCALING, TOKENIZER, TRAINING_SWEEP, Tier, Traffic, Trained, TrainingGrid,
        TrainingScenario,
    },
    workload::series::{SeriesGrid, series_subject},
};

/// Stands for the machine in records.
const MACHINE: &str = "sandbox";

/// Makes one record of each benchmark of a default run, of each long context, of threads and ranks, and of a failed benchmark,
/// `times` times.
///
/// # Errors
/// Returns an error if the preset of the sweep cannot be read.
pub fn records(run: &str, seed: u64, times: usize, now: DateTime<Utc>) -> Result<impl Iterator<Item = Record>> {
    let config = SeriesGrid::preset("smoke")?;
    let mut kinds: Vec<Kind> = Vec::new();
    kinds.extend(
        GENERATION
            .iter()
            .chain(LONG_CONTEXT)
            .chain(THREADS_SCALING)
            .chain(TENSOR_PARALLEL)
            .flat_map(|scenario| MINI.map(|model| Kind::Generation(scenario, model.into(), None))),
    );
    for scenario in MOE_TOP_K {
        kinds.extend(
            EXPERT_GRID
                .iter()
                .map(|row| Kind::Generation(scenario, row.feed_forward.name(0.0), Some(row.feed_forward))),
        );
    }
    for combination in config.combinations()? {
        let subject = series_subject(&combination, &config);
        kinds.extend([SWEEP.train, SWEEP.forward].map(|scenario| Kind::Sweep(scenario, Box::new(subject.clone()))));
    }
    for groups in [PSANN_THROUGHPUT, TRAINING_SWEEP, CHECKPOINT_MEMORY] {
        let entries = |group: &'static TrainingScenario| {
            group.entries(Tier::Quick, &TrainingGrid::default()).into_iter().map(move |entry| (group, entry))
        };
        kinds.extend(groups.iter().flat_map(entries).map(|(group, entry)| Kind::Training(group, entry)));
    }
    kinds.extend([1, 4, 16].map(Kind::Serving));
    kinds.extend(SERVING_LOAD.iter().map(Kind::Load));
    let texts = PERPLEXITY.iter().map(|scenario| scenario.key).chain(["perplexity_sandbox-00000000_w1024_s256"]);
    kinds.extend(texts.flat_map(|scenario| MINI.map(|model| Kind::Quality(scenario, model))));
    kinds.extend(["lambada_openai", "hellaswag"].map(Kind::Evaluation));
    kinds.extend(LOAD.iter().chain(TOKENIZER).map(Kind::Checkpoint));
    kinds.push(Kind::Failed);
    let template = template(run, now);
    let all = (0..times).flat_map(move |_| kinds.clone()).enumerate();
    Ok(all.map(move |(number, kind)| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number as u64);
        kind.record(&template, &mut Draw(random))
    }))
}

#[derive(Clone)]
enum Kind {
    Generation(&'static scenario::Generation, String, Option<FeedForward>),
    Sweep(&'static str, Box<Subject>),
    Training(&'static TrainingScenario, Trained),
    /// A scenario, and a model.
    Quality(&'static str, &'static str),
    /// Accuracy of a task.
    Evaluation(&'static str),
    /// Requests per second of the load.
    Serving(u32),
    Load(&'static ServingLoad),
    Checkpoint(&'static CheckpointScenario),
    Failed,
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * f64::from(self.0.next_u32()) / f64::from(u32::MAX)
    }

    /// Returns `count` values around one, with a spread of two percent.
    fn around(&mut self, value: f64, count: usize) -> Vec<f64> {
        (0..count).map(|_| value * self.between(0.98, 1.02)).collect()
    }
}

impl Kind {
    fn record(&self, template: &Record, draw: &mut Draw) -> Record {
        let (scenario, subject, measures) = match self {
            Self::Generation(scenario, model, feed_forward) => {
                let engine = if feed_forward.is_some() { "tuned" } else { "stock" };
                let measures = generation(scenario, *feed_forward, draw);
                (scenario.key, subject(model, engine), Some(Measures::Generation(measures)))
            }
            Self::Sweep(scenario, subject) => {
                let measures = combination(*scenario == SWEEP.train, draw);
                (*scenario, (**subject).clone(), Some(Measures::Sweep(measures)))
            }
            Self::Training(group, entry) => {
                let sizes = [("d_model", entry.shape.d_model), ("n_layers", entry.shape.n_layers)];
                let sizes = sizes.into_iter().map(|(name, size)| (name.to_owned(), size as u64)).collect();
                let subject = subject(&entry.name(), "tuned");
                let dtype = entry.dtype.map_or(subject.dtype.clone(), str::to_owned);
                let of = Subject { sizes, dtype, ..subject };
                (group.key, of, Some(Measures::Training(training(group, entry, draw))))
            }
            Self::Serving(rate) => {
                let of = Subject { dtype: "unknown".into(), device: "server".into(), ..subject(MINI[0], "http") };
                return Self::made_up(
                    template,
                    &format!("load_poisson_{rate}_p256_n64"),
                    of,
                    Some(serving(*rate, draw)),
                );
            }
            Self::Load(scenario) => (scenario.key, subject(MINI[0], "tuned"), Some(load(scenario, draw))),
            Self::Quality(scenario, model) => {
                (*scenario, subject(model, "tuned"), Some(Measures::Quality(quality(draw))))
            }
            Self::Evaluation(task) => {
                let scenario = format!("eval_{task}-00000000_n256");
                return Self::made_up(template, &scenario, subject(MINI[0], "tuned"), Some(evaluation(task, draw)));
            }
            Self::Checkpoint(scenario) => {
                (scenario.key, subject("sandbox-model", "tuned"), Some(files(scenario, draw)))
            }
            Self::Failed => ("medium", subject("sandbox-model", "stock"), None),
        };
        Self::made_up(template, scenario, subject, measures)
    }

    fn made_up(template: &Record, scenario: &str, subject: Subject, measures: Option<Measures>) -> Record {
        Record {
            id: BenchmarkId::new(scenario, &subject).to_string(),
            scenario: scenario.to_owned(),
            subject,
            status: if measures.is_some() { Status::Measured } else { Status::Failed },
            reason: measures.is_none().then(|| "made up: a benchmark that failed".into()),
            measures,
            ..template.clone()
        }
    }
}

/// The fields that all records share.
fn template(run: &str, now: DateTime<Utc>) -> Record {
    Record {
        schema: SCHEMA,
        run: run.to_owned(),
        sandbox: true,
        at: now.to_rfc3339_opts(SecondsFormat::Millis, true),
        id: String::new(),
        scenario: String::new(),
        duel: None,
        subject: subject(MACHINE, "stock"),
        status: Status::Failed,
        reason: None,
        first_non_finite_step: None,
        deviates: None,
        measures: None,
        unmeasured: BTreeMap::from([("joules_per_token".into(), "made up: there is no counter".into())]),
        ratios: Vec::new(),
        limits: Some(Limits {
            read_bytes_per_s: 50e9,
            matrix_flops_per_s: 250e9,
            matrix_dtype: "f32".into(),
            matrix_library: None,
            read: Some(spread(50e9)),
            matrix: Some(spread(250e9)),
            exceeded: Vec::new(),
        }),
        conditions: Some(Conditions { other_cpu_share: Some(0.0), ..Conditions::default() }),
        between_runs: None,
        machine: Machine { name: MACHINE.into(), cpu: MACHINE.into(), ..machine::machine(1, None) },
        software: machine::software(),
        settings: BTreeMap::new(),
        command: None,
    }
}

fn spread(limit: f64) -> Spread {
    Spread { readings: 5, lowest: 0.98 * limit, highest: 1.01 * limit, best_of_run: 1.04 * limit }
}

fn subject(model: &str, engine: &str) -> Subject {
    Subject {
        model: model.into(),
        engine: engine.into(),
        dtype: "f32".into(),
        device: "cpu".into(),
        source: MACHINE.into(),
        synthetic_weights: true,
        parameters: Some(30_000_000),
        weight_bytes: Some(120_000_000),
        formats: BTreeMap::new(),
        sizes: BTreeMap::new(),
        peer: None,
    }
}

fn generation(scenario: &scenario::Generation, feed_forward: Option<FeedForward>, draw: &mut Draw) -> Generation {
    let steps = scenario.new_tokens - 1;
    let (ttft_ms, tpot_ms) = (draw.between(0.3, 0.5) * scenario.prompt_tokens as f64, draw.between(4.0, 7.0));
    let total_ms = ttft_ms + tpot_ms * steps as f64;
    let decodes = |value: f64| (steps > 0).then_some(value);
    let routing = match feed_forward {
        Some(FeedForward::Mixture { num_experts, top_k, skew }) => {
            let tokens = (scenario.prompt_tokens + steps) * top_k;
            let even = vec![(tokens / num_experts) as u64; num_experts];
            Some(Routing {
                num_experts,
                top_k,
                planted_skew: Some(skew.unwrap_or_default()),
                load_balance_factor: 1.0,
                entropy_bits: (num_experts as f64).log2(),
                idle_share: 0.0,
                tokens_per_expert: vec![even; 4],
            })
        }
        _ => None,
    };
    Generation {
        prompt_tokens: scenario.prompt_tokens,
        new_tokens: scenario.new_tokens,
        sampling: scenario.sampling,
        seed: 42,
        samples: 10,
        total_ms,
        sample_total_ms: draw.around(total_ms, 10),
        ttft_ms,
        itl_p50_ms: decodes(tpot_ms),
        itl_p95_ms: decodes(tpot_ms * 1.1),
        itl_p99_ms: decodes(tpot_ms * 1.3),
        tpot_ms: decodes(tpot_ms),
        prefill_tokens_per_s: 1e3 * scenario.prompt_tokens as f64 / ttft_ms,
        decode_tokens_per_s: decodes(1e3 / tpot_ms),
        tokens_per_s: 1e3 * scenario.new_tokens as f64 / total_ms,
        sampling_share: Some(0.001),
        cache_used_bytes: 6144 * scenario.total_tokens() as u64,
        cache_allocated_bytes: 6144 * scenario.total_tokens() as u64,
        peak_bytes: Some(130_000_000 + draw.between(0.0, 1e6) as u64),
        predicted_peak_bytes: Some(130_000_000),
        attention: Some("paged".into()),
        cache_dtype: Some("f32".into()),
        mbu: decodes(0.12 / tpot_ms / 0.05),
        mfu: Some(0.06 * scenario.prompt_tokens as f64 / ttft_ms / 0.25),
        finish_reason: "length".into(),
        generated_tokens: scenario.new_tokens,
        token_digest: "0000000000000000".into(),
        itl_by_position_ms: draw.around(tpot_ms, steps),
        work: Some(Work {
            prefill_bytes: 120_000_000,
            prefill_flops: 60_000_000 * scenario.prompt_tokens as u64,
            step_bytes: 120_000_000,
            step_flops: 60_000_000,
        }),
        routing,
        // No other measure is made up.
        ..Generation::default()
    }
}

/// Latencies that rise with the rate.
fn serving(rate: u32, draw: &mut Draw) -> Measures {
    let rate = f64::from(rate);
    let (ttft_ms, tpot_ms) =
        (draw.between(40.0, 60.0) * (1.0 + rate / 8.0), draw.between(8.0, 12.0) * (1.0 + rate / 32.0));
    let e2e_ms = ttft_ms + 63.0 * tpot_ms;
    let requests = (120.0 * rate) as u64;
    Measures::Serving(Serving {
        valid: true,
        offered_requests_per_s: Some(rate),
        requests,
        duration_s: 120.0,
        requests_per_s: rate,
        output_tokens_per_s: 64.0 * rate,
        ttft_p50_ms: Some(ttft_ms),
        ttft_p99_ms: Some(3.0 * ttft_ms),
        tpot_p50_ms: Some(tpot_ms),
        tpot_p99_ms: Some(1.5 * tpot_ms),
        e2e_p50_ms: Some(e2e_ms),
        e2e_p99_ms: Some(2.0 * e2e_ms),
        lateness_p99_ms: Some(draw.between(0.2, 0.6)),
        output_tokens_by_usage: Some(64 * requests),
        chunks: 64 * requests,
        schedule_digest: "0000000000000000".into(),
        prompt_digest: "0000000000000000".into(),
        sample_e2e_ms: draw.around(e2e_ms, 20),
        // No other measure is made up.
        ..Serving::default()
    })
}

/// A load in this process, whose samples are one of its latencies.
fn load(scenario: &ServingLoad, draw: &mut Draw) -> Measures {
    let Traffic { requests, new_tokens, .. } = scenario.traffic;
    let (ttft_ms, tpot_ms) = (draw.between(40.0, 60.0), draw.between(8.0, 12.0));
    let decode_ms = f64::from(new_tokens - 1) * tpot_ms;
    let requests = 10 * requests;
    let output_tokens = requests * u64::from(new_tokens);
    let duration_s = output_tokens as f64 * tpot_ms / 1e3;
    Measures::Serving(Serving {
        valid: true,
        requests,
        duration_s,
        requests_per_s: requests as f64 / duration_s,
        output_tokens_per_s: output_tokens as f64 / duration_s,
        ttft_p50_ms: Some(ttft_ms),
        ttft_p99_ms: Some(2.0 * ttft_ms),
        tpot_p50_ms: Some(tpot_ms),
        tpot_p99_ms: Some(1.5 * tpot_ms),
        e2e_p50_ms: Some(ttft_ms + decode_ms),
        e2e_p99_ms: Some(2.0 * ttft_ms + 1.5 * decode_ms),
        output_tokens_by_usage: Some(output_tokens),
        chunks: output_tokens,
        schedule_digest: "0000000000000000".into(),
        prompt_digest: "0000000000000000".into(),
        token_digest: Some("0000000000000000".into()),
        sample_ms: draw.around(if scenario.latency == Latency::Ttft { ttft_ms } else { decode_ms }, 10),
        peak_bytes: Some(140_000_000),
        // No other measure is made up.
        ..Serving::default()
    })
}

/// A subject and its divergence from a reference.
fn quality(draw: &mut Draw) -> Quality {
    let nll = draw.between(2.0, 3.0);
    let windows = draw.around(nll, 40);
    let nll = windows.iter().sum::<f64>() / windows.len() as f64;
    Quality {
        perplexity: Some(nll.exp()),
        perplexity_standard_error: Some(0.02 * nll.exp()),
        nll,
        nll_standard_error: Some(0.02),
        transformers_nll: nll,
        nll_per_byte: Some(nll / 4.0),
        bits_per_byte: Some(nll / 4.0 / std::f64::consts::LN_2),
        nll_per_word: Some(1.3 * nll),
        scored_tokens: 11_007,
        window_tokens: 1024,
        stride_tokens: 256,
        file_sha256: "0".repeat(64),
        reference: Some(format!("perplexity_sandbox-00000000_w1024_s256/{}/stock-f32-cpu", MINI[0])),
        kl_mean: Some(draw.between(1e-5, 2e-5)),
        kl_standard_error: Some(1e-6),
        kl_max: Some(draw.between(1e-3, 2e-3)),
        top1_agreement: Some(draw.between(0.98, 1.0)),
        scored_tokens_per_s: Some(draw.between(900.0, 1100.0)),
        sample_ms: Vec::new(),
        window_nll: windows,
    }
}

/// A task with choices, or with one continuation.
fn evaluation(task: &str, draw: &mut Draw) -> Measures {
    let (has_choices, nll) = (task == "hellaswag", draw.between(2.0, 3.0));
    Measures::Evaluation(Evaluation {
        task: task.into(),
        questions: 256,
        accuracy: draw.between(0.4, 0.6),
        accuracy_standard_error: Some(0.03),
        accuracy_norm: has_choices.then(|| draw.between(0.4, 0.6)),
        accuracy_norm_standard_error: has_choices.then_some(0.03),
        target_perplexity: (!has_choices).then(|| nll.exp()),
        target_perplexity_standard_error: (!has_choices).then_some(0.5),
        questions_sha256: "0".repeat(64),
        question_nll: draw.around(nll, 256),
    })
}

fn files(scenario: &CheckpointScenario, draw: &mut Draw) -> Measures {
    let file_bytes = 120_000_000;
    match scenario.work {
        CheckpointWork::Load { is_cold } => {
            let load_ms = draw.between(40.0, 60.0) * if is_cold { 4.0 } else { 1.0 };
            Measures::Loading(Loading {
                files: 1,
                file_bytes,
                samples: 10,
                sample_ms: draw.around(load_ms, 10),
                load_ms,
                load_bytes_per_s: file_bytes as f64 / load_ms * 1e3,
                storage_bytes: Some(if is_cold { file_bytes } else { 0 }),
                peak_bytes: Some(2 * file_bytes),
            })
        }
        CheckpointWork::Tokenizer(_) => {
            let (text_bytes, text_tokens, pass_ms) = (65_536, 20_000, draw.between(10.0, 20.0));
            Measures::Tokenizing(Tokenizing {
                text_bytes,
                text_tokens,
                samples: 10,
                sample_ms: draw.around(pass_ms, 10),
                pass_ms,
                text_bytes_per_s: text_bytes as f64 / pass_ms * 1e3,
                token_us: pass_ms * 1e3 / text_tokens as f64,
                token_digest: "0000000000000000".into(),
            })
        }
    }
}

fn combination(trains: bool, draw: &mut Draw) -> Sweep {
    let step_ms = draw.between(5.0, 100.0);
    let losses = match trains {
        true => Sweep { first_loss: Some(0.4), last_loss: Some(0.1), held_out_loss: Some(0.12), ..Sweep::default() },
        false => Sweep::default(),
    };
    Sweep {
        steps: 100,
        samples: 10,
        sample_ms: draw.around(step_ms, 10),
        step_p50_ms: step_ms,
        step_p95_ms: step_ms * 1.1,
        step_p99_ms: step_ms * 1.2,
        windows_per_s: 8e3 / step_ms,
        peak_bytes: Some(draw.between(1e7, 1e8) as u64),
        mfu: Some(draw.between(0.05, 0.2)),
        ..losses
    }
}

fn training(group: &TrainingScenario, entry: &Trained, draw: &mut Draw) -> Training {
    let (in_time, trains) = (group.quantity == Quantity::Time, group.phase == Phase::Train);
    let cost = if entry.checkpointing { 1.3 } else { 1.0 } * if trains { 3.0 } else { 1.0 };
    let step_ms = cost * draw.between(0.12, 0.18) * entry.batch_tokens() as f64;
    let peak_bytes = 300e6 + entry.batch_tokens() as f64 * if entry.checkpointing { 2e4 } else { 1e5 };
    let sample_peak_bytes = if in_time { Vec::new() } else { vec![peak_bytes as u64; 10] };
    Training {
        phase: group.phase.name().into(),
        batch_tokens: entry.batch_tokens(),
        tokens_per_row: entry.batch.tokens_per_row,
        micro_batches: 1,
        checkpointing: entry.checkpointing,
        steps: 10,
        samples: 10,
        sample_ms: if in_time { draw.around(step_ms, 10) } else { Vec::new() },
        sample_peak_bytes,
        step_p50_ms: step_ms,
        step_p95_ms: step_ms * 1.02,
        step_p99_ms: step_ms * 1.03,
        tokens_per_s: 1e3 * entry.batch_tokens() as f64 / step_ms,
        peak_bytes: Some(peak_bytes as u64),
        allocated_bytes: Some(250_000_000),
        mfu: Some(draw.between(0.4, 0.6)),
        stability: trains.then(|| Stability {
            losses: (0..10).map(|step| 10.4 - 0.01 * f64::from(step)).collect(),
            gradient_norms: draw.around(1.0, 10),
            update_ratios: draw.around(1e-3, 10),
        }),
        ..Training::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{TARGETS, Target};

    #[test]
    fn every_scenario_is_there_marked_and_the_same_from_a_seed() {
        let made = |seed| records("made-up", seed, 1, Utc::now()).expect("records").collect::<Vec<_>>();
        let records = made(1);
        assert!(records.iter().all(|record| record.sandbox && record.machine.name == MACHINE));
        let has = |key: &str| records.iter().any(|record| record.scenario == key && record.measures.is_some());
        for key in TARGETS.iter().flat_map(Target::keys) {
            assert!(has(key), "{key}");
        }
        assert_eq!(records.iter().filter(|record| record.status == Status::Failed).count(), 1);
        let ids: std::collections::BTreeSet<_> = records.iter().map(|record| &record.id).collect();
        assert_eq!(ids.len(), records.len());
        let measures = |seed| made(seed).into_iter().map(|record| record.measures).collect::<Vec<_>>();
        assert_eq!(measures(1), measures(1));
        assert_ne!(measures(1), measures(2));
    }
}
