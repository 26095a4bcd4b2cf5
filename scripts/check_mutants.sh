#!/usr/bin/env bash
# Prints changes of code that no unit test notices: scripts/check_mutants.sh [MODULE ...]
#
#   cargo install --locked cargo-mutants
#   scripts/check_mutants.sh load/sse
#
# Modules that need no other part of candlepower are copied into a crate of their own, which compiles in a second. A module takes
# minutes; the sequential test takes an hour, because many changes make it run into the time limit. Without MODULE, all of MODULES.
set -euo pipefail
cd "$(dirname "$0")/.."
# Its name in candlepower, and its file.
declare -A MODULES=(
  [statistics]=src/core/statistics.rs [generate/sampler]=src/core/generate/sampler.rs [report/statistics]=src/report/statistics.rs
  [duel/sequential]=src/duel/sequential.rs [load/sse]=src/load/sse.rs [load/histogram]=src/load/histogram.rs
)
crate=${CARGO_TARGET_DIR:-target}/mutants
mkdir -p "$crate"/src/{load,duel,report,generate}
for module in "${!MODULES[@]}"; do cp "${MODULES[$module]}" "$crate/src/$module.rs"; done
# What tests of these modules use of others.
cp src/load/{draw,statistics}.rs "$crate/src/load/"
{
  echo 'use std::fmt; use anyhow::{Result, ensure};'
  sed -n '/^pub struct Sampling/,/^const fn row/p' src/core/scenario/generation.rs | sed -e '1i #[derive(Clone, Copy, Debug, Default, PartialEq)]' -e '$d'
} >"$crate/src/scenario.rs"
cat >"$crate/src/lib.rs" <<'RUST'
#![allow(dead_code)]
mod duel { pub mod sequential; }
mod generate { pub mod sampler; }
mod load { pub mod draw; pub mod histogram; pub mod sse; pub mod statistics; }
mod report { pub mod statistics; }
mod scenario;
mod statistics;
RUST
cat >"$crate/Cargo.toml" <<'TOML'
[package]
name = "mutants"
version = "0.0.0"
edition = "2024"
[dependencies]
anyhow = "1"
hdrhistogram = { version = "7.6", default-features = false }
rand = { version = "0.10", default-features = false, features = ["chacha"] }
serde = { version = "1", features = ["derive"] }
serde_json = "1"
statrs = { version = "0.19", default-features = false }
[profile.dev]
opt-level = 1
debug = false
[workspace]
TOML
cp Cargo.lock "$crate/"
for module in "${@:-${!MODULES[@]}}"; do
  echo "$module:"
  # The tests of a module alone. Code 2 says that mutants were missed.
  cargo mutants --dir "$crate" --in-place --file "src/$module.rs" --output "$crate/of-${module//\//-}" --timeout 60 --colors never -- --lib "${module//\//::}" |
    grep -E '^(MISSED|TIMEOUT)|mutants tested' || true
done
