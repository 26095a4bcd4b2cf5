//! The measurement: two running sides take samples at the same time, in turns of milliseconds. Between legs both sides start
//! anew, until the ratio is known well enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use super::{
    SIDE,
    filter::Filter,
    process::{Answer, Process},
    protocol::{Listed, Sample},
    sequential::{Interval, Ratios, Until, least_blocks},
};
use crate::{
    device::DeviceChoice,
    measure::{conditions::Watch, statistics::median},
    progress,
    record::{self, AllocationChange, Allocations, Conditions, Record, SampleUnit, Sink, Status},
    report::duel::{Change, Contestant, Duel, Row, Verdict},
    scenario,
    settings::variable,
    text,
};

/// Shortest sample. Shorter iterations are repeated, so that one late wake-up of a thread does not decide a sample.
const SAMPLE: Duration = Duration::from_millis(200);

/// Most iterations of a sample.
const ITERATIONS: usize = 100_000;

/// Part of the level that the whole time has where the time to the first token has the rest.
const WHOLE: f64 = 0.75;

/// Share of the whole time from which on the time to the first token must be known as well as the whole.
const LONG_PROMPT: f64 = 0.25;

/// A side that is built.
#[derive(Clone, Debug)]
pub struct Program {
    /// The side as given on the command line.
    pub given: String,
    /// Commit for its records.
    pub commit: String,
    /// The `candlepower` program.
    pub path: PathBuf,
    /// Settings by their keys.
    pub settings: BTreeMap<String, String>,
}

/// How a duel measures.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Benchmarks to measure; `None` measures all.
    pub filter: Option<Filter>,
    /// An interval is resolved if it reaches at most this share below and above its middle.
    pub resolve: f64,
    /// When a benchmark stops.
    pub until: Until,
    /// Probability with which a duel of a program with itself may find any change.
    pub level: f64,
    /// Time for loading models and taking samples. Each benchmark gets an equal part of what is left.
    pub budget: Duration,
}

/// The folders of a duel.
#[derive(Clone, Copy, Debug)]
pub struct Folders<'a> {
    /// Folder of runs.
    pub out: &'a Path,
    /// Folder of the sides' messages.
    pub logs: &'a Path,
}

/// Measures two programs and appends a record of each benchmark to the runs of both sides. `progress` gets a line after
/// each benchmark.
///
/// # Errors
/// When a side dies or breaks the protocol, when the sides have different benchmarks or the filter selects none, or when
/// records cannot be written. A benchmark that fails is listed in the result instead.
pub fn measure([a, b]: [&Program; 2], rules: &Rules, folders: Folders, mut progress: impl FnMut(&str)) -> Result<Duel> {
    let id = format!("{}-{}", Utc::now().format("%Y%m%dT%H%M%SZ"), std::process::id());
    let targets = select(&rules.filter, list("A", a, folders)?, list("B", b, folders)?)?;
    let count: usize = targets.iter().map(|(_, ids)| ids.len()).sum();
    let keep = |side: &str, program: &Program| -> Result<Keeper> {
        Ok(Keeper {
            sink: Sink::open(folders.out, Some(&format!("{id}-{side}")))?,
            duel: record::Duel { id: id.clone(), side: side.into(), given: program.given.clone(), blocks: Vec::new() },
            commit: program.commit.clone(),
        })
    };
    let keepers = [keep("a", a)?, keep("b", b)?];
    let contestant = |program: &Program, keeper: &Keeper| Contestant {
        given: program.given.clone(),
        commit: program.commit.clone(),
        run: keeper.sink.run().to_owned(),
    };
    let mut duel = Duel {
        a: contestant(a, &keepers[0]),
        b: contestant(b, &keepers[1]),
        id,
        resolve: rules.resolve,
        level: rules.level,
        rows: Vec::new(),
        failed: Vec::new(),
    };
    let mut left = rules.budget;
    let mut number = 0;
    for (target, ids) in targets {
        let start = |side: usize| start(["A", "B"][side], [a, b][side], Some(&target), folders);
        for id in ids {
            let time = left / (count - number) as u32;
            number += 1;
            let started = Instant::now();
            let line = progress::live(format_args!("{number}/{count} {id}"));
            line.step(format_args!("at most about {:.0} s", time.as_secs_f64()));
            let Rules { resolve, until, .. } = *rules;
            let level = rules.level / count as f64;
            let ended = Contest { id: &id, level, resolve, until, time }.run(&start, &keepers)?;
            left = left.saturating_sub(started.elapsed());
            drop(line);
            match ended {
                Ended::Measured(row) => {
                    progress(&format!("{number}/{count} {id}: {}, {:.0} s", row.summary(), row.seconds));
                    duel.rows.push(row);
                }
                Ended::Failed(reason) => {
                    progress(&format!("{number}/{count} {id}: failed: {reason}"));
                    duel.failed.push(format!("{id}: {reason}"));
                }
            }
        }
    }
    Ok(duel)
}

