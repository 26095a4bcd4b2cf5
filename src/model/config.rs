//! `config.json`: the description of a model that lies beside its weights, in the form that the Hub's files have today
//! and in the one that transformers 5 writes (`rope_parameters`, `layer_types`, `dtype`). Keys that are left out have
//! transformers' defaults.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

/// Model families that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen3,
    Gemma3,
    Qwen3Moe,
    Mixtral,
}

/// A decoder's configuration, the same for all families. Names are transformers'.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
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
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub hidden_act: String,
    pub rope: Rope,
    /// RoPE of the sliding layers, where it differs.
    pub local_rope: Option<Rope>,
    pub sliding_window: Option<usize>,
    /// For each layer, whether it sees only the sliding window.
    pub sliding_layers: Vec<bool>,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    /// The mixture that stands in for the feed-forward of some layers or all.
    pub experts: Option<Experts>,
    pub eos_token_ids: Vec<u32>,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub num_experts: usize,
    /// Experts that each token goes to.
    pub num_experts_per_tok: usize,
    /// Inner width of one expert.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen experts are scaled to a sum of one.
    pub norm_topk_prob: bool,
    /// For each layer, whether it is a mixture; the others are dense.
    pub layers: Vec<bool>,
}

/// How the weights of experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// Matrix by matrix, as the Hub's files have them and as transformers saves them.
    Single,
    /// All experts of a layer in one tensor, gate and up projection joined, as transformers 5 holds them in memory.
    Stacked,
}

/// Name of the joined gate and up projections below a layer, by which [`ExpertLayout::Stacked`] is known.
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
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// Any other, by its name.
    Other(String),
}

/// `architectures` and `model_type` of what is supported.
const SUPPORTED: [(&str, &str, Family); 5] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("Qwen3ForCausalLM", "qwen3", Family::Qwen3),
    ("Gemma3ForCausalLM", "gemma3_text", Family::Gemma3),
    ("Qwen3MoeForCausalLM", "qwen3_moe", Family::Qwen3Moe),
    ("MixtralForCausalLM", "mixtral", Family::Mixtral),
];

