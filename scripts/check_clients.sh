#!/usr/bin/env bash
# Runs the clients that people use, unmodified, against `candlepower serve` with a trained model, on loopback. Each file of
# scripts/clients is one client and names its packages, which come from PyPI and npm into target/clients. Prints a line for each
# with the versions and the outcome. Exits with code 1 if one fails.
#
#   scripts/check_clients.sh target/release/candlepower                       # all
#   scripts/check_clients.sh target/release/candlepower openai_python guidellm # some
#
# PYTHON names the interpreter (default: python3). Without node, the clients for it are reported as not run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
program=$(realpath "${1:?usage: scripts/check_clients.sh PROGRAM [CLIENT...]}")
shift
out=$here/../target/clients
mkdir -p "$out"
out=$(cd "$out" && pwd)

clients=()
for file in "$here"/clients/*; do
    name=$(basename "${file%.*}")
    if [ $# -eq 0 ] || [[ " $* " == *" $name "* ]]; then clients+=("$file"); fi
done
packages() { # file
    sed -n 's/.*packages: \([^"]*\).*/\1/p' "$1" | head -n 1
}

[ -x "$out/venv/bin/python" ] || "$python" -m venv "$out/venv"
"$out/venv/bin/pip" install --quiet --disable-pip-version-check transformers gguf torch \
    $(for file in "${clients[@]}"; do case $file in *.py) packages "$file" ;; esac; done)
node=$(command -v node || true)
if [ -n "$node" ]; then
    modules=$(for file in "${clients[@]}"; do case $file in *.mjs) packages "$file" ;; esac; done)
    # shellcheck disable=SC2086
    [ -z "$modules" ] || npm install --silent --no-audit --no-fund --prefix "$out/node" $modules
fi

MODEL=$(PYTHON="$out/venv/bin/python" "$here/real_models.sh" smollm2)
MODEL=$(realpath "$MODEL")
# Clients of which some count tokens need the tokenizer in a file of its own.
TOKENIZER=$out/tokenizer
[ -f "$TOKENIZER/tokenizer.json" ] || "$out/venv/bin/python" - "$MODEL" "$TOKENIZER" <<'PYTHON'
import pathlib, sys
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

file = pathlib.Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
# The file states this rule (`tokenizer.ggml.pre` is smollm), and transformers makes a tokenizer without it, which splits "½" otherwise.
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
tokenizer.save_pretrained(sys.argv[2])
PYTHON
KEY=a-key-of-this-run
PROGRAM=$program
work=$(mktemp -d "$out/run.XXXXXX")
echo "$KEY" >"$work/key"
"$program" serve --model "$MODEL" --engine tuned --port 0 --api-key-file "$work/key" >"$work/url" 2>"$work/serve.log" &
server=$!
# shellcheck disable=SC2064
trap "kill $server 2>/dev/null; wait $server 2>/dev/null; rm -rf '$work'" EXIT
until [ -s "$work/url" ]; do
    kill -0 $server 2>/dev/null || { cat "$work/serve.log" >&2; exit 1; }
    sleep 0.1
done
URL=$(head -n 1 "$work/url")/v1
export URL KEY MODEL TOKENIZER PROGRAM
# Nothing is fetched from model hubs, and no client reports its use.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 DO_NOT_TRACK=1 PYTHONWARNINGS=ignore

failed=0
for file in "${clients[@]}"; do
    names=$(packages "$file")
    case $file in
        *.py)
            run=("$out/venv/bin/python" "$file")
            # shellcheck disable=SC2086
            version=$("$out/venv/bin/python" -c "import sys; from importlib.metadata import version
print(', '.join(f'{name} {version(name)}' for name in (name.split('[')[0] for name in sys.argv[1:])))" $names)
            ;;
        *.mjs)
            if [ -z "$node" ]; then
                echo "$names: not run, because node is not installed"
                continue
            fi
            # Node looks for packages above the file.
            cp "$file" "$out/node/"
            run=("$node" "$out/node/$(basename "$file")")
            version=$(for name in $names; do echo "$name $("$node" -p "require('$out/node/node_modules/$name/package.json').version")"; done)
            version="npm ${version//$'\n'/, }"
            ;;
    esac
    mkdir -p "$work/client"
    if (cd "$work/client" && timeout 300 "${run[@]}") >"$work/output" 2>&1; then
        echo "$version: ok$(sed -n 's/^outcome: /, /p' "$work/output")"
    else
        echo "$version: FAILED"
        sed 's/^/    /' "$work/output" | tail -n 40
        failed=1
    fi
    rm -rf "$work/client"
done
exit $failed
