//! Checkpoints from the Hugging Face Hub, through hf-hub and its cache. Nothing is asked of the Hub that the cache can
//! answer for a pinned commit, and nothing that was not received whole is used.

use std::{
    fs,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeModel,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::checkpoint::{CONFIG, Checkpoint, INDEX, TOKENIZER, WEIGHTS, read_json, shards};

/// Downloads below this size show no progress bar.
const LONG_DOWNLOAD_BYTES: u64 = 4 << 20;

/// How to reach the Hub. What is `None` comes from hf-hub's own variables: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`,
/// `HF_HUB_CACHE`.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    pub endpoint: Option<String>,
    pub token: Option<String>,
    pub cache: Option<PathBuf>,
    /// Use only what is cached.
    pub offline: bool,
    /// First pause before a request is tried again; it doubles each time.
    pub retry_delay: Option<Duration>,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()));
        Self { offline, ..Self::default() }
    }

    /// Fetches what is not cached of a repository: configuration, weights, and the tokenizer if there is one.
    ///
    /// # Errors
    /// One line that says what to do: accept the licence, set a token, check the name, try again.
    pub fn fetch(&self, repo: &str, revision: &str) -> Result<Checkpoint> {
        let fetcher = Fetcher { repository: self.repository(repo)?, repo, offline: self.offline };
        let config = fetcher.required(CONFIG, revision)?;
        // The cache keeps a folder a commit. Asking for the others by it keeps a branch that moves meanwhile from
        // mixing two commits.
        let commit = config
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .with_context(|| format!("{}: not in a folder of a commit", config.display()))?;
        let weights = match fetcher.optional(WEIGHTS, commit)? {
            Some(file) => vec![file],
            None => {
                let index = fetcher.optional(INDEX, commit)?.with_context(|| {
                    format!("{repo}: neither {WEIGHTS} nor {INDEX} is there; weights must be safetensors")
                })?;
                let shards = shards(&read_json(&index)?)?;
                shards.iter().map(|shard| fetcher.required(shard, commit)).collect::<Result<_>>()?
            }
        };
        Ok(Checkpoint {
            config: read_json(&config)?,
            weights,
            tokenizer: fetcher.optional(TOKENIZER, commit)?,
            source: format!("hub:{repo}@{commit}"),
        })
    }

    fn repository(&self, repo: &str) -> Result<HFRepositorySync<RepoTypeModel>> {
        let mut builder = HFClient::builder();
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &self.token {
            builder = builder.token(token);
        }
        if let Some(cache) = &self.cache {
            builder = builder.cache_dir(cache);
        }
        if let Some(delay) = self.retry_delay {
            builder = builder.retry_base_delay(delay);
        }
        let client: HFClientSync = builder.build_sync().context("the Hub's client could not be made")?;
        let (owner, name) = repo.split_once('/').with_context(|| format!("{repo} is no <owner>/<name>"))?;
        Ok(client.model(owner, name))
    }
}

struct Fetcher<'a> {
    repository: HFRepositorySync<RepoTypeModel>,
    repo: &'a str,
    offline: bool,
}

