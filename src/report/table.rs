//! The tables of a report, one for each family of scenarios. The columns of measures come from the
//! [table of measures](crate::record::measures); this file adds names and quotients. Markdown is aligned, so that it also
//! reads well in a terminal.

use std::fmt::Write;

use super::ratios::{self, Limit};
use crate::{
    record::{
        Generation, MeasureUnit, Measures, Record, Status, Training,
        measures::{Missing, TableColumn, TableKey, table_columns},
    },
    scenario::{
        CHECKPOINT_MEMORY, Counterpart, GENERATION, MOE_TOP_K, PSANN_THROUGHPUT, SWEEP, TRAINING_SWEEP, dense_name,
    },
    text,
};

/// A table and its notes.
pub struct Table {
    /// Title of the table.
    pub title: &'static str,
    /// The header is the first row. All rows have the same length.
    pub rows: Vec<Vec<String>>,
    /// Number of text columns, which precede the columns of numbers.
    pub words: usize,
    /// Paragraphs below the table, in Markdown.
    pub notes: Vec<String>,
}

impl Table {
    /// The table and its notes, without the title.
    pub fn markdown(&self) -> String {
        let mut text = markdown(&self.rows, self.words);
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }
}

/// The table of a family of scenarios. A record belongs to the first family that takes it.
struct Family {
    key: TableKey,
    title: &'static str,
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
    /// Text for a record, given all measured records of the table. A column whose texts are all empty is left out.
    text: fn(&Record, &[&Record]) -> String,
}

const SCENARIO: NameColumn = NameColumn { header: "scenario", text: |record| record.scenario.clone() };
const MODEL: NameColumn = NameColumn { header: MODEL_HEADER, text: |record| record.subject.model.clone() };
const VARIANT: NameColumn = NameColumn { header: "variant", text: variant };
/// Header of the column that carries the marks of the notes.
const MODEL_HEADER: &str = "model";

const PARAMETERS: ExtraColumn = ExtraColumn {
    place: 90,
    header: "parameters M",
    text: |record, _| number(record.subject.parameters.map(|count| count as f64 / 1e6)),
};

/// Headers of the columns of paired ratios.
const RATIOS: [&str; 5] = [ACTIVE_TWIN, TOTAL_TWIN, TIME_OF_PLAIN, TIME_OF_SCENARIO, TIME_OF_STOCK];
const TIME_OF_PLAIN: &str = "time / plain";
const TIME_OF_SCENARIO: &str = "time / medium";
const TIME_OF_STOCK: &str = "time / stock";

const fn of_best(place: u8, limit: Limit) -> ExtraColumn {
    match limit {
        Limit::Read => {
            ExtraColumn { place, header: "MBU of best", text: |record, all| ratios::of_best(record, all, Limit::Read) }
        }
        Limit::Matrix => ExtraColumn {
            place,
            header: "MFU of best",
            text: |record, all| ratios::of_best(record, all, Limit::Matrix),
        },
    }
}

