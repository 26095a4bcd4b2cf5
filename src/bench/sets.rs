//! The sets of benchmarks of a section that are measured in turns; a benchmark that is compared with no other is a set of its
//! own. When the first of a set is due, the samples of all its members are taken. Criterion then gets the durations of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use anyhow::Result;

use super::arguments::{Arguments, Mode};
use crate::runner::{
    Session,
    plan::{Benchmark, Section},
    set::{self, Taken},
    turns::{self, Pace},
};

/// Least warm-up of the first set of a process. Short steps on several threads may take twice as long in the first two seconds.
const FIRST_WARM_UP: Duration = Duration::from_secs(3);

/// The sets of a section, and what they have measured.
pub struct Sets<'a> {
    pace: Pace,
    /// The pace of the first set of a process.
    first_pace: Pace,
    benchmarks: &'a [Rc<dyn Benchmark>],
    /// Sets that are not measured yet, as places among the benchmarks.
    due: Vec<Vec<usize>>,
    /// Results that Criterion has not received yet, by place.
    taken: BTreeMap<usize, Result<Taken>>,
    /// Why benchmarks that are compared with others are measured alone, by place.
    alone: BTreeMap<usize, String>,
}

impl<'a> Sets<'a> {
    /// Finds the sets among the benchmarks that the command line selects and that have no record yet.
    pub fn new(section: &'a Section, arguments: &Arguments, session: &Session) -> Self {
        let benchmarks = &section.benchmarks;
        let mode = arguments.mode();
        let ids: Vec<String> = benchmarks.iter().map(|benchmark| benchmark.id().to_string()).collect();
        let runs = |id: &str| arguments.selects(id) && session.done_before(id).is_none();
        let places: Vec<usize> = match mode {
            Mode::Measure | Mode::Test => (0..ids.len()).filter(|place| runs(&ids[*place])).collect(),
            Mode::Read | Mode::Profile => Vec::new(),
        };
        let is_paired = session.settings().pairing && mode == Mode::Measure;
        let due = sets(benchmarks, &ids, &places, is_paired);
        let in_sets: BTreeSet<usize> = due.iter().filter(|set| set.len() > 1).flatten().copied().collect();
        let is_alone = |place: &usize| !benchmarks[*place].counterparts().is_empty() && !in_sets.contains(place);
        let reason = if is_paired { "what it is compared with was not selected" } else { "pairing is switched off" };
        let alone = places.into_iter().filter(is_alone).map(|place| (place, reason.to_owned())).collect();
        let pace = pace(section.pace, arguments);
        let is_given = mode == Mode::Test || arguments.given("quick") || arguments.value("warm-up-time").is_some();
        let first_warm_up = if is_given { pace.warm_up } else { pace.warm_up.max(FIRST_WARM_UP) };
        let first_pace = Pace { warm_up: first_warm_up, ..pace };
        Self { pace, first_pace, benchmarks, due, taken: BTreeMap::new(), alone }
    }

    /// The result of a benchmark. Measures its set first, if that is due. The members of a set that does not fit in memory are
    /// measured alone. Returns `None` if the benchmark is not to be measured.
    pub fn take(&mut self, place: usize, session: &Session) -> Option<Result<Taken>> {
        while let Some(due) = self.due.iter().position(|set| set.contains(&place)) {
            let set = self.due.swap_remove(due);
            let pace = if session.is_new() { self.first_pace } else { self.pace };
            match set::measure(&set, self.benchmarks, pace, session) {
                Ok(taken) => self.taken.extend(set.into_iter().zip(taken)),
                Err(reason) if set.len() > 1 => {
                    self.due.extend(set.iter().map(|place| vec![*place]));
                    self.alone.extend(set.into_iter().map(|place| (place, format!("{reason:#}"))));
                }
                Err(error) => drop(self.taken.insert(place, Err(error))),
            }
        }
        self.taken.remove(&place)
    }

    /// Why a benchmark that is compared with others was measured alone.
    pub fn why_alone(&self, place: usize) -> Option<&str> {
        self.alone.get(&place).map(String::as_str)
    }
}

/// The pace of a section, unless the command line sets another.
fn pace(pace: Pace, arguments: &Arguments) -> Pace {
    if arguments.mode() == Mode::Test {
        return Pace::ONCE;
    }
    // Criterion's quick mode reads two samples.
    if arguments.given("quick") {
        return Pace { iterations: Some(2), samples: 2, ..pace };
    }
    let time = |option, default| {
        let seconds = arguments.number(option);
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(default)
    };
    Pace {
        warm_up: time("warm-up-time", pace.warm_up),
        measuring: time("measurement-time", pace.measuring),
        samples: arguments.number("sample-size").unwrap_or(pace.samples),
        ..pace
    }
}

/// The sets among the benchmarks at some places. Without pairing, each is a set.
fn sets(benchmarks: &[Rc<dyn Benchmark>], ids: &[String], places: &[usize], is_paired: bool) -> Vec<Vec<usize>> {
    if !is_paired {
        return places.iter().map(|place| vec![*place]).collect();
    }
    let place_of: BTreeMap<&str, usize> = places.iter().map(|place| (ids[*place].as_str(), *place)).collect();
    let chosen: Vec<&str> = places.iter().map(|place| ids[*place].as_str()).collect();
    let sets = turns::sets(&chosen, |id| {
        let counterparts = place_of.get(id).map(|place| benchmarks[*place].counterparts());
        counterparts.into_iter().flatten().map(|(_, id)| id).collect()
    });
    sets.into_iter().map(|set| set.into_iter().map(|member| places[member]).collect()).collect()
}
