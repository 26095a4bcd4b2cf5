//! One request to an OpenAI-compatible server, and the time of every event of its answer.

use std::{collections::BTreeSet, error::Error, net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{
    Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout_at;

use super::{
    exchange::{Chunk, Exchange, Oddity, Outcome, Part},
    generator::Clock,
    sse::{Item, Parser},
};
use crate::{text, tls};

/// Most bytes that are kept of an error's body.
const ERROR_BODY_BYTES: usize = 2048;
/// Most bytes of text, and most events, that are kept of an answer.
const ANSWER_MAX: usize = 16 << 20;
/// Reasons of servers that did not complete an answer.
const GIVEN_UP: [&str; 6] = ["abort", "aborted", "canceled", "cancelled", "error", "timeout"];
/// Most tokens that an event may state. Each token of an answer becomes a number in its line.
const TOKENS_MAX: u64 = 16 << 20;
/// Longest wait that a server may ask for before another attempt.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// First wait before another attempt when the server names none. It doubles with each attempt.
const BACKOFF: Duration = Duration::from_millis(100);

/// The endpoint that requests go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`: the prompt is text.
    Completions,
    /// `/v1/chat/completions`: the prompt is messages, and the server adds its template.
    Chat,
}

/// A server, and what each request says besides its prompt.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address of the server, with or without `/v1`.
    pub url: String,
    /// The endpoint.
    pub api: Api,
    /// Name of the model in requests.
    pub model: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// More headers, as `name: value`.
    pub headers: Vec<String>,
    /// Fields that are added to each request or replace its own.
    pub extra: Map<String, Value>,
    /// Time for a request, counted from its schedule.
    pub timeout: Duration,
    /// Attempts after a failed one.
    pub retries: u32,
}

impl Target {
    /// The address for people and reports: its query may hold a secret.
    pub(super) fn shown_url(&self) -> String {
        self.url.split(['?', '#']).next().unwrap_or_default().to_owned()
    }

    /// The address of the endpoint.
    pub(super) fn endpoint(&self) -> Result<Url> {
        // It is not shown, because it may hold a password.
        let base: Url = self.url.parse().context("the address of the server is not a URL")?;
        ensure!(
            ["http", "https"].contains(&base.scheme()),
            "the address of the server must begin with http:// or https://"
        );
        ensure!(
            base.username().is_empty() && base.password().is_none(),
            "the URL has a user or password: give a key in a file instead"
        );
        let path = base.path().trim_end_matches('/');
        let leaf = match self.api {
            Api::Completions => "/completions",
            Api::Chat => "/chat/completions",
        };
        let path = match path.strip_suffix(leaf) {
            Some(_) => path.to_owned(),
            None if path.ends_with("/v1") => format!("{path}{leaf}"),
            None => format!("{path}/v1{leaf}"),
        };
        let mut url = base;
        url.set_path(&path);
        Ok(url)
    }

