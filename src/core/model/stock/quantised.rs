//! GGUF files on engine `stock`: the quantised models of candle-transformers, loaded from the file as their users do.
//!
//! These modules repeat the faults of the others and add their own, and they are what most people run. So a file is refused only if
//! its module fails on it. If a module computes something else than the reference implementation, the model runs and
//! [`CausalLm::deviates`] gives the reason. To add a module, add its row to [`MODULES`].

use std::{fs::File, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, gguf_file::Content},
};
use candle_transformers::models::{
    quantized_gemma3, quantized_glm4, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
};

use super::{Published, rope_scaling};
use crate::{
    measure::memory,
    model::{
        causal_lm::{CacheBytes, CausalLm, Footprint},
        config::ModelConfig,
        gguf::{self, Gguf, TensorFormat},
    },
    scenario,
};

/// The quantised modules, by the architecture that they compute. `quantized_qwen3_moe` is none of them: its mixtures run on CUDA
/// devices only, and GGUF files run on CPUs only. `quantized_gemma3` reads the keys of Gemma 2 too, and then fails, because these
/// files have no norms of queries and keys.
const MODULES: &[Module] = &[
    LLAMA,
    Module { architecture: "MistralForCausalLM", ..LLAMA },
    Module { architecture: "MixtralForCausalLM", ..LLAMA },
    Module {
        architecture: "Qwen2ForCausalLM",
        name: "quantized_qwen2",
        faults: &[Fault::Scaling, Fault::Window],
        max_positions: usize::MAX,
        rope_bytes: |config| 4 * rope_table(config, config.max_position_embeddings),
        load: |content, file| Ok(Box::new(quantized_qwen2::ModelWeights::from_gguf(content, file, &Device::Cpu)?)),
        ..LLAMA
    },
    Module {
        architecture: "Qwen3ForCausalLM",
        name: "quantized_qwen3",
        refusal: |_| None,
        faults: &[Fault::HalfAngles, Fault::Scaling, Fault::Bias, Fault::Window],
        max_positions: usize::MAX,
        // In f16, and once more in f32.
        rope_bytes: |config| 6 * rope_table(config, config.max_position_embeddings),
        // Candle's flash attention for CPUs needs none.
        bytes_per_score: 0,
        // Prompts are in one cache, and prompts and steps in a second one, which has room for 4096 tokens and then doubles.
        cache_rows: |_, tokens| tokens + 4096 * tokens.div_ceil(4096).next_power_of_two(),
        // The cache of prompts lacks the tokens of steps.
        takes_chunks: false,
        load: |content, file| Ok(Box::new(quantized_qwen3::ModelWeights::from_gguf(content, file, &Device::Cpu)?)),
    },
    Module {
        architecture: "Gemma3ForCausalLM",
        name: "quantized_gemma3",
        refusal: |_| None,
        faults: &[Fault::Silu, Fault::Scaling, Fault::Bias, Fault::WindowOfSteps, Fault::Layers, Fault::Scores],
        max_positions: quantized_gemma3::MAX_SEQ_LEN,
        // Each layer has its own tables.
        rope_bytes: |config| 4 * rope_table(config, quantized_gemma3::MAX_SEQ_LEN) * config.num_hidden_layers as u64,
        // The scores before and after the mask, and what is masked.
        bytes_per_score: 2 * size_of::<f32>() + 1,
        // Its mask hides all earlier tokens.
        takes_chunks: false,
        load: |content, file| Ok(Box::new(quantized_gemma3::ModelWeights::from_gguf(content, file, &Device::Cpu)?)),
        ..LLAMA
    },
    Module {
        architecture: "Phi3ForCausalLM",
        name: "quantized_phi3",
        refusal: |config| {
            let is_tied = || config.tie_word_embeddings.then(|| "it requires a head of its own".into());
            let turned = config.rotary_dim;
            let is_part =
                || (turned < config.head_dim).then(|| format!("it fails on RoPE of {turned} elements of a head"));
            of_other_heads(config).or_else(is_tied).or_else(is_part)
        },
        faults: &[Fault::Base, Fault::Scaling, Fault::Window],
        max_positions: usize::MAX,
        rope_bytes: |config| 4 * rope_table(config, config.max_position_embeddings),
        // The first token allocates all rows.
        cache_rows: |config, _| config.max_position_embeddings,
        load: |content, file| {
            Ok(Box::new(quantized_phi3::ModelWeights::from_gguf(false, content, file, &Device::Cpu)?))
        },
        ..LLAMA
    },
    Module {
        architecture: "Glm4ForCausalLM",
        name: "quantized_glm4",
        refusal: |_| None,
        faults: &[Fault::HalfHeads, Fault::Scaling],
        max_positions: usize::MAX,
        // Of half a head.
        rope_bytes: |config| 2 * rope_table(config, config.max_position_embeddings),
        // The cache grows by its first size.
        cache_rows: |_, tokens| tokens.next_multiple_of(512),
        load: |content, file| {
            Ok(Box::new(quantized_glm4::ModelWeights::from_gguf(content, file, &Device::Cpu, DType::F32)?))
        },
        ..LLAMA
    },
];

