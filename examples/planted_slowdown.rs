//! A model with a known slowdown, or with additional memory as a share of its weights, to test which changes are detected:
//! `PLANTED_SLOWDOWN=0.10 PLANTED_MEMORY=0.01 cargo run --release --example planted_slowdown -- --bench '^short/'`.
//! scripts/resolution.sh and scripts/compare_pairs.sh run it repeatedly.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candlepower::Candidate;
use candlepower_core::{
    measure::CountingAllocator,
    model::{self, CausalLm, Footprint},
    scenario::GENERATION,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A model that waits after each forward pass for a share of the pass's time.
struct Slowed {
    model: Box<dyn CausalLm>,
    by: f64,
    /// Memory that is only held.
    _ballast: Vec<u8>,
}

/// Reads a share from the environment; 0 if it is not set.
fn planted(variable: &str) -> Result<f64> {
    let share = std::env::var(variable).unwrap_or_else(|_| "0".into());
    share.parse().with_context(|| format!("{variable}={share}: not a number"))
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
    fn device(&self) -> &Device {
        self.model.device()
    }
}

fn main() -> ExitCode {
    candlepower::main(|suite| {
        let settings = suite.settings().clone();
        let (device, seed) = (settings.device, settings.seed);
        let candidate = Candidate::own("planted", suite.settings(), move |_, _| {
            let spec = settings.models.first().context("a model is needed")?;
            let variants = settings.variants_for(spec);
            let own = variants.iter().find_map(|(engine, dtype)| Some((engine.own()?, *dtype)));
            let (engine, dtype) = own.context("an engine of this crate is needed")?;
            let model = model::load(spec, engine, dtype, device, seed)?.model;
            let ballast_bytes = model.footprint().weight_bytes as f64 * planted("PLANTED_MEMORY")?;
            Ok(Slowed { model, by: planted("PLANTED_SLOWDOWN")?, _ballast: vec![1; ballast_bytes as usize] })
        });
        suite.generation(GENERATION, vec![candidate]);
    })
}
