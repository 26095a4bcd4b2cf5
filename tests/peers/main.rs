//! Tests peers. With `BENCH_TARGET` set, this program is a bench target with short scenarios. Under `cargo test`, it runs itself
//! as a target with peers that misbehave in every possible way. Skips, with a message, what Python is missing for.

// Without the test harness, lints do not know that this is a test.
#![allow(clippy::print_stderr, clippy::print_stdout)]

#[path = "../side_by_side/mod.rs"]
mod side_by_side;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use candlepower::{
    runner::Candidate,
    settings::Settings,
    workload::{
        language_subject,
        series::{SeriesGrid, series_subject},
    },
};
use candlepower_core::{
    generate,
    measure::CountingAllocator,
    model,
    record::{Generation, Measures, Record, Status},
    scenario::{self, Counterpart, Sampling, TRAINING_SWEEP, Tier, TrainingGrid},
};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BENCH_TARGET: &str = "BENCH_TARGET";

const PROMPT_TOKENS: usize = 12;
const NEW_TOKENS: usize = 8;

fn bench_target() -> ExitCode {
    let scenario = |key, sampling| scenario::Generation {
        key,
        prompt_tokens: PROMPT_TOKENS,
        new_tokens: NEW_TOKENS,
        sampling,
        tier: Tier::Quick,
        against: None,
        purpose: "to be looked at",
    };
    let drawn = Sampling { temperature: 0.8, ..Sampling::GREEDY };
    let scenarios = [scenario("tiny", Sampling::GREEDY), scenario("drawn", drawn)];
    candlepower::main(|suite| {
        let candidates = Candidate::from_settings(suite.settings());
        suite.generation(&scenarios, candidates);
        suite.target("training");
        suite.target("sweep");
    })
}

/// Each fault, and a part of the reason of the failed record.
const FAULTS: [(&str, &str); 15] = [
    ("dies", "peer dies ended (exit status: 1): out of luck \\u{1b}[2J!!!"),
    ("hangs", "peer hangs: it did not answer within 2 s"),
    ("lengths", "it sent 2 tokens and 1 times instead of 1 and 1"),
    ("garbage", "'Loading checkpoint shards: 100%' is not a message of the protocol"),
    ("long-line", "it sent a line of over 4194304 bytes"),
    ("version", "it speaks version 7 of the protocol, and this program versions 1 to 3"),
    ("negative", "its answer is wrong: invalid value: integer `-5`, expected u64"),
    ("sizes", "its answer is wrong: 18446744073709551615 bytes or parameters are more than any machine holds"),
    ("nan", "is not a message of the protocol: expected value"),
    ("clock", "its times add up to 1000000.000 s, but its answer came after 0."),
    ("vocabulary", "it chose token 16384, but the vocabulary of the model has 16384 tokens"),
    ("refuses", "peer refuses: no memory\\nis left"),
    ("other-model", "it loaded a model of 1 parameters instead of 31201792"),
    ("closes", "peer closes closed its output"),
    ("missing", "peer missing could not be started: /no/such/program"),
];

/// The same for trainings.
const TRAINING_FAULTS: [(&str, &str); 11] = [
    ("dies", "peer dies ended (exit status: 1): out of luck \\u{1b}[2J!!!"),
    ("dies-later", "peer dies-later ended (exit status: 1): killed in the middle"),
    ("hangs", "peer hangs: it did not answer within 2 s"),
    ("garbage", "'Loading checkpoint shards: 100%' is not a message of the protocol"),
    ("clock", "its times add up to 1000000.000 s, but its answer came after 0."),
    ("losses", "it sent 1 times and 2 losses instead of 1 and 1"),
    ("nan-loss", "is not a message of the protocol: expected value"),
    ("diverges", "it diverged: the loss of step 1 is not a finite number"),
    ("refuses", "peer refuses: no memory\\nis left"),
    ("other-model", "it loaded a model of 1 parameters instead of"),
    ("missing", "peer missing could not be started: /no/such/program"),
];

