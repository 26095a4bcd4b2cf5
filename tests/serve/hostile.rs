//! Clients that send too little, too much, too slowly or nonsense. Each gets an error with a status of its own, and the server
//! goes on.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use candlepower::serve::Limits;
use serde_json::json;

use crate::{
    COMPLETIONS, Running, body,
    client::{self, JSON, answer, connect, request},
    quick, serve, text,
    toy::{LENGTH, VOCAB, greedy},
    with,
};

fn goes_on(running: &Running) {
    let json = running.post(COMPLETIONS, &body(&[1, 2], 2)).json();
    assert_eq!(json["choices"][0]["text"], text(&greedy(&[1, 2], 2)));
}

/// The answer to bytes, after which the client sends no more.
fn raw(address: SocketAddr, bytes: &[u8]) -> client::Answer {
    let mut stream = connect(address);
    stream.write_all(bytes).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut down");
    answer(stream)
}

#[test]
fn half_requests_and_slow_senders_are_told() {
    let limits = Limits { read_timeout: Duration::from_millis(400), ..Limits::default() };
    let (running, _) = serve(2, Duration::ZERO, limits);
    let whole = request("POST", COMPLETIONS, JSON, body(&[1], 2).to_string().as_bytes());
    let head = whole.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    for (length, part) in [
        (9, "before its head was complete"),
        (head, "before its head was complete"),
        (head + 4, "the body ended before its length"),
        (whole.len() - 1, "the body ended before its length"),
    ] {
        let ended = raw(running.address, &whole[..length]);
        assert_eq!(ended.status, 400, "{ended:?}");
        assert!(ended.error().contains(part), "{ended:?}");
        // The same, but the client waits.
        let mut stream = connect(running.address);
        stream.write_all(&whole[..length]).expect("sent");
        let waited = answer(stream);
        assert_eq!(waited.status, 408, "{waited:?}");
        assert!(waited.error().contains("within 0.4 s"), "{waited:?}");
        goes_on(&running);
    }
    // A byte now and then does not prolong the time.
    let started = Instant::now();
    let mut stream = connect(running.address);
    for byte in &whole {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        if started.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
    assert_eq!(answer(stream).status, 408);
    // A connection that says nothing is closed without an answer.
    let mut silent = connect(running.address);
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(&mut silent, &mut nothing).expect("closed");
    assert_eq!(nothing, b"");
    goes_on(&running);
}

#[test]
fn large_requests_are_refused() {
    let (running, _) = quick(1);
    let large = vec![b' '; 10 << 20];
    let answer_of = |bytes: &[u8]| {
        let mut stream = connect(running.address);
        stream.write_all(bytes).expect("sent");
        answer(stream)
    };
    let refused = answer_of(&request("POST", COMPLETIONS, JSON, &large));
    assert_eq!((refused.status, refused.error().contains("larger than 1048576 bytes")), (413, true));
    // Without a length.
    let mut chunked = format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{JSON}").into_bytes();
    chunked.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
    for part in large.chunks(1 << 20) {
        chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(answer_of(&chunked).status, 413);
    // A client that asks first is told before it sends.
    let asking = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{JSON}expect: 100-continue\r\n\
         content-length: 10485760\r\n\r\n"
    );
    assert_eq!(answer_of(asking.as_bytes()).status, 413);
    // The answer may be lost, because the connection is closed before the whole head is read.
    let header = format!("x-large: {}\r\n", "x".repeat(100 << 10));
    let mut stream = connect(running.address);
    let _ = stream.write_all(&request("GET", "/health", &header, b""));
    let mut start = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut start);
    assert!(start.is_empty() || start.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&start));
    goes_on(&running);
}

