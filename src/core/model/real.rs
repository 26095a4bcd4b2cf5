//! Compares trained models with `fixtures/real/golden.json`, which scripts/make_real_golden.py makes with transformers and llama.cpp.
//! The models are those of scripts/real_models.sh, in target/real-models or the folder of `CANDLEPOWER_REAL_MODELS`. A model that is
//! not there is skipped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{CausalLm, Engine, ModelSpec, golden::argmax, load, tokenizer};
use crate::device::{DeviceChoice, Precision};

/// Candle, as llama.cpp, rounds activations to 8 bits, which changes logits by up to 3, mostly by less than a tenth of it. Where the
/// best logit of the weights is so far above the second, it must also be the best of the model.
const CLEAR_GAP: f32 = 0.5;

/// Largest relative difference of the mean negative log-likelihood for the same reason. That of llama.cpp is 0.003.
const NLL_TOLERANCE: f64 = 0.005;

/// The same for weights in f32, which nothing but the order of sums rounds.
const EXACT: (f32, f64) = (0.001, 1e-4);

#[derive(Deserialize)]
struct Golden {
    models: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    prompts: Vec<Prompt>,
    ids: Vec<u32>,
    nll: f64,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    gaps: Vec<f32>,
}

fn folder() -> PathBuf {
    let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("target/real-models");
    std::env::var_os("CANDLEPOWER_REAL_MODELS").map_or(own, PathBuf::from)
}

/// The models that are there, with what they are compared with.
fn cases(path: impl Fn(&Path) -> PathBuf) -> Vec<(ModelSpec, Case)> {
    let text = fs::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("fixtures/real/golden.json"))
        .expect("golden.json");
    let golden: Golden = serde_json::from_slice(&text).expect("golden.json in the form of its script");
    let located = golden.models.into_iter().map(|case| (path(&folder().join(&case.file)), case));
    let (there, missing): (Vec<_>, Vec<_>) = located.partition(|(path, _)| path.exists());
    for (path, _) in missing {
        println!("skipped: {} is missing; scripts/real_models.sh fetches it", path.display());
    }
    there.into_iter().map(|(path, case)| (ModelSpec::Path(path), case)).collect()
}

/// Mean negative log-likelihood of each token but the first.
fn nll(model: &mut dyn CausalLm, ids: &[u32]) -> f64 {
    let rows = model.logit_rows(&ids[..ids.len() - 1], 0).expect("logits");
    let of_row = |(row, next): (Vec<f32>, &u32)| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
        sum.ln() - f64::from(row[*next as usize] - most)
    };
    let all: f64 = rows.map(|row| row.expect("a row")).zip(&ids[1..]).map(of_row).sum();
    all / (ids.len() - 1) as f64
}

/// Compares the choice after each token of the reference, and on engine `tuned`, which computes all rows in one pass, the likelihood
/// of a text.
fn check(engine: Engine, spec: &ModelSpec, case: &Case, (clear_gap, nll_tolerance): (f32, f64)) {
    let mut model = load(spec, engine, Precision::F32, DeviceChoice::Cpu, 0).expect("a model").model;
    let deviates = model.deviates(case.ids.len(), 0);
    let (mut compared, mut other) = (0, Vec::new());
    for prompt in &case.prompts {
        model.reset().expect("a reset");
        let mut tokens = prompt.ids.as_slice();
        for (step, (token, gap)) in prompt.greedy.iter().zip(&prompt.gaps).enumerate() {
            let position = if step == 0 { 0 } else { prompt.ids.len() + step - 1 };
            let logits = model.forward(tokens, position).expect("logits").to_vec1::<f32>().expect("numbers");
            if *gap > clear_gap {
                compared += 1;
                if argmax(&logits) != *token {
                    other.push(format!("{:?}, step {step}, which is clear by {gap}", prompt.text));
                }
            }
            tokens = std::slice::from_ref(token);
        }
    }
    println!("{spec} on {engine}: {} of {compared} clear choices differ; {deviates:?}", other.len());
    assert!(compared > 50, "{spec}: {compared} clear choices");
    assert_eq!(other.is_empty(), deviates.is_none(), "{spec} on {engine}, {deviates:?}: {other:#?}");
    if engine == Engine::Tuned {
        let far = nll(model.as_mut(), &case.ids) / case.nll - 1.0;
        println!("{spec} on {engine}: the likelihood is {far:e} off");
        assert!(far.abs() <= nll_tolerance, "{spec} on {engine}: the likelihood is {far} off");
    }
}

#[test]
fn trained_models_in_gguf_files_compute_what_transformers_computes() {
    for (spec, case) in cases(Path::to_owned) {
        for engine in [Engine::Tuned, Engine::Stock] {
            check(engine, &spec, &case, (CLEAR_GAP, NLL_TOLERANCE));
        }
    }
}

/// For the same weights in f32, with which `scripts/real_models.sh --safetensors` makes a folder beside the file.
#[test]
fn trained_models_in_f32_compute_what_transformers_computes() {
    for (spec, case) in cases(|file| file.with_extension("")) {
        check(Engine::Tuned, &spec, &case, EXACT);
    }
}

#[derive(Deserialize)]
struct Lines {
    lines: Vec<String>,
    files: Vec<LinesOfFile>,
}

#[derive(Deserialize)]
struct LinesOfFile {
    file: String,
    ids: Vec<Vec<u32>>,
    comes_back: Vec<bool>,
}

/// The lines and ids are those of `scripts/check_tokenizers.py`, beside the models. Without its file the test is skipped.
#[test]
fn token_ids_of_many_lines_are_those_of_llama_cpp() {
    let path = folder().join("token_ids.json");
    let Ok(text) = fs::read(&path) else {
        println!("skipped: {} is missing; scripts/check_tokenizers.py makes it", path.display());
        return;
    };
    let Lines { lines, files } = serde_json::from_slice(&text).expect("token_ids.json in the form of its script");
    for LinesOfFile { file, ids, comes_back } in files {
        let tokenizer = tokenizer(&ModelSpec::Path(folder().join(&file))).expect("a file").expect("a tokenizer");
        let (mut other, mut lost) = (Vec::new(), Vec::new());
        for ((line, expected), comes_back) in lines.iter().zip(&ids).zip(comes_back) {
            let encoding = tokenizer.encode_fast(line.as_str(), false).expect("ids");
            if encoding.get_ids() != expected {
                other.push(format!("{line:?}: {:?} and not {expected:?}", encoding.get_ids()));
            }
            if comes_back && tokenizer.decode(expected, false).expect("text") != *line {
                lost.push(format!("{line:?}"));
            }
        }
        println!(
            "{file}: of {} lines, {} have other ids and {} do not come back",
            lines.len(),
            other.len(),
            lost.len()
        );
        assert!(
            other.is_empty() && lost.is_empty(),
            "{file}: {:#?} {:#?}",
            &other[..other.len().min(5)],
            &lost[..lost.len().min(5)]
        );
    }
}
