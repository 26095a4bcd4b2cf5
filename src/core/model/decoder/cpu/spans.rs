//! The fields of the spans of a forward pass, which a trace reads.

use std::fmt::{self, Write};

use crate::kernels::inference::{Element, Linear, Machine, Operand, Span};

/// The span of a product. `$linears` is a closure that returns an iterator of linear layers, each with the number of its rows.
macro_rules! product_span {
    ($name:literal, $machine:expr, $linears:expr) => {
        tracing::trace_span!(
            $name,
            bytes = $crate::model::decoder::cpu::spans::bytes(($linears)()),
            flops = $crate::model::decoder::cpu::spans::flops(($linears)()),
            kernel = ?$crate::model::decoder::cpu::spans::kernel($machine, $linears),
        )
    };
}
pub(super) use product_span;

/// Most formats that are named. The three matrices of attention are the most that differ.
const FORMATS: usize = 4;

/// Bytes of the weights.
pub(super) fn bytes<'a, E: Element>(linears: impl Iterator<Item = (&'a Linear<E>, usize)>) -> u64 {
    linears.map(|(linear, _)| linear.weights().bytes()).sum()
}

/// Floating-point operations.
pub(super) fn flops<'a, E: Element>(linears: impl Iterator<Item = (&'a Linear<E>, usize)>) -> u64 {
    let of_rows =
        |(linear, rows): (&Linear<E>, usize)| 2 * linear.weights().inputs() * linear.weights().outputs() * rows;
    linears.map(|linear| of_rows(linear) as u64).sum()
}

/// The formats of the weights, and the instructions that multiply them. Allocates nothing, because a trace counts allocations.
pub(super) fn kernel<'a, E: Element, L: Iterator<Item = (&'a Linear<E>, usize)>>(
    machine: &Machine,
    linears: impl Fn() -> L,
) -> impl fmt::Debug {
    let instructions = machine.instructions();
    fmt::from_fn(move |f| {
        let (mut named, mut count) = ([""; FORMATS], 0);
        for (linear, _) in linears() {
            let format = linear.weights().format();
            if count < FORMATS && !named[..count].contains(&format) {
                f.write_str(if count == 0 { "" } else { "+" })?;
                f.write_str(format)?;
                named[count] = format;
                count += 1;
            }
        }
        f.write_char(' ')?;
        write!(f, "{instructions}")
    })
}

/// Positions of the cache that attention reads, and pairs of a token and a position that it sees.
pub(super) fn seen<C: Operand>(spans: &[Span<C>], window: Option<usize>) -> (usize, usize) {
    let window = window.unwrap_or(usize::MAX);
    let of_span = |span: &Span<C>| {
        let positions = span.positions();
        let read = positions.end.min(window.saturating_add(positions.len() - 1));
        (read, positions.map(|position| (position + 1).min(window)).sum::<usize>())
    };
    spans.iter().map(of_span).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}
