//! Tests the counting allocator in a program that installs it.

mod alone;

use std::{
    cell::RefCell,
    hint::black_box,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use alone::alone;
use candlepower::{
    CausalLm, Footprint,
    anyhow::Result,
    candle_core::{Device, Tensor},
    workload::{GenerationWorkload, Workload},
};
use candlepower_core::{
    device::{DeviceChoice, Precision},
    generate::{self, Request},
    measure::{
        CountingAllocator,
        allocator::{allocations, current_bytes, peak_bytes, reset_peak},
        memory::HeldBytes,
    },
    model::{self, Engine, ModelSpec},
    scenario::Sampling,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: u64 = 1 << 20;

fn peak() -> u64 {
    peak_bytes().expect("it is installed")
}

/// Returns the MiB that `work` adds to the peak and leaves in use. The test runner may use half a MiB.
fn seen<T>(work: impl FnOnce() -> T) -> (u64, u64) {
    let before = current_bytes();
    reset_peak();
    let kept = work();
    let added = |bytes: u64| (bytes.saturating_sub(before) + MIB / 2) / MIB;
    let seen = (added(peak()), added(current_bytes()));
    drop(kept);
    seen
}

#[test]
fn peaks_and_what_stays_are_counted() {
    alone(|| {
        assert_eq!(seen(|| drop(vec![1u8; 64 << 20])), (64, 0));
        assert_eq!(seen(|| vec![1u8; 64 << 20]), (64, 64));
        assert_eq!(seen(|| vec![0u8; 32 << 20]), (32, 32), "zeroed");
        assert_eq!(seen(|| ()), (0, 0), "reset forgets");
    });
}

#[test]
fn grown_and_shrunk_memory_is_counted() {
    alone(|| {
        let grown = seen(|| {
            let mut memory = Vec::<u8>::with_capacity(8 << 20);
            memory.reserve_exact(48 << 20);
            memory
        });
        assert_eq!(grown, (48, 48));
        let shrunk = seen(|| {
            let mut memory = vec![1u8; 48 << 20];
            memory.truncate(8 << 20);
            memory.shrink_to_fit();
            memory
        });
        assert_eq!(shrunk, (48, 8));
    });
}

#[test]
fn every_threads_memory_is_counted() {
    alone(|| {
        let (_, stays) = seen(|| {
            let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| vec![1u8; 16 << 20])).collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).collect::<Vec<_>>()
        });
        assert_eq!(stays, 64);
    });
}

/// The allocations of other threads do not count.
#[test]
fn allocations_are_those_of_the_thread() {
    alone(|| {
        let before = allocations();
        let mut grown = black_box(Vec::<u8>::with_capacity(100));
        grown.reserve_exact(300);
        std::thread::spawn(|| (0..1000).for_each(|_| drop(black_box(vec![1u8; 100])))).join().expect("it ends");
        let after = allocations();
        // Starting a thread allocates a few times itself.
        assert!((2..20).contains(&(after.0 - before.0)), "{before:?} {after:?}");
        assert!((300..10_000).contains(&(after.1 - before.1)), "{before:?} {after:?}");
    });
}

#[test]
fn threads_that_allocate_at_once_lose_no_byte() {
    alone(|| {
        // Many small allocations: an update is lost only if two threads count at the same moment.
        let churn = || {
            for _ in 0..500_000 {
                drop(black_box(Vec::<u8>::with_capacity(1 << 10)));
            }
        };
        // Threads of earlier tests may release memory once. An update that is lost is lost in each round.
        let rounds = (0..3).map(|_| {
            let before = current_bytes();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(churn);
                }
            });
            current_bytes().abs_diff(before)
        });
        let drift = rounds.min().unwrap_or_default();
        assert!(drift < MIB / 2, "{drift} bytes");
    });
}

/// Candle's caches are large, zeroed and used in part. Counting must not make the kernel map their pages.
#[test]
#[cfg(target_os = "linux")]
fn zeroed_memory_stays_untouched() {
    alone(|| {
        let zeroed = black_box(vec![0u8; 1 << 30]);
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        let resident_pages: u64 = statm.split_whitespace().nth(1).expect("a second field").parse().expect("a number");
        // A page has at least 4 KiB.
        assert!(resident_pages * 4096 < 512 * MIB, "{resident_pages} pages are resident");
        assert!(zeroed.iter().step_by(64 << 20).all(|byte| *byte == 0));
    });
}

/// Engine `tuned` on a CPU knows the memory of a prompt before it starts. Buffers of the test runner and of rotary positions, which grow
/// by doubling, are the rest.
#[test]
fn the_memory_of_a_prompt_is_predicted() {
    alone(|| {
        for name in ["llama-mini", "gemma3-mini"] {
            for dtype in [Precision::F32, Precision::BF16, Precision::Q8_0, Precision::F8E4M3] {
                let loaded = model::load(&ModelSpec::Mini(name), Engine::Tuned, dtype, DeviceChoice::Cpu, 42);
                let mut model = loaded.expect(name).model;
                let tokens = vec![7; 4096];
                let prompt_bytes = model.prompt_bytes(tokens.len()).expect("it is known");
                let predicted = (prompt_bytes + model.cache_bytes(tokens.len()).allocated) as f64 / MIB as f64;
                let (peak, _) = seen(|| model.forward(&tokens, 0).expect(name));
                let ratio = peak as f64 / predicted;
                assert!(
                    (0.95..1.05).contains(&ratio),
                    "{name} in {dtype}: {predicted:.1} MiB predicted, {peak} MiB taken"
                );
            }
        }
    });
}

