//! `config.json`, the description of a model that accompanies its weights. Both the form of the Hub's files and the form
//! that transformers 5 writes (`rope_parameters`, `layer_types`, `dtype`) are read. Missing keys have the defaults of
//! transformers, which the table of families holds.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::{
    family::{ExpertNames, FAMILIES, Family, SlidingLayers},
    limits,
};

/// The configuration of a decoder of any family. Field names are those of transformers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: &'static Family,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// True if the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// True if the output projection of attention has a bias.
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub hidden_act: String,
    pub rope: Rope,
    /// RoPE of the sliding layers, where it differs from that of the others.
    pub local_rope: Option<Rope>,
    pub sliding_window: Option<usize>,
    /// For each layer, whether it sees only the sliding window.
    pub sliding_layers: Vec<bool>,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    /// The mixture that replaces the feed-forward of some or all layers.
    pub experts: Option<Experts>,
    pub eos_token_ids: Vec<u32>,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub num_experts: usize,
    /// Number of experts that compute each token.
    pub num_experts_per_tok: usize,
    /// Inner width of one expert.
    pub intermediate_size: usize,
    /// True if the weights of the chosen experts are scaled to a sum of one.
    pub norm_topk_prob: bool,
    /// For each layer, whether it is a mixture; the others are dense.
    pub layers: Vec<bool>,
}

/// How the weights of experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertLayout {
    /// One tensor per matrix and expert, as in the Hub's files.
    Single,
    /// One tensor for all experts of a layer, with gate and up projections joined, as transformers 5 holds them in memory.
    Stacked,
}

/// Name of the joined gate and up projections below a layer. Its presence identifies [`ExpertLayout::Stacked`].
pub const STACKED_GATE_UP: &str = "mlp.experts.gate_up_proj";

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Llama 3's: divides low frequencies by `factor`, keeps high ones, and interpolates between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// Divides all frequencies.
    Linear {
        factor: f64,
    },
    /// YaRN's: divides low frequencies by `factor`, keeps high ones, and interpolates between. Frequencies are low or high by
    /// their turns over the original positions.
    Yarn {
        factor: f64,
        /// Turns from which a frequency is high.
        beta_fast: f64,
        /// Turns up to which a frequency is low.
        beta_slow: f64,
        original_max_position_embeddings: usize,
        /// True if the bounds are rounded to whole pairs of a head.
        truncate: bool,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// Divides each frequency by a number of its own, as GGUF files hold the scaling of Llama 3.
    Factors(Vec<f32>),
    /// Another type, by its name.
    Other(String),
}

impl RopeScaling {
    /// The name of the type in `config.json`.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::None => "default",
            Self::Llama3 { .. } => "llama3",
            Self::Linear { .. } => "linear",
            Self::Yarn { .. } => "yarn",
            Self::Factors(_) => "factors",
            Self::Other(name) => name,
        }
    }
}

