//! Lines as `llama-bench -o jsonl` of llama.cpp writes them, for tools that read its results.

use anyhow::{Result, ensure};
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::record::{Generation, Measures, Record};

/// The fields that have a counterpart here, in the order of llama-bench. The fields about its back ends, such as
/// `n_gpu_layers`, are left out.
#[derive(Serialize)]
struct Test<'a> {
    build_commit: Option<&'a str>,
    build_number: Option<u64>,
    cpu_info: &'a str,
    gpu_info: &'a str,
    backends: String,
    model_filename: &'a str,
    model_type: String,
    model_size: Option<u64>,
    model_n_params: Option<u64>,
    n_batch: Option<u64>,
    n_threads: usize,
    type_k: &'a str,
    type_v: &'a str,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: u64,
    stddev_ns: Option<u64>,
    avg_ts: f64,
    stddev_ts: Option<f64>,
    samples_ns: Option<Vec<u64>>,
    samples_ts: Option<Vec<f64>>,
    /// Id of the benchmark, which llama-bench does not have.
    id: String,
}

/// The tokens of a test.
struct Tokens {
    prompt: usize,
    generated: usize,
    depth: usize,
}

/// A line for each test of each generation: the prompt, the steps after it, and both together. A generation of one token
/// is a prompt. llama-bench runs one sequence, so batches are left out.
///
/// # Errors
/// Returns an error if there is no generation, or a line cannot be encoded.
pub fn llama_bench(records: &[&Record]) -> Result<String> {
    let mut lines = String::new();
    for record in records {
        let Some(Measures::Generation(measures)) = &record.measures else { continue };
        if measures.sequences() > 1 {
            continue;
        }
        for test in tests(record, measures) {
            lines += &serde_json::to_string(&test)?;
            lines.push('\n');
        }
    }
    ensure!(!lines.is_empty(), "llama-bench measures generations of one sequence, and the run has none");
    Ok(lines)
}

fn tests<'a>(record: &'a Record, measures: &Generation) -> Vec<Test<'a>> {
    let (prompt, generated) = (measures.prompt_tokens, measures.generated_tokens);
    let samples_ns: Vec<f64> = measures.sample_total_ms.iter().map(|ms| ms * 1e6).collect();
    if generated <= 1 {
        return vec![sampled(record, Tokens { prompt, generated: 0, depth: 0 }, &samples_ns)];
    }
    let steps = Tokens { prompt: 0, generated: generated - 1, depth: prompt };
    let decode = measures.decode_tokens_per_s.map(|rate| summarised(record, steps, rate));
    [summarised(record, Tokens { prompt, generated: 0, depth: 0 }, measures.prefill_tokens_per_s)]
        .into_iter()
        .chain(decode)
        .chain([sampled(record, Tokens { prompt, generated, depth: 0 }, &samples_ns)])
        .collect()
}

/// A test whose samples the record holds.
fn sampled<'a>(record: &'a Record, tokens: Tokens, samples_ns: &[f64]) -> Test<'a> {
    let count = (tokens.prompt + tokens.generated) as f64;
    let rates: Vec<f64> = samples_ns.iter().map(|ns| count / ns * 1e9).collect();
    let ((avg_ns, stddev_ns), (avg_ts, stddev_ts)) = (mean_and_deviation(samples_ns), mean_and_deviation(&rates));
    Test {
        avg_ns: avg_ns.round() as u64,
        stddev_ns: Some(stddev_ns.round() as u64),
        avg_ts,
        stddev_ts: Some(stddev_ts),
        samples_ns: Some(samples_ns.iter().map(|ns| ns.round() as u64).collect()),
        samples_ts: Some(rates),
        ..test(record, tokens)
    }
}

/// A test of which the record holds the median.
fn summarised(record: &Record, tokens: Tokens, tokens_per_s: f64) -> Test<'_> {
    let count = (tokens.prompt + tokens.generated) as f64;
    Test { avg_ns: (count / tokens_per_s * 1e9).round() as u64, avg_ts: tokens_per_s, ..test(record, tokens) }
}