/// Llama: the row that the other rows are stated against.
const LLAMA: Module = Module {
    architecture: "LlamaForCausalLM",
    name: "quantized_llama",
    refusal: of_other_heads,
    faults: &[Fault::Scaling, Fault::Bias, Fault::Window],
    max_positions: quantized_llama::MAX_SEQ_LEN,
    rope_bytes: |config| 4 * rope_table(config, quantized_llama::MAX_SEQ_LEN),
    // The scores before and after the mask, and the probabilities.
    bytes_per_score: 3 * size_of::<f32>(),
    cache_rows: |_, tokens| tokens,
    takes_chunks: true,
    load: |content, file| Ok(Box::new(quantized_llama::ModelWeights::from_gguf(content, file, &Device::Cpu)?)),
};

/// One quantised module of candle-transformers.
struct Module {
    architecture: &'static str,
    name: &'static str,
    /// Why it fails on a configuration.
    refusal: fn(&ModelConfig) -> Option<String>,
    /// What it computes otherwise than the reference implementation.
    faults: &'static [Fault],
    /// Positions that its RoPE tables cover; those of the file where this is larger.
    max_positions: usize,
    rope_bytes: fn(&ModelConfig) -> u64,
    /// Bytes that a prompt takes at once for each pair of tokens and each head.
    bytes_per_score: usize,
    /// Rows of keys and values that a layer holds for a sequence of so many tokens.
    cache_rows: fn(&ModelConfig, usize) -> usize,
    /// True if it computes several tokens at a position above 0.
    takes_chunks: bool,
    load: fn(Content, &mut File) -> candle_core::Result<Box<dyn Published>>,
}

impl Module {
    fn of(config: &ModelConfig) -> Option<&'static Self> {
        MODULES.iter().find(|module| module.architecture == config.family.architecture)
    }
}

/// What a module computes otherwise than the reference implementation.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// RoPE has one base for all files.
    Base,
    Bias,
    /// RoPE's angles are computed in f16, because no file has the key that the module looks for.
    HalfAngles,
    /// RoPE turns the first half of each head.
    HalfHeads,
    /// Every sixth layer is full, with one base of RoPE for sliding layers, whatever the file says.
    Layers,
    Scaling,
    /// Scores are divided by the square root of the head size.
    Scores,
    Silu,
    /// All layers see all tokens.
    Window,
    /// Sliding layers see one token too many in prompts, and all tokens in steps.
    WindowOfSteps,
}

impl Fault {
    /// How it changes a generation of so many tokens, if it does.
    fn reason(self, config: &ModelConfig, tokens: usize) -> Option<String> {
        let ModelConfig { qkv_bias, o_bias, mlp_bias, .. } = *config;
        let is_cut = config.sliding_layers.contains(&true) && config.sliding_window.is_some_and(|size| tokens > size);
        let is_regular = |layer: usize, sliding: bool| sliding != (layer + 1).is_multiple_of(6);
        let mut layers = config.sliding_layers.iter().enumerate();
        let has_local_base = config.local_rope.as_ref().is_some_and(|rope| rope.theta != 1e4);
        match self {
            Self::Base => {
                (config.rope.theta != 1e4).then(|| format!("RoPE's base is 10000, not {}", config.rope.theta))
            }
            Self::Bias => (qkv_bias || o_bias || mlp_bias).then(|| "biases are ignored".into()),
            Self::HalfAngles => Some("RoPE's angles are computed in f16".into()),
            Self::HalfHeads => (2 * config.rotary_dim != config.head_dim)
                .then(|| format!("RoPE turns half of each head, not {} elements", config.rotary_dim)),
            Self::Layers => (has_local_base || !layers.all(|(layer, sliding)| is_regular(layer, *sliding)))
                .then(|| "every sixth layer is full, and the others have a RoPE of base 10000".into()),
            Self::Scaling => rope_scaling(config).map(|name| format!("RoPE scaling of type {name} is ignored")),
            Self::Scores => (config.query_pre_attn_scalar != config.head_dim as f64)
                .then(|| "scores are divided by the square root of the head size".into()),
            Self::Silu => (config.hidden_act != "silu").then(|| format!("silu is computed for {}", config.hidden_act)),
            Self::Window => is_cut.then(|| "the sliding window is ignored".into()),
            Self::WindowOfSteps => {
                is_cut.then(|| "the sliding window is one token too wide in prompts, and ignored in steps".into())
            }
        }
    }
}

