//! One model on its engines, in one table: what it is, how fast it is, and what that means.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    ratios,
    summary::{Summary, is_disturbed},
    table::{formats_of, number, quantity},
    text_table::{terminal, width, wrapped},
};
use crate::{
    record::{MeasureUnit, Record},
    scenario::Counterpart,
    text,
};

/// A column of the table: its header, and the field of the measure.
const COLUMNS: [(&str, &str); 5] = [
    ("decode tok/s", "decode_tokens_per_s"),
    ("prefill tok/s", "prefill_tokens_per_s"),
    ("TTFT ms", "ttft_ms"),
    ("MBU", "mbu"),
    ("peak MB", "peak_bytes"),
];

/// The results of a model, of which there is at least one.
pub(crate) fn page(records: &[&Record]) -> String {
    let summary = Summary::new(records.iter().copied());
    let value = |record: &Record, measure: &str| record.measures.as_ref().and_then(|all| all.measure(measure));
    let row = |record: &&Record| {
        let doubt = if is_disturbed(record) { " !" } else { "" };
        let cell = |(_, measure): &(_, &str)| {
            value(record, measure).map_or_else(|| number(None), |(value, unit)| quantity(value, unit))
        };
        let stock = ratios::cell(record, Counterpart::Stock, None);
        let cells = COLUMNS.iter().map(cell).chain([stock]);
        [format!("{}{doubt}", record.subject.variant())].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let headers = ["variant"].into_iter().chain(COLUMNS.map(|(header, _)| header)).chain(["time / stock"]);
    let mut rows = vec![headers.map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(records.iter().map(row));
    if rows[1..].iter().all(|row| row.last().is_some_and(String::is_empty)) {
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }

    let paragraph = |text: &str| wrapped(&text::line(text), width()).join("\n");
    let mut page = format!("{}\n\n{}\n", paragraph(&heading(records[0], &summary)), terminal(&rows, 1));
    let known = records.iter().filter_map(|record| record.deviates.as_ref());
    let deviations = known.map(|why| format!("deviates: {why}")).collect::<BTreeSet<_>>();
    for line in summary.verdicts().into_iter().chain(ratios::doubted(records)).chain(deviations) {
        let _ = writeln!(page, "{}", paragraph(&line));
    }
    page
}

/// The model, its sizes and the machine.
fn heading(record: &Record, summary: &Summary) -> String {
    let subject = &record.subject;
    let count = |measure: &str| record.measures.as_ref().and_then(|all| all.measure(measure)).map(|(value, _)| value);
    let mut parts = vec![subject.source.clone()];
    if let Some(parameters) = subject.parameters {
        parts.push(format!("{} M parameters", number(Some(parameters as f64 / 1e6))));
    }
    if let Some(bytes) = subject.weight_bytes {
        let formats = formats_of(record);
        let formats = if formats.is_empty() { formats } else { format!(" ({formats})") };
        parts.push(format!("{} MB of weights{formats}", quantity(bytes as f64, MeasureUnit::Bytes)));
    }
    if let (Some(prompt), Some(new)) = (count("prompt_tokens"), count("new_tokens")) {
        parts.push(format!("{prompt:.0} prompt tokens, {new:.0} new tokens"));
    }
    let limits = summary.limits().into_iter().map(|(name, value)| format!("{name} {value}"));
    let machine = [record.machine.name.clone()].into_iter().chain(limits).collect::<Vec<_>>();
    format!("{}. {}.", parts.join(", "), machine.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::Measures, runner::sandbox};

    #[test]
    fn a_share_above_the_limit_is_no_result() {
        let mut records = sandbox::records("run", 1, 1, chrono::Utc::now()).expect("records");
        let mut record = records.find(|record| record.subject.engine == "stock").expect("a generation");
        let mut page_at = |mbu: f64| {
            let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
            measures.mbu = Some(mbu);
            page(&[&record])
        };
        let (good, bad) = (page_at(0.91), page_at(1.5));
        assert!(good.contains(" 91 % ") && good.contains("little is left to gain"), "{good}");
        assert!(bad.contains(">100 %") && !bad.contains("150") && !bad.contains("left to gain"), "{bad}");
        assert!(good.contains("prompt tokens") && good.contains("MB of weights"), "{good}");
    }
}
