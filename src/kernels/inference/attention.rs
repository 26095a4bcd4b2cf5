//! Causal attention with grouped heads over a cache of keys and values.
//!
//! The cache has the layout of packed weights: keys are panels whose outputs are positions, values are panels whose inputs are
//! positions. So scores and weighted values are products with panels, for any number of query heads that share a key-value
//! head: each key and value is read once for all of them. The softmax is computed block by block of positions, with the largest
//! score and the sum so far, so that no row of scores is held as a whole.

use super::{
    Machine,
    element::Element,
    fused::{Angles, RowNorm},
    memory::Buffer,
    packed::{PANEL, Rows, Sums, place},
    pool::Parts,
    simd::{Kernel, Simd},
};

/// Positions of a block of the cache. A multiple of [`PANEL`].
const BLOCK: usize = 256;

/// Rows of queries of a task, about.
const QUERIES: usize = 48;

/// Heads are padded to a multiple of this in the panels of values.
const STEP: usize = 16;

/// Keys and values of one sequence in one layer. It grows block by block; nothing is copied.
pub struct Cache<E> {
    heads: usize,
    head_dim: usize,
    blocks: Vec<Block<E>>,
}

struct Block<E> {
    /// For each head, panels of positions.
    keys: Buffer<E>,
    /// For each head, panels of elements.
    values: Buffer<E>,
}

/// Heads of the tokens of a forward pass.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// (tokens, heads, head_dim)
    pub values: &'a [f32],
    /// The norm of each head.
    pub norm: Option<&'a RowNorm>,
}

/// Computes a head as it is multiplied: with its norm, at its position.
struct Head<'a, E> {
    head: &'a [f32],
    norm: Option<&'a RowNorm>,
    angles: &'a Angles,
    token: usize,
    /// The head, of which each element takes `step` places.
    out: &'a mut [E],
}

impl<E: Element> Kernel for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        f32::scratch(self.head.len(), |head| {
            head.copy_from_slice(self.head);
            if let Some(norm) = self.norm {
                norm.apply(head);
                head.iter_mut().for_each(|value| *value = E::round(*value));
            }
            self.angles.turn(self.token, head);
            self.out.iter_mut().zip(&*head).for_each(|(out, value)| *out = E::from_f32(*value));
        });
    }
}

impl<E: Element> Cache<E> {
    /// An empty cache for this many key-value heads.
    pub fn new(heads: usize, head_dim: usize) -> Self {
        Self { heads, head_dim, blocks: Vec::new() }
    }

    /// Elements that caches allocate for a sequence of `tokens`.
    pub fn allocated(heads: usize, head_dim: usize, tokens: usize) -> usize {
        let empty = Self::new(heads, head_dim);
        tokens.div_ceil(BLOCK) * heads * (empty.key_len() + empty.value_len())
    }

    fn key_len(&self) -> usize {
        self.head_dim.next_multiple_of(E::GROUP) * BLOCK
    }

    fn value_len(&self) -> usize {
        self.head_dim.next_multiple_of(STEP) * BLOCK
    }

    /// The panel of keys of `PANEL` positions of a block.
    fn keys(&self, block: usize, head: usize, panel: usize) -> &[E] {
        let len = self.key_len();
        &self.blocks[block].keys[head * len..][..len][panel * PANEL * (len / BLOCK)..]
    }

    /// The panels of values of a block, with the first element and the width of each.
    fn values(&self, block: usize, head: usize) -> impl Iterator<Item = (&[E], usize, usize)> {
        let len = self.value_len();
        let values = &self.blocks[block].values[head * len..][..len];
        values.chunks(PANEL * BLOCK).enumerate().map(|(number, panel)| (panel, number * PANEL, panel.len() / BLOCK))
    }