impl ModelConfig {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// If the architecture is not supported, a key is missing or has the wrong type, or sizes contradict each other.
    pub(crate) fn from_json(json: &Value) -> Result<Self> {
        limits::check(json)?;
        let family = family(json)?;
        let json = Keys(json);
        if json.flag("use_bidirectional_attention")? == Some(true) {
            bail!("config.json: use_bidirectional_attention is set; such a model cannot generate text");
        }
        let (hidden_size, num_attention_heads) = (json.count("hidden_size")?, json.count("num_attention_heads")?);
        let num_hidden_layers = json.count("num_hidden_layers")?;
        let head_dim = json.count_or("head_dim", family.head_dim.unwrap_or(hidden_size / num_attention_heads))?;
        let sliding_layers = sliding_layers(family, &json, num_hidden_layers)?;
        let sliding_window = match family.sliding_window {
            Some(default) => Some(json.count_or("sliding_window", default)?),
            None if sliding_layers.contains(&true) => Some(json.count("sliding_window")?),
            None => None,
        };
        let (rope, local_rope) = ropes(family, &json)?;
        let (act_key, default_act) = family.hidden_act;
        let attention_bias = json.flag("attention_bias")?;
        let config = Self {
            family,
            hidden_size,
            intermediate_size: json.count("intermediate_size")?,
            vocab_size: json.count("vocab_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: json.count_or("num_key_value_heads", num_attention_heads)?,
            head_dim,
            max_position_embeddings: json.count_or("max_position_embeddings", family.max_position_embeddings)?,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(family.rms_norm_eps),
            tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(family.tie_word_embeddings),
            qkv_bias: attention_bias.unwrap_or(family.qkv_bias),
            o_bias: attention_bias.unwrap_or(false),
            mlp_bias: json.flag("mlp_bias")?.unwrap_or(false),
            hidden_act: json.text(act_key)?.unwrap_or(default_act).to_owned(),
            rope,
            local_rope,
            sliding_window,
            sliding_layers,
            query_pre_attn_scalar: match family.query_pre_attn_scalar {
                Some(default) => json.number("query_pre_attn_scalar")?.unwrap_or(default),
                None => head_dim as f64,
            },
            attn_logit_softcapping: json.number("attn_logit_softcapping")?,
            final_logit_softcapping: json.number("final_logit_softcapping")?,
            experts: experts(family, &json, num_hidden_layers)?,
            eos_token_ids: eos_token_ids(&json)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let Self { num_attention_heads: heads, num_key_value_heads: kv_heads, .. } = *self;
        ensure!(
            heads % kv_heads == 0,
            "config.json: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        );
        ensure!(self.head_dim.is_multiple_of(2), "config.json: head_dim={} is odd; RoPE needs pairs", self.head_dim);
        if let Some(experts) = &self.experts {
            ensure!(
                experts.num_experts_per_tok <= experts.num_experts,
                "config.json: num_experts_per_tok={} exceeds the number of experts, {}",
                experts.num_experts_per_tok,
                experts.num_experts
            );
        }
        Ok(())
    }

    /// The mixture of a layer, or `None` if the layer is dense.
    pub(crate) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers[layer])
    }

    /// Name and shape of every weight, as transformers names them.
    pub(crate) fn tensors(&self, layout: ExpertLayout) -> Vec<(String, Vec<usize>)> {
        let Self { hidden_size: hidden, intermediate_size: inter, vocab_size: vocab, head_dim, .. } = *self;
        let (q, kv) = (self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim);
        let mut tensors =
            vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
        let qk_norms = ["self_attn.q_norm", "self_attn.k_norm"].map(|name| (name, head_dim));
        let norms: Vec<(&str, usize)> = (self.family.layer_norms.names().map(|name| (name, hidden)))
            .chain(qk_norms.into_iter().filter(|_| self.family.has_qk_norm))
            .collect();
        let attention = [
            ("self_attn.q_proj", q, hidden, self.qkv_bias),
            ("self_attn.k_proj", kv, hidden, self.qkv_bias),
            ("self_attn.v_proj", kv, hidden, self.qkv_bias),
            ("self_attn.o_proj", hidden, q, self.o_bias),
        ];
        let dense = [
            ("mlp.gate_proj", inter, hidden, self.mlp_bias),
            ("mlp.up_proj", inter, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inter, self.mlp_bias),
        ];
        for layer in 0..self.num_hidden_layers {
            for (name, size) in &norms {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![*size]));
            }
            let experts = self.experts_of(layer);
            for (name, rows, columns, bias) in attention.iter().chain(dense.iter().filter(|_| experts.is_none())) {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![*rows, *columns]));
                if *bias {
                    tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![*rows]));
                }
            }
            if let (Some(experts), Some(family)) = (experts, &self.family.experts) {
                let mixture = self.mixture_tensors(experts, &family.names, layout);
                tensors
                    .extend(mixture.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
            }
        }
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![vocab, hidden]));
        }
        tensors
    }

    fn mixture_tensors(
        &self,
        experts: &Experts,
        names: &ExpertNames,
        layout: ExpertLayout,
    ) -> Vec<(String, Vec<usize>)> {
        let (hidden, count, inter) = (self.hidden_size, experts.num_experts, experts.intermediate_size);
        if layout == ExpertLayout::Stacked {
            return vec![
                ("mlp.gate.weight".into(), vec![count, hidden]),
                (STACKED_GATE_UP.into(), vec![count, 2 * inter, hidden]),
                ("mlp.experts.down_proj".into(), vec![count, hidden, inter]),
            ];
        }
        let mut tensors = vec![(format!("{}.gate.weight", names.block), vec![count, hidden])];
        for expert in 0..count {
            for (name, shape) in
                [(names.gate, [inter, hidden]), (names.up, [inter, hidden]), (names.down, [hidden, inter])]
            {
                tensors.push((format!("{}.experts.{expert}.{name}.weight", names.block), shape.to_vec()));
            }
        }
        tensors
    }
}

