#!/bin/sh
# Compares a mixture of experts with its dense twins in one run: prefill of 512 tokens and decode of 16 experts,
# top-2, beside a dense decoder of equal active parameters and one of equal total parameters. Prints the tables of
# each run.
#
#     scripts/moe_ratios.sh [runs] [seconds]
#
# The samples of a benchmark fill 20 s by default. CANDLEPOWER_PAIRING=false measures one benchmark after the other.
# CANDLEPOWER_HIDDEN_SIZE=1024 measures wider decoders, of which caches of 32 MB hold nothing from one step to the next.
set -eu
runs=${1:-5}
seconds=${2:-20}
run=1
while [ "$run" -le "$runs" ]; do
    echo "run $run of $runs"
    cargo bench --quiet --bench moe -- '/(moe-16x2|dense-2|dense-16)(-h[0-9]+)?/' --measurement-time "$seconds" 2>/dev/null |
        grep -E '^(Mixtures|moe-|dense-)'
    run=$((run + 1))
done