/// Small sizes of the groups of trainings.
const SMALL: &str = "seq = [16]\nbatch = [1]\nprecision = ['f32']\n";

struct World(TempDir);

impl World {
    /// A folder with the settings file `toml`.
    fn new(toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("candlepower.toml"), toml).expect("written");
        Self(folder)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.start(&[&["--bench"], arguments].concat())
    }

    /// Runs each benchmark once, without measuring.
    fn run_once(&self, arguments: &[&str]) -> Output {
        self.start(&[&["--bench", "--test"], arguments].concat())
    }

    fn start(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CANDLEPOWER_")) {
            command.env_remove(name);
        }
        // Cargo's variables would make the target join a run.
        command.env_remove("CARGO").env_remove("RUST_BACKTRACE").env(BENCH_TARGET, "1");
        command.env("CRITERION_HOME", self.0.path().join("criterion")).env("CANDLEPOWER_OUT", "out");
        command.args(arguments).current_dir(self.0.path()).output().expect("it starts")
    }

    /// Returns the records of the last run.
    fn records(&self) -> Vec<Record> {
        let runs = fs::read_dir(self.0.path().join("out")).expect("runs");
        let files = runs.map(|run| run.expect("a run").path().join("records.jsonl")).filter(|file| file.is_file());
        let last = files.max().expect("a run");
        let text = fs::read_to_string(last).expect("records");
        text.lines().map(|line| serde_json::from_str(line).expect("a record a line")).collect()
    }
}

/// The records of engine `tuned`, each with that of a peer for the same model and batch.
fn pairs<'a>(records: &'a [Record]) -> Vec<[&'a Record; 2]> {
    let (tuned, peers): (Vec<&'a Record>, Vec<&Record>) =
        records.iter().partition(|record| record.subject.engine == "tuned");
    let with_peer = |tuned: &'a Record| {
        let same = peers.iter().find(|peer| peer.subject.model == tuned.subject.model);
        [tuned, *same.unwrap_or_else(|| panic!("{} has no peer", tuned.id))]
    };
    tuned.into_iter().map(with_peer).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn generation(record: &Record) -> &Generation {
    match &record.measures {
        Some(Measures::Generation(measures)) => measures,
        _ => panic!("{}: {:?}", record.id, record.reason),
    }
}

fn has_python(imports: &str) -> bool {
    let python = Command::new("python3").args(["-c", imports]).output();
    let is_there = python.is_ok_and(|output| output.status.success());
    if !is_there {
        println!("skipped: python3 -c '{imports}' does not run");
    }
    is_there
}

/// Entries of the peer of this folder: a good one, and one for each fault.
fn entries() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/peer.py");
    let counts = parameters().map(|count| format!("'{count}'")).join(", ");
    let entry = |name: &str| match name {
        "missing" => "[peers.missing]\ncommand = '/no/such/program'\n".to_owned(),
        _ => {
            let script = script.display();
            format!("[peers.{name}]\ncommand = ['python3', '{script}', '{name}', {counts}]\ntimeout_s = 2\n")
        }
    };
    let faults = FAULTS.iter().chain(&TRAINING_FAULTS).map(|(name, _)| *name);
    let others = ["plain", "other-dtype", "only-generates", "first-version"].into_iter();
    others.chain(faults).collect::<BTreeSet<_>>().into_iter().map(entry).collect()
}

/// Parameters of the models that the peer of this folder loads: of `llama-mini`, of the small language model, and of the first
/// network of the sweep that the tests select.
fn parameters() -> [u64; 3] {
    let grid = TrainingGrid { tokens_per_row: vec![16], rows: vec![1], ..TrainingGrid::default() };
    let trained = TRAINING_SWEEP[0].entries(Tier::Quick, &grid).remove(0);
    let language = language_subject(&trained, &Settings::default()).expect("a model");
    let grid = SeriesGrid::preset("smoke").expect("a preset");
    let combinations = grid.combinations().expect("combinations");
    let state_space = combinations.iter().find(|combination| combination.name.starts_with("state_space-d48-l2"));
    let series = series_subject(state_space.expect("a network"), &grid);
    let llama = model::shape("llama-mini").expect("a shape").parameters();
    [llama, language.parameters.expect("a count"), series.parameters.expect("a count")]
}

