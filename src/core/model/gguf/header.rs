//! Reads the header of a GGUF file, all but the values of its keys, which Candle reads after that. Counts and lengths are compared
//! with the size of the file, so that a file that is cut short, or was made to do harm, ends in one line and not in a large
//! allocation or a panic.

use std::io::{BufReader, Cursor, Read, Seek};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::Content;

use super::{format::TensorFormat, metadata::Metadata};

/// Elements of all arrays together. Vocabularies of 262,144 tokens have about a million. Candle takes 32 bytes for each.
const MOST_ELEMENTS: u64 = 1 << 23;

/// Arrays within arrays.
const DEEPEST: usize = 3;

/// Length of a key or of a name of a tensor.
const LONGEST_NAME: u64 = 1 << 16;

/// Bytes of the shortest key with its value, and of the shortest description of a tensor.
const LEAST_BYTES: (u64, u64) = (13, 24);

/// Where a header has its number of tensors.
const TENSORS: std::ops::Range<usize> = 8..16;

/// What the places of tensors are multiples of, where no key says it.
const ALIGNMENT: u32 = 32;

/// The types of values, as the GGUF format numbers them: the bytes of each number, and the two that have none.
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UNSIGNED: u32 = 4;
fn number_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The header of a file.
pub struct Header {
    pub tensors: Vec<TensorInfo>,
    /// Position of the first tensor.
    pub data: u64,
    /// Bytes before the descriptions of tensors.
    pub(super) keys: u64,
}

/// The description of a tensor.
pub struct TensorInfo {
    pub name: String,
    pub format: TensorFormat,
    /// The sizes, the longest stride first.
    pub shape: Vec<usize>,
    /// Position of its first byte after that of the first tensor.
    pub offset: u64,
}

/// Reads a header, of which `left` bytes may follow.
struct Reader<R> {
    reader: BufReader<R>,
    left: u64,
    elements: u64,
}

/// Reads the header of a file of this size.
///
/// # Errors
/// One line that says why it cannot be read.
pub fn read(file: impl Read + Seek, file_bytes: u64) -> Result<Header> {
    let mut header = Reader { reader: BufReader::new(file), left: file_bytes, elements: 0 };
    ensure!(file_bytes >= 4 && header.bytes()? == *b"GGUF", "it is not a GGUF file");
    let version = header.u32()?;
    ensure!([2, 3].contains(&version), "its GGUF version is {version}; versions 2 and 3 are supported");
    let (tensors, keys) = (header.u64()?, header.u64()?);
    let least = u128::from(keys) * u128::from(LEAST_BYTES.0) + u128::from(tensors) * u128::from(LEAST_BYTES.1);
    ensure!(
        least <= u128::from(header.left),
        "its header announces {tensors} tensors and {keys} keys, more than its {file_bytes} bytes can hold"
    );
    let mut alignment = ALIGNMENT;
    for _ in 0..keys {
        let key = header.name()?;
        let kind = header.u32()?;
        if key == "general.alignment" {
            alignment = if kind == UNSIGNED { header.u32()? } else { 0 };
            ensure!(alignment.is_power_of_two(), "general.alignment is not a power of two");
        } else {
            header.value(&key, kind, 0)?;
        }
    }
    let keys = file_bytes - header.left;
    let tensors = (0..tensors).map(|_| header.tensor()).collect::<Result<_>>()?;
    let data = (file_bytes - header.left).next_multiple_of(alignment.into());
    Ok(Header { tensors, data, keys })
}

impl Header {
    /// The keys of the file that has this header, as Candle reads them. Candle refuses whole files for types of tensors that it
    /// lacks, so the descriptions of tensors are kept from it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn metadata(&self, file: &mut (impl Read + Seek)) -> Result<Metadata> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(self.keys).read_to_end(&mut bytes)?;
        bytes.get_mut(TENSORS).context("it is cut short: its header does not end")?.fill(0);
        Ok(Metadata(Content::read(&mut Cursor::new(bytes))?.metadata))
    }
}

