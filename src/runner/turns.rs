//! Turns: benchmarks that exist to be compared take their samples alternately, so that a change on the machine
//! meets all of them. Sample `i` of every member is taken in one round. A round has slices, in which each member runs a part
//! of its sample, and each slice starts with another member. Members whose iterations consist of steps, on models of their own,
//! alternate between those: one that is behind the others runs for a short time, until all have ended their parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::caught;
use crate::{
    measure::{
        conditions::Window,
        pauses,
        statistics::{self, Paired},
    },
    record::PairedRatio,
    scenario::Counterpart,
    workload::{Iteration, SETTLE, Workload},
};

/// The number of samples that Criterion takes by default.
const SAMPLES: usize = 10;

/// How many samples are taken, and how long each is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Time of iterations that are not measured.
    pub warm_up: Duration,
    /// Least number of these iterations. At least one runs where its time decides the length of a sample.
    pub warm_ups: usize,
    /// Time that all samples of a benchmark fill. Each has equally many iterations, at least one.
    pub measuring: Duration,
    /// Iterations of all samples together, instead of those that fill the time; rounded up to a multiple of the samples.
    pub iterations: Option<usize>,
    /// Number of samples.
    pub samples: usize,
    /// Least iterations of a member before the next one's turn. The first of several is not counted: it finds the caches cold
    /// and the threads of the member asleep.
    pub block: usize,
}

impl Pace {
    /// Ten samples that fill a time, after a warm-up of at least one iteration.
    pub const fn new(warm_up: Duration, measuring: Duration) -> Self {
        Self { warm_up, warm_ups: 1, measuring, iterations: None, samples: SAMPLES, block: 1 }
    }

    /// One iteration, for a test.
    pub const ONCE: Self = {
        let none = Self::new(Duration::ZERO, Duration::ZERO);
        Self { warm_ups: 0, iterations: Some(1), samples: 1, ..none }
    };

    /// Iterations of a block that count.
    fn counted(&self) -> usize {
        (self.block - 1).max(1)
    }
}

/// Least time of a member's part in a slice. The first iteration after another member finds the caches cold, which must not
/// be most of what is measured.
const SLICE: Duration = Duration::from_millis(40);

/// The samples of one member, and its workload.
pub struct Turn {
    workload: Box<dyn Workload>,
    iterations: usize,
    /// Time of an iteration of the warm-up.
    iteration_s: f64,
    /// The most slices in which its part is long enough.
    slices: usize,
    /// True if the first iteration of a part is not counted.
    has_lead: bool,
    /// The iterations of each sample.
    pub samples: Vec<Vec<Iteration>>,
    /// The time of each sample, with the other members' parts between its own.
    pub windows: Vec<Window>,
    /// Mean time of an iteration in each slice of each sample, in ms.
    slice_ms: Vec<f64>,
}

impl Turn {
    /// Runs the iterations that are not measured, and derives the length of a sample from them.
    fn warm_up(mut workload: Box<dyn Workload>, pace: Pace) -> Result<Self> {
        let (mut spent, mut count) = (Duration::ZERO, 0_usize);
        let least = pace.warm_ups.max(usize::from(pace.iterations.is_none()));
        while count < least || spent < pace.warm_up {
            spent += caught(|| workload.iterate())?.time;
            count += 1;
        }
        let sample_s = pace.measuring.as_secs_f64() / pace.samples as f64;
        let iteration_s = spent.max(Duration::from_nanos(1)).as_secs_f64() / count.max(1) as f64;
        let iterations = match pace.iterations {
            Some(all) => all.div_ceil(pace.samples),
            None => (sample_s / iteration_s).ceil() as usize,
        };
        let iterations = iterations.max(pace.counted());
        let slices = (iterations as f64 * iteration_s / SLICE.as_secs_f64()) as usize;
        Ok(Self {
            workload,
            iterations,
            iteration_s,
            slices: slices.clamp(1, iterations / pace.counted()),
            has_lead: pace.block > 1,
            samples: Vec::new(),
            windows: Vec::new(),
            slice_ms: Vec::new(),
        })
    }

