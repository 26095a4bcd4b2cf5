//! Routes, keys, and the way of a request into the engine.

use std::{
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Path, Request, State},
    http::HeaderMap,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use hyper::{
    StatusCode, Version,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName,
        HeaderValue,
    },
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{timeout, timeout_at},
};
use tower_http::cors::CorsLayer;

use super::{
    Limits, Loaded, Options,
    error::ApiError,
    exchange::{Choice, Echo, Exchange},
    fields::MAX_CHOICES,
    metrics::Metrics,
    openapi,
    queue::{Job, Queue, Refusal},
    request::{Endpoint, Generation, Input, Prompt},
    response::{self, Answer, ChatChoice, ChatPart, CompletionChoice, EVENTS, Head, Stream},
    text::Codec,
};

/// Bytes beyond the limit that are read and dropped, because a client that is still sending would not see the answer.
const MAX_DROPPED_BYTES: usize = 64 << 20;

/// New tokens of a completion that states no limit, as at OpenAI.
const COMPLETION_TOKENS: usize = 16;

/// Header of an answer that names fields of the request without effect.
const UNKNOWN_FIELDS: &str = "x-unknown-fields";

/// Longest wait that a full server asks for.
const MAX_RETRY_AFTER_S: f64 = 60.0;

/// The one model.
#[derive(Serialize, JsonSchema)]
struct Model {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    owned_by: &'static str,
    /// Most tokens of a prompt and its answer.
    max_model_len: usize,
}

/// All models.
#[derive(Serialize, JsonSchema)]
struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// The state of the server.
#[derive(Serialize, JsonSchema)]
struct Health {
    status: &'static str,
}

/// The state that all requests share.
pub struct Shared {
    options: Options,
    loaded: Loaded,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    eos_token_ids: Arc<[u32]>,
    /// Digest of the key, so that a comparison takes as long for every key.
    key: Option<[u8; 32]>,
    /// Draws ids and seeds.
    random: RandomState,
    drawn: AtomicU64,
    started_at: i64,
    /// Held while a template renders a chat.
    rendering: Arc<Semaphore>,
}

impl Shared {
    pub fn new(options: Options, loaded: Loaded, queue: Arc<Queue>, metrics: Arc<Metrics>) -> Self {
        Self {
            key: options.api_key.as_deref().map(digest),
            eos_token_ids: loaded.eos_token_ids.clone().into(),
            options,
            loaded,
            queue,
            metrics,
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
            started_at: chrono::Utc::now().timestamp(),
            rendering: Arc::new(Semaphore::new(1)),
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn codec(&self) -> &Codec {
        &self.loaded.codec
    }

    /// A number that no client can foresee.
    fn draw(&self) -> u64 {
        self.random.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").map(digest);
        // Every byte is compared, even if the first ones differ.
        given.is_some_and(|given| given.iter().zip(key).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0)
    }

    fn model(&self) -> Model {
        Model {
            id: self.options.model.clone(),
            object: "model",
            created: self.started_at,
            owned_by: "candlepower",
            max_model_len: self.loaded.max_length,
        }
    }
}

fn digest(key: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(key.as_ref()).into()
}

/// Makes the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A path and what answers it. The router and the description of the interface are made of the same rows.
pub struct Route {
    pub path: &'static str,
    pub about: &'static str,
    /// The kind of request that it takes, by POST. Other routes answer GET.
    pub endpoint: Option<Endpoint>,
    /// The types of an answer with status 200, and their schemas; for a stream, that of an event.
    pub answers: &'static [(&'static str, SchemaOf)],
    /// The statuses of errors.
    pub errors: &'static [u16],
    pub needs_key: bool,
    method: fn() -> MethodRouter<Arc<Shared>>,
}

const JSON: &str = "application/json";
/// The errors of requests for text.
const OF_TEXT: &[u16] = &[400, 401, 404, 408, 413, 415, 429, 500, 503, 504];

