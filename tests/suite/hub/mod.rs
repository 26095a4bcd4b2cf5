//! Tests checkpoints from a Hub: a server on loopback takes its place.

mod server;

use std::{fs, path::Path, process::Command, time::Duration};

use candle_core::Device;
use candlepower_core::{
    device::Precision,
    model::{Engine, checkpoint::Checkpoint, hub::Hub, open},
};
use server::{COMMIT, Fault, REPO, Server, TOKEN, Wrong};
use tempfile::TempDir;

const SINGLE: &str = "fixtures/generation/llama-gqa-tied";
const SHARDED: &str = "fixtures/generation/qwen3-gqa3-sharded";
const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";

struct World {
    server: Server,
    cache: TempDir,
}

fn world(folder: &str) -> World {
    World { server: Server::start(Path::new(folder)), cache: tempfile::tempdir().expect("a folder") }
}

impl World {
    fn hub(&self) -> Hub {
        Hub {
            endpoint: Some(self.server.endpoint.clone()),
            // An empty token hides a token of this machine.
            token: Some(String::new()),
            cache: Some(self.cache.path().to_owned()),
            offline: false,
            retry_delay: Some(Duration::from_millis(1)),
            patience: None,
        }
    }

    fn fetch(&self) -> anyhow::Result<Checkpoint> {
        self.hub().fetch(REPO, "main")
    }

    fn error(&self) -> String {
        let error = format!("{:#}", self.fetch().expect_err("it fails"));
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    fn fail(&self, path_ends: &'static str, what: Wrong, times: usize) {
        self.server.fail(Fault { path_ends, what, times });
    }

    /// Returns the files that were downloaded since the last call.
    fn downloads(&self) -> usize {
        let is_file =
            |request: &&String| request.starts_with("GET /api/resolve-cache") || request.starts_with("GET /cdn");
        self.server.requests().iter().filter(is_file).count()
    }

    /// Damages a file of the cache, as an interrupted process or another program may.
    fn spoil(&self, checkpoint: &Checkpoint, content: &[u8]) {
        let blob = fs::canonicalize(&checkpoint.weights[0]).expect("a file");
        assert!(blob.starts_with(fs::canonicalize(self.cache.path()).expect("a folder")), "{}", blob.display());
        fs::write(blob, content).expect("written");
    }
}

/// Asserts that the checkpoint is complete: its model runs.
fn assert_runs(checkpoint: Checkpoint) {
    let mut model = open(checkpoint, Engine::Stock, Precision::F32, &Device::Cpu).expect("a model").model;
    model.forward(&[5, 6, 7], 0).expect("logits");
}

#[test]
fn everything_is_fetched_once() {
    let world = world(SINGLE);
    let checkpoint = world.fetch().expect("fetched");
    assert_eq!(checkpoint.source, format!("hub:{REPO}@{COMMIT}"));
    assert!(checkpoint.tokenizer.is_some());
    assert_eq!(world.downloads(), 4);
    assert_runs(checkpoint);

    let again = world.fetch().expect("from the cache");
    // Only the current commit of the branch.
    let requests = world.server.requests();
    assert!(requests.len() == 1 && requests[0].contains("/revision/main"), "{requests:?}");
    assert_runs(again);
}

/// The longest sequence of a model of the Hub is known only when it is loaded.
#[test]
fn the_first_command_measures_a_model_of_short_sequences() {
    let world = world(SHARDED);
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_candlepower"))
        .args([REPO, "--budget", "20s", "--json"])
        .env("HF_ENDPOINT", &world.server.endpoint)
        .env("HF_HOME", world.cache.path())
        .current_dir(folder.path())
        .output()
        .expect("it starts");
    let records = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in records.lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("a record");
        let length = |key: &str| record["measures"][key].as_u64().expect("a number");
        // The configuration has 256 positions.
        assert_eq!((length("prompt_tokens"), length("new_tokens")), (128, 32), "{line}");
    }
    assert_eq!(records.lines().count(), 2, "one for each engine");
}

#[test]
fn a_tokenizer_is_not_needed() {
    let world = world(SINGLE);
    world.server.remove("tokenizer.json");
    assert!(world.fetch().expect("fetched").tokenizer.is_none());
}