fn family(json: &Value) -> Result<&'static Family> {
    let architecture = json["architectures"][0].as_str();
    let model_type = json["model_type"].as_str();
    let is_named = |row: &&Family| match architecture {
        Some(architecture) => architecture == row.architecture,
        None => model_type == Some(row.model_type),
    };
    if let Some(family) = FAMILIES.iter().find(is_named) {
        return Ok(family);
    }
    let names: Vec<_> = FAMILIES.iter().map(|row| row.architecture).collect();
    let names = names.join(", ");
    match architecture.or(model_type) {
        Some(found) if json.get("text_config").is_some() => {
            bail!("config.json: {found} takes more than text and is not supported; use a text-only model: {names}")
        }
        Some(found) => bail!("config.json: architecture {found} is not supported; the supported ones are {names}"),
        None => bail!("config.json: architectures and model_type are both missing"),
    }
}

/// For each layer, whether it is sliding.
fn sliding_layers(family: &Family, json: &Keys, layers: usize) -> Result<Vec<bool>> {
    if let Some(types) = json.get("layer_types") {
        let types = types.as_array().context("config.json: layer_types is not a list")?;
        ensure!(types.len() == layers, "config.json: layer_types has {} entries for {layers} layers", types.len());
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(anyhow!("config.json: layer_types holds {kind}, which is not supported")),
            })
            .collect();
    }
    Ok(match family.sliding_layers {
        SlidingLayers::None => vec![false; layers],
        SlidingLayers::AllWithWindow => vec![json.get("sliding_window").is_some(); layers],
        SlidingLayers::From { max_window_layers } => {
            let is_used = json.flag("use_sliding_window")?.unwrap_or(false);
            let first = json.integer("max_window_layers")?.unwrap_or(max_window_layers);
            (0..layers).map(|layer| is_used && layer >= first).collect()
        }
        SlidingLayers::AllButEvery { sliding_window_pattern } => {
            let pattern = json.count_or("sliding_window_pattern", sliding_window_pattern)?;
            (0..layers).map(|layer| (layer + 1) % pattern != 0).collect()
        }
    })
}

/// The mixture of experts, in families that have one.
fn experts(family: &Family, json: &Keys, layers: usize) -> Result<Option<Experts>> {
    let Some(row) = &family.experts else { return Ok(None) };
    let (width_key, default_width) = row.intermediate_size;
    let is_mixture = match row.has_dense_layers {
        false => vec![true; layers],
        true => {
            let step = json.count_or("decoder_sparse_step", 1)?;
            let dense = match json.get("mlp_only_layers") {
                None => &[][..],
                Some(list) => list.as_array().context("config.json: mlp_only_layers is not a list")?,
            };
            let is_dense = |layer: usize| dense.iter().any(|dense| dense.as_u64() == Some(layer as u64));
            (0..layers).map(|layer| (layer + 1) % step == 0 && !is_dense(layer)).collect()
        }
    };
    Ok(Some(Experts {
        num_experts: match json.get("num_experts") {
            Some(_) => json.count("num_experts")?,
            None => json.count_or("num_local_experts", row.num_experts)?,
        },
        num_experts_per_tok: json.count_or("num_experts_per_tok", row.num_experts_per_tok)?,
        intermediate_size: match default_width {
            Some(default) => json.count_or(width_key, default)?,
            None => json.count(width_key)?,
        },
        norm_topk_prob: match row.norm_topk_prob {
            Some(default) => json.flag("norm_topk_prob")?.unwrap_or(default),
            None => true,
        },
        layers: is_mixture,
    }))
}

/// RoPE of the full layers, and of the sliding layers if the family gives them their own.
fn ropes(family: &Family, json: &Keys) -> Result<(Rope, Option<Rope>)> {
    let theta = json.number("rope_theta")?.unwrap_or(family.rope_theta);
    let parameters = json.get("rope_parameters").map(Keys);
    let Some(local_theta) = family.local_rope_theta else {
        return Ok((rope(parameters.or(json.get("rope_scaling").map(Keys)), theta)?, None));
    };
    let local_theta = json.number("rope_local_base_freq")?.unwrap_or(local_theta);
    let of = |kind: &str| parameters.as_ref().and_then(|parameters| parameters.get(kind)).map(Keys);
    let full = rope(of("full_attention").or(json.get("rope_scaling").map(Keys)), theta)?;
    let local = rope(of("sliding_attention"), local_theta)?;
    Ok((full, Some(local)))
}

