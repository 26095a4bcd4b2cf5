//! Causal attention with grouped key-value heads, rotary position embeddings and optional norms of queries and keys. The cache
//! grows by doubling and survives a reset.

use anyhow::Result;
use candle_core::{CpuStorage, D, DType, Device, InplaceOp1, Layout, Tensor, bail};
use candle_nn::{
    Linear, Module, VarBuilder,
    attention::{AttnMask, flash_attn},
    linear_b,
    ops::{rms_norm, softmax_last_dim},
    rotary_emb::rope_thd,
};
use rayon::prelude::*;

use crate::{kernels::is_plain, model::config::ModelConfig};

/// Queries per product with the keys, in f32 on a CPU. Few queries skip most of the keys after them, which they do not see;
/// many make an efficient product.
const QUERIES: usize = 128;

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
    /// Computes the angles in f32 as transformers does: `position · theta^(-2i / head_dim)`.
    pub fn new(config: &ModelConfig, position: usize, tokens: usize, dtype: DType, device: &Device) -> Result<Self> {
        let half = config.head_dim / 2;
        let theta = config.rope.theta as f32;
        let frequencies: Vec<f32> =
            (0..half).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / config.head_dim as f32)).collect();
        let positions = position..position + tokens;
        let (sin, cos): (Vec<f32>, Vec<f32>) = positions
            .flat_map(|position| frequencies.iter().map(move |frequency| (position as f32 * frequency).sin_cos()))
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

/// Keys and values, of shape (1, capacity, heads, head_dim) for the CPU kernels in f32, and (heads, capacity, head_dim)
/// elsewhere, where products read them without a copy.
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
        let qk_norms = (config.family.has_qk_norm)
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
    /// [`causal_mask`]; a CPU in f32 and a single token need none.
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
        let has_kernel = is_plain(x);
        let (k, v) = if has_kernel { (k, v) } else { (by_head(&k)?, by_head(&v)?) };
        let (k, v) = self.append(&k, &v, position)?;
        let scale = (self.head_dim as f32).sqrt().recip();
        let heads = match (has_kernel, tokens) {
            (false, _) => self.plain(&q, &k, &v, f64::from(scale), mask)?,
            // (1, heads, 1, head_dim)
            (true, 1) => flash_attn::<f32>(&q, &k, &v, scale, AttnMask::causal_with_offset(position), None, None)?,
            (true, _) => self.blocked(&q, &k, &v, scale, position)?,
        };
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

    /// Attention by matrix products over [`QUERIES`] queries at a time, in f32 on a CPU. Returns (tokens, heads, head_dim).
    fn blocked(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, position: usize) -> Result<Tensor> {
        let tokens = q.dim(1)?;
        let group = self.heads / self.kv_heads;
        let by_head = |x: &Tensor| x.squeeze(0)?.transpose(0, 1);
        let (q, k, v) = (by_head(q)?, by_head(k)?.contiguous()?, by_head(v)?.contiguous()?);
        let mut blocks = Vec::new();
        for first in (0..tokens).step_by(QUERIES) {
            let count = QUERIES.min(tokens - first);
            let seen = position + first + count;
            // Query heads that share a key-value head are adjacent, so one product computes them.
            let q = q.narrow(1, first, count)?.contiguous()?.reshape((self.kv_heads, group * count, self.head_dim))?;
            let scores = q.matmul(&k.narrow(1, 0, seen)?.transpose(1, 2)?)?;
            scores.inplace_op1(&CausalSoftmax { queries: count, first_sees: seen - count + 1, scale })?;
            let out = scores.matmul(&v.narrow(1, 0, seen)?)?;
            blocks.push(out.reshape((self.heads, count, self.head_dim))?.transpose(0, 1)?.contiguous()?);
        }
        Ok(Tensor::cat(&blocks, 0)?)
    }

    /// Attention by matrix products on any device and in any dtype, for keys and values (kv_heads, all, head_dim). Returns
    /// (tokens, heads, head_dim).
    fn plain(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
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

/// Softmax in place over the last dimension of scores times `scale`. Query `i` sees the first `first_sees + i` scores; the
/// others become 0. Rows are the queries of one head after another.
struct CausalSoftmax {
    queries: usize,
    first_sees: usize,
    scale: f32,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (Some((start, end)), CpuStorage::F32(scores)) = (layout.contiguous_offsets(), scores) else {
            bail!("contiguous f32 is needed")
        };
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let row = |(number, row): (usize, &mut [f32])| {
            let (seen, rest) = row.split_at_mut(self.first_sees + number % self.queries);
            let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in seen.iter_mut() {
                *score = ((*score - most) * self.scale).exp();
                sum += *score;
            }
            seen.iter_mut().for_each(|score| *score /= sum);
            rest.fill(0.0);
        };
        scores[start..end].par_chunks_mut(width).enumerate().with_min_len(16).for_each(row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::VarMap;

    /// The three implementations agree for partial blocks and at positions above 0.
    #[test]
    fn implementations_agree() {
        let config = crate::model::decoder::shape::mixture(4, 1).expect("a shape");
        let weights = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
        let attention = Attention::load(&config, weights).expect("attention");
        let random = |tokens: usize, heads: usize| {
            Tensor::randn(0f32, 1f32, (1, tokens, heads, config.head_dim), &Device::Cpu).expect("numbers")
        };
        for (tokens, position) in [(1, 0), (2, 5), (QUERIES + 1, 0), (2 * QUERIES + 3, 70)] {
            let q = random(tokens, config.num_attention_heads);
            let k = random(position + tokens, config.num_key_value_heads);
            let v = random(position + tokens, config.num_key_value_heads);
            let mask = causal_mask(position, tokens, DType::F32, &Device::Cpu).expect("a mask");
            let numbers = |x: Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("numbers");
            let (keys, values) = (by_head(&k).expect("keys"), by_head(&v).expect("values"));
            let plain = numbers(attention.plain(&q, &keys, &values, 0.125, Some(&mask)).expect("plain"));
            let blocked = numbers(attention.blocked(&q, &k, &v, 0.125, position).expect("blocked"));
            let flash = flash_attn::<f32>(&q, &k, &v, 0.125, AttnMask::causal_with_offset(position), None, None);
            let flash = numbers(flash.and_then(|x| x.transpose(1, 2)?.contiguous()).expect("flash"));
            for other in [blocked, flash] {
                let worst = plain.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{tokens} tokens at {position}: {worst}");
            }
        }
    }
}