/// A failed record has the reason, in one line without control characters, and so has standard error.
fn check_failure(record: &Record, part: &str, errors: &str) {
    let reason = record.reason.as_deref().expect("a reason");
    assert!(reason.contains(part) && reason.lines().count() == 1, "{}: {part} is missing from: {reason}", record.id);
    assert!(reason.len() < 1000 && !reason.contains('\u{1b}'), "{reason}");
    assert!(record.status == Status::Failed && record.measures.is_none() && errors.contains(reason));
}

fn every_fault_gives_a_failed_record() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let names: Vec<String> = FAULTS.iter().map(|(name, _)| format!("'peer:{name}'")).collect();
    let settings = format!("engine = [{}, 'peer:plain']\nmodels = ['llama-mini']\npairing = false\n", names.join(", "));
    let world = World::new(&(settings + &entries()));
    let output = world.run(&["^tiny/"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let records = world.records();
    assert_eq!(records.len(), FAULTS.len() + 1);
    for ((name, part), record) in FAULTS.iter().zip(&records) {
        assert_eq!(record.subject.engine, *name);
        check_failure(record, part, &errors);
    }
    assert_eq!(records[FAULTS.len()].status, Status::Measured);
}

/// A peer is measured in turns with the engines, and a failure affects nothing else.
fn peers_stand_beside_the_engines() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let engines = "engine = ['stock', 'tuned', 'peer:plain', 'peer:dies']\nmodels = ['llama-mini']\n";
    let world = World::new(&(engines.to_owned() + &entries()));
    let output = world.run(&["^tiny/"]);
    let (errors, shown) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let records = world.records();
    let [stock, tuned, plain, dead] = records.as_slice() else { panic!("{records:?}") };
    check_failure(dead, FAULTS[0].1, &errors);

    let ratios = |record: &Record| -> Vec<(Counterpart, String)> {
        record.ratios.iter().map(|ratio| (ratio.counterpart, ratio.to.clone())).collect()
    };
    assert_eq!(ratios(stock), []);
    assert_eq!(
        ratios(tuned),
        [(Counterpart::Stock, stock.id.clone()), (Counterpart::Peer, plain.id.clone())],
        "peers that failed have no ratio"
    );
    assert_eq!(ratios(plain), [(Counterpart::Stock, stock.id.clone())]);
    // Ten samples, each in some slices.
    let pairs = plain.ratios[0].pairs;
    assert!(pairs >= 10 && pairs.is_multiple_of(10), "{pairs} pairs");

    let measures = generation(plain);
    assert_eq!((measures.samples, measures.prompt_tokens, measures.generated_tokens), (10, PROMPT_TOKENS, NEW_TOKENS));
    assert_eq!(measures.token_digest, generate::digest(&[0, 0, 1, 2, 3, 4, 5, 6]));
    assert!((measures.ttft_ms - 1.0).abs() < 1e-9 && measures.tpot_ms.is_some_and(|ms| (ms - 1.0).abs() < 1e-9));
    assert_eq!((measures.cache_allocated_bytes, measures.peak_bytes, measures.sampling_share), (4096, None, None));
    for field in ["peak_bytes", "sampling_share"] {
        assert!(plain.unmeasured.contains_key(field), "{field} has no reason");
    }
    // The requirements of a model do not depend on who runs it.
    assert_eq!((measures.work, measures.cache_used_bytes), {
        let tuned = generation(tuned);
        (tuned.work, tuned.cache_used_bytes)
    });
    assert!(measures.mbu.is_some() && measures.mfu.is_some());
    let peer = plain.subject.peer.as_ref().expect("a peer");
    assert_eq!((peer.name.as_str(), peer.version.as_str()), ("plain", "1.0"));
    assert!(peer.command.starts_with("python3 ") && stock.subject.peer.is_none());
    assert_eq!((plain.subject.parameters, plain.subject.synthetic_weights), (Some(31_201_792), true));
    assert_eq!(plain.deviates, None);

    for part in ["time / stock", "time / peer", "Peer plain is plain 1.0. It draws other weights."] {
        assert!(shown.contains(part), "{part} is missing from:\n{shown}");
    }
    assert!(!shown.contains("tokens differ"), "weights that are drawn twice differ:\n{shown}");
}

