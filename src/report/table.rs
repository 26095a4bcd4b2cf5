//! The tables of a report, one for each family of scenarios. The columns of measures come from the
//! [table of measures](crate::record::measures); this file adds names and quotients. Markdown is aligned, so that it also
//! reads well in a terminal.

use std::fmt::Write;

use crate::{
    record::{
        Generation, MeasureUnit, Measures, Record, Status, Training,
        measures::{Missing, TableColumn, TableKey, table_columns},
    },
    scenario::{CHECKPOINT_MEMORY, MOE_TOP_K, PSANN_THROUGHPUT, SWEEP, TRAINING_SWEEP, dense_name},
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
    /// Text for a record, given all measured records of the table.
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
                text: |record, all| twin_ratio(record, all, Twin::Active, prefill_rate),
            },
            ExtraColumn {
                place: 30,
                header: TOTAL_TWIN,
                text: |record, all| twin_ratio(record, all, Twin::Total, prefill_rate),
            },
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
                text: |record, all| twin_ratio(record, all, Twin::Active, decode_rate),
            },
            ExtraColumn {
                place: 30,
                header: TOTAL_TWIN,
                text: |record, all| twin_ratio(record, all, Twin::Total, decode_rate),
            },
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
        extra: &[PARAMETERS],
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
                text: |record, all| plain_ratio(record, all, activation_bytes),
            },
            ExtraColumn {
                place: 70,
                header: "time / plain",
                text: |record, all| plain_ratio(record, all, |measures| Some(measures.step_p50_ms)),
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
        extra: &[ExtraColumn { place: 80, ..PARAMETERS }],
        note: Some("Tokens are random. The loss shows that a step trains, but the model learns nothing useful."),
    },
    Family {
        key: TableKey::Generation,
        title: "Generation",
        takes: |record| matches!(record.measures, Some(Measures::Generation(_))),
        names: &[SCENARIO, MODEL, VARIANT],
        extra: &[ExtraColumn {
            place: 15,
            header: "tok/s / stock",
            text: |record, all| {
                let rate = |record| generation(record).map(|measures| measures.tokens_per_s);
                let ratio = |stock| Some(rate(record)? / rate(stock)?);
                on_stock(record, all).map_or_else(String::new, |stock| number(ratio(stock)))
            },
        }],
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
        let deviates = record.deviates.iter().map(|why| format!("deviates: {why}"));
        let differs = differs_from_stock(record, &measured).then(|| "its tokens differ from those of stock".to_owned());
        for note in deviates.chain(differs).chain(doubts.cloned()) {
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
    for (header, cells) in number_columns(family, &measured) {
        for (row, cell) in rows.iter_mut().zip([header.to_owned()].into_iter().chain(cells)) {
            row.push(cell);
        }
    }

    let mut notes: Vec<String> = Vec::new();
    if records.iter().any(|record| record.subject.synthetic_weights) {
        notes.push("Weights are synthetic: seeded, not trained.".into());
    }
    notes.extend(family.note.map(str::to_owned));
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
        let cells: Vec<_> = records.iter().map(|record| (column.text)(record, records)).collect();
        // Ratios to another record appear where there is one.
        cells.iter().any(|cell| !cell.is_empty()).then_some((column.place, column.header, cells))
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

/// Whether a generation chose other tokens than `stock` did.
fn differs_from_stock(record: &Record, all: &[&Record]) -> bool {
    let digest = |record| generation(record).map(|measures| &measures.token_digest);
    on_stock(record, all).is_some_and(|stock| digest(stock).is_some() && digest(stock) != digest(record))
}

fn activation_bytes(measures: &Training) -> Option<f64> {
    Some((measures.peak_bytes? - measures.allocated_bytes?) as f64)
}

/// Quotient of a model with gradient checkpointing and the same model without. Empty for a model without.
fn plain_ratio(record: &Record, all: &[&Record], of: fn(&Training) -> Option<f64>) -> String {
    let Some(name) = record.subject.model.strip_suffix("-checkpointed") else { return String::new() };
    let is_plain = |other: &&&Record| {
        other.subject.model == name && other.scenario == record.scenario && variant(other) == variant(record)
    };
    let Some(plain) = all.iter().find(is_plain).and_then(|plain| training(plain)) else { return String::new() };
    number(training(record).and_then(|kept| Some(of(kept)? / of(plain)?)))
}

/// The dense twin of a mixture: as wide as the experts of a token, or as all experts.
#[derive(Clone, Copy)]
enum Twin {
    Active,
    Total,
}

fn prefill_rate(measures: &Generation) -> Option<f64> {
    Some(measures.prefill_tokens_per_s)
}

fn decode_rate(measures: &Generation) -> Option<f64> {
    measures.decode_tokens_per_s
}

/// Time of a mixture divided by that of its twin. Empty for a dense model.
fn twin_ratio(record: &Record, all: &[&Record], twin: Twin, rate: fn(&Generation) -> Option<f64>) -> String {
    let Some((measures, routing)) =
        generation(record).and_then(|measures| Some((measures, measures.routing.as_ref()?)))
    else {
        return String::new();
    };
    let name = dense_name(match twin {
        Twin::Active => routing.top_k,
        Twin::Total => routing.num_experts,
    });
    let twin = all.iter().find(|other| other.subject.model == name && variant(other) == variant(record));
    number(twin.and_then(|twin| Some(rate(generation(twin)?)? / rate(measures)?)))
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
    fn engines_stand_side_by_side_with_their_ratio() {
        let mut records = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let stock = records.find(|record| record.subject.engine == "stock").expect("a generation");
        let alone = tables([&stock].into_iter()).remove(0).markdown();
        assert!(!alone.contains("/ stock"), "{alone}");
        let mut tuned = stock.clone();
        tuned.subject.engine = "tuned".into();
        let Some(Measures::Generation(measures)) = &mut tuned.measures else { unreachable!("a generation") };
        measures.tokens_per_s *= 3.0;
        let text = tables([&stock, &tuned].into_iter()).remove(0).markdown();
        assert!(text.contains("tok/s / stock") && text.contains(" 3.00 |") && !text.contains("differ"), "{text}");
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
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert!(
            rows[0].ends_with(" J/token |") && rows[1].ends_with(" 0.34 |") && rows[2].ends_with(" n/a |"),
            "{text}"
        );
    }
}
