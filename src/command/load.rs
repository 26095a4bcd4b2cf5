//! `candlepower load`: a load on an OpenAI-compatible server.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{FormattedDuration, ProgressBar};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    files,
    load::{
        self, Api, Arrivals, Figures, Limits, Objective, Plan, Progress, Report, Run, Shape, Shard, Spacing, Target,
        TimeRatio, Tokens, Turns,
        search::{self, Search, Step},
    },
    measure::machine,
    model,
    names::PathName,
    output, progress,
    record::{self, Conditions, Measures, Record, Serving, Sink, Status, Subject, write_whole},
    report::{latency_over_rate, table::number, text_table::terminal},
    settings::Settings,
    statistics::Paired,
    text,
    wrap::{Meter, Power, PowerMeter, Ran},
};

/// Largest report of a shard.
const REPORT_MAX_BYTES: u64 = 4 << 30;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Load {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    load: Option<Options>,
}

#[derive(Subcommand)]
enum What {
    /// Add the reports of the shards of one schedule
    Merge(Merge),
}

#[derive(Args)]
struct Merge {
    /// Reports of the shards
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// File for the merged report
    #[arg(long)]
    to: Option<PathBuf>,
    /// Print the merged report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Options {
    /// Address of the server, with or without /v1
    #[arg(long)]
    url: String,
    /// Name of the model in requests
    #[arg(long)]
    model: String,
    /// Address of another server, which gets each request too, in turns with the first
    #[arg(long, value_name = "URL", conflicts_with_all = ["sweep", "search"])]
    against: Option<String>,
    /// Name of the model in requests to --against [default: that of --model]
    #[arg(long, value_name = "MODEL", requires = "against")]
    against_model: Option<String>,
    /// File with the API key of --against, which gets neither that of the first server nor --header
    #[arg(long, value_name = "FILE", requires = "against")]
    against_api_key_file: Option<PathBuf>,
    /// The endpoint that requests go to
    #[arg(long, value_enum, default_value_t = Endpoint::Completions)]
    api: Endpoint,
    /// Requests per second; with --turns, sessions per second
    #[arg(long, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Seconds in which requests are due [default: 120, or the whole trace]
    #[arg(long, allow_negative_numbers = true)]
    duration: Option<f64>,
    /// Most requests
    #[arg(long)]
    requests: Option<u64>,
    /// When requests are due
    #[arg(long, value_enum, default_value_t = Process::Poisson)]
    arrivals: Process,
    /// Shape of gamma arrivals: 1 is Poisson, and less is burstier
    #[arg(long, default_value_t = 1.0, value_parser = burstiness)]
    burstiness: f64,
    /// Rate at the start of the ramp
    #[arg(long, default_value_t = 0.0)]
    ramp_from: f64,
    /// Seconds in which the rate goes from --ramp-from to --rate [default: 0, or the duration for --arrivals ramp]
    #[arg(long)]
    ramp: Option<f64>,
    /// Clients of a closed loop
    #[arg(long, default_value_t = 1)]
    clients: u64,
    /// Trace to replay: JSONL with timestamp, input_length, output_length and hash_ids
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Tokens of prompts: 256, uniform:64..512, normal:256,64, lognormal:256,0.5, zipf:1.2,4096 or file:PATH
    #[arg(long, default_value = "256")]
    prompt_tokens: String,
    /// Most tokens of answers, in the same forms
    #[arg(long, default_value = "64")]
    max_new_tokens: String,
    /// Tokens that all prompts begin with
    #[arg(long, default_value_t = 0)]
    shared_prefix_tokens: u32,
    /// Requests of each session; a turn leaves after the answer to the one before
    #[arg(long, default_value_t = 1)]
    turns: u32,
    /// Milliseconds between an answer and the next turn
    #[arg(long, default_value_t = 0.0)]
    think_ms: f64,
    /// Seed of arrivals, lengths and prompts
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// tokenizer.json or GGUF file of the model, to make lengths exact and to count tokens
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Objective of a request: ttft:500, tpot:50 or e2e:2000, in milliseconds from the schedule
    #[arg(long)]
    goodput: Vec<Objective>,
    /// Seconds at the start that the steady state leaves out [default: the ramp]
    #[arg(long)]
    steady_from: Option<f64>,
    /// Seconds for each request, from its schedule
    #[arg(long, default_value_t = 600.0)]
    timeout: f64,
    /// Attempts after a failed one; times still count from the schedule
    #[arg(long, default_value_t = 0)]
    retries: u32,
    /// File with the API key
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Header of each request, as 'name: value'
    #[arg(long)]
    header: Vec<String>,
    /// JSON object with more fields of each request, for example {"ignore_eos": true}
    #[arg(long)]
    extra: Option<String>,
    /// Part of the schedule to send, for example 1/4
    #[arg(long, default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Time to start at, as RFC 3339, so that shards start together
    #[arg(long)]
    start_at: Option<DateTime<Utc>>,
    /// Run at each of these rates
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["rate", "trace"])]
    sweep: Vec<f64>,
    /// Find the highest rate that meets --goodput, between two rates such as 1..64
    #[arg(long, conflicts_with_all = ["rate", "sweep", "trace"], requires = "goodput")]
    search: Option<String>,
    /// Share to which --search narrows the rate down
    #[arg(long, default_value_t = 0.05)]
    precision: f64,
    /// SVG plot of --sweep or --search: latency over the rate
    #[arg(long)]
    svg: Option<PathBuf>,
    /// First part of the benchmark id [default: named by arrivals, rate and lengths]
    #[arg(long)]
    name: Option<PathName>,
    /// Shortest run in seconds that is VALID
    #[arg(long, default_value_t = Limits::default().min_duration_s)]
    min_duration: f64,
    /// Percentile that the run must have requests for
    #[arg(long, default_value_t = Limits::default().percentile * 100.0)]
    percentile: f64,
    /// Confidence of the statement about that percentile, in percent
    #[arg(long, default_value_t = Limits::default().confidence * 100.0)]
    confidence: f64,
    /// Largest P99 of the generator's lateness that is VALID, in milliseconds
    #[arg(long, default_value_t = Limits::default().max_lateness_p99_ms)]
    max_lateness_ms: f64,
    /// Largest share of requests that fail, and of answers that come all at once, that is VALID, in percent
    #[arg(long, default_value_t = Limits::default().max_failed_share * 100.0)]
    max_failed: f64,
    /// Print the schedule as JSONL and send nothing
    #[arg(long)]
    schedule: bool,
    /// Print the record as one JSON object, with the whole report as `load`
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Endpoint {
    Completions,
    Chat,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Process {
    Constant,
    Poisson,
    Gamma,
    Ramp,
    Closed,
}

impl Load {
    pub fn run(self) -> Result<ExitCode> {
        match (self.what, self.load) {
            (Some(What::Merge(merge)), _) => merge.run(),
            (None, Some(options)) => options.run(),
            (None, None) => bail!("give --url and --model, or merge; see --help"),
        }
    }
}

impl Merge {
    fn run(self) -> Result<ExitCode> {
        let read = |path: &PathBuf| {
            let text = files::read_text_limited(path, REPORT_MAX_BYTES);
            text.map_err(anyhow::Error::from)
                .and_then(|text| Report::parse(&text))
                .with_context(|| path.display().to_string())
        };
        let merged = load::merge(self.reports.iter().map(read).collect::<Result<_>>()?)?;
        let json = serde_json::to_string(&merged)?;
        if let Some(to) = &self.to {
            write_whole(to, json.as_bytes())?;
        }
        if self.json {
            output::print_data(&json)
        } else {
            output::print(merged.text())
        }
        Ok(exit_code(merged.verdict.valid))
    }
}

impl Options {
    fn run(self) -> Result<ExitCode> {
        // Every number is checked before anything is done.
        let target = self.target()?;
        let limits = self.limits()?;
        if let Some(from) = self.steady_from {
            ensure!((0.0..=1e9).contains(&from), "--steady-from {from}: use 0 to 1e9 seconds");
        }
        ensure!(
            self.precision > 0.0 && self.precision < 1.0,
            "--precision {}: use more than 0 and less than 1",
            self.precision
        );
        if self.schedule {
            let plan = Plan::new(self.shape(self.rate)?)?;
            plan.lines().for_each(output::print_line);
            return Ok(ExitCode::SUCCESS);
        }
        let settings = Settings::load(&[])?;
        // The folder of records is opened before anything is sent.
        let saving = Saving { sink: Sink::open(&settings.out, settings.run.as_deref())?, settings, target, limits };
        if let Some(range) = &self.search {
            let ends = range.split_once("..").and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
            let (low, high) = ends.with_context(|| format!("--search {range}: give two rates, as in 1..64"))?;
            let found = search::bisect(low, high, self.precision, |rate| Ok(self.one(Some(rate), &saving)?.1))?;
            return self.show(&found, found.highest_rate_met.is_some());
        }
        if !self.sweep.is_empty() {
            let found = search::sweep(&self.sweep, |rate| Ok(self.one(Some(rate), &saving)?.1))?;
            return self.show(&found, found.steps.iter().all(|step| step.valid));
        }
        ensure!(self.svg.is_none(), "--svg needs --sweep or --search");
        if let Some(url) = &self.against {
            return self.pairs(url, &saving);
        }
        let (record, report) = self.one(self.rate, &saving)?;
        if self.json {
            let mut json = serde_json::to_value(&record)?;
            json["load"] = serde_json::to_value(&report)?;
            output::print_data(&json.to_string());
        } else {
            output::print(report.text());
        }
        Ok(exit_code(report.verdict.valid))
    }

    /// Sends each request to both servers. The ids of their records end with `_a` and `_b`.
    fn pairs(&self, url: &str, saving: &Saving) -> Result<ExitCode> {
        let scenario = self.name.as_ref().map_or_else(|| self.scenario(self.rate), PathName::to_string);
        let scenarios = ["a", "b"].map(|server| format!("{scenario}_{server}"));
        let own = self.planned(&scenarios[0], self.rate, saving)?;
        let target = Target {
            url: url.to_owned(),
            model: self.against_model.clone().unwrap_or_else(|| own.target.model.clone()),
            api_key: key(self.against_api_key_file.as_deref())?,
            headers: Vec::new(),
            ..own.target.clone()
        };
        let other = Run { target, exchanges_to: Some(saving.file(&scenarios[1], ".requests.jsonl")), ..own.clone() };
        let line = progress::shown(ProgressBar::new_spinner());
        let (reports, ratios) = load::run_against(&own, &other, &mut |progress| line.set_message(state(progress)))?;
        line.finish();
        for (scenario, report) in scenarios.iter().zip(&reports) {
            write_whole(&saving.file(scenario, ".json"), &serde_json::to_vec(report)?)?;
            let shared = Err("two servers share the machine".to_owned());
            saving.sink.append(&saving.record(scenario, report, shared))?;
        }
        if self.json {
            output::print_data(&json!({ "a": reports[0], "b": reports[1], "ratios": ratios }).to_string());
        } else {
            output::print(compared(&reports, &ratios));
        }
        Ok(exit_code(reports.iter().all(|report| report.verdict.valid)))
    }

    /// One run at a rate. Its record, report and exchanges are written to the run's folder.
    fn one(&self, rate: Option<f64>, saving: &Saving) -> Result<(Record, Report)> {
        let scenario = self.name.as_ref().map_or_else(|| self.scenario(rate), PathName::to_string);
        let run = self.planned(&scenario, rate, saving)?;
        // Drawn on standard error, and only if that is a terminal.
        let line = progress::shown(ProgressBar::new_spinner());
        let mut meter = self.power_meter(&run.target);
        let report = load::run(&run, &mut |progress| {
            if let Ok(meter) = &mut meter {
                meter.look(std::process::id(), progress.elapsed_s);
            }
            line.set_message(state(progress));
        })?;
        let ran = Ran { duration_s: report.summary.all.seconds, ..Ran::default() };
        let power = meter.map(|meter| meter.end(ran));
        line.finish();
        write_whole(&saving.file(&scenario, ".json"), &serde_json::to_vec(&report)?)?;
        let joules_per_token = power.and_then(|power| joules_per_token(power, report.tally.all.output_tokens));
        let record = saving.record(&scenario, &report, joules_per_token);
        saving.sink.append(&record)?;
        Ok((record, report))
    }

    /// The run at a rate.
    fn planned(&self, scenario: &str, rate: Option<f64>, saving: &Saving) -> Result<Run> {
        let shape = self.shape(rate)?;
        let ramp_s = match shape.arrivals {
            Arrivals::Open { ramp_s, .. } => ramp_s,
            Arrivals::Closed { .. } | Arrivals::Trace => 0.0,
        };
        Ok(Run {
            plan: Plan::new(shape)?,
            shard: self.shard,
            target: saving.target.clone(),
            tokens: self.tokenizer.as_deref().map(tokens).transpose()?,
            objectives: self.goodput.clone(),
            steady_from_s: self.steady_from.unwrap_or(ramp_s),
            limits: saving.limits,
            start_at: self.start_at.map(SystemTime::from),
            exchanges_to: Some(saving.file(scenario, ".requests.jsonl")),
        })
    }

    /// Reads the counters of this machine, or gives the reason why they do not tell the energy of the answers.
    fn power_meter(&self, target: &Target) -> Result<PowerMeter, String> {
        match (target.is_on_loopback(), self.shard == Shard::WHOLE) {
            (true, true) => Ok(PowerMeter::start()),
            (false, _) => Err("the counters of the server's machine cannot be read here".into()),
            (true, false) => Err("the server answers the other shards too".into()),
        }
    }

    fn shape(&self, rate: Option<f64>) -> Result<Shape> {
        const DURATION_S: f64 = 120.0;
        let is_bounded = self.requests.is_some() || self.trace.is_some();
        let duration_s = self.duration.or((!is_bounded).then_some(DURATION_S));
        let arrivals = match (&self.trace, self.arrivals) {
            (Some(_), _) => Arrivals::Trace,
            (None, Process::Closed) => Arrivals::Closed { clients: self.clients },
            (None, process) => {
                let spacing = match process {
                    Process::Poisson => Spacing::Poisson,
                    Process::Gamma => Spacing::Gamma(self.burstiness),
                    _ => Spacing::Constant,
                };
                let ramps = process == Process::Ramp;
                ensure!(!ramps || self.ramp.or(duration_s).is_some(), "--arrivals ramp needs --ramp or --duration");
                Arrivals::Open {
                    rate: rate.context("give --rate, --sweep, --search, --trace or --arrivals closed")?,
                    spacing,
                    ramp_from: self.ramp_from,
                    ramp_s: self.ramp.or(duration_s.filter(|_| ramps)).unwrap_or(0.0),
                }
            }
        };
        Ok(Shape {
            seed: self.seed,
            arrivals,
            duration_s,
            requests: self.requests,
            prompt_tokens: self.prompt_tokens.parse().context("--prompt-tokens")?,
            max_new_tokens: self.max_new_tokens.parse().context("--max-new-tokens")?,
            shared_prefix_tokens: self.shared_prefix_tokens,
            turns: Turns { count: self.turns, think_ms: self.think_ms },
            trace: self.trace.clone(),
        })
    }

    fn limits(&self) -> Result<Limits> {
        let limits = Limits {
            min_duration_s: self.min_duration,
            max_lateness_p99_ms: self.max_lateness_ms,
            percentile: self.percentile / 100.0,
            confidence: self.confidence / 100.0,
            max_failed_share: self.max_failed / 100.0,
            ..Limits::default()
        };
        limits.validate()?;
        Ok(limits)
    }

    fn target(&self) -> Result<Target> {
        const MAX_S: f64 = 1e6;
        let is_time = self.timeout > 0.0 && self.timeout <= MAX_S;
        ensure!(is_time, "--timeout {}: use more than 0 and at most {MAX_S} seconds", self.timeout);
        Ok(Target {
            url: self.url.clone(),
            api: match self.api {
                Endpoint::Completions => Api::Completions,
                Endpoint::Chat => Api::Chat,
            },
            model: self.model.clone(),
            api_key: key(self.api_key_file.as_deref())?,
            headers: self.header.clone(),
            extra: self.extra.as_deref().map_or_else(|| Ok(serde_json::Map::new()), load::extra).context("--extra")?,
            timeout: Duration::from_secs_f64(self.timeout),
            retries: self.retries,
        })
    }

    /// A name for records by which only loads of the same kind are compared.
    fn scenario(&self, rate: Option<f64>) -> String {
        let arrivals = match (&self.trace, self.arrivals) {
            (Some(trace), _) => format!("trace_{}", trace.file_stem().unwrap_or_default().to_string_lossy()),
            (None, Process::Closed) => format!("closed_{}", self.clients),
            (None, process) => {
                let name = process.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
                format!("{name}_{}", rate.unwrap_or(0.0))
            }
        };
        let (prompt, new) = (&self.prompt_tokens, &self.max_new_tokens);
        let turns = if self.turns > 1 { format!("_t{}", self.turns) } else { String::new() };
        let shard = if self.shard == Shard::WHOLE { String::new() } else { format!("_shard_{}", self.shard) };
        let api = match self.api {
            Endpoint::Completions => "completions",
            Endpoint::Chat => "chat",
        };
        let name = format!("load_{api}_{arrivals}_p{prompt}_n{new}{turns}{shard}");
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '.' { c } else { '-' }).collect()
    }

    fn show(&self, search: &Search, succeeded: bool) -> Result<ExitCode> {
        if let Some(svg) = &self.svg {
            write_whole(svg, knee(search).as_bytes())?;
        }
        if self.json {
            output::print_data(&serde_json::to_string(search)?);
        } else {
            output::print(search.text());
        }
        Ok(exit_code(succeeded))
    }
}