    /// Number of iterations in a slice. `slices` is at most the number of iterations, so there is work in each.
    fn part(&self, slice: usize, slices: usize) -> usize {
        self.iterations * (slice + 1) / slices - self.iterations * slice / slices
    }

    /// Runs a slice of a sample.
    fn take(&mut self, slice: usize, slices: usize, run: &mut impl FnMut(&mut dyn FnMut()) -> Window) -> Result<()> {
        let part = self.part(slice, slices);
        let mut taken = Ok(Vec::new());
        let window = run(&mut || {
            taken = caught(|| {
                if self.has_lead {
                    thread::sleep(SETTLE);
                    self.workload.iterate()?;
                    self.workload.forget_last();
                }
                self.workload.repeat(part)
            });
        });
        self.keep(slice, taken?, window);
        Ok(())
    }

    /// Keeps the iterations of a slice.
    fn keep(&mut self, slice: usize, taken: Vec<Iteration>, window: Window) {
        self.slice_ms.push(statistics::ms(mean(&taken).time));
        match (slice, self.samples.last_mut(), self.windows.last_mut()) {
            (1.., Some(sample), Some(whole)) => {
                sample.extend(taken);
                whole.to = window.to;
            }
            _ => {
                self.samples.push(taken);
                self.windows.push(window);
            }
        }
    }

    /// Mean of each sample, as Criterion receives it.
    pub fn means(&self) -> Vec<Iteration> {
        self.samples.iter().map(|sample| mean(sample)).collect()
    }

    /// The workload, and the number of iterations of each sample.
    pub fn into_workload(self) -> (Box<dyn Workload>, Vec<usize>) {
        (self.workload, self.samples.iter().map(Vec::len).collect())
    }
}

/// Mean time and highest peak of iterations.
fn mean(iterations: &[Iteration]) -> Iteration {
    let time: Duration = iterations.iter().map(|iteration| iteration.time).sum();
    let peak_bytes = iterations.iter().map(|iteration| iteration.peak_bytes).max().unwrap_or_default();
    Iteration { time: time / iterations.len().max(1) as u32, peak_bytes }
}

/// A stage of the turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A member warms up.
    WarmUp(usize),
    /// All take a sample, after `done` of `all`.
    Round { done: usize, all: usize },
}

/// Takes the samples of all members in turns. `tell` is called before each stage. `run` runs a part of a sample and returns its
/// window. A member that fails takes no part in later slices, and the others go on.
pub fn take(
    members: Vec<Result<Box<dyn Workload>>>,
    pace: Pace,
    mut tell: impl FnMut(Stage),
    mut run: impl FnMut(&mut dyn FnMut()) -> Window,
) -> Vec<Result<Turn>> {
    let mut warm_up = |(member, workload): (usize, Result<Box<dyn Workload>>)| {
        tell(Stage::WarmUp(member));
        Turn::warm_up(workload?, pace)
    };
    let mut turns: Vec<Result<Turn>> = members.into_iter().enumerate().map(&mut warm_up).collect();
    let count = turns.len();
    // All members have equally many slices, so that each slice of one has its pair.
    let slices = turns.iter().flatten().map(|turn| turn.slices).min().unwrap_or(1);
    let alternates = may_alternate(&turns);
    for slice in 0..pace.samples * slices {
        if slice % slices == 0 {
            tell(Stage::Round { done: slice / slices, all: pace.samples });
        }
        if alternates {
            alternate(&mut turns, slice % count, (slice % slices, slices), &mut run);
            continue;
        }
        for place in 0..count {
            let slot = &mut turns[(slice + place) % count];
            let taken = slot.as_mut().map_or(Ok(()), |turn| turn.take(slice % slices, slices, &mut run));
            if let Err(error) = taken {
                *slot = Err(error);
            }
        }
    }
    turns
}

/// Returns whether all members that work have iterations in parts, on more than one model.
fn may_alternate(turns: &[Result<Turn>]) -> bool {
    let models: Option<BTreeSet<_>> = turns.iter().flatten().map(|turn| turn.workload.model_between_parts()).collect();
    models.is_some_and(|models| models.len() > 1) && turns.iter().flatten().all(|turn| !turn.has_lead)
}

