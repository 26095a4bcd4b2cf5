//! Sets of benchmarks that are measured together, in turns.

use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Instant};

use anyhow::{Result, anyhow};

use super::{
    Session, Surroundings,
    plan::Benchmark,
    turns::{self, Pace, Stage, Turn},
};
use crate::{
    error::caught,
    measure::memory::{self, DoesNotFit},
    progress,
    record::PairedRatio,
    workload::{Iteration, Outcome, Workload},
};

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
pub fn measure(set: &[usize], all: &[Rc<dyn Benchmark>], pace: Pace, session: &Session) -> Result<Vec<Result<Taken>>> {
    let first = all[set[0]].id();
    let work = format!("{} benchmarks in turns", set.len());
    let is_alone = set.len() == 1;
    session.prepare()?;
    if !is_alone {
        let needs: BTreeMap<usize, u64> = set.iter().map(|place| all[*place].needs()).collect();
        memory::ensure_fits(&work, needs.values().sum(), session.device())?;
    }
    let mut workloads: Vec<Result<Box<dyn Workload>>> = Vec::new();
    for place in set {
        session.note(all[*place].scenario(), &all[*place].subject());
        let prepared = caught(|| all[*place].prepare());
        // Models whose size is known only now.
        if let Err(error) = &prepared
            && error.is::<DoesNotFit>()
            && !is_alone
        {
            return Err(anyhow!("{work}: {error:#}"));
        }
        workloads.push(prepared);
    }

    let helpers = workloads.iter().flatten().flat_map(|workload| workload.helpers()).collect();
    let observation = session.observe(helpers)?;
    let line = progress::live(if is_alone { first.to_string() } else { format!("{first} and {} more", set.len() - 1) });
    let began = Cell::new(Instant::now());
    let tell = |stage: Stage| match stage {
        Stage::WarmUp(member) => {
            let subject = all[set[member]].subject();
            session.note(all[set[member]].scenario(), &subject);
            line.step(format_args!("warming up {}", subject.variant()));
            began.set(Instant::now());
        }
        Stage::Round { done, all } => line.part("round", (done, all), began.get()),
    };
    let turns = turns::take(workloads, pace, tell, |run| observation.sample(run).1);
    let observed = observation.end();

    let ids: BTreeMap<String, usize> =
        set.iter().enumerate().map(|(member, place)| (all[*place].id().to_string(), member)).collect();
    let ratios = |place: usize, turn: &Turn| -> Vec<PairedRatio> {
        let to = |(counterpart, id): &(_, String)| {
            let other = turns.get(*ids.get(id)?)?.as_ref().ok()?;
            turns::ratio(turn, other, *counterpart, id)
        };
        all[place].counterparts().iter().filter_map(to).collect()
    };
    let ratios: Vec<Vec<PairedRatio>> = set
        .iter()
        .zip(&turns)
        .map(|(place, turn)| turn.as_ref().map_or(Vec::new(), |turn| ratios(*place, turn)))
        .collect();
    let finish = |((place, turn), ratios): ((&usize, Result<Turn>), Vec<PairedRatio>)| {
        let turn = turn?;
        let (samples, around) = (turn.means(), observed.of(&turn.windows, &all[*place].subject().dtype));
        let (workload, counts) = turn.into_workload();
        Ok(Taken { samples, outcome: workload.finish(&counts, &around.limits), around, ratios })
    };
    Ok(set.iter().zip(turns).zip(ratios).map(finish).collect())
}