fn rope(parameters: Option<Keys>, theta: f64) -> Result<Rope> {
    let Some(parameters) = parameters else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
    let theta = parameters.number("rope_theta")?.unwrap_or(theta);
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    let required =
        |key| parameters.number(key)?.with_context(|| format!("config.json: RoPE of type {kind} needs {key}"));
    let scaling = match kind {
        "default" => RopeScaling::None,
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings: parameters.count("original_max_position_embeddings")?,
        },
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "yarn" => {
            let factor = required("factor")?;
            let number_or = |key, default| Ok::<_, anyhow::Error>(parameters.number(key)?.unwrap_or(default));
            let scale = |strength: f64| if factor <= 1.0 { 1.0 } else { 0.1 * strength * factor.ln() + 1.0 };
            let default_factor = match (parameters.number("mscale")?, parameters.number("mscale_all_dim")?) {
                (Some(strength), Some(of_all)) if strength != 0.0 && of_all != 0.0 => scale(strength) / scale(of_all),
                _ => scale(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: number_or("beta_fast", 32.0)?,
                beta_slow: number_or("beta_slow", 1.0)?,
                original_max_position_embeddings: parameters.count("original_max_position_embeddings")?,
                truncate: parameters.flag("truncate")?.unwrap_or(true),
                attention_factor: number_or("attention_factor", default_factor)?,
            }
        }
        other => RopeScaling::Other(other.into()),
    };
    Ok(Rope { theta, scaling })
}

fn eos_token_ids(json: &Keys) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("config.json: eos_token_id holds {value}, which is not a token id"))
    };
    match json.get("eos_token_id") {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

/// Typed access to the keys of a JSON object. A key whose value is `null` counts as missing.
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, key: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|value| convert(value).with_context(|| format!("config.json: {key} is {value}, not {what}")))
            .transpose()
    }

    fn integer(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().map(|n| n as usize))
    }

    /// A whole number of at least one.
    fn count(&self, key: &str) -> Result<usize> {
        match self.integer(key)? {
            Some(0) => bail!("config.json: {key} is 0"),
            Some(count) => Ok(count),
            None => bail!("config.json: {key} is missing"),
        }
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
            "vocab_size": 128_256, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
        })
    }

    fn with(mut json: Value, more: Value) -> Value {
        for (key, value) in more.as_object().expect("an object") {
            json[key] = value.clone();
        }
        json
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let scaling = json!({"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"});
        let hub = with(llama(), json!({"rope_theta": 500_000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}));
        let five = with(
            llama(),
            json!({"rope_parameters": with(scaling.clone(), json!({"rope_theta": 500_000.0})), "dtype": "bfloat16"}),
        );
        let config = ModelConfig::from_json(&hub).expect("the Hub's form");
        assert_eq!(config, ModelConfig::from_json(&five).expect("transformers 5's form"));
        assert_eq!(config.rope.theta, 500_000.0);
        assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { factor: 32.0, .. }));
        assert!(!config.tie_word_embeddings);
    }

    #[test]
    fn both_spellings_of_sliding_layers_are_read() {
        let gemma = json!({"architectures": ["Gemma3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "vocab_size": 100, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8});
        let hub = with(
            gemma.clone(),
            json!({"sliding_window_pattern": 3, "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": null}),
        );
        let five = with(
            gemma,
            json!({"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5},
                                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}),
        );
        let config = ModelConfig::from_json(&hub).expect("the Hub's form");
        assert_eq!(config, ModelConfig::from_json(&five).expect("transformers 5's form"));
        assert_eq!(config.sliding_layers, [true, true, false, true]);
        assert_eq!(config.local_rope, Some(Rope { theta: 2e4, scaling: RopeScaling::None }));
        assert!(config.tie_word_embeddings);
    }

    #[test]
    fn eos_is_one_id_or_several() {
        let eos = |value: Value| {
            ModelConfig::from_json(&with(llama(), json!({"eos_token_id": value}))).map(|config| config.eos_token_ids)
        };
        assert_eq!(eos(json!(2)).expect("one"), [2]);
        assert_eq!(eos(json!([1, 106])).expect("two"), [1, 106]);
        assert_eq!(eos(Value::Null).expect("none"), [0; 0]);
        assert!(eos(json!(-1)).is_err());
    }

    #[test]
    fn errors_name_the_wrong_key() {
        for (more, part) in [
            (json!({"architectures": ["BertModel"]}), "BertModel is not supported"),
            (json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}), "takes more than text"),
            (json!({"architectures": null, "model_type": null}), "both missing"),
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"hidden_size": "big"}), "hidden_size is \"big\", not a whole number"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_key_value_heads": 5}), "not a multiple"),
            (json!({"head_dim": 63}), "odd"),
            (json!({"layer_types": ["full_attention"]}), "1 entries for 2 layers"),
            (json!({"rope_scaling": {"rope_type": "llama3"}}), "needs factor"),
        ] {
            let error = ModelConfig::from_json(&with(llama(), more)).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
