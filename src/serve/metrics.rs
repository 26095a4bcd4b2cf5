//! Counters of the server, in Prometheus' text format.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds of the buckets of all histograms.
const BUCKETS_S: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Counts since the start of the server.
#[derive(Default)]
pub struct Metrics {
    /// Number of answers by endpoint and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub prompt_tokens: Counter,
    pub cached_tokens: Counter,
    pub generated_tokens: Counter,
    /// Sequences that ended because their client left, their deadline passed, or their text contained a stop string.
    pub cancelled: Counter,
    pub running: Counter,
    pub time_to_first_token: Histogram,
    pub request: Histogram,
    pub step: Histogram,
}

/// A number that threads add to, or set.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, number: usize) {
        self.0.fetch_add(number as u64, Ordering::Relaxed);
    }

    pub fn set(&self, number: usize) {
        self.0.store(number as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations by size.
#[derive(Default)]
pub struct Histogram {
    /// The last bucket has no upper bound.
    counts: [AtomicU64; BUCKETS_S.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS_S.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    /// Mean in seconds; `None` if there is no duration.
    pub fn mean_s(&self) -> Option<f64> {
        let count: u64 = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (count > 0).then(|| self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 / count as f64)
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut below = 0;
        let bounds = BUCKETS_S.iter().map(f64::to_string).chain(["+Inf".into()]);
        for (bound, count) in bounds.zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "candlepower_{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let sum_s = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "candlepower_{name}_sum {sum_s}\ncandlepower_{name}_count {below}");
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP candlepower_{name} {help}\n# TYPE candlepower_{name} {kind}");
}

impl Metrics {
    /// Counts an answer.
    pub fn answer(&self, endpoint: &'static str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((endpoint, status)).or_default() += 1;
    }

    /// The text that Prometheus reads.
    pub fn text(&self, waiting: usize) -> String {
        let mut out = String::new();
        head(&mut out, "requests_total", "counter", "Answered requests by endpoint and HTTP status.");
        for ((endpoint, status), count) in self.answers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = format!("endpoint=\"{endpoint}\",status=\"{status}\"");
            let _ = writeln!(out, "candlepower_requests_total{{{labels}}} {count}");
        }
        for (name, kind, help, value) in [
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens.get()),
            (
                "cached_prompt_tokens_total",
                "counter",
                "Tokens of prompts that were in the cache.",
                self.cached_tokens.get(),
            ),
            ("generated_tokens_total", "counter", "Generated tokens.", self.generated_tokens.get()),
            (
                "cancelled_sequences_total",
                "counter",
                "Sequences that ended early because nobody needed more of them.",
                self.cancelled.get(),
            ),
            ("running_sequences", "gauge", "Sequences in the batch.", self.running.get()),
            ("waiting_sequences", "gauge", "Sequences in the queue.", waiting as u64),
        ] {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "candlepower_{name} {value}");
        }
        for (histogram, name, help) in [
            (
                &self.time_to_first_token,
                "time_to_first_token_seconds",
                "Time from the end of a request to its first token.",
            ),
            (&self.request, "request_duration_seconds", "Time from the end of a request to its last token."),
            (&self.step, "step_duration_seconds", "Time of a step of the batch."),
        ] {
            histogram.write(&mut out, name, help);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for ms in [1, 30, 30, 400_000] {
            metrics.step.add(Duration::from_millis(ms));
        }
        metrics.answer("/v1/completions", 200);
        let text = metrics.text(3);
        for line in [
            "candlepower_requests_total{endpoint=\"/v1/completions\",status=\"200\"} 1",
            "candlepower_step_duration_seconds_bucket{le=\"0.001\"} 1",
            "candlepower_step_duration_seconds_bucket{le=\"0.025\"} 1",
            "candlepower_step_duration_seconds_bucket{le=\"0.05\"} 3",
            "candlepower_step_duration_seconds_bucket{le=\"300\"} 3",
            "candlepower_step_duration_seconds_bucket{le=\"+Inf\"} 4",
            "candlepower_step_duration_seconds_sum 400.061",
            "candlepower_step_duration_seconds_count 4",
            "candlepower_waiting_sequences 3",
            "# TYPE candlepower_running_sequences gauge",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
    }
}
