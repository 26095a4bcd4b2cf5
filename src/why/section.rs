//! Explanations as a section of a report.

use super::Beside;
use crate::{
    record::MeasureUnit,
    report::{
        Section, Stack,
        table::{number, quantity},
    },
};

/// A part below this share of the time has no row.
const LEAST_SHARE: f64 = 0.02;

/// Where the time of some explanations goes: a bar for each pass, and a table of the larger parts.
pub(crate) fn section(explained: &[Beside]) -> Section {
    let header = ["model", "pass", "part", "ms", "share", "bound ms", "of bound"].map(str::to_owned).to_vec();
    let (mut stacks, mut rows) = (Vec::new(), vec![header]);
    for Beside { name, explanation } in explained {
        for phase in &explanation.phases {
            let parts = phase.parts.iter().map(|part| (part.name.clone(), part.share)).collect();
            let bound = (phase.bound_ms / phase.ms).clamp(0.0, 1.0);
            stacks.push(Stack { name: format!("{name}: {}", phase.name), parts, bound });
            for part in phase.parts.iter().filter(|part| part.share >= LEAST_SHARE) {
                rows.push(vec![
                    name.clone(),
                    phase.name.clone(),
                    part.name.clone(),
                    number(Some(part.ms)),
                    format!("{:.1} %", part.share * 100.0),
                    part.bound_ms.map_or(String::new(), |ms| number(Some(ms))),
                    part.of_bound().map_or(String::new(), |share| quantity(share, MeasureUnit::OfLimit)),
                ]);
            }
        }
    }
    let plot = ("why.svg", "Where the time of a pass goes, with a line at the bound of the machine");
    Section::of_stacks("Where the time goes", plot, &stacks, rows)
}
