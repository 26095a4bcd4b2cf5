//! The tables of a report, one for each family of scenarios. The columns of measures come from the
//! [table of measures](crate::record::measures); this file adds names and quotients. Markdown is aligned, so that it also
//! reads well in a terminal.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    dtypes,
    ratios::{self, Limit},
    summary::is_disturbed,
    text_table::{markdown, terminal, width, wrapped},
};
use crate::{
    record::{
        self, Generation, MeasureUnit, Measures, Record, Status, Training,
        measures::{Missing, TableColumn, TableKey, table_columns},
    },
    scenario::{
        CHECKPOINT_MEMORY, Counterpart, GENERATION, LONG_CONTEXT, MOE_TOP_K, PSANN_THROUGHPUT, SERVING_LOAD, SWEEP,
        TENSOR_PARALLEL, THREADS_SCALING, TRAINING_SWEEP, dense_name,
    },
    text,
};

/// A table and its notes.
pub struct Table {
    /// The family of scenarios.
    pub key: TableKey,
    /// Title of the family.
    pub title: &'static str,
    /// The scenario, if all rows have the same.
    pub scenario: Option<String>,
    /// Columns that have the same value in every row, as `<header> <value>`. They are not in the rows.
    pub common: Vec<String>,
    /// The header is the first row. All rows have the same length.
    pub rows: Vec<Vec<String>>,
    /// Number of text columns, which precede the columns of numbers.
    pub words: usize,
    /// What its rows mean, as paragraphs in Markdown.
    pub notes: Vec<String>,
    /// What its columns mean. A terminal has no room for that.
    pub definitions: Vec<String>,
}

impl Table {
    /// The title, and what all rows have in common.
    pub fn heading(&self) -> String {
        match self.common.is_empty() {
            true => self.title.to_owned(),
            false => format!("{} ({})", self.title, self.common.join(", ")),
        }
    }

    /// The table and its notes as Markdown, without the heading.
    pub fn markdown(&self) -> String {
        let mut text = markdown(&self.rows, self.words);
        for note in self.definitions.iter().chain(&self.notes) {
            let _ = write!(text, "\n{}\n", text::markdown(note));
        }
        text
    }

    /// Heading, table and notes for a terminal.
    pub fn terminal(&self) -> String {
        let paragraph = |text: &str| wrapped(&text::line(text), width()).join("\n");
        let mut text = format!("{}\n\n{}", paragraph(&self.heading()), terminal(&self.rows, self.words));
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{}", paragraph(note));
        }
        text
    }
}

/// The table of a family of scenarios. A record belongs to the first family that takes it.
struct Family {
    key: TableKey,
    title: &'static str,
    /// True if each scenario has a table of its own.
    is_split: bool,
    takes: fn(&Record) -> bool,
    names: &'static [NameColumn],
    /// Columns of numbers that are not measures.
    extra: &'static [ExtraColumn],
    note: Option<&'static str>,
}

/// A column that names the benchmark.
struct NameColumn {
    header: &'static str,
    text: fn(&Record) -> String,
}

/// A column of numbers that is computed from more than the record's measures.
struct ExtraColumn {
    /// Orders the column among those of measures.
    place: u8,
    header: &'static str,
    /// True for a property of the work, which moves into the heading if it is the same in every row.
    is_property: bool,
    /// Text for a record, given all measured records of the table. A column whose texts are all empty is left out.
    text: fn(&Record, &[&Record]) -> String,
}

/// A column of results.
const fn result(place: u8, header: &'static str, text: fn(&Record, &[&Record]) -> String) -> ExtraColumn {
    ExtraColumn { place, header, is_property: false, text }
}

/// The rate of the fastest subject of the scenario divided by that of the row.
const VERSUS_BEST: &str = "vs best";

const SCENARIO: NameColumn = NameColumn { header: "scenario", text: |record| record.scenario.clone() };
const MODEL: NameColumn = NameColumn { header: MODEL_HEADER, text: |record| record.subject.model.clone() };
const VARIANT: NameColumn = NameColumn { header: "variant", text: variant };
/// Header of the column that carries the marks of the notes.
const MODEL_HEADER: &str = "model";

const PARAMETERS: ExtraColumn = ExtraColumn {
    place: 90,
    header: "params M",
    is_property: true,
    text: |record, _| number(record.subject.parameters.map(|count| count as f64 / 1e6)),
};

/// Headers of the columns of paired ratios.
const RATIOS: [&str; 7] =
    [ACTIVE_TWIN, TOTAL_TWIN, TIME_OF_PLAIN, TIME_OF_SCENARIO, TIME_OF_STOCK, TIME_OF_PEER, TIME_OF_FEWEST];
