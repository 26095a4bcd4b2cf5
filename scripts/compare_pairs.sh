#!/usr/bin/env bash
# Tests `candlepower compare` on this machine. Runs the same program repeatedly and compares each run with the one
# before, which should show no significant change. Then plants slowdowns and a rise in memory.
#
#   scripts/compare_pairs.sh [pairs] [filter]      default: 20 pairs of '^short/'; about 6 s per run
set -euo pipefail
cd "$(dirname "$0")/.."

pairs=${1:-20}
filter=${2:-^short/}
export CANDLEPOWER_MODELS=${CANDLEPOWER_MODELS:-llama-mini}
export CRITERION_HOME=${CRITERION_HOME:-target/pairs}
export CANDLEPOWER_OUT=${CANDLEPOWER_OUT:-target/pairs-records}

cargo build --release --quiet --example planted_slowdown --bin candlepower
target=${CARGO_TARGET_DIR:-target}
rm -rf "$CANDLEPOWER_OUT"
run() { CANDLEPOWER_RUN=$1 "$target/release/examples/planted_slowdown" --bench "$filter" >/dev/null 2>&1; }
changed() { "$target/release/candlepower" compare "$1" "$2" --format json | grep -oE '"verdict":"(slower|faster)"' || true; }

quiet=0
run pair-0
for ((pair = 1; pair <= pairs; pair++)); do
  run "pair-$pair"
  if [[ -z $(changed "pair-$((pair - 1))" "pair-$pair") ]]; then
    quiet=$((quiet + 1))
  else
    "$target/release/candlepower" compare "pair-$((pair - 1))" "pair-$pair" --format markdown --all |
      grep -E '^\| [a-z_-]+/.* (slower|faster) '
  fi
done
echo "the same program: no significant change in $quiet of $pairs pairs"

for planted in 0.03 0.05 0.07 0.10 0.10 0.10; do
  PLANTED_SLOWDOWN=$planted run "slow-$planted"
  echo "planted $planted:"
  "$target/release/candlepower" compare "pair-$pairs" "slow-$planted" --fail-above 2% --format markdown --all 2>&1 |
    grep -E '^\| [a-z_-]+/|^regression' || true
done
PLANTED_MEMORY=0.011 run memory
echo "planted 1.1 % of the weights, which is 1 % of the peak, in memory:"
"$target/release/candlepower" compare "pair-$pairs" memory --fail-memory-above 1% 2>&1 | grep -E '^regression|peak memory [+-]' || true
