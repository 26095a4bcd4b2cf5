//! The server, over loopback, in front of a toy model with several sequences and of an embedded model.

// Functions beside the tests say what is skipped.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod client;
#[cfg(unix)]
mod command;
#[cfg(unix)]
mod full_size;
mod hostile;
mod load;
#[path = "../load/short_run.rs"]
mod short_run;
mod toy;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use candlepower::{
    anyhow::Result,
    serve::{Limits, Options, Server, Template},
};
use candlepower_core::{
    device::{DeviceChoice, Precision},
    generate::{self, Sampler},
    model::{self, Engine, ModelSpec, Subject},
    scenario::Sampling,
};
use client::{get, post, send};
use serde_json::{Value, json};
use toy::{Log, greedy, toy};

pub const COMPLETIONS: &str = "/v1/completions";
pub const CHAT: &str = "/v1/chat/completions";

/// A server that ends with the test.
pub struct Running {
    pub server: Option<Server>,
    pub address: SocketAddr,
}

impl Running {
    pub fn start(api_key: Option<&str>, limits: Limits, load: impl FnOnce() -> Subject + Send + 'static) -> Self {
        Self::of(options(api_key, limits), load)
    }

    fn of(options: Options, load: impl FnOnce() -> Subject + Send + 'static) -> Self {
        let server = Server::start(options, || Ok((load(), Template::new(None)))).expect("a server");
        Self { address: server.address(), server: Some(server) }
    }

    pub fn post(&self, path: &str, body: &Value) -> client::Answer {
        post(self.address, path, body)
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = get(self.address, "/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("candlepower_{name} ")));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    }

    /// Waits until a metric has a value.
    pub fn until(&self, name: &str, value: f64) {
        let started = Instant::now();
        while self.metric(name) != value {
            assert!(started.elapsed() < Duration::from_secs(20), "{name} is {}, not {value}", self.metric(name));
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&mut self) -> Result<()> {
        let server = self.server.take().expect("running");
        server.stopper().stop();
        server.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stopper().stop();
            let _ = server.wait();
        }
    }
}

fn options(api_key: Option<&str>, limits: Limits) -> Options {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Options { address, model: "toy".into(), api_key: api_key.map(str::to_owned), cors_origins: Vec::new(), limits }
}

/// A server of a toy model.
pub fn serve(sequences: usize, step: Duration, limits: Limits) -> (Running, Arc<Mutex<Log>>) {
    let (make, log) = toy(sequences, step);
    (Running::start(None, limits, make), log)
}

pub fn quick(sequences: usize) -> (Running, Arc<Mutex<Log>>) {
    serve(sequences, Duration::ZERO, Limits::default())
}

/// A greedy request.
pub fn body(prompt: &[u32], new: usize) -> Value {
    json!({"model": "toy", "prompt": prompt, "max_tokens": new, "temperature": 0})
}

/// A body with more fields.
pub fn with(mut body: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// The text of tokens of a model without a tokenizer.
pub fn text(ids: &[u32]) -> String {
    ids.iter().map(|id| format!(" <{id}>")).collect()
}

/// The text of the streamed choice of a number.
pub fn streamed(events: &[Value], choice: u64) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
    let own = choices.filter(|own| own["index"] == choice);
    own.filter_map(|own| own["text"].as_str().or_else(|| own["delta"]["content"].as_str())).collect()
}

pub fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|number| (seed * 31 + number * number * 7 + number) % 290).collect()
}

