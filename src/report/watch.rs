//! The live view of a run: a line for each benchmark, updated as records arrive. This file draws the view; the command owns
//! the terminal and its keys.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use chrono::{DateTime, TimeDelta, Utc};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::{plot::shortened, summary::is_disturbed, table::quantity, text_table::sparkline};
use crate::{
    files::{LINE_MAX_BYTES, read_line_limited},
    record::{
        MeasureUnit, Measures, Record, Status,
        measures::{TableColumn, TableKey, table_columns},
        parse,
    },
    text::line,
};

/// A property of records by which the keys filter the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// Sequences per batch. A generation has one.
    Batch,
    /// Tokens of a generation, prompt included, or steps of a window.
    Length,
    /// Data type of the computation.
    Precision,
    /// Implementation that ran the model.
    Engine,
    /// Short name of the model.
    Model,
}

impl Filter {
    /// The key, the filter and the label of each filter.
    pub const ALL: [(char, Self, &'static str); 5] = [
        ('b', Self::Batch, "batch"),
        ('s', Self::Length, "sequence"),
        ('p', Self::Precision, "precision"),
        ('e', Self::Engine, "engine"),
        ('m', Self::Model, "model"),
    ];

    fn of(self, record: &Record) -> String {
        let size = |name: &str| record.subject.sizes.get(name).copied();
        match self {
            Self::Batch => size("batch").unwrap_or(1).to_string(),
            Self::Length => match &record.measures {
                Some(Measures::Generation(measures)) => {
                    measures.prompt_tokens.saturating_add(measures.new_tokens).to_string()
                }
                _ => size("window").map_or("none".into(), |window| window.to_string()),
            },
            Self::Precision => record.subject.dtype.clone(),
            Self::Engine => record.subject.engine.clone(),
            Self::Model => record.subject.model.clone(),
        }
    }
}

/// One benchmark of the run.
struct Benchmark {
    last: Record,
    /// Headline of each record, at most [`KEPT_HEADLINES`].
    headlines: Vec<f64>,
}

const KEPT_HEADLINES: usize = 100;

/// A run that is watched.
pub struct Watched {
    path: PathBuf,
    /// Bytes read so far, up to the end of a line.
    read_bytes: u64,
    benchmarks: BTreeMap<String, Benchmark>,
    /// Ids in the order of their first records.
    order: Vec<String>,
    /// Id of the last record.
    newest: Option<String>,
    chosen: BTreeMap<Filter, String>,
    unreadable: usize,
    /// An earlier run on the machine: when each of its benchmarks ended. It tells how long this run will take.
    earlier: Option<BTreeMap<String, DateTime<Utc>>>,
    /// First visible line of the view.
    first: usize,
    /// True while the newest row stays visible.
    follows: bool,
}

/// A line of the view, without control characters, which a record from elsewhere may hold.
enum Shown<'a> {
    /// The scenario of the rows below, and their variant if they share it.
    Group(String),
    /// A benchmark: its name below the group.
    Row(String, &'a Benchmark),
}

impl Watched {
    /// Watches the file of records at `path`. [`Self::refresh`] reads it.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read_bytes: 0,
            benchmarks: BTreeMap::new(),
            order: Vec::new(),
            newest: None,
            chosen: BTreeMap::new(),
            unreadable: 0,
            earlier: None,
            first: 0,
            follows: true,
        }
    }

    /// Reads the lines that were added since the last call. An incomplete line is left for the next call.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn refresh(&mut self) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.read_bytes {
            // Another file took the place of the first.
            *self = Self { chosen: self.chosen.clone(), ..Self::new(&self.path) };
        }
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        while read_line_limited(&mut lines, &mut line, LINE_MAX_BYTES)? > 0 && line.ends_with(b"\n") {
            self.read_bytes += line.len() as u64;
            match parse(line.trim_ascii()) {
                _ if line.trim_ascii().is_empty() => {}
                Ok(record) => self.add(record),
                Err(_) => self.unreadable += 1,
            }
            line.clear();
        }
        Ok(())
    }

    fn add(&mut self, record: Record) {
        if self.earlier.is_none() {
            self.earlier = Some(self.ends_of_earlier_run(&record));
        }
        let headline =
            record.measures.as_ref().and_then(|measures| measures.metrics().first().map(|first| first.value));
        let id = record.id.clone();
        self.newest = Some(id.clone());
        match self.benchmarks.get_mut(&id) {
            Some(benchmark) => {
                if benchmark.headlines.len() == KEPT_HEADLINES {
                    benchmark.headlines.remove(0);
                }
                benchmark.headlines.extend(headline);
                benchmark.last = record;
            }
            None => {
                self.order.push(id.clone());
                let headlines = headline.into_iter().collect();
                self.benchmarks.insert(id, Benchmark { last: record, headlines });
            }
        }
    }

    fn ends_of_earlier_run(&self, first: &Record) -> BTreeMap<String, DateTime<Utc>> {
        let out = self.path.parent().and_then(Path::parent);
        let run = out.and_then(|out| {
            crate::record::earlier_runs(out, &first.run, &first.machine.name)
                .find(|(_, records)| records.iter().any(|record| record.id == first.id))
        });
        let ends = run.into_iter().flat_map(|(_, records)| records);
        ends.filter_map(|record| Some((record.id.clone(), at(&record)?))).collect()
    }

    /// Selects the next value of a filter among the benchmarks that the other filters leave. After the last value, the filter
    /// is off.
    pub fn turn(&mut self, filter: Filter) {
        let others = |benchmark: &&Benchmark| {
            let others = self.chosen.iter().filter(|(other, _)| **other != filter);
            others.into_iter().all(|(other, value)| other.of(&benchmark.last) == *value)
        };
        let mut values: Vec<String> =
            self.benchmarks.values().filter(others).map(|benchmark| filter.of(&benchmark.last)).collect();
        // Numbers are ordered by value, so that 2 comes before 16.
        let order = |value: &String| (value.parse::<u64>().unwrap_or(u64::MAX), value.clone());
        values.sort_unstable_by_key(order);
        values.dedup();
        let next = match self.chosen.get(&filter) {
            None => values.into_iter().next(),
            Some(chosen) => values.into_iter().find(|value| order(value) > order(chosen)),
        };
        match next {
            Some(value) => self.chosen.insert(filter, value),
            None => self.chosen.remove(&filter),
        };
        self.follow();
    }

    /// Turns all filters off.
    pub fn clear(&mut self) {
        self.chosen.clear();
        self.follow();
    }

    /// Keeps the newest row visible.
    pub fn follow(&mut self) {
        self.follows = true;
    }

    /// Moves the view by some lines. It stays there until [`Self::follow`].
    pub fn scroll(&mut self, lines: isize) {
        self.follows = false;
        self.first = self.first.saturating_add_signed(lines);
    }

    fn shown(&self) -> Vec<&Benchmark> {
        let fits =
            |benchmark: &&Benchmark| self.chosen.iter().all(|(filter, value)| filter.of(&benchmark.last) == *value);
        self.order.iter().filter_map(|id| self.benchmarks.get(id)).filter(fits).collect()
    }

    /// The benchmarks below their scenarios. The scenario takes a line of its own, because a narrow terminal has no room for
    /// whole ids.
    fn lines(&self) -> Vec<Shown<'_>> {
        let mut groups: Vec<(&str, Vec<&Benchmark>)> = Vec::new();
        for benchmark in self.shown() {
            let scenario = benchmark.last.scenario.as_str();
            match groups.iter_mut().find(|(known, _)| *known == scenario) {
                Some((_, rows)) => rows.push(benchmark),
                None => groups.push((scenario, vec![benchmark])),
            }
        }
        let mut lines = Vec::new();
        for (scenario, rows) in groups {
            let variant = |benchmark: &Benchmark| benchmark.last.subject.variant().to_string();
            let common = variant(rows[0]);
            let is_common = rows.iter().all(|row| variant(row) == common);
            let group = if is_common { format!("{scenario}  {common}") } else { scenario.to_owned() };
            lines.push(Shown::Group(line(&group)));
            lines.extend(rows.into_iter().map(|row| {
                let mark = if is_disturbed(&row.last) { "! " } else { "  " };
                let own = if is_common { String::new() } else { format!(" {}", variant(row)) };
                Shown::Row(line(&format!("{mark}{}{own}", row.last.subject.model)), row)
            }));
        }
        lines
    }

    /// Draws the view on the whole terminal, at the time `now`.
    pub fn draw(&mut self, frame: &mut Frame, now: DateTime<Utc>) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
        frame.render_widget(Paragraph::new(self.head(now)), head);
        self.first = self.first_visible(body.height.saturating_sub(NOT_ROWS) as usize);
        self.table(frame, body);
        let keys = Filter::ALL.map(|(key, _, name)| format!("{key} {name}")).join("  ");
        frame.render_widget(Paragraph::new(format!("{keys}  Esc all  ↑↓ End  q quit")), foot);
    }

    /// The first line, so that the newest row is visible if the view follows it, and the view has no empty end.
    fn first_visible(&self, height: usize) -> usize {
        let lines = self.lines();
        let end = lines.len().saturating_sub(height);
        if !self.follows {
            return self.first.min(end);
        }
        let is_newest =
            |line: &Shown| matches!(line, Shown::Row(_, benchmark) if Some(&benchmark.last.id) == self.newest.as_ref());
        let newest = lines.iter().position(is_newest).unwrap_or(lines.len());
        (newest + 1).saturating_sub(height).min(end)
    }

    fn head(&self, now: DateTime<Utc>) -> Vec<Line<'static>> {
        let count = |is_counted: fn(&Record) -> bool| {
            self.benchmarks.values().filter(|benchmark| is_counted(&benchmark.last)).count()
        };
        let run = self.path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let mut first = format!("{run}: {} benchmarks, {} failed", self.benchmarks.len(), count(is_failed));
        let disturbed = count(is_disturbed);
        if disturbed > 0 {
            first.push_str(&format!(", {disturbed} disturbed (!)"));
        }
        if self.unreadable > 0 {
            first.push_str(&format!(", {} unreadable lines", self.unreadable));
        }
        if self.benchmarks.values().any(|benchmark| benchmark.last.sandbox) {
            first.push_str("; with MADE-UP figures");
        }
        let chosen: Vec<String> = Filter::ALL
            .iter()
            .filter_map(|(_, filter, name)| Some(format!("{name} {}", self.chosen.get(filter)?)))
            .collect();
        let filter = if chosen.is_empty() { "all benchmarks".into() } else { format!("only {}", chosen.join(", ")) };
        let second = [self.times(now), Some(filter)].into_iter().flatten().collect::<Vec<_>>().join("; ");
        vec![Line::styled(line(&first), Style::new().add_modifier(Modifier::BOLD)), Line::raw(line(&second))]
    }

    /// Time since the first result, and the time that an earlier run took for what is left.
    fn times(&self, now: DateTime<Utc>) -> Option<String> {
        let ends = || self.benchmarks.values().filter_map(|benchmark| at(&benchmark.last));
        let (first, last) = (ends().min()?, ends().max()?);
        let earlier = self.earlier.as_ref()?;
        let left: Vec<_> = earlier.iter().filter(|(id, _)| !self.benchmarks.contains_key(*id)).collect();
        // Without a result for a long time, the run has ended or was stopped.
        if (now - last) > IDLE {
            return Some(format!(
                "ended {} ago, {} after the first result",
                duration(now - last),
                duration(last - first)
            ));
        }
        let elapsed = format!("{} since the first result", duration(now - first));
        let done = earlier.iter().filter(|(id, _)| self.benchmarks.contains_key(*id)).map(|(_, end)| *end).max();
        Some(match (done, left.iter().map(|(_, end)| **end).max()) {
            (Some(done), Some(end)) if end > done => {
                format!("{elapsed}, about {} for {} more as in an earlier run", duration(end - done), left.len())
            }
            _ => elapsed,
        })
    }

    fn table(&self, frame: &mut Frame, area: Rect) {
        const HEADLINE_WIDTH: u16 = 14;
        const MEASURE_WIDTH: u16 = 7;
        const LEAST_SAMPLES: u16 = 6;
        let (shown, lines) = (self.shown(), self.lines());
        let names = lines.iter().map(|line| match line {
            Shown::Group(text) | Shown::Row(text, _) => text.chars().count() as u16,
        });
        // Two characters are the border, and one separates columns.
        let mut free = area.width.saturating_sub(2);
        let name_width = names.max().unwrap_or(0).max(12).min(free.saturating_sub(HEADLINE_WIDTH + 1));
        free = free.saturating_sub(name_width + 1 + HEADLINE_WIDTH);
        let has_value = |column: &TableColumn| shown.iter().any(|row| !measure(column, &row.last).is_empty());
        let mut columns: Vec<TableColumn> = Vec::new();
        for column in table_columns(TableKey::Live).into_iter().filter(has_value) {
            if free > MEASURE_WIDTH {
                free -= MEASURE_WIDTH + 1;
                columns.push(column);
            }
        }
        let samples_width = if free > LEAST_SAMPLES { (free - 1).min(40) } else { 0 };
        let rows = lines.iter().skip(self.first).map(|line| match line {
            Shown::Group(text) => Row::new([text.clone()]).style(Style::new().add_modifier(Modifier::DIM)),
            Shown::Row(name, benchmark) => {
                let measures = columns.iter().map(|column| measure(column, &benchmark.last));
                let samples = sparkline(&benchmark.samples(), samples_width as usize);
                let cells = [shortened(name, name_width as usize), headline(&benchmark.last)].into_iter();
                let is_newest = Some(&benchmark.last.id) == self.newest.as_ref();
                let style = if is_newest { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
                Row::new(cells.chain(measures).chain([samples]).map(Cell::from)).style(style)
            }
        });
        let widths = [name_width, HEADLINE_WIDTH]
            .into_iter()
            .chain(columns.iter().map(|_| MEASURE_WIDTH))
            .chain([samples_width])
            .map(Constraint::Length);
        let headers = ["benchmark", "headline"].into_iter().chain(columns.iter().map(|column| column.header));
        let head = Row::new(headers.chain(["samples"])).style(Style::new().add_modifier(Modifier::BOLD));
        let title = format!("{} of {}", shown.len(), self.order.len());
        frame.render_widget(Table::new(rows, widths).header(head).block(Block::bordered().title(title)), area);
    }
}

