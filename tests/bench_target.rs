//! Tests bench targets. With `BENCH_TARGET` set, this program is a bench target whose models fail in every possible
//! way. Under `cargo test`, it runs itself as a target and checks the results.

// Without the test harness, lints do not know that this is a test.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod side_by_side;

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
};

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use candlepower::{
    runner::{self, Candidate},
    settings::STRICT,
};
use candlepower_core::{
    measure::{CountingAllocator, memory},
    model::{CausalLm, Footprint},
    record::{Measures, Record, Status},
    scenario::{Counterpart, Generation, Sampling, Tier},
};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BENCH_TARGET: &str = "BENCH_TARGET";

/// Criterion's option for short samples: ten of 10 ms.
const SHORT: [&str; 4] = ["--warm-up-time", "0.01", "--measurement-time", "0.1"];
/// The value of [`BENCH_TARGET`] for the groups of `serving_load`.
#[cfg(feature = "serve")]
const SERVING: &str = "serving";
/// Gives two models one name.
const TWICE: &str = "TWICE";
/// Time of a forward pass.
const STEP_MS: &str = "STEP_MS";
const VOCAB_SIZE: usize = 100;

/// Counts upwards, until it fails as its name says.
struct Model {
    name: &'static str,
    generations: u32,
}

impl CausalLm for Model {
    fn forward(&mut self, tokens: &[u32], _: usize) -> Result<Tensor> {
        // Long beside what the suite adds.
        let ms = std::env::var(STEP_MS).map_or(2, |ms| ms.parse().expect("a number"));
        std::thread::sleep(std::time::Duration::from_millis(ms));
        let mut logits = [0f32; VOCAB_SIZE];
        let last = tokens[tokens.len() - 1] as usize;
        match self.name {
            "panics" => panic!("this model panics"),
            // The standard library aborts a process whose allocation fails.
            "aborts" => drop(std::hint::black_box(Vec::<u8>::with_capacity(isize::MAX as usize))),
            "fails" => bail!("this model fails\nand goes on about it"),
            "nan" => logits[3] = f32::NAN,
            "remembers" => logits[(last + self.generations as usize) % VOCAB_SIZE] = 1.0,
            _ => logits[(last + 1) % VOCAB_SIZE] = 1.0,
        }
        Ok(Tensor::new(&logits, &Device::Cpu)?)
    }
    fn reset(&mut self) -> Result<()> {
        self.generations += 1;
        Ok(())
    }
    fn footprint(&self) -> Footprint {
        Footprint::dense(1000, 100, candle_core::DType::F32, 10)
    }
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
    fn max_position_embeddings(&self) -> usize {
        1000
    }
    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

const MODELS: [&str; 9] = ["first", "unloadable", "panics", "aborts", "fails", "nan", "remembers", "large", "last"];

/// Fails for want of memory at the first two attempts: that of a set, and the one after others are released.
fn load_large() -> Result<()> {
    let attempts = fs::read("attempts").unwrap_or_default().len() + 1;
    fs::write("attempts", vec![b'x'; attempts])?;
    let needed_bytes = if attempts > 2 { 0 } else { u64::MAX };
    Ok(memory::ensure_fits("a large model", needed_bytes, &Device::Cpu)?)
}

fn bench_target() -> ExitCode {
    let scenario = |key, new_tokens, tier| Generation {
        key,
        prompt_tokens: 4,
        new_tokens,
        sampling: Sampling::GREEDY,
        tier,
        against: (key == "small").then_some("tiny"),
        purpose: "to be looked at",
    };
    let scenarios = [scenario("tiny", 3, Tier::Quick), scenario("small", 5, Tier::Full)];
    candlepower::main(|suite| {
        let own = |name: &'static str| {
            Candidate::own(name, suite.settings(), move |_, _| {
                fs::write(format!("loaded-{name}"), "")?;
                if name == "unloadable" {
                    bail!("this model can't be loaded");
                }
                if name == "large" {
                    load_large()?;
                }
                Ok(Model { name, generations: 0 })
            })
        };
        let mut candidates: Vec<Candidate> = MODELS.map(own).into();
        if std::env::var_os(TWICE).is_some() {
            candidates.insert(1, own("first"));
        }
        let first = candidates[0].about.clone();
        candidates.last_mut().expect("a model").against.push((Counterpart::ActiveTwin, first));
        match std::env::var(BENCH_TARGET).as_deref() {
            #[cfg(feature = "serve")]
            Ok(SERVING) => suite.serving(candlepower_core::scenario::SERVING_LOAD, candidates),
            _ => suite.generation(&scenarios, candidates),
        }
    })
}

