//! Sends a plan. One thread waits for the times at which requests are due and hands each to the runtime, without waiting
//! for the earlier ones: no request is skipped, moved or spread out. Another thread writes prompts ahead of their time, and the
//! caller's thread counts the answers.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Handle};

use super::{
    arrivals::Arrivals,
    client::{Client, Target},
    exchange::{Exchange, Outcome},
    histogram::Histogram,
    objective::Objective,
    pairs::{Pairs, TimeRatio},
    plan::{Plan, Planned, Shard, short},
    prompt::{self, Tokens},
    report::Report,
    tally::Tally,
    verdict::Limits,
};
use crate::files;

/// Prompts that are written before the first is sent, and kept ahead.
const AHEAD: usize = 256;
/// Time for threads to start before the first request is due.
const LEAD: Duration = Duration::from_millis(200);
/// How often the generator checks that it was not stopped.
const BEAT: Duration = Duration::from_millis(10);

/// A run of a plan against a server.
#[derive(Clone, Debug)]
pub struct Run {
    /// The schedule.
    pub plan: Plan,
    /// The part of it to send.
    pub shard: Shard,
    /// The server.
    pub target: Target,
    /// Counts the tokens of prompts and answers, if given.
    pub tokens: Option<Tokens>,
    /// Objectives of goodput.
    pub objectives: Vec<Objective>,
    /// Time from the start after which the steady state begins, in seconds.
    pub steady_from_s: f64,
    /// When the verdict is INVALID.
    pub limits: Limits,
    /// Start at this time instead of at once, so that several machines start together.
    pub start_at: Option<SystemTime>,
    /// File for a line of JSON for each request, in the order of their ends.
    pub exchanges_to: Option<PathBuf>,
}

/// The state of a run, reported each second.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time until the start.
    pub starts_in: Duration,
    /// Time since the start in seconds.
    pub elapsed_s: f64,
    /// Requests that ended.
    pub ended: u64,
    /// Those that failed.
    pub failed: u64,
    /// Median time to first token from the schedule, so far.
    pub ttft_p50_ms: Option<f64>,
    /// 99th percentile of the generator's lateness, so far.
    pub lateness_p99_ms: Option<f64>,
}

/// Time from the start of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub fn now_ns(self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn at(self, ns: u64) -> Instant {
        self.start + Duration::from_nanos(ns)
    }
}

/// A request that is ready to be sent.
struct Job {
    planned: Planned,
    /// Messages of the user and answers in turns, the user's last.
    conversation: Vec<String>,
    /// The body of the request to each server.
    bodies: Vec<Vec<u8>>,
    /// Hash of the text of a first turn.
    digest: [u8; 32],
}

/// A job that follows another, ordered by its time.
struct Follower {
    due_ns: u64,
    job: Job,
}

impl PartialEq for Follower {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Follower {}

impl PartialOrd for Follower {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Follower {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due_ns, self.job.planned.index).cmp(&(other.due_ns, other.job.planned.index))
    }
}

/// The end of a request, for the thread that sends.
struct Ended {
    at_ns: u64,
    follower: Option<Follower>,
}

/// Sends the plan's shard and returns the report.
///
/// # Errors
/// When the target is not usable, or the file of exchanges can't be written. Failed requests are part of the report.
pub fn run(run: &Run, progress: &mut dyn FnMut(&Progress)) -> Result<Report> {
    let Sent { mut tallies, prompts, .. } = send(&[run], progress)?;
    Ok(Report::new(run, tallies.remove(0), prompts))
}

/// Sends each request of a plan to two servers, one after the other, and returns both reports and the ratios of their times. The server
/// that is first alternates. `other` has the plan of `run`.
///
/// # Errors
/// As [`run`], and when requests follow the answers to others.
pub fn run_against(
    run: &Run,
    other: &Run,
    progress: &mut dyn FnMut(&Progress),
) -> Result<([Report; 2], Vec<TimeRatio>)> {
    ensure!(
        !run.plan.has_later_turns(),
        "two servers answer single requests, because later turns would contain the answers of only one of them: use one turn"
    );
    let Sent { mut tallies, pairs, prompts } = send(&[run, other], progress)?;
    let (of_other, own) = (tallies.remove(1), tallies.remove(0));
    Ok(([Report::new(run, own, prompts.clone()), Report::new(other, of_other, prompts)], pairs.ratios()))
}

