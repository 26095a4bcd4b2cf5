//! Stacked bars: the shares of the parts of some wholes.

use std::collections::BTreeMap;

use super::chart::{Axis, Chart, Colour, Scale, Style};
use crate::report::Stack;

/// Parts with a colour of their own. The others share one.
const COLOURED: usize = 6;

/// A bar for each whole, with a mark at its bound.
pub fn shares(stacks: &[Stack]) -> Chart {
    let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, share) in stacks.iter().flat_map(|stack| &stack.parts) {
        *totals.entry(name).or_default() += share;
    }
    let mut names: Vec<(&str, f64)> = totals.into_iter().collect();
    names.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let has_more = names.len() > COLOURED;
    names.truncate(COLOURED);

    let rows = stacks.iter().map(|stack| stack.name.clone()).collect();
    let mut chart =
        Chart::new(Axis::new(Scale::Linear(0.0, 105.0), "% of the time"), Axis::new(Scale::Names(rows), ""));
    for (colour, (name, _)) in names.iter().enumerate() {
        chart.colour_key(Colour(colour), name);
    }
    if has_more {
        chart.colour_key(Colour::NEUTRAL, "other parts");
    }
    chart.text_key("line: the bound of the machine");
    for (row, Stack { parts, bound, .. }) in stacks.iter().enumerate() {
        let share = |name: &str| parts.iter().filter(|(part, _)| part == name).map(|(_, share)| share).sum::<f64>();
        let coloured = names.iter().enumerate().map(|(colour, (name, _))| (Colour(colour), share(name)));
        let all: f64 = parts.iter().map(|(_, share)| share).sum();
        let others = all - names.iter().map(|(name, _)| share(name)).sum::<f64>();
        let mut from = 0.0;
        for (colour, share) in coloured.chain([(Colour::NEUTRAL, others)]).filter(|(_, share)| *share > 1e-6) {
            let to = from + 100.0 * share;
            chart.span(row, (from, to), Style { colour, dash: 0 });
            from = to;
        }
        chart.mark(row, 100.0 * bound);
    }
    chart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_share_a_colour_and_each_bar_has_its_bound() {
        let parts = |count: usize| (0..count).map(|n| (format!("part {n}"), 1.0 / count as f64)).collect();
        let stack = |name: &str, count| Stack { name: name.into(), parts: parts(count), bound: 0.5 };
        let svg = shares(&[stack("prefill", 3), stack("decode", 9)]).svg("a plot");
        let legend = |text: &str| svg.contains(text);
        assert!(legend("part 0") && legend("part 5") && !legend("part 6") && legend("other parts"), "{svg}");
        let bounds = svg.matches("<polyline").count();
        assert_eq!((svg.matches("<rect").count(), bounds), (3 + 7 + 7, 2), "bars and the keys of the legend: {svg}");
    }
}
