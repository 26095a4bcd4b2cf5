//! Steps of a language model or of a network for series, by a peer.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::{
    Iteration, Measured, Outcome, Workload, drop_warm_up, language,
    series::{self, Combination, SeriesGrid},
};
use crate::{
    device::DeviceChoice,
    measure::{LimitsOverTime, memory},
    model::{self, FRAMEWORK_BYTES},
    peer::{Model, Peer, Work},
    record::{self, Measures},
    scenario::{Phase, Trained},
    step::{Diverged, forecast::Task, optimizer::Options},
};

/// The copies of the logits that a framework holds in a training step: themselves, their gradient, and their softmax.
const LOGITS: u64 = 3;

/// Steps of a peer on one model.
pub struct PeerSteps {
    peer: Rc<RefCell<Peer>>,
    phase: Phase,
    kind: Kind,
    times: Vec<Duration>,
    /// As many as the times, or none where the work has no loss.
    losses: Vec<f64>,
    /// Steps that have been run, warm-up included.
    steps: usize,
    /// Peak of all steps; `None` if the peer does not count it.
    peak_bytes: Option<u64>,
}

/// The model, and what its steps cost.
enum Kind {
    Language(Trained, model::psann::Cost),
    Series(Box<Task>, model::series::Cost),
}

impl PeerSteps {
    /// Lets a peer load a language model, and runs one step that is not measured.
    ///
    /// # Errors
    /// Returns an error if the sizes are inconsistent, memory is missing, or the peer fails, and
    /// `Unsupported` if it does not run such steps.
    pub fn language(
        peer: Rc<RefCell<Peer>>,
        entry: &Trained,
        phase: Phase,
        dtype: &str,
        (seed, device): (u64, DeviceChoice),
    ) -> Result<Self> {
        let cost = language::cost(entry)?;
        let logits_bytes = 4 * (entry.batch_tokens() * entry.shape.vocab_size) as u64;
        let needed_bytes = language::language_bytes(entry, phase, dtype, device)? + LOGITS * logits_bytes;
        let model = Model::Language(json!({
            "config": language::config(entry)?,
            "rows": entry.batch.rows,
            "tokens_per_row": entry.batch.tokens_per_row,
            "optimizer": Options::default(),
            "checkpointing": entry.checkpointing,
            "seed": seed,
        }));
        let parameters = cost.parameters;
        let kind = Kind::Language(*entry, cost);
        Self::load(peer, kind, phase, &model, (dtype, device), parameters, needed_bytes)
    }

    /// Lets a peer load a network for series, and runs one step that is not measured.
    ///
    /// # Errors
    /// As [`Self::language`].
    pub fn series(peer: Rc<RefCell<Peer>>, combination: &Combination, phase: Phase, grid: &SeriesGrid) -> Result<Self> {
        let task = &combination.task;
        let cost = series::cost(task)?;
        let needed_bytes = series::needed_bytes(task, &cost, phase, grid.dtype);
        let kind = Kind::Series(Box::new(task.clone()), cost);
        let (dtype, model) = (grid.dtype.as_str(), Model::Series(described(task)));
        Self::load(peer, kind, phase, &model, (dtype, grid.device), cost.parameters, needed_bytes)
    }

    fn load(
        peer: Rc<RefCell<Peer>>,
        kind: Kind,
        phase: Phase,
        model: &Model,
        (dtype, device): (&str, DeviceChoice),
        parameters: u64,
        needed_bytes: u64,
    ) -> Result<Self> {
        memory::ensure_fits("the steps of a peer", needed_bytes + FRAMEWORK_BYTES, &device.open()?)?;
        peer.borrow_mut().load(model, Work::from(phase), (dtype, &device.to_string()), parameters)?;
        let (times, losses) = (Vec::new(), Vec::new());
        let mut work = Self { peer, phase, kind, times, losses, steps: 0, peak_bytes: None };
        work.iterate()?;
        (work.times, work.losses) = (Vec::new(), Vec::new());
        Ok(work)
    }

    /// A forecast has no loss.
    fn has_losses(&self) -> bool {
        matches!(self.kind, Kind::Language(..)) || self.phase == Phase::Train
    }

