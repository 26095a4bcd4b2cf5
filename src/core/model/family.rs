//! The table of model families: each row holds as data what distinguishes the layers and the `config.json` of one
//! architecture. To add a family, add a row to [`FAMILIES`], which engine `tuned` runs on CPUs, and its architecture to the list
//! of each other engine that runs it.

// Most rows name a tensor or a key of `config.json`.
#![allow(missing_docs)]

/// Properties that all models of one architecture share. Defaults are those of transformers' configuration class for keys
/// that `config.json` leaves out.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// Value of `architectures[0]`. It identifies the family.
    pub architecture: &'static str,
    /// Value of `model_type`, used where `architectures` is missing.
    pub model_type: &'static str,
    /// Names of the RMSNorms of one layer.
    pub layer_norms: LayerNorms,
    /// Number that is added to the stored weights of every RMSNorm: 1 where checkpoints store the difference from 1.
    pub norm_offset: f64,
    /// Which RMSNorms queries and keys have: `self_attn.q_norm` and `self_attn.k_norm`.
    pub qk_norm: QkNorm,
    /// Which layers of attention have biases.
    pub attention_bias: AttentionBias,
    /// True if each head has a score that takes part in the softmax without a value: `self_attn.sinks`.
    pub has_sinks: bool,
    /// True if `mlp_bias` is a key.
    pub reads_mlp_bias: bool,
    /// Default of `head_dim`; `None` for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Default of `num_key_value_heads` where the key is missing; `None` for `num_attention_heads`, which `null` always means.
    pub num_key_value_heads: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// Default of `rms_norm_eps`.
    pub rms_norm_eps: f64,
    /// Key of the activation of the feed-forward, if there is one, and its default.
    pub hidden_act: (Option<&'static str>, &'static str),
    /// Defaults of `swiglu_alpha` and `swiglu_limit`, where they are keys of a clamped SiLU.
    pub swiglu: Option<(f64, f64)>,
    /// Default of `tie_word_embeddings`.
    pub tie_word_embeddings: bool,
    /// True if embeddings are multiplied by the square root of `hidden_size`.
    pub scales_embedding: bool,
    /// True if `embedding_multiplier`, `residual_multiplier`, `attention_multiplier` and `logits_scaling` are keys.
    pub has_multipliers: bool,
    /// Default of `rope_theta`.
    pub rope_theta: f64,
    /// Default of `rope_parameters`, in JSON; `None` for RoPE without scaling.
    pub rope_parameters: Option<&'static str>,
    /// True if `llama_4_scaling_beta` of these parameters is needed: queries beyond the original positions are multiplied.
    pub scales_queries: bool,
    /// Default of `rope_local_base_freq`, the base of RoPE in sliding layers; `None` where all layers share one RoPE.
    pub local_rope_theta: Option<f64>,
    /// Default of `partial_rotary_factor`; `None` where RoPE always turns whole heads.
    pub partial_rotary_factor: Option<f64>,
    /// Default of `original_max_position_embeddings`, where it is a key at the top level.
    pub original_max_position_embeddings: Option<usize>,
    /// True if the pairs that RoPE turns are neighbours. In other families they are the halves of a head.
    pub has_rope_in_pairs: bool,
    /// Default of `no_rope_layer_interval`: every such layer has no RoPE, unless `no_rope_layers` says otherwise. `None` where all
    /// layers have it.
    pub no_rope_layer_interval: Option<usize>,
    /// Which layers see only the sliding window.
    pub sliding_layers: SlidingLayers,
    /// Default of `sliding_window` where the key is missing; `null` always means that there is none.
    pub sliding_window: Option<usize>,
    /// True if the window counts only with `use_sliding_window`.
    pub has_window_switch: bool,
    /// Default of `query_pre_attn_scalar`; `None` where scores are always divided by the square root of `head_dim`.
    pub query_pre_attn_scalar: Option<f64>,
    /// Defaults of `attn_logit_softcapping` and `final_logit_softcapping`, where they are keys.
    pub soft_caps: Option<(Option<f64>, Option<f64>)>,
    /// Default of `eos_token_id`.
    pub eos_token_ids: &'static [u32],
    /// The mixture of experts, where the family has one.
    pub experts: Option<ExpertFamily>,
}

/// Names of the RMSNorms of one layer, below `model.layers.N`.
#[derive(Debug, PartialEq)]
pub struct LayerNorms {
    pub before_attention: Option<&'static str>,
    /// Applied to the output of attention before it is added to the residual stream.
    pub after_attention: Option<&'static str>,
    pub before_feed_forward: Option<&'static str>,
    /// Applied to the output of the feed-forward before it is added to the residual stream.
    pub after_feed_forward: Option<&'static str>,
}