/// Starts a side for the benchmarks of a bench target, or to list all.
fn start(name: &str, program: &Program, target: Option<&str>, folders: Folders) -> Result<Process> {
    let mut command = Command::new(&program.path);
    command.arg(SIDE).args(target.filter(|target| !target.is_empty()));
    command.envs(program.settings.iter().map(|(key, value)| (variable(key), value)));
    let log = folders.logs.join(format!("side-{}.log", name.to_lowercase()));
    Process::start(&format!("side {name} ({})", text::line(&program.given)), command, &log)
}

fn list(name: &str, program: &Program, folders: Folders) -> Result<Vec<Listed>> {
    start(name, program, None, folders)?.list()
}

/// The ids that the filter selects, by target. Both sides must have the same.
fn select(filter: &Option<Filter>, a: Vec<Listed>, b: Vec<Listed>) -> Result<Vec<(String, Vec<String>)>> {
    let takes = |one: &Listed| filter.as_ref().is_none_or(|filter| filter.takes(&one.id));
    let groups: BTreeSet<String> = a.iter().chain(&b).map(|one| record::group(&one.id).to_owned()).collect();
    let [a, b] = [a, b].map(|all| all.into_iter().filter(takes).collect::<Vec<_>>());
    if a.is_empty() && b.is_empty() {
        let groups: Vec<_> = groups.iter().map(|group| text::line(group)).collect();
        let filter = filter.as_ref().map_or("", Filter::as_str);
        bail!("no benchmark matches '{filter}': the groups are {}", groups.join(", "));
    }
    for (name, here, there) in [("A", &a, &b), ("B", &b, &a)] {
        let mut alone = here.iter().filter(|one| !there.contains(one));
        if let Some(first) = alone.next() {
            let more = alone.count();
            let and = if more > 0 { format!(" and {more} more") } else { String::new() };
            bail!(
                "side B has other benchmarks than side A: only {name} has {}{and}; select common ones by a filter after --",
                text::line(&first.id)
            );
        }
    }
    let mut targets: Vec<(String, Vec<String>)> = Vec::new();
    for Listed { id, target } in a {
        match targets.iter_mut().find(|(name, _)| *name == target) {
            Some((_, ids)) => ids.push(id),
            None => targets.push((target, vec![id])),
        }
    }
    Ok(targets)
}

/// Writes the records of a side.
struct Keeper {
    sink: Sink,
    duel: record::Duel,
    commit: String,
}

impl Keeper {
    /// Adds what the side does not know. Its own observation of the machine took the other side for a disturbance.
    fn keep(
        &self,
        mut record: Box<Record>,
        conditions: Option<&Conditions>,
        blocks: &[[f64; 2]],
    ) -> Result<Box<Record>> {
        record.run = self.sink.run().to_owned();
        record.duel = Some(record::Duel { blocks: blocks.to_vec(), ..self.duel.clone() });
        record.software.commit = Some(self.commit.clone());
        let gpu = record.conditions.take().and_then(|own| own.gpu);
        record.conditions = conditions.map(|conditions| conditions.clone().with_gpu(gpu));
        self.sink.append(&record)?;
        Ok(record)
    }
}

/// One benchmark of a duel.
struct Contest<'a> {
    id: &'a str,
    level: f64,
    resolve: f64,
    until: Until,
    time: Duration,
}

/// How a benchmark ended.
enum Ended {
    Measured(Row),
    /// Side and reason.
    Failed(String),
}

/// The samples of a side.
#[derive(Default)]
struct Samples {
    values: Vec<f64>,
    /// Time to the first token as a share of the last value; NaN if it is no part of it.
    ttft_share: f64,
    digests: BTreeSet<Option<String>>,
}

/// The ratios of a sample of each side.
struct Pair {
    whole: f64,
    /// Of the times to the first token, where the samples have them.
    ttft: Option<f64>,
}

