//! Every command that works for a while, ended by each signal at some moments: it ends soon, its children do too, and what it has
//! written is whole.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::command::{all_are_tried, candlepower, children_of, ended, stderr};

/// Commands with enough work for some seconds. `URL` is a server that does not answer.
const COMMANDS: &[&[&str]] = &[
    &["run", "--model", "llama-mini", "--trials", "1000"],
    &["glance", "llama-mini"],
    &["standings", "--models", "llama-mini", "--engine", "tuned,stock"],
    &["why", "--model", "llama-mini"],
    &["perplexity", "--model", "llama-mini", "text.txt"],
    &["verify", "--model", "llama-mini"],
    &["recommend", "--model", "llama-mini", "--no-write"],
    &["serve", "--model", "llama-mini"],
    &["load", "--url", "URL", "--model", "x", "--requests", "9", "--prompt-tokens", "1", "--max-new-tokens", "1"],
    &["memory", "--", "sleep", "60"],
    &["power", "--", "sleep", "60"],
    &["sweep"],
    &["train", "--corpus", "text.txt"],
    &["duel", "HEAD", "HEAD", "--", "^short/"],
    &["bisect", "HEAD~1", "HEAD", "--", "^short/"],
    &["doctor"],
    &["doctor", "--duel"],
];

/// Commands that end by themselves at once, that other tests end (`bench`, `nightly`, `watch`), and `eval`, which scores as `perplexity` does.
const OTHERS: [&str; 12] = [
    "bench", "nightly", "watch", "eval", "report", "export", "history", "compare", "list", "sandbox", "shootout",
    "help",
];

const SIGNALS: [(&str, i32); 3] = [("INT", 2), ("TERM", 15), ("HUP", 1)];

/// Times after the start, from before the first output to the middle of the work.
const MOMENTS_MS: [u64; 4] = [30, 300, 1500, 6000];

/// A command ends within two seconds on an idle machine. Other tests run beside this one.
const SOON: Duration = Duration::from_secs(10);

/// A process and all that it started.
fn tree(id: u32) -> Vec<u32> {
    [vec![id], children_of(id).into_iter().flat_map(tree).collect()].concat()
}

/// Returns whether a process works. One that has ended and was not waited for does not.
fn works(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// A folder with what the commands read.
fn prepare(folder: &Path) {
    fs::write(folder.join("text.txt"), "The quick brown fox jumps over the lazy dog.\n".repeat(2000)).expect("written");
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"];
        let git = Command::new("git").args(who).args(arguments).current_dir(folder).output().expect("git");
        assert!(git.status.success(), "{git:?}");
    };
    git(&["init", "-q"]);
    git(&["commit", "-q", "--allow-empty", "-m", "one"]);
    git(&["commit", "-q", "--allow-empty", "-m", "two"]);
}

/// Every file of records and every JSON document is whole.
fn is_whole(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            _ if path.is_dir() => is_whole(&path),
            Some("jsonl") => {
                let text = fs::read_to_string(&path).expect("text");
                let lines = text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
                assert!(lines && (text.is_empty() || text.ends_with('\n')), "{}: {text}", path.display());
            }
            Some("json") => {
                let text = fs::read(&path).expect("a file");
                serde_json::from_slice::<serde_json::Value>(&text)
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
            _ => {}
        }
    }
}

/// Returns whether programs that this one starts ignore a signal, as those of a shell do that runs them in the background.
fn is_ignored(number: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (number - 1) & 1 == 1)
}

fn is_ended_by(arguments: &[&str], (signal, number): (&str, i32), moment_ms: u64) {
    let about = format!("{arguments:?} by SIG{signal} after {moment_ms} ms");
    if is_ignored(number) {
        eprintln!("skipped {about}: this process ignores the signal");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    prepare(folder.path());
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", server.local_addr().expect("an address"));
    let arguments = arguments.iter().map(|argument| if *argument == "URL" { url.as_str() } else { argument });
    let mut command = candlepower(folder.path());
    let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let id = child.id();
    thread::sleep(Duration::from_millis(moment_ms));
    let all = tree(id);
    assert!(Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status().expect("kill").success());
    let signalled = Instant::now();
    let reader = thread::spawn(move || ended(child));
    while all.iter().any(|id| works(*id)) {
        if signalled.elapsed() > SOON {
            for id in all.iter().filter(|id| works(**id)) {
                let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            }
            panic!("{about}: still works after {SOON:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = reader.join().unwrap_or_else(|_| panic!("{about}"));
    // Its work may have ended or failed before the signal came.
    let code = output.status.code();
    assert!(
        code.is_none() || [0, 1, 2, 128 + number].contains(&code.expect("a code")),
        "{about}: {:?}: {}",
        output.status,
        stderr(&output)
    );
    is_whole(folder.path());
}

/// Each command meets another signal at another moment.
#[test]
fn a_signal_ends_every_command_and_its_children() {
    all_are_tried(COMMANDS, &OTHERS);
    for (number, arguments) in COMMANDS.iter().enumerate() {
        let moment_ms = MOMENTS_MS[number % (MOMENTS_MS.len() - 1)];
        is_ended_by(arguments, SIGNALS[(number / MOMENTS_MS.len() + number) % SIGNALS.len()], moment_ms);
    }
}

#[test]
#[ignore = "takes ten minutes"]
fn every_signal_ends_every_command_at_every_moment() {
    for arguments in COMMANDS {
        for signal in SIGNALS {
            MOMENTS_MS.into_iter().for_each(|moment_ms| is_ended_by(arguments, signal, moment_ms));
        }
    }
}
