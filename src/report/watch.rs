//! The live view of a run: a line for each benchmark, updated as records arrive. This file draws the view; the command owns
//! the terminal and its keys.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::table::{number, quantity};
use crate::{
    record::{
        BenchmarkId, Measures, Record,
        measures::{TableColumn, TableKey, table_columns},
        parse,
    },
    text,
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
                Some(Measures::Generation(measures)) => (measures.prompt_tokens + measures.new_tokens).to_string(),
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
    chosen: BTreeMap<Filter, String>,
    unreadable: usize,
    /// First visible row of the view.
    pub scroll: usize,
}

impl Watched {
    /// Watches the file of records at `path`. [`Self::refresh`] reads it.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read_bytes: 0,
            benchmarks: BTreeMap::new(),
            order: Vec::new(),
            chosen: BTreeMap::new(),
            unreadable: 0,
            scroll: 0,
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
        while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
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
        let headline =
            record.measures.as_ref().and_then(|measures| measures.metrics().first().map(|first| first.value));
        let id = record.id.clone();
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

    /// Selects the next value of a filter. After the last value, the filter is off.
    pub fn turn(&mut self, filter: Filter) {
        let mut values: Vec<String> = self.benchmarks.values().map(|benchmark| filter.of(&benchmark.last)).collect();
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
        self.scroll = 0;
    }

    fn shown(&self) -> Vec<&Benchmark> {
        let fits =
            |benchmark: &&Benchmark| self.chosen.iter().all(|(filter, value)| filter.of(&benchmark.last) == *value);
        self.order.iter().filter_map(|id| self.benchmarks.get(id)).filter(fits).collect()
    }

    /// Draws the view on the whole terminal.
    pub fn draw(&self, frame: &mut Frame) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.table(frame, body);
        let keys = Filter::ALL.map(|(key, _, name)| format!("{key} {name}")).join("  ");
        frame.render_widget(Paragraph::new(format!("{keys}  ↑↓ scroll  q quit")), foot);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let failed = self.benchmarks.values().filter(|benchmark| benchmark.last.measures.is_none()).count();
        let run = self.path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let mut first = format!("{run}: {} benchmarks, {failed} failed", self.benchmarks.len());
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
        let second = if chosen.is_empty() { "all benchmarks".into() } else { format!("only {}", chosen.join(", ")) };
        let [first, second] = [first, second].map(|text| text::line(&text));
        vec![Line::styled(first, Style::new().add_modifier(Modifier::BOLD)), Line::raw(second)]
    }

    fn table(&self, frame: &mut Frame, area: Rect) {
        const HEADLINE_WIDTH: u16 = 14;
        const MEASURE_WIDTH: u16 = 7;
        let columns = table_columns(TableKey::Live);
        let shown = self.shown();
        let first = self.scroll.min(shown.len().saturating_sub(1));
        let is_wide = area.width >= 120;
        let samples_width = if is_wide { 40 } else { 8 };
        let column_count = columns.len() as u16;
        // Two characters are the border, and one separates each of the columns.
        let others = HEADLINE_WIDTH + column_count * MEASURE_WIDTH + samples_width + (column_count + 2) + 2;
        let id_width = area.width.saturating_sub(others);
        let rows = shown.iter().skip(first).map(|benchmark| {
            let Record { id, scenario, subject, .. } = &benchmark.last;
            let short = BenchmarkId::new(scenario, subject).without_variant();
            let id = shortened(if is_wide { id } else { &short }, id_width as usize);
            let measures = columns.iter().map(|column| measure(column, &benchmark.last));
            let samples = sparkline(&benchmark.samples(), samples_width as usize);
            Row::new([id, headline(&benchmark.last)].into_iter().chain(measures).chain([samples]).map(plain_cell))
        });
        let widths = [id_width, HEADLINE_WIDTH]
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

impl Benchmark {
    /// The values of the sparkline: the headlines of the records, or the rates of the samples if there is one record.
    fn samples(&self) -> Vec<f64> {
        match (&self.last.measures, self.headlines.len()) {
            (Some(measures), 0 | 1) => measures.sample_ms().iter().map(|ms| 1.0 / ms).collect(),
            _ => self.headlines.clone(),
        }
    }
}

/// A cell without control characters, which a record from elsewhere may hold.
fn plain_cell(text: String) -> Cell<'static> {
    Cell::from(text::line(&text))
}

