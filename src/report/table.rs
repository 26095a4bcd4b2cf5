//! Tables, one for each family of scenarios that was measured. Markdown is aligned so that it reads well in a terminal
//! too.

use std::fmt::Write;

use crate::{
    record::{Generation, Measures, Record, Status, Training},
    scenario::{CHECKPOINT_MEMORY, MOE_TOP_K, PSANN_THROUGHPUT, SWEEP, TRAINING_SWEEP, dense_name},
};

/// A table and what must be read with it.
pub struct Table {
    pub title: &'static str,
    /// The head first. All rows are as long.
    pub rows: Vec<Vec<String>>,
    /// Columns that hold words, which come before those that hold numbers.
    pub words: usize,
    pub notes: Vec<String>,
}

impl Table {
    /// Without the title.
    pub fn markdown(&self) -> String {
        let mut text = markdown(&self.rows, self.words);
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }
}

/// How a family of scenarios is shown: the first whose table takes a record has it.
struct Family {
    title: &'static str,
    takes: fn(&Record) -> bool,
    head: &'static [&'static str],
    words: usize,
    /// Cells of a record, given all that the table takes.
    cells: fn(&Record, &[&Record]) -> Option<Vec<String>>,
    note: Option<&'static str>,
}

const FAMILIES: [Family; 6] = [
    Family {
        title: "Mixtures of experts: prefill",
        takes: |record| record.scenario == MOE_TOP_K[0].key,
        head: &[
            "model",
            "variant",
            "prefill tok/s",
            "time / active twin",
            "time / total twin",
            "MFU",
            "load factor",
            "entropy bits",
            "idle experts",
            "parameters M",
            "peak MB",
        ],
        words: 2,
        cells: |record, all| {
            moe_cells(record, all, |measures| Some(measures.prefill_tokens_per_s), |measures| measures.mfu)
        },
        note: Some(TWINS),
    },
    Family {
        title: "Mixtures of experts: decode",
        takes: |record| record.scenario == MOE_TOP_K[1].key,
        head: &[
            "model",
            "variant",
            "decode tok/s",
            "time / active twin",
            "time / total twin",
            "MBU",
            "load factor",
            "entropy bits",
            "idle experts",
            "parameters M",
            "peak MB",
        ],
        words: 2,
        cells: |record, all| moe_cells(record, all, |measures| measures.decode_tokens_per_s, |measures| measures.mbu),
        note: Some(TWINS),
    },
    Family {
        title: "Architecture sweep",
        takes: |record| SWEEP.contains(&record.scenario),
        head: &[
            "scenario",
            "architecture",
            "model",
            "variant",
            "samples/s",
            "step P50 ms",
            "P95 ms",
            "P99 ms",
            "MFU",
            "parameters M",
            "peak MB",
            "loss from",
            "to",
        ],
        words: 4,
        cells: |record, _| sweep_cells(record),
        note: Some("A sample is one window of the series."),
    },
    Family {
        title: "Gradient checkpointing",
        takes: |record| CHECKPOINT_MEMORY.iter().any(|group| group.key == record.scenario),
        head: &[
            "scenario",
            "model",
            "variant",
            "peak MB",
            "between steps MB",
            "activations MB",
            "activations / plain",
            "step P50 ms",
            "time / plain",
            "tok/s",
        ],
        words: 3,
        cells: checkpoint_cells,
        note: Some(
            "Activations are what a step takes beyond what is in use between steps. The ratios are to the same model \
             without checkpointing.",
        ),
    },
    Family {
        title: "Language models in training",
        takes: |record| {
            let groups = PSANN_THROUGHPUT.iter().chain(TRAINING_SWEEP);
            groups.into_iter().any(|group| group.key == record.scenario)
        },
        head: &[
            "scenario",
            "model",
            "variant",
            "batch tokens",
            "tok/s",
            "step P50 ms",
            "P95 ms",
            "MFU",
            "parameters M",
            "allocated MB",
            "held MB",
            "peak MB",
            "parts",
            "loss from",
            "to",
        ],
        words: 3,
        cells: |record, _| training_cells(record),
        note: Some("Tokens are random: the loss shows that a step trains, not that a model learns."),
    },
    Family {
        title: "Generation",
        takes: |record| matches!(record.measures, Some(Measures::Generation(_))),
        head: &[
            "scenario",
            "model",
            "variant",
            "tok/s",
            "decode tok/s",
            "ITL P50 ms",
            "ITL P95 ms",
            "TTFT ms",
            "MBU",
            "waits",
            "MFU",
            "cache MB",
            "peak MB",
            "J/token",
        ],
        words: 3,
        cells: |record, _| generation_cells(record),
        note: None,
    },
];

