#!/usr/bin/env bash
# Tests whether duels find a planted slowdown, and nothing where there is nothing. Builds this checkout with
# scripts/planted_step.patch, by which steps of the generation and of the scheduler take longer if the program is named `slower`.
# Both sides are copies of one build, so that they differ in nothing else. Then duels of the program with itself and with the slower
# one take turns, so that both kinds meet the same machine.
#
#   scripts/duel_pairs.sh [duels] [planted] [filter] [seconds] [resolve]
#
# By default, ten duels of each kind, a planted 0.05 (5 %), '^serving_load_tpot/llama-mini/', at most 60 s for a duel, which stops
# when its interval reaches 0.02 (2 %) to either side. scripts/disturb.sh runs it beside a disturber. Exits with code 1 if more than one
# in ten duels of the program with itself raises an alarm, or fewer than nine in ten find the planted change.
set -euo pipefail
cd "$(dirname "$0")/.."

duels=${1:-10}
planted=${2:-0.05}
filter=${3:-^serving_load_tpot/llama-mini/}
seconds=${4:-60}
resolve=${5:-0.02}
target=${CARGO_TARGET_DIR:-target}
pairs=$(mkdir -p "$target/duel-pairs" && cd "$target/duel-pairs" && pwd)
export CANDLEPOWER_OUT=${CANDLEPOWER_OUT:-$pairs/records}

# The programs are built from a copy, so that this checkout stays as it is.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
git -C "$copy" apply "$PWD/scripts/planted_step.patch"
cargo build --release --quiet --bin candlepower --example duel_pairs --manifest-path "$copy/Cargo.toml" --target-dir "$pairs/build"
for side in original slower; do
  cp "$pairs/build/release/candlepower" "$pairs/$side"
done
# A later build may replace the program while the duels run.
cp "$pairs/build/release/examples/duel_pairs" "$pairs/duel_pairs"

duel() { PLANTED_SLOWDOWN=$planted "$pairs/duel_pairs" "$pairs/original" "$1" 1 "$filter" "$seconds" "$resolve"; }
alarms=0
found=0
for ((number = 1; number <= duels; number++)); do
  same=$(duel "$pairs/original")
  echo "itself   $number: $same"
  if grep -qE '^(slower|faster) ' <<<"$same"; then alarms=$((alarms + 1)); fi
  slower=$(duel "$pairs/slower")
  echo "planted  $number: $slower"
  if grep -q '^slower ' <<<"$slower"; then found=$((found + 1)); fi
done
echo "the same program: $alarms alarms in $duels duels; a planted $planted: found in $found of $duels"
((10 * alarms <= duels && 10 * found >= 9 * duels))