impl Pair {
    /// The medians of some pairs.
    fn middle(pairs: &[Self]) -> Self {
        let ttft: Option<Vec<f64>> = pairs.iter().map(|pair| pair.ttft).collect();
        Self { whole: median(pairs.iter().map(|pair| pair.whole).collect()), ttft: ttft.map(median) }
    }

    /// The geometric means of two. An advantage of the side that is loaded later cancels out.
    fn mean(one: &Self, other: &Self) -> Self {
        let mean = |one: f64, other: f64| (one * other).sqrt();
        let ttft = one.ttft.zip(other.ttft).map(|(one, other)| mean(one, other));
        Self { whole: mean(one.whole, other.whole), ttft }
    }
}

/// The judgement of the blocks so far.
struct Judged {
    interval: Option<Interval>,
    /// The interval is as narrow as requested.
    is_resolved: bool,
    /// More samples are not needed.
    is_enough: bool,
}

/// A failure of a benchmark on a side, or of the duel.
enum Halt {
    Failed(usize, Box<Record>),
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Halt {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

impl<T> Answer<T> {
    fn of(self, side: usize) -> Result<T, Halt> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Failed(record) => Err(Halt::Failed(side, record)),
        }
    }
}

/// Two sides with their models loaded.
struct Leg {
    sides: [Process; 2],
    /// Iterations of a sample.
    iterations: usize,
    watch: Watch,
    /// Time that starting the sides took.
    start_time: Duration,
}

impl Leg {
    /// Takes a sample of each side, in turns that follow the order.
    fn sample(&mut self, order: [usize; 2]) -> Result<[Sample; 2], Halt> {
        for side in order {
            self.sides[side].begin(0, self.iterations)?.of(side)?;
        }
        let mut taken = [None, None];
        loop {
            for side in order {
                if taken[side].is_none() {
                    taken[side] = self.sides[side].turn()?.of(side)?;
                }
            }
            if let [Some(a), Some(b)] = &mut taken {
                return Ok([std::mem::take(a), std::mem::take(b)]);
            }
        }
    }
}

