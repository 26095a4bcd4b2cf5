//! Error messages in one line each, with the meaning of driver errors and the nearest valid name; and panics as errors.

use std::{
    any::Any,
    cell::RefCell,
    fmt,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
};

use anyhow::{Result, anyhow};

use crate::text;

/// Driver errors, their meaning and what to do.
#[rustfmt::skip]
const DRIVER_ERRORS: [(&str, &str); 13] = [
    ("CUDA_ERROR_OUT_OF_MEMORY",              "the device's memory is exhausted: use a smaller model or batch, or a 16-bit dtype"),
    ("CUDA_ERROR_NO_DEVICE",                  "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    ("CUDA_ERROR_INVALID_DEVICE",             "there is no GPU with this number: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    ("CUDA_ERROR_STUB_LIBRARY",               "the driver is missing and only the stub of its library was found: install NVIDIA's driver"),
    ("CUDA_ERROR_NO_BINARY_FOR_GPU",          "the kernels were not compiled for this GPU: set CUDA_COMPUTE_CAP and build again"),
    ("CUDA_ERROR_INVALID_PTX",                "the kernels were not compiled for this GPU: set CUDA_COMPUTE_CAP and build again"),
    ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION",    "the driver is older than the CUDA that compiled the kernels: update it, or build with an older CUDA"),
    ("CUDA_ERROR_SYSTEM_NOT_READY",           "the system is not ready for GPUs: if they are linked by NVSwitch, start nvidia-fabricmanager"),
    ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",     "the driver and its library are of different versions: restart the machine"),
    ("CUDA_ERROR_ILLEGAL_ADDRESS",            "a kernel read or wrote outside its memory, and this process has lost the device: rerun the remaining benchmarks"),
    ("CUDA_ERROR_ASSERT",                     "a kernel refused its input, and this process has lost the device: rerun the remaining benchmarks"),
    ("CUDA_ERROR_LAUNCH_FAILED",              "a kernel failed, and this process has lost the device: rerun the remaining benchmarks"),
    ("CUBLAS_STATUS_NOT_INITIALIZED",         "cuBLAS does not start: its driver may be too old, or the device's memory exhausted"),
];

/// Number of items that [`listed`] names; it only counts the others.
const NAMED: usize = 3;

/// Most characters of an error. Names in it may come from files of others.
const MAX_CHARS: usize = 2000;

/// Returns the first line of an error without control characters. A driver error is replaced by its meaning. A longer error loses its
/// middle, because it begins with the place and ends with what to do.
pub fn one_line(error: &dyn fmt::Display) -> String {
    let line = text::line(&explained(error.to_string().lines().next().unwrap_or_default().trim()));
    let count = line.chars().count();
    if count <= MAX_CHARS {
        return line;
    }
    let at = |char: usize| line.char_indices().nth(char).map_or(line.len(), |(at, _)| at);
    format!("{} … {}", &line[..at(MAX_CHARS / 2)], &line[at(count - MAX_CHARS / 2)..])
}

/// Some names, and the number of the others.
pub(crate) fn listed(items: &[String]) -> String {
    let named = items[..items.len().min(NAMED)].join(", ");
    match items.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Removes the backtrace that Candle appends if `RUST_BACKTRACE` is set, and replaces a driver error by its meaning
/// and what to do.
pub fn explained(text: &str) -> String {
    let text = text.split_once("\n   0: ").map_or(text, |(before, _)| before);
    // As in `DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")` and
    // `CublasError(CUBLAS_STATUS_NOT_INITIALIZED)`.
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

thread_local! {
    /// Where the last panic of this thread happened.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the location of a panic for [`caught`]. A panic hook calls it.
pub fn keep_location(panic: &PanicHookInfo) {
    LOCATION.with_borrow_mut(|location| *location = panic.location().map(ToString::to_string));
}

/// Runs `body` and turns a panic into an error that names the panic's location.
///
/// # Errors
/// When `body` returns an error, or panics.
pub fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        Err(match payload.downcast::<Aborted>() {
            Ok(aborted) => aborted.0,
            Err(payload) => {
                let message = message(payload.as_ref());
                match LOCATION.take() {
                    // A stream that is closed is not the fault of the code at the location.
                    Some(location) if !message.starts_with("failed printing to") => {
                        anyhow!("{message} (a panic at {location}; RUST_BACKTRACE=1 shows the backtrace)")
                    }
                    _ => anyhow!("{message}"),
                }
            }
        })
    })
}

/// An error that leaves a benchmark's closure. Criterion offers no other way out.
struct Aborted(anyhow::Error);

/// Gives up on the benchmark that is running: the innermost [`caught`] returns the error.
pub fn abort(error: anyhow::Error) -> ! {
    panic::resume_unwind(Box::new(Aborted(error)))
}

fn message(panicked: &(dyn Any + Send)) -> String {
    let text = panicked
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panicked.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked without a message");
    one_line(&text)
}

/// Returns the nearest valid name, if one is close.
pub fn nearest<'a>(given: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_driver_says_what_to_do() {
        for (error, told) in [
            (
                "layer 3: DriverError(CUDA_ERROR_STUB_LIBRARY, \"<Failure when calling cuGetErrorString()>\") in f\n  0: backtrace",
                "layer 3: the driver is missing and only the stub of its library was found: install NVIDIA's driver (CUDA_ERROR_STUB_LIBRARY) in f",
            ),
            (
                "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)",
                "cuBLAS does not start: its driver may be too old, or the device's memory exhausted (CUBLAS_STATUS_NOT_INITIALIZED)",
            ),
            ("DriverError(CUDA_ERROR_UNKNOWN, \"unknown\")", "DriverError(CUDA_ERROR_UNKNOWN, \"unknown\")"),
        ] {
            assert_eq!(one_line(&error), told);
            assert_eq!(one_line(&told), told);
        }
        let long = format!("here: {}: use another", "é".repeat(1 << 20));
        let line = one_line(&long);
        assert!(line.starts_with("here: é") && line.contains("é … é") && line.ends_with("é: use another"), "{line}");
        assert_eq!(line.chars().count(), MAX_CHARS + 3);
        assert_eq!(explained("two things:\n  one\n  other\n   0: frame\n   1: frame"), "two things:\n  one\n  other");
    }
}