struct World(TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// Runs the target with short samples. A benchmark otherwise takes two seconds, and most tests are not about its length.
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.run_at_its_pace(&[arguments, &SHORT].concat(), environment)
    }

    fn run_at_its_pace(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(arguments, environment).output().expect("it starts")
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        // Cargo's variables would make the target join a run.
        command.env_remove("CARGO").env_remove("RUST_BACKTRACE").env(BENCH_TARGET, "1");
        command.env("CANDLEPOWER_OUT", "out").env("CRITERION_HOME", self.path("criterion"));
        command.envs(environment.iter().copied()).args(arguments).current_dir(self.0.path());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns the records of all runs, in order.
    fn records(&self) -> Vec<Record> {
        let Ok(runs) = fs::read_dir(self.path("out")) else { return Vec::new() };
        let mut files: Vec<_> = runs.map(|run| run.expect("a run").path().join("records.jsonl")).collect();
        files.sort();
        let lines = |file: &PathBuf| fs::read_to_string(file).expect("records").lines().map(record).collect::<Vec<_>>();
        files.iter().flat_map(lines).collect()
    }
}

fn record(line: &str) -> Record {
    serde_json::from_str(line).expect("a record a line")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A benchmark that fails does not affect the others.
fn failures_are_isolated() {
    let world = World::new();
    let output = world.run(&["--bench"], &[]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("stack backtrace"), "{errors}");
    let records = world.records();
    assert_eq!(records.len(), 2 * MODELS.len());
    assert!(records.iter().all(|record| record.run == records[0].run), "processes of one guard share a run");
    for record in &records {
        let expected = match record.subject.model.as_str() {
            "first" | "large" | "last" => None,
            "unloadable" => Some("can't be loaded"),
            "panics" => Some("this model panics"),
            "aborts" if cfg!(unix) => Some("the process that measured it was ended by SIGABRT"),
            "fails" => Some("this model fails"),
            "nan" => Some("1 of 100 logits are not finite"),
            "remembers" => Some("keeps state"),
            other => panic!("nobody is called {other}"),
        };
        match (expected, &record.reason) {
            (None, None) => {
                assert_eq!(record.status, Status::Measured);
                let Some(Measures::Generation(measures)) = &record.measures else { panic!("{record:?}") };
                assert_eq!(measures.samples, 10, "the warm-up is left out");
                assert_eq!(measures.generated_tokens, if record.scenario == "tiny" { 3 } else { 5 });
                assert!(measures.peak_bytes.is_some() && measures.mbu.is_some());
            }
            (Some(part), Some(reason)) => {
                assert!(reason.contains(part) && reason.lines().count() == 1, "{reason}");
                assert!(errors.contains(reason.as_str()));
                assert!(record.measures.is_none() && record.status == Status::Failed);
            }
            (expected, found) => panic!("{}: {found:?}, not {expected:?}", record.id),
        }
    }
    assert!(world.path("criterion/report/index.html").is_file(), "the report is written");
    assert!(world.path("criterion/tiny/last/own-f32-cpu/new/estimates.json").is_file());
}

/// Reports a panic in a user's model in one line by default, and with everything the default hook prints on request.
fn a_panic_says_where_it_happened() {
    let world = World::new();
    let output = world.run(&["--bench", "^tiny/panics"], &[]);
    let errors = stderr(&output);
    assert!(errors.contains("this model panics (a panic at tests/bench_target.rs:"), "{errors}");
    assert!(!errors.contains("stack backtrace"), "{errors}");
    let output = world.run(&["--bench", "^tiny/panics"], &[("RUST_BACKTRACE", "1")]);
    let errors = stderr(&output);
    assert!(errors.contains("panicked at tests/bench_target.rs") && errors.contains("stack backtrace"), "{errors}");
}

/// A record contains the samples that Criterion measured, regardless of the warm-up and measurement times.
fn records_hold_criterions_samples() {
    let world = World::new();
    for (run, options) in [
        ("1", &[] as &[&str]),
        ("2", &["--warm-up-time", "0.1", "--measurement-time", "0.1"]),
        ("3", &["--measurement-time", "0.5"]),
        ("4", &["--sample-size", "12", "--measurement-time", "0.1"]),
    ] {
        let arguments = [&["--bench", "^tiny/first"], options].concat();
        let output = world.run_at_its_pace(&arguments, &[("CANDLEPOWER_RUN", run)]);
        assert!(output.status.success(), "{}", stderr(&output));
        let record = world.records().pop().expect("a record");
        let Some(Measures::Generation(measures)) = &record.measures else { panic!("{record:?}") };
        let sample =
            fs::read(world.path("criterion/tiny/first/own-f32-cpu/new/sample.json")).expect("Criterion's file");
        let sample: serde_json::Value = serde_json::from_slice(&sample).expect("JSON");
        let numbers = |key: &str| {
            let values = sample[key].as_array().expect("a list");
            values.iter().map(|value| value.as_f64().expect("a number")).collect::<Vec<_>>()
        };
        let expected: Vec<f64> = numbers("times").iter().zip(numbers("iters")).map(|(ns, n)| ns / n / 1e6).collect();
        assert_eq!(measures.samples, expected.len(), "{options:?}");
        for (found, expected) in measures.sample_total_ms.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{options:?}: {found}, not {expected}");
        }
    }
}