impl Contest<'_> {
    fn run(&self, start: &dyn Fn(usize) -> Result<Process>, keepers: &[Keeper; 2]) -> Result<Ended> {
        match self.measure(start, keepers) {
            Ok(ended) => Ok(ended),
            Err(Halt::Failed(side, record)) => {
                let record = keepers[side].keep(record, None, &[])?;
                Ok(Ended::Failed(format!("{}: {}", ["A", "B"][side], reason(&record))))
            }
            Err(Halt::Broken(error)) => Err(error),
        }
    }

    fn measure(&self, start: &dyn Fn(usize) -> Result<Process>, keepers: &[Keeper; 2]) -> Result<Ended, Halt> {
        let started = Instant::now();
        let mut course = Course::new(self, start);
        let first = course.coin();
        let (leg, pair) = course.leg(first, Duration::ZERO)?;
        // Two legs have a vote. The sides start anew if there is time for the votes that decide, or nearly.
        let legs = 2 * least_blocks(self.level * WHOLE) as u32;
        let (leg, judged) = match 5 * self.time >= 4 * legs * started.elapsed() {
            true => course.start_anew(legs, leg, pair, first)?,
            false => course.stay(leg, pair, first)?,
        };
        let Course { samples, blocks, whole, ttft, .. } = course;
        let Judged { interval, is_resolved, .. } = judged;
        let conditions = leg.watch.end().conditions;
        let seconds = started.elapsed().as_secs_f64();

        let [mut a, mut b] = leg.sides;
        let keep = |keeper: &Keeper, record| keeper.keep(record, Some(&conditions), &blocks);
        let records = [keep(&keepers[0], a.finish()?)?, keep(&keepers[1], b.finish()?)?];
        for (name, record) in ["A", "B"].iter().zip(&records) {
            if record.status == Status::Failed {
                return Ok(Ended::Failed(format!("{name}: {}", reason(record))));
            }
        }
        let peak = |record: &Record| record.measures.as_ref().and_then(|measures| measures.peak_bytes());
        let allocations = |record: &Record| record.measures.as_ref().and_then(Allocations::of);
        let [a, b] = samples;
        let interval = interval.map(|interval| (interval.low, interval.high));
        Ok(Ended::Measured(Row {
            id: self.id.to_owned(),
            unit: self.unit(),
            ratio: whole.median().context("a benchmark without a block")?,
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
            verdict: Verdict::of(self.unit(), interval, is_resolved),
            pairs: a.values.len(),
            seconds,
            memory_ratio: peak(&records[0]).zip(peak(&records[1])).map(|(a, b)| b as f64 / a as f64),
            same_work: same_work([&a.digests, &b.digests]),
            allocations: AllocationChange::between(allocations(&records[0]), allocations(&records[1])),
            ttft: self.change(&ttft),
            a: median(a.values),
            b: median(b.values),
        }))
    }

    /// The levels of the whole time, and of the time to the first token.
    fn levels(&self, ttft: &Ratios) -> [f64; 2] {
        let share = if ttft.blocks() == 0 { 1.0 } else { WHOLE };
        [share, 1.0 - share].map(|share| self.level * share)
    }

    /// The change of the time to the first token; `None` without a block.
    fn change(&self, ratios: &Ratios) -> Option<Change> {
        let interval = ratios.interval(self.levels(ratios)[1]);
        let is_resolved = interval.is_some_and(|interval| interval.is_within(self.resolve));
        let interval = interval.map(|interval| (interval.low, interval.high));
        let (low, high) = interval.unzip();
        Some(Change { ratio: ratios.median()?, low, high, verdict: Verdict::of(SampleUnit::Ms, interval, is_resolved) })
    }

    /// Starts both sides, prepares the benchmark on `first` and then on the other, and warms them up in the same order.
    fn start(&self, start: &dyn Fn(usize) -> Result<Process>, first: usize) -> Result<Leg, Halt> {
        let started = Instant::now();
        let mut sides = [start(0)?, start(1)?];
        for side in [first, 1 - first] {
            sides[side].prepare(self.id)?.of(side)?;
        }
        let mut shortest = SAMPLE;
        for side in [first, 1 - first] {
            shortest = shortest.min(warm_up(&mut sides[side])?.of(side)?);
        }
        let iterations = (SAMPLE.as_nanos().div_ceil(shortest.as_nanos().max(1)) as usize).min(ITERATIONS);
        Ok(Leg {
            iterations,
            watch: Watch::start(DeviceChoice::Cpu, sides.iter().map(Process::id).collect()),
            sides,
            start_time: started.elapsed(),
        })
    }

    fn unit(&self) -> SampleUnit {
        if scenario::is_in_bytes(record::group(self.id)) { SampleUnit::Bytes } else { SampleUnit::Ms }
    }
}

/// The course of a contest, and what it has measured so far.
///
/// A side's memory stays where it is while its process runs, and that of the side that is loaded first may be slower for as long. If there
/// is time, both sides start anew again and again, and two legs in which either is loaded first have one vote.
struct Course<'a> {
    contest: &'a Contest<'a>,
    start: &'a dyn Fn(usize) -> Result<Process>,
    started: Instant,
    random: ChaCha8Rng,
    samples: [Samples; 2],
    /// The ratios of the whole time, in the order of measuring.
    blocks: Vec<[f64; 2]>,
    whole: Ratios,
    ttft: Ratios,
}

impl<'a> Course<'a> {
    fn new(contest: &'a Contest<'a>, start: &'a dyn Fn(usize) -> Result<Process>) -> Self {
        Self {
            contest,
            start,
            started: Instant::now(),
            random: ChaCha8Rng::seed_from_u64(seed()),
            samples: Default::default(),
            blocks: Vec::new(),
            whole: Ratios::default(),
            ttft: Ratios::default(),
        }
    }

    /// 0 or 1.
    fn coin(&mut self) -> usize {
        (self.random.next_u32() & 1) as usize
    }

    /// Starts a leg in which `first` is loaded first, and takes pairs for some time, at least one. Returns their medians.
    fn leg(&mut self, first: usize, time: Duration) -> Result<(Leg, Pair), Halt> {
        let mut leg = self.contest.start(self.start, first)?;
        let sampling = Instant::now();
        let mut order = [first, 1 - first];
        let mut pairs = vec![self.pair(&mut leg, order)?];
        while sampling.elapsed() < time {
            order.reverse();
            pairs.push(self.pair(&mut leg, order)?);
        }
        Ok((leg, Pair::middle(&pairs)))
    }

