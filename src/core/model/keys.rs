//! Every key of `config.json` that transformers 5.24 knows for the families of the table, and what becomes of it here. A key that
//! would change the result is read or refused, and one that is not in the table is reported.

use anyhow::{Result, bail};
use serde_json::Value;

use super::family::{AttentionBias, ExpertFamily, FAMILIES, Family, SlidingLayers};
use crate::text;

/// Keys that share a fate.
struct Row {
    names: &'static [&'static str],
    fate: Fate,
}

enum Fate {
    /// Read for the families for which the function returns true. The classes of transformers for the others ignore it, too.
    Read(fn(&Family) -> bool),
    /// Ignored, because of this.
    Ignored(&'static str),
    /// Refused, unless the value is null, empty or accepted, which `unless` describes.
    Refused { unless: &'static str, accepts: fn(&Family, &Value) -> bool, because: &'static str },
}

const fn read(names: &'static [&'static str], of: fn(&Family) -> bool) -> Row {
    Row { names, fate: Fate::Read(of) }
}

const fn ignored(names: &'static [&'static str], because: &'static str) -> Row {
    Row { names, fate: Fate::Ignored(because) }
}

const fn refused(
    names: &'static [&'static str],
    unless: &'static str,
    accepts: fn(&Family, &Value) -> bool,
    because: &'static str,
) -> Row {
    Row { names, fate: Fate::Refused { unless, accepts, because } }
}

fn has_experts(family: &Family, is: fn(&ExpertFamily) -> bool) -> bool {
    family.experts.as_ref().is_some_and(is)
}

fn has_bias_key(family: &Family, name: &str) -> bool {
    matches!(family.attention_bias, AttentionBias::Key { key, .. } if key == name)
}

