//! `config.json`, the description of a model that accompanies its weights. Both the form of the Hub's files and the form
//! that transformers 5 writes (`rope_parameters`, `layer_types`, `dtype`) are read. Missing keys have the defaults of
//! transformers, which the table of families holds.

// Fields have the names of transformers, which documents them.
#![allow(missing_docs)]

use std::borrow::Cow;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::{
    family::{AttentionBias, ExpertFamily, FAMILIES, Family, QkNorm, SlidingLayers},
    keys, limits,
};
use crate::text;

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
    /// The factor within the sigmoid and the limit of a clamped SiLU, which then replaces `hidden_act`.
    pub swiglu: Option<(f64, f64)>,
    pub rope: Rope,
    /// RoPE of the sliding layers, where it differs from that of the others.
    pub local_rope: Option<Rope>,
    /// Elements of a head that RoPE turns: the first ones.
    pub rotary_dim: usize,
    /// For each layer, whether it has RoPE.
    pub rope_layers: Vec<bool>,
    /// The factor of queries at each position, where they have one.
    pub query_scaling: Option<QueryScaling>,
    pub sliding_window: Option<usize>,
    /// For each layer, whether it sees only the sliding window.
    pub sliding_layers: Vec<bool>,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    pub multipliers: Multipliers,
    /// The mixture that replaces the feed-forward of some or all layers.
    pub experts: Option<Experts>,
    pub eos_token_ids: Vec<u32>,
}

/// Numbers that parts of the computation are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Multipliers {
    pub embedding: f64,
    /// That of the output of each block before it is added to the residual stream.
    pub residual: f64,
    /// That of attention scores; `None` for the inverse of the square root of `query_pre_attn_scalar`.
    pub attention: Option<f64>,
    /// Logits are divided by it.
    pub logits: f64,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub num_experts: usize,
    /// Number of experts that compute each token.
    pub num_experts_per_tok: usize,
    /// Inner width of one expert.
    pub intermediate_size: usize,
    /// Inner width of the expert that computes every token, where there is one.
    pub shared_intermediate_size: Option<usize>,
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
    /// One tensor for all experts of a layer, with gate and up projections joined, as transformers 5 holds them in memory, and as files
    /// of gpt-oss do.
    Stacked,
}

/// Name of the joined gate and up projections below a layer. Its presence identifies [`ExpertLayout::Stacked`].
pub const STACKED_GATE_UP: &str = "mlp.experts.gate_up_proj";

const STACKED_DOWN: &str = "mlp.experts.down_proj";

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// Queries at a position are multiplied by `1 + beta · ln(1 + ⌊position / original⌋)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScaling {
    pub beta: f64,
    pub original_max_position_embeddings: usize,
}

impl QueryScaling {
    /// The factor at a position, computed in f32 as transformers does.
    pub(crate) fn factor(&self, position: usize) -> f32 {
        let turns = (position as f32 / self.original_max_position_embeddings as f32).floor();
        1.0 + self.beta as f32 * turns.ln_1p()
    }
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
    /// LongRoPE's: divides each frequency by a number of its own. Those of sequences beyond the original positions, which need
    /// the cache to be computed again, are left out, and so are these positions.
    LongRope {
        short_factor: Vec<f32>,
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// Another type, by its name.
    Other(String),
}

impl RopeScaling {
    /// The name of the type in `config.json`.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "default",
            Self::Llama3 { .. } => "llama3",
            Self::Linear { .. } => "linear",
            Self::Yarn { .. } => "yarn",
            Self::Factors(_) => "factors",
            Self::LongRope { .. } => "longrope",
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
        // Messages quote values of the file, which may be long or hold line breaks.
        Self::read(json).map_err(|error| anyhow!(text::short(&format!("{error:#}"), LONGEST_MESSAGE)))
    }

