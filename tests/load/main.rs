//! The load generator against servers on loopback whose times are known.
//!
//! Tests of the generator's own error need a quiet machine, or a real-time priority on a busy one:
//! `chrt --rr 10 cargo test --release --test load -- --ignored --test-threads 1`.

// Functions beside the tests say what is skipped.
#![allow(clippy::print_stderr, clippy::print_stdout)]

#[cfg(unix)]
mod command;
mod hostile;
mod mock;
mod short_run;
mod tokens;

use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use candlepower::load::{self, Api, Arrivals, Limits, Plan, Report, Run, Shape, Shard, Spacing, Turns};
use mock::{answer, serve};
use short_run::short_run;

/// A run of constant arrivals of short requests.
pub fn a_run(url: &str, rate: f64, duration_s: f64) -> Run {
    short_run(shape(rate, duration_s), url, "mock", Api::Completions)
}

pub fn shape(rate: f64, duration_s: f64) -> Shape {
    Shape {
        seed: 1,
        arrivals: Arrivals::Open { rate, spacing: Spacing::Constant, ramp_from: 0.0, ramp_s: 0.0 },
        duration_s: Some(duration_s),
        requests: None,
        prompt_tokens: "16".parse().expect("a length"),
        max_new_tokens: "64".parse().expect("a length"),
        shared_prefix_tokens: 0,
        turns: Turns { count: 1, think_ms: 0.0 },
        trace: None,
    }
}

pub fn report(run: &Run) -> Report {
    load::run(run, &mut |_| {}).expect("a report")
}

fn near(found: Option<f64>, expected: f64, tolerance: f64) {
    let found = found.expect("a value");
    assert!((found - expected).abs() <= tolerance, "{found}, not {expected} ± {tolerance}");
}

/// A server that takes 500 ms for each request, one at a time, gets eight arrivals at 10/s. They end at 0.5 s, 1.0 s and so
/// on, so the times from the schedule are 0.5 s, 0.9 s … 3.3 s.
#[test]
fn waiting_in_the_servers_queue_counts() {
    let free_at = Mutex::new(Instant::now());
    let url = serve(move |request, stream| {
        let ends = {
            let mut free_at = free_at.lock().expect("no panic");
            *free_at = (*free_at).max(Instant::now()) + Duration::from_millis(500);
            *free_at
        };
        thread::sleep(ends.saturating_duration_since(Instant::now()));
        answer(request, stream, 4, 4, Duration::ZERO)
    });
    let mut run = a_run(&url, 10.0, 0.8);
    run.objectives = vec!["e2e:600".parse().expect("an objective")];
    let report = report(&run);
    let all = &report.summary.all;
    assert_eq!((all.requests, all.failed), (8, 0), "{}", report.text());
    near(all.e2e.mean_ms, 1900.0, 20.0);
    near(all.e2e.max_ms, 3300.0, 20.0);
    let goodput = all.goodput.expect("an objective");
    assert_eq!((goodput.met, goodput.share), (1, 0.125));
}

/// 50 arrivals a second for 10 s. The server does nothing for two seconds and is instant before and after, so 100 requests of 500
/// wait for up to two seconds.
#[test]
fn a_stall_of_the_server_is_in_the_percentiles() {
    let start = Mutex::new(None);
    let url = serve(move |request, stream| {
        let start = *start.lock().expect("no panic").get_or_insert_with(Instant::now);
        let (from, to) = (start + Duration::from_secs(3), start + Duration::from_secs(5));
        if Instant::now() >= from {
            thread::sleep(to.saturating_duration_since(Instant::now()));
        }
        answer(request, stream, 4, 4, Duration::ZERO)
    });
    let report = report(&a_run(&url, 50.0, 10.0));
    let e2e = &report.summary.all.e2e;
    assert_eq!(e2e.count, 500, "{}", report.text());
    near(e2e.at(0.95), 1500.0, 60.0);
    near(e2e.at(0.99), 1900.0, 60.0);
    near(e2e.max_ms, 2000.0, 60.0);
    assert!(e2e.at(0.5).expect("a median") < 50.0);
}