macro_rules! published {
    ($($module:ident $(, $reset:ident)?;)*) => { $(
        impl Published for $module::ModelWeights {
            fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
                Ok(Self::forward(self, tokens, position)?)
            }

            // Where nothing clears the cache, the first token of the next sequence does.
            fn reset(&mut self) {
                $(self.$reset();)?
            }
        }
    )* };
}

published! {
    quantized_llama, clear_kv_cache;
    quantized_qwen2, clear_kv_cache;
    quantized_qwen3, clear_kv_cache;
    quantized_gemma3;
    quantized_phi3;
    quantized_glm4;
}

/// A quantised model of candle-transformers.
pub struct Quantised {
    config: ModelConfig,
    module: &'static Module,
    footprint: Footprint,
    model: Box<dyn Published>,
    is_in_context: bool,
}

impl Quantised {
    /// Loads the model of a file that [`gguf::open`] has checked.
    ///
    /// # Errors
    /// One line if the module fails on the file, or memory is missing ([`memory::DoesNotFit`]).
    pub fn open(path: &Path, file: &gguf::Model) -> Result<Self> {
        // The modules have room for all positions that the file states.
        let config = &ModelConfig { max_position_embeddings: file.positions, ..file.config.clone() };
        if let Some(reason) = refusal(config) {
            return Err(anyhow!("engine stock refuses this model: {reason}; engine tuned runs it"));
        }
        let module = Module::of(config).context("candle-transformers' module is not wrapped")?;
        let called = format!("candle-transformers' {}", module.name);
        if let Some(format) = file.tensors.unknown_to_candle() {
            return Err(anyhow!("engine stock refuses this model: Candle reads no {format}; engine tuned runs it"));
        }
        let footprint = footprint(config, &file.tensors);
        let cache = config.cache_row_bytes(DType::F32)
            * config.num_hidden_layers as u64
            * (module.cache_rows)(config, scenario::longest_generation()) as u64;
        let work = format!("weights of {:.1} GB, RoPE tables and the cache", footprint.weight_bytes as f64 / 1e9);
        memory::ensure_fits(&work, footprint.weight_bytes + (module.rope_bytes)(config) + cache, &Device::Cpu)?;
        let load = || {
            let mut reader = File::open(path)?;
            (module.load)(Content::read(&mut reader)?, &mut reader)
        };
        // Candle appends a backtrace where the environment asks for one.
        let one_line = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let model = load().map_err(|error| anyhow!("{called}: {}", one_line(error)))?;
        Ok(Self { config: config.clone(), module, footprint, model, is_in_context: false })
    }

    /// Runs each pass in the thread pool that Candle keeps for the device.
    pub fn in_context(self) -> Self {
        Self { is_in_context: true, ..self }
    }
}

impl CausalLm for Quantised {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        let Module { name, takes_chunks, .. } = self.module;
        ensure!(
            position == 0 || tokens.len() == 1 || *takes_chunks,
            "candle-transformers' {name} computes several tokens after the first position wrongly: pass them one at a time"
        );
        super::forward(self.model.as_mut(), tokens, position, &Device::Cpu, self.is_in_context)
    }

    fn reset(&mut self) -> Result<()> {
        self.model.reset();
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_position_embeddings.min(self.module.max_positions)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn cache_bytes(&self, tokens: usize) -> CacheBytes {
        let row = self.footprint.cache_bytes_per_token;
        let allocated = (self.module.cache_rows)(&self.config, tokens);
        CacheBytes { used: row * tokens as u64, allocated: row * allocated as u64 }
    }

    fn prefill_flops(&self, tokens: usize) -> u64 {
        self.config.prefill_flops(tokens)
    }

    fn score_bytes(&self, tokens: usize) -> u64 {
        let scores = self.config.num_attention_heads as u64 * (tokens as u64).saturating_pow(2);
        scores.saturating_mul(self.module.bytes_per_score as u64)
    }

    fn attention(&self) -> Option<(&'static str, DType)> {
        Some(("candle", DType::F32))
    }

    fn deviates(&self, prompt_tokens: usize, new_tokens: usize) -> Option<String> {
        deviates(&self.config, prompt_tokens + new_tokens)
    }
}

