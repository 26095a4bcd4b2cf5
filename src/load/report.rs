//! The result of a run as a file, with its percentiles, goodput and verdict. Reports of shards can be merged.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, Result, ensure};
use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::{
    arrivals::{Arrivals, Spacing},
    client::Api,
    exchange::{Oddity, Outcome},
    generator::Run,
    histogram::Histogram,
    objective::Objective,
    plan::Shard,
    statistics::{binomial_at_most, dependence, interval_ranks, most_over, requests_needed},
    tally::{Tally, Times, Window},
    verdict::{Limits, Verdict},
};
use crate::{record::Serving, text};

/// Marks the file.
const KIND: &str = "candlepower load";
/// Version of the file.
const SCHEMA: u32 = 2;
/// Most requests of a report.
const MOST_REQUESTS: u64 = 1_000_000_000;
/// Percentiles of every report.
const PERCENTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];
/// Confidence of the intervals of percentiles.
const CONFIDENCE: f64 = 0.95;

/// The result of a run, or of the shards of one schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Marks the file: `candlepower load`.
    pub kind: String,
    /// Version of the file.
    pub schema: u32,
    /// Time at which the run ended, in UTC.
    pub at: String,
    /// Address of the server, without what follows its path.
    pub url: String,
    /// Name of the model.
    pub model: String,
    /// The parameters of the run, by name.
    pub settings: BTreeMap<String, String>,
    /// First 16 hexadecimal digits of the SHA-256 of the whole schedule.
    pub schedule_digest: String,
    /// The same of the prompts of each shard, by shard.
    pub prompt_digests: BTreeMap<String, String>,
    /// Requests per second that the schedule asks for; `null` in a closed loop.
    pub offered_per_s: Option<f64>,
    /// Time from the start after which the steady state begins, in seconds.
    pub steady_from_s: f64,
    /// Objectives of goodput.
    pub objectives: Vec<Objective>,
    /// When the verdict is INVALID.
    pub limits: Limits,
    /// True if the figures may be used.
    pub verdict: Verdict,
    /// The figures.
    pub summary: Summary,
    /// Counts and histograms, from which everything else follows.
    pub tally: Tally,
}

/// Figures for people and records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All requests.
    pub all: Figures,
    /// Requests due after the ramp; `null` if there was no ramp.
    pub steady: Option<Figures>,
    /// Time between the schedule and the send: the error of the generator.
    pub lateness: Latency,
    /// Time by which threads of the generator woke late.
    pub wake_delay: Latency,
    /// MLPerf's early-stopping rule, applied to the limits' percentile.
    pub early_stopping: EarlyStopping,
}

/// Figures of a window of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were due.
    pub requests: u64,
    /// Those that failed. They are not in the latencies, and they meet no objective.
    pub failed: u64,
    /// From the first schedule to the last end.
    pub seconds: f64,
    /// Requests that succeeded, per second.
    pub requests_per_s: f64,
    /// Tokens of their answers, per second.
    pub output_tokens_per_s: f64,
    /// Requests that met every objective; `null` without objectives.
    pub goodput: Option<Goodput>,
    /// Time to first token, from the schedule.
    pub ttft: Latency,
    /// Time per output token.
    pub tpot: Latency,
    /// Inter-token latency.
    pub itl: Latency,
    /// Time to the end of the answer, from the schedule.
    pub e2e: Latency,
    /// Time between events.
    pub chunk_gap: Latency,
    /// Time to first token, from the send.
    pub ttft_from_send: Latency,
    /// Time to the end of the answer, from the send.
    pub e2e_from_send: Latency,
}

/// Requests that met every objective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Requests, from the schedule.
    pub met: u64,
    /// Requests that are not judged, because a time that an objective limits is unknown.
    pub unjudged: u64,
    /// Those that met them, as a share of the requests that are judged.
    pub share: f64,
    /// Per second.
    pub requests_per_s: f64,
    /// The share from the send.
    pub share_from_send: f64,
    /// Requests per second from the send.
    pub requests_per_s_from_send: f64,
    /// Verdict on the limits' percentile of the requests.
    pub objective: Proof,
}

