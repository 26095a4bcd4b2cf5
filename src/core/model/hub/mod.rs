//! Checkpoints from the Hugging Face Hub, or a server that speaks its protocol, through the cache that its clients share.
//!
//! `http` sends requests, `cache` stores files. The client resolves a revision to a commit first. All later requests name
//! the commit, so that a branch that moves meanwhile cannot mix two commits. Files in the cache are not requested again. A
//! file gets its name in the cache only after it was received whole. The server is not trusted: its names, hashes and sizes
//! are checked before they are used.

mod cache;
mod http;

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};

use self::{
    cache::{Cache, RepoFile, is_commit},
    http::{Failure, Http, RETRIES},
};
use super::{
    chat::TEMPLATE,
    checkpoint::{
        CONFIG, Checkpoint, GENERATION_CONFIG, INDEX, JSON_MAX_BYTES, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MAX_BYTES,
        WEIGHTS, map, read_config, read_json, shards,
    },
    gguf::{names_of_parts, stem},
};
use crate::{
    error::one_line,
    files::{read_key, read_limited},
    names::PathName,
    output, progress, text,
};

const ENDPOINT: &str = "https://huggingface.co";

/// Largest file of weights: above the Hub's own limit for one file.
const WEIGHTS_MAX_BYTES: u64 = 1 << 40;

/// Downloads below this size show no progress bar.
const LONG_DOWNLOAD_BYTES: u64 = 4 << 20;

/// First pause before a request is tried again. It doubles each time: about six seconds in all.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Longest wait for an answer, or for the next part of one.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to reach the Hub. Each field that is `None` comes from the variables of the Hub's clients: `HF_ENDPOINT`, `HF_TOKEN`,
/// `HF_HOME`, `HF_HUB_CACHE`.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    /// URL of the Hub.
    pub endpoint: Option<String>,
    /// Access token, for gated and private repositories.
    pub token: Option<String>,
    /// Folder of the cache.
    pub cache: Option<PathBuf>,
    /// Use only what is cached.
    pub offline: bool,
    /// First pause before a request is tried again; it doubles each time.
    pub retry_delay: Option<Duration>,
    /// Longest wait for an answer, for the next part of one, or for another process that fetches the same file.
    pub patience: Option<Duration>,
}

impl Hub {
    /// As the environment says.
    pub(crate) fn from_env() -> Self {
        let is_set = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Self { offline: env::var("HF_HUB_OFFLINE").is_ok_and(is_set), ..Self::default() }
    }

    /// Fetches what is not cached of a repository: configuration, weights, and the tokenizer if there is one. A branch
    /// or tag of a Hub that can't be reached is taken from the cache, with a note on standard error.
    ///
    /// # Errors
    /// One line that says what to do: accept the licence, set a token, check the name, try again.
    pub fn fetch(&self, repo: &str, revision: &str) -> Result<Checkpoint> {
        self.at_commit(repo, revision, CONFIG, |fetcher, commit| {
            let config = match fetcher.optional(CONFIG, commit)? {
                Some(config) => config,
                None => fetcher.explained_without_config(commit)?,
            };
            // Before the weights: whoever has those has these, too, when the Hub is away.
            let generation = fetcher.optional(GENERATION_CONFIG, commit)?;
            let tokenizer = fetcher.optional(TOKENIZER, commit)?;
            let tokenizer_config = fetcher.optional(TOKENIZER_CONFIG, commit)?;
            let weights = fetcher.weights(commit)?;
            let config = read_config(&config, generation.as_deref())?;
            Ok(Checkpoint { config, weights, tokenizer, tokenizer_config, source: format!("hub:{repo}@{commit}") })
        })
    }