#[test]
fn a_chat_template_is_fetched_if_there_is_one() {
    let fetch = |world: &World| {
        let files = ["chat_template.jinja", "tokenizer_config.json"];
        world.hub().fetch_optional(REPO, COMMIT, &files).expect("fetched")
    };
    let has_none = world(SINGLE);
    assert_eq!(fetch(&has_none).len(), 1);
    let world = world(SINGLE);
    world.server.add("chat_template.jinja", b"{{ messages }}".to_vec());
    let found = fetch(&world);
    assert_eq!((found.len(), fs::read(&found[0]).expect("a template")), (2, b"{{ messages }}".to_vec()));
    for (world, count) in [(&has_none, 1), (&world, 2)] {
        world.server.requests();
        assert_eq!(fetch(world).len(), count);
        assert!(world.server.requests().is_empty(), "the cache knows both files");
    }
}

#[test]
fn shards_are_fetched_through_the_index() {
    let world = world(SHARDED);
    let checkpoint = world.fetch().expect("fetched");
    assert!(checkpoint.weights.len() > 1);
    assert_runs(checkpoint);
}

#[test]
fn a_pinned_commit_that_is_cached_asks_the_hub_for_nothing() {
    let world = world(SINGLE);
    let by_tag = world.hub().fetch(REPO, "v2").expect("a tag");
    assert_eq!(by_tag.source, format!("hub:{REPO}@{COMMIT}"));
    world.server.requests();
    world.hub().fetch(REPO, COMMIT).expect("a commit");
    let requests = world.server.requests();
    assert!(requests.is_empty(), "{requests:?}");
}

/// Files that the new commit did not change come from the cache. The commit is new all the same.
#[test]
fn a_branch_that_moved_is_followed() {
    let world = world(SINGLE);
    world.fetch().expect("fetched");
    world.server.move_to(LATER);
    let other = fs::read("fixtures/generation/llama-gqa-tied/golden.safetensors").expect("a file");
    world.server.add("model.safetensors", other.clone());
    let checkpoint = world.fetch().expect("fetched");
    assert_eq!(checkpoint.source, format!("hub:{REPO}@{LATER}"));
    assert_eq!(fs::read(&checkpoint.weights[0]).expect("weights"), other);
}

#[test]
fn a_gated_model_says_what_to_do() {
    let world = world(SINGLE);
    world.server.gate();
    let error = world.error();
    assert!(error.contains("401") && error.contains("licence") && error.contains("HF_TOKEN"), "{error}");
    let other = Hub { token: Some("hf_other".into()), ..world.hub() };
    let error = format!("{:#}", other.fetch(REPO, "main").expect_err("no access"));
    assert!(error.contains("403") && error.contains("licence") && error.contains("HF_TOKEN"), "{error}");
    assert!(error.contains(&format!("https://huggingface.co/{REPO}")), "{error}");
    let good = Hub { token: Some(TOKEN.into()), ..world.hub() };
    assert_runs(good.fetch(REPO, "main").expect("with access"));
}