/// Verdict that a number of requests permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// The percentile meets the objectives, at the confidence of the limits.
    Met,
    /// It misses them, at the same confidence.
    Missed,
    /// The requests are too few to tell.
    Insufficient,
}

/// Result of MLPerf's early-stopping rule for a percentile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// The percentile, from 0 to 1.
    pub percentile: f64,
    /// The confidence.
    pub confidence: f64,
    /// Requests that succeeded.
    pub requests: u64,
    /// Requests that the percentile needs if none is over its limit.
    pub needed: u64,
    /// A value that the percentile of the time to first token does not exceed, at the confidence. `null` if the requests
    /// are too few.
    pub ttft_at_most_ms: Option<f64>,
    /// The same for the time to the end of the answer.
    pub e2e_at_most_ms: Option<f64>,
}

/// A distribution of times. Everything is `null` without a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean_ms: Option<f64>,
    /// Smallest value.
    pub min_ms: Option<f64>,
    /// Largest value.
    pub max_ms: Option<f64>,
    /// P50, P90, P95, P99 and P99.9.
    pub percentiles: Vec<Percentile>,
}

/// A percentile and its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    /// From 0 to 1.
    pub percentile: f64,
    /// The value.
    pub ms: f64,
    /// Lower end; `null` if the values are too few, or of one request and so not independent.
    pub low_ms: Option<f64>,
    /// Upper end.
    pub high_ms: Option<f64>,
}

impl Latency {
    /// The value of one of the percentiles.
    pub fn at(&self, percentile: f64) -> Option<f64> {
        self.percentiles.iter().find(|p| p.percentile == percentile).map(|p| p.ms)
    }

    /// `in_order` has the same values in the order of arrival; without it there are no intervals.
    fn of(histogram: &Histogram, in_order: Option<&[f64]>) -> Self {
        let percentiles = PERCENTILES.iter().filter_map(|&percentile| {
            let ends = in_order.map(|values| {
                interval_ranks(histogram.count(), percentile, CONFIDENCE, dependence(values, percentile))
            });
            let (low, high) = ends.unwrap_or_default();
            let at = |rank: Option<u64>| histogram.at_rank_ms(rank?);
            Some(Percentile {
                percentile,
                ms: histogram.percentile_ms(percentile)?,
                low_ms: at(low),
                high_ms: at(high),
            })
        });
        Self {
            count: histogram.count(),
            mean_ms: histogram.mean_ms(),
            min_ms: histogram.min_ms(),
            max_ms: histogram.max_ms(),
            percentiles: percentiles.collect(),
        }
    }
}

impl Figures {
    /// `times` are those of the window's requests in the order of the schedule, or none if they are not known.
    fn of(window: &Window, times: Option<&[Times]>, objectives: &[Objective], limits: &Limits) -> Self {
        let column =
            |get: fn(&Times) -> Option<f64>| -> Option<Vec<f64>> { Some(times?.iter().filter_map(get).collect()) };
        let ttft = column(|times| times.ttft_ms);
        let tpot = column(|times| times.tpot_ms);
        let e2e = column(|times| Some(times.e2e_ms));
        let seconds = window.seconds();
        let per_s = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let share = |met: u64, unjudged: u64| met as f64 / (window.requests - unjudged).max(1) as f64;
        let judged = window.requests - window.unjudged;
        let goodput = (!objectives.is_empty()).then(|| Goodput {
            met: window.met,
            unjudged: window.unjudged,
            share: share(window.met, window.unjudged),
            requests_per_s: per_s(window.met),
            share_from_send: share(window.met_from_send, window.unjudged_from_send),
            requests_per_s_from_send: per_s(window.met_from_send),
            objective: proof(judged, judged - window.met, limits),
        });
        Self {
            requests: window.requests,
            failed: window.requests - window.ok,
            seconds,
            requests_per_s: per_s(window.ok),
            output_tokens_per_s: per_s(window.output_tokens),
            goodput,
            ttft: Latency::of(&window.scheduled.ttft, ttft.as_deref()),
            tpot: Latency::of(&window.tpot, tpot.as_deref()),
            itl: Latency::of(&window.itl, None),
            e2e: Latency::of(&window.scheduled.e2e, e2e.as_deref()),
            chunk_gap: Latency::of(&window.chunk_gap, None),
            ttft_from_send: Latency::of(&window.sent.ttft, ttft.as_deref()),
            e2e_from_send: Latency::of(&window.sent.e2e, e2e.as_deref()),
        }
    }
}