fn headline(record: &Record) -> String {
    match record.measures.as_ref().map(Measures::metrics) {
        None => "failed".into(),
        Some(metrics) => metrics
            .first()
            .map_or(String::new(), |metric| format!("{} {}", number(Some(metric.value)), metric.unit.name())),
    }
}

fn measure(column: &TableColumn, record: &Record) -> String {
    let value = record.measures.as_ref().and_then(|measures| column.value(measures));
    value.map_or(String::new(), |(value, unit)| quantity(value, unit))
}

/// The text with its middle replaced by `…`, if it has more than `width` characters.
fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width || width < 5 {
        return text.chars().take(width).collect();
    }
    let (front, back) = (width.div_ceil(2) - 1, width / 2);
    let chars: Vec<char> = text.chars().collect();
    chars[..front].iter().chain(&['…']).chain(&chars[count - back..]).collect()
}

/// The last `width` values as bars of eight heights, from the smallest to the largest.
fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let last = &values[values.len().saturating_sub(width)..];
    let (low, high) = last.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let bar = |value: &f64| {
        let share = if high > low { (value - low) / (high - low) } else { 0.5 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    last.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn line(id: &str, edit: impl Fn(&mut Record)) -> String {
        let mut record: Record = serde_json::from_str(include_str!("../record/sample.json")).expect("the sample");
        record.id = id.into();
        edit(&mut record);
        serde_json::to_string(&record).expect("a line") + "\n"
    }

    fn screen(watched: &Watched, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| watched.draw(frame)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_added_appears_and_half_a_line_waits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        fs::write(&path, line("short/a/stock-f32-cpu", |_| {})).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        assert!(screen(&watched, 80, 24).contains("1 benchmarks, 0 failed"));

        let more = line("short/b/stock-f32-cpu", |record| record.measures = None);
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(&more.as_bytes()[..100]).expect("written");
        watched.refresh().expect("read");
        assert_eq!(watched.order.len(), 1);
        file.write_all(&more.as_bytes()[100..]).expect("written");
        file.write_all(b"nonsense\n").expect("written");
        watched.refresh().expect("read");
        let screen = screen(&watched, 80, 24);
        assert!(screen.contains("2 benchmarks, 1 failed, 1 unreadable lines"), "{screen}");

        fs::write(&path, line("short/c/stock-f32-cpu", |_| {})).expect("written");
        watched.refresh().expect("read");
        assert_eq!(watched.order, ["short/c/stock-f32-cpu"], "another file is read from its start");
    }

    #[test]
    fn it_fits_a_small_and_a_large_terminal() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        let lines: String = (0..60)
            .map(|n| line(&format!("architecture_sweep_train/model-{n:02}-with-a-long-name/stock-f32-cpu"), |_| {}))
            .collect();
        fs::write(&path, lines).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        let small = screen(&watched, 80, 24);
        for part in ["60 of 60", "headline", "TTFT ms", "ITL ms", "peak MB", "watts", "samples", "tok/s", "q quit"] {
            assert!(small.contains(part), "{part} is missing from\n{small}");
        }
        let large = screen(&watched, 200, 50);
        assert!(large.contains("architecture_sweep_train/model-00-with-a-long-name/stock-f32-cpu"), "{large}");
        watched.scroll = 50;
        assert!(screen(&watched, 200, 50).contains("model-59-") && !screen(&watched, 200, 50).contains("model-49-"));
    }

    #[test]
    fn keys_turn_through_what_there_is_and_back_to_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        let lines = ["f32", "bf16"].map(|dtype| line(dtype, |record| record.subject.dtype = dtype.into()));
        fs::write(&path, lines.concat()).expect("written");
        let mut watched = Watched::new(&path);
        watched.refresh().expect("read");
        let shown = |watched: &Watched| watched.shown().iter().map(|b| b.last.id.clone()).collect::<Vec<_>>();
        assert_eq!(shown(&watched), ["f32", "bf16"]);
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched), ["bf16"]);
        assert!(screen(&watched, 80, 24).contains("only precision bf16"));
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched), ["f32"]);
        watched.turn(Filter::Precision);
        assert_eq!(shown(&watched).len(), 2);

        let sized = [16, 2].map(|batch| {
            line(&batch.to_string(), |record| {
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
    fn bars_go_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[1.0, 2.0, 3.0], 10), "▁▅█");
        assert_eq!(sparkline(&[9.0, 1.0, 2.0], 2), "▁█");
        assert_eq!(sparkline(&[], 5), "");
        assert_eq!(shortened("abcdefghij", 7), "abc…hij");
    }
}
