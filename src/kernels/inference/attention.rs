//! Causal attention with grouped heads over the [pages](super::cache) of some sequences.
//!
//! Pages have the layout of packed weights. So scores and weighted values are products with panels, for any number of query
//! heads that share a key-value head: each key and value is read once for all of them. The softmax is computed block by block of
//! positions, with the largest score and the sum so far, so that no row of scores is held as a whole.
//!
//! Queries and shares have the type that keys and values are multiplied with: f32 where these are FP8.

use std::ops::Range;

use super::{
    Machine,
    cache::{Head, Heads, PAGE, Region, Span},
    element::{Element, Operand},
    fused::Angles,
    packed::{PANEL, Rows, STEP, Start, Sums},
    pool::Parts,
    simd::{Kernel, Simd},
};

/// Positions whose scores are computed before their softmax: some pages.
const BLOCK: usize = 4 * PAGE;

/// Rows of queries of a task, about.
const QUERIES: usize = 48;

/// The constants of attention in a layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads, a multiple of the heads of the cache.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Scores are then `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Positions that a token sees, its own included; `None` for all.
    pub window: Option<usize>,
    /// For each query head, a score that takes part in the softmax but has no value (attention sink); empty if there are none.
    pub sinks: Vec<f32>,
}

/// How the attention of a span is divided into tasks, for each key-value head.
struct Division {
    /// Chunks of tokens.
    chunks: usize,
    /// Parts of the blocks that a single chunk sees. Their results are merged.
    splits: usize,
    /// Place of the results of splits.
    partials: usize,
}

/// Attention of some tokens of a span for one key-value head.
struct Task<'a, C> {
    span: &'a Span<C>,
    head: usize,
    /// Numbers of the tokens in the span.
    tokens: Range<usize>,
    /// Positions that any of the tokens sees.
    seen: Range<usize>,
    /// Blocks of positions that the task adds up.
    blocks: Range<usize>,
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

    /// Adds the results of tasks that have the same rows, each in the layout of [`Self::new`].
    fn merge(&mut self, parts: &[f32]) {
        let (rows, width) = (self.sum.len(), self.width);
        for row in 0..rows {
            let parts = || {
                let parts = parts.chunks_exact(Self::len(rows, width));
                parts.filter(|part| part[rows + row] > 0.0 || part[rows + row].is_nan())
            };
            let most = parts().map(|part| part[row]).fold(f32::NEG_INFINITY, f32::max);
            self.most[row] = most;
            for part in parts() {
                let share = (part[row] - most).exp();
                self.sum[row] += share * part[rows + row];
                let values = &part[2 * rows + row * width..][..width];
                let merged = &mut self.values[row * width..][..width];
                merged.iter_mut().zip(values).for_each(|(merged, value)| *merged += share * value);
            }
        }
    }
}

/// The blocks that contain some positions.
fn blocks_of(positions: &Range<usize>) -> Range<usize> {
    positions.start / BLOCK..positions.end.div_ceil(BLOCK)
}

