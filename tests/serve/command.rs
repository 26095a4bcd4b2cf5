//! The command `candlepower serve`.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::json;

use crate::{
    COMPLETIONS,
    client::{self, get, post, send},
};

fn candlepower(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).arg("serve").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a server and reads its address.
pub fn start(folder: &Path, arguments: &[&str]) -> (Child, SocketAddr) {
    let mut child = candlepower(folder, &[&["--port", "0"], arguments].concat()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
    let address = line.trim_end().strip_prefix("http://").and_then(|address| address.parse().ok());
    (child, address.unwrap_or_else(|| panic!("no address: {line:?}")))
}

/// Sends a signal to a server.
pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill").success());
}

#[test]
fn the_command_serves_until_a_signal_and_finishes_what_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, address) = start(folder.path(), &["--engine", "tuned"]);
    assert!(address.ip().is_loopback() && address.port() != 0);
    assert_eq!(get(address, "/v1/models").json()["data"][0]["id"], "llama-mini");
    let body = json!({"model": "llama-mini", "prompt": "A candle", "max_tokens": 4, "temperature": 0});
    let first = post(address, COMPLETIONS, &body).json();
    assert_eq!(first["usage"]["completion_tokens"], 4, "{first}");

    let long =
        json!({"model": "llama-mini", "prompt": "A candle", "max_tokens": 200, "temperature": 0, "stream": true});
    let stream = send(address, COMPLETIONS, &long);
    let mut waited = 0;
    while !get(address, "/metrics").text().contains("candlepower_running_sequences 1") {
        thread::sleep(Duration::from_millis(10));
        waited += 1;
        assert!(waited < 1000, "it does not run");
    }
    signal(&child, "-TERM");
    assert_eq!(client::answer(stream).events().len(), 200);
    assert!(child.wait().expect("an end").success());
    assert!(std::fs::read_dir(folder.path()).expect("a folder").next().is_none(), "a server writes nothing");
}

#[test]
fn a_key_is_read_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("key"), "secret\n").expect("written");
    let (mut child, address) = start(folder.path(), &["--api-key-file", "key"]);
    assert_eq!(get(address, "/v1/models").status, 401);
    assert_eq!(get(address, "/health").status, 200);
    signal(&child, "-INT");
    assert!(child.wait().expect("an end").success());
}

/// What a template does, it does to a process of its own: chats are refused, and everything else goes on.
#[test]
fn a_hostile_template_refuses_chats_only() {
    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");
    let chain = |part: &str| format!("{{{{ 1{} }}}}", part.repeat(200_000));
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let shared = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for (name, source) in [
        ("not", format!("{{{{ {} 1 }}}}", "not ".repeat(200_000))),
        ("attributes", chain(".b")),
        ("filters", chain("|abs")),
        ("ternaries", format!("{{{{ {} 1 }}}}", "1 if 1 else ".repeat(200_000))),
        ("nested", format!("{deep}{{{{ ns.x }}}}")),
        ("shared", format!("{shared}{{{{ ns.x == ns.x[0] }}}}{{{{ ns.x | string | length }}}}")),
        ("cycle", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into()),
        ("width", "{{ '{:>9999999999}'.format(1) }}".into()),
        ("doubled", "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(12) %}{% set ns.x = ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}".into()),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(Path::new(FIXTURE).join(file), folder.path().join(file)).expect("copied");
        }
        std::fs::write(folder.path().join("chat_template.jinja"), source).expect("written");
        let model = format!("path:{}", folder.path().display());
        let (mut child, address) = start(folder.path(), &["--model", &model, "--engine", "tuned", "--request-timeout-s", "20"]);
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
        let start = std::time::Instant::now();
        let waiting: Vec<_> = (0..3).map(|_| send(address, crate::CHAT, &chat)).collect();
        // Others are not disturbed.
        let completion = post(address, COMPLETIONS, &json!({"model": model, "prompt": "a", "max_tokens": 1}));
        assert_eq!(completion.status, 200, "{name}: {}", completion.text());
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
        for stream in waiting {
            let answer = client::answer(stream);
            assert!([400, 504].contains(&answer.status), "{name}: {} {}", answer.status, answer.text());
        }
        assert!(start.elapsed() < Duration::from_secs(22), "{name}: {:?}", start.elapsed());
        assert_eq!(get(address, "/health").status, 200, "{name}");
        signal(&child, "-TERM");
        assert!(child.wait().expect("an end").success(), "{name}");
    }
}

#[test]
fn wrong_arguments_are_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("empty"), "\n").expect("written");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (arguments, part) in [
        (&["--model", "nonsense"][..], "unknown model 'nonsense'"),
        (&["--api-key-file", "none"], "the API key in none"),
        (&["--api-key-file", "empty"], "it must be one word"),
        (&["--request-timeout-s", "0"], "--request-timeout-s=0: use more than 0"),
        (&["--max-queue", "0"], "max-queue=0: use 1 to"),
        (&["--step-tokens", "1"], "step-tokens=1: use at least"),
        (&["--port", &port], "can't be listened on"),
    ] {
        let output = candlepower(folder.path(), arguments).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part) && error.lines().count() == 1, "{arguments:?}: {error}");
    }
}
