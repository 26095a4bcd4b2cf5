//! Who is measured: the trait that a model implements, and the ways to get one. `spec` says which model is meant,
//! `config` reads its `config.json`, `weights` finds or makes its tensors, `stock` wraps candle-transformers' models.
//! Nothing here reads a clock.

mod causal_lm;
mod spec;

pub use causal_lm::{CacheBytes, CausalLm, Footprint};
pub use spec::{MINI, ModelSpec, SYNTHETIC};

use std::{fmt, str::FromStr};

use anyhow::{Result, bail};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

/// A model that is ready to run, with what records say of it.
pub struct Subject {
    /// Short name, second part of benchmark ids.
    pub name: String,
    pub engine: String,
    pub dtype: DType,
    pub device: DeviceChoice,
    /// The full specification, with the commit that a Hub revision resolved to.
    pub source: String,
    pub synthetic_weights: bool,
    pub tokenizer: Option<Tokenizer>,
    /// Ids that end a sequence, where those are obeyed.
    pub eos_token_ids: Vec<u32>,
    pub model: Box<dyn CausalLm>,
}

/// Which implementation runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// candle-transformers as published.
    Stock,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "stock",
        })
    }
}

/// A device to run on, before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Metal,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When it was not compiled in, or is not there.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => {
                bail!("device {self} is not compiled in: build with --features cuda")
            }
            Self::Metal if !candle_core::utils::metal_is_available() => {
                bail!("device {self} is not compiled in: build with --features metal")
            }
            Self::Cuda(ordinal) => Device::new_cuda(ordinal)
                .map_err(|e| anyhow::anyhow!("device {self} could not be opened: {}", one_line(&e))),
            Self::Metal => {
                Device::new_metal(0).map_err(|e| anyhow::anyhow!("device {self} could not be opened: {}", one_line(&e)))
            }
        }
    }

    /// The precision that models run in on this device unless told otherwise: bf16 where the hardware has it, f32 on
    /// a processor.
    pub fn default_dtype(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Cuda(_) | Self::Metal => DType::BF16,
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
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda").map(|n| n.trim_start_matches(':').parse()) {
                Some(Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
                _ => bail!("unknown device '{text}': the devices are cpu, cuda:N and metal"),
            },
        }
    }
}

/// Candle appends a backtrace to its messages when `RUST_BACKTRACE` is set; people get the first line.
pub(crate) fn one_line(error: &dyn fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim().to_owned()
}