    /// Fetches what is not cached of a GGUF file: the file, its other parts, and the tokenizer and the chat template beside it.
    /// `wanted` is the path of the file in the repository, or its quantisation. Returns the path of the file, or of its first
    /// part, and its source.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and if there is no such quantisation, which names those that there are.
    pub fn fetch_gguf(&self, repo: &str, revision: &str, wanted: &str) -> Result<(PathBuf, String)> {
        self.at_commit(repo, revision, wanted, |fetcher, commit| {
            let path = match wanted.ends_with(".gguf") {
                true => wanted.to_owned(),
                false => quantised(repo, &fetcher.gguf_files(commit)?, wanted)?,
            };
            let (folder, name) =
                path.rsplit_once('/').map_or((String::new(), &path[..]), |(f, n)| (format!("{f}/"), n));
            for beside in [TOKENIZER, TEMPLATE, TOKENIZER_CONFIG] {
                fetcher.optional(&format!("{folder}{beside}"), commit)?;
            }
            let parts = names_of_parts(name).unwrap_or_else(|| vec![name.to_owned()]);
            let files = parts.iter().map(|part| fetcher.required(&format!("{folder}{part}"), commit));
            let files = files.collect::<Result<Vec<_>>>()?;
            let first = files.into_iter().next().with_context(|| format!("{repo}: {path} has no parts"))?;
            Ok((first, format!("hub:{repo}/{folder}{}@{commit}", parts[0])))
        })
    }

    /// Fetches something at the commit that a revision means, and remembers the commit.
    fn at_commit<T>(
        &self,
        repo: &str,
        revision: &str,
        probe: &str,
        fetch: impl FnOnce(&Fetcher, &PathName) -> Result<T>,
    ) -> Result<T> {
        // The cache has a file of this name.
        let parts: Option<Vec<PathName>> = revision.split('/').map(|part| part.parse().ok()).collect();
        let revision = Revision {
            parts: parts.with_context(|| format!("{repo}: '{}' is no branch, tag or commit", text::line(revision)))?,
            name: revision,
        };
        let mut fetcher = self.fetcher(repo)?;
        let commit = fetcher.commit(&revision, probe)?;
        let fetched = fetch(&fetcher, &commit)?;
        if fetcher.not_asked.is_none() && !is_commit(revision.name) {
            fetcher
                .cache
                .remember(&revision.parts, &commit)
                .map_err(|error| fetcher.explain(error.into(), "the reference", revision.name))?;
        }
        Ok(fetched)
    }

    /// Returns the paths of those files at a commit that the repository has.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn fetch_optional(&self, repo: &str, commit: &str, files: &[&str]) -> Result<Vec<PathBuf>> {
        let (fetcher, commit) = (self.fetcher(repo)?, commit.parse()?);
        let found = files.iter().map(|file| fetcher.optional(file, &commit));
        Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn fetcher<'a>(&self, repo: &'a str) -> Result<Fetcher<'a>> {
        let (owner, name) = repo.split_once('/').with_context(|| format!("{repo} is no <owner>/<name>"))?;
        let endpoint = self.endpoint.clone().or_else(|| set("HF_ENDPOINT")).unwrap_or_else(|| ENDPOINT.into());
        let token = self.token.clone().or_else(token);
        let patience = self.patience.unwrap_or(PATIENCE);
        let http = Http::new(&endpoint, token.as_deref(), patience, self.retry_delay.unwrap_or(RETRY_DELAY))?;
        let cache = Cache::new(self.cache.clone().unwrap_or_else(cache_home), owner, name)?;
        let not_asked = self.offline.then(|| "the Hub is not to be asked: unset HF_HUB_OFFLINE to fetch it".to_owned());
        Ok(Fetcher { http, cache, repo, owner, name, patience, not_asked })
    }
}

/// The folder of the Hub's clients: their token, and by default their cache.
fn home() -> PathBuf {
    let cache = || env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let own = || env::home_dir().unwrap_or_default().join(".cache");
    let home = env::var_os("HF_HOME").map(PathBuf::from);
    home.unwrap_or_else(|| cache().unwrap_or_else(own).join("huggingface"))
}

fn cache_home() -> PathBuf {
    let set = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(env::var_os);
    set.map_or_else(|| home().join("hub"), PathBuf::from)
}

/// The token that downloads show: that of `HF_TOKEN`, or of a file that the Hub's command for logging in wrote.
pub fn token() -> Option<String> {
    if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let file = |path: PathBuf| {
        let token = read_key(&path).ok()?;
        Some(token).filter(|token| !token.is_empty())
    };
    let named = || file(set("HF_TOKEN_PATH")?.into());
    set("HF_TOKEN").or_else(named).or_else(|| file(home().join("token")))
}