impl<R: Read + Seek> Reader<R> {
    fn claim(&mut self, bytes: u64) -> Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => bail!("it is cut short: its header does not end"),
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.claim(bytes)?;
        // The rest of a file that exists is less than an i64.
        Ok(self.reader.seek_relative(bytes as i64)?)
    }

    fn name(&mut self) -> Result<String> {
        let length = self.u64()?;
        ensure!(length <= LONGEST_NAME, "its header has a name of {length} bytes");
        self.claim(length)?;
        let mut name = vec![0; length as usize];
        self.reader.read_exact(&mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        ensure!((1..=4).contains(&dimensions), "{name} has {dimensions} dimensions");
        let mut shape = (0..dimensions).map(|_| Ok(usize::try_from(self.u64()?)?)).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let number = self.u32()?;
        let format = TensorFormat::of_number(number).map_err(|error| anyhow!("{name} has type {error}"))?;
        Ok(TensorInfo { name, format, shape, offset: self.u64()? })
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<()> {
        if let Some(bytes) = number_bytes(kind) {
            return self.skip(bytes);
        }
        match kind {
            STRING => {
                let length = self.u64()?;
                self.skip(length)
            }
            ARRAY => {
                ensure!(depth < DEEPEST, "{key} has too many arrays within arrays");
                let (kind, count) = (self.u32()?, self.u64()?);
                self.elements = self.elements.saturating_add(count);
                ensure!(
                    self.elements <= MOST_ELEMENTS,
                    "{key} and the arrays before it have more than {MOST_ELEMENTS} elements"
                );
                match number_bytes(kind) {
                    Some(bytes) => self.skip(bytes * count),
                    None => (0..count).try_for_each(|_| self.value(key, kind, depth + 1)),
                }
            }
            _ => bail!("{key} has an unknown type of value, number {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these counts and this rest.
    fn header(tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
        let start: [&[u8]; 4] = [b"GGUF", &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()];
        [start.concat(), rest.concat()].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn refused(bytes: &[u8]) -> String {
        let message = read(Cursor::new(bytes), bytes.len() as u64).err().expect("a refusal").to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    #[test]
    fn a_header_is_read_to_its_end_and_no_further() {
        let (key, tensor) = (text("a.list"), text("a.weight"));
        let array =
            [&ARRAY.to_le_bytes()[..], &STRING.to_le_bytes(), &2u64.to_le_bytes(), &text("x"), &text("")].concat();
        let info = [&2u32.to_le_bytes()[..], &8u64.to_le_bytes(), &4u64.to_le_bytes(), &0u32.to_le_bytes(), &[0; 8]];
        let whole = header(1, 1, &[&key, &array, &tensor, &info.concat()]);
        let found = read(Cursor::new(&whole), whole.len() as u64).expect("a header");
        let TensorInfo { name, format, shape, offset } = &found.tensors[0];
        assert_eq!((&**name, format.name(), &shape[..], *offset), ("a.weight", "f32", &[4, 8][..], 0));
        assert_eq!((found.tensors.len(), found.data), (1, whole.len().next_multiple_of(32) as u64));
        // What follows the keys is no part of them.
        let keys = found.metadata(&mut Cursor::new(&whole)).expect("keys").0;
        assert_eq!(keys["a.list"].to_vec().map(Vec::len).expect("a list"), 2);
        // Every header that is cut short is refused in one line.
        for length in 0..whole.len() {
            refused(&whole[..length]);
        }
    }

    #[test]
    fn counts_and_lengths_are_compared_with_the_file() {
        let (name, most) = (text("a"), u64::MAX.to_le_bytes());
        let list = |kind: u32, count: u64| {
            header(0, 1, &[&name, &ARRAY.to_le_bytes(), &kind.to_le_bytes(), &count.to_le_bytes(), &[0; 64]])
        };
        let nested = [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(200);
        let tensor = |dimensions: u32, format: u32| {
            let rest = [0; 8].repeat(dimensions.min(9) as usize);
            header(1, 0, &[&name, &dimensions.to_le_bytes(), &rest, &format.to_le_bytes(), &[0; 8]])
        };
        let alignment =
            |value: u32| header(0, 1, &[&text("general.alignment"), &UNSIGNED.to_le_bytes(), &value.to_le_bytes()]);
        for (bytes, part) in [
            (b"GGML\x03\0\0\0".to_vec(), "not a GGUF file"),
            ([&b"GGUF"[..], &1u32.to_le_bytes(), &[0; 16]].concat(), "version is 1"),
            (header(u64::MAX, 0, &[]), "18446744073709551615 tensors"),
            (header(0, u64::MAX, &[]), "18446744073709551615 keys"),
            (header(0, 1, &[&most, &[0; 32]]), "a name of 18446744073709551615 bytes"),
            (header(0, 1, &[&name, &STRING.to_le_bytes(), &most, &[0; 32]]), "cut short"),
            (list(0, u64::MAX), "more than"),
            (list(12, MOST_ELEMENTS), "cut short"),
            (list(STRING, MOST_ELEMENTS), "cut short"),
            (list(77, 1), "unknown type of value, number 77"),
            (header(0, 1, &[&name, &ARRAY.to_le_bytes(), &nested]), "arrays within arrays"),
            (tensor(5, 0), "a has 5 dimensions"),
            (tensor(0, 0), "a has 0 dimensions"),
            (tensor(2, 22), "a has type iq2_s, which is not supported; the supported types are f32, f16"),
            (tensor(2, 99), "a has type ggml's number 99"),
            (alignment(0), "general.alignment"),
            (alignment(48), "general.alignment"),
        ] {
            let message = refused(&bytes);
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}