/// Applies the rule to `requests`, of which `over` exceeded their limit.
fn proof(requests: u64, over: u64, limits: &Limits) -> Proof {
    let Limits { percentile, confidence, .. } = *limits;
    if requests >= requests_needed(percentile, confidence, over) {
        return Proof::Met;
    }
    // If the percentile met the objectives, so many over them would be this rare.
    let chance = if over == 0 { 1.0 } else { 1.0 - binomial_at_most(over - 1, requests, 1.0 - percentile) };
    if chance <= 1.0 - confidence { Proof::Missed } else { Proof::Insufficient }
}

impl Report {
    pub(super) fn new(run: &Run, tally: Tally, prompt_digest: String) -> Self {
        let shape = &run.plan.shape;
        let offered_per_s = match shape.arrivals {
            Arrivals::Open { rate, .. } => Some(rate * f64::from(shape.turns.count)),
            Arrivals::Closed { .. } | Arrivals::Trace => None,
        };
        Self {
            kind: KIND.into(),
            schema: SCHEMA,
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            url: run.target.shown_url(),
            model: run.target.model.clone(),
            settings: settings(run),
            schedule_digest: run.plan.digest(),
            prompt_digests: BTreeMap::from([(run.shard.to_string(), prompt_digest)]),
            offered_per_s,
            steady_from_s: run.steady_from_s,
            objectives: run.objectives.clone(),
            limits: run.limits,
            verdict: Verdict::of(&tally, &run.limits),
            summary: Summary::of(&tally, run.steady_from_s, &run.objectives, &run.limits),
            tally,
        }
    }

    /// Reads a report.
    ///
    /// # Errors
    /// When the text is not a report of this version.
    pub fn parse(content: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(content).context("it is not a report of a load")?;
        ensure!(report.kind == KIND && report.schema == SCHEMA, "its version is {}, not {SCHEMA}", report.schema);
        report.limits.validate()?;
        for Window { requests, ok, met, met_from_send, unjudged, unjudged_from_send, .. } in
            [&report.tally.all, &report.tally.steady]
        {
            let judged = met.saturating_add(*unjudged).max(met_from_send.saturating_add(*unjudged_from_send));
            ensure!(
                *requests <= MOST_REQUESTS && judged <= *ok && ok <= requests,
                "its counts of requests contradict one another"
            );
        }
        Ok(report)
    }

