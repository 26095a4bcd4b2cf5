//! Keys and values of several sequences, in pages.
//!
//! A page holds [`PAGE`] positions of a sequence in all layers. In it, the keys and the values of one head in one layer have the
//! layout of packed weights: keys are a panel whose outputs are positions, values are panels whose inputs are positions. So a
//! sequence grows page by page, and nothing is copied.
//!
//! Sequences that begin with the same tokens share pages, which are counted references. Only full pages are shared. They are
//! never written again, because a sequence only grows: [`Region::append`] writes to no page that has a second reference.
//!
//! The type `C` of keys and values is that of activations or [`F8E4M3`](super::F8E4M3). FP8 has no scales here: its numbers reach
//! from 1/512 to 448, which holds the keys and values of usual models, and a scale would not make it more precise in between.
//! Larger numbers and NaN become 448.

use std::{ops::Range, sync::Arc};

use super::{
    Machine,
    element::{Element, Operand},
    fused::{Angles, RowNorm},
    memory::Buffer,
    packed::{PANEL, STEP, place},
    pool::Parts,
    simd::{Kernel, Simd},
};

/// Positions of a page: the outputs of a panel of keys.
pub const PAGE: usize = PANEL;

type Page<C> = Arc<Buffer<C>>;

/// The part of each page that holds one layer.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Key-value heads.
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    start: usize,
    /// Elements of the keys and of the values of one head.
    key_len: usize,
    value_len: usize,
}

impl Region {
    /// The region of the first layer.
    fn first<C: Operand>(heads: usize, head_dim: usize) -> Self {
        let key_len = PAGE * head_dim.next_multiple_of(<C::Factor as Element>::GROUP);
        let value_len = PAGE * head_dim.next_multiple_of(STEP);
        Self { heads, head_dim, start: 0, key_len, value_len }
    }

    fn len(&self) -> usize {
        self.heads * (self.key_len + self.value_len)
    }

    /// The panel of keys of one head.
    pub(super) fn keys(&self, head: usize) -> Range<usize> {
        let start = self.start + head * (self.key_len + self.value_len);
        start..start + self.key_len
    }

    /// The panels of values of one head: [`PANEL`] elements each, the last may have fewer.
    pub(super) fn values(&self, head: usize) -> Range<usize> {
        let start = self.keys(head).end;
        start..start + self.value_len
    }

    /// Writes the keys and values of the tokens of `spans`, whose rows follow each other in `keys` and `values`.
    ///
    /// # Panics
    /// If sizes are inconsistent, or a sequence has no room for its tokens.
    pub fn append<C: Operand>(
        &self,
        machine: &Machine,
        spans: &mut [Span<C>],
        keys: Heads,
        values: &[f32],
        angles: &Angles,
    ) {
        let Self { heads, head_dim, .. } = *self;
        let width = heads * head_dim;
        let rows = values.len() / width;
        assert!(
            keys.values.len() == values.len() && Span::count_rows(spans) <= rows,
            "sizes of keys and values differ"
        );
        // The pages that are written, with their rows and the place of the first row.
        let targets: Vec<_> = spans.iter_mut().flat_map(Span::targets).collect();
        let append = |task: usize| {
            let ((page, rows, first), head) = (&targets[task / heads], task % heads);
            // SAFETY: each task has its own page or its own head, so that the parts of tasks do not overlap.
            let (panel, value_panels) = unsafe { (page.get(self.keys(head)), page.get(self.values(head))) };
            <C::Factor as Element>::scratch(head_dim, |key| {
                for (row, at) in rows.clone().zip(*first..) {
                    let own = row * width + head * head_dim..row * width + (head + 1) * head_dim;
                    let Heads { values: all, norm } = keys;
                    machine.dispatch.run(Head { head: &all[own.clone()], norm, angles, row, out: key });
                    for (element, key) in key.iter().enumerate() {
                        panel[place::<C::Factor>(PANEL, at, element)] = C::stored(key.to_f32());
                    }
                    for (values, panel) in values[own].chunks(PANEL).zip(value_panels.chunks_mut(PANEL * PAGE)) {
                        let width = panel.len() / PAGE;
                        for (element, value) in values.iter().enumerate() {
                            panel[place::<C::Factor>(width, element, at)] = C::stored(*value);
                            // The others of its group are multiplied with zeros, so they must be finite.
                            for later in at + 1..(at + 1).next_multiple_of(<C::Factor as Element>::GROUP) {
                                panel[place::<C::Factor>(width, element, later)] = C::default();
                            }
                        }
                    }
                }
            });
        };
        match rows {
            0..8 => (0..targets.len() * heads).for_each(append),
            _ => machine.pool.run(targets.len() * heads, append),
        }
    }
}

/// The pages of a model: those that sequences have returned, and the size of new ones.
pub struct Pages<C> {
    first: Region,
    layers: usize,
    unused: Vec<Page<C>>,
}

impl<C: Operand> Pages<C> {
    /// Pages for this many layers and key-value heads. None is allocated yet.
    pub fn new(layers: usize, heads: usize, head_dim: usize) -> Self {
        Self { first: Region::first::<C>(heads, head_dim), layers, unused: Vec::new() }
    }