/// The answers to a plan, counted.
struct Sent {
    /// The tally of each server.
    tallies: Vec<Tally>,
    pairs: Pairs,
    /// Digest of the prompts.
    prompts: String,
}

/// Sends the plan of the first run to the servers of all.
fn send(runs: &[&Run], progress: &mut dyn FnMut(&Progress)) -> Result<Sent> {
    let run = runs[0];
    let until = |at: SystemTime| at.duration_since(SystemTime::now()).context("the time to start at has passed");
    let start_at = run.start_at.map(until).transpose()?.map(|wait| Instant::now() + wait);
    // The address is checked before anything waits.
    runs.iter().try_for_each(|run| run.target.endpoint().map(drop))?;
    let create = |run: &&Run| run.exchanges_to.as_deref().map(Lines::create).transpose();
    let mut lines: Vec<Option<Lines>> = runs.iter().map(create).collect::<Result<_>>()?;
    let workers = thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let delays = Arc::new(Mutex::new(Histogram::default()));
    let mut tallies: Vec<Tally> = runs.iter().map(|_| Tally::default()).collect();
    let (mut pairs, mut prompts, mut loop_pause) = (Pairs::default(), String::new(), Duration::ZERO);

    thread::scope(|scope| -> Result<()> {
        let (jobs_in, jobs) = mpsc::sync_channel(AHEAD + 1);
        let (ready_in, ready) = mpsc::channel();
        scope.spawn(move || write_jobs(runs, &jobs_in, &ready_in));
        // The writer drops its end when it has written everything.
        let _ = ready.recv();

        let clock = Clock { start: start_at.unwrap_or_else(|| Instant::now() + LEAD) };
        let server = |run: &&Run| Ok(Server { client: Client::new(&run.target, clock)?, target: run.target.clone() });
        let servers = runs.iter().map(server).collect::<Result<_>>()?;
        runtime.spawn(beat(delays.clone()));
        let (exchanges_in, exchanges) = mpsc::channel();
        let handle = runtime.handle().clone();
        let sender = scope.spawn(move || Dispatcher::new(run, clock, servers, handle, exchanges_in).send(jobs));
        let add = |server: usize, exchange: &Exchange, tally: &mut Tally| {
            pairs.add(server, exchange);
            tally.add(exchange, &run.objectives, (run.steady_from_s * 1e9) as u64);
            lines[server].as_mut().map_or(Ok(()), |lines| lines.write(exchange))
        };
        collect(run, clock, &exchanges, &mut tallies, add, progress)?;
        let died = |_| anyhow!("a thread of the load generator ended early");
        (loop_pause, prompts) = sender.join().map_err(died)?;
        Ok(())
    })?;
    runtime.shutdown_background();

    let delays = delays.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for tally in &mut tallies {
        tally.wake_delay.add(&delays)?;
        tally.wake_delay.record(u64::try_from(loop_pause.as_nanos()).unwrap_or(u64::MAX));
    }
    lines.into_iter().flatten().try_for_each(Lines::finish)?;
    Ok(Sent { tallies, pairs, prompts })
}

/// Writes the first turns of the sessions ahead of their time.
fn write_jobs(runs: &[&Run], jobs: &SyncSender<Job>, ready: &Sender<()>) {
    let run = runs[0];
    for (number, planned) in run.plan.first_turns(run.shard).enumerate() {
        let text = prompt::text(&run.plan, &planned, run.tokens.as_ref());
        let digest = Sha256::digest(&text).into();
        let conversation = vec![text];
        let bodies = runs.iter().map(|run| run.target.body(&conversation, planned.max_new_tokens)).collect();
        if jobs.send(Job { planned, conversation, bodies, digest }).is_err() {
            break; // A closed loop ended by time.
        }
        if number + 1 == AHEAD {
            let _ = ready.send(());
        }
    }
}