/// All routes.
pub static ROUTES: &[Route] = &[
    Route {
        path: "/v1/completions",
        about: "Completes texts or token ids. A stream ends with the event `[DONE]`.",
        endpoint: Some(Endpoint::Completions),
        answers: &[
            (JSON, SchemaGenerator::subschema_for::<Answer<CompletionChoice>>),
            (EVENTS, response::event::<CompletionChoice>),
        ],
        errors: OF_TEXT,
        needs_key: true,
        method: || post(|State(shared), request| complete(shared, Endpoint::Completions, request)),
    },
    Route {
        path: "/v1/chat/completions",
        about: "Continues a conversation. A stream ends with the event `[DONE]`.",
        endpoint: Some(Endpoint::Chat),
        answers: &[(JSON, SchemaGenerator::subschema_for::<Answer<ChatChoice>>), (EVENTS, response::event::<ChatPart>)],
        errors: OF_TEXT,
        needs_key: true,
        method: || post(|State(shared), request| complete(shared, Endpoint::Chat, request)),
    },
    Route {
        path: "/v1/models",
        about: "The model, in a list.",
        endpoint: None,
        answers: &[(JSON, SchemaGenerator::subschema_for::<Models>)],
        errors: &[401],
        needs_key: true,
        method: || get(models),
    },
    Route {
        path: "/v1/models/{*model}",
        about: "The model.",
        endpoint: None,
        answers: &[(JSON, SchemaGenerator::subschema_for::<Model>)],
        errors: &[400, 401, 404],
        needs_key: true,
        method: || get(model),
    },
    Route {
        path: "/health",
        about: "Whether the server accepts requests.",
        endpoint: None,
        answers: &[(JSON, SchemaGenerator::subschema_for::<Health>)],
        errors: &[500, 503],
        needs_key: false,
        method: || get(health),
    },
    Route {
        path: "/metrics",
        about: "Counters in Prometheus' text format.",
        endpoint: None,
        answers: &[("text/plain", SchemaGenerator::subschema_for::<String>)],
        errors: &[401],
        needs_key: true,
        method: || get(metrics),
    },
    Route {
        path: "/openapi.json",
        about: "This description.",
        endpoint: None,
        answers: &[(JSON, SchemaGenerator::subschema_for::<Map<String, Value>>)],
        errors: &[401],
        needs_key: true,
        method: || get(description),
    },
];

/// The answers of all routes. `cors` comes before the key, which browsers do not send when they ask for permission.
pub fn router(shared: Arc<Shared>, cors: Option<CorsLayer>) -> Router {
    let router = ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.method)()))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method")
        })
        .layer(middleware::from_fn_with_state(shared.clone(), around))
        .with_state(shared);
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Checks the host and the key, and counts the answer.
async fn around(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // Paths become labels of metrics, so their number must not depend on clients.
    let route = ROUTES.iter().find(|route| route.path == path);
    let hosts = request.headers().get_all(HOST).iter().count();
    // RFC 9112, section 3.2.
    let response = if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        ApiError::bad("send the header Host once").into_response()
    } else if route.is_some_and(|route| !route.needs_key) || shared.is_authorized(request.headers()) {
        next.run(request).await
    } else {
        let problem = "the API key is missing or wrong: send the header 'Authorization: Bearer <key>'";
        ApiError::new(StatusCode::UNAUTHORIZED, problem).with_code("invalid_api_key").into_response()
    };
    shared.metrics.answer(route.map_or("other", |route| route.path), response.status().as_u16());
    response
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    json_response(&Models { object: "list", data: vec![shared.model()] })
}

async fn model(State(shared): State<Arc<Shared>>, Path(model): Path<String>) -> Response {
    if model == shared.options.model {
        return json_response(&shared.model());
    }
    let problem = format!("'{model}' is not served here; the model is '{}'", shared.options.model);
    ApiError::new(StatusCode::NOT_FOUND, problem).with_code("model_not_found").into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.queue.refusal() {
        None => json_response(&Health { status: "ok" }),
        Some(refusal) => shared.refused(refusal).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.text(shared.queue.len());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn description(State(shared): State<Arc<Shared>>) -> Response {
    json_response(&openapi::document(Some(&shared.options.model)))
}

fn json_response(value: &impl Serialize) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(JSON))], json!(value).to_string()).into_response()
}

