//! One iteration of each kind of benchmark: a generation, a step of a language model, a step of a network for series, each here
//! or by a peer, a load on the scheduler of the server, a load of a checkpoint, a pass of a tokenizer, a score of a window of text.
//!
//! A [`Workload`] runs iterations and turns those that count into measures. It does not decide how often it runs: the
//! runners do. Each file implements one kind.

mod checkpoint;
mod energy;
mod generation;
mod language;
mod peer;
mod perplexity;
pub mod series;
#[cfg(feature = "serve")]
mod serving;

pub(crate) use checkpoint::{EMBEDDED_TOKENIZER, LoadWorkload, TokenizerWorkload};
pub use generation::GenerationWorkload;
pub(crate) use generation::SharedSubject;
pub use language::language_subject;
pub(crate) use language::{LanguageWorkload, language_bytes};
pub(crate) use peer::{PeerLogits, PeerSteps, PeerSubject, PeerWorkload, SETTLE, SharedPeer};
pub(crate) use perplexity::{PERPLEXITY_TEXT, PerplexityWorkload, Timed};
#[cfg(feature = "serve")]
pub(crate) use serving::ServingWorkload;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use crate::{
    measure::{LimitsOverTime, pauses},
    record::Measures,
};

/// Work that a runner repeats.
pub trait Workload {
    /// Runs one iteration.
    ///
    /// # Errors
    /// Returns an error if the model or the device fails, or the output is wrong.
    fn iterate(&mut self) -> Result<Iteration>;

    /// Runs iterations one right after the other, with a pause between two where one is due.
    ///
    /// # Errors
    /// As [`Self::iterate`].
    fn repeat(&mut self, count: usize) -> Result<Vec<Iteration>> {
        let one = |_| {
            let iteration = self.iterate()?;
            pauses::pass();
            Ok(iteration)
        };
        (0..count).map(one).collect()
    }

    /// Goes on with an iteration, or begins one, for about this time. Returns it once it has ended.
    ///
    /// # Errors
    /// As [`Self::iterate`].
    fn advance(&mut self, _time: Duration) -> Result<Option<Iteration>> {
        self.iterate().map(Some)
    }

    /// Address of the model that is in use between two calls of [`Self::advance`]. Work on other models may run there. `None`
    /// if nothing may.
    fn model_between_parts(&self) -> Option<*const ()> {
        None
    }

    /// Leaves the last iteration out of the results. It was a warm-up between two samples.
    fn forget_last(&mut self);

    /// Digest of the output of the last iteration; `None` if the output is not compared.
    fn output_digest(&self) -> Option<String> {
        None
    }

    /// Time to the first token of the last iteration (TTFT); `None` if it is no part of an iteration.
    fn ttft(&self) -> Option<Duration> {
        None
    }

    /// Floating-point operations of an iteration; `None` if they are not known, or an iteration is not one step.
    fn flops(&self) -> Option<u64> {
        None
    }

    /// Ids of the processes that do the work beside this one.
    fn helpers(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Ends the work and summarises the last iterations. `samples` holds the number of iterations of each sample, in
    /// order; iterations before those were warm-up and are left out. MBU and MFU are shares of `limits`, where these are known
    /// for a part of the time, of those.
    fn finish(self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome;
}

/// The result of one iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iteration {
    /// Measured time.
    pub time: Duration,
    /// Most memory in use at once; 0 where it is not counted.
    pub peak_bytes: u64,
}

/// The result of a benchmark.
#[derive(Debug)]
pub struct Outcome {
    /// The measures, or why the benchmark failed.
    pub measured: Result<Measured>,
    /// Why the output is known to differ from the reference implementation's.
    pub deviates: Option<String>,
}

impl Outcome {
    /// The result of a benchmark that was not measured.
    pub(crate) fn failed(error: anyhow::Error) -> Self {
        Self { measured: Err(error), deviates: None }
    }
}

/// Measures, and why some of their fields are empty.
#[derive(Debug)]
pub struct Measured {
    /// The measures of the record.
    pub measures: Measures,
    /// Field → why it is empty.
    pub unmeasured: BTreeMap<String, String>,
}

/// The embedded tokenizer: byte pairs of a small vocabulary, as in the fixture `llama-gqa-tied`.
const EMBEDDED: &str = include_str!("tokenizer.json");

/// Why a benchmark without a sample fails.
const NO_SAMPLE: &str = "no sample was taken";

/// Removes all but the last `samples.iter().sum()` items: those of the warm-up.
fn drop_warm_up<T>(items: &mut Vec<T>, samples: &[usize]) {
    let measured: usize = samples.iter().sum();
    items.drain(..items.len().saturating_sub(measured));
}