#[test]
fn a_closed_loop_keeps_its_number_of_clients_busy() {
    let url = serve(|request, stream| answer(request, stream, 4, 1, Duration::from_millis(10)));
    let mut run = a_run(&url, 1.0, 1.0);
    run.plan = Plan::new(Shape { arrivals: Arrivals::Closed { clients: 3 }, ..shape(1.0, 1.0) }).expect("a plan");
    let report = report(&run);
    // Each answer takes 30 ms, so three clients end about 100 requests.
    let all = &report.summary.all;
    assert!((60..=105).contains(&all.requests) && all.failed == 0, "{}", report.text());
    assert_eq!(report.offered_per_s, None);
}

/// The server sees each turn after the answer to the one before, with the whole conversation.
#[test]
fn a_turn_waits_for_the_answer_before_it() {
    let url = serve(|request, stream| {
        let messages = request.body["messages"].as_array().expect("a chat").len() as u64;
        thread::sleep(Duration::from_millis(50));
        mock::head(stream)
            && mock::chunk(
                stream,
                format!("data: {}\n\n", serde_json::json!({"choices": [{"delta": {"content": " word"}}]})).as_bytes(),
            )
            && mock::chunk(stream, mock::usage_event(messages, 1).as_bytes())
            && mock::done(stream)
    });
    let mut run = a_run(&url, 1.0, 1.0);
    run.target.api = Api::Chat;
    run.plan = Plan::new(Shape {
        arrivals: Arrivals::Open { rate: 10.0, spacing: Spacing::Poisson, ramp_from: 0.0, ramp_s: 0.0 },
        turns: Turns { count: 3, think_ms: 100.0 },
        requests: Some(15),
        duration_s: None,
        ..shape(1.0, 1.0)
    })
    .expect("a plan");
    let folder = tempfile::tempdir().expect("a folder");
    run.exchanges_to = Some(folder.path().join("requests.jsonl"));
    let report = report(&run);
    assert_eq!((report.summary.all.requests, report.summary.all.failed), (15, 0), "{}", report.text());
    // One, three and five messages, which the server gave as the length of the prompt.
    assert_eq!(report.tally.tokens.prompt_lengths, [(1, 5), (3, 5), (5, 5)].into());
    let text = std::fs::read_to_string(folder.path().join("requests.jsonl")).expect("lines");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let ms = |line: &serde_json::Value, field: &str| line[field].as_f64().expect("a time");
    for line in lines.iter().filter(|line| line["turn"] != 0) {
        let before = lines.iter().find(|other| {
            other["session"] == line["session"] && other["turn"].as_u64().map(|turn| turn + 1) == line["turn"].as_u64()
        });
        let gap_ms = ms(line, "sent_ms") - ms(before.expect("the turn before"), "ended_ms");
        assert!(gap_ms >= 100.0, "{gap_ms} ms");
        assert_eq!(line["token_arrival_ms"].as_array().map(Vec::len), Some(1));
    }
}

/// Two shards send what one process would, and their reports add up.
#[test]
fn shards_add_up_to_the_whole() {
    let url = serve(|request, stream| answer(request, stream, 4, 1, Duration::from_millis(2)));
    let shards: Vec<Report> = (0..2)
        .map(|index| {
            let mut run = a_run(&url, 100.0, 1.0);
            run.shard = Shard { index, count: 2 };
            report(&run)
        })
        .collect();
    let alone = load::merge(vec![shards[0].clone()]).expect("merged");
    assert!(
        alone.verdict.reasons.iter().any(|reason| reason.contains("1 of 2 shards are missing")),
        "{:?}",
        alone.verdict
    );
    let text = serde_json::to_string(&shards[1]).expect("JSON");
    let merged = load::merge(vec![shards[0].clone(), Report::parse(&text).expect("a report")]).expect("merged");
    assert_eq!((merged.summary.all.requests, merged.prompt_digests.len()), (100, 2));
    assert_eq!(merged.tally.all.scheduled.e2e.count(), 100);
    assert!(load::merge(vec![shards[0].clone(), shards[0].clone()]).is_err(), "the same shard twice");
    let other = report(&a_run(&url, 50.0, 0.1));
    assert!(load::merge(vec![shards[0].clone(), other]).is_err(), "another schedule");
}

