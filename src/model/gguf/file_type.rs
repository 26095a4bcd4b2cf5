//! The name of a file's quantisation.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::quantized::GgmlDType::{self, *};

use super::{Stored, main_format, metadata::Metadata, parts};

const KEY: &str = "general.file_type";

/// The numbers of llama.cpp's file types, their names, and the format of most matrices in layers, as far as Candle reads it.
const FILE_TYPES: &[(i128, &str, GgmlDType)] = &[
    (0, "f32", F32),
    (1, "f16", F16),
    (2, "q4_0", Q4_0),
    (3, "q4_1", Q4_1),
    (7, "q8_0", Q8_0),
    (8, "q5_0", Q5_0),
    (9, "q5_1", Q5_1),
    (10, "q2_k", Q2K),
    (11, "q3_k_s", Q3K),
    (12, "q3_k_m", Q3K),
    (13, "q3_k_l", Q3K),
    (14, "q4_k_s", Q4K),
    (15, "q4_k_m", Q4K),
    (16, "q5_k_s", Q5K),
    (17, "q5_k_m", Q5K),
    (18, "q6_k", Q6K),
    (21, "q2_k_s", Q2K),
    (32, "bf16", BF16),
];

/// The format that llama.cpp gives to rows that are not whole blocks of 256, instead of this one.
fn of_narrow_rows(format: GgmlDType) -> GgmlDType {
    match format {
        Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    }
}

/// The file type that the metadata states, or the format of most weights if the matrices of the layers are not of that type; then
/// with a note that says so.
pub fn of(metadata: &Metadata, stored: &BTreeMap<String, Stored>) -> Result<(String, Option<String>)> {
    let main = main_format(stored.values()).context("it has no tensors")?;
    let main = format!("{main:?}").to_lowercase();
    let stated = metadata.whole(KEY)?;
    let row = FILE_TYPES.iter().find(|(number, ..)| Some(*number) == stated);
    if let Some((_, name, format)) = row
        && has_mostly(stored, *format)
    {
        return Ok(((*name).to_owned(), None));
    }
    let why = match (stated, row) {
        (None, _) => format!("it has no {KEY}"),
        (Some(number), None) => format!("its {KEY} {number} is not known"),
        (_, Some((_, name, _))) => format!("its {KEY} says {name}, and its tensors are of another type"),
    };
    let note = format!("{why}: ids name the format of most weights, {main}");
    Ok((main, Some(note)))
}

/// Returns whether the matrices of the layers have mostly this format, or the one that stands for it in narrow rows.
fn has_mostly(stored: &BTreeMap<String, Stored>, format: GgmlDType) -> bool {
    let is_matrix = |(name, tensor): &(&String, &Stored)| name.starts_with("blk.") && tensor.shape.len() > 1;
    let (mut own, mut others) = (0, BTreeMap::new());
    for (_, Stored { format: found, shape, .. }) in stored.iter().filter(is_matrix) {
        let elements: usize = shape.iter().product();
        if [format, of_narrow_rows(format)].contains(found) {
            own += elements;
        } else {
            *others.entry(format!("{found:?}")).or_insert(0) += elements;
        }
    }
    own > 0 && others.into_values().all(|other| other <= own)
}

/// The quantisation that the name of a file ends with, in ids; `None` if it is not known.
pub fn quantisation_of_name(name: &str) -> Option<String> {
    let end = parts::stem(name)?.rsplit(['-', '.', '/']).next()?.to_lowercase();
    FILE_TYPES.iter().map(|(_, name, _)| (*name).to_owned()).find(|name| *name == end)
}