/// Benchmarks that are compared are measured in turns, and Criterion gets their samples.
fn compared_benchmarks_are_measured_in_turns() {
    let world = World::new();
    let output = world.run_at_its_pace(&["--bench", "^(tiny|small)/(first|last)/"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let records = world.records();
    let ratios = |id: &str| &records.iter().find(|record| record.id == id).expect(id).ratios;
    assert!(ratios("tiny/first/own-f32-cpu").is_empty(), "it is not compared with others");
    let [of_scenario] = ratios("small/first/own-f32-cpu").as_slice() else { panic!("{records:?}") };
    // Five tokens instead of three, two milliseconds each.
    assert!(of_scenario.ratio > 1.3 && of_scenario.ratio < 2.0, "{of_scenario:?}");
    // Ten samples, each in several slices.
    assert!(of_scenario.pairs > 10 && of_scenario.pairs.is_multiple_of(10), "{of_scenario:?}");
    assert_eq!(of_scenario.counterpart, Counterpart::Scenario);
    // The two models are the same.
    let [itself] = ratios("tiny/last/own-f32-cpu").as_slice() else { panic!("{records:?}") };
    assert_eq!((itself.to.as_str(), itself.counterpart), ("tiny/first/own-f32-cpu", Counterpart::ActiveTwin));
    assert!((itself.ratio - 1.0).abs() < 0.1 && itself.low <= itself.high, "{itself:?}");
    assert_eq!(ratios("small/last/own-f32-cpu").len(), 2);

    for record in &records {
        let file = world.path(&format!("criterion/{}/new/sample.json", record.id));
        let sample: serde_json::Value = serde_json::from_slice(&fs::read(file).expect("its file")).expect("JSON");
        let numbers = |key: &str| -> Vec<f64> {
            sample[key].as_array().expect("a list").iter().filter_map(serde_json::Value::as_f64).collect()
        };
        let times: Vec<f64> =
            numbers("times").iter().zip(numbers("iters")).map(|(ns, iterations)| ns / iterations).collect();
        let sample_ms = record.measures.as_ref().expect("measures").sample_ms();
        assert_eq!((times.len(), sample_ms.len()), (10, 10));
        assert!(times.iter().zip(sample_ms).all(|(ns, ms)| (ns / 1e6 - ms).abs() < 1e-5), "{times:?} {sample_ms:?}");
        let limits = record.limits.as_ref().expect("limits");
        assert!(limits.read.expect("readings").readings >= 2 && limits.read_bytes_per_s > 0.0, "{limits:?}");
    }
    assert!(!stderr(&output).contains("Unable to complete"), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let is_short = !text.contains("samples taken in turns") && !text.contains("MBU divides by the limit while");
    assert!(text.contains("tiny/first/own-f32-cpu  ") && is_short, "definitions are in the guide: {text}");
}

/// A load on models that hold one sequence: the requests wait for each other.
#[cfg(feature = "serve")]
fn loads_are_measured_in_turns() {
    let world = World::new();
    let output = world.run(&["--bench", "/(first|fails|last)/"], &[(BENCH_TARGET, SERVING)]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let records = world.records();
    assert_eq!(records.len(), 6);
    let mut digests = std::collections::BTreeSet::new();
    for record in &records {
        if record.subject.model == "fails" {
            assert!(record.reason.as_ref().is_some_and(|reason| reason.contains("this model fails")), "{record:?}");
            continue;
        }
        let Some(Measures::Serving(measures)) = &record.measures else { panic!("{record:?}") };
        assert_eq!((measures.sample_ms.len(), measures.requests, measures.cached_tokens), (10, 100, 0));
        digests.insert(measures.token_digest.clone().expect("a digest"));
        // The model takes two milliseconds for each token, and one request is answered at a time.
        let (tpot, ttft) = (measures.tpot_p50_ms.expect("times"), measures.ttft_p50_ms.expect("times"));
        assert!(tpot >= 2.0 && ttft > 5.0 * tpot, "{measures:?}");
        assert!(measures.peak_bytes.is_some_and(|bytes| bytes > 0) && record.limits.is_some(), "{record:?}");
        if record.subject.model == "last" {
            let [itself] = record.ratios.as_slice() else { panic!("{record:?}") };
            assert_eq!((itself.pairs, itself.counterpart), (10, Counterpart::ActiveTwin));
            assert!((itself.ratio - 1.0).abs() < 0.1, "{itself:?}");
        }
    }
    assert_eq!(digests.len(), 1, "both models count, in both groups");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Serving under load") && text.contains("serving_load_ttft"), "{text}");
}

#[cfg(not(feature = "serve"))]
fn loads_are_measured_in_turns() {}

/// A benchmark whose counterpart the filter excludes is measured alone, and its record says why it has no ratio.
fn what_is_not_paired_says_why() {
    for (filter, environment, count, reason) in [
        ("^small/first/", ("X", ""), 1, "what it is compared with was not selected"),
        ("^(tiny|small)/first/", ("CANDLEPOWER_PAIRING", "false"), 2, "pairing is switched off"),
        ("^(tiny|small)/large/", ("X", ""), 2, "2 benchmarks in turns: it does not fit: "),
    ] {
        let world = World::new();
        let output = world.run(&["--bench", filter], &[environment]);
        assert!(output.status.success(), "{}", stderr(&output));
        let records = world.records();
        assert_eq!(records.len(), count);
        let small = records.iter().find(|record| record.scenario == "small").expect("it ran");
        let found = &small.unmeasured["ratios"];
        assert!(small.ratios.is_empty() && found.starts_with(reason), "{found}, not {reason}");
    }
}

/// A run on a busy machine does not become a baseline, unless that is asked for.
#[cfg(target_os = "linux")]
fn a_disturbed_run_is_no_baseline() {
    struct Busy(Vec<std::process::Child>);
    impl Drop for Busy {
        fn drop(&mut self) {
            for child in &mut self.0 {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
    let loop_forever = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell");
    let world = World::new();
    let baseline = world.path("criterion/tiny/first/own-f32-cpu/noisy");
    let busy = Busy(vec![loop_forever(), loop_forever()]);
    let arguments = ["--bench", "^tiny/first", "--save-baseline", "noisy", "--measurement-time", "1"];
    let output = world.run_at_its_pace(&arguments, &[(STRICT, "1")]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("baseline noisy was not saved: 1 of 1"), "{errors}");
    assert!(!baseline.exists() && !baseline.with_file_name("noisy.pending").exists());
    assert_eq!(world.records().len(), 1, "it can be looked at");
    let output = world.run_at_its_pace(&arguments, &[]);
    assert!(output.status.success() && baseline.join("sample.json").is_file(), "{}", stderr(&output));
    assert!(stderr(&output).contains("baseline noisy was saved with doubts: 1 of 1"), "{}", stderr(&output));
    drop(busy);
}

#[cfg(not(target_os = "linux"))]
fn a_disturbed_run_is_no_baseline() {}

/// A list, and a filter without matches, load no model and write no file.
fn a_list_loads_nothing() {
    let world = World::new();
    let output = world.run(&["--bench", "--list"], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    for model in MODELS {
        assert!(text.contains(&format!("tiny/{model}/own-f32-cpu: benchmark")), "{text}");
    }
    assert_eq!(text.lines().filter(|line| line.contains("benchmark")).count(), 2 * MODELS.len());
    assert!(world.run(&["--bench", "^nothing/"], &[]).status.success());
    assert!(!world.path("loaded-first").exists());
    assert!(world.records().is_empty());
}

fn a_filter_and_a_tier_choose() {
    let world = World::new();
    let output = world.run(&["--bench", "^tiny/(first|last)/"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let ids: Vec<_> = world.records().into_iter().map(|record| record.id).collect();
    assert_eq!(ids, ["tiny/first/own-f32-cpu", "tiny/last/own-f32-cpu"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let end: Vec<&str> = text.lines().rev().take(10).collect();
    assert!(end[0].starts_with("report      candlepower report ") && text.contains("\nmachine     "), "{text}");
    assert!(end.iter().any(|line| line.starts_with("benchmarks  2 measured, 0 failed")), "{text}");
    assert!(!world.path("loaded-panics").exists());
    let output = world.run(&["--bench", "--list"], &[("CANDLEPOWER_TIER", "quick")]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("small/"));
}

/// A model that holds one sequence runs a batch one sequence after the other. Its ids carry the batch unless it is 1.
fn batches_of_the_settings_run() {
    let world = World::new();
    let output = world.run(&["--bench", "^(tiny|small)/last"], &[("CANDLEPOWER_BATCH", "1,3")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let records = world.records();
    let found = |id: &str| {
        let record = records.iter().find(|record| record.id == id).expect(id);
        let Some(Measures::Generation(measures)) = &record.measures else { panic!("{record:?}") };
        (record, measures)
    };
    let (alone, of_one) = found("tiny/last/own-f32-cpu");
    let (batch, of_three) = found("tiny/last-b3/own-f32-cpu");
    assert_eq!((of_one.batch, alone.subject.sizes.len()), (None, 0));
    assert_eq!((of_three.batch, batch.subject.sizes["batch"]), (Some(3), 3));
    // Three sequences take three times as long, less what varies.
    let ratio = of_three.total_ms / of_one.total_ms;
    assert!(ratio > 2.0 && ratio < 4.5, "{ratio}");
    assert_ne!(of_one.token_digest, of_three.token_digest);
    let [compared] = found("small/last-b3/own-f32-cpu").0.ratios.as_slice() else { panic!("{records:?}") };
    assert_eq!(compared.to, "tiny/last-b3/own-f32-cpu");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("sequence"), "{text}");
    let refused = world.run(&["--bench", "^tiny/last"], &[("CANDLEPOWER_BATCH", "1025")]);
    assert!(stderr(&refused).contains("batch=1025: at most 1024 sequences"), "{}", stderr(&refused));
}

fn a_smoke_test_runs_but_keeps_nothing() {
    let world = World::new();
    assert!(world.run(&["--bench", "--test", "first"], &[]).status.success());
    assert!(world.path("loaded-first").exists());
    assert!(world.records().is_empty());
    assert!(!world.run(&["--bench", "--test", "nan"], &[]).status.success());
}

/// Criterion's options work as usual.
fn baselines_are_kept_and_compared() {
    let world = World::new();
    assert!(world.run(&["--bench", "^tiny/first", "--save-baseline", "before"], &[]).status.success());
    let output = world.run(&["--bench", "first", "--baseline", "before"], &[]);
    assert!(output.status.success(), "the baseline lacks small/first: {}", stderr(&output));
    let compared = String::from_utf8_lossy(&output.stdout);
    for part in ["A is before", "B is this run", "For 1 benchmark, a typical spread is assumed"] {
        assert!(compared.contains(part), "{part} is missing from {compared}");
    }
    let of_first = |record: &Record| record.id.starts_with("tiny/first") && record.between_runs.is_some();
    assert!(world.records().iter().any(of_first), "its record says how much it varies");
    let output = world.run(&["--bench", "first", "--baseline", "never"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let named = ": saved are before; --save-baseline never saves one";
    assert!(stderr(&output).contains(named) && world.path("loaded-first").exists(), "{}", stderr(&output));
    let arguments = ["--bench", "^tiny/first", "--sample-size", "12"];
    let output = world.run(&[arguments.as_slice(), &["--verbose"]].concat(), &[]);
    assert!(stderr(&output).contains("Collecting 12 samples"), "{}", stderr(&output));
    let output = world.run(&arguments, &[]);
    let printed = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
    for part in ["Collecting", "Gnuplot", "time:", "change:", "Performance has"] {
        assert!(!printed.contains(part), "{part} describes a replay: {printed}");
    }
}

/// Prints one line and exits with code 2 if the target cannot start.
fn what_can_not_start_says_why() {
    let world = World::new();
    fs::write(world.path("a-file"), "").expect("written");
    for (arguments, environment, part) in [
        (&["--bench"] as &[&str], ("CANDLEPOWER_TIER", "all"), "CANDLEPOWER_TIER='all'"),
        (&["--bench"], ("CANDLEPOWER_OUT", "a-file/out"), "set CANDLEPOWER_OUT"),
        (&["--bench", "["], ("X", ""), "the filter '[' is no regular expression"),
        (&["--bench", "--sample-size", "5"], ("X", ""), "sample"),
    ] {
        let output = world.run(arguments, &[environment]);
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{part}: {errors}");
        // Criterion prints which plotting backend it found.
        let lines: Vec<_> = errors.lines().filter(|line| !line.contains("Gnuplot")).collect();
        assert!(lines.len() == 1 && lines[0].contains(part), "{part} is missing from: {errors}");
    }
    assert!(!world.path("loaded-first").exists());
}

/// The targets of one `cargo bench` join its run. A target that is started by hand gets its own run.
fn targets_of_one_cargo_share_a_run() {
    let world = World::new();
    let as_cargo = [("CARGO", "cargo")];
    world.run(&["--bench", "^tiny/first"], &as_cargo);
    world.run(&["--bench", "^tiny/last"], &as_cargo);
    let runs = |folder: &Path| fs::read_dir(folder).expect("runs").count();
    assert_eq!((runs(&world.path("out")), world.records().len()), (1, 2));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.run(&["--bench", "^tiny/last"], &[]);
    assert_eq!(runs(&world.path("out")), 2);
    world.run(&["--bench", "^tiny/last"], &[("CANDLEPOWER_RUN", "mine")]);
    assert!(world.path("out/mine/records.jsonl").is_file());
    let output = world.run(&["--bench", "^tiny/last"], &[("CANDLEPOWER_RUN", "../elsewhere")]);
    assert!(stderr(&output).contains("can't be the name of a file or folder") && !world.path("elsewhere").exists());
}

/// The command of a record runs in a shell, with a `cargo` that starts this target with the arguments after `--`.
#[cfg(all(unix, feature = "cli"))]
fn a_record_is_repeated_by_its_command() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let settings = [("CANDLEPOWER_SEED", "7"), ("CANDLEPOWER_THREADS", "1"), ("CANDLEPOWER_RUN", "first")];
    assert!(world.run(&["--bench", "^tiny/(first|last)"], &settings).status.success());
    let record = world.records().pop().expect("a record");
    let command = runner::reproduction(&record).expect("a command");
    assert_eq!(command, "CANDLEPOWER_SEED=7 CANDLEPOWER_THREADS=1 cargo bench -- '^tiny/last/own-f32-cpu$'");

    let cargo = world.path("cargo");
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$TARGET\" --bench \"$@\" {}\n",
        SHORT.join(" ")
    );
    fs::write(&cargo, script).expect("written");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let path = format!("{}:{}", world.0.path().display(), std::env::var("PATH").unwrap_or_default());
    let target = world.command(&[], &[("CANDLEPOWER_RUN", "second")]);
    let mut shell = Command::new("sh");
    for (key, value) in target.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    shell.args(["-c", &command]).current_dir(world.0.path()).env("PATH", path).env("TARGET", target.get_program());
    let output = shell.output().expect("a shell");
    assert!(output.status.success(), "{}", stderr(&output));
    let records = world.records();
    let [.., again] = records.as_slice() else { panic!("no record") };
    assert_eq!((records.len(), again.run.as_str(), again.id.as_str()), (3, "second", record.id.as_str()));
    let digest = |record: &Record| record.measures.as_ref().and_then(|m| Some(m.output_digest()?.to_owned()));
    assert_eq!(digest(again), digest(&record));
    for setting in ["seed", "threads"] {
        assert_eq!(again.settings[setting], record.settings[setting]);
    }
}

#[cfg(not(all(unix, feature = "cli")))]
fn a_record_is_repeated_by_its_command() {}

/// A pipe whose reader is closed, as `head` leaves it.
fn closed() -> Stdio {
    io::pipe().expect("a pipe").1.into()
}

/// Criterion prints with macros that panic then. No record is lost.
fn closed_streams_lose_no_record() {
    let full = || OpenOptions::new().write(true).open("/dev/full").map_or_else(|_| closed(), Stdio::from);
    let has_full = Path::new("/dev/full").exists();
    for (stdout, stderr, code) in [
        (closed(), Stdio::piped(), 0),
        (Stdio::null(), closed(), 0),
        (closed(), closed(), 0),
        (full(), Stdio::piped(), if has_full { 2 } else { 0 }),
    ] {
        let world = World::new();
        let arguments = [&["--bench", "^(tiny|small)/(first|last)/"] as &[_], &SHORT].concat();
        let mut command = world.command(&arguments, &[]);
        let output = command.stdout(stdout).stderr(stderr).output().expect("it starts");
        let errors = self::stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(!errors.contains("panic") && !errors.contains("failed printing"), "{errors}");
        let records = world.records();
        assert_eq!(records.len(), 4, "{errors}");
        for record in &records {
            assert_eq!(record.status, Status::Measured, "{:?}", record.reason);
            let Some(Measures::Generation(measures)) = &record.measures else { panic!("{record:?}") };
            assert_eq!(measures.samples, 10);
        }
        if code == 2 {
            assert!(errors.contains("error: output was lost: No space left on device"), "{errors}");
        }
    }
}

/// Measures in a process of its own, in which Criterion's folder is a file system of so few kilobytes.
fn a_full_folder_of_criterion_loses_no_record() {
    for kilobytes in [4, 20, 200, 600] {
        let world = World::new();
        fs::create_dir(world.path("criterion")).expect("a folder");
        let arguments = [&["--bench", "^(tiny|small)/(first|fails|last)/"] as &[_], &SHORT].concat();
        let inner = world.command(&arguments, &[]);
        let mut command = Command::new("unshare");
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let mount = format!("mount -t tmpfs -o size={kilobytes}k tmpfs criterion || exit 99");
        command.args(["-rm", "sh", "-c", &format!("{mount}; exec \"$0\" \"$@\"")]);
        command.arg(inner.get_program()).args(inner.get_args()).current_dir(world.0.path());
        let output = match command.output() {
            Ok(output)
                if output.status.code() != Some(99) && output.status.code() != Some(1)
                    || !world.records().is_empty() =>
            {
                output
            }
            _ => return println!("skipped: this system gives no small file system to a test"),
        };
        let (errors, text) = (stderr(&output), String::from_utf8_lossy(&output.stdout).into_owned());
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(!errors.contains("panicked") && !errors.contains("called `"), "{kilobytes} kB: {errors}");
        let statuses: Vec<_> = world.records().into_iter().map(|record| record.status).collect();
        let expected = [Status::Measured, Status::Failed, Status::Measured].repeat(2);
        assert_eq!(statuses, expected, "{kilobytes} kB: {errors}");
        // The tables and the failures of the whole run.
        let has_row = |model: &str| text.lines().any(|line| line.starts_with("tiny ") && line.contains(model));
        assert!(text.contains("Records: out/") && has_row(" first ") && has_row(" last "), "{text}");
        assert!(errors.contains("error: 2 of 6 benchmarks failed") && errors.contains("this model fails"), "{errors}");
        if errors.contains("Criterion's report was not written") {
            assert!(errors.contains("set CRITERION_HOME"), "{errors}");
        }
    }
}

fn a_name_of_two_models_is_refused_once() {
    let world = World::new();
    let output = world.run(&["--bench", "^(tiny|small)/first/"], &[(TWICE, "1")]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let told = "first/own-f32-cpu: two models have this name; only the first is measured: rename the other";
    // When it is found, and in the list of failures.
    assert_eq!(errors.matches(told).count(), 2, "{errors}");
    let records = world.records();
    assert!(records.len() == 2 && records.iter().all(|record| record.status == Status::Measured), "{errors}");
}

/// Criterion's options are read by the suite too.
fn options_that_are_not_utf8_or_too_large_are_refused() {
    let world = World::new();
    for (option, value) in [("--sample-size", "1000000000000"), ("--nresamples", "1000000000000000000")] {
        let output = world.run(&["--bench", option, value], &[]);
        let errors = stderr(&output);
        assert!(output.status.code() == Some(2) && errors.contains(&format!("{option} {value}: expected")), "{errors}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let mut command = world.command(&["--bench"], &[]);
        let output = command.arg(std::ffi::OsStr::from_bytes(b"tiny\xff")).output().expect("it starts");
        assert!(!output.status.success() && !stderr(&output).contains("panic"), "{}", stderr(&output));
    }
}

/// The program of a baseline is kept, and measured in turns with another one.
#[cfg(unix)]
fn a_baseline_is_measured_in_turns_with_its_program() {
    let world = World::new();
    let filter = ["--bench", "^tiny/first"];
    let saved = world.run(&[&filter[..], &["--save-baseline", "before"]].concat(), &[]);
    assert!(saved.status.success(), "{}", stderr(&saved));
    let program = std::env::current_exe().expect("this program");
    let kept = world.path("criterion/candlepower-programs/before/bench_target");
    assert_eq!(fs::read(&kept).expect("the program"), fs::read(&program).expect("this program"));
    let compare = || world.run(&[&filter[..], &["--baseline", "before"]].concat(), &[]);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let in_turns = |output: &Output| text(output).contains("ratios B / A");
    assert!(!in_turns(&compare()), "the same program is not measured again");

    // Its steps take three milliseconds instead of two.
    let earlier = format!("#!/bin/sh\n{STEP_MS}=3 exec '{}' \"$@\"\n", program.display());
    fs::write(&kept, earlier).expect("written");
    let output = compare();
    assert!(output.status.success() && in_turns(&output), "{}{}", text(&output), stderr(&output));
    assert!(text(&output).contains(" faster "), "{}", text(&output));

    fs::write(&kept, "#!/bin/sh\nexit 3\n").expect("written");
    let output = compare();
    let reason = "the program of baseline before could not be measured in turns with this one: side A (before)";
    assert!(output.status.success() && stderr(&output).contains(reason), "{}", stderr(&output));
    assert!(!in_turns(&output) && text(&output).contains("before"), "the two runs are compared: {}", text(&output));
}

#[cfg(not(unix))]
fn a_baseline_is_measured_in_turns_with_its_program() {}

fn main() -> ExitCode {
    if std::env::var_os(BENCH_TARGET).is_some() {
        return bench_target();
    }
    side_by_side::run(
        &[
            ("failures_are_isolated", failures_are_isolated),
            ("records_hold_criterions_samples", records_hold_criterions_samples),
            ("closed_streams_lose_no_record", closed_streams_lose_no_record),
            ("a_full_folder_of_criterion_loses_no_record", a_full_folder_of_criterion_loses_no_record),
            ("a_panic_says_where_it_happened", a_panic_says_where_it_happened),
            ("what_is_not_paired_says_why", what_is_not_paired_says_why),
            ("a_list_loads_nothing", a_list_loads_nothing),
            ("a_filter_and_a_tier_choose", a_filter_and_a_tier_choose),
            ("a_smoke_test_runs_but_keeps_nothing", a_smoke_test_runs_but_keeps_nothing),
            ("baselines_are_kept_and_compared", baselines_are_kept_and_compared),
            ("what_can_not_start_says_why", what_can_not_start_says_why),
            ("targets_of_one_cargo_share_a_run", targets_of_one_cargo_share_a_run),
            ("a_name_of_two_models_is_refused_once", a_name_of_two_models_is_refused_once),
            ("options_that_are_not_utf8_or_too_large_are_refused", options_that_are_not_utf8_or_too_large_are_refused),
        ],
        &[
            ("compared_benchmarks_are_measured_in_turns", compared_benchmarks_are_measured_in_turns),
            ("loads_are_measured_in_turns", loads_are_measured_in_turns),
            ("a_disturbed_run_is_no_baseline", a_disturbed_run_is_no_baseline),
            ("batches_of_the_settings_run", batches_of_the_settings_run),
            ("a_record_is_repeated_by_its_command", a_record_is_repeated_by_its_command),
            ("a_baseline_is_measured_in_turns_with_its_program", a_baseline_is_measured_in_turns_with_its_program),
        ],
    );
    ExitCode::SUCCESS
}
