//! The schedule of a run: when each request is due, and how long its prompt and answer are. Equal seeds give equal bytes.

use std::{collections::HashMap, fmt, path::Path, str::FromStr};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    arrivals::Arrivals,
    draw::{Draw, Purpose},
    lengths::{Lengths, MAX_TOKENS},
};
use crate::files;

/// Most requests of a schedule, which bounds its memory.
const MAX_REQUESTS: u64 = 20_000_000;
/// Most turns of a session.
const MAX_TURNS: u32 = 100_000;
/// Longest time of a schedule: ten years.
pub(super) const MAX_S: f64 = 3.2e8;
/// Requests of an unbounded closed loop that its digest covers.
const DIGESTED: u64 = 1000;
/// Largest trace.
const TRACE_MAX_BYTES: u64 = 1 << 30;

/// Everything that a schedule follows from.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Seed of every draw.
    pub seed: u64,
    /// The process of arrivals.
    pub arrivals: Arrivals,
    /// Time within which requests or sessions start, in seconds. `None` if `requests` alone ends the schedule.
    pub duration_s: Option<f64>,
    /// Most requests.
    pub requests: Option<u64>,
    /// Lengths of prompts. Later turns of a session add a message of such a length.
    pub prompt_tokens: Lengths,
    /// Lengths that answers may have.
    pub max_new_tokens: Lengths,
    /// Tokens at the start of each first turn that are the same in all requests.
    pub shared_prefix_tokens: u32,
    /// Turns of each session.
    pub turns: Turns,
    /// File of a trace; its arrivals and lengths replace those above.
    pub trace: Option<std::path::PathBuf>,
}

/// The turns of a session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turns {
    /// Requests of a session; 1 for independent requests.
    pub count: u32,
    /// Time between the end of an answer and the next turn.
    pub think_ms: f64,
}

/// The part of a schedule that one process sends: the sessions whose number has the remainder `index` by `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Number of the shard, from 0.
    pub index: u64,
    /// Number of shards.
    pub count: u64,
}

/// A planned request. Its JSON is a line of the schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Planned {
    /// Number in the schedule.
    pub index: u64,
    /// Conversation that the request belongs to.
    pub session: u64,
    /// Turn within the conversation, from 0.
    pub turn: u32,
    /// Time from the start at which the request is due; `null` if it follows the end of another request.
    pub due_ns: Option<u64>,
    /// Time between the end of the previous turn and this one.
    pub think_ns: u64,
    /// Length of the prompt, or of the message that a later turn adds.
    pub prompt_tokens: u32,
    /// Limit of the answer.
    pub max_new_tokens: u32,
    /// Ids of the blocks that the prompt begins with. Equal ids stand for equal text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<u64>,
    /// Index of the next turn.
    pub next: Option<u64>,
}

/// A schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The parameters of the schedule.
    pub shape: Shape,
    /// The requests, or none in a closed loop, whose requests are drawn when they are needed.
    requests: Vec<Planned>,
}

/// A line of a trace, with the fields of Mooncake's traces. The last two are optional additions for conversations.
#[derive(Deserialize)]
struct TraceLine {
    /// Milliseconds from the start of the trace.
    #[serde(default)]
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
    #[serde(default)]
    session_id: Option<serde_json::Value>,
    /// Milliseconds between the end of the previous turn and this one.
    #[serde(default)]
    delay: f64,
}

