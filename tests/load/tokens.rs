//! Counts of tokens and the time per token, for random streams of a server that knows the truth.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    net::TcpStream,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use candlepower::load::{Api, Arrivals, Plan, Shape, Tokens};
use serde_json::{Map, Value, json};

use crate::{
    a_run,
    mock::{Request, end_mark, head, serve},
    report, shape,
};

/// Time between events.
const STEP: Duration = Duration::from_millis(20);
/// Limit of the first stream. The limit tells the server which stream it is.
const FIRST_LIMIT: u64 = 100;

/// Numbers from a seed, by the generator SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }
}

/// What a stream has, and how it was sent.
struct Truth {
    tokens: u64,
    tpot_ms: f64,
    /// The stream tells which event has which tokens.
    is_placed: bool,
    has_usage: bool,
    /// What kind of stream it is.
    class: String,
}

/// An object with its fields in random order.
fn shuffled(fields: Vec<(&str, Value)>, random: &mut Random) -> String {
    let mut fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    for place in (1..fields.len()).rev() {
        fields.swap(place, random.below(place as u64 + 1) as usize);
    }
    format!("{{{}}}", fields.join(", "))
}

/// Sends the stream of this number, in parts of random sizes.
fn stream(number: u64, is_chat: bool, socket: &mut TcpStream) -> Option<Truth> {
    let mut random = Random(number);
    let most_per_event = [1, 1, 3][random.below(3) as usize];
    // Usage: none, at the end, in the last event, in each event. Lists: none, ids, log-probabilities.
    let (usage, lists) = (random.below(4), random.below(3));
    let (ends_by_stop, is_crlf) = (random.below(2) == 0, random.below(4) == 0);
    let may_be_silent = random.below(3) == 0;
    let usage_of = |tokens: u64| json!({"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens});
    let mut send = |choices: Vec<String>, usage: Option<Value>, random: &mut Random| -> bool {
        let choices: Vec<Value> = choices.iter().map(|choice| serde_json::from_str(choice).expect("JSON")).collect();
        let mut fields = vec![("id", json!("c")), ("object", json!("x")), ("choices", json!(choices))];
        fields.extend(usage.map(|usage| ("usage", usage)));
        let event = format!("data: {}\n\n", shuffled(fields, random));
        let event = if is_crlf { event.replace('\n', "\r\n") } else { event };
        // One chunk for each event: a part of an event that follows later would move its time.
        let mut bytes = event.as_bytes();
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(1 + random.below(bytes.len() as u64) as usize);
            if !crate::mock::chunk(socket, part) {
                return false;
            }
            bytes = rest;
        }
        true
    };
    let choice = |text: &str, tokens: u64, finish: Option<&str>, random: &mut Random| {
        let mut fields = vec![("index", json!(0)), ("finish_reason", json!(finish))];
        fields.push(if is_chat { ("delta", json!({"content": text})) } else { ("text", json!(text)) });
        let ids: Vec<u64> = (0..tokens).collect();
        match lists {
            1 => fields.push(("token_ids", json!(ids))),
            2 if is_chat => fields.push(("logprobs", json!({"content": ids}))),
            2 => fields.push(("logprobs", json!({"tokens": ids}))),
            _ => {}
        }
        shuffled(fields, random)
    };
    let (mut tokens, mut times, mut per_event) = (0, Vec::new(), Vec::new());
    let events = 8 + random.below(10);
    for event in 0..events {
        thread::sleep(STEP);
        let is_silent = may_be_silent && lists == 0 && event > 0 && event + 1 < events && random.below(4) == 0;
        let count = if is_silent { 1 } else { 1 + random.below(most_per_event) };
        let text: String = (0..count).map(|_| format!(" {}", "x".repeat(1 + random.below(12) as usize))).collect();
        tokens += count;
        times.push(Instant::now());
        per_event.push((count, is_silent));
        let running = (usage == 3).then(|| usage_of(tokens));
        let choice = choice(if is_silent { "" } else { &text }, count, None, &mut random);
        send(vec![choice], running, &mut random).then_some(())?;
    }
    let visible = tokens;
    tokens += u64::from(ends_by_stop);
    let last = choice("", 0, Some(if ends_by_stop { "stop" } else { "length" }), &mut random);
    thread::sleep(STEP);
    let ended = Instant::now();
    send(vec![last], (usage >= 2).then(|| usage_of(tokens)), &mut random).then_some(())?;
    if usage == 1 {
        send(Vec::new(), Some(usage_of(tokens)), &mut random).then_some(())?;
    }
    end_mark(socket).then_some(())?;
    socket.flush().ok()?;
    let later = visible - per_event[0].0;
    let span = times[times.len() - 1] - times[0];
    let is_single = per_event.iter().all(|(count, _)| *count == 1);
    Some(Truth {
        tokens,
        // A running usage also tells when the end token came, with the event that has no text.
        tpot_ms: if usage == 3 && lists == 0 && ends_by_stop {
            (ended - times[0]).as_secs_f64() * 1e3 / (later + 1) as f64
        } else {
            span.as_secs_f64() * 1e3 / later as f64
        },
        is_placed: lists > 0 || usage == 3 || (usage > 0 && is_single),
        has_usage: usage > 0,
        class: format!("usage {usage}, lists {lists}, stop {ends_by_stop}, silent {may_be_silent}"),
    })
}

/// Counts are exact, and times per token are right or unknown.
#[test]
fn random_streams_are_counted_and_timed_right() {
    const STREAMS: u64 = 1000;
    let folder = tempfile::tempdir().expect("a folder");
    let limits = folder.path().join("limits");
    let lengths: Vec<String> = (0..STREAMS).map(|number| (FIRST_LIMIT + number).to_string()).collect();
    std::fs::write(&limits, lengths.join("\n")).expect("written");
    for (api, own) in [(Api::Completions, false), (Api::Chat, true)] {
        let truths = Arc::new(Mutex::new(HashMap::new()));
        let known = truths.clone();
        let url = serve(move |request: &Request, socket| {
            let number = request.body["max_tokens"].as_u64().expect("a limit") - FIRST_LIMIT;
            if !head(socket) {
                return false;
            }
            let truth = stream(number, request.body["messages"].is_array(), socket);
            truth.is_some_and(|truth| known.lock().expect("no panic").insert(number, truth).is_none())
        });
        let mut run = a_run(&url, 1.0, 1.0);
        run.target.api = api;
        run.tokens = own.then(|| Tokens::new("words".into(), |text| text.split_whitespace().count()));
        run.plan = Plan::new(Shape {
            arrivals: Arrivals::Closed { clients: 25 },
            requests: Some(STREAMS),
            duration_s: None,
            max_new_tokens: format!("file:{}", limits.display()).parse().expect("lengths"),
            ..shape(1.0, 1.0)
        })
        .expect("a plan");
        let lines = folder.path().join("lines.jsonl");
        run.exchanges_to = Some(lines.clone());
        let report = report(&run);
        assert_eq!(report.summary.all.failed, 0, "{}", report.text());
        let truths = truths.lock().expect("no panic");
        let mut errors: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for line in std::fs::read_to_string(lines).expect("lines").lines() {
            let line: Map<String, Value> = serde_json::from_str(line).expect("JSON");
            let truth = &truths[&line["index"].as_u64().expect("an index")];
            let usage = truth.has_usage.then_some(truth.tokens);
            assert_eq!(line["usage_tokens"].as_u64(), usage, "{line:?}");
            let Some(tpot_ms) = line["tpot_ms"].as_f64() else {
                assert!(!truth.is_placed, "unknown: {line:?}");
                continue;
            };
            assert!(truth.is_placed || own, "a guess: {line:?}");
            errors.entry(&truth.class).or_default().push(tpot_ms / truth.tpot_ms - 1.0);
        }
        // A busy machine delays events of some streams. A wrong count is in each stream of its kind.
        for (class, mut errors) in errors {
            errors.sort_by(f64::total_cmp);
            let median = errors[errors.len() / 2];
            assert!(median.abs() < 0.02, "{class}: off by {:.1} % in {} streams", median * 100.0, errors.len());
        }
    }
}