/// Why the engine does not run files of this configuration: no module is published for it, or the module fails on it.
pub fn refusal(config: &ModelConfig) -> Option<String> {
    let Some(module) = Module::of(config) else {
        return Some(format!("it runs no GGUF files of {}", config.family.architecture));
    };
    (module.refusal)(config).map(|reason| format!("candle-transformers' {}: {reason}", module.name))
}

/// Why the output of a generation of so many tokens differs from the reference implementation's.
pub fn deviates(config: &ModelConfig, tokens: usize) -> Option<String> {
    let module = Module::of(config)?;
    let reasons: Vec<_> = module.faults.iter().filter_map(|fault| fault.reason(config, tokens)).collect();
    (!reasons.is_empty()).then(|| format!("candle-transformers' {}: {}", module.name, reasons.join("; ")))
}

fn of_other_heads(config: &ModelConfig) -> Option<String> {
    (config.head_dim * config.num_attention_heads != config.hidden_size)
        .then(|| format!("it requires a head size of width over heads, not {}", config.head_dim))
}

/// Numbers in one RoPE table, cosines and sines together.
fn rope_table(config: &ModelConfig, positions: usize) -> u64 {
    positions as u64 * config.head_dim as u64
}

/// What the modules hold of a file, and what a step reads of it: the embedding is also in memory as f32.
fn footprint(config: &ModelConfig, file: &Gguf) -> Footprint {
    let bytes_of = |bytes: fn(GgmlDType, usize, usize) -> usize, name: &str, shape: &[usize]| {
        let (rows, width) = if let [rows, width] = *shape { (rows, width) } else { (shape[0], 1) };
        let format = file.format(name).and_then(TensorFormat::of_candle);
        bytes(format.unwrap_or(GgmlDType::F32), rows, width) as u64
    };
    let held = config.footprint_of(DType::F32, |name, shape| match name {
        "model.embed_tokens.weight" => {
            let head = if config.tie_word_embeddings { bytes_of(held_bytes, name, shape) } else { 0 };
            head + 4 * shape.iter().product::<usize>() as u64
        }
        _ => bytes_of(held_bytes, name, shape),
    });
    let read = config.footprint_of(DType::F32, |name, shape| bytes_of(read_bytes, name, shape));
    Footprint { weight_bytes: held.weight_bytes, ..read }
}

/// Bytes of a matrix that a step reads. Candle holds tensors without quantisation as f32. On x86 it packs some formats for its own
/// kernels when they are first used (candle-core 0.11.1, `quantized/repack_x86.rs`).
fn read_bytes(format: GgmlDType, rows: usize, width: usize) -> usize {
    let blocks = rows * width / format.block_size();
    match format {
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => 4 * blocks,
        // With the scales of 32 weights as two numbers in f32.
        GgmlDType::Q4K if is_packed(rows, width) => 192 * blocks,
        _ => format.type_size() * blocks,
    }
}

/// Bytes of a matrix in memory once it has been used: the blocks of the file, and their packed copy. CPUs with AMX have another
/// copy of Q4_K for prompts, which is not counted.
fn held_bytes(format: GgmlDType, rows: usize, width: usize) -> usize {
    let blocks = rows * width / format.block_size();
    let packed = match format {
        GgmlDType::Q4K => 192,
        // For prompts only.
        GgmlDType::Q6K => 320,
        GgmlDType::Q8_0 if has_dot_products() => 34,
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => return 4 * blocks,
        _ => 0,
    };
    (format.type_size() + if is_packed(rows, width) { packed } else { 0 }) * blocks
}

#[cfg(target_arch = "x86_64")]
fn has_dot_products() -> bool {
    is_x86_feature_detected!("avxvnni") || is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_dot_products() -> bool {
    false
}

/// Returns whether Candle packs a matrix of this size, if it packs its format.
#[cfg(target_arch = "x86_64")]
fn is_packed(rows: usize, width: usize) -> bool {
    let has_kernels = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    has_kernels && rows.is_multiple_of(16) && width.is_multiple_of(256)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_packed(_: usize, _: usize) -> bool {
    false
}
