//! Benchmarks of whole language models on [Candle](https://github.com/huggingface/candle), with Criterion's statistics.

pub mod generate;
pub mod measure;
pub mod record;
pub mod report;
pub mod scenario;
pub mod settings;
pub mod subject;
pub mod suite;
pub mod train;

/// The name that was probably meant, if one is close.
pub(crate) fn nearest<'a>(given: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}
