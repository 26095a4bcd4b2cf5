//! Tasks in the formats of lm-evaluation-harness: files of questions, their prompts, and how answers are judged.
//!
//! To add a task, add its row to [`TASKS`]. The prompts follow version 1.0 of the tasks in lm_eval 0.4.

use std::{fmt, path::Path, str::FromStr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{config::unknown, files::read_text_limited};

/// Largest file of questions.
const MAX_BYTES: u64 = 256 << 20;

/// A task.
#[derive(Clone, Copy, Debug)]
pub struct Task(&'static TaskRow);

/// The properties of a task.
#[derive(Debug)]
struct TaskRow {
    name: &'static str,
    /// Makes a question of a line of the file.
    question: fn(&Value) -> Result<Question>,
}

const TASKS: [TaskRow; 2] =
    [TaskRow { name: "lambada_openai", question: last_word }, TaskRow { name: "hellaswag", question: ending }];

/// A question: a context, and the texts that may continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The text before.
    pub context: String,
    /// The continuations, without the space before them. One alone is judged by whether greedy decoding produces it.
    pub choices: Vec<String>,
    /// Index of the correct continuation.
    pub gold: usize,
}

/// The questions of a file.
#[derive(Clone, Debug)]
pub struct Questions {
    /// Path of the file.
    pub file: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// The questions, in the order of the file.
    pub questions: Vec<Question>,
}

impl Task {
    /// The name in lm-evaluation-harness.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Reads the first `limit` questions from `<folder>/<task>.jsonl`.
    ///
    /// # Errors
    /// When the file cannot be read, has no question, or a line is not a question of the task.
    pub fn read(self, folder: &Path, limit: usize) -> Result<Questions> {
        ensure!(limit > 0, "--limit=0: ask at least one question");
        let path = folder.join(format!("{}.jsonl", self.name()));
        let file = path.display().to_string();
        let text = read_text_limited(&path, MAX_BYTES).with_context(|| file.clone())?;
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).take(limit);
        let question = |(number, line): (usize, &str)| {
            let parsed = serde_json::from_str(line).context("it is not JSON");
            parsed.and_then(|line| (self.0.question)(&line)).with_context(|| format!("{file} line {number}"))
        };
        let questions = lines.map(question).collect::<Result<Vec<_>>>()?;
        ensure!(!questions.is_empty(), "{file} has no questions");
        let sha256 = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Questions { file, sha256, questions })
    }
}

impl FromStr for Task {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = TASKS.each_ref().map(|row| row.name);
        let row = TASKS.iter().find(|row| row.name == name);
        row.map(Self).with_context(|| unknown("task", name, &names))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// LAMBADA: the last word of a passage.
fn last_word(line: &Value) -> Result<Question> {
    let (context, word) = text(line, "text")?.rsplit_once(' ').context("text has fewer than two words")?;
    ensure!(!context.trim().is_empty(), "text has no word before the last");
    Ok(Question { context: context.to_owned(), choices: vec![word.to_owned()], gold: 0 })
}

/// HellaSwag: the ending of a description, of four.
fn ending(line: &Value) -> Result<Question> {
    let (label, a, b) = (text(line, "activity_label")?, text(line, "ctx_a")?, text(line, "ctx_b")?);
    let context = without_marks(&format!("{label}: {a} {}", capitalised(b)));
    let endings = line["endings"].as_array().context("endings is missing")?;
    let choices = endings.iter().map(|ending| ending.as_str().map(without_marks));
    let choices = choices.collect::<Option<Vec<_>>>().context("endings has something else than texts")?;
    // The files of the authors have a number, and those of the Hub have it as text.
    let gold = line["label"].as_u64().or_else(|| line["label"].as_str()?.parse().ok());
    let gold = gold.and_then(|gold| usize::try_from(gold).ok()).filter(|gold| *gold < choices.len());
    let gold = gold.with_context(|| format!("label is not below the {} endings", choices.len()))?;
    Ok(Question { context, choices, gold })
}

fn text<'a>(line: &'a Value, field: &str) -> Result<&'a str> {
    line[field].as_str().with_context(|| format!("{field} is missing or not a text"))
}

