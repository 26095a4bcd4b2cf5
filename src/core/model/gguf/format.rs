//! The types of tensors in files.

use std::fmt;

use anyhow::{Context, Result};
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use crate::kernels::inference::{Format, Machine, Quantised};

/// A type of tensors that is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TensorFormat {
    F32,
    F16,
    BF16,
    Blocks(Format),
}

/// The other types, by their numbers. Numbers without a name are those of types that llama.cpp no longer reads, or of later ones.
const OTHERS: &[(u32, &str)] = &[
    (9, "q8_1"),
    (15, "q8_k"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (24, "i8"),
    (25, "i16"),
    (26, "i32"),
    (27, "i64"),
    (28, "f64"),
    (29, "iq1_m"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (40, "nvfp4"),
    (41, "q1_0"),
];

impl TensorFormat {
    /// All types that are read.
    fn all() -> impl Iterator<Item = Self> {
        [Self::F32, Self::F16, Self::BF16].into_iter().chain(Format::ALL.map(Self::Blocks))
    }

    /// The type of a number in files.
    ///
    /// # Errors
    /// The name of a type that is not read, and the names of those that are.
    pub fn of_number(number: u32) -> Result<Self> {
        Self::all().find(|format| format.number() == number).with_context(|| {
            let known = OTHERS.iter().find(|(other, _)| *other == number);
            let name = known.map_or_else(|| format!("ggml's number {number}"), |(_, name)| (*name).to_owned());
            let read: Vec<&str> = Self::all().map(Self::name).collect();
            format!("{name}, which is not supported; the supported types are {}", read.join(", "))
        })
    }

    /// The number of the type in files, as ggml defines it.
    pub fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 30,
            Self::Blocks(format) => format.number,
        }
    }

    /// Its name in ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Blocks(format) => format.name,
        }
    }

    /// Elements of a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Blocks(format) => format.block,
        }
    }

    pub fn block_size(self) -> usize {
        self.block().0
    }

    pub fn type_size(self) -> usize {
        self.block().1
    }

    /// The type in Candle; `None` if Candle lacks it.
    pub fn of_candle(self) -> Option<GgmlDType> {
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        match self {
            Self::F32 => Some(GgmlDType::F32),
            Self::F16 => Some(GgmlDType::F16),
            Self::BF16 => Some(GgmlDType::BF16),
            Self::Blocks(format) => [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
                .into_iter()
                .find(|of_candle| Format::try_from(*of_candle) == Ok(format)),
        }
    }

    /// The elements of rows of whole blocks, as f32.
    pub fn values(self, bytes: &[u8], (rows, width): (usize, usize)) -> Result<Vec<f32>> {
        let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        Ok(match self {
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
            Self::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            Self::Blocks(format) => {
                let blocks = Quantised::from_bytes(Machine::shared(), format, (rows, width), bytes, |row| row);
                let blocks = blocks.context("its rows are not whole blocks")?;
                let mut values = vec![0.0; rows * width];
                let rows = values.chunks_exact_mut(width.max(1)).enumerate();
                rows.for_each(|(number, row)| blocks.row(number, row));
                values
            }
        })
    }
}

impl fmt::Display for TensorFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_or_refused_by_its_name() {
        let mut read = 0;
        for number in 0..64 {
            match TensorFormat::of_number(number) {
                Ok(format) => {
                    read += 1;
                    assert_eq!(format.number(), number, "{format}");
                    assert!(!OTHERS.iter().any(|(other, _)| *other == number), "{format} has two rows");
                }
                Err(error) => {
                    let known = OTHERS.iter().find(|(other, _)| *other == number);
                    let name = known.map_or_else(|| format!("number {number},"), |(_, name)| format!("{name},"));
                    let message = error.to_string();
                    assert!(message.contains(&name) && message.lines().count() == 1, "{number}: {message}");
                }
            }
        }
        assert_eq!(read, TensorFormat::all().count());
    }
}