/// The part of a member in a slice whose members alternate.
struct Part {
    count: usize,
    taken: Vec<Iteration>,
    /// Time so far, as a share of the time that the part is expected to take.
    progress: f64,
}

/// Runs a slice of all members, beginning with `first`. The member with the least progress runs for [`SLICE`]. Members that share
/// a model wait for the end of each other's iterations.
fn alternate(
    turns: &mut [Result<Turn>],
    first: usize,
    (slice, slices): (usize, usize),
    run: &mut impl FnMut(&mut dyn FnMut()) -> Window,
) {
    let part = |turn: &Turn| Part { count: turn.part(slice, slices), taken: Vec::new(), progress: 0.0 };
    let mut parts: Vec<Option<Part>> = turns.iter().map(|turn| turn.as_ref().ok().map(part)).collect();
    // The member that is in the middle of an iteration, for each model.
    let mut users: BTreeMap<Option<*const ()>, usize> = BTreeMap::new();
    let window = run(&mut || {
        loop {
            let places = (0..turns.len()).map(|place| (first + place) % turns.len());
            let unfinished = places.filter_map(|member| {
                let part = parts[member].as_ref().filter(|part| part.taken.len() < part.count)?;
                let model = turns[member].as_ref().ok()?.workload.model_between_parts();
                let is_free = users.get(&model).is_none_or(|user| *user == member);
                is_free.then_some((member, part.progress))
            });
            let Some((member, _)) = unfinished.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
            let (Ok(turn), Some(part)) = (&mut turns[member], &mut parts[member]) else { break };
            let (began, model) = (Instant::now(), turn.workload.model_between_parts());
            match caught(|| turn.workload.advance(SLICE)) {
                Ok(None) => drop(users.insert(model, member)),
                Ok(Some(ended)) => {
                    part.taken.push(ended);
                    users.remove(&model);
                }
                Err(error) => {
                    users.remove(&model);
                    turns[member] = Err(error);
                    parts[member] = None;
                    continue;
                }
            }
            part.progress += began.elapsed().as_secs_f64() / (part.count as f64 * turn.iteration_s);
            pauses::pass();
        }
    });
    for (turn, part) in turns.iter_mut().zip(parts) {
        if let (Ok(turn), Some(part)) = (turn, part) {
            turn.keep(slice, part.taken, window.clone());
        }
    }
}

/// Median of the paired ratios of time between two members, with its interval. Returns `None` without a pair.
pub fn paired(of: &Turn, to: &Turn) -> Option<Paired> {
    statistics::paired_ratio(&of.slice_ms, &to.slice_ms)
}

/// The same for the record of a benchmark: `id` is that of the other, in this role.
pub fn ratio(of: &Turn, to: &Turn, counterpart: Counterpart, id: &str) -> Option<PairedRatio> {
    let Paired { ratio, low, high, level, pairs } = paired(of, to)?;
    Some(PairedRatio { counterpart, to: id.to_owned(), ratio, low, high, level, pairs })
}

/// The sets of benchmarks that are measured together: those that `counterparts` connects, directly or through others.
/// `selected` are the ids that run, in their order; the others are in no set. A benchmark without a selected counterpart
/// is a set of its own. The members of a set are in the order of a round: near their first counterpart, so that little
/// time passes between the two.
pub fn sets(selected: &[&str], counterparts: impl Fn(&str) -> Vec<String>) -> Vec<Vec<usize>> {
    let place: BTreeMap<&str, usize> = selected.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    // The set of a benchmark is named by its first member.
    let mut set: Vec<usize> = (0..selected.len()).collect();
    // A benchmark without a counterpart is its own neighbour.
    let mut neighbour = set.clone();
    for (own, id) in selected.iter().enumerate() {
        let counterparts = counterparts(id);
        let others: Vec<usize> = counterparts.iter().filter_map(|other| place.get(other.as_str()).copied()).collect();
        neighbour[own] = others.first().copied().unwrap_or(own);
        for other in others {
            let (from, to) = (set[own].max(set[other]), set[own].min(set[other]));
            set.iter_mut().filter(|name| **name == from).for_each(|name| *name = to);
        }
    }
    let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (member, name) in set.into_iter().enumerate() {
        sets.entry(name).or_default().push(member);
    }
    sets.into_values().map(|members| round(&members, &neighbour)).collect()
}