/// The memory that a long prompt takes beside weights and cache is known before it starts. The rest grows in proportion to the prompt; one
/// copy of Llama's scores is 128 MiB.
#[test]
fn attention_scores_take_the_memory_that_is_predicted() {
    alone(|| {
        for (name, most_rest) in [("llama-mini", 120), ("qwen3-mini", 200), ("gemma3-mini", 200)] {
            let loaded = model::load(&ModelSpec::Mini(name), Engine::Stock, Precision::F32, DeviceChoice::Cpu, 42);
            let mut model = loaded.expect(name).model;
            let tokens = vec![7; 2048];
            let predicted = model.score_bytes(tokens.len()) / MIB;
            let (peak, _) = seen(|| model.forward(&tokens, 0).expect(name));
            // Candle's attention for CPUs, which its Qwen3 uses, holds no scores.
            assert_eq!(predicted > 0, name != "qwen3-mini", "{name}");
            let rest = peak.saturating_sub(predicted);
            assert!(
                predicted <= peak + peak / 50 && rest < most_rest,
                "{name}: {predicted} MiB predicted, {peak} MiB taken"
            );
        }
    });
}

/// A model that allocates a vector more in each pass.
struct Wasteful {
    model: Box<dyn CausalLm>,
    bytes: usize,
}

impl CausalLm for Wasteful {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        drop(black_box(Vec::<u8>::with_capacity(self.bytes)));
        self.model.forward(tokens, position)
    }
    fn reset(&mut self) -> Result<()> {
        self.model.reset()
    }
    fn footprint(&self) -> Footprint {
        self.model.footprint()
    }
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }
    fn max_position_embeddings(&self) -> usize {
        self.model.max_position_embeddings()
    }
    fn device(&self) -> &Device {
        self.model.device()
    }
}

/// The median of the allocations of nine generations of eight steps, while another thread allocates.
fn allocated(engine: Engine, bytes: usize) -> (u64, u64) {
    let loaded = model::load(&ModelSpec::Mini("llama-mini"), engine, Precision::F32, DeviceChoice::Cpu, 42);
    let mut model = Wasteful { model: loaded.expect("a model").model, bytes };
    let request = Request { new_tokens: 9, sampling: Sampling::GREEDY, seed: 42, stop: Vec::new() };
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Relaxed) {
                drop(black_box(vec![1u8; 1 << 12]));
            }
        });
        let run =
            |_| generate::run(&mut model, &[vec![7; 16]], &request).expect("tokens").allocations.expect("counted");
        let (mut counts, mut bytes): (Vec<u64>, Vec<u64>) = (0..9).map(run).unzip();
        has_ended.store(true, Relaxed);
        counts.sort_unstable();
        bytes.sort_unstable();
        (counts[4], bytes[4])
    })
}

/// Also beside other work, to the last byte. The pool to which engine `stock` passes its work takes a block more in some generations.
#[test]
fn equal_work_allocates_equally_and_one_allocation_more_is_seen() {
    alone(|| {
        for (engine, (blocks, bytes)) in [(Engine::Tuned, (0, 0)), (Engine::Stock, (1, 1600))] {
            let plain = allocated(engine, 0);
            for more in [0, 0, 0, 100] {
                let (count, sum) = allocated(engine, more);
                let expected = (plain.0 + if more > 0 { 8 } else { 0 }, plain.1 + 8 * more as u64);
                let is_close = count.abs_diff(expected.0) <= blocks && sum.abs_diff(expected.1) <= bytes;
                assert!(is_close, "{engine:?}: {count} of {sum} bytes, not {expected:?}");
            }
        }
    });
}

/// The buffers that a generation leaves in a model belong to the model, also in the generations of another workload.
#[test]
fn a_workload_counts_what_an_earlier_one_left_in_the_model() {
    alone(|| {
        let peak_after = |earlier: &[usize]| {
            let before = current_bytes();
            let loaded =
                model::load(&ModelSpec::Mini("llama-mini"), Engine::Tuned, Precision::F32, DeviceChoice::Cpu, 42);
            let subject = Rc::new(RefCell::new(loaded.expect("a model")));
            let held = HeldBytes::except(&Device::Cpu, before);
            let generate = |prompt_tokens: usize| {
                let request = Request { new_tokens: 2, sampling: Sampling::GREEDY, seed: 42, stop: Vec::new() };
                let prompts = vec![vec![7; prompt_tokens]];
                let workload =
                    GenerationWorkload::new(subject.clone(), held.clone(), prompts, request, DeviceChoice::Cpu);
                workload.expect("a workload").iterate().expect("a generation").peak_bytes
            };
            for tokens in earlier {
                generate(*tokens);
            }
            generate(1500) / MIB
        };
        let alone = peak_after(&[]);
        assert!(
            alone.abs_diff(peak_after(&[700])) <= 2 && alone.abs_diff(peak_after(&[1500])) <= 2,
            "{alone} MiB alone"
        );
    });
}