impl Plan {
    /// Draws the schedule.
    ///
    /// # Errors
    /// When a number is out of range, nothing ends the schedule, or the trace can't be read.
    pub fn new(shape: Shape) -> Result<Self> {
        shape.arrivals.validate()?;
        let Turns { count, think_ms } = shape.turns;
        ensure!((1..=MAX_TURNS).contains(&count), "a session has {count} turns: use 1 to {MAX_TURNS}");
        ensure!((0.0..=MAX_S * 1e3).contains(&think_ms), "the think time is {think_ms} ms: use 0 to {}", MAX_S * 1e3);
        let prefix = shape.shared_prefix_tokens;
        ensure!(f64::from(prefix) <= MAX_TOKENS, "the shared prefix has {prefix} tokens: use at most {MAX_TOKENS}");
        if let Some(duration_s) = shape.duration_s {
            ensure!(
                duration_s > 0.0 && duration_s <= MAX_S,
                "the duration is {duration_s} s: it must be above 0 and at most {MAX_S}"
            );
        }
        let mut plan = Self { shape, requests: Vec::new() };
        let until_ns = plan.shape.duration_s.map_or(u64::MAX, |duration_s| (duration_s * 1e9) as u64);
        let most = plan.shape.requests.unwrap_or(u64::MAX);
        let ensure_end = || -> Result<()> {
            ensure!(
                until_ns < u64::MAX || most < u64::MAX,
                "nothing ends the load in time: give a duration below 500 years, or a number of requests"
            );
            Ok(())
        };
        match (&plan.shape.trace, plan.shape.arrivals) {
            (Some(path), _) => plan.requests = trace(path, until_ns, most)?,
            (None, Arrivals::Trace) => anyhow::bail!("arrivals of a trace need the file of a trace"),
            (None, Arrivals::Closed { .. }) => ensure_end()?,
            (None, Arrivals::Open { .. }) => {
                ensure_end()?;
                let turns = u64::from(plan.shape.turns.count);
                let (arrivals, seed) = (plan.shape.arrivals, plan.shape.seed);
                let starts = || arrivals.times(seed).take_while(move |at| *at < until_ns);
                // A schedule that is too long is refused before it takes memory.
                let sessions = most.div_ceil(turns).min(MAX_REQUESTS / turns + 1);
                let started = starts().take(sessions as usize).count() as u64;
                ensure!(
                    most.min(started * turns) <= MAX_REQUESTS,
                    "the schedule has more than {MAX_REQUESTS} requests"
                );
                for (session, due_ns) in (0..most.div_ceil(turns)).zip(starts()) {
                    for index in (session * turns..(session + 1) * turns).take_while(|index| *index < most) {
                        let due_ns = (index == session * turns).then_some(due_ns);
                        let request = plan.drawn(index, due_ns);
                        plan.requests.push(request);
                    }
                }
            }
        }
        ensure!(
            !plan.requests.is_empty() || matches!(plan.shape.arrivals, Arrivals::Closed { .. }),
            "the schedule has no requests: use a higher rate or a longer duration"
        );
        Ok(plan)
    }

    /// Returns whether a request follows the answer to another one.
    pub(crate) fn has_later_turns(&self) -> bool {
        self.shape.turns.count > 1 || self.requests.iter().any(|request| request.next.is_some())
    }

    /// The request with this index; `None` after the last.
    pub(crate) fn request(&self, index: u64) -> Option<Planned> {
        match self.shape.arrivals {
            Arrivals::Closed { .. } if self.shape.trace.is_none() => {
                (index < self.shape.requests.unwrap_or(u64::MAX)).then(|| self.drawn(index, None))
            }
            _ => self.requests.get(usize::try_from(index).ok()?).cloned(),
        }
    }

    /// The first turns of the sessions of a shard, in order. Endless for a closed loop that only a duration ends.
    pub(crate) fn first_turns(&self, shard: Shard) -> impl Iterator<Item = Planned> + '_ {
        (0..)
            .map_while(|index| self.request(index))
            .filter(move |planned| planned.turn == 0 && planned.session % shard.count == shard.index)
    }

    /// Number of requests of a shard; `None` if a closed loop ends by time.
    #[cfg(test)]
    pub(crate) fn len(&self, shard: Shard) -> Option<u64> {
        match (self.shape.arrivals, self.shape.requests) {
            (Arrivals::Closed { .. }, None) => None,
            _ => Some(
                (0..).map_while(|index| self.request(index)).filter(|p| p.session % shard.count == shard.index).count()
                    as u64,
            ),
        }
    }

    /// The schedule as JSON, a line for each request. A closed loop that only a duration ends gives its first requests.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let most = if matches!(self.shape.arrivals, Arrivals::Closed { .. }) && self.shape.requests.is_none() {
            DIGESTED
        } else {
            u64::MAX
        };
        (0..most).map_while(|index| serde_json::to_string(&self.request(index)?).ok())
    }

    /// First 16 hexadecimal digits of the SHA-256 of the lines.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for line in self.lines() {
            hash.update(line);
            hash.update(b"\n");
        }
        short(hash)
    }

    /// A request whose lengths are drawn from the seed and its index alone.
    fn drawn(&self, index: u64, due_ns: Option<u64>) -> Planned {
        let shape = &self.shape;
        let mut draw = Draw::new(shape.seed, Purpose::Lengths, index);
        let turns = u64::from(shape.turns.count);
        let (session, turn) = (index / turns, (index % turns) as u32);
        let is_last = turn + 1 == shape.turns.count || shape.requests.is_some_and(|most| index + 1 >= most);
        Planned {
            index,
            session,
            turn,
            due_ns,
            think_ns: if turn > 0 { (shape.turns.think_ms * 1e6) as u64 } else { 0 },
            prompt_tokens: shape.prompt_tokens.draw(&mut draw, index),
            max_new_tokens: shape.max_new_tokens.draw(&mut draw, index),
            blocks: Vec::new(),
            next: (!is_last).then_some(index + 1),
        }
    }
}

