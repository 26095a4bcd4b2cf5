//! Requests to the Hub: redirects, retries, time-outs and size limits.
//!
//! The token goes to the endpoint's own origin only, also after a redirect. The headers of an answer about a file (its
//! commit, hash and size) counts only where that origin says it.

use std::{
    error::Error,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::{
    Client, Response, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::cache::is_commit;
use crate::{error::one_line, names::PathName, tls};

/// How often a request is tried again when the Hub is busy or out of reach.
pub const RETRIES: usize = 5;

/// Redirects that are followed for one file.
const MAX_REDIRECTS: usize = 10;

/// Slowest transfer that is waited for.
const MIN_BYTES_PER_S: f64 = 1024.0;

/// Why something could not be had from the Hub or its cache.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be made, with the reason.
    Unreachable(String),
    /// A connection was made, and no answer came in this time.
    NoAnswer(Duration),
    /// The answer came too slowly, or stopped, with the time after which it was given up.
    Slow(Duration),
    /// The connection ended early, with the reason.
    BrokenOff(String),
    Redirects,
    TooLarge {
        max_bytes: u64,
    },
    /// An answer that a Hub does not give, as the end of a sentence whose subject is the Hub.
    Unexpected(String),
    /// The received or cached file is not whole. The text is a sentence.
    Damaged(String),
    Status {
        status: u16,
        error_code: Option<String>,
        retry_after_s: Option<u64>,
    },
    NotCached,
    /// Another process is fetching the file.
    Locked,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A client of one Hub.
pub struct Http {
    runtime: Runtime,
    client: Client,
    endpoint: Url,
    authorization: Option<HeaderValue>,
    patience: Duration,
    retry_delay: Duration,
}

/// The headers with which the endpoint describes a file.
#[derive(Default)]
pub struct About {
    pub commit: Option<PathName>,
    pub etag: Option<PathName>,
    pub bytes: Option<u64>,
}

/// A successful answer, whose body is not read yet.
pub struct Answer<'a> {
    http: &'a Http,
    response: Response,
    pub about: About,
}

impl Http {
    /// # Errors
    /// When the endpoint is not a URL, or the token can't be part of a header. Neither is shown: both may be secret.
    pub fn new(endpoint: &str, token: Option<&str>, patience: Duration, retry_delay: Duration) -> Result<Self> {
        let endpoint = Url::parse(endpoint).ok().filter(|url| is_http(url) && url.has_host());
        let endpoint = endpoint.context("HF_ENDPOINT is not an http or https URL")?;
        let authorization = token.filter(|token| !token.is_empty()).map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        let authorization = authorization.transpose().ok().context("HF_TOKEN holds a character that no token has")?;
        let agent = concat!("candlepower/", env!("CARGO_PKG_VERSION"));
        let client = tls::client().user_agent(agent).redirect(Policy::none()).build();
        let client = client.map_err(|error| anyhow::anyhow!("no HTTPS client could be made: {}", cause(&error)))?;
        let runtime = Builder::new_current_thread().enable_all().build().context("no HTTP client could be made")?;
        ensure!(!patience.is_zero(), "the time that the Hub is waited for is 0");
        Ok(Self { runtime, client, endpoint, authorization, patience, retry_delay })
    }

    /// Asks for `<endpoint>/<segments>?<query>`. A `/` in a segment is escaped.
    pub fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Answer<'_>, Failure> {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut about = About::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url)?;
            if url.origin() == self.endpoint.origin() {
                about.learn(response.headers())?;
            }
            let status = response.status();
            if status.is_redirection() {
                url = redirected(&url, response.headers())?;
            } else if status.is_success() {
                return Ok(Answer { http: self, response, about });
            } else {
                return Err(Failure::Status {
                    status: status.as_u16(),
                    error_code: text(response.headers(), "x-error-code").map(str::to_owned),
                    retry_after_s: text(response.headers(), "retry-after").and_then(|wait| wait.parse().ok()),
                });
            }
        }
        Err(Failure::Redirects)
    }

    /// One hop, tried again when the trouble may pass.
    fn ask(&self, url: &Url) -> Result<Response, Failure> {
        let mut delay = self.retry_delay;
        let mut tries = 0;
        loop {
            let outcome = self.once(url);
            let may_pass = match &outcome {
                Ok(response) => matches!(response.status().as_u16(), 408 | 429 | 500 | 502 | 503 | 504),
                Err(failure) => matches!(failure, Failure::Unreachable(_) | Failure::BrokenOff(_)),
            };
            if !may_pass || tries == RETRIES {
                return outcome;
            }
            thread::sleep(delay);
            delay *= 2;
            tries += 1;
        }
    }

    fn once(&self, url: &Url) -> Result<Response, Failure> {
        let mut url = url.clone();
        let is_own = url.origin() == self.endpoint.origin();
        // reqwest turns a name and a password in the URL into a header. An endpoint that needs those gets them, but not
        // beside a token. Setting them fails for URLs without a host only, and those were refused.
        let with_password = is_own && self.authorization.is_none();
        let (name, password) =
            if with_password { (self.endpoint.username(), self.endpoint.password()) } else { ("", None) };
        let _ = url.set_username(name).and_then(|()| url.set_password(password));
        let mut request = self.client.get(url);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = self.runtime.block_on(async { timeout(self.patience, request.send()).await });
        match answer {
            Err(_) => Err(Failure::NoAnswer(self.patience)),
            Ok(Err(error)) if error.is_connect() => Err(Failure::Unreachable(cause(&error))),
            Ok(Err(error)) => Err(Failure::BrokenOff(cause(&error))),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

impl Answer<'_> {
    /// Size of the body, as far as an answer named it.
    pub fn bytes(&self) -> Option<u64> {
        self.about.bytes.or(self.response.content_length())
    }

    /// Writes the body to `writer`, and tells `progress` the bytes so far. Returns their number.
    pub fn read_to(
        mut self,
        writer: &mut impl Write,
        max_bytes: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Failure> {
        let Http { runtime, patience, .. } = self.http;
        if self.bytes().is_some_and(|bytes| bytes > max_bytes) {
            return Err(Failure::TooLarge { max_bytes });
        }
        let (mut received, mut before, mut since) = (0, 0, Instant::now());
        loop {
            let part = runtime.block_on(async { timeout(*patience, self.response.chunk()).await });
            let part = part.map_err(|_| Failure::Slow(*patience))?;
            let Some(part) = part.map_err(|error| Failure::BrokenOff(cause(&error)))? else { return Ok(received) };
            received += part.len() as u64;
            if received > max_bytes {
                return Err(Failure::TooLarge { max_bytes });
            }
            writer.write_all(&part)?;
            progress(received);
            let seconds = since.elapsed().as_secs_f64();
            if seconds >= patience.as_secs_f64() {
                if ((received - before) as f64) < MIN_BYTES_PER_S * seconds {
                    return Err(Failure::Slow(*patience));
                }
                (before, since) = (received, Instant::now());
            }
        }
    }
}

impl About {
    /// A later answer wins over an earlier one.
    fn learn(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        if let Some(commit) = text(headers, "x-repo-commit") {
            let valid = Some(commit).filter(|commit| is_commit(commit)).and_then(|commit| commit.parse().ok());
            self.commit = Some(valid.ok_or_else(|| Failure::Unexpected("named a commit that is none".into()))?);
        }
        if let Some(etag) = text(headers, "x-linked-etag").or(text(headers, "etag")) {
            let hash = etag.trim_start_matches("W/").trim_matches('"');
            let is_plain = hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            let valid = Some(hash).filter(|_| is_plain).and_then(|hash| hash.parse().ok());
            self.etag = Some(valid.ok_or_else(|| Failure::Unexpected("named a hash that is none".into()))?);
        }
        if let Some(bytes) = text(headers, "x-linked-size") {
            let bytes = bytes.parse().map_err(|_| Failure::Unexpected("named a size that is none".into()))?;
            self.bytes = Some(bytes);
        }
        Ok(())
    }
}

/// A header's value. One that is not text is as none.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_http(url: &Url) -> bool {
    ["http", "https"].contains(&url.scheme())
}

fn redirected(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let unexpected = |what: &str| Failure::Unexpected(format!("redirects {what}"));
    let location = text(headers, LOCATION.as_str()).ok_or_else(|| unexpected("to nowhere"))?;
    let to = from.join(location).ok().filter(|url| is_http(url) && url.has_host());
    let to = to.ok_or_else(|| unexpected("to an address that is not an http or https URL"))?;
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(unexpected("from https to http"));
    }
    Ok(to)
}

/// The innermost reason of an error. The outer ones repeat the URL, which may hold a password or a signature.
fn cause(error: &reqwest::Error) -> String {
    let mut reason = error.source();
    while let Some(inner) = reason.and_then(Error::source) {
        reason = Some(inner);
    }
    reason.map_or_else(|| "no reason is known".into(), |reason| one_line(&reason))
}
