//! Engine `tuned`: our own decoder. The feed-forward of each layer is dense or a mixture of experts, and nothing else differs
//! between a mixture and its dense twin.
//!
//! - `cpu` is the decoder on CPUs: every family of the table, on the kernels of this crate, for several sequences at once.
//! - `forward` is the decoder on other devices, by Candle's operations, for the families that it lists. `attention` holds its
//!   cache, `feed_forward` one gated feed-forward (dense, or one expert), and `mixture` dispatches tokens to experts.
//! - Both use `rope` for the frequencies of positions, and `routing` to choose experts and to count their use.
//! - `shape` makes the configurations that `moe_top_k` compares.

mod attention;
mod cpu;
mod feed_forward;
mod forward;
#[cfg(test)]
mod golden;
mod mixture;
mod rope;
mod routing;
pub mod shape;

pub use routing::ExpertLoad;

use anyhow::Result;
use candle_core::{DType, Device};

use super::{
    causal_lm::{CacheBytes, CausalLm},
    config::{ExpertLayout, ModelConfig},
    parallel::Parallel,
    tensors::Tensors,
};

/// Builds the decoder of the device that holds the weights, which must have been checked. `planted` is the skew and the seed of
/// routes that are drawn instead of computed. `parallel` is for the decoder on CPUs.
///
/// # Errors
/// If the engine does not run this configuration, a tensor is missing, or routes are planted without a mixture.
pub fn load(
    config: ModelConfig,
    tensors: Tensors,
    layout: ExpertLayout,
    planted: Option<(f64, u64)>,
    parallel: Parallel,
) -> Result<Box<dyn CausalLm>> {
    match tensors.weights.device().is_cpu() {
        true => cpu::load(config, tensors, layout, planted, parallel),
        false => Ok(Box::new(forward::Decoder::new(config, tensors.weights, layout, planted)?)),
    }
}

/// Why the engine does not run this configuration on a device.
pub fn refusal(config: &ModelConfig, device: &Device) -> Option<String> {
    if device.is_cpu() { cpu::refusal(config) } else { forward::refusal(config) }
}

/// Returns whether the engine runs a family on devices other than CPUs.
pub fn runs_elsewhere(architecture: &str) -> bool {
    forward::runs(architecture)
}

/// Bytes of the caches of all layers with `tokens` in the sequence.
pub fn cache_bytes(config: &ModelConfig, dtype: DType, tokens: usize, device: &Device) -> CacheBytes {
    match device.is_cpu() {
        true => cpu::cache_bytes(config, dtype, tokens),
        false => forward::cache_bytes(config, dtype, tokens),
    }
}
