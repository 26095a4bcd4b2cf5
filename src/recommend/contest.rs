//! Two candidates in turns. Each runs in a process of its own, the side of a duel, because Candle's threads belong to a
//! process.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use super::{Goal, Ratio};
use crate::{
    duel::{Answer, Process},
    measure::{LimitsOverTime, conditions::Watch, statistics},
    record::{BenchmarkId, Record},
    runner::{
        Candidate,
        turns::{self, Pace, Turn},
    },
    settings::{Settings, variable},
    text,
    workload::{Iteration, Measured, Outcome, Workload},
};

/// Values of settings by key, as on a command line.
pub type Values = BTreeMap<&'static str, String>;

/// Shortest sample.
const SAMPLE: Duration = Duration::from_millis(200);

/// Fewest samples: with fewer pairs, no interval of the median reaches 95 %.
pub const FEWEST: usize = 6;

/// Most samples.
const MOST: usize = 20;

/// The result of a contest.
pub enum Ended {
    /// Time or memory of the challenger over that of the holder.
    Measured(Ratio),
    /// Why the holder does not run, although the challenger does.
    HolderFailed(String),
    /// Why the challenger does not run.
    ChallengerFailed(String),
    /// Why the time was too short.
    OutOfTime(String),
}

/// How contests run.
pub struct Contest<'a> {
    /// Quantity that is compared.
    pub goal: Goal,
    /// The `candlepower` program.
    pub program: &'a Path,
    /// Folder of the messages of the processes.
    pub logs: &'a Path,
    /// Variables of the challenger's process only.
    pub variables: &'a [(&'a str, &'a str)],
}

impl Contest<'_> {
    /// Measures two candidates in turns, in about `time`. Adds reasons to doubt the result to `doubts`.
    ///
    /// # Errors
    /// Returns an error if neither candidate runs, or a setting is wrong.
    pub fn measure(
        &self,
        [holder, challenger]: [&Values; 2],
        time: Duration,
        doubts: &mut Vec<String>,
    ) -> Result<Ended> {
        let started = Instant::now();
        let first = self.start("holder", holder, &[]);
        let second = self.start("challenger", challenger, self.variables);
        let (first, second) = match (first, second) {
            (Ok(first), Ok(second)) => (first, second),
            (Ok(_), Err(error)) => return Ok(Ended::ChallengerFailed(format!("{error:#}"))),
            (Err(error), Ok(_)) => return Ok(Ended::HolderFailed(format!("{error:#}"))),
            (Err(one), Err(_)) => return Err(one),
        };
        let left = time.saturating_sub(started.elapsed());
        let round = first.pace() + second.pace();
        let Some(plan) = plan(left, round) else {
            return Ok(Ended::OutOfTime(format!(
                "{FEWEST} samples of each take {:.0} s, and {:.0} s are left for them: give more time",
                round.as_secs_f64() * (FEWEST + 1) as f64,
                left.as_secs_f64()
            )));
        };
        let (device, helpers) = (Settings::load(&flags(holder))?.device, vec![first.process.id(), second.process.id()]);
        let watch = Watch::start(device, helpers);
        let members: Vec<Result<Box<dyn Workload>>> = vec![Ok(Box::new(first)), Ok(Box::new(second))];
        let mut taken = turns::take(members, plan, |_| (), |run| watch.around(run).1);
        for doubt in watch.end().conditions.doubts {
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
        let (second, first) = (taken.pop(), taken.pop());
        match (first.unwrap_or_else(missing), second.unwrap_or_else(missing)) {
            (Ok(first), Ok(second)) => Ok(Ended::Measured(self.ratio(&second, &first)?)),
            (_, Err(error)) => Ok(Ended::ChallengerFailed(format!("{error:#}"))),
            (Err(error), _) => Ok(Ended::HolderFailed(format!("{error:#}"))),
        }
    }

    fn ratio(&self, of: &Turn, to: &Turn) -> Result<Ratio> {
        let peaks = |turn: &Turn| turn.means().iter().map(|sample| sample.peak_bytes as f64).collect::<Vec<_>>();
        let paired = match self.goal {
            Goal::Latency | Goal::Throughput => turns::paired(of, to),
            Goal::Memory if peaks(of).contains(&0.0) => {
                bail!("the memory of this device is not counted: choose another goal")
            }
            Goal::Memory => statistics::paired_ratio(&peaks(of), &peaks(to)),
        };
        paired.map(Ratio::from).ok_or_else(|| anyhow!("no sample was taken"))
    }

    /// Starts the process of a candidate, and lets it load its model and generate once.
    fn start(&self, name: &str, values: &Values, more: &[(&str, &str)]) -> Result<Remote> {
        let settings = Settings::load(&flags(values))?;
        let batch = settings.generation_batches()[0];
        let about = Candidate::from_settings(&settings).remove(0).about.in_batch(batch);
        let id = BenchmarkId::new(self.goal.scenario(), &about);
        let mut command = Command::new(self.program);
        command.args(["duel-side", "generation"]);
        command.envs(variables(values)).envs(more.iter().copied());
        let mut process = Process::start(&id.variant.to_string(), command, &self.logs.join(format!("{name}.log")))?;
        if let Answer::Failed(record) = process.prepare(&id.to_string())? {
            bail!(reason(&record));
        }
        match process.sample(1, 0)? {
            Answer::Failed(record) => bail!(reason(&record)),
            Answer::Done(sample) => {
                let generation = Duration::from_nanos(sample.ns.iter().sum());
                Ok(Remote { process, generation })
            }
        }
    }
}