#[test]
fn what_is_not_there_is_told_apart() {
    let error = |world: &World, repo: &str, revision: &str, token: &str| {
        let hub = Hub { token: Some(token.into()), ..world.hub() };
        let error = format!("{:#}", hub.fetch(repo, revision).expect_err("it is not there"));
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    let world_of = |without: &[&str], with: &str| {
        let world = world(SINGLE);
        for file in ["golden.safetensors", "model.safetensors"].iter().chain(without) {
            world.server.remove(file);
        }
        if !with.is_empty() {
            world.server.add(with, b"weights".to_vec());
        }
        world
    };
    let whole = world(SINGLE);
    for (world, repo, revision, token, part) in [
        (&whole, "someone/other", "main", "", "no such repository, or a private one (401)"),
        (&whole, "someone/other", "main", TOKEN, "no such repository (404)"),
        (&whole, REPO, "v3", "", "no revision v3"),
        (&whole, REPO, LATER, "", "has no config.json there"),
        (&whole, REPO, "../../main", "", "is no branch, tag or commit"),
        (&world_of(&["config.json"], ""), REPO, "main", "", "has no config.json there"),
        (&world_of(&[], ""), REPO, "main", "", "neither model.safetensors nor model.safetensors.index.json is there:"),
        (&world_of(&[], "pytorch_model.bin"), REPO, "main", "", "is there, only pytorch_model.bin: weights must be"),
    ] {
        let error = error(world, repo, revision, token);
        assert!(error.contains(part) && error.contains(repo), "{error}");
    }
}

#[test]
fn an_index_does_not_lead_out_of_the_repository() {
    let world = world(SHARDED);
    let index = br#"{"weight_map": {"a": "../../config.safetensors"}}"#;
    world.server.add("model.safetensors.index.json", index.to_vec());
    let error = world.error();
    assert!(error.contains("no safetensors file beside it"), "{error}");
}

#[test]
fn a_mirror_that_has_only_files_will_do() {
    let world = world(SHARDED);
    world.server.serve_files_only();
    let checkpoint = world.fetch().expect("fetched");
    assert_eq!(checkpoint.source, format!("hub:{REPO}@{COMMIT}"));
    assert_runs(checkpoint);
}

#[test]
fn a_cache_that_can_not_be_is_named() {
    let world = world(SINGLE);
    let file = world.cache.path().join("file");
    fs::write(&file, "").expect("written");
    let hub = Hub { cache: Some(file.clone()), ..world.hub() };
    let error = format!("{:#}", hub.fetch(REPO, "main").expect_err("a file is not a folder"));
    assert!(error.contains(&file.display().to_string()) && error.contains("HF_HOME"), "{error}");
}

#[test]
fn passing_trouble_is_tried_again() {
    for status in [429, 500, 503] {
        let world = world(SINGLE);
        world.fail("config.json", Wrong::Status(status), 2);
        assert_runs(world.fetch().expect("the third time"));
    }
}

#[test]
fn lasting_trouble_is_said() {
    for (status, part) in [(429, "too many requests (429)"), (500, "failed with 500")] {
        for path in ["/revision/main", "config.json"] {
            let world = world(SINGLE);
            world.fail(path, Wrong::Status(status), usize::MAX);
            let error = world.error();
            assert!(error.contains(part) && error.contains("asked 6 times"), "{error}");
            let requests = world.server.requests();
            assert_eq!(requests.iter().filter(|request| request.ends_with(path)).count(), 6, "{requests:?}");
        }
    }
}

#[test]
fn an_error_page_never_becomes_a_file() {
    let world = world(SINGLE);
    world.fail("config.json", Wrong::Status(500), 10);
    let error = world.error();
    assert!(error.contains("try again"), "{error}");
    // The retries of the next requests use up the remaining failures of the ten.
    while world.fetch().is_err() {
        assert!(!world.server.requests().is_empty(), "the server is asked again");
    }
    assert_runs(world.fetch().expect("whole at last"));
}

#[test]
fn what_breaks_off_or_is_damaged_is_never_used() {
    for what in [Wrong::Cut, Wrong::Corrupt] {
        let world = world(SINGLE);
        let content = fs::read(Path::new(SINGLE).join("model.safetensors")).expect("a file");
        let cdn: &'static str = Box::leak(server::sha256(&content).into_boxed_str());
        world.fail(cdn, what, 1);
        let error = world.error();
        assert!(error.contains("try again") && error.contains("model.safetensors"), "{error}");
        let offline = Hub { offline: true, ..world.hub() };
        assert!(offline.fetch(REPO, "main").is_err(), "nothing half-written is in the cache");
        assert_runs(world.fetch().expect("the second time"));
    }
}

#[test]
fn a_spoilt_file_of_the_cache_is_fetched_anew() {
    for content in [&b"{\"error\": \"busy\"}"[..], b""] {
        let world = world(SINGLE);
        let checkpoint = world.fetch().expect("fetched");
        world.spoil(&checkpoint, content);
        let offline = Hub { offline: true, ..world.hub() };
        let error = format!("{:#}", offline.fetch(REPO, "main").expect_err("it is spoilt"));
        assert!(error.contains("truncated or corrupt") && error.lines().count() == 1, "{error}");
        world.downloads();
        assert_runs(world.fetch().expect("fetched anew"));
        assert_eq!(world.downloads(), 1);
    }
}

#[test]
fn offline_says_what_is_missing_of_a_part() {
    let world = world(SINGLE);
    let content = fs::read(Path::new(SINGLE).join("model.safetensors")).expect("a file");
    let cdn: &'static str = Box::leak(server::sha256(&content).into_boxed_str());
    world.fail(cdn, Wrong::Cut, 1);
    world.error();
    let offline = Hub { offline: true, ..world.hub() };
    let error = format!("{:#}", offline.fetch(REPO, COMMIT).expect_err("no weights"));
    assert!(error.contains("no safetensors of it are in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_hub_in_trouble_is_as_offline() {
    for status in [429, 503] {
        let world = world(SINGLE);
        world.fetch().expect("fetched");
        world.fail("/revision/main", Wrong::Status(status), usize::MAX);
        assert_runs(world.fetch().expect("from the cache"));
    }
}

/// Uses the environment of a process, as a user does.
#[test]
fn the_environment_is_obeyed() {
    let world = world(SINGLE);
    world.server.gate();
    let home = world.cache.path().join("home");
    let run = |more: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("HF_") || key.starts_with("CANDLEPOWER_")) {
            command.env_remove(key);
        }
        command.args([
            "run",
            "--json",
            "--prompt-tokens",
            "4",
            "--max-new-tokens",
            "2",
            "--warmup",
            "0",
            "--trials",
            "1",
        ]);
        command.args(["--model", &format!("hub:{REPO}")]).env("HF_HOME", &home);
        command.env("HF_ENDPOINT", &world.server.endpoint).envs(more.iter().copied());
        let output = command.current_dir(world.cache.path()).output().expect("the command starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let source = format!("hub:{REPO}@{COMMIT}");

    let (success, _, error) = run(&[]);
    assert!(!success && error.lines().count() == 1, "{error}");
    assert!(error.contains("licence") && error.contains("HF_TOKEN"), "{error}");

    let (success, json, error) = run(&[("HF_TOKEN", TOKEN)]);
    assert!(success && json.contains(&source), "{json}{error}");
    assert!(home.join("hub/models--someone--some-model").is_dir());

    world.server.requests();
    let (success, json, error) = run(&[("HF_HUB_OFFLINE", "1")]);
    assert!(success && json.contains(&source) && world.server.requests().is_empty(), "{json}{error}");

    // Nothing listens on port 9 of loopback.
    let (success, json, error) = run(&[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(success && json.contains(&source), "{json}{error}");
    assert!(error.lines().any(|line| line.starts_with("note: ") && line.contains("from the cache")), "{error}");

    let (success, _, error) = run(&[("HF_ENDPOINT", "nonsense"), ("HF_TOKEN", TOKEN)]);
    assert!(!success && error.contains("HF_ENDPOINT") && error.lines().count() == 1, "{error}");
}

#[test]
fn offline_uses_what_is_cached() {
    let world = world(SINGLE);
    let offline = Hub { offline: true, ..world.hub() };
    let error = format!("{:#}", offline.fetch(REPO, "main").expect_err("nothing is cached"));
    assert!(error.contains("not in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
    world.fetch().expect("fetched");
    world.server.requests();
    assert_runs(offline.fetch(REPO, "main").expect("from the cache"));
    assert!(world.server.requests().is_empty(), "requests while offline");
}

#[test]
fn a_hub_out_of_reach_is_as_offline() {
    let world = world(SINGLE);
    // Nothing listens on port 9 of loopback.
    let away = Hub { endpoint: Some("http://127.0.0.1:9".into()), ..world.hub() };
    let error = format!("{:#}", away.fetch(REPO, "main").expect_err("the port is closed"));
    assert!(error.contains("can't be reached") && error.contains("HF_ENDPOINT"), "{error}");
    world.fetch().expect("fetched");
    assert_runs(away.fetch(REPO, "main").expect("from the cache"));
}

/// A repository of GGUF files.
fn quantised(files: &[&str]) -> World {
    let world = world(SINGLE);
    for file in fs::read_dir(SINGLE).expect("a folder") {
        world.server.remove(&file.expect("a file").file_name().to_string_lossy());
    }
    for file in files {
        world.server.add(file, format!("GGUF {file}").into_bytes());
    }
    world
}

#[test]
fn a_gguf_file_is_named_by_its_quantisation_or_its_path() {
    let files =
        ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-UD-Q2_K-00001-of-00002.gguf", "big/m-UD-Q2_K-00002-of-00002.gguf"];
    let world = quantised(&files);
    world.server.add("big/chat_template.jinja", b"{{ messages }}".to_vec());
    let content = |path: &Path| fs::read_to_string(path).expect("a file");
    let fetch = |wanted: &str| world.hub().fetch_gguf(REPO, "main", wanted);
    for (wanted, file) in [
        ("Q4_K_M", files[0]),
        ("q4_k_m", files[0]),
        ("m-Q8_0.gguf", files[1]),
        ("Q2_K", files[2]),
        ("UD-Q2_K", files[2]),
        (files[3], files[2]),
    ] {
        let (path, source) = fetch(wanted).expect(wanted);
        assert_eq!(source, format!("hub:{REPO}/{file}@{COMMIT}"), "{wanted}");
        assert_eq!(content(&path), format!("GGUF {file}"));
        assert!(source.parse::<candlepower_core::model::ModelSpec>().is_ok_and(|spec| spec.to_string() == source));
        if file == files[2] {
            // The other part, and what stands beside it.
            assert_eq!(content(&path.with_file_name("m-UD-Q2_K-00002-of-00002.gguf")), format!("GGUF {}", files[3]));
            assert_eq!(content(&path.with_file_name("chat_template.jinja")), "{{ messages }}");
        }
    }
    world.server.requests();
    let offline = Hub { offline: true, ..world.hub() };
    assert!(offline.fetch_gguf(REPO, "main", "Q8_0").expect("from the cache").1.contains("m-Q8_0.gguf"));
    assert!(world.server.requests().is_empty());

    let refused = |wanted: &str| {
        let error = format!("{:#}", fetch(wanted).expect_err(wanted));
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    assert!(refused("Q5_K_M").contains("no GGUF file of Q5_K_M; there are Q2_K, Q4_K_M, Q8_0"));
    assert!(refused("K_M").contains("no GGUF file of K_M"));
    assert!(refused("x.gguf").contains("the Hub has no x.gguf there (404)"));
    world.server.add("other-Q8_0.gguf", b"GGUF".to_vec());
    assert!(refused("Q8_0").contains("2 files are Q8_0: name one, as in hub:someone/some-model/"));
    // Without a file, the quantisations are named.
    assert!(world.error().contains("name a quantisation, as in hub:someone/some-model:Q2_K"), "{}", world.error());
    world.server.add("m-F16.gguf", b"<html>".to_vec());
    assert!(refused("F16").contains("m-F16.gguf is not a GGUF file"));
}

/// As a user types it.
#[test]
fn a_gguf_file_of_the_hub_runs() {
    let world = quantised(&[]);
    let file = fs::read("fixtures/gguf/qwen3-gqa-tied.gguf").expect("a file");
    world.server.add("qwen3-tiny-F32.gguf", file);
    let (home, out) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for model in ["someone/some-model:F32", "hub:someone/some-model/qwen3-tiny-F32.gguf"] {
        let run =
            ["run", "--model", model, "--prompt-ids", "3,4,5", "--max-new-tokens", "2", "--trials", "1", "--json"];
        let ran = Command::new(env!("CARGO_BIN_EXE_candlepower"))
            .args(run)
            .envs([("HF_ENDPOINT", world.server.endpoint.as_str()), ("HF_TOKEN_PATH", "none")])
            .env("HF_HOME", home.path())
            .env("CANDLEPOWER_OUT", out.path())
            .output()
            .expect("the program");
        let (json, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{error}");
        assert!(json.contains(&format!("hub:{REPO}/qwen3-tiny-F32.gguf@{COMMIT}")), "{json}");
        assert!(json.contains("/tuned-f32-cpu"), "{json}");
    }
}