    /// The report as text for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let Figures { requests, failed, seconds, requests_per_s, output_tokens_per_s, .. } = self.summary.all;
        let _ = writeln!(out, "{} at {}", text::line(&self.model), text::line(&self.url));
        let _ = writeln!(
            out,
            "{requests} requests in {seconds:.1} s, {failed} failed: {requests_per_s:.2} requests/s, \
             {output_tokens_per_s:.1} output tok/s\n"
        );
        out += &table("all requests", &self.summary.all);
        if let Some(steady) = &self.summary.steady {
            out += &table(&format!("steady state, {} requests", steady.requests), steady);
        }
        let _ = write!(out, "{}", row("lateness", &self.summary.lateness));
        let _ = writeln!(out, "{}", row("thread delay", &self.summary.wake_delay));
        if let Some(goodput) = &self.summary.all.goodput {
            let objectives: Vec<String> = self.objectives.iter().map(Objective::to_string).collect();
            let _ = writeln!(
                out,
                "goodput ({}): {:.2} requests/s, {:.1} % of those judged; from the send {:.1} %; {} not judged; P{}: {:?}",
                objectives.join(" "),
                goodput.requests_per_s,
                goodput.share * 100.0,
                goodput.share_from_send * 100.0,
                goodput.unjudged,
                self.limits.percentile * 100.0,
                goodput.objective
            );
        }
        let tokens = &self.tally.tokens;
        let _ = writeln!(
            out,
            "tokens: {} by usage, {} by our tokenizer, {} events; usage differs from our count in {} requests",
            some(tokens.usage_counted, tokens.usage),
            some(tokens.own_counted, tokens.own),
            tokens.chunks,
            tokens.usage_differs_from_own
        );
        for (outcome, count) in self.tally.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::Ok) {
            let example = self.tally.failures.get(outcome).map_or("", String::as_str);
            let _ = writeln!(out, "{count} × {}: {}", name(outcome), text::line(example));
        }
        for (oddity, count) in &self.tally.oddities {
            let hint = if *oddity == Oddity::UnplacedTokens {
                ": TPOT and ITL are unknown, because nothing tells how many tokens an event has; --tokenizer does"
            } else {
                ""
            };
            let _ = writeln!(out, "{count} × {}{hint}", name(oddity));
        }
        let _ = writeln!(out, "{}", if self.verdict.valid { "VALID" } else { "INVALID" });
        for reason in &self.verdict.reasons {
            let _ = writeln!(out, "- {}", text::line(reason));
        }
        out
    }

    /// Median scheduled E2E of each of twenty groups of consecutive requests, or the times themselves if they are fewer. The
    /// times of neighbours depend on each other, so a comparison takes groups as its samples.
    pub(crate) fn sample_e2e_ms(&self) -> Vec<f64> {
        const GROUPS: usize = 20;
        let times = self.tally.times_in_order();
        let groups = GROUPS.min(times.len());
        let group = |number: usize| {
            let of_group = &times[number * times.len() / groups..(number + 1) * times.len() / groups];
            let mut values: Vec<f64> = of_group.iter().map(|times| times.e2e_ms).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (0..groups).map(group).collect()
    }
}

/// Merges the reports of shards of one schedule.
///
/// # Errors
/// When they are of different schedules, or of the same shard.
pub fn merge(reports: Vec<Report>) -> Result<Report> {
    let mut reports = reports.into_iter();
    let mut merged = reports.next().context("there is no report to merge")?;
    for report in reports {
        ensure!(
            report.schedule_digest == merged.schedule_digest && report.objectives == merged.objectives,
            "the reports are of different schedules or objectives: {} and {}",
            merged.schedule_digest,
            report.schedule_digest
        );
        for (shard, digest) in report.prompt_digests {
            ensure!(merged.prompt_digests.insert(shard.clone(), digest).is_none(), "shard {shard} is there twice");
        }
        merged.tally.merge(&report.tally)?;
        merged.at = merged.at.max(report.at);
    }
    let shards: Vec<Shard> = merged.prompt_digests.keys().map(|shard| shard.parse()).collect::<Result<_>>()?;
    let count = shards.first().map_or(1, |shard| shard.count);
    ensure!(shards.iter().all(|shard| shard.count == count), "the shards are of different numbers of shards");
    merged.verdict = Verdict::of(&merged.tally, &merged.limits);
    if (shards.len() as u64) < count {
        merged.verdict.valid = false;
        merged.verdict.reasons.push(format!("{} of {count} shards are missing.", count - shards.len() as u64));
    }
    merged.summary = Summary::of(&merged.tally, merged.steady_from_s, &merged.objectives, &merged.limits);
    merged.settings.remove("shard");
    Ok(merged)
}

