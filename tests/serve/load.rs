//! Many clients at once: no answer is lost, mixed up or wrong, and memory stays flat.

use std::{
    env,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use candlepower::{
    load::{self, Api, Arrivals, Shape, Turns},
    serve::Limits,
};
use serde_json::json;

use crate::{COMPLETIONS, body, client::get, prompt, serve, short_run::short_run, streamed, text, toy::greedy, with};

const CLIENTS: u32 = 50;
const DURATION: Duration = Duration::from_secs(6);

/// Set in the process that runs the test of memory alone.
const ALONE: &str = "SERVE_LOAD_ALONE";

/// Resident bytes of this process, server and clients together.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[test]
fn fifty_clients_get_their_own_answers() {
    // Tests that run beside this one would change the memory of the process.
    if env::var_os(ALONE).is_some() {
        return fifty_clients();
    }
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "load::fifty_clients_get_their_own_answers", "--nocapture"]).env(ALONE, "1");
    let output = command.output().expect("it starts");
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && stdout.contains(" 1 passed"), "{stdout}{stderr}");
}

fn fifty_clients() {
    let limits = Limits { max_queue: 32, step_tokens: 64, ..Limits::default() };
    let (running, _) = serve(16, Duration::from_millis(1), limits);
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    let mut early = None;
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (running, answered, refused) = (&running, &answered, &refused);
            scope.spawn(move || {
                for round in 0.. {
                    if started.elapsed() > DURATION {
                        return;
                    }
                    let prompt = prompt(client * 7 + round, 3 + (client + round) % 60);
                    let new = 1 + (client as usize * 3 + round as usize) % 30;
                    let stream = (client + round).is_multiple_of(2);
                    let answer = running.post(COMPLETIONS, &with(body(&prompt, new), json!({"stream": stream})));
                    match answer.status {
                        429 => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            thread::sleep(Duration::from_millis(20));
                            continue;
                        }
                        status => assert_eq!(status, 200, "{answer:?}"),
                    }
                    let found = match stream {
                        true => streamed(&answer.events(), 0),
                        false => answer.json()["choices"][0]["text"].as_str().expect("text").to_owned(),
                    };
                    assert_eq!(found, text(&greedy(&prompt, new)), "client {client}, round {round}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(DURATION / 3);
        early = resident_bytes();
    });
    let answered = answered.into_inner();
    assert!(answered > 200, "{answered} answers");
    if let (Some(early), Some(late)) = (early, resident_bytes()) {
        assert!(late < early + (16 << 20), "{early} bytes after a third of the time, {late} at the end");
    }
    running.until("running_sequences", 0.0);
    let text = get(running.address, "/metrics").text();
    let count = format!("candlepower_requests_total{{endpoint=\"{COMPLETIONS}\",status=\"200\"}} {answered}");
    assert!(text.contains(&count), "{count} is not in\n{text}");
}

/// The load generator of this crate finds nothing unusual, and counts the tokens that it asked for.
#[test]
fn the_load_generator_agrees_with_the_counts() {
    let (running, _) = serve(8, Duration::from_millis(1), Limits::default());
    let shape = Shape {
        seed: 1,
        arrivals: Arrivals::Closed { clients: 12 },
        duration_s: Some(1.5),
        requests: None,
        prompt_tokens: "24".parse().expect("a length"),
        max_new_tokens: "9".parse().expect("a length"),
        shared_prefix_tokens: 12,
        turns: Turns { count: 1, think_ms: 0.0 },
        trace: None,
    };
    for api in [Api::Completions, Api::Chat] {
        let run = short_run(shape.clone(), &format!("http://{}", running.address), "toy", api);
        let report = load::run(&run, &mut |_| {}).expect("a report");
        let all = &report.summary.all;
        assert!(all.requests > 20 && all.failed == 0, "{}", report.text());
        let tokens = &report.tally.tokens;
        assert_eq!(tokens.output_lengths.keys().copied().collect::<Vec<_>>(), [9], "{}", report.text());
        // A chat adds the words "user:" and "assistant:".
        let expected = if api == Api::Chat { 26 } else { 24 };
        assert_eq!(tokens.prompt_lengths.keys().copied().collect::<Vec<_>>(), [expected]);
    }
    assert!(running.metric("cached_prompt_tokens_total") > 0.0);
}
