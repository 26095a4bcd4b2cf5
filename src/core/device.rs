//! The device that models run on: how a user names it, and how it is opened.

use std::{collections::HashMap, fmt, str::FromStr, sync::Mutex};

use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device, quantized::GgmlDType};

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

use crate::{
    config::{serde_as_text, unknown},
    error::one_line,
};

/// A device to run on, before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by CUDA's number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl DeviceChoice {
    /// Opens the device, once per process. Candle treats a device that is opened again as another device and loads
    /// its kernels again.
    ///
    /// # Errors
    /// Returns an error if support for the device was not compiled in, or the device is missing.
    pub fn open(self) -> Result<Device> {
        static OPEN: Mutex<Option<HashMap<DeviceChoice, Device>>> = Mutex::new(None);
        let mut open = OPEN.lock().map_err(|_| anyhow!("device {self} could not be opened before"))?;
        let open = open.get_or_insert_default();
        if let Some(device) = open.get(&self) {
            return Ok(device.clone());
        }
        let device = self.open_anew()?;
        open.insert(self, device.clone());
        Ok(device)
    }

    fn open_anew(self) -> Result<Device> {
        let failed = |error| anyhow!("device {self} could not be opened: {}", one_line(&error));
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => {
                bail!("device {self} is not compiled in: build with --features cuda")
            }
            Self::Metal if !candle_core::utils::metal_is_available() => {
                bail!("device {self} is not compiled in: build with --features metal")
            }
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(failed),
            Self::Metal => Device::new_metal(0).map_err(failed),
        }
    }

    /// The default dtype of models on this device: bf16 on accelerators, f32 on a CPU.
    pub fn default_dtype(self) -> Precision {
        match self {
            Self::Cpu => Precision::F32,
            Self::Cuda(_) | Self::Metal => Precision::BF16,
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "metal" | "mps" => Ok(Self::Metal),
            "cuda" | "gpu" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda").map(|n| n.trim_start_matches(':').parse()) {
                Some(Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
                _ => bail!("unknown device '{text}': the devices are cpu, cuda:N and metal"),
            },
        }
    }
}

serde_as_text!(DeviceChoice);

/// The form of a model's weights and of its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    weights: Form,
    /// True if keys and values are FP8 (E4M3), and not of the dtype of activations.
    has_fp8_cache: bool,
}

/// The form of weights: a dtype, or a quantised one with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4K,
    F8E4M3,
}

impl Precision {
    /// 32-bit floating point.
    pub const F32: Self = Self::of(Form::F32);
    /// 16-bit floating point.
    pub const F16: Self = Self::of(Form::F16);
    /// 16-bit floating point with the range of f32.
    pub const BF16: Self = Self::of(Form::BF16);
    /// Blocks of 32 weights of 8 bits with a scale.
    pub const Q8_0: Self = Self::of(Form::Q8_0);
    /// Blocks of 256 weights of 4 bits, with a scale and an offset for each 32.
    pub const Q4K: Self = Self::of(Form::Q4K);
    /// 8-bit floating point with three bits of mantissa, and a scale for each row of a matrix.
    pub const F8E4M3: Self = Self::of(Form::F8E4M3);

    /// All forms of weights, with a cache in the dtype of activations.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4K, Self::F8E4M3];

    /// The end of names that says that the cache is FP8.
    const FP8_CACHE: &str = "_kv8";

    const fn of(weights: Form) -> Self {
        Self { weights, has_fp8_cache: false }
    }

    /// The same weights with a cache in FP8 (E4M3).
    #[must_use]
    pub fn with_fp8_cache(self) -> Self {
        Self { has_fp8_cache: true, ..self }
    }