const TIME_OF_PLAIN: &str = "time / plain";
const TIME_OF_SCENARIO: &str = "time / medium";
const TIME_OF_STOCK: &str = "time / stock";
const TIME_OF_PEER: &str = "time / peer";
const TIME_OF_FEWEST: &str = "time / fewest";

/// The time of a row of this crate divided by that of the first peer.
const fn time_of_peer(place: u8) -> ExtraColumn {
    result(place, TIME_OF_PEER, |record, all| {
        let is_compared = record.subject.engine != "stock" && record.subject.peer.is_none();
        let peer = all.iter().find(|other| other.subject.peer.is_some()).filter(|_| is_compared);
        let of_medians = peer.and_then(|peer| ratios::of_medians(record, all, &record.scenario, &peer.subject.engine));
        ratios::cell(record, Counterpart::Peer, of_medians)
    })
}

/// The shares of the best limits come last: a narrow terminal leaves them out first.
const fn of_best(limit: Limit) -> ExtraColumn {
    match limit {
        Limit::Read => result(250, "MBU of best", |record, all| ratios::of_best(record, all, Limit::Read)),
        Limit::Matrix => result(251, "MFU of best", |record, all| ratios::of_best(record, all, Limit::Matrix)),
    }
}

const FAMILIES: [Family; 14] = [
    Family {
        key: TableKey::MixturePrefill,
        title: "Mixtures of experts: prefill",
        is_split: false,
        takes: |record| record.scenario == MOE_TOP_K[0].key,
        names: &[MODEL, VARIANT],
        extra: &[
            result(20, ACTIVE_TWIN, |record, all| twin_ratio(record, all, Twin::Active, prefill_rate)),
            result(30, TOTAL_TWIN, |record, all| twin_ratio(record, all, Twin::Total, prefill_rate)),
            of_best(Limit::Matrix),
            PARAMETERS,
        ],
        note: Some(TWINS),
    },
    Family {
        key: TableKey::MixtureDecode,
        title: "Mixtures of experts: decode",
        is_split: false,
        takes: |record| record.scenario == MOE_TOP_K[1].key,
        names: &[MODEL, VARIANT],
        extra: &[
            result(20, ACTIVE_TWIN, |record, all| twin_ratio(record, all, Twin::Active, decode_rate)),
            result(30, TOTAL_TWIN, |record, all| twin_ratio(record, all, Twin::Total, decode_rate)),
            of_best(Limit::Read),
            PARAMETERS,
        ],
        note: Some(TWINS),
    },
    Family {
        key: TableKey::Sweep,
        title: "Architecture sweep",
        is_split: true,
        takes: |record| SWEEP.contains(&record.scenario),
        names: &[
            SCENARIO,
            NameColumn { header: "architecture", text: |record| record.subject.architecture_and_sizes().0.to_owned() },
            NameColumn { header: MODEL_HEADER, text: |record| record.subject.architecture_and_sizes().1.to_owned() },
            VARIANT,
        ],
        extra: &[
            result(15, VERSUS_BEST, |record, all| versus_best(record, all, windows_rate)),
            time_of_peer(16),
            of_best(Limit::Matrix),
            PARAMETERS,
        ],
        note: Some("A sample is one window of the series."),
    },
    Family {
        key: TableKey::Checkpointing,
        title: "Gradient checkpointing",
        is_split: true,
        takes: |record| CHECKPOINT_MEMORY.iter().any(|group| group.key == record.scenario),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            result(30, "activations MB", |record, _| {
                number(training(record).and_then(activation_bytes).map(|bytes| bytes / 1e6))
            }),
            result(40, "activations / plain", |record, all| {
                plain_ratio(record, all, activation_bytes).map_or_else(String::new, |ratio| number(Some(ratio)))
            }),
            result(70, TIME_OF_PLAIN, |record, all| {
                let of_medians = plain_ratio(record, all, |measures| Some(measures.step_p50_ms));
                ratios::cell(record, Counterpart::Plain, of_medians)
            }),
            time_of_peer(75),
        ],
        note: Some(
            "Activations are the peak memory of a step minus the memory in use between steps. The ratios are relative to \
             the same model without checkpointing.",
        ),
    },
    Family {
        key: TableKey::Training,
        title: "Language models in training",
        is_split: true,
        takes: |record| {
            let groups = PSANN_THROUGHPUT.iter().chain(TRAINING_SWEEP);
            groups.into_iter().any(|group| group.key == record.scenario)
        },
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            result(25, VERSUS_BEST, |record, all| versus_best(record, all, training_rate)),
            time_of_peer(26),
            of_best(Limit::Matrix),
            ExtraColumn { place: 80, ..PARAMETERS },
        ],
        note: Some("Tokens are random. The loss shows that a step trains, but the model learns nothing useful."),
    },
    Family {
        key: TableKey::Serving,
        title: "Serving under load",
        is_split: false,
        takes: |record| SERVING_LOAD.iter().any(|scenario| scenario.key == record.scenario),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[result(145, TIME_OF_STOCK, time_of_stock)],
        note: Some("Times count from the arrival of each request at the scheduler. Nothing is sent."),
    },
    Family {
        key: TableKey::Serving,
        title: "Servers under load",
        is_split: false,
        takes: |record| matches!(record.measures, Some(Measures::Serving(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[],
        note: Some("Times count from the schedule of each request. Failed requests are not in the times."),
    },
    Family {
        key: TableKey::Quality,
        title: "Perplexity",
        is_split: true,
        takes: |record| matches!(record.measures, Some(Measures::Quality(_))),
        names: &[SCENARIO, MODEL, VARIANT, NameColumn { header: "reference", text: reference }],
        extra: &[],
        note: Some("Standard errors are computed as if tokens were independent."),
    },
    Family {
        key: TableKey::Evaluation,
        title: "Tasks",
        is_split: false,
        takes: |record| matches!(record.measures, Some(Measures::Evaluation(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[],
        note: None,
    },
    Family {
        key: TableKey::Loading,
        title: "Loading",
        is_split: false,
        takes: |record| matches!(record.measures, Some(Measures::Loading(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[],
        note: Some("A cold load is cold if storage delivered the files: some file systems keep files in memory."),
    },
    Family {
        key: TableKey::Tokenizing,
        title: "Tokenizers",
        is_split: false,
        takes: |record| matches!(record.measures, Some(Measures::Tokenizing(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[],
        note: None,
    },
    Family {
        key: TableKey::Scaling,
        title: "Scaling",
        is_split: true,
        takes: |record| THREADS_SCALING.iter().chain(TENSOR_PARALLEL).any(|scenario| scenario.key == record.scenario),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            result(30, TIME_OF_FEWEST, |record, all| {
                let fewest = ratios::degrees(record).filter(|(own, fewest)| own != fewest).map(|(_, fewest)| fewest);
                let engine = record.subject.engine.trim_end_matches(|c: char| c.is_ascii_digit());
                let of_medians = fewest
                    .and_then(|fewest| ratios::of_medians(record, all, &record.scenario, &format!("{engine}{fewest}")));
                ratios::cell(record, Counterpart::Fewest, of_medians)
            }),
            result(40, "efficiency", |record, _| {
                ratios::efficiency(record).map_or_else(String::new, |share| quantity(share, MeasureUnit::Share))
            }),
            of_best(Limit::Read),
            of_best(Limit::Matrix),
        ],
        note: Some(
            "Time / fewest is relative to the fewest threads or ranks. Efficiency is the speed-up over the factor of the \
             threads. Ranks divide the threads of the process.",
        ),
    },
    Family {
        key: TableKey::LongContext,
        title: "Long contexts",
        is_split: false,
        takes: |record| LONG_CONTEXT.iter().any(|scenario| scenario.key == record.scenario),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            result(56, TIME_OF_STOCK, time_of_stock),
            time_of_peer(57),
            of_best(Limit::Read),
            of_best(Limit::Matrix),
        ],
        note: Some("Predicted MB is the peak memory as it was predicted before the first generation."),
    },
    Family {
        key: TableKey::Generation,
        title: "Generation",
        is_split: false,
        takes: |record| matches!(record.measures, Some(Measures::Generation(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            // A narrow terminal leaves it out before what was measured.
            result(249, VERSUS_BEST, |record, all| versus_best(record, all, generation_rate)),
            result(16, TIME_OF_SCENARIO, |record, all| {
                let against = GENERATION.iter().find(|scenario| scenario.key == record.scenario);
                let other = against.and_then(|scenario| scenario.against);
                let of_medians = other.and_then(|other| ratios::of_medians(record, all, other, &record.subject.engine));
                ratios::cell(record, Counterpart::Scenario, of_medians)
            }),
            result(14, TIME_OF_STOCK, time_of_stock),
            time_of_peer(15),
            of_best(Limit::Read),
            of_best(Limit::Matrix),
        ],
        note: None,
    },
];

/// Time of a benchmark divided by that of engine `stock`.
fn time_of_stock(record: &Record, all: &[&Record]) -> String {
    let is_stock = record.subject.engine == "stock";
    let of_medians = ratios::of_medians(record, all, &record.scenario, "stock").filter(|_| !is_stock);
    ratios::cell(record, Counterpart::Stock, of_medians)
}

const ACTIVE_TWIN: &str = "time / active twin";
const TOTAL_TWIN: &str = "time / total twin";
const TWINS: &str = "The active twin is a dense decoder as wide as the experts that a token is sent to. The total twin is as \
    wide as all experts. dense-N is as wide as N experts. MBU counts only the weights of the chosen experts.";

/// The tables of the given records. A mark such as `[1]` has the same meaning in all of them.
pub fn tables<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Table> {
    narrow_tables(records, usize::MAX)
}

/// The same with at most `most` columns in each, and a note that names the others.
pub fn narrow_tables<'a>(records: impl Iterator<Item = &'a Record>, most: usize) -> Vec<Table> {
    let records: Vec<&Record> = records.collect();
    let mut marks = Vec::new();
    let mut tables = Vec::new();
    // Most reports have generations, so they come first.
    let (first, others): (Vec<&Family>, Vec<&Family>) =
        FAMILIES.iter().partition(|family| family.key == TableKey::Generation);
    for family in first.into_iter().chain(others) {
        let of = |record: &Record| FAMILIES.iter().find(|family| (family.takes)(record)).map(|family| family.title);
        let own: Vec<&Record> = records.iter().copied().filter(|record| of(record) == Some(family.title)).collect();
        let mut groups: Vec<Vec<&Record>> = Vec::new();
        for record in own {
            match groups.iter_mut().find(|group| !family.is_split || group[0].scenario == record.scenario) {
                Some(group) => group.push(record),
                None => groups.push(vec![record]),
            }
        }
        tables.extend(groups.iter().map(|group| table(family, group, &mut marks, most)));
    }
    tables.extend(dtypes::tables(&records));
    tables
}

/// A column under construction: its header, its cells, and whether it may move into the heading.
struct Cells {
    header: &'static str,
    cells: Vec<String>,
    is_property: bool,
}

impl Cells {
    /// The value that all rows have. A table of one row keeps its columns.
    fn common(&self) -> Option<&String> {
        let first = self.cells.first()?;
        let is_common = self.is_property && self.cells.len() > 1 && self.cells.iter().all(|cell| cell == first);
        is_common.then_some(first)
    }
}

fn table(family: &Family, records: &[&Record], marks: &mut Vec<String>, most: usize) -> Table {
    let (measured, unmeasured): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| record.status == Status::Measured);

    let names = family.names.iter().map(|column| Cells {
        header: column.header,
        cells: measured.iter().map(|record| (column.text)(record)).collect(),
        is_property: true,
    });
    let names: Vec<Cells> = names.collect();
    let numbers = number_columns(family, &measured);
    let common = names.iter().chain(&numbers).filter_map(|column| Some((column.header, column.common()?)));
    let common = common.map(|(header, value)| format!("{header} {value}")).collect();
    // A name remains to tell the rows apart.
    let mut names: Vec<Cells> = names.into_iter().filter(|column| column.common().is_none()).collect();
    let (common_numbers, mut numbers): (Vec<Cells>, Vec<Cells>) =
        numbers.into_iter().partition(|column| column.common().is_some());
    if names.is_empty() {
        let cells = measured.iter().map(|record| record.id.clone()).collect();
        names.push(Cells { header: "benchmark", cells, is_property: false });
    }
    let left_out = numbers.split_off(most.saturating_sub(names.len()).min(numbers.len()));
    let headers: Vec<&str> = common_numbers.iter().chain(&numbers).map(|column| column.header).collect();
    let compared = numbers.iter().filter(|column| RATIOS.contains(&column.header));
    let about_ratios = ratios::note(&measured, compared.flat_map(|column| column.cells.iter().map(String::as_str)));
    let about_shares = ratios::divisors(&measured, &headers);

    let mut used = BTreeSet::new();
    let marked = names.iter().position(|column| column.header == MODEL_HEADER).unwrap_or(0);
    for (record, cell) in measured.iter().zip(&mut names[marked].cells) {
        for number in marks_of(record, &measured, marks) {
            let _ = write!(cell, " [{}]", number + 1);
            used.insert(number);
        }
        if is_disturbed(record) {
            cell.push_str(" !");
        }
    }

    let first = records.first().map(|record| &record.scenario);
    let is_one = records.iter().all(|record| Some(&record.scenario) == first);
    let scenario = first.filter(|_| is_one).cloned();
    let words = names.len();
    let columns: Vec<Cells> = names.into_iter().chain(numbers).collect();
    let header = columns.iter().map(|column| column.header.to_owned()).collect();
    let rows = (0..measured.len()).map(|row| columns.iter().map(|column| column.cells[row].clone()).collect());

    let mut notes: Vec<String> = Vec::new();
    if records.iter().any(|record| record.subject.synthetic_weights) {
        notes.push("Weights are synthetic: seeded, not trained.".into());
    }
    notes.extend(peers(&measured));
    let mut definitions: Vec<String> = family.note.map(str::to_owned).into_iter().collect();
    if columns.iter().any(|column| column.header == VERSUS_BEST) {
        definitions.push(format!(
            "{VERSUS_BEST} is the rate of the fastest row of the scenario over that of the row. It is not a \
             paired ratio."
        ));
    }
    definitions.extend(about_ratios.into_iter().chain(about_shares).chain(formats(&measured)));
    if !left_out.is_empty() {
        let headers: Vec<&str> = left_out.iter().map(|column| column.header).collect();
        notes.push(format!("Left out for their width: {}. The data files have the measures.", headers.join(", ")));
    }
    notes.extend(ratios::doubted(&measured));
    notes.extend(used.into_iter().map(|number| format!("[{}] {}", number + 1, marks[number])));
    let reason = |record: &&Record| {
        format!("{}: {}: {}", record.id, record.status, record.reason.as_deref().unwrap_or_default())
    };
    notes.extend(unmeasured.iter().map(reason));
    Table {
        key: family.key,
        title: family.title,
        scenario,
        common,
        rows: [header].into_iter().chain(rows).collect(),
        words,
        notes,
        definitions,
    }
}

/// Names the system behind each peer.
fn peers(records: &[&Record]) -> BTreeSet<String> {
    let peer = |record: &&Record| {
        let subject = &record.subject;
        let record::Peer { name, version, .. } = subject.peer.as_ref()?;
        let weights = if subject.synthetic_weights { " It draws other weights." } else { "" };
        Some(format!("Peer {} is {name} {version}.{weights}", subject.engine))
    };
    records.iter().filter_map(peer).collect()
}

/// States the formats in each GGUF file, those with the most bytes first.
fn formats(records: &[&Record]) -> BTreeSet<String> {
    let file = |record: &&Record| {
        let formats = formats_of(record);
        (!formats.is_empty()).then(|| format!("{} in {} holds {formats}.", record.subject.model, record.subject.dtype))
    };
    records.iter().filter_map(file).collect()
}

/// The formats in the GGUF file of a record. Empty for another model.
pub(super) fn formats_of(record: &Record) -> String {
    let mut formats: Vec<_> = record.subject.formats.iter().collect();
    formats.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let format =
        |(format, bytes): (&String, &u64)| format!("{} MB of {format}", quantity(*bytes as f64, MeasureUnit::Bytes));
    formats.into_iter().map(format).collect::<Vec<_>>().join(", ")
}

/// A record is marked if the kernel took more than this share of its CPU time.
const MUCH_IN_KERNEL: f64 = 0.2;

/// Indices of what is special about the record among all marks, to which new ones are added.
fn marks_of(record: &Record, all: &[&Record], marks: &mut Vec<String>) -> Vec<usize> {
    let mut number = |note: String| {
        marks.iter().position(|known| *known == note).unwrap_or_else(|| {
            marks.push(note);
            marks.len() - 1
        })
    };
    let deviates = record.deviates.iter().map(|why| format!("deviates: {why}"));
    let differs = differs_from_stock(record, all).then(|| "its tokens differ from those of stock".to_owned());
    let threads = record.subject.sizes.get("threads").copied().unwrap_or_default();
    let is_crowded = threads > record.machine.logical_cores as u64;
    let crowded = is_crowded.then(|| "it has more threads than the machine has cores".to_owned());
    let kernel = record.measures.as_ref().and_then(|measures| measures.measure("kernel_share"));
    let paging = kernel.filter(|(share, _)| *share > MUCH_IN_KERNEL).map(|(share, _)| {
        let percent = share * 100.0;
        format!(
            "the kernel took {percent:.0} % of its CPU time: see \"CPU time of the kernel\" in the guide's methodology"
        )
    });
    let exceeded = record.limits.iter().flat_map(|limits| &limits.exceeded);
    let notes = deviates.chain(differs).chain(crowded).chain(paging).chain(exceeded.cloned());
    notes.map(&mut number).collect()
}

/// The columns of numbers, in the order of their places. A column without any value is left out if its measure does not
/// apply.
fn number_columns(family: &Family, records: &[&Record]) -> Vec<Cells> {
    let measures = table_columns(family.key).into_iter().filter_map(|column| {
        let values: Vec<_> =
            records.iter().map(|record| record.measures.as_ref().and_then(|all| column.value(all))).collect();
        let is_shown = column.missing == Missing::NotAvailable || values.iter().any(Option::is_some);
        let cells = values.into_iter().map(|value| cell(&column, value)).collect();
        is_shown.then_some((column.place, Cells { header: column.header, cells, is_property: column.better.is_none() }))
    });
    let extra = family.extra.iter().filter_map(|column| {
        let cells: Vec<String> = records.iter().map(|record| (column.text)(record, records)).collect();
        let is_shown = cells.iter().any(|cell| !cell.is_empty());
        is_shown.then_some((column.place, Cells { header: column.header, cells, is_property: column.is_property }))
    });
    let mut columns: Vec<(u8, Cells)> = measures.chain(extra).collect();
    columns.sort_by_key(|(place, _)| *place);
    columns.into_iter().map(|(_, column)| column).collect()
}

/// The text of a value, or of a missing one.
fn cell(column: &TableColumn, value: Option<(f64, MeasureUnit)>) -> String {
    match (value, column.missing) {
        (Some((value, unit)), _) => quantity(value, unit),
        (None, Missing::NotAvailable | Missing::NoColumn) => number(None),
        (None, Missing::Blank) => String::new(),
    }
}

/// A value without its unit, which the header names. Bytes are in MB, and shares in percent.
pub(crate) fn quantity(value: f64, unit: MeasureUnit) -> String {
    match unit {
        MeasureUnit::Count | MeasureUnit::Tokens => format!("{value:.0}"),
        MeasureUnit::Bytes | MeasureUnit::BytesPerS => number(Some(value / 1e6)),
        MeasureUnit::OfLimit if !ratios::is_possible(value) => ">100 %".to_owned(),
        MeasureUnit::OfLimit => format!("{:.0} %", value.min(1.0) * 100.0),
        MeasureUnit::Share => format!("{:.0} %", value * 100.0),
        MeasureUnit::Accuracy => format!("{:.2} %", value * 100.0),
        MeasureUnit::Loss | MeasureUnit::Perplexity => format!("{value:.3}"),
        MeasureUnit::Nats if value != 0.0 && value.abs() < 1e-3 => format!("{value:.1e}"),
        MeasureUnit::Nats => format!("{value:.4}"),
        MeasureUnit::None
        | MeasureUnit::Ms
        | MeasureUnit::Us
        | MeasureUnit::TokensPerS
        | MeasureUnit::WindowsPerS
        | MeasureUnit::RequestsPerS
        | MeasureUnit::Ratio
        | MeasureUnit::Bits
        | MeasureUnit::Joules
        | MeasureUnit::Watts => number(Some(value)),
    }
}

fn variant(record: &Record) -> String {
    record.subject.variant().to_string()
}

/// Variant of the reference that a divergence is from.
fn reference(record: &Record) -> String {
    match &record.measures {
        Some(Measures::Quality(measures)) => {
            let variant = measures.reference.as_ref().and_then(|id| id.rsplit('/').next());
            variant.unwrap_or("none").to_owned()
        }
        _ => String::new(),
    }
}

fn generation(record: &Record) -> Option<&Generation> {
    match &record.measures {
        Some(Measures::Generation(measures)) => Some(measures),
        _ => None,
    }
}

fn training(record: &Record) -> Option<&Training> {
    match &record.measures {
        Some(Measures::Training(measures)) => Some(measures),
        _ => None,
    }
}

/// The record of engine `stock` beside a record of another engine: the same scenario, model, dtype and device.
fn on_stock<'a>(record: &Record, all: &[&'a Record]) -> Option<&'a Record> {
    let same = |of: fn(&Record) -> &String, other: &Record| of(other) == of(record);
    let is_stock = |other: &&&Record| {
        other.subject.engine == "stock"
            && record.subject.engine != "stock"
            && same(|record| &record.scenario, other)
            && same(|record| &record.subject.model, other)
            && same(|record| &record.subject.dtype, other)
            && same(|record| &record.subject.device, other)
    };
    all.iter().find(is_stock).copied()
}

/// Returns whether a generation chose other tokens than `stock` did. The weights that a peer draws from a seed are others.
fn differs_from_stock(record: &Record, all: &[&Record]) -> bool {
    if record.subject.peer.is_some() && record.subject.synthetic_weights {
        return false;
    }
    let digest = |record| generation(record).map(|measures| &measures.token_digest);
    on_stock(record, all).is_some_and(|stock| digest(stock).is_some() && digest(stock) != digest(record))
}

fn activation_bytes(measures: &Training) -> Option<f64> {
    // A record from elsewhere may hold a peak below what was allocated.
    Some(measures.peak_bytes?.checked_sub(measures.allocated_bytes?)? as f64)
}

/// Quotient of a model with gradient checkpointing and the same model without. Empty for a model without.
fn plain_ratio(record: &Record, all: &[&Record], of: fn(&Training) -> Option<f64>) -> Option<f64> {
    let name = record.subject.model.strip_suffix("-checkpointed")?;
    let is_plain = |other: &&&Record| {
        other.subject.model == name && other.scenario == record.scenario && variant(other) == variant(record)
    };
    Some(of(training(record)?)? / of(training(all.iter().find(is_plain)?)?)?)
}

/// The dense twin of a mixture: as wide as the experts of a token, or as all experts.
#[derive(Clone, Copy)]
pub(super) enum Twin {
    /// As wide as the experts of a token.
    Active,
    /// As wide as all experts.
    Total,
}

/// A rate of a generation.
pub(super) type Rate = fn(&Generation) -> Option<f64>;

/// Prompt tokens per second.
pub(super) fn prefill_rate(measures: &Generation) -> Option<f64> {
    Some(measures.prefill_tokens_per_s)
}

/// Tokens per second after the first.
pub(super) fn decode_rate(measures: &Generation) -> Option<f64> {
    measures.decode_tokens_per_s
}

/// Time of a mixture divided by that of its twin. `None` for a dense model, and if the twin was not measured.
pub(super) fn twin_time(record: &Record, all: &[&Record], twin: Twin, rate: Rate) -> Option<f64> {
    let measures = generation(record)?;
    let routing = measures.routing.as_ref()?;
    let name = dense_name(match twin {
        Twin::Active => routing.top_k,
        Twin::Total => routing.num_experts,
    });
    // Sizes that are not the usual ones follow the name.
    let is_named = |other: &Record| {
        let rest = other.subject.model.strip_prefix(&name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) && other.subject.sizes == record.subject.sizes
    };
    let twin = all.iter().find(|other| is_named(other) && variant(other) == variant(record))?;
    Some(rate(generation(twin)?)? / rate(measures)?)
}

/// The text of [`twin_time`]. Empty for a dense model.
fn twin_ratio(record: &Record, all: &[&Record], twin: Twin, rate: Rate) -> String {
    let counterpart = match twin {
        Twin::Active => Counterpart::ActiveTwin,
        Twin::Total => Counterpart::TotalTwin,
    };
    ratios::cell(record, counterpart, twin_time(record, all, twin, rate))
}

fn generation_rate(record: &Record) -> Option<f64> {
    generation(record).map(|measures| measures.tokens_per_s)
}

fn training_rate(record: &Record) -> Option<f64> {
    training(record).map(|measures| measures.tokens_per_s)
}

fn windows_rate(record: &Record) -> Option<f64> {
    match &record.measures {
        Some(Measures::Sweep(measures)) => Some(measures.windows_per_s),
        _ => None,
    }
}

/// The highest rate of the record's scenario divided by the record's. Empty if nothing else ran the scenario.
fn versus_best(record: &Record, all: &[&Record], rate: fn(&Record) -> Option<f64>) -> String {
    let rates: Vec<f64> =
        all.iter().filter(|other| other.scenario == record.scenario).filter_map(|other| rate(other)).collect();
    match rate(record).filter(|_| rates.len() > 1) {
        Some(own) => format!("{:.2}x", rates.iter().fold(own, |best, rate| best.max(*rate)) / own),
        None => String::new(),
    }
}

/// Three significant digits, or `n/a`.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => "n/a".into(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::sandbox;

    #[test]
    fn engines_stand_side_by_side_with_their_ratio() {
        let mut records = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let stock = records.find(|record| record.subject.engine == "stock").expect("a generation");
        let alone = tables([&stock].into_iter()).remove(0).markdown();
        assert!(!alone.contains("/ stock"), "{alone}");
        let mut tuned = stock.clone();
        tuned.subject.engine = "tuned".into();
        tuned.id = tuned.id.replace("/stock-", "/tuned-");
        let Some(Measures::Generation(measures)) = &mut tuned.measures else { unreachable!("a generation") };
        measures.sample_total_ms.iter_mut().for_each(|ms| *ms /= 4.0);
        let text = tables([&stock, &tuned].into_iter()).remove(0).markdown();
        // They were not measured in turns.
        assert!(text.contains(TIME_OF_STOCK) && text.contains(" 0.25* |") && !text.contains("differ"), "{text}");
        let Some(Measures::Generation(measures)) = &mut tuned.measures else { unreachable!("a generation") };
        measures.token_digest = "another".into();
        let text = tables([&stock, &tuned].into_iter()).remove(0).markdown();
        assert!(text.contains("its tokens differ from those of stock"), "{text}");
    }

    #[test]
    fn a_column_of_gpus_appears_only_if_a_record_has_a_value() {
        let records = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let mut records: Vec<Record> = records.collect();
        let generations = |records: &[Record]| tables(records.iter()).remove(0).markdown();
        assert!(!generations(&records).contains("J/token"));
        let Some(Measures::Generation(measures)) = &mut records[0].measures else {
            unreachable!("the first record is a generation")
        };
        measures.joules_per_token = Some(0.345);
        let text = generations(&records);
        let mut rows = text.lines().filter(|line| line.starts_with("| "));
        let place = rows.next().and_then(|header| header.split('|').position(|cell| cell.trim() == "J/token"));
        let cells: Vec<_> = rows.map(|row| row.split('|').nth(place.expect("the column")).map(str::trim)).collect();
        assert_eq!(cells[..2], [Some("0.34"), Some("n/a")], "{text}");
    }

    fn sample(scenario: &str, model: &str, edit: impl Fn(&mut Record)) -> Record {
        let mut record: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        record.scenario = scenario.into();
        record.subject.model = model.into();
        edit(&mut record);
        record
    }

    #[test]
    fn every_table_fits_a_terminal() {
        let records: Vec<Record> = sandbox::records("run", 1, 1, chrono::Utc::now())
            .expect("records")
            .filter(|r| r.measures.is_some())
            .collect();
        for table in tables(records.iter()) {
            let text = table.terminal();
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width()), "{widest:?}\n{text}");
            assert!(!text.contains("Left out at this width") || table.key == TableKey::Sweep, "{text}");
        }
    }

    #[test]
    fn constant_columns_move_into_the_heading() {
        let records = ["a", "b"].map(|model| sample("medium", model, |_| {}));
        let table = tables(records.iter()).remove(0);
        assert_eq!(table.heading(), "Generation (scenario medium, variant stock-f32-cpu)");
        assert_eq!(table.rows[0][..2], ["model", "decode tok/s"]);
        let alone = tables(records[..1].iter()).remove(0);
        assert_eq!((alone.heading().as_str(), alone.words), ("Generation", 3));
    }

    #[test]
    fn much_time_in_the_kernel_is_marked() {
        let marks = |share| {
            let record = sample("medium", "a", |record| {
                let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
                measures.kernel_share = share;
            });
            let mut marks = Vec::new();
            marks_of(&record, &[&record], &mut marks);
            marks.into_iter().filter(|mark| mark.contains("kernel")).collect::<Vec<_>>()
        };
        assert!(marks(Some(0.714)).concat().starts_with("the kernel took 71 % of its CPU time: see"));
        assert_eq!((marks(Some(0.1)), marks(None)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn the_formats_of_a_file_stand_in_the_details() {
        let formats = [("f32", 4000), ("q4_k", 2_000_000), ("q6_k", 3000)].map(|(k, v)| (k.to_owned(), v));
        let record = sample("medium", "a", |record| record.subject.formats = formats.clone().into());
        let table = tables([&record].into_iter()).remove(0);
        let line = "a in f32 holds 2.00 MB of q4_k, 0.00 MB of f32, 0.00 MB of q6_k.";
        assert!(table.markdown().contains(line), "{}", table.markdown());
        assert!(!table.terminal().contains("holds"));
        let plain = sample("medium", "a", |_| {});
        assert!(!tables([&plain].into_iter()).remove(0).markdown().contains("holds"));
    }

    #[test]
    fn a_mark_has_one_meaning_in_all_tables() {
        let mut records: Vec<Record> = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records").collect();
        let doubt = |record: &mut Record, text: &str| record.deviates = Some(text.into());
        let last = records.iter().rposition(|record| record.measures.is_some()).expect("a measured record");
        doubt(&mut records[0], "the first reason");
        doubt(&mut records[1], "the second reason");
        doubt(&mut records[last], "the second reason");
        let tables = tables(records.iter());
        let notes: Vec<&String> =
            tables.iter().flat_map(|table| &table.notes).filter(|note| note.starts_with('[')).collect();
        let (first, second) = ("[1] deviates: the first reason", "[2] deviates: the second reason");
        assert_eq!(notes, [first, second, second]);
        let first = tables[0].markdown();
        assert!(first.contains(" [1] |") && first.contains(" [2] |"), "{first}");
        assert!(tables[1..].iter().any(|table| table.markdown().contains(" [2] ")));
    }

    #[test]
    fn rates_stand_beside_the_best_of_the_scenario() {
        let with_rate = |scenario: &str, model: &str, rate| {
            sample(scenario, model, |record| {
                let Some(Measures::Generation(measures)) = &mut record.measures else { unreachable!("a generation") };
                measures.tokens_per_s = rate;
            })
        };
        let records = [with_rate("short", "a", 100.0), with_rate("short", "b", 80.0), with_rate("long", "a", 50.0)];
        let table = tables(records.iter()).remove(0);
        let column = table.rows[0].iter().position(|header| header == VERSUS_BEST).expect("a column");
        let cells: Vec<&str> = table.rows[1..].iter().map(|row| row[column].as_str()).collect();
        assert_eq!(cells, ["1.00x", "1.25x", ""]);
    }
}