impl Attention {
    /// Attention of the tokens of `spans`, whose keys and values are in the region. The rows of the tokens follow each other in
    /// `queries` and in `out`. The results, (tokens, heads, head_dim), are [`Rows::stride_of`] a row apart.
    ///
    /// # Panics
    /// If sizes are inconsistent.
    pub fn apply<E: Element, C: Operand>(
        &self,
        machine: &Machine,
        (spans, region): (&[Span<C>], Region),
        queries: Heads,
        angles: &Angles,
        out: &mut [E],
    ) {
        let Region { heads: kv_heads, head_dim, .. } = region;
        let (group, row_len) = (self.heads / kv_heads, self.heads * head_dim);
        let rows = queries.values.len() / row_len;
        let out_stride = Rows::<E>::stride_of(row_len);
        assert!(
            queries.values.len() == rows * row_len && out.len() >= rows * out_stride && Span::count_rows(spans) <= rows,
            "sizes of queries differ"
        );
        assert!(spans.iter().all(Span::fits), "keys are missing");
        let width = head_dim.next_multiple_of(STEP);
        let partial_len = |tokens: usize| Partial::len(group * tokens, width);
        // Tokens of a task, of whose heads those of one group are computed together.
        let count = (QUERIES / group).max(1);
        let mut partials_len = 0;
        let divisions = self.divide(spans, count, 2 * machine.threads(), kv_heads, |tokens, splits| {
            let place = partials_len;
            partials_len += kv_heads * splits * partial_len(tokens);
            place
        });
        let mut partials = vec![0f32; partials_len];
        let (all_partials, out) = (Parts::new(&mut partials), Parts::new(out));
        let finish = |partial: &Partial, first_row: usize, head: usize| {
            let rows = partial.most.iter().zip(&*partial.sum).zip(partial.values.chunks_exact(width));
            for (row, ((most, sum), values)) in rows.enumerate() {
                let own = head * group + row % group;
                let sink = self.sinks.get(own).map_or(0.0, |sink| (sink - most).exp());
                let sum = (sum + sink) / C::SCALE;
                let place = (first_row + row / group) * out_stride + own * head_dim;
                // SAFETY: each task has its own tokens or heads, so that the parts of tasks do not overlap.
                let out = unsafe { out.get(place..place + head_dim) };
                out.iter_mut().zip(values).for_each(|(out, value)| *out = E::from_f32(value / sum));
            }
        };
        let tasks = |division: &Division| division.chunks * division.splits * kv_heads;
        machine.pool.run(divisions.iter().map(tasks).sum(), |mut number| {
            let mut which = 0;
            while number >= tasks(&divisions[which]) {
                number -= tasks(&divisions[which]);
                which += 1;
            }
            let (span, Division { chunks, splits, partials }) = (&spans[which], &divisions[which]);
            // The last tokens see the most, so they come first.
            let chunk = chunks - 1 - number / (kv_heads * splits);
            let (head, split) = (number / splits % kv_heads, number % splits);
            let tokens = chunk * count..span.rows.len().min((chunk + 1) * count);
            let seen = self.seen(span, &tokens);
            let blocks = blocks_of(&seen);
            let share = |split: usize| blocks.start + blocks.len() * split / splits;
            let (len, first_row) = (partial_len(tokens.len()), span.rows.start + tokens.start);
            let task = Task { span, head, tokens, seen, blocks: share(split)..share(split + 1) };
            let run = |memory: &mut [f32]| {
                let mut partial = Partial::new(memory, width);
                self.add_blocks(machine, &task, region, queries, angles, &mut partial);
                if *splits == 1 {
                    finish(&partial, first_row, head);
                }
            };
            if *splits == 1 {
                f32::scratch(len, run);
            } else {
                let place = partials + (head * splits + split) * len;
                // SAFETY: each task has its own part.
                run(unsafe { all_partials.get(place..place + len) });
            }
        });
        for (span, Division { splits, partials: place, .. }) in spans.iter().zip(&divisions) {
            if *splits > 1 {
                let len = partial_len(span.rows.len());
                for (head, parts) in partials[*place..].chunks_exact(splits * len).take(kv_heads).enumerate() {
                    f32::scratch(len, |memory| {
                        let mut merged = Partial::new(memory, width);
                        merged.merge(parts);
                        finish(&merged, span.rows.start, head);
                    });
                }
            }
        }
    }

    /// The positions that any of some tokens of a span sees.
    fn seen<C: Operand>(&self, span: &Span<C>, tokens: &Range<usize>) -> Range<usize> {
        let position = span.sequence.tokens();
        let first = position + tokens.start;
        self.window.map_or(0, |window| (first + 1).saturating_sub(window))..position + tokens.end
    }

    /// Divides spans into chunks of `count` tokens. If a chunk is all of its span, as in decoding, there may be too few tasks for
    /// all threads: then each task sees a part of the blocks, so that there are about `tasks` in all. `place` returns the place
    /// of the results of splits, for the number of tokens and of splits.
    fn divide<C: Operand>(
        &self,
        spans: &[Span<C>],
        count: usize,
        tasks: usize,
        kv_heads: usize,
        mut place: impl FnMut(usize, usize) -> usize,
    ) -> Vec<Division> {
        let chunks_of = |span: &Span<C>| span.rows.len().div_ceil(count);
        let blocks_of = |span: &Span<C>| blocks_of(&self.seen(span, &(0..span.rows.len()))).len();
        let all: usize = spans.iter().map(|span| chunks_of(span) * blocks_of(span)).sum();
        let divide = |span: &Span<C>| {
            let (chunks, blocks) = (chunks_of(span), blocks_of(span));
            let splits = if chunks == 1 { (tasks * blocks).div_ceil(kv_heads * all).min(blocks) } else { 1 };
            Division { chunks, splits, partials: if splits > 1 { place(span.rows.len(), splits) } else { 0 } }
        };
        spans.iter().map(divide).collect()
    }