#[test]
fn nonsense_is_refused_in_json() {
    let (running, _) = quick(1);
    let post = |headers: &str, body: &[u8]| raw_whole(running.address, "POST", COMPLETIONS, headers, body);
    let good = body(&[1], 1).to_string();
    for (headers, body, status, part) in [
        (JSON, &b"{\"model\": \"\xc3\x28\"}"[..], 400, "not UTF-8"),
        (JSON, b"{\"model\": ", 400, "not JSON"),
        (JSON, b"", 400, "not JSON"),
        (JSON, "[".repeat(100_000).as_bytes(), 400, "not JSON"),
        (JSON, b"{\"model\": \"\x1b[31mred\"}", 400, "not JSON"),
        (JSON, br#"{"model": "\u001b[31mred", "prompt": "a"}"#, 404, "'\\u{1b}[31mred' is not served here"),
        ("", good.as_bytes(), 415, "Content-Type: application/json"),
        ("content-type: text/plain\r\n", good.as_bytes(), 415, "Content-Type: application/json"),
        (
            "content-type: application/json\r\ncontent-encoding: gzip\r\n",
            good.as_bytes(),
            415,
            "without a Content-Encoding",
        ),
        (
            &format!("{JSON}content-encoding: identity\r\ncontent-encoding: gzip\r\n"),
            good.as_bytes(),
            415,
            "without a Content-Encoding",
        ),
        (&format!("{JSON}content-encoding: Identity\r\nhost: b\r\n"), good.as_bytes(), 400, "the header Host once"),
    ] {
        let refused = post(headers, body);
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.error().contains(part), "{refused:?}");
    }
    let huge = 1u64 << 62;
    for (more, part) in [
        (json!({"max_tokens": -1}), "expected a whole number from 0"),
        (json!({"max_tokens": huge}), "expected a whole number from 0"),
        (json!({"max_tokens": 1 << 20}), "more than the model's 4096"),
        (json!({"max_tokens": 2000}), "more than this server's limit, 1024"),
        (json!({"n": huge}), "from 1 to 32"),
        (json!({"n": -1}), "from 1 to 32"),
        (json!({"temperature": -0.5}), "from 0 to 2"),
        (json!({"temperature": 1e300}), "from 0 to 2"),
        (json!({"top_p": 2}), "from 0 to 1"),
        (json!({"top_k": huge}), "from -1 to"),
        (json!({"stop": "x".repeat(257)}), "each of 1 to 256 characters"),
        (json!({"prompt": []}), "it is empty"),
        (json!({"prompt": ""}), "it has no tokens"),
        (json!({"prompt": [[]]}), "it has no tokens"),
        (json!({"prompt": [VOCAB]}), "token 300 is not in the vocabulary of 300 tokens"),
        (json!({"prompt": vec![1; LENGTH]}), "it has 4096 tokens, and at most 4095 are accepted"),
        (json!({"prompt": "a ".repeat(5000)}), "it has 5000 tokens"),
        (json!({"prompt": vec!["a"; 20], "n": 2}), "more than 32"),
    ] {
        let refused = running.post(COMPLETIONS, &with(body(&[1], 1), more));
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.error().contains(part), "{refused:?}");
        assert!(refused.json()["error"]["param"].is_string());
    }
    let long = running.post(COMPLETIONS, &with(body(&[1], 1), json!({"prompt": vec![1; LENGTH]})));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    for (method, path, status) in [
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other/model", 404),
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
    ] {
        let refused = raw_whole(running.address, method, path, "", b"");
        assert_eq!(refused.status, status, "{method} {path}");
        refused.error();
    }
    assert_eq!(raw(running.address, b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").status, 400);
    assert_eq!(raw(running.address, b"GET /health HTTP/1.0\r\n\r\n").status, 200);
    // Bytes that are not HTTP get HTTP's own answer.
    assert_eq!(raw(running.address, b"\x16\x03\x01\x02\x00 hello\r\n\r\n").status, 400);
    goes_on(&running);
}

fn raw_whole(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> client::Answer {
    let mut stream = connect(address);
    stream.write_all(&request(method, path, headers, body)).expect("sent");
    answer(stream)
}

#[test]
fn connections_beyond_the_limit_wait() {
    let limits = Limits { max_connections: 4, read_timeout: Duration::from_millis(300), ..Limits::default() };
    let (running, _) = serve(1, Duration::ZERO, limits);
    // Silent connections are closed after a while, and the next ones get their places.
    let silent: Vec<_> = (0..20).map(|_| connect(running.address)).collect();
    goes_on(&running);
    drop(silent);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let limits = Limits {
        max_connections: 1,
        max_new_tokens: LENGTH,
        request_timeout: Duration::from_millis(600),
        read_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let (running, _) = serve(1, Duration::ZERO, limits);
    let large = with(body(&[1], 4000), json!({"stream": true, "logprobs": 5}));
    let stuck = client::send(running.address, COMPLETIONS, &large);
    // The only connection is free again although the client keeps its end open.
    goes_on(&running);
    drop(stuck);
}