/// A benchmark that a peer does not support is no failure.
fn what_a_peer_does_not_support_is_left_out() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let engines = "engine = ['tuned', 'peer:plain', 'peer:other-dtype']\nmodels = ['llama-mini']\n";
    let world = World::new(&(engines.to_owned() + &entries()));
    let output = world.run(&["^(tiny|drawn)/"]);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let records = world.records();
    let statuses: Vec<(&str, Status)> = records.iter().map(|record| (record.id.as_str(), record.status)).collect();
    assert_eq!(
        statuses,
        [
            ("tiny/llama-mini/tuned-f32-cpu", Status::Measured),
            ("tiny/llama-mini/plain-f32-cpu", Status::Measured),
            ("tiny/llama-mini/other-dtype-f32-cpu", Status::Excluded),
            ("drawn/llama-mini/tuned-f32-cpu", Status::Measured),
            ("drawn/llama-mini/plain-f32-cpu", Status::Excluded),
            ("drawn/llama-mini/other-dtype-f32-cpu", Status::Excluded),
        ]
    );
    let drawn = "peer plain does not support it: it chooses tokens by argmax only";
    let dtype = "peer other-dtype does not support it: it computes in f64 only";
    for (place, reason) in [(2, dtype), (4, drawn), (5, dtype)] {
        assert_eq!(records[place].reason.as_deref(), Some(reason));
        assert!(errors.contains(&format!("{}: excluded: {reason}", records[place].id)), "{errors}");
    }
    assert!(text(&output.stdout).contains("3 measured, 0 failed"));
    assert_eq!(records[0].ratios.len(), 1);
    assert!(records[3].ratios.is_empty());
}

