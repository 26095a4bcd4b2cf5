#!/usr/bin/env bash
# Finds the smallest change that this machine can detect. Saves a baseline, compares the unchanged model with it
# several times, then the model slowed down by known shares, and prints Criterion's estimate and verdict of each.
#
#   scripts/resolution.sh [filter]      default: '^short/'; about 5 s per run
set -euo pipefail
cd "$(dirname "$0")/.."

filter=${1:-^short/}
export CANDLEPOWER_MODELS=${CANDLEPOWER_MODELS:-llama-mini}
export CRITERION_HOME=${CRITERION_HOME:-target/resolution}
export CANDLEPOWER_OUT=${CANDLEPOWER_OUT:-target/resolution-records}
# The machine is examined as it is.

cargo build --release --quiet --example planted_slowdown
target=${CARGO_TARGET_DIR:-target}
run() { PLANTED_SLOWDOWN=$1 "$target/release/examples/planted_slowdown" --bench "$filter" "${@:2}" 2>/dev/null; }

run 0 --save-baseline resolution >/dev/null
printf '%-9s  %-28s  %s\n' planted 'change of the mean' verdict
for planted in 0 0 0 0 0 0 0 0 0 0 0.03 0.03 0.05 0.05 0.05 0.07 0.07 0.07 0.10 0.10 0.10; do
  run "$planted" --baseline resolution | awk -v planted="$planted" '
    /change:/ { getline; sub(/^ *time: */, ""); change = $0 }
    /No change|within noise|regressed|improved/ { sub(/^ */, ""); verdict = $0 }
    END { printf "%-9s  %-28s  %s\n", planted * 100 " %", change, verdict }'
done