/// A variable that is set to more than spaces, without those around it.
fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A branch, tag or commit, and its parts as the cache names folders by them.
struct Revision<'a> {
    name: &'a str,
    parts: Vec<PathName>,
}

/// The description of a revision by the Hub.
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

struct Fetcher<'a> {
    http: Http,
    cache: Cache,
    repo: &'a str,
    owner: &'a str,
    name: &'a str,
    patience: Duration,
    /// Why only the cache is used, and what to do about it.
    not_asked: Option<String>,
}

impl Fetcher<'_> {
    /// The commit that a revision means now; the cached one when the Hub does not say. `probe` is a file that a mirror has.
    fn commit(&mut self, revision: &Revision, probe: &str) -> Result<PathName> {
        if is_commit(revision.name) {
            return revision.name.parse();
        }
        let cached = self.cache.commit(&revision.parts);
        if self.not_asked.is_some() {
            return cached.ok_or_else(|| self.explain(Failure::NotCached, probe, revision.name));
        }
        match self.info(revision.name) {
            Ok(Info { sha: Some(sha), .. }) if is_commit(&sha) => sha.parse(),
            Ok(_) => Err(anyhow!(
                "{}@{}: the Hub did not name its commit: check HF_ENDPOINT",
                self.repo,
                text::line(revision.name)
            )),
            // A mirror that has files only.
            Err(Failure::Status { status: 404, error_code: None, .. }) => {
                let fetched = self.download(&probe.parse()?, revision.name);
                fetched.map(|(commit, _)| commit).map_err(|failure| self.explain(failure, probe, revision.name))
            }
            Err(failure) => {
                let (Some(trouble), Some(commit)) = (trouble(&failure), cached) else {
                    return Err(self.explain(failure, probe, revision.name));
                };
                let (repo, name) = (&self.repo, text::line(revision.name));
                output::report(format_args!("note: {repo}: {trouble}; {name} is taken from the cache, at {commit}"));
                self.not_asked = Some(format!("{trouble}: check the network and HF_ENDPOINT"));
                Ok(commit)
            }
        }
    }

    fn info(&self, revision: &str) -> Result<Info, Failure> {
        let expand = [("expand", "sha"), ("expand", "siblings")];
        let answer = self.http.get(&["api", "models", self.owner, self.name, "revision", revision], &expand)?;
        let mut body = Vec::new();
        answer.read_to(&mut body, JSON_MAX_BYTES, |_| ())?;
        serde_json::from_slice(&body).map_err(|_| Failure::Unexpected(not_json(&body, "its description of it")))
    }

    /// The GGUF files of the repository, or of the cache when the Hub is not asked.
    fn gguf_files(&self, commit: &PathName) -> Result<Vec<String>> {
        if self.not_asked.is_some() {
            return Ok(self.cache.gguf_files(commit));
        }
        let info = self.info(commit.as_str());
        let info = info.map_err(|failure| self.explain(failure, "the list of files", commit.as_str()))?;
        let names = info.siblings.into_iter().map(|file| file.rfilename);
        Ok(names.filter(|name| name.ends_with(".gguf")).collect())
    }

    /// Says which GGUF files a repository without a configuration has, or that it has none.
    fn explained_without_config(&self, commit: &PathName) -> Result<PathBuf> {
        let names = quantisations(&self.gguf_files(commit).unwrap_or_default());
        match names.first() {
            Some(first) => Err(anyhow!(
                "{repo} holds GGUF files: name a quantisation, as in hub:{repo}:{first}; there are {}",
                names.join(", "),
                repo = self.repo
            )),
            None => self.required(CONFIG, commit),
        }
    }

    fn weights(&self, commit: &PathName) -> Result<Vec<PathBuf>> {
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
        let files = self.info(commit.as_str()).map(|info| info.siblings).unwrap_or_default();
        let other = files
            .into_iter()
            .map(|file| file.rfilename)
            .find(|name| [".bin", ".pth", ".pt", ".gguf", ".safetensors"].iter().any(|ending| name.ends_with(ending)));
        let only = other.map(|name| format!(", only {}", text::line(&name))).unwrap_or_default();
        Err(anyhow!(
            "{repo}: neither {WEIGHTS} nor {INDEX} is there{only}: weights must be safetensors of the whole model"
        ))
    }

    fn required(&self, file: &str, commit: &PathName) -> Result<PathBuf> {
        let name = file.parse()?;
        self.fetch(&name, commit).map_err(|failure| self.explain(failure, file, commit.as_str()))
    }

    /// `None` when the repository has no such file, or the cache has none while the Hub is not asked.
    fn optional(&self, file: &str, commit: &PathName) -> Result<Option<PathBuf>> {
        let name: RepoFile = file.parse()?;
        if self.cache.lacks(commit, &name) {
            return Ok(None);
        }
        match self.fetch(&name, commit) {
            Ok(path) => Ok(Some(path)),
            Err(Failure::NotCached) => Ok(None),
            Err(Failure::Status { status: 404, error_code, .. })
                if !matches!(error_code.as_deref(), Some("RepoNotFound" | "RevisionNotFound")) =>
            {
                self.cache.remember_absent(commit, &name);
                Ok(None)
            }
            Err(failure) => Err(self.explain(failure, file, commit.as_str())),
        }
    }

    /// A whole file, from the cache if it is there and whole.
    fn fetch(&self, file: &RepoFile, commit: &PathName) -> Result<PathBuf, Failure> {
        if let Some(path) = self.cache.find(commit, file) {
            match check_format(&path, file) {
                Ok(()) => return Ok(path),
                Err(Failure::Unexpected(_)) if self.not_asked.is_some() => {
                    return Err(Failure::Damaged(format!("{} is no JSON", path.display())));
                }
                Err(failure) if self.not_asked.is_some() => return Err(failure),
                Err(_) => {}
            }
        }
        if self.not_asked.is_some() {
            return Err(Failure::NotCached);
        }
        Ok(self.download(file, commit.as_str())?.1)
    }

    /// Asks the Hub for a file. Its body is not received again where the cache has the blob. Returns the commit that the
    /// file belongs to, and its path.
    fn download(&self, file: &RepoFile, revision: &str) -> Result<(PathName, PathBuf), Failure> {
        let segments: Vec<_> =
            [self.owner, self.name, "resolve", revision].into_iter().chain(file.segments()).collect();
        let mut answer = self.http.get(&segments, &[])?;
        let named = answer.about.commit.take();
        let asked: Option<PathName> = Some(revision).filter(|name| is_commit(name)).and_then(|name| name.parse().ok());
        let commit = match (asked, named) {
            (Some(asked), Some(named)) if asked != named => {
                return Err(Failure::Unexpected(format!("answered for commit {named}")));
            }
            (Some(commit), _) | (None, Some(commit)) => commit,
            (None, None) => return Err(Failure::Unexpected("did not name the file's commit".into())),
        };
        let etag = answer.about.etag.take();
        let etag = etag.ok_or_else(|| Failure::Unexpected("did not name the file's hash".into()))?;
        let _lock = self.cache.lock(&etag, self.patience)?.ok_or(Failure::Locked)?;
        let blob = self.cache.blob(&etag);
        if check_format(&blob, file).is_err() {
            let new = self.receive(answer, file, &etag)?;
            crate::files::rename(new.path(), &blob)?;
        }
        let path = self.cache.link(&commit, file, &etag)?;
        Ok((commit, path))
    }

    /// The body of an answer in a temporary file, after its size, hash and format were checked.
    fn receive(
        &self,
        answer: http::Answer,
        file: &RepoFile,
        etag: &PathName,
    ) -> Result<tempfile::NamedTempFile, Failure> {
        let expected_bytes = answer.bytes();
        let bar = bar(file, expected_bytes);
        let mut new = self.cache.new_blob()?;
        let mut hasher = Sha256::new();
        let mut writer = Hashing { file: new.as_file_mut(), hasher: &mut hasher };
        let received_bytes = answer.read_to(&mut writer, max_bytes(file), |bytes| bar.set_position(bytes))?;
        bar.finish_and_clear();
        if let Some(expected_bytes) = expected_bytes.filter(|bytes| *bytes != received_bytes) {
            return Err(Failure::Damaged(format!(
                "{received_bytes} of {expected_bytes} bytes were received of {file}"
            )));
        }
        // The Hub names large files by their SHA-256, the others by git's hash.
        let is_sha256 = etag.as_str().len() == 64 && etag.as_str().bytes().all(|byte| byte.is_ascii_hexdigit());
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if is_sha256 && found != etag.as_str().to_lowercase() {
            return Err(Failure::Damaged(format!("{file} does not have the hash that the Hub gave")));
        }
        check_format(new.path(), file)?;
        Ok(new)
    }

    fn explain(&self, failure: Failure, file: &str, revision: &str) -> anyhow::Error {
        let (repo, revision) = (self.repo, text::line(revision));
        let asked = RETRIES + 1;
        match failure {
            Failure::Unreachable(_) | Failure::NoAnswer(_) => anyhow!(
                "{repo}: {} and {file} is not in the cache: check the network and HF_ENDPOINT",
                trouble(&failure).unwrap_or_default()
            ),
            Failure::Slow(_) | Failure::BrokenOff(_) => {
                anyhow!("{repo}: {} in {file}: try again", trouble(&failure).unwrap_or_default())
            }
            Failure::Redirects | Failure::Unexpected(_) => {
                anyhow!("{repo}: {file}: {}: check HF_ENDPOINT", trouble(&failure).unwrap_or_default())
            }
            Failure::TooLarge { max_bytes } => anyhow!(
                "{repo}: {file} is larger than {}, which no such file is: check the name and HF_ENDPOINT",
                indicatif::BinaryBytes(max_bytes)
            ),
            Failure::Damaged(problem) => anyhow!("{repo}: {problem}: try again"),
            Failure::Status { status: 429, retry_after_s: Some(wait_s), .. } => {
                anyhow!("{repo}: too many requests (429) for {file}, asked {asked} times: try again in {wait_s} s")
            }
            Failure::Status { status: 429 | 500.., .. } => anyhow!(
                "{repo}: {} for {file}, asked {asked} times: try again later",
                trouble(&failure).unwrap_or_default()
            ),
            Failure::Status { status: 401, error_code, .. } => match error_code.as_deref() {
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
            Failure::Status { status: 403, .. } => anyhow!(
                "{repo}: the token's account may not read it (403): accept the licence at https://huggingface.co/{repo} and set HF_TOKEN to a token that may read gated repositories"
            ),
            Failure::Status { status: 404, error_code, .. } => match error_code.as_deref() {
                Some("RepoNotFound") => anyhow!("{repo}: the Hub has no such repository (404): check the name"),
                Some("RevisionNotFound") => anyhow!("{repo}: it has no revision {revision} (404)"),
                _ => anyhow!("{repo}@{revision}: the Hub has no {file} there (404)"),
            },
            Failure::Status { status, .. } => {
                anyhow!("{repo}: the Hub answered {status} for {file}: check the name and HF_ENDPOINT")
            }
            Failure::NotCached => {
                let reason = self.not_asked.as_deref().unwrap_or("could not be fetched: try again");
                anyhow!("{repo}@{revision}: {file} is not in the cache, and {reason}")
            }
            Failure::Locked => anyhow!("{repo}: another process is fetching {file}: try again when it has ended"),
            Failure::Io(error) => anyhow!(
                "{repo}: {file}: {}: is the cache {} readable and writable? HF_HOME names another",
                one_line(&error),
                self.cache.root().display()
            ),
        }
    }
}

