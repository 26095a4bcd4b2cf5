//! The modules of candle-transformers whose configuration is a `config.json`: a row for each.

use anyhow::{Context, Result};
use candle_core::{DType, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    gemma2, glm4_new, granite, helium, mistral, olmo2, phi3, qwen2, qwen2_moe, smol::smollm3,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Module, Published, angles_in, qwen3_moe, rope_scaling, rope_table, uses_flash_attn};
use crate::model::config::{ModelConfig, Multipliers};

/// A configuration that a module does not compute, so that it is refused.
enum Limit {
    /// An activation other than SiLU.
    Activation,
    /// Biases of attention or the feed-forward.
    Biases,
    /// Heads whose size is not width over heads.
    HeadSize,
    /// Dense layers that are not at regular intervals.
    Interval,
    /// Multipliers other than 1.
    Multipliers,
    /// Queries, keys and values without biases.
    NoBiases,
    /// Biases of queries, keys and values without one of the output.
    OutputBias,
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
    HELIUM: "HeliumForCausalLM", helium, helium::Model,
        |config, weights| Ok(helium::Model::new(&published(config, &weights)?, weights)?),
        [OutputBias, Scaling], [], 3;
    QWEN2_MOE: "Qwen2MoeForCausalLM", qwen2_moe, qwen2_moe::Model,
        |config, weights| Ok(qwen2_moe::Model::new(&published(config, &weights)?, weights)?),
        [NoBiases, HeadSize, Interval, Scaling, Sliding, Tied], [Angles], 3;
    GRANITE_IN_F32: "GraniteForCausalLM", granite, Granite, Granite::new,
        [Activation, Biases, HeadSize, Multipliers, Scaling, Tied], [], 3;
}

/// Granite, which computes scores in f32 for every dtype.
pub(super) const GRANITE: Module = Module { bytes_per_score: |_, _| 3 * size_of::<f32>(), ..GRANITE_IN_F32 };

struct Granite {
    model: granite::Granite,
    /// The cache before the first token. It holds the RoPE tables, so that a reset does not compute them again.
    pristine: granite::Cache,
    cache: granite::Cache,
}

impl Granite {
    fn new(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Self> {
        let keys: granite::GraniteConfig = published(config, &weights)?;
        let published = keys.into_config(uses_flash_attn(weights.device()));
        let pristine = granite::Cache::new(true, weights.dtype(), &published, weights.device())?;
        let model = granite::Granite::load(weights, &published)?;
        Ok(Self { model, cache: pristine.clone(), pristine })
    }

    fn forward(&mut self, tokens: &Tensor, position: usize) -> CandleResult<Tensor> {
        self.model.forward(tokens, position, &mut self.cache)
    }

    fn clear_kv_cache(&mut self) {
        self.cache.clone_from(&self.pristine);
    }
}

impl Limit {
    fn reason(&self, config: &ModelConfig) -> Option<String> {
        let ModelConfig { head_dim, qkv_bias, o_bias, mlp_bias, .. } = *config;
        match self {
            Self::Activation => {
                (config.hidden_act != "silu").then(|| format!("it computes silu for hidden_act={}", config.hidden_act))
            }
            Self::Biases => {
                (qkv_bias || o_bias || mlp_bias).then(|| "it ignores the biases of attention_bias and mlp_bias".into())
            }
            Self::HeadSize => (head_dim * config.num_attention_heads != config.hidden_size)
                .then(|| format!("it requires head_dim to be hidden_size / num_attention_heads, not {head_dim}")),
            Self::Interval => qwen3_moe::sparse_step(config).is_none().then(|| "it ignores mlp_only_layers".into()),
            Self::Multipliers => has_multipliers(config)
                .then(|| "it has none of the multipliers of embedding, residual stream, scores and logits".into()),
            Self::OutputBias => {
                (qkv_bias && !o_bias).then(|| "it requires a bias of the output of attention with the others".into())
            }
            Self::NoBiases => (!qkv_bias).then(|| "it requires biases of queries, keys and values".into()),
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

fn has_multipliers(config: &ModelConfig) -> bool {
    let Multipliers { embedding, residual, logits, .. } = config.multipliers;
    let scores = config.attention_scale() * (config.head_dim as f64).sqrt();
    [embedding, residual, logits, scores].iter().any(|multiplier| (multiplier - 1.0).abs() > 1e-6)
}

fn has_window(config: &ModelConfig) -> bool {
    config.sliding_layers.contains(&true)
}

/// The configuration of a module. Each takes the keys that it knows.
fn published<C: DeserializeOwned>(config: &ModelConfig, weights: &VarBuilder) -> Result<C> {
    let ModelConfig { head_dim, rotary_dim, max_position_embeddings, .. } = *config;
    // The modules round the number of elements down.
    let rotary = (rotary_dim < head_dim).then(|| (rotary_dim as f64 + 0.5) / head_dim as f64);
    let mut published = json!({
        "vocab_size": config.vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
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
    if let Some(experts) = &config.experts {
        published["num_experts"] = experts.num_experts.into();
        published["num_experts_per_tok"] = experts.num_experts_per_tok.into();
        published["norm_topk_prob"] = experts.norm_topk_prob.into();
        published["moe_intermediate_size"] = experts.intermediate_size.into();
        published["shared_expert_intermediate_size"] = experts.shared_intermediate_size.into();
        published["decoder_sparse_step"] = qwen3_moe::sparse_step(config).into();
    }
    serde_json::from_value(published)
        .with_context(|| format!("config.json: candle-transformers has no hidden_act={}", config.hidden_act))
}
