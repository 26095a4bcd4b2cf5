#!/usr/bin/env bash
# Runs the jobs of a plan one after the other: validation of the kernels, throughput and memory of trainings, and a training on
# a corpus. A report of the measurements follows. A job that fails does not stop the later ones; the exit code is then 1.
#
#   scripts/next_gpu_batch.sh
#   DEVICE=cpu FEATURES= BENCH_OPTIONS='--bases respsann --seq 128 --batch 2' scripts/next_gpu_batch.sh
#
# OUT_DIR        folder of logs, the training and the report [target/next_gpu_batch/<UTC time>]
# BENCH_OUT      folder of the records [OUT_DIR/records]
# TINY_CONFIG    YAML file of the training on a corpus [the built-in training on Moby-Dick]
# DEVICE         [cuda:0]
# FEATURES       cargo features [cuda]
# BENCH_OPTIONS  flags of `candlepower bench`, such as sizes of the grids
set -uo pipefail
cd "$(dirname "$0")/.."

OUT_DIR=${OUT_DIR:-target/next_gpu_batch/$(date -u +%Y%m%dT%H%M%SZ)}
BENCH_OUT=${BENCH_OUT:-$OUT_DIR/records}
DEVICE=${DEVICE:-cuda:0}
FEATURES=${FEATURES-cuda}
export CANDLEPOWER_DEVICE=$DEVICE CANDLEPOWER_OUT=$BENCH_OUT CANDLEPOWER_RUN=batch
mkdir -p "$OUT_DIR" "$BENCH_OUT"
with=(${FEATURES:+--features "$FEATURES"})
candlepower() { cargo run --quiet --release "${with[@]}" --bin candlepower -- "$@"; }
read -ra bench_options <<<"${BENCH_OPTIONS:-}"
bench() { candlepower bench "${bench_options[@]}" ${FEATURES:+--features "$FEATURES"} "$1"; }

failed=0
job() {
    local name=$1
    shift
    echo "$name: $OUT_DIR/$name.log"
    if ! "$@" >"$OUT_DIR/$name.log" 2>&1; then
        failed=1
        echo "$name failed: $(tail -n 1 "$OUT_DIR/$name.log")" >&2
    fi
}
job validation cargo test --quiet --release "${with[@]}" --lib golden
job throughput bench '^psann_throughput'
job memory bench '^checkpoint_memory'
job corpus candlepower train ${TINY_CONFIG:+--config "$TINY_CONFIG"} --set "device=$DEVICE" --out "$OUT_DIR/tiny_corpus"
trained=()
[ -f "$OUT_DIR/tiny_corpus/metrics.json" ] && trained=("$OUT_DIR/tiny_corpus")
job report candlepower report "$BENCH_OUT/batch" "${trained[@]}" --to "$OUT_DIR/report" --even-if-disturbed
exit $failed
