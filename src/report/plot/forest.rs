//! The forest plot of a comparison: the change of each benchmark with its interval.

use super::chart::{Axis, Chart, Colour, Scale, Style};
use crate::report::compare::{Comparison, Verdict};

impl Comparison {
    /// The changes and their intervals as SVG, the worst first, above a band for the noise. Unchanged benchmarks are left out
    /// unless `all` is true or nothing changed.
    pub fn forest_plot(&self, all: bool) -> String {
        let changed = self.rows(all);
        let rows = if changed.is_empty() { self.rows(true) } else { changed };
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        let noise = self.strictness.noise * 100.0;
        let ends = rows.iter().flat_map(|row| [percent(row.low), percent(row.high)]);
        let (low, high) = ends.fold((-2.0 * noise - 1.0, 2.0 * noise + 1.0), |(l, h), v| (l.min(v), h.max(v)));
        let margin = 0.04 * (high - low);
        let names = rows.iter().map(|row| row.id.clone()).collect();
        let mut chart = Chart::new(
            Axis::new(Scale::Linear(low - margin, high + margin), "change from A to B in percent; below 0 is better"),
            Axis::new(Scale::Names(names), ""),
        );
        chart.band(-noise, noise);
        chart.vertical(0.0, Style { colour: Colour::NEUTRAL, dash: 0 });
        for (place, row) in rows.iter().enumerate() {
            let colour = match row.verdict {
                Verdict::Slower | Verdict::More | Verdict::Worse => Colour::WORSE,
                Verdict::Faster | Verdict::Less | Verdict::Better => Colour::BETTER,
                Verdict::Same | Verdict::Incomparable => Colour::NEUTRAL,
            };
            let interval = (percent(row.low), percent(row.ratio), percent(row.high));
            chart.interval(place, interval, Style { colour, dash: 0 });
        }
        super::standalone(&chart.svg(&format!("{} beside {}: {}", self.a, self.b, self.counted())))
    }
}