    fn read(json: &Value) -> Result<Self> {
        limits::check(json)?;
        let family = family(json)?;
        keys::refuse(family, json)?;
        let json = Keys(json);
        let (hidden_size, num_attention_heads) = (json.count("hidden_size")?, json.count("num_attention_heads")?);
        let num_hidden_layers = json.count("num_hidden_layers")?;
        let head_dim = json.count_or("head_dim", family.head_dim.unwrap_or(hidden_size / num_attention_heads))?;
        let num_key_value_heads = match family.num_key_value_heads.filter(|_| !json.has("num_key_value_heads")) {
            Some(default) => default,
            None => json.count_or("num_key_value_heads", num_attention_heads)?,
        };
        let rope_layers = rope_layers(family, &json, num_hidden_layers)?;
        let (sliding_window, sliding_layers) = sliding(family, &json, &rope_layers)?;
        let mut max_position_embeddings = json.count_or("max_position_embeddings", family.max_position_embeddings)?;
        let (rope, local_rope, rotary_dim, query_scaling) = ropes(family, &json, head_dim, max_position_embeddings)?;
        if let RopeScaling::LongRope { original_max_position_embeddings, .. } = rope.scaling {
            max_position_embeddings = max_position_embeddings.min(original_max_position_embeddings);
        }
        let (act_key, default_act) = family.hidden_act;
        let hidden_act = act_key.map(|key| json.text(key)).transpose()?.flatten().unwrap_or(default_act);
        let swiglu = |(alpha, limit)| {
            let number_or = |key, default| Ok::<_, anyhow::Error>(json.number(key)?.unwrap_or(default));
            Ok::<_, anyhow::Error>((number_or("swiglu_alpha", alpha)?, number_or("swiglu_limit", limit)?))
        };
        let (qkv_bias, o_bias) = match family.attention_bias {
            AttentionBias::Fixed(qkv) => (qkv, false),
            AttentionBias::Key { key, default, with_output } => {
                let is_set = json.flag(key)?.unwrap_or(default);
                (is_set, is_set && with_output)
            }
        };
        let cap = |key, default: Option<Option<f64>>| match default {
            Some(default) => json.number_unless_null(key, default),
            None => Ok(None),
        };
        let config = Self {
            family,
            hidden_size,
            intermediate_size: json.count("intermediate_size")?,
            vocab_size: json.count("vocab_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(family.rms_norm_eps),
            tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(family.tie_word_embeddings),
            qkv_bias,
            o_bias,
            mlp_bias: family.reads_mlp_bias && json.flag("mlp_bias")?.unwrap_or(false),
            hidden_act: ACTIVATIONS.iter().find(|row| row.0 == hidden_act).map_or(hidden_act, |row| row.1).to_owned(),
            swiglu: family.swiglu.map(swiglu).transpose()?,
            rope,
            local_rope,
            rotary_dim,
            rope_layers,
            query_scaling,
            sliding_window,
            sliding_layers,
            query_pre_attn_scalar: match family.query_pre_attn_scalar {
                Some(default) => json.number("query_pre_attn_scalar")?.unwrap_or(default),
                None => head_dim as f64,
            },
            attn_logit_softcapping: cap("attn_logit_softcapping", family.soft_caps.map(|caps| caps.0))?,
            final_logit_softcapping: cap("final_logit_softcapping", family.soft_caps.map(|caps| caps.1))?,
            multipliers: multipliers(family, &json)?,
            experts: experts(family, &json, num_hidden_layers)?,
            eos_token_ids: eos_token_ids(family, &json)?,
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
        let turned = self.rotary_dim;
        ensure!(self.head_dim.is_multiple_of(2), "config.json: head_dim={} is odd; RoPE needs pairs", self.head_dim);
        ensure!(
            turned.is_multiple_of(2) && (2..=self.head_dim).contains(&turned),
            "config.json: partial_rotary_factor turns {turned} of the {} elements of a head; RoPE needs pairs",
            self.head_dim
        );
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

    /// The factor of attention scores.
    pub(crate) fn attention_scale(&self) -> f64 {
        self.multipliers.attention.unwrap_or_else(|| self.query_pre_attn_scalar.sqrt().recip())
    }

    /// The soft cap of attention scores. Gemma 3 has the key, but its attention does not apply it.
    pub(crate) fn score_cap(&self) -> Option<f64> {
        self.attn_logit_softcapping.filter(|_| matches!(self.family.soft_caps, Some((Some(_), _))))
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
        let (q_norm, k_norm) = self.qk_norm_widths().unwrap_or_default();
        let qk_norms = [("self_attn.q_norm", q_norm), ("self_attn.k_norm", k_norm)];
        let norms: Vec<(&str, usize)> = (self.family.layer_norms.names().map(|name| (name, hidden)))
            .chain(qk_norms.into_iter().filter(|(_, width)| *width > 0))
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
            if self.family.has_sinks {
                tensors.push((format!("model.layers.{layer}.self_attn.sinks"), vec![self.num_attention_heads]));
            }
            let experts = self.experts_of(layer);
            for (name, rows, columns, bias) in attention.iter().chain(dense.iter().filter(|_| experts.is_none())) {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![*rows, *columns]));
                if *bias {
                    tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![*rows]));
                }
            }
            if let (Some(experts), Some(family)) = (experts, &self.family.experts) {
                let mixture = self.mixture_tensors(experts, family, layout);
                tensors
                    .extend(mixture.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
            }
        }
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![vocab, hidden]));
        }
        tensors
    }

    /// Widths of the norms of queries and keys.
    pub(crate) fn qk_norm_widths(&self) -> Option<(usize, usize)> {
        let head_dim = self.head_dim;
        match self.family.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some((head_dim, head_dim)),
            QkNorm::Whole => Some((self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim)),
        }
    }

    fn mixture_tensors(
        &self,
        experts: &Experts,
        family: &ExpertFamily,
        layout: ExpertLayout,
    ) -> Vec<(String, Vec<usize>)> {
        let ExpertFamily { names, has_biases, is_transposed, .. } = family;
        let (hidden, count, inter) = (self.hidden_size, experts.num_experts, experts.intermediate_size);
        let mut tensors = Vec::new();
        if let Some(inner) = experts.shared_intermediate_size {
            let shared = format!("{}.shared_expert", names.block);
            tensors.push((format!("{shared}_gate.weight"), vec![1, hidden]));
            for (name, shape) in
                [(names.gate, [inner, hidden]), (names.up, [inner, hidden]), (names.down, [hidden, inner])]
            {
                tensors.push((format!("{shared}.{name}.weight"), shape.to_vec()));
            }
        }
        let block = if layout == ExpertLayout::Stacked { "mlp" } else { names.block };
        tensors.push((format!("{block}.{}.weight", names.router), vec![count, hidden]));
        if *has_biases {
            tensors.push((format!("{block}.{}.bias", names.router), vec![count]));
        }
        if layout == ExpertLayout::Stacked {
            for (name, outputs, inputs) in [(STACKED_GATE_UP, 2 * inter, hidden), (STACKED_DOWN, hidden, inter)] {
                let [rows, columns] = if *is_transposed { [inputs, outputs] } else { [outputs, inputs] };
                tensors.push((name.into(), vec![count, rows, columns]));
                if *has_biases {
                    tensors.push((format!("{name}_bias"), vec![count, outputs]));
                }
            }
            return tensors;
        }
        for expert in 0..count {
            for (name, shape) in
                [(names.gate, [inter, hidden]), (names.up, [inter, hidden]), (names.down, [hidden, inter])]
            {
                tensors.push((format!("{block}.experts.{expert}.{name}.weight"), shape.to_vec()));
                if *has_biases {
                    tensors.push((format!("{block}.experts.{expert}.{name}.bias"), vec![shape[0]]));
                }
            }
        }
        tensors
    }
}