/// Wakes at regular times on the runtime that reads the answers, and notes how late. Events are stamped as late as that.
async fn beat(delays: Arc<Mutex<Histogram>>) {
    loop {
        let due = Instant::now() + BEAT;
        tokio::time::sleep_until(due.into()).await;
        let delay = due.elapsed();
        if let Ok(mut delays) = delays.lock() {
            delays.record(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// Counts exchanges until none is under way.
fn collect(
    run: &Run,
    clock: Clock,
    exchanges: &Receiver<(usize, Exchange)>,
    tallies: &mut [Tally],
    mut add: impl FnMut(usize, &Exchange, &mut Tally) -> Result<()>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<()> {
    // Tokenizing would compete with the run for the processor, so it waits for the end.
    let mut uncounted = Vec::new();
    let mut ended = 0;
    let mut failed = 0;
    let mut shown = Instant::now();
    let mut add = |(server, mut exchange): (usize, Exchange), tallies: &mut [Tally]| -> Result<()> {
        exchange.count_tokens(run.tokens.as_ref());
        add(server, &exchange, &mut tallies[server])
    };
    loop {
        match exchanges.recv_timeout(Duration::from_millis(200)) {
            Ok((server, exchange)) => {
                ended += 1;
                failed += u64::from(exchange.outcome != Outcome::Ok);
                tallies[server].add_lateness(&exchange);
                if run.tokens.is_some() {
                    uncounted.push((server, exchange))
                } else {
                    add((server, exchange), tallies)?
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            progress(&Progress {
                starts_in: clock.start.saturating_duration_since(Instant::now()),
                elapsed_s: clock.now_ns() as f64 / 1e9,
                ended,
                failed,
                ttft_p50_ms: tallies[0].all.scheduled.ttft.percentile_ms(0.5),
                lateness_p99_ms: tallies[0].lateness.percentile_ms(0.99),
            });
        }
    }
    uncounted.into_iter().try_for_each(|exchange| add(exchange, tallies))
}

/// A server, and what sends to it.
struct Server {
    client: Client,
    target: Target,
}

/// The thread that sends requests when they are due.
struct Dispatcher<'run> {
    run: &'run Run,
    clock: Clock,
    servers: Arc<[Server]>,
    handle: Handle,
    /// The number of the server, and the exchange.
    exchanges: Sender<(usize, Exchange)>,
    plan: Arc<Plan>,
}

impl<'run> Dispatcher<'run> {
    fn new(
        run: &'run Run,
        clock: Clock,
        servers: Vec<Server>,
        handle: Handle,
        exchanges: Sender<(usize, Exchange)>,
    ) -> Self {
        Self { run, clock, servers: servers.into(), handle, exchanges, plan: Arc::new(run.plan.clone()) }
    }

    /// Sends everything. Returns the longest time by which this thread woke late, and a digest of the first turns.
    fn send(self, jobs: Receiver<Job>) -> (Duration, String) {
        let (ended_in, ended) = mpsc::channel();
        let mut followers: BinaryHeap<Reverse<Follower>> = BinaryHeap::new();
        let mut under_way = 0u64;
        let mut longest_pause = Duration::ZERO;
        let mut prompts = Sha256::new();
        let clients = match self.plan.shape.arrivals {
            Arrivals::Closed { clients } => {
                let Shard { index, count } = self.run.shard;
                Some((clients + count - 1 - index) / count)
            }
            _ => None,
        };
        let until_ns = self.plan.shape.duration_s.map_or(u64::MAX, |duration_s| (duration_s * 1e9) as u64);
        // In a closed loop the first session of each client is due at the start.
        let mut idle_since: Vec<u64> = clients.map_or_else(Vec::new, |clients| vec![0; clients as usize]);
        let mut next = jobs.recv().ok();
        loop {
            let arrival_ns = next.as_ref().and_then(|job| match clients {
                None => job.planned.due_ns,
                Some(_) => idle_since.last().copied().filter(|at| *at < until_ns),
            });
            let follower_ns = followers.peek().map(|Reverse(follower)| follower.due_ns);
            let due_ns = match (arrival_ns, follower_ns) {
                (None, None) if under_way == 0 => return (longest_pause, short(prompts)),
                (arrival, follower) => arrival.unwrap_or(u64::MAX).min(follower.unwrap_or(u64::MAX)),
            };
            let wait = match due_ns {
                u64::MAX => BEAT,
                ns => self.clock.at(ns).saturating_duration_since(Instant::now()).min(BEAT),
            };
            let message = if wait.is_zero() {
                // An end may bring a request that is due even earlier.
                ended.try_recv().ok()
            } else {
                let before = Instant::now();
                let message = ended.recv_timeout(wait).ok();
                if message.is_none() {
                    longest_pause = longest_pause.max(before.elapsed().saturating_sub(wait));
                }
                message
            };
            if let Some(Ended { at_ns, follower }) = message {
                under_way -= 1;
                match follower {
                    Some(follower) => followers.push(Reverse(follower)),
                    None if clients.is_some() => idle_since.push(at_ns),
                    None => {}
                }
                continue;
            }
            if !wait.is_zero() {
                continue;
            }
            under_way += 1;
            if arrival_ns == Some(due_ns) {
                if let Some(job) = next.take() {
                    idle_since.pop();
                    prompts.update(job.digest);
                    self.spawn(job, due_ns, ended_in.clone());
                    next = jobs.recv().ok();
                }
            } else if let Some(Reverse(Follower { due_ns, job })) = followers.pop() {
                self.spawn(job, due_ns, ended_in.clone());
            }
        }
    }

    fn spawn(&self, job: Job, due_ns: u64, ended: Sender<Ended>) {
        let (servers, exchanges, plan) = (self.servers.clone(), self.exchanges.clone(), self.plan.clone());
        let tokens = self.run.tokens.clone();
        // The numbers of a shard are that far apart.
        let stride = self.run.shard.count;
        self.handle.spawn(async move {
            let Job { planned, mut conversation, bodies, .. } = job;
            let mut order: Vec<_> = servers.iter().zip(bodies).enumerate().collect();
            if (planned.index / stride) % 2 == 1 {
                order.reverse();
            }
            let (mut at_ns, mut answers) = (due_ns, Vec::new());
            for (server, (Server { client, target }, body)) in order {
                let mut exchange = blank(&planned, at_ns, target);
                client.exchange(body, &mut exchange).await;
                at_ns = exchange.ended_ns;
                answers.push((server, exchange));
            }
            // Only requests to a single server have later turns.
            let (target, answer) = (&servers[0].target, &answers[0].1);
            let next = planned.next.and_then(|index| plan.request(index));
            let follower = match next {
                Some(next) if answer.outcome == Outcome::Ok => {
                    conversation.push(answer.text.clone());
                    conversation.push(prompt::text(&plan, &next, tokens.as_ref()));
                    let bodies = vec![target.body(&conversation, next.max_new_tokens)];
                    let due_ns = at_ns + next.think_ns;
                    Some(Follower { due_ns, job: Job { planned: next, conversation, bodies, digest: [0; 32] } })
                }
                mut lost => {
                    // The remaining turns can't be sent without this answer. They count as failed.
                    while let Some(turn) = lost {
                        let mut exchange = blank(&turn, at_ns, target);
                        exchange.outcome = Outcome::EarlierTurnFailed;
                        exchange.ended_ns = at_ns;
                        let _ = exchanges.send((0, exchange));
                        lost = turn.next.and_then(|index| plan.request(index));
                    }
                    None
                }
            };
            // The receivers live until every request has ended.
            answers.into_iter().for_each(|answer| drop(exchanges.send(answer)));
            let _ = ended.send(Ended { at_ns, follower });
        });
    }
}

/// The exchange of a request that was not sent yet.
fn blank(planned: &Planned, due_ns: u64, target: &Target) -> Exchange {
    Exchange {
        index: planned.index,
        session: planned.session,
        turn: planned.turn,
        due_ns,
        sent_ns: None,
        ended_ns: due_ns,
        attempts: 0,
        outcome: Outcome::NotConnected,
        status: None,
        detail: None,
        chunks: Vec::new(),
        text: String::new(),
        finish_reason: None,
        planned_prompt_tokens: planned.prompt_tokens,
        max_new_tokens: target.limit(planned.max_new_tokens),
        prompt_tokens: None,
        cached_tokens: None,
        usage_tokens: None,
        own_tokens: None,
        token_source: None,
        oddities: BTreeSet::new(),
    }
}

/// A file of lines that appears under its name when it is whole.
struct Lines {
    path: PathBuf,
    file: BufWriter<files::Target>,
}

impl Lines {
    fn create(path: &Path) -> Result<Self> {
        let file = files::Target::create(path).with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    fn write(&mut self, exchange: &Exchange) -> Result<()> {
        writeln!(self.file, "{}", exchange.line()).with_context(|| format!("{} was not written", self.path.display()))
    }

    fn finish(self) -> Result<()> {
        let written = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        written.and_then(files::Target::finish).with_context(|| format!("{} was not written", self.path.display()))
    }
}
