//! Checkpoints from the Hugging Face Hub, through hf-hub and its cache. A revision is resolved to a commit first, and
//! the rest is about that commit: what the cache has of it is not asked for again, a branch that moves meanwhile can't
//! mix two commits, and nothing that was not received whole is used.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeModel,
    progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler},
    repository::ModelInfo,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::checkpoint::{CONFIG, Checkpoint, INDEX, TOKENIZER, WEIGHTS, map, read_json, shards};
use crate::error::one_line;

/// Downloads below this size show no progress bar.
const LONG_DOWNLOAD_BYTES: u64 = 4 << 20;

/// How often a request is tried again when the Hub is busy or out of reach.
const RETRIES: usize = 5;

/// First pause before that. It doubles each time and is shortened at random: about six seconds in all.
const RETRY_DELAY: Duration = Duration::from_millis(200);

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
        let is_set = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Self { offline: std::env::var("HF_HUB_OFFLINE").is_ok_and(is_set), ..Self::default() }
    }

    /// Fetches what is not cached of a repository: configuration, weights, and the tokenizer if there is one. A branch
    /// or tag of a Hub that can't be reached is taken from the cache, with a note on standard error.
    ///
    /// # Errors
    /// One line that says what to do: accept the licence, set a token, check the name, try again.
    pub fn fetch(&self, repo: &str, revision: &str) -> Result<Checkpoint> {
        // The cache has a file of this name.
        let is_name = Path::new(revision).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(is_name && !revision.is_empty(), "{repo}: '{revision}' is no branch, tag or commit");
        let mut fetcher = self.fetcher(repo)?;
        let commit = fetcher.commit(revision)?;
        let config = fetcher.required(CONFIG, &commit)?;
        // Before the weights: whoever has those has this, too, when the Hub is away.
        let tokenizer = fetcher.optional(TOKENIZER, &commit)?;
        let weights = fetcher.weights(&commit)?;
        if fetcher.not_asked.is_none() && !is_commit(revision) {
            remember(&config, revision, &commit)
                .with_context(|| format!("{repo}: the cache could not be written: set HF_HOME to another folder"))?;
        }
        Ok(Checkpoint { config: read_json(&config)?, weights, tokenizer, source: format!("hub:{repo}@{commit}") })
    }

    fn fetcher<'a>(&self, repo: &'a str) -> Result<Fetcher<'a>> {
        let mut builder =
            HFClient::builder().retry_max_attempts(RETRIES).retry_base_delay(self.retry_delay.unwrap_or(RETRY_DELAY));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &self.token {
            builder = builder.token(token);
        }
        if let Some(cache) = &self.cache {
            builder = builder.cache_dir(cache);
        }
        let client = builder.build().context("the Hub's client could not be made: is HF_ENDPOINT a URL?")?;
        let cache = client.cache_dir().to_owned();
        let client = HFClientSync::from_inner(client).context("the Hub's client could not be made")?;
        let (owner, name) = repo.split_once('/').with_context(|| format!("{repo} is no <owner>/<name>"))?;
        let not_asked = self.offline.then(|| "the Hub is not to be asked: unset HF_HUB_OFFLINE to fetch it".to_owned());
        Ok(Fetcher { repository: client.model(owner, name), repo, cache, not_asked })
    }
}

struct Fetcher<'a> {
    repository: HFRepositorySync<RepoTypeModel>,
    repo: &'a str,
    cache: PathBuf,
    /// Why only the cache is used, and what to do about it.
    not_asked: Option<String>,
}