    /// Name of the form of weights in settings and benchmark ids.
    pub fn name(self) -> &'static str {
        match self.weights {
            Form::F32 => "f32",
            Form::F16 => "f16",
            Form::BF16 => "bf16",
            Form::Q8_0 => "q8_0",
            Form::Q4K => "q4k",
            Form::F8E4M3 => "f8e4m3",
        }
    }

    /// The end of the name in settings and benchmark ids, which is that of the cache. It is empty if the cache is in the dtype of
    /// activations.
    pub(crate) fn cache_suffix(self) -> &'static str {
        if self.has_fp8_cache { Self::FP8_CACHE } else { "" }
    }

    /// The dtype of activations, and of weights that are not quantised.
    pub fn dtype(self) -> DType {
        match self.weights {
            Form::F32 | Form::Q8_0 | Form::Q4K | Form::F8E4M3 => DType::F32,
            Form::F16 => DType::F16,
            Form::BF16 => DType::BF16,
        }
    }

    /// The dtype of the cache of a model with these activations.
    pub(crate) fn cache_dtype_of(self, activations: DType) -> DType {
        if self.has_fp8_cache { DType::F8E4M3 } else { activations }
    }

    /// Returns whether the weights are quantised.
    pub fn is_quantised(self) -> bool {
        matches!(self.weights, Form::Q8_0 | Form::Q4K | Form::F8E4M3)
    }

    /// Returns whether only engine `tuned` on a CPU has weights or a cache of this form.
    pub fn is_only_tuned(self) -> bool {
        self.is_quantised() || self.has_fp8_cache
    }

    /// The blocks of quantised weights; `None` if the weights are not in blocks.
    pub(crate) fn blocks(self) -> Option<GgmlDType> {
        match self.weights {
            Form::F32 | Form::F16 | Form::BF16 | Form::F8E4M3 => None,
            Form::Q8_0 => Some(GgmlDType::Q8_0),
            Form::Q4K => Some(GgmlDType::Q4K),
        }
    }

    /// Bytes of this many weights, without those that rows add: padding, or the scales of FP8.
    pub fn bytes(self, weights: u64) -> u64 {
        match self.blocks() {
            None if self.weights == Form::F8E4M3 => weights,
            None => weights * self.dtype().size_in_bytes() as u64,
            Some(blocks) => weights.div_ceil(blocks.block_size() as u64) * blocks.type_size() as u64,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        f.write_str(self.cache_suffix())
    }
}

impl FromStr for Precision {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (weights, has_fp8_cache) = match text.strip_suffix(Self::FP8_CACHE) {
            Some(weights) => (weights, true),
            None => (text, false),
        };
        match Self::ALL.into_iter().find(|precision| precision.name() == weights) {
            Some(precision) => Ok(Self { has_fp8_cache, ..precision }),
            None => bail!(unknown("dtype", text, &Self::ALL.map(Self::name))),
        }
    }
}

serde_as_text!(Precision);

/// Dtypes that models can be trained in.
pub const TRAINING_DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Parses a dtype that must be one of `allowed`.
///
/// # Errors
/// When `text` names none of them.
pub fn parse_dtype(text: &str, allowed: &[DType]) -> Result<DType> {
    let names: Vec<_> = allowed.iter().map(|dtype| dtype.as_str()).collect();
    let found = allowed.iter().copied().find(|dtype| dtype.as_str() == text);
    found.ok_or_else(|| anyhow!("{}", unknown("dtype", text, &names)))
}

/// Writes and reads one of [`TRAINING_DTYPES`] with serde.
pub mod training_dtype {
    use super::*;

    /// Writes the name of the dtype.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.as_str())
    }

    /// Reads the name of a dtype.
    ///
    /// # Errors
    /// If the dtype is unknown or not one of the list.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DType, D::Error> {
        parse_dtype(&String::deserialize(deserializer)?, &TRAINING_DTYPES).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_survives_printing_and_parsing() {
        for precision in Precision::ALL {
            for precision in [precision, precision.with_fp8_cache()] {
                assert_eq!(precision.to_string().parse::<Precision>().expect("a precision"), precision);
            }
            assert_eq!(precision.cache_dtype_of(precision.dtype()), precision.dtype());
            assert_eq!(precision.with_fp8_cache().cache_dtype_of(precision.dtype()), DType::F8E4M3);
            assert_eq!(precision.with_fp8_cache().bytes(64), precision.bytes(64));
        }
        assert_eq!("bf16_kv8".parse::<Precision>().expect("a precision"), Precision::BF16.with_fp8_cache());
        for wrong in ["", "_kv8", "f32_kv8_kv8", "kv8", "f32_kv4"] {
            let error = wrong.parse::<Precision>().expect_err(wrong).to_string();
            assert!(error.starts_with("unknown dtype") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    #[cfg(feature = "cuda")]
    #[ignore = "needs a GPU"]
    fn a_device_is_opened_once() {
        let open = || DeviceChoice::Cuda(0).open().expect("a GPU");
        assert!(open().same_device(&open()));
    }
}
