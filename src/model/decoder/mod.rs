//! Engine `tuned`: our own decoder for Llama, Qwen3, Qwen3-MoE and Mixtral. The feed-forward of each layer is dense or a
//! mixture of experts, and nothing else differs between a mixture and its dense twin.
//!
//! `forward` is the model. `attention` holds the cache and the positions, `feed_forward` one gated feed-forward (dense, or one
//! expert), `mixture` dispatches tokens to experts, `routing` chooses the experts and counts their use, and `shape` makes the
//! configurations that `moe_top_k` compares.

mod attention;
mod feed_forward;
mod forward;
#[cfg(test)]
mod golden;
mod mixture;
mod routing;
pub mod shape;

pub use forward::{Decoder, cache_bytes, refusal};
pub use routing::ExpertLoad;
