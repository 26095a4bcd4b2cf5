//! The generation scenarios: prompt length, generated length, and sampling.

use std::fmt;

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Tier;

/// One generation scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// First part of the benchmark id.
    pub key: &'static str,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Number of tokens to generate.
    pub new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The smallest tier that runs it.
    pub tier: Tier,
    /// Key of the scenario that it is compared with, on the same model. Both are measured in turns.
    pub against: Option<&'static str>,
    /// A short description for `candlepower list`.
    pub purpose: &'static str,
}

/// How the next token is chosen. Transforms apply in the order of the fields, each to the result of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sampling {
    /// The penalty of CTRL (Keskar et al. 2019): positive logits of earlier tokens are divided by it, negative ones multiplied.
    pub repetition_penalty: Option<f32>,
    /// Logits are divided by it. 0 means argmax, which makes the transforms after it irrelevant.
    pub temperature: f32,
    /// Number of most probable tokens that are kept; `null` keeps all.
    pub top_k: Option<usize>,
    /// Nucleus sampling: the smallest set of most probable tokens whose probabilities sum to at least this value is kept.
    /// `null` keeps all.
    pub top_p: Option<f32>,
}

impl Sampling {
    /// Argmax of the logits.
    pub const GREEDY: Self = Self { repetition_penalty: None, temperature: 0.0, top_k: None, top_p: None };

    const NUCLEUS: Self = Self { repetition_penalty: None, temperature: 0.8, top_k: Some(50), top_p: Some(0.9) };

    /// # Errors
    /// If a parameter is out of range.
    pub fn validate(&self) -> Result<()> {
        let Self { repetition_penalty, temperature, top_k, top_p } = *self;
        ensure!(temperature >= 0.0 && temperature.is_finite(), "temperature={temperature}: it must be at least 0");
        if let Some(penalty) = repetition_penalty {
            ensure!(penalty > 0.0 && penalty.is_finite(), "repetition-penalty={penalty}: it must be greater than 0");
        }
        ensure!(top_k != Some(0), "top-k=0: it must be at least 1");
        if let Some(p) = top_p {
            ensure!(p > 0.0 && p <= 1.0, "top-p={p}: it must be greater than 0 and at most 1");
        }
        Ok(())
    }

    const EVERY_TRANSFORM: Self = Self { repetition_penalty: Some(1.1), ..Self::NUCLEUS };
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repetition_penalty, temperature, top_k, top_p } = self;
        if let Some(penalty) = repetition_penalty {
            write!(f, "penalty {penalty}, ")?;
        }
        match temperature {
            0.0 => f.write_str("greedy")?,
            _ => write!(f, "temperature {temperature}")?,
        }
        if let Some(k) = top_k {
            write!(f, ", top-k {k}")?;
        }
        if let Some(p) = top_p {
            write!(f, ", top-p {p}")?;
        }
        Ok(())
    }
}

const fn row(
    key: &'static str,
    prompt_tokens: usize,
    new_tokens: usize,
    sampling: Sampling,
    tier: Tier,
    purpose: &'static str,
) -> Generation {
    Generation { key, prompt_tokens, new_tokens, sampling, tier, against: None, purpose }
}

/// The scenarios that every model runs.
#[rustfmt::skip]
pub const GENERATION: &[Generation] = &[
    row("short",     64,   64,  Sampling::GREEDY,          Tier::Quick,    "a quick question: baseline latency"),
    row("medium",    256,  256, Sampling::GREEDY,          Tier::Quick,    "a standard chat turn: the headline"),
    row("prefill",   1024, 64,  Sampling::GREEDY,          Tier::Standard, "isolates prefill"),
    row("decode",    64,   512, Sampling::GREEDY,          Tier::Standard, "isolates decode"),
    row("long",      1024, 512, Sampling::GREEDY,          Tier::Full,     "the longest sequence"),
    row("sampled",   256,  256, Sampling::NUCLEUS,         Tier::Standard, "the cost of sampling, against medium").against("medium"),
    row("full-pipe", 256,  256, Sampling::EVERY_TRANSFORM, Tier::Full,     "every logit transform").against("medium"),
];

/// The scenarios of mixtures of experts and their dense twins. The first spends all its time on the prompt, the second on
/// decode steps.
#[rustfmt::skip]
pub const MOE_TOP_K: &[Generation] = &[
    row("moe_top_k_prefill", 512, 1,  Sampling::GREEDY, Tier::Quick, "a prompt through experts, against dense twins"),
    row("moe_top_k_decode",  1,   64, Sampling::GREEDY, Tier::Quick, "steps that read the chosen experts only"),
];

/// Prompts of growing length, and steps at that depth. They run only if the tier is set to full, on models that are long
/// enough.
#[rustfmt::skip]
pub const LONG_CONTEXT: &[Generation] = &[
    row("depth-1k",  1 << 10, DEEP_STEPS, Sampling::GREEDY, Tier::Full, "a prompt of 1K tokens, and steps at that depth"),
    row("depth-2k",  2 << 10, DEEP_STEPS, Sampling::GREEDY, Tier::Full, "a prompt of 2K tokens, and steps at that depth"),
    row("depth-4k",  4 << 10, DEEP_STEPS, Sampling::GREEDY, Tier::Full, "a prompt of 4K tokens, and steps at that depth"),
    row("depth-8k",  8 << 10, DEEP_STEPS, Sampling::GREEDY, Tier::Full, "a prompt of 8K tokens, and steps at that depth"),
    row("depth-16k", 16 << 10, DEEP_STEPS, Sampling::GREEDY, Tier::Full, "a prompt of 16K tokens, and steps at that depth"),
];

/// Enough steps for a median, and few beside a long prompt.
const DEEP_STEPS: usize = 16;

/// A generation of one model on several numbers of threads. It runs if the settings name several, or the tier is set to full.
pub const THREADS_SCALING: &[Generation] =
    &[row("threads_scaling", 256, 64, Sampling::GREEDY, Tier::Full, "engine tuned over its number of threads")];

/// A generation of one model, sharded over several numbers of ranks. It runs if the settings name several, or the tier is set to
/// full.
pub const TENSOR_PARALLEL: &[Generation] =
    &[row("tensor_parallel", 256, 64, Sampling::GREEDY, Tier::Full, "engine tuned, sharded over several ranks")];

impl Generation {
    const fn against(self, key: &'static str) -> Self {
        Self { against: Some(key), ..self }
    }

    /// Tokens of its throughput: generated tokens, or prompt tokens if no decode step follows the prompt.
    pub fn counted_tokens(&self) -> usize {
        if self.new_tokens == 1 { self.prompt_tokens } else { self.new_tokens }
    }

    /// Tokens in the sequence at its end.
    pub fn total_tokens(&self) -> usize {
        self.prompt_tokens + self.new_tokens
    }
}
