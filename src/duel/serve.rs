//! The process of a side: it keeps models loaded and takes samples on request.

use std::{
    cell::RefCell,
    io::{self, BufReader},
    process,
    rc::Rc,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::protocol::{self, Listed, Reply, Request, Sample, VERSION};
use crate::{
    error::{caught, explained},
    measure::{
        conditions::Window,
        memory,
        pauses::{self, Moment},
        placement::{self, Cpus},
    },
    output,
    runner::{Benchmark, Catalogue, Observation, Session, Surroundings},
    workload::{Outcome, Workload},
};

/// Least length of a turn. Passing it on takes about 0.2 ms.
const TURN: Duration = Duration::from_millis(3);

/// Serves requests about these benchmarks from standard input until it closes. Nothing but replies goes to standard output.
///
/// # Errors
/// Returns an error if the duel has ended.
pub fn serve(session: Session, catalogue: Catalogue) -> Result<()> {
    let requests = Rc::new(requests());
    let cpus = Cpus::of_process();
    let mut server = Server { catalogue, session, cpus, running: None, requests: requests.clone() };
    send(&Reply::Hello { protocol: VERSION, candlepower: env!("CARGO_PKG_VERSION").into() })?;
    while let Ok(request) = requests.recv() {
        let reply = match request.and_then(|request| server.answer(request)) {
            Ok(reply) => reply,
            Err(error) => Reply::Error(explained(&format!("{error:#}"))),
        };
        send(&reply)?;
    }
    Ok(())
}

/// Reads requests on a thread of its own, so that the process ends at once when the duel does, even in the middle of a
/// sample.
fn requests() -> mpsc::Receiver<Result<Request>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut input = BufReader::new(io::stdin());
        loop {
            let request = protocol::read(&mut input).transpose();
            let Some(request) = request else { process::exit(0) };
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    receiver
}

fn send(reply: &Reply) -> Result<()> {
    protocol::write(&mut output::protocol(), reply)
}

/// Ends a turn, and waits for the next.
fn pass_on(requests: &mpsc::Receiver<Result<Request>>) -> Result<()> {
    send(&Reply::Turn {})?;
    match requests.recv().context("the duel has ended")?? {
        Request::Turn {} => Ok(()),
        _ => bail!("the sample has not ended"),
    }
}

/// A request came before its benchmark.
const UNPREPARED: &str = "no benchmark is prepared";

struct Server {
    session: Session,
    catalogue: Catalogue,
    cpus: Cpus,
    running: Option<Running>,
    requests: Rc<mpsc::Receiver<Result<Request>>>,
}

/// A benchmark that has been prepared.
struct Running {
    benchmark: Rc<dyn Benchmark>,
    workload: Box<dyn Workload>,
    /// Number of iterations of each sample.
    samples: Vec<usize>,
    /// The machine around the samples.
    observation: Observation,
    windows: Vec<Window>,
}

impl Server {
    fn answer(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::List {} => {
                let listed =
                    self.catalogue.all().map(|(target, id)| Listed { id: id.to_string(), target: target.into() });
                Ok(Reply::Benchmarks(listed.collect()))
            }
            Request::Prepare { id } => {
                self.running = None;
                self.cpus.release();
                memory::release(self.session.device());
                let benchmark = self.catalogue.find(&id)?;
                match caught(|| self.prepare(&benchmark)) {
                    Ok(running) => {
                        self.running = Some(running);
                        Ok(Reply::Prepared {})
                    }
                    Err(error) => self.ended(&*benchmark, Outcome::failed(error), None),
                }
            }
            Request::Sample { warm_up, iterations } => {
                let mut running = self.running.take().context(UNPREPARED)?;
                // The warm-up shows which threads the benchmark keeps busy.
                let before = (iterations == 0).then(placement::times);
                match caught(|| running.sample(warm_up, iterations, self.requests.clone())) {
                    Ok(sample) => {
                        if let Some(before) = before {
                            self.cpus.place(&before);
                        }
                        self.running = Some(running);
                        Ok(Reply::Sample(sample))
                    }
                    Err(error) => self.ended(&*running.benchmark, Outcome::failed(error), None),
                }
            }
            Request::Turn {} => bail!("no sample has begun"),
            Request::Finish {} => {
                let Running { benchmark, workload, samples, observation, windows } =
                    self.running.take().context(UNPREPARED)?;
                let around = observation.end().of(&windows, &benchmark.subject().dtype);
                let outcome = caught(|| Ok(workload.finish(&samples, &around.limits)));
                self.ended(&*benchmark, outcome.unwrap_or_else(Outcome::failed), Some(around))
            }
        }
    }

    fn prepare(&self, benchmark: &Rc<dyn Benchmark>) -> Result<Running> {
        self.session.prepare()?;
        let workload = benchmark.prepare()?;
        let observation = self.session.observe(workload.helpers())?;
        Ok(Running { benchmark: benchmark.clone(), workload, samples: Vec::new(), observation, windows: Vec::new() })
    }

    fn ended(&self, benchmark: &dyn Benchmark, outcome: Outcome, around: Option<Surroundings>) -> Result<Reply> {
        let record = self.session.record(benchmark.scenario(), benchmark.subject(), outcome, around);
        Ok(Reply::Record(Box::new(record)))
    }
}

impl Running {
    fn sample(
        &mut self,
        warm_up: usize,
        iterations: usize,
        requests: Rc<mpsc::Receiver<Result<Request>>>,
    ) -> Result<Sample> {
        let mut sample = Sample::default();
        let Self { workload, observation, .. } = self;
        let broken = Rc::new(RefCell::new(None));
        let breaks = broken.clone();
        let pass_on = move || {
            if let Err(error) = pass_on(&requests) {
                breaks.replace(Some(error));
            }
        };
        let mut iterate = || -> Result<()> {
            for number in 0..warm_up + iterations {
                let iteration = workload.iterate()?;
                sample.ns.push(iteration.time.as_nanos() as u64);
                sample.peak_bytes.push(iteration.peak_bytes);
                sample.ttft_ns.extend(workload.ttft().map(|time| time.as_nanos() as u64));
                if number < warm_up {
                    workload.forget_last();
                }
                pauses::pass();
            }
            Ok(())
        };
        // The first turn is waited for.
        pass_on();
        let turn = move |_: &Moment| {
            pass_on();
            None
        };
        let (taken, window) = observation.sample(|| pauses::within(TURN, turn, &mut iterate));
        taken?;
        if let Some(error) = broken.take() {
            return Err(error);
        }
        if iterations > 0 {
            self.windows.push(window);
            sample.output_digest = self.workload.output_digest();
            self.samples.push(iterations);
        }
        Ok(sample)
    }
}