/// Trouble of the network or the server, for which the cache makes up, in a few words.
fn trouble(failure: &Failure) -> Option<String> {
    Some(match failure {
        Failure::Unreachable(reason) => format!("the Hub can't be reached ({reason})"),
        Failure::NoAnswer(patience) => format!("the Hub did not answer within {patience:?}"),
        Failure::Slow(patience) => format!("the Hub sent less than 1 KiB/s for {patience:?}"),
        Failure::BrokenOff(reason) => format!("the connection broke off ({reason})"),
        Failure::Redirects => "the Hub redirects in a circle".into(),
        Failure::Unexpected(what) => format!("the Hub {what}"),
        Failure::Status { status: 429, .. } => "too many requests (429)".into(),
        Failure::Status { status: status @ 500.., .. } => format!("the Hub failed with {status}"),
        _ => return None,
    })
}

/// The quantisations of GGUF files, as their names end.
fn quantisations(files: &[String]) -> Vec<String> {
    let end = |file: &String| Some(stem(file)?.rsplit(['-', '.', '/']).next()?.to_owned());
    let names: BTreeSet<String> = files.iter().filter_map(end).map(|name| text::line(&name)).collect();
    names.into_iter().collect()
}

/// The one file, or the first part, whose name ends with a quantisation.
fn quantised(repo: &str, files: &[String], wanted: &str) -> Result<String> {
    let is_wanted = |file: &&String| {
        let Some(rest) = stem(file).map(str::to_lowercase) else { return false };
        let rest = rest.strip_suffix(&wanted.to_lowercase());
        let is_first = names_of_parts(file).is_none_or(|parts| parts[0] == **file);
        is_first && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '/']))
    };
    let found: Vec<_> = files.iter().filter(is_wanted).cloned().collect();
    match found.as_slice() {
        [file] => Ok(file.clone()),
        [] if files.is_empty() => Err(anyhow!("{repo}: it has no GGUF files")),
        [] => Err(anyhow!("{repo}: it has no GGUF file of {wanted}; there are {}", quantisations(files).join(", "))),
        [first, ..] => {
            Err(anyhow!("{repo}: {} files are {wanted}: name one, as in hub:{repo}/{}", found.len(), text::line(first)))
        }
    }
}

