#!/usr/bin/env bash
# Shows which planted slowdowns `--baseline NAME` finds on this machine: scripts/planted_baseline.sh [times]
#
# Builds this checkout with scripts/planted_step.patch, by which forward passes and training steps take longer if the path of the program
# contains `slower`. Each line of the result is a bench target, a filter, a share by which a step takes longer, and the part of a generation
# to which that is limited, over so many times (default: 10). Each time, the program is saved as a baseline, and its copy is measured against
# it. Share 0 shows false alarms. CASES replaces the cases below. Takes about a minute for each time. Leave the machine idle.
set -euo pipefail
cd "$(dirname "$0")/.."
times=${1:-10}
target=${CARGO_TARGET_DIR:-target}
target=$(mkdir -p "$target" && cd "$target" && pwd)
cases=${CASES:-"generation ^short/llama-mini/tuned 0.10
generation ^short/llama-mini/tuned 0.05 prompt
generation ^short/llama-mini/stock 0.05
training ^training_sweep_train/respsann-d128-l2-s128-b8/tuned-f32 0.05
generation ^short/llama-mini/tuned 0
generation ^short/llama-mini/stock 0
training ^training_sweep_train/respsann-d128-l2-s128-b8/tuned-f32 0"}

# The programs are built from a copy, so that this checkout stays as it is.
copy=$target/planted
rm -rf "$copy"
mkdir "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$copy"
# The copy is no part of this repository.
GIT_CEILING_DIRECTORIES=$target git -C "$copy" apply "$PWD/scripts/planted_step.patch"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CANDLEPOWER_OUT=$work/out CRITERION_HOME=$work/criterion
mkdir "$work/before" "$work/slower"
cargo bench --no-run --manifest-path "$copy/Cargo.toml" --target-dir "$target/duel-pairs/build" --message-format json --bench generation \
  --bench training 2>/dev/null | grep -o '"executable":"[^"]*/deps/[a-z]*-[0-9a-f]*"' | cut -d'"' -f4 | while read -r program; do
  name=$(basename "${program%-*}")
  cp "$program" "$work/before/$name"
  # A file with other content, and the same program.
  { cat "$program"; echo; } >"$work/slower/$name"
  chmod +x "$work/slower/$name"
done
while read -r bench filter share part; do
  verdicts=()
  started=$SECONDS
  for ((time = 1; time <= times; time++)); do
    rm -rf "$CANDLEPOWER_OUT" "$CRITERION_HOME"
    "$work/before/$bench" --bench "$filter" --save-baseline before >/dev/null 2>&1
    PLANTED_SLOWDOWN=$share PLANTED_PART=$part "$work/slower/$bench" --bench "$filter" --baseline before >"$work/text" 2>&1 || true
    row=$(awk -F'|' '/^\| [a-z_]+\// { gsub(/^ +| +$/, "", $7); print $7 " " $5 "(" $6 ")" } /: TTFT / { sub(/.*: /, ""); print }' "$work/text")
    printf '%s: %s\n' "$time" "${row//$'\n'/; }" >&2
    # Without the numbers, equal verdicts are counted together.
    verdicts+=("$(sed -E 's/[-+ ]*[0-9.]+ %| to |[()]//g' <<<"$row" | paste -sd';' -)")
  done
  echo "$bench $filter, planted $share ${part:+in the $part}: $((SECONDS - started)) s for $times"
  printf '%s\n' "${verdicts[@]}" | sort | uniq -c
done <<<"$cases"