impl LayerNorms {
    /// The names in the order of the computation.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let Self { before_attention, after_attention, before_feed_forward, after_feed_forward } = *self;
        [before_attention, after_attention, before_feed_forward, after_feed_forward].into_iter().flatten()
    }
}

/// Which RMSNorms queries and keys have before RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Of each head.
    Heads,
    /// Of all heads together.
    Whole,
}

/// Which layers of attention have biases.
#[derive(Debug, PartialEq)]
pub enum AttentionBias {
    /// Those of queries, keys and values, or none. `config.json` has no key for it.
    Fixed(bool),
    /// This key says so for queries, keys and values, and for the output too if `with_output`.
    Key { key: &'static str, default: bool, with_output: bool },
}

/// Which layers see only the sliding window, where there is one.
#[derive(Debug, PartialEq)]
pub enum SlidingLayers {
    /// None; `layer_types` is no key.
    None,
    /// All; `layer_types` is no key.
    All,
    /// Those of `layer_types`, or the layers from `max_window_layers` (default: this value) on.
    From { max_window_layers: usize },
    /// Those of `layer_types`, or the first, third and so on of the layers below `max_window_layers` (default: this value).
    EverySecondBelow { max_window_layers: usize },
    /// Those of `layer_types`, or all layers except every `pattern`-th; `sliding_window_pattern` replaces it if `is_key`.
    AllButEvery { pattern: usize, is_key: bool },
    /// Those of `layer_types`, which then need no `use_sliding_window`, or the layers without RoPE.
    WithoutRope,
}

impl SlidingLayers {
    /// Returns whether `layer_types` is a key.
    pub(crate) fn reads_layer_types(&self) -> bool {
        !matches!(self, Self::None | Self::All)
    }
}

/// How a family describes and stores a mixture of experts.
#[derive(Debug, PartialEq)]
pub struct ExpertFamily {
    /// Names in files that store each expert's matrices separately.
    pub names: ExpertNames,
    /// Keys of the number of experts, of which the first that is there counts.
    pub num_experts_keys: &'static [&'static str],
    /// Default of the number of experts.
    pub num_experts: usize,
    /// Default of `num_experts_per_tok`.
    pub num_experts_per_tok: usize,
    /// Key of an expert's inner width, and its default.
    pub intermediate_size: (&'static str, Option<usize>),
    /// Default of `shared_expert_intermediate_size`, the inner width of an expert that computes every token, weighted by the sigmoid
    /// of a gate of its own; `None` where there is no such expert.
    pub shared_expert: Option<usize>,
    /// Default of `norm_topk_prob`; `None` where the weights of the chosen experts are always scaled to a sum of 1.
    pub norm_topk_prob: Option<bool>,
    /// True if `decoder_sparse_step` and `mlp_only_layers` may make layers dense.
    pub has_dense_layers: bool,
    /// True if the router and the matrices of experts have biases.
    pub has_biases: bool,
    /// True if tensors of all experts are (experts, inputs, outputs), with those of gate and up in turns. In other families they are
    /// (experts, outputs, inputs), gate above up.
    pub is_transposed: bool,
}

/// Names of a mixture's parts in files that store each expert's matrices separately.
#[derive(Debug, PartialEq)]
pub struct ExpertNames {
    pub block: &'static str,
    pub router: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Llama: the row that the other rows are stated against.
pub(super) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    layer_norms: LayerNorms {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_feed_forward: Some("post_attention_layernorm"),
        after_feed_forward: None,
    },
    norm_offset: 0.0,
    qk_norm: QkNorm::None,
    attention_bias: AttentionBias::Key { key: "attention_bias", default: false, with_output: true },
    has_sinks: false,
    reads_mlp_bias: true,
    head_dim: None,
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    hidden_act: (Some("hidden_act"), "silu"),
    swiglu: None,
    tie_word_embeddings: false,
    scales_embedding: false,
    has_multipliers: false,
    rope_theta: 1e4,
    rope_parameters: None,
    scales_queries: false,
    local_rope_theta: None,
    partial_rotary_factor: None,
    original_max_position_embeddings: None,
    has_rope_in_pairs: false,
    no_rope_layer_interval: None,
    sliding_layers: SlidingLayers::None,
    sliding_window: None,
    has_window_switch: false,
    query_pre_attn_scalar: None,
    soft_caps: None,
    eos_token_ids: &[2],
    experts: None,
};

/// The norms of a layer around both blocks, as Gemma has them.
const NORMS_AROUND: LayerNorms = LayerNorms {
    before_attention: Some("input_layernorm"),
    after_attention: Some("post_attention_layernorm"),
    before_feed_forward: Some("pre_feedforward_layernorm"),
    after_feed_forward: Some("post_feedforward_layernorm"),
};

/// Qwen2: what all dense rows of Qwen share.
const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    attention_bias: AttentionBias::Fixed(true),
    reads_mlp_bias: false,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    sliding_layers: SlidingLayers::From { max_window_layers: 28 },
    sliding_window: Some(4096),
    has_window_switch: true,
    eos_token_ids: &[],
    ..LLAMA
};