/// Answers a request for text.
async fn complete(shared: Arc<Shared>, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // A page in a browser can send other types to this machine without asking.
    if !kind.to_ascii_lowercase().starts_with(b"application/json") {
        let problem = "send the header 'Content-Type: application/json'";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
    }
    let is_encoded = |encoding: &HeaderValue| !encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    if parts.headers.get_all(CONTENT_ENCODING).iter().any(is_encoded) {
        let problem = "send the body as it is, without a Content-Encoding";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
    }
    let body = read_body(&parts.headers, body, shared.limits()).await?;
    let received = Instant::now();

    // Long prompts take a while to encode.
    let preparing = async {
        // Chats wait here for a slow template, so that it leaves threads for others.
        let turn = match endpoint {
            Endpoint::Chat => shared.rendering.clone().acquire_owned().await.ok(),
            Endpoint::Completions => None,
        };
        let shared = shared.clone();
        let prepare = move || {
            let _turn = turn;
            shared.prepare(endpoint, &body)
        };
        let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be prepared");
        tokio::task::spawn_blocking(prepare).await.map_err(failed)?
    };
    let late = |_| shared.late();
    let prepared = timeout_at((received + shared.limits().request_timeout).into(), preparing).await.map_err(late)?;
    let Prepared { generation, prompts, max_new_tokens } = prepared?;

    let head = Head {
        endpoint,
        id: format!("{}-{:016x}", if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" }, shared.draw()),
        created: chrono::Utc::now().timestamp(),
        model: shared.options.model.clone(),
    };
    let (stream, usage) = (generation.stream, generation.usage);
    // Names of fields are no more than visible ASCII here.
    let unknown =
        generation.unknown.join(",").chars().filter(|c| c.is_ascii_graphic() && *c != '"').collect::<String>();
    let unknown = Some(unknown).filter(|names| !names.is_empty()).and_then(|names| HeaderValue::from_str(&names).ok());
    let exchange = shared.submit(generation, prompts, max_new_tokens, received)?;
    let mut response = if stream {
        let body = Body::new(Stream::start(head, exchange, usage).await?);
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            // Asks nginx and others not to buffer.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (headers, body).into_response()
    } else {
        json_response(&response::whole(&head, exchange).await?)
    };
    response.headers_mut().extend(unknown.map(|names| (HeaderName::from_static(UNKNOWN_FIELDS), names)));
    Ok(response)
}

/// Reads a body up to the limits.
async fn read_body(headers: &HeaderMap, mut body: Body, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let max = limits.max_body_bytes;
    let too_large = || {
        let problem = format!("the body is larger than {max} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, problem)
    };
    let stated: Option<u64> = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let waits = headers.contains_key(EXPECT);
    if stated.is_some_and(|stated| stated > max as u64 && (waits || stated > MAX_DROPPED_BYTES as u64)) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut received = 0usize;
    let reading = async {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let frame =
                frame.map_err(|_| ApiError::bad("the body ended before its length, or is not as its headers say"))?;
            let data: Bytes = frame.into_data().unwrap_or_default();
            received = received.saturating_add(data.len());
            if received <= max {
                bytes.extend_from_slice(&data);
            } else if received > MAX_DROPPED_BYTES {
                break;
            }
        }
        Ok(())
    };
    match timeout(limits.read_timeout, reading).await {
        Ok(read) => read?,
        Err(_) => {
            let problem = format!("the body was not complete within {} s", limits.read_timeout.as_secs_f64());
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, problem));
        }
    }
    if received > max { Err(too_large()) } else { Ok(bytes) }
}

/// A prompt as tokens, and its text if it was one.
#[derive(Clone)]
struct Encoded {
    ids: Arc<[u32]>,
    text: Option<String>,
}

/// A checked request with the tokens of its prompts.
struct Prepared {
    generation: Generation,
    prompts: Vec<Encoded>,
    max_new_tokens: usize,
}

impl Shared {
    fn prepare(&self, endpoint: Endpoint, body: &[u8]) -> Result<Prepared, ApiError> {
        let mut generation = Generation::parse(endpoint, body, &self.options.model)?;
        let (param, prompts) = match std::mem::replace(&mut generation.input, Input::Prompts(Vec::new())) {
            Input::Prompts(prompts) => {
                let tokens = |prompt| match prompt {
                    Prompt::Text(text) => {
                        let ids = self.encode(&text, true)?;
                        // An empty text is the start of a document.
                        let start = self.eos_token_ids.first().filter(|_| ids.is_empty() && text.is_empty());
                        let ids = start.map_or(ids, |id| vec![*id]);
                        Ok(Encoded { ids: ids.into(), text: Some(text) })
                    }
                    Prompt::Tokens(ids) => Ok(Encoded { ids: ids.into(), text: None }),
                };
                ("prompt", prompts.into_iter().map(tokens).collect::<Result<Vec<_>, _>>()?)
            }
            Input::Messages(messages) => {
                let rendered = self.loaded.template.render(&messages);
                let (text, special) = rendered.map_err(|error| ApiError::field("messages", error))?;
                ("messages", vec![Encoded { ids: self.encode(&text, special)?.into(), text: None }])
            }
        };
        if prompts.len() * generation.choices > MAX_CHOICES {
            let problem = format!("prompts times choices are more than {MAX_CHOICES}");
            return Err(ApiError::field("n", problem));
        }
        for prompt in &prompts {
            self.check_prompt(param, &prompt.ids)?;
        }
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let max_new_tokens = self.new_tokens(endpoint, longest, generation.max_new_tokens)?;
        Ok(Prepared { generation, prompts, max_new_tokens })
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
        let failed = |error: anyhow::Error| ApiError::bad(format!("{error:#}"));
        self.loaded.codec.encode(text, special).map_err(failed)
    }