const FAMILIES: [Family; 6] = [
    Family {
        key: TableKey::MixturePrefill,
        title: "Mixtures of experts: prefill",
        takes: |record| record.scenario == MOE_TOP_K[0].key,
        names: &[MODEL, VARIANT],
        extra: &[
            ExtraColumn {
                place: 20,
                header: ACTIVE_TWIN,
                text: |record, all| twin_ratio(record, all, Counterpart::ActiveTwin, prefill_rate),
            },
            ExtraColumn {
                place: 30,
                header: TOTAL_TWIN,
                text: |record, all| twin_ratio(record, all, Counterpart::TotalTwin, prefill_rate),
            },
            of_best(41, Limit::Matrix),
            PARAMETERS,
        ],
        note: Some(TWINS),
    },
    Family {
        key: TableKey::MixtureDecode,
        title: "Mixtures of experts: decode",
        takes: |record| record.scenario == MOE_TOP_K[1].key,
        names: &[MODEL, VARIANT],
        extra: &[
            ExtraColumn {
                place: 20,
                header: ACTIVE_TWIN,
                text: |record, all| twin_ratio(record, all, Counterpart::ActiveTwin, decode_rate),
            },
            ExtraColumn {
                place: 30,
                header: TOTAL_TWIN,
                text: |record, all| twin_ratio(record, all, Counterpart::TotalTwin, decode_rate),
            },
            of_best(41, Limit::Read),
            PARAMETERS,
        ],
        note: Some(TWINS),
    },
    Family {
        key: TableKey::Sweep,
        title: "Architecture sweep",
        takes: |record| SWEEP.contains(&record.scenario),
        names: &[
            SCENARIO,
            NameColumn { header: "architecture", text: |record| record.subject.architecture_and_sizes().0.to_owned() },
            NameColumn { header: MODEL_HEADER, text: |record| record.subject.architecture_and_sizes().1.to_owned() },
            VARIANT,
        ],
        extra: &[of_best(51, Limit::Matrix), PARAMETERS],
        note: Some("A sample is one window of the series."),
    },
    Family {
        key: TableKey::Checkpointing,
        title: "Gradient checkpointing",
        takes: |record| CHECKPOINT_MEMORY.iter().any(|group| group.key == record.scenario),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            ExtraColumn {
                place: 30,
                header: "activations MB",
                text: |record, _| number(training(record).and_then(activation_bytes).map(|bytes| bytes / 1e6)),
            },
            ExtraColumn {
                place: 40,
                header: "activations / plain",
                text: |record, all| {
                    plain_ratio(record, all, activation_bytes).map_or(String::new(), |ratio| number(Some(ratio)))
                },
            },
            ExtraColumn {
                place: 70,
                header: TIME_OF_PLAIN,
                text: |record, all| {
                    let of_medians = plain_ratio(record, all, |measures| Some(measures.step_p50_ms));
                    ratios::cell(record, Counterpart::Plain, of_medians)
                },
            },
        ],
        note: Some(
            "Activations are the peak memory of a step minus the memory in use between steps. The ratios are relative to \
             the same model without checkpointing.",
        ),
    },
    Family {
        key: TableKey::Training,
        title: "Language models in training",
        takes: |record| {
            let groups = PSANN_THROUGHPUT.iter().chain(TRAINING_SWEEP);
            groups.into_iter().any(|group| group.key == record.scenario)
        },
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[of_best(51, Limit::Matrix), ExtraColumn { place: 80, ..PARAMETERS }],
        note: Some("Tokens are random. The loss shows that a step trains, but the model learns nothing useful."),
    },
    Family {
        key: TableKey::Generation,
        title: "Generation",
        takes: |record| matches!(record.measures, Some(Measures::Generation(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[
            ExtraColumn {
                place: 55,
                header: TIME_OF_SCENARIO,
                text: |record, all| {
                    let against = GENERATION.iter().find(|scenario| scenario.key == record.scenario);
                    let other = against.and_then(|scenario| scenario.against);
                    let of_medians =
                        other.and_then(|other| ratios::of_medians(record, all, other, &record.subject.engine));
                    ratios::cell(record, Counterpart::Scenario, of_medians)
                },
            },
            ExtraColumn {
                place: 56,
                header: TIME_OF_STOCK,
                text: |record, all| {
                    let is_stock = record.subject.engine == "stock";
                    let of_medians = ratios::of_medians(record, all, &record.scenario, "stock").filter(|_| !is_stock);
                    ratios::cell(record, Counterpart::Stock, of_medians)
                },
            },
            of_best(61, Limit::Read),
            of_best(81, Limit::Matrix),
        ],
        note: None,
    },
];

const ACTIVE_TWIN: &str = "time / active twin";
const TOTAL_TWIN: &str = "time / total twin";
const TWINS: &str = "The active twin is a dense decoder as wide as the experts that a token is sent to. The total twin is as \
    wide as all experts. dense-N is as wide as N experts. MBU counts only the weights of the chosen experts.";

/// The tables of the given records.
pub fn tables<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Table> {
    let records: Vec<&Record> = records.collect();
    let place = |record: &Record| FAMILIES.iter().position(|family| (family.takes)(record));
    let table = |(number, family): (usize, &Family)| {
        let own: Vec<&Record> = records.iter().copied().filter(|record| place(record) == Some(number)).collect();
        table(family, &own)
    };
    let mut tables: Vec<Table> = FAMILIES.iter().enumerate().filter_map(table).collect();
    // Most reports have generations, so they come first.
    tables.sort_by_key(|table| table.title != "Generation");
    tables
}

fn table(family: &Family, records: &[&Record]) -> Option<Table> {
    if records.is_empty() {
        return None;
    }
    let (measured, failed): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| record.status == Status::Measured);

    let mut marks: Vec<String> = Vec::new();
    let mut rows = vec![family.names.iter().map(|column| column.header.to_owned()).collect::<Vec<_>>()];
    for record in &measured {
        let doubts = record.conditions.iter().flat_map(|conditions| &conditions.doubts);
        let mut marked = String::new();
        let exceeded = record.limits.iter().flat_map(|limits| &limits.exceeded);
        let deviates = record.deviates.iter().map(|why| format!("deviates: {why}"));
        let held_back = ratios::held_back(record).into_iter();
        for note in deviates.chain(doubts.cloned()).chain(exceeded.cloned()).chain(held_back) {
            let number = marks.iter().position(|known| *known == note).unwrap_or_else(|| {
                marks.push(note);
                marks.len() - 1
            });
            let _ = write!(marked, " [{}]", number + 1);
        }
        let name =
            |column: &NameColumn| (column.text)(record) + if column.header == MODEL_HEADER { &marked } else { "" };
        rows.push(family.names.iter().map(name).collect());
    }
    let columns = number_columns(family, &measured);
    let headers: Vec<&str> = columns.iter().map(|(header, _)| *header).collect();
    let ratio_cells = columns.iter().filter(|(header, _)| RATIOS.contains(header)).flat_map(|(_, cells)| cells.clone());
    let about_ratios = ratios::note(&measured, ratio_cells);
    let about_shares = ratios::divisors(&measured, &headers);
    for (header, cells) in columns {
        for (row, cell) in rows.iter_mut().zip([header.to_owned()].into_iter().chain(cells)) {
            row.push(cell);
        }
    }

    let mut notes: Vec<String> = Vec::new();
    if records.iter().any(|record| record.subject.synthetic_weights) {
        notes.push("Weights are synthetic: seeded, not trained.".into());
    }
    notes.extend(family.note.map(str::to_owned));
    notes.extend(about_ratios.into_iter().chain(about_shares));
    notes.extend(marks.iter().enumerate().map(|(number, mark)| format!("[{}] {mark}", number + 1)));
    let reason = |record: &&Record| format!("{}: failed: {}", record.id, record.reason.as_deref().unwrap_or_default());
    notes.extend(failed.iter().map(reason));
    Some(Table { title: family.title, rows, words: family.names.len(), notes })
}

/// Header and cells of each column of numbers, in the order of their places.
fn number_columns(family: &Family, records: &[&Record]) -> Vec<(&'static str, Vec<String>)> {
    let measures = table_columns(family.key).into_iter().filter_map(|column| {
        let values: Vec<_> =
            records.iter().map(|record| record.measures.as_ref().and_then(|all| column.value(all))).collect();
        let is_shown = column.missing != Missing::NoColumn || values.iter().any(Option::is_some);
        let cells = values.into_iter().map(|value| cell(&column, value)).collect();
        is_shown.then_some((column.place, column.header, cells))
    });
    let extra = family.extra.iter().filter_map(|column| {
        let cells: Vec<String> = records.iter().map(|record| (column.text)(record, records)).collect();
        let is_shown = cells.iter().any(|cell| !cell.is_empty());
        is_shown.then_some((column.place, column.header, cells))
    });
    let mut columns: Vec<(u8, &str, Vec<String>)> = measures.chain(extra).collect();
    columns.sort_by_key(|(place, ..)| *place);
    columns.into_iter().map(|(_, header, cells)| (header, cells)).collect()
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
pub(super) fn quantity(value: f64, unit: MeasureUnit) -> String {
    match unit {
        MeasureUnit::Count | MeasureUnit::Tokens => format!("{value:.0}"),
        MeasureUnit::Bytes => number(Some(value / 1e6)),
        MeasureUnit::Share => format!("{:.0} %", value * 100.0),
        MeasureUnit::Loss => format!("{value:.3}"),
        MeasureUnit::None
        | MeasureUnit::Ms
        | MeasureUnit::TokensPerS
        | MeasureUnit::WindowsPerS
        | MeasureUnit::Ratio
        | MeasureUnit::Bits
        | MeasureUnit::Joules
        | MeasureUnit::Watts => number(Some(value)),
    }
}

fn variant(record: &Record) -> String {
    record.subject.variant().to_string()
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

fn activation_bytes(measures: &Training) -> Option<f64> {
    Some((measures.peak_bytes? - measures.allocated_bytes?) as f64)
}

/// Quotient of a model with gradient checkpointing and the same model without. Empty for a model without.
fn plain_ratio(record: &Record, all: &[&Record], of: fn(&Training) -> Option<f64>) -> Option<f64> {
    let name = record.subject.model.strip_suffix("-checkpointed")?;
    let is_plain = |other: &&&Record| {
        other.subject.model == name && other.scenario == record.scenario && variant(other) == variant(record)
    };
    Some(of(training(record)?)? / of(training(all.iter().find(is_plain)?)?)?)
}

fn prefill_rate(measures: &Generation) -> Option<f64> {
    Some(measures.prefill_tokens_per_s)
}

fn decode_rate(measures: &Generation) -> Option<f64> {
    measures.decode_tokens_per_s
}

/// Time of a mixture divided by that of its twin. Empty for a dense model.
fn twin_ratio(
    record: &Record,
    all: &[&Record],
    counterpart: Counterpart,
    rate: fn(&Generation) -> Option<f64>,
) -> String {
    let of_medians = || {
        let measures = generation(record)?;
        let routing = measures.routing.as_ref()?;
        let is_active = counterpart == Counterpart::ActiveTwin;
        let name = dense_name(if is_active { routing.top_k } else { routing.num_experts });
        let twin = all.iter().find(|other| other.subject.model == name && variant(other) == variant(record))?;
        Some(rate(generation(twin)?)? / rate(measures)?)
    };
    ratios::cell(record, counterpart, of_medians())
}

/// An aligned Markdown table. The first row is the header. The first `left` columns are left-aligned, the others
/// right-aligned.
pub fn markdown(rows: &[Vec<String>], left: usize) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| text::markdown(cell)).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column < left { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let _ = if column < left { write!(text, "|{dashes}-") } else { write!(text, "|{dashes}:") };
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three significant digits, or `n/a`.
pub(super) fn number(value: Option<f64>) -> String {
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
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert!(
            rows[0].ends_with(" J/token |") && rows[1].ends_with(" 0.34 |") && rows[2].ends_with(" n/a |"),
            "{text}"
        );
    }
}