/// First 16 hexadecimal digits of a hash.
pub(super) fn short(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The requests of a trace that start before `until_ns`.
fn trace(path: &Path, until_ns: u64, most: u64) -> Result<Vec<Planned>> {
    let text = files::read_text_limited(path, TRACE_MAX_BYTES)
        .with_context(|| format!("the trace {} could not be read", path.display()))?;
    let mut requests: Vec<Planned> = Vec::new();
    // Last request of each conversation.
    let mut last: HashMap<String, usize> = HashMap::new();
    let mut sessions = 0;
    let mut earlier_ns = 0;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{} line {}", path.display(), number + 1);
        let line: TraceLine = serde_json::from_str(line).with_context(place)?;
        ensure!(
            [line.timestamp, line.delay].iter().all(|ms| (0.0..=MAX_S * 1e3).contains(ms)),
            "{}: timestamp and delay must be 0 to {} ms",
            place(),
            MAX_S * 1e3
        );
        for (key, length) in [("input_length", line.input_length), ("output_length", line.output_length)] {
            ensure!(f64::from(length) <= MAX_TOKENS, "{}: {key} is {length}: use at most {MAX_TOKENS}", place());
        }
        ensure!(
            (requests.len() as u64) < MAX_REQUESTS,
            "{}: a trace has at most {MAX_REQUESTS} requests",
            path.display()
        );
        let index = requests.len() as u64;
        let name = line.session_id.map(|id| id.to_string());
        let before = name.as_ref().and_then(|name| last.get(name).copied());
        let due_ns = (line.timestamp * 1e6).round() as u64;
        if before.is_none() {
            ensure!(due_ns >= earlier_ns, "{}: the timestamp is before that of an earlier line", place());
            earlier_ns = due_ns;
            if due_ns >= until_ns {
                break;
            }
        }
        if index >= most {
            break;
        }
        let (session, turn) = match before {
            Some(before) => {
                requests[before].next = Some(index);
                (requests[before].session, requests[before].turn + 1)
            }
            None => {
                sessions += 1;
                (sessions - 1, 0)
            }
        };
        if let Some(name) = name {
            last.insert(name, requests.len());
        }
        requests.push(Planned {
            index,
            session,
            turn,
            due_ns: before.is_none().then_some(due_ns),
            think_ns: if turn > 0 { (line.delay * 1e6) as u64 } else { 0 },
            prompt_tokens: line.input_length.max(1),
            max_new_tokens: line.output_length.max(1),
            blocks: line.hash_ids,
            next: None,
        });
    }
    Ok(requests)
}

impl Shard {
    /// The whole schedule.
    pub const WHOLE: Self = Self { index: 0, count: 1 };
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    /// Parses `1/4`, the first of four.
    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (number, count): (u64, u64) = numbers.with_context(|| format!("'{text}' is not a shard such as 1/4"))?;
        ensure!((1..=count).contains(&number), "'{text}': the shards are 1/{count} to {count}/{count}");
        Ok(Self { index: number - 1, count })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::load::arrivals::Spacing;

    fn shape(seed: u64, spacing: Spacing) -> Shape {
        Shape {
            seed,
            arrivals: Arrivals::Open { rate: 50.0, spacing, ramp_from: 0.0, ramp_s: 0.0 },
            duration_s: Some(10.0),
            requests: None,
            prompt_tokens: "lognormal:200,0.8".parse().expect("lengths"),
            max_new_tokens: "uniform:10..90".parse().expect("lengths"),
            shared_prefix_tokens: 0,
            turns: Turns { count: 1, think_ms: 0.0 },
            trace: None,
        }
    }

    fn text(shape: Shape) -> String {
        Plan::new(shape).expect("a plan").lines().map(|line| line + "\n").collect()
    }

