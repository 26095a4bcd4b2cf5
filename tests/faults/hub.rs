//! A Hub that is hostile, broken or slow.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use candlepower_core::model::hub::Hub;
use tempfile::TempDir;

use crate::stage::{Answer, Stage, head, reply};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";
const INFO: &str = "/api/models/a/b/revision/main";

fn info() -> Answer {
    reply(200, &[], format!("{{\"sha\": \"{COMMIT}\", \"siblings\": []}}").as_bytes())
}

fn hub(endpoint: &str, token: &str, cache: &TempDir) -> Hub {
    Hub {
        endpoint: Some(endpoint.to_owned()),
        token: Some(token.to_owned()),
        cache: Some(cache.path().join("outer").join("hub")),
        offline: false,
        retry_delay: Some(Duration::from_millis(1)),
        patience: Some(Duration::from_millis(400)),
    }
}

/// The error of a fetch: one line, without escape sequences, after a few seconds at most.
fn error(endpoint: &str, token: &str) -> String {
    let cache = tempfile::tempdir().expect("a folder");
    let start = Instant::now();
    let error = hub(endpoint, token, &cache).fetch("a/b", "main").expect_err("it fails");
    let error = format!("{error:#}");
    assert!(start.elapsed() < Duration::from_secs(15), "{error}: {:?}", start.elapsed());
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!error.contains(char::is_control), "{error:?}");
    error
}

/// The foreign host redirects to itself: the token must not come back on a later hop.
#[test]
fn the_token_goes_to_the_endpoint_alone() {
    for redirected in ["/api/", "/resolve/"] {
        let foreign = Stage::start(|path| match path {
            "/first" => reply(302, &[("Location", "/second")], b""),
            _ => info(),
        });
        let first = format!("{}/first", foreign.endpoint);
        let own = Stage::start(move |path| match path {
            path if path.contains(redirected) => reply(302, &[("Location", &first), ("ETag", "\"e\"")], b""),
            _ => info(),
        });
        error(&own.endpoint, TOKEN);
        let requests = own.requests();
        assert!(requests.iter().all(|request| request.contains("authorization: bearer hf_secret")), "{requests:?}");
        let requests = foreign.requests();
        assert!(requests.len() > 1, "both hops are asked: {requests:?}");
        assert!(requests.iter().all(|request| !request.contains("hf_secret")), "{requests:?}");
    }
}

/// No name from a server becomes a path outside the cache: nothing is written or removed there.
#[test]
fn names_from_a_server_do_not_leave_the_cache() {
    let victims = tempfile::tempdir().expect("a folder");
    let victim = victims.path().join("victim");
    fs::write(&victim, "precious").expect("written");
    let absolute = victim.display().to_string();
    for (header, value, part) in [
        ("ETag", "\"../../../../x\"", "named a hash that is none"),
        ("ETag", "\"..\"", "named a hash that is none"),
        ("ETag", "\"\"", "named a hash that is none"),
        ("ETag", "\"a\\b\"", "named a hash that is none"),
        ("ETag", absolute.as_str(), "named a hash that is none"),
        ("X-Linked-ETag", "\"../x\"", "named a hash that is none"),
        ("X-Repo-Commit", "../../x", "named a commit that is none"),
        ("X-Repo-Commit", absolute.as_str(), "named a commit that is none"),
        ("X-Repo-Commit", "main", "named a commit that is none"),
        ("X-Repo-Commit", "89abcdef0123456789abcdef0123456789abcdef", "answered for commit 89abcdef"),
        ("X-Linked-Size", "-1", "named a size that is none"),
    ] {
        let (header, value) = (header.to_owned(), value.to_owned());
        let own = Stage::start(move |path| match path {
            INFO => info(),
            _ if header == "ETag" => reply(200, &[(&header, &value)], b"{}"),
            _ => reply(200, &[(&header, &value), ("ETag", "\"e\"")], b"{}"),
        });
        let cache = tempfile::tempdir().expect("a folder");
        let error = hub(&own.endpoint, "", &cache).fetch("a/b", "main").expect_err(part);
        let error = format!("{error:#}");
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        let beside: Vec<_> = fs::read_dir(cache.path()).expect("a folder").flatten().collect();
        assert!(beside.iter().all(|entry| entry.file_name() == "outer"), "{beside:?}");
        assert!(!cache.path().join("outer/hub/models--a--b/snapshots").exists());
        assert_eq!(fs::read_to_string(&victim).expect("still there"), "precious");
    }
}

