//! What all records of a process have in common: its settings, the machine, the software and the run they belong to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;
use candle_core::Device;
use chrono::{SecondsFormat, Utc};

use crate::{
    error::one_line,
    measure::{gpu, machine},
    record::{self, BenchmarkId, Machine, Record, SCHEMA, Sink, Software, Status},
    settings::Settings,
    workload::{Measured, Outcome},
};

/// What all records of a process have in common.
pub struct Session {
    settings: Settings,
    device: Device,
    machine: Machine,
    /// Why [`Machine::gpu`] is empty though a GPU is used.
    gpu_unknown: Option<String>,
    software: Software,
    /// Opened with the first record, so that a list or a smoke test leaves no folder behind.
    sink: Option<Sink>,
}

impl Session {
    /// Sets the number of threads and looks at the machine.
    ///
    /// # Errors
    /// When the device that the settings ask for can't be opened: nothing could be measured.
    pub fn new(settings: Settings) -> Result<Self> {
        // First: opening a device may start threads.
        let threads = set_threads(settings.threads);
        let device = settings.device.open()?;
        let gpu = gpu::of(settings.device);
        let gpu_unknown = gpu.as_ref().err().map(|error| one_line(&format!("{error:#}")));
        Ok(Self {
            machine: machine::machine(threads, gpu.unwrap_or_default()),
            gpu_unknown,
            software: machine::software(),
            device,
            settings,
            sink: None,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The record of a benchmark that has just ended.
    pub fn record(&self, scenario: &str, subject: record::Subject, outcome: Outcome) -> Record {
        let (status, reason, measures, mut unmeasured) = match outcome.measured {
            Ok(Measured { measures, unmeasured }) => (Status::Measured, None, Some(measures), unmeasured),
            Err(error) => (Status::Failed, Some(one_line(&format!("{error:#}"))), None, BTreeMap::new()),
        };
        if let Some(reason) = &self.gpu_unknown {
            unmeasured.insert("machine.gpu".into(), reason.clone());
        }
        Record {
            schema: SCHEMA,
            run: String::new(),
            sandbox: false,
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            id: BenchmarkId::new(scenario, &subject).to_string(),
            scenario: scenario.to_owned(),
            subject,
            status,
            reason,
            deviates: outcome.deviates,
            measures,
            unmeasured,
            limits: outcome.limits,
            conditions: outcome.conditions,
            machine: self.machine.clone(),
            software: self.software.clone(),
            settings: self.settings.sources.clone(),
        }
    }

    /// Opens a run: that of this name, or a new one. Returns its file of records.
    ///
    /// # Errors
    /// When the folder of records can't be written to.
    pub fn join(&mut self, run: Option<&str>) -> Result<PathBuf> {
        let sink = self.sink.insert(Sink::open(&self.settings.out, run)?);
        Ok(sink.path().to_owned())
    }

    /// Keeps a record in the run that this process belongs to, which is opened with the first.
    ///
    /// # Errors
    /// When the folder of records can't be written to.
    pub fn append(&mut self, record: &mut Record) -> Result<()> {
        let sink = match self.sink.take() {
            Some(sink) => sink,
            None => Sink::open(&self.settings.out, self.settings.run.as_deref())?,
        };
        let sink = self.sink.insert(sink);
        record.run = sink.run().to_owned();
        sink.append(record)
    }

    /// The file of records, once there is one.
    pub fn records_path(&self) -> Option<&Path> {
        self.sink.as_ref().map(Sink::path)
    }
}

/// Candle, Criterion's analysis and the seeded weights share one pool of threads, whose size only this variable sets:
/// Candle reads it at every matrix product, the pool when it starts. To be called first thing in `main`, while no other
/// thread runs. Returns the number of threads that Candle uses.
pub fn set_threads(threads: Option<usize>) -> usize {
    if let Some(threads) = threads {
        set("RAYON_NUM_THREADS", &threads.to_string());
    }
    candle_core::utils::get_num_threads()
}

/// Candle's own threads for element-wise work wait for more of it by spinning, 25000 times unless they are told otherwise, in
/// the way of those that multiply matrices. A training step of ours asks them for little, many times over: without the
/// spinning it took 7 % less time on two cores (medians of six turns). To be called first thing in `main`, like
/// [`set_threads`]; what the environment says wins.
pub fn let_waiting_threads_sleep() {
    const SPINS: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPINS).is_none() {
        set(SPINS, "0");
    }
}

/// First thing in `main`.
fn set(variable: &str, value: &str) {
    // SAFETY: this is done first thing in `main`, while the process has this one thread, so nobody can be reading the
    // environment.
    unsafe { std::env::set_var(variable, value) };
}