/// The members with each one that others are compared with in the middle of those.
fn round(members: &[usize], neighbour: &[usize]) -> Vec<usize> {
    let mut around: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for member in members {
        let others = around.entry(neighbour[*member]).or_default();
        if neighbour[*member] != *member {
            others.push(*member);
        }
    }
    let part = |(middle, others): (usize, Vec<usize>)| {
        let (before, after) = others.split_at(others.len() / 2);
        // One that is compared with a third stands beside that one.
        let middle = (neighbour[middle] == middle).then_some(middle);
        before.iter().copied().chain(middle).chain(after.iter().copied()).collect::<Vec<_>>()
    };
    around.into_iter().flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use anyhow::bail;
    use candle_core::Device;

    use super::*;
    use crate::{
        device::{DeviceChoice, Precision},
        generate::Request,
        measure::{LimitsOverTime, conditions::Moment, memory::HeldBytes},
        model,
        scenario::{ExpertDecoder, FeedForward, Sampling},
        workload::{GenerationWorkload, Outcome, SharedSubject},
    };

    /// A machine with a clock that only work moves. Its speed changes with the time.
    struct Machine {
        now: Duration,
        speed: fn(Duration) -> f64,
        /// The members that worked, in order.
        log: Vec<usize>,
    }

    struct Fake {
        machine: Rc<RefCell<Machine>>,
        member: usize,
        work: Duration,
        fails_after: usize,
    }

    impl Workload for Fake {
        fn iterate(&mut self) -> Result<Iteration> {
            let mut machine = self.machine.borrow_mut();
            if machine.log.iter().filter(|member| **member == self.member).count() == self.fails_after {
                bail!("member {} fails", self.member);
            }
            let time = self.work.div_f64((machine.speed)(machine.now));
            machine.now += time;
            machine.log.push(self.member);
            Ok(Iteration { time, peak_bytes: 0 })
        }

        fn forget_last(&mut self) {}

        fn finish(self: Box<Self>, _: &[usize], _: &LimitsOverTime) -> Outcome {
            Outcome::failed(anyhow::anyhow!("a fake has no measures"))
        }
    }

    fn machine(speed: fn(Duration) -> f64) -> Rc<RefCell<Machine>> {
        Rc::new(RefCell::new(Machine { now: Duration::ZERO, speed, log: Vec::new() }))
    }

    fn member(machine: &Rc<RefCell<Machine>>, member: usize, ms: u64) -> Result<Box<dyn Workload>> {
        Ok(Box::new(Fake {
            machine: machine.clone(),
            member,
            work: Duration::from_millis(ms),
            fails_after: usize::MAX,
        }))
    }

    fn window(run: &mut dyn FnMut()) -> Window {
        run();
        Window { from: Moment::now(), to: Moment::now() }
    }

    const PACE: Pace = Pace {
        warm_up: Duration::from_millis(1),
        warm_ups: 1,
        measuring: Duration::from_millis(1),
        iterations: None,
        samples: 10,
        block: 1,
    };

    #[test]
    fn every_round_starts_with_another_member() {
        let machine = machine(|_| 1.0);
        let members = (0..3).map(|number| member(&machine, number, 100)).collect();
        let turns = take(members, Pace { samples: 4, ..PACE }, |_| (), window);
        assert!(turns.iter().all(|turn| turn.as_ref().is_ok_and(|turn| turn.samples.len() == 4)));
        let warm_up = [0, 1, 2];
        let rounds = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]].concat();
        assert_eq!(machine.borrow().log, [warm_up.as_slice(), &rounds].concat());
    }

    #[test]
    fn samples_are_as_long_as_planned() {
        let machine = machine(|_| 1.0);
        let (warm_up, measuring) = (Duration::from_millis(250), Duration::from_millis(3000));
        let pace = Pace { warm_up, measuring, ..PACE };
        let turns = take(vec![member(&machine, 0, 100), member(&machine, 1, 1000)], pace, |_| (), window);
        let counts: Vec<Vec<usize>> = turns.into_iter().map(|turn| turn.expect("it works").into_workload().1).collect();
        assert_eq!(counts, [vec![3; 10], vec![1; 10]]);
        let warm_up = [0, 0, 0, 1];
        assert_eq!(machine.borrow().log[..4], warm_up);
    }

    #[test]
    fn samples_have_as_many_iterations_as_asked_for() {
        for (asked_for, each) in [(200, 20), (195, 20), (10, 1), (1, 1)] {
            let machine = machine(|_| 1.0);
            let turns =
                take(vec![member(&machine, 0, 7)], Pace { iterations: Some(asked_for), ..PACE }, |_| (), window);
            let counts = turns.into_iter().map(|turn| turn.expect("it works").into_workload().1);
            assert_eq!(counts.collect::<Vec<_>>(), [vec![each; 10]]);
        }
    }

    #[test]
    fn long_samples_are_taken_in_slices() {
        let machine = machine(|_| 1.0);
        let pace = Pace { measuring: Duration::from_millis(240), samples: 2, ..PACE };
        let turns = take(vec![member(&machine, 0, 20), member(&machine, 1, 40)], pace, |_| (), window);
        let turns: Vec<&Turn> = turns.iter().map(|turn| turn.as_ref().expect("it works")).collect();
        // Three slices of 40 ms in each sample of 120 ms.
        let rounds = [[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]].concat();
        assert_eq!(machine.borrow().log[2..], rounds);
        assert_eq!(turns.iter().map(|turn| turn.samples[1].len()).collect::<Vec<_>>(), [6, 3]);
        let ratio = ratio(turns[1], turns[0], Counterpart::Plain, "a").expect("pairs");
        assert_eq!((ratio.pairs, turns[0].windows.len()), (6, 2));
        assert!((ratio.ratio - 2.0).abs() < 1e-9, "{ratio:?}");
    }

    /// Members whose first iteration after another one's turn is slow, as that of threads that have fallen asleep.
    #[test]
    fn the_first_iteration_of_a_block_is_not_counted() {
        struct Sleepy(Fake);
        impl Workload for Sleepy {
            fn iterate(&mut self) -> Result<Iteration> {
                let is_awake = self.0.machine.borrow().log.last() == Some(&self.0.member);
                let ran = self.0.iterate()?;
                Ok(Iteration { time: if is_awake { ran.time } else { 5 * ran.time }, ..ran })
            }

            fn forget_last(&mut self) {}

            fn finish(self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
                Box::new(self.0).finish(samples, limits)
            }
        }
        let machine = machine(|_| 1.0);
        let sleepy = |member: usize, ms: u64| -> Result<Box<dyn Workload>> {
            let work = Duration::from_millis(ms);
            Ok(Box::new(Sleepy(Fake { machine: machine.clone(), member, work, fails_after: usize::MAX })))
        };
        let pace = Pace { block: 5, ..PACE };
        let turns = take(vec![sleepy(0, 100), sleepy(1, 200)], pace, |_| (), window);
        let turns: Vec<&Turn> = turns.iter().map(|turn| turn.as_ref().expect("it works")).collect();
        let blocks = [[0; 5], [1; 5], [1; 5], [0; 5]].concat();
        assert_eq!(machine.borrow().log[..22], [vec![0, 1], blocks].concat());
        assert!(turns.iter().all(|turn| turn.samples.iter().all(|sample| sample.len() == 4)));
        let ratio = ratio(turns[1], turns[0], Counterpart::Peer, "peer").expect("pairs");
        assert_eq!((ratio.pairs, ratio.ratio), (10, 2.0));
        // A long sample is cut into slices that are whole blocks.
        let long = Pace { measuring: Duration::from_millis(2000), samples: 1, block: 5, ..PACE };
        let turns = take(vec![member(&machine, 0, 100), member(&machine, 1, 100)], long, |_| (), window);
        let lengths = turns.iter().flatten().map(|turn| (turn.samples[0].len(), turn.slice_ms.len()));
        assert_eq!(lengths.collect::<Vec<_>>(), [(20, 5); 2]);
    }

    /// The machine halves its speed in the middle. Samples one after the other would give a ratio of 2.2 or 0.55.
    #[test]
    fn a_machine_that_slows_down_leaves_the_ratio() {
        let machine = machine(|now| if now < Duration::from_millis(1100) { 1.0 } else { 0.5 });
        let turns = take(vec![member(&machine, 0, 110), member(&machine, 1, 100)], PACE, |_| (), window);
        let [slower, faster] = turns.as_slice() else { panic!("two members") };
        let (slower, faster) = (slower.as_ref().expect("it works"), faster.as_ref().expect("it works"));
        assert!(slower.means()[9].time > slower.means()[0].time, "the machine did slow down");
        let ratio = ratio(slower, faster, Counterpart::Plain, "b").expect("pairs");
        assert!((ratio.ratio - 1.1).abs() < 1e-6, "{ratio:?}");
        assert!((ratio.low - 1.1).abs() < 1e-6 && (ratio.high - 1.1).abs() < 1e-6, "{ratio:?}");
        assert_eq!((ratio.pairs, ratio.to.as_str()), (10, "b"));
    }

    #[test]
    fn a_program_against_itself_gives_one() {
        let machine = machine(|now| 1.0 + 0.5 * (now.as_secs_f64()).sin());
        let turns = take(vec![member(&machine, 0, 20), member(&machine, 1, 20)], PACE, |_| (), window);
        let turns: Vec<&Turn> = turns.iter().map(|turn| turn.as_ref().expect("it works")).collect();
        let ratio = ratio(turns[0], turns[1], Counterpart::ActiveTwin, "itself").expect("pairs");
        assert!((ratio.ratio - 1.0).abs() < 0.01 && ratio.low <= 1.0 && ratio.high >= 1.0, "{ratio:?}");
    }

    fn dense_2() -> SharedSubject {
        let decoder = ExpertDecoder::new(FeedForward::Dense { experts: 2 });
        let subject = model::expert_grid(decoder, 0.0, Precision::F32, &Device::Cpu, 42).expect("a model");
        Rc::new(RefCell::new(subject))
    }

    fn generation(subject: &SharedSubject, new_tokens: usize) -> Result<Box<dyn Workload>> {
        let request = Request { new_tokens, sampling: Sampling::GREEDY, seed: 42, stop: Vec::new() };
        let (subject, held) = (subject.clone(), HeldBytes::default());
        Ok(Box::new(GenerationWorkload::new(subject, held, vec![vec![1, 2, 3]], request, DeviceChoice::Cpu)?))
    }

    /// Iterations of steps of 5 ms.
    struct Steps {
        member: usize,
        /// Steps of an iteration, and those of the present one so far.
        steps: usize,
        done: usize,
        /// Steps until it fails.
        left: usize,
        /// Members may share it.
        model: Rc<()>,
        log: Rc<RefCell<Vec<usize>>>,
    }

    impl Workload for Steps {
        fn iterate(&mut self) -> Result<Iteration> {
            Ok(self.advance(Duration::MAX)?.expect("all steps"))
        }

        fn advance(&mut self, time: Duration) -> Result<Option<Iteration>> {
            let began = Instant::now();
            self.log.borrow_mut().push(self.member);
            while self.done < self.steps {
                if self.left == 0 {
                    bail!("member {} fails", self.member);
                }
                thread::sleep(Duration::from_millis(5));
                (self.done, self.left) = (self.done + 1, self.left - 1);
                if self.done < self.steps && began.elapsed() >= time {
                    return Ok(None);
                }
            }
            self.done = 0;
            Ok(Some(Iteration { time: Duration::from_millis(5) * self.steps as u32, peak_bytes: 0 }))
        }

        fn model_between_parts(&self) -> Option<*const ()> {
            Some(Rc::as_ptr(&self.model))
        }

        fn forget_last(&mut self) {}

        fn finish(self: Box<Self>, _: &[usize], _: &LimitsOverTime) -> Outcome {
            Outcome::failed(anyhow::anyhow!("a fake has no measures"))
        }
    }

    /// Takes one sample of one iteration of each member, of which `members` gives the model and the steps. The first member fails
    /// after so many. Returns the turns, and the member of each part.
    fn in_steps(members: &[(usize, usize)], fails_after: usize) -> (Vec<Result<Turn>>, Vec<usize>) {
        let (models, log) = ([Rc::new(()), Rc::new(())], Rc::new(RefCell::new(Vec::new())));
        let workload = |(member, (model, steps)): (usize, &(usize, usize))| -> Result<Box<dyn Workload>> {
            let left = if member == 0 { fails_after } else { usize::MAX };
            let (model, log) = (models[*model].clone(), log.clone());
            Ok(Box::new(Steps { member, steps: *steps, done: 0, left, model, log }))
        };
        let workloads = members.iter().enumerate().map(workload).collect();
        let turns = take(workloads, Pace { samples: 1, ..PACE }, |_| (), window);
        // The warm-up of a member is one part.
        let parts = log.borrow()[members.len()..].to_vec();
        (turns, parts)
    }

    /// How often another member than before works.
    fn switches(parts: impl IntoIterator<Item = usize>) -> usize {
        let parts: Vec<usize> = parts.into_iter().collect();
        parts.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    #[test]
    fn members_on_models_of_their_own_alternate_between_steps() {
        // 200 and 100 ms: the second member has about every third part.
        let (turns, parts) = in_steps(&[(0, 40), (1, 20)], usize::MAX);
        let ms: Vec<f64> = turns.iter().flatten().map(|turn| turn.slice_ms[0]).collect();
        assert_eq!(ms, [200.0, 100.0]);
        assert!(parts[0] == 0 && switches(parts.iter().copied()) >= 4, "{parts:?}");
        // Members that are alone, or on one model, run whole iterations.
        assert_eq!(in_steps(&[(0, 20)], usize::MAX).1, [0]);
        assert_eq!(in_steps(&[(0, 20), (0, 20)], usize::MAX).1, [0, 1]);
    }

    #[test]
    fn members_on_one_model_wait_for_each_other() {
        let (turns, parts) = in_steps(&[(0, 40), (0, 20), (1, 60)], usize::MAX);
        assert!(turns.iter().flatten().all(|turn| turn.samples[0].len() == 1));
        assert_eq!(switches(parts.iter().copied().filter(|member| *member < 2)), 1, "{parts:?}");
        assert!(switches(parts.iter().copied()) >= 4, "{parts:?}");
    }

    #[test]
    fn a_member_that_fails_between_steps_leaves_its_model_to_the_others() {
        let (turns, _) = in_steps(&[(0, 40), (0, 20), (1, 40)], 60);
        assert_eq!(turns[0].as_ref().err().expect("a failure").to_string(), "member 0 fails");
        assert!(turns[1..].iter().all(|turn| turn.as_ref().is_ok_and(|turn| turn.samples[0].len() == 1)));
    }

    #[test]
    fn alternating_models_make_the_tokens_that_they_make_alone() {
        let (one, other) = (dense_2(), dense_2());
        let members = || vec![generation(&one, 64), generation(&one, 50), generation(&other, 64)];
        let digests: Vec<Option<String>> = members()
            .into_iter()
            .map(|alone| {
                let mut alone = alone.expect("a workload");
                alone.iterate().expect("a generation");
                alone.output_digest()
            })
            .collect();
        let turns = take(members(), Pace { samples: 2, ..PACE }, |_| (), window);
        let turns = turns.into_iter().map(|turn| turn.expect("it works").workload.output_digest());
        assert_eq!(turns.collect::<Vec<_>>(), digests);
        assert!(digests[0] == digests[2] && digests[0] != digests[1]);
    }

    /// A real model and the same model: the weights of a copy would be at another place in memory, which can be slower. If turns
    /// favoured one of the two, all of twenty ratios would be on one side of 1, which chance does to one run in half a million.
    #[test]
    fn dense_2_against_itself_is_on_both_sides_of_one() {
        let subject = dense_2();
        let dense = || generation(&subject, 8);
        let turns = take(vec![dense(), dense()], Pace { samples: 20, ..PACE }, |_| (), window);
        let turns: Vec<&Turn> = turns.iter().map(|turn| turn.as_ref().expect("it works")).collect();
        let ratios: Vec<f64> =
            turns[0].slice_ms.iter().zip(&turns[1].slice_ms).map(|(one, other)| one / other).collect();
        assert!(ratios.iter().any(|ratio| *ratio <= 1.0) && ratios.iter().any(|ratio| *ratio >= 1.0), "{ratios:?}");
        let ratio = ratio(turns[0], turns[1], Counterpart::ActiveTwin, "itself").expect("pairs");
        assert!(ratio.low <= ratio.ratio && ratio.ratio <= ratio.high && ratio.pairs == 20, "{ratio:?}");
    }

    /// `cargo test --lib -- --ignored --nocapture a_copy_of_dense_2` prints the ratio of each of five pairs of copies.
    #[test]
    #[ignore = "takes four minutes, and the machine must do nothing else"]
    fn a_copy_of_dense_2_takes_as_long() {
        let measuring = Duration::from_secs(20);
        let ratios: Vec<PairedRatio> = (0..5)
            .map(|_| {
                let (one, other) = (dense_2(), dense_2());
                let members = vec![generation(&one, 64), generation(&other, 64)];
                let turns = take(members, Pace { measuring, ..PACE }, |_| (), window);
                let turns: Vec<&Turn> = turns.iter().map(|turn| turn.as_ref().expect("it works")).collect();
                let ratio = ratio(turns[0], turns[1], Counterpart::ActiveTwin, "a copy").expect("pairs");
                println!("{:.4} ({:.4} to {:.4}, {} pairs)", ratio.ratio, ratio.low, ratio.high, ratio.pairs);
                ratio
            })
            .collect();
        assert!(ratios.iter().all(|ratio| (ratio.ratio - 1.0).abs() <= 0.01), "{ratios:?}");
    }

    #[test]
    fn a_member_that_fails_does_not_stop_the_others() {
        let machine = machine(|_| 1.0);
        let failing = Fake { machine: machine.clone(), member: 1, work: Duration::from_millis(1), fails_after: 3 };
        let members = vec![
            member(&machine, 0, 10),
            Ok(Box::new(failing) as Box<dyn Workload>),
            Err(anyhow::anyhow!("it cannot be loaded")),
        ];
        let turns = take(members, PACE, |_| (), window);
        assert!(turns[0].as_ref().is_ok_and(|turn| turn.samples.len() == 10));
        let errors = turns[1..].iter().map(|turn| turn.as_ref().err().expect("a failure").to_string());
        assert_eq!(errors.collect::<Vec<_>>(), ["member 1 fails", "it cannot be loaded"]);
        assert_eq!(machine.borrow().log.iter().filter(|member| **member == 1).count(), 3);
    }

    #[test]
    fn sets_are_what_comparisons_connect() {
        let counterparts = |id: &str| match id {
            "moe-16x2" => vec!["dense-2".to_owned(), "dense-16".to_owned()],
            "moe-4x2" => vec!["dense-2".to_owned(), "dense-4".to_owned()],
            "kept" => vec!["plain".to_owned()],
            _ => Vec::new(),
        };
        let all = ["moe-4x2", "other", "moe-16x2", "dense-2", "dense-16", "plain", "kept"];
        assert_eq!(sets(&all, counterparts), [vec![0, 3, 2, 4], vec![1], vec![5, 6]]);
        // A filter that leaves one member leaves nothing to compare.
        assert_eq!(sets(&["moe-16x2", "kept"], counterparts), [[0], [1]]);
        assert_eq!(sets(&["moe-16x2", "dense-2"], counterparts), [[1, 0]]);
        // `c` is compared with `b`, which is compared with `a`: all of them are in the round, once.
        let chain = |id: &str| match id {
            "b" => vec!["a".to_owned()],
            "c" => vec!["b".to_owned()],
            _ => Vec::new(),
        };
        assert_eq!(sets(&["a", "b", "c"], chain), [[0, 1, 2]]);
    }
}
