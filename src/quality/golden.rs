//! Compares perplexities, divergences and tasks with the golden file of transformers and lm-evaluation-harness in
//! `fixtures/quality`, for the checkpoints of `fixtures/generation`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use serde::Deserialize;

use super::{Entry, Report, Sliding, Source, Task, evaluate, score};
use crate::{
    device::{DeviceChoice, Precision},
    model::{self, Engine, ModelSpec},
};

/// Largest accepted relative difference from the reference.
const TOLERANCE: f64 = 1e-4;

/// The checkpoint that has a tokenizer.
const WITH_TOKENIZER: &str = "llama-gqa-tied";

#[derive(Deserialize)]
struct Golden {
    perplexities: Vec<Perplexity>,
    divergences: Vec<Divergence>,
    tasks: BTreeMap<String, GoldenTask>,
}

#[derive(Deserialize)]
struct Perplexity {
    checkpoint: String,
    file: String,
    seq_len: usize,
    stride: usize,
    file_tokens: usize,
    tokens: u64,
    nll: f64,
    standard_error: f64,
    transformers_nll: f64,
}

#[derive(Deserialize)]
struct Divergence {
    checkpoint: String,
    reference: String,
    file: String,
    seq_len: usize,
    stride: usize,
    kl_mean: f64,
    kl_standard_error: f64,
    kl_max: f64,
    top1_agreement: f64,
}

#[derive(Deserialize)]
struct GoldenTask {
    acc: f64,
    acc_norm: Option<f64>,
    perplexity: Option<f64>,
    questions: Vec<GoldenQuestion>,
}

#[derive(Deserialize)]
struct GoldenQuestion {
    arguments: Vec<[String; 2]>,
    log_likelihoods: Vec<f64>,
    is_greedy: Vec<bool>,
    acc: f64,
    acc_norm: Option<f64>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn golden() -> Golden {
    let text = fs::read_to_string(fixtures().join("quality/golden.json")).expect("golden.json");
    serde_json::from_str(&text).expect("golden.json in the documented form")
}

fn subject(checkpoint: &str, engine: Engine) -> Result<model::Subject> {
    let spec = ModelSpec::Path(fixtures().join("generation").join(checkpoint));
    model::load(&spec, engine, Precision::F32, DeviceChoice::Cpu, 0)
}

fn entry(checkpoint: &str, engine: Engine) -> Entry {
    Entry { id: format!("{checkpoint} on {engine}"), model: subject(checkpoint, engine).expect(checkpoint).model }
}

fn scored(file: &str, sliding: (usize, usize), entries: &mut [Entry], reference: Option<&mut Entry>) -> Report {
    let source = Source::read(&fixtures().join("quality").join(file)).expect(file);
    let tokens = source.tokens(&subject(WITH_TOKENIZER, Engine::Tuned).expect("a subject")).expect(file);
    let sliding = Sliding::new(sliding.0, sliding.1).expect("a stride");
    score(&source, &tokens, sliding, entries, reference, |_| (), |_, _| {}).expect("a report")
}

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{what}: {found}, not {expected}");
}

#[test]
fn perplexities_are_those_of_transformers_on_both_engines() {
    let mut deviating = 0;
    for case in golden().perplexities {
        let mut entries = [Engine::Tuned, Engine::Stock].map(|engine| entry(&case.checkpoint, engine));
        let report = scored(&case.file, (case.seq_len, case.stride), &mut entries, None);
        assert_eq!((report.file_tokens, report.tokens), (case.file_tokens, case.tokens), "{}", case.checkpoint);
        for subject in &report.subjects {
            let what = format!("{}, {}, {} and {}", subject.id, case.file, case.seq_len, case.stride);
            if subject.deviates.is_some() {
                deviating += 1;
                continue;
            }
            let figures = &subject.figures;
            near(figures.nll, case.nll, &what);
            near(figures.perplexity.expect("a number"), case.nll.exp(), &what);
            near(figures.standard_error.expect("tokens"), case.standard_error, &what);
            near(figures.transformers_nll, case.transformers_nll, &what);
        }
    }
    assert!(deviating <= 1, "stock deviates on a sliding window only");
}

