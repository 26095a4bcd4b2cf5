//! Mutations of what comes over a network: requests to `serve`, and answers to `load`, with the server-sent events in them.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use candlepower::{
    load::{self, Api, Arrivals, Item, Limits as LoadLimits, Parser, Plan, Run, Shape, Shard, Target, Turns},
    serve::{Limits, Options, Server, Template},
};
use candlepower_core::{
    device::{DeviceChoice, Precision},
    model::{self, Engine},
};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde_json::Value;

use crate::fuzz::{LONGEST, Outcomes, corpus, fuzz, mutated, seconds, wording};

/// The bytes that come back after a request, at whose end the client stops sending.
fn exchanged(address: SocketAddr, request: &[u8], ends: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LONGEST)).expect("a time");
    // A server that refuses a request may close the connection before it has read all.
    let sent = stream.write_all(request);
    if ends {
        // A server may drop a request whose client has gone.
        let _ = sent.and_then(|()| stream.shutdown(Shutdown::Write));
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("no end of the answer: {error}"),
        _ => answer,
    }
}

/// Status and body of the first answer. `None` if the server closed the connection without one.
fn answered(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).expect("a head in UTF-8");
    // The version is that of the request.
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).expect("a status");
    Some((status.parse().expect("a number"), &answer[end + 4..]))
}

/// Every request gets an answer of its client's fault or a result, and the server goes on.
#[test]
fn requests_to_a_server() {
    let limits = Limits {
        max_prompt_tokens: 64,
        max_new_tokens: 4,
        read_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(10),
        ..Limits::default()
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options { address, model: "m".into(), api_key: None, cors_origins: Vec::new(), limits };
    let load = || -> anyhow::Result<_> {
        let spec = "path:fixtures/generation/llama-gqa-tied".parse()?;
        let subject = model::load(&spec, Engine::Tuned, Precision::F32, DeviceChoice::Cpu, 1)?;
        Ok((subject, Template::new(None)))
    };
    let server = Server::start(options, load).expect("a server");
    let address = server.address();
    let health = || {
        let answer = exchanged(address, b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", false);
        answered(&answer).map(|(status, _)| status)
    };
    fuzz("requests", &[], |input| {
        let answer = exchanged(address, input, true);
        let outcome = match answered(&answer) {
            // A head without an end, or bytes that are not HTTP, may get none.
            None => {
                assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
                "closed".to_owned()
            }
            Some((status, body)) => {
                assert!((200..500).contains(&status), "{:?}", String::from_utf8_lossy(&answer));
                let json: Option<Value> = serde_json::from_slice(body).ok();
                let message = json.as_ref().and_then(|json| json["error"]["message"].as_str()).unwrap_or_default();
                assert!(!message.contains(char::is_control), "{message:?}");
                format!("{status} {}", wording(message))
            }
        };
        assert_eq!(health(), Some(200));
        outcome
    });
    server.stopper().stop();
    server.wait().expect("it ends without a failure");
}

/// The events of a stream do not depend on where its writes end.
#[test]
fn events_of_a_stream() {
    fuzz("events", &[], |input| {
        let items = |size: usize| {
            let (mut parser, mut items) = (Parser::default(), Vec::new());
            input.chunks(size).for_each(|part| parser.feed(part, |item| items.push(item)));
            parser.end(|item| items.push(item));
            items
        };
        let whole = items(input.len().max(1));
        assert!(!whole.contains(&Item::TooLong));
        for size in [1, 2, 3, 7] {
            assert_eq!(items(size), whole, "in parts of {size}");
        }
        let kind = |item: &Item| match item {
            Item::Event { name, data } => format!("event {} {}", name.is_empty(), data.is_empty()),
            other => format!("{other:?}"),
        };
        whole.iter().map(kind).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("; ")
    });
}

/// Answers the request of each connection with the bytes that `answer` makes for its number. It ends with the process.
fn serve(answer: impl Fn(u64) -> Vec<u8> + Send + 'static, count: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(stated) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = stated.trim().parse().expect("a length");
                }
                line.clear();
            }
            if reader.read_exact(&mut vec![0; length]).is_ok() {
                let _ = (&stream).write_all(&answer(count.fetch_add(1, Ordering::Relaxed)));
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    address
}

/// One client sends request after request. Each answer has a class, and no connection is waited for.
#[test]
fn answers_of_servers() {
    let inputs = corpus("answers");
    let files = inputs.len() as u64;
    let answer = move |number: u64| -> Vec<u8> {
        let mut random = ChaCha8Rng::seed_from_u64(number);
        match inputs.get(number as usize) {
            Some(input) => input.clone(),
            None => mutated(&inputs[random.random_range(0..inputs.len())], &mut random),
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let count = Arc::new(AtomicU64::new(0));
    let address = serve(answer.clone(), count.clone());
    let shape = Shape {
        seed: 1,
        arrivals: Arrivals::Closed { clients: 1 },
        duration_s: Some(seconds() as f64),
        requests: None,
        prompt_tokens: "4".parse().expect("a length"),
        max_new_tokens: "4".parse().expect("a length"),
        shared_prefix_tokens: 0,
        turns: Turns { count: 1, think_ms: 0.0 },
        trace: None,
    };
    let run = Run {
        plan: Plan::new(shape).expect("a plan"),
        shard: Shard::WHOLE,
        target: Target {
            url: format!("http://{address}"),
            api: Api::Completions,
            model: "m".into(),
            api_key: None,
            headers: Vec::new(),
            extra: serde_json::Map::new(),
            timeout: LONGEST,
            retries: 0,
        },
        tokens: None,
        objectives: Vec::new(),
        steady_from_s: 0.0,
        limits: LoadLimits::default(),
        start_at: None,
        exchanges_to: Some(folder.path().join("exchanges.jsonl")),
    };
    let started = Instant::now();
    let about = || format!("the last answer was number {}", count.load(Ordering::Relaxed));
    let report = load::run(&run, &mut |_| {}).unwrap_or_else(|error| panic!("{}: {error:#}", about()));
    let ended: u64 = report.tally.outcomes.values().sum();
    println!("answers: {files} files and {} mutations: {:?}", ended.saturating_sub(files), report.tally.outcomes);
    assert!(started.elapsed() < Duration::from_secs(seconds()) + LONGEST, "{}", about());
    assert!(ended > files && count.load(Ordering::Relaxed) > files, "{ended} ended; {}", about());
    assert_eq!(report.tally.outcomes.get(&load::Outcome::TimedOut), None, "{}", about());
    assert!(!report.text().contains('\u{1b}'));

    // Each exchange took one answer, and the last answer may have come too late for one.
    let answers = count.load(Ordering::Relaxed);
    if (ended..=ended + 1).contains(&answers) {
        let mut outcomes = Outcomes::of("answers");
        let lines = BufReader::new(File::open(folder.path().join("exchanges.jsonl")).expect("exchanges")).lines();
        for (number, line) in (0..).zip(lines) {
            let line: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            let detail = wording(line["detail"].as_str().unwrap_or_default());
            let outcome = format!("{} {detail} {} {}", line["outcome"], line["token_source"], line["oddities"]);
            if number < files {
                outcomes.know(outcome);
            } else {
                outcomes.add(&answer(number), outcome);
            }
        }
    }
}
