//! PSANN language models and the plain transformer that they are compared with: one decoder, whose activation and extra
//! branches are chosen by [`PsannConfig`], with the tensors' names of psannlm 2.0.1. `decoder` goes from tokens to logits,
//! `block` is one layer, `spectral` and `wave` are the branches that two of the bases add.
//!
//! Two of the bases can see later tokens, so that their loss is not that of a language model: `sgrpsann` always, since its
//! spectral branch mixes the last steps with one another, and `waveresnet` where its temporal block is on, whose convolution
//! reaches both ways. [`Decoder::leak`] finds out.

mod block;
mod config;
mod decoder;
mod spectral;
mod wave;

pub use config::{Base, Encoding, PsannConfig, Sine};
pub use decoder::{Cost, Decoder};
