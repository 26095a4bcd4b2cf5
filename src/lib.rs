//! A benchmark suite for language models on [Candle](https://github.com/huggingface/candle), with Criterion's statistics.
//!
//! # Usage
//!
//! In a checkout, `cargo bench` measures embedded models. To measure your own model, implement [`CausalLm`] and pass the
//! model to [`main`] in a bench target with `harness = false`:
//!
//! ```no_run
//! use candlepower::{
//!     Candidate, CausalLm, CountingAllocator, Footprint, GENERATION,
//!     anyhow::Result,
//!     candle_core::{DType, Device, Tensor},
//! };
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator; // Measures peak memory.
//!
//! const VOCAB_SIZE: usize = 8192;
//! const HIDDEN_SIZE: usize = 512;
//!
//! /// Predicts the next token from the last one.
//! struct Bigram {
//!     embedding: Tensor, // (VOCAB_SIZE, HIDDEN_SIZE)
//! }
//!
//! impl CausalLm for Bigram {
//!     fn forward(&mut self, tokens: &[u32], _position: usize) -> Result<Tensor> {
//!         let last = Tensor::new(&tokens[tokens.len() - 1..], self.embedding.device())?;
//!         let hidden = self.embedding.index_select(&last, 0)?;
//!         Ok(hidden.matmul(&self.embedding.t()?)?.flatten_all()?.to_dtype(DType::F32)?)
//!     }
//!     fn reset(&mut self) -> Result<()> {
//!         Ok(()) // It keeps nothing between calls.
//!     }
//!     fn footprint(&self) -> Footprint {
//!         // All parameters are those of the head, because the embedding is also the head.
//!         let parameters = VOCAB_SIZE * HIDDEN_SIZE;
//!         Footprint::dense(parameters, parameters, self.embedding.dtype(), 0)
//!     }
//!     fn vocab_size(&self) -> usize {
//!         VOCAB_SIZE
//!     }
//!     fn max_position_embeddings(&self) -> usize {
//!         1 << 20
//!     }
//!     fn device(&self) -> &Device {
//!         self.embedding.device()
//!     }
//! }
//!
//! fn load(dtype: DType, device: &Device) -> Result<Bigram> {
//!     // Unlike those of `randn`, these weights are equal in each process, and so are the tokens.
//!     let numbers = Tensor::arange(0f32, (VOCAB_SIZE * HIDDEN_SIZE) as f32, device)?;
//!     let embedding = (numbers.sin()? * 0.02)?.reshape((VOCAB_SIZE, HIDDEN_SIZE))?.to_dtype(dtype)?;
//!     Ok(Bigram { embedding })
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     candlepower::main(|suite| {
//!         let model = Candidate::own("bigram", suite.settings(), load);
//!         suite.generation(GENERATION, vec![model]);
//!     })
//! }
//! ```
//!
//! The README shows the `Cargo.toml` of such a crate. The [`guide`] describes settings, benchmarks, reports and devices.
//!
//! # Data flow
//!
//! ```text
//! cargo bench -- '^medium/llama'
//!   settings::Settings::load        models, device, dtype, tier; reports every bad value at once
//!   scenario::GENERATION            medium = 256 prompt tokens, 256 new tokens, greedy
//!   bench::Suite::generation       one Criterion group per scenario, one benchmark per model
//!     model::load                   embedded, synthetic, Hub or folder → impl CausalLm, once per process
//!     workload                      one iteration: generate::run → Timeline
//!     measure                       limits of the machine, memory, conditions
//!   criterion                       statistics, baselines, changes, HTML in target/criterion
//!   record::Sink                    one line per benchmark in target/candlepower/<run>/records.jsonl
//!   report                          the tables at the end, and `candlepower report`
//! ```
//!
//! [`guide::methodology`] describes what is timed, how, and the known biases.

#![warn(missing_docs)]
// Parts of the library have no user but the command.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

pub mod bench;
#[cfg(feature = "cli")]
mod command;
#[cfg(feature = "cli")]
mod doctor;
pub mod guide;
mod peer;
pub mod runner;
pub mod settings;
#[cfg(feature = "cli")]
pub mod train;
pub mod verify;
pub mod why;
pub mod workload;
#[cfg(feature = "cli")]
pub mod wrap;

// The tests of this package use these modules. They are not part of the API and change without notice.
#[doc(hidden)]
pub mod duel;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod load;
#[doc(hidden)]
pub mod quality;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod recommend;
#[doc(hidden)]
pub mod report;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod serve;

#[cfg(feature = "serve")]
use candlepower_core::tls;
use candlepower_core::{
    config, device, dialogue, error, files, generate, git, measure, model, names, output, progress, statistics, step,
    text,
};
use candlepower_kernels as kernels;

pub use {anyhow, candle_core, criterion, tracing};

pub use bench::{Suite, main, target};
pub use candlepower_core::{
    measure::CountingAllocator,
    model::{CacheBytes, CausalLm, Footprint},
    record,
    scenario::{self, GENERATION},
};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use command::command;
pub use runner::Candidate;