fn usage(prompt: usize, new: usize, cached: usize) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// Sixteen clients with prompts of all lengths, on eight places with a budget of 16 tokens, so that prompts are split and
/// steps mix prompts and answers.
#[test]
fn every_client_gets_the_tokens_of_its_own_prompt() {
    let limits = Limits { step_tokens: 16, max_sequences: 8, ..Limits::default() };
    let (running, log) = serve(9, Duration::from_millis(3), limits);
    assert_eq!(running.server.as_ref().map(Server::sequences), Some(8));
    thread::scope(|scope| {
        for client in 0..16 {
            let running = &running;
            scope.spawn(move || {
                let prompt = prompt(client, 1 + client * 5);
                let expected = text(&greedy(&prompt, 12));
                let whole = running.post(COMPLETIONS, &body(&prompt, 12));
                assert_eq!(whole.status, 200, "{whole:?}");
                let json = whole.json();
                assert_eq!((&json["object"], &json["model"]), (&json!("text_completion"), &json!("toy")));
                let choice = json!({"index": 0, "text": expected, "logprobs": null, "finish_reason": "length"});
                assert_eq!(json["choices"], json!([choice]), "client {client}");
                let cached = json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
                assert_eq!(json["usage"], usage(prompt.len(), 12, cached as usize));

                let options = json!({"stream": true, "stream_options": {"include_usage": true}});
                let events = running.post(COMPLETIONS, &with(body(&prompt, 12), options)).events();
                assert_eq!(streamed(&events, 0), expected, "client {client}");
                assert_eq!(events.len(), 13, "an event for each token, and the usage");
                let (last, others) = events.split_last().expect("events");
                assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
                assert!(others.iter().all(|event| event["usage"].is_null() && event["id"] == last["id"]));
                assert_eq!(others[11]["choices"][0]["finish_reason"], "length");
            });
        }
    });
    let log = log.lock().expect("no panic");
    assert!(log.steps.iter().all(|tokens| *tokens <= 16), "{:?}", log.steps);
    assert!((4..=8).contains(&log.widest), "{} sequences in the widest step", log.widest);
}

/// The embedded model on both engines: `stock` refuses or ignores what is not one call per prompt, `tuned` splits prompts.
#[test]
fn an_embedded_model_says_the_same_as_in_process() {
    let spec = ModelSpec::Mini("llama-mini");
    let load = |engine| model::load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 42).expect("a model");
    let prompt: Vec<u32> = (0..40).map(|id| id * 37 % 16384).collect();
    for engine in Engine::ALL {
        let request = generate::Request { new_tokens: 10, sampling: Sampling::GREEDY, seed: 0, stop: Vec::new() };
        let timeline =
            generate::run(load(engine).model.as_mut(), std::slice::from_ref(&prompt), &request).expect("tokens");
        let expected = text(&timeline.tokens[0]);
        let spec = spec.clone();
        let limits = Limits { step_tokens: 16, ..Limits::default() };
        let running = Running::start(None, limits, move || {
            model::load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 42).expect("a model")
        });
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let json = running.post(COMPLETIONS, &body(&prompt, 10)).json();
                    assert_eq!(json["choices"][0]["text"], expected, "{engine}");
                    let events = running.post(COMPLETIONS, &with(body(&prompt, 10), json!({"stream": true}))).events();
                    assert_eq!(streamed(&events, 0), expected, "{engine}");
                });
            }
        });
        // As text, and as the prompt of a chat in which the answer is repeated.
        let body = json!({"model": "toy", "prompt": text(&prompt), "max_tokens": 10, "temperature": 0});
        assert_eq!(running.post(COMPLETIONS, &body).json()["choices"][0]["text"], expected, "{engine}");
    }
}

#[test]
fn a_chat_has_roles_and_deltas() {
    let (running, _) = quick(2);
    let messages = json!([{"role": "system", "content": "be <1>"}, {"role": "user", "content": "<2> <3>"}]);
    let body = json!({"model": "toy", "messages": messages, "max_completion_tokens": 5, "temperature": 0});
    let json = running.post(CHAT, &body).json();
    assert_eq!(json["object"], "chat.completion");
    let choice = &json["choices"][0];
    let content = choice["message"]["content"].as_str().expect("text").to_owned();
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("length")));
    // "system:", "be", "<1>", "user:", "<2>", "<3>", "assistant:"
    assert_eq!(json["usage"], usage(7, 5, 0));
    let prompt = "system: be <1>\nuser: <2> <3>\nassistant:";
    let same = json!({"model": "toy", "prompt": prompt, "max_tokens": 5, "temperature": 0});
    assert_eq!(running.post(COMPLETIONS, &same).json()["choices"][0]["text"], content);

    let events = running.post(CHAT, &with(body, json!({"stream": true}))).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!((streamed(&events, 0), events.len()), (content, 6));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none()));
    assert_eq!(events[5]["choices"][0]["finish_reason"], "length");
}

