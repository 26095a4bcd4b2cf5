//! Where models run, and what is said when that fails.

use std::{collections::HashMap, fmt, str::FromStr, sync::Mutex};

use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device};

/// A device to run on, before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Metal,
}

impl DeviceChoice {
    /// Opens the device, once in a process: to Candle a device that is opened again is another one, with kernels of its own
    /// to load.
    ///
    /// # Errors
    /// When it was not compiled in, or is not there.
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

/// What the driver of a GPU calls an error, and what to do about it.
#[rustfmt::skip]
const DRIVER_ERRORS: [(&str, &str); 13] = [
    ("CUDA_ERROR_OUT_OF_MEMORY",              "the device's memory is exhausted: take a smaller model or batch, or a 16-bit dtype"),
    ("CUDA_ERROR_NO_DEVICE",                  "no GPU is to be seen: look at nvidia-smi and CUDA_VISIBLE_DEVICES"),
    ("CUDA_ERROR_INVALID_DEVICE",             "there is no GPU of this number: look at nvidia-smi and CUDA_VISIBLE_DEVICES"),
    ("CUDA_ERROR_STUB_LIBRARY",               "there is no driver, only the stand-in for its library: install NVIDIA's driver"),
    ("CUDA_ERROR_NO_BINARY_FOR_GPU",          "the kernels were not compiled for this GPU: set CUDA_COMPUTE_CAP and build again"),
    ("CUDA_ERROR_INVALID_PTX",                "the kernels were not compiled for this GPU: set CUDA_COMPUTE_CAP and build again"),
    ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION",    "the driver is older than the CUDA that compiled the kernels: update it, or build with an older CUDA"),
    ("CUDA_ERROR_SYSTEM_NOT_READY",           "the system is not ready for GPUs: where they are linked by NVSwitch, nvidia-fabricmanager has to run"),
    ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",     "the driver and its library are of different versions: restart the machine"),
    ("CUDA_ERROR_ILLEGAL_ADDRESS",            "a kernel read or wrote outside its memory, and the device is lost to this process: run what is left anew"),
    ("CUDA_ERROR_ASSERT",                     "a kernel refused its input, and the device is lost to this process: run what is left anew"),
    ("CUDA_ERROR_LAUNCH_FAILED",              "a kernel failed, and the device is lost to this process: run what is left anew"),
    ("CUBLAS_STATUS_NOT_INITIALIZED",         "cuBLAS does not start: the driver may be too old for it, or the device's memory exhausted"),
];

/// The first line of an error, [`explained`].
pub(crate) fn one_line(error: &dyn fmt::Display) -> String {
    explained(error.to_string().lines().next().unwrap_or_default().trim())
}

/// Without the backtrace that Candle appends where `RUST_BACKTRACE` is set, and with what an error of a driver means and what
/// to do about it, if there is one in the text.
pub(crate) fn explained(text: &str) -> String {
    let text = text.split_once("\n   0: ").map_or(text, |(before, _)| before);
    // As in `DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")` and `CublasError(CUBLAS_STATUS_NOT_INITIALIZED)`.
    for (name, advice) in DRIVER_ERRORS {
        let Some(open) = [',', ')'].iter().find_map(|after| text.find(&format!("Error({name}{after}"))) else {
            continue;
        };
        let start = text[..open].rfind(' ').map_or(0, |space| space + 1);
        let end = text[open..].find("\")").map(|at| open + at + 2).or_else(|| Some(open + text[open..].find(')')? + 1));
        return format!("{}{advice} ({name}){}", &text[..start], &text[end.unwrap_or(text.len())..]);
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_driver_says_what_to_do() {
        for (error, told) in [
            (
                "layer 3: DriverError(CUDA_ERROR_STUB_LIBRARY, \"<Failure when calling cuGetErrorString()>\") in f\n  0: backtrace",
                "layer 3: there is no driver, only the stand-in for its library: install NVIDIA's driver (CUDA_ERROR_STUB_LIBRARY) in f",
            ),
            (
                "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)",
                "cuBLAS does not start: the driver may be too old for it, or the device's memory exhausted (CUBLAS_STATUS_NOT_INITIALIZED)",
            ),
            ("DriverError(CUDA_ERROR_UNKNOWN, \"unknown\")", "DriverError(CUDA_ERROR_UNKNOWN, \"unknown\")"),
        ] {
            assert_eq!(one_line(&error), told);
            assert_eq!(one_line(&told), told);
        }
        assert_eq!(explained("two things:\n  one\n  other\n   0: frame\n   1: frame"), "two things:\n  one\n  other");
    }

    #[test]
    #[cfg(feature = "cuda")]
    #[ignore = "needs a GPU"]
    fn a_device_is_opened_once() {
        let open = || DeviceChoice::Cuda(0).open().expect("a GPU");
        assert!(open().same_device(&open()));
    }
}
