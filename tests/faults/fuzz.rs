//! Mutations of the files that others may have made: `config.json`, headers of safetensors and of GGUF files, records, and YAML.
//! No reader may panic, hang, or answer in more than its lines. `connections` does the same to what comes over a network.
//!
//! Each target runs the files of `tests/faults/corpus`, then seeded mutations for two seconds, or for as long as
//! `FUZZ_SECONDS` says. A mutation with a new outcome, such as another error, is mutated further. With `FUZZ_KEEP`, it is also
//! written to the corpus. A failure names its seed and leaves the input in the system's folder for temporary files; a copy in the
//! corpus keeps it from coming back.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use candlepower::{
    report::{compare, export, history, joined, table},
    train::TrainConfig,
    workload::series::{SeriesGrid, translate},
};
use candlepower_core::{
    config::Layers,
    device::{DeviceChoice, Precision},
    model::{Engine, ModelSpec, load},
    record,
};
use rand::{Rng, RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Longest time for one input.
pub const LONGEST: Duration = Duration::from_secs(20);

/// Inputs that are mutated at most.
const MOST_INPUTS: usize = 1000;

const FIXTURE: &str = "fixtures/generation/llama-gqa-tied";

pub fn seconds() -> u64 {
    std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Texts that readers find hard.
const HARD: [&[u8]; 24] = [
    b"0",
    b"-1",
    b"1e309",
    b"18446744073709551615",
    b"18446744073709551616",
    b"4611686018427387904",
    b"9223372036854775807",
    b"1000000000000",
    b"0.5",
    b"NaN",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"&a [*a, *a]",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\xf0\x9f\x92\xa9",
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
    b"\n",
    b"../../x",
];

/// Changes a few places of an input.
pub fn mutated(input: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut output = input.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let place = random.random_range(0..=output.len());
        let end = (place + random.random_range(0..=12)).min(output.len());
        match random.random_range(0..7) {
            0 if place < output.len() => output[place] ^= 1 << random.random_range(0..8),
            1 => drop(output.drain(place..end)),
            2 => drop(output.splice(place..end, HARD[random.random_range(0..HARD.len())].iter().copied())),
            3 => output.truncate(place.max(1)),
            4 => {
                let part = output[place..end].to_vec();
                drop(output.splice(place..place, part));
            }
            // A number becomes another.
            5 | 6 => {
                let is_digit = |place: &usize| output[*place].is_ascii_digit();
                if let Some(start) = (place..output.len()).find(is_digit) {
                    let end = (start..output.len()).find(|place| !is_digit(place)).unwrap_or(output.len());
                    drop(output.splice(start..end, HARD[random.random_range(0..HARD.len())].iter().copied()));
                }
            }
            _ => {}
        }
    }
    output
}

fn corpus_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/corpus").join(target)
}

/// The files of a target's corpus.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(corpus_of(target)).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files.iter().map(|file| fs::read(file).expect("a file")).collect()
}

/// Files that a target keeps at most.
const MOST_KEPT: usize = 32;

/// Size of the largest input that is kept.
const LARGEST_KEPT_BYTES: usize = 8 << 10;

/// Beginning of the name of an input that is kept.
const KEPT: &str = "kept-";

/// The outcomes of a target so far.
pub struct Outcomes {
    seen: BTreeSet<String>,
    /// Where mutations with new outcomes are kept.
    folder: Option<PathBuf>,
}

impl Outcomes {
    /// None yet. Mutations are kept in the corpus of the target if `FUZZ_KEEP` is set.
    pub fn of(target: &str) -> Self {
        let folder = std::env::var_os("FUZZ_KEEP").map(|_| corpus_of(target));
        Self { seen: BTreeSet::new(), folder }
    }

    /// Adds the outcome of an input that need not be kept.
    pub fn know(&mut self, outcome: String) {
        self.seen.insert(outcome);
    }

    /// Adds the outcome of a mutation, and keeps a small one whose outcome is new. Returns true if it is new.
    pub fn add(&mut self, input: &[u8], outcome: String) -> bool {
        let is_new = self.seen.insert(outcome);
        if let Some(folder) = self.folder.as_ref().filter(|_| is_new && input.len() <= LARGEST_KEPT_BYTES) {
            let names = fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").file_name());
            if names.filter(|name| name.to_string_lossy().starts_with(KEPT)).count() < MOST_KEPT {
                let mut hasher = DefaultHasher::new();
                input.hash(&mut hasher);
                fs::write(folder.join(format!("{KEPT}{:016x}", hasher.finish())), input).expect("written");
            }
        }
        is_new
    }
}

/// The words of a message that its input does not change: those in lower-case letters outside of quotation marks.
pub fn wording(message: &str) -> String {
    let is_word = |word: &&str| !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase());
    let unquoted = message.split(['"', '`']).step_by(2).flat_map(str::split_whitespace);
    let words = unquoted.map(|word| word.trim_end_matches([',', ';', ':', '.'])).filter(is_word);
    words.take(24).collect::<Vec<_>>().join(" ")
}

