//! Causal attention with grouped key-value heads, rotary position embeddings and optional norms of queries and keys, by
//! Candle's operations. The cache grows by doubling and survives a reset.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{
    Linear, Module, VarBuilder, linear_b,
    ops::{rms_norm, softmax_last_dim},
    rotary_emb::rope_thd,
};

use super::rope;
use crate::model::{config::ModelConfig, family::QkNorm};

/// Initial capacity of a cache in tokens.
const FIRST_CAPACITY: usize = 256;

/// Capacity of a cache that holds `tokens`, in tokens.
pub fn capacity(tokens: usize) -> usize {
    tokens.next_power_of_two().max(FIRST_CAPACITY)
}

/// Cosines and sines of the positions of a forward pass, (tokens, head_dim / 2) each.
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Computes the angles in f32 as transformers does.
    pub fn new(config: &ModelConfig, position: usize, tokens: usize, dtype: DType, device: &Device) -> Result<Self> {
        let half = config.head_dim / 2;
        let (frequencies, scale) = rope::frequencies(&config.rope, config.rotary_dim);
        let positions = position..position + tokens;
        let (sin, cos): (Vec<f32>, Vec<f32>) = positions
            .flat_map(|position| frequencies.iter().map(move |frequency| (position as f32 * frequency).sin_cos()))
            .map(|(sin, cos)| (scale * sin, scale * cos))
            .unzip();
        let tensor = |values| Tensor::from_vec(values, (tokens, half), device)?.to_dtype(dtype);
        Ok(Self { cos: tensor(cos)?, sin: tensor(sin)? })
    }
}

/// Additive mask for `tokens` that start at `position`, (tokens, position + tokens): minus infinity at later positions.
pub fn causal_mask(position: usize, tokens: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let all = position + tokens;
    let row = |token: usize| (0..all).map(move |other| if other > position + token { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
    Ok(Tensor::from_vec(mask, (tokens, all), device)?.to_dtype(dtype)?)
}

/// Keys and values, of shape (heads, capacity, head_dim).
#[derive(Clone, Debug)]
struct Cache {
    keys: Tensor,
    values: Tensor,
}

#[derive(Clone, Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Weights and epsilon.
    qk_norms: Option<(Tensor, Tensor, f32)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    cache: Option<Cache>,
}

impl Attention {
    pub fn load(config: &ModelConfig, weights: VarBuilder) -> Result<Self> {
        let ModelConfig { hidden_size: hidden, head_dim, qkv_bias, o_bias, .. } = *config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let norm = |name: &str| weights.get(head_dim, &format!("{name}.weight"));
        let qk_norms = (config.family.qk_norm == QkNorm::Heads)
            .then(|| Ok::<_, candle_core::Error>((norm("q_norm")?, norm("k_norm")?, config.rms_norm_eps as f32)))
            .transpose()?;
        Ok(Self {
            q_proj: linear_b(hidden, q, qkv_bias, weights.pp("q_proj"))?,
            k_proj: linear_b(hidden, kv, qkv_bias, weights.pp("k_proj"))?,
            v_proj: linear_b(hidden, kv, qkv_bias, weights.pp("v_proj"))?,
            o_proj: linear_b(q, hidden, o_bias, weights.pp("o_proj"))?,
            qk_norms,
            heads,
            kv_heads,
            head_dim,
            cache: None,
        })
    }

    /// Attention of `x` (tokens, hidden) over itself and the `position` tokens before it. `mask` is that of
    /// [`causal_mask`]; a single token needs none.
    pub fn forward(&mut self, x: &Tensor, position: usize, angles: &Angles, mask: Option<&Tensor>) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let split = |x: Tensor, heads: usize| x.reshape((1, tokens, heads, self.head_dim));
        let mut q = split(self.q_proj.forward(x)?, self.heads)?;
        let mut k = split(self.k_proj.forward(x)?, self.kv_heads)?;
        let v = split(self.v_proj.forward(x)?, self.kv_heads)?;
        if let Some((q_norm, k_norm, eps)) = &self.qk_norms {
            q = rms_norm(&q, q_norm, *eps)?;
            k = rms_norm(&k, k_norm, *eps)?;
        }
        let q = rope_thd(&q, &angles.cos, &angles.sin)?;
        let k = rope_thd(&k, &angles.cos, &angles.sin)?;
        let (k, v) = self.append(&by_head(&k)?, &by_head(&v)?, position)?;
        let scale = (self.head_dim as f64).sqrt().recip();
        let heads = self.products(&q, &k, &v, scale, mask)?;
        Ok(self.o_proj.forward(&heads.reshape((tokens, self.heads * self.head_dim))?)?)
    }

    /// Writes keys and values, whose second dimension is tokens, to the cache at `position`, and returns all up to their end.
    fn append(&mut self, k: &Tensor, v: &Tensor, position: usize) -> Result<(Tensor, Tensor)> {
        let tokens = position + k.dim(1)?;
        let fits = self.cache.as_ref().map(|cache| cache.keys.dim(1)).transpose()? >= Some(tokens);
        let grown = |old: Option<&Tensor>| -> Result<Tensor> {
            let mut shape = k.dims().to_vec();
            shape[1] = capacity(tokens);
            let new = Tensor::zeros(shape, k.dtype(), k.device())?;
            if let Some(old) = old.filter(|_| position > 0) {
                new.slice_set(&old.narrow(1, 0, position)?.contiguous()?, 1, 0)?;
            }
            Ok(new)
        };
        let cache = match self.cache.take() {
            Some(cache) if fits => cache,
            old => Cache {
                keys: grown(old.as_ref().map(|cache| &cache.keys))?,
                values: grown(old.as_ref().map(|cache| &cache.values))?,
            },
        };
        let cache = self.cache.insert(cache);
        cache.keys.slice_set(&k.contiguous()?, 1, position)?;
        cache.values.slice_set(&v.contiguous()?, 1, position)?;
        Ok((cache.keys.narrow(1, 0, tokens)?, cache.values.narrow(1, 0, tokens)?))
    }

    /// Attention by matrix products, for keys and values (kv_heads, all, head_dim). Returns (tokens, heads, head_dim).
    fn products(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
        let (tokens, all) = (q.dim(1)?, k.dim(1)?);
        let group = self.heads / self.kv_heads;
        // Query heads that share a key-value head are adjacent, so one product computes them.
        let q = by_head(q)?.reshape((self.kv_heads, group * tokens, self.head_dim))?;
        let scores = (q.matmul(&k.transpose(D::Minus2, D::Minus1)?)? * scale)?;
        let scores = scores.reshape((self.heads, tokens, all))?;
        let scores = mask.map_or(Ok(scores.clone()), |mask| scores.broadcast_add(mask))?.to_dtype(DType::F32)?;
        let shares = softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        let out = shares.reshape((self.kv_heads, group * tokens, all))?.matmul(v)?;
        Ok(out.reshape((self.heads, tokens, self.head_dim))?.transpose(0, 1)?.contiguous()?)
    }
}

/// (1, tokens, heads, head_dim) to (heads, tokens, head_dim), contiguous.
fn by_head(x: &Tensor) -> candle_core::Result<Tensor> {
    x.squeeze(0)?.transpose(0, 1)?.contiguous()
}