impl Fetcher<'_> {
    /// The commit that a revision means now; the cached one when the Hub does not say.
    fn commit(&mut self, revision: &str) -> Result<String> {
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        if self.not_asked.is_some() {
            let config = self.download(CONFIG, revision, true);
            return config.map_err(|error| self.explain(error, CONFIG, revision)).and_then(|file| commit_of(&file));
        }
        match self.info(revision) {
            Ok(info) => info.sha.filter(|sha| is_commit(sha)).with_context(|| {
                format!("{}@{revision}: the Hub did not name its commit: check HF_ENDPOINT", self.repo)
            }),
            // A mirror that has files only.
            Err(HFError::RevisionNotFound { context: Some(context), .. }) if context.error_code.is_none() => {
                commit_of(&self.required(CONFIG, revision)?)
            }
            Err(error) => {
                let cached = self.download(CONFIG, revision, true);
                let (Some(trouble), Ok(config)) = (trouble(&error), cached) else {
                    return Err(self.explain(error, CONFIG, revision));
                };
                let commit = commit_of(&config)?;
                eprintln!("note: {}: {trouble}; {revision} is taken from the cache, at {commit}", self.repo);
                self.not_asked = Some(format!("{trouble}: check the network and HF_ENDPOINT"));
                Ok(commit)
            }
        }
    }

    fn info(&self, revision: &str) -> Result<ModelInfo, HFError> {
        self.repository.info().revision(revision).expand(vec!["sha".into(), "siblings".into()]).send()
    }

    fn weights(&self, commit: &str) -> Result<Vec<PathBuf>> {
        if let Some(file) = self.optional(WEIGHTS, commit)? {
            return Ok(vec![file]);
        }
        if let Some(index) = self.optional(INDEX, commit)? {
            return shards(&read_json(&index)?)?.iter().map(|shard| self.required(shard, commit)).collect();
        }
        let repo = self.repo;
        if let Some(reason) = &self.not_asked {
            return Err(anyhow!("{repo}@{commit}: no safetensors of it are in the cache, and {reason}"));
        }
        let files = self.info(commit).ok().and_then(|info| info.siblings).unwrap_or_default();
        let other = files
            .into_iter()
            .map(|file| file.rfilename)
            .find(|name| [".bin", ".pth", ".pt", ".gguf", ".safetensors"].iter().any(|ending| name.ends_with(ending)));
        let only = other.map(|name| format!(", only {name}")).unwrap_or_default();
        Err(anyhow!(
            "{repo}: neither {WEIGHTS} nor {INDEX} is there{only}: weights must be safetensors of the whole model"
        ))
    }

    fn required(&self, file: &str, revision: &str) -> Result<PathBuf> {
        self.fetch(file, revision).map_err(|error| self.explain(error, file, revision))
    }

    /// `None` when the repository has no such file, or the cache has none while the Hub is not asked.
    fn optional(&self, file: &str, revision: &str) -> Result<Option<PathBuf>> {
        match self.fetch(file, revision) {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(error, file, revision)),
        }
    }

    /// A whole file, from the cache if it is there. hf-hub stores what it receives, whatever the status and the length
    /// are: it is checked here, and what is left of a process that died before it checked is fetched anew.
    fn fetch(&self, file: &str, revision: &str) -> Result<PathBuf, HFError> {
        if is_commit(revision) || self.not_asked.is_some() {
            match self.download(file, revision, true) {
                Ok(path) => match check_format(&path) {
                    Ok(()) => return Ok(path),
                    Err(error) if self.not_asked.is_some() => return Err(HFError::Other(format!("{error:#}"))),
                    Err(_) => discard(&path)?,
                },
                Err(HFError::LocalEntryNotFound { .. }) if self.not_asked.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        let path = self.download(file, revision, false)?;
        if let Err(error) = check_format(&path) {
            discard(&path)?;
            return Err(HFError::Other(format!("{error:#}: try again")));
        }
        Ok(path)
    }

    fn download(&self, file: &str, revision: &str, cached_only: bool) -> Result<PathBuf, HFError> {
        let progress = Arc::new(Download::new(file));
        let path = self
            .repository
            .download_file()
            .filename(file)
            .revision(revision)
            .local_files_only(cached_only)
            .progress(progress.clone() as Arc<dyn ProgressHandler>)
            .send()?;
        if let Some(expected_bytes) = progress.received()
            && let Some(problem) = difference(&path, expected_bytes)?
        {
            discard(&path)?;
            return Err(HFError::Other(format!("{problem}: try again")));
        }
        Ok(path)
    }

    fn explain(&self, error: HFError, file: &str, revision: &str) -> anyhow::Error {
        let repo = self.repo;
        if let Some(trouble) = trouble(&error) {
            return match &error {
                HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                    anyhow!("{repo}: {trouble} and {file} is not in the cache: check the network and HF_ENDPOINT")
                }
                HFError::Request { .. } => anyhow!("{repo}: {trouble} in {file}: try again"),
                HFError::RateLimited { retry_after: Some(wait), .. } => {
                    anyhow!(
                        "{repo}: {trouble} for {file}, asked {} times: try again in {} s",
                        RETRIES + 1,
                        wait.as_secs()
                    )
                }
                _ => anyhow!("{repo}: {trouble} for {file}, asked {} times: try again later", RETRIES + 1),
            };
        }
        match error {
            HFError::AuthRequired { context } => match context.error_code.as_deref() {
                Some("GatedRepo") => anyhow!(
                    "{repo} is gated (401): accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN to a token of that account"
                ),
                Some("RepoNotFound") => anyhow!(
                    "{repo}: the Hub has no such repository, or a private one (401): check the name, or set HF_TOKEN to a token that may read it"
                ),
                _ => anyhow!(
                    "{repo}: the Hub wants to know who asks (401): if the model is gated, accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN to a valid token of that account; if not, check the name"
                ),
            },
            HFError::Forbidden { .. } => anyhow!(
                "{repo}: the token's account may not read it (403): accept the licence at https://huggingface.co/{repo} and set HF_TOKEN to a token that may read gated repositories"
            ),
            HFError::RevisionNotFound { context: Some(context), .. }
                if context.error_code.as_deref() == Some("RepoNotFound") =>
            {
                anyhow!("{repo}: the Hub has no such repository (404): check the name")
            }
            HFError::RevisionNotFound { .. } => anyhow!("{repo}: it has no revision {revision} (404)"),
            HFError::EntryNotFound { .. } => anyhow!("{repo}@{revision}: the Hub has no {file} there (404)"),
            HFError::LocalEntryNotFound { .. } => {
                let reason = self.not_asked.as_deref().unwrap_or("could not be fetched: try again");
                anyhow!("{repo}@{revision}: {file} is not in the cache, and {reason}")
            }
            HFError::CacheLockTimeout { .. } => {
                anyhow!("{repo}: another process is fetching {file}: try again when it has ended")
            }
            HFError::Io(error) => anyhow!(
                "{repo}: {file}: {error}: is the cache {} readable and writable? HF_HOME names another",
                self.cache.display()
            ),
            other => anyhow!("{repo}: {file}: {}", one_line(&other)),
        }
    }
}