/// The samples for which there is time, one round of which is a warm-up; `None` if they are too few.
fn plan(left: Duration, round: Duration) -> Option<Pace> {
    let rounds = (left.as_secs_f64() / round.as_secs_f64()) as usize;
    let samples = rounds.checked_sub(1).filter(|samples| *samples >= FEWEST)?.min(MOST);
    Some(Pace {
        warm_up: Duration::from_millis(1),
        warm_ups: 1,
        measuring: SAMPLE * samples as u32,
        iterations: None,
        samples,
        block: 1,
    })
}

fn missing() -> Result<Turn> {
    Err(anyhow!("a candidate took no part"))
}

/// The values as flags of a command line.
pub fn flags(values: &Values) -> Vec<(&str, String)> {
    values.iter().map(|(key, value)| (*key, value.clone())).collect()
}

/// The values as variables of a process.
pub fn variables(values: &Values) -> impl Iterator<Item = (String, &String)> {
    values.iter().map(|(key, value)| (variable(key), value))
}

fn reason(record: &Record) -> String {
    text::line(record.reason.as_deref().unwrap_or("no reason was given"))
}

/// Generations in another process.
struct Remote {
    process: Process,
    /// Time of the first.
    generation: Duration,
}

impl Remote {
    /// Time of a sample.
    fn pace(&self) -> Duration {
        self.generation.max(SAMPLE)
    }
}

impl Workload for Remote {
    fn iterate(&mut self) -> Result<Iteration> {
        match self.process.sample(0, 1)? {
            Answer::Failed(record) => bail!(reason(&record)),
            Answer::Done(sample) => Ok(Iteration {
                time: Duration::from_nanos(sample.ns.iter().sum()),
                peak_bytes: sample.peak_bytes.iter().copied().max().unwrap_or_default(),
            }),
        }
    }

    fn forget_last(&mut self) {}

    fn helpers(&self) -> Vec<u32> {
        vec![self.process.id()]
    }

    /// The other process summarises all its generations.
    fn finish(mut self: Box<Self>, _: &[usize], _: &LimitsOverTime) -> Outcome {
        let finished = self.process.finish().and_then(|record| {
            let Record { measures, unmeasured, .. } = *record;
            Ok(Measured { measures: measures.ok_or_else(|| anyhow!("it measured nothing"))?, unmeasured })
        });
        Outcome { measured: finished, deviates: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_bounds_the_samples() {
        let samples = |left_s: u64, round_ms: u64| {
            plan(Duration::from_secs(left_s), Duration::from_millis(round_ms)).map(|plan| plan.samples)
        };
        assert_eq!(samples(600, 400), Some(MOST));
        assert_eq!(samples(10, 1000), Some(9));
        assert_eq!(samples(7, 1000), Some(FEWEST));
        assert_eq!(samples(6, 1000), None);
        assert_eq!(samples(0, 400), None);
    }
}