    /// Goes on with legs in opposite orders. Each samples for as long as it starts, if all legs then fit into the time.
    fn start_anew(&mut self, legs: u32, leg: Leg, mut one: Pair, mut first: usize) -> Result<(Leg, Judged), Halt> {
        let Contest { time, .. } = *self.contest;
        let leg_time = leg.start_time.min((time / legs).saturating_sub(leg.start_time));
        drop(leg);
        loop {
            let (leg, other) = self.leg(1 - first, leg_time)?;
            let both = Pair::mean(&one, &other);
            self.push([&both, &both]);
            let judged = self.judged();
            let end = if judged.interval.is_none() { 2 * time } else { time };
            if judged.is_enough || self.started.elapsed() >= end {
                return Ok((leg, judged));
            }
            drop(leg);
            first = self.coin();
            one = self.leg(first, leg_time)?.1;
        }
    }

    /// Goes on without starting anew, and every block counts. Each side is loaded first for half of the time, unless loading takes longer
    /// than a quarter of it.
    fn stay(&mut self, mut leg: Leg, mut one: Pair, mut first: usize) -> Result<(Leg, Judged), Halt> {
        let Contest { time, .. } = *self.contest;
        let halves = if time < 4 * leg.start_time { 1 } else { 2 };
        let mut half = 1;
        let mut blocks_before = 0;
        loop {
            let mut order = [first, 1 - first];
            let judged = loop {
                order.reverse();
                let other = self.pair(&mut leg, order)?;
                self.push([&one, &other]);
                let judged = self.judged();
                let is_even = self.whole.blocks() >= 2 * blocks_before;
                if (judged.is_enough && is_even) || self.started.elapsed() >= time * half / halves {
                    break judged;
                }
                if self.coin() == 1 {
                    order.reverse();
                }
                one = self.pair(&mut leg, order)?;
            };
            if half == halves {
                return Ok((leg, judged));
            }
            drop(leg);
            (half, blocks_before, first) = (2, self.whole.blocks(), 1 - first);
            (leg, one) = self.leg(first, Duration::ZERO)?;
        }
    }

    /// Takes a sample of each side, in turns that follow the order.
    fn pair(&mut self, leg: &mut Leg, order: [usize; 2]) -> Result<Pair, Halt> {
        let taken = leg.sample(order)?;
        let mut values = [0.0; 2];
        for ((value, samples), taken) in values.iter_mut().zip(&mut self.samples).zip(&taken) {
            *value = samples.push(&self.contest.unit(), taken)?;
        }
        let [a, b] = taken.map(|taken| mean(&taken.ttft_ns));
        Ok(Pair { whole: values[1] / values[0], ttft: (a > 0.0 && b > 0.0).then(|| b / a) })
    }

    /// Adds the vote of a block.
    fn push(&mut self, pairs: [&Pair; 2]) {
        let block = pairs.map(|pair| pair.whole);
        self.blocks.push(block);
        self.whole.push(block);
        if let [Some(one), Some(other)] = pairs.map(|pair| pair.ttft) {
            self.ttft.push([one, other]);
        }
    }

    fn judged(&self) -> Judged {
        let [level, rest] = self.contest.levels(&self.ttft);
        let Contest { resolve, until, .. } = *self.contest;
        let interval = self.whole.interval(level);
        let is_resolved = interval.is_some_and(|interval| interval.is_within(resolve));
        let is_long = self.samples.iter().any(|side| side.ttft_share >= LONG_PROMPT);
        let has_ttft = match self.ttft.interval(rest) {
            None => self.ttft.blocks() == 0,
            Some(interval) => !is_long || interval.is_within(resolve),
        };
        let is_enough = until.is_met(interval, resolve) && (until != Until::Resolved || has_ttft);
        Judged { interval, is_resolved, is_enough }
    }
}

/// Runs the first iterations, which count nowhere, and returns how long an iteration keeps the side busy. A benchmark of a
/// latency measures only a part of that time.
fn warm_up(side: &mut Process) -> Result<Answer<Duration>> {
    let mut total = Duration::ZERO;
    let mut iterations = 1;
    loop {
        let asked = Instant::now();
        let busy = match side.sample(iterations, 0)? {
            Answer::Done(sample) => asked.elapsed().max(Duration::from_nanos(sample.ns.iter().sum())),
            Answer::Failed(record) => return Ok(Answer::Failed(record)),
        };
        total += busy;
        if total >= SAMPLE || iterations >= ITERATIONS {
            return Ok(Answer::Done(busy / iterations as u32));
        }
        iterations = (2 * iterations).min(ITERATIONS);
    }
}