    /// The region of a layer.
    pub fn region(&self, layer: usize) -> Region {
        Region { start: layer * self.first.len(), ..self.first }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.first.len() * size_of::<C>()
    }

    /// Number of pages that must be allocated before each of some sequences can take so many more tokens.
    pub fn lacking<'a>(&self, growths: impl Iterator<Item = (&'a Sequence<C>, usize)>) -> usize
    where
        C: 'a,
    {
        let missing = growths.map(|(sequence, tokens)| sequence.missing_pages(tokens)).sum::<usize>();
        missing.saturating_sub(self.unused.len())
    }

    /// Makes room for `tokens` more tokens in a sequence. Returns false if memory is missing.
    pub fn extend(&mut self, sequence: &mut Sequence<C>, tokens: usize) -> bool {
        for _ in 0..sequence.missing_pages(tokens) {
            let new = || Buffer::try_zeroed(self.layers * self.first.len()).map(Arc::new);
            let Some(page) = self.unused.pop().or_else(new) else { return false };
            sequence.pages.push(page);
        }
        true
    }

    /// Empties a sequence. Pages that no other sequence shares can be used again.
    pub fn release(&mut self, sequence: &mut Sequence<C>) {
        let is_unused = |page: &mut Page<C>| Arc::get_mut(page).is_some();
        self.unused.extend(sequence.pages.drain(..).filter_map(|mut page| is_unused(&mut page).then_some(page)));
        sequence.tokens = 0;
    }

    /// Number of pages that no sequence uses.
    pub fn unused(&self) -> usize {
        self.unused.len()
    }
}

/// The keys and values of one sequence in all layers.
#[derive(Default)]
pub struct Sequence<C> {
    pages: Vec<Page<C>>,
    tokens: usize,
}

impl<C: Operand> Sequence<C> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// A sequence that shares the full pages of the first `tokens` tokens.
    pub fn prefix(&self, tokens: usize) -> Self {
        let pages = tokens.min(self.tokens) / PAGE;
        Self { pages: self.pages[..pages].to_vec(), tokens: pages * PAGE }
    }

    /// The page of a position.
    pub(super) fn page(&self, position: usize) -> &[C] {
        &self.pages[position / PAGE]
    }

    fn missing_pages(&self, tokens: usize) -> usize {
        (self.tokens + tokens).div_ceil(PAGE).saturating_sub(self.pages.len())
    }
}

/// The tokens of a step that belong to one sequence.
pub struct Span<C> {
    /// The sequence before the step, with room for the tokens.
    pub sequence: Sequence<C>,
    /// The rows of the tokens among those of the step.
    pub rows: Range<usize>,
}

impl<C: Operand> Span<C> {
    /// Number of rows of all spans.
    ///
    /// # Panics
    /// If the rows of a span do not start where those of the span before it end.
    pub(super) fn count_rows(spans: &[Self]) -> usize {
        spans.iter().fold(0, |end, Self { rows, .. }| {
            assert!(rows.start == end && rows.end >= end, "rows do not follow each other");
            rows.end
        })
    }

    /// Returns whether the sequence has room for the tokens.
    pub(super) fn fits(&self) -> bool {
        self.sequence.missing_pages(self.rows.len()) == 0
    }

    /// Positions of the tokens.
    pub fn positions(&self) -> Range<usize> {
        self.sequence.tokens..self.sequence.tokens + self.rows.len()
    }

    /// The sequence after the step.
    pub fn ended(self) -> Sequence<C> {
        Sequence { tokens: self.sequence.tokens + self.rows.len(), ..self.sequence }
    }

    /// The pages that the tokens are written to, each with its rows and the place of the first of them in the page.
    fn targets(&mut self) -> impl Iterator<Item = (Parts<'_, C>, Range<usize>, usize)> {
        assert!(self.fits(), "a sequence has no room");
        let Self { sequence: Sequence { pages, tokens: position }, rows } = self;
        let (position, rows) = (*position, rows.clone());
        let pages = pages.iter_mut().enumerate().skip(position / PAGE);
        pages.map_while(move |(number, page)| {
            let start = position.max(number * PAGE);
            let end = (position + rows.len()).min((number + 1) * PAGE);
            if start >= end {
                return None;
            }
            let page = Arc::get_mut(page).expect("a shared page is full");
            Some((Parts::new(page), rows.start + start - position..rows.start + end - position, start % PAGE))
        })
    }
}

/// Heads of the tokens of a step.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// (tokens, heads, head_dim)
    pub values: &'a [f32],
    /// The norm of each head.
    pub norm: Option<&'a RowNorm>,
}

/// Computes a head as it is multiplied: with its norm, at its position.
pub(super) struct Head<'a, E> {
    pub head: &'a [f32],
    pub norm: Option<&'a RowNorm>,
    pub angles: &'a Angles,
    /// The row of its token.
    pub row: usize,
    pub out: &'a mut [E],
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
            self.angles.turn(self.row, head);
            self.out.iter_mut().zip(&*head).for_each(|(out, value)| *out = E::from_f32(*value));
        });
    }
}