impl ModelConfig {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// An architecture that is not supported, a key that is missing or of the wrong type, sizes that contradict.
    pub fn from_json(json: &Value) -> Result<Self> {
        let family = family(json)?;
        let json = Keys(json);
        if json.flag("use_bidirectional_attention")? == Some(true) {
            bail!("config.json: use_bidirectional_attention makes no language model that generates");
        }
        let (hidden_size, num_attention_heads) = (json.count("hidden_size")?, json.count("num_attention_heads")?);
        let num_hidden_layers = json.count("num_hidden_layers")?;
        let split_head_dim = hidden_size / num_attention_heads;
        let silu = Defaults { head_dim: split_head_dim, positions: 2048, tied: false, act: "silu", eps: 1e-6 };
        let defaults = match family {
            Family::Llama => silu,
            Family::Qwen3 => Defaults { head_dim: 128, positions: 32_768, ..silu },
            Family::Gemma3 => {
                Defaults { head_dim: 256, positions: 131_072, tied: true, act: "gelu_pytorch_tanh", ..silu }
            }
            Family::Qwen3Moe => Defaults { positions: 32_768, ..silu },
            Family::Mixtral => Defaults { positions: 131_072, eps: 1e-5, ..silu },
        };
        let head_dim = json.count_or("head_dim", defaults.head_dim)?;
        let act_key = if family == Family::Gemma3 { "hidden_activation" } else { "hidden_act" };
        let sliding_layers = sliding_layers(family, &json, num_hidden_layers)?;
        let (rope, local_rope) = ropes(family, &json)?;
        let config = Self {
            family,
            hidden_size,
            intermediate_size: json.count("intermediate_size")?,
            vocab_size: json.count("vocab_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: json.count_or("num_key_value_heads", num_attention_heads)?,
            head_dim,
            max_position_embeddings: json.count_or("max_position_embeddings", defaults.positions)?,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(defaults.eps),
            tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            attention_bias: json.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: json.flag("mlp_bias")?.unwrap_or(false),
            hidden_act: json.text(act_key)?.unwrap_or(defaults.act).to_owned(),
            rope,
            local_rope,
            sliding_window: match family {
                Family::Gemma3 => Some(json.count_or("sliding_window", 4096)?),
                _ if sliding_layers.contains(&true) => Some(json.count("sliding_window")?),
                _ => None,
            },
            sliding_layers,
            query_pre_attn_scalar: match family {
                Family::Gemma3 => json.number("query_pre_attn_scalar")?.unwrap_or(256.0),
                _ => head_dim as f64,
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
            "config.json: num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}"
        );
        ensure!(self.head_dim.is_multiple_of(2), "config.json: head_dim={} is odd; RoPE needs pairs", self.head_dim);
        if let Some(experts) = &self.experts {
            ensure!(
                experts.num_experts_per_tok <= experts.num_experts,
                "config.json: num_experts_per_tok={} is more than the {} experts there are",
                experts.num_experts_per_tok,
                experts.num_experts
            );
        }
        Ok(())
    }

    /// The mixture of a layer, or `None` where it is dense.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers[layer])
    }

    /// Every weight of the model as transformers names it, with its shape.
    pub fn tensors(&self, layout: ExpertLayout) -> Vec<(String, Vec<usize>)> {
        let Self { hidden_size: hidden, intermediate_size: inter, vocab_size: vocab, head_dim, .. } = *self;
        let (q, kv) = (self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim);
        let mut tensors =
            vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
        let norms: &[(&str, usize)] = match self.family {
            Family::Llama | Family::Mixtral => &[("input_layernorm", hidden), ("post_attention_layernorm", hidden)],
            Family::Qwen3 | Family::Qwen3Moe => &[
                ("input_layernorm", hidden),
                ("post_attention_layernorm", hidden),
                ("self_attn.q_norm", head_dim),
                ("self_attn.k_norm", head_dim),
            ],
            Family::Gemma3 => &[
                ("input_layernorm", hidden),
                ("post_attention_layernorm", hidden),
                ("pre_feedforward_layernorm", hidden),
                ("post_feedforward_layernorm", hidden),
                ("self_attn.q_norm", head_dim),
                ("self_attn.k_norm", head_dim),
            ],
        };
        let attention = [
            ("self_attn.q_proj", q, hidden, self.attention_bias),
            ("self_attn.k_proj", kv, hidden, self.attention_bias),
            ("self_attn.v_proj", kv, hidden, self.attention_bias),
            ("self_attn.o_proj", hidden, q, self.attention_bias),
        ];
        let dense = [
            ("mlp.gate_proj", inter, hidden, self.mlp_bias),
            ("mlp.up_proj", inter, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inter, self.mlp_bias),
        ];
        for layer in 0..self.num_hidden_layers {
            for (name, size) in norms {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![*size]));
            }
            let experts = self.experts_of(layer);
            for (name, rows, columns, bias) in attention.iter().chain(dense.iter().filter(|_| experts.is_none())) {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![*rows, *columns]));
                if *bias {
                    tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![*rows]));
                }
            }
            if let Some(experts) = experts {
                let mixture = self.mixture_tensors(experts, layout);
                tensors
                    .extend(mixture.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
            }
        }
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![vocab, hidden]));
        }
        tensors
    }

    fn mixture_tensors(&self, experts: &Experts, layout: ExpertLayout) -> Vec<(String, Vec<usize>)> {
        let (hidden, count, inter) = (self.hidden_size, experts.num_experts, experts.intermediate_size);
        if layout == ExpertLayout::Stacked {
            return vec![
                ("mlp.gate.weight".into(), vec![count, hidden]),
                (STACKED_GATE_UP.into(), vec![count, 2 * inter, hidden]),
                ("mlp.experts.down_proj".into(), vec![count, hidden, inter]),
            ];
        }
        let names = self.family.expert_names();
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

    /// Number of weights; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors(ExpertLayout::Stacked).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}

/// What a mixture's parts are called in files that store experts one by one.
pub struct ExpertNames {
    pub block: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl Family {
    pub fn expert_names(self) -> ExpertNames {
        match self {
            Self::Mixtral => ExpertNames { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
            _ => ExpertNames { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
        }
    }
}

struct Defaults {
    head_dim: usize,
    positions: usize,
    tied: bool,
    act: &'static str,
    eps: f64,
}

fn family(json: &Value) -> Result<Family> {
    let architecture = json["architectures"][0].as_str();
    let model_type = json["model_type"].as_str();
    if let Some((.., family)) = SUPPORTED
        .iter()
        .find(|(name, kind, _)| architecture == Some(name) || (architecture.is_none() && model_type == Some(kind)))
    {
        return Ok(*family);
    }
    let names = SUPPORTED.map(|(name, ..)| name).join(", ");
    match architecture.or(model_type) {
        Some(found) if json.get("text_config").is_some() => {
            bail!("config.json: {found} takes more than text and is not supported; use a text-only model of {names}")
        }
        Some(found) => bail!("config.json: architecture {found} is not supported; the supported ones are {names}"),
        None => bail!("config.json: neither architectures nor model_type says what the model is"),
    }
}

fn sliding_layers(family: Family, json: &Keys, layers: usize) -> Result<Vec<bool>> {
    if let Some(types) = json.get("layer_types") {
        let types = types.as_array().context("config.json: layer_types is no list")?;
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
    Ok(match family {
        Family::Llama => vec![false; layers],
        Family::Mixtral => vec![json.get("sliding_window").is_some(); layers],
        Family::Qwen3 | Family::Qwen3Moe => {
            let sliding = json.flag("use_sliding_window")?.unwrap_or(false);
            let full = json.integer("max_window_layers")?.unwrap_or(28);
            (0..layers).map(|layer| sliding && layer >= full).collect()
        }
        Family::Gemma3 => {
            let pattern = json.count_or("sliding_window_pattern", 6)?;
            (0..layers).map(|layer| (layer + 1) % pattern != 0).collect()
        }
    })
}

/// The mixture of the families that have one. transformers 5 writes `num_local_experts` for both.
fn experts(family: Family, json: &Keys, layers: usize) -> Result<Option<Experts>> {
    let count = |default| match json.get("num_experts") {
        Some(_) => json.count("num_experts"),
        None => json.count_or("num_local_experts", default),
    };
    Ok(match family {
        Family::Llama | Family::Qwen3 | Family::Gemma3 => None,
        Family::Mixtral => Some(Experts {
            num_experts: count(8)?,
            num_experts_per_tok: json.count_or("num_experts_per_tok", 2)?,
            intermediate_size: json.count("intermediate_size")?,
            norm_topk_prob: true,
            layers: vec![true; layers],
        }),
        Family::Qwen3Moe => {
            let step = json.count_or("decoder_sparse_step", 1)?;
            let dense = match json.get("mlp_only_layers") {
                None => &[][..],
                Some(list) => list.as_array().context("config.json: mlp_only_layers is no list")?,
            };
            let is_dense = |layer: usize| dense.iter().any(|dense| dense.as_u64() == Some(layer as u64));
            Some(Experts {
                num_experts: count(128)?,
                num_experts_per_tok: json.count_or("num_experts_per_tok", 8)?,
                intermediate_size: json.count_or("moe_intermediate_size", 768)?,
                norm_topk_prob: json.flag("norm_topk_prob")?.unwrap_or(false),
                layers: (0..layers).map(|layer| (layer + 1) % step == 0 && !is_dense(layer)).collect(),
            })
        }
    })
}

/// RoPE of the full layers, and of the sliding ones where a family tells them apart.
fn ropes(family: Family, json: &Keys) -> Result<(Rope, Option<Rope>)> {
    let (theta, local_theta) = match family {
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe => (10_000.0, None),
        Family::Mixtral => (1e6, None),
        Family::Gemma3 => (1e6, Some(1e4)),
    };
    let theta = json.number("rope_theta")?.unwrap_or(theta);
    let parameters = json.get("rope_parameters").map(Keys);
    let Some(local_theta) = local_theta else {
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
        other => RopeScaling::Other(other.into()),
    };
    Ok(Rope { theta, scaling })
}

fn eos_token_ids(json: &Keys) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("config.json: eos_token_id holds {value}, which is no token id"))
    };
    match json.get("eos_token_id") {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

/// Typed access to the keys of a JSON object. A key that is `null` counts as left out.
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
        self.typed(key, "a text", Value::as_str)
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
    fn what_is_wrong_is_named() {
        for (more, part) in [
            (json!({"architectures": ["BertModel"]}), "BertModel is not supported"),
            (json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}), "takes more than text"),
            (json!({"architectures": null, "model_type": null}), "says what the model is"),
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"hidden_size": "big"}), "hidden_size is \"big\", not a whole number"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_key_value_heads": 5}), "no multiple"),
            (json!({"head_dim": 63}), "odd"),
            (json!({"layer_types": ["full_attention"]}), "1 entries for 2 layers"),
            (json!({"rope_scaling": {"rope_type": "llama3"}}), "needs factor"),
        ] {
            let error = ModelConfig::from_json(&with(llama(), more)).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
