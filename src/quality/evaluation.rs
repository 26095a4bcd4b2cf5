//! Tasks scored by log-likelihood, as lm-evaluation-harness scores them.

use anyhow::{Context, Result, ensure};
use schemars::JsonSchema;
use serde::Serialize;
use tokenizers::Tokenizer;

use super::{
    mean::Mean,
    row::Row,
    task::{Question, Questions, Task},
};
use crate::{
    generate,
    model::{CausalLm, Subject},
    record,
};

/// The results of tasks for one model.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Evaluation {
    /// Full specification of the model.
    pub source: String,
    /// One result for each task, in the order in which they were named.
    pub tasks: Vec<TaskResult>,
}

/// The result of a task. Names of figures are those of lm-evaluation-harness.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct TaskResult {
    /// Id of the benchmark.
    pub id: String,
    /// Name of the task.
    pub task: String,
    /// Path of the file of questions.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Number of questions.
    pub questions: usize,
    /// Share of the questions that are answered correctly.
    pub acc: f64,
    /// Standard error of `acc`; `null` for one question.
    pub acc_stderr: Option<f64>,
    /// The same share if each log-likelihood is divided by the characters of its choice; `null` without choices.
    pub acc_norm: Option<f64>,
    /// Standard error of `acc_norm`.
    pub acc_norm_stderr: Option<f64>,
    /// Exponential of the mean negative log-likelihood of the continuations; `null` for a task with choices.
    pub perplexity: Option<f64>,
    /// Standard error of `perplexity`, by the delta method.
    pub perplexity_stderr: Option<f64>,
    /// Known reason why the model's logits differ from those of the reference implementation.
    pub deviates: Option<String>,
    /// The score of each question, in the order of the file.
    pub scores: Vec<Score>,
}

/// The score of a question.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Score {
    /// Log-likelihood of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// True if the answer is correct: the most likely choice, or for a single one, what greedy decoding produces.
    pub is_correct: bool,
    /// The same by log-likelihood per character; `null` without choices.
    pub is_correct_norm: Option<bool>,
    /// Negative log-likelihood of the correct choice.
    pub gold_nll: f64,
}

/// Scores the questions of a task. `id` is the id of the benchmark. `progress` gets the number of questions that are done.
///
/// # Errors
/// When the model has no tokenizer, a question does not fit it, or it fails.
pub fn evaluate(
    id: &str,
    task: Task,
    questions: &Questions,
    subject: &mut Subject,
    mut progress: impl FnMut(usize),
) -> Result<TaskResult> {
    let tokenizer = subject.tokenizer_for("the text of a task")?.clone();
    let model = &mut subject.model;
    let all = &questions.questions;
    let (mut scores, mut deviates) = (Vec::with_capacity(all.len()), None);
    for (number, question) in (1..).zip(all) {
        let at = || format!("question {number} of {}", questions.file);
        scores.push(score(model.as_mut(), &tokenizer, question, &mut deviates).with_context(at)?);
        progress(number);
    }
    let share = |is_correct: fn(&Score) -> Option<bool>| -> Option<Mean> {
        scores.iter().map(|score| Some(f64::from(u8::from(is_correct(score)?)))).collect()
    };
    let acc = share(|score| Some(score.is_correct)).unwrap_or_default();
    let acc_norm = share(|score| score.is_correct_norm);
    let nll = acc_norm.is_none().then(|| scores.iter().map(|score| score.gold_nll).collect::<Mean>());
    let perplexity = nll.map(|nll| nll.mean().exp());
    Ok(TaskResult {
        id: id.to_owned(),
        task: task.name().to_owned(),
        file: questions.file.clone(),
        sha256: questions.sha256.clone(),
        questions: all.len(),
        acc: acc.mean(),
        acc_stderr: acc.standard_error(),
        acc_norm: acc_norm.map(|acc| acc.mean()),
        acc_norm_stderr: acc_norm.and_then(|acc| acc.standard_error()),
        perplexity,
        perplexity_stderr: nll.and_then(|nll| Some(nll.standard_error()? * perplexity?)),
        deviates,
        scores,
    })
}

