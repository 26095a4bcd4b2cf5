//! `candlepower serve`: a model behind an OpenAI-compatible interface.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    flags::{Flags, OneModel},
    note,
    process::Signals,
    run::only_model,
};
use crate::{
    files, model, output,
    runner::Session,
    serve::{Limits, Options, Server, Template},
    settings::Settings,
};

/// How often signals are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Longest time limit.
const MAX_S: f64 = 1e6;

#[derive(Args)]
pub struct Serve {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>. Requests name
    /// it the same
    #[arg(long, default_value = "llama-mini")]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Port to listen on; 0 chooses a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Address to listen on. Others than loopback make the server reachable from the network
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
    host: IpAddr,
    /// File with the key that requests must show
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Origin whose pages may read answers in a browser, such as http://localhost:3000, or * for all; may be repeated
    #[arg(long)]
    cors_origin: Vec<String>,
    /// Most open connections
    #[arg(long, default_value_t = Limits::default().max_connections)]
    max_connections: usize,
    /// Most waiting sequences; more are refused with status 429
    #[arg(long, default_value_t = Limits::default().max_queue)]
    max_queue: usize,
    /// Most sequences in a step; fewer if the model holds fewer
    #[arg(long, default_value_t = Limits::default().max_sequences)]
    max_sequences: usize,
    /// Most bytes of a request's body
    #[arg(long, default_value_t = Limits::default().max_body_bytes)]
    max_body_bytes: usize,
    /// Most tokens of a prompt
    #[arg(long, default_value_t = Limits::default().max_prompt_tokens)]
    max_prompt_tokens: usize,
    /// Most new tokens of an answer
    #[arg(long, default_value_t = Limits::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Tokens of a step: one of each sequence that generates, the rest for prompts
    #[arg(long, default_value_t = Limits::default().step_tokens)]
    step_tokens: usize,
    /// Seconds for a request, waiting included
    #[arg(long, default_value_t = Limits::default().request_timeout.as_secs_f64())]
    request_timeout_s: f64,
    /// Seconds for a client to send the head of a request, and as many for its body
    #[arg(long, default_value_t = Limits::default().read_timeout.as_secs_f64())]
    read_timeout_s: f64,
}

impl Serve {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[self.settings.given(), &[("models", self.model.clone())]].concat())?;
        let (spec, engine, dtype) = only_model(&settings, &self.model)?;
        let api_key = self.api_key_file.as_deref().map(api_key).transpose()?;
        if !self.host.is_loopback() && api_key.is_none() {
            note(&format!("{} is reachable from the network, and there is no --api-key-file", self.host));
        }
        let seconds = |name: &str, seconds: f64| {
            ensure!(seconds > 0.0 && seconds <= MAX_S, "{name}={seconds}: use more than 0 and at most {MAX_S}");
            Ok(Duration::from_secs_f64(seconds))
        };
        let limits = Limits {
            max_connections: self.max_connections,
            max_queue: self.max_queue,
            max_sequences: self.max_sequences,
            max_body_bytes: self.max_body_bytes,
            max_prompt_tokens: self.max_prompt_tokens,
            max_new_tokens: self.max_new_tokens,
            step_tokens: self.step_tokens,
            request_timeout: seconds("--request-timeout-s", self.request_timeout_s)?,
            read_timeout: seconds("--read-timeout-s", self.read_timeout_s)?,
        };
        let signals = Signals::catch()?;
        // Sets the number of threads and the instructions before a thread starts.
        Session::new(settings.clone())?;
        let options = Options {
            address: SocketAddr::new(self.host, self.port),
            model: self.model.clone(),
            api_key,
            cors_origins: self.cors_origin,
            limits,
        };
        let (device, parallel) = (settings.device, settings.parallel(engine));
        let server = Server::start(options, move || {
            let subject = model::load_parallel(&spec, engine, dtype, device, settings.seed, parallel)?;
            // Without the template, only chats are refused.
            let found = subject.source.parse().and_then(|source| model::chat_template(&source));
            let template = found.map_or_else(
                |error| Template::Unusable(format!("the model's chat template could not be read: {error:#}")),
                Template::new,
            );
            if let Template::Unusable(reason) = &template {
                note(&format!("chats are refused: {reason}"));
            }
            Ok((subject, template))
        })?;
        output::print_line(format_args!("http://{}", server.address()));
        let (model, sequences) = (&self.model, server.sequences());
        note(&format!(
            "serving {model} with engine {engine} in {} on {device}, {sequences} at a time; Ctrl-C ends it",
            dtype.name()
        ));
        let stopper = server.stopper();
        thread::spawn(move || {
            while signals.received().is_none() {
                thread::sleep(INTERVAL);
            }
            note("ending after the running requests");
            stopper.stop();
        });
        server.wait()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The process that renders chats for a server.
pub fn render_chats() -> Result<ExitCode> {
    crate::serve::render_chats(output::protocol())?;
    Ok(ExitCode::SUCCESS)
}

fn api_key(path: &std::path::Path) -> Result<String> {
    let shown = || format!("the API key in {}", path.display());
    let key = files::read_key(path).with_context(shown)?;
    ensure!(!key.is_empty() && !key.contains(char::is_whitespace), "{}: it must be one word", shown());
    Ok(key)
}
