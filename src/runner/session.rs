//! The state that all records of a process share: settings, machine, software and run.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use chrono::{SecondsFormat, Utc};

use super::{
    guard,
    observe::{Observation, Surroundings},
};
use crate::{
    error::one_line,
    generate::TooLong,
    kernels::{
        inference,
        system::{keep_freed_memory, set_variable},
    },
    measure::{Gauge, gpu, machine, memory},
    names::PathName,
    peer::Unsupported,
    progress,
    record::{
        self, BenchmarkId, GLIBC_TUNABLES, Guarded, History, Machine, Note, RECORDS, Record, SCHEMA, Sink, Software,
        Status,
    },
    settings::{Settings, most_threads},
    step::Diverged,
    workload::{Measured, Outcome},
};

/// The state that all records of a process share.
pub struct Session {
    settings: Settings,
    device: Device,
    machine: Machine,
    /// Why [`Machine::gpu`] is empty although a GPU is used.
    gpu_unknown: Option<String>,
    software: Software,
    /// Command line of records, where one is needed to repeat them.
    command: Option<String>,
    /// Made when the first benchmark is prepared, so that a list allocates nothing.
    gauge: OnceCell<Rc<Gauge>>,
    /// Results of earlier runs, read for the first record.
    history: OnceCell<History>,
    /// Opened with the first record, so that a list or a smoke test creates no folder.
    sink: Option<Sink>,
    /// The guard of this process.
    guarded: Option<Guarded>,
    /// Records of the processes that the guard started before this one, by id.
    before: BTreeMap<String, Record>,
    /// Ids of the records that this process has kept.
    kept: BTreeSet<String>,
}

impl Session {
    /// Sets the number of threads and reads the properties of the machine.
    ///
    /// # Errors
    /// Returns an error if the run of the settings cannot be the name of a folder, or if their device cannot be opened.
    pub fn new(settings: Settings) -> Result<Self> {
        // The first record would find this out only after its measurement.
        settings.run.as_deref().map(str::parse::<PathName>).transpose().context("CANDLEPOWER_RUN")?;
        // Threads come first, because opening a device may start some.
        let threads = set_threads(settings.most_threads())?;
        if let Some(instructions) = settings.instructions {
            inference::Machine::select(instructions);
        }
        let device = settings.device.open()?;
        let gpu = gpu::of(settings.device);
        let gpu_unknown = gpu.as_ref().err().map(|error| one_line(&format!("{error:#}")));
        Ok(Self {
            machine: machine::machine(threads, gpu.unwrap_or_default()),
            gpu_unknown,
            software: machine::software(),
            command: None,
            device,
            settings,
            gauge: OnceCell::new(),
            history: OnceCell::new(),
            sink: None,
            guarded: None,
            before: BTreeMap::new(),
            kept: BTreeSet::new(),
        })
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Puts the command line into the records to come.
    #[must_use]
    pub fn with_command(self, command: String) -> Self {
        Self { command: Some(command), ..self }
    }

    /// Notes each benchmark for the guard of this process, and ends with the guard.
    ///
    /// # Errors
    /// Returns an error if the records of an earlier process cannot be read.
    pub fn with_guard(mut self, guarded: Option<Guarded>) -> Result<Self> {
        if let Some(guarded) = &guarded {
            guard::end_with_guard().context("a thread could not be started")?;
            if let Some(run) = &self.settings.run {
                let done = guarded.done(&self.settings.out.join(run).join(RECORDS))?;
                self.before = done.into_iter().map(|record| (record.id.clone(), record)).collect();
            }
        }
        Ok(Self { guarded, ..self })
    }

    /// The record of a benchmark that an earlier process of the guard has kept.
    pub fn done_before(&self, id: &str) -> Option<&Record> {
        self.before.get(id)
    }

    /// Returns whether this process has kept a record with this id.
    pub fn has_kept(&self, id: &str) -> bool {
        self.kept.contains(id)
    }

    /// Notes a benchmark that is about to be prepared or warmed up. If it ends the process, the guard keeps its record. A note
    /// that cannot be written leaves the benchmark without a guard.
    pub fn note(&self, scenario: &str, subject: &record::Subject) {
        let Some(guarded) = &self.guarded else { return };
        let outcome = Outcome::failed(anyhow!("it ended the process that measured it"));
        let mut record = self.record(scenario, subject.clone(), outcome, None);
        let run = self.sink.as_ref().map(Sink::run).or(self.settings.run.as_deref());
        record.run = run.unwrap_or_default().to_owned();
        let _ = guarded.write(&Note::Benchmark { out: self.settings.out.clone(), record: Box::new(record) });
    }

    /// The open device of the settings.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn gauge(&self) -> Result<Rc<Gauge>> {
        if let Some(gauge) = self.gauge.get() {
            return Ok(gauge.clone());
        }
        let _line = progress::live("measuring the limits of the machine");
        let gauge = Rc::new(Gauge::new(&self.device)?);
        Ok(self.gauge.get_or_init(|| gauge).clone())
    }