/// The rate rises from 0 to 40/s within a second and stays there for another. The server is slow at first.
#[test]
fn the_steady_state_is_apart_from_the_ramp() {
    let seen = Mutex::new(0);
    let url = serve(move |request, stream| {
        let number = {
            let mut seen = seen.lock().expect("no panic");
            *seen += 1;
            *seen
        };
        thread::sleep(Duration::from_millis(if number <= 20 { 300 } else { 5 }));
        answer(request, stream, 2, 1, Duration::ZERO)
    });
    let mut run = a_run(&url, 1.0, 1.0);
    run.plan = Plan::new(Shape {
        arrivals: Arrivals::Open { rate: 40.0, spacing: Spacing::Constant, ramp_from: 0.0, ramp_s: 1.0 },
        ..shape(40.0, 2.0)
    })
    .expect("a plan");
    run.steady_from_s = 1.0;
    let report = report(&run);
    let (all, steady) = (&report.summary.all, report.summary.steady.as_ref().expect("a ramp"));
    assert_eq!((all.requests, steady.requests), (60, 40), "{}", report.text());
    assert!(all.e2e.max_ms >= Some(300.0) && steady.e2e.at(0.5) < Some(100.0), "{}", report.text());
    assert!(steady.e2e.percentiles[0].high_ms.is_some());
}

/// Bisection on a server that is instant up to 40 requests a second and does one after the other above.
#[test]
fn a_search_finds_the_knee() {
    let free_at = Mutex::new(Instant::now());
    let url = serve(move |request, stream| {
        let ends = {
            let mut free_at = free_at.lock().expect("no panic");
            *free_at = (*free_at).max(Instant::now()) + Duration::from_millis(25);
            *free_at
        };
        thread::sleep(ends.saturating_duration_since(Instant::now()));
        answer(request, stream, 2, 1, Duration::from_millis(10))
    });
    let search = load::search::bisect(10.0, 80.0, 0.5, |rate| {
        let mut run = a_run(&url, rate, 1.5);
        run.objectives = vec!["ttft:120".parse().expect("an objective")];
        // The test is about the search, also on a busy machine.
        run.limits = Limits { max_lateness_p99_ms: 1e4, max_pause_ms: 1e4, max_failed_share: 1.0, ..run.limits };
        load::run(&run, &mut |_| {})
    })
    .expect("a search");
    let (met, missed) = (search.highest_rate_met.expect("a rate"), search.lowest_rate_not_met.expect("a rate"));
    assert!((20.0..=56.0).contains(&met) && (39.0..=90.0).contains(&missed), "{search:#?}");
}

/// At 100/s the generator sends 99 % of the requests within two milliseconds of their time.
#[test]
#[ignore = "needs a quiet machine"]
fn sends_are_on_time() {
    let url = serve(|request, stream| answer(request, stream, 4, 4, Duration::ZERO));
    let report = report(&a_run(&url, 100.0, 20.0));
    let p99_ms = report.summary.lateness.at(0.99).expect("a value");
    assert!(p99_ms <= 2.0, "{p99_ms} ms\n{}", report.text());
}

/// Against a server that answers at once, the whole time from the schedule is the error of the generator and the loopback.
#[test]
#[ignore = "needs a quiet machine"]
fn the_own_error_is_below_a_millisecond() {
    let url = serve(|request, stream| answer(request, stream, 1, 1, Duration::ZERO));
    let report = report(&a_run(&url, 200.0, 20.0));
    let p99_ms = report.summary.all.ttft.at(0.99).expect("a value");
    assert!(p99_ms <= 1.0, "{p99_ms} ms\n{}", report.text());
}
