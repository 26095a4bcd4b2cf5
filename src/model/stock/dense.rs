//! The dense modules of candle-transformers whose configuration is a `config.json`: a row for each.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, glm4_new, mistral, olmo2, phi3, qwen2, smol::smollm3};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Module, Published, angles_in, rope_scaling, rope_table, uses_flash_attn};
use crate::model::config::ModelConfig;

/// A configuration that a module does not compute, so that it is refused.
enum Limit {
    /// Heads whose size is not width over heads.
    HeadSize,
    Scaling,
    /// Scores that are divided by something else than the square root of the head size.
    Scores,
    /// Sliding layers: they are full, or their window is one token too wide in prompts and ignored in steps.
    Sliding,
    /// A head that is the embedding.
    Tied,
    /// A head that is not the embedding.
    Untied,
}

/// A difference from the reference implementation in some dtypes or for some lengths.
enum Fault {
    /// RoPE's angles are computed in the dtype of the weights.
    Angles,
    /// Sliding layers do not have their window.
    Window,
}

/// Declares modules: the architecture, the name of the module, how it is built, its limits and faults, and the copies of the scores
/// that a prompt takes at once: the result of each step from the product of queries and keys to the probabilities.
macro_rules! modules {
    ($($constant:ident: $architecture:literal, $name:ident, $model:ty, $new:expr, [$($limit:ident),*], [$($fault:ident),*], $copies:literal;)*) => {$(
        pub(super) const $constant: Module = Module {
            architecture: $architecture,
            refusal: |config| refusal(stringify!($name), config, &[$(Limit::$limit),*]),
            deviates: |config, dtype, tokens| deviation(stringify!($name), config, dtype, tokens, &[$(Fault::$fault),*]),
            load: |config, weights| {
                let new: fn(&ModelConfig, VarBuilder<'static>) -> Result<$model> = $new;
                Ok(Box::new(new(config, weights)?))
            },
            rope_table_bytes: |config, dtype| rope_table(config) * dtype.size_in_bytes() as u64,
            bytes_per_score: |dtype, _| $copies * dtype.size_in_bytes(),
            preallocates_cache: false,
        };

        impl Published for $model {
            fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
                Ok(Self::forward(self, tokens, position)?)
            }

            fn reset(&mut self) {
                self.clear_kv_cache();
            }
        }
    )*};
}

modules! {
    QWEN2: "Qwen2ForCausalLM", qwen2, qwen2::ModelForCausalLM,
        |config, weights| Ok(qwen2::ModelForCausalLM::new(&published(config, &weights)?, weights)?),
        [HeadSize, Scaling, Sliding], [Angles], 3;
    MISTRAL: "MistralForCausalLM", mistral, mistral::Model,
        |config, weights| Ok(mistral::Model::new(&published(config, &weights)?, weights)?),
        [Scaling, Sliding, Tied], [], 3;
    OLMO2: "Olmo2ForCausalLM", olmo2, olmo2::Model,
        |config, weights| Ok(olmo2::Model::new(&published(config, &weights)?, weights)?),
        [HeadSize, Scaling], [Angles], 3;
    SMOLLM3: "SmolLM3ForCausalLM", smollm3, smollm3::ModelForCausalLM,
        |config, weights| Ok(smollm3::ModelForCausalLM::new(&published(config, &weights)?, weights)?),
        [HeadSize, Scaling, Sliding], [], 3;
    GEMMA2: "Gemma2ForCausalLM", gemma2, gemma2::Model,
        // Its flash attention has no soft caps.
        |config, weights| Ok(gemma2::Model::new(false, &published(config, &weights)?, weights)?),
        [Scaling, Scores, Untied], [Angles, Window], 4;
    PHI3: "Phi3ForCausalLM", phi3, phi3::Model,
        |config, weights| Ok(phi3::Model::new(&published(config, &weights)?, weights)?),
        [HeadSize, Scaling], [Angles, Window], 3;
    GLM4: "Glm4ForCausalLM", glm4_new, glm4_new::ModelForCausalLM,
        |config, weights| Ok(glm4_new::ModelForCausalLM::new(&published(config, &weights)?, weights)?),
        [Scaling], [Angles], 3;
}

impl Limit {
    fn reason(&self, config: &ModelConfig) -> Option<String> {
        let ModelConfig { head_dim, .. } = *config;
        match self {
            Self::HeadSize => (head_dim * config.num_attention_heads != config.hidden_size)
                .then(|| format!("it requires head_dim to be hidden_size / num_attention_heads, not {head_dim}")),
            Self::Scaling => {
                rope_scaling(config).map(|name| format!("it does not compute RoPE scaling of type {name}"))
            }
            Self::Scores => (config.query_pre_attn_scalar != head_dim as f64)
                .then(|| format!("it divides scores by the square root of head_dim={head_dim}")),
            Self::Sliding => has_window(config).then(|| "it does not compute sliding layers".into()),
            Self::Tied => config.tie_word_embeddings.then(|| "it has no tied head".into()),
            Self::Untied => (!config.tie_word_embeddings).then(|| "it uses the embedding as the head".into()),
        }
    }
}

fn refusal(name: &str, config: &ModelConfig, limits: &[Limit]) -> Option<String> {
    let reason = limits.iter().find_map(|limit| limit.reason(config))?;
    Some(format!("candle-transformers' {name}: {reason}"))
}

fn deviation(
    name: &str,
    config: &ModelConfig,
    dtype: DType,
    (prompt, new): (usize, usize),
    faults: &[Fault],
) -> Option<String> {
    let reason = |fault: &Fault| match fault {
        Fault::Angles => angles_in(dtype),
        Fault::Window => config
            .sliding_window
            .filter(|window| has_window(config) && prompt + new > *window)
            .map(|window| format!("layers see more or fewer tokens than the sliding window of {window}")),
    };
    let reasons: Vec<_> = faults.iter().filter_map(reason).collect();
    (!reasons.is_empty()).then(|| format!("candle-transformers' {name}: {}", reasons.join("; ")))
}

fn has_window(config: &ModelConfig) -> bool {
    config.sliding_layers.contains(&true)
}

/// The configuration of a module. Each takes the keys that it knows.
fn published<C: DeserializeOwned>(config: &ModelConfig, weights: &VarBuilder) -> Result<C> {
    let ModelConfig { head_dim, rotary_dim, max_position_embeddings, .. } = *config;
    // The modules round the number of elements down.
    let rotary = (rotary_dim < head_dim).then(|| (rotary_dim as f64 + 0.5) / head_dim as f64);
    let published = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "hidden_act": config.hidden_act,
        "hidden_activation": config.hidden_act,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": config.sliding_window.filter(|_| has_window(config)).unwrap_or(max_position_embeddings),
        "use_sliding_window": false,
        "max_window_layers": config.num_hidden_layers,
        "query_pre_attn_scalar": config.query_pre_attn_scalar as usize,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "partial_rotary_factor": rotary,
        "no_rope_layers": config.rope_layers.iter().map(|has_rope| usize::from(*has_rope)).collect::<Vec<_>>(),
        "use_flash_attn": uses_flash_attn(weights.device()),
    });
    serde_json::from_value(published)
        .with_context(|| format!("config.json: candle-transformers has no hidden_act={}", config.hidden_act))
}