/// The keys. A name is in one row.
const KEYS: &[Row] = &[
    read(
        &[
            "architectures",
            "model_type",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rms_norm_eps",
            "tie_word_embeddings",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "eos_token_id",
        ],
        |_| true,
    ),
    read(&["original_max_position_embeddings"], |family| family.local_rope_theta.is_none()),
    read(&["rope_local_base_freq"], |family| family.local_rope_theta.is_some()),
    read(&["partial_rotary_factor"], |family| family.partial_rotary_factor.is_some()),
    read(&["no_rope_layers", "no_rope_layer_interval"], |family| family.no_rope_layer_interval.is_some()),
    read(&["hidden_act"], |family| family.hidden_act.0 == Some("hidden_act")),
    read(&["hidden_activation"], |family| family.hidden_act.0 == Some("hidden_activation")),
    read(&["swiglu_alpha", "swiglu_limit"], |family| family.swiglu.is_some()),
    read(&["attention_bias"], |family| has_bias_key(family, "attention_bias")),
    read(&["qkv_bias"], |family| has_bias_key(family, "qkv_bias")),
    read(&["mlp_bias"], |family| family.reads_mlp_bias),
    read(&["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"], |family| {
        family.has_multipliers
    }),
    read(&["sliding_window"], |family| family.sliding_layers != SlidingLayers::None),
    read(&["use_sliding_window"], |family| family.has_window_switch),
    read(&["layer_types"], |family| family.sliding_layers.reads_layer_types()),
    read(&["max_window_layers"], |family| {
        matches!(family.sliding_layers, SlidingLayers::From { .. } | SlidingLayers::EverySecondBelow { .. })
    }),
    read(&["sliding_window_pattern"], |family| {
        matches!(family.sliding_layers, SlidingLayers::AllButEvery { is_key: true, .. })
    }),
    read(&["query_pre_attn_scalar"], |family| family.query_pre_attn_scalar.is_some()),
    // Gemma 3 has the first key, but its attention does not apply it. Engine `stock` reads it, because candle-transformers does.
    read(&["attn_logit_softcapping", "final_logit_softcapping"], |family| family.soft_caps.is_some()),
    read(&["num_experts"], |family| has_experts(family, |row| row.num_experts_keys.contains(&"num_experts"))),
    read(&["num_local_experts"], |family| {
        has_experts(family, |row| row.num_experts_keys.contains(&"num_local_experts"))
    }),
    read(&["num_experts_per_tok"], |family| family.experts.is_some()),
    read(&["moe_intermediate_size"], |family| {
        has_experts(family, |row| row.intermediate_size.0 == "moe_intermediate_size")
    }),
    read(&["shared_expert_intermediate_size"], |family| has_experts(family, |row| row.shared_expert.is_some())),
    read(&["norm_topk_prob"], |family| has_experts(family, |row| row.norm_topk_prob.is_some())),
    read(&["decoder_sparse_step", "mlp_only_layers"], |family| has_experts(family, |row| row.has_dense_layers)),
    refused(&["is_causal"], "true", |_, value| *value == true, "without causal attention a model cannot generate text"),
    refused(&["use_bidirectional_attention"], "false", |_, value| *value == false, "such a model cannot generate text"),
    refused(&["per_layer_config"], "false", |_, value| *value == false, "all layers have the same sizes here"),
    refused(
        &["quantization_config", "compression_config"],
        "false, or of `quant_method` `mxfp4` in gpt_oss",
        |family, value| {
            *value == false || (has_experts(family, |row| row.is_transposed) && value["quant_method"] == "mxfp4")
        },
        "other quantised weights in safetensors are not read; use the original weights, or a GGUF file",
    ),
    ignored(&["dtype", "torch_dtype"], "setting `dtype` says in what the model computes"),
    ignored(
        &[
            "attention_dropout",
            "resid_pdrop",
            "embd_pdrop",
            "hidden_dropout",
            "classifier_dropout",
            "initializer_range",
            "router_aux_loss_coef",
            "router_jitter_noise",
        ],
        "only trainings use it",
    ),
    ignored(
        &["output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_return_dict"],
        "it adds outputs beside the logits",
    ),
    ignored(
        &[
            "use_cache",
            "chunk_size_feed_forward",
            "pretraining_tp",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "experts_implementation",
            "_experts_implementation",
            "cache_implementation",
        ],
        "it chooses how transformers computes the same result",
    ),
    ignored(
        &["pad_token_id", "bos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "decoder_start_token_id"],
        "the tokenizer makes the prompt, and prompts are not padded",
    ),
    ignored(
        &[
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "repetition_penalty",
            "encoder_repetition_penalty",
            "length_penalty",
            "exponential_decay_length_penalty",
            "diversity_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "remove_invalid_values",
            "max_length",
            "min_length",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "assistant_lookbehind",
            "target_lookbehind",
            "output_scores",
            "return_dict_in_generate",
        ],
        "transformers 5 drops settings of a generation from `config.json`",
    ),
    ignored(
        &[
            "is_encoder_decoder",
            "is_decoder",
            "add_cross_attention",
            "cross_attention_hidden_size",
            "tie_encoder_decoder",
        ],
        "models of one stack do not use it",
    ),
    ignored(
        &["id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "prefix"],
        "it is of other tasks than generation",
    ),
    ignored(
        &[
            "_name_or_path",
            "name_or_path",
            "transformers_version",
            "tokenizer_class",
            "auto_map",
            "torchscript",
            "pruned_heads",
            "_commit_hash",
        ],
        "transformers' own class of the architecture does not use it",
    ),
    ignored(
        &["initial_context_length", "experts_per_token"],
        "files of gpt-oss state it for other programs beside a key that is read",
    ),
    ignored(&["_sliding_window_pattern"], "transformers 5 writes it beside `layer_types`, and does not read it"),
];

/// Keys of the parameters of RoPE that are read, or, of the last two, that change nothing at the positions that are run.
const ROPE_KEYS: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "llama_4_scaling_beta",
    "long_factor",
    "max_position_embeddings",
];

/// Refuses keys that would change the result in a way that no engine has.
///
/// # Errors
/// If there is one.
pub(super) fn refuse(family: &Family, json: &Value) -> Result<()> {
    for row in KEYS {
        let Fate::Refused { accepts, because, .. } = row.fate else { continue };
        for name in row.names {
            let value = &json[name];
            let is_empty = value.as_object().is_some_and(|object| object.is_empty());
            if !(value.is_null() || is_empty || accepts(family, value)) {
                bail!("config.json: {name} is {}: {because}", text::short(&value.to_string(), 40));
            }
        }
    }
    Ok(())
}

/// The keys that the table does not have, those of RoPE's parameters included.
pub(super) fn unknown(json: &Value) -> Vec<String> {
    let keys =
        |value: &Value| value.as_object().into_iter().flat_map(|object| object.keys().cloned()).collect::<Vec<_>>();
    let is_known = |key: &String| KEYS.iter().any(|row| row.names.contains(&key.as_str()));
    let mut unknown: Vec<String> = keys(json).into_iter().filter(|key| !is_known(key)).collect();
    for name in ["rope_parameters", "rope_scaling"] {
        for key in keys(&json[name]) {
            let of_kind = keys(&json[name][&key]);
            let names = if json[name][&key].is_object() { of_kind } else { vec![key] };
            unknown.extend(
                (names.into_iter())
                    .filter(|key| !ROPE_KEYS.contains(&key.as_str()))
                    .map(|key| format!("{key} of {name}")),
            );
        }
    }
    unknown.into_iter().map(|key| text::short(&key, 80)).collect()
}

/// The table of the guide, in Markdown.
pub fn config_keys_in_markdown() -> String {
    let mut table = "| keys of `config.json` | fate |\n|---|---|\n".to_owned();
    for Row { names, fate } in KEYS {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let fate = match fate {
            Fate::Read(of) => {
                let own: Vec<_> = FAMILIES.iter().filter(|row| of(row)).map(|row| row.model_type).collect();
                match own.len() == FAMILIES.len() {
                    true => "read".to_owned(),
                    false => format!("read: {}", own.join(", ")),
                }
            }
            Fate::Ignored(because) => format!("ignored: {because}"),
            Fate::Refused { unless, because, .. } => format!("refused unless null or {unless}: {because}"),
        };
        table += &format!("| {} | {fate} |\n", names.join(", "));
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::model::{MINI, SYNTHETIC, config::ModelConfig, golden::fixtures, shapes};

    /// Names of a checkpoint's parts of which a wrong type is not reported, because they say which family reads it.
    const OF_FAMILY: [&str; 2] = ["architectures", "model_type"];

    fn config(family: &Family, key: &str, value: &Value) -> Result<ModelConfig> {
        let mut json = json!({"architectures": [family.architecture], "hidden_size": 64, "intermediate_size": 48,
            "vocab_size": 100, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16});
        // A scaling that reads the original positions.
        json["rope_scaling"] = match family.original_max_position_embeddings {
            None => json!({"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1}),
            Some(_) => json!({"rope_type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![1.0; 8]}),
        };
        if family.local_rope_theta.is_some() {
            json["rope_scaling"] = Value::Null;
        }
        json[key] = value.clone();
        ModelConfig::from_json(&json)
    }

    /// The table says what the reader does: a value of a wrong type is noticed just where the key is read.
    #[test]
    fn the_keys_that_are_read_are_those_of_the_table() {
        for family in FAMILIES {
            for Row { names, fate } in KEYS {
                let Some(is_read) = (match fate {
                    Fate::Read(of) => Some(of(family)),
                    Fate::Ignored(_) => Some(false),
                    Fate::Refused { .. } => None,
                }) else {
                    continue;
                };
                for name in names.iter().filter(|name| !OF_FAMILY.contains(name)) {
                    let is_noticed = [json!(true), json!("x")].iter().any(|value| config(family, name, value).is_err());
                    assert_eq!(is_noticed, is_read, "{} and {name}", family.architecture);
                }
            }
        }
    }

    #[test]
    fn keys_that_would_change_the_result_are_refused() {
        for Row { names, fate } in KEYS {
            let Fate::Refused { accepts, .. } = fate else { continue };
            for (name, family) in names.iter().zip(FAMILIES.iter().cycle()) {
                let unless = accepts(family, &json!(true));
                for value in [json!(!unless), json!({"quant_method": "mxfp4"})] {
                    let error = config(family, name, &value).expect_err(name).to_string();
                    assert!(error.starts_with(&format!("config.json: {name} is ")), "{error}");
                }
                for value in [json!(unless), json!({}), Value::Null] {
                    assert!(config(family, name, &value).is_ok(), "{name} {value}");
                }
            }
        }
    }

    #[test]
    fn a_name_is_in_one_row() {
        let names: Vec<_> = KEYS.iter().flat_map(|row| row.names).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn unknown_keys_are_listed_and_files_of_transformers_have_none() {
        let json = json!({"head_dim": 4, "clip_qkv": 8, "rope_scaling": {"rope_type": "yarn", "warp": 1},
            "rope_parameters": {"full_attention": {"rope_theta": 1e4, "bend": 2}}});
        assert_eq!(unknown(&json), ["clip_qkv", "bend of rope_parameters", "warp of rope_scaling"]);
        assert_eq!(unknown(&json!({"a\nb": 1}))[0].lines().count(), 1);
        for name in MINI.iter().chain(&SYNTHETIC) {
            let json = serde_json::from_str(shapes::text(name).expect("a shape")).expect("JSON");
            assert_eq!(unknown(&json), [""; 0], "{name}");
        }
        for fixture in ["generation", "moe"].into_iter().flat_map(fixtures) {
            assert_eq!(unknown(&fixture.checkpoint.config), [""; 0], "{}", fixture.name);
        }
    }
}
