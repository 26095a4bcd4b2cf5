#!/usr/bin/env bash
# Ranks engine tuned and transformers in bf16 on a shape of 1 to 3 billion weights of each family, with seeded weights. Families
# without a published model of this size have the layers of a larger one, and fewer of them. Needs the packages of
# scripts/requirements-fixtures.txt in the Python of the path, and an idle machine for a quarter of an hour.
#
#   scripts/family_speeds.sh [BUDGET]      time of the generations of one family; default: 60s
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
models="synthetic:llama-3.2-1b synthetic:qwen2.5-1.5b synthetic:qwen3-1.7b synthetic:granite-3.3-2b synthetic:olmo2-1b"
models+=" synthetic:gemma2-2b synthetic:gemma3-1b synthetic:helium-1-2b"
for shape in mistral-7b-v0.3:6 ministral-8b:6 ministral-3-3b:13 smollm3-3b:18 phi-4-mini:12 glm-4-9b-0414:4 gpt-oss-20b:2 \
  qwen1.5-moe-a2.7b:4; do
  name=${shape%:*} layers=${shape#*:}
  python3 -c 'import json, sys
config, layers = json.load(open(sys.argv[1])), int(sys.argv[2])
config["num_hidden_layers"] = layers
if config.get("layer_types"): config["layer_types"] = config["layer_types"][:layers]
json.dump(config, open(sys.argv[3], "w"))' "src/core/model/shapes/$name.json" "$layers" "$folder/$name-$layers-layers.json"
  models+=" synthetic:$folder/$name-$layers-layers.json"
done
cargo build --release --quiet --bin candlepower
for model in $models; do
  "${CARGO_TARGET_DIR:-target}/release/candlepower" standings --models "$model" --dtype bf16 --engine tuned,peer:transformers --budget "${1:-60s}"
done