fn test(record: &Record, tokens: Tokens) -> Test<'_> {
    let (subject, machine) = (&record.subject, &record.machine);
    let at = DateTime::parse_from_rfc3339(&record.at).map(|at| at.to_utc().to_rfc3339_opts(SecondsFormat::Secs, true));
    Test {
        build_commit: record.software.commit.as_deref(),
        build_number: None,
        cpu_info: &machine.cpu,
        gpu_info: machine.gpu.as_ref().map_or("", |gpu| gpu.name.as_str()),
        backends: format!("{} on {}", subject.engine, subject.device),
        model_filename: &subject.source,
        model_type: format!("{} {}", subject.model, subject.dtype),
        model_size: subject.weight_bytes,
        model_n_params: subject.parameters,
        n_batch: None,
        n_threads: machine.threads,
        type_k: &subject.dtype,
        type_v: &subject.dtype,
        n_prompt: tokens.prompt,
        n_gen: tokens.generated,
        n_depth: tokens.depth,
        test_time: at.unwrap_or_else(|_| record.at.clone()),
        avg_ns: 0,
        stddev_ns: None,
        avg_ts: 0.0,
        stddev_ts: None,
        samples_ns: None,
        samples_ts: None,
        id: record.exported_id(),
    }
}

/// Mean and sample standard deviation, 0 for a single value as in llama-bench.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn sample() -> Record {
        serde_json::from_str(include_str!("../../core/record/sample.json")).expect("the sample")
    }

    fn lines(record: &Record) -> Vec<Value> {
        let text = llama_bench(&[record]).expect("lines");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_generation_is_three_tests() {
        let record = sample();
        let Some(Measures::Generation(measures)) = &record.measures else { panic!("a generation") };
        let lines = lines(&record);
        let tokens = |line: &Value| ["n_prompt", "n_gen", "n_depth"].map(|field| line[field].as_u64().expect(field));
        let (prompt, generated) = (measures.prompt_tokens as u64, measures.generated_tokens as u64);
        let found: Vec<_> = lines.iter().map(tokens).collect();
        assert_eq!(found, [[prompt, 0, 0], [0, generated - 1, prompt], [prompt, generated, 0]]);
        assert_eq!(lines[0]["avg_ts"].as_f64(), Some(measures.prefill_tokens_per_s));
        assert_eq!(lines[1]["avg_ts"].as_f64(), measures.decode_tokens_per_s);
        for line in &lines[..2] {
            assert!(line["samples_ns"].is_null() && line["stddev_ns"].is_null(), "only its median is known: {line}");
            let (ns, rate) = (line["avg_ns"].as_f64().expect("ns"), line["avg_ts"].as_f64().expect("a rate"));
            let count = line["n_prompt"].as_f64().expect("a number") + line["n_gen"].as_f64().expect("a number");
            assert!((count / ns * 1e9 / rate - 1.0).abs() < 1e-6, "{line}");
        }
        let both = &lines[2];
        let ns: Vec<f64> = measures.sample_total_ms.iter().map(|ms| (ms * 1e6).round()).collect();
        assert_eq!(both["samples_ns"].as_array().map(Vec::len), Some(ns.len()));
        let mean = ns.iter().sum::<f64>() / ns.len() as f64;
        assert!((both["avg_ns"].as_f64().expect("ns") - mean).abs() <= 1.0, "{both}");
        let rates: Vec<f64> = ns.iter().map(|ns| (prompt + generated) as f64 / ns * 1e9).collect();
        assert!(
            (both["avg_ts"].as_f64().expect("a rate") - rates.iter().sum::<f64>() / rates.len() as f64).abs() < 1e-3
        );
        assert!(both["test_time"].as_str().is_some_and(|time| time.len() == 20 && time.ends_with('Z')), "{both}");
    }

    #[test]
    fn one_token_is_a_prompt_and_other_kinds_are_left_out() {
        let mut record = sample();
        let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
        measures.generated_tokens = 1;
        measures.sample_total_ms = vec![10.0, 20.0];
        measures.prompt_tokens = 100;
        let lines = lines(&record);
        assert_eq!((lines.len(), &lines[0]["n_gen"], &lines[0]["avg_ns"]), (1, &0.into(), &15_000_000.into()));
        assert_eq!(lines[0]["samples_ts"], serde_json::json!([10_000.0, 5000.0]));
        assert_eq!(lines[0]["stddev_ts"].as_f64().map(f64::round), Some(3536.0));
        record.measures = None;
        assert!(llama_bench(&[&record]).expect_err("nothing").to_string().contains("the run has none"));
    }

    #[test]
    fn a_sandbox_record_is_marked() {
        let record = Record { sandbox: true, ..sample() };
        assert!(lines(&record)[0]["id"].as_str().is_some_and(|id| id.starts_with("sandbox/")));
    }
}
