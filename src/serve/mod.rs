//! The server: an OpenAI-compatible interface over any model, with continuous batching.
//!
//! ```text
//! connection  accepts clients, with limits on their number and their time
//!   http      routes, keys, errors as JSON
//!     request   checks a body, by the rows of `fields`, and turns it into prompts and sampling
//!     exchange  one request's events: text, stop strings, deadline
//!     response  JSON and server-sent events
//!     openapi   describes routes, fields and answers
//!   queue     bounded; full means 429
//!     engine  the thread that owns the model: one loop of steps over all sequences
//! replay      a load on queue and engine without clients, for benchmarks
//! ```
//!
//! `text` converts between text and tokens, `template` writes conversations as prompts by way of `jinja` in another process,
//! `metrics` counts.
//!
//! The engine knows tokens only. A client that leaves drops the receiver of its events, which cancels its sequences at the
//! next step.

mod connection;
mod engine;
mod error;
mod exchange;
mod fields;
#[cfg(test)]
mod golden;
mod http;
#[cfg(any(test, feature = "cli"))]
mod jinja;
mod metrics;
mod openapi;
mod queue;
mod replay;
mod request;
mod response;
mod template;
mod text;

pub(crate) use engine::Batch;
#[cfg(feature = "cli")]
pub(crate) use jinja::work as render_chats;
pub use openapi::document;
pub(crate) use replay::{Answer, Arrival, Replay, replay};
pub use template::{COMMAND as RENDER_CHATS, Template};

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use hyper::{Method, header::HeaderValue};
use tokio::{runtime::Runtime, sync::watch, time::timeout};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    error::caught,
    measure::memory,
    model::{CausalLm, Subject},
};
use engine::Engine;
use http::Shared;
use metrics::Metrics;
use queue::Queue;
use text::Codec;

/// Time for the last bytes of answers to leave after the last step.
const FLUSH: Duration = Duration::from_secs(5);

/// Threads that serve clients. They only move bytes, and the engine needs the cores.
const CLIENT_THREADS: usize = 2;

/// Bounds on what clients may ask for and hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections.
    pub max_connections: usize,
    /// Sequences that wait for a place in the batch.
    pub max_queue: usize,
    /// Sequences in the batch; fewer if the model holds fewer.
    pub max_sequences: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Tokens of a prompt.
    pub max_prompt_tokens: usize,
    /// New tokens of an answer.
    pub max_new_tokens: usize,
    /// Tokens of a step, prompts and new tokens together.
    pub step_tokens: usize,
    /// Time for a request, waiting included.
    pub request_timeout: Duration,
    /// Time for a client to send a request.
    pub read_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_queue: 256,
            max_sequences: 16,
            max_body_bytes: 1 << 20,
            max_prompt_tokens: 4096,
            max_new_tokens: 1024,
            step_tokens: 512,
            request_timeout: Duration::from_secs(600),
            read_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("max-connections", self.max_connections),
            ("max-queue", self.max_queue),
            ("max-sequences", self.max_sequences),
            ("max-body-bytes", self.max_body_bytes),
            ("max-prompt-tokens", self.max_prompt_tokens),
            ("max-new-tokens", self.max_new_tokens),
        ] {
            ensure!((1..=1 << 30).contains(&value), "{name}={value}: use 1 to {}", 1 << 30);
        }
        ensure!(
            (self.max_sequences..=1 << 30).contains(&self.step_tokens),
            "step-tokens={}: use at least the number of sequences, {}, because each adds a token in a step",
            self.step_tokens,
            self.max_sequences
        );
        Ok(())
    }
}

/// A server to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on; port 0 chooses a free port.
    pub address: SocketAddr,
    /// Name of the model in requests.
    pub model: String,
    /// The key that requests must show.
    pub api_key: Option<String>,
    /// Origins whose pages may read answers in a browser; `*` stands for all.
    pub cors_origins: Vec<String>,
    /// Bounds on requests.
    pub limits: Limits,
}

/// Permits pages of `origins` to read answers. `None` without an origin.
///
/// # Errors
/// When one is not an origin.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    let parsed = |origin: &String| {
        let is_origin = reqwest::Url::parse(origin).is_ok_and(|url| url.origin().ascii_serialization() == *origin);
        ensure!(
            is_origin,
            "--cors-origin={}: use an origin such as https://example.org, or *",
            crate::text::line(origin)
        );
        Ok(HeaderValue::from_str(origin)?)
    };
    let allowed = match origins {
        [] => return Ok(None),
        [any] if any == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().map(parsed).collect::<Result<Vec<_>>>()?),
    };
    let cors = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
    Ok(Some(cors.allow_headers(AllowHeaders::mirror_request())))
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    sequences: usize,
    queue: Arc<Queue>,
    engine: JoinHandle<Result<()>>,
    runtime: Runtime,
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

/// Asks a server to end.
#[derive(Clone)]
pub struct Stopper(Arc<Queue>);

