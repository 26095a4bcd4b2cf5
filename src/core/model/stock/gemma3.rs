//! candle-transformers' `gemma3`.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma3;

use super::{Module, Published, activation, angles_in, rope_scaling, rope_table, uses_flash_attn};
use crate::model::config::{ModelConfig, RopeScaling};

pub(super) const MODULE: Module = Module {
    architecture: "Gemma3ForCausalLM",
    refusal,
    deviates,
    load,
    // Each layer has its own tables.
    rope_table_bytes: |config, dtype| rope_table(config) * (config.num_hidden_layers * dtype.size_in_bytes()) as u64,
    // The scores before and after the mask, and the probabilities.
    bytes_per_score: |dtype, device| if uses_flash_attn(device) { 0 } else { 3 * dtype.size_in_bytes() },
    preallocates_cache: true,
};

// Known deviation from the contract of `CausalLm::forward`: several tokens at a position above 0 are refused, because the
// published mask is wrong there.
impl Published for gemma3::Model {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        ensure!(
            position == 0 || tokens.dim(1)? == 1,
            "candle-transformers' gemma3 masks several tokens after the first position wrongly: pass them one at a time"
        );
        Ok(Self::forward(self, tokens, position)?)
    }

    fn reset(&mut self) {
        self.clear_kv_cache();
    }
}

fn load(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Box<dyn Published>> {
    Ok(Box::new(gemma3::Model::new(uses_flash_attn(weights.device()), &published(config)?, weights)?))
}

fn refusal(config: &ModelConfig) -> Option<String> {
    if config.query_pre_attn_scalar != config.head_dim as f64 {
        return Some(format!(
            "candle-transformers' gemma3 divides scores by the square root of head_dim={}, not of query_pre_attn_scalar={}",
            config.head_dim, config.query_pre_attn_scalar
        ));
    }
    if config.num_key_value_heads > 1 {
        return Some("candle-transformers' gemma3 fails with more than one key-value head".into());
    }
    if !config.tie_word_embeddings {
        return Some("candle-transformers' gemma3 uses the embedding as the head, but this head is not tied".into());
    }
    if pattern(config).is_none() {
        return Some(
            "candle-transformers' gemma3 supports only full layers at regular intervals in layer_types".into(),
        );
    }
    if config.attn_logit_softcapping.is_some() {
        return Some("candle-transformers' gemma3 caps the logits of attention; the reference does not".into());
    }
    let is_local_scaled = config.local_rope.as_ref().is_some_and(|rope| rope.scaling != RopeScaling::None);
    match rope_scaling(config) {
        Some(name) => Some(format!("candle-transformers' gemma3 ignores RoPE scaling of type {name}")),
        None => is_local_scaled.then(|| "candle-transformers' gemma3 ignores RoPE scaling of sliding layers".into()),
    }
}

fn deviates(config: &ModelConfig, dtype: DType, (prompt_tokens, _): (usize, usize)) -> Option<String> {
    let mut reasons = Vec::new();
    if let Some(window) = config.sliding_window.filter(|window| prompt_tokens > *window) {
        reasons.push(format!(
            "the prompt is longer than the sliding window of {window}, and the published mask is one position too wide"
        ));
    }
    reasons.extend(angles_in(dtype));
    (!reasons.is_empty()).then(|| format!("candle-transformers' gemma3: {}", reasons.join("; ")))
}

/// The interval of full layers; `None` if they are not at regular intervals.
fn pattern(config: &ModelConfig) -> Option<usize> {
    let layers = &config.sliding_layers;
    let pattern = layers.iter().position(|sliding| !sliding).map_or(layers.len() + 1, |first_full| first_full + 1);
    layers.iter().enumerate().all(|(layer, sliding)| *sliding == ((layer + 1) % pattern != 0)).then_some(pattern)
}

fn published(config: &ModelConfig) -> Result<gemma3::Config> {
    Ok(gemma3::Config {
        attention_bias: config.qkv_bias,
        head_dim: config.head_dim,
        hidden_activation: activation(&config.hidden_act)?,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_attention_heads: config.num_attention_heads,
        num_hidden_layers: config.num_hidden_layers,
        num_key_value_heads: config.num_key_value_heads,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope.theta,
        rope_local_base_freq: config.local_rope.as_ref().map_or(config.rope.theta, |rope| rope.theta),
        vocab_size: config.vocab_size,
        final_logit_softcapping: config.final_logit_softcapping,
        attn_logit_softcapping: config.attn_logit_softcapping,
        query_pre_attn_scalar: config.query_pre_attn_scalar as usize,
        sliding_window: config.sliding_window.context("config.json: sliding_window is missing")?,
        sliding_window_pattern: pattern(config).unwrap_or(1),
        max_position_embeddings: config.max_position_embeddings,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::golden::{difference, fixtures, numbers};

    /// Fails when a Candle release repairs the mask of several tokens at a position above 0; then remove the refusal.
    #[test]
    fn several_tokens_at_a_later_position_are_computed_wrongly() {
        let fixture = fixtures("generation").into_iter().find(|fixture| fixture.name == "gemma3-short-window");
        let fixture = fixture.expect("the fixture");
        let weights = fixture.checkpoint.weights(DType::F32, &Device::Cpu).expect("weights");
        let config = published(&fixture.config).expect("a configuration");
        let mut model = gemma3::Model::new(false, &config, weights).expect("a model");
        let prompt = fixture.prompts.iter().max_by_key(|prompt| prompt.ids.len()).expect("a prompt");
        let (first, second) = prompt.ids.split_at(prompt.ids.len() / 2);
        let run = |model: &mut gemma3::Model, tokens: &[u32], position| {
            let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
            gemma3::Model::forward(model, &tokens, position)
        };
        run(&mut model, first, 0).expect("the first part");
        if let Ok(logits) = run(&mut model, second, first.len()) {
            let far = difference(&numbers(&logits), &fixture.logits(prompt, prompt.ids.len() - 1));
            assert!(far > 1e-3, "correct to {far}");
        }
    }
}
