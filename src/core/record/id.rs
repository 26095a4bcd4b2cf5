//! The id of a benchmark, `<scenario>/<model>/<engine>-<dtype>-<device>`. This is the only place that joins or splits ids.

use std::{fmt, str::FromStr};

use anyhow::{Result, ensure};

use super::{Record, Subject};

/// The id of a benchmark. Criterion, records and reports use its text form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BenchmarkId {
    /// Key of the scenario, which is also the name of the Criterion group.
    pub scenario: String,
    /// Short name of the model.
    pub model: String,
    /// The implementation that ran the model.
    pub variant: Variant,
}

/// The implementation that ran a model: the last part of an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// Name of the engine.
    pub engine: String,
    /// Data type of the weights, for example `bf16`.
    pub dtype: String,
    /// Device, for example `cpu`.
    pub device: String,
}

impl BenchmarkId {
    /// The id of `subject` in a scenario.
    pub fn new(scenario: &str, subject: &Subject) -> Self {
        Self { scenario: scenario.to_owned(), model: subject.model.clone(), variant: subject.variant() }
    }
}

impl Record {
    /// The id for other tools. The id of a sandbox record has a prefix, so that nobody mistakes it for a measurement.
    pub fn exported_id(&self) -> String {
        if self.sandbox { format!("sandbox/{}", self.id) } else { self.id.clone() }
    }

    /// The id of one metric of the benchmark, for other tools.
    pub fn exported_metric_id(&self, metric: &str) -> String {
        format!("{}/{metric}", self.exported_id())
    }
}

/// The Criterion group of an id: the text before the first slash. For one of our ids it is the scenario. Ids of any form
/// have a group, so that other crates' benchmarks in Criterion's folders can be compared too.
pub fn group(id: &str) -> &str {
    id.split('/').next().unwrap_or(id)
}

impl Subject {
    /// The subject in a batch of so many sequences. The name of the model carries the batch, unless it is 1.
    #[must_use]
    pub fn in_batch(mut self, batch: usize) -> Self {
        if batch > 1 {
            self.model += &format!("-b{batch}");
            self.sizes.insert("batch".into(), batch as u64);
        }
        self
    }

    /// The last part of the subject's benchmark ids.
    pub fn variant(&self) -> Variant {
        Variant { engine: self.engine.clone(), dtype: self.dtype.clone(), device: self.device.clone() }
    }

    /// Architecture and sizes of a model whose name has the form `<architecture>-<sizes>`. The sizes are empty if the name
    /// has none.
    pub fn architecture_and_sizes(&self) -> (&str, &str) {
        self.model.split_once('-').unwrap_or((&self.model, ""))
    }
}

impl fmt::Display for BenchmarkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.scenario, self.model, self.variant)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.engine, self.dtype, self.device)
    }
}

impl FromStr for BenchmarkId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let [scenario, model, variant] = parts.as_slice() else {
            anyhow::bail!(
                "'{text}' is not a benchmark id: ids have the form <scenario>/<model>/<engine>-<dtype>-<device>"
            );
        };
        ensure!(!scenario.is_empty() && !model.is_empty(), "'{text}' is not a benchmark id: a part is empty");
        Ok(Self { scenario: (*scenario).to_owned(), model: (*model).to_owned(), variant: variant.parse()? })
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    /// The engine may contain dashes; the dtype and the device do not.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.rsplitn(3, '-');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(device), Some(dtype), Some(engine)) if ![device, dtype, engine].contains(&"") => {
                Ok(Self { engine: engine.to_owned(), dtype: dtype.to_owned(), device: device.to_owned() })
            }
            _ => anyhow::bail!("'{text}' is not of the form <engine>-<dtype>-<device>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_printing_and_parsing() {
        for text in [
            "medium/llama-3.2-1b/stock-bf16-cuda0",
            "architecture_sweep_train/state_space-d48-l2-h5-b8-w64/tuned-f32-cpu",
            "medium/llama-mini/llama-cpp-q4k-cpu",
        ] {
            let id: BenchmarkId = text.parse().expect(text);
            assert_eq!(id.to_string(), text);
        }
        let id: BenchmarkId = "medium/llama-mini/llama-cpp-q4k-cpu".parse().expect("an id");
        assert_eq!((id.variant.engine.as_str(), id.variant.dtype.as_str()), ("llama-cpp", "q4k"));
    }

    #[test]
    fn ids_carry_the_batch_unless_it_is_1() {
        let record: Record = serde_json::from_str(include_str!("sample.json")).expect("the sample");
        let of = |batch| BenchmarkId::new("medium", &record.subject.clone().in_batch(batch));
        assert_eq!(of(1), BenchmarkId::new("medium", &record.subject));
        assert_eq!(of(16).model, format!("{}-b16", record.subject.model));
        assert_eq!(record.subject.clone().in_batch(16).sizes["batch"], 16);
    }

    #[test]
    fn an_id_of_another_form_has_a_group() {
        assert_eq!(group("medium/llama-mini/stock-f32-cpu"), "medium");
        assert_eq!((group("fib 20"), group("sort/std/1000/x")), ("fib 20", "sort"));
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for text in ["", "medium", "medium/llama", "medium/llama/stock", "a/b/c-d-e/f", "/b/c-d-e", "a/b/-d-e"] {
            assert!(text.parse::<BenchmarkId>().is_err(), "{text}");
        }
    }
}