    /// Writes the keys and values of tokens from `position` on; positions after them become unused.
    ///
    /// # Panics
    /// If sizes are inconsistent.
    pub fn append(&mut self, machine: &Machine, keys: Heads, values: &[f32], angles: &Angles, position: usize) {
        let Self { heads, head_dim, .. } = *self;
        let width = heads * head_dim;
        let tokens = values.len() / width;
        assert!(
            keys.values.len() == tokens * width && values.len() == tokens * width,
            "sizes of keys and values differ"
        );
        while self.blocks.len() * BLOCK < position + tokens {
            let (keys, values) = (heads * self.key_len(), heads * self.value_len());
            self.blocks.push(Block { keys: Buffer::zeroed(keys), values: Buffer::zeroed(values) });
        }
        let (key_len, value_len) = (self.key_len(), self.value_len());
        let blocks: Vec<_> = (self.blocks.iter_mut())
            .map(|block| (Parts::new(&mut block.keys), Parts::new(&mut block.values)))
            .collect();
        let append = |head: usize| {
            E::scratch(head_dim, |key| {
                for token in 0..tokens {
                    let own = token * width + head * head_dim..token * width + (head + 1) * head_dim;
                    let (block, at) = ((position + token) / BLOCK, (position + token) % BLOCK);
                    let (head_keys, head_values) = &blocks[block];
                    // SAFETY: each task has its own head, so that the parts of tasks do not overlap.
                    let (head_keys, head_values) = unsafe {
                        (
                            head_keys.get(head * key_len..(head + 1) * key_len),
                            head_values.get(head * value_len..(head + 1) * value_len),
                        )
                    };
                    let Heads { values: all, norm } = keys;
                    machine.dispatch.run(Head { head: &all[own.clone()], norm, angles, token, out: key });
                    let panel = &mut head_keys[at / PANEL * PANEL * (key_len / BLOCK)..];
                    for (element, key) in key.iter().enumerate() {
                        panel[place::<E>(PANEL, at % PANEL, element)] = *key;
                    }
                    for (number, values) in values[own].chunks(PANEL).enumerate() {
                        let width = PANEL.min(head_dim.next_multiple_of(STEP) - number * PANEL);
                        let panel = &mut head_values[number * PANEL * BLOCK..];
                        for (element, value) in values.iter().enumerate() {
                            panel[place::<E>(width, element, at)] = E::from_f32(*value);
                            // The others of its group are multiplied with zeros, so they must be finite.
                            for later in at + 1..(at + 1).next_multiple_of(E::GROUP) {
                                panel[place::<E>(width, element, later)] = E::default();
                            }
                        }
                    }
                }
            });
        };
        match tokens {
            0..8 => (0..heads).for_each(append),
            _ => machine.pool.run(heads, append),
        }
    }
}

/// The constants of attention in a layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads, a multiple of the heads of the cache.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Positions that a token sees, its own included; `None` for all.
    pub window: Option<usize>,
}

/// The softmax of one task so far: for each row, the largest score, the sum of exponentials, and the weighted values.
struct Partial<'a> {
    most: &'a mut [f32],
    sum: &'a mut [f32],
    /// `width` elements for each row.
    values: &'a mut [f32],
    width: usize,
}

impl<'a> Partial<'a> {
    fn len(rows: usize, width: usize) -> usize {
        rows * (width + 2)
    }

    fn new(memory: &'a mut [f32], width: usize) -> Self {
        let rows = memory.len() / (width + 2);
        let (most, rest) = memory.split_at_mut(rows);
        let (sum, values) = rest.split_at_mut(rows);
        most.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        values.fill(0.0);
        Self { most, sum, values, width }
    }
}