    /// Adds the positions of the task's blocks to its results.
    fn add_blocks<C: Operand>(
        &self,
        machine: &Machine,
        task: &Task<C>,
        region: Region,
        queries: Heads,
        angles: &Angles,
        partial: &mut Partial,
    ) {
        let Task { span, head, tokens, seen, blocks } = task;
        let (head_dim, position) = (region.head_dim, span.sequence.tokens());
        let (group, stride) = (self.heads / region.heads, Rows::<C::Factor>::stride_of(head_dim));
        let per_group = <C::Factor as Element>::GROUP;
        let rows = group * tokens.len();
        <C::Factor as Element>::scratch(rows * (stride + BLOCK), |memory| {
            let (turned, shares) = memory.split_at_mut(rows * stride);
            for (place, out) in turned.chunks_exact_mut(stride).enumerate() {
                let (row, own) = (span.rows.start + tokens.start + place / group, head * group + place % group);
                let head = &queries.values[(row * self.heads + own) * head_dim..][..head_dim];
                out[head_dim..].fill(Default::default());
                machine.dispatch.run(Head { head, norm: queries.norm, angles, row, out: &mut out[..head_dim] });
                angles.scale(row, &mut out[..head_dim]);
            }
            f32::scratch(rows * BLOCK, |scores| {
                for first in blocks.clone().map(|block| block * BLOCK) {
                    // Positions of the block from the page of the first that is seen.
                    let from = seen.start.saturating_sub(first) / PAGE * PAGE;
                    let to = BLOCK.min(seen.end - first);
                    let pages = || (from..to).step_by(PAGE).map(move |at| (at - from, span.sequence.page(first + at)));
                    for (at, page) in pages() {
                        machine.dispatch.run(Sums {
                            x: turned,
                            stride,
                            step: per_group,
                            rows,
                            panel: &page[region.keys(*head)],
                            width: PAGE,
                            groups: stride / per_group,
                            out: Parts::new(&mut scores[at..]),
                            out_stride: BLOCK,
                            start: Start::Zero,
                        });
                    }
                    machine.dispatch.run(Softmax {
                        scores: &mut *scores,
                        shares: &mut *shares,
                        partial: &mut *partial,
                        scale: self.scale * C::SCALE,
                        soft_cap: self.soft_cap,
                        count: to - from,
                        sees: |row: usize| {
                            let token = position + tokens.start + row / group;
                            let start = self.window.map_or(0, |window| (token + 1).saturating_sub(window));
                            let relative = |place: usize| place.saturating_sub(first + from).min(to - from);
                            (relative(start), relative(token + 1))
                        },
                    });
                    for (at, page) in pages() {
                        let panels = page[region.values(*head)].chunks(PANEL * PAGE);
                        for (panel, element) in panels.zip((0..).step_by(PANEL)) {
                            machine.dispatch.run(Sums {
                                x: &shares[at..],
                                stride: BLOCK,
                                step: per_group,
                                rows,
                                panel,
                                width: panel.len() / PAGE,
                                groups: PAGE.min(to - from - at).div_ceil(per_group),
                                out: Parts::new(&mut partial.values[element..]),
                                out_stride: partial.width,
                                start: Start::Out,
                            });
                        }
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
    soft_cap: Option<f32>,
    count: usize,
    /// The range of scores that a row sees.
    sees: F,
}

impl<E: Element, F: Fn(usize) -> (usize, usize)> Kernel for Softmax<'_, '_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { scores, shares, partial, scale, soft_cap, count, sees } = self;
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
            let scale = match soft_cap {
                None => scale,
                Some(cap) => {
                    // tanh(x) = 2 / (1 + exp(-2x)) - 1
                    let factor = -2.0 * scale / cap;
                    scores
                        .iter_mut()
                        .for_each(|score| *score = cap * (2.0 / (1.0 + crate::exp(factor * *score)) - 1.0));
                    1.0
                }
            };
            let old = partial.most[row];
            let most = old.max(scale * largest(scores));
            scores.iter_mut().for_each(|score| *score = crate::exp(*score * scale - most));
            shares[start..end].iter_mut().zip(&*scores).for_each(|(share, score)| *share = E::from_f32(*score));
            shares[end..].fill(E::default());
            let keep = if old == most { 1.0 } else { crate::exp(old - most) };
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