/// Mistral: what Mixtral shares with it.
const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    attention_bias: AttentionBias::Fixed(false),
    reads_mlp_bias: false,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_layers: SlidingLayers::All,
    sliding_window: Some(4096),
    ..LLAMA
};

/// The mixture of Qwen3-MoE: what that of Qwen2-MoE shares with it.
const QWEN3_EXPERTS: ExpertFamily = ExpertFamily {
    names: ExpertNames { block: "mlp", router: "gate", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    num_experts_keys: &["num_local_experts", "num_experts"],
    num_experts: 128,
    num_experts_per_tok: 8,
    intermediate_size: ("moe_intermediate_size", Some(768)),
    shared_expert: None,
    norm_topk_prob: Some(false),
    has_dense_layers: true,
    has_biases: false,
    is_transposed: false,
};

/// Gemma 2: what Gemma 3 shares with it.
const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    layer_norms: NORMS_AROUND,
    norm_offset: 1.0,
    reads_mlp_bias: false,
    head_dim: Some(256),
    num_key_value_heads: Some(4),
    max_position_embeddings: 8192,
    hidden_act: (Some("hidden_activation"), "gelu_pytorch_tanh"),
    tie_word_embeddings: true,
    scales_embedding: true,
    sliding_layers: SlidingLayers::AllButEvery { pattern: 2, is_key: false },
    sliding_window: Some(4096),
    query_pre_attn_scalar: Some(256.0),
    soft_caps: Some((Some(50.0), Some(30.0))),
    eos_token_ids: &[1],
    ..LLAMA
};