impl Stopper {
    /// Refuses new requests. The server ends when it has answered the others, for which each has its deadline.
    pub fn stop(&self) {
        self.0.drain();
    }
}

/// Facts about a loaded model that the clients' side needs.
struct Loaded {
    codec: Codec,
    template: Template,
    eos_token_ids: Vec<u32>,
    vocab_size: usize,
    max_length: usize,
    sequences: usize,
}

impl Server {
    /// Listens, loads the model in the thread that will run it, and begins to accept requests.
    ///
    /// # Errors
    /// If a limit is out of range, the address can't be used, the model can't be loaded, or memory is missing for the caches
    /// of all sequences.
    pub fn start(
        options: Options,
        load: impl FnOnce() -> Result<(Subject, Template)> + Send + 'static,
    ) -> Result<Self> {
        let limits = options.limits;
        limits.validate()?;
        let cors = cors(&options.cors_origins)?;
        let cannot = || format!("{} can't be listened on", options.address);
        // Before the model is loaded, which may take minutes.
        let listener = TcpListener::bind(options.address).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        let address = listener.local_addr().with_context(cannot)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CLIENT_THREADS)
            // One more, because one template may be rendered at a time.
            .max_blocking_threads(CLIENT_THREADS + 1)
            .thread_name("clients")
            .enable_all()
            .build()
            .context("the threads of clients do not start")?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).with_context(cannot)?
        };

        let (queue, metrics) = (Arc::new(Queue::new(limits.max_queue)), Arc::new(Metrics::default()));
        let (tell, told) = mpsc::sync_channel(1);
        let engine = {
            let (queue, metrics) = (queue.clone(), metrics.clone());
            thread::Builder::new().name("engine".into()).spawn(move || {
                let ran = caught(|| run(load, &limits, &queue, &metrics, &tell));
                // Waiting clients learn of the end when their jobs are dropped.
                queue.close();
                ran
            })?
        };
        let Ok(loaded) = told.recv() else {
            let ended = engine.join().unwrap_or_else(|_| Err(anyhow!("the thread of the model panicked")));
            return Err(ended.err().unwrap_or_else(|| anyhow!("the model ended before it was loaded")));
        };

        let sequences = loaded.sequences;
        let shared = Arc::new(Shared::new(options, loaded, queue.clone(), metrics));
        let (stop, stopped) = watch::channel(false);
        let accepting = runtime.spawn(connection::accept(listener, http::router(shared, cors), limits, stopped));
        Ok(Self { address, sequences, queue, engine, runtime, stop, accepting })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of sequences that a step may have.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// A handle that ends the server from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.queue.clone())
    }

    /// Waits until the server has been stopped and has answered its requests.
    ///
    /// # Errors
    /// If the engine panicked. Its requests have been answered with an error.
    pub fn wait(self) -> Result<()> {
        let ended = self.engine.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))).context("the engine ended");
        self.accepting.abort();
        let _ = self.stop.send(true);
        self.runtime.block_on(async {
            let _ = self.accepting.await;
            // Each connection holds a receiver until its answer has been sent.
            let _ = timeout(FLUSH, self.stop.closed()).await;
        });
        self.runtime.shutdown_background();
        ended
    }
}

/// The thread of the engine.
fn run(
    load: impl FnOnce() -> Result<(Subject, Template)>,
    limits: &Limits,
    queue: &Queue,
    metrics: &Metrics,
    tell: &mpsc::SyncSender<Loaded>,
) -> Result<()> {
    let (subject, template) = load()?;
    let Subject { mut model, tokenizer, without_tokenizer, eos_token_ids, .. } = subject;
    let (vocab_size, max_length) = (model.vocab_size(), model.max_position_embeddings());
    ensure!(vocab_size > 0 && max_length > 1, "the model has no room for a prompt and an answer");
    let batch = Batch::of(model.as_mut(), limits.max_sequences, limits.step_tokens)?;
    let sequences = batch.sequences;
    check_memory(model.as_ref(), sequences, limits)?;
    let codec = Codec::new(tokenizer, without_tokenizer, vocab_size);
    let _ = tell.send(Loaded { codec, template, eos_token_ids, vocab_size, max_length, sequences });
    Engine::new(model.as_mut(), batch, queue, metrics).run();
    Ok(())
}

/// Refuses limits whose caches do not fit, before clients find out.
fn check_memory(model: &dyn CausalLm, sequences: usize, limits: &Limits) -> Result<()> {
    let tokens = (limits.max_prompt_tokens + limits.max_new_tokens).min(model.max_position_embeddings());
    let bytes = model.cache_bytes(tokens).allocated.saturating_mul(sequences as u64);
    let work = format!("caches of {sequences} sequences of {tokens} tokens (see --max-sequences, --max-prompt-tokens)");
    Ok(memory::ensure_fits(&work, bytes, model.device())?)
}