/// A peer generates the sequences of a batch together, as many as it says.
fn peers_generate_batches() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let engines = "engine = ['tuned', 'peer:plain', 'peer:first-version']\nmodels = ['llama-mini']\nbatch = [3, 5]\n";
    let world = World::new(&(engines.to_owned() + &entries()));
    let output = world.run(&["^tiny/"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut measured = 0;
    for record in world.records() {
        let (Some(batch), engine) = (record.subject.sizes.get("batch"), record.subject.engine.as_str()) else {
            panic!("{} has no batch", record.id)
        };
        let most = match (engine, batch) {
            ("plain", 5) => Some(4),
            ("first-version", _) => Some(1),
            _ => None,
        };
        if let Some(most) = most {
            let reason = format!("peer {engine} does not support it: it generates at most {most} sequences at once");
            assert_eq!((record.status, record.reason.as_deref()), (Status::Excluded, Some(reason.as_str())));
            continue;
        }
        measured += 1;
        let measures = generation(&record);
        assert_eq!((measures.batch, measures.generated_tokens), (Some(*batch as usize), NEW_TOKENS));
        if engine == "plain" {
            let of_sequence = |first: u32| [vec![first], (first..first + NEW_TOKENS as u32 - 1).collect()].concat();
            let tokens = (0..3).flat_map(of_sequence).collect::<Vec<_>>();
            assert_eq!(measures.token_digest, generate::digest(&tokens));
        }
    }
    assert_eq!(measured, 3);
}

/// A peer that fails in a training affects nothing else, and is told apart from one that does not train.
fn every_fault_of_a_training_gives_a_failed_record() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let names: Vec<String> = TRAINING_FAULTS.iter().map(|(name, _)| format!("'peer:{name}'")).collect();
    let engines = format!("engine = ['peer:plain', {}, 'peer:first-version']\n", names.join(", "));
    let world = World::new(&(engines + SMALL + &entries()));
    let output = world.run(&["^training_sweep_train/"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let records = world.records();
    let [own, plain, faulty @ .., first] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((own.status, plain.status, faulty.len()), (Status::Measured, Status::Measured, TRAINING_FAULTS.len()));
    for ((name, part), record) in TRAINING_FAULTS.iter().zip(faulty) {
        assert_eq!(record.subject.engine, *name);
        assert_eq!(record.first_non_finite_step, (*name == "diverges").then_some(1));
        check_failure(record, part, &errors);
    }
    assert_eq!(own.ratios.len(), 1, "peers that failed have no ratio");
    assert_eq!(first.status, Status::Excluded, "peers of version 1 generate only");
}

/// Trainings and the sweep run on candlepower and on peers, in turns.
fn peers_train_beside_candlepower() {
    if !has_python("match 0:\n case _: pass") {
        return;
    }
    let engines = "engine = ['tuned', 'peer:plain', 'peer:only-generates']\n";
    let world = World::new(&(engines.to_owned() + &SMALL.replace("16", "16, 32") + &entries()));
    let output = world.run(&["(training_sweep|architecture_sweep)_[a-z]*/(respsann|state_space-d48-l2)"]);
    let (errors, shown) = (text(&output.stderr), text(&output.stdout));
    assert!(output.status.success(), "{errors}");
    let records = world.records();
    assert_eq!(records.len(), 18, "two groups with two lengths, and two groups of the sweep");
    for group in records.chunks(3) {
        let [own, plain, left_out] = group else { panic!("a group") };
        assert_eq!((own.subject.engine.as_str(), plain.subject.engine.as_str()), ("tuned", "plain"));
        assert_eq!(own.subject.parameters, plain.subject.parameters);
        let [ratio] = own.ratios.as_slice() else { panic!("{}: {:?}", own.id, own.ratios) };
        assert_eq!((ratio.counterpart, &ratio.to), (Counterpart::Peer, &plain.id));
        assert!(plain.ratios.is_empty() && ratio.pairs >= 10, "{ratio:?}");
        let reason = left_out.reason.as_deref().expect("a reason");
        assert_eq!(left_out.status, Status::Excluded);
        assert!(reason.starts_with("peer only-generates does not support it: it does not "), "{reason}");
        assert!(reason.ends_with(", it does generate") && plain.subject.peer.is_some() && own.subject.peer.is_none());

        let measures = plain.measures.as_ref().expect("measures");
        assert_eq!(measures.sample_ms(), [1.0; 10]);
        // The first step of each block of five is not counted.
        let steps = |record: &Record| match record.measures.as_ref().expect("measures") {
            Measures::Training(measures) => measures.steps,
            Measures::Sweep(measures) => measures.steps,
            other => panic!("{other:?}"),
        };
        assert!(steps(plain) >= 40 && steps(plain).is_multiple_of(10) && steps(own) >= 40, "{}", own.id);
        match measures {
            Measures::Training(measures) => {
                assert_eq!(measures.tokens_per_s, 1e3 * measures.batch_tokens as f64);
                let losses = measures.stability.as_ref().map(|stability| &stability.losses);
                let is_trained = plain.scenario == "training_sweep_train";
                assert_eq!(losses.is_some_and(|losses| *losses == vec![2.5; measures.steps]), is_trained);
            }
            Measures::Sweep(measures) => {
                let is_trained = plain.scenario == "architecture_sweep_train";
                assert_eq!(measures.last_loss, is_trained.then_some(2.5));
                assert_eq!(measures.windows_per_s, 8_000.0);
            }
            other => panic!("{other:?}"),
        }
        assert!(plain.unmeasured.contains_key("peak_bytes"), "{:?}", plain.unmeasured);
    }
    assert_eq!(errors.matches(": excluded: ").count(), 4, "one line for each group:\n{errors}");
    for part in ["time / peer", "Peer plain is plain 1.0."] {
        assert!(shown.contains(part), "{part} is missing from:\n{shown}");
    }
}

/// PyTorch builds each language model and each network with as many parameters, and runs a step of each.
fn torch_runs_every_model_that_is_trained() {
    if !has_python("import torch, psannlm") {
        return;
    }
    for precision in ["f32", "bf16"] {
        let settings = format!("engine = ['peer:torch']\ndtype = '{precision}'\nseq = [16]\nbatch = [1]\n");
        let output = World::new(&settings).run_once(&["/torch-"]);
        let (errors, shown) = (text(&output.stderr), text(&output.stdout));
        assert!(output.status.success(), "{errors}");
        let ran = shown
            .lines()
            .filter(|line| line.contains("/torch-") && line.starts_with("Testing") && !line.contains("-mini/"))
            .count();
        // Four bases and a small one, and the networks of the preset, each in two groups.
        assert_eq!(ran, 2 * (4 + 1) + 2 * 12, "{shown}");
    }
}

/// llama.cpp reads the file that its adapter writes, and chooses the tokens of engine `tuned`.
fn llama_cpp_chooses_the_tokens_of_tuned() {
    if !has_python("import llama_cpp, gguf") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let world = World::new("");
    for name in ["llama-mini", "qwen3-mini", "gemma3-mini"] {
        let program =
            "import gguf_file, json, sys; gguf_file.write_seeded(sys.argv[2], json.load(open(sys.argv[1])), 'f32', 1)";
        let shape = root.join("src/core/model/shapes").join(name).with_extension("json");
        let file = world.0.path().join(name).with_extension("gguf");
        let mut python = Command::new("python3");
        python.args(["-c", program]).args([&shape, &file]).env("PYTHONPATH", root.join("scripts/peers"));
        assert!(python.status().expect("it starts").success(), "{name}");
    }
    let settings = "models = ['path:llama-mini.gguf', 'path:qwen3-mini.gguf', 'path:gemma3-mini.gguf']\n";
    fs::write(
        world.0.path().join("candlepower.toml"),
        settings.to_owned() + "engine = ['tuned', 'peer:llama.cpp']\nbatch = [1, 3]",
    )
    .expect("written");
    let output = world.run(&["^tiny/"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records = world.records();
    assert_eq!(records.len(), 12);
    for pair in pairs(&records) {
        let ([tuned, peer], id) = (pair.map(generation), &pair[1].id);
        assert_eq!(tuned.token_digest, peer.token_digest, "{id}");
        assert_eq!(tuned.work, peer.work, "{id}");
    }
}

/// The seeded shapes run on llama.cpp in each precision, with the bytes that engine `tuned` reads for a token.
fn llama_cpp_runs_the_embedded_shapes() {
    if !has_python("import llama_cpp, gguf") {
        return;
    }
    for dtype in ["f16", "bf16", "q8_0", "q4k"] {
        let world = World::new(&format!("dtype = '{dtype}'\nengine = ['tuned', 'peer:llama.cpp']"));
        let output = world.run(&["^tiny/"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let records = world.records();
        assert_eq!(records.len(), 6);
        for pair in records.chunks(2) {
            assert_eq!(pair[1].status, Status::Measured);
            assert_eq!(generation(&pair[0]).work, generation(&pair[1]).work, "{}", pair[1].id);
        }
    }
}

/// JAX runs the shape of Llama and leaves the others out.
fn jax_runs_the_shape_of_llama() {
    if !has_python("import jax") {
        return;
    }
    for dtype in ["f32", "bf16"] {
        let world = World::new(&format!("dtype = '{dtype}'\nengine = ['tuned', 'peer:jax']"));
        let output = world.run(&["^tiny/"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let peers: Vec<Record> = world.records().into_iter().filter(|record| record.subject.engine == "jax").collect();
        let statuses: Vec<Status> = peers.iter().map(|record| record.status).collect();
        assert_eq!(statuses, [Status::Measured, Status::Excluded, Status::Excluded]);
    }
}

/// A list names peers without starting them, and an unknown one is refused at once.
fn a_list_starts_no_peer() {
    let world = World::new("engine = ['peer:missing']\nmodels = ['llama-mini']\n[peers.missing]\ncommand = '/no/such'");
    let output = world.run(&["--list"]);
    assert!(text(&output.stdout).contains("tiny/llama-mini/missing-f32-cpu: benchmark"), "{}", text(&output.stderr));
    let output = World::new("engine = ['peer:other']").run(&["--list"]);
    let errors = text(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains("engine peer:other: unknown peer 'other'"), "{errors}");
}

/// The fixtures were made by transformers, so that both engines read the same weights and must choose the same tokens.
fn transformers_chooses_the_tokens_of_tuned() {
    if !has_python("import torch, transformers") {
        return;
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/generation");
    let folder = |name: &str| -> PathBuf { fixtures.join(name) };
    let models = ["llama-gqa-tied", "llama-mha-untied", "qwen3-gqa-tied", "gemma3-short-window"].map(folder);
    let listed: Vec<String> = models.iter().map(|folder| format!("'path:{}'", folder.display())).collect();
    let world = World::new(&format!(
        "models = [{}]\nengine = ['tuned', 'peer:transformers']\nbatch = [1, 3]",
        listed.join(", ")
    ));
    let output = world.run(&["^tiny/"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records = world.records();
    assert_eq!(records.len(), 4 * models.len());
    for [tuned, peer] in pairs(&records) {
        assert_eq!((tuned.subject.engine.as_str(), peer.subject.engine.as_str()), ("tuned", "transformers"));
        assert_eq!(tuned.subject.model, peer.subject.model);
        let ([tuned, peer], id) = ([tuned, peer].map(generation), &peer.id);
        assert_eq!(tuned.token_digest, peer.token_digest, "{id}");
        assert_eq!(tuned.work, peer.work, "{id}");
        // A sliding layer of transformers keeps one token less than its window, because the next one is not in it yet.
        assert!(peer.cache_allocated_bytes > peer.cache_used_bytes / 2, "{id}");
        assert!(!cfg!(target_os = "linux") || peer.peak_bytes.is_some(), "{id}");
    }
}

/// The shapes with seeded weights load as well, in each dtype.
fn transformers_runs_the_embedded_shapes() {
    if !has_python("import torch, transformers") {
        return;
    }
    for dtype in ["f32", "bf16"] {
        let world = World::new(&format!("dtype = '{dtype}'\nengine = ['tuned', 'peer:transformers']"));
        let output = world.run(&["^tiny/"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let records = world.records();
        assert_eq!(records.len(), 6);
        for record in records {
            assert_eq!((record.status, &record.deviates), (Status::Measured, &None), "{}", record.id);
            assert_eq!(generation(&record).generated_tokens, NEW_TOKENS);
        }
        assert!(!text(&output.stdout).contains("tokens differ"));
    }
}

fn main() -> ExitCode {
    if std::env::var_os(BENCH_TARGET).is_some() {
        return bench_target();
    }
    side_by_side::run(
        &[
            ("every_fault_gives_a_failed_record", every_fault_gives_a_failed_record),
            ("peers_stand_beside_the_engines", peers_stand_beside_the_engines),
            ("peers_train_beside_candlepower", peers_train_beside_candlepower),
            ("what_a_peer_does_not_support_is_left_out", what_a_peer_does_not_support_is_left_out),
            ("peers_generate_batches", peers_generate_batches),
            ("every_fault_of_a_training_gives_a_failed_record", every_fault_of_a_training_gives_a_failed_record),
            ("a_list_starts_no_peer", a_list_starts_no_peer),
        ],
        &[
            ("torch_runs_every_model_that_is_trained", torch_runs_every_model_that_is_trained),
            ("llama_cpp_chooses_the_tokens_of_tuned", llama_cpp_chooses_the_tokens_of_tuned),
            ("llama_cpp_runs_the_embedded_shapes", llama_cpp_runs_the_embedded_shapes),
            ("jax_runs_the_shape_of_llama", jax_runs_the_shape_of_llama),
            ("transformers_chooses_the_tokens_of_tuned", transformers_chooses_the_tokens_of_tuned),
            ("transformers_runs_the_embedded_shapes", transformers_runs_the_embedded_shapes),
        ],
    );
    ExitCode::SUCCESS
}