    fn measures(&self, samples: &[usize], limits: &LimitsOverTime) -> Result<Measured> {
        let measures = match &self.kind {
            Kind::Language(entry, cost) => Measures::Training(record::Training {
                peak_bytes: self.peak_bytes,
                stability: (self.phase == Phase::Train)
                    .then(|| record::Stability { losses: self.losses.clone(), ..record::Stability::default() }),
                ..language::timed(entry, self.phase, cost, &self.times, samples, limits)?
            }),
            Kind::Series(task, cost) => Measures::Sweep(record::Sweep {
                peak_bytes: self.peak_bytes,
                first_loss: self.losses.first().copied(),
                last_loss: self.losses.last().copied(),
                ..series::timed(task, self.phase, cost, &self.times, samples, limits)?
            }),
        };
        let (untold, untrained): (&[&str], &[&str]) = match (&self.kind, self.phase) {
            (Kind::Language(..), Phase::Train) => (&["allocated_bytes", "reserved_bytes"], &[]),
            (Kind::Language(..), Phase::Forward) => (&["allocated_bytes", "reserved_bytes"], &["stability"]),
            (Kind::Series(..), Phase::Train) => (&["held_out_loss"], &[]),
            (Kind::Series(..), Phase::Forward) => (&[], &["first_loss", "last_loss", "held_out_loss"]),
        };
        let peak = self.peak_bytes.is_none().then_some("peak_bytes");
        let untold = untold.iter().copied().chain(peak).map(|field| (field, "the peer does not tell it"));
        let untrained = untrained.iter().map(|field| (*field, "nothing is trained"));
        let unmeasured = untold.chain(untrained).map(|(field, reason)| (field.to_owned(), reason.to_owned()));
        Ok(Measured { measures, unmeasured: unmeasured.collect::<BTreeMap<_, _>>() })
    }
}

/// The keys of a network for series in the protocol.
fn described(task: &Task) -> Value {
    let (window, training) = (&task.window, &task.training);
    let mut optimizer = json!(training.optimizer);
    optimizer["cosine_steps"] = json!(training.cosine_steps);
    json!({
        "architecture": task.architecture,
        "sizes": task.sizes,
        "batch": window.batch,
        "window": window.time,
        "horizon": window.horizon,
        "outputs": window.outputs,
        "optimizer": optimizer,
        "accumulate": training.accumulate,
        "dropout": training.dropout,
        "checkpointing": training.gradient_checkpointing,
        "seed": task.seed,
    })
}

impl Workload for PeerSteps {
    fn iterate(&mut self) -> Result<Iteration> {
        self.repeat(1)?.pop().context("no step was run")
    }

    /// The peer runs all steps without a message between them.
    ///
    /// # Errors
    /// Returns an error if the training diverged, or the peer fails.
    fn repeat(&mut self, count: usize) -> Result<Vec<Iteration>> {
        let ran = self.peer.borrow_mut().run(self.phase, count, self.has_losses())?;
        for (step, loss) in (self.steps + 1..).zip(ran.losses) {
            let told = || format!("it diverged: the loss of step {step} is not a finite number");
            self.losses.push(loss.ok_or_else(|| Diverged::new(step, told()))?);
        }
        self.steps += count;
        self.peak_bytes = ran.peak_bytes.map(|peak| peak.max(self.peak_bytes.unwrap_or_default()));
        let times: Vec<Duration> = ran.ns.into_iter().map(Duration::from_nanos).collect();
        self.times.extend(&times);
        let peak_bytes = ran.peak_bytes.unwrap_or_default();
        Ok(times.into_iter().map(|time| Iteration { time, peak_bytes }).collect())
    }

    fn forget_last(&mut self) {
        self.times.pop();
        self.losses.pop();
    }

    fn helpers(&self) -> Vec<u32> {
        vec![self.peer.borrow().id()]
    }

    fn finish(mut self: Box<Self>, samples: &[usize], limits: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.times, samples);
        drop_warm_up(&mut self.losses, samples);
        Outcome { measured: self.measures(samples, limits), deviates: None }
    }
}
