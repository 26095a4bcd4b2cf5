//! Streams that a server should not send, and some that it may. Each has its own class.

use std::{
    io::Write,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use candlepower::load::{Api, Oddity, Outcome, Report, Tokens};

use crate::{
    a_run,
    mock::{self, Request, answer, chunk, done, end_mark, head, refuse, serve, text_event, usage_event},
    report,
};

/// Three requests to a server with this behaviour.
fn after(timeout: Duration, handler: fn(&Request, &mut TcpStream) -> bool) -> Report {
    let mut run = a_run(&serve(handler), 100.0, 0.03);
    run.target.timeout = timeout;
    report(&run)
}

fn class(name: &str, handler: fn(&Request, &mut TcpStream) -> bool) -> Outcome {
    let report = after(Duration::from_secs(5), handler);
    assert_eq!(report.tally.outcomes.len(), 1, "{name}: {}", report.text());
    let (outcome, count) = report.tally.outcomes.first_key_value().expect("a class");
    assert_eq!(*count, 3, "{name}");
    if *outcome != Outcome::Ok {
        assert!(report.verdict.reasons.iter().any(|reason| reason.starts_with("All 3 requests failed")), "{name}");
        assert_eq!((report.summary.all.failed, report.summary.all.e2e.count), (3, 0), "{name}");
    }
    *outcome
}

#[test]
fn each_hostile_stream_has_its_class() {
    assert_eq!(class("429", |_, s| refuse(s, "429 Too Many Requests", "")), Outcome::RateLimited);
    assert_eq!(class("400", |_, s| refuse(s, "400 Bad Request", "")), Outcome::ClientError);
    assert_eq!(class("503", |_, s| refuse(s, "503 Service Unavailable", "")), Outcome::ServerError);
    assert_eq!(class("302", |_, s| refuse(s, "302 Found", "location: /\r\n")), Outcome::OtherStatus);
    assert_eq!(class("no stream", |_, s| refuse(s, "200 OK", "")), Outcome::NotAStream);
    assert_eq!(
        class("error in the stream", |_, s| {
            head(s)
                && chunk(s, text_event("a").as_bytes())
                && chunk(s, b"data: {\"error\": {\"message\": \"out of memory\"}}\n\n")
                && done(s)
        }),
        Outcome::ErrorEvent
    );
    assert_eq!(
        class("named error event", |_, s| head(s) && chunk(s, b"event: error\ndata: overloaded\n\n") && done(s)),
        Outcome::ErrorEvent
    );
    assert_eq!(
        class("end of the body", |_, s| {
            let _ = head(s) && chunk(s, text_event("a").as_bytes()) && s.write_all(b"0\r\n\r\n").is_ok();
            true
        }),
        Outcome::EndedEarly
    );
    assert_eq!(
        class("no reason of the end", |_, s| head(s) && chunk(s, text_event("a").as_bytes()) && end_mark(s)),
        Outcome::EndedEarly
    );
    assert_eq!(
        class("given up", |_, s| {
            let last = text_event("a").replace("null", "\"abort\"");
            head(s) && chunk(s, last.as_bytes()) && end_mark(s)
        }),
        Outcome::EndedEarly
    );
    assert_eq!(
        class("two choices", |_, s| {
            let other = text_event("b").replace("\"index\":0", "\"index\":1");
            head(s) && chunk(s, (text_event("a") + &other).as_bytes()) && done(s)
        }),
        Outcome::SeveralChoices
    );
    assert_eq!(
        class("end of the connection", |_, s| {
            let _ = head(s) && chunk(s, text_event("a").as_bytes());
            let _ = s.shutdown(std::net::Shutdown::Both);
            false
        }),
        Outcome::EndedEarly
    );
    assert_eq!(
        class("JSON that breaks off", |_, s| head(s) && chunk(s, b"data: {\"choices\": [{\n\n") && done(s)),
        Outcome::BadEvent
    );
    assert_eq!(
        class("another object", |_, s| head(s) && chunk(s, b"data: {\"weather\": \"fine\"}\n\n") && done(s)),
        Outcome::BadEvent
    );
    assert_eq!(
        class("more tokens than memory", |_, s| {
            head(s) && chunk(s, text_event("a").as_bytes()) && chunk(s, usage_event(1, u64::MAX).as_bytes()) && done(s)
        }),
        Outcome::BadEvent
    );
    assert_eq!(
        class("bytes that are no text", |_, s| head(s) && chunk(s, b"data: \xff\xfe\n\n") && done(s)),
        Outcome::BadEvent
    );
    assert_eq!(
        class("no text", |_, s| head(s) && chunk(s, usage_event(1, 0).as_bytes()) && done(s)),
        Outcome::NoTokens
    );
    assert_eq!(
        class("garbage", |_, s| {
            let _ = s.write_all(&[0x16, 0x03, 0x01, 0x00, 0x7f, 0x0d, 0x0a, 0x0d, 0x0a]);
            false
        }),
        Outcome::NotHttp
    );
    assert_eq!(
        class("endless headers", |_, s| {
            let mut goes_on = s.write_all(b"HTTP/1.1 200 OK\r\n").is_ok();
            while goes_on {
                goes_on = s.write_all(b"x-padding: 0123456789012345678901234567890123456789\r\n").is_ok();
            }
            false
        }),
        Outcome::HeadTooLarge
    );
    assert_eq!(
        class("endless event", |_, s| {
            let mut goes_on = head(s) && chunk(s, b"data: ");
            while goes_on {
                goes_on = chunk(s, &[b'x'; 1 << 16]);
            }
            false
        }),
        Outcome::TooLarge
    );
    assert_eq!(
        class("endless text", |_, s| {
            let event = text_event(&"word ".repeat(1 << 14));
            let mut goes_on = head(s);
            while goes_on {
                goes_on = chunk(s, event.as_bytes());
            }
            false
        }),
        Outcome::TooLarge
    );
    assert_eq!(
        class("no answer", |_, s| {
            let _ = s.shutdown(std::net::Shutdown::Both);
            false
        }),
        Outcome::NoAnswer
    );
    assert_eq!(
        after(Duration::from_millis(300), |_, s| {
            let _ = head(s) && chunk(s, text_event("a").as_bytes());
            thread::sleep(Duration::from_secs(2));
            false
        })
        .tally
        .outcomes,
        [(Outcome::TimedOut, 3)].into()
    );
    // A port that nothing listens on.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let refused = report(&a_run(&format!("http://{unused}"), 100.0, 0.03));
    assert_eq!(refused.tally.outcomes, [(Outcome::NotConnected, 3)].into());
}

/// Streams that the standards allow are read, and noted.
#[test]
fn odd_streams_are_read_and_noted() {
    let odd = |oddity: Oddity, chat: bool, handler: fn(&Request, &mut TcpStream) -> bool| {
        let mut run = a_run(&serve(handler), 100.0, 0.03);
        run.target.api = if chat { Api::Chat } else { Api::Completions };
        let report = report(&run);
        assert_eq!(report.tally.outcomes, [(Outcome::Ok, 3)].into(), "{oddity:?}: {}", report.text());
        assert_eq!(report.tally.oddities.get(&oddity), Some(&3), "{}", report.text());
        report
    };
    // The role comes at once and the text 100 ms later: the first token is the text.
    let role = odd(Oddity::RoleOnlyDelta, true, |_, s| {
        let sent = head(s) && chunk(s, delta(serde_json::json!({"role": "assistant", "content": ""})).as_bytes());
        thread::sleep(Duration::from_millis(100));
        sent && chunk(s, delta(serde_json::json!({"content": "a"})).as_bytes())
            && chunk(s, usage_event(1, 1).as_bytes())
            && done(s)
    });
    assert!(role.summary.all.ttft.min_ms.expect("a time") >= 100.0, "{}", role.text());
    odd(Oddity::Comment, false, |r, s| {
        head(s) && chunk(s, b": keep-alive\n\n") && chunk(s, text_event("a").as_bytes()) && end(r, s)
    });
    odd(Oddity::CarriageReturn, false, |r, s| {
        head(s) && chunk(s, text_event("a").replace('\n', "\r\n").as_bytes()) && end(r, s)
    });
    let split = odd(Oddity::SplitCharacter, false, |_, s| {
        let event = text_event("größe ✓");
        let middle = event.find('✓').expect("the mark") + 1;
        let (start, rest) = event.as_bytes().split_at(middle);
        let sent = head(s) && chunk(s, start);
        thread::sleep(Duration::from_millis(20));
        sent && chunk(s, rest) && chunk(s, usage_event(1, 3).as_bytes()) && done(s)
    });
    assert_eq!(split.tally.tokens.usage, 9);
    odd(Oddity::NamedEvent, false, |r, s| {
        head(s)
            && chunk(s, b"event: ping\ndata: {\"type\": \"ping\"}\n\n")
            && chunk(s, b"event: wait\ndata: soon\n\n")
            && chunk(s, text_event("a").as_bytes())
            && end(r, s)
    });
    let impossible = odd(Oddity::ImpossibleUsage, false, |_, s| {
        head(s) && chunk(s, text_event("a").as_bytes()) && chunk(s, usage_event(1, 900_000).as_bytes()) && done(s)
    });
    assert!(!impossible.verdict.valid && impossible.tally.all.output_tokens == 3, "{}", impossible.text());
    // Texts of two names, of parts, of calls and of refusals count once.
    for (texts, events) in [
        (vec![serde_json::json!({"reasoning": "a", "reasoning_content": "a"})], 1),
        (vec![serde_json::json!({"reasoning": null, "reasoning_content": null, "content": "a"})], 1),
        (vec![serde_json::json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]})], 1),
        (
            vec![
                serde_json::json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "a", "arguments": ""}}]}),
                serde_json::json!({"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}),
            ],
            2,
        ),
        (vec![serde_json::json!({"refusal": "a"}), serde_json::json!({"content": ""})], 1),
    ] {
        let shown = format!("{texts:?}");
        let mut run = a_run(
            &serve(move |_, s| head(s) && texts.iter().all(|text| chunk(s, delta(text.clone()).as_bytes())) && done(s)),
            100.0,
            0.03,
        );
        (run.target.api, run.tokens) = (Api::Chat, Some(Tokens::new("letters".into(), str::len)));
        let report = report(&run);
        assert_eq!(report.tally.outcomes, [(Outcome::Ok, 3)].into(), "{shown}: {}", report.text());
        assert_eq!((report.tally.tokens.chunks, report.tally.tokens.own), (3 * events, 3 * events), "{shown}");
    }
    odd(Oddity::NoUsage, false, |_, s| head(s) && chunk(s, text_event("a").as_bytes()) && done(s));
    odd(Oddity::SeveralTokensPerEvent, false, |r, s| answer(r, s, 8, 4, Duration::ZERO));
    odd(Oddity::NoEndMark, false, |_, s| {
        let last = serde_json::json!({"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]});
        let _ = head(s) && chunk(s, format!("data: {last}\n\n").as_bytes()) && s.write_all(b"0\r\n\r\n").is_ok();
        true
    });
}

fn delta(delta: serde_json::Value) -> String {
    format!("data: {}\n\n", serde_json::json!({"choices": [{"delta": delta}]}))
}

fn end(_: &Request, stream: &mut TcpStream) -> bool {
    chunk(stream, usage_event(1, 1).as_bytes()) && done(stream)
}

/// A proxy that buffers hands out an answer at its end. Its first token and its time per token are unknown.
#[test]
fn answers_that_come_all_at_once_are_not_judged() {
    let buffered = serve(|_, s| {
        thread::sleep(Duration::from_millis(200));
        head(s)
            && chunk(s, text_event(" word").repeat(10).as_bytes())
            && chunk(s, usage_event(1, 10).as_bytes())
            && done(s)
    });
    let mut run = a_run(&buffered, 100.0, 0.05);
    run.objectives = vec!["ttft:5000".parse().expect("an objective"), "tpot:50".parse().expect("an objective")];
    let report = report(&run);
    let all = &report.summary.all;
    assert_eq!((all.ttft.count, all.tpot.count, all.itl.count, all.e2e.count), (0, 0, 0, 5), "{}", report.text());
    let goodput = all.goodput.expect("objectives");
    assert_eq!((goodput.met, goodput.unjudged), (0, 5));
    assert!(report.verdict.reasons.iter().any(|reason| reason.contains("5 of 5 answers came all at once")));
    // The same events, one after the other.
    let report = crate::report(&a_run(&serve(|r, s| answer(r, s, 10, 1, Duration::from_millis(10))), 100.0, 0.05));
    assert_eq!((report.summary.all.ttft.count, report.summary.all.tpot.count), (5, 5), "{}", report.text());
}

/// Every request is refused once with a wait of 0.2 s. The time counts from the schedule, not from the second attempt.
#[test]
fn retries_count_from_the_schedule() {
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let url = serve(move |request, stream| match count.fetch_add(1, Ordering::SeqCst) {
        0..5 => refuse(stream, "429 Too Many Requests", "retry-after: 0.2\r\n"),
        _ => answer(request, stream, 2, 1, Duration::ZERO),
    });
    let mut run = a_run(&url, 100.0, 0.05);
    run.target.retries = 3;
    let start = Instant::now();
    let report = report(&run);
    assert_eq!(report.tally.outcomes, [(Outcome::Ok, 5)].into(), "{}", report.text());
    assert_eq!((report.tally.retries, seen.load(Ordering::SeqCst)), (5, 10));
    for latency in [&report.summary.all.e2e, &report.summary.all.e2e_from_send] {
        assert!(latency.min_ms.expect("a time") >= 200.0, "{}", report.text());
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    // Without retries they fail, and keep their class.
    let url = serve(|_, stream| refuse(stream, "429 Too Many Requests", "retry-after: 0.2\r\n"));
    assert_eq!(crate::report(&a_run(&url, 100.0, 0.05)).tally.outcomes, [(Outcome::RateLimited, 5)].into());
}

/// The turns after a failed one can't be sent. They count as failed, in a class of their own.
#[test]
fn turns_after_a_failed_one_are_counted() {
    use candlepower::load::{Plan, Shape, Turns};
    let mut run = a_run(&serve(|_, s| mock::refuse(s, "500 Internal Server Error", "")), 10.0, 0.2);
    run.plan =
        Plan::new(Shape { turns: Turns { count: 3, think_ms: 0.0 }, ..crate::shape(10.0, 0.2) }).expect("a plan");
    let report = report(&run);
    assert_eq!(report.tally.outcomes, [(Outcome::ServerError, 2), (Outcome::EarlierTurnFailed, 4)].into());
}