/// Runs the corpus and mutations of it and of the `seeds` through a reader, which returns the class of its answer.
pub fn fuzz(target: &str, seeds: &[Vec<u8>], read: impl Fn(&[u8]) -> String) {
    let mut inputs = corpus(target);
    let files = inputs.len();
    inputs.extend_from_slice(seeds);
    let run = |input: &[u8], about: &str| {
        let started = Instant::now();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| read(input)));
        match outcome {
            Ok(outcome) if started.elapsed() <= LONGEST => outcome,
            _ => {
                let left = std::env::temp_dir().join(format!("candlepower-{target}-{about}"));
                fs::write(&left, input).expect("written");
                panic!("{target}, {about}: {:?}; the input is {}", started.elapsed(), left.display());
            }
        }
    };
    let mut outcomes = Outcomes::of(target);
    for (number, input) in inputs.iter().enumerate() {
        outcomes.know(run(input, &format!("input {number}")));
    }
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < Duration::from_secs(seconds()) {
        let mut random = ChaCha8Rng::seed_from_u64(count);
        let input = mutated(&inputs[random.random_range(0..inputs.len())], &mut random);
        if outcomes.add(&input, run(&input, &format!("seed {count}"))) && inputs.len() < MOST_INPUTS {
            inputs.push(input);
        }
        count += 1;
    }
    println!("{target}: {files} files and {count} mutations with {} outcomes", outcomes.seen.len());
    assert!(count > 0);
}

/// An error is a line without control characters.
fn is_line(error: &anyhow::Error) {
    let text = candlepower_core::error::one_line(&format!("{error:#}"));
    assert!(text.lines().count() <= 1 && !text.contains(char::is_control), "{text:?}");
}

fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(format!("{FIXTURE}/{file}"), folder.path().join(file)).expect("copied");
    }
    folder
}

/// Loads a checkpoint on each engine. Returns the class of the answers.
fn read_checkpoint(path: &Path) -> String {
    let spec: ModelSpec = format!("path:{}", path.display()).parse().expect("a specification");
    let answers = Engine::ALL.map(|engine| match load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 1) {
        Ok(_) => "loaded".to_owned(),
        Err(error) => {
            is_line(&error);
            wording(&format!("{error:#}"))
        }
    });
    answers.join("; ")
}

#[test]
fn configurations_of_models() {
    let folder = checkpoint();
    let seed = fs::read(format!("{FIXTURE}/config.json")).expect("a file");
    let mixture = fs::read("fixtures/moe/qwen3-8x2/config.json").expect("a file");
    let gemma = fs::read("fixtures/generation/gemma3-short-window/config.json").expect("a file");
    fuzz("config", &[seed, mixture, gemma], |input| {
        fs::write(folder.path().join("config.json"), input).expect("written");
        read_checkpoint(folder.path())
    });
}

#[test]
fn headers_of_safetensors() {
    let folder = checkpoint();
    let whole = fs::read(format!("{FIXTURE}/model.safetensors")).expect("a file");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    fuzz("safetensors", &[whole[..header].to_vec()], |input| {
        // A new file each time, because the last may still be mapped.
        let file = folder.path().join("model.safetensors");
        let _ = fs::remove_file(&file);
        fs::write(&file, [input, &whole[header..]].concat()).expect("written");
        read_checkpoint(folder.path())
    });
}

/// Bytes of the GGUF fixture that are mutated: the whole header and some weights.
const GGUF_HEADER_BYTES: usize = 4096;

#[test]
fn headers_of_gguf_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.gguf");
    let whole = fs::read("fixtures/gguf/mixtral-8x2.gguf").expect("a file");
    let (header, weights) = whole.split_at(GGUF_HEADER_BYTES);
    fuzz("gguf", &[header.to_vec()], |input| {
        fs::write(&file, [input, weights].concat()).expect("written");
        read_checkpoint(&file)
    });
}

