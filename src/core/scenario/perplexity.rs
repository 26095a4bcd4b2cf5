//! Perplexity of an embedded text.

use super::Tier;

/// One benchmark, which is a Criterion group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityScenario {
    /// First part of the benchmark id.
    pub key: &'static str,
    /// Tokens of a window. An iteration scores one.
    pub window_tokens: usize,
    /// Tokens by which the window moves over the text.
    pub stride_tokens: usize,
    /// The smallest tier that runs it.
    pub tier: Tier,
    /// A short description for `candlepower list`.
    pub purpose: &'static str,
}

/// The windows do not overlap, because engine `stock` computes one token at a time.
pub const PERPLEXITY: &[PerplexityScenario] = &[PerplexityScenario {
    key: "perplexity",
    window_tokens: 128,
    stride_tokens: 128,
    tier: Tier::Quick,
    purpose: "quality of each engine and dtype, and the time to score a window",
}];