/// An SVG plot of percentiles over the rate.
fn knee(search: &Search) -> String {
    let mut steps: Vec<&Step> = search.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let line = |get: fn(&Step) -> Option<f64>| steps.iter().filter_map(|step| Some((step.rate, get(step)?))).collect();
    let plot = latency_over_rate(&[
        ("TTFT P50", line(|step| step.ttft_p50_ms)),
        ("TTFT P99", line(|step| step.ttft_p99_ms)),
        ("TPOT P99", line(|step| step.tpot_p99_ms)),
        ("E2E P99", line(|step| step.e2e_p99_ms)),
    ]);
    plot.file_svg()
}

/// What all runs of a command share, and where their records go.
struct Saving {
    sink: Sink,
    settings: Settings,
    target: Target,
    limits: Limits,
}

impl Saving {
    /// A file of a scenario in the folder of the run.
    fn file(&self, scenario: &str, end: &str) -> PathBuf {
        self.sink.path().with_file_name(format!("{scenario}{end}"))
    }

    fn record(&self, scenario: &str, report: &Report, joules_per_token: Result<f64, String>) -> Record {
        let name = report.model.rsplit(['/', ':']).next().unwrap_or_default();
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let subject = Subject {
            model: if name.is_empty() { "model".into() } else { name },
            engine: "http".into(),
            dtype: "unknown".into(),
            device: "server".into(),
            source: format!("{} at {}", report.model, report.url),
            synthetic_weights: false,
            parameters: None,
            weight_bytes: None,
            formats: Default::default(),
            sizes: Default::default(),
            peer: None,
        };
        let failed = (report.summary.all.requests == report.summary.all.failed)
            .then(|| report.verdict.reasons.first().cloned().unwrap_or_default());
        let by_server = "a server does not state it";
        let no_joules = joules_per_token.as_ref().err().map(|reason| ("joules_per_token", reason.as_str()));
        let unmeasured = [
            ("subject.parameters", by_server),
            ("subject.weight_bytes", by_server),
            ("peak_bytes", by_server),
            ("limits", "the limits of the server's machine are not known here"),
            ("conditions.other_cpu_share", "a load does not observe the machine; its own lateness is measured instead"),
            (
                "conditions.stolen_cpu_share",
                "a load does not observe the machine; its own lateness is measured instead",
            ),
        ];
        Record {
            schema: record::SCHEMA,
            run: self.sink.run().to_owned(),
            sandbox: false,
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            id: record::BenchmarkId::new(scenario, &subject).to_string(),
            scenario: scenario.to_owned(),
            subject,
            status: if failed.is_some() { Status::Failed } else { Status::Measured },
            unmeasured: unmeasured
                .into_iter()
                .chain(no_joules)
                .map(|(field, why)| (field.into(), why.into()))
                .collect(),
            measures: failed.is_none().then(|| {
                Measures::Serving(Serving { joules_per_token: joules_per_token.ok(), ..Serving::from(report) })
            }),
            reason: failed,
            first_non_finite_step: None,
            duel: None,
            deviates: None,
            limits: None,
            conditions: Some(Conditions { doubts: report.verdict.reasons.clone(), ..Conditions::default() }),
            between_runs: None,
            ratios: Vec::new(),
            machine: machine::machine(std::thread::available_parallelism().map_or(1, usize::from), None),
            software: machine::software(),
            settings: self.settings.sources.clone(),
            // It may hold an API key.
            command: None,
        }
    }
}

