//! Passes facts of the build to the crate, for its records: the versions in Cargo.lock, the compiler and the profile.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let lock = lock_file();
    let text = lock.as_deref().and_then(|lock| fs::read_to_string(lock).ok()).unwrap_or_default();
    export("CANDLE", &version(&text, "candle-core"));
    export("CANDLE_CRATES", &candle_crates(&text).join(";"));
    export("CRITERION", &version(&text, "criterion"));
    export("RUSTC", &rustc());
    export("PROFILE", &env::var("PROFILE").unwrap_or_else(|_| "unknown".into()));
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(lock) = lock {
        println!("cargo:rerun-if-changed={}", lock.display());
    }
}

fn export(key: &str, value: &str) {
    println!("cargo:rustc-env=BUILT_WITH_{key}={value}");
}

/// The Cargo.lock of the build. The first one above the output folder belongs to the workspace, also where this crate is a
/// dependency. If this crate lies in the target folder, as the worktrees of a duel do, or the target folder is outside the
/// workspace, the one of this crate's workspace, two folders above this file, is used, unless it came with a package: Cargo
/// ignores that one when it builds a dependency.
fn lock_file() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let workspace = own.ancestors().nth(2)?;
    let lock = |folder: &Path| Some(folder.join("Cargo.lock")).filter(|lock| lock.is_file());
    // Cargo writes this marker into packages that it unpacked or cloned.
    let own_lock = lock(workspace).filter(|_| !workspace.join(".cargo-ok").exists());
    let above = |folder: &Path| lock(folder).or_else(|| own_lock.clone().filter(|_| own.starts_with(folder)));
    out.ancestors().find_map(above).or_else(|| own_lock.clone())
}

/// `name=version` of each Candle crate. A checkout may replace one of them and leave the others.
fn candle_crates(lock: &str) -> Vec<String> {
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let candle = names.filter(|name| name.starts_with("candle-"));
    candle.map(|name| format!("{name}={}", version(lock, name))).collect()
}

/// The version of a package. The source is added if it is not a registry, because the version of a checkout does not
/// identify the code.
fn version(lock: &str, package: &str) -> String {
    let name = format!("name = \"{package}\"");
    let Some(entry) = lock.split("[[package]]").find(|entry| entry.lines().any(|line| line == name)) else {
        return "unknown".into();
    };
    let value = |key: &str| {
        entry
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
            .map(str::to_owned)
    };
    let version = value("version").unwrap_or_else(|| "unknown".into());
    match value("source") {
        Some(source) if source.starts_with("registry+") => version,
        Some(source) => format!("{version} ({source})"),
        None => format!("{version} (path)"),
    }
}

fn rustc() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().ok();
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if text.trim().is_empty() { "unknown".into() } else { text.trim().to_owned() }
}
