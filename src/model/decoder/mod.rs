//! Our own decoder, engine `tuned`: attention and head as Llama, Qwen3, Qwen3-MoE and Mixtral have them, and for each
//! layer a feed-forward that is dense or a mixture of experts. A mixture and its dense twin therefore differ in nothing
//! else. `forward` is the model, `attention` its cache and positions, `feed_forward` one gated feed-forward (dense, or one
//! expert), `mixture` sends tokens to experts and brings them back, `routing` says which experts those are and how evenly
//! they are used, `shape` makes the configurations that are compared.

mod attention;
mod feed_forward;
mod forward;
#[cfg(test)]
mod golden;
mod mixture;
mod routing;
pub mod shape;

pub use forward::{Decoder, cache_bytes, refusal};
pub use routing::{ExpertLoad, Planted};