fn family(json: &Value) -> Result<&'static Family> {
    let architecture = json["architectures"][0].as_str();
    let model_type = json["model_type"].as_str();
    let by_type = FAMILIES.iter().find(|row| model_type == Some(row.model_type));
    let by_architecture = FAMILIES.iter().find(|row| architecture == Some(row.architecture));
    match (by_architecture, by_type) {
        // transformers chooses the model by its type.
        (Some(_), Some(family)) => return Ok(family),
        (Some(family), None) => match model_type {
            None => return Ok(family),
            Some(other) => bail!(
                "config.json: model_type is {other}, and architectures has {}, whose model_type is {}; correct the wrong one",
                family.architecture,
                family.model_type
            ),
        },
        (None, Some(family)) if architecture.is_none() => return Ok(family),
        (None, _) => {}
    }
    let names = FAMILIES.iter().map(|row| (row.model_type, row.architecture));
    match architecture.or(model_type) {
        Some(found) if json.get("text_config").is_some() => {
            let names: Vec<_> = names.map(|(_, name)| name).collect();
            let names = names.join(", ");
            bail!("config.json: {found} takes more than text and is not supported; use a text-only model: {names}")
        }
        Some(found) => bail!("config.json: {}", unsupported(found, names)),
        None => bail!("config.json: architectures and model_type are both missing"),
    }
}

/// Says that an architecture is not supported, and which ones are: each with the name that is compared, and its own. The nearest is
/// the one whose name begins like that of the other architecture, if there is one.
pub fn unsupported(found: &str, supported: impl IntoIterator<Item = (&'static str, &'static str)>) -> String {
    let common = |name: &str| {
        let pairs = name.bytes().zip(found.bytes());
        pairs.take_while(|(own, other)| other.eq_ignore_ascii_case(own)).count()
    };
    let supported: Vec<_> = supported.into_iter().collect();
    let best = supported.iter().max_by_key(|(name, _)| common(name)).filter(|(name, _)| common(name) >= SHORTEST_NAME);
    let nearest = best.map(|(_, name)| format!(", the nearest is {name}")).unwrap_or_default();
    let names: Vec<_> = supported.into_iter().map(|(_, name)| name).collect();
    format!(
        "architecture {} is not supported{nearest}; the supported ones are {}; a model of your own is one trait away: \
         CausalLm",
        text::short(found, 80),
        names.join(", ")
    )
}

/// Characters of an error: more than the list of the supported architectures has.
const LONGEST_MESSAGE: usize = 1000;

/// Letters that names of related families have in common at least: those of `GLM` and `Phi`.
const SHORTEST_NAME: usize = 3;

/// Other names of activations, and the names that the engines know.
const ACTIVATIONS: &[(&str, &str)] = &[
    ("swish", "silu"),
    ("gelu_python", "gelu"),
    ("gelu_new", "gelu_pytorch_tanh"),
    ("gelu_fast", "gelu_pytorch_tanh"),
    ("gelu_accurate", "gelu_pytorch_tanh"),
    ("gelu_python_tanh", "gelu_pytorch_tanh"),
];

