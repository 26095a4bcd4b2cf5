//! Checkpoints from a Hub: a server on loopback stands for it, hf-hub is the real one.

mod server;

use std::{fs, path::Path, time::Duration};

use candle_core::{DType, Device};
use candlepower::subject::{checkpoint::Checkpoint, hub::Hub, open};
use server::{COMMIT, Fault, REPO, Server, TOKEN, Wrong};
use tempfile::TempDir;

const SINGLE: &str = "fixtures/generation/llama-gqa-tied";
const SHARDED: &str = "fixtures/generation/qwen3-gqa3-sharded";

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
            // An empty token keeps one that the machine happens to have out of the tests.
            token: Some(String::new()),
            cache: Some(self.cache.path().to_owned()),
            offline: false,
            retry_delay: Some(Duration::from_millis(1)),
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

    fn fail(&self, method: &'static str, path_ends: &'static str, what: Wrong, times: usize) {
        self.server.fail(Fault { method, path_ends, what, times });
    }

    fn downloads(&self) -> usize {
        self.server.requests().iter().filter(|request| request.starts_with("GET")).count()
    }
}

/// The checkpoint is whole: its model runs.
fn assert_runs(checkpoint: Checkpoint) {
    let mut model = open(checkpoint, DType::F32, &Device::Cpu).expect("a model").model;
    model.forward(&[5, 6, 7], 0).expect("logits");
}

#[test]
fn everything_is_fetched_once() {
    let world = world(SINGLE);
    let checkpoint = world.fetch().expect("fetched");
    assert_eq!(checkpoint.source, format!("hub:{REPO}@{COMMIT}"));
    assert!(checkpoint.tokenizer.is_some());
    assert!(world.downloads() >= 3);
    assert_runs(checkpoint);

    let again = world.fetch().expect("from the cache");
    assert_eq!(world.downloads(), 0, "the cache has it all");
    assert_runs(again);
}

#[test]
fn a_tokenizer_is_not_needed() {
    let world = world(SINGLE);
    world.server.remove("tokenizer.json");
    assert!(world.fetch().expect("fetched").tokenizer.is_none());
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
    let world = world(SINGLE);
    let missing =
        |repo: &str, revision: &str| format!("{:#}", world.hub().fetch(repo, revision).expect_err("it is not there"));
    let error = missing("someone/other-model", "main");
    assert!(error.contains("someone/other-model"), "{error}");
    let error = missing(REPO, "v3");
    assert!(error.contains("v3"), "{error}");
    world.server.remove("model.safetensors");
    let error = world.error();
    assert!(error.contains("neither model.safetensors nor model.safetensors.index.json"), "{error}");
    world.server.remove("config.json");
    let error = world.error();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn passing_trouble_is_tried_again() {
    for status in [429, 500, 503] {
        let world = world(SINGLE);
        world.fail("HEAD", "config.json", Wrong::Status(status), 2);
        world.fail("GET", "config.json", Wrong::Status(status), 2);
        assert_runs(world.fetch().expect("the third time"));
    }
}

#[test]
fn lasting_trouble_is_said() {
    for (status, part) in [(429, "too many requests"), (500, "failed with 500")] {
        let world = world(SINGLE);
        world.fail("HEAD", "config.json", Wrong::Status(status), usize::MAX);
        let error = world.error();
        assert!(error.contains(part), "{error}");
    }
}

/// hf-hub stores the body of an error as the file: it must not stay.
#[test]
fn an_error_page_never_becomes_a_file() {
    let world = world(SINGLE);
    world.fail("GET", "config.json", Wrong::Status(500), 10);
    let error = world.error();
    assert!(error.contains("try again"), "{error}");
    // As many as are left of the ten are used up by the retries of the next requests.
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
        world.fail("GET", cdn, what, 1);
        let error = world.error();
        assert!(error.contains("try again") && error.contains("model.safetensors"), "{error}");
        let offline = Hub { offline: true, ..world.hub() };
        assert!(offline.fetch(REPO, "main").is_err(), "nothing half-written is in the cache");
        assert_runs(world.fetch().expect("the second time"));
    }
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
    assert!(world.server.requests().is_empty(), "offline asks nobody");
}

#[test]
fn a_hub_out_of_reach_is_as_offline() {
    let world = world(SINGLE);
    // Port 9 of loopback, where nobody listens.
    let away = Hub { endpoint: Some("http://127.0.0.1:9".into()), ..world.hub() };
    let error = format!("{:#}", away.fetch(REPO, "main").expect_err("nobody answers"));
    assert!(error.contains("can't be reached") && error.contains("HF_ENDPOINT"), "{error}");
    world.fetch().expect("fetched");
    assert_runs(away.fetch(REPO, "main").expect("from the cache"));
}