    /// Allocates what observing the machine takes. Call it before a model is loaded, so that this memory does not count as
    /// the model's.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn prepare(&self) -> Result<()> {
        self.gauge().map(drop)
    }

    /// Returns whether this process has kept no record yet.
    pub fn is_new(&self) -> bool {
        self.kept.is_empty()
    }

    /// Starts to observe the machine for a benchmark, whose work the processes `helpers` do beside this one.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub(crate) fn observe(&self, helpers: Vec<u32>) -> Result<Observation> {
        Ok(Observation::start(self.gauge()?, self.settings.device, helpers))
    }

    /// Makes the record of a benchmark that has just ended.
    pub fn record(
        &self,
        scenario: &str,
        subject: record::Subject,
        outcome: Outcome,
        surroundings: Option<Surroundings>,
    ) -> Record {
        let first_non_finite_step =
            outcome.measured.as_ref().err().and_then(|error| Some(error.downcast_ref::<Diverged>()?.step));
        let (status, reason, measures, mut unmeasured) = match outcome.measured {
            Ok(Measured { measures, unmeasured }) => (Status::Measured, None, Some(measures), unmeasured),
            Err(error) => {
                // The benchmark is not for this subject.
                let is_excluded = error.is::<Unsupported>() || error.is::<TooLong>();
                let status = if is_excluded { Status::Excluded } else { Status::Failed };
                (status, Some(one_line(&format!("{error:#}"))), None, BTreeMap::new())
            }
        };
        if let Some(reason) = &self.gpu_unknown {
            unmeasured.insert("machine.gpu".into(), reason.clone());
        }
        if self.software.candle_crates.is_none() {
            let reason = "the build found no lock file, which lists the crates".to_owned();
            unmeasured.insert("software.candle_crates".into(), reason);
        }
        let (limits, conditions) = match surroundings {
            Some(mut around) => {
                around.judge(measures.as_ref());
                (Some(around.limits.medians), Some(around.conditions))
            }
            None => (None, None),
        };
        Record {
            schema: SCHEMA,
            run: String::new(),
            sandbox: false,
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            id: BenchmarkId::new(scenario, &subject).to_string(),
            scenario: scenario.to_owned(),
            duel: None,
            subject,
            status,
            reason,
            first_non_finite_step,
            deviates: outcome.deviates,
            measures,
            unmeasured,
            ratios: Vec::new(),
            limits,
            conditions,
            between_runs: None,
            machine: self.machine.clone(),
            software: self.software.clone(),
            settings: self.settings.sources.clone(),
            command: self.command.clone(),
        }
    }

    /// Opens the named run, or a new one. Returns its file of records.
    ///
    /// # Errors
    /// Returns an error if the folder of records is not writable.
    pub fn join(&mut self, run: Option<&str>) -> Result<PathBuf> {
        let sink = self.sink.insert(Sink::open(&self.settings.out, run)?);
        Ok(sink.path().to_owned())
    }

    /// Appends a record to the run of this process. The first record opens the run.
    ///
    /// # Errors
    /// Returns an error if the folder of records is not writable.
    pub fn append(&mut self, record: &mut Record) -> Result<()> {
        let sink = match self.sink.take() {
            Some(sink) => sink,
            None => Sink::open(&self.settings.out, self.settings.run.as_deref())?,
        };
        let sink = self.sink.insert(sink);
        record.run = sink.run().to_owned();
        let history = || History::read(&self.settings.out, &record.run, &record.machine);
        record.between_runs = self.history.get_or_init(history).between_runs(record);
        sink.append(record)?;
        self.kept.insert(record.id.clone());
        if let Some(guarded) = &self.guarded {
            guarded.clear();
        }
        Ok(())
    }

    /// The file of records, once it exists.
    pub fn records_path(&self) -> Option<&Path> {
        self.sink.as_ref().map(Sink::path)
    }
}