/// For each layer, whether it has RoPE.
fn rope_layers(family: &Family, json: &Keys, layers: usize) -> Result<Vec<bool>> {
    let Some(default) = family.no_rope_layer_interval else { return Ok(vec![true; layers]) };
    if let Some(list) = json.list("no_rope_layers", layers)? {
        let has_rope = |flag: &Value| flag.as_u64().map(|flag| flag != 0).or(flag.as_bool());
        let has_rope =
            |flag| has_rope(flag).with_context(|| format!("config.json: no_rope_layers holds {flag}, not 0 or 1"));
        return list.iter().map(has_rope).collect();
    }
    let interval = json.count_or("no_rope_layer_interval", default)?;
    Ok((1..=layers).map(|layer| layer % interval != 0).collect())
}

/// The sliding window, and for each layer whether it sees only that.
fn sliding(family: &Family, json: &Keys, rope_layers: &[bool]) -> Result<(Option<usize>, Vec<bool>)> {
    let layers = rope_layers.len();
    if family.sliding_layers == SlidingLayers::None {
        return Ok((None, vec![false; layers]));
    }
    let is_on = !family.has_window_switch || json.flag("use_sliding_window")?.unwrap_or(false);
    let window = match json.has("sliding_window") {
        false => family.sliding_window,
        true => json.integer("sliding_window")?,
    };
    let types = match family.sliding_layers.reads_layer_types() {
        true => json.list("layer_types", layers)?,
        false => None,
    };
    let needs_switch = types.is_none() || family.sliding_layers != SlidingLayers::WithoutRope;
    // transformers writes 0 where the switch is off.
    let window = window.filter(|_| is_on || !needs_switch);
    ensure!(window != Some(0), "config.json: sliding_window is 0");
    let max_window_layers = |default| Ok::<_, anyhow::Error>(json.integer("max_window_layers")?.unwrap_or(default));
    if let Some(types) = types {
        let is_sliding = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            // The second is the name of older files.
            Some("full_attention" | "attention") => Ok(false),
            _ => Err(anyhow!("config.json: layer_types holds {kind}, which is not supported")),
        };
        let sliding: Vec<bool> = types.iter().map(is_sliding).collect::<Result<_>>()?;
        ensure!(
            window.is_some() || !sliding.contains(&true),
            "config.json: layer_types holds sliding_attention, but there is no sliding_window"
        );
        return Ok((window.filter(|_| sliding.contains(&true)), sliding));
    }
    let sliding: Vec<bool> = match family.sliding_layers {
        SlidingLayers::None => vec![false; layers],
        SlidingLayers::All => vec![window.is_some(); layers],
        SlidingLayers::From { max_window_layers: default } => {
            let first = max_window_layers(default)?;
            (0..layers).map(|layer| window.is_some() && layer >= first).collect()
        }
        SlidingLayers::EverySecondBelow { max_window_layers: default } => {
            let end = max_window_layers(default)?;
            (0..layers).map(|layer| window.is_some() && layer < end && layer % 2 == 0).collect()
        }
        SlidingLayers::AllButEvery { pattern, is_key } => {
            let pattern = if is_key { json.count_or("sliding_window_pattern", pattern)? } else { pattern };
            ensure!(window.is_some(), "config.json: sliding_window is null, but layers are sliding");
            (0..layers).map(|layer| (layer + 1) % pattern != 0).collect()
        }
        SlidingLayers::WithoutRope => rope_layers.iter().map(|has_rope| window.is_some() && !has_rope).collect(),
    };
    Ok((window.filter(|_| sliding.contains(&true)), sliding))
}

fn multipliers(family: &Family, json: &Keys) -> Result<Multipliers> {
    let number = |key| -> Result<f64> {
        let number = if family.has_multipliers { json.number(key)? } else { None };
        Ok(number.unwrap_or(1.0))
    };
    let logits = number("logits_scaling")?;
    ensure!(logits != 0.0, "config.json: logits_scaling is 0");
    Ok(Multipliers {
        embedding: number("embedding_multiplier")?,
        residual: number("residual_multiplier")?,
        attention: match family.has_multipliers {
            true => Some(number("attention_multiplier")?),
            false => None,
        },
        logits,
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
        num_experts: match row.num_experts_keys.iter().find(|key| json.get(key).is_some()) {
            Some(key) => json.count(key)?,
            None => row.num_experts,
        },
        num_experts_per_tok: json.count_or("num_experts_per_tok", row.num_experts_per_tok)?,
        intermediate_size: match default_width {
            Some(default) => json.count_or(width_key, default)?,
            None => json.count(width_key)?,
        },
        shared_intermediate_size: row
            .shared_expert
            .map(|default| json.count_or("shared_expert_intermediate_size", default))
            .transpose()?,
        norm_topk_prob: match row.norm_topk_prob {
            Some(default) => json.flag("norm_topk_prob")?.unwrap_or(default),
            None => true,
        },
        layers: is_mixture,
    }))
}