#[test]
fn divergences_are_those_of_pytorch() {
    for case in golden().divergences {
        let mut reference = entry(&case.reference, Engine::Tuned);
        let mut entries = [entry(&case.checkpoint, Engine::Tuned)];
        let report = scored(&case.file, (case.seq_len, case.stride), &mut entries, Some(&mut reference));
        let found = report.first.divergence.expect("a reference");
        near(found.kl_mean, case.kl_mean, "mean");
        near(found.kl_standard_error.expect("tokens"), case.kl_standard_error, "standard error");
        near(found.kl_max, case.kl_max, "max");
        assert!((found.top1_agreement - case.top1_agreement).abs() < 1e-9, "{found:?}");
    }
}

/// The reference is loaded on its own, so equal logits come from equal computations.
#[test]
fn a_model_does_not_diverge_from_itself() {
    for engine in Engine::ALL {
        let mut reference = entry(WITH_TOKENIZER, engine);
        let mut entries = [entry(WITH_TOKENIZER, engine)];
        let report = scored("text.txt", (128, 50), &mut entries, Some(&mut reference));
        let found = report.first.divergence.expect("a reference");
        assert_eq!((found.kl_mean, found.kl_max, found.top1_agreement), (0.0, 0.0, 1.0), "{engine}");
        let [difference] = report.comparisons.as_slice() else { panic!("one subject") };
        assert!(difference.nll_difference == 0.0 && !difference.exceeds_error);
    }
}

#[test]
fn all_rows_of_one_pass_are_those_of_single_tokens() {
    let mut tuned = subject("qwen3-gqa-tied", Engine::Tuned).expect("a subject").model;
    // More rows than one product computes.
    let tokens: Vec<u32> = (0..200).map(|token| 3 + token * 7 % 300).collect();
    let at_once: Vec<Vec<f32>> = tuned.logit_rows(&tokens, 3).expect("rows").collect::<Result<_>>().expect("rows");
    assert_eq!(at_once.len(), 197);
    tuned.reset().expect("a reset");
    for (position, token) in tokens.iter().enumerate() {
        let logits: Vec<f32> = tuned.forward(&[*token], position).and_then(|row| Ok(row.to_vec1()?)).expect("a row");
        if position >= 3 {
            let far = logits.iter().zip(&at_once[position - 3]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "position {position}: {far}");
        }
    }
}

#[test]
fn tasks_are_scored_as_by_lm_evaluation_harness() {
    let golden = golden();
    assert_eq!(golden.tasks.len(), 2);
    for (name, expected) in golden.tasks {
        let task: Task = name.parse().expect("a task");
        let questions = task.read(&fixtures().join("quality"), usize::MAX).expect("questions");
        assert_eq!(questions.questions.len(), expected.questions.len(), "{name}");
        for engine in Engine::ALL {
            let mut subject = subject(WITH_TOKENIZER, engine).expect("a subject");
            let result = evaluate("id", task, &questions, &mut subject, |_| {}).expect("a result");
            for (number, expected) in expected.questions.iter().enumerate() {
                let (question, score) = (&questions.questions[number], &result.scores[number]);
                let what = format!("{name} on {engine}, question {number}");
                let prompts: Vec<[String; 2]> =
                    question.choices.iter().map(|choice| [question.context.clone(), format!(" {choice}")]).collect();
                assert_eq!(prompts, expected.arguments, "{what}");
                assert_eq!(score.log_likelihoods.len(), expected.log_likelihoods.len(), "{what}");
                for (found, expected) in score.log_likelihoods.iter().zip(&expected.log_likelihoods) {
                    near(*found, *expected, &what);
                }
                assert_eq!(score.is_correct, expected.acc == 1.0, "{what}");
                assert_eq!(score.is_correct_norm, expected.acc_norm.map(|acc| acc == 1.0), "{what}");
                if question.choices.len() == 1 {
                    assert_eq!(score.is_correct, expected.is_greedy[0], "{what}");
                }
            }
            assert!((result.acc - expected.acc).abs() < 1e-12, "{name}");
            assert_eq!(result.acc_norm.is_some(), expected.acc_norm.is_some(), "{name}");
            for (found, expected) in [(result.acc_norm, expected.acc_norm), (result.perplexity, expected.perplexity)] {
                found.zip(expected).into_iter().for_each(|(found, expected)| near(found, expected, &name));
            }
        }
    }
}