/// Every family that `config.json` can describe.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    QWEN2,
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qk_norm: QkNorm::Heads,
        attention_bias: LLAMA.attention_bias,
        head_dim: Some(128),
        ..QWEN2
    },
    MISTRAL,
    Family {
        architecture: "MinistralForCausalLM",
        model_type: "ministral",
        // All, unless `layer_types` says otherwise.
        sliding_layers: SlidingLayers::AllButEvery { pattern: usize::MAX, is_key: false },
        ..MISTRAL
    },
    Family {
        architecture: "Ministral3ForCausalLM",
        model_type: "ministral3",
        head_dim: Some(128),
        max_position_embeddings: 262_144,
        rms_norm_eps: 1e-5,
        rope_parameters: Some(
            r#"{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16, "original_max_position_embeddings": 16384,
                "mscale": 1, "mscale_all_dim": 1, "llama_4_scaling_beta": 0.1}"#,
        ),
        scales_queries: true,
        sliding_window: None,
        ..MISTRAL
    },
    Family { architecture: "GraniteForCausalLM", model_type: "granite", has_multipliers: true, ..LLAMA },
    Family {
        architecture: "Olmo2ForCausalLM",
        model_type: "olmo2",
        layer_norms: LayerNorms {
            before_attention: None,
            after_attention: Some("post_attention_layernorm"),
            before_feed_forward: None,
            after_feed_forward: Some("post_feedforward_layernorm"),
        },
        qk_norm: QkNorm::Whole,
        reads_mlp_bias: false,
        rms_norm_eps: 1e-5,
        eos_token_ids: &[50_279],
        ..LLAMA
    },
    Family {
        architecture: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        tie_word_embeddings: true,
        rope_theta: 2e6,
        no_rope_layer_interval: Some(4),
        sliding_layers: SlidingLayers::WithoutRope,
        has_window_switch: true,
        eos_token_ids: &[128_001],
        ..LLAMA
    },
    GEMMA2,
    Family {
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        qk_norm: QkNorm::Heads,
        max_position_embeddings: 131_072,
        rope_theta: 1e6,
        local_rope_theta: Some(1e4),
        sliding_layers: SlidingLayers::AllButEvery { pattern: 6, is_key: true },
        soft_caps: Some((None, None)),
        ..GEMMA2
    },
    Family {
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        attention_bias: AttentionBias::Fixed(false),
        reads_mlp_bias: false,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        partial_rotary_factor: Some(1.0),
        original_max_position_embeddings: Some(4096),
        sliding_layers: SlidingLayers::All,
        eos_token_ids: &[32_000],
        ..LLAMA
    },
    Family {
        architecture: "Glm4ForCausalLM",
        model_type: "glm4",
        layer_norms: LayerNorms {
            before_attention: Some("input_layernorm"),
            after_attention: Some("post_self_attn_layernorm"),
            before_feed_forward: Some("post_attention_layernorm"),
            after_feed_forward: Some("post_mlp_layernorm"),
        },
        attention_bias: AttentionBias::Key { key: "attention_bias", default: true, with_output: false },
        reads_mlp_bias: false,
        head_dim: Some(128),
        num_key_value_heads: Some(2),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1.5625e-7,
        partial_rotary_factor: Some(0.5),
        has_rope_in_pairs: true,
        eos_token_ids: &[151_329, 151_336, 151_338],
        ..LLAMA
    },
    Family {
        architecture: "HeliumForCausalLM",
        model_type: "helium",
        attention_bias: AttentionBias::Key { key: "attention_bias", default: false, with_output: false },
        head_dim: Some(128),
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-8,
        rope_theta: 1e5,
        has_rope_in_pairs: true,
        ..LLAMA
    },
    Family {
        architecture: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        qk_norm: QkNorm::Heads,
        attention_bias: LLAMA.attention_bias,
        num_key_value_heads: Some(4),
        sliding_layers: SlidingLayers::All,
        experts: Some(QWEN3_EXPERTS),
        ..QWEN2
    },
    Family {
        architecture: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        attention_bias: AttentionBias::Key { key: "qkv_bias", default: true, with_output: false },
        num_key_value_heads: Some(16),
        sliding_layers: SlidingLayers::EverySecondBelow { max_window_layers: 28 },
        experts: Some(ExpertFamily {
            num_experts_keys: &["num_experts"],
            num_experts: 60,
            num_experts_per_tok: 4,
            intermediate_size: ("moe_intermediate_size", Some(1408)),
            shared_expert: Some(5632),
            ..QWEN3_EXPERTS
        }),
        ..QWEN2
    },
    Family {
        architecture: "MixtralForCausalLM",
        model_type: "mixtral",
        rms_norm_eps: 1e-5,
        rope_theta: 1e6,
        sliding_window: None,
        experts: Some(ExpertFamily {
            names: ExpertNames { block: "block_sparse_moe", router: "gate", gate: "w1", up: "w3", down: "w2" },
            num_experts_keys: &["num_experts", "num_local_experts"],
            num_experts: 8,
            num_experts_per_tok: 2,
            intermediate_size: ("intermediate_size", None),
            norm_topk_prob: None,
            has_dense_layers: false,
            ..QWEN3_EXPERTS
        }),
        ..MISTRAL
    },
    Family {
        architecture: "GptOssForCausalLM",
        model_type: "gpt_oss",
        attention_bias: AttentionBias::Key { key: "attention_bias", default: true, with_output: true },
        has_sinks: true,
        reads_mlp_bias: false,
        head_dim: Some(64),
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        hidden_act: (None, "silu"),
        swiglu: Some((1.702, 7.0)),
        rope_theta: 1.5e5,
        rope_parameters: Some(
            r#"{"rope_type": "yarn", "factor": 32, "truncate": false, "original_max_position_embeddings": 4096}"#,
        ),
        sliding_layers: SlidingLayers::AllButEvery { pattern: 2, is_key: false },
        sliding_window: Some(128),
        eos_token_ids: &[],
        experts: Some(ExpertFamily {
            names: ExpertNames { router: "router", ..QWEN3_EXPERTS.names },
            num_experts_keys: &["num_experts", "num_local_experts"],
            num_experts_per_tok: 4,
            intermediate_size: ("intermediate_size", None),
            norm_topk_prob: None,
            has_dense_layers: false,
            has_biases: true,
            is_transposed: true,
            ..QWEN3_EXPERTS
        }),
        ..LLAMA
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_told_apart_by_architecture_and_by_model_type() {
        for key in [|row: &Family| row.architecture, |row: &Family| row.model_type] {
            assert_eq!(FAMILIES.iter().map(key).collect::<BTreeSet<_>>().len(), FAMILIES.len());
        }
    }
}
