//! Sets of benchmarks that are measured together, in turns.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::{
    Session, Surroundings,
    turns::{self, Plan, Turn},
};
use crate::{
    error::caught,
    measure::memory::{self, DoesNotFit},
    output,
    record::{BenchmarkId, PairedRatio, Subject},
    scenario::Counterpart,
    workload::{Iteration, Outcome, Workload},
};

/// A benchmark to run.
pub struct Entry<'a> {
    pub scenario: &'a str,
    pub subject: Subject,
    /// Ids of the benchmarks that it is compared with.
    pub counterparts: Vec<(Counterpart, String)>,
    /// The number of the subject that it needs, and the memory that loading it would take now. Entries that share a subject
    /// have the same number.
    pub needs: Box<dyn Fn() -> (usize, u64) + 'a>,
    pub prepare: Box<dyn Fn() -> Result<Box<dyn Workload>> + 'a>,
}

impl Entry<'_> {
    /// The id of its record.
    pub fn id(&self) -> String {
        BenchmarkId::new(self.scenario, &self.subject).to_string()
    }
}

/// The samples of a benchmark.
pub struct Taken {
    /// Mean of each sample.
    pub samples: Vec<Iteration>,
    pub outcome: Outcome,
    pub around: Surroundings,
    pub ratios: Vec<PairedRatio>,
}

/// Measures the members of a set in turns.
///
/// # Errors
/// Returns the reason if several members do not fit in memory at once. Other failures are results of single members.
pub fn measure(set: &[usize], entries: &[Entry], plan: Plan, session: &Session) -> Result<Vec<Result<Taken>>> {
    session.prepare()?;
    let first = entries[set[0]].id();
    let work = format!("{} benchmarks in turns", set.len());
    let is_alone = set.len() == 1;
    if !is_alone {
        let needs: BTreeMap<usize, u64> = set.iter().map(|place| (entries[*place].needs)()).collect();
        memory::ensure_fits(&work, needs.values().sum(), session.device())?;
    }
    let mut workloads: Vec<Result<Box<dyn Workload>>> = Vec::new();
    for place in set {
        session.note(entries[*place].scenario, &entries[*place].subject);
        let prepared = caught(|| (entries[*place].prepare)());
        // Models whose size is known only now.
        if let Err(error) = &prepared
            && error.is::<DoesNotFit>()
            && !is_alone
        {
            return Err(anyhow!("{work}: {error:#}"));
        }
        workloads.push(prepared);
    }

    match is_alone {
        true => output::report(format_args!("Measuring {first}")),
        false => output::report(format_args!("Measuring {work}, such as {first}")),
    }
    let helpers = workloads.iter().flatten().flat_map(|workload| workload.helpers()).collect();
    let observation = session.observe(helpers)?;
    let begin = |member: usize| session.note(entries[set[member]].scenario, &entries[set[member]].subject);
    let turns = turns::take(workloads, plan, begin, |run| observation.sample(run).1);
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
