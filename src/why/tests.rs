//! Tests with a model whose parts take a known time.

use std::{
    cell::Cell,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use tracing::{Dispatch, subscriber::NoSubscriber, trace_span};

use super::{Explanation, Lengths, OTHER, Part, Phase, Trace, trace::Collector};
use crate::{
    generate::MODEL,
    model::{CausalLm, Footprint},
};
#[cfg(feature = "cli")]
use crate::{
    runner::{Catalogue, Session},
    settings::Settings,
};

/// Its attention is inside its block, and its head says what it reads.
struct Timed {
    attention: Duration,
    head: tracing::Span,
}

impl Timed {
    /// Makes a span that it keeps, as the models of candle-transformers do.
    fn new(attention: Duration) -> Self {
        Self { attention, head: trace_span!("head", bytes = 1_000_000_u64, flops = 2_000_000_u64, kernel = "by hand") }
    }
}

thread_local! {
    /// The time that passed by the clock of this thread. Only [`pass`] moves it.
    static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn now() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + PASSED.get()
}

fn pass(time: Duration) {
    PASSED.set(PASSED.get() + time);
}

impl CausalLm for Timed {
    fn forward(&mut self, _: &[u32], _: usize) -> Result<Tensor> {
        trace_span!("block").in_scope(|| {
            pass(Duration::from_micros(1500));
            trace_span!("attention").in_scope(|| pass(self.attention));
        });
        self.head.in_scope(|| Ok(Tensor::zeros(8, DType::F32, &Device::Cpu)?))
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        Footprint::dense(250_000, 250_000, DType::F32, 0)
    }

    fn vocab_size(&self) -> usize {
        8
    }

    fn max_position_embeddings(&self) -> usize {
        64
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// Traces this thread alone, because other tests run beside it.
fn traced<T>(clock: fn() -> Instant, explain: impl FnOnce(Trace) -> T) -> T {
    // If there is one subscriber, `tracing` asks that of the thread that first comes to a span, which may be another test's without any.
    let _second = Dispatch::new(NoSubscriber::default());
    let collector = Arc::new(Collector::new(clock));
    tracing::subscriber::with_default(collector.clone(), || explain(Trace::of(collector)))
}

fn explained(attention: Duration) -> Explanation {
    let lengths = Lengths { prompt_tokens: 4, new_tokens: 16, rounds: 4 };
    traced(now, |trace| trace.explain(&mut Timed::new(attention), &lengths).expect("explained"))
}

fn part<'a>(phase: &'a Phase, name: &str) -> &'a Part {
    phase.parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name} in {phase:?}"))
}

#[test]
fn parts_sum_to_the_pass_and_say_what_they_must_read() {
    let found = explained(Duration::from_millis(1));
    let names: Vec<&str> = found.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["prefill", "decode"]);
    for (phase, passes) in found.phases.iter().zip([4, 4 * 15]) {
        assert_eq!(phase.passes, passes);
        let sum: f64 = phase.parts.iter().map(|part| part.ms).sum();
        assert!((sum / phase.ms - 1.0).abs() < 1e-6, "{sum} of {} ms", phase.ms);
        let head = part(phase, "head");
        assert_eq!((head.bytes, head.flops, head.calls), (Some(1e6), Some(2e6), 1.0));
        assert_eq!(head.kernels, ["by hand"]);
        assert!(head.bound_ms.is_some_and(|ms| ms > 0.0) && part(phase, "block").bound_ms.is_none());
        assert!(part(phase, OTHER).share + part(phase, MODEL).share < 0.05, "{phase:?}");
    }
    let text = found.to_string();
    assert!(text.contains("decode: block takes 60"), "{text}");
    assert!(text.contains("whole pass") && text.contains("Tracing took"), "{text}");
}

#[test]
fn a_delay_in_one_part_is_found_in_that_part_alone() {
    let [before, after] = [1, 2].map(|ms| explained(Duration::from_millis(ms)).phases.remove(1));
    for (name, expected_ms) in [("attention", 1.0), ("block", 0.0), ("head", 0.0), (MODEL, 0.0), (OTHER, 0.0)] {
        let grew_ms = part(&after, name).ms - part(&before, name).ms;
        assert!((grew_ms - expected_ms).abs() < 1e-9, "{name}: {grew_ms} ms");
    }
}

