//! The name of a file's quantisation.

use std::collections::BTreeMap;

use super::{Stored, main_format, metadata::Metadata, parts};
use anyhow::{Context, Result};

const KEY: &str = "general.file_type";

/// The numbers of llama.cpp's file types, their names, and the format of most matrices in layers, as far as it is read.
const FILE_TYPES: &[(i128, &str, &str)] = &[
    (0, "f32", "f32"),
    (1, "f16", "f16"),
    (2, "q4_0", "q4_0"),
    (3, "q4_1", "q4_1"),
    (7, "q8_0", "q8_0"),
    (8, "q5_0", "q5_0"),
    (9, "q5_1", "q5_1"),
    (10, "q2_k", "q2_k"),
    (11, "q3_k_s", "q3_k"),
    (12, "q3_k_m", "q3_k"),
    (13, "q3_k_l", "q3_k"),
    (14, "q4_k_s", "q4_k"),
    (15, "q4_k_m", "q4_k"),
    (16, "q5_k_s", "q5_k"),
    (17, "q5_k_m", "q5_k"),
    (18, "q6_k", "q6_k"),
    (21, "q2_k_s", "q2_k"),
    (25, "iq4_nl", "iq4_nl"),
    (30, "iq4_xs", "iq4_xs"),
    (32, "bf16", "bf16"),
    (38, "mxfp4_moe", "mxfp4"),
];

/// The format that llama.cpp gives to rows that are not whole blocks of 256, instead of this one.
fn of_narrow_rows(format: &str) -> &str {
    match format {
        "q2_k" | "q3_k" => "q4_0",
        "q4_k" => "q5_0",
        "q5_k" => "q5_1",
        "q6_k" => "q8_0",
        "iq4_xs" => "iq4_nl",
        other => other,
    }
}

/// The file type that the metadata states, or the format of most weights if the matrices of the layers are not of that type; then
/// with a note that says so.
pub fn of(metadata: &Metadata, stored: &BTreeMap<String, Stored>) -> Result<(String, Option<String>)> {
    let main = main_format(stored.values()).context("it has no tensors")?;
    let stated = metadata.whole(KEY)?;
    let row = FILE_TYPES.iter().find(|(number, ..)| Some(*number) == stated);
    if let Some((_, name, format)) = row
        && has_mostly(stored, format)
    {
        return Ok(((*name).to_owned(), None));
    }
    let why = match (stated, row) {
        (None, _) => format!("it has no {KEY}"),
        (Some(number), None) => format!("its {KEY} {number} is not known"),
        (_, Some((_, name, _))) => format!("its {KEY} says {name}, and its tensors are of another type"),
    };
    let note = format!("{why}: ids name the format of most weights, {main}");
    Ok((main.to_string(), Some(note)))
}

/// Returns whether the matrices of the layers have mostly this format, or the one that stands for it in narrow rows.
fn has_mostly(stored: &BTreeMap<String, Stored>, format: &str) -> bool {
    let is_matrix = |(name, tensor): &(&String, &Stored)| name.starts_with("blk.") && tensor.shape.len() > 1;
    let (mut own, mut others) = (0, BTreeMap::new());
    for (_, Stored { format: found, shape, .. }) in stored.iter().filter(is_matrix) {
        let elements: usize = shape.iter().product();
        if [format, of_narrow_rows(format)].contains(&found.name()) {
            own += elements;
        } else {
            *others.entry(found.name()).or_insert(0) += elements;
        }
    }
    own > 0 && others.into_values().all(|other| other <= own)
}

/// The quantisation that the name of a file ends with, in ids; `None` if it is not known.
pub fn quantisation_of_name(name: &str) -> Option<String> {
    let end = parts::stem(name)?.rsplit(['-', '.', '/']).next()?.to_lowercase();
    FILE_TYPES.iter().map(|(_, name, _)| (*name).to_owned()).find(|name| *name == end)
}
