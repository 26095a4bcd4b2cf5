//! Counts the memory of a training step: gradient checkpointing saves most of the activations, and the loss does not
//! store the logits of a large batch.

mod alone;

use alone::alone;
use candle_core::{DType, Device};
use candlepower_core::{
    measure::{
        CountingAllocator,
        allocator::{current_bytes, peak_bytes, reset_peak},
    },
    model::psann::{Base, PsannConfig},
    step::{
        gradients::Sequences,
        language::{Language, Plan},
        optimizer::Options,
    },
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const TIME: usize = 64;

/// Peak memory of a step beyond the memory in use between steps, after a first step.
fn activation_bytes(config: &PsannConfig, rows: usize, checkpointing: bool) -> u64 {
    let plan = Plan { dtype: DType::F32, checkpointing, micro_rows: rows };
    let mut language = Language::new(config, Options::default(), plan, 1, &Device::Cpu).expect("a training");
    let ids = (0..rows * (TIME + 1)).map(|place| (place * 31 % config.vocab_size) as u32).collect();
    let batch = Sequences::new(ids, TIME + 1).expect("sequences");
    language.step(&batch).expect("a step");
    let between = current_bytes();
    reset_peak();
    language.step(&batch).expect("a step");
    peak_bytes().expect("it is counted") - between
}

fn config() -> PsannConfig {
    PsannConfig {
        base: Base::Waveresnet,
        vocab_size: 64,
        d_model: 64,
        n_layers: 8,
        n_heads: 4,
        d_mlp: 256,
        ..PsannConfig::default()
    }
}

#[test]
fn checkpointing_saves_most_of_what_layers_keep() {
    alone(|| {
        let (plain, kept) = (activation_bytes(&config(), 8, false), activation_bytes(&config(), 8, true));
        assert!(kept * 10 <= plain * 4, "{kept} of {plain} bytes are left");
    });
}

#[test]
fn the_loss_does_not_keep_all_logits() {
    alone(|| {
        let small = PsannConfig { n_layers: 1, d_model: 16, n_heads: 1, d_mlp: 16, ..config() };
        // 4096 and 8192 rows: eight and sixteen chunks of the loss.
        let peak = |vocab_size: usize, rows: usize| {
            activation_bytes(&PsannConfig { vocab_size, ..small.clone() }, rows, false)
        };
        let logits = |vocab_size: u64, rows: u64| 4 * vocab_size * rows * TIME as u64;
        let (few, many) = (peak(500, 64), peak(4000, 64));
        let grown = many.saturating_sub(few);
        let all = logits(4000, 64) - logits(500, 64);
        assert!(grown * 20 < all, "{grown} bytes more for eight times the vocabulary, all logits would be {all}");
        let longer = peak(4000, 128).saturating_sub(many);
        let shorter = peak(500, 128).saturating_sub(few);
        assert!(
            longer.abs_diff(shorter) * 20 < logits(4000, 64),
            "{longer} and {shorter} bytes more for twice the batch"
        );
    });
}
