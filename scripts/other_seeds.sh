#!/bin/sh
# Runs the golden tests on fixtures of other seeds, three by default. Needs the packages of scripts/requirements-fixtures.txt,
# -psann.txt and -gguf.txt in the Python of PYTHON.
#
#   scripts/other_seeds.sh [SEED...]
#
# The fixtures are made in a temporary folder, or below KEEP, where they stay.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if [ -n "${KEEP:-}" ]; then
    work=$KEEP
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
[ $# -gt 0 ] || set -- 1000 2000 3000
failed=
for seed in "$@"; do
    folder=$work/$seed
    echo "seed $seed: $folder" >&2
    "$python" scripts/make_fixtures.py --seed "$seed" --out "$folder/generation" >&2
    "$python" scripts/make_moe_fixtures.py --seed "$seed" --out "$folder/moe" >&2
    "$python" scripts/make_temporal_fixtures.py --seed "$seed" --out "$folder/temporal" >&2
    "$python" scripts/make_psann_fixtures.py --seed "$seed" --out "$folder/psann" >&2
    "$python" scripts/make_gguf_fixtures.py --fixtures "$folder" --out "$folder/gguf" >&2
    "$python" scripts/make_bf16_errors.py "$folder"
    CANDLEPOWER_FIXTURES=$folder "${CARGO:-cargo}" test --lib --test suite -- \
        golden files_of_the_reference_writer every_transform || failed="$failed $seed"
done
if [ -n "$failed" ]; then
    echo "error: the golden tests failed with seed$failed" >&2
    exit 1
fi
echo "The golden tests passed with seeds $*."
