//! Tests bytes as a Criterion measurement: equal samples, and samples that all grow a little. With `BYTES` set, this
//! program is the bench target; otherwise it runs the target.

// Without the test harness, lints do not know that this is a test.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use candlepower::bench;
use candlepower_core::measure::peak_bytes::apart;
use criterion::SamplingMode;

fn target(bytes: u64) {
    let mut criterion = bench::bytes();
    let mut group = criterion.benchmark_group("bytes");
    group.sampling_mode(SamplingMode::Flat);
    let mut samples = 0;
    group.bench_function("constant", |bencher| {
        bencher.iter_custom(|iterations| {
            std::thread::sleep(Duration::from_millis(2));
            samples += 1;
            apart(bytes, samples) * iterations
        });
    });
    group.finish();
    criterion.final_summary();
}

fn run(home: &Path, bytes: u64) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("--bench").env("BYTES", bytes.to_string()).env("CRITERION_HOME", home).env_remove("CARGO_TARGET_DIR");
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// Asserts that every plot of Criterion contains only finite numbers.
fn plots(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            count += plots(&path);
        } else if path.extension().is_some_and(|extension| extension == "svg") {
            let text = fs::read_to_string(&path).expect("text");
            assert!(text.contains("</svg>") && !text.contains("NaN") && !text.contains("inf"), "{}", path.display());
            count += 1;
        }
    }
    count
}

fn main() {
    if let Some(bytes) = std::env::var("BYTES").ok().and_then(|bytes| bytes.parse().ok()) {
        return target(bytes);
    }
    let home = tempfile::tempdir().expect("a folder");
    let first = run(home.path(), 400_000_000);
    assert!(first.contains("400.00 MB"), "{first}");
    let equal = run(home.path(), 400_000_000);
    assert!(equal.contains("No change in performance detected"), "{equal}");
    assert!(!equal.contains("regressed") && !equal.contains("improved"), "{equal}");
    let more = run(home.path(), 404_000_000);
    assert!(more.contains("Performance has regressed") && more.contains("1.0000%"), "{more}");
    let fewer = run(home.path(), 400_000_000);
    assert!(fewer.contains("Performance has improved"), "{fewer}");
    let noise = run(home.path(), 400_400_000);
    assert!(noise.contains("Change within noise threshold"), "{noise}");
    assert!(plots(home.path()) > 0, "nothing was plotted");
    println!("memory that is the same, a percent more, less, and a little more: as Criterion should say");
}