/// Lines of the table's area that are not rows: the border and the header.
const NOT_ROWS: u16 = 3;

/// Time without a result after which a run counts as ended.
const IDLE: TimeDelta = TimeDelta::minutes(15);

fn at(record: &Record) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(&record.at).ok().map(|at| at.to_utc())
}

/// A duration in its two largest units.
pub(crate) fn duration(duration: TimeDelta) -> String {
    match duration.num_seconds().max(0) {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds if seconds < 3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds if seconds < 86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

impl Benchmark {
    /// The values of the sparkline: the headlines of the records, or the rates of the samples if there is one record.
    fn samples(&self) -> Vec<f64> {
        match (&self.last.measures, self.headlines.len()) {
            (Some(measures), 0 | 1) => measures.sample_ms().iter().map(|ms| 1.0 / ms).collect(),
            _ => self.headlines.clone(),
        }
    }
}

/// Returns whether a benchmark has no result although it should have one.
fn is_failed(record: &Record) -> bool {
    record.measures.is_none() && record.status != Status::Excluded
}

fn headline(record: &Record) -> String {
    let Some(metrics) = record.measures.as_ref().map(Measures::metrics) else {
        return if is_failed(record) { "failed".into() } else { record.status.to_string() };
    };
    metrics.first().map_or(String::new(), |metric| {
        let unit = match metric.unit {
            MeasureUnit::Bytes => "MB",
            MeasureUnit::BytesPerS => "MB/s",
            other => other.name(),
        };
        format!("{} {unit}", quantity(metric.value, metric.unit))
    })
}

fn measure(column: &TableColumn, record: &Record) -> String {
    let value = record.measures.as_ref().and_then(|measures| column.value(measures));
    value.map_or(String::new(), |(value, unit)| quantity(value, unit))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn record(id: &str, edit: impl Fn(&mut Record)) -> String {
        let mut record: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        record.id = id.into();
        edit(&mut record);
        serde_json::to_string(&record).expect("a line") + "\n"
    }

    fn screen(watched: &mut Watched, width: u16, height: u16) -> String {
        let now = "2026-11-21T02:52:41Z".parse().expect("a time");
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| watched.draw(frame, now)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_added_appears_and_half_a_line_waits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        fs::write(&path, record("short/a/stock-f32-cpu", |_| {})).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        assert!(screen(&mut watched, 80, 24).contains("1 benchmarks, 0 failed"));

        let more = record("short/b/stock-f32-cpu", |record| record.measures = None);
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(&more.as_bytes()[..100]).expect("written");
        watched.refresh().expect("read");
        assert_eq!(watched.order.len(), 1);
        file.write_all(&more.as_bytes()[100..]).expect("written");
        file.write_all(b"nonsense\n").expect("written");
        watched.refresh().expect("read");
        let screen = screen(&mut watched, 80, 24);
        assert!(screen.contains("2 benchmarks, 1 failed, 1 unreadable lines"), "{screen}");

        fs::write(&path, record("short/c/stock-f32-cpu", |_| {})).expect("written");
        watched.refresh().expect("read");
        assert_eq!(watched.order, ["short/c/stock-f32-cpu"], "another file is read from its start");
    }

    /// The watched run of the sandbox, with some changes.
    fn sandbox(folder: &Path, edit: impl Fn(&mut Record)) -> Watched {
        let path = folder.join("sandbox").join("records.jsonl");
        fs::create_dir_all(folder.join("sandbox")).expect("made");
        let records = crate::runner::sandbox::records("sandbox", 1, 1, Utc::now()).expect("records");
        let line = |mut record: Record| {
            edit(&mut record);
            serde_json::to_string(&record).expect("a line") + "\n"
        };
        fs::write(&path, records.map(line).collect::<String>()).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        watched
    }

    #[test]
    fn names_are_whole_in_a_small_terminal_and_the_newest_row_is_visible() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watched = sandbox(folder.path(), |_| {});
        let model = "waveresnet-d256-l8-s256-b4-checkpointed";
        watched.newest = watched.order.iter().rfind(|id| id.contains(model)).cloned();
        for (width, height) in [(80, 24), (120, 40), (200, 50)] {
            watched.follow();
            let last = screen(&mut watched, width, height);
            assert!(last.contains(model), "the newest row is visible:\n{last}");
            for end in 0..5 {
                let shown = screen(&mut watched, width, height);
                assert!(!shown.contains('…'), "{end}: names are whole:\n{shown}");
                watched.scroll(-20);
            }
            let first = screen(&mut watched, width, height);
            for part in ["headline", "q quit", "Esc all"] {
                assert!(first.contains(part), "{part} is missing from\n{first}");
            }
            assert!(!first.contains(model), "it stays where it was scrolled to:\n{first}");
        }
        let large = screen(&mut watched, 200, 50);
        for part in ["TTFT ms", "ITL ms", "step ms", "peak MB", "samples"] {
            assert!(large.contains(part), "{part} is missing from\n{large}");
        }
    }

    #[test]
    fn values_have_the_column_and_the_unit_of_their_measure() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watched = sandbox(folder.path(), |_| {});
        let memory = watched.benchmarks.values().find(|b| crate::scenario::is_in_bytes(&b.last.scenario));
        let text = headline(&memory.expect("a benchmark of memory").last);
        assert!(text.ends_with(" MB") && text.len() < 12, "{text}");
        watched.benchmarks.retain(|_, b| !matches!(b.last.measures, Some(Measures::Generation(_))));
        let steps = screen(&mut watched, 120, 40);
        assert!(steps.contains("step ms") && !steps.contains("ITL"), "{steps}");
    }

    #[test]
    fn disturbed_rows_have_a_mark_and_times_are_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watched = sandbox(folder.path(), |record| {
            record.at = "2026-11-21T02:51:41Z".into();
            if record.subject.model == "gemma3-mini" && record.scenario == "short" {
                record.conditions.as_mut().expect("conditions").doubts.push("busy".into());
            }
        });
        watched.scroll(-1000);
        let text = screen(&mut watched, 120, 40);
        assert!(text.contains("! gemma3-mini") && text.contains("  llama-mini"), "{text}");
        assert!(text.contains("1 disturbed (!)") && text.contains("1 min 0 s since the first result"), "{text}");
    }

    #[test]
    fn the_remaining_time_is_that_of_an_earlier_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = |name: &str, ids: &[(&str, &str)]| {
            let path = folder.path().join(name).join("records.jsonl");
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            let line = |(id, at): &(&str, &str)| {
                record(id, |record| {
                    record.run = name.into();
                    record.at = format!("2026-11-21T0{at}Z");
                })
            };
            fs::write(&path, ids.iter().map(line).collect::<String>()).expect("written");
            path
        };
        run("before", &[("a", "1:00:00"), ("b", "1:03:00"), ("c", "1:10:00")]);
        let mut watched = Watched::new(&run("now", &[("a", "2:52:00")]));
        watched.refresh().expect("read");
        let text = screen(&mut watched, 120, 24);
        assert!(text.contains("41 s since the first result, about 10 min 0 s for 2 more"), "{text}");
    }

    #[test]
    fn keys_turn_through_what_there_is_and_back_to_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        let lines = ["f32", "bf16"].map(|dtype| record(dtype, |record| record.subject.dtype = dtype.into()));
        fs::write(&path, lines.concat()).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        let shown = |watched: &Watched| watched.shown().iter().map(|b| b.last.id.clone()).collect::<Vec<_>>();
        assert_eq!(shown(&watched), ["f32", "bf16"]);
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched), ["bf16"]);
        assert!(screen(&mut watched, 80, 24).contains("only precision bf16"));
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched), ["f32"]);
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched).len(), 2);

        let sized = [16, 2].map(|batch| {
            record(&batch.to_string(), |record| {
                record.subject.sizes.insert("batch".into(), batch);
            })
        });
        fs::write(&path, sized.concat()).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        watched.turn(Filter::Batch);
        assert_eq!(shown(&watched), ["2"], "numbers are turned through by what they are");
        watched.turn(Filter::Batch);
        assert_eq!(shown(&watched), ["16"]);
    }

    #[test]
    fn filters_turn_through_what_the_others_leave_and_escape_shows_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watched = sandbox(folder.path(), |_| {});
        for (_, first, _) in Filter::ALL {
            for (_, second, _) in Filter::ALL {
                for _ in 0..40 {
                    watched.turn(first);
                    watched.turn(second);
                    assert!(!watched.shown().is_empty(), "{:?}", watched.chosen);
                }
                watched.clear();
                assert_eq!(watched.shown().len(), watched.order.len());
            }
        }
    }

    /// The library of the terminal drops control characters, but not those that change the direction of writing.
    #[test]
    fn names_in_records_are_shown_without_escape_sequences() {
        const FOREIGN: &str = "\u{1b}]0;owned\u{7}\u{202e}";
        const SHOWN: &str = "\\u{1b}]0;owned\\u{7}\\u{202e}";
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run").join("records.jsonl");
        fs::create_dir(folder.path().join("run")).expect("made");
        let foreign = record(FOREIGN, |record| {
            record.scenario = FOREIGN.into();
            let subject = &mut record.subject;
            for name in [&mut subject.model, &mut subject.engine, &mut subject.dtype, &mut subject.device] {
                *name = FOREIGN.into();
            }
        });
        fs::write(&path, foreign).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        for (filter, name) in [(Filter::Precision, "precision"), (Filter::Engine, "engine"), (Filter::Model, "model")] {
            watched.turn(filter);
            let screen = screen(&mut watched, 240, 24);
            assert!(screen.contains(&format!("only {name} {SHOWN}")), "{screen}");
            assert!(screen.contains(&format!("{SHOWN}  {SHOWN}-{SHOWN}-{SHOWN} ")), "the scenario: {screen}");
            assert!(screen.contains(&format!("│  {SHOWN} ")), "the model: {screen}");
            assert!(!screen.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{screen:?}");
            watched.clear();
        }
    }

    #[test]
    fn bars_go_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[1.0, 2.0, 3.0], 10), "▁▅█");
        assert_eq!(sparkline(&[9.0, 1.0, 2.0], 2), "▁█");
        assert_eq!(sparkline(&[], 5), "");
        assert_eq!(shortened("abcdefghij", 7), "abc…hij");
    }
}
