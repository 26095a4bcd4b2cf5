//! The `candlepower` command: its arguments, and calls into the library.

// The comments of arguments are help texts and no Markdown.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod bench;
mod bisect;
mod compare;
mod doctor;
mod duel;
mod eval;
mod export;
mod flags;
mod glance;
mod history;
mod list;
mod load;
mod nightly;
mod perplexity;
mod process;
mod recommend;
mod report;
mod run;
mod sandbox;
mod scores;
mod serve;
mod standings;
mod sweep;
mod train;
mod verify;
mod watch;
mod why;
mod wrap;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Result, bail};
use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    model::ModelSpec,
    output, text,
    wrap::{MemoryMeter, PowerMeter},
};

/// Benchmarks of language models on Candle. Begin with `candlepower MODEL`.
#[derive(Parser)]
#[command(version, max_term_width = 100, override_usage = "candlepower MODEL [OPTIONS]\n       candlepower <COMMAND>")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure a model on its engines in about a minute, in one table; `candlepower MODEL` is short for it
    Glance(Box<glance::Glance>),
    /// Generate once with one model: warm-ups, trials, a table or JSON
    Run(run::Run),
    /// Show scenarios, models, and the settings in force with where each came from
    List(list::List),
    /// Look at the machine, the build, and what would make results untrustworthy
    Doctor(doctor::Doctor),
    /// Set the settings from flags and run `cargo bench`
    Bench(bench::Bench),
    /// Show which part of a generation takes how long, how close each is to the machine's limit, and what would make it faster
    Why(Box<why::Why>),
    /// Rank the engines and peers that run some models: speed in turns, memory, perplexity
    Standings(Box<standings::Standings>),
    /// Score a text: perplexity in sliding windows, and the divergence from a reference
    Perplexity(Box<perplexity::Perplexity>),
    /// Score tasks by log-likelihood, as lm-evaluation-harness does
    Eval(Box<eval::Eval>),
    /// Check that a model gives the same logits however its tokens arrive, and find the shortest input for which it does not
    Verify(verify::Verify),
    /// Measure engines, dtypes, threads and batches of a model, less those given as flags, and write the best settings
    Recommend(Box<recommend::Recommend>),
    /// Send requests to an OpenAI-compatible server by a schedule, and measure the answers
    Load(Box<load::Load>),
    /// Serve a model through an OpenAI-compatible interface
    Serve(Box<serve::Serve>),
    /// Render the chats of a server with a template that may be hostile
    #[command(hide = true, name = crate::serve::RENDER_CHATS)]
    RenderChats,
    /// Run any command and measure the memory of its processes and of GPUs
    Memory(wrap::Wrap),
    /// Run any command and measure the energy and power of the machine meanwhile
    Power(wrap::Wrap),
    /// Train and run backbones for series over a grid of architectures and sizes
    Sweep(Box<sweep::Sweep>),
    /// Train a language model on a text: losses, a curve, perplexity against a bigram model
    Train(train::Train),
    /// Train several bases on the same text and rank them
    Shootout(train::Shootout),
    /// Write a run as tables, data, plots and a page
    Report(report::Report),
    /// Write a run for another tool: github-action-benchmark, Bencher, OpenMetrics, a registry of metrics
    Export(export::Export),
    /// Show a benchmark over the reports that are kept, and where it moved
    History(history::History),
    /// Look at a run while it goes
    Watch(watch::Watch),
    /// Run a list of benchmarks, compare with the last good run, and fail on a regression
    Nightly(nightly::Nightly),
    /// Make up records of every kind, marked, to build dashboards with
    Sandbox(sandbox::Sandbox),
    /// Compare two runs, files of records, or baselines of Criterion's
    Compare(compare::Compare),
    Duel(Box<duel::Duel>),
    Bisect(Box<bisect::Bisect>),
    #[command(hide = true)]
    RecommendPart(recommend::RecommendPart),
    #[command(hide = true)]
    DuelSide(duel::DuelSide),
    #[command(hide = true)]
    DuelGuard(duel::DuelGuard),
}

