//! candle-transformers' `llama`.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::llama;

use super::{Module, Published, never_deviates, rope_scaling, shared_rope_tables, uses_flash_attn};
use crate::model::config::{ModelConfig, RopeScaling};

pub(super) const MODULE: Module = Module {
    architecture: "LlamaForCausalLM",
    refusal,
    deviates: never_deviates,
    load,
    rope_table_bytes: shared_rope_tables,
    // The scores before and after the mask, and the probabilities, in f32 for every dtype.
    bytes_per_score: |_, device| if uses_flash_attn(device) { 0 } else { 3 * size_of::<f32>() },
    preallocates_cache: false,
};

struct Llama {
    model: llama::Llama,
    /// The cache before the first token. It holds the RoPE tables, so that a reset does not compute them again.
    pristine: llama::Cache,
    cache: llama::Cache,
}

impl Published for Llama {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        Ok(self.model.forward(tokens, position, &mut self.cache)?)
    }

    fn reset(&mut self) {
        self.cache.clone_from(&self.pristine);
    }
}

fn load(config: &ModelConfig, weights: VarBuilder<'static>) -> Result<Box<dyn Published>> {
    let published = published(config, uses_flash_attn(weights.device()));
    let pristine = llama::Cache::new(true, weights.dtype(), &published, weights.device())?;
    let model = llama::Llama::load(weights, &published)?;
    Ok(Box::new(Llama { model, cache: pristine.clone(), pristine }))
}

fn refusal(config: &ModelConfig) -> Option<String> {
    if config.qkv_bias || config.o_bias || config.mlp_bias {
        return Some("candle-transformers' llama ignores the biases of attention_bias and mlp_bias".into());
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        return Some(format!(
            "candle-transformers' llama requires head_dim to be hidden_size / num_attention_heads, not {}",
            config.head_dim
        ));
    }
    if config.sliding_layers.contains(&true) {
        return Some("candle-transformers' llama has no sliding layers".into());
    }
    if config.hidden_act != "silu" {
        return Some(format!("candle-transformers' llama computes silu for hidden_act={}", config.hidden_act));
    }
    let scaling = rope_scaling(config).filter(|name| *name != "llama3")?;
    Some(format!("candle-transformers' llama has no RoPE scaling of type {scaling}"))
}

fn published(config: &ModelConfig, use_flash_attn: bool) -> llama::Config {
    let rope_scaling = match config.rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            Some(llama::Llama3RopeConfig {
                factor: factor as f32,
                low_freq_factor: low_freq_factor as f32,
                high_freq_factor: high_freq_factor as f32,
                original_max_position_embeddings,
                rope_type: llama::Llama3RopeType::Llama3,
            })
        }
        _ => None,
    };
    llama::Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        use_flash_attn,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    }
}
