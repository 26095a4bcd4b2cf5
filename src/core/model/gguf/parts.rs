//! The files of a model that is split into several: `name-00001-of-00003.gguf`, as llama.cpp names them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::metadata::Metadata;

/// The number of files, in each of them.
const COUNT: &str = "split.count";
/// The number of a file, from 0.
const NUMBER: &str = "split.no";

/// Most parts of a model.
const MOST_PARTS: i128 = 1000;

/// All parts of a model in the folder of one of them; the file alone if it is not a part.
///
/// # Errors
/// If the file is not named as a part, or another part is missing.
pub fn of(path: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>> {
    let count = metadata.whole(COUNT)?.unwrap_or(1);
    ensure!((0..=MOST_PARTS).contains(&count), "{COUNT} is {count}");
    if count <= 1 {
        return Ok(vec![path.to_owned()]);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let names = names(&name).filter(|names| names.len() as i128 == count);
    let names = names.with_context(|| {
        format!("it is a part of {count}, whose name must end as in -00001-of-{count:05}.gguf: give it its name")
    })?;
    let paths: Vec<PathBuf> = names.iter().map(|name| path.with_file_name(name)).collect();
    if let Some(missing) = paths.iter().position(|path| !path.is_file()) {
        anyhow::bail!("it is a part of {count}, and {} is not beside it", names[missing]);
    }
    Ok(paths)
}

/// Checks that a file is the part that its name says.
///
/// # Errors
/// If it is not.
pub fn check(metadata: &Metadata, number: usize) -> Result<()> {
    match metadata.whole(NUMBER)? {
        Some(own) if own == number as i128 => Ok(()),
        Some(own) => anyhow::bail!("{NUMBER} is {own}, though its name makes it {number}"),
        None => anyhow::bail!("it has no {NUMBER}, as a part has"),
    }
}

/// The names of all parts, from the name of one; `None` if it is not the name of a part.
pub fn names(name: &str) -> Option<Vec<String>> {
    let (stem, count) = split(name.strip_suffix(".gguf")?)?;
    Some((1..=count).map(|part| format!("{stem}-{part:05}-of-{count:05}.gguf")).collect())
}

/// The name of a file without its ending and the number of its part; `None` if it is not that of a GGUF file.
pub fn stem(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".gguf")?;
    Some(split(stem).map_or(stem, |(stem, _)| stem))
}

fn split(stem: &str) -> Option<(&str, usize)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|digit| digit.is_ascii_digit());
    let is_part = is_number(count) && is_number(number);
    let count: usize = count.parse().ok().filter(|count| is_part && *count as i128 <= MOST_PARTS)?;
    (1..=count).contains(&number.parse().ok()?).then_some((stem, count))
}
