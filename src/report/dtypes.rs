//! Size, speed and quality of a model in several dtypes: the perplexities of a run joined with its generations.

use super::table::{Table, number, quantity};
use crate::record::{MeasureUnit, Measures, Quality, Record, measures::TableKey};

/// Scenarios whose decode rate is preferred, the best first.
const PREFERRED: [&str; 3] = ["decode", "medium", "short"];

/// A model in one dtype on one engine.
pub struct Cost<'a> {
    /// The record of the perplexity.
    pub record: &'a Record,
    /// Its measures.
    pub quality: &'a Quality,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Decode rate of the same subject, and the scenario; `None` if the run has no generation of it.
    pub decode: Option<(f64, &'a str)>,
}

impl Cost<'_> {
    /// Mean divergence from the reference: 0 for the reference itself.
    pub fn kl_mean(&self, all: &[Self]) -> Option<f64> {
        let is_reference = all.iter().any(|other| other.quality.reference.as_ref() == Some(&self.record.id));
        self.quality.kl_mean.or(is_reference.then_some(0.0))
    }
}

/// The subjects of each model and text that was scored in several dtypes, the largest first.
pub fn costs<'a>(records: &[&'a Record]) -> Vec<Vec<Cost<'a>>> {
    let mut groups: Vec<Vec<Cost>> = Vec::new();
    for record in records {
        let (Some(Measures::Quality(quality)), Some(weight_bytes)) = (&record.measures, record.subject.weight_bytes)
        else {
            continue;
        };
        let cost = Cost { record, quality, weight_bytes, decode: decode(record, records) };
        let key = |record: &'a Record| (&record.scenario, &record.subject.model, &record.subject.device);
        match groups.iter_mut().find(|group| key(group[0].record) == key(record)) {
            Some(group) => group.push(cost),
            None => groups.push(vec![cost]),
        }
    }
    let has_several =
        |group: &Vec<Cost>| group.iter().any(|cost| cost.record.subject.dtype != group[0].record.subject.dtype);
    groups.retain(has_several);
    groups.iter_mut().for_each(|group| group.sort_by_key(|cost| std::cmp::Reverse(cost.weight_bytes)));
    groups
}

/// The decode rate of the same subject in the preferred scenario that the run has, or in the first other.
fn decode<'a>(quality: &Record, records: &[&'a Record]) -> Option<(f64, &'a str)> {
    let same = |record: &Record| {
        record.subject.model == quality.subject.model && record.subject.variant() == quality.subject.variant()
    };
    let rates = records.iter().filter(|record| same(record)).filter_map(|record| match &record.measures {
        Some(Measures::Generation(measures)) => Some((measures.decode_tokens_per_s?, record.scenario.as_str())),
        _ => None,
    });
    rates.min_by_key(|(_, scenario)| PREFERRED.iter().position(|other| other == scenario).unwrap_or(PREFERRED.len()))
}

/// A table for each model and text with several dtypes.
pub fn tables(records: &[&Record]) -> Vec<Table> {
    costs(records).iter().map(|group| table(group)).collect()
}