impl Attention {
    /// Attention of tokens from `position` on, whose keys and values are in the cache. The results, (tokens, heads, head_dim), are
    /// rows of `out`, [`Rows::stride_of`] a row apart.
    ///
    /// # Panics
    /// If sizes are inconsistent.
    pub fn apply<E: Element>(
        &self,
        machine: &Machine,
        queries: Heads,
        angles: &Angles,
        cache: &Cache<E>,
        position: usize,
        out: &mut [E],
    ) {
        let Cache { heads: kv_heads, head_dim, .. } = *cache;
        let (group, row_len) = (self.heads / kv_heads, self.heads * head_dim);
        let tokens = queries.values.len() / row_len;
        let out_stride = Rows::<E>::stride_of(row_len);
        assert!(
            queries.values.len() == tokens * row_len && out.len() >= tokens * out_stride,
            "sizes of queries differ"
        );
        assert!(cache.blocks.len() * BLOCK >= position + tokens, "keys are missing");
        let width = head_dim.next_multiple_of(STEP);
        // Tokens of a task, of whose heads those of one group are computed together.
        let count = (QUERIES / group).max(1);
        let seen = |first: usize, last: usize| {
            let start = self.window.map_or(0, |window| (position + first + 1).saturating_sub(window));
            (start, position + last + 1)
        };
        // A single token has few tasks: then each task sees a part of the blocks, and their results are merged.
        let chunks = tokens.div_ceil(count);
        let (start, end) = seen(0, tokens.saturating_sub(1));
        let blocks = end.div_ceil(BLOCK) - start / BLOCK;
        let splits = if chunks == 1 { (2 * machine.threads()).div_ceil(kv_heads).min(blocks) } else { 1 };
        let rows = group * count.min(tokens);
        let finish = |partial: &Partial, first: usize, head: usize, out: &Parts<E>| {
            for (row, (sum, values)) in partial.sum.iter().zip(partial.values.chunks_exact(width)).enumerate() {
                let place = (first + row / group) * out_stride + (head * group + row % group) * head_dim;
                // SAFETY: each task has its own tokens or heads, so that the parts of tasks do not overlap.
                let out = unsafe { out.get(place..place + head_dim) };
                out.iter_mut().zip(values).for_each(|(out, value)| *out = E::from_f32(value / sum));
            }
        };
        let out = Parts::new(out);
        let mut partials = vec![0f32; if splits > 1 { kv_heads * splits * Partial::len(rows, width) } else { 0 }];
        let partials_parts = Parts::new(&mut partials);
        machine.pool.run(chunks * kv_heads * splits, |task| {
            // The last tokens see the most, so they come first.
            let chunk = chunks - 1 - task / (kv_heads * splits);
            let (head, split) = (task / splits % kv_heads, task % splits);
            let (first, last) = (chunk * count, tokens.min((chunk + 1) * count) - 1);
            let (start, end) = seen(first, last);
            let blocks = start / BLOCK..end.div_ceil(BLOCK);
            let share = |split: usize| blocks.start + blocks.len() * split / splits;
            let run = |memory: &mut [f32]| {
                let mut partial = Partial::new(memory, width);
                let seen = start..end;
                let own = share(split)..share(split + 1);
                self.blocks(machine, queries, angles, cache, (position, first, last), head, (own, seen), &mut partial);
                if splits == 1 {
                    finish(&partial, first, head, &out);
                }
            };
            let len = Partial::len(group * (last + 1 - first), width);
            if splits == 1 {
                f32::scratch(len, run);
            } else {
                let number = head * splits + split;
                // SAFETY: each task has its own part.
                run(unsafe { partials_parts.get(number * len..(number + 1) * len) });
            }
        });
        if splits > 1 {
            let len = Partial::len(rows, width);
            for (head, parts) in partials.chunks_exact(splits * len).enumerate() {
                f32::scratch(len, |memory| {
                    let merged = Partial::new(memory, width);
                    for row in 0..rows {
                        let parts = || {
                            parts.chunks_exact(len).filter(|part| part[rows + row] > 0.0 || part[rows + row].is_nan())
                        };
                        let most = parts().map(|part| part[row]).fold(f32::NEG_INFINITY, f32::max);
                        for part in parts() {
                            let share = (part[row] - most).exp();
                            merged.sum[row] += share * part[rows + row];
                            let values = &part[2 * rows + row * width..][..width];
                            let merged = &mut merged.values[row * width..][..width];
                            merged.iter_mut().zip(values).for_each(|(merged, value)| *merged += share * value);
                        }
                    }
                    finish(&merged, 0, head, &out);
                });
            }
        }
    }