impl Summary {
    fn of(tally: &Tally, steady_from_s: f64, objectives: &[Objective], limits: &Limits) -> Self {
        let Limits { percentile, confidence, .. } = *limits;
        let times = tally.times_in_order();
        let at_most = |histogram: &Histogram| {
            let over = most_over(percentile, confidence, histogram.count())?;
            histogram.at_rank_ms(histogram.count() - over)
        };
        let has_ramp = tally.steady.requests < tally.all.requests;
        let steady_times: Vec<Times> =
            times.iter().filter(|times| times.due_ms >= steady_from_s * 1e3).copied().collect();
        Self {
            all: Figures::of(&tally.all, Some(&times), objectives, limits),
            steady: has_ramp.then(|| Figures::of(&tally.steady, Some(&steady_times), objectives, limits)),
            lateness: Latency::of(&tally.lateness, None),
            wake_delay: Latency::of(&tally.wake_delay, None),
            early_stopping: EarlyStopping {
                percentile,
                confidence,
                requests: tally.all.ok,
                needed: requests_needed(percentile, confidence, 0),
                ttft_at_most_ms: at_most(&tally.all.scheduled.ttft),
                e2e_at_most_ms: at_most(&tally.all.scheduled.e2e),
            },
        }
    }
}

/// The parameters of a run.
fn settings(run: &Run) -> BTreeMap<String, String> {
    let shape = &run.plan.shape;
    let arrivals = match shape.arrivals {
        Arrivals::Closed { clients } => format!("closed, {clients} clients"),
        Arrivals::Trace => "trace".into(),
        Arrivals::Open { rate, spacing, ramp_from, ramp_s } => {
            let spacing = match spacing {
                Spacing::Constant => "constant".into(),
                Spacing::Poisson => "poisson".into(),
                Spacing::Gamma(shape) => format!("gamma, burstiness {shape}"),
            };
            let ramp = if ramp_s > 0.0 { format!(", from {ramp_from}/s within {ramp_s} s") } else { String::new() };
            format!("{spacing}, {rate}/s{ramp}")
        }
    };
    let optional = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    [
        ("arrivals", arrivals),
        ("seed", shape.seed.to_string()),
        ("duration_s", optional(shape.duration_s.map(|s| s.to_string()))),
        ("requests", optional(shape.requests.map(|n| n.to_string()))),
        ("prompt_tokens", shape.prompt_tokens.to_string()),
        ("max_new_tokens", shape.max_new_tokens.to_string()),
        ("shared_prefix_tokens", shape.shared_prefix_tokens.to_string()),
        ("turns", shape.turns.count.to_string()),
        ("think_ms", shape.turns.think_ms.to_string()),
        ("trace", optional(shape.trace.as_ref().map(|path| path.display().to_string()))),
        ("shard", run.shard.to_string()),
        ("api", if run.target.api == Api::Chat { "chat" } else { "completions" }.into()),
        ("tokenizer", optional(run.tokens.as_ref().map(|tokens| tokens.name().to_owned()))),
        ("timeout_s", run.target.timeout.as_secs_f64().to_string()),
        ("retries", run.target.retries.to_string()),
        ("steady_from_s", run.steady_from_s.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The name of a class as in files.
fn name(class: &impl Serialize) -> String {
    serde_json::to_value(class).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
}

fn some(counted: u64, tokens: u64) -> String {
    if counted > 0 { tokens.to_string() } else { "none".into() }
}

fn table(title: &str, figures: &Figures) -> String {
    let mut out = format!("{title}\n{:<24}", "ms");
    ["mean", "P50", "P90", "P95", "P99", "P99.9"].iter().for_each(|header| {
        let _ = write!(out, "{header:>10}");
    });
    out.push('\n');
    for (name, latency) in [
        ("TTFT from the schedule", &figures.ttft),
        ("E2E from the schedule", &figures.e2e),
        ("TPOT", &figures.tpot),
        ("ITL", &figures.itl),
        ("gap between events", &figures.chunk_gap),
        ("TTFT from the send", &figures.ttft_from_send),
        ("E2E from the send", &figures.e2e_from_send),
    ] {
        out += &row(name, latency);
    }
    out
}

fn row(name: &str, latency: &Latency) -> String {
    let cell = |ms: Option<f64>| ms.map_or_else(|| "n/a".into(), |ms| format!("{ms:.2}"));
    let mut out = format!("{name:<24}{:>10}", cell(latency.mean_ms));
    PERCENTILES.iter().for_each(|p| {
        let _ = write!(out, "{:>10}", cell(latency.at(*p)));
    });
    out + "\n"
}

impl From<&Report> for Serving {
    fn from(report: &Report) -> Self {
        let (all, tokens) = (&report.summary.all, &report.tally.tokens);
        let counted = |requests: u64, tokens: u64| (requests > 0).then_some(tokens);
        let digests: Vec<&str> = report.prompt_digests.values().map(String::as_str).collect();
        Self {
            valid: report.verdict.valid,
            offered_requests_per_s: report.offered_per_s,
            requests: all.requests,
            failed_requests: all.failed,
            duration_s: all.seconds,
            requests_per_s: all.requests_per_s,
            output_tokens_per_s: all.output_tokens_per_s,
            goodput_requests_per_s: all.goodput.map(|goodput| goodput.requests_per_s),
            goodput_share: all.goodput.map(|goodput| goodput.share),
            goodput_share_from_send: all.goodput.map(|goodput| goodput.share_from_send),
            ttft_p50_ms: all.ttft.at(0.5),
            ttft_p90_ms: all.ttft.at(0.9),
            ttft_p95_ms: all.ttft.at(0.95),
            ttft_p99_ms: all.ttft.at(0.99),
            ttft_p99_9_ms: all.ttft.at(0.999),
            tpot_p50_ms: all.tpot.at(0.5),
            tpot_p90_ms: all.tpot.at(0.9),
            tpot_p95_ms: all.tpot.at(0.95),
            tpot_p99_ms: all.tpot.at(0.99),
            tpot_p99_9_ms: all.tpot.at(0.999),
            itl_p50_ms: all.itl.at(0.5),
            itl_p90_ms: all.itl.at(0.9),
            itl_p95_ms: all.itl.at(0.95),
            itl_p99_ms: all.itl.at(0.99),
            itl_p99_9_ms: all.itl.at(0.999),
            e2e_p50_ms: all.e2e.at(0.5),
            e2e_p90_ms: all.e2e.at(0.9),
            e2e_p95_ms: all.e2e.at(0.95),
            e2e_p99_ms: all.e2e.at(0.99),
            e2e_p99_9_ms: all.e2e.at(0.999),
            ttft_from_send_p50_ms: all.ttft_from_send.at(0.5),
            ttft_from_send_p99_ms: all.ttft_from_send.at(0.99),
            e2e_from_send_p50_ms: all.e2e_from_send.at(0.5),
            e2e_from_send_p99_ms: all.e2e_from_send.at(0.99),
            chunk_gap_p50_ms: all.chunk_gap.at(0.5),
            chunk_gap_p99_ms: all.chunk_gap.at(0.99),
            lateness_p99_ms: report.summary.lateness.at(0.99),
            prompt_tokens_by_usage: counted(tokens.prompt_counted, tokens.prompt),
            cached_tokens: tokens.cached,
            output_tokens_by_usage: counted(tokens.usage_counted, tokens.usage),
            output_tokens_by_tokenizer: counted(tokens.own_counted, tokens.own),
            chunks: tokens.chunks,
            divergent_requests: tokens.usage_differs_from_own,
            schedule_digest: report.schedule_digest.clone(),
            prompt_digest: digests.join(","),
            sample_e2e_ms: report.sample_e2e_ms(),
            // A server tells nothing of these.
            sample_ms: Vec::new(),
            token_digest: None,
            peak_bytes: None,
            joules_per_token: None,
        }
    }
}
