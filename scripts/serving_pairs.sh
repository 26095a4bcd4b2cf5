#!/usr/bin/env bash
# Tests whether duels of `serving_load` find a planted slowdown of the time between tokens, and nothing where there is
# nothing. Builds this checkout as it is, and with steps of the scheduler that take longer (scripts/planted_step.patch). Then
# duels of the program with itself and with the slower one take turns, so that both kinds meet the same machine.
#
#   scripts/serving_pairs.sh [duels] [planted] [filter] [seconds]
#
# By default, ten duels of each kind, a planted 0.05 (5 %), '^serving_load_tpot/llama-mini/', and at most 60 s for a duel.
# Exits with code 1 if more than one in ten duels of the program with itself raises an alarm, or fewer than nine in ten find the
# planted change.
set -euo pipefail
cd "$(dirname "$0")/.."

duels=${1:-10}
planted=${2:-0.05}
filter=${3:-^serving_load_tpot/llama-mini/}
seconds=${4:-60}
target=${CARGO_TARGET_DIR:-target}
pairs=$(mkdir -p "$target/serving-pairs" && cd "$target/serving-pairs" && pwd)
export CANDLEPOWER_OUT=${CANDLEPOWER_OUT:-$pairs/records}

cargo build --release --quiet --bin candlepower --example duel_pairs
# A later build may replace the programs while the duels run.
cp "$target/release/candlepower" "$pairs/original"
cp "$target/release/examples/duel_pairs" "$pairs/duel_pairs"
# The slow program is built from a copy, in a folder of its own: Cargo would take it for the original otherwise.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
git -C "$copy" apply "$PWD/scripts/planted_step.patch"
PLANTED_SLOWDOWN=$planted cargo build --release --quiet --bin candlepower \
  --manifest-path "$copy/Cargo.toml" --target-dir "$pairs/build"
cp "$pairs/build/release/candlepower" "$pairs/slower"

alarms=0
found=0
for ((duel = 1; duel <= duels; duel++)); do
  same=$("$pairs/duel_pairs" "$pairs/original" "$pairs/original" 1 "$filter" "$seconds")
  echo "itself   $duel: $same"
  if grep -qE '^(slower|faster) ' <<<"$same"; then alarms=$((alarms + 1)); fi
  slower=$("$pairs/duel_pairs" "$pairs/original" "$pairs/slower" 1 "$filter" "$seconds")
  echo "planted  $duel: $slower"
  if grep -q '^slower ' <<<"$slower"; then found=$((found + 1)); fi
done
echo "the same program: $alarms alarms in $duels duels; a planted $planted: found in $found of $duels"
((10 * alarms <= duels && 10 * found >= 9 * duels))
