//! The sets of benchmarks of a target that are measured in turns; a benchmark that is compared with no other is a set of its
//! own. When Criterion reaches the first of a set, the samples of all its members are taken. Criterion then gets the stored
//! durations of each, so that its statistics, plots and baselines remain.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use criterion::{BenchmarkGroup, measurement::Measurement};

use super::{argument, given, measures};
use crate::runner::{
    Session,
    set::{self, Entry, Taken},
    turns::{self, Plan},
};

/// The sets of a target, and what they have measured.
pub struct Turns {
    plan: Plan,
    /// Sets that are not measured yet, as places in the list of entries. A set of one has counted iterations.
    sets: Vec<Vec<usize>>,
    /// Results that Criterion has not received yet, by place.
    taken: BTreeMap<usize, Result<Taken>>,
    /// Why entries that are compared with others are measured alone, by place.
    alone: BTreeMap<usize, String>,
}

/// Time that Criterion spends on its warm-up where durations are stored: one call.
const NO_WARM_UP: Duration = Duration::from_micros(1);

/// Time of measuring where durations are stored. Criterion asks for some hundred iterations for each sample then, and gets the
/// stored duration for each. It would warn if it could ask for one only.
const NO_MEASURING: Duration = Duration::from_millis(1);

impl Turns {
    /// Finds the sets among the entries that Criterion's filter selects.
    pub fn new(entries: &[Entry], plan: Plan, session: &Session) -> Self {
        let mut turns = Self { plan, sets: Vec::new(), taken: BTreeMap::new(), alone: BTreeMap::new() };
        if !measures() {
            return turns;
        }
        let is_paired = session.settings().pairing;
        let reason = match selection(session) {
            Ok(selected) => {
                turns.sets = sets(entries, &selected, is_paired);
                let reason =
                    if is_paired { "what it is compared with was not selected" } else { "pairing is switched off" };
                reason.to_owned()
            }
            Err(reason) => format!("{reason:#}"),
        };
        let in_sets: BTreeSet<usize> = turns.sets.iter().filter(|set| set.len() > 1).flatten().copied().collect();
        let is_alone = |place: &usize| !entries[*place].counterparts.is_empty() && !in_sets.contains(place);
        turns.alone = (0..entries.len()).filter(is_alone).map(|place| (place, reason.clone())).collect();
        turns
    }

    /// The result of an entry of a set. Measures the set first, if that is due. The members of a set that does not fit in
    /// memory are measured alone. Returns `None` if Criterion is to take the samples itself.
    pub fn take(&mut self, place: usize, entries: &[Entry], session: &Session) -> Option<Result<Taken>> {
        while let Some(due) = self.sets.iter().position(|set| set.contains(&place)) {
            let set = self.sets.swap_remove(due);
            match set::measure(&set, entries, self.plan, session) {
                Ok(taken) => self.taken.extend(set.into_iter().zip(taken)),
                Err(reason) if set.len() > 1 => {
                    self.sets.extend(set.iter().map(|place| vec![*place]));
                    self.alone.extend(set.into_iter().map(|place| (place, format!("{reason:#}"))));
                }
                Err(error) => drop(self.taken.insert(place, Err(error))),
            }
        }
        self.taken.remove(&place)
    }

    /// Why an entry that is compared with others was measured alone.
    pub fn why_alone(&self, place: usize) -> Option<&str> {
        self.alone.get(&place).map(String::as_str)
    }

    /// Makes Criterion measure the next benchmark of the group itself, or ask for the stored samples. Settings of a group stay
    /// for all benchmarks that follow.
    pub fn pace<M: Measurement>(&self, group: &mut BenchmarkGroup<'_, M>, is_stored: bool) {
        let (warm_up, measuring) = match is_stored {
            true => (NO_WARM_UP, NO_MEASURING),
            false => (self.plan.warm_up, self.plan.measuring),
        };
        group.warm_up_time(warm_up).measurement_time(measuring);
    }
}

/// Stands for a warm-up: waits until Criterion sees that its time has passed.
pub fn pass_warm_up() {
    let started = Instant::now();
    while started.elapsed() <= NO_WARM_UP {
        std::hint::spin_loop();
    }
}

/// The pace of a class of benchmarks, unless Criterion's command line sets another.
pub fn plan(warm_up: Duration, measuring: Duration) -> Plan {
    let given = |option, default| {
        let seconds = argument(option).and_then(|seconds| seconds.parse().ok());
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(default)
    };
    Plan {
        warm_up: given("--warm-up-time", warm_up),
        measuring: given("--measurement-time", measuring),
        warm_ups: 1,
        iterations: None,
        samples: argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(super::SAMPLES),
        block: 1,
    }
}

/// The ids that Criterion's filter selects and that have no record yet.
///
/// # Errors
/// Returns the reason why Criterion has to take the samples itself.
fn selection(session: &Session) -> Result<BTreeSet<String>> {
    ensure!(!given("--quick"), "--quick takes too few samples");
    ensure!(!given("--load-baseline"), "a loaded baseline has no samples of this run");
    // Only Criterion knows its filter, and it tells only by listing. The list of this program with the same arguments is
    // quick, because nothing is loaded for it.
    let program = std::env::current_exe().context("the list of benchmarks could not be made")?;
    let mut list = Command::new(program);
    list.args(std::env::args_os().skip(1)).arg("--list").stdin(Stdio::null()).stderr(Stdio::null());
    let output = list.output().context("the list of benchmarks could not be made")?;
    ensure!(output.status.success(), "the list of benchmarks could not be made: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let ids = text.lines().filter_map(|line| line.strip_suffix(": benchmark"));
    Ok(ids.filter(|id| session.done_before(id).is_none()).map(str::to_owned).collect())
}

/// The sets among the selected entries, as places in the list of entries. Without pairing, each entry is a set.
fn sets(entries: &[Entry], selected: &BTreeSet<String>, is_paired: bool) -> Vec<Vec<usize>> {
    let ids: Vec<String> = entries.iter().map(Entry::id).collect();
    let places: Vec<usize> = (0..entries.len()).filter(|place| selected.contains(&ids[*place])).collect();
    let counterparts: BTreeMap<&str, &Entry> = ids.iter().map(String::as_str).zip(entries).collect();
    let chosen: Vec<&str> = places.iter().map(|place| ids[*place].as_str()).collect();
    let sets = turns::sets(&chosen, |id| {
        let of = counterparts.get(id).filter(|_| is_paired).map(|entry| entry.counterparts.iter());
        of.into_iter().flatten().map(|(_, id)| id.clone()).collect()
    });
    sets.into_iter().map(|set| set.into_iter().map(|member| places[member]).collect()).collect()
}
