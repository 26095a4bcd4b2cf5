//! Judges a commit by its duel with GOOD.
//!
//! On the logarithmic scale, the interval of the change between GOOD and BAD has the ends `l` and `h`, and half of the change
//! lies between `l / 2` and `h / 2`. A commit whose interval lies below `l / 2` is as GOOD, and one whose interval lies above
//! `h / 2` is as BAD. Any other is not told apart.

use clap::ValueEnum;

use crate::{
    duel::Until,
    record::SampleUnit,
    report::{
        bisect::{Kind, Verdict},
        duel::{self, Row},
    },
};

/// The rule for one benchmark and one kind of change.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    kind: Kind,
    is_exact: bool,
    /// 1 if the ratio rises from GOOD to BAD, and -1 if it falls.
    sign: f64,
    /// The ends of half of the change, as logarithms of rising ratios.
    half: (f64, f64),
}

impl Rule {
    /// The rule from the duel of GOOD with BAD. `None` if the change is not known well enough to tell BAD from half of it.
    pub fn of(kind: Kind, row: &Row) -> Option<Self> {
        let (low, _) = interval(kind, row)?;
        let is_exact = kind.is_exact(row.unit);
        let mut rule = Self { kind, is_exact, sign: if low > 0.0 { 1.0 } else { -1.0 }, half: (0.0, 0.0) };
        let (low, high) = rule.change(row)?;
        rule.half = (low / 2.0, high / 2.0);
        (low > 0.0 && rule.judge(row) == Some(Verdict::Bad)).then_some(rule)
    }

    /// The judgement of a commit; `None` if it is not told apart.
    pub fn judge(&self, row: &Row) -> Option<Verdict> {
        let (low, high) = self.change(row)?;
        match () {
            () if high < self.half.0 => Some(Verdict::Good),
            () if low > self.half.1 => Some(Verdict::Bad),
            () => None,
        }
    }

    /// Returns when a duel may stop: when it can be judged. An exact change needs no interval.
    pub fn until(&self) -> Until {
        let (low, high) = self.half;
        match (self.is_exact, self.sign > 0.0) {
            (true, _) => Until::Block,
            (false, true) => Until::Apart([low.exp(), high.exp()]),
            (false, false) => Until::Apart([(-high).exp(), (-low).exp()]),
        }
    }

    /// The interval of the change, in which a change like that of BAD is positive.
    fn change(&self, row: &Row) -> Option<(f64, f64)> {
        let (low, high) = interval(self.kind, row)?;
        Some(if self.sign > 0.0 { (low, high) } else { (-high, -low) })
    }
}

/// The kinds in which both ends differ, in the order of [`Kind`], each with the benchmark that shows it best.
pub fn differences(rows: &[Row]) -> Vec<(Kind, &Row)> {
    let best = |kind: Kind| {
        let showing = rows.iter().filter(|row| shows(kind, row));
        let known = showing.filter_map(|row| Some((interval(kind, row)?, row)));
        let least = |(low, high): (f64, f64)| low.max(-high);
        known.max_by(|(one, _), (other, _)| least(*one).total_cmp(&least(*other))).map(|(_, row)| (kind, row))
    };
    Kind::value_variants().iter().copied().filter_map(best).collect()
}

fn shows(kind: Kind, row: &Row) -> bool {
    match kind {
        Kind::Slower => row.verdict == duel::Verdict::Slower,
        Kind::Faster => row.verdict == duel::Verdict::Faster,
        Kind::Memory if row.unit == SampleUnit::Ms => row.changed_memory().is_some(),
        Kind::Memory => matches!(row.verdict, duel::Verdict::More | duel::Verdict::Less),
        Kind::Tokens => row.same_work == Some(false),
        Kind::Allocations => row.allocations.is_some(),
    }
}

