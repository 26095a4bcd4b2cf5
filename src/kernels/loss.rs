//! Cross-entropy of rows over a vocabulary, without logits in memory: the logits of a panel are summed while they are in a
//! cache.

use std::ops::Range;

use super::{
    Matrix, each_of,
    elementary::{compiled, exp},
    inference::{Machine, packed::PANEL, pool::Parts},
    product::panels,
};

/// The loss of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// In nats.
    pub nats: f64,
    /// True if the logit of the target is the largest.
    pub is_top: bool,
}

/// Rows that are summed up together.
const ROWS: usize = 64;

/// The largest of some logits, and the sum of the exponentials of the differences from it.
#[derive(Clone, Copy, Default)]
struct Part {
    top: f32,
    sum: f32,
}

compiled! {
    /// Fills a part for each row of `logits`.
    fn sum_up(logits: &[f32], parts: &mut [Part]) {
        let width = logits.len() / parts.len();
        for (logits, part) in logits.chunks_exact(width).zip(parts) {
            let (whole, rest) = logits.as_chunks::<16>();
            let mut tops = [f32::NEG_INFINITY; 16];
            for logits in whole {
                tops.iter_mut().zip(logits).for_each(|(top, logit)| *top = if *logit > *top { *logit } else { *top });
            }
            let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, logit| top.max(*logit));
            let mut sums = [0f32; 16];
            for logits in whole {
                sums.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += exp(logit - top));
            }
            let sum = sums.iter().sum::<f32>() + rest.iter().map(|logit| exp(logit - top)).sum::<f32>();
            *part = Part { top, sum };
        }
    }

    /// Fills the losses of the rows `own` of all `rows` from their parts, a row of which is a panel.
    fn combine(parts: &[Part], rows: usize, own: Range<usize>, of_targets: &[f32], losses: &mut [Loss]) {
        let (mut tops, mut sums) = ([f32::NEG_INFINITY; ROWS], [0f32; ROWS]);
        for parts in parts.chunks_exact(rows) {
            tops.iter_mut().zip(&parts[own.clone()]).for_each(|(top, part)| *top = top.max(part.top));
        }
        for parts in parts.chunks_exact(rows) {
            for ((sum, top), part) in sums.iter_mut().zip(&tops).zip(&parts[own.clone()]) {
                *sum += part.sum * exp(part.top - top);
            }
        }
        for ((loss, of_target), (top, sum)) in losses.iter_mut().zip(of_targets).zip(tops.iter().zip(sums)) {
            let nats = f64::from(sum.ln()) + f64::from(*top) - f64::from(*of_target);
            *loss = Loss { nats, is_top: of_target == top };
        }
    }
}

/// The cross-entropies of `hidden` (rows, width) through `head` (vocabulary, width) with the ids of the `targets`.
///
/// # Panics
/// Panics if the sizes are inconsistent, a matrix is larger than its slice, or a target is not in the vocabulary.
pub fn losses(machine: &Machine, hidden: Matrix, head: Matrix, targets: &[u32]) -> Vec<Loss> {
    let (rows, vocab_size) = (targets.len(), head.rows());
    assert_eq!(hidden.rows(), rows, "targets of the rows");
    assert!(targets.iter().all(|target| (*target as usize) < vocab_size), "a target is not in the vocabulary");
    let (mut parts, mut of_targets) = (vec![Part::default(); vocab_size.div_ceil(PANEL) * rows], vec![0f32; rows]);
    let (all, own) = (Parts::new(&mut parts), Parts::new(&mut of_targets));
    panels(machine, hidden, head.transposed(), |of, columns, logits| {
        let first = columns.start / PANEL * rows;
        // SAFETY: each call has other rows of a panel.
        sum_up(logits, unsafe { all.get(first + of.start..first + of.end) });
        let width = columns.len();
        for (row, logits) in of.zip(logits.chunks_exact(width)) {
            if let Some(place) = (targets[row] as usize).checked_sub(columns.start).filter(|place| *place < width) {
                // SAFETY: the target of a row is in one panel.
                let own = unsafe { own.get(row..row + 1) };
                own[0] = logits[place];
            }
        }
    });
    let mut losses = vec![Loss::default(); rows];
    each_of(losses.chunks_mut(ROWS).enumerate(), |(number, losses)| {
        let own = number * ROWS..number * ROWS + losses.len();
        combine(&parts, rows, own.clone(), &of_targets[own], losses);
    });
    losses
}