/// The arguments of the process, with the command that a model in their first place stands for.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<OsString> = given.collect();
    let is_model = |first: &str| {
        !first.starts_with('-')
            && Command::command().find_subcommand(first).is_none()
            && first.parse::<ModelSpec>().is_ok()
    };
    if given.get(1).and_then(|first| first.to_str()).is_some_and(is_model) {
        given.insert(1, "glance".into());
    }
    given
}

/// Handles arguments that name no command to run. `--help` and `--version` succeed; anything else fails.
fn usage(error: &clap::Error) -> Result<ExitCode> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(error);
            Ok(ExitCode::SUCCESS)
        }
        ErrorKind::InvalidUtf8 => {
            let arguments: Vec<_> = std::env::args_os().collect();
            let shown = |place: usize| arguments.get(place).map(|argument| argument.to_string_lossy());
            let place = arguments.iter().position(|argument| argument.to_str().is_none()).unwrap_or_default();
            let value = shown(place).unwrap_or_default();
            match place.checked_sub(1).and_then(shown).filter(|flag| flag.starts_with("--")) {
                Some(flag) => bail!("{flag} '{value}': it is not UTF-8"),
                None => bail!("'{value}' is not UTF-8; see --help"),
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::report(error.to_string().trim_end());
            Ok(ExitCode::from(2))
        }
        _ => {
            let text = error.to_string();
            // The names of missing arguments follow the message on lines of their own.
            let message = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            match suggestion(error) {
                Some(near) => bail!("{message}: did you mean {near}? See --help"),
                None => bail!("{message}; see --help"),
            }
        }
    }
}

/// The name that clap found to be similar to a misspelt one.
fn suggestion(error: &clap::Error) -> Option<&str> {
    error.context().find_map(|(kind, value)| match (kind, value) {
        (
            ContextKind::SuggestedSubcommand | ContextKind::SuggestedArg | ContextKind::SuggestedValue,
            ContextValue::String(name),
        ) => Some(name.as_str()),
        (
            ContextKind::SuggestedSubcommand | ContextKind::SuggestedArg | ContextKind::SuggestedValue,
            ContextValue::Strings(names),
        ) => names.last().map(String::as_str), // the most similar
        _ => None,
    })
}

/// Prints a problem that does not stop the command. It may quote a file.
fn note(problem: &str) {
    output::report(format_args!("note: {}", text::line(problem)));
}

/// Runs the command with the arguments of the process.
pub fn command() -> ExitCode {
    crate::runner::in_one_line(|| {
        let command = match Command::try_parse_from(arguments(std::env::args_os())) {
            Ok(command) => command,
            Err(error) => return usage(&error),
        };
        match command.what {
            What::Glance(glance) => glance.run(),
            What::Run(run) => run.run(),
            What::List(list) => list.run(),
            What::Load(load) => load.run(),
            What::Why(why) => why.run(),
            What::Standings(standings) => standings.run(),
            What::Perplexity(perplexity) => perplexity.run(),
            What::Eval(eval) => eval.run(),
            What::Verify(verify) => verify.run(),
            What::Recommend(recommend) => recommend.run(),
            What::RecommendPart(part) => part.run(),
            What::Serve(serve) => serve.run(),
            What::RenderChats => serve::render_chats(),
            What::Memory(wrap) => wrap.run::<MemoryMeter>(),
            What::Power(wrap) => wrap.run::<PowerMeter>(),
            What::Doctor(doctor) => doctor.run(),
            What::Bench(bench) => bench.run(),
            What::Compare(compare) => compare.run(),
            What::Duel(duel) => duel.run(),
            What::Bisect(bisect) => bisect.run(),
            What::DuelSide(side) => side.run(),
            What::DuelGuard(guard) => guard.run(),
            What::Export(export) => export.run(),
            What::History(history) => history.run(),
            What::Sandbox(sandbox) => sandbox.run(),
            What::Nightly(nightly) => nightly.run(),
            What::Watch(watch) => watch.run(),
            What::Report(report) => report.run(),
            What::Sweep(sweep) => sweep.run(),
            What::Train(train) => train.run(),
            What::Shootout(shootout) => shootout.run(),
        }
    })
}