/// `deviates` keeps the first reason why the logits are known to be wrong.
fn score(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    question: &Question,
    deviates: &mut Option<String>,
) -> Result<Score> {
    let scored = question.choices.iter().map(|choice| {
        let (context, continuation) = encode_pair(tokenizer, &question.context, &format!(" {choice}"))?;
        log_likelihood(model, &context, &continuation, deviates)
    });
    let scored: Vec<(f64, bool)> = scored.collect::<Result<_>>()?;
    let log_likelihoods: Vec<f64> = scored.iter().map(|(log_likelihood, _)| *log_likelihood).collect();
    let (is_correct, is_correct_norm) = match scored.as_slice() {
        [(_, is_greedy)] => (*is_greedy, None),
        _ => {
            let lengths = question.choices.iter().map(|choice| choice.chars().count() as f64);
            let per_character: Vec<f64> =
                log_likelihoods.iter().zip(lengths).map(|(nats, length)| nats / length).collect();
            let is_gold = |values: &[f64]| most(values) == Some(question.gold);
            (is_gold(&log_likelihoods), Some(is_gold(&per_character)))
        }
    };
    let gold_nll = -log_likelihoods.get(question.gold).context("the correct choice is missing")?;
    Ok(Score { log_likelihoods, is_correct, is_correct_norm, gold_nll })
}

/// Index of the largest value; the first of equals.
fn most(values: &[f64]) -> Option<usize> {
    let mut values = values.iter().enumerate();
    let first = values.next()?;
    Some(values.fold(first, |most, next| if next.1 > most.1 { next } else { most }).0)
}

/// Encodes a continuation as the tokens by which the whole text is longer than the context. White space at the end of the
/// context belongs to the continuation, so that words are split as in a text.
fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let start = context.trim_end();
    let whole = generate::encode(tokenizer, &format!("{context}{continuation}"))?;
    let context = generate::encode(tokenizer, start)?;
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, continuation))
}

/// Log-likelihood of a continuation, and whether greedy decoding produces it. A context that is too long loses its beginning.
fn log_likelihood(
    model: &mut dyn CausalLm,
    context: &[u32],
    continuation: &[u32],
    deviates: &mut Option<String>,
) -> Result<(f64, bool)> {
    let (longest, vocab_size) = (model.max_position_embeddings(), model.vocab_size());
    ensure!(!context.is_empty() && !continuation.is_empty(), "the tokenizer makes no tokens of a part of it");
    ensure!(continuation.len() <= longest, "a choice has {} tokens, and the model takes {longest}", continuation.len());
    let whole = [context, continuation].concat();
    if let Some(unknown) = whole.iter().find(|token| **token as usize >= vocab_size) {
        anyhow::bail!("the tokenizer makes token {unknown}, which is not below vocab_size={vocab_size}");
    }
    // The last token predicts nothing that is scored.
    let inputs = &whole[whole.len().saturating_sub(longest + 1)..whole.len() - 1];
    let from = inputs.len() - continuation.len();
    *deviates = deviates.take().or_else(|| model.deviates(from + 1, continuation.len()));
    let mut rows = model.logit_rows(inputs, from)?;
    let (mut sum, mut is_greedy) = (0.0, true);
    for token in continuation {
        let row = Row::next(&mut rows, vocab_size)?;
        sum += row.log_probability(*token);
        is_greedy &= row.top() == *token;
    }
    Ok((sum, is_greedy))
}

impl TaskResult {
    /// The measures of the task for its record.
    pub(crate) fn measures(&self) -> record::Evaluation {
        record::Evaluation {
            task: self.task.clone(),
            questions: self.questions,
            accuracy: self.acc,
            accuracy_standard_error: self.acc_stderr,
            accuracy_norm: self.acc_norm,
            accuracy_norm_standard_error: self.acc_norm_stderr,
            target_perplexity: self.perplexity,
            target_perplexity_standard_error: self.perplexity_stderr,
            questions_sha256: self.sha256.clone(),
            question_nll: self.scores.iter().map(|score| score.gold_nll).collect(),
        }
    }
}