/// What may be over soon, in a few words.
fn trouble(error: &HFError) -> Option<String> {
    match error {
        HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
            Some("the Hub can't be reached".into())
        }
        HFError::Request { .. } => Some("the connection broke off".into()),
        HFError::RateLimited { .. } => Some("too many requests (429)".into()),
        HFError::Http { context } if context.status.is_server_error() => {
            Some(format!("the Hub failed with {}", context.status.as_u16()))
        }
        _ => None,
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The commit that a cached file belongs to: the cache keeps a folder a commit.
fn commit_of(file: &Path) -> Result<String> {
    let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let commit = folder.filter(|name| is_commit(name));
    Ok(commit.with_context(|| format!("{} is not in a folder of a commit", file.display()))?.to_owned())
}

/// Keeps what a revision means, for when the Hub can't be asked. It is written when all files of the commit are there.
fn remember(config: &Path, revision: &str, commit: &str) -> Result<()> {
    // <repository>/snapshots/<commit>/config.json
    let repository = config.ancestors().nth(3).context("the cache has no folder of this repository")?;
    let file = repository.join("refs").join(revision);
    let folder = file.parent().context("a reference has no folder")?;
    fs::create_dir_all(folder)?;
    let mut new = NamedTempFile::new_in(folder)?;
    new.write_all(commit.as_bytes())?;
    new.persist(&file)?;
    Ok(())
}

/// How a file that was just received differs from what the Hub said of it.
fn difference(path: &Path, expected_bytes: u64) -> io::Result<Option<String>> {
    let blob = fs::canonicalize(path)?;
    let found_bytes = fs::metadata(&blob)?.len();
    // No size was given where it is 0.
    if expected_bytes > 0 && found_bytes != expected_bytes {
        return Ok(Some(format!("{found_bytes} of {expected_bytes} bytes were received")));
    }
    // The cache names large files by their SHA-256, the others by git's hash.
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok((is_hash && sha256(&blob)? != name.to_lowercase())
        .then(|| "what was received does not have the hash that the Hub gave".to_owned()))
}

/// Whether a file is what its name says, as far as its header or syntax shows it.
fn check_format(path: &Path) -> Result<()> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return map(&[path]).map(drop);
    }
    let text = fs::read(path).with_context(|| format!("{} could not be read", path.display()))?;
    serde_json::from_slice::<IgnoredAny>(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    Ok(())
}

fn discard(path: &Path) -> io::Result<()> {
    let blob = fs::canonicalize(path)?;
    fs::remove_file(&blob)?;
    if blob != path && path.is_symlink() {
        fs::remove_file(path)?;
    }
    Ok(())
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

    /// Size that the Hub gave for the file (0: none), if the file was received rather than found in the cache.
    fn received(&self) -> Option<u64> {
        let seen = self.seen.lock().ok()?;
        seen.received.then_some(seen.total_bytes)
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
                    seen.received |= matches!(file.status, FileStatus::Started | FileStatus::InProgress);
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
