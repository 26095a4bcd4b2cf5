//! Collects the time that a generation spends in the spans of the crate `tracing`: those of engine `tuned`, those that
//! candle-transformers opens, and those of your own model.

use std::{
    fmt::{Debug, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

use crate::measure::{allocator, page_faults};

/// The spans of a process, which are collected while it records.
///
/// A model that makes its spans when it is loaded, as those of candle-transformers do, must be loaded after this has started.
pub struct Trace(Arc<Collector>);

pub(super) struct Collector {
    /// A test takes its own, because another process may delay a test for longer than what it measures.
    clock: fn() -> Instant,
    /// True between passes that are not to be traced, in which a span then costs next to nothing.
    is_off: AtomicBool,
    records: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The spans that exist, at the place of their ids less one.
    spans: Vec<Option<Known>>,
    unused: Vec<usize>,
    texts: Texts,
    /// The spans that were entered and not left. A pass is the work of one thread after the other, so they form one stack.
    stack: Vec<Entered>,
    /// The phases of each subject.
    phases: Vec<Vec<Phase>>,
    /// The one that runs.
    subject: usize,
    events: Vec<Left>,
}

/// The texts in the fields of spans, and room for one. Known ones are not allocated again, because allocations are counted.
#[derive(Default)]
struct Texts {
    known: Vec<Arc<str>>,
    room: String,
}

/// A span that exists.
struct Known {
    name: &'static str,
    counts: Counts,
    handles: usize,
}

/// The fields of a span.
#[derive(Clone, Default)]
struct Counts {
    bytes: Option<u64>,
    flops: Option<u64>,
    kernel: Option<Arc<str>>,
    part: Option<Arc<str>>,
}

/// Reads the fields of a span.
struct Fields<'a> {
    counts: Counts,
    texts: &'a mut Texts,
}

struct Entered {
    place: usize,
    started: Instant,
    allocations: (u64, u64),
    /// Of the spans in it.
    inner: Duration,
    inner_allocations: (u64, u64),
    page_faults: Option<u64>,
}

/// A span that was left, for a file.
pub(super) struct Left {
    pub name: &'static str,
    pub part: Option<Arc<str>>,
    pub started: Instant,
    pub time: Duration,
}

/// The passes of one kind.
#[derive(Clone, Default)]
pub(super) struct Phase {
    pub name: &'static str,
    pub passes: u64,
    pub time: Duration,
    pub page_faults: u64,
    /// In the order in which they were left first. The one with the name of the phase is the time in none of the others.
    pub parts: Vec<Part>,
}

/// All spans of one name, and of one field `part` where they have it, in the passes of a phase.
#[derive(Clone, Default)]
pub(super) struct Part {
    pub name: &'static str,
    pub part: Option<Arc<str>>,
    pub calls: u64,
    /// Time that was not spent in spans inside.
    pub time: Duration,
    /// `None` if no span says it.
    pub bytes: Option<u64>,
    pub flops: Option<u64>,
    /// Each of them once.
    pub kernels: Vec<Arc<str>>,
    pub allocations: u64,
    pub allocated_bytes: u64,
}

impl Trace {
    /// Becomes the subscriber of this process, which has one at most.
    ///
    /// # Errors
    /// If the process has another one.
    pub fn start() -> Result<Self> {
        let collector = Arc::new(Collector::new(Instant::now));
        tracing::subscriber::set_global_default(collector.clone())
            .context("this process already collects its spans")?;
        Ok(Self(collector))
    }

    /// The spans of threads that have this subscriber.
    #[cfg(test)]
    pub(super) fn of(collector: Arc<Collector>) -> Self {
        Self(collector)
    }

    /// Records a subject from now on, or nothing.
    pub(super) fn record(&self, subject: Option<usize>) {
        if let Some(subject) = subject {
            let mut state = self.0.state();
            state.subject = subject;
            let count = state.phases.len().max(subject + 1);
            state.phases.resize_with(count, Vec::new);
        }
        self.0.is_off.store(subject.is_none(), Relaxed);
        self.0.records.store(subject.is_some(), Relaxed);
    }

    /// Takes the phases of each subject and the spans that were recorded.
    pub(super) fn take(&self) -> (Vec<Vec<Phase>>, Vec<Left>) {
        let mut state = self.0.state();
        (std::mem::take(&mut state.phases), std::mem::take(&mut state.events))
    }
}

impl Collector {
    pub(super) fn new(clock: fn() -> Instant) -> Self {
        Self { clock, is_off: AtomicBool::default(), records: AtomicBool::default(), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "bytes" => self.counts.bytes = Some(value),
            "flops" => self.counts.flops = Some(value),
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "kernel" => self.counts.kernel = self.texts.find(value),
            "part" => self.counts.part = self.texts.find(value),
            _ => {}
        }
    }
}

impl Texts {
    fn find(&mut self, value: &dyn Debug) -> Option<Arc<str>> {
        let Self { known, room } = self;
        room.clear();
        write!(room, "{value:?}").ok()?;
        let place = known.iter().position(|text| **text == **room).unwrap_or_else(|| {
            known.push(room.as_str().into());
            known.len() - 1
        });
        Some(known[place].clone())
    }
}

impl State {
    fn enter(&mut self, place: usize, now: impl FnOnce() -> Instant) {
        let is_pass = self.stack.is_empty();
        let page_faults = is_pass.then(page_faults).flatten();
        self.stack.push(Entered {
            place,
            started: now(),
            allocations: allocator::allocations(),
            inner: Duration::ZERO,
            inner_allocations: (0, 0),
            page_faults,
        });
    }

    fn exit(&mut self, place: usize, left_at: Instant) {
        let (count, bytes) = allocator::allocations();
        // Recording may have begun in it.
        if self.stack.last().is_none_or(|entered| entered.place != place) {
            return;
        }
        let Some(entered) = self.stack.pop() else { return };
        let Some(Known { name, counts, .. }) = self.spans[place].as_ref() else { return };
        let (name, counts, time) = (*name, counts.clone(), left_at - entered.started);
        let allocations = (count - entered.allocations.0, bytes - entered.allocations.1);
        if let Some(outer) = self.stack.last_mut() {
            outer.inner += time;
            outer.inner_allocations.0 += allocations.0;
            outer.inner_allocations.1 += allocations.1;
        }
        let pass = self.stack.first().map_or(Some(name), |pass| Some(self.spans[pass.place].as_ref()?.name));
        let Some(pass) = pass else { return };
        let phases = &mut self.phases[self.subject];
        let phase = named(phases, |phase| phase.name == pass, || Phase { name: pass, ..Phase::default() });
        if self.stack.is_empty() {
            phase.passes += 1;
            phase.time += time;
            phase.page_faults += page_faults().zip(entered.page_faults).map_or(0, |(now, before)| now - before);
        }
        let key = (name, &counts.part);
        let new = || Part { name, part: counts.part.clone(), ..Part::default() };
        let part = named(&mut phase.parts, |part| (part.name, &part.part) == key, new);
        let sum =
            |sum: &mut Option<u64>, more: Option<u64>| *sum = more.map_or(*sum, |more| Some(sum.unwrap_or(0) + more));
        part.calls += 1;
        part.time += time.saturating_sub(entered.inner);
        part.allocations += allocations.0.saturating_sub(entered.inner_allocations.0);
        part.allocated_bytes += allocations.1.saturating_sub(entered.inner_allocations.1);
        sum(&mut part.bytes, counts.bytes);
        sum(&mut part.flops, counts.flops);
        if let Some(kernel) = counts.kernel.filter(|kernel| !part.kernels.contains(kernel)) {
            part.kernels.push(kernel);
        }
        self.events.push(Left { name, part: counts.part, started: entered.started, time });
    }
}

/// The element of a list that `is_it` finds; a new one, which is added, if there is none.
fn named<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
    let place = list.iter().position(is_it).unwrap_or(list.len());
    if place == list.len() {
        list.push(new());
    }
    &mut list[place]
}