#[test]
fn records_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let reports = folder.path().join("reports/machine/now");
    fs::create_dir_all(&reports).expect("a folder");
    let file = reports.join("results.jsonl");
    let sample: serde_json::Value =
        serde_json::from_str(include_str!("../../src/core/record/sample.json")).expect("the sample");
    // A record of each scenario.
    let mut scenarios = BTreeSet::new();
    let mut lines: Vec<Vec<u8>> = candlepower::runner::sandbox::records("r", 1, 1, chrono::Utc::now())
        .expect("records")
        .filter(|record| scenarios.insert(record.scenario.clone()))
        .map(|mut record| {
            record.sandbox = false;
            serde_json::to_vec(&record).expect("a line")
        })
        .collect();
    lines.push(sample.to_string().into_bytes());
    let whole = lines.join(&b'\n');
    lines.push(whole);
    fuzz("records", &lines, |input| {
        fs::write(&file, input).expect("written");
        let read = match record::latest(&file) {
            Ok(read) => read,
            Err(error) => return wording(&format!("{error:#}")),
        };
        let mut outcome = BTreeSet::from([format!("{} records", read.records.len().min(2))]);
        for problem in &read.problems {
            assert!(problem.lines().count() == 1, "{problem:?}");
            outcome.insert(wording(problem));
        }
        for table in table::tables(read.records.iter()) {
            table.markdown();
            table.terminal();
        }
        candlepower::report::summary::Summary::new(read.records.iter())
            .closing_lines(Some(&folder.path().join("reports")));
        let of_records = |name| compare::Side::from_records(name, &read.records);
        let strictness = compare::Strictness::default();
        match compare::compare(&of_records("a"), &of_records("b"), strictness) {
            Ok(comparison) => {
                comparison.text(true);
                comparison.github();
                comparison.forest_plot(true);
                comparison.json().expect("JSON");
            }
            Err(error) => {
                outcome.insert(wording(&format!("{error:#}")));
            }
        }
        if let Ok((histories, _)) = history::histories(&folder.path().join("reports"), "", None, 0.03) {
            history::overview(&histories);
            history::page("machine", &histories.iter().collect::<Vec<_>>());
            for history in &histories {
                history.text();
                history.plot();
            }
        }
        use export::Format::{Bencher, GithubBigger, GithubSmaller, Openmetrics, Registry};
        for format in [Bencher, GithubBigger, GithubSmaller, Openmetrics, Registry] {
            let _ = export::export(&read.records.iter().collect::<Vec<_>>(), format);
        }
        if let Ok(joined) = joined::join(&file, &folder.path().join("criterion")) {
            let to = tempfile::tempdir().expect("a folder");
            match candlepower::report::write(&joined, &[], to.path(), chrono::Utc::now()) {
                Ok(written) => assert!(written.starts_with(to.path()) && written.is_dir()),
                Err(error) => {
                    is_line(&error);
                    outcome.insert(wording(&format!("{error:#}")));
                }
            }
        }
        outcome.into_iter().collect::<Vec<_>>().join("; ")
    });
}

#[test]
fn yaml_of_sweeps_and_trainings() {
    let seeds = [
        candlepower::workload::series::preset("omni-gpu").expect("a preset").as_bytes().to_vec(),
        TrainConfig::default().to_yaml().expect("YAML").into_bytes(),
        b"seed: 7\ndata: {window_size: 64, horizon: 3, stride: 2}\nmodel: {feature_dim: 12, model_dim: 96, depth: 2, \
          architecture: omni, conv_dilations: [1, 2]}\noptimizer: {lr: 0.0002, betas: [0.9, 0.95]}\n\
          trainer: {batch_size: 4, accelerator: cpu, precision: 32}\n"
            .to_vec(),
    ];
    fuzz("yaml", &seeds, |input| {
        let text = String::from_utf8_lossy(input);
        let lines = |error: anyhow::Error| {
            let text = format!("{error:#}");
            assert!(text.lines().count() < 200, "{text}");
            wording(&text)
        };
        let yaml = match translate(&text) {
            Ok(Some(translated)) => translated.yaml,
            Ok(None) => text.clone().into_owned(),
            Err(error) => return lines(error),
        };
        let grid = Layers::new(&SeriesGrid::default()).yaml("a.yaml", &yaml).resolve();
        let grid = grid.and_then(|grid| grid.combinations()).map_or_else(lines, |_| "read".to_owned());
        let training = Layers::new(&TrainConfig::default()).yaml("a.yaml", &text).resolve();
        let training = training.and_then(|config| config.check()).map_or_else(lines, |_| "read".to_owned());
        format!("{grid}; {training}")
    });
}

#[test]
fn a_mutation_with_a_new_outcome_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut outcomes = Outcomes { seen: BTreeSet::new(), folder: Some(folder.path().to_owned()) };
    outcomes.know("known".into());
    assert!(
        !outcomes.add(b"a", "known".into()) && outcomes.add(b"b", "new".into()) && !outcomes.add(b"c", "new".into())
    );
    assert!(outcomes.add(&[0; LARGEST_KEPT_BYTES + 1], "of a large input".into()));
    let kept = || fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
    assert_eq!(kept().map(|file| fs::read(file).expect("a file")).collect::<Vec<_>>(), [b"b"]);
    for number in 0..2 * MOST_KEPT {
        assert!(outcomes.add(number.to_string().as_bytes(), number.to_string()));
    }
    assert_eq!(kept().count(), MOST_KEPT);
    assert_eq!(
        wording("/tmp/a: line 3: unknown field `num_x`, expected one of: A, b"),
        "line unknown field expected one of b"
    );
}

#[test]
fn mutations_differ() {
    let mut random = ChaCha8Rng::seed_from_u64(random_seed());
    let inputs: BTreeSet<_> = (0..100).map(|_| mutated(b"{\"a\": 12}", &mut random)).collect();
    assert!(inputs.len() > 50);
}

fn random_seed() -> u64 {
    ChaCha8Rng::seed_from_u64(1).next_u64()
}