/// The parts sum to the step, for a language model with and without gradients, with checkpointing, and for the sweep.
#[cfg(feature = "cli")]
#[test]
fn a_step_of_a_training_has_the_parts_of_its_passes() {
    let session = Session::new(Settings::default()).expect("a session");
    let catalogue = Catalogue::new(&session);
    let both = ["forward: linear", "backward: linear", "optimizer"];
    for (start, names) in [
        (
            "training_sweep_train/respsann-d128-l2-s128-b8/tuned-f32",
            &["embedding", "head, loss", "backward: attention"][..],
        ),
        ("checkpoint_memory_bytes/waveresnet-d256-l8-s256-b4-checkpointed", &["recompute", "forward: norm"]),
        ("architecture_sweep_train/state_space-d48-l2-", &["backward: norm"]),
        ("training_sweep_forward/respsann-d128-l2-s128-b8/tuned-f32", &["forward: linear", "head, loss"]),
    ] {
        let id = catalogue.only(start).expect(start).id().to_string();
        let found = traced(Instant::now, |trace| {
            let mut work = catalogue.find(&id).and_then(|benchmark| benchmark.prepare()).expect(&id);
            trace.explain_steps(&mut *work, 1, (&Device::Cpu, "f32")).expect(&id).0
        });
        let [step] = found.phases.as_slice() else { panic!("{id}: {:?}", found.phases) };
        let sum: f64 = step.parts.iter().map(|part| part.ms).sum();
        assert!((sum / step.ms - 1.0).abs() < 1e-6 && step.flops > 0, "{id}: {sum} of {} ms", step.ms);
        // Other tests may hold this thread up.
        assert!(step.parts.iter().all(|part| part.name != OTHER || part.share < 0.5), "{id}: {step:?}");
        let needed = if id.contains("_forward/") { &[] } else { &both[..] };
        for name in needed.iter().chain(names) {
            assert!(part(step, name).ms > 0.0, "{id}: {name}");
        }
    }
}

/// Two models are traced in turns, and each has its own parts.
#[cfg(feature = "cli")]
#[test]
fn models_that_are_compared_stand_beside_each_other() {
    let lengths = Lengths { prompt_tokens: 4, new_tokens: 16, rounds: 4 };
    let [fast, slow] = traced(now, |trace| {
        let (mut fast, mut slow) = (Timed::new(Duration::from_millis(1)), Timed::new(Duration::from_millis(4)));
        let mut models: [(&mut dyn CausalLm, &str); 2] = [(&mut fast, "f32"), (&mut slow, "f32")];
        let (explained, _) = trace.explain_in(&mut models, &lengths).expect("explained");
        <[Explanation; 2]>::try_from(explained).expect("two")
    });
    for (found, attention_ms) in [(&fast, 1.0), (&slow, 4.0)] {
        let decode = &found.phases[1];
        assert_eq!(decode.passes, 4 * 15);
        assert!(
            (part(decode, "attention").ms - attention_ms).abs() < 1e-9 && (part(decode, "block").ms - 1.5).abs() < 1e-9
        );
    }
    let text = fast.beside(&slow, "the slow one");
    let decode = text.split("decode beside the slow one").nth(1).expect("decode");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = decode.lines().map(words).filter(|words| !words.is_empty()).collect();
    let row =
        |name: &str| lines.iter().position(|line| line[0] == name).unwrap_or_else(|| panic!("no {name} in {text}"));
    assert!(row("attention") < row("block"), "{text}");
    assert_eq!(lines[row("attention")][1..], ["1.00", "4.00", "0.25"], "{text}");
    assert_eq!(lines[row("block")][1..], ["1.50", "1.50", "1.00"], "{text}");
    assert_eq!(lines[row("whole")][2..], ["2.50", "5.50", "0.45"], "{text}");
}