/// Broken answers to the request for the description and to those for files, and a part of the error.
pub fn broken() -> [(Answer, Answer, &'static str); 19] {
    let file = |body: &[u8]| reply(200, &[("ETag", "\"e\"")], body);
    let json = |text: &str| reply(200, &[], text.as_bytes());
    let to = |location: &str| reply(302, &[("Location", location)], b"");
    [
        (json("<!DOCTYPE html><p>Sign in"), file(b"{}"), "sent a page of HTML instead of its description"),
        (json("[1, 2]"), file(b"{}"), "JSON of another shape"),
        (json("{\"sha\": 5}"), file(b"{}"), "JSON of another shape"),
        (json("{\"sha\": \"../../x\"}"), file(b"{}"), "did not name its commit"),
        (json("{}"), file(b"{}"), "did not name its commit"),
        (json("\u{1b}[31m"), file(b"{}"), "no JSON"),
        (info(), file(b"<html>"), "sent a page of HTML instead of config.json"),
        (info(), file(b"oops"), "no JSON as config.json"),
        (info(), json("{}"), "did not name the file's hash"),
        (to(INFO), file(b"{}"), "redirects in a circle"),
        (info(), to("/a/b/resolve/x/config.json"), "redirects in a circle"),
        (to("file:///etc/passwd"), file(b"{}"), "not an http or https URL"),
        (reply(302, &[], b""), file(b"{}"), "redirects to nowhere"),
        (info(), reply(418, &[], b""), "answered 418"),
        (Answer::Bytes(b"SSH-2.0-x\r\n".to_vec()), file(b"{}"), "broke off"),
        (info(), Answer::Bytes(head(200, &[("ETag", "\"e\"")], Some(9))), "broke off"),
        (info(), Answer::Bytes(head(200, &[("ETag", "\"e\"")], Some(1 << 60))), "larger than"),
        (info(), Answer::Endless(head(200, &[("ETag", "\"e\"")], None)), "larger than"),
        (Answer::Endless(head(200, &[], None)), file(b"{}"), "larger than"),
    ]
}

#[test]
fn what_a_hub_does_not_send_is_told_apart() {
    for (of_info, of_files, part) in broken() {
        let own = Stage::start(move |path| if path == INFO { of_info.clone() } else { of_files.clone() });
        let error = error(&own.endpoint, "");
        assert!(error.contains(part) && error.starts_with("a/b"), "{part}: {error}");
    }
}

/// Escape sequences in the name of a file must not reach the terminal.
#[test]
fn names_of_files_are_shown_without_escape_sequences() {
    let own = Stage::start(|path| match path {
        path if path.contains("/api/") => {
            let siblings = r#"[{"rfilename": "\u001b]0;owned\u0007\n.bin"}]"#;
            reply(200, &[], format!("{{\"sha\": \"{COMMIT}\", \"siblings\": {siblings}}}").as_bytes())
        }
        path if path.ends_with("/config.json") => reply(200, &[("ETag", "\"e\"")], b"{}"),
        _ => reply(404, &[("X-Error-Code", "EntryNotFound")], b""),
    });
    let error = error(&own.endpoint, "");
    assert!(error.contains("only \\u{1b}]0;owned\\u{7}\\n.bin"), "{error}");
}

/// Answers that do not end, and a part of the error.
pub fn slow() -> [(Answer, Answer, &'static str); 6] {
    let slow_head = Answer::Drip(Vec::new(), head(200, &[("X", &"x".repeat(1000))], None));
    let file_head = head(200, &[("ETag", "\"e\"")], Some(5000));
    [
        (Answer::Silence, Answer::Silence, "did not answer within 400ms"),
        (slow_head.clone(), Answer::Silence, "did not answer within 400ms"),
        (info(), Answer::Silence, "did not answer within 400ms"),
        (info(), slow_head, "did not answer within 400ms"),
        (Answer::Drip(head(200, &[], Some(5000)), b" ".to_vec()), Answer::Silence, "less than 1 KiB/s"),
        (info(), Answer::Drip(file_head, b" ".to_vec()), "less than 1 KiB/s"),
    ]
}

#[test]
fn a_hub_that_lets_wait_is_given_up() {
    thread::scope(|scope| {
        for (of_info, of_files, part) in slow() {
            scope.spawn(move || {
                let own = Stage::start(move |path| if path == INFO { of_info.clone() } else { of_files.clone() });
                let error = error(&own.endpoint, "");
                assert!(error.contains(part), "{part}: {error}");
            });
        }
    });
}

/// A server that can be used no more than one out of reach: the cache makes up for it.
#[test]
fn the_cache_makes_up_for_a_hub_that_hangs() {
    let cache = tempfile::tempdir().expect("a folder");
    let repository = cache.path().join("outer/hub/models--a--b");
    let (snapshot, refs) = (repository.join("snapshots").join(COMMIT), repository.join("refs"));
    for folder in [&snapshot, &refs] {
        fs::create_dir_all(folder).expect("a folder");
    }
    fs::write(refs.join("main"), COMMIT).expect("written");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(format!("fixtures/generation/llama-gqa-tied/{file}"), snapshot.join(file)).expect("copied");
    }
    for answer in [Answer::Silence, reply(200, &[], b"<html>"), reply(302, &[("Location", INFO)], b"")] {
        let own = Stage::start(move |_| answer.clone());
        let checkpoint = hub(&own.endpoint, "", &cache).fetch("a/b", "main").expect("from the cache");
        assert_eq!(checkpoint.source, format!("hub:a/b@{COMMIT}"));
    }
}

#[test]
fn a_password_in_the_endpoint_is_used_and_never_shown() {
    let with_password = |endpoint: &str| endpoint.replace("http://", "http://user:hunter2@");
    let foreign = Stage::start(|_| reply(200, &[], b"<html>"));
    let elsewhere = with_password(&foreign.endpoint);
    for answer in [
        reply(500, &[], b""),
        reply(401, &[], b""),
        reply(200, &[], b"<html>"),
        reply(302, &[("Location", INFO)], b""),
        reply(302, &[("Location", elsewhere.as_str())], b""),
        Answer::Silence,
    ] {
        let own = Stage::start(move |_| answer.clone());
        let error = error(&with_password(&own.endpoint), "");
        assert!(!error.contains("hunter2"), "{error}");
        // Base64 of user:hunter2, in lower case.
        let requests = own.requests();
        assert!(
            requests.iter().all(|request| request.contains("authorization: basic dxnlcjpodw50zxiy")),
            "{requests:?}"
        );
    }
    let requests = foreign.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| !request.contains("authorization")), "{requests:?}");
    for endpoint in
        ["http://user:hunter2@127.0.0.1:9", "http://user:hunter2@[", "ftp://user:hunter2@x", "user:hunter2@x"]
    {
        let error = error(endpoint, "");
        assert!(!error.contains("hunter2") && error.contains("HF_ENDPOINT"), "{error}");
    }
    let error = error(&foreign.endpoint, "hf_hunter2\nX: y");
    assert!(!error.contains("hunter2") && error.contains("HF_TOKEN"), "{error}");
}