fn table(group: &[Cost]) -> Table {
    let header = [
        "variant",
        "weights MB",
        "bits / weight",
        "scored tok/s",
        "decode tok/s",
        "perplexity",
        "std error",
        "bits / byte",
        "mean KL nats",
        "same top-1",
    ];
    let row = |cost: &Cost| {
        let of_unit = |value: Option<f64>, unit| value.map_or_else(|| number(None), |value| quantity(value, unit));
        let bits = cost.record.subject.parameters.map(|count| 8.0 * cost.weight_bytes as f64 / count as f64);
        vec![
            cost.record.subject.variant().to_string(),
            quantity(cost.weight_bytes as f64, MeasureUnit::Bytes),
            number(bits),
            number(cost.quality.scored_tokens_per_s),
            number(cost.decode.map(|(rate, _)| rate)),
            of_unit(cost.quality.perplexity, MeasureUnit::Perplexity),
            of_unit(cost.quality.perplexity_standard_error, MeasureUnit::Perplexity),
            of_unit(cost.quality.bits_per_byte, MeasureUnit::Bits),
            of_unit(cost.kl_mean(group), MeasureUnit::Nats),
            of_unit(cost.quality.top1_agreement, MeasureUnit::Accuracy),
        ]
    };
    let Cost { record, .. } = &group[0];
    let mut scenarios: Vec<&str> = Vec::new();
    for (_, scenario) in group.iter().filter_map(|cost| cost.decode) {
        if !scenarios.contains(&scenario) {
            scenarios.push(scenario);
        }
    }
    let mut notes = Vec::new();
    if !scenarios.is_empty() {
        notes.push(format!("Decode rates are those of the scenario {}.", scenarios.join(" or ")));
    }
    let references: Vec<&str> =
        group.iter().filter_map(|cost| cost.quality.reference.as_deref()?.rsplit('/').next()).collect();
    if let Some(reference) = references.first() {
        notes.push(format!("The divergences are from {reference}."));
    }
    Table {
        key: TableKey::Dtypes,
        title: "Size, speed and quality",
        scenario: Some(record.scenario.clone()),
        common: vec![format!("scenario {}", record.scenario), format!("model {}", record.subject.model)],
        rows: [header.map(str::to_owned).to_vec()].into_iter().chain(group.iter().map(row)).collect(),
        words: 1,
        notes,
        definitions: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::BenchmarkId, runner::sandbox};

    /// A perplexity and a generation of a model in each dtype.
    fn records() -> Vec<Record> {
        let all: Vec<Record> = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records").collect();
        let find = |is_kind: fn(&Measures) -> bool| {
            all.iter().find(|record| record.measures.as_ref().is_some_and(is_kind)).expect("a record").clone()
        };
        let (quality, generation) = (
            find(|measures| matches!(measures, Measures::Quality(_))),
            find(|measures| matches!(measures, Measures::Generation(_))),
        );
        let mut records = Vec::new();
        for (dtype, weight_bytes, kl) in [("q4k", 250, Some(0.1)), ("f32", 1600, None), ("q8_0", 425, Some(0.001))] {
            let subject = record_subject(&quality, dtype, weight_bytes);
            for (base, scenario) in [(&quality, "perplexity"), (&generation, "short"), (&generation, "medium")] {
                if (scenario, dtype) == ("medium", "q4k") {
                    continue;
                }
                let mut record = Record { subject: subject.clone(), scenario: scenario.into(), ..base.clone() };
                record.id = BenchmarkId::new(scenario, &subject).to_string();
                match &mut record.measures {
                    Some(Measures::Quality(measures)) => {
                        measures.kl_mean = kl;
                        measures.reference = kl.map(|_| "perplexity/m/tuned-f32-cpu".to_owned());
                    }
                    Some(Measures::Generation(measures)) => {
                        measures.decode_tokens_per_s = Some(if scenario == "medium" { 70.0 } else { 50.0 });
                    }
                    _ => {}
                }
                records.push(record);
            }
        }
        records
    }

    fn record_subject(of: &Record, dtype: &str, weight_bytes: u64) -> crate::record::Subject {
        let (model, engine) = ("m".to_owned(), "tuned".to_owned());
        let sizes = (Some(400), Some(weight_bytes));
        let (parameters, weight_bytes) = sizes;
        crate::record::Subject { model, engine, dtype: dtype.into(), parameters, weight_bytes, ..of.subject.clone() }
    }

    #[test]
    fn perplexities_stand_beside_sizes_and_rates() {
        let records = records();
        let found = tables(&records.iter().collect::<Vec<_>>());
        let [table] = found.as_slice() else { panic!("{} tables", found.len()) };
        let column = |header: &str| {
            let place = table.rows[0].iter().position(|other| other == header).expect(header);
            table.rows[1..].iter().map(|row| row[place].as_str()).collect::<Vec<_>>()
        };
        assert_eq!(column("variant"), ["tuned-f32-cpu", "tuned-q8_0-cpu", "tuned-q4k-cpu"]);
        assert_eq!(column("bits / weight"), ["32.0", "8.50", "5.00"]);
        // The last has no medium.
        assert_eq!(column("decode tok/s"), ["70.0", "70.0", "50.0"]);
        assert_eq!(column("mean KL nats"), ["0.0000", "0.0010", "0.1000"]);
        let bits = records.iter().find_map(|record| match &record.measures {
            Some(Measures::Quality(quality)) => quality.bits_per_byte,
            _ => None,
        });
        assert!(bits.is_some(), "it stands beside every perplexity");
        assert_eq!(column("bits / byte"), vec![number(bits); 3]);
        assert!(table.notes[0].contains("medium or short") && table.notes[1].contains("tuned-f32-cpu"));
    }

    #[test]
    fn one_dtype_has_no_table() {
        let mut records = records();
        records.retain(|record| record.subject.dtype == "f32");
        assert!(tables(&records.iter().collect::<Vec<_>>()).is_empty());
    }
}