    /// Returns whether the server is reached over loopback, so that it most likely runs on this machine.
    pub(crate) fn is_on_loopback(&self) -> bool {
        let url = self.endpoint().ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// The limit of an answer, which the additional fields may replace.
    pub(super) fn limit(&self, max_new_tokens: u32) -> u32 {
        let given = ["max_completion_tokens", "max_tokens"].iter().find_map(|field| self.extra.get(*field)?.as_u64());
        given.map_or(max_new_tokens, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// The body of a request for a conversation: messages of the user and answers in turns, the user's last.
    pub(super) fn body(&self, conversation: &[String], max_new_tokens: u32) -> Vec<u8> {
        let mut body = json!({
            "model": self.model,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self.api {
            Api::Completions => body["prompt"] = prompt(conversation).into(),
            Api::Chat => {
                let role = |turn: usize| if turn.is_multiple_of(2) { "user" } else { "assistant" };
                let message = |(turn, content): (usize, &String)| json!({"role": role(turn), "content": content});
                body["messages"] = conversation.iter().enumerate().map(message).collect();
            }
        }
        for (key, value) in &self.extra {
            body[key] = value.clone();
        }
        body.to_string().into_bytes()
    }
}

/// A conversation as one text. A message of the user is set apart from the answer before it.
fn prompt(conversation: &[String]) -> String {
    let mut text = String::new();
    for (turn, message) in conversation.iter().enumerate() {
        if turn > 0 && turn.is_multiple_of(2) {
            text.push(' ');
        }
        text.push_str(message);
    }
    text
}

/// A client of one server, with its pool of connections.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    retries: u32,
    timeout: Duration,
    clock: Clock,
}

impl Client {
    pub fn new(target: &Target, clock: Clock) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = &target.api_key {
            let mut value: HeaderValue = format!("Bearer {key}").parse().context("the API key can't be in a header")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        for header in &target.headers {
            let (name, value) = header.split_once(':').with_context(|| format!("'{header}' is not 'name: value'"))?;
            let name: HeaderName =
                name.trim().parse().with_context(|| format!("'{name}' is not the name of a header"))?;
            let value = value.trim().parse().with_context(|| format!("the value of the header {name}"))?;
            headers.insert(name, value);
        }
        // A proxy or a redirect would be measured as part of the server.
        let http = tls::client()
            .default_headers(headers)
            .redirect(Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .context("the HTTP client does not start")?;
        Ok(Self { http, url: target.endpoint()?, retries: target.retries, timeout: target.timeout, clock })
    }

    /// Sends a request until it succeeds or may not be sent again. `exchange` tells when it is due, and is completed.
    pub async fn exchange(&self, body: Vec<u8>, exchange: &mut Exchange) {
        let deadline = self.clock.at(exchange.due_ns) + self.timeout;
        for attempt in 0..=self.retries {
            let sent_ns = self.clock.now_ns();
            exchange.sent_ns.get_or_insert(sent_ns);
            exchange.attempts += 1;
            let mut answer = Answer::default();
            let ended = timeout_at(deadline.into(), self.attempt(body.clone(), &mut answer)).await;
            exchange.ended_ns = answer.ended_ns.unwrap_or_else(|| self.clock.now_ns());
            let (outcome, detail) = match ended {
                Ok(Ok(())) => (Outcome::Ok, None),
                Ok(Err(failure)) => (failure.outcome, Some(failure.detail)),
                Err(_) => {
                    (Outcome::TimedOut, Some(format!("no end within {} s of its schedule", self.timeout.as_secs_f64())))
                }
            };
            let wait = answer.retry_after.unwrap_or(BACKOFF * 2u32.saturating_pow(attempt)).min(MAX_RETRY_AFTER);
            answer.complete(exchange);
            (exchange.outcome, exchange.detail) = (outcome, detail);
            let may_wait = self.clock.at(exchange.ended_ns) + wait < deadline;
            if !outcome.may_be_retried() || attempt == self.retries || !may_wait {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, body: Vec<u8>, answer: &mut Answer) -> Result<(), Failure> {
        let response = self.http.post(self.url.clone()).body(body).send().await.map_err(|error| before_head(&error))?;
        answer.status = Some(response.status().as_u16());
        answer.retry_after = retry_after(response.headers());
        let outcome = match response.status().as_u16() {
            200 => return self.stream(response, answer).await,
            429 => Outcome::RateLimited,
            400..=499 => Outcome::ClientError,
            500.. => Outcome::ServerError,
            _ => Outcome::OtherStatus,
        };
        let status = response.status();
        let said = error_body(response).await;
        Err(Failure { outcome, detail: format!("HTTP {status}{}{said}", if said.is_empty() { "" } else { ": " }) })
    }

    async fn stream(&self, mut response: Response, answer: &mut Answer) -> Result<(), Failure> {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
            let detail = format!("the answer is '{}', not text/event-stream", text::line(kind));
            return Err(Failure { outcome: Outcome::NotAStream, detail });
        }
        let mut parser = Parser::default();
        let mut failed = None;
        let ended = loop {
            let bytes = response.chunk().await;
            let at_ns = self.clock.now_ns();
            match bytes {
                Ok(Some(bytes)) => parser.feed(&bytes, |item| take(item, at_ns, answer, &mut failed)),
                Ok(None) => {
                    parser.end(|item| take(item, at_ns, answer, &mut failed));
                    answer.ended_ns.get_or_insert(at_ns);
                    break None;
                }
                Err(error) => break Some(error),
            }
            if failed.is_some() || answer.is_done {
                break None;
            }
        };
        answer.oddities.extend(parser.saw_return.then_some(Oddity::CarriageReturn));
        answer.oddities.extend(parser.saw_split_character.then_some(Oddity::SplitCharacter));
        if answer.is_done && failed.is_none() {
            // The connection can be used again only when the end of the body has been read.
            let _ = tokio::time::timeout(Duration::from_secs(1), response.chunk()).await;
        }
        match (failed, ended) {
            (Some(failure), _) => Err(failure),
            (None, Some(error)) => Err(ended_early(format!("the stream broke off: {}", cause(&error)))),
            (None, None) if !answer.is_done && answer.finish_reason.is_none() => {
                Err(ended_early("the stream ended without an end mark".into()))
            }
            (None, None) if answer.chunks.iter().all(|chunk| chunk.part != Part::Text) => {
                Err(Failure { outcome: Outcome::NoTokens, detail: "the answer has no text".into() })
            }
            (None, None) => {
                let reason = answer.finish_reason.as_deref().map(str::to_ascii_lowercase);
                match reason.as_deref() {
                    None => return Err(ended_early("the answer ended without a finish_reason".into())),
                    Some(given_up) if GIVEN_UP.contains(&given_up) => {
                        return Err(ended_early(format!("the server ended the answer: {given_up}")));
                    }
                    Some(_) => {}
                }
                answer.oddities.extend((!answer.is_done).then_some(Oddity::NoEndMark));
                Ok(())
            }
        }
    }
}

/// Why an attempt failed.
struct Failure {
    outcome: Outcome,
    detail: String,
}

fn ended_early(detail: String) -> Failure {
    Failure { outcome: Outcome::EndedEarly, detail }
}

/// The part of an answer that has been received.
#[derive(Default)]
struct Answer {
    status: Option<u16>,
    retry_after: Option<Duration>,
    chunks: Vec<Chunk>,
    text: String,
    finish_reason: Option<String>,
    is_done: bool,
    /// Arrival of the end mark, or of the end of the stream.
    ended_ns: Option<u64>,
    usage: Option<Usage>,
    oddities: BTreeSet<Oddity>,
}

#[derive(Clone, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

impl Usage {
    /// Every number of tokens in it.
    fn counts(&self) -> impl Iterator<Item = u64> {
        let cached = self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        [self.prompt_tokens, self.completion_tokens, cached].into_iter().flatten()
    }
}

#[derive(Clone, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// An event of a completion or of a chat.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: Option<i64>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<Map<String, Value>>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
    #[serde(default)]
    token_ids: Option<Vec<Value>>,
    #[serde(default)]
    finish_reason: Option<Value>,
}

/// The fields of a chat's delta that hold generated text. A text that stands in both fields of a row counts once: servers that
/// rename the field of thoughts send both for a while.
const TEXTS: [[&str; 2]; 4] = [
    ["reasoning_content", "reasoning"],
    ["content", "content"],
    ["refusal", "refusal"],
    ["tool_calls", "function_call"],
];
/// The fields of parts, thoughts and calls that hold their text.
const INNER: [&str; 7] = ["text", "thinking", "reasoning", "refusal", "function", "name", "arguments"];

/// Adds the generated text in a value: a string, or parts with strings.
fn push_text(value: &Value, text: &mut String) {
    match value {
        Value::String(own) => text.push_str(own),
        Value::Array(parts) => parts.iter().for_each(|part| push_text(part, text)),
        Value::Object(fields) => INNER.iter().filter_map(|name| fields.get(*name)).for_each(|own| push_text(own, text)),
        _ => {}
    }
}

#[derive(Deserialize)]
struct Logprobs {
    /// In a completion.
    #[serde(default)]
    tokens: Option<Vec<Value>>,
    /// In a chat.
    #[serde(default)]
    content: Option<Vec<Value>>,
}

/// Adds an item of the stream to the answer.
fn take(item: Item, at_ns: u64, answer: &mut Answer, failed: &mut Option<Failure>) {
    if failed.is_some() || answer.is_done {
        return;
    }
    let (name, data) = match item {
        Item::Event { name, data } => (name, data),
        Item::Comment => {
            answer.oddities.insert(Oddity::Comment);
            return;
        }
        Item::NotText => {
            *failed = Some(Failure { outcome: Outcome::BadEvent, detail: "an event is not UTF-8".into() });
            return;
        }
        Item::TooLong => {
            *failed = Some(Failure { outcome: Outcome::TooLarge, detail: "an event has no end".into() });
            return;
        }
    };
    if data.trim() == "[DONE]" {
        answer.is_done = true;
        answer.ended_ns = Some(at_ns);
        return;
    }
    let event: Event = match serde_json::from_str(&data) {
        Ok(event) => event,
        Err(_) if name == "error" => {
            *failed = Some(Failure { outcome: Outcome::ErrorEvent, detail: shortened(&data) });
            return;
        }
        // Clients ignore names that they do not know.
        Err(_) if !["", "message"].contains(&name.as_str()) => {
            answer.oddities.insert(Oddity::NamedEvent);
            return;
        }
        Err(error) => {
            let detail = format!("an event is not a completion ({error}): {}", shortened(&data));
            *failed = Some(Failure { outcome: Outcome::BadEvent, detail });
            return;
        }
    };
    if name == "error" || event.error.as_ref().is_some_and(|error| !error.is_null()) {
        *failed = Some(Failure { outcome: Outcome::ErrorEvent, detail: shortened(&data) });
        return;
    }
    if event.choices.is_none() && event.usage.is_none() {
        if !["", "message"].contains(&name.as_str()) {
            answer.oddities.insert(Oddity::NamedEvent);
            return;
        }
        let detail = format!("an event is not a completion: {}", shortened(&data));
        *failed = Some(Failure { outcome: Outcome::BadEvent, detail });
        return;
    }
    let stated = event.usage.iter().flat_map(Usage::counts).max();
    if let Some(stated) = stated.filter(|stated| *stated > TOKENS_MAX) {
        *failed = Some(Failure { outcome: Outcome::BadEvent, detail: format!("an event states {stated} tokens") });
        return;
    }
    let running = event.usage.as_ref().and_then(|usage| usage.completion_tokens);
    if event.usage.is_some() {
        answer.usage = event.usage;
    }
    let choices = event.choices.unwrap_or_default();
    let other = choices.iter().filter_map(|choice| choice.index).find(|index| *index != 0);
    if choices.len() > 1 || other.is_some() {
        let index = other.map_or_else(String::new, |index| format!(", one of index {index}"));
        let detail = format!("an event has {} choices{index}: a load measures one choice, of index 0", choices.len());
        *failed = Some(Failure { outcome: Outcome::SeveralChoices, detail });
        return;
    }
    for choice in choices {
        let delta = choice.delta.unwrap_or_default();
        let length_before = answer.text.len();
        choice.text.iter().for_each(|text| answer.text.push_str(text));
        for fields in TEXTS {
            let mut texts = fields.map(|field| {
                let mut text = String::new();
                delta.get(field).into_iter().for_each(|value| push_text(value, &mut text));
                text
            });
            let given = usize::from(texts[0].is_empty());
            answer.text.push_str(&std::mem::take(&mut texts[given]));
        }
        let listed =
            choice.token_ids.or_else(|| choice.logprobs.and_then(|logprobs| logprobs.tokens.or(logprobs.content)));
        let listed = listed.map(|tokens| tokens.len() as u64);
        let has_text = answer.text.len() > length_before || listed.is_some_and(|count| count > 0);
        let reason = choice.finish_reason.filter(|reason| !reason.is_null() && *reason != "");
        let is_role = delta.contains_key("role") && answer.chunks.is_empty() && !has_text;
        answer.oddities.extend(is_role.then_some(Oddity::RoleOnlyDelta));
        let part = match (has_text, &reason) {
            (true, _) => Part::Text,
            (false, Some(_)) => Part::End,
            (false, None) => Part::Silent,
        };
        if !is_role {
            let text_end = answer.text.len();
            answer.chunks.push(Chunk { part, at_ns, text_end, listed, usage: running, tokens: 0 });
        }
        let reason = reason.map(|reason| reason.as_str().map_or_else(|| reason.to_string(), str::to_owned));
        answer.finish_reason = reason.or(answer.finish_reason.take());
    }
    if answer.text.len().max(answer.chunks.len()) > ANSWER_MAX {
        *failed = Some(Failure { outcome: Outcome::TooLarge, detail: "the answer has no end".into() });
    }
}

impl Answer {
    /// Hands what was received to the exchange. An answer to an earlier attempt is replaced.
    fn complete(self, exchange: &mut Exchange) {
        exchange.status = self.status;
        exchange.chunks = self.chunks;
        exchange.text = self.text;
        exchange.finish_reason = self.finish_reason;
        exchange.oddities = self.oddities;
        let usage = self.usage.as_ref();
        exchange.prompt_tokens = usage.and_then(|usage| usage.prompt_tokens);
        exchange.usage_tokens = usage.and_then(|usage| usage.completion_tokens);
        exchange.cached_tokens = usage.and_then(|usage| usage.prompt_tokens_details.as_ref()?.cached_tokens);
    }
}

/// The class of an error before the head of the answer was read.
fn before_head(error: &reqwest::Error) -> Failure {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    let mut outcome = if error.is_connect() { Outcome::NotConnected } else { Outcome::NoAnswer };
    while let Some(at) = source {
        if let Some(error) = at.downcast_ref::<hyper::Error>() {
            outcome = match error {
                error if error.is_parse_too_large() => Outcome::HeadTooLarge,
                error if error.is_parse() => Outcome::NotHttp,
                _ => outcome,
            };
        }
        source = at.source();
    }
    Failure { outcome, detail: cause(error) }
}

/// The innermost cause of an error.
fn cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    text::line(&innermost.to_string())
}

/// The wait that a server asks for, in seconds. A date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The start of an error's body, in one line.
async fn error_body(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() >= ERROR_BODY_BYTES {
            break;
        }
    }
    shortened(&String::from_utf8_lossy(&body))
}

fn shortened(said: &str) -> String {
    const MOST: usize = 300;
    let line = text::line(said.trim());
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Parses `--extra` bodies.
///
/// # Errors
/// When the text is not a JSON object.
pub fn extra(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => {
            let choices = fields.get("n").filter(|n| !n.is_null() && n.as_u64() != Some(1));
            ensure!(choices.is_none(), "n: a load measures one choice of each request");
            Ok(fields)
        }
        Ok(_) => bail!("the extra fields are not a JSON object"),
        Err(error) => bail!("the extra fields are not JSON: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, api: Api) -> Target {
        Target {
            url: url.into(),
            api,
            model: "m".into(),
            api_key: None,
            headers: Vec::new(),
            extra: Map::new(),
            timeout: Duration::from_secs(1),
            retries: 0,
        }
    }

    #[test]
    fn the_endpoint_follows_from_the_address() {
        for (url, api, endpoint) in [
            ("http://127.0.0.1:8000", Api::Completions, "http://127.0.0.1:8000/v1/completions"),
            ("http://h/v1/", Api::Chat, "http://h/v1/chat/completions"),
            ("https://h/proxy/v1/completions", Api::Completions, "https://h/proxy/v1/completions"),
            ("http://h/base", Api::Chat, "http://h/base/v1/chat/completions"),
        ] {
            assert_eq!(target(url, api).endpoint().expect(url).as_str(), endpoint);
            let with_key = format!("{url}?key=secret#part");
            assert_eq!(target(&with_key, api).shown_url(), url);
            assert!(target(&with_key, api).endpoint().is_ok_and(|url| url.query() == Some("key=secret")));
        }
        for url in ["h:80", "ftp://h", "http://user:word@h"] {
            assert!(target(url, Api::Chat).endpoint().is_err(), "{url}");
        }
    }

    #[test]
    fn a_body_has_the_whole_conversation() {
        let conversation = ["a".to_owned(), " b".to_owned(), "c".to_owned()];
        let mut to = target("http://h", Api::Completions);
        to.extra = extra(r#"{"temperature": 1, "ignore_eos": true}"#).expect("an object");
        let body: Value = serde_json::from_slice(&to.body(&conversation, 7)).expect("JSON");
        assert_eq!(
            (&body["prompt"], &body["max_tokens"], &body["temperature"]),
            (&json!("a b c"), &json!(7), &json!(1))
        );
        assert_eq!(body["ignore_eos"], json!(true));
        let chat: Value = serde_json::from_slice(&target("http://h", Api::Chat).body(&conversation, 7)).expect("JSON");
        assert_eq!(chat["messages"][1], json!({"role": "assistant", "content": " b"}));
        assert_eq!(chat["messages"].as_array().expect("messages").len(), 3);
        assert!(extra("[1]").is_err() && extra("{").is_err() && extra(r#"{"n": 2}"#).is_err());
        assert!(extra(r#"{"n": 1}"#).is_ok());
        to.extra = extra(r#"{"max_tokens": 9}"#).expect("an object");
        assert_eq!((to.limit(7), target("http://h", Api::Chat).limit(7)), (9, 7));
    }
}