#[test]
fn beginnings_that_are_in_the_cache_are_not_computed_again() {
    let (running, log) = quick(3);
    let cached = |body: &Value| {
        let json = running.post(COMPLETIONS, body).json();
        let text = json["choices"][0]["text"].as_str().expect("text").to_owned();
        (text, json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number"))
    };
    let first = prompt(1, 41);
    let answer = greedy(&first, 6);
    assert_eq!(cached(&body(&first, 6)), (text(&answer), 0));
    // The next turn goes on where the cache ends: after all but the last token of the answer.
    let turn = [&first[..], &answer, &[9, 9]].concat();
    assert_eq!(cached(&body(&turn, 6)), (text(&greedy(&turn, 6)), 46));
    // Another prompt with the same beginning shares whole pages.
    let other = [&first[..30], &[8; 5]].concat();
    let before = log.lock().expect("no panic").steps.iter().sum::<usize>();
    assert_eq!(cached(&body(&other, 6)), (text(&greedy(&other, 6)), 28));
    assert_eq!(log.lock().expect("no panic").steps.iter().sum::<usize>() - before, 35 - 28 + 5);
    // The same prompt again: its last token is computed for its logits.
    assert_eq!(cached(&body(&other, 6)), (text(&greedy(&other, 6)), 32));
    // Prompts that have nothing in common take the places, one after the other, and the first is forgotten.
    for seed in 10..13 {
        assert_eq!(cached(&body(&prompt(seed, 20), 1)).1, 0);
    }
    assert_eq!(cached(&body(&first, 6)), (text(&answer), 0));
    assert_eq!(running.metric("cached_prompt_tokens_total"), 46.0 + 28.0 + 32.0);
}

#[test]
fn a_running_sequence_shares_its_beginning() {
    let (running, log) = serve(4, Duration::from_millis(5), Limits::default());
    let first = prompt(3, 40);
    let long = send(running.address, COMPLETIONS, &body(&first, 200));
    running.until("running_sequences", 1.0);
    thread::sleep(Duration::from_millis(50));
    let json = running.post(COMPLETIONS, &body(&first, 3)).json();
    assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 36);
    assert_eq!(json["choices"][0]["text"], text(&greedy(&first, 3)));
    assert_eq!(log.lock().expect("no panic").shared_tokens, 36);
    assert_eq!(client::answer(long).json()["choices"][0]["text"], text(&greedy(&first, 200)));
}