    fn check_prompt(&self, param: &str, prompt: &[u32]) -> Result<(), ApiError> {
        let (tokens, vocab_size) = (prompt.len(), self.loaded.vocab_size);
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
            return Err(ApiError::field(param, format!("token {id} is not in the vocabulary of {vocab_size} tokens")));
        }
        let longest = self.limits().max_prompt_tokens.min(self.loaded.max_length - 1);
        match tokens {
            0 => Err(ApiError::field(param, "it has no tokens")),
            _ if tokens > longest => {
                Err(ApiError::too_long(param, format!("it has {tokens} tokens, and at most {longest} are accepted")))
            }
            _ => Ok(()),
        }
    }

    /// The limit of new tokens after a prompt.
    fn new_tokens(&self, endpoint: Endpoint, prompt: usize, wanted: Option<usize>) -> Result<usize, ApiError> {
        let max_length = self.loaded.max_length;
        let (room, limit) = (max_length - prompt, self.limits().max_new_tokens);
        match (wanted, endpoint) {
            (Some(wanted), _) if wanted > room => {
                let problem = format!("{prompt} prompt and {wanted} new tokens are more than the model's {max_length}");
                Err(ApiError::too_long("max_tokens", problem))
            }
            (Some(wanted), _) if wanted > limit => {
                Err(ApiError::field("max_tokens", format!("{wanted} are more than this server's limit, {limit}")))
            }
            (Some(wanted), _) => Ok(wanted),
            (None, Endpoint::Completions) => Ok(COMPLETION_TOKENS.min(limit).min(room)),
            (None, Endpoint::Chat) => Ok(limit.min(room)),
        }
    }

    /// Puts a request into the queue.
    fn submit(
        self: &Arc<Self>,
        generation: Generation,
        prompts: Vec<Encoded>,
        max_new_tokens: usize,
        received: Instant,
    ) -> Result<Exchange, ApiError> {
        let count = prompts.len() * generation.choices;
        // Each choice starts, has its tokens, and may fail.
        let scores_prompt = generation.echo && generation.logprobs.is_some();
        let scored = prompts.iter().map(|prompt| prompt.ids.len()).max().filter(|_| scores_prompt).unwrap_or(0);
        let (sender, events) = mpsc::channel(count * (scored + max_new_tokens + 2));
        let seed = generation.seed.unwrap_or_else(|| self.draw());
        let stop: Arc<[u32]> = if generation.ignore_eos { Arc::from([]) } else { self.eos_token_ids.clone() };
        let (mut jobs, mut choices) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for choice in 0..count {
            let cancelled = Arc::new(AtomicBool::new(false));
            let counts_prompt = choice % generation.choices == 0;
            let Encoded { ids, text } = prompts[choice / generation.choices].clone();
            let echo =
                generation.echo.then(|| Echo { prompt: ids.clone(), text: text.clone(), is_scored: scores_prompt });
            let (stops, min_new_tokens) = (generation.stop.clone(), generation.min_new_tokens);
            choices.push(Choice::new(stops, min_new_tokens, echo, cancelled.clone(), counts_prompt));
            jobs.push(Job {
                prompt: ids,
                max_new_tokens,
                sampling: generation.sampling,
                seed: seed.wrapping_add(choice as u64),
                stop: stop.clone(),
                min_new_tokens,
                min_p: generation.min_p,
                logprobs: generation.logprobs,
                scores_prompt,
                choice,
                events: sender.clone(),
                cancelled,
            });
        }
        self.queue.push(jobs).map_err(|refusal| self.refused(refusal))?;
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let deadline = received + self.limits().request_timeout;
        Ok(Exchange::new(self.clone(), events, choices, prompt_tokens, received, deadline))
    }

    /// The answer was not complete in time.
    pub fn late(&self) -> ApiError {
        let limit_s = self.limits().request_timeout.as_secs_f64();
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, format!("the answer was not complete within {limit_s} s"))
    }

    fn refused(&self, refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Full => {
                // The time in which about half of the waiting requests will have ended.
                let turns = self.queue.len() as f64 / self.loaded.sequences as f64 / 2.0;
                let wait_s = self.metrics.request.mean_s().unwrap_or(1.0) * turns;
                let problem = format!("the queue of {} requests is full", self.limits().max_queue);
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, problem)
                    .with_code("queue_full")
                    .retry_after(wait_s.clamp(1.0, MAX_RETRY_AFTER_S).ceil() as u64)
            }
            Refusal::Draining => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending").retry_after(1),
            Refusal::Closed => {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has failed and the server is ending")
            }
        }
    }
}
