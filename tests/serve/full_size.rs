//! The command `candlepower serve` at full size: a published shape on engine `tuned` in bf16, with one client and then with
//! fifty. It takes minutes and a quiet machine:
//!
//! ```sh
//! cargo test --release --test serve -- --ignored fifty_clients_at_full_size --nocapture
//! ```
//!
//! `SERVE_MODEL` names another model, and `SERVE_SECONDS` another time for the fifty.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    COMPLETIONS,
    client::{get, post},
    command::{signal, start},
    prompt, streamed, with,
};

const CLIENTS: u32 = 50;
/// Different prompts. Their answers alone are found out once.
const PROMPTS: u32 = 20;
const NEW_TOKENS: usize = 16;

/// Least throughput of fifty clients over that of one.
const RATIO: f64 = 3.0;

/// Growth of the server from the first quarter of the load to its end that is not a leak.
const FLAT_BYTES: u64 = 32 << 20;

/// Two tokens whose log-probabilities differ by less are equally likely: the products of a batch are summed up in another
/// order than those of one sequence, and are rounded to the eight bits of bf16 many times.
const TIE_NATS: f64 = 0.1;

/// The tokens of a text of a model without a tokenizer, such as ` <17> <4>`.
fn ids(text: &str) -> Vec<u32> {
    let id = |word: &str| word.strip_prefix('<')?.strip_suffix('>')?.parse().ok();
    text.split_whitespace().map(|word| id(word).unwrap_or_else(|| panic!("{word} is not a token"))).collect()
}

/// The prompt of a number, shorter than a page of the cache, so that no request has less work than another of its length.
fn prompt_of(number: u32) -> Vec<u32> {
    prompt(number, 8 + 2 * number)
}

fn body(model: &str, prompt: &[u32], new: usize) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": true})
}

/// A request for an answer. `None` if the queue is full.
fn ask(address: SocketAddr, model: &str, number: u32, stream: bool) -> Option<Vec<u32>> {
    let body = with(body(model, &prompt_of(number), NEW_TOKENS), json!({"stream": stream}));
    let answer = post(address, COMPLETIONS, &body);
    match answer.status {
        429 => {
            thread::sleep(Duration::from_millis(100));
            None
        }
        200 if stream => Some(ids(&streamed(&answer.events(), 0))),
        200 => Some(ids(answer.json()["choices"][0]["text"].as_str().expect("text"))),
        _ => panic!("{answer:?}"),
    }
}

/// The answers to the requests of clients, by prompt and tokens.
type Answers = BTreeMap<(u32, Vec<u32>), usize>;

/// Lets clients ask for a time. Returns the answers, and the tokens per second.
fn load(address: SocketAddr, model: &str, clients: u32, duration: Duration) -> (Answers, f64) {
    let answers = Mutex::new(Answers::new());
    let started = Instant::now();
    thread::scope(|scope| {
        for client in 0..clients {
            let answers = &answers;
            scope.spawn(move || {
                for round in 0.. {
                    if started.elapsed() >= duration {
                        return;
                    }
                    let number = (client + round) % PROMPTS;
                    let Some(tokens) = ask(address, model, number, (client + round).is_multiple_of(2)) else {
                        continue;
                    };
                    assert_eq!(tokens.len(), NEW_TOKENS, "client {client}, round {round}");
                    *answers.lock().expect("no panic").entry((number, tokens)).or_default() += 1;
                }
            });
        }
    });
    let answers = answers.into_inner().expect("no panic");
    let tokens = answers.values().sum::<usize>() * NEW_TOKENS;
    (answers, tokens as f64 / started.elapsed().as_secs_f64())
}

/// Asserts that an answer is that of its prompt alone. Where two tokens are equally likely, the answer may have either, and
/// goes on as its own beginning does alone. Returns the largest difference of log-probabilities between such tokens.
fn assert_own(address: SocketAddr, model: &str, prompt: &[u32], answer: &[u32]) -> f64 {
    let (mut history, mut rest, mut largest) = (prompt.to_vec(), answer, 0.0);
    loop {
        let alone = post(address, COMPLETIONS, &with(body(model, &history, rest.len()), json!({"logprobs": 5})));
        let choice = alone.json()["choices"][0].clone();
        let own = ids(choice["text"].as_str().expect("text"));
        let Some(place) = (0..rest.len()).find(|place| own[*place] != rest[*place]) else { return largest };
        let top = &choice["logprobs"]["top_logprobs"][place];
        let logprob = |id: u32| top.as_object()?.iter().find(|(token, _)| ids(token) == [id])?.1.as_f64();
        let gap = logprob(own[place]).zip(logprob(rest[place])).map(|(likeliest, found)| likeliest - found);
        let gap = gap.unwrap_or(f64::INFINITY);
        assert!(gap < TIE_NATS, "token {} is {}, not {}: {gap} nats", history.len(), rest[place], own[place]);
        largest = gap.max(largest);
        history.extend(&rest[..=place]);
        rest = &rest[place + 1..];
        if rest.is_empty() {
            return largest;
        }
    }
}

fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[test]
#[ignore = "takes minutes and a quiet machine"]
fn fifty_clients_at_full_size() {
    let model = env::var("SERVE_MODEL").unwrap_or_else(|_| "synthetic:llama-3.2-1b".into());
    let seconds = env::var("SERVE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
    let duration = Duration::from_secs(seconds);
    let folder = tempfile::tempdir().expect("a folder");
    // A short queue, so that some requests are refused.
    let arguments = ["--model", &model, "--engine", "tuned", "--dtype", "bf16", "--max-queue", "24"];
    let (mut child, address) = start(folder.path(), &arguments);

    let (mut answers, alone_tokens_per_s) = load(address, &model, 1, duration / 3);
    let (process, mut early) = (child.id(), None);
    let (concurrent, tokens_per_s) = thread::scope(|scope| {
        let loaded = scope.spawn(|| load(address, &model, CLIENTS, duration));
        thread::sleep(duration / 4);
        early = resident_bytes(process);
        loaded.join().expect("no client fails")
    });
    let late = resident_bytes(process);
    let metrics = get(address, "/metrics").text();
    let count: usize = concurrent.values().sum();
    for (answer, count) in concurrent {
        *answers.entry(answer).or_default() += count;
    }
    let mut gap = 0.0_f64;
    for (number, answer) in answers.keys() {
        gap = gap.max(assert_own(address, &model, &prompt_of(*number), answer));
    }
    let ratio = tokens_per_s / alone_tokens_per_s;
    let mb = |bytes: Option<u64>| bytes.map_or("n/a".into(), |bytes| format!("{} MB", bytes >> 20));
    println!("{model}: {count} answers, {} of them different; ties within {gap:.3} nats", answers.len());
    println!("one client {alone_tokens_per_s:.2} tok/s, {CLIENTS} clients {tokens_per_s:.2} tok/s: {ratio:.2} times");
    println!("resident after a quarter {}, at the end {}", mb(early), mb(late));
    for line in
        metrics.lines().filter(|line| line.contains("_requests_total{") || line.contains("_step_duration_seconds_"))
    {
        println!("{line}");
    }
    signal(&child, "-TERM");
    assert!(child.wait().expect("an end").success());
    if let (Some(early), Some(late)) = (early, late) {
        assert!(late < early + FLAT_BYTES, "{early} bytes after a quarter of the time, {late} at the end");
    }
    assert!(ratio >= RATIO, "{ratio:.2} times the throughput of one client");
}
