//! A model that is slower by a known share, to see what change is found: `PLANTED_SLOWDOWN=0.10 cargo run --release
//! --example planted_slowdown -- --bench '^short/'`. scripts/resolution.sh runs it many times.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use candle_core::Tensor;
use candlepower::{
    measure::memory::CountingAllocator,
    scenario::GENERATION,
    subject::{self, CausalLm, Footprint},
    suite::{self, Candidate},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Takes longer than the model inside it, by a share of the model's own time.
struct Slowed {
    model: Box<dyn CausalLm>,
    by: f64,
}

impl CausalLm for Slowed {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let started = Instant::now();
        let logits = self.model.forward(tokens, position)?;
        let until = started.elapsed().mul_f64(1.0 + self.by);
        while started.elapsed() < until {
            std::hint::spin_loop();
        }
        Ok(logits)
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
}

fn main() -> ExitCode {
    suite::main(|suite| {
        let settings = suite.settings().clone();
        let (engine, device, seed) = (settings.engine, settings.device, settings.seed);
        let candidate = Candidate::own("planted", suite.settings(), move |dtype, _| {
            let by = std::env::var("PLANTED_SLOWDOWN").unwrap_or_else(|_| "0".into());
            let by: f64 = by.parse().with_context(|| format!("PLANTED_SLOWDOWN={by}: not a number"))?;
            let spec = settings.models.first().context("a model is needed")?;
            Ok(Slowed { model: subject::load(spec, engine, dtype, device, seed)?.model, by })
        });
        suite.generation(&GENERATION, vec![candidate]);
    })
}