/// The logarithms of the ends of the ratio that a kind looks at. Peak memory is exact. Other tokens or
/// allocations are a change of 1, and equal ones one of 0.
fn interval(kind: Kind, row: &Row) -> Option<(f64, f64)> {
    let exact = |differs| (f64::from(u8::from(differs)), f64::from(u8::from(differs)));
    let (low, high) = match (kind, row.unit) {
        (Kind::Tokens, _) => return Some(exact(!row.same_work?)),
        (Kind::Allocations, _) => return Some(exact(row.allocations.is_some())),
        (Kind::Memory, SampleUnit::Ms) => (row.memory_ratio?, row.memory_ratio?),
        _ => (row.low?, row.high?),
    };
    Some((low.ln(), high.ln()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duel::{bisect::tests::row, sequential::Interval};

    #[test]
    fn intervals_and_not_middles_decide() {
        let rule = Rule::of(Kind::Slower, &row(1.10, 1.12)).expect("a clear change");
        for (low, high, verdict) in [
            (0.99, 1.01, Some(Verdict::Good)),
            (0.90, 0.95, Some(Verdict::Good)),
            (1.09, 1.13, Some(Verdict::Bad)),
            (1.50, 1.60, Some(Verdict::Bad)),
            // Half of the change is 4.9 to 5.8 %.
            (1.00, 1.05, None),
            (1.05, 1.15, None),
            (0.50, 2.00, None),
        ] {
            assert_eq!(rule.judge(&row(low, high)), verdict, "{low} to {high}");
        }
        assert_eq!(rule.judge(&Row { low: None, high: None, ..row(1.0, 1.0) }), None);
        for (low, high) in [(1.001, 1.2), (0.98, 1.2)] {
            assert!(Rule::of(Kind::Slower, &row(low, high)).is_none(), "{low} to {high} has no half");
        }
    }

    /// A duel stops as soon as its commit can be judged, and a first duel as soon as there is a rule.
    #[test]
    fn duels_stop_when_they_are_judged() {
        let interval = |low, high| Some(Interval { low, high });
        let faster = |low: f64, high: f64| row(1.0 / high, 1.0 / low);
        let ends = [0.5, 0.9, 0.97, 1.0, 1.01, 1.02, 1.05, 1.1, 1.15, 1.3];
        let intervals =
            || ends.iter().flat_map(|low| ends.iter().map(move |high| (*low, *high))).filter(|(low, high)| low <= high);
        for (kind, mirror) in [(Kind::Slower, row as fn(f64, f64) -> Row), (Kind::Faster, faster)] {
            let rule = Rule::of(kind, &mirror(1.08, 1.12)).expect("a clear change");
            for (low, high) in intervals() {
                let Row { low, high, .. } = mirror(low, high);
                let (low, high) = (low.expect("an end"), high.expect("an end"));
                let is_judged = rule.judge(&row(low, high)).is_some();
                assert_eq!(rule.until().is_met(interval(low, high), 0.02), is_judged, "{kind:?}: {low} to {high}");
                let (is_same, is_halved) = (low <= 1.0 && high >= 1.0, Rule::of(kind, &row(low, high)).is_some());
                if !is_same && (low > 1.0) == (kind == Kind::Slower) {
                    assert_eq!(Until::Halved.is_met(interval(low, high), 0.02), is_halved, "{kind:?}: {low} to {high}");
                }
            }
        }
        assert!(Until::Halved.is_met(interval(0.99, 1.01), 0.02) && !Until::Halved.is_met(interval(0.9, 1.1), 0.02));
        assert!(Until::Block.is_met(None, 0.02) && !Until::Halved.is_met(None, 0.02));
    }

    #[test]
    fn each_kind_has_its_direction() {
        let rule = Rule::of(Kind::Faster, &row(0.88, 0.90)).expect("a clear change");
        assert_eq!(rule.judge(&row(0.99, 1.01)), Some(Verdict::Good));
        assert_eq!(rule.judge(&row(0.87, 0.91)), Some(Verdict::Bad));
        assert_eq!(rule.judge(&row(1.2, 1.3)), Some(Verdict::Good));

        let of_memory = |ratio: f64| Row { memory_ratio: Some(ratio), ..row(0.9, 1.1) };
        let rule = Rule::of(Kind::Memory, &of_memory(0.9)).expect("less memory");
        assert_eq!(rule.judge(&of_memory(0.91)), Some(Verdict::Bad));
        assert_eq!(rule.judge(&of_memory(0.99)), Some(Verdict::Good));
        assert_eq!(rule.until(), Until::Block);
        let of_bytes = Row { unit: SampleUnit::Bytes, verdict: duel::Verdict::More, ..row(1.10, 1.12) };
        let of_bytes = Rule::of(Kind::Memory, &of_bytes).expect("more memory");
        assert_ne!(of_bytes.until(), Until::Block, "samples of memory have an interval");

        let of_tokens = |same: Option<bool>| Row { same_work: same, ..row(0.9, 1.1) };
        let rule = Rule::of(Kind::Tokens, &of_tokens(Some(false))).expect("other tokens");
        let judged = [Some(true), Some(false), None].map(|same| rule.judge(&of_tokens(same)));
        assert_eq!(judged, [Some(Verdict::Good), Some(Verdict::Bad), None]);
        assert_eq!(rule.until(), Until::Block);
    }

    #[test]
    fn the_benchmark_that_shows_a_kind_best_is_followed() {
        let rows = [
            row(1.01, 1.30),
            row(1.10, 1.12),
            row(0.80, 0.82),
            Row { memory_ratio: Some(1.004), ..row(0.99, 1.01) },
            Row { same_work: Some(false), ..row(0.99, 1.01) },
        ];
        let found = differences(&rows);
        assert_eq!(found, [(Kind::Slower, &rows[1]), (Kind::Faster, &rows[2]), (Kind::Tokens, &rows[4])]);
    }
}