/// Sets the number of CPU threads and returns the number that Candle uses. Candle, Criterion's analysis and the
/// seeded weights share one thread pool, whose size only this variable sets. Candle reads it at every matrix product,
/// the pool when it starts. Call this first in `main`, while no other thread runs.
///
/// # Errors
/// Returns an error if there are too many, or the system does not start as many.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    if let Some(threads) = threads {
        set(THREADS, &threads.to_string());
    }
    let (threads, most) = (candle_core::utils::get_num_threads(), most_threads());
    ensure!(threads <= most, "{threads} threads: at most {most} are supported: set CANDLEPOWER_THREADS or {THREADS}");
    check_threads(threads)?;
    Ok(threads)
}

const THREADS: &str = "RAYON_NUM_THREADS";

/// Sets a variable of Candle. Records hold those that the process was given.
fn set(variable: &str, value: &str) {
    machine::environment();
    set_variable(variable, value);
}

/// Thread pools of this size: rayon's, and two of Candle's, one of which panics and leaves its threads with freed memory if
/// one of them cannot be started.
const POOLS: usize = 3;

/// Address space of the stack of a thread, and what the standard library adds.
const STACK_BYTES: u64 = (2 << 20) + (64 << 10);

/// Checks that the system starts as many threads as the pools need.
fn check_threads(threads: usize) -> Result<()> {
    let count = POOLS * threads;
    let told = || {
        format!(
            "{count} threads could not be started: set CANDLEPOWER_THREADS to fewer, or raise the limits of processes and \
             memory (ulimit -u, ulimit -v)"
        )
    };
    // A thread that starts without memory ends the process, so half of the space must remain.
    let left = memory::address_space_left();
    let fits = left.is_none_or(|left| 2 * count as u64 * STACK_BYTES <= left);
    ensure!(fits, "{}: their stacks do not fit", told());
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        let start = |_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop);
        let started = (0..count).try_for_each(start).with_context(told);
        drop(closed);
        started
    })
}

/// Sets the process up for training steps. Call this first in `main`, like `set_threads`. The environment overrides both parts.
///
/// Idle threads sleep instead of spinning. Candle's threads for element-wise work spin 25000 times by default
/// while they wait for work, and slow down the threads that multiply matrices. A training step gives them little work
/// many times: without spinning, it took 7 % less time on two cores (medians of six turns).
///
/// glibc keeps freed memory. A step allocates what the step before has freed, and by default the kernel fills these pages with zeros
/// each time, which took 18 % of the CPU time of a language model's steps.
pub fn set_up_training() {
    const SPINS: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPINS).is_none() {
        set(SPINS, "0");
    }
    if std::env::var_os(GLIBC_TUNABLES).is_none() {
        keep_freed_memory();
    }
}
