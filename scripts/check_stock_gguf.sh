#!/usr/bin/env bash
# Checks that engine stock generates the tokens of candle-transformers alone (examples/candle_gguf.rs) for each GGUF file, by default
# those of target/real-models, and prints the rates of both in turns. Builds both programs in release.
#
#   scripts/check_stock_gguf.sh [FILE.gguf ...]
set -euo pipefail
cd "$(dirname "$0")/.."
ids=$(seq -s, 100 163)
count=${TOKENS:-64}
rounds=${ROUNDS:-3}
files=("$@")
if [ $# -eq 0 ]; then files=(target/real-models/*.gguf); fi
profile=${PROFILE:-release}
cargo build --quiet --profile "$profile" --bin candlepower --example candle_gguf
built=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
for file in "${files[@]}"; do
    for _ in $(seq "$rounds"); do
        alone=$("$built/examples/candle_gguf" "$file" "$count" "$ids" 2>"$built/alone.txt" | tr -d ' ')
        record=$("$built/candlepower" run --model "path:$file" --engine stock --prompt-ids "$ids" \
            --max-new-tokens "$count" --warmup 0 --trials 1 --json)
        own=$(grep -o '"tokens":\[[0-9,]*\]' <<<"$record" | cut -d: -f2)
        if [ "$alone" != "$own" ]; then
            printf 'error: %s: candle-transformers alone generates\n%s\nand engine stock\n%s\n' "$file" "$alone" "$own" >&2
            exit 1
        fi
        rate=$(grep -o '"decode_tokens_per_s":[0-9.]*' <<<"$record" | head -1 | cut -d: -f2)
        echo "$file: the same $count tokens; alone: $(cat "$built/alone.txt"); stock: $rate tok/s"
    done
done