/// RoPE of the full layers, that of the sliding layers if the family gives them their own, the elements of a head that it turns, and
/// the scaling of queries. `rope_scaling` comes before `rope_parameters`, as in transformers 5.
fn ropes(
    family: &Family,
    json: &Keys,
    head_dim: usize,
    longest: usize,
) -> Result<(Rope, Option<Rope>, usize, Option<QueryScaling>)> {
    let (parameters, scaling) = (json.object("rope_parameters")?, json.object("rope_scaling")?);
    let reader = RopeReader { family, json, head_dim, longest };
    let Some(local_theta) = family.local_rope_theta else {
        let parameters = scaling.filter(|keys| !keys.is_empty()).or(parameters);
        let of_kind = parameters.and_then(|keys| keys.iter().find(|(_, value)| value.is_object()));
        if let Some((kind, _)) = of_kind {
            bail!("config.json: rope_parameters has an object for {kind}; all layers of this family share one RoPE");
        }
        let parameters = match (parameters, family.rope_parameters) {
            (None, Some(default)) => Some(Cow::Owned(serde_json::from_str(default)?)),
            (parameters, _) => parameters.map(Cow::Borrowed),
        };
        let (rope, rotary_dim, query_scaling) = reader.read(parameters, "rope_theta", family.rope_theta)?;
        return Ok((rope, None, rotary_dim, query_scaling));
    };
    let parameters = parameters.cloned().map(Value::Object).unwrap_or_default();
    let nested = |kind: &str| Keys(&parameters).object(kind);
    let mut full = nested("full_attention")?.cloned();
    if let Some(scaling) = scaling {
        // It updates the parameters, of which these are the default.
        let full = full.get_or_insert_with(|| json!({"rope_type": "default"}).as_object().cloned().unwrap_or_default());
        full.extend(scaling.clone());
    }
    let local = nested("sliding_attention")?.map(Cow::Borrowed);
    let (rope, rotary_dim, query_scaling) = reader.read(full.map(Cow::Owned), "rope_theta", family.rope_theta)?;
    let (local, ..) = reader.read(local, "rope_local_base_freq", local_theta)?;
    Ok((rope, Some(local), rotary_dim, query_scaling))
}

/// Reads the parameters of RoPE.
struct RopeReader<'a> {
    family: &'a Family,
    /// `config.json`
    json: &'a Keys<'a>,
    head_dim: usize,
    /// `max_position_embeddings`
    longest: usize,
}

type Object = serde_json::Map<String, Value>;

impl RopeReader<'_> {
    /// Reads parameters. `theta_key` is the key of the base at the top level, and `theta` its default. Returns the elements of a
    /// head that are turned, and the scaling of queries, too.
    fn read(
        &self,
        parameters: Option<Cow<Object>>,
        theta_key: &str,
        theta: f64,
    ) -> Result<(Rope, usize, Option<QueryScaling>)> {
        let Self { family, json, head_dim, longest } = *self;
        let parameters = Value::Object(parameters.map(Cow::into_owned).unwrap_or_default());
        let parameters = Keys(&parameters);
        let anywhere = |key: &str, top: &str, default| -> Result<f64> {
            Ok(parameters.number(key)?.or(json.number(top)?).unwrap_or(default))
        };
        let theta = anywhere("rope_theta", theta_key, theta)?;
        let rotary_dim = match family.partial_rotary_factor {
            None => head_dim,
            Some(default) => {
                // Null is not the default of GLM-4, but leaves the key out.
                let default = if json.has("partial_rotary_factor") { 1.0 } else { default };
                let factor = anywhere("partial_rotary_factor", "partial_rotary_factor", default)?;
                (head_dim as f64 * factor) as usize
            }
        };
        let kind = match parameters.text("rope_type")? {
            Some(kind) => kind,
            None => parameters.text("type")?.unwrap_or("default"),
        };
        // Phi-3 named its scaling by other types before.
        let is_long = family.original_max_position_embeddings.is_some() && ["su", "yarn"].contains(&kind);
        let kind = if is_long { "longrope" } else { kind };
        let required =
            |key| parameters.number(key)?.with_context(|| format!("config.json: RoPE of type {kind} needs {key}"));
        // The key at the top level comes first, but where each kind of layer has its own parameters.
        let original = || {
            const KEY: &str = "original_max_position_embeddings";
            let top = json.integer(KEY)?.or(family.original_max_position_embeddings);
            match top.filter(|_| family.local_rope_theta.is_none()) {
                Some(original) => Ok::<_, anyhow::Error>(original),
                None => parameters.count_or(KEY, longest),
            }
        };
        let scaling = match kind {
            // The frequencies of the dynamic type change beyond `max_position_embeddings`, where no engine goes.
            "default" | "dynamic" => RopeScaling::None,
            "llama3" => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_position_embeddings: original()?,
            },
            "linear" => RopeScaling::Linear { factor: required("factor")? },
            "yarn" => {
                let original_max_position_embeddings = original()?;
                let ratio = longest as f64 / original_max_position_embeddings as f64;
                let factor = parameters.number("factor")?.unwrap_or(ratio);
                let number_or = |key, default| {
                    Ok::<_, anyhow::Error>(parameters.number(key)?.filter(|number| *number != 0.0).unwrap_or(default))
                };
                let scale = |strength: f64| if factor <= 1.0 { 1.0 } else { 0.1 * strength * factor.ln() + 1.0 };
                let default_factor = match (parameters.number("mscale")?, parameters.number("mscale_all_dim")?) {
                    (Some(strength), Some(of_all)) if strength != 0.0 && of_all != 0.0 => {
                        scale(strength) / scale(of_all)
                    }
                    _ => scale(1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: number_or("beta_fast", 32.0)?,
                    beta_slow: number_or("beta_slow", 1.0)?,
                    original_max_position_embeddings,
                    truncate: parameters.flag("truncate")?.unwrap_or(true),
                    attention_factor: parameters.number("attention_factor")?.unwrap_or(default_factor),
                }
            }
            "longrope" => {
                let original_max_position_embeddings = original()?;
                let original = original_max_position_embeddings as f64;
                let factor = parameters.number("factor")?.unwrap_or(longest as f64 / original);
                let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                let factors = parameters.list("short_factor", rotary_dim / 2)?;
                let factors = factors.context("config.json: RoPE of type longrope needs short_factor")?;
                let factor = |value: &Value| value.as_f64().map(|factor| factor as f32).filter(|factor| *factor > 0.0);
                let factors = factors.iter().map(factor).collect::<Option<_>>();
                RopeScaling::LongRope {
                    short_factor: factors
                        .context("config.json: short_factor holds something else than numbers above 0")?,
                    original_max_position_embeddings,
                    attention_factor: parameters.number("attention_factor")?.unwrap_or(default),
                }
            }
            other => RopeScaling::Other(other.into()),
        };
        let query_scaling = match family.scales_queries {
            false => None,
            true => Some(QueryScaling {
                beta: required("llama_4_scaling_beta")?,
                original_max_position_embeddings: original()?,
            }),
        };
        Ok((Rope { theta, scaling }, rotary_dim, query_scaling))
    }
}