/// Energy of the machine during a load, for each token of the answers, or the reason why it is unknown.
fn joules_per_token(power: Power, output_tokens: u64) -> Result<f64, String> {
    let reasons = || power.unmeasured.iter().map(|(what, why)| format!("{what}: {why}")).collect::<Vec<_>>().join("; ");
    match power.joules {
        Some(joules) if output_tokens > 0 => Ok(joules / output_tokens as f64),
        Some(_) => Err("no token was generated".into()),
        None => Err(reasons()),
    }
}

/// The API key in a file, if one is named.
fn key(file: Option<&Path>) -> Result<Option<String>> {
    let read = |path: &Path| files::read_key(path).with_context(|| format!("the API key in {}", path.display()));
    file.map(read).transpose()
}

/// Two servers beside each other, and why the figures of one may not be used.
fn compared(reports: &[Report; 2], ratios: &[TimeRatio]) -> String {
    let mut page = String::new();
    for (server, report) in ["A", "B"].into_iter().zip(reports) {
        let (model, url) = (text::line(&report.model), text::line(&report.url));
        let Figures { requests, failed, .. } = report.summary.all;
        let verdict = if report.verdict.valid { "VALID" } else { "INVALID" };
        let _ = writeln!(page, "{server}  {model} at {url}: {requests} requests, {failed} failed, {verdict}");
        for reason in &report.verdict.reasons {
            let _ = writeln!(page, "   - {}", text::line(reason));
        }
    }
    if ratios.is_empty() {
        page.push_str("\nNo request was answered by both, so there is no ratio.\n");
        return page;
    }
    let mut rows = vec![["time", "A P50 ms", "B P50 ms", "B / A", "pairs"].map(str::to_owned).to_vec()];
    rows.extend(ratios.iter().map(|TimeRatio { timed, p50_ms, paired }| {
        let Paired { ratio, low, high, pairs, .. } = paired;
        let ratio = format!("{ratio:.3} ({low:.3} to {high:.3})");
        let [first, second] = p50_ms.map(|ms| number(Some(ms)));
        vec![timed.name().to_uppercase(), first, second, ratio, pairs.to_string()]
    }));
    let level = ratios.iter().map(|ratio| ratio.paired.level).reduce(f64::min).unwrap_or_default();
    let _ = write!(
        page,
        "\n{}\nTimes from the send. Ratios are medians of the pairs, with their {:.0} % interval.\n",
        terminal(&rows, 1),
        level * 100.0
    );
    page
}

