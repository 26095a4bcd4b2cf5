//! The table of model families: each row holds as data what distinguishes the layers and the `config.json` of one
//! architecture. To add a family, add a row to [`FAMILIES`], which engine `tuned` runs on CPUs, and its architecture to the list
//! of each other engine that runs it.

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
    /// True if each head of queries and keys has an RMSNorm: `self_attn.q_norm` and `self_attn.k_norm`.
    pub has_qk_norm: bool,
    /// Default of `attention_bias` for the projections of queries, keys and values. The output projection has a bias only
    /// where `config.json` says so.
    pub qkv_bias: bool,
    /// Default of `head_dim`; `None` for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// Default of `rms_norm_eps`.
    pub rms_norm_eps: f64,
    /// Key of the activation of the feed-forward, and its default.
    pub hidden_act: (&'static str, &'static str),
    /// Default of `tie_word_embeddings`.
    pub tie_word_embeddings: bool,
    /// True if embeddings are multiplied by the square root of `hidden_size`.
    pub scales_embedding: bool,
    /// Default of `rope_theta`.
    pub rope_theta: f64,
    /// Default of `rope_local_base_freq`, the base of RoPE in sliding layers; `None` where all layers share one RoPE.
    pub local_rope_theta: Option<f64>,
    /// Which layers see only the sliding window, where `layer_types` is missing.
    pub sliding_layers: SlidingLayers,
    /// Default of `sliding_window`; `None` where the key must be present if a layer is sliding.
    pub sliding_window: Option<usize>,
    /// Default of `query_pre_attn_scalar`; `None` where scores are always divided by the square root of `head_dim`.
    pub query_pre_attn_scalar: Option<f64>,
    /// The mixture of experts, where the family has one.
    pub experts: Option<ExpertFamily>,
}

/// Names of the RMSNorms of one layer, below `model.layers.N`.
#[derive(Debug, PartialEq)]
pub struct LayerNorms {
    pub before_attention: &'static str,
    /// Applied to the output of attention before it is added to the residual stream.
    pub after_attention: Option<&'static str>,
    pub before_feed_forward: &'static str,
    /// Applied to the output of the feed-forward before it is added to the residual stream.
    pub after_feed_forward: Option<&'static str>,
}

impl LayerNorms {
    /// The names in the order of the computation.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let Self { before_attention, after_attention, before_feed_forward, after_feed_forward } = self;
        [Some(*before_attention), *after_attention, Some(*before_feed_forward), *after_feed_forward]
            .into_iter()
            .flatten()
    }
}

/// Which layers see only the sliding window.
#[derive(Debug, PartialEq)]
pub enum SlidingLayers {
    None,
    /// All layers where `sliding_window` is set.
    AllWithWindow,
    /// With `use_sliding_window`, the layers from `max_window_layers` (default: this value) on.
    From {
        max_window_layers: usize,
    },
    /// All layers except every `sliding_window_pattern`-th (default: this value).
    AllButEvery {
        sliding_window_pattern: usize,
    },
}

/// How a family describes and stores a mixture of experts.
#[derive(Debug, PartialEq)]
pub struct ExpertFamily {
    /// Names in files that store each expert's matrices separately.
    pub names: ExpertNames,
    /// Default of `num_experts`, which transformers 5 writes as `num_local_experts`.
    pub num_experts: usize,
    /// Default of `num_experts_per_tok`.
    pub num_experts_per_tok: usize,
    /// Key of an expert's inner width, and its default.
    pub intermediate_size: (&'static str, Option<usize>),
    /// Default of `norm_topk_prob`; `None` where the weights of the chosen experts are always scaled to a sum of 1.
    pub norm_topk_prob: Option<bool>,
    /// True if `decoder_sparse_step` and `mlp_only_layers` may make layers dense.
    pub has_dense_layers: bool,
}

/// Names of a mixture's parts in files that store each expert's matrices separately.
#[derive(Debug, PartialEq)]
pub struct ExpertNames {
    pub block: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Llama: the row that the other rows are stated against.
pub(super) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    layer_norms: LayerNorms {
        before_attention: "input_layernorm",
        after_attention: None,
        before_feed_forward: "post_attention_layernorm",
        after_feed_forward: None,
    },
    norm_offset: 0.0,
    has_qk_norm: false,
    qkv_bias: false,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    scales_embedding: false,
    rope_theta: 1e4,
    local_rope_theta: None,
    sliding_layers: SlidingLayers::None,
    sliding_window: None,
    query_pre_attn_scalar: None,
    experts: None,
};

/// Every family that `config.json` can describe.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        has_qk_norm: true,
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        sliding_layers: SlidingLayers::From { max_window_layers: 28 },
        ..LLAMA
    },
    Family {
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        layer_norms: LayerNorms {
            before_attention: "input_layernorm",
            after_attention: Some("post_attention_layernorm"),
            before_feed_forward: "pre_feedforward_layernorm",
            after_feed_forward: Some("post_feedforward_layernorm"),
        },
        norm_offset: 1.0,
        has_qk_norm: true,
        head_dim: Some(256),
        max_position_embeddings: 131_072,
        hidden_act: ("hidden_activation", "gelu_pytorch_tanh"),
        tie_word_embeddings: true,
        scales_embedding: true,
        rope_theta: 1e6,
        local_rope_theta: Some(1e4),
        sliding_layers: SlidingLayers::AllButEvery { sliding_window_pattern: 6 },
        sliding_window: Some(4096),
        query_pre_attn_scalar: Some(256.0),
        ..LLAMA
    },
    Family {
        architecture: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        has_qk_norm: true,
        max_position_embeddings: 32_768,
        sliding_layers: SlidingLayers::From { max_window_layers: 28 },
        experts: Some(ExpertFamily {
            names: ExpertNames { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
            num_experts: 128,
            num_experts_per_tok: 8,
            intermediate_size: ("moe_intermediate_size", Some(768)),
            norm_topk_prob: Some(false),
            has_dense_layers: true,
        }),
        ..LLAMA
    },
    Family {
        architecture: "MixtralForCausalLM",
        model_type: "mixtral",
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 1e6,
        sliding_layers: SlidingLayers::AllWithWindow,
        experts: Some(ExpertFamily {
            names: ExpertNames { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
            num_experts: 8,
            num_experts_per_tok: 2,
            intermediate_size: ("intermediate_size", None),
            norm_topk_prob: None,
            has_dense_layers: false,
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