/// The end tokens. `null` means that there are none, so it differs from a missing key.
fn eos_token_ids(family: &Family, json: &Keys) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("config.json: eos_token_id holds {value}, which is not a token id"))
    };
    match json.get("eos_token_id") {
        None if json.has("eos_token_id") => Ok(Vec::new()),
        None => Ok(family.eos_token_ids.to_vec()),
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

    /// Returns whether the key is there, `null` included.
    fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    fn object(&self, key: &str) -> Result<Option<&'a Object>> {
        self.typed(key, "an object", Value::as_object)
    }

    /// A list of this length.
    fn list(&self, key: &str, len: usize) -> Result<Option<&'a [Value]>> {
        let list = self.typed(key, "a list", Value::as_array)?;
        if let Some(list) = list {
            ensure!(list.len() == len, "config.json: {key} has {} entries, not {len}", list.len());
        }
        Ok(list.map(Vec::as_slice))
    }

    /// A number, or the default where the key is missing; `null` means none.
    fn number_unless_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        if self.has(key) { self.number(key) } else { Ok(default) }
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
    fn the_type_chooses_the_family_before_the_architecture() {
        let other = ModelConfig::from_json(&with(llama(), json!({"model_type": "mistral"}))).expect("a model");
        assert_eq!(other.family.architecture, "MistralForCausalLM");
    }

    #[test]
    fn eos_is_one_id_or_several() {
        let eos = |value: Value| {
            ModelConfig::from_json(&with(llama(), json!({"eos_token_id": value}))).map(|config| config.eos_token_ids)
        };
        assert_eq!(eos(json!(2)).expect("one"), [2]);
        assert_eq!(eos(json!([1, 106])).expect("two"), [1, 106]);
        assert_eq!(eos(Value::Null).expect("none"), [0; 0]);
        let missing = |architecture: &str| {
            small(architecture, json!({"num_key_value_heads": 2})).expect(architecture).eos_token_ids
        };
        assert_eq!(missing("LlamaForCausalLM"), [2]);
        assert_eq!(missing("Qwen2ForCausalLM"), [0; 0]);
        assert!(eos(json!(-1)).is_err());
    }

    fn small(architecture: &str, more: Value) -> Result<ModelConfig> {
        let sizes = json!({"architectures": [architecture], "hidden_size": 64, "intermediate_size": 48, "vocab_size": 100,
            "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 256});
        ModelConfig::from_json(&with(sizes, more))
    }

    /// The rules of transformers 5 for keys of RoPE that contradict each other, are missing or are null.
    #[test]
    fn rope_is_read_as_transformers_reads_it() {
        let yarn = |factor: f64, original: usize| RopeScaling::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: original,
            truncate: true,
            attention_factor: 0.1 * factor.ln() + 1.0,
        };
        let linear = RopeScaling::Linear { factor: 4.0 };
        let llama3 = |original| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        };
        let long = |original: usize| RopeScaling::LongRope {
            short_factor: vec![1.0, 2.0],
            original_max_position_embeddings: original,
            attention_factor: (1.0 + (256.0 / original as f64).ln() / (original as f64).ln()).sqrt(),
        };
        let plain = json!({"rope_type": "default", "rope_theta": 5e5});
        let linear_keys = json!({"rope_type": "linear", "factor": 4.0});
        let llama3_keys =
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let long_keys = json!({"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 9.0],
            "partial_rotary_factor": 0.25, "original_max_position_embeddings": 99});
        let (llama, gemma, phi) = ("LlamaForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM");
        let rows = [
            (llama, json!({"rope_theta": 7.0}), 7.0, RopeScaling::None),
            (llama, json!({"rope_theta": 7.0, "rope_parameters": plain}), 5e5, RopeScaling::None),
            (llama, json!({"rope_parameters": plain, "rope_scaling": linear_keys}), 1e4, linear.clone()),
            (llama, json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4.0}}), 7.0, linear.clone()),
            (llama, json!({"rope_parameters": plain, "rope_scaling": {}}), 5e5, RopeScaling::None),
            (llama, json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), 1e4, RopeScaling::None),
            (llama, json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), 1e4, yarn(4.0, 256)),
            (
                llama,
                json!({"rope_scaling": {"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 64}}),
                1e4,
                yarn(4.0, 64),
            ),
            (
                llama,
                json!({"original_max_position_embeddings": 32,
                    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
                1e4,
                yarn(4.0, 32),
            ),
            (llama, json!({"rope_parameters": llama3_keys}), 1e4, llama3(256)),
            (llama, json!({"rope_parameters": llama3_keys, "original_max_position_embeddings": 16}), 1e4, llama3(16)),
            (gemma, json!({"rope_scaling": linear_keys}), 1e6, linear.clone()),
            (gemma, json!({"rope_parameters": {"full_attention": plain}, "rope_scaling": linear_keys}), 5e5, linear),
            (gemma, json!({"rope_theta": 7.0, "rope_parameters": plain}), 7.0, RopeScaling::None),
            (phi, json!({"head_dim": 16, "rope_scaling": long_keys}), 1e4, long(4096)),
            (
                phi,
                json!({"head_dim": 16, "rope_scaling": with(long_keys, json!({"rope_type": "su"})),
                    "original_max_position_embeddings": 64}),
                1e4,
                long(64),
            ),
        ];
        for (architecture, keys, theta, scaling) in rows {
            let what = format!("{architecture} {keys}");
            let config = small(architecture, keys).expect(&what);
            let expected = match scaling {
                RopeScaling::LongRope { short_factor, original_max_position_embeddings: 4096, .. } => {
                    RopeScaling::LongRope {
                        short_factor,
                        original_max_position_embeddings: 4096,
                        attention_factor: 1.0,
                    }
                }
                other => other,
            };
            assert_eq!(config.rope, Rope { theta, scaling: expected }, "{what}");
            if let Some(local) = config.local_rope {
                assert_eq!(local, Rope { theta: 1e4, scaling: RopeScaling::None }, "{what}");
            }
        }
        let heads = json!({"num_key_value_heads": 4});
        let of_gpt_oss = |keys| small("GptOssForCausalLM", with(keys, heads.clone())).expect("a model").rope;
        let Rope { theta, scaling } = of_gpt_oss(json!({}));
        let is_own = matches!(scaling, RopeScaling::Yarn { factor: 32.0, truncate: false, .. });
        assert!(theta == 1.5e5 && is_own, "{scaling:?}");
        assert_eq!(of_gpt_oss(json!({"rope_parameters": {}})).scaling, RopeScaling::None);
        assert_eq!(small(phi, json!({"rope_parameters": {"partial_rotary_factor": 0.5}})).expect("half").rotary_dim, 8);
        assert_eq!(small(llama, json!({"partial_rotary_factor": 0.5})).expect("whole").rotary_dim, 16);
    }

    /// Which layers are sliding where keys are missing, null or of no family.
    #[test]
    fn windows_are_read_as_transformers_reads_them() {
        let (some, none) = (Some(8), [false; 4]);
        let types = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        for (architecture, keys, window, layers) in [
            ("LlamaForCausalLM", json!({"sliding_window": 8, "layer_types": types}), None, none),
            ("Qwen3ForCausalLM", json!({"sliding_window": 8, "max_window_layers": 1}), None, none),
            (
                "Qwen3ForCausalLM",
                json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1}),
                some,
                [false, true, true, true],
            ),
            (
                "Qwen2ForCausalLM",
                json!({"sliding_window": null, "use_sliding_window": true, "max_window_layers": 0}),
                None,
                none,
            ),
            ("Qwen2ForCausalLM", json!({"use_sliding_window": true, "max_window_layers": 0}), Some(4096), [true; 4]),
            (
                "Qwen3MoeForCausalLM",
                json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2}),
                some,
                [true; 4],
            ),
            ("MistralForCausalLM", json!({}), Some(4096), [true; 4]),
            ("MistralForCausalLM", json!({"sliding_window": null}), None, none),
            ("MixtralForCausalLM", json!({}), None, none),
            ("Gemma2ForCausalLM", json!({"sliding_window": 8}), some, [true, false, true, false]),
            ("Gemma3ForCausalLM", json!({"sliding_window": 8, "layer_types": types}), some, [true, false, false, true]),
            (
                "SmolLM3ForCausalLM",
                json!({"sliding_window": 8, "use_sliding_window": true, "no_rope_layers": [1, 0, 1, 1]}),
                some,
                [false, true, false, false],
            ),
        ] {
            let what = format!("{architecture} {keys}");
            let config = small(architecture, with(keys, json!({"num_key_value_heads": 4}))).expect(&what);
            assert_eq!((config.sliding_window, &config.sliding_layers[..]), (window, &layers[..]), "{what}");
        }
        for keys in [json!({"sliding_window": null}), json!({"sliding_window": null, "layer_types": types})] {
            let error = small("Gemma3ForCausalLM", keys).expect_err("layers without a window").to_string();
            assert!(error.contains("sliding_window"), "{error}");
        }
    }

    /// Keys with defaults that differ from family to family, and keys that only some families have.
    #[test]
    fn missing_and_foreign_keys_have_the_meaning_of_transformers() {
        let heads = |architecture, keys| small(architecture, keys).expect("a model").num_key_value_heads;
        for (architecture, missing) in
            [("LlamaForCausalLM", 4), ("Gemma2ForCausalLM", 4), ("Glm4ForCausalLM", 2), ("SmolLM3ForCausalLM", 4)]
        {
            assert_eq!(heads(architecture, json!({})), missing, "{architecture}");
            assert_eq!(heads(architecture, json!({"num_key_value_heads": null})), 4, "{architecture}");
        }
        let all =
            json!({"attention_bias": true, "mlp_bias": true, "residual_multiplier": 0.5, "num_key_value_heads": 4});
        for (architecture, qkv, o, mlp, residual) in [
            ("LlamaForCausalLM", true, true, true, 1.0),
            ("Qwen2ForCausalLM", true, false, false, 1.0),
            ("Qwen3ForCausalLM", true, true, false, 1.0),
            ("MistralForCausalLM", false, false, false, 1.0),
            ("Phi3ForCausalLM", false, false, false, 1.0),
            ("Glm4ForCausalLM", true, false, false, 1.0),
            ("GraniteForCausalLM", true, true, true, 0.5),
        ] {
            let config = small(architecture, all.clone()).expect(architecture);
            let found = (config.qkv_bias, config.o_bias, config.mlp_bias, config.multipliers.residual);
            assert_eq!(found, (qkv, o, mlp, residual), "{architecture}");
        }
        let caps =
            |keys| small("Gemma2ForCausalLM", keys).map(|config| (config.score_cap(), config.final_logit_softcapping));
        assert_eq!(caps(json!({})).expect("defaults"), (Some(50.0), Some(30.0)));
        let null = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
        assert_eq!(caps(null).expect("none"), (None, None));
        let swish = small("LlamaForCausalLM", json!({"hidden_act": "swish"})).expect("an activation");
        assert_eq!(swish.hidden_act, "silu");
    }

    #[test]
    fn errors_name_the_wrong_key() {
        for (more, part) in [
            (json!({"architectures": ["BertModel"]}), "BertModel is not supported; the supported ones are"),
            (
                json!({"architectures": ["GraniteMoeForCausalLM"]}),
                "not supported, the nearest is GraniteForCausalLM; the",
            ),
            (json!({"architectures": ["BertModel"]}), "one trait away: CausalLm"),
            (json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}), "takes more than text"),
            (json!({"architectures": null, "model_type": null}), "both missing"),
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"hidden_size": "big"}), "hidden_size is \"big\", not a whole number"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_key_value_heads": 5}), "not a multiple"),
            (json!({"head_dim": 63}), "odd"),
            (
                json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "layer_types": ["full_attention"]}),
                "layer_types has 1 entries, not 2",
            ),
            (json!({"model_type": "a\nb".repeat(1000)}), "…"),
            (json!({"architectures": ["a\nb".repeat(1000)], "model_type": null}), "is not supported"),
            (json!({"is_causal": "x".repeat(1000)}), "cannot generate text"),
            (json!({"model_type": "bert"}), "model_type is bert, and architectures has LlamaForCausalLM"),
            (json!({"rope_parameters": {"full_attention": {}}}), "has an object for full_attention"),
            (json!({"rope_scaling": {"rope_type": "llama3"}}), "needs factor"),
            (
                json!({"model_type": "ministral3", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
                "RoPE of type yarn needs llama_4_scaling_beta",
            ),
        ] {
            let error = ModelConfig::from_json(&with(llama(), more)).expect_err(part).to_string();
            assert!(error.lines().count() == 1 && error.chars().count() <= LONGEST_MESSAGE + 1, "{error}");
            assert!(error.contains(part), "{error}");
        }
    }
}