impl Fetcher<'_> {
    fn required(&self, file: &str, revision: &str) -> Result<PathBuf> {
        self.fetch(file, revision).map_err(|error| self.explain(error, file, revision))
    }

    /// `None` when the repository has no such file.
    fn optional(&self, file: &str, revision: &str) -> Result<Option<PathBuf>> {
        match self.fetch(file, revision) {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            // Offline, "not cached" and "not there" look the same.
            Err(HFError::LocalEntryNotFound { .. }) if self.offline => Ok(None),
            Err(error) => Err(self.explain(error, file, revision)),
        }
    }

    fn fetch(&self, file: &str, revision: &str) -> Result<PathBuf, HFError> {
        let progress = std::sync::Arc::new(Download::new(file));
        let path = self
            .repository
            .download_file()
            .filename(file)
            .revision(revision)
            .local_files_only(self.offline)
            .progress(progress.clone() as std::sync::Arc<dyn ProgressHandler>)
            .send()?;
        if let Some(expected_bytes) = progress.received() {
            verify(&path, expected_bytes)?;
        }
        Ok(path)
    }

    fn explain(&self, error: HFError, file: &str, revision: &str) -> anyhow::Error {
        let repo = self.repo;
        match error {
            HFError::AuthRequired { .. } => anyhow!(
                "{repo}: the Hub wants to know who asks (401): if the model is gated, accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN to a token of that account; if not, check the name"
            ),
            HFError::Forbidden { .. } => anyhow!(
                "{repo}: the token's account may not read it (403): accept the licence at https://huggingface.co/{repo} and set HF_TOKEN to a token that may read gated repositories"
            ),
            HFError::EntryNotFound { .. } => self.what_is_missing(file, revision),
            HFError::RepoNotFound { .. } => anyhow!("{repo}: the Hub has no such repository: check the name"),
            HFError::RevisionNotFound { .. } => anyhow!("{repo}: it has no revision {revision}"),
            HFError::RateLimited { retry_after, .. } => match retry_after {
                Some(wait) => anyhow!("{repo}: too many requests (429): try again in {} s", wait.as_secs()),
                None => anyhow!("{repo}: too many requests (429): try again later, or set HF_TOKEN"),
            },
            HFError::LocalEntryNotFound { .. } => anyhow!(
                "{repo}@{revision}: {file} is not in the cache, and the Hub is not to be asked: unset HF_HUB_OFFLINE to fetch it"
            ),
            HFError::Http { context } => anyhow!(
                "{repo}: the Hub failed with {} for {file}, tried several times: try again later",
                context.status.as_u16()
            ),
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => anyhow!(
                "{repo}: the Hub can't be reached and {file} is not in the cache: check the network and HF_ENDPOINT"
            ),
            HFError::Request { .. } => anyhow!("{repo}: the connection broke off in {file}: try again"),
            other => anyhow!("{repo}: {file}: {}", super::one_line(&other)),
        }
    }

    /// For the Hub, a missing repository or revision is a missing file too.
    fn what_is_missing(&self, file: &str, revision: &str) -> anyhow::Error {
        if !self.offline
            && let Err(
                error
                @ (HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::AuthRequired { .. }),
            ) = self.repository.info().revision(revision).send()
        {
            return self.explain(error, file, revision);
        }
        anyhow!("{}@{revision}: it has no {file}", self.repo)
    }
}

/// Checks a file that was just received. hf-hub looks at neither the status nor the length of what it stores: without
/// this, an error page or a body cut short would stay in the cache under the file's name.
fn verify(path: &Path, expected_bytes: u64) -> Result<(), HFError> {
    let blob = fs::canonicalize(path)?;
    let found_bytes = fs::metadata(&blob)?.len();
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // The cache names large files by their SHA-256, the others by git's hash.
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let problem = if found_bytes != expected_bytes {
        Some(format!("{found_bytes} of {expected_bytes} bytes were received"))
    } else if is_hash && sha256(&blob)? != name {
        Some("what was received does not have the hash that the Hub gave".to_owned())
    } else {
        None
    };
    let Some(problem) = problem else { return Ok(()) };
    fs::remove_file(&blob)?;
    if blob != path {
        fs::remove_file(path)?;
    }
    Err(HFError::Other(format!("{problem}: try again")))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => break,
            read => hasher.update(&part[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Follows one download, with a bar when it is long and somebody is watching.
struct Download {
    bar: ProgressBar,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    total_bytes: u64,
    received: bool,
}

impl Download {
    fn new(file: &str) -> Self {
        let bar = ProgressBar::hidden();
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(file.to_owned());
        Self { bar, seen: Mutex::default() }
    }

    /// Size that the Hub gave for the file, if any of it was received rather than found in the cache.
    fn received(&self) -> Option<u64> {
        let seen = self.seen.lock().ok()?;
        (seen.received && seen.total_bytes > 0).then_some(seen.total_bytes)
    }
}

impl ProgressHandler for Download {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let Ok(mut seen) = self.seen.lock() else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                seen.total_bytes = *total_bytes;
                self.bar.set_length(*total_bytes);
                if *total_bytes >= LONG_DOWNLOAD_BYTES && io::stderr().is_terminal() {
                    self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                }
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    seen.received |= matches!(
                        file.status,
                        hf_hub::progress::FileStatus::Started | hf_hub::progress::FileStatus::InProgress
                    );
                    self.bar.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                seen.received = true;
                self.bar.set_position(*bytes_completed);
            }
            DownloadEvent::Complete => self.bar.finish_and_clear(),
        }
    }
}