/// What there is on a GPU only. Columns in which nobody has anything are left out.
const OF_GPUS: [&str; 3] = ["waits", "J/token", "held MB"];

const TWINS: &str = "The active twin is a dense decoder as wide as the experts that a token is sent to, the total twin one as \
    wide as all of them; dense-N is as wide as N experts. MBU counts the weights of the chosen experts only.";

/// The tables of what was measured.
pub fn tables<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Table> {
    let records: Vec<&Record> = records.collect();
    let place = |record: &Record| FAMILIES.iter().position(|family| (family.takes)(record));
    let table = |(number, family): (usize, &Family)| {
        let own: Vec<&Record> = records.iter().copied().filter(|record| place(record) == Some(number)).collect();
        table(family, &own)
    };
    let mut tables: Vec<Table> = FAMILIES.iter().enumerate().filter_map(table).collect();
    // What everybody has comes first.
    tables.sort_by_key(|table| table.title != "Generation");
    tables
}

fn table(family: &Family, records: &[&Record]) -> Option<Table> {
    let mut rows = vec![family.head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    let mut marks: Vec<String> = Vec::new();
    let model = family.head.iter().position(|cell| *cell == "model").unwrap_or_default();
    let (measured, failed): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| record.status == Status::Measured);
    for record in &measured {
        let Some(mut cells) = (family.cells)(record, &measured) else { continue };
        let doubts = record.conditions.iter().flat_map(|conditions| &conditions.doubts);
        for note in record.deviates.iter().map(|why| format!("deviates: {why}")).chain(doubts.cloned()) {
            let number = marks.iter().position(|known| *known == note).unwrap_or_else(|| {
                marks.push(note);
                marks.len() - 1
            });
            let _ = write!(cells[model], " [{}]", number + 1);
        }
        rows.push(cells);
    }
    if records.is_empty() {
        return None;
    }
    for name in OF_GPUS {
        if let Some(column) = rows[0].iter().position(|head| head == name)
            && rows[1..].iter().all(|cells| cells[column] == number(None))
        {
            rows.iter_mut().for_each(|cells| drop(cells.remove(column)));
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
    Some(Table { title: family.title, rows, words: family.words, notes })
}

fn variant(record: &Record) -> String {
    record.id.rsplit('/').next().unwrap_or_default().to_owned()
}

fn generation(record: &Record) -> Option<&Generation> {
    match &record.measures {
        Some(Measures::Generation(measures)) => Some(measures),
        _ => None,
    }
}

fn sweep_cells(record: &Record) -> Option<Vec<String>> {
    let Some(Measures::Sweep(measures)) = &record.measures else { return None };
    let loss = |loss: Option<f64>| loss.map_or(String::new(), |loss| format!("{loss:.3}"));
    let (architecture, sizes) = record.subject.model.split_once('-')?;
    Some(vec![
        record.scenario.clone(),
        architecture.to_owned(),
        sizes.to_owned(),
        variant(record),
        number(Some(measures.windows_per_s)),
        number(Some(measures.step_p50_ms)),
        number(Some(measures.step_p95_ms)),
        number(Some(measures.step_p99_ms)),
        percent(measures.mfu),
        number(record.subject.parameters.map(|count| count as f64 / 1e6)),
        number(measures.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
        loss(measures.first_loss),
        loss(measures.last_loss),
    ])
}

fn training(record: &Record) -> Option<&Training> {
    match &record.measures {
        Some(Measures::Training(measures)) => Some(measures),
        _ => None,
    }
}

fn megabytes(bytes: Option<u64>) -> String {
    number(bytes.map(|bytes| bytes as f64 / 1e6))
}

fn training_cells(record: &Record) -> Option<Vec<String>> {
    let measures = training(record)?;
    let losses = measures.stability.as_ref().map(|stability| stability.losses.as_slice()).unwrap_or_default();
    let loss = |loss: Option<&f64>| loss.map_or(String::new(), |loss| format!("{loss:.3}"));
    Some(vec![
        record.scenario.clone(),
        record.subject.model.clone(),
        variant(record),
        measures.batch_tokens.to_string(),
        number(Some(measures.tokens_per_s)),
        number(Some(measures.step_p50_ms)),
        number(Some(measures.step_p95_ms)),
        percent(measures.mfu),
        number(record.subject.parameters.map(|count| count as f64 / 1e6)),
        megabytes(measures.allocated_bytes),
        megabytes(measures.reserved_bytes),
        megabytes(measures.peak_bytes),
        measures.micro_batches.to_string(),
        loss(losses.first()),
        loss(losses.last()),
    ])
}

fn checkpoint_cells(record: &Record, all: &[&Record]) -> Option<Vec<String>> {
    let measures = training(record)?;
    let activations = |measures: &Training| Some((measures.peak_bytes? - measures.allocated_bytes?) as f64);
    let plain = record.subject.model.strip_suffix("-checkpointed").and_then(|name| {
        let is_twin = |other: &&&Record| {
            other.subject.model == name && other.scenario == record.scenario && variant(other) == variant(record)
        };
        training(all.iter().find(is_twin)?)
    });
    let ratio = |of: &dyn Fn(&Training) -> Option<f64>| match plain {
        Some(plain) => number(of(measures).zip(of(plain)).map(|(kept, plain)| kept / plain)),
        None => String::new(),
    };
    Some(vec![
        record.scenario.clone(),
        record.subject.model.clone(),
        variant(record),
        megabytes(measures.peak_bytes),
        megabytes(measures.allocated_bytes),
        number(activations(measures).map(|bytes| bytes / 1e6)),
        ratio(&activations),
        number(Some(measures.step_p50_ms)),
        ratio(&|measures| Some(measures.step_p50_ms)),
        number(Some(measures.tokens_per_s)),
    ])
}

fn generation_cells(record: &Record) -> Option<Vec<String>> {
    let measures = generation(record)?;
    Some(vec![
        record.scenario.clone(),
        record.subject.model.clone(),
        variant(record),
        number(Some(measures.tokens_per_s)),
        number(measures.decode_tokens_per_s),
        number(measures.itl_p50_ms),
        number(measures.itl_p95_ms),
        number(Some(measures.ttft_ms)),
        percent(measures.mbu),
        percent(measures.waiting_share),
        percent(measures.mfu),
        number(Some(measures.cache_used_bytes as f64 / 1e6)),
        megabytes(measures.peak_bytes),
        number(measures.joules_per_token),
    ])
}

fn moe_cells(
    record: &Record,
    all: &[&Record],
    rate: fn(&Generation) -> Option<f64>,
    limit: fn(&Generation) -> Option<f64>,
) -> Option<Vec<String>> {
    let measures = generation(record)?;
    let routing = measures.routing.as_ref();
    let times_twin = |experts: Option<usize>| -> Option<f64> {
        let name = dense_name(experts?);
        let twin = all.iter().find(|other| other.subject.model == name && variant(other) == variant(record))?;
        Some(rate(generation(twin)?)? / rate(measures)?)
    };
    let cell = |value: Option<f64>| if routing.is_some() { number(value) } else { String::new() };
    Some(vec![
        record.subject.model.clone(),
        variant(record),
        number(rate(measures)),
        cell(times_twin(routing.map(|routing| routing.top_k))),
        cell(times_twin(routing.map(|routing| routing.num_experts))),
        percent(limit(measures)),
        cell(routing.map(|routing| routing.load_balance_factor)),
        cell(routing.map(|routing| routing.entropy_bits)),
        if routing.is_some() { percent(routing.map(|routing| routing.idle_share)) } else { String::new() },
        number(record.subject.parameters.map(|count| count as f64 / 1e6)),
        number(measures.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
    ])
}

/// A table whose first row is its head; the first `left` columns are set to the left, the others to the right.
pub fn markdown(rows: &[Vec<String>], left: usize) -> String {
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

/// Three digits, which is what the figures are worth.
pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => "n/a".into(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("n/a".into(), |share| format!("{:.0} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::sandbox;

    #[test]
    fn what_only_gpus_count_is_a_column_where_something_was_counted() {
        let records = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let mut records: Vec<Record> = records.collect();
        let generations = |records: &[Record]| tables(records.iter()).remove(0).markdown();
        assert!(!generations(&records).contains("J/token"));
        let Some(Measures::Generation(measures)) = &mut records[0].measures else { unreachable!("the first is one") };
        measures.joules_per_token = Some(0.345);
        let text = generations(&records);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert!(
            rows[0].ends_with(" J/token |") && rows[1].ends_with(" 0.34 |") && rows[2].ends_with(" n/a |"),
            "{text}"
        );
    }
}
