//! Benchmarks of a target that are measured in turns. When Criterion reaches the first of a set, the samples of all its
//! members are taken. Criterion then gets the stored durations of each, so that its statistics, plots and baselines remain.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use criterion::{BenchmarkGroup, measurement::Measurement};

use super::{Entry, argument, given, measures};
use crate::{
    error::caught,
    measure::memory::{self, DoesNotFit},
    output,
    record::PairedRatio,
    runner::{
        Session, Surroundings,
        turns::{self, Plan, Turn},
    },
    workload::{Iteration, Outcome, Workload},
};

/// The sets of a target, and what they have measured.
pub struct Turns {
    plan: Plan,
    /// Sets that are not measured yet, as places in the list of entries.
    sets: Vec<Vec<usize>>,
    /// Results that Criterion has not received yet, by place.
    taken: BTreeMap<usize, Result<Taken>>,
    /// Why entries are measured alone, by place.
    alone: BTreeMap<usize, String>,
}

/// A benchmark that was measured in turns.
pub struct Taken {
    /// Mean of each sample.
    pub samples: Vec<Iteration>,
    pub outcome: Outcome,
    pub around: Surroundings,
    pub ratios: Vec<PairedRatio>,
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
        let are_compared = entries.iter().any(|entry| !entry.counterparts.is_empty());
        if !measures() || !are_compared {
            return turns;
        }
        let reason = match selection(session) {
            Ok(selected) => {
                turns.sets = sets(entries, &selected);
                "what it is compared with was not selected".to_owned()
            }
            Err(reason) => format!("{reason:#}"),
        };
        let in_sets: BTreeSet<usize> = turns.sets.iter().flatten().copied().collect();
        let is_alone = |place: &usize| !entries[*place].counterparts.is_empty() && !in_sets.contains(place);
        turns.alone = (0..entries.len()).filter(is_alone).map(|place| (place, reason.clone())).collect();
        turns
    }

    /// The result of an entry that is measured in turns. Measures its set first, if that is due.
    pub fn take(&mut self, place: usize, entries: &[Entry], session: &Session) -> Option<Result<Taken>> {
        if let Some(due) = self.sets.iter().position(|set| set.contains(&place)) {
            let set = self.sets.swap_remove(due);
            match measure(&set, entries, self.plan, session) {
                Ok(taken) => self.taken.extend(set.into_iter().zip(taken)),
                Err(reason) => self.alone.extend(set.into_iter().map(|place| (place, format!("{reason:#}")))),
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
        samples: argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(super::SAMPLES),
        block: 1,
    }
}

/// The ids that Criterion's filter selects.
///
/// # Errors
/// Returns the reason if nothing is to be paired.
fn selection(session: &Session) -> Result<BTreeSet<String>> {
    ensure!(session.settings().pairing, "pairing is switched off");
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
    Ok(text.lines().filter_map(|line| line.strip_suffix(": benchmark")).map(str::to_owned).collect())
}

/// The sets among the selected entries, as places in the list of entries.
fn sets(entries: &[Entry], selected: &BTreeSet<String>) -> Vec<Vec<usize>> {
    let ids: Vec<String> = entries.iter().map(Entry::id).collect();
    let places: Vec<usize> = (0..entries.len()).filter(|place| selected.contains(&ids[*place])).collect();
    let counterparts: BTreeMap<&str, &Entry> = ids.iter().map(String::as_str).zip(entries).collect();
    let chosen: Vec<&str> = places.iter().map(|place| ids[*place].as_str()).collect();
    let sets = turns::sets(&chosen, |id| {
        let of = counterparts.get(id).map(|entry| entry.counterparts.iter());
        of.into_iter().flatten().map(|(_, id)| id.clone()).collect()
    });
    sets.into_iter().map(|set| set.into_iter().map(|member| places[member]).collect()).collect()
}

/// Measures the members of a set in turns.
///
/// # Errors
/// Returns the reason if not all of them fit in memory at once. Other failures are results of single members.
fn measure(set: &[usize], entries: &[Entry], plan: Plan, session: &Session) -> Result<Vec<Result<Taken>>> {
    session.prepare()?;
    let needs: BTreeMap<usize, u64> = set.iter().map(|place| (entries[*place].needs)()).collect();
    let work = format!("{} benchmarks in turns", set.len());
    memory::ensure_fits(&work, needs.values().sum(), session.device())?;
    let mut workloads: Vec<Result<Box<dyn Workload>>> = Vec::new();
    for place in set {
        let prepared = caught(|| (entries[*place].prepare)());
        // Models whose size is known only now.
        if let Err(error) = &prepared
            && error.is::<DoesNotFit>()
        {
            return Err(anyhow!("{work}: {error:#}"));
        }
        workloads.push(prepared);
    }

    output::report(format_args!("Measuring {work}, such as {}", entries[set[0]].id()));
    let helpers = workloads.iter().flatten().flat_map(|workload| workload.helpers()).collect();
    let mut observation = session.observe(helpers)?;
    let turns = turns::take(workloads, plan, |run| observation.sample(run).1);
    let observed = observation.end();

    let ids: BTreeMap<String, usize> =
        set.iter().enumerate().map(|(member, place)| (entries[*place].id(), member)).collect();
    let ratios = |place: usize, turn: &Turn| -> Vec<PairedRatio> {
        let to = |(counterpart, id): &(_, String)| {
            let other = turns.get(*ids.get(id)?)?.as_ref().ok()?;
            turns::ratio(turn, other, *counterpart, id)
        };
        entries[place].counterparts.iter().filter_map(to).collect()
    };
    let ratios: Vec<Vec<PairedRatio>> = set
        .iter()
        .zip(&turns)
        .map(|(place, turn)| turn.as_ref().map_or(Vec::new(), |turn| ratios(*place, turn)))
        .collect();
    let finish = |(turn, ratios): (Result<Turn>, Vec<PairedRatio>)| {
        let turn = turn?;
        let (samples, around) = (turn.means(), observed.of(&turn.windows));
        let (workload, counts) = turn.into_workload();
        Ok(Taken { samples, outcome: workload.finish(&counts, &around.limits), around, ratios })
    };
    Ok(turns.into_iter().zip(ratios).map(finish).collect())
}