    #[test]
    fn equal_seeds_give_equal_bytes() {
        for spacing in [Spacing::Constant, Spacing::Poisson, Spacing::Gamma(0.5)] {
            assert_eq!(text(shape(9, spacing)), text(shape(9, spacing)));
            assert_ne!(text(shape(9, spacing)), text(shape(10, spacing)));
        }
        // The bytes are those of the version that first drew them.
        let first = text(Shape { requests: Some(2), ..shape(42, Spacing::Poisson) });
        let lines = [
            r#"{"index":0,"session":0,"turn":0,"due_ns":12911660,"think_ns":0,"prompt_tokens":128,"max_new_tokens":28,"next":null}"#,
            r#"{"index":1,"session":1,"turn":0,"due_ns":50699899,"think_ns":0,"prompt_tokens":402,"max_new_tokens":47,"next":null}"#,
        ];
        assert_eq!(first.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn shards_are_disjoint_and_complete() {
        let sessions = Shape { turns: Turns { count: 3, think_ms: 100.0 }, ..shape(1, Spacing::Poisson) };
        let plan = Plan::new(sessions).expect("a plan");
        let shards: Vec<Vec<u64>> = (0..4)
            .map(|index| plan.first_turns(Shard { index, count: 4 }).map(|planned| planned.session).collect())
            .collect();
        let all: BTreeSet<u64> = shards.iter().flatten().copied().collect();
        assert_eq!(all.len(), shards.iter().map(Vec::len).sum::<usize>());
        let whole = plan.first_turns(Shard::WHOLE).count();
        assert_eq!((all.len(), plan.len(Shard::WHOLE)), (whole, Some(3 * whole as u64)));
        assert_eq!("2/4".parse::<Shard>().expect("a shard"), Shard { index: 1, count: 4 });
        assert!("5/4".parse::<Shard>().is_err() && "0/4".parse::<Shard>().is_err() && "4".parse::<Shard>().is_err());
    }

    #[test]
    fn later_turns_have_no_time_of_their_own() {
        let plan = Plan::new(Shape {
            turns: Turns { count: 3, think_ms: 20.0 },
            requests: Some(5),
            ..shape(1, Spacing::Constant)
        })
        .expect("a plan");
        let requests: Vec<Planned> = (0..5).map(|index| plan.request(index).expect("a request")).collect();
        assert_eq!(
            requests.iter().map(|request| request.next).collect::<Vec<_>>(),
            [Some(1), Some(2), None, Some(4), None]
        );
        assert_eq!(requests[1].due_ns, None);
        assert_eq!((requests[3].due_ns, requests[4].think_ns), (Some(20_000_000), 20_000_000));
        assert_eq!(plan.request(5), None);
    }

    #[test]
    fn a_trace_is_replayed_as_it_is() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let lines = [
            r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}"#,
            r#"{"timestamp": 27.5, "input_length": 10, "output_length": 3, "session_id": "a"}"#,
            r#"{"timestamp": 3000, "input_length": 7, "output_length": 2}"#,
            r#"{"input_length": 5, "output_length": 4, "session_id": "a", "delay": 40}"#,
        ];
        std::fs::write(file.path(), lines.join("\n")).expect("written");
        let of = |duration_s| Shape {
            arrivals: Arrivals::Trace,
            trace: Some(file.path().to_owned()),
            duration_s,
            ..shape(1, Spacing::Constant)
        };
        let plan = Plan::new(of(None)).expect("a plan");
        let requests: Vec<Planned> = (0..4).map(|index| plan.request(index).expect("a request")).collect();
        assert_eq!(
            requests.iter().map(|r| r.due_ns).collect::<Vec<_>>(),
            [Some(0), Some(27_500_000), Some(3_000_000_000), None]
        );
        assert_eq!((requests[1].next, requests[3].turn, requests[3].think_ns), (Some(3), 1, 40_000_000));
        assert_eq!((requests[0].prompt_tokens, requests[0].blocks.as_slice()), (6758, [0, 1, 2].as_slice()));
        assert_eq!(Plan::new(of(Some(1.0))).expect("a plan").len(Shard::WHOLE), Some(2));
        std::fs::write(file.path(), lines[2].to_owned() + "\n" + lines[0]).expect("written");
        let error = Plan::new(of(None)).expect_err("out of order").to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_schedule_without_an_end_is_refused() {
        for arrivals in [shape(1, Spacing::Poisson).arrivals, Arrivals::Closed { clients: 2 }] {
            let endless = Shape { arrivals, duration_s: None, ..shape(1, Spacing::Poisson) };
            assert!(Plan::new(endless).expect_err("endless").to_string().contains("ends"));
        }
        let huge = Arrivals::Open { rate: 1e9, spacing: Spacing::Constant, ramp_from: 0.0, ramp_s: 0.0 };
        assert!(Plan::new(Shape { arrivals: huge, ..shape(1, Spacing::Poisson) }).is_err());
    }
}