/// Returns whether both sides generated the same tokens. `None` if a side has none, or generates others in each start, as a model with
/// random weights does.
fn same_work(digests: [&BTreeSet<Option<String>>; 2]) -> Option<bool> {
    let is_steady = |side: &&BTreeSet<Option<String>>| side.len() == 1 && !side.contains(&None);
    digests.iter().all(is_steady).then(|| digests[0] == digests[1])
}

fn reason(record: &Record) -> String {
    text::line(record.reason.as_deref().unwrap_or("no reason was given"))
}

impl Samples {
    /// Adds the mean of the iterations, and returns it.
    fn push(&mut self, unit: &SampleUnit, sample: &Sample) -> Result<f64> {
        let value = match unit {
            SampleUnit::Ms => mean(&sample.ns) / 1e6,
            SampleUnit::Bytes => mean(&sample.peak_bytes),
            SampleUnit::Nats => bail!("a duel measures time or memory, not quality"),
        };
        ensure!(
            value > 0.0,
            "the memory of this device is not counted, so its benchmarks of memory cannot be compared"
        );
        self.values.push(value);
        self.ttft_share = mean(&sample.ttft_ns) / mean(&sample.ns);
        self.digests.insert(sample.output_digest.clone());
        Ok(value)
    }
}

/// NaN without values.
fn mean(values: &[u64]) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len() as f64
}

/// A seed that differs from duel to duel, so that no order of samples is the same every time.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(ids: &[&str]) -> Vec<Listed> {
        ids.iter().map(|id| Listed { id: (*id).into(), target: record::group(id).to_uppercase() }).collect()
    }

    #[test]
    fn tokens_are_compared_if_each_side_repeats_its_own() {
        let side = |digests: &[Option<&str>]| digests.iter().map(|digest| digest.map(str::to_owned)).collect();
        let [one, other, random, none] = [&[Some("1")][..], &[Some("2")], &[Some("1"), Some("2")], &[None]].map(side);
        assert_eq!(same_work([&one, &one]), Some(true));
        assert_eq!(same_work([&one, &other]), Some(false));
        for unknown in [[&one, &random], [&random, &random], [&none, &none], [&none, &one]] {
            assert_eq!(same_work(unknown), None);
        }
    }

    /// The side that is loaded first takes 11 % longer.
    #[test]
    fn an_advantage_of_the_side_that_is_loaded_later_cancels_out() {
        let pair = |whole, ttft| Pair { whole, ttft };
        let first = Pair::middle(&[pair(1.05 / 1.11, Some(0.9)), pair(0.5, Some(0.9)), pair(2.0, Some(0.9))]);
        let both = Pair::mean(&first, &pair(1.05 * 1.11, Some(1.6)));
        assert!((both.whole - 1.05).abs() < 1e-9 && (both.ttft.expect("a ratio") - 1.2).abs() < 1e-9);
        assert!(Pair::mean(&first, &pair(1.0, None)).ttft.is_none());
    }

    #[test]
    fn common_benchmarks_are_selected_by_target() {
        let select = |filter: &str, a: &[&str], b: &[&str]| {
            select(&Some(filter.parse().expect("a filter")), listed(a), listed(b))
        };
        let both = ["short/a/x", "medium/a/x", "short/b/x"];
        let targets = select("", &both, &both).expect("the same");
        let expected = [("SHORT", vec!["short/a/x", "short/b/x"]), ("MEDIUM", vec!["medium/a/x"])];
        for ((target, ids), (expected_target, expected_ids)) in targets.iter().zip(expected) {
            assert_eq!((target.as_str(), ids.len()), (expected_target, expected_ids.len()));
            assert_eq!(*ids, expected_ids);
        }
        assert_eq!(select("^short", &both, &["short/b/x", "short/a/x"]).expect("the order does not matter").len(), 1);
        let error = |filter: &str, b: &[&str]| select(filter, &both, b).expect_err(filter).to_string();
        assert_eq!(error("^long", &both), "no benchmark matches '^long': the groups are medium, short");
        assert!(error("", &both[1..]).contains("only A has short/a/x; select"));
        assert!(error("", &[]).contains("only A has short/a/x and 2 more; select"));
        assert!(error("^medium", &["medium/a/x", "medium/c/x"]).contains("only B has medium/c/x; select"));
    }
}