impl Subscriber for Collector {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_span() { Interest::sometimes() } else { Interest::never() }
    }

    /// Before the first passes, spans are made without being recorded, because models keep them.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && !self.is_off.load(Relaxed)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut state = self.state();
        let mut fields = Fields { counts: Counts::default(), texts: &mut state.texts };
        attributes.record(&mut fields);
        let known = Some(Known { name: attributes.metadata().name(), counts: fields.counts, handles: 1 });
        let place = match state.unused.pop() {
            Some(place) => {
                state.spans[place] = known;
                place
            }
            None => {
                state.spans.push(known);
                state.spans.len() - 1
            }
        };
        Id::from_u64(place as u64 + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        if self.records.load(Relaxed) {
            self.state().enter(place(id), self.clock);
        }
    }

    fn exit(&self, id: &Id) {
        if self.records.load(Relaxed) {
            let left_at = (self.clock)();
            self.state().exit(place(id), left_at);
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(Some(known)) = self.state().spans.get_mut(place(id)) {
            known.handles += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let (mut state, place) = (self.state(), place(&id));
        let Some(Some(known)) = state.spans.get_mut(place) else { return false };
        known.handles -= 1;
        if known.handles > 0 {
            return false;
        }
        state.spans[place] = None;
        state.unused.push(place);
        true
    }
}

fn place(id: &Id) -> usize {
    id.into_u64() as usize - 1
}
