#!/bin/sh
# Compares a mixture of experts with its dense twins in one run: prefill of 512 tokens and decode of 16 experts,
# top-2, beside a dense decoder of equal active parameters and one of equal total parameters. Prints the tables of
# each run.
#
#     scripts/moe_ratios.sh [runs]
set -eu
runs=${1:-5}
run=1
while [ "$run" -le "$runs" ]; do
    echo "run $run of $runs"
    cargo bench --quiet --bench moe -- '/(moe-16x2|dense-2|dense-16)/' 2>/dev/null |
        grep -E '^(Mixtures|moe-|dense-)'
    run=$((run + 1))
done