#[test]
fn seeds_repeat_and_choices_differ() {
    let (running, _) = quick(4);
    let prompt = prompt(5, 9);
    let sampled = json!({"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.2, "n": 3});
    let choices = |seed: Value| -> Vec<String> {
        let json =
            running.post(COMPLETIONS, &with(with(body(&prompt, 8), sampled.clone()), json!({"seed": seed}))).json();
        assert_eq!(json["usage"]["completion_tokens"], 24);
        assert_eq!(json["usage"]["prompt_tokens"], 9);
        json["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .map(|own| own["text"].as_str().expect("text").into())
            .collect()
    };
    let found = choices(json!(7));
    let expected = |seed: u64| {
        let sampling = Sampling { repetition_penalty: Some(1.2), temperature: 0.9, top_k: Some(40), top_p: Some(0.95) };
        let mut sampler = Sampler::new(sampling, seed).expect("a sampler");
        let mut history = prompt.clone();
        for _ in 0..8 {
            history.push(sampler.sample(&toy::logits(&history), &history).expect("a token"));
        }
        text(&history[9..])
    };
    assert_eq!(found, [7, 8, 9].map(expected));
    assert_eq!(choices(json!(7)), found);
    assert_ne!(choices(json!(8)), found);
    // Without a seed, every request has its own.
    assert_ne!(choices(json!(null)), choices(json!(null)));
    let stream = with(with(body(&prompt, 8), sampled.clone()), json!({"seed": 7, "stream": true}));
    let events = running.post(COMPLETIONS, &stream).events();
    assert_eq!([0, 1, 2].map(|choice| streamed(&events, choice)).to_vec(), found);
    // Several prompts, two choices each.
    let two = json!({"model": "toy", "prompt": [[1, 2], "<3>"], "n": 2, "max_tokens": 4, "temperature": 0});
    let json = running.post(COMPLETIONS, &two).json();
    for (index, prompt) in [&[1, 2][..], &[1, 2], &[3], &[3]].into_iter().enumerate() {
        assert_eq!(json["choices"][index]["text"], text(&greedy(prompt, 4)));
    }
    assert_eq!(json["usage"]["prompt_tokens"], 3);
}

#[test]
fn answers_end_at_stop_strings_and_at_the_end_token() {
    let prompt = prompt(6, 12);
    let tokens = greedy(&prompt, 30);
    let end = tokens[20];
    assert!(!tokens[..20].contains(&end), "choose another prompt");
    let (make, _) = toy(2, Duration::ZERO);
    let running = Running::start(None, Limits::default(), move || Subject { eos_token_ids: vec![end], ..make() });

    let ended = running.post(COMPLETIONS, &body(&prompt, 30)).json();
    let choice = json!({"index": 0, "text": text(&tokens[..20]), "logprobs": null, "finish_reason": "stop"});
    assert_eq!((&ended["choices"][0], &ended["usage"]["completion_tokens"]), (&choice, &json!(21)));
    let ignored = running.post(COMPLETIONS, &with(body(&prompt, 30), json!({"ignore_eos": true}))).json();
    assert_eq!(ignored["choices"][0]["text"], text(&tokens));

    // A stop string that ends within the text of a token.
    let cut = format!("{}> <{}", tokens[8], &tokens[9].to_string()[..1]);
    let stops = with(body(&prompt, 30), json!({"stop": [cut, "never"]}));
    let stopped = running.post(COMPLETIONS, &stops).json();
    let expected = format!("{} <", text(&tokens[..8]));
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!(expected), &json!("stop"))
    );
    assert_eq!(stopped["usage"]["completion_tokens"], 10);
    let events = running.post(COMPLETIONS, &with(stops, json!({"stream": true}))).events();
    assert_eq!(streamed(&events, 0), expected);
    running.until("running_sequences", 0.0);
}

/// The tokens of an answer have the same probability in the server, in `perplexity`, and in a model that is sharded among ranks.
#[test]
fn served_in_process_and_sharded_nll_agree() {
    const NEW_TOKENS: usize = 12;
    let load = || {
        let spec = ModelSpec::Mini("llama-mini");
        model::load(&spec, Engine::Tuned, Precision::F32, DeviceChoice::Cpu, 42).expect("a model")
    };
    let prompt: Vec<u32> = (0..20).map(|id| id * 37 % 16384).collect();
    let request = generate::Request { new_tokens: NEW_TOKENS, sampling: Sampling::GREEDY, seed: 0, stop: Vec::new() };
    let timeline = generate::run(load().model.as_mut(), std::slice::from_ref(&prompt), &request).expect("tokens");
    let whole = [prompt.as_slice(), &timeline.tokens[0]].concat();

    let running = Running::start(None, Limits::default(), load);
    let json = running.post(COMPLETIONS, &with(body(&prompt, NEW_TOKENS), json!({"logprobs": 1}))).json();
    let logprobs = json["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("an array");
    assert_eq!(logprobs.len(), NEW_TOKENS);
    let served = -logprobs.iter().map(|logprob| logprob.as_f64().expect("a number")).sum::<f64>();

    let folder = tempfile::tempdir().expect("a folder");
    let sum = |ids: &[u32], ranks: &str| {
        let file = folder.path().join("ids.txt");
        let text: Vec<String> = ids.iter().map(u32::to_string).collect();
        fs::write(&file, text.join(" ")).expect("written");
        let window = ids.len().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_candlepower"))
            .current_dir(&folder)
            .args(["perplexity", "ids.txt", "--model", "llama-mini", "--engine", "tuned", "--json"])
            .args(["--seq-len", &window, "--stride", &window, "--tensor-parallel", ranks])
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["nll"].as_f64().expect("a number") * report["tokens"].as_f64().expect("a number")
    };
    for ranks in ["1", "2", "4"] {
        let computed = sum(&whole, ranks) - sum(&prompt, ranks);
        let apart = (served - computed).abs() / NEW_TOKENS as f64;
        assert!(apart < 1e-4, "{ranks} ranks: {served} served, {computed} computed, {apart} per token");
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let (running, _) = quick(1);
    let prompt = prompt(7, 5);
    let tokens = greedy(&prompt, 3);
    let logprob = |history: &[u32], id: u32| {
        let logits = toy::logits(history);
        let mass: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        f64::from(logits[id as usize]) - mass.ln()
    };
    let near = |found: &Value, expected: f64| (found.as_f64().expect("a number") - expected).abs() < 1e-4;
    let json = running.post(COMPLETIONS, &with(body(&prompt, 3), json!({"logprobs": 2}))).json();
    let found = &json["choices"][0]["logprobs"];
    let mut history = prompt.clone();
    let mut offset = 0;
    for (place, id) in tokens.iter().enumerate() {
        assert_eq!((&found["tokens"][place], &found["text_offset"][place]), (&json!(text(&[*id])), &json!(offset)));
        assert!(near(&found["token_logprobs"][place], logprob(&history, *id)));
        let top = found["top_logprobs"][place].as_object().expect("an object");
        assert!(top.len() == 2 && near(&top[&text(&[*id])], logprob(&history, *id)), "{top:?}");
        history.push(*id);
        offset += text(&[*id]).len();
    }
    let messages = json!([{"role": "user", "content": "<5>"}]);
    let chat = json!({"model": "toy", "messages": messages, "max_tokens": 3, "temperature": 0, "logprobs": true, "top_logprobs": 1});
    let whole = running.post(CHAT, &chat).json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(whole.as_array().map(Vec::len), Some(3));
    assert_eq!(whole[0]["top_logprobs"][0]["token"], whole[0]["token"]);
    let events = running.post(CHAT, &with(chat, json!({"stream": true}))).events();
    let parts = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(json!(parts.flatten().collect::<Vec<_>>()), whole);
}

/// The tokens of a prompt are scored as those of an answer are, whatever a cache holds.
#[test]
fn an_echoed_prompt_has_log_probabilities() {
    let (running, _) = quick(2);
    let prompt = prompt(7, 9);
    let echoed = json!({"echo": true, "logprobs": 1, "max_tokens": 0});
    for _ in 0..2 {
        let json = running.post(COMPLETIONS, &with(body(&prompt, 0), echoed.clone())).json();
        let (choice, found) = (&json["choices"][0], &json["choices"][0]["logprobs"]);
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text(&prompt)), &json!("length")), "{json}");
        assert_eq!(json["usage"]["completion_tokens"], 0);
        assert_eq!((&found["token_logprobs"][0], &found["top_logprobs"][0]), (&Value::Null, &Value::Null));
        for place in 1..prompt.len() {
            let logits = toy::logits(&prompt[..place]);
            let mass: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = f64::from(logits[prompt[place] as usize]) - mass.ln();
            let logprob = found["token_logprobs"][place].as_f64().expect("a number");
            assert!((logprob - expected).abs() < 1e-4, "{place}: {logprob}, not {expected}");
            // The token itself is among the alternatives.
            assert!(found["top_logprobs"][place][text(&prompt[place..=place])].is_number());
        }
    }
    // With new tokens, the text is that of both, and the answer is the same as without.
    let json = running.post(COMPLETIONS, &with(body(&prompt, 3), json!({"echo": true, "logprobs": 0}))).json();
    let both = [prompt.clone(), greedy(&prompt, 3)].concat();
    assert_eq!(json["choices"][0]["text"], text(&both));
    assert_eq!(json["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len), Some(12));
    let plain = running.post(COMPLETIONS, &with(body(&prompt, 3), json!({"echo": true, "stream": true}))).events();
    let joined: String = plain.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(joined, text(&both));
}

/// guidellm asks for the usage in each chunk.
#[test]
fn a_stream_may_have_the_usage_so_far() {
    let (running, _) = quick(1);
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = running
        .post(
            COMPLETIONS,
            &with(body(&prompt(7, 5), 4), json!({"stream": true, "stream_options": options, "x_new": 1})),
        )
        .events();
    let counts: Vec<_> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts, [1, 2, 3, 4, 4].map(Some), "{events:?}");
}

/// A share of the largest probability, of 1 keeps only the likeliest token.
#[test]
fn min_p_leaves_out_what_is_unlikely() {
    let (running, _) = quick(1);
    let prompt = prompt(7, 5);
    for seed in 0..5 {
        let sampled = json!({"min_p": 1, "temperature": 2, "seed": seed});
        let json = running.post(COMPLETIONS, &with(body(&prompt, 5), sampled)).json();
        assert_eq!(json["choices"][0]["text"], text(&greedy(&prompt, 5)), "{json}");
    }
}

#[test]
fn the_key_is_asked_for_everywhere_but_at_the_health() {
    let (make, _) = toy(1, Duration::ZERO);
    let running = Running::start(Some("right"), Limits::default(), make);
    let status = |path: &str, headers: &str| {
        use std::io::Write;
        let mut stream = client::connect(running.address);
        stream.write_all(&client::request("GET", path, headers, b"")).expect("sent");
        let answer = client::answer(stream);
        if answer.status == 401 {
            assert!(answer.error().contains("API key"));
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        answer.status
    };
    for path in ["/v1/models", "/v1/models/toy", "/metrics", "/openapi.json", "/other"] {
        for headers in ["", "authorization: Bearer wrong\r\n", "authorization: right\r\n", "authorization: Bearer \r\n"]
        {
            assert_eq!(status(path, headers), 401, "{path} {headers}");
        }
    }
    let right = "authorization: Bearer right\r\n";
    assert_eq!(
        ["/v1/models", "/v1/models/toy", "/metrics", "/other"].map(|path| status(path, right)),
        [200, 200, 200, 404]
    );
    assert_eq!(status("/health", ""), 200);
    assert_eq!(running.post(COMPLETIONS, &body(&[1], 1)).status, 401);
}

/// Asks for what the description says, field by field at the ends of its range and beyond.
#[test]
fn requests_are_accepted_as_described() {
    let (running, _) = quick(1);
    let described = client::get(running.address, "/openapi.json").json();
    let (schemas, paths) = (&described["components"]["schemas"], &described["paths"]);
    for (path, methods) in paths.as_object().expect("paths") {
        let path = path.replace("{model}", "toy");
        let answer = if methods["post"].is_null() {
            client::get(running.address, &path)
        } else {
            running.post(&path, &json!({}))
        };
        assert_eq!(answer.status, if methods["post"].is_null() { 200 } else { 400 }, "{path}");
    }
    let messages = json!({"messages": [{"role": "user", "content": "<1>"}], "prompt": null});
    for (kind, path, good) in [
        ("CompletionRequest", COMPLETIONS, with(body(&[1], 1), json!({"min_tokens": 0}))),
        ("ChatRequest", CHAT, with(body(&[1], 1), messages)),
    ] {
        assert_eq!(schemas[kind]["properties"]["model"]["enum"], json!(["toy"]));
        for (name, field) in schemas[kind]["properties"].as_object().expect("fields") {
            let number = |key: &str| field[key].as_f64().filter(|number| number.abs() < 1e6);
            let (low, high) = (number("minimum"), number("maximum"));
            let beyond = [low.map(|low| low - 1.0), high.map(|high| high + 1.0)];
            for value in [field["minimum"].as_f64(), number("maximum")].into_iter().chain(beyond).flatten() {
                let value = if field["type"][0] == "integer" { json!(value as i64) } else { json!(value) };
                let is_inside = low.is_none_or(|low| value.as_f64() >= Some(low))
                    && high.is_none_or(|high| value.as_f64() <= Some(high));
                let more = if name == "top_logprobs" { json!({"logprobs": true}) } else { json!({}) };
                let answer = running.post(path, &with(with(good.clone(), more), json!({name.as_str(): value})));
                assert_eq!(answer.status, if is_inside { 200 } else { 400 }, "{name}: {value}: {}", answer.text());
            }
            for value in field["enum"].as_array().into_iter().flatten() {
                let answer = running.post(path, &with(good.clone(), json!({name.as_str(): value})));
                assert_eq!(answer.status, 200, "{name}: {value}: {}", answer.text());
            }
        }
    }
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let limits = Limits { max_queue: 2, ..Limits::default() };
    let (running, _) = serve(1, Duration::from_millis(5), limits);
    let long = send(running.address, COMPLETIONS, &body(&[1], 100));
    running.until("running_sequences", 1.0);
    let waiting: Vec<_> = (2..4).map(|id| send(running.address, COMPLETIONS, &body(&[id], 2))).collect();
    running.until("waiting_sequences", 2.0);
    let refused = running.post(COMPLETIONS, &body(&[4], 2));
    assert_eq!(refused.status, 429);
    assert!(refused.error().contains("the queue of 2 requests is full"));
    let wait_s: u64 = refused.headers["retry-after"].parse().expect("seconds");
    assert!((1..=60).contains(&wait_s));
    // A request of several sequences waits whole or not at all.
    assert_eq!(running.post(COMPLETIONS, &with(body(&[4], 2), json!({"n": 3}))).status, 429);
    assert_eq!(client::answer(long).json()["choices"][0]["text"], text(&greedy(&[1], 100)));
    for (id, stream) in (2..4).zip(waiting) {
        assert_eq!(client::answer(stream).json()["choices"][0]["text"], text(&greedy(&[id], 2)));
    }
    assert_eq!(running.post(COMPLETIONS, &body(&[4], 2)).status, 200);
}

/// The places of clients that leave are free at the next step, whether they ran or waited.
#[test]
fn a_client_that_leaves_frees_its_place() {
    for stream in [false, true] {
        let (running, log) = serve(1, Duration::from_millis(5), Limits::default());
        let long = with(body(&[1], 1000), json!({"stream": stream}));
        let leaving = send(running.address, COMPLETIONS, &long);
        running.until("running_sequences", 1.0);
        let waiting = send(running.address, COMPLETIONS, &long);
        running.until("waiting_sequences", 1.0);
        drop(waiting);
        thread::sleep(Duration::from_millis(100));
        drop(leaving);
        let json = running.post(COMPLETIONS, &body(&[2], 2)).json();
        assert_eq!(json["choices"][0]["text"], text(&greedy(&[2], 2)));
        assert_eq!(running.metric("cancelled_sequences_total"), 1.0);
        assert!(log.lock().expect("no panic").steps.len() < 500, "the long answer went on");
    }
}

#[test]
fn an_answer_has_a_deadline() {
    let limits = Limits { request_timeout: Duration::from_millis(300), ..Limits::default() };
    let (running, _) = serve(1, Duration::from_millis(10), limits);
    let late = running.post(COMPLETIONS, &body(&[1], 1000));
    assert_eq!((late.status, late.error().contains("within 0.3 s")), (504, true));
    // After the status has been sent, the error is an event.
    let stream = running.post(COMPLETIONS, &with(body(&[1], 1000), json!({"stream": true})));
    let last = stream.text().split_terminator("\n\n").last().expect("an event").to_owned();
    assert!(stream.status == 200 && last.contains("timeout_error"), "{last}");
    running.until("running_sequences", 0.0);
    assert_eq!(running.post(COMPLETIONS, &body(&[2], 2)).status, 200);
}

#[test]
fn what_runs_is_finished_at_the_end() {
    let (mut running, _) = serve(1, Duration::from_millis(5), Limits::default());
    let address = running.address;
    let long = send(address, COMPLETIONS, &with(body(&[1], 100), json!({"stream": true})));
    running.until("running_sequences", 1.0);
    let waiting = send(address, COMPLETIONS, &body(&[2], 3));
    running.until("waiting_sequences", 1.0);
    let stopper = running.server.as_ref().expect("running").stopper();
    stopper.stop();
    let refused = post(address, COMPLETIONS, &body(&[3], 1));
    assert_eq!((refused.status, refused.error().contains("the server is ending")), (503, true));
    assert_eq!(get(address, "/health").status, 503);
    running.stop().expect("a good end");
    assert_eq!(streamed(&client::answer(long).events(), 0), text(&greedy(&[1], 100)));
    assert_eq!(client::answer(waiting).json()["choices"][0]["text"], text(&greedy(&[2], 3)));
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens");
}

#[test]
fn a_failing_model_fails_only_what_it_ran() {
    let (running, _) = quick(2);
    let failed = running.post(COMPLETIONS, &body(&[1, toy::FAILS], 3));
    assert_eq!((failed.status, failed.error().as_str()), (500, "a planted failure"));
    let failed = running.post(COMPLETIONS, &body(&[1, toy::NOT_A_NUMBER], 3));
    assert_eq!((failed.status, failed.error().contains("not finite")), (500, true));
    // Nothing of what failed is used again.
    for prompt in [&[1, 2][..], &[1, 3], &[1, 2, 3]] {
        assert_eq!(running.post(COMPLETIONS, &body(prompt, 3)).json()["choices"][0]["text"], text(&greedy(prompt, 3)));
    }
}

#[test]
fn a_panic_of_the_model_ends_the_server_after_its_answers() {
    let (mut running, _) = serve(2, Duration::from_millis(5), Limits::default());
    let long = send(running.address, COMPLETIONS, &body(&[1], 1000));
    let stream = send(running.address, COMPLETIONS, &with(body(&[2], 1000), json!({"stream": true})));
    running.until("running_sequences", 2.0);
    let waiting = send(running.address, COMPLETIONS, &body(&[3, toy::PANICS], 1));
    running.until("waiting_sequences", 1.0);
    drop(stream);
    for stream in [waiting, long] {
        let answer = client::answer(stream);
        assert_eq!((answer.status, answer.error().contains("the engine has failed")), (500, true));
    }
    let error = format!("{:#}", running.stop().expect_err("a panic"));
    assert!(error.contains("the engine ended") && error.contains("a planted panic"), "{error}");
}

/// A page of a browser asks before it sends a key, and reads what names its origin.
#[test]
fn pages_of_permitted_origins_read_answers() {
    let allowed = |origins: &[&str], asks: &str| {
        let cors_origins = origins.iter().map(ToString::to_string).collect();
        let options = Options { cors_origins, ..options(Some("right"), Limits::default()) };
        let running = Running::of(options, toy(1, Duration::ZERO).0);
        let origin = format!("origin: {asks}\r\n");
        let asking =
            format!("{origin}access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n");
        [("OPTIONS", COMPLETIONS, asking), ("GET", "/health", origin)].map(|(method, path, headers)| {
            let mut stream = client::connect(running.address);
            stream.write_all(&client::request(method, path, &headers, b"")).expect("sent");
            client::answer(stream).headers.get("access-control-allow-origin").cloned()
        })
    };
    let some = |origin: &str| [Some(origin.to_owned()), Some(origin.to_owned())];
    assert_eq!(allowed(&[], "http://a"), [None, None]);
    assert_eq!(allowed(&["*"], "http://a"), some("*"));
    assert_eq!(allowed(&["http://b:1", "http://a"], "http://a"), some("http://a"));
    assert_eq!(allowed(&["http://b:1"], "http://a"), [None, None]);
}

#[test]
fn a_server_that_can_not_start_says_why() {
    let started = |options, load: fn() -> Result<(Subject, Template)>| {
        format!("{:#}", Server::start(options, load).err().expect("an error"))
    };
    let load = || Ok((toy(1, Duration::ZERO).0(), Template::new(None)));
    let (running, _) = quick(1);
    let with = |limits: Limits| options(None, limits);
    let from = |origin: &str| Options { cors_origins: vec![origin.into()], ..with(Limits::default()) };
    for (options, load, part) in [
        (with(Limits::default()), (|| candlepower::anyhow::bail!("no such model")) as fn() -> _, "no such model"),
        (with(Limits::default()), || panic!("a planted panic"), "a planted panic"),
        (Options { address: running.address, ..with(Limits::default()) }, load, "can't be listened on"),
        (with(Limits { step_tokens: 4, ..Limits::default() }), load, "step-tokens=4: use at least"),
        (with(Limits { max_queue: 0, ..Limits::default() }), load, "max-queue=0: use 1 to"),
        (from("http://a/"), load, "cors-origin=http://a/: use an origin"),
        (from("a b"), load, "cors-origin=a b: use an origin"),
        (from("data:,x"), load, "cors-origin=data:,x: use an origin"),
    ] {
        let error = started(options, load);
        assert!(error.contains(part), "{error}");
    }
}