/// The end of a sentence about a Hub that sent `body` instead of JSON, or JSON of another shape.
fn not_json(body: &[u8], what: &str) -> String {
    if body.trim_ascii_start().starts_with(b"<") {
        return format!("sent a page of HTML instead of {what}");
    }
    match serde_json::from_slice::<IgnoredAny>(body) {
        Ok(_) => format!("sent JSON of another shape as {what}"),
        Err(_) => format!("sent something that is no JSON as {what}"),
    }
}

fn max_bytes(file: &RepoFile) -> u64 {
    match file.name() {
        TOKENIZER => TOKENIZER_MAX_BYTES,
        name if [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end)) => WEIGHTS_MAX_BYTES,
        _ => JSON_MAX_BYTES,
    }
}

/// Checks that the content at `path` is what the name says, as far as its header or syntax shows it.
fn check_format(path: &Path, file: &RepoFile) -> Result<(), Failure> {
    if file.name().ends_with(".gguf") {
        let mut magic = [0; 4];
        let is_gguf = fs::File::open(path)?.read_exact(&mut magic).is_ok() && magic == *b"GGUF";
        return if is_gguf { Ok(()) } else { Err(Failure::Damaged(format!("{file} is not a GGUF file"))) };
    }
    if file.name().ends_with(".safetensors") {
        return map(&[path]).map(drop).map_err(|error| Failure::Damaged(one_line(&format!("{error:#}"))));
    }
    let content = read_limited(path, max_bytes(file))?;
    if file.name().ends_with(".jinja") {
        return Ok(());
    }
    match serde_json::from_slice::<IgnoredAny>(&content) {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::Unexpected(not_json(&content, &file.to_string()))),
    }
}

/// Writes a file and computes its hash.
struct Hashing<'a> {
    file: &'a mut fs::File,
    hasher: &'a mut Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.file.write(part)?;
        self.hasher.update(&part[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A progress bar, which is shown when the download is long and standard error is a terminal.
fn bar(file: &RepoFile, bytes: Option<u64>) -> ProgressBar {
    let is_long = bytes.is_none_or(|bytes| bytes >= LONG_DOWNLOAD_BYTES);
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::hidden());
    let bar = if is_long { progress::shown(bar) } else { bar }.with_message(file.to_string());
    match ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