    /// Adds the positions of some blocks to the results of the tokens `first` to `last` for one key-value head.
    #[expect(clippy::too_many_arguments, reason = "the parts of one task")]
    fn blocks<E: Element>(
        &self,
        machine: &Machine,
        queries: Heads,
        angles: &Angles,
        cache: &Cache<E>,
        (position, first, last): (usize, usize, usize),
        head: usize,
        (blocks, seen): (std::ops::Range<usize>, std::ops::Range<usize>),
        partial: &mut Partial,
    ) {
        let head_dim = cache.head_dim;
        let (group, stride) = (self.heads / cache.heads, Rows::<E>::stride_of(head_dim));
        let rows = group * (last + 1 - first);
        E::scratch(rows * (stride + BLOCK), |memory| {
            let (turned, shares) = memory.split_at_mut(rows * stride);
            for (row, out) in turned.chunks_exact_mut(stride).enumerate() {
                let (token, own) = (first + row / group, head * group + row % group);
                let head = &queries.values[(token * self.heads + own) * head_dim..][..head_dim];
                out[head_dim..].fill(E::default());
                machine.dispatch.run(Head { head, norm: queries.norm, angles, token, out: &mut out[..head_dim] });
            }
            f32::scratch(rows * BLOCK, |scores| {
                for block in blocks {
                    // Positions of the block from the panel of the first that is seen.
                    let from = seen.start.saturating_sub(block * BLOCK) / PANEL * PANEL;
                    let to = BLOCK.min(seen.end - block * BLOCK);
                    for panel in from / PANEL..to.div_ceil(PANEL) {
                        machine.dispatch.run(Sums {
                            x: turned,
                            stride,
                            step: E::GROUP,
                            rows,
                            panel: cache.keys(block, head, panel),
                            width: PANEL,
                            groups: stride / E::GROUP,
                            out: Parts::new(&mut scores[panel * PANEL - from..]),
                            out_stride: BLOCK,
                            add: false,
                        });
                    }
                    machine.dispatch.run(Softmax {
                        scores: &mut *scores,
                        shares: &mut *shares,
                        partial: &mut *partial,
                        scale: self.scale,
                        count: to - from,
                        sees: |row: usize| {
                            let token = position + first + row / group;
                            let start = self.window.map_or(0, |window| (token + 1).saturating_sub(window));
                            let relative = |place: usize| place.saturating_sub(block * BLOCK + from).min(to - from);
                            (relative(start), relative(token + 1))
                        },
                    });
                    for (values, element, width) in cache.values(block, head) {
                        machine.dispatch.run(Sums {
                            x: shares,
                            stride: BLOCK,
                            step: E::GROUP,
                            rows,
                            panel: &values[from * width..],
                            width,
                            groups: (to - from).div_ceil(E::GROUP),
                            out: Parts::new(&mut partial.values[element..]),
                            out_stride: partial.width,
                            add: true,
                        });
                    }
                }
            });
        });
    }
}

/// Continues the softmax of some rows with a block of scores.
struct Softmax<'a, 'b, E, F> {
    /// [`BLOCK`] for each row, of which `count` are used.
    scores: &'a mut [f32],
    /// The exponentials; zeros where a row does not see.
    shares: &'a mut [E],
    partial: &'a mut Partial<'b>,
    scale: f32,
    count: usize,
    /// The range of scores that a row sees.
    sees: F,
}

impl<E: Element, F: Fn(usize) -> (usize, usize)> Kernel for Softmax<'_, '_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { scores, shares, partial, scale, count, sees } = self;
        let rows =
            scores.chunks_exact_mut(BLOCK).zip(shares.chunks_exact_mut(BLOCK)).take(partial.sum.len()).enumerate();
        for (row, (scores, shares)) in rows {
            let (start, end) = sees(row);
            shares[..start.min(count)].fill(E::default());
            let shares = &mut shares[..count.next_multiple_of(E::GROUP)];
            if start >= end {
                shares.fill(E::default());
                continue;
            }
            let scores = &mut scores[start..end];
            let old = partial.most[row];
            let most = old.max(scale * largest(scores));
            scores.iter_mut().for_each(|score| *score = crate::kernels::exp(*score * scale - most));
            shares[start..end].iter_mut().zip(&*scores).for_each(|(share, score)| *share = E::from_f32(*score));
            shares[end..].fill(E::default());
            let keep = if old == most { 1.0 } else { crate::kernels::exp(old - most) };
            partial.most[row] = most;
            partial.sum[row] = partial.sum[row] * keep + total(scores);
            if keep != 1.0 {
                partial.values[row * partial.width..][..partial.width].iter_mut().for_each(|value| *value *= keep);
            }
        }
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, value| if *value > most { *value } else { most })
}

#[inline(always)]
fn total(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
