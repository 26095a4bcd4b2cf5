//! A server on loopback with the part of the Hub's protocol that is used: the commit of a revision, small files behind a
//! redirect on the same host, and large files behind a redirect that comes with their hash and size.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "someone/some-model";
pub const TOKEN: &str = "hf_good";
const TOKEN_WITHOUT_ACCESS: &str = "hf_other";

/// A failure of requests whose path ends as given, and how often it occurs.
pub struct Fault {
    pub path_ends: &'static str,
    pub what: Wrong,
    pub times: usize,
}

#[derive(Clone, Copy)]
pub enum Wrong {
    Status(u16),
    /// Closes the connection in the middle of the body.
    Cut,
    /// Sends the whole body with one byte changed.
    Corrupt,
}

/// A repository, served until the program ends.
pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    commit: String,
    gated: bool,
    files_only: bool,
    faults: Vec<Fault>,
    requests: Vec<String>,
}

impl Server {
    /// Serves the files of a folder as `someone/some-model`, with the branches `main` and `v2` at one commit.
    pub fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let files = fs::read_dir(folder).expect("a folder").map(|entry| {
            let path = entry.expect("an entry").path();
            (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(path).expect("a file"))
        });
        let state =
            Arc::new(Mutex::new(State { files: files.collect(), commit: COMMIT.to_owned(), ..State::default() }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || {
                    let _ = answer(stream, &state);
                });
            }
        });
        Self { endpoint, state }
    }

    pub fn gate(&self) {
        self.state.lock().expect("state").gated = true;
    }

    /// Serves files, but not the commit of a revision, like a simple mirror.
    pub fn serve_files_only(&self) {
        self.state.lock().expect("state").files_only = true;
    }

    pub fn remove(&self, file: &str) {
        self.state.lock().expect("state").files.remove(file);
    }

    pub fn add(&self, file: &str, content: Vec<u8>) {
        self.state.lock().expect("state").files.insert(file.to_owned(), content);
    }

    /// Moves the branches to another commit.
    pub fn move_to(&self, commit: &str) {
        self.state.lock().expect("state").commit = commit.to_owned();
    }

    pub fn fail(&self, fault: Fault) {
        self.state.lock().expect("state").faults.push(fault);
    }

    /// Returns the requests since the last call, as `METHOD path`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("state").requests)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut token = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(given) = line.to_lowercase().strip_prefix("authorization: bearer ") {
            token = Some(given.to_owned());
        }
    }
    let mut words = request.split(' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = url.split('?').next().unwrap_or_default();
    let mut state = state.lock().expect("state");
    state.requests.push(format!("{method} {path}"));
    let fault = state.faults.iter_mut().find(|fault| fault.times > 0 && path.ends_with(fault.path_ends)).map(|fault| {
        fault.times -= 1;
        fault.what
    });
    if let Some(Wrong::Status(status)) = fault {
        return reply(&mut stream, status, &[], format!("error {status}").as_bytes(), None);
    }
    let not_found = |stream: &mut TcpStream| reply(stream, 404, &[], b"{\"error\": \"not found\"}", None);
    if let Some(hash) = path.strip_prefix("/cdn/") {
        return match state.files.values().find(|content| sha256(content) == hash) {
            Some(content) => reply(&mut stream, 200, &[("ETag", format!("\"{hash}\""))], content, fault),
            None => not_found(&mut stream),
        };
    }
    let commit = state.commit.clone();
    let is_known = |revision: &str| ["main", "v2", &commit].contains(&revision);
    if let Some(rest) = path.strip_prefix("/api/models/").filter(|_| !state.files_only)
        && let Some((repo, revision)) = rest.split_once("/revision/")
    {
        let missing = |what: &str| [("X-Error-Code", what.to_owned())];
        if repo != REPO {
            // Without a token, the Hub answers the same for a private and a missing repository.
            let status = if token.is_some_and(|token| !token.is_empty()) { 404 } else { 401 };
            return reply(&mut stream, status, &missing("RepoNotFound"), b"{}", None);
        }
        if !is_known(revision) {
            return reply(&mut stream, 404, &missing("RevisionNotFound"), b"{}", None);
        }
        let files: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        let info = json!({"id": REPO, "sha": commit, "siblings": files}).to_string();
        return reply(&mut stream, 200, &[], info.as_bytes(), None);
    }
    // The file list of a gated repository is public; its files are not.
    if state.gated {
        match token.as_deref() {
            Some(token) if token == TOKEN.to_lowercase() => {}
            Some(token) if token == TOKEN_WITHOUT_ACCESS => {
                return reply(&mut stream, 403, &[("X-Error-Code", "GatedRepo".into())], b"{}", None);
            }
            _ => return reply(&mut stream, 401, &[("X-Error-Code", "GatedRepo".into())], b"{}", None),
        }
    }
    let cached = path.strip_prefix(&format!("/api/resolve-cache/models/{REPO}/"));
    let file = path
        .strip_prefix(&format!("/{REPO}/resolve/"))
        .or(cached)
        .and_then(|rest| rest.split_once('/'))
        .filter(|(revision, _)| is_known(revision))
        .map(|(_, file)| file);
    let Some(file) = file else { return not_found(&mut stream) };
    let of_commit = ("X-Repo-Commit", commit.clone());
    let Some(content) = state.files.get(file) else {
        return reply(&mut stream, 404, &[of_commit, ("X-Error-Code", "EntryNotFound".into())], b"", None);
    };
    let hash = sha256(content);
    if [".safetensors", ".gguf"].iter().any(|end| file.ends_with(end)) {
        let linked = [
            of_commit,
            ("X-Linked-ETag", format!("\"{hash}\"")),
            ("X-Linked-Size", content.len().to_string()),
            ("Location", format!("http://{}/cdn/{hash}", stream.local_addr()?)),
        ];
        return reply(&mut stream, 302, &linked, b"", None);
    }
    if cached.is_none() {
        let location = format!("/api/resolve-cache/models/{REPO}/{commit}/{file}");
        return reply(&mut stream, 307, &[of_commit, ("Location", location)], b"moved", fault);
    }
    // Git's hash of a small file has 40 digits.
    let etag = format!("\"{}\"", &hash[..40]);
    reply(&mut stream, 200, &[of_commit, ("ETag", etag)], content, fault)
}

fn reply(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    fault: Option<Wrong>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    match fault {
        Some(Wrong::Cut) => stream.write_all(&body[..body.len() / 2]),
        Some(Wrong::Corrupt) => {
            let mut body = body.to_vec();
            *body.last_mut().expect("a body") ^= 1;
            stream.write_all(&body)
        }
        _ => stream.write_all(body),
    }
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