/// The tokenizer of a file, named by its hash.
fn tokens(path: &Path) -> Result<Tokens> {
    let (tokenizer, content) = model::tokenizer_in_file(path)?;
    let hash: String = Sha256::digest(content.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let count = move |text: &str| tokenizer.encode_fast(text, false).map_or(0, |encoding| encoding.len());
    Ok(Tokens::new(format!("sha256:{hash}"), count))
}

/// The state of a run in one line.
fn state(progress: &Progress) -> String {
    if !progress.starts_in.is_zero() {
        return format!("starts in {}", FormattedDuration(progress.starts_in));
    }
    let ms = |ms: Option<f64>| ms.map_or_else(|| "n/a".into(), |ms| format!("{ms:.1} ms"));
    format!(
        "{:.0} s: {} ended, {} failed, TTFT P50 {}, lateness P99 {}",
        progress.elapsed_s,
        progress.ended,
        progress.failed,
        ms(progress.ttft_p50_ms),
        ms(progress.lateness_p99_ms)
    )
}

/// A shape of gamma arrivals, checked also where the arrivals are others.
fn burstiness(text: &str) -> Result<f64, String> {
    let shape = text.parse().ok().filter(|shape| (0.01..=1e6).contains(shape));
    shape.ok_or_else(|| "expected a number from 0.01 to 1000000".into())
}

fn exit_code(succeeded: bool) -> ExitCode {
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_down_before_it_counts_requests() {
        let at = |s| Progress {
            starts_in: Duration::from_secs(s),
            elapsed_s: 0.0,
            ended: 0,
            failed: 0,
            ttft_p50_ms: None,
            lateness_p99_ms: None,
        };
        assert_eq!(state(&at(3725)), "starts in 01:02:05");
        assert!(state(&at(0)).starts_with("0 s: 0 ended"), "{}", state(&at(0)));
    }
}