/// Python's `str.capitalize`: the first character in upper case and the others in lower case.
fn capitalised(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // One character may become several, of which only the first is upper case.
    let mut upper = first.to_uppercase();
    let start: String = upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect();
    // The form of a sigma depends on the characters before it, so the whole text is converted.
    let lower = text.to_lowercase();
    let rest = first.to_lowercase().map(char::len_utf8).sum::<usize>();
    start + lower.get(rest..).unwrap_or_default()
}

/// Removes the marks that WikiHow's articles left in HellaSwag, as lm-evaluation-harness does.
fn without_marks(text: &str) -> String {
    // Python counts these control characters as white space too.
    let text = text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    let text = text.replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // A mark does not span lines.
    while let Some(open) = rest.find('[') {
        let after = &rest[open + 1..];
        match after.find([']', '\n']).filter(|end| after[*end..].starts_with(']')) {
            Some(end) => {
                kept.push_str(&rest[..open]);
                rest = &after[end + 1..];
            }
            None => {
                kept.push_str(&rest[..=open]);
                rest = after;
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_word_follows_the_last_space() {
        let question = last_word(&json!({ "text": "One two  three\n four." })).expect("a question");
        assert_eq!(
            (question.context.as_str(), question.choices.as_slice()),
            ("One two  three\n", &["four.".to_owned()][..])
        );
        for line in [json!({}), json!({ "text": 5 }), json!({ "text": "one" }), json!({ "text": " one" })] {
            assert!(last_word(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn marks_are_removed_as_by_the_harness() {
        for (given, expected) in [
            ("  How to rest [title] Lie down. [step] Close  your eyes.", "How to rest. Lie down. Close your eyes."),
            ("a [substeps] b", "a b"),
            ("[header] a", " a"),
            ("a [b\nc] d", "a [b\nc] d"),
            ("[[a] b", " b"),
            ("a [x\n[y] b", "a [x\n b"),
            ("a ] b [ c", "a ] b [ c"),
            ("a    b", "a  b"),
            ("\u{1f}a\u{a0}", "a"),
        ] {
            assert_eq!(without_marks(given), expected, "{given:?}");
        }
    }

    #[test]
    fn capitals_are_those_of_python() {
        for (given, expected) in
            [("", ""), ("the Man", "The man"), ("ÄB", "Äb"), ("ßa", "Ssa"), ("ΑΣ", "Ας"), ("İX", "İx"), ("3A", "3a")]
        {
            assert_eq!(capitalised(given), expected, "{given:?}");
        }
    }

    #[test]
    fn an_ending_has_four_choices_and_a_label_in_either_form() {
        let line = |label: Value| {
            json!({
                "activity_label": "Rowing", "ctx_a": "A man sits.", "ctx_b": "the Boat", "label": label,
                "endings": ["floats.", "sinks [x].", "", "is blue."],
            })
        };
        let question = ending(&line("3".into())).expect("a question");
        assert_eq!(question.context, "Rowing: A man sits. The boat");
        assert_eq!((question.gold, question.choices[1].as_str()), (3, "sinks ."));
        assert_eq!(ending(&line(3.into())).expect("a question"), question);
        for label in [json!(4), json!("x"), json!(-1), json!(null)] {
            assert!(ending(&line(label)).expect_err("no ending").to_string().contains("label"));
        }
    }

    #[test]
    fn files_without_questions_are_refused_in_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let task: Task = "lambada_openai".parse().expect("a task");
        let refused = |content: Option<&str>, limit: usize, part: &str| {
            if let Some(content) = content {
                std::fs::write(folder.path().join("lambada_openai.jsonl"), content).expect("written");
            }
            let error = format!("{:#}", task.read(folder.path(), limit).expect_err(part));
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        };
        refused(None, 1, "lambada_openai.jsonl");
        refused(Some("\n"), 1, "has no questions");
        refused(Some("{\"text\": \"a b\"}\nnot JSON\n"), 2, "line 2: it is not JSON");
        refused(Some("{\"text\": \"a\"}\n"), 1, "line 1: text has fewer than two words");
        refused(Some("{\"text\": \"a b\"}\n"), 0, "--limit=0");
        assert_eq!(task.read(folder.path(), 9).expect("one question").questions.len(), 1);
        assert!("helaswag".parse::<Task>().expect_err("unknown").to_string().contains("did you mean hellaswag?"));
    }
}
