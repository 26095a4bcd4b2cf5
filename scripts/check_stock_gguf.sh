#!/usr/bin/env bash
# Checks that engine stock generates the tokens of candle-transformers alone (examples/candle_gguf.rs) for each GGUF file, by default
# those of target/real-models, at the same speed: runs both in turns, the first of a round changing, and prints the median of the ratios of
# their decode rates with its quartiles. Builds both programs in release. Leave the machine idle.
#
#   scripts/check_stock_gguf.sh [FILE.gguf ...]
set -euo pipefail
cd "$(dirname "$0")/.."
ids=$(seq -s, 100 163)
count=${TOKENS:-64}
rounds=${ROUNDS:-10}
files=("$@")
if [ $# -eq 0 ]; then files=(target/real-models/*.gguf); fi
cargo build --quiet --release --bin candlepower --example candle_gguf
built=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

alone() {
  "$built/examples/candle_gguf" "$1" "$count" "$ids" 2>"$work/text" | tr -d ' ' >"$work/alone.tokens"
  grep -oE '[0-9.]+ tok/s' "$work/text" | cut -d' ' -f1 >"$work/alone.rate"
}
stock() {
  "$built/candlepower" run --model "path:$1" --engine stock --prompt-ids "$ids" --max-new-tokens "$count" --warmup 0 --trials 1 --json \
    >"$work/text"
  grep -o '"tokens":\[[0-9,]*\]' "$work/text" | cut -d: -f2 >"$work/stock.tokens"
  grep -o '"decode_tokens_per_s":[0-9.]*' "$work/text" | head -1 | cut -d: -f2 >"$work/stock.rate"
}
for file in "${files[@]}"; do
  : >"$work/rates"
  for ((round = 0; round < rounds; round++)); do
    if ((round % 2)); then alone "$file" && stock "$file"; else stock "$file" && alone "$file"; fi
    if ! cmp -s "$work/alone.tokens" "$work/stock.tokens"; then
      printf 'error: %s: candle-transformers alone generates\n%s\nand engine stock\n%s\n' "$file" "$(<"$work/alone.tokens")" "$(<"$work/stock.tokens")" >&2
      exit 1
    fi
    paste -d' ' "$work/stock.rate" "$work/alone.rate" >>"$work/rates"
  done
  awk '{ print $1 / $2 }' "$work/rates" | sort -n >"$work/ratios"
  at() { awk -v share="$1" '{ v[NR] = $1 } END { x = 1 + share * (NR - 1); i = int(x); f = x - i; printf "%.3f", f ? v[i] * (1 - f) + v[i + 1] * f : v[i] }' "$work/ratios"; }
  mean=$(awk '{ a += $1; b += $2 } END { printf "%.1f and %.1f tok/s", a / NR, b / NR }' "$work/rates")
  echo "$(basename "$file"): the same $count tokens $rounds times; stock over candle-transformers alone $(at 0.5) ($(at 0.25) to $(at 0.75)): $mean"
done
