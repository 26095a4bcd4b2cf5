#!/usr/bin/env bash
# Shows which planted slowdowns `--baseline NAME` finds on this machine: scripts/planted_baseline.sh [times] [filter]
#
# Each line is an engine and a share by which every forward pass takes longer, over so many runs (default: 10 of '^short/'). Each time, the
# program is saved as a baseline, and the slower one is measured against it. Share 0 shows false alarms. Takes about a minute for each
# time. Leave the machine idle.
set -euo pipefail
cd "$(dirname "$0")/.."
times=${1:-10}
filter=${2:-^short/}
cargo build --release --quiet --example planted_slowdown
program=$PWD/${CARGO_TARGET_DIR:-target}/release/examples/planted_slowdown
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CANDLEPOWER_MODELS=${CANDLEPOWER_MODELS:-llama-mini}
export CANDLEPOWER_OUT=$work/out CRITERION_HOME=$work/criterion
for case in ${CASES:-tuned:0.10 tuned:0.05 stock:0.05 tuned:0 stock:0}; do
  IFS=: read -r engine share <<<"$case"
  export CANDLEPOWER_ENGINE=$engine
  verdicts=()
  started=$SECONDS
  for ((time = 1; time <= times; time++)); do
    rm -rf "$work"/*
    "$program" --bench "$filter" --save-baseline before >/dev/null 2>&1
    # The kept program is not slowed down, whatever the environment says.
    printf '#!/bin/sh\nPLANTED_SLOWDOWN=0 exec "%s" "$@"\n' "$program" >"$work/criterion/candlepower-programs/before/planted_slowdown"
    PLANTED_SLOWDOWN=$share "$program" --bench "$filter" --baseline before >"$work/text" 2>&1
    verdicts+=("$(awk -F'|' '/^\| [a-z_]+\// { gsub(/^ +| +$/, "", $7); print $7 }' "$work/text" | sort | uniq | paste -sd, -)")
  done
  echo "$engine, planted $share: $((SECONDS - started)) s for $times"
  printf '%s\n' "${verdicts[@]}" | sort | uniq -c
done
