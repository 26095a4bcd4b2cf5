//! PSANN language models, and the plain transformer that they are compared with. One decoder serves all; [`PsannConfig`] selects
//! its activation and branches. Tensor names are those of psannlm 2.0.1.
//!
//! `decoder` computes logits from tokens, `block` is one layer of it, `layers` holds the parts of a layer, and `spectral` and
//! `wave` are the branches of two bases. `causal` scores texts with a trained model. Matrices are tensors, or in the form of a
//! dtype on the kernels of inference, without gradients.
//!
//! Two bases can see later tokens, so their loss is not that of a language model. `sgrpsann` always does, because its spectral
//! branch mixes the last steps with each other. `waveresnet` does with its temporal block, whose convolution is not causal.
//! `Decoder::leak` tests this.

mod block;
mod causal;
mod config;
mod decoder;
mod layers;
mod spectral;
mod wave;

pub use causal::PsannLm;
pub use config::{Base, Encoding, PsannConfig, Sine, SineParameter};
pub use decoder::{Cost, Decoder};
